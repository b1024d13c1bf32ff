"""Measures the C++ runtime against Python: the same files, frames and threads, on the same machine, in turns.

python benchmarks/runtime.py [--models NAME …] [--rounds N] [--files FOLDER] [--json FILE]

Of every model, one clip at a time, from raw frames to probabilities: `sifa-run --benchmark` with a
TorchScript file against the same file in Python, and with an AOTInductor package against `torch.compile` of
what was exported. In each round every contestant, a process of its own, makes some calls and says their
median; whoever waits, sleeps. Printed are the medians and quartiles over the rounds, and of the ratios.

Then the start of a program: from its call until it has classified a video and is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import sifa
import torch
from measuring import description, in_turns, progress, ratios, significant, spread
from models import with_offsets
from report import markdown
from sifa.artifact import FrameClassifier, compile_program, export_program, export_torchscript
from sifa.data.motion import write_video
from sifa.demo import find_sifa_run
from torch import Tensor, nn

MODELS = ["sifa_tiny", "sifa_resnet18"]
STARTED = "sifa_tiny"
WARM_UP = 5  # calls, as in `sifa-run --benchmark`
SECONDS = 1.0  # of calls in a round, about
LEAST_CALLS, MOST_CALLS = 10, 200

# Contestant: what it is measured against, and the most that it may take of it.
AIMS = {
    "C++, TorchScript": ("Python, the same file", 1.02),
    "C++, AOTInductor": ("Python, torch.compile", 1.05),
}
START_AIM = 1.5  # seconds


def make_model(name: str) -> nn.Module:
    """A classifier with random weights and offsets of one pixel; the same every time."""
    torch.manual_seed(0)
    model = sifa.create_model(name)
    with torch.no_grad():
        return with_offsets(model, torch.randn(1, 3, model.num_frames, *model.input_size))


def make_frames(num_frames: int, input_size: tuple[int, int]) -> Tensor:
    """A clip as large as the one that `sifa-run --benchmark` makes: uint8 (1, T, H, W, 3)."""
    height = input_size[0] * 8 // 7
    return torch.randint(0, 256, (1, num_frames, height, height * 4 // 3, 3), dtype=torch.uint8)


def write_files(name: str, folder: Path) -> dict[str, Path]:
    """Export a model for both engines, unless an earlier run did."""
    files = {suffix: folder / f"{name}{suffix}" for suffix in (".pt", ".exported.pt2", ".pt2")}
    if not files[".pt2"].exists():
        progress(f"{name}: export and compilation")
        model = make_model(name)
        export_torchscript(model, files[".pt"])
        export_program(model, files[".exported.pt2"])
        compile_program(files[".exported.pt2"], files[".pt2"])
    return files


# --- The contestants --------------------------------------------------------------------------------------


def answer(load: Callable[[], tuple[Callable[[Tensor], Tensor], Tensor]]) -> None:
    """What a process of Python's does: for every number on standard input it makes so many calls and prints
    their median, in seconds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
        call, frames = load()
    with torch.inference_mode():
        for _ in range(WARM_UP):
            call(frames)
        print("ready", flush=True)
        for line in sys.stdin:
            times = []
            for _ in range(int(line)):
                start = time.perf_counter()
                call(frames).tolist()
                times.append(time.perf_counter() - start)
            print(statistics.median(times), flush=True)


def load_file(name: str, path: Path) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    model = sifa.create_model(name)
    return torch.jit.load(str(path)), make_frames(model.num_frames, model.input_size)


def load_compiled(name: str) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    model = make_model(name)
    frames = make_frames(model.num_frames, model.input_size)
    return torch.compile(FrameClassifier(model).eval(), fullgraph=True), frames


