"""Trains the paper's ablation on the hard motion task: every configuration, several seeds, one JSON file.

python benchmarks/ablation/run.py --json build/ablation.json
python benchmarks/ablation/run.py --json build/ablation.json --device cuda --workers 16 --minutes 5
python benchmarks/ablation/run.py --json build/ablation-quick.json --quick

The clips are rendered once and kept in build/ablation. The file is written after every training, and a run
that finds it goes on where it ended: no training is done twice. When the minutes are over, what is under way
is given up. All 54 trainings take about an hour and a half on two idle cores of an AMD EPYC. `table.py`
makes the tables of the file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import processes
import torch
from configurations import CONFIGURATIONS, CONTROL, FULL
from sifa.data import hard_motion
from training import Budget, DeadlineError, Trainer

FOLDER = Path(__file__).resolve().parents[2] / "build" / "ablation"
QUICK = Budget(size=32, training=24, held_out=12, steps=4, batch=8)
QUICK_CONFIGURATIONS = (CONTROL, FULL)

_trainer: Trainer  # of each process of the pool


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    options = parse(arguments)
    budget = budget_of(options)
    settings = {
        "task": f"hard motion, version {hard_motion.VERSION}",
        "budget": dataclasses.asdict(budget),
    }
    report = read_report(options.json, settings)
    names = options.configurations or list(QUICK_CONFIGURATIONS if options.quick else CONFIGURATIONS)
    wanted = [(name, seed) for seed in range(options.seeds) for name in names]
    done = {(run["configuration"], run["seed"]) for run in report["runs"]}
    todo = [job for job in wanted if job not in done]
    if not todo:
        say(f"{options.json} has all {len(wanted)} trainings already")
        return
    began = time.time()
    clips.make_clips(options.clips, budget.size, budget.training, budget.held_out, options.workers)
    say(f"rendered in {time.time() - began:.0f} s; {len(todo)} trainings to do, {options.jobs} at a time")
    report["machines"].append(machine(options.device, options.jobs))
    deadline = math.inf if options.minutes is None else began + 60 * options.minutes
    given_up, failed = 0, 0
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        options.jobs,
        mp_context=spawn,
        initializer=start_training,
        initargs=(options.clips, budget, options.device, deadline),
    ) as pool:
        jobs = {pool.submit(train, *job): job for job in todo}
        for future in finished(jobs, options.json):
            name, seed = jobs[future]
            try:
                run = future.result()
            except DeadlineError:
                given_up += 1
                continue
            except Exception as error:  # one training's, which must not cost the others
                say(f"{name}, seed {seed} failed: {type(error).__name__}: {error}")
                failed += 1
                continue
            report["runs"].append({**run, "machine": len(report["machines"]) - 1})
            write_report(options.json, report)
            say(
                f"{time.time() - began:4.0f} s  {len(report['runs']):3d}: {name}, seed {seed}: top-1 "
                f"{100 * run['top1']:.1f} %, {run['seconds']:.0f} s"
            )
    if given_up:
        say(f"the time was over: {given_up} trainings are missing; the same command does them")
    if failed:
        raise SystemExit(f"{failed} trainings failed; the same command tries them again")


def finished(jobs: dict[Any, tuple[str, int]], path: Path) -> Iterator[Any]:
    """The jobs as they are done.

    Raises:
        SystemExit: Ctrl-C; what is under way is given up.
    """
    try:
        yield from concurrent.futures.as_completed(jobs)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.kill()
        raise SystemExit(f"stopped; {path} has what was done, and the same command goes on") from None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the results are, or go")
    parser.add_argument("--quick", action="store_true", help="two configurations, a few steps: does it run?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render")
    parser.add_argument("--jobs", type=int, help="trainings at a time; one per processor, on a GPU 12")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, help="time for all of it; no end without it")
    parser.add_argument("--configurations", nargs="+", choices=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--clips", type=Path, default=FOLDER, help="folder of the rendered clips")
    for field in dataclasses.fields(Budget):
        kind = float if field.name == "rate" else int
        parser.add_argument(f"--{field.name}", type=kind, help=f"default {field.default}")
    options = parser.parse_args(arguments)
    if options.jobs is None:
        options.jobs = 12 if options.device == "cuda" else os.cpu_count()
    return options


def budget_of(options: argparse.Namespace) -> Budget:
    """The quick budget or the usual one, as the command line changes it."""
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Budget)
        if getattr(options, field.name) is not None
    }
    return dataclasses.replace(QUICK if options.quick else Budget(), **given)


def read_report(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report so far.

    Raises:
        SystemExit: it is of other trainings than these.
    """
    if not path.exists():
        return {**settings, "machines": [], "runs": []}
    report = json.loads(path.read_text())
    for key, value in settings.items():
        if report[key] != value:
            raise SystemExit(f"{path} holds trainings with {key} {report[key]}, and these have {value}")
    return report


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Replace the file in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)


def machine(device: str, jobs: int) -> dict[str, Any]:
    """What the trainings run on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "jobs": jobs,
    }


def start_training(folder: Path, budget: Budget, device: str, deadline: float) -> None:
    """Give a process of the pool its clips."""
    global _trainer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    processes.start_process()
    _trainer = Trainer(folder, budget, device, deadline)


def train(name: str, seed: int) -> dict[str, Any]:
    """One training, in a process of the pool."""
    return _trainer.train(name, seed)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
