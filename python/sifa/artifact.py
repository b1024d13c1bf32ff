"""The artifact: ONE file with weights, preprocessing, labels and metadata, that Python and C++ run alike.

Its graph takes raw frames, uint8 RGB `(N, T, H, W, 3)` of any `H` and `W`, and returns probabilities. Its
metadata, JSON in the zip entry `extra/sifa.json`, says which frames of a video to feed, what the outputs
mean, and what the graph answers on a reference input; a loader refuses a file that does not fit, and names
the field.
"""

from __future__ import annotations

import copy
import io
import json
import os
import reprlib
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from .data.sampling import RULES
from .preprocessing import ClipPreprocessing

if TYPE_CHECKING:
    from .models import VideoClassifier

SCHEMA_VERSION = 1
METADATA_ENTRY = "sifa.json"
TOLERANCE = 1e-3
"""How far another machine's probabilities on the reference input may be from the exporter's."""

_KNOWN = {"kind": ("clip",), "format": ("torchscript",), "sampling": RULES, "precision": ("float32",)}
"""The values that this version can run."""

# Above any sensible model's; they bound what a lying file can make a loader allocate.
_MAX_METADATA = 16 << 20  # bytes
_MAX_FRAMES = 1 << 14
_MAX_FRAME_STRIDE = 1 << 20
_MAX_SIDE = 1 << 14
_MAX_REFERENCE = 1 << 30  # bytes

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


class FrameClassifier(nn.Module):
    """What an artifact computes: preprocessing, the model, softmax.

    Forward maps frames, uint8 `(N, T, H, W, 3)` RGB, to probabilities, float32 `(N, num_classes)`. It runs
    the same in eager, `torch.compile`, script and export.

    Args:
        model: a classifier of normalised clips with the attributes `input_size`, `crop_fraction`, `mean`,
            `std`.
    """

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        return torch.softmax(self.model(self.preprocessing(frames)).float(), dim=1)


class Artifact:
    """A loaded artifact: call it with frames, read `metadata`, `labels` and which frames it takes."""

    def __init__(
        self, graph: Callable[[Tensor], Tensor], metadata: dict[str, Any], device: torch.device
    ) -> None:
        self._graph = graph
        self._device = device
        self.metadata = metadata
        self.labels: list[str] = metadata["labels"]
        self.num_frames: int = metadata["num_frames"]
        self.frame_stride: int = metadata["frame_stride"]
        self.sampling: str = metadata["sampling"]

    def __call__(self, frames: Tensor | np.ndarray) -> Tensor:
        """Probabilities, float32 `(N, num_classes)`, of frames, uint8 `(N, T, H, W, 3)` RGB.

        Raises:
            ValueError: the frames have another type or shape, or not `num_frames` of them.
        """
        frames = torch.as_tensor(frames)
        if (
            frames.dtype != torch.uint8
            or frames.dim() != 5
            or frames.shape[1] != self.num_frames
            or frames.shape[4] != 3
        ):
            raise ValueError(
                f"frames must be uint8 (N, {self.num_frames}, H, W, 3), RGB last, "
                f"got {str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
            )
        with torch.inference_mode():
            return self._graph(frames.to(self._device))


def reference_frames(num_frames: int, input_size: Sequence[int]) -> Tensor:
    """The input whose output an artifact records: uint8 `(1, T, H, W, 3)`.

    The same integers in every language. Somewhat larger than the network's input, and wider than high, so
    that resize and crop both have work to do.
    """
    t, y, x, c = torch.meshgrid(
        torch.arange(num_frames),
        torch.arange(input_size[0] + 17),
        torch.arange(input_size[1] + 40),
        torch.arange(3),
        indexing="ij",
    )
    value = 17 * t * x + 7 * y + 13 * x + 31 * t + 61 * c + ((x * y) >> 3)
    return (value & 255).to(torch.uint8).unsqueeze(0)


def export_torchscript(model: VideoClassifier, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Write `model` as an artifact for TorchScript, in Python or C++, and return its metadata.

    The graph computes in float32 and eval mode, whatever the model's mode and device; the model is left as
    it was. The file appears whole or not at all. The same model gives the same bytes, if the process
    scripted nothing before (TorchScript numbers the classes it has seen).

    Args:
        model: a classifier of clips as `sifa.create_model` returns it.
        path: the file to write, overwritten if it exists.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        ValueError: the model's labels do not match its outputs.
        RuntimeError: the scripted graph does not answer as the model does.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file in it")
    classifier = FrameClassifier(copy.deepcopy(model)).to("cpu", torch.float32).eval()
    frames = reference_frames(model.num_frames, model.input_size)
    with torch.inference_mode(), warnings.catch_warnings():
        # TorchScript is deprecated upstream; it is one of the two engines, and named as such.
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=DeprecationWarning)
        expected = classifier(frames)
        graph = torch.jit.freeze(torch.jit.script(classifier))
        probabilities = graph(frames)
        if probabilities.shape[1] != len(model.labels):
            raise ValueError(f"the model has {probabilities.shape[1]} outputs but {len(model.labels)} labels")
        difference = (probabilities - expected).abs().max().item()
        if not difference <= 1e-5:
            raise RuntimeError(
                f"{path} was not written: on the reference input the scripted graph differs from the model "
                f"by {difference:.1e}, more than 1e-5"
            )
        metadata = _metadata(model, frames, probabilities)
        buffer = io.BytesIO()
        torch.jit.save(graph, buffer, _extra_files={METADATA_ENTRY: json.dumps(metadata, indent=1)})
    _write_whole(path, _without_debug_records(buffer))
    return metadata


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
            found = [info for info in archive.infolist() if info.filename.partition("/")[2] == entry]
            if found and found[0].file_size > _MAX_METADATA:
                raise zipfile.BadZipFile(f"its entry {entry} has {found[0].file_size} bytes")
            content = archive.read(found[0]) if found else None
            damaged = archive.testzip()
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
    return metadata


