"""Compiles ceilings.cpp (on CUDA: ceilings.cu) and asks it what this machine does at most, at this moment."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
# A ceiling is the best of some short looks: an interruption would lower it, and so flatter what is measured.
LOOKS, SECONDS = 3, 0.003
# The workers of torch's OpenMP go on spinning for a while after an operator, on cores that are needed.
WORKERS_SPIN = 0.02


def find_compiler(device: str) -> str | None:
    """The compiler that the ceilings of a device need: ``c++`` or $CXX, on CUDA ``nvcc`` or $CUDACXX."""
    variable, name = ("CXX", "c++") if device == "cpu" else ("CUDACXX", "nvcc")
    return shutil.which(os.environ.get(variable, name))


class Ceilings:
    """The ceilings of a device, for a number of threads (ignored on CUDA).

    Raises:
        SystemExit: there is no compiler, or it fails.
    """

    def __init__(self, device: str, num_threads: int) -> None:
        compiler = find_compiler(device)
        if compiler is None:
            raise SystemExit(
                "the ceilings of this machine need a compiler: c++ (CXX), on CUDA nvcc (CUDACXX)"
            )
        BUILD.mkdir(parents=True, exist_ok=True)
        library, unfinished = BUILD / f"ceilings-{device}.so", BUILD / f"ceilings-{device}-{os.getpid()}.so"
        if device == "cpu":
            flags = ["-march=native", "-fPIC", "-pthread", HERE / "ceilings.cpp"]
        else:
            flags = ["-arch=native", "-Xcompiler", "-fPIC", HERE / "ceilings.cu"]
        subprocess.run([compiler, "-std=c++17", "-O3", "-shared", *flags, "-o", unfinished], check=True)
        unfinished.replace(library)
        self._library = ctypes.CDLL(str(library))
        self._num_threads = num_threads
        self._device = device
        self._last = 0.0
        for function in ("operations_per_second", "read_bytes_per_second", "copy_bytes_per_second"):
            getattr(self._library, function).restype = ctypes.c_double
        self.large_copy_bytes = 4 * last_level_cache_bytes(device)

    def operations(self) -> float:
        """Floating point operations per second in float32; a multiply-add is two."""
        return self._best("operations_per_second")

    def read(self) -> float:
        """Bytes per second out of the first-level cache."""
        return self._best("read_bytes_per_second")

    def copy(self, num_bytes: int) -> float:
        """Bytes per second, read and written, of a repeated copy that moves ``num_bytes`` in all."""
        return self._best("copy_bytes_per_second", ctypes.c_size_t(num_bytes))

    def large_copy(self) -> float:
        """The same of a copy between two arrays, each twice the last-level cache."""
        return self.copy(self.large_copy_bytes)

    def _best(self, function: str, *arguments: object) -> float:
        if self._device == "cpu" and time.perf_counter() > self._last + WORKERS_SPIN / 4:
            time.sleep(WORKERS_SPIN)  # something else ran since
        call = getattr(self._library, function)
        threads, seconds = ctypes.c_int(self._num_threads), ctypes.c_double(SECONDS)
        rate = max(call(threads, seconds, *arguments) for _ in range(LOOKS))
        self._last = time.perf_counter()
        return rate


def last_level_cache_bytes(device: str) -> int:
    """Of the processor's last-level cache, or of the GPU's second-level one; 32 MiB where it is not told."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_properties(device).L2_cache_size
    caches = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(cache.read_text().strip().removesuffix("K")) << 10 for cache in caches]
    return max(sizes, default=32 << 20)
