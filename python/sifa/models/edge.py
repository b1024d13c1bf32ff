"""Small image networks of timm's with SIFA, for boards of Jetson class."""

from __future__ import annotations

import fnmatch
from typing import Any

import timm
import torch
from torch import nn

from ..insertion import insert_module
from .classifier import TEMPORAL_STRIDE, VideoClassifier, channels_last
from .variants import temporal_module


def edge(
    backbone: str,
    position: str,
    where: str,
    last_norm: str | None,
    *,
    num_classes: int,
    num_frames: int,
    temporal: str | None = "sifa",
    dropout: float = 0.2,
    **sifa: Any,
) -> VideoClassifier:
    """A convolutional network of timm's as a video classifier, on stacks of four frames.

    Args:
        backbone: timm's name of it.
        position, where: the place of SIFA, as in :func:`sifa.insert`.
        last_norm: pattern of the norms that end the blocks with SIFA. They start at 0, as timm's do in a
            ResNet: before any training the aggregate, cubic in the features, would grow beyond any number.
        num_classes, num_frames: see :class:`VideoClassifier`.
        temporal: what is inserted: see :func:`sifa.models.variants.temporal_module`.
        dropout: probability, before the classifier.
        **sifa: arguments of :class:`sifa.SIFA` but ``channels`` and ``residual``.

    Raises:
        ValueError: an option is out of its range.
    """
    network = timm.create_model(backbone, in_chans=3 * TEMPORAL_STRIDE, num_classes=0, pretrained=False)
    example = torch.zeros(1, 3 * TEMPORAL_STRIDE, 64, 64)
    if temporal is not None:
        for name, module in network.named_modules():
            if last_norm is not None and fnmatch.fnmatchcase(name, last_norm):
                nn.init.zeros_(module.weight)
        insert_module(
            network,
            where,
            1,
            lambda channels: temporal_module(temporal, channels, **sifa),
            position,
            layout="NCHW",
            example=example,
        )
    with torch.no_grad():
        num_features = network.eval()(example).shape[1]  # timm states it in other ways for other networks
    model = VideoClassifier(network.train(), num_features, num_classes, num_frames, TEMPORAL_STRIDE, dropout)
    return channels_last(model)
