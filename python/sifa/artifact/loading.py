"""Loads artifacts of every format, and runs them once on their reference input."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .metadata import (
    STATE_DTYPES,
    ArtifactError,
    can_serve,
    inputs_of,
    operator_schema,
    read_metadata,
    this_machine,
)
from .networks import on_reference, reference_frames


class Artifact:
    """A loaded artifact: call it with frames, read `metadata`, `labels` and which frames it takes."""

    def __init__(self, graph: Callable[..., Any], metadata: dict[str, Any], device: torch.device) -> None:
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
        frames = _checked_frames(frames, self.num_frames)
        with torch.inference_mode():
            return self._graph(frames.to(self._device))


class StreamArtifact:
    """A loaded artifact of a stream: call it with new frames and the state, for any number of streams.

    Attributes:
        metadata, labels, num_frames, frame_stride: as those of `Artifact`; the probabilities are those of the
            last `num_frames`.
        stride: frames of one step.
        is_window: it takes any number of steps up to a window, and a window at first; otherwise one step.
    """

    def __init__(self, graph: Callable[..., Any], metadata: dict[str, Any], device: torch.device) -> None:
        self._graph = graph
        self._device = device
        self.metadata = metadata
        self.labels: list[str] = metadata["labels"]
        self.num_frames: int = metadata["num_frames"]
        self.frame_stride: int = metadata["frame_stride"]
        self.stride: int = metadata["temporal_stride"]
        self.is_window: bool = metadata["kind"] == "window"

    def initial_state(self, streams: int) -> list[Tensor]:
        """A state for new streams, whose first step is to be called with `first` set."""
        return [
            torch.zeros(streams, *like["shape"], dtype=STATE_DTYPES[like["dtype"]], device=self._device)
            for like in self.metadata["state"]
        ]

    def __call__(
        self, frames: Tensor | np.ndarray, state: list[Tensor], first: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Take the next frames of N streams.

        Args:
            frames: uint8 `(N, stride, H, W, 3)` RGB, the next frames of every stream. For a window a multiple
                of `stride` up to `num_frames`, and `num_frames` of them where a stream begins.
            state: `initial_state(N)`, or what the previous step returned.
            first: bool `(N,)`: the stream begins with these frames, whatever its row of the state holds.

        Returns:
            Probabilities, float32 `(N, num_classes)`, and the next state.

        Raises:
            ValueError: an argument has another type or shape.
        """
        frames = _checked_frames(frames, self.num_frames if self.is_window else self.stride, self.stride)
        streams = frames.shape[0]
        expected = [
            ((streams, *like["shape"]), STATE_DTYPES[like["dtype"]]) for like in self.metadata["state"]
        ]
        if [(tuple(tensor.shape), tensor.dtype) for tensor in state] != expected:
            raise ValueError(
                f"state must be {len(expected)} tensors of {streams} rows, as initial_state({streams}) makes "
                f"them, got {len(state)} of shapes {[tuple(tensor.shape) for tensor in state]} and types "
                f"{[str(tensor.dtype).removeprefix('torch.') for tensor in state]}"
            )
        if first.dtype != torch.bool or first.shape != (streams,):
            raise ValueError(
                f"first must be bool ({streams},), got {str(first.dtype).removeprefix('torch.')} "
                f"{tuple(first.shape)}"
            )
        if self.is_window and frames.shape[1] != self.num_frames and bool(first.any()):
            raise ValueError(
                f"frames must be the {self.num_frames} of a window where a stream begins, "
                f"got {frames.shape[1]}"
            )
        with torch.inference_mode():
            probabilities, after = self._graph(frames.to(self._device), list(state), first.to(self._device))
        return probabilities, list(after)


