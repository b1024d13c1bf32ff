"""The metadata of an artifact: what is in it, and every reason to refuse it."""

from __future__ import annotations

import json
import math
import platform
import reprlib
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import __version__
from ..data.sampling import RULES

if TYPE_CHECKING:
    import os

    from ..models import VideoClassifier

SCHEMA_VERSION = 1
METADATA_ENTRY = "sifa.json"
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""By precision: how far another machine's probabilities on the reference input may be from the exporter's."""

KINDS = ("clip", "window", "streaming")
"""What an artifact takes: a clip whole; or a stream's new frames and its state, which is features of every
step of the window (any model), or of the last step for every SIFA layer (a causal one)."""

_KNOWN = {
    "kind": KINDS,
    "format": ("torchscript", "aoti", "exported"),
    "sampling": RULES,
    "precision": tuple(TOLERANCES),
}
"""The values that this version can run."""

REFERENCE_BORDER = (17, 40)
"""How much higher and wider than the network's input the reference input is, in pixels."""

# Above any sensible model's; they bound what a lying file can make a loader allocate.
_MAX_METADATA = 16 << 20  # bytes
_MAX_FRAMES = 1 << 14
_MAX_FRAME_STRIDE = 1 << 20
_MAX_SIDE = 1 << 14
_MAX_REFERENCE = 1 << 30  # bytes
_MAX_STATE = 1 << 10  # tensors
_MAX_STATE_SIZE = 1 << 28  # numbers, for one stream
_MAX_COST = 1 << 53  # what JSON readers keep exactly
STATE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STATE_DTYPES |= {"int64": torch.int64}

# The entries of a file, without its top folder; what ends with a slash is a folder. `cpp/src/archive.cpp` has
# the same lists.
_ENTRIES = ("extra/", ".data/", "version", "byteorder")
_TORCHSCRIPT_ENTRIES = ("code/", "constants/", "data/", "constants.pkl", "data.pkl")
_PROGRAM_ENTRIES = ("data/", "models/", "archive_format", "archive_version")

# What zipfile raises on damaged files: not only its own error, but those of what it calls.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class ArtifactError(RuntimeError):
    """A file is not an artifact that this version of SIFA can run; the message says which and why."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an artifact that this version of SIFA can run, read without loading its graph.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: the file is damaged, is no SIFA artifact, or has metadata that this version does not
            know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise ArtifactError(f"{path} is not a SIFA artifact: it is no zip file")
    entry = f"extra/{METADATA_ENTRY}"
    try:
        with zipfile.ZipFile(path) as archive:
            if not _is_laid_out_as_by_torch(archive.infolist()):
                raise ArtifactError(
                    f"{path} is not a SIFA artifact: it is a zip archive, but not laid out as torch does"
                )
            found = [info for info in archive.infolist() if info.filename.partition("/")[2] == entry]
            if found and found[0].file_size > _MAX_METADATA:
                raise zipfile.BadZipFile(f"its entry {entry} has {found[0].file_size} bytes")
            content = archive.read(found[0]) if found else None
            names = [info.filename.partition("/")[2] for info in archive.infolist()]
            damaged = archive.testzip()
    except ArtifactError:
        raise
    except _DAMAGED as error:
        raise ArtifactError(
            f"{path} is damaged or truncated: {error}; copy or export the model again"
        ) from error
    if content is None:
        raise ArtifactError(
            f"{path} is not a SIFA artifact: it has no entry {entry}; artifacts are made by `sifa export`"
        )
    if damaged is not None:
        raise ArtifactError(
            f"{path} is damaged: the checksum of its entry {damaged} does not match; "
            "copy or export the model again"
        )
    try:
        metadata = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not a SIFA artifact: its entry {entry} is not JSON: {error}"
        ) from error
    _check_metadata(path, metadata)
    _check_entries(path, metadata["format"], names)
    return metadata


def inputs_of(metadata: dict[str, Any]) -> str:
    """What compiled code takes for granted of its inputs, as `cpp/src/aoti_program.cpp` writes it too."""
    text = f"{metadata['kind']} of {metadata['num_frames']} frames in steps of {metadata['temporal_stride']}"
    for like in metadata.get("state", ()) if metadata["kind"] != "clip" else ():
        text += ", " + " ".join([like["dtype"], *map(str, like["shape"])])
    return text


def make_metadata(
    model: VideoClassifier,
    kind: str,
    format: str,
    precision: str,
    state_like: list[Tensor] | None,
    frames: Tensor,
    probabilities: Tensor,
    cost: dict[str, int],
) -> dict[str, Any]:
    """What is written beside the graph; `cpp/` reads the same fields.

    Args:
        model: what was exported.
        kind, format, precision: one of those known.
        state_like: of a stream, the tensors of its state for no streams, (0, ...); None of a clip.
        frames, probabilities: the reference input and the exporter's output on it.
        cost: what a clip or one step of a stream takes: `operations`, as torch's counter counts them, and
            `weight_bytes`.
    """
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "format": format,
        "model": {"name": model.name, "config": model.config},
        "labels": list(model.labels),
        "num_frames": model.num_frames,
        "frame_stride": model.frame_stride,
        "temporal_stride": getattr(model, "temporal_stride", 1),
        "sampling": model.sampling,
        "input_size": list(model.input_size),
        "precision": precision,
        "torch_version": torch.__version__,
        "sifa_version": __version__,
        "operator_schema": operator_schema(),
        "reference": {
            "shape": list(frames.shape),
            "probabilities": probabilities.flatten().tolist(),
            "tolerance": TOLERANCES[precision],
        },
        "cost": cost,
    }
    if state_like is not None:
        metadata["state"] = [
            {"shape": list(like.shape[1:]), "dtype": str(like.dtype).removeprefix("torch.")}
            for like in state_like
        ]
    return metadata


def this_machine(device: str) -> dict[str, str]:
    """What an AOTInductor package compiled here is bound to; its metadata's `compiled_for`."""
    return {"device": device, "machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}


def operator_schema() -> str:
    return str(torch.ops.sifa.inter_frame_attention.default._schema)


def can_serve(schema: str) -> bool:
    """Whether this process's operator runs a graph that was exported with the operator `schema`."""
    own = torch.ops.sifa.inter_frame_attention.default._schema
    try:
        return own.is_backward_compatible_with(torch._C.parse_schema(schema))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError):  # not a schema
        return False


