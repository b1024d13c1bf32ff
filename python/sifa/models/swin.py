"""SIFA-Transformer: timm's Swin Transformers on stacked frames, with SIFA in the even blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm

from ..insertion import insert_module
from ..modules import TemporalConvolution
from .classifier import TEMPORAL_STRIDE, VideoClassifier
from .variants import checked_stages, temporal_module


def swin(
    backbone: str,
    *,
    num_classes: int,
    num_frames: int,
    input_size: tuple[int, int] = (224, 224),
    stages: Iterable[int] = (1, 2, 3, 4),
    temporal: str | None = "sifa",
    temporal_conv: bool = False,
    dropout: float = 0.5,
    **sifa: Any,
) -> VideoClassifier:
    """A timm Swin Transformer as a video classifier.

    Args:
        backbone: timm's name of it.
        num_classes, num_frames: see :class:`VideoClassifier`.
        input_size: (H, W) in pixels, any that timm's Swin takes.
        stages: whose blocks of even index get SIFA, after their window attention and before the residual sum
            (figure 4b: the block of each pair whose windows are not shifted).
        temporal: what these blocks get: see :func:`sifa.models.variants.temporal_module`.
        temporal_conv: give the blocks of odd index the released code's zero-initialised temporal convolution,
            at the same place.
        dropout: probability, before the classifier.
        **sifa: arguments of :class:`sifa.SIFA` but ``channels`` and ``residual``.

    Raises:
        ValueError: an option is out of its range.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, section 4.
    """
    network = timm.create_model(
        backbone, in_chans=3 * TEMPORAL_STRIDE, num_classes=0, pretrained=False, img_size=input_size
    )
    stages = checked_stages(stages)
    # By index, not by the effective shift: timm sets that to 0 where one window covers the frame.
    even, odd = (
        [
            f"layers.{stage - 1}.blocks.{block}.drop_path1"
            for stage in stages
            for block in range(first, len(network.layers[stage - 1].blocks), 2)
        ]
        for first in (0, 1)
    )
    if even and temporal is not None:
        insert_module(
            network, even, 1, lambda channels: temporal_module(temporal, channels, **sifa), layout="NHWC"
        )
    if odd and temporal_conv:
        insert_module(network, odd, 1, TemporalConvolution, layout="NHWC")
    return VideoClassifier(network, network.num_features, num_classes, num_frames, TEMPORAL_STRIDE, dropout)
