"""Measures the most memory that a call needs beside its inputs.

On CUDA torch counts it. On the CPU it is the high-water mark of a process of its own, in which every larger
block of memory goes back to the system when it is freed: what an earlier call left behind would otherwise be
counted as there already.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import re
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import torch
from cases import FLEX, Case
from contest import BOTH, PASSES, Contest
from measuring import NOT_MEASURED, progress

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL_BLOCK = 65536


def measuring_process() -> Executor:
    """The process that :func:`peak_memory` measures in on the CPU; it starts when it is needed."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _give_memory_back)


def peak_memory(contest: Contest, other_process: Executor) -> dict[str, int | str]:
    """The peaks of all contestants, in bytes, by "contestant/pass", or why one is not measured."""
    wanted = [
        f"{name}/{which}"
        for name, contestant in contest.contestants.items()
        for which in PASSES
        if contest.measured(name, which) and contestant.threads is None
    ]
    progress(f"{contest.case.name}: peak memory")
    if contest.device != "cpu":
        return {key: _cuda_peak(contest, key) for key in wanted}
    # Compiling in the other process too would double the time.
    wanted = [key for key in wanted if "compiled" not in key and FLEX not in key]
    return other_process.submit(_cpu_peaks, contest.case, wanted).result()


def _cuda_peak(contest: Contest, key: str) -> int:
    name, which = key.split("/")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contest.contestants[name].run(which == BOTH)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _give_memory_back() -> None:
    malloc_option = ctypes.CDLL(None).mallopt
    malloc_option(M_MMAP_THRESHOLD, SMALL_BLOCK)
    malloc_option(M_TRIM_THRESHOLD, SMALL_BLOCK)


def _cpu_peaks(case: Case, wanted: list[str]) -> dict[str, int | str]:
    """In the other process: measure contestants of a case."""
    contest = Contest(case, "cpu")
    small = Contest(dataclasses.replace(case, channels=16, height=5, width=6, batch=1), "cpu")
    peaks: dict[str, int | str] = {}
    for key in wanted:
        name, which = key.split("/")
        small.contestants[name].run(which == BOTH)  # a first call also loads code, and starts threads
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
            before = _status("VmRSS")
            contest.contestants[name].run(which == BOTH)
            peaks[key] = _status("VmHWM") - before
        except OSError as error:
            peaks[key] = f"{NOT_MEASURED}: {error}"
    return peaks


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) << 10
