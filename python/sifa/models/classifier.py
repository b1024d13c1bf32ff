"""The clip classifier that every model is: frames stacked into steps, a 2-D backbone, a mean over steps."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..insertion import set_num_steps

TEMPORAL_STRIDE = 4
"""Frames per step of every registered model: the temporal stride of the published stem."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# What a folder of save_pretrained holds of a model beside its options and labels.
SAVED_ATTRIBUTES = ("frame_stride", "sampling", "crop_fraction", "mean", "std")


def stack_frames(clip: Tensor, stride: int) -> Tensor:
    """Stack every ``stride`` frames into one image: (N, C, T, H, W) to (N * T/stride, C * stride, H, W).

    Channel ``c * stride + i`` is channel c of the i-th of the stacked frames, so a ``Conv2d`` on the result
    computes what a ``Conv3d`` of temporal kernel and stride ``stride`` computes on the clip, with the same
    weights reshaped. The result is channels-last, from one copy.
    """
    n, c, t, h, w = clip.shape
    steps = clip.unflatten(2, [t // stride, stride])
    pixels = steps.permute(0, 2, 4, 5, 1, 3).reshape(n * (t // stride), h, w, c * stride)
    return pixels.permute(0, 3, 1, 2)


def steps_of(num_frames: int, stride: int) -> int:
    """The steps that ``num_frames`` frames give. Raises ValueError if they are no multiple of ``stride``."""
    if type(num_frames) is not int or num_frames < 1 or num_frames % stride != 0:
        raise ValueError(f"num_frames must be a positive multiple of {stride}, got {num_frames!r}")
    return num_frames // stride


def check_num_classes(num_classes: object) -> None:
    """Raise ValueError unless ``num_classes`` is a positive integer."""
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f"num_classes must be an integer of at least 1, got {num_classes!r}")


def mean_of_steps(features: Tensor, num_steps: int) -> Tensor:
    """The mean over the steps of each clip: (N * num_steps, C) to (N, C)."""
    return features.unflatten(0, [-1, num_steps]).mean(1)


def max_of_step_pairs(features: Tensor, num_steps: int) -> Tensor:
    """The maximum of every two steps: (N * num_steps, C, H, W) to (N * (num_steps // 2), C, H, W).

    The last of an odd number of steps is left out, as max-pooling of stride 2 does.
    """
    pixels = features.permute(0, 2, 3, 1).unflatten(0, [-1, num_steps])  # channels-last throughout
    even, odd = pixels[:, 0 : num_steps - 1 : 2], pixels[:, 1:num_steps:2]
    return torch.maximum(even, odd).flatten(0, 1).permute(0, 3, 1, 2)


class VideoClassifier(nn.Module):
    """Classifies clips (N, 3, T, H, W), normalised with ``mean`` and ``std``, into logits (N, num_classes).

    The forward raises ValueError for any rank, channels or T but those stated: folded into the batch of the
    backbone, a clip of the wrong length would pass silently as more clips.

    Args:
        backbone: from images of ``3 * temporal_stride`` channels, (N * num_steps, 3 * temporal_stride, H, W),
            to features (N * num_steps, num_features), with SIFA inserted.
        num_features: its output channels.
        num_classes, num_frames: classes, and frames of a clip; a multiple of ``temporal_stride``.
        temporal_stride: frames that the stem turns into one step.
        dropout: probability, before the last layer.
        dual_branch: the backbone's last stage, twice, for a network with two heads: the backbone then ends
            before it, unpooled. The first stage takes every step. The second takes the maximum of every two
            steps and has no spatial stride. Both give (N * steps, num_features, H', W').

    Attributes:
        name, config: what :func:`sifa.create_model` needs to make the model again; ``config`` can be written
            as JSON.
        input_size: (H, W) that it was made for, in pixels.
        crop_fraction: the part of a frame that the centre crop keeps: frames are resized to a short side of
            ``round(H / crop_fraction)`` first.
        mean, std: per channel, for RGB in [0, 1].
        labels: names of the classes.
        frame_stride: recommended distance between the frames sampled from a video.
        sampling: the rule by which they are, one of :data:`sifa.data.sampling.RULES`.
    """

    name: str
    config: dict[str, Any]
    input_size: tuple[int, int]
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    labels: list[str]
    frame_stride: int
    sampling: str

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        num_frames: int,
        temporal_stride: int,
        dropout: float,
        dual_branch: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)
        self.layer4: nn.Module | None = None
        self.layer4_dual: nn.Module | None = None
        self.head_dual: nn.Module | None = None
        if dual_branch is not None:
            self.layer4, self.layer4_dual = dual_branch
            self.head_dual = nn.Linear(num_features, num_classes)
        self.num_classes = num_classes
        self.temporal_stride = temporal_stride
        self.sampling = "center"
        self.set_num_frames(num_frames)

    def set_num_frames(self, num_frames: int) -> None:
        """Make the model take clips of another length; before script or export.

        Raises:
            ValueError: ``num_frames`` is not a positive multiple of the stem's temporal stride, or too small
                for the model.
        """
        stride = self.temporal_stride
        num_steps = steps_of(num_frames, stride)
        if self.layer4_dual is not None and num_frames < 2 * stride:
            raise ValueError(
                f"num_frames must be at least {2 * stride} with the dual branch, got {num_frames}: feed more "
                "frames, or create the model with dual_branch=False"
            )
        self.num_frames = num_frames
        self.num_steps = num_steps
        set_num_steps(self.backbone, self.num_steps)
        if self.layer4 is not None and self.layer4_dual is not None:
            set_num_steps(self.layer4, self.num_steps)
            set_num_steps(self.layer4_dual, self.num_steps // 2)
        if "num_frames" in getattr(self, "config", {}):
            self.config["num_frames"] = num_frames

    def replace_head(self, num_classes: int) -> None:
        """Give the model new, randomly initialised last layers for another number of classes.

        Raises:
            ValueError: ``num_classes`` is not a positive integer.
        """
        check_num_classes(num_classes)
        self.num_classes = num_classes
        for name in ("head", "head_dual"):
            old = getattr(self, name, None)
            if old is not None:
                new = nn.Linear(old.in_features, num_classes)
                setattr(self, name, new.to(old.weight.device, old.weight.dtype))
        self.labels = [f"class_{i}" for i in range(num_classes)]
        if "num_classes" in getattr(self, "config", {}):
            self.config["num_classes"] = num_classes

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model into a folder, from which :func:`sifa.from_pretrained` makes it again.

        The folder is made if it is not there; its ``config.json`` and ``model.safetensors`` are overwritten.

        Raises:
            ValueError: the model was not made by :func:`sifa.create_model`, which is how it is made again.
        """
        if not hasattr(self, "name") or not hasattr(self, "config"):
            raise ValueError(
                "save_pretrained needs a model of sifa.create_model; save the state_dict of others"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors writes no channels-last tensors; loading copies into the memory format of the model.
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(self.facts(), indent=1) + "\n")

    def facts(self) -> dict[str, Any]:
        """What makes the model again, beside its weights; can be written as JSON."""
        facts = {"library": "sifa", "model": self.name, "config": self.config, "labels": self.labels}
        return facts | {name: getattr(self, name) for name in SAVED_ATTRIBUTES}

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (N, num_classes) of clips (N, 3, num_frames, H, W).

        With the dual branch their softmax is the mean of the two heads' softmaxes.
        """
        return self.merge_heads(self.forward_heads(clip))

    def forward_heads(self, clip: Tensor) -> Tensor:
        """The logits of each head, for the loss: (N, 1, num_classes), or (N, 2, num_classes) if dual.

        Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, section 4.
        """
        if clip.dim() != 5 or clip.shape[1] != 3:
            raise ValueError(f"clip must be (N, 3, T, H, W), got {list(clip.shape)}")
        if clip.shape[2] != self.num_frames:
            raise ValueError(
                f"clip must have {self.num_frames} frames, got {clip.shape[2]}; use set_num_frames "
                "to change the model"
            )
        return self.heads_of(self.backbone(stack_frames(clip, self.temporal_stride)))

    def heads_of(self, features: Tensor) -> Tensor:
        """:meth:`forward_heads` from the backbone's output for whole clips, (N * num_steps, ...)."""
        if self.layer4 is None or self.layer4_dual is None or self.head_dual is None:
            return self.head(self.dropout(mean_of_steps(features, self.num_steps))).unsqueeze(1)
        first = self.layer4(features).mean([2, 3])
        second = self.layer4_dual(max_of_step_pairs(features, self.num_steps)).mean([2, 3])
        return torch.stack(
            [
                self.head(self.dropout(mean_of_steps(first, self.num_steps))),
                self.head_dual(self.dropout(mean_of_steps(second, self.num_steps // 2))),
            ],
            1,
        )

    def merge_heads(self, heads: Tensor) -> Tensor:
        """The logits of :meth:`forward` from those of :meth:`forward_heads`."""
        if self.head_dual is None:
            return heads[:, 0]
        return heads.log_softmax(2).logsumexp(1) - math.log(2)


def channels_last(model: VideoClassifier) -> VideoClassifier:
    """The model, its 2-D convolutions changed to channels-last memory, which the kernels read in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return model
