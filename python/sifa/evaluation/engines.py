"""What can be evaluated: frames in, probabilities out, through PyTorch, TorchScript or the C++ runtime."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifact import FrameClassifier, load_artifact
from ..models import VideoClassifier, create_model, from_pretrained, list_models, model_card
from ..training.checkpoint import load_checkpoint

ENGINES = {"pytorch": "PyTorch", "torchscript": "TorchScript", "cpp": "C++"}
"""What `engine` may be, and how reports call it."""


@dataclass(frozen=True)
class Engine:
    """A loaded model: call it with frames, uint8 `(N, T, H, W, 3)` RGB, for probabilities `(N, num_classes)`.

    Attributes:
        source: what it was loaded from.
        kind: a key of `ENGINES`.
        model: the name of the model.
        labels: names of the classes, in the order of the probabilities.
        num_frames, frame_stride, sampling: the clip that it takes: see `sifa.data.sampling`.
    """

    source: str
    kind: str
    model: str
    labels: list[str]
    num_frames: int
    frame_stride: int
    sampling: str
    run: Callable[[Tensor], Tensor]

    def __call__(self, frames: Tensor) -> Tensor:
        """See the class; float32 on the CPU, wherever the model is."""
        with torch.inference_mode():
            return self.run(frames).float().cpu()


def load_model(source: str) -> VideoClassifier:
    """The PyTorch model in eval mode that a folder, a checkpoint or a name stands for.

    Args:
        source: a folder of `save_pretrained`, a checkpoint (`.ckpt`) of `sifa train`, or the name of a model
            that has bundled weights.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: a model of that name has no bundled weights, or the file holds no PyTorch model.
    """
    path = Path(source)
    if path.is_dir():
        return from_pretrained(path).eval()
    if path.suffix == ".ckpt":
        return load_checkpoint(path)
    if path.is_file() and _is_artifact(path):
        raise ValueError(
            f"{source} is an exported file, which holds a graph and no PyTorch model: "
            "give the folder or the checkpoint that it was exported from"
        )
    if source in list_models():
        tag = next(iter(model_card(source).weights), None)
        if tag is None:
            raise ValueError(
                f"{source} has no bundled weights: give a folder of save_pretrained or a checkpoint"
            )
        return create_model(source, pretrained=tag).eval()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no folder or file {source}, and no model of that name: {', '.join(list_models())}"
        )
    raise ValueError(
        f"{source} is no model: expected a folder of save_pretrained, a checkpoint of `sifa train` or a file "
        "of `sifa export`"
    )


def load_engine(source: str, kind: str | None = None, device: str = "cpu") -> Engine:
    """Load what is to be evaluated.

    Args:
        source: what `load_model` takes, or a file of `sifa export`.
        kind: a key of `ENGINES`; by default `"torchscript"` for an exported file, `"pytorch"` otherwise.
        device: `"cpu"`, `"cuda"` or `"cuda:1"`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; or the kind does not fit the source, or there is no
            such device.
        ArtifactError, sifa.runtime.Error: the exported file is damaged or cannot be run.
        ImportError: the C++ runtime is not built.
    """
    if kind is not None and kind not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {kind!r}")
    _check_device(device)
    exported = Path(source).is_file() and _is_artifact(Path(source))
    kind = kind or ("torchscript" if exported else "pytorch")
    if kind == "pytorch":
        model = load_model(source).to(device)
        classifier = FrameClassifier(model).to(device).eval()
        return Engine(
            source,
            kind,
            model.name,
            list(model.labels),
            model.num_frames,
            model.frame_stride,
            model.sampling,
            lambda frames: classifier(frames.to(device)),
        )
    if not exported:
        raise ValueError(
            f"the engine {kind!r} runs files of `sifa export`, and {source} is none: "
            f"sifa export {source} -o model.pt"
        )
    if kind == "torchscript":
        facts, run = _torchscript(source, device)
    else:
        facts, run = _cpp(source, device)
    return Engine(
        source,
        kind,
        facts["model"]["name"],
        list(facts["labels"]),
        facts["num_frames"],
        facts["frame_stride"],
        facts["sampling"],
        run,
    )


def _check_device(device: str) -> None:
    match = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise ValueError(f"device must be cpu, cuda or a GPU's number such as cuda:1, got {device!r}")
    count = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= count:
        raise ValueError(f"device {device} is not there: torch sees {count} GPUs; use cpu")


def _is_artifact(path: Path) -> bool:
    """Whether a file is meant as an exported one; a checkpoint of torch's is a zip file too."""
    return zipfile.is_zipfile(path) and path.suffix != ".ckpt"


def _torchscript(source: str, device: str) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    artifact = load_artifact(source, device)
    return artifact.metadata, lambda frames: artifact(frames)


def _cpp(source: str, device: str) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    try:
        from ..runtime import Classifier
    except ImportError as error:
        raise ImportError(
            "the engine 'cpp' needs sifa.runtime: `make build` builds it, "
            "or `pip install . -C cmake.define.SIFA_RUNTIME=ON`"
        ) from error
    classifier = Classifier(source, device)
    return classifier.metadata, lambda frames: torch.from_numpy(classifier.classify(frames.numpy()))
