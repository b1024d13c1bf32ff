"""The benchmark of the operator still runs, and its floor is what one counts by hand."""

import importlib
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import sys

import pytest
import torch
from sifa import artifact

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if pathlib.Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


def test_corners_of_the_regular_grid(load):
    # On 3×3 pixels 2, 3 and 2 taps fall on the three rows, so 7·7 on all; each has one corner with a share,
    # and its derivative looks one pixel further down, where there is one (5·7), and right.
    corners = load("floors").count_corners(torch.zeros(1, 18, 1, 3, 3), 3)
    assert (corners.read, corners.felt, corners.blended, corners.taps) == (49, 49 + 35 + 35, 0, 49)


def test_corners_between_pixels(load):
    # Half a pixel down and right from four pixels: 4, 2, 2 and 1 corners are inside.
    corners = load("floors").count_corners(torch.full((1, 2, 1, 2, 2), 0.5), 1)
    assert (corners.read, corners.felt, corners.blended, corners.taps) == (9, 9, 8, 4)
    # Beyond the frame nothing is left.
    assert load("floors").count_corners(torch.full((1, 2, 1, 2, 2), 3.0), 1).taps == 0


def test_work_and_floor(load):
    floors = load("floors")
    shape = (1, 4, 1, 2, 2)  # 64 bytes of features, 32 of offsets
    corners = floors.Corners(read=9, felt=9, blended=8, taps=4)
    forward = floors.attention_work(shape, 4, 4, 1, corners, backward=False)
    assert forward == floors.Work(
        bytes=64 + 32 + 64, full_tap_bytes=256, tap_bytes=9 * 16, operations=2 * 4 * (8 + 8)
    )
    both = floors.attention_work(shape, 4, 4, 1, corners, backward=True)
    assert both.bytes == forward.bytes + 3 * 64 + 2 * 32
    assert both.tap_bytes == (9 + 9 + 9) * 16
    assert both.operations == 2 * 4 * (8 + 8 + 8 + 9 + 9 + 20)
    assert floors.floor_of(forward, floors.Rates(copy=160, read=72, operations=128)) == floors.Floor(
        2, "taps"
    )
    block = floors.block_work(shape, 4, 1, corners, backward=False, convolution=True)
    assert block.bytes == 128
    assert block.operations == forward.operations + 2 * 9 * 4 * 2 * 4


def test_work_with_every_corner_inside(load):
    floors = load("floors")
    pixels, taps = 10 * 20, 9 * 10 * 20
    corners = floors.Corners(read=4 * taps, felt=4 * taps, blended=4 * taps, taps=taps)
    forward, both = (
        floors.attention_work((1, 64, 1, 10, 20), 2, 4, 3, corners, backward) for backward in (False, True)
    )
    assert forward.tap_bytes == forward.full_tap_bytes == 36 * 64 * pixels * 2
    # The FLOP formulas of sifa.ops.
    assert forward.operations == 12 * 9 * 64 * pixels
    assert both.operations == (12 + 34) * 9 * 64 * pixels


def test_in_turns(load):
    measuring = load("measuring")
    calls = []

    def probe(name):
        calls.append(name)
        return float(len(calls))

    values = measuring.in_turns({"a": lambda: probe("a"), "b": lambda: probe("b")}, 5, float("inf"))
    assert calls == ["a", "b"] * 5
    assert values == {"a": [1, 3, 5, 7, 9], "b": [2, 4, 6, 8, 10]}
    # Whoever has used up its time leaves, but not at once.
    assert len(measuring.in_turns({"a": lambda: 1.0}, 5, 0.0)["a"]) == measuring.FEWEST_ROUNDS
    assert measuring.ratios([2.0, 6.0, 1.0], [1.0, 2.0]) == [2, 3]
    assert measuring.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == [2, 3, 4]
    assert measuring.quartiles([1.0]) == [1, 1, 1]


