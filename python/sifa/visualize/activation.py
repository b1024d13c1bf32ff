"""Class activation maps over time: how much every place of every step speaks for a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import VideoClassifier
from .trace import Places, frames_of_steps, places_in_frame, run


@dataclass(frozen=True)
class Activation:
    """What speaks for a class in one clip.

    Attributes:
        label, index, probability: of the class.
        maps: `(T, h, w)`, the part of the logit from each step and place; negative where it speaks against.
        frames: for each step, the index in the clip of the frame that stands for it, the middle one.
        places: where the maps lie in the video's frames.
    """

    label: str
    index: int
    probability: float
    maps: Tensor
    frames: list[int]
    places: Places


def class_activation(model: VideoClassifier, frames: Tensor, target: str | int | None = None) -> Activation:
    """Gradient times activation of the last feature maps, summed over channels.

    For a network that ends in a mean and a linear layer, as SIFA-Net and SIFA-Transformer do, this is the
    class activation map: its sum is the logit without the bias. With the dual branch the logit is the mean
    of the two heads', and the second branch's maps, of every two steps and finer, are shared out among the
    pixels and steps of the first one's.

    Args:
        model: a classifier as `sifa.create_model` returns it.
        frames: uint8 `(T, H, W, 3)` RGB, as read from a video.
        target: the class, by label or index (`"3"` too); by default the most likely one.

    Raises:
        ValueError: there is no such class, or the frames do not fit the model.
    """
    index = None if target is None else _index(model, target)
    captured: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
        # Whatever the parameters are, the gradient of the maps is wanted.
        captured.append(output if output.requires_grad else output.requires_grad_())
        return captured[-1]

    heads: list[Tensor] = []
    hooks = [
        head.register_forward_hook(lambda module, inputs, output: heads.append(output[0]))
        for head in (model.head, model.head_dual)
        if head is not None
    ]
    if model.layer4 is not None and model.layer4_dual is not None:
        hooks += [branch.register_forward_hook(keep) for branch in (model.layer4, model.layer4_dual)]
    else:
        # timm's backbones end their maps in forward_features, which is no module that a hook could see.
        backbone: Any = model.backbone
        features = backbone.forward_features
        object.__setattr__(backbone, "forward_features", lambda x: keep(None, None, features(x)))
    try:
        with torch.enable_grad():
            logits, resizing = run(model, frames)
            probabilities = logits.softmax(0)
            chosen = int(probabilities.argmax()) if index is None else index
            logit = torch.stack(heads).mean(0)[chosen]
            gradients = torch.autograd.grad(logit, captured)
    finally:
        for hook in hooks:
            hook.remove()
        if "forward_features" in vars(model.backbone):
            object.__delattr__(model.backbone, "forward_features")
    maps = [
        _channels_last(model, maps * gradient).sum(-1).detach().cpu().float()
        for maps, gradient in zip(captured, gradients, strict=True)
    ]
    first = maps[0]
    if len(maps) == 2:
        rows, columns = (_shares(*sides) for sides in zip(first.shape[1:], maps[1].shape[1:], strict=True))
        pairs = (rows @ maps[1] @ columns.T / 2).repeat_interleave(2, 0)
        # Of an odd number of steps the last one is in no pair.
        first[: len(pairs)] += pairs
    return Activation(
        label=model.labels[chosen],
        index=chosen,
        probability=float(probabilities[chosen].detach()),
        maps=first,
        frames=frames_of_steps(len(frames), len(first)),
        places=places_in_frame(model, frames, resizing, (first.shape[1], first.shape[2])),
    )


def _index(model: VideoClassifier, target: str | int) -> int:
    if isinstance(target, int) and 0 <= target < model.num_classes:
        return target
    if isinstance(target, str) and target in model.labels:
        return model.labels.index(target)
    if isinstance(target, str) and target.isdecimal() and int(target) < model.num_classes:
        return int(target)
    raise ValueError(
        f"the class must be a label of the model or an index from 0 to {model.num_classes - 1}, "
        f"got {target!r}; "
        f"its labels: {', '.join(model.labels[:10])}{', ...' if model.num_classes > 10 else ''}"
    )


def _shares(coarse: int, fine: int) -> Tensor:
    """`(coarse, fine)`: the share of each of `fine` equal parts of a line that lies in each of `coarse`."""
    low, high = torch.arange(fine) / fine, torch.arange(1, fine + 1) / fine
    start, end = torch.arange(coarse).unsqueeze(1) / coarse, torch.arange(1, coarse + 1).unsqueeze(1) / coarse
    return (torch.minimum(high, end) - torch.maximum(low, start)).clamp_min(0) * fine


def _channels_last(model: VideoClassifier, maps: Tensor) -> Tensor:
    """Feature maps as `(T, h, w, C)`, whatever the backbone's layout."""
    return maps if getattr(model.backbone, "output_fmt", "NCHW") == "NHWC" else maps.permute(0, 2, 3, 1)
