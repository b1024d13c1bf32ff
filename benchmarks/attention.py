"""Measures sifa.inter_frame_attention against the floor of this machine and against other formulations.

python benchmarks/attention.py [--cases REGEX] [--rounds N] [--device cuda] [--cold] [--json FILE] [--quick]

Every case (:mod:`cases`) is measured in rounds. A round measures the machine's ceilings (:mod:`ceilings`),
then calls the operator and each of its rivals (:mod:`formulations`), forward, and forward with backward: once
that does not count, since the contestant before it left the heap and the caches to it, then once more, or
five times what takes less than 20 ms, of which the median counts. "time / floor" (:mod:`floors`) and the
rivals' ratios are taken within a round, because the speed of a shared machine drifts from one second to the
next; printed are their medians and quartiles over the rounds. Who is slow leaves after fewer rounds.

Before every call that counts its inputs are written anew, untimed, and with the backward the output's
gradient: they are in the caches as far as a layer before would have left them there. The copy ceiling then is
the faster of a repeated copy of the same size and a large one. With ``--cold`` inputs rotate among copies
that exceed the last-level cache, and the large copy counts. Outputs are allocated by every call, as in use.

On a busy machine "time / floor" and the gain by threads come out worse than they are: a ceiling is the best
of three looks, while a call waits for the slowest of its threads. The load is printed; let it be 0.

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
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import torch
from cases import CASES, CUDA_CASES, TINY, Case
from ceilings import Ceilings
from contest import BOTH, OPERATOR, PASSES, Contest, Stopwatch
from floors import Rates, Work, count_corners, floor_of
from measuring import description, in_turns, quartiles, ratios, usable_device
from peaks import measuring_process, peak_memory
from report import claims, report


def measure(case: Case, arguments: argparse.Namespace, ceilings: Ceilings, other_process: Executor) -> dict:
    """Check, then time everyone on one case."""
    device, cold = arguments.device, arguments.cold and case.kind != "block"
    contest = Contest(case, device, cold)
    if arguments.quick:
        contest.reasons |= {name: "left out by --quick" for name in contest.contestants if "compiled" in name}
    judged_by = contest.check()
    corners = count_corners(contest.offset, case.kernel_size)
    works = {which: contest.work(corners, which) for which in PASSES}
    memory = peak_memory(contest, other_process)

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
        "device": device,
        "cold": cold,
        "checked_against": judged_by,
        "load_average": os.getloadavg()[0],
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="", metavar="REGEX", help="only cases whose name matches")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument(
        "--seconds", type=float, default=2.5, help="who has taken this long in a case leaves its rounds"
    )
    parser.add_argument("--device", type=usable_device, choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cold", action="store_true", help="inputs come from memory and not from a cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it, by round, to FILE")
    parser.add_argument("--quick", action="store_true", help="tiny cases in few rounds: does this work?")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 0.1
    cases = TINY if arguments.quick else CASES if arguments.device == "cpu" else [*CUDA_CASES, *CASES]
    selected = [case for case in cases if re.search(arguments.cases, case.name)]
    if not selected:
        parser.error(
            f"no case matches {arguments.cases!r}; there are {', '.join(case.name for case in cases)}"
        )

    if arguments.device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in every contestant
    ceilings = Ceilings(arguments.device, torch.get_num_threads())
    facts = {**description(arguments.device), "command": " ".join(["attention.py", *sys.argv[1:]])}
    rows: list[dict] = []
    with measuring_process() as other_process:
        for case in selected:
            rows.append(measure(case, arguments, ceilings, other_process))
            if arguments.json:  # after every case: what is interrupted has measured something
                arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    found = claims(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "claims": found, "rows": rows}, indent=1) + "\n")
    print(", ".join(facts.values()) + "\n")
    print(report(found, rows, arguments.device))


if __name__ == "__main__":
    main()
