"""What the benchmarks share: measuring in turns, clocks, quartiles, the machine and the versions in words."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import sifa
import torch

NOT_MEASURED = "not measured"
# A contestant that is slow leaves the rounds early, but not before this many.
FEWEST_ROUNDS = 3


def in_turns(
    probes: Mapping[str, Callable[[], float]], num_rounds: int, seconds: float, what: str = ""
) -> dict[str, list[float]]:
    """Ask every probe for a number, one after the other, round after round: whatever else the machine does
    falls on all of them.

    A probe that has taken ``seconds`` in all drops out of the later rounds. Item i of every list belongs to
    round i, so ratios are taken item by item, as far as both go.
    """
    values: dict[str, list[float]] = {name: [] for name in probes}
    spent = dict.fromkeys(probes, 0.0)
    for number in range(num_rounds):
        for name, probe in probes.items():
            if number < FEWEST_ROUNDS or spent[name] < seconds:
                progress(f"{what}: round {number + 1} of {num_rounds}, {name}")
                start = time.perf_counter()
                values[name].append(probe())
                spent[name] += time.perf_counter() - start
    progress("")
    return values


def ratios(numerators: list[float], denominators: list[float]) -> list[float]:
    """The ratio of every round that both have."""
    return [a / b for a, b in zip(numerators, denominators, strict=False)]


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile, none beyond the values."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values


def spread(values: list[float], digits: int) -> str:
    """A median with its quartiles, as the tables print it."""
    low, median, high = quartiles(values)
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def significant(values: list[float]) -> str:
    """A median with its quartiles, of which the median has three significant digits."""
    median = statistics.median(values)
    return spread(values, 0 if median >= 100 else 1 if median >= 10 else 2 if median >= 1 else 3)


def usable_device(name: str) -> str:
    """The type of an option ``--device``: "cuda" only where PyTorch sees a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("PyTorch sees no GPU here; without this option the CPU is measured")
    return name


def progress(text: str) -> None:
    """Show what is being done on the last line of a terminal, and nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class CpuClock:
    """Times one call on the CPU."""

    def time(self, call: Callable[[], object]) -> float:
        """Return the seconds that ``call`` takes."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class CudaClock:
    """Times one call on the GPU with events, and by itself what launching it costs the CPU.

    The device is kept busy until the CPU has launched everything, so that the events hold no gaps in which
    the device waited for the CPU.
    """

    def __init__(self) -> None:
        self.launch = 0.0

    def time(self, call: Callable[[], object]) -> float:
        """Return the seconds that the device takes for ``call``; ``launch`` then holds those of the CPU."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cycles = 1_000_000  # about half a millisecond
        while True:
            torch.cuda.synchronize()
            torch.cuda._sleep(cycles)
            begin.record()
            start = time.perf_counter()
            call()
            self.launch = time.perf_counter() - start
            starved = begin.query()
            end.record()
            torch.cuda.synchronize()
            # What launches for half a second and more waits for the device itself; its gaps are its own.
            if not starved or cycles > 1_000_000_000:
                return begin.elapsed_time(end) / 1e3
            cycles *= 4


def description(device: str) -> dict[str, str]:
    """Date, processor, versions, and how busy the machine was: what a committed result must name."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(device),
        "sifa": f"sifa {sifa.__version__}",
        "torch": f"torch {torch.__version__}",
        "python": f"python {platform.python_version()}",
        "load": f"load average {os.getloadavg()[0]:.1f} before",
    }
    if device != "cpu":
        facts["cuda"] = f"CUDA {torch.version.cuda}"
    return facts


def _processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