def _is_laid_out_as_by_torch(entries: list[zipfile.ZipInfo]) -> bool:
    """Whether all is in one top folder, where unpacking leaves it, once, and stored as torch stores it.

    As `cpp/src/archive.cpp` sees it. LibTorch unpacks a package by the names of its entries, and looks at
    none of this.
    """
    names = [entry.orig_filename for entry in entries]
    tops = {name.partition("/")[0] for name in names}
    return (
        len(tops) == 1
        and len(set(names)) == len(names)
        and all("/" in name and not name.startswith("/") for name in names)
        and not any("\\" in name or "\0" in name or ".." in name.split("/") for name in names)
        and all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries)
        and not any(entry.flag_bits & 1 for entry in entries)  # encrypted
    )


def _check_entries(path: Path, format: str, names: list[str]) -> None:
    """Refuse entries that torch does not write into a file of this format, and a second library of code."""
    known = (*_ENTRIES, *(_TORCHSCRIPT_ENTRIES if format == "torchscript" else _PROGRAM_ENTRIES))
    libraries = 0
    for name in names:
        libraries += name.endswith(".so")
        is_known = any(name.startswith(entry) if entry.endswith("/") else name == entry for entry in known)
        if not is_known or libraries > (format == "aoti"):
            raise ArtifactError(
                f"{path} is not a SIFA artifact: its entry {name!r} is none that torch writes into a file of "
                f"format {format}"
            )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _check_metadata(path: Path, metadata: Any) -> None:
    """Refuse what this version of SIFA does not know, naming the field, as `cpp/src/metadata.cpp` does."""
    if not isinstance(metadata, dict):
        raise ArtifactError(
            f"{path} is not a SIFA artifact: its entry extra/{METADATA_ENTRY} is not a JSON object"
        )

    def field(name: str, expected: str, accept: Callable[[Any], bool]) -> Any:
        value: Any = metadata
        for key in name.split("."):  # the parents were accepted before
            value = value.get(key)
        if not accept(value):
            raise ArtifactError(
                f"{path} is not a SIFA artifact that can be used: in its metadata {name} must be {expected}, "
                f"got {reprlib.repr(value)}"
            )
        return value

    def integer(name: str, high: int) -> int:
        expected = f"an integer from 1 to {high}"
        return field(name, expected, lambda value: type(value) is int and 1 <= value <= high)

    def text(name: str) -> str:
        return field(name, "a string", lambda value: isinstance(value, str))

    # First what decides whether the other fields mean what this version thinks they mean.
    field("schema_version", "an integer", lambda value: type(value) is int)
    for name, known in {"schema_version": (SCHEMA_VERSION,), **_KNOWN}.items():
        given = metadata["schema_version"] if name == "schema_version" else text(name)
        if given not in known:
            raise ArtifactError(
                f"{path} has {name} {given!r}, sifa {__version__} reads {' or '.join(map(repr, known))}: "
                "export it again, or use the version of sifa that wrote it"
            )
    for name in ("model", "reference"):
        field(name, "an object", lambda value: isinstance(value, dict))
    for name in ("model.name", "torch_version", "sifa_version", "operator_schema"):
        text(name)
    num_frames = integer("num_frames", _MAX_FRAMES)
    integer("frame_stride", _MAX_FRAME_STRIDE)
    temporal_stride = integer("temporal_stride", num_frames)
    labels = field(
        "labels",
        "a list of at least one string",
        lambda value: (
            isinstance(value, list) and value != [] and all(isinstance(label, str) for label in value)
        ),
    )
    height, width = field(
        "input_size",
        f"[height, width], each from 1 to {_MAX_SIDE}",
        lambda value: (
            isinstance(value, list)
            and len(value) == 2
            and all(type(side) is int and 1 <= side <= _MAX_SIDE for side in value)
        ),
    )
    higher, wider = REFERENCE_BORDER
    fits = num_frames * (height + higher) * (width + wider) * 3 <= _MAX_REFERENCE
    field(
        "input_size",
        f"such that a clip, {higher} pixels higher and {wider} wider, has at most 1 GiB",
        lambda value: fits,
    )
    field(
        "reference.probabilities",
        f"a list of {len(labels)} numbers, one per label",
        lambda value: isinstance(value, list) and len(value) == len(labels) and all(map(_is_number, value)),
    )
    field("reference.tolerance", "a number above 0", lambda value: _is_number(value) and value > 0)
    if metadata["kind"] != "clip":
        field(
            "temporal_stride",
            f"a divisor of num_frames, {num_frames}",
            lambda value: num_frames % temporal_stride == 0,
        )
        field(
            "state",
            f"a list of 1 to {_MAX_STATE} objects, each with a shape of positive integers and a dtype of "
            f"{', '.join(STATE_DTYPES)}",
            lambda value: (
                isinstance(value, list)
                and 1 <= len(value) <= _MAX_STATE
                and all(map(_is_state, value))
                and sum(math.prod(like["shape"]) for like in value) <= _MAX_STATE_SIZE
            ),
        )
        steps = num_frames // temporal_stride
        if metadata["kind"] == "window":
            field(
                "state",
                f"one tensor of {steps} rows, the steps of the window",
                lambda value: len(value) == 1 and value[0]["shape"][:1] == [steps],
            )
        else:
            field(
                "state",
                f"such that the last two tensors are {steps} rows, the features of as many steps, and their "
                "count, int64 of shape []",
                lambda value: (
                    len(value) >= 2
                    and value[-2]["shape"][:1] == [steps]
                    and (value[-1]["shape"], value[-1]["dtype"]) == ([], "int64")
                ),
            )
    if "cost" in metadata:  # files of earlier versions do not say
        field("cost", "an object", lambda value: isinstance(value, dict))
        for name in ("cost.operations", "cost.weight_bytes"):
            field(
                name,
                f"an integer from 0 to {_MAX_COST}",
                lambda value: type(value) is int and 0 <= value <= _MAX_COST,
            )
    if metadata["format"] == "aoti":
        field(
            "compiled_for",
            "an object of strings: device, machine and cpu",
            lambda value: (
                isinstance(value, dict)
                and all(isinstance(value.get(name), str) for name in ("device", "machine", "cpu"))
            ),
        )


def _is_state(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("dtype") not in STATE_DTYPES:
        return False
    shape = value.get("shape")
    return isinstance(shape, list) and all(
        type(side) is int and 1 <= side <= _MAX_STATE_SIZE for side in shape
    )
