"""What a model costs: its parameters and multiply-adds, counted without running it."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch.utils.flop_counter import FlopCounterMode

from .classifier import VideoClassifier


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Size and cost of a model on one clip.

    Attributes:
        parameters: number of learnable values.
        multiply_adds: of convolutions, linear layers and the backbone's own attention.
        attention_multiply_adds: of SIFA's operator: 6 k² C per pixel.
    """

    parameters: int
    multiply_adds: int
    attention_multiply_adds: int


def complexity(model: VideoClassifier) -> Complexity:
    """Count for one clip of ``model.num_frames`` frames of ``model.input_size`` pixels."""
    with torch.device("meta"):
        counted = copy.deepcopy(model).to("meta").eval()
        clip = torch.empty(1, 3, model.num_frames, *model.input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        counted(clip)
    by_operator = counter.get_flop_counts()["Global"]
    attention = by_operator.pop(torch.ops.sifa.inter_frame_attention, 0)
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        multiply_adds=sum(by_operator.values()) // 2,
        attention_multiply_adds=attention // 2,
    )