def load_artifact(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Artifact:
    """Load an artifact and run it once on its reference input.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: what `read_metadata` refuses; or the graph needs another operator, cannot be loaded or
            run, has another number of outputs than labels, or does not give the recorded probabilities on
            the reference input.
    """
    metadata = read_metadata(path)
    if not _can_serve(metadata["operator_schema"]):
        raise ArtifactError(
            f"{path} needs another operator: it was exported for {metadata['operator_schema']!r}, this sifa "
            f"has {_operator_schema()!r}; export the model again, or use the version of sifa that wrote it"
        )
    device = torch.device(device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
            graph = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"torch {torch.__version__} cannot load {path}, exported by torch {metadata['torch_version']}: "
            f"{str(error).strip().splitlines()[0]}; export the model again with this torch, or use that one"
        ) from error
    artifact = Artifact(graph, metadata, device)
    try:
        output = artifact(reference_frames(artifact.num_frames, metadata["input_size"]))
    except (RuntimeError, torch.jit.Error) as error:
        raise ArtifactError(
            f"{path} cannot be run on its reference input: {_reason(error)}; export the model again"
        ) from error
    count = len(artifact.labels)
    if not isinstance(output, Tensor) or output.shape != (1, count):
        given = f"{output.numel()} outputs" if isinstance(output, Tensor) else type(output).__name__
        raise ArtifactError(f"{path}: labels has {count} names for {given}; export the model again")
    reference = metadata["reference"]
    expected = torch.tensor([float(probability) for probability in reference["probabilities"]])
    difference = (output.flatten().cpu() - expected).abs().max().item()
    if not difference <= reference["tolerance"]:
        raise ArtifactError(
            f"{path}: reference output differs by {difference:.1e} from the one recorded at export, "
            f"more than the tolerance {reference['tolerance']:.0e}: this machine computes something else; "
            "export the model again on this machine"
        )
    return artifact


def _metadata(model: VideoClassifier, frames: Tensor, probabilities: Tensor) -> dict[str, Any]:
    """What is written beside the graph; `cpp/` reads the same fields."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "clip",
        "format": "torchscript",
        "model": {"name": model.name, "config": model.config},
        "labels": list(model.labels),
        "num_frames": model.num_frames,
        "frame_stride": model.frame_stride,
        "sampling": model.sampling,
        "input_size": list(model.input_size),
        "precision": "float32",
        "torch_version": torch.__version__,
        "sifa_version": __version__,
        "operator_schema": _operator_schema(),
        "reference": {
            "shape": list(frames.shape),
            "probabilities": probabilities.flatten().tolist(),
            "tolerance": TOLERANCE,
        },
    }


def _operator_schema() -> str:
    return str(torch.ops.sifa.inter_frame_attention.default._schema)


def _can_serve(schema: str) -> bool:
    """Whether this process's operator runs a graph that was exported with the operator `schema`."""
    own = torch.ops.sifa.inter_frame_attention.default._schema
    try:
        return own.is_backward_compatible_with(torch._C.parse_schema(schema))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError):  # not a schema
        return False


def _reason(error: Exception) -> str:
    """What went wrong in a graph: the interpreter says it behind its traceback, whose source is indented."""
    lines = str(error).strip().splitlines()
    marks = [index for index, line in enumerate(lines) if line.endswith("<--- HERE")]
    behind = [line for line in lines[marks[-1] + 1 :] if line.strip() and line[0] != " "] if marks else lines
    return next(iter(behind), type(error).__name__)


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
    fits = num_frames * height * width * 3 <= _MAX_REFERENCE
    field("input_size", "such that a clip has at most 1 GiB", lambda value: fits)
    field(
        "reference.probabilities",
        f"a list of {len(labels)} numbers, one per label",
        lambda value: isinstance(value, list) and len(value) == len(labels) and all(map(_is_number, value)),
    )
    field("reference.tolerance", "a number above 0", lambda value: _is_number(value) and value > 0)


def _without_debug_records(archive: io.BytesIO) -> bytes:
    """The zip without the records that hold source text and paths of the machine that exported it."""
    result = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(result, "w") as target:
        for entry in source.infolist():
            # The serialization id is a hash over the dropped records too.
            if not entry.filename.endswith((".debug_pkl", "/serialization_id")):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry), entry.compress_type)
    return result.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody, not even after a crash, sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