def load_artifact(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Artifact:
    """Load an artifact of clips and run it once on its reference input.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: what `read_metadata` refuses; or it is one of a stream; or the graph needs another
            operator or machine, cannot be loaded or run, has another number of outputs than labels, or does
            not give the recorded probabilities on the reference input.
    """
    artifact = load_any(path, device)
    if not isinstance(artifact, Artifact):
        raise ArtifactError(
            f"{path} is a stream's, not a clip's: load it with load_stream, or export it without --window or "
            "--streaming"
        )
    return artifact


def load_stream(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> StreamArtifact:
    """Load an artifact of a stream and run it on its reference input; see `load_artifact`."""
    artifact = load_any(path, device)
    if not isinstance(artifact, StreamArtifact):
        raise ArtifactError(f"{path} is a clip's, not a stream's: load it with load_artifact")
    return artifact


def load_any(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Artifact | StreamArtifact:
    """Load an artifact, whichever kind it is of; see `load_artifact`."""
    metadata = read_metadata(path)
    if not can_serve(metadata["operator_schema"]):
        raise ArtifactError(
            f"{path} needs another operator: it was exported for {metadata['operator_schema']!r}, this sifa "
            f"has {operator_schema()!r}; export the model again, or use the version of sifa that wrote it"
        )
    device = torch.device(device)
    if metadata["format"] == "aoti":
        _check_machine(Path(path), metadata["compiled_for"], device)
    graph = _load_graph(Path(path), metadata, device)
    if metadata["format"] == "aoti":
        _check_inputs(Path(path), graph.loader.get_metadata().get("sifa_inputs"), metadata)
    frames = reference_frames(metadata["num_frames"], metadata["input_size"])
    artifact: Artifact | StreamArtifact
    try:
        if metadata["kind"] == "clip":
            artifact = Artifact(graph, metadata, device)
            output = artifact(frames)
        else:
            artifact = StreamArtifact(graph, metadata, device)
            output = on_reference(
                artifact, metadata["kind"], frames, artifact.stride, artifact.initial_state(1)
            )
    except (RuntimeError, torch.jit.Error, AssertionError, TypeError, ValueError) as error:
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


def _check_machine(path: Path, compiled_for: dict[str, str], device: torch.device) -> None:
    here = this_machine(device.type)
    for name, made_for in compiled_for.items():
        if name in here and made_for != here[name]:
            raise ArtifactError(
                f"{path} was compiled for {name} {made_for!r}, not for {here[name]!r}: compile the exported "
                "program here, with `sifa compile`"
            )


def _check_inputs(path: Path, compiled_for: str | None, metadata: dict[str, Any]) -> None:
    """The code of a package looks at no shape: with other inputs it would read beyond them."""
    stated = inputs_of(metadata)
    if compiled_for != stated:
        raise ArtifactError(
            f"{path} cannot be used: it was compiled for {compiled_for or 'inputs that it does not name'}, "
            f"and its metadata states {stated}; compile the exported program again, with `sifa compile`"
        )


def _load_graph(path: Path, metadata: dict[str, Any], device: torch.device) -> Any:
    load = {"torchscript": _load_torchscript, "aoti": _load_package, "exported": _load_program}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
            return load[metadata["format"]](str(path), device)
    except Exception as error:  # whatever a damaged or foreign file makes of the loader
        raise ArtifactError(
            f"torch {torch.__version__} cannot load {path}, exported by torch {metadata['torch_version']}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}; "
            "export the model again with this torch, or use that one"
        ) from error


def _load_torchscript(path: str, device: torch.device) -> Callable[..., Any]:
    return torch.jit.load(path, map_location=device)


def _load_package(path: str, device: torch.device) -> Callable[..., Any]:
    # One call at a time, as the contract of an artifact is.
    index = -1 if device.index is None else device.index
    return torch._inductor.aoti_load_package(path, device_index=index)


def _load_program(path: str, device: torch.device) -> Callable[..., Any]:
    from .writing import for_cuda

    program = torch.export.load(path)
    if device.type == "cuda":
        program = for_cuda(program)
    # The guards of the example's sizes are none of the program's: see export_program.
    return program.module(check_guards=False)


def _checked_frames(frames: Tensor | np.ndarray, most: int, stride: int | None = None) -> Tensor:
    """Contiguous; `most` frames, or any multiple of `stride` up to `most`."""
    frames = torch.as_tensor(frames)
    counts = range(stride or most, most + 1, stride or most)
    if (
        frames.dtype != torch.uint8
        or frames.dim() != 5
        or frames.shape[1] not in counts
        or frames.shape[4] != 3
    ):
        expected = str(most) if len(counts) == 1 else f"{stride} to {most} in steps of {stride}"
        raise ValueError(
            f"frames must be uint8 (N, {expected}, H, W, 3), RGB last, "
            f"got {str(frames.dtype).removeprefix('torch.')} {tuple(frames.shape)}"
        )
    return frames.contiguous()  # which compiled code takes for granted


def _reason(error: Exception) -> str:
    """What went wrong in a graph: the interpreter says it behind its traceback, whose source is indented."""
    lines = str(error).strip().splitlines()
    marks = [index for index, line in enumerate(lines) if line.endswith("<--- HERE")]
    behind = [line for line in lines[marks[-1] + 1 :] if line.strip() and line[0] != " "] if marks else lines
    return next(iter(behind), type(error).__name__)
