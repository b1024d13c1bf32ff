"""sifa-run on a camera, /dev/video0, of Linux's driver for tests: its colours, its loss, and who else has it.

`make test-camera` runs this inside a machine in qemu that has the camera, where a program takes ten seconds
to start. On a Linux with the module (`modprobe vivid`) it runs too, as root: SIFA_TEST_MODELS is the folder
that `python tests/python/colours.py FOLDER` filled, SIFA_TEST_WEBCAM the compiled example.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from programs import TIMEOUT, Following, command

CAMERA = "/dev/video0"
DRIVER = Path("/sys/bus/platform/drivers/vivid")
DEVICE = "vivid.0"
PATTERNS = {"red": 7, "green": 8, "blue": 9}
MODELS = Path(os.environ["SIFA_TEST_MODELS"])
COLOUR = MODELS / "colour.pt"


def set_controls(**values):
    controls = ",".join(f"{name}={value}" for name, value in values.items())
    subprocess.run(["v4l2-ctl", "-d", CAMERA, "-c", controls], check=True)


def show(colour):
    set_controls(test_pattern=PATTERNS[colour], osd_text_mode=2)


def plug_in():
    (DRIVER / "bind").write_text(DEVICE)


def unplug():
    (DRIVER / "unbind").write_text(DEVICE)


@pytest.fixture(autouse=True)
def red_camera():
    if not Path(CAMERA).exists():
        plug_in()
    show("red")


def read_until(following, label):
    """Predictions until the best class is this one, which it must become."""
    end = time.monotonic() + TIMEOUT
    while True:
        best = following.read()["classes"][0]
        if best["label"] == label and best["probability"] > 0.7:
            return
        assert time.monotonic() < end, f"it never said {label}"


def refused(source):
    """(exit status, what it says) of a source that it cannot follow."""
    done = subprocess.run(command(COLOUR, source), capture_output=True, timeout=TIMEOUT, text=True)
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


# The first: what it loads comes from a slow disk, and may take its time.
@pytest.mark.parametrize("source", [CAMERA, f"v4l2://{CAMERA}"])
def test_its_colours_are_those_of_the_model(source):
    following = Following(COLOUR, source)
    for colour in PATTERNS:
        show(colour)
        read_until(following, colour)
    _, summary = following.stop(signal.SIGTERM)
    assert summary["reconnections"] == 0


def test_a_camera_that_is_unplugged_and_back():
    following = Following(COLOUR, CAMERA)
    read_until(following, "red")
    unplug()
    time.sleep(2)
    plug_in()
    show("green")
    read_until(following, "green")
    predictions, summary = following.stop()
    assert summary["reconnections"] == 1
    # A window that begins with the new frames: three of them say nothing, and nothing is a mixture of both.
    gaps = [b["frame"] - a["frame"] for a, b in zip(predictions, predictions[1:], strict=False)]
    assert max(gaps) >= 4
    assert {prediction["classes"][0]["label"] for prediction in predictions} == {"red", "green"}
    assert all(prediction["classes"][0]["probability"] > 0.7 for prediction in predictions)


def test_a_camera_that_is_unplugged_and_gone():
    following = Following(COLOUR, CAMERA, "-", "--give-up-after", "1")
    read_until(following, "red")
    unplug()
    code, summary, errors = following.fail()
    assert code == 8
    assert f"{CAMERA} is not there" in errors
    assert errors.count("\n") == 1
    assert summary["frames"]["in"] >= 4
    code, error = refused(CAMERA)
    assert code == 8
    assert f"{CAMERA} is not there: ls /dev/video* lists the cameras" in error


def test_a_stream_that_breaks_off_is_begun_again():
    following = Following(COLOUR, CAMERA)
    read_until(following, "red")
    set_controls(inject_fatal_streaming_error=1)
    end = time.monotonic() + TIMEOUT
    while following.read()["frame"] < 60 and time.monotonic() < end:
        pass
    _, summary = following.stop()
    assert summary["reconnections"] >= 1


def test_a_camera_that_another_program_has():
    holder = subprocess.Popen(
        ["v4l2-ctl", "-d", CAMERA, "--stream-mmap", "--stream-count=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        code, error = refused(CAMERA)
    finally:
        holder.kill()
        holder.wait()
    assert code == 8
    assert f"{CAMERA} gives no video: another program may be using it" in error


def test_a_device_that_takes_video_instead():
    nodes = Path("/sys/bus/platform/devices", DEVICE, "video4linux").glob("video*")
    output = next(f"/dev/{node.name}" for node in nodes if "vid-out" in (node / "name").read_text())
    code, error = refused(output)
    assert code == 8
    assert f"{output} gives no video" in error
    assert "v4l2-ctl --list-devices" in error


def test_the_example_of_a_camera():
    process = subprocess.Popen([os.environ["SIFA_TEST_WEBCAM"], COLOUR], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "red\n"
        show("blue")
        assert process.stdout.readline() in ("blue\n", "-\n")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
