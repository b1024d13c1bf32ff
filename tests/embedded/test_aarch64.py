"""sifa-run as 64-bit Arm, in qemu, against the one of this machine: same frames, same probabilities.

`make test-embedded` compiles it and says in SIFA_RUN_AARCH64 how to call it. Its LibTorch is an older one.
"""

import json
import os
import platform
import shlex
import subprocess
import zipfile

import pytest
import torch
from lively import lively_model
from make_runtime_data import make_models, make_videos, pattern, stream_frames, stream_model
from PIL import Image
from sifa.artifact import export_torchscript, read_metadata
from sifa.demo import find_sifa_run

TOLERANCE = 1e-5
TIMEOUT = 300  # seconds; it takes ten to start

HERE = [str(find_sifa_run())]
ARM = shlex.split(os.environ["SIFA_RUN_AARCH64"])


def run(program, *arguments, frames=b""):
    command = [*program, *map(str, arguments)]
    return subprocess.run(command, input=frames, capture_output=True, timeout=TIMEOUT)


def answers(program, *arguments, **options):
    """The lines of JSON, without what differs from run to run; on streams the last one is the summary."""
    done = run(program, *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def probabilities(lines):
    rows = [sorted(line["classes"], key=lambda each: each["index"]) for line in lines if "classes" in line]
    return torch.tensor([[each["probability"] for each in row] for row in rows], dtype=torch.float64)


def assert_same(*arguments, count, **options):
    arm, here = (probabilities(answers(program, *arguments, **options)) for program in (ARM, HERE))
    assert here.shape == (count, 3)
    assert here.std() > 0.05, "the model says the same of everything: nothing was compared"
    torch.testing.assert_close(arm, here, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    make_models(folder)
    make_videos(folder)
    torch.manual_seed(0)
    export_torchscript(lively_model(num_classes=3, num_frames=8, input_size=64), folder / "tiny.pt")
    export_torchscript(stream_model(), folder / "stream.pt", kind="streaming")
    return folder


def test_the_program_is_for_this_processor_and_has_all_its_parts():
    findings = {finding["name"]: finding for finding in answers(ARM, "--doctor")[0]}
    assert findings["machine"]["value"].startswith("aarch64")
    assert findings["operators"]["value"] == "loaded, run on cpu"
    assert "FFMPEG" in findings["video"]["value"]
    assert not [finding for finding in findings.values() if finding["problem"]]


def test_clips_of_a_folder_of_images(data, tmp_path):
    for i, frame in enumerate(pattern(12, 70, 90)):
        Image.fromarray(frame).save(tmp_path / f"{i:02}.png")
    assert_same(data / "tiny.pt", tmp_path, count=2)


def test_a_video_file(data):
    assert_same(data / "model.pt", data / "clip.mkv", count=1)


def test_the_steps_of_a_stream_on_standard_input(data):
    frames = stream_frames(32)
    height, width = frames.shape[2:4]
    arguments = (data / "stream.pt", "-", "--size", f"{width}x{height}", "--frame-stride", "1")
    assert_same(*arguments, count=8, frames=frames.numpy().tobytes())


@pytest.mark.parametrize("name", ["few_labels.pt", "reference.pt", "no_code.pt", "text.pt"])
def test_a_bad_model_is_refused_as_it_is_here(data, name):
    arm, here = (run(program, data / name, data / "clip.mkv") for program in (ARM, HERE))
    assert here.returncode != 0
    assert (arm.returncode, arm.stdout) == (here.returncode, here.stdout)


def test_machine_code_of_this_machine_is_refused_by_name(data):
    compiled_for = {"device": "cpu", "machine": platform.machine(), "cpu": "DEFAULT"}
    metadata = read_metadata(data / "model.pt") | {"format": "aoti", "compiled_for": compiled_for}
    with zipfile.ZipFile(data / "code.pt2", "w") as archive:
        archive.writestr("model/data/aotinductor/model/code.so", "for another processor")
        archive.writestr("model/extra/sifa.json", json.dumps(metadata))
    arm = run(ARM, data / "code.pt2", data / "clip.mkv")
    assert arm.returncode == 6
    assert f"compiled for machine {platform.machine()}, not for aarch64" in arm.stderr.decode()
