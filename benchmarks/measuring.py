"""What the benchmarks share: the machine and the versions in words, and a median with its spread."""

from __future__ import annotations

import datetime
import platform
import statistics
from pathlib import Path

import sifa
import torch


def description(device: str) -> dict[str, str]:
    """Date, processor and versions: what a committed result must name."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(device),
        "sifa": f"sifa {sifa.__version__}",
        "torch": f"torch {torch.__version__}",
        "python": f"python {platform.python_version()}",
    }


def quartiles(values: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4)


def _processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
