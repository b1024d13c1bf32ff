"""sifa-run as its users meet it: results, JSON, and for everything that goes wrong a code and one line."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sifa
import torch
from make_runtime_data import LABELS, make_data, pattern
from programs import find_sifa_run, on_a_terminal
from sifa.artifact import export_torchscript, load_artifact, read_metadata


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sifa_run")
    make_data(folder)
    return folder


def sifa_run(
    *arguments: object, program: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Nothing else in the environment may be needed, least of all LD_LIBRARY_PATH.
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("LD_", "PYTHON", "SIFA_"))
    }
    return subprocess.run(
        [str(program or find_sifa_run()), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**inherited, **environment},
        timeout=300,
    )


def assert_fails(result: subprocess.CompletedProcess[str], code: int, *parts: object) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("sifa-run: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert str(part) in result.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("graphs", [[], ["--no-cuda-graphs"]])
def test_a_gpu_gives_the_same(data: Path, graphs: list[str]) -> None:
    probabilities = []
    for options in (["--device", "cpu"], ["--device", "cuda", *graphs]):
        result = sifa_run(
            data / "model.pt",
            data / "clip.mkv",
            "--stream",
            "--frame-stride",
            1,
            "--json",
            *options,
            NVIDIA_TF32_OVERRIDE="0",
        )
        assert result.returncode == 0, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        steps = [line["classes"] for line in lines if "classes" in line]
        probabilities.append(
            [
                [entry["probability"] for entry in sorted(step, key=lambda entry: entry["label"])]
                for step in steps
            ]
        )
    assert len(probabilities[0]) == 8
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=1e-4)


def test_more_threads_than_a_machine_starts(data: Path) -> None:
    for source in (data / "clip.mkv", "gst://videotestsrc"):
        result = sifa_run(data / "model.pt", source, "--threads", 65536)
        assert_fails(result, 2, "threads must be 1 to ", " on this machine", "got 65536")


@pytest.mark.parametrize(
    "options", [["--hop", "3"], ["--decide", "0.7", "0.4"], ["--frame-stride", "5"], ["--give-up-after", "1"]]
)
def test_options_of_streams_are_refused_where_a_clip_is_classified(data: Path, options: list[str]) -> None:
    result = sifa_run(data / "model.pt", data / "clip.mkv", *options)
    assert_fails(result, 2, f"{options[0]} is for streams", "give --stream too")


def test_a_file_as_a_uri(data: Path) -> None:
    plain, uri = (
        json.loads(sifa_run(data / "model.pt", source, "--json").stdout)
        for source in (data / "clip.mkv", f"file://{data / 'clip.mkv'}")
    )
    assert uri["classes"] == plain["classes"]


def test_a_name_longer_than_names_can_be(data: Path) -> None:
    assert_fails(sifa_run(data / "model.pt", "x" * 300), 3, "video file not found: xxx")
    assert_fails(sifa_run(data / "model.pt", "x" * 300, "-"), 3, "not found: xxx")


def test_no_cuda_graphs_is_for_gpus_only(data: Path) -> None:
    """On the CPU it says nothing and changes nothing."""
    plain, without = (
        sifa_run(data / "model.pt", data / "clip.mkv", "--json", *options)
        for options in ([], ["--no-cuda-graphs"])
    )
    assert without.stderr == ""
    assert json.loads(without.stdout)["classes"] == json.loads(plain.stdout)["classes"]


def test_classes_and_timings_on_a_terminal(data: Path) -> None:
    *classes, frames, timings = on_a_terminal(data / "model.pt", data / "clip.mkv")
    assert sorted(line.split()[1] for line in classes) == sorted(LABELS)  # 5 asked for, 3 there are
    probabilities = [float(line.split()[0]) for line in classes]
    assert probabilities == sorted(probabilities, reverse=True)
    assert frames == "4 frames, 2 to 8, of 11"
    assert [part.split()[0] for part in timings.split(", ")] == ["load", "decode", "model", "total"]


def test_json_where_no_terminal_reads(data: Path) -> None:
    model, video = data / "model.pt", data / "clip.mkv"
    result = sifa_run(model, video, "--topk", 2, "--threads", 1, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert list(answer) == ["model", "video", "classes", "frames", "timings_ms"]
    assert (answer["model"], answer["video"]) == (str(model), str(video))
    assert answer["frames"] == {"total": 11, "indices": [2, 4, 6, 8]}
    timings = answer["timings_ms"]
    assert list(timings) == ["load", "decode", "model", "total"]
    assert 0 < sum(timings[key] for key in ("load", "decode", "model")) <= timings["total"]
    expected = load_artifact(model)(pattern(11, 20, 30)[None, [2, 4, 6, 8]])[0]
    assert len(answer["classes"]) == 2
    for entry, index in zip(answer["classes"], expected.argsort(descending=True).tolist(), strict=False):
        assert entry["index"] == index
        assert entry["label"] == LABELS[index]
        assert entry["probability"] == pytest.approx(expected[index].item(), abs=1e-5)


def test_topk_beyond_the_classes(data: Path) -> None:
    result = sifa_run(data / "model.pt", data / "clip.mkv", "--topk", 1000, "--json")
    assert len(json.loads(result.stdout)["classes"]) == len(LABELS)


def test_short_video_repeats_frames(data: Path) -> None:
    result = sifa_run(data / "model.pt", data / "short.mkv", "--json")
    assert json.loads(result.stdout)["frames"] == {"total": 2, "indices": [0, 0, 1, 1]}


def test_unusual_names(data: Path, tmp_path: Path) -> None:
    """A path that looks like a URL, and one that is not UTF-8."""
    video = tmp_path / "http:clip%02d.mkv"
    shutil.copy(data / "clip.mkv", video)
    result = subprocess.run(
        [find_sifa_run(), data / "model.pt", video.name, "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert json.loads(result.stdout)["video"] == video.name
    odd = os.fsencode(tmp_path) + b"/clip\xff.mkv"
    shutil.copy(data / "clip.mkv", odd)
    result = subprocess.run([find_sifa_run(), data / "model.pt", odd, "--json"], capture_output=True)
    assert json.loads(result.stdout)["video"].endswith("clip\N{REPLACEMENT CHARACTER}.mkv")
    odd = os.fsencode(tmp_path) + b"/model\xff.pt"
    shutil.copy(data / "model.pt", odd)
    arguments = ["--benchmark", "--json", "--rounds", "1"]
    result = subprocess.run([find_sifa_run(), odd, *arguments], capture_output=True)
    assert json.loads(result.stdout)["model"].endswith("model\N{REPLACEMENT CHARACTER}.pt")


def test_help_and_version() -> None:
    result = sifa_run("--help")
    assert result.returncode == 0
    assert "MODEL" in result.stdout
    assert "Exit codes" in result.stdout
    result = sifa_run("--version")
    assert result.returncode == 0
    assert result.stdout.strip().count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "MODEL is required"),
        (["MODEL"], "SOURCE is required"),
        (["MODEL", "VIDEO", "SINK", "another"], "another"),
        (["MODEL", "VIDEO", "--topk", "0"], "--topk"),
        (["MODEL", "VIDEO", "--topk", "many"], "--topk"),
        (["MODEL", "VIDEO", "--threads", "0"], "--threads"),
        (["MODEL", "VIDEO", "--threads", "-3"], "--threads"),
        (["MODEL", "VIDEO", "--give-up-after", "nan"], "--give-up-after must be seconds, got nan"),
        (["MODEL", "VIDEO", "--batch", "5"], "--batch is for --benchmark, which is not given"),
        (["MODEL", "VIDEO", "SINK.mp4", "--benchmark"], "--benchmark writes no SINK, got SINK.mp4"),
        (
            ["MODEL", "rtsp://HOST", "--benchmark"],
            "--benchmark reads a video file only, got SOURCE rtsp://HOST",
        ),
        (["MODEL", "--benchmark", "--hop", "8"], "--hop is for streams that are followed"),
        (["MODEL", "VIDEO", "--size", "3x3"], "--size is of raw frames on standard input (SOURCE -)"),
        (["MODEL", "VIDEO", "--device"], "--device"),
        (["MODEL", "VIDEO", "--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors(arguments: list[str], part: str) -> None:
    assert_fails(sifa_run(*arguments), 2, part, "see sifa-run --help")


@pytest.mark.parametrize(
    ("model", "code", "part"),
    [
        ("nothing.pt", 3, "model file not found"),
        ("text.pt", 4, "not a SIFA model"),
        ("foreign.zip", 4, "not a SIFA model"),
        ("no_metadata.pt", 4, "models are made by `sifa export`"),
        ("few_labels.pt", 4, "reference.probabilities"),
        ("empty.pt", 5, "damaged or truncated"),
        ("no_code.pt", 5, f"not loadable by {torch.__version__.split('+')[0]}"),
        ("schema_version.pt", 6, "schema version 2"),
        ("operator.pt", 7, "another operator library"),
        ("reference.pt", 11, "does not compute what was exported"),
    ],
)
def test_bad_models(data: Path, model: str, code: int, part: str) -> None:
    assert_fails(sifa_run(data / model, data / "clip.mkv"), code, data / model, part)


def test_truncated_and_changed_models(data: Path, tmp_path: Path) -> None:
    content = (data / "model.pt").read_bytes()
    model = tmp_path / "model.pt"
    for size in (3, 1000, len(content) // 2, len(content) - 1):
        model.write_bytes(content[:size])
        assert_fails(sifa_run(model, data / "clip.mkv"), 5, model, "damaged or truncated")
    with zipfile.ZipFile(data / "model.pt") as archive:
        weights = max(
            archive.infolist(), key=lambda entry: entry.file_size * ("constants/" in entry.filename)
        )
    name_size, extra_size = struct.unpack_from("<HH", content, weights.header_offset + 26)
    changed = bytearray(content)
    changed[weights.header_offset + 30 + name_size + extra_size + weights.file_size // 2] ^= 1
    model.write_bytes(changed)
    assert_fails(sifa_run(model, data / "clip.mkv"), 5, model, "checksum", weights.filename.split("/", 1)[1])


@pytest.mark.parametrize(
    ("video", "code", "part"),
    [
        ("nothing.mp4", 3, "video file not found"),
        ("text.mp4", 8, "video cannot be opened"),
        ("truncated.mp4", 8, "video cannot be opened"),
        ("model.pt", 8, "video cannot be opened"),
        ("no_frames.avi", 9, "no frames"),
    ],
)
def test_bad_videos(data: Path, video: str, code: int, part: str) -> None:
    assert_fails(sifa_run(data / "model.pt", data / video), code, data / video, part)


@pytest.mark.parametrize("device", ["", "gpu", "cpu:7", "cuda:99", "xpu"])
def test_bad_devices(data: Path, device: str) -> None:
    assert_fails(sifa_run(data / "model.pt", data / "clip.mkv", "--device", device), 10, "device", device)


def test_bad_operator_libraries(data: Path, tmp_path: Path) -> None:
    def run(library: object) -> subprocess.CompletedProcess[str]:
        return sifa_run(data / "model.pt", data / "clip.mkv", SIFA_OPS_LIBRARY=str(library))

    assert_fails(run(tmp_path / "nothing.so"), 7, "operator library not found", tmp_path / "nothing.so")
    garbage = tmp_path / "garbage.so"
    garbage.write_text("not a library")
    assert_fails(run(garbage), 7, "operator library cannot be loaded", garbage)
    other = next(path for path in _mapped_libraries() if "libz.so" in path)
    assert_fails(run(other), 7, "does not define sifa::inter_frame_attention", other)


def _mapped_libraries() -> list[str]:
    ctypes.CDLL(ctypes.util.find_library("z"))
    with open("/proc/self/maps") as maps:
        return [line.split()[-1] for line in maps if ".so" in line]


def test_what_lies_beside_the_runtime_is_found_or_named(data: Path, tmp_path: Path) -> None:
    """An installation elsewhere that lacks first the operators, then only the video library."""
    libraries = tmp_path / "sifa" / "lib"
    libraries.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    program = Path(shutil.copy(find_sifa_run(), tmp_path / "bin"))
    source = next(
        Path(entry) / "lib"
        for entry in sifa.__path__
        if (Path(entry) / "lib" / "libsifa_runtime.so").exists()
    )
    shutil.copy(source / "libsifa_runtime.so", libraries)
    # Where the copy's own relative path to torch leads nowhere.
    torch_libraries = str(Path(torch.__file__).parent / "lib")

    def run() -> subprocess.CompletedProcess[str]:
        return sifa_run(
            data / "model.pt", data / "clip.mkv", program=program, LD_LIBRARY_PATH=torch_libraries
        )

    assert_fails(run(), 7, "operator library not found", libraries / "libsifa_ops.so", "SIFA_OPS_LIBRARY")
    shutil.copy(source / "libsifa_ops.so", libraries)
    assert_fails(run(), 8, "cannot read video files", libraries / "libsifa_video.so", "SIFA_VIDEO=OFF")
    shutil.copy(source / "libsifa_video.so", libraries)
    assert run().returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("model.pt", "clip.mkv"),
        ("model.pt", "clip.mkv", "--stream"),
        ("model.pt", "--no-exec"),
        ("model.pt", "--benchmark", "--rounds", "1"),
        ("--doctor",),
        ("--doctor", "--json"),
    ],
)
def test_full_output_device(data: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [find_sifa_run(), *arguments], cwd=data, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert result.stderr == "sifa-run: the result cannot be written to standard output\n"


def benchmark(*arguments: object) -> dict[str, Any]:
    result = sifa_run(*arguments, "--benchmark", "--json", "--threads", "1")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_benchmark_of_a_clip(data: Path) -> None:
    result = benchmark(data / "model.pt", "--batch", 2, "--rounds", 7)
    assert (result["kind"], result["batch"], result["rounds"]) == ("clip", 2, 7)
    assert result["decode_ms"] is None
    assert result["total_ms"] == result["model_ms"]
    assert 0 < result["model_ms"]["p50"] <= result["model_ms"]["p95"] <= result["model_ms"]["p99"]
    assert min(result["load_ms"], result["first_ms"], result["per_second"]) > 0
    for video in (data / "clip.mkv", f"file://{data / 'clip.mkv'}"):
        result = benchmark(data / "model.pt", video, "--rounds", 2)
        assert 0 < result["decode_ms"]["p50"] <= result["total_ms"]["p50"]


def test_benchmark_states_a_roofline(data: Path) -> None:
    result = benchmark(data / "model.pt", "--batch", 2, "--rounds", 3)
    roofline = result["roofline"]
    cost = read_metadata(data / "model.pt")["cost"]
    assert roofline["gflop"] == pytest.approx(2 * cost["operations"] / 1e9)
    frames = 2 * 4 * 18 * 24 * 3  # as many as the batch has, 8/7 of 16 pixels high
    assert roofline["mb"] == pytest.approx((cost["weight_bytes"] + frames) / 1e6)
    ceilings = (
        roofline["gflop"] / roofline["peak_gflop_per_s"],
        roofline["mb"] / 1e3 / roofline["peak_gb_per_s"],
    )
    assert roofline["floor_ms"] == pytest.approx(1e3 * max(ceilings))
    assert roofline["floor_over_p50"] == pytest.approx(roofline["floor_ms"] / result["model_ms"]["p50"])
    assert benchmark(data / "no_cost.pt", "--rounds", 1)["roofline"] is None


def test_benchmark_of_a_window(tmp_path: Path) -> None:
    """One step a round: that is what the roofline is of."""
    model = sifa.create_model("sifa_tiny", num_classes=3, num_frames=16, input_size=32)
    cost = export_torchscript(model, tmp_path / "window.pt", kind="window")["cost"]
    result = benchmark(tmp_path / "window.pt", "--batch", 2, "--rounds", 2)
    assert (result["kind"], result["batch"]) == ("window", 2)
    assert result["roofline"]["gflop"] == pytest.approx(2 * cost["operations"] / 1e9)


def test_benchmark_refuses_a_video_for_several(data: Path) -> None:
    result = sifa_run(data / "model.pt", data / "clip.mkv", "--benchmark", "--batch", 2)
    assert_fails(result, 2, "one clip at a time only")


def test_sifa_tiny_in_memory(tmp_path: Path) -> None:
    """As streams. Of what is resident only the anonymous part is ours; the rest is LibTorch's files."""
    model = sifa.create_model("sifa_tiny", num_classes=10, num_frames=16, streaming=True)
    export_torchscript(model, tmp_path / "stream.pt", kind="streaming")
    result = benchmark(tmp_path / "stream.pt", "--batch", 3, "--rounds", 2)
    assert (result["kind"], result["batch"]) == ("streaming", 3)
    assert result["resident_mb"]["anonymous"] < 400
    assert result["resident_mb"]["all"] < 700
    assert result["resident_mb"]["all"] <= result["peak_resident_mb"]
