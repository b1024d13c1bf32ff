"""SIFA-Net: timm's ResNets on stacked frames, with SIFA inserted into odd blocks of their later stages."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..insertion import insert
from ..modules import SIFA
from .classifier import VideoClassifier

TEMPORAL_STRIDE = 4
"""Frames per step: the published stem is a Conv3d(3, 64, (4, 7, 7), stride (4, 2, 2), padding (0, 3, 3))."""

# The channels come from the backbone; a last convolution needs the features, not the aggregate alone.
_SIFA_OPTIONS = tuple(
    name for name in inspect.signature(SIFA).parameters if name not in ("channels", "residual")
)


def resnet(backbone: str, *, num_classes: int, num_frames: int, **options: Any) -> VideoClassifier:
    """A timm ResNet as a video classifier.

    Its 7x7 stem takes 12 channels, four stacked frames: the published 3-D stem with the same parameters.

    Args:
        backbone: timm's name of a ResNet.
        num_classes, num_frames: see :class:`VideoClassifier`.
        **options: ``stages`` (default 2, 3, 4) whose odd blocks get SIFA, none for the plain 2-D network;
            ``dropout`` before the classifier (0.5); and those of :class:`sifa.SIFA` but ``channels`` and
            ``residual``.

    Raises:
        ValueError: an option that does not exist or is out of its range.
    """
    # timm starts the last norm of every block at 0. With SIFA, whose aggregate is cubic in the features, this
    # also keeps an untrained network's outputs finite.
    network = timm.create_model(backbone, in_chans=3 * TEMPORAL_STRIDE, num_classes=0, pretrained=False)
    return _classifier(network, num_classes, num_frames, **options)


def tiny(*, num_classes: int, num_frames: int, **options: Any) -> VideoClassifier:
    """A narrow ResNet of six basic blocks, without stage 1; its stem has the spatial stride 4 at once.

    The options are those of :func:`resnet`; ``dropout`` is 0.1 by default.
    """
    network = ResNet(
        BasicBlock,
        layers=(0, 2, 2, 2),
        channels=(32, 48, 96, 128),
        num_classes=0,
        in_chans=3 * TEMPORAL_STRIDE,
        stem_type="deep",  # timm's other stems are 64 wide
        stem_width=16,
        zero_init_last=False,
    )
    network.conv1 = nn.Conv2d(3 * TEMPORAL_STRIDE, 32, kernel_size=7, stride=4, padding=3, bias=False)
    network.maxpool = nn.Identity()
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return _classifier(network, num_classes, num_frames, **{"dropout": 0.1, **options})


def _classifier(
    network: ResNet,
    num_classes: int,
    num_frames: int,
    stages: Iterable[int] = (2, 3, 4),
    dropout: float = 0.5,
    **sifa: Any,
) -> VideoClassifier:
    for option in sifa:
        if option not in _SIFA_OPTIONS:
            known = ", ".join(("stages", "dropout", *_SIFA_OPTIONS))
            raise ValueError(f"unknown model option {option!r}; known: {known}")
    stages = sorted(set(stages))
    possible = [stage for stage in (1, 2, 3, 4) if len(network.get_submodule(f"layer{stage}")) > 1]
    if not set(stages) <= set(possible):
        raise ValueError(f"stages must be among {possible}, those with a second block, got {stages}")
    # In front of a block's last convolution: the activated output of its (first or only) 3x3 convolution.
    last = "conv3" if isinstance(network.layer4[0], Bottleneck) else "conv2"
    where = [
        f"layer{stage}.{block}.{last}"
        for stage in stages
        for block in range(1, len(network.get_submodule(f"layer{stage}")), 2)
    ]
    model = VideoClassifier(network, network.num_features, num_classes, num_frames, TEMPORAL_STRIDE, dropout)
    if where:
        steps = num_frames // TEMPORAL_STRIDE
        insert(
            network,
            where,
            steps,
            layout="NCHW",
            example=torch.zeros(steps, 3 * TEMPORAL_STRIDE, 32, 32),
            **sifa,
        )
    return model.to(memory_format=torch.channels_last)
