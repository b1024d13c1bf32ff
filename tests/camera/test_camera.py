"""sifa-run on a camera, /dev/video0, of Linux's driver for tests: its colours, its loss, and who else has it.

`make test-camera` runs this inside a machine in qemu that has the camera, where a program takes ten seconds
to start. On a Linux with the module (`modprobe vivid`) it runs too, as root: SIFA_TEST_MODELS is the folder
that `python tests/python/colours.py FOLDER` filled, SIFA_TEST_WEBCAM the compiled example.
"""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from programs import TIMEOUT, Following, is_sure, refused

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


@pytest.fixture
def follow():
    """Starts a sifa-run; none that a test leaves behind has the camera in the next."""
    started = []

    def start(*arguments):
        started.append(Following(*arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def read_until(following, colour):
    end = time.monotonic() + TIMEOUT
    while not is_sure(following.read(), colour):
        assert time.monotonic() < end, f"it never said {colour}"


# The first: what it loads comes from a slow disk, and may take its time.
@pytest.mark.parametrize("source", [CAMERA, f"v4l2://{CAMERA}"])
def test_its_colours_are_those_of_the_model(follow, source):
    following = follow(COLOUR, source)
    for colour in PATTERNS:
        show(colour)
        read_until(following, colour)
    _, summary = following.stop(signal.SIGTERM)
    assert summary["reconnections"] == 0


def test_a_camera_that_is_unplugged_and_back(follow):
    following = follow(COLOUR, CAMERA)
    read_until(following, "red")
    unplug()
    time.sleep(2)
    # It begins with other colours, which are none of this test's.
    following.process.send_signal(signal.SIGSTOP)
    plug_in()
    show("green")
    following.process.send_signal(signal.SIGCONT)
    read_until(following, "green")
    predictions, summary = following.stop()
    assert summary["reconnections"] == 1
    # A window that begins with the new frames: three of them say nothing, and nothing is a mixture of both.
    gaps = [b["frame"] - a["frame"] for a, b in zip(predictions, predictions[1:], strict=False)]
    assert max(gaps) >= 4
    assert all(is_sure(prediction, "red") or is_sure(prediction, "green") for prediction in predictions)


def test_a_camera_that_is_unplugged_and_gone(follow):
    following = follow(COLOUR, CAMERA, "-", "--give-up-after", "1")
    read_until(following, "red")
    unplug()
    code, summary, errors = following.fail()
    assert code == 8
    assert f"{CAMERA} is not there" in errors
    assert errors.count("\n") == 1
    assert summary["frames"]["in"] >= 4
    assert f"{CAMERA} is not there: ls /dev/video* lists the cameras" in refused(COLOUR, CAMERA, code=8)


def test_a_stream_that_breaks_off_is_begun_again(follow):
    following = follow(COLOUR, CAMERA)
    read_until(following, "red")
    set_controls(inject_fatal_streaming_error=1)
    show("green")
    read_until(following, "green")
    _, summary = following.stop()
    assert summary["reconnections"] >= 1


def test_a_camera_that_another_program_has():
    streaming = ["v4l2-ctl", "-d", CAMERA, "--stream-mmap", "--stream-count=0"]
    holder = subprocess.Popen(streaming, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watchdog = threading.Timer(TIMEOUT, holder.kill)
    watchdog.start()
    try:
        assert holder.stderr.read(1) == b"<"  # a frame
        error = refused(COLOUR, CAMERA, code=8)
    finally:
        watchdog.cancel()
        holder.kill()
        holder.wait()
        holder.stderr.close()
    assert f"{CAMERA} gives no video: another program may be using it" in error


def test_a_device_that_takes_video_instead():
    nodes = Path("/sys/bus/platform/devices", DEVICE, "video4linux").glob("video*")
    output = next(f"/dev/{node.name}" for node in nodes if "vid-out" in (node / "name").read_text())
    error = refused(COLOUR, output, code=8)
    assert f"{output} gives no video" in error
    assert "v4l2-ctl --list-devices" in error


def test_the_example_of_a_camera():
    process = subprocess.Popen([os.environ["SIFA_TEST_WEBCAM"], COLOUR], stdout=subprocess.PIPE, text=True)
    watchdog = threading.Timer(TIMEOUT, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline() == "red\n"
        show("blue")
        said = process.stdout.readline()
        # Nothing while the window has both.
        assert said == "blue\n" or (said == "-\n" and process.stdout.readline() == "blue\n")
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