def test_cases_have_names_of_their_own(load):
    cases = load("cases")
    names = [case.name for case in [*cases.CASES, *cases.CUDA_CASES, *cases.TINY]]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(
    not shutil.which("c++"), reason="the benchmark compiles its ceilings, and there is no c++"
)
def test_the_harness(load, tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, BENCHMARKS / "attention.py", "--quick", "--cases", "^tiny(-block)?$"]
    run = subprocess.run([*command, "--json", file], capture_output=True, text=True, check=True)
    assert "\r" not in run.stderr  # off a terminal there is no progress

    result = json.loads(file.read_text())
    assert {"date", "processor", "sifa", "torch", "python", "command", "claims"} <= result.keys()
    row, block = result["rows"]
    assert (row["case"], block["case"]) == ("tiny", "tiny-block")
    assert row["shape"] == [2, 16, 3, 5, 6]
    assert row["checked_against"] == "the reference in float64"
    for which, clips, offsets in (("forward", 2, 1), ("forward and backward", 5, 3)):
        entry = row["passes"][which]
        work = entry["work"]
        assert work["bytes"] == 180 * 4 * (clips * 16 + offsets * 18)
        assert 0 < work["tap_bytes"] < work["full_tap_bytes"]
        times = {name: each["rounds"] for name, each in entry["times_ms"].items()}
        assert {
            "operator",
            "grid_sample",
            "deform_conv2d",
            "reference",
            "operator, zero offsets",
        } <= times.keys()
        assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in times.values())
        assert {"grid_sample, compiled", "FlexAttention"} == entry["not_measured"].keys()
        for i, rates in enumerate(entry["ceilings_per_s"]):
            floor = 1e3 * max(
                work["bytes"] / rates["copy"],
                work["tap_bytes"] / rates["read"],
                work["operations"] / rates["operations"],
            )
            assert math.isclose(entry["floor_ms"][i], floor)
            assert math.isclose(entry["time_over_floor"]["rounds"][i], times["operator"][i] / floor)
            ratio = times["grid_sample"][i] / times["operator"][i]
            assert math.isclose(entry["ratios"]["grid_sample"]["rounds"][i], ratio)
        assert entry["time_over_floor"]["quartiles"][1] == statistics.median(
            entry["time_over_floor"]["rounds"]
        )
        assert entry["peak_bytes"].keys() >= {"operator", "grid_sample"}
        assert f"| {which} " in run.stdout
    assert "torch's operators" in block["passes"]["forward"]["ratios"]

    # The aims are those of larger cases; here only that they find what they need.
    row["case"], block["case"] = "base", "block-128"
    claims = load("report").claims(result["rows"])
    assert {claim["claim"] for claim in claims} >= {
        "forward over its floor",
        "zero offsets over σ = 1, forward",
        "bfloat16 over float32, forward",
        "forward and backward over forward",
        "the SIFA block over the same block of torch's operators, eager, forward",
    }
    assert all(isinstance(claim["holds"], bool) for claim in claims)
    row["case"], row["device"] = "cuda-64x90x160", "cuda"
    on_cuda = {claim["claim"]: claim["aim"] for claim in load("report").claims([row, block])}
    assert on_cuda == {
        "cuda-64x90x160: forward over its floor": "≤ 1.6",
        "cuda-64x90x160: forward and backward over forward": "≤ 5",
    }  # without the compiled rival, which --quick leaves out


def test_a_training_step_is_timed(load, capsys):
    load("training_step").main(["--model", "sifa_tiny", "--batch", "2", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "sifa_tiny, a step of 2×3×16×112×112: median (quartiles)"
    assert [line.split(":")[0] for line in lines[2:]] == ["with SIFA", "without SIFA", "ratio"]


def test_the_runtime_is_compared_with_the_same_file(load, tmp_path, runtime_module):
    """Both really answer, each in a process of its own; what they take is of no interest here."""
    runtime = load("runtime")
    path = tmp_path / "model.pt"
    artifact.export_torchscript(runtime.make_model("sifa_tiny"), path)
    with runtime.python("file", "sifa_tiny", path, 1) as ask:
        assert ask(2) > 0
        assert ask(1) > 0
    assert runtime.cpp(path, 1, 2) > 0
    path.write_bytes(b"")
    with pytest.raises(SystemExit, match="sifa-run: .*model.pt is damaged"):
        runtime.cpp(path, 1, 2)


def test_what_the_runtime_claims(load):
    runtime = load("runtime")
    ms = {name: [1.0] for pair in runtime.AIMS.items() for name in (pair[0], pair[1][0])}
    slow, quick = ({name: [ratio] * 3 for name in runtime.AIMS} for ratio in (1.06, 0.99))
    rows = [{"name": n, "calls": 9, "ms": ms, "ratios": r} for n, r in (("slow", slow), ("quick", quick))]
    text = runtime.report(rows, {"here": [1.4], "there": [1.5]})
    claims = [line for line in text.splitlines() if line.endswith((" yes   |", " no    |"))]
    assert [line.split("|")[4].strip() for line in claims] == ["no", "no", "yes", "yes", "yes", "no"]
    assert "1.06" in claims[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("program", ["attention", "models", "training_step"])
def test_a_device_that_is_not_there(program):
    command = [sys.executable, BENCHMARKS / f"{program}.py", "--device", "cuda"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "argument --device: PyTorch sees no GPU here" in run.stderr


def test_an_interrupted_call_is_not_a_long_one(load, monkeypatch):
    contest = load("contest")
    times = iter([0.001, 0.5, 0.002, 0.003, 0.004, 0.005])  # the first does not count
    monkeypatch.setattr(contest.CpuClock, "time", lambda self, call: next(times))
    problem = contest.Problem((torch.zeros(1),), torch.zeros(1))
    contestant = contest.Contestant(lambda x: x, problem, "float32")
    assert contest.Stopwatch("cpu").probe("it", contestant, False, False)() == 0.004