@contextlib.contextmanager
def python(kind: str, name: str, path: Path, threads: int) -> Iterator[Callable[[int], float]]:
    """A process of Python's, as a function of the number of calls."""
    command = [sys.executable, __file__, "--worker", kind, name, str(path), "--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(calls: int) -> float:
        print(calls, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    try:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{' '.join(command)} failed with exit code {process.wait()}")
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def cpp(path: Path, threads: int, calls: int) -> float:
    """What `sifa-run --benchmark` says a call takes, in seconds."""
    options = ["--benchmark", "--json", "--rounds", str(calls), "--threads", str(threads)]
    done = subprocess.run([find_sifa_run(), path, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["model_ms"]["p50"] / 1e3


def start(path: Path, video: Path, threads: int) -> float:
    """How long the program takes to classify a video, from its call to its end, in seconds."""
    begin = time.perf_counter()
    subprocess.run(
        [find_sifa_run(), path, video, "--json", "--threads", str(threads)], capture_output=True, check=True
    )
    return time.perf_counter() - begin


# --- Measuring --------------------------------------------------------------------------------------------


def measure(name: str, files: dict[str, Path], num_rounds: int, threads: int) -> dict:
    """The seconds of a call, round by round, of every contestant."""
    with (
        python("file", name, files[".pt"], threads) as same_file,
        python("compiled", name, files[".pt"], threads) as compiled,
    ):
        calls = min(max(int(SECONDS / same_file(LEAST_CALLS)), LEAST_CALLS), MOST_CALLS)
        probes = {
            "C++, TorchScript": functools.partial(cpp, files[".pt"], threads, calls),
            "Python, the same file": functools.partial(same_file, calls),
            "C++, AOTInductor": functools.partial(cpp, files[".pt2"], threads, calls),
            "Python, torch.compile": functools.partial(compiled, calls),
        }
        seconds = in_turns(probes, num_rounds, float("inf"), name)
    row: dict = {"name": name, "calls": calls, "ms": {n: [1e3 * v for v in s] for n, s in seconds.items()}}
    row["ratios"] = {n: ratios(seconds[n], seconds[rival]) for n, (rival, _) in AIMS.items()}
    return row


def report(rows: list[dict], starts: dict[str, list[float]]) -> str:
    columns = ["model", "calls"]
    for contestant, (rival, _) in AIMS.items():
        columns += [f"{contestant}, ms", f"{rival}, ms", "ratio"]
    lines = []
    for row in rows:
        cells = [row["name"], str(row["calls"])]
        for contestant, (rival, _) in AIMS.items():
            cells += [significant(row["ms"][contestant]), significant(row["ms"][rival])]
            cells.append(spread(row["ratios"][contestant], 3))
        lines.append(cells)
    claims = []
    for row in rows:
        for contestant, (rival, aim) in AIMS.items():
            median = statistics.median(row["ratios"][contestant])
            claim = f"{row['name']}: {contestant}, over {rival}"
            claims.append([claim, f"≤ {aim:g}", f"{median:.3f}", "yes" if median <= aim else "no"])
    for what, seconds in starts.items():
        median = statistics.median(seconds)
        claim = f"start to first result, {what}, seconds"
        claims.append([claim, f"< {START_AIM:g}", spread(seconds, 2), "yes" if median < START_AIM else "no"])
    return markdown(columns, lines) + "\n\n" + markdown(["claim", "aim", "measured", "holds"], claims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS, help="only these")
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of one operation")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep the exported models there")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        kind, name, path = arguments.worker
        return answer(
            functools.partial(load_file, name, Path(path))
            if kind == "file"
            else functools.partial(load_compiled, name)
        )
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}")

    facts = description("cpu")
    print(", ".join(facts.values()))
    print("median (quartiles) over the rounds, of the median over the calls of a round\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: write_files(name, folder) for name in {*arguments.models, STARTED}}
        rows = [measure(n, files[n], arguments.rounds, arguments.threads) for n in arguments.models]
        video = Path(temporary) / "clip.mp4"
        write_video(video, torch.randint(0, 256, (64, 120, 160, 3), dtype=torch.uint8))
        probes = {
            f"{STARTED}, {engine}": functools.partial(start, files[STARTED][suffix], video, arguments.threads)
            for engine, suffix in (("TorchScript", ".pt"), ("AOTInductor", ".pt2"))
        }
        starts = in_turns(probes, arguments.rounds, float("inf"), "start")
    print(report(rows, starts))
    if arguments.json:
        facts["threads"] = str(arguments.threads)
        arguments.json.write_text(json.dumps({**facts, "rows": rows, "start_s": starts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
