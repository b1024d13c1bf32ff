"""SIFA-Net: timm's ResNets on stacked frames, with SIFA in the odd blocks of their later stages."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..insertion import insert_module
from ..modules import GlobalContext
from .classifier import TEMPORAL_STRIDE, VideoClassifier, channels_last
from .variants import checked_stages, temporal_module

TINY_DEFAULTS: dict[str, Any] = {"dropout": 0.1, "global_context": None, "dual_branch": False}
"""Where :func:`tiny` differs from the defaults of :func:`sifa_net`."""


def resnet(backbone: str, *, num_classes: int, num_frames: int, **options: Any) -> VideoClassifier:
    """A timm ResNet as a video classifier: :func:`sifa_net` of it.

    Its 7x7 stem takes 12 channels, four stacked frames. This is the published Conv3d(3, 64, (4, 7, 7), stride
    (4, 2, 2), padding (0, 3, 3)), with the same parameters.
    """
    # timm starts the last norm of every block at 0. With SIFA, whose aggregate is cubic in the features, this
    # also keeps an untrained network's outputs finite.
    network = timm.create_model(backbone, in_chans=3 * TEMPORAL_STRIDE, num_classes=0, pretrained=False)
    return sifa_net(network, num_classes=num_classes, num_frames=num_frames, **options)


def tiny(*, num_classes: int, num_frames: int, **options: Any) -> VideoClassifier:
    """A narrow ResNet of six basic blocks, without stage 1; its stem has the spatial stride 4 at once.

    The options are those of :func:`sifa_net`, by default with ``TINY_DEFAULTS``.
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
    return sifa_net(network, num_classes=num_classes, num_frames=num_frames, **{**TINY_DEFAULTS, **options})


def sifa_net(
    network: ResNet,
    *,
    num_classes: int,
    num_frames: int,
    stages: Iterable[int] = (2, 3, 4),
    temporal: str | None = "sifa",
    global_context: str | None = "clip",
    dual_branch: bool = True,
    dropout: float = 0.5,
    **sifa: Any,
) -> VideoClassifier:
    """SIFA-Net on a ResNet of timm's, with a stem for stacked frames and no classifier.

    Args:
        network: changed in place.
        num_classes, num_frames: see :class:`VideoClassifier`.
        stages: whose odd blocks get SIFA, before their last convolution, and whose even blocks get a global
            context, after their last norm. Stage 4 is the paper's stage 5.
        temporal: what the odd blocks get: see :func:`sifa.models.variants.temporal_module`.
        global_context: ``"clip"`` (published), ``"frame"`` (causal) or None: see
            :class:`sifa.modules.GlobalContext`.
        dual_branch: add a second stage 4, without spatial stride, for the maximum of every two steps.
        dropout: probability, before the classifiers.
        **sifa: arguments of :class:`sifa.SIFA` but ``channels`` and ``residual``.

    Raises:
        ValueError: an option is out of its range.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, section 4.
    """
    stages = checked_stages(stages)
    # A block's last convolution reads the activated output of its (first or only) 3x3 convolution.
    last = "3" if isinstance(network.layer4[0], Bottleneck) else "2"
    num_blocks = {stage: len(network.get_submodule(f"layer{stage}")) for stage in stages}
    for stage in stages:
        if num_blocks[stage] < 2 and temporal is not None:
            raise ValueError(f"stages must have a second block, which stage {stage} of this network has not")
    odd, even = (
        [f"layer{stage}.{block}" for stage in stages for block in range(first, num_blocks[stage], 2)]
        for first in (1, 0)
    )
    # One image; the classifier tells every insertion its number of steps.
    example = torch.zeros(1, 3 * TEMPORAL_STRIDE, 32, 32)

    if odd and temporal is not None:
        insert_module(
            network,
            [f"{block}.conv{last}" for block in odd],
            1,
            lambda channels: temporal_module(temporal, channels, **sifa),
            layout="NCHW",
            example=example,
        )
    if even and global_context is not None:
        insert_module(
            network,
            [f"{block}.bn{last}" for block in even],
            1,
            lambda channels: GlobalContext(channels, global_context),
            position="after",
            layout="NCHW",
            example=example,
        )
    branches = _dual_branch(network) if dual_branch else None
    model = VideoClassifier(
        network, network.num_features, num_classes, num_frames, TEMPORAL_STRIDE, dropout, branches
    )
    return channels_last(model)


def _dual_branch(network: ResNet) -> tuple[nn.Module, nn.Module]:
    """Stage 4, taken out of the network, and a copy of it without spatial stride."""
    stage, copied = network.layer4, copy.deepcopy(network.layer4)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    network.layer4 = nn.Identity()
    network.global_pool = nn.Identity()
    return stage, copied
