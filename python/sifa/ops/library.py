"""Brings the operators into the process: the compiled libraries, or plain PyTorch behind the same schemas."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_PACKAGE = __name__.split(".")[0]


def load_library(schemas: Mapping[str, str], fallbacks: Mapping[str, Callable[..., Any]]) -> None:
    """Make the operators known to PyTorch, once per process.

    A process that has them already (a C++ host, another copy of this package) loads nothing: a second copy of
    a stable-ABI library crashes it. Without a library, :mod:`sifa.reference` takes its place, with a warning.

    Args:
        schemas: what kernels/operators.cpp declares and this package calls, by qualified name.
        fallbacks: the same operators on :mod:`sifa.reference`.

    Raises:
        ImportError: the library cannot be loaded into this process.
        RuntimeError: the operators that the process has are not those of this version of the package.
    """
    if not any(_is_defined(name) for name in schemas):
        library = next(installed("libsifa_ops.so"), None)
        if library is None:
            _use_reference(schemas, fallbacks)
            return
        try:
            torch.ops.load_library(library)
        except OSError as error:
            raise ImportError(
                f"sifa: {library} cannot be loaded beside torch {torch.__version__}; it needs torch 2.10 or "
                f"newer and the machine it was built for. Reinstall sifa, or rebuild it with `make build`. "
                f"{error}"
            ) from error
        cuda_library = next(installed("libsifa_ops_cuda.so"), None)
        if torch.version.cuda is not None and cuda_library is not None:
            _load_cuda_library(cuda_library)
    _check_schemas(schemas)


def installed(name: str) -> Iterator[Path]:
    """Yield the copies of a library inside the package; an editable install has two directories."""
    for directory in sys.modules[_PACKAGE].__path__:
        path = Path(directory) / "lib" / name
        if path.is_file():
            yield path


def _is_defined(name: str) -> bool:
    return hasattr(torch.ops.sifa, name.removeprefix("sifa::"))


def _load_cuda_library(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(
            f"sifa: {path} does not fit this torch (CUDA {torch.version.cuda}), so CUDA tensors are refused; "
            f"rebuild it beside this torch. The CPU kernels are loaded. {error}",
            stacklevel=2,
        )


def _check_schemas(schemas: Mapping[str, str]) -> None:
    for name, schema in schemas.items():
        given = None
        if _is_defined(name):
            given = getattr(torch.ops.sifa, name.removeprefix("sifa::")).default._schema
        if given is None or given != torch._C.parse_schema(name + schema):
            raise RuntimeError(
                f"sifa: the loaded operator library does not belong to this version of the package: expected "
                f"{name}{schema}, got {given or 'none of that name'}. Rebuild or reinstall sifa."
            )


def _use_reference(schemas: Mapping[str, str], fallbacks: Mapping[str, Callable[..., Any]]) -> None:
    directories = ", ".join(str(Path(directory) / "lib") for directory in sys.modules[_PACKAGE].__path__)
    warnings.warn(
        f"sifa: found no libsifa_ops.so in {directories}. Inter-frame attention runs in plain PyTorch "
        "(sifa.reference): the same results, many times slower and with far more memory. "
        "Build the library with `pip install .` or `make build`.",
        stacklevel=2,
    )
    for name, schema in schemas.items():
        torch.library.define(name, schema)
        torch.library.impl(name, "CompositeExplicitAutograd", fallbacks[name])
