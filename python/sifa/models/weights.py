"""Weights from elsewhere: files of state dicts, timm's image networks, the authors' checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn

from .classifier import TEMPORAL_STRIDE, VideoClassifier

_log = logging.getLogger(__name__)

IMAGENET_STEP = 2
"""The step of the stem that takes an image network's kernel, the third of 4; the others start at zero."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the keys when weights of an image network were loaded.

    Attributes:
        matched: keys of the model that took a value.
        new: keys of the model that the weights know nothing of, and which stayed as they were.
        unused: keys of the weights that found no place.
    """

    matched: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} matched, {len(self.new)} new ({_shortened(self.new)}), "
            f"{len(self.unused)} unused ({_shortened(self.unused)})"
        )


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "") if keys else "none"


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from a ``.safetensors`` file, or, of any other suffix, of ``torch.save`` (tensors only).

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: it is damaged, or holds something other than a dictionary of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:  # derives from Exception alone
            raise RuntimeError(f"{path} is not a safetensors file: {error}; copy or make it again") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling meets; torch's words advise to trust the file
        raise RuntimeError(
            f"{path} cannot be read as weights of torch.save: it is damaged, or holds more than tensors"
        ) from error
    for entry in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RuntimeError(f"{path} holds no state dict: expected a dictionary of tensors by name")
    return state


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """How the keys and the shapes of a state dict differ from the model's own, a line each."""
    own = model.state_dict()
    lines = [f"missing: {key}" for key in own if key not in state]
    lines += [f"unexpected: {key}" for key in state if key not in own]
    lines += [
        f"{key}: the model has {tuple(own[key].shape)}, the weights {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    return lines


def load_own(
    model: VideoClassifier, state: Mapping[str, Tensor], source: str, strict: bool = True
) -> list[str]:
    """Load a state dict of this very model.

    Args:
        model: changed in place.
        state: values by the model's own keys.
        source: what the state is, for the error.
        strict: whether anything that differs is an error; otherwise what fits is loaded.

    Returns:
        What differs, a line each; empty if ``strict``.

    Raises:
        RuntimeError: something differs; the error lists all of it.
    """
    problems = mismatches(model, state)
    if problems and strict:
        raise RuntimeError(f"{source} do not fit {model.name}:\n  " + "\n  ".join(problems))
    own = model.state_dict()
    fitting = {key: v for key, v in state.items() if key in own and own[key].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return problems


# --- Image networks of timm's -----------------------------------------------------------------------------


def imagenet_state(backbone: str, which: str) -> tuple[dict[str, Tensor], dict[str, tuple[float, ...]]]:
    """The weights of an image network, and the ``mean`` and ``std`` of its training where they are known.

    Args:
        backbone: timm's name of it.
        which: a tag of timm's (``"a1_in1k"``), empty for its default one; both are downloaded. Or the path of
            a file of such weights, whose normalisation is taken to be the card's.
    """
    if which and Path(which).suffix:
        return read_state(Path(which)), {}
    network = timm.create_model(f"{backbone}.{which}" if which else backbone, pretrained=True)
    return network.state_dict(), {name: tuple(network.pretrained_cfg[name]) for name in ("mean", "std")}


def load_imagenet(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Start a video classifier from the weights of its backbone, trained on images.

    The stem's kernel goes to the step ``IMAGENET_STEP`` of four, and zeros to the others; the dual branch's
    second stage 4 gets a copy of the first's weights. What was inserted, and the heads, stay as they were.

    Args:
        model: a :class:`VideoClassifier` on a backbone of timm's; changed in place.
        state: the backbone's state dict in timm's names.

    Raises:
        RuntimeError: nothing matches, or a shape does not; the error lists all that do not.
    """
    own = model.state_dict()
    values: dict[str, Tensor] = {}
    new, problems, used = [], [], set()
    for key, current in own.items():
        name = _image_key(key)
        if name is None or name not in state:
            new.append(key)
            continue
        value = state[name]
        used.add(name)
        if value.ndim == 4 and value.shape[1] * TEMPORAL_STRIDE == current.shape[1]:
            steps = value.new_zeros(*value.shape[:2], TEMPORAL_STRIDE, *value.shape[2:])
            steps[:, :, IMAGENET_STEP] = value
            value = steps.flatten(1, 2)
        if key.endswith("relative_position_bias_table") and value.shape != current.shape:
            # The window of a smaller input is smaller: 2 w - 1 differences along each axis.
            window = (math.isqrt(current.shape[0]) + 1) // 2
            value = resize_rel_pos_bias_table(value, (window, window), current.shape)
        if value.shape != current.shape:
            problems.append(f"{key}: the model has {tuple(current.shape)}, the weights {tuple(value.shape)}")
        values[key] = value
    if problems or not values:
        raise RuntimeError(
            "the weights do not fit the model's backbone:\n  "
            + "\n  ".join(problems or ["no key of theirs is one of its own"])
        )
    model.load_state_dict(values, strict=False)
    report = LoadReport(list(values), new, [name for name in state if name not in used])
    _log.info("initialised from an image network: %s", report)
    return report


def _image_key(key: str) -> str | None:
    """What timm calls a parameter of ours; None for what an image network has not."""
    if ".inserted." in key or not key.startswith(("backbone.", "layer4.", "layer4_dual.")):
        return None
    return key.removeprefix("backbone.").replace("layer4_dual.", "layer4.").replace(".module.", ".")


# --- Checkpoints of the authors' code ---------------------------------------------------------------------


def convert_reference_state_dict(state_dict: Mapping[str, object], model: nn.Module) -> dict[str, Tensor]:
    """Translate a checkpoint of the paper's released code into a state dict of ours.

    Conv3d weights (out, in, 1, k, k) lose their temporal axis, the stem's four taps become stacked channels,
    and ``def_cor.weight``, a frozen 1/C which is our ``scale``, is dropped.

    Args:
        state_dict: of the released SIFA-Net; also under the key ``"model"``, and with ``"module."`` prefixes.
        model: a SIFA-Net with ``dual_branch`` and ``global_context="clip"``, for the names and shapes; for
            equal outputs, one made with ``reference=True``.

    Returns:
        A state dict for ``model.load_state_dict``.

    Warns:
        UserWarning: keys of the checkpoint found no place, or keys of the model no value; all are listed.

    Raises:
        ValueError: nothing in it is a parameter of this model.
        RuntimeError: a value does not have the shape of its place.

    Source: the released code of Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022.
    """
    inner = state_dict.get("model", state_dict)
    if not isinstance(inner, Mapping):
        raise ValueError(f'the entry "model" must be a state dict, got {type(inner).__name__}')
    own = model.state_dict()
    places = {_reference_key(key): key for key in own}
    converted: dict[str, Tensor] = {}
    unplaced, problems = [], []
    for given, value in inner.items():
        key = given.removeprefix("module.")
        if key.endswith("def_cor.weight"):
            continue
        place = places.get(key)
        if place is None or not isinstance(value, Tensor):
            unplaced.append(given)
            continue
        # A stem's (64, 3, 4, 7, 7) is our (64, 12, 7, 7); otherwise only axes of one element may differ.
        flat = value.flatten(1, 2) if value.ndim == 5 else value
        if [size for size in flat.shape if size > 1] == [size for size in own[place].shape if size > 1]:
            converted[place] = flat.reshape(own[place].shape)
        else:
            problems.append(f"{given}: {tuple(value.shape)} does not fit {place} {tuple(own[place].shape)}")
    if problems:
        raise RuntimeError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))
    if not converted:
        raise ValueError("the checkpoint holds no parameter of this model: is it one of the released code?")
    missing = [key for key in own if key not in converted and not key.endswith("num_batches_tracked")]
    if unplaced or missing:
        lines = [f"no place for {key}" for key in unplaced] + [f"no value for {key}" for key in missing]
        warnings.warn("convert_reference_state_dict:\n  " + "\n  ".join(lines), stacklevel=2)
    return {key: converted.get(key, own[key]) for key in own}


def _reference_key(key: str) -> str:
    """What the released code calls a parameter of ours."""
    key = re.sub(r"^head(_dual)?\.", r"fc\1.", key.removeprefix("backbone."))
    # What was inserted belongs to the block there; what was wrapped keeps its name.
    return re.sub(r"\w+\.inserted\.", "", key).replace(".module.", ".")
