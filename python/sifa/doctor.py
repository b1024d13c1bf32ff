"""What this machine and installation have for SIFA, and what is wrong with them: `sifa doctor`."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable, Iterator

import torch

Finding = dict[str, str]
"""Of one thing its `name` and `value`, what is wrong with it (`problem`) and how to `fix` that, else ""."""


def examine() -> list[Finding]:
    """Look at Python's side and, where it is built, at the C++ runtime's. What fails is a finding."""
    looks: list[Callable[[], Finding]] = [_torch, _operators, _compiler, _codecs]
    return [look() for look in looks] + list(_runtime())


def _finding(name: str, value: str, problem: str = "", fix: str = "") -> Finding:
    return {"name": name, "value": value, "problem": problem, "fix": fix}


def _torch() -> Finding:
    value = f"{torch.__version__}, Python {platform.python_version()}, {torch.get_num_threads()} threads"
    if torch.version.cuda is None:
        return _finding("torch", f"{value}, no CUDA")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _finding("torch", f"{value}, CUDA {torch.version.cuda}, {', '.join(gpus) or 'no GPU'}")


def _operators() -> Finding:
    from .ops import library

    path = next(library.installed("libsifa_ops.so"), None)
    if path is None:
        return _finding(
            "operators in Python",
            "plain PyTorch",
            "there is no compiled library, so that they are many times slower",
            "build it with `make build`, or install a wheel of sifa",
        )
    from .ops.attention import inter_frame_attention

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        features = torch.ones(1, 8, 2, 4, 4, device=device)
        try:
            inter_frame_attention(features, features, torch.zeros(1, 18, 2, 4, 4, device=device))
        except Exception as error:
            return _finding(
                "operators in Python",
                str(path),
                f"on {device}: {str(error).strip().splitlines()[0]}",
                "build SIFA again on this machine: `make build`, for a GPU with nvcc on the PATH",
            )
    return _finding("operators in Python", f"{path}, run on {', '.join(map(str, devices))}")


def _compiler() -> Finding:
    compiler = shutil.which("g++")
    if compiler is None:
        return _finding("C++ compiler", "none", "`sifa compile` needs g++", "apt-get install g++")
    return _finding("C++ compiler", compiler)


def _codecs() -> Finding:
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:  # whichever its libraries fail with
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return _finding("torchcodec", "", lines[0], "apt-get install ffmpeg, and pip install torchcodec")
    return _finding("torchcodec", "decodes videos")


def _runtime() -> Iterator[Finding]:
    if importlib.util.find_spec("sifa.runtime") is None:
        yield _finding(
            "C++ runtime",
            "not in this installation",
            fix="pip install . -C cmake.define.SIFA_RUNTIME=ON, in a checkout, adds it",
        )
        return
    from . import runtime

    for finding in runtime.examine():
        yield {**finding, "name": f"C++ runtime: {finding['name']}"}
