"""What an artifact computes, from raw frames to probabilities, and the input that it is checked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..preprocessing import ClipPreprocessing

if TYPE_CHECKING:
    from ..models import VideoClassifier

Step = Callable[[Tensor, list[Tensor], Tensor], tuple[Tensor, list[Tensor]]]
"""`(frames, state, first) -> (probabilities, state)`: see `sifa.models.streaming.StreamingClassifier` and
`sifa.models.window.WindowClassifier`."""


class FrameClassifier(nn.Module):
    """What an artifact of clips computes: preprocessing, the model, softmax.

    Forward maps frames, uint8 `(N, T, H, W, 3)` RGB, to probabilities, float32 `(N, num_classes)`. It runs
    the same in eager, `torch.compile`, script and export. Frames are prepared in float32, and the model gets
    them in the type of its weights.

    Args:
        model: a classifier of normalised clips with the attributes `input_size`, `crop_fraction`, `mean`,
            `std`.
    """

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        self.preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
        self.model = model
        self.dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        return torch.softmax(self.model(self.preprocessing(frames).to(self.dtype)).float(), dim=1)


def reference_frames(num_frames: int, input_size: Sequence[int]) -> Tensor:
    """The input whose output an artifact records: uint8 `(1, T, H, W, 3)`.

    The same integers in every language. Somewhat larger than the network's input, and wider than high, so
    that resize and crop both have work to do.
    """
    t, y, x, c = torch.meshgrid(
        torch.arange(num_frames),
        torch.arange(input_size[0] + 17),
        torch.arange(input_size[1] + 40),
        torch.arange(3),
        indexing="ij",
    )
    value = 17 * t * x + 7 * y + 13 * x + 31 * t + 61 * c + ((x * y) >> 3)
    return (value & 255).to(torch.uint8).unsqueeze(0)


def on_reference(step: Step, kind: str, frames: Tensor, stride: int, state: list[Tensor]) -> Tensor:
    """The probabilities of a new stream, of a kind other than clip, that the reference input ends.

    Args:
        step: the graph.
        frames: the reference input, (1, T, H, W, 3).
        stride: frames of one step.
        state: of one new stream.
    """
    calls = list(frames.split(stride, 1))
    if kind == "window":
        # A window whose oldest step the second call pushes out, so that what is kept is looked at too.
        calls = [torch.cat([calls[0], *calls[:-1]], 1), calls[-1]]
    probabilities = torch.empty(0)
    for index, given in enumerate(calls):
        first = torch.full((1,), index == 0, device=frames.device)
        probabilities, state = step(given.contiguous(), state, first)
    return probabilities
