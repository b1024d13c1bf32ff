"""Writes artifacts: TorchScript files, exported programs, and the packages compiled from these."""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .metadata import (
    KINDS,
    METADATA_ENTRY,
    STATE_DTYPES,
    TOLERANCES,
    ArtifactError,
    inputs_of,
    make_metadata,
    read_metadata,
    this_machine,
)
from .networks import FrameClassifier, on_reference, reference_frames

if TYPE_CHECKING:
    from ..models import VideoClassifier

_SAME = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""By precision: how far a graph's probabilities may be from those of the network that it was made from."""

_MAX_SIDE = 65536
_MAX_BATCH = 65536


def export_torchscript(
    model: VideoClassifier,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    kind: str = "clip",
) -> dict[str, Any]:
    """Write `model` as an artifact for TorchScript, in Python or C++, and return its metadata.

    The graph computes in eval mode, whatever the model's mode and device; the model is left as it was. The
    file appears whole or not at all. The same model gives the same bytes, if the process scripted nothing
    before (TorchScript numbers the classes it has seen).

    Args:
        model: a classifier of clips as `sifa.create_model` returns it.
        path: the file to write, overwritten if it exists.
        precision: what the network computes in: `"float32"`, `"float16"` or `"bfloat16"`. Preprocessing and
            softmax are in float32 always.
        kind: what the graph takes. `"clip"`: a clip, whole. For streams, new frames and a state:
            `"window"`, which keeps what comes before the first module that looks at other steps, and
            computes the rest for the last `num_frames` frames; or `"streaming"`, which computes one step,
            of a causal model.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        IsADirectoryError: `path` is a folder.
        ValueError: the model's labels do not match its outputs, an unknown precision or kind, or a model
            that cannot be streamed.
        RuntimeError: the graph does not answer as the model does.
    """
    path = _checked(path)
    network = _Network(model, precision, kind)
    with torch.inference_mode(), warnings.catch_warnings():
        # TorchScript is deprecated upstream; it is one of the two engines, and named as such.
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated", category=DeprecationWarning)
        if network.state_like is not None:
            # What tracing would fix to the example, it says; all of that is scripted, or the same for all.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            parts = network.module.script_parts()  # type: ignore[operator]
            graph = torch.jit.freeze(torch.jit.trace(parts, network.for_tracing(), check_trace=False))
        else:
            graph = torch.jit.freeze(torch.jit.script(network.module))
        metadata = network.metadata("torchscript", graph, path)
        buffer = io.BytesIO()
        torch.jit.save(graph, buffer, _extra_files={METADATA_ENTRY: json.dumps(metadata, indent=1)})
    _write_whole(path, _without_debug_records(buffer))
    return metadata


def export_program(
    model: VideoClassifier,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    kind: str = "clip",
) -> dict[str, Any]:
    """Write `model` as a portable program (`.pt2`), for `compile_program`; see `export_torchscript`."""
    path = _checked(path)
    network = _Network(model, precision, kind)
    from torch.fx.experimental import _config

    batch, height, width = (
        torch.export.Dim(name, min=1, max=most)
        for name, most in (("batch", _MAX_BATCH), ("height", _MAX_SIDE), ("width", _MAX_SIDE))
    )
    example = network.for_tracing()
    sizes: dict[str, Any] = {"frames": {0: batch, 2: height, 3: width}}
    if network.state_like is not None:
        sizes |= {"state": [{0: batch}] * len(network.state_like), "first": {0: batch}}
    if network.max_steps > 1:
        sizes["frames"][1] = network.stride * torch.export.Dim("steps", min=1, max=network.max_steps)
    # Oblivious: a batch, a height or a width of 1 is no case of its own.
    with torch.no_grad(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(network.module, example, dynamic_shapes=sizes, strict=False)
    with torch.inference_mode():
        metadata = network.metadata("exported", program.module(check_guards=False), path)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Weights that share a storage; it matters for weights that are not on the CPU, and these are.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, buffer, extra_files={METADATA_ENTRY: json.dumps(metadata, indent=1)})
    _write_whole(path, buffer.getvalue())
    return metadata


