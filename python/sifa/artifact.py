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
from .data.sampling import RULE
from .preprocessing import ClipPreprocessing

if TYPE_CHECKING:
    from .models import VideoClassifier

SCHEMA_VERSION = 1
METADATA_ENTRY = "sifa.json"
TOLERANCE = 1e-3
"""How far another machine's probabilities on the reference input may be from the exporter's."""

_FIELDS: dict[str, type] = {
    "model": dict,
    "labels": list,
    "num_frames": int,
    "frame_stride": int,
    "input_size": list,
    "torch_version": str,
    "sifa_version": str,
    "operator_schema": str,
    "reference": dict,
}
_KNOWN = {"kind": "clip", "format": "torchscript", "sampling": RULE, "precision": "float32"}
"""The only values that this version can run."""


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
    """A loaded artifact: call it with frames, read `metadata`, `labels`, `num_frames` and `frame_stride`."""

    def __init__(
        self, graph: Callable[[Tensor], Tensor], metadata: dict[str, Any], device: torch.device
    ) -> None:
        self._graph = graph
        self._device = device
        self.metadata = metadata
        self.labels: list[str] = metadata["labels"]
        self.num_frames: int = metadata["num_frames"]
        self.frame_stride: int = metadata["frame_stride"]

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
        ValueError: the model's labels do not match its outputs.
        RuntimeError: the scripted graph does not answer as the model does.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
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
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_ENTRY}")]
            if not entries:
                raise ArtifactError(f"{path} is not a SIFA artifact: it has no entry extra/{METADATA_ENTRY}")
            metadata = json.loads(archive.read(entries[0]))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is damaged or truncated: {error}") from error
    if damaged is not None:
        raise ArtifactError(f"{path} is damaged: the checksum of its entry {damaged} does not match")
    _check_metadata(path, metadata)
    return metadata


def load_artifact(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Artifact:
    """Load an artifact and run it once on its reference input.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: what `read_metadata` refuses; or the graph cannot be loaded, has another number of
        outputs than
            labels, or does not give the recorded probabilities on the reference input.
    """
    metadata = read_metadata(path)
    device = torch.device(device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
            graph = torch.jit.load(str(path), map_location=device)
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"torch {torch.__version__} cannot load {path}, exported by torch {metadata['torch_version']}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    artifact = Artifact(graph, metadata, device)
    probabilities = artifact(reference_frames(artifact.num_frames, metadata["input_size"])).flatten().cpu()
    if len(probabilities) != len(artifact.labels):
        raise ArtifactError(
            f"{path}: labels has {len(artifact.labels)} names for {len(probabilities)} outputs"
        )
    reference = metadata["reference"]
    difference = (probabilities - torch.tensor(reference["probabilities"])).abs().max().item()
    if not difference <= reference["tolerance"]:
        raise ArtifactError(
            f"{path}: reference output differs by {difference:.1e} from the one recorded at export, "
            f"more than the tolerance {reference['tolerance']:.0e}: this machine computes something else"
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
        "sampling": RULE,
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


def _check_metadata(path: Path, metadata: Any) -> None:
    """Refuse what this version of SIFA does not know, naming the field."""
    version = metadata.get("schema_version") if isinstance(metadata, dict) else None
    if not isinstance(version, int):
        raise ArtifactError(f"{path} is not a SIFA artifact: its metadata has no schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema_version {version}, sifa {__version__} reads {SCHEMA_VERSION}: "
            "export it again, or use the version of sifa that wrote it"
        )
    for field, expected in _KNOWN.items():
        if metadata.get(field) != expected:
            raise ArtifactError(f"{path}: {field} must be {expected!r}, got {metadata.get(field)!r}")
    for field, kind in _FIELDS.items():
        if not isinstance(metadata.get(field), kind):
            raise ArtifactError(f"{path}: {field} must be a {kind.__name__}, got {metadata.get(field)!r}")
    for field in ("num_frames", "frame_stride"):
        if metadata[field] < 1:
            raise ArtifactError(f"{path}: {field} must be at least 1, got {metadata[field]}")
    if len(metadata["input_size"]) != 2 or not all(
        isinstance(n, int) and n > 0 for n in metadata["input_size"]
    ):
        raise ArtifactError(f"{path}: input_size must be two positive integers, got {metadata['input_size']}")
    labels, reference = metadata["labels"], metadata["reference"]
    probabilities = reference.get("probabilities")
    if not isinstance(probabilities, list) or not isinstance(reference.get("tolerance"), float):
        raise ArtifactError(f"{path}: reference must hold a list of probabilities and a tolerance")
    if len(probabilities) != len(labels):
        raise ArtifactError(
            f"{path}: labels has {len(labels)} names for {len(probabilities)} reference outputs"
        )
    if metadata["operator_schema"] != _operator_schema():
        raise ArtifactError(
            f"{path}: operator_schema must be {_operator_schema()!r}, got {metadata['operator_schema']!r}"
        )


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
