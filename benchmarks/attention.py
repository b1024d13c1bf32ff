"""Measures sifa.inter_frame_attention against the floor of this machine and against other formulations.

python benchmarks/attention.py [--cases REGEX] [--rounds N] [--device cuda] [--cold] [--json FILE] [--quick]

Every case (:mod:`cases`) is measured in rounds. A round measures the machine's ceilings (:mod:`ceilings`),
then calls the operator and each of its rivals (:mod:`formulations`), forward, and forward with backward; what
takes less than 20 ms is called five times, of which the median counts. "time / floor" (:mod:`floors`) and the
rivals' ratios are taken within a round, because the speed of a shared machine drifts from one second to the
next; printed are their medians and quartiles over the rounds. Who is slow leaves after fewer rounds.

Before every call its inputs are written anew, untimed: they are in the caches as far as a layer before would
have left them there. The copy ceiling then is the faster of a repeated copy of the same size and a large one.
With ``--cold`` inputs rotate among copies that exceed the last-level cache, and the large copy counts.
Outputs are allocated by every call, as in use.

Inputs are random, and all outputs and gradients are compared with those of the reference in float64, or,
where that would take long, of the operator in float64.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from cases import CASES, FLEX, TINY, Case
from ceilings import Ceilings
from contest import BOTH, OPERATOR, PASSES, Contest, Stopwatch
from floors import Rates, Work, count_corners, floor_of
from measuring import NOT_MEASURED, description, in_turns, progress, quartiles, ratios
from report import claims, report


def measure(case: Case, arguments: argparse.Namespace, ceilings: Ceilings) -> dict:
    """Check, then time everyone on one case."""
    device, cold = arguments.device, arguments.cold and case.kind != "block"
    contest = Contest(case, device, cold)
    if arguments.quick:
        contest.reasons |= {name: "left out by --quick" for name in contest.contestants if "compiled" in name}
    judged_by = contest.check()
    corners = count_corners(contest.offset, case.kernel_size)
    works = {which: contest.work(corners, which) for which in PASSES}
    memory = peak_memory(contest, arguments)

    stopwatch = Stopwatch(device)
    probes: dict[str, Callable[[], float]] = {
        "operations per s": ceilings.operations,
        "read bytes per s": ceilings.read,
        "large copy bytes per s": ceilings.large_copy,
    }
    for which in PASSES:
        if not cold:
            size = works[which].bytes
            probes[f"copy bytes per s/{which}"] = functools.partial(ceilings.copy, size)
        for name, contestant in contest.contestants.items():
            if contest.measured(name, which):
                key = f"{name}/{which}"
                probes[key] = stopwatch.probe(key, contestant, which == BOTH, cold)
    values = in_turns(probes, arguments.rounds, arguments.seconds, case.name)
    row = {
        "case": case.name,
        **{key: value for key, value in dataclasses.asdict(case).items() if key not in ("name", "rivals")},
        "shape": list(case.shape),
        "cold": cold,
        "checked_against": judged_by,
        "passes": {},
    }
    for which in PASSES:
        row["passes"][which] = summary(which, contest, works[which], values, memory, stopwatch.launches)
    return row


def summary(
    which: str,
    contest: Contest,
    work: Work,
    values: dict[str, list[float]],
    memory: dict[str, int | str],
    launches: dict[str, list[float]],
) -> dict:
    """What was measured in one pass, with what follows from it."""
    own = values[f"{OPERATOR}/{which}"]
    rates = [
        Rates(copy=max(copies), read=read, operations=operations)
        for *copies, read, operations in zip(
            values.get(f"copy bytes per s/{which}", values["large copy bytes per s"]),
            values["large copy bytes per s"],
            values["read bytes per s"],
            values["operations per s"],
            strict=False,
        )
    ]
    floors = [floor_of(work, rate) for rate in rates]
    over = ratios(own, [floor.seconds for floor in floors])
    times = {name: values[f"{name}/{which}"] for name in contest.contestants if contest.measured(name, which)}
    names = dict.fromkeys([*contest.contestants, *sorted(key for key in contest.reasons if "/" not in key)])
    return {
        "work": dataclasses.asdict(work),
        "ceilings_per_s": [dataclasses.asdict(rate) for rate in rates],
        "floor_ms": [1e3 * floor.seconds for floor in floors],
        "floor_set_by": statistics.mode(floor.set_by for floor in floors),
        "time_over_floor": {"rounds": over, "quartiles": quartiles(over)},
        "times_ms": {
            name: {"rounds": [1e3 * t for t in each], "quartiles": quartiles([1e3 * t for t in each])}
            for name, each in times.items()
        },
        "ratios": {
            name: {"rounds": ratios(each, own), "quartiles": quartiles(ratios(each, own))}
            for name, each in times.items()
        },
        "launch_ms": {
            name: quartiles([1e3 * t for t in launches[f"{name}/{which}"]])
            for name in times
            if f"{name}/{which}" in launches
        },
        "peak_bytes": {name: memory[f"{name}/{which}"] for name in times if f"{name}/{which}" in memory},
        "not_measured": {
            name: contest.reason(name, which) for name in names if not contest.measured(name, which)
        },
    }


# --- Peak memory ------------------------------------------------------------------------------------------


def peak_memory(contest: Contest, arguments: argparse.Namespace) -> dict[str, int | str]:
    """The most memory that a call needs beside its inputs, in bytes, by "contestant/pass".

    On the CPU in a process of its own, in which every larger block of memory goes back to the system when it
    is freed, so that what an earlier call left behind is not counted as there already.
    """
    wanted = [
        f"{name}/{which}"
        for name, contestant in contest.contestants.items()
        for which in PASSES
        if contest.measured(name, which) and contestant.threads is None
    ]
    if contest.device != "cpu":
        return {key: _cuda_peak(contest, key) for key in wanted}
    # Compiling in the other process too would double the time.
    wanted = [key for key in wanted if "compiled" not in key and FLEX not in key]
    progress(f"{contest.case.name}: peak memory")
    command = [sys.executable, __file__, "--peak-memory", json.dumps([contest.case.name, wanted])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout)


def _cuda_peak(contest: Contest, key: str) -> int:
    name, which = key.split("/")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contest.contestants[name].run(which == BOTH)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def print_peak_memory(case: Case, wanted: list[str]) -> None:
    """The child of :func:`peak_memory`: prints its answer as JSON."""
    contest = Contest(case, "cpu")
    small = Contest(dataclasses.replace(case, channels=16, height=5, width=6, batch=1), "cpu")
    peaks: dict[str, int | str] = {}
    for key in wanted:
        name, which = key.split("/")
        small.contestants[name].run(which == BOTH)  # a first call also loads code, and starts threads
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            before = _memory_status("VmRSS")
            contest.contestants[name].run(which == BOTH)
            peaks[key] = _memory_status("VmHWM") - before
        except OSError as error:
            peaks[key] = f"{NOT_MEASURED}: {error}"
    print(json.dumps(peaks))


def _memory_status(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="who has taken this long in a case leaves its rounds"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cold", action="store_true", help="inputs come from memory and not from a cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it, by round, to FILE")
    parser.add_argument("--quick", action="store_true", help="tiny cases in few rounds: does this work?")
    parser.add_argument("--peak-memory", metavar="JSON", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_memory:
        name, wanted = json.loads(arguments.peak_memory)
        print_peak_memory(next(case for case in [*CASES, *TINY] if case.name == name), wanted)
        return
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.1
    selected = [
        case for case in (TINY if arguments.quick else CASES) if re.search(arguments.cases, case.name)
    ]
    if not selected:
        parser.error(
            f"no case matches {arguments.cases!r}; there are {', '.join(case.name for case in CASES)}"
        )

    ceilings = Ceilings(arguments.device, torch.get_num_threads())
    facts = {**description(arguments.device), "command": " ".join(["attention.py", *sys.argv[1:]])}
    rows = []
    for case in selected:
        rows.append(measure(case, arguments, ceilings))
        if arguments.json:  # after every case: what is interrupted has measured something
            result = {**facts, "claims": claims(rows), "rows": rows}
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(", ".join(facts.values()) + "\n")
    facts["claims"] = claims(rows)
    print(report(facts, rows, arguments.device))


if __name__ == "__main__":
    main()