def compile_program(
    source: str | os.PathLike[str], path: str | os.PathLike[str], device: str = "cpu"
) -> dict[str, Any]:
    """Compile what `export_program` wrote into an AOTInductor package for this machine; return its metadata.

    Takes a minute or more, and a C++ compiler. The package is checked on its reference input.

    Args:
        source: the exported program.
        path: the file to write, overwritten if it exists.
        device: `"cpu"` or `"cuda"`: where the package will run.

    Raises:
        FileNotFoundError: there is no file `source`, or the folder of `path` does not exist.
        ArtifactError: `source` is no exported program, or damaged; or the package answers otherwise than
            was recorded at export.
        ValueError: an unknown device.
        RuntimeError: it cannot be compiled, for want of a compiler or a device; or the compiler links its
            standard library statically, after which nothing it makes can be loaded.
    """
    from .loading import load_any

    path, source = _checked(path), Path(source)
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device must be "cpu" or "cuda", got {device!r}')
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "device cuda is not available: torch sees no GPU; compile on the machine that has it"
        )
    metadata = read_metadata(source)
    if metadata["format"] != "exported":
        raise ArtifactError(
            f"{source} has format {metadata['format']!r}: only an exported program can be compiled; write "
            "one with `sifa export --format exported`"
        )
    try:
        program = torch.export.load(source)
    except Exception as error:  # whatever a damaged or foreign program makes of the loader
        raise ArtifactError(
            f"torch {torch.__version__} cannot load {source}, exported by torch {metadata['torch_version']}: "
            f"{_first_line(error)}; export the model again with this torch, or use that one"
        ) from error
    if device == "cuda":
        program = for_cuda(program)
    metadata |= {
        "format": "aoti",
        "torch_version": torch.__version__,
        "compiled_for": this_machine(device),
    }
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "model.pt2"
        try:
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(package),
                inductor_configs={"aot_inductor.metadata": {"sifa_inputs": inputs_of(metadata)}},
            )
        except Exception as error:  # AOTInductor's own, the compiler's, the device's
            raise RuntimeError(
                f"{source} was not compiled: {_first_line(error)}; AOTInductor needs a C++ compiler (g++) on "
                "this machine, and for cuda a CUDA toolkit"
            ) from error
        with zipfile.ZipFile(package, "a") as archive:
            for name in archive.namelist():
                if name.endswith(".so") and not _shares_its_standard_library(archive.read(name)):
                    raise RuntimeError(
                        f"{source} was not compiled: the C++ compiler put its standard library into the "
                        "package, which would crash the process that loads it; give it a libstdc++.so (on "
                        "Debian or Ubuntu libstdc++-<version of g++>-dev has one), or name another compiler "
                        "in CXX"
                    )
            archive.writestr(
                zipfile.ZipInfo(f"model/extra/{METADATA_ENTRY}"), json.dumps(metadata, indent=1).encode()
            )
        load_any(package, device)
        _write_whole(path, package.read_bytes())
    return metadata


def _shares_its_standard_library(code: bytes) -> bool:
    """Whether a shared library needs the C++ library that the process has, as its ELF header then says."""
    return any(name in code for name in (b"libstdc++.so", b"libc++.so"))


def for_cuda(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, moved to CUDA."""
    from torch.export.passes import move_to_device_pass

    # With its index, as tensors have it: torch 2.11 takes "cuda" for another device.
    return move_to_device_pass(program, "cuda:0")


class _Network:
    """The network of an artifact, its example input and its answer on the reference input."""

    module: nn.Module

    def __init__(self, model: VideoClassifier, precision: str, kind: str) -> None:
        for name, given, known in (("precision", precision, TOLERANCES), ("kind", kind, KINDS)):
            if given not in known:
                raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {given!r}")
        self.model = model
        self.precision = precision
        self.kind = kind
        copied = copy.deepcopy(model).to("cpu", STATE_DTYPES[precision]).eval()
        self.frames = reference_frames(model.num_frames, model.input_size)
        self.state_like: list[Tensor] | None = None
        self.max_steps = 1  # of one call
        self.module = whole = FrameClassifier(copied)
        if kind != "clip":
            from ..models.streaming import StreamingClassifier
            from ..models.window import WindowClassifier

            stepping: WindowClassifier | StreamingClassifier
            stepping = WindowClassifier(copied) if kind == "window" else StreamingClassifier(copied)
            self.module = stepping
            self.stride = stepping.stride
            self.max_steps = model.num_frames // self.stride if kind == "window" else 1
            self.state_like = stepping.state_like
        self.module.eval()
        # Before anything of it is scripted.
        with torch.inference_mode():
            # A window's is that of the clip: it shows that nothing depends on the window where it is cut.
            self.expected = whole(self.frames) if kind == "window" else self._answer(self.module)
            with FlopCounterMode(display=False) as counter:
                self.module(*self.example(batch=1, steps=1))
        self.cost = {
            "operations": counter.get_total_flops(),
            "weight_bytes": sum(p.numel() * p.element_size() for p in self.module.parameters()),
        }

    def for_tracing(self) -> tuple[Any, ...]:
        """Arguments that a tracer mistakes for nothing special: two of what may be any number."""
        return self.example(batch=2, steps=min(2, self.max_steps))

    def example(self, batch: int, steps: int) -> tuple[Any, ...]:
        """Arguments: `batch` clips, or `steps` steps of as many streams."""
        frames = self.frames.expand(batch, -1, -1, -1, -1)
        if self.state_like is None:
            return (frames.contiguous(),)
        first = torch.ones(batch, dtype=torch.bool)
        return frames[:, : self.stride * steps].contiguous(), self._state(batch), first

    def metadata(self, format: str, graph: Callable[..., Any], path: Path) -> dict[str, Any]:
        """The metadata of a graph made from the network; raises where it answers something else."""
        probabilities = self._answer(graph)
        if probabilities.shape[1] != len(self.model.labels):
            raise ValueError(
                f"the model has {probabilities.shape[1]} outputs but {len(self.model.labels)} labels"
            )
        difference, bound = (probabilities - self.expected).abs().max().item(), _SAME[self.precision]
        if not difference <= bound:
            raise RuntimeError(
                f"{path} was not written: on the reference input the {format} graph differs from the model "
                f"by {difference:.1e}, more than {bound:.0e}"
            )
        return make_metadata(
            self.model,
            self.kind,
            format,
            self.precision,
            self.state_like,
            self.frames,
            probabilities,
            self.cost,
        )

    def _answer(self, graph: Callable[..., Any]) -> Tensor:
        if self.state_like is None:
            return graph(self.frames)
        return on_reference(graph, self.kind, self.frames, self.stride, self._state(1))

    def _state(self, streams: int) -> list[Tensor]:
        assert self.state_like is not None
        return [torch.zeros(streams, *like.shape[1:], dtype=like.dtype) for like in self.state_like]


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; name a file in it")
    return path


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
