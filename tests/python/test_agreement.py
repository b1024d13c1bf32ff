"""Eager, script, torch.compile and C++ give the same answer, for the same frames and for the same video.

The model's offsets are large and its probabilities spread (`lively`); real videos see the bundled one too.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sifa
import torch
from lively import lively_model, moving_blocks, offsets
from sifa.artifact import FrameClassifier, export_torchscript, load_artifact
from sifa.data.motion import render_clip, write_video
from sifa.data.video import read_frames
from sifa.demo import find_sifa_run

VIDEOS = Path(__file__).parents[2].parent / "shared" / "videos"
REAL = (
    "arm_wrestling.mp4",
    "clip_long.mp4",
    "clip_mpeg4.avi",
    "hevc.mp4",
    "nasa_multi_stream.mp4",
    "rotated.mp4",
)
BT709 = ("nasa_multi_stream.mp4", "rotated.mp4")


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def classifier(model):
    return FrameClassifier(model).eval()


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("agreement") / "tiny.pt"
    export_torchscript(model, path)
    return path


@pytest.fixture(scope="module")
def runtime(runtime_module, path):
    """The C++ runtime's classifier, in this process."""
    return runtime_module.Classifier(path)


def run_program(path, video):
    """The C++ program on a video: its JSON, and the probabilities in the order of the classes."""
    command = [str(find_sifa_run()), str(path), str(video), "--topk", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    by_index = sorted(answer["classes"], key=lambda entry: entry["index"])
    return answer, np.array([entry["probability"] for entry in by_index])


@pytest.fixture(scope="module")
def sifa_run(runtime_module, path):
    return lambda video: run_program(path, video)


@pytest.fixture(scope="module")
def bundled(runtime_module, tmp_path_factory):
    """The model that ships, and its file."""
    model = sifa.create_model("sifa_tiny", pretrained="motion")
    path = tmp_path_factory.mktemp("bundled") / "tiny.pt"
    export_torchscript(model, path)
    return FrameClassifier(model).eval(), path


@pytest.fixture(scope="module")
def frames():
    """Two clips, not square and smaller or larger than the network's input."""
    return moving_blocks(16, count=4)[2:, :, :100]


@pytest.fixture(scope="module")
def expected(classifier, frames):
    with torch.no_grad():
        return classifier(frames)


def test_the_comparison_can_fail(model, classifier, frames, expected):
    with torch.no_grad():
        spread = [layer.std() for layer in offsets(model, classifier.preprocessing(frames)).values()]
    assert len(spread) >= 3
    assert min(spread) >= 1
    assert expected.max() < 0.9
    assert (expected[0] - expected[1]).abs().max() > 0.01
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "conv_offset" in name:
                value.mul_(0.9)
        changed = classifier(frames)
    model.load_state_dict(weights)
    assert (changed - expected).abs().max() > 1e-3


def test_script(path, frames, expected):
    torch.testing.assert_close(load_artifact(path)(frames), expected, rtol=0, atol=1e-5)


def test_compile(classifier, frames, expected):
    with torch.no_grad():
        compiled = torch.compile(classifier, fullgraph=True)(frames)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)


def test_runtime(runtime, frames, expected):
    np.testing.assert_allclose(runtime.classify(frames.numpy()), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(runtime.classify(frames[0].numpy()), expected[0], rtol=0, atol=1e-5)


def test_lossless_video(classifier, runtime, sifa_run, tmp_path):
    # Longer than a clip, not square, and of an odd width: every frame, its order and every pixel count.
    clip = torch.cat([render_clip(label, label, size=130) for label in (0, 5)])[:27, :, 3:]
    video = tmp_path / "lossless.mkv"
    write_video(video, clip, lossless=True)
    read, indices = read_frames(video, 16, 1)
    assert torch.equal(read, clip[indices])
    with torch.no_grad():
        expected = classifier(read.unsqueeze(0))[0].numpy()
    answer, probabilities = sifa_run(video)
    assert answer["frames"] == {"total": 27, "indices": indices}
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)
    prediction = runtime.classify_video(video)
    assert prediction.indices == indices
    np.testing.assert_allclose(prediction.probabilities, expected, rtol=0, atol=1e-5)


def test_video_shorter_than_the_clip(classifier, sifa_run, tmp_path):
    video = tmp_path / "short.mkv"
    write_video(video, render_clip(3, 1, size=64)[:5], lossless=True)
    read, indices = read_frames(video, 16, 1)
    with torch.no_grad():
        expected = classifier(read.unsqueeze(0))[0].numpy()
    answer, probabilities = sifa_run(video)
    assert answer["frames"] == {"total": 5, "indices": indices}
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("name", REAL)
def test_real_videos(name, weights, bundled, classifier, path):
    video = VIDEOS / name
    if not video.is_file():
        pytest.skip(f"{video} is not there")
    if weights == "trained":
        classifier, path = bundled
    elif name in BT709:
        pytest.skip("a random network turns what the decoders differ in into another class")
    read, indices = read_frames(video, 16, 1)
    with torch.no_grad():
        expected = classifier(read.unsqueeze(0))[0]
    answer, probabilities = run_program(path, video)
    assert answer["frames"]["indices"] == indices
    assert answer["classes"][0]["index"] == int(expected.argmax())
    # OpenCV does not heed that two of the streams are tagged BT.709: their colours differ a little.
    tolerance = 0.05 if name in BT709 else 1e-5
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=tolerance)
