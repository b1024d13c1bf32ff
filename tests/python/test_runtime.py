"""sifa.runtime, the C++ classifier in Python: Python's own answers, errors with codes, the GIL released."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from make_runtime_data import GOOD_MODELS, LABELS, NUM_FRAMES, make_data, pattern
from sifa import cli, runtime
from sifa.artifact import ArtifactError, load_artifact, read_metadata
from sifa.data.sampling import frame_indices
from sifa.data.video import read_frames
from torchcodec.decoders import VideoDecoder

VIDEOS = Path(__file__).resolve().parents[2].parent / "shared" / "videos"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(data: Path) -> runtime.Classifier:
    return runtime.Classifier(data / "model.pt")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_agrees_with_the_artifact_in_python(data: Path, classifier: runtime.Classifier) -> None:
    artifact = load_artifact(data / "model.pt")
    clips = np.random.default_rng(0).integers(0, 256, (3, NUM_FRAMES, 37, 52, 3), dtype=np.uint8)
    expected = artifact(clips).numpy()
    probabilities = classifier.classify(clips)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (3, len(LABELS))
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert probabilities.std(axis=0).min() > 1e-4  # it does look at the frames
    single = classifier.classify(clips[0])
    assert single.shape == (len(LABELS),)
    np.testing.assert_allclose(single, expected[0], atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_gpu_gives_the_same(data: Path, classifier: runtime.Classifier, cuda_graphs: bool) -> None:
    """Also from the fourth call on, which replays a CUDA graph."""
    on_gpu = runtime.Classifier(data / "model.pt", device="cuda", cuda_graphs=cuda_graphs)
    for seed in range(6):
        clips = np.random.default_rng(seed).integers(0, 256, (2, NUM_FRAMES, 37, 52, 3), dtype=np.uint8)
        np.testing.assert_allclose(on_gpu.classify(clips), classifier.classify(clips), atol=1e-4)


def test_without_cuda_graphs_the_cpu_does_the_same(data: Path, classifier: runtime.Classifier) -> None:
    clips = pattern(NUM_FRAMES, 24, 40)
    without = runtime.Classifier(data / "model.pt", cuda_graphs=False)
    np.testing.assert_array_equal(without.classify(clips), classifier.classify(clips))
    runtime.Stream(data / "model.pt", cuda_graphs=False)
    runtime.StreamBatch(data / "model.pt", 2, cuda_graphs=False)


def test_reads_frames_in_any_layout(classifier: runtime.Classifier) -> None:
    clip = pattern(2 * NUM_FRAMES, 24, 40)
    for view in (
        clip[::2],
        clip[:NUM_FRAMES, ::-1],
        clip[:NUM_FRAMES, :, :20],
        np.asfortranarray(clip[:NUM_FRAMES]),
    ):
        np.testing.assert_array_equal(classifier.classify(view), classifier.classify(view.copy(order="C")))
    read_only = clip[:NUM_FRAMES].copy()
    read_only.flags.writeable = False
    classifier.classify(read_only)


def test_labels_and_metadata(data: Path, classifier: runtime.Classifier) -> None:
    assert classifier.labels == LABELS
    assert classifier.metadata["num_frames"] == NUM_FRAMES
    assert classifier.metadata == runtime.read_metadata(data / "model.pt")
    assert classifier.metadata == load_artifact(data / "model.pt").metadata


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((NUM_FRAMES, 8, 8, 3), np.float32), r"got float32 \(4, 8, 8, 3\)"),
        (np.zeros((NUM_FRAMES, 8, 8, 4), np.uint8), r"got uint8 \(4, 8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.uint8), r"must be uint8 \(T, H, W, 3\) or \(N, T, H, W, 3\)"),
        (np.zeros((NUM_FRAMES + 1, 8, 8, 3), np.uint8), "4 frames, height, width, 3.*got 5 frames"),
        (np.zeros((0, NUM_FRAMES, 8, 8, 3), np.uint8), "got 0 clips"),
        (np.zeros((NUM_FRAMES, 0, 8, 3), np.uint8), "got frames of 0 x 8"),
    ],
)
def test_refuses_frames(classifier: runtime.Classifier, frames: np.ndarray, message: str) -> None:
    with pytest.raises(runtime.Error, match=message) as caught:
        classifier.classify(frames)
    assert caught.value.code == 2


def test_errors_have_codes(data: Path, classifier: runtime.Classifier) -> None:
    assert issubclass(runtime.Error, RuntimeError)

    def code(function: Callable[[], object]) -> int:
        with pytest.raises(runtime.Error) as caught:
            function()
        assert "\n" not in str(caught.value)
        return caught.value.code

    assert code(lambda: runtime.Classifier(data / "nothing.pt")) == 3
    assert code(lambda: runtime.read_metadata(data / "text.pt")) == 4
    assert code(lambda: runtime.Classifier(data / "no_code.pt")) == 5
    assert code(lambda: runtime.Classifier(data / "schema_version.pt")) == 6
    assert code(lambda: runtime.Classifier(data / "operator.pt")) == 7
    assert code(lambda: classifier.classify_video(data / "text.mp4")) == 8
    assert code(lambda: classifier.classify_video(data / "no_frames.avi")) == 9
    assert code(lambda: runtime.Classifier(data / "model.pt", device="tpu")) == 10
    assert code(lambda: runtime.Classifier(data / "model.pt", threads=0)) == 2
    assert code(lambda: runtime.Classifier(data / "reference.pt")) == 11


def test_both_languages_refuse_the_same_files(data: Path) -> None:
    def accepted(function: Callable[[Path], object], path: Path) -> bool:
        try:
            function(path)
        except (runtime.Error, ArtifactError):
            return False
        return True

    models = [path for path in data.iterdir() if path.suffix in (".pt", ".zip")]
    assert len(models) > 30
    for path in models:
        cpp, python = accepted(runtime.read_metadata, path), accepted(read_metadata, path)
        assert cpp == python, path
        cpp, python = accepted(runtime.Classifier, path), accepted(load_artifact, path)
        assert cpp == python == (path.name in GOOD_MODELS), path


def test_info_of_every_file_is_facts_or_one_line(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in data.glob("*.pt"):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["info", str(path)])
        out, err = capsys.readouterr()
        assert bool(out) == (exit_.value.code in (0, None)), path
        assert err.count("\n") == (not out), path


def test_threads_are_the_process_s(data: Path, threads: int) -> None:
    runtime.Classifier(data / "model.pt", threads=threads + 1)
    assert torch.get_num_threads() == threads + 1
    runtime.Classifier(data / "model.pt")
    assert torch.get_num_threads() == threads + 1


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.avi", "short.mkv", "single.mkv", "lying.avi"])
def test_lossless_video_equals_its_frames(data: Path, classifier: runtime.Classifier, name: str) -> None:
    total = {"short.mkv": 2, "single.mkv": 1}.get(name, 11)
    prediction = classifier.classify_video(data / name)
    assert prediction.total_frames == total
    assert prediction.indices == frame_indices(total, NUM_FRAMES, classifier.metadata["frame_stride"])
    expected = classifier.classify(pattern(11, 20, 30)[prediction.indices])
    np.testing.assert_array_equal(prediction.probabilities, expected)
    assert prediction.decode_ms > 0
    assert prediction.model_ms > 0


@pytest.mark.parametrize("name", ["clip.mkv", "short.mkv", "lying.avi"])
def test_a_model_of_segments_is_given_the_middle_of_each(data: Path, name: str) -> None:
    prediction = runtime.Classifier(data / "segments.pt").classify_video(data / name)
    python, indices = read_frames(data / name, NUM_FRAMES, 2, "segments")
    assert prediction.indices == indices == ([0, 0, 1, 1] if name == "short.mkv" else [1, 4, 6, 9])
    expected = runtime.Classifier(data / "model.pt").classify(pattern(11, 20, 30)[indices])
    np.testing.assert_array_equal(prediction.probabilities, expected)
    np.testing.assert_array_equal(python.numpy(), pattern(11, 20, 30)[indices])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_is_turned_as_torchcodec_turns_it(
    data: Path, classifier: runtime.Classifier, degrees: int
) -> None:
    path = data / f"rotated_{degrees}.mp4"
    prediction = classifier.classify_video(path)
    frames = VideoDecoder(path, dimension_order="NHWC").get_frames_at(prediction.indices).data.numpy()
    np.testing.assert_array_equal(
        frames, np.rot90(pattern(11, 20, 30)[prediction.indices], -degrees // 90, (1, 2))
    )
    np.testing.assert_array_equal(prediction.probabilities, classifier.classify(frames))


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the shared videos")
@pytest.mark.parametrize("path", sorted(VIDEOS.glob("*.*")), ids=lambda path: path.name)
def test_real_videos_have_the_frames_that_torchcodec_has(classifier: runtime.Classifier, path: Path) -> None:
    prediction = classifier.classify_video(path)
    frames, indices = read_frames(path, NUM_FRAMES, classifier.metadata["frame_stride"])
    assert prediction.indices == indices
    expected = classifier.classify(frames.numpy())
    # OpenCV takes every video for BT.601; where a stream says BT.709, colours differ by up to 20 of 255.
    tolerance = 0.05 if VideoDecoder(path).metadata.color_space == "bt709" else 1e-5
    np.testing.assert_allclose(prediction.probabilities, expected, atol=tolerance)
    assert prediction.probabilities.argmax() == expected.argmax()


def _releases_gil(function: Callable[[], object]) -> bool:
    """Whether another thread can run while `function` does."""
    ticks = [0]
    released = [False]

    def work() -> None:
        function()  # the first call may import things
        for _ in range(100):  # the other thread need not be awake in time for the first
            before = ticks[0]
            function()
            if ticks[0] != before:
                released[0] = True
                return

    worker = threading.Thread(target=work)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # so that no thread loses the GIL unless it gives it away
    try:
        worker.start()
        while worker.is_alive():
            ticks[0] += 1
            time.sleep(0.0001)
    finally:
        sys.setswitchinterval(interval)
    return released[0]


def test_gil_is_released(data: Path, classifier: runtime.Classifier) -> None:
    clips = np.broadcast_to(pattern(NUM_FRAMES, 64, 64), (32, NUM_FRAMES, 64, 64, 3)).copy()
    assert not _releases_gil(lambda: sum(range(10_000)))  # a function that keeps it
    assert _releases_gil(lambda: classifier.classify(clips))
    assert _releases_gil(lambda: runtime.Classifier(data / "model.pt"))
    assert _releases_gil(lambda: runtime.read_metadata(data / "model.pt"))
    assert _releases_gil(lambda: classifier.classify_video(data / "clip.mkv"))


def _run(code: str, *arguments: object) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# The copies of the operator library that a process has mapped.
_COPIES = """
def copies():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if "libsifa_ops.so" in line})
"""


def test_operators_loaded_by_python_are_used(data: Path) -> None:
    result = _run(
        f"""
        import json, sys
        {textwrap.indent(_COPIES, " " * 8).lstrip()}
        import sifa
        before = copies()
        from sifa import runtime
        runtime.Classifier(sys.argv[1])
        print(json.dumps({{"before": before, "after": copies()}}))
        """,
        data / "model.pt",
    )
    assert len(result["before"]) == 1
    assert result["after"] == result["before"]


def test_operators_loaded_by_cpp_are_used(data: Path) -> None:
    """The runtime in a process without sifa; then Python finds its operators and adds autograd to them."""
    result = _run(
        f"""
        import importlib.util, json, sys
        {textwrap.indent(_COPIES, " " * 8).lstrip()}
        spec = importlib.util.spec_from_file_location("runtime", sys.argv[2])
        runtime = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(runtime)
        assert "sifa" not in sys.modules and "torch" not in sys.modules
        runtime.Classifier(sys.argv[1])
        before = copies()
        import torch, sifa
        x = torch.randn(1, 4, 2, 5, 5, requires_grad=True)
        sifa.inter_frame_attention(x, x, torch.zeros(1, 18, 2, 5, 5)).sum().backward()
        print(json.dumps({{"before": before, "after": copies(), "grad": bool(x.grad.abs().sum() > 0)}}))
        """,
        data / "model.pt",
        runtime.__file__,
    )
    assert len(result["before"]) == 1
    assert result["after"] == result["before"]
    assert result["grad"]
