"""The clip classifier that every model is: frames stacked into steps, a 2-D backbone, a mean over steps."""

from typing import Any

import torch
from torch import Tensor, nn

from ..insertion import set_num_steps


def stack_frames(clip: Tensor, stride: int) -> Tensor:
    """Stacks every ``stride`` frames into one image: (N, C, T, H, W) to (N * T/stride, C * stride, H, W).

    Channel ``c * stride + i`` is channel c of the i-th of the stacked frames, so a ``Conv2d`` on the result
    computes what a ``Conv3d`` of temporal kernel and stride ``stride`` computes on the clip, with the same
    weights reshaped. The result is channels-last, from one copy.
    """
    n, c, t, h, w = clip.shape
    steps = clip.unflatten(2, [t // stride, stride])
    pixels = steps.permute(0, 2, 4, 5, 1, 3).reshape(n * (t // stride), h, w, c * stride)
    return pixels.permute(0, 3, 1, 2)


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

    Attributes:
        name, config: what :func:`sifa.create_model` needs to make the model again; ``config`` can be written
            as JSON.
        input_size: (H, W) that it was made for, in pixels.
        crop_fraction: the part of a frame that the centre crop keeps: frames are resized to a short side of
            ``round(H / crop_fraction)`` first.
        mean, std: per channel, for RGB in [0, 1].
        labels: names of the classes.
        frame_stride: recommended distance between the frames sampled from a video.
    """

    name: str
    config: dict[str, Any]
    input_size: tuple[int, int]
    crop_fraction: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    labels: list[str]
    frame_stride: int

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        num_frames: int,
        temporal_stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)
        self.num_classes = num_classes
        self.temporal_stride = temporal_stride
        self.num_frames = num_frames
        self.set_num_frames(num_frames)

    @torch.jit.ignore
    def set_num_frames(self, num_frames: int) -> None:
        """Makes the model take clips of another length; before script or export.

        Raises:
            ValueError: ``num_frames`` is not a positive multiple of the stem's temporal stride.
        """
        stride = self.temporal_stride
        if type(num_frames) is not int or num_frames < 1 or num_frames % stride != 0:
            raise ValueError(f"num_frames must be a positive multiple of {stride}, got {num_frames!r}")
        self.num_frames = num_frames
        set_num_steps(self.backbone, num_frames // stride)
        if "num_frames" in getattr(self, "config", {}):
            self.config["num_frames"] = num_frames

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (N, num_classes) of clips (N, 3, num_frames, H, W)."""
        if clip.dim() != 5 or clip.shape[1] != 3:
            raise ValueError(f"clip must be (N, 3, T, H, W), got {list(clip.shape)}")
        if clip.shape[2] != self.num_frames:
            raise ValueError(
                f"clip must have {self.num_frames} frames, got {clip.shape[2]}; use set_num_frames "
                "to change the model"
            )
        features = self.backbone(stack_frames(clip, self.temporal_stride))
        steps = self.num_frames // self.temporal_stride
        return self.head(self.dropout(features.unflatten(0, [-1, steps]).mean(1)))
