"""What an artifact computes, from raw frames to probabilities, and the input that it is checked on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..preprocessing import ClipPreprocessing
from .metadata import REFERENCE_BORDER

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
    height, width = (size + border for size, border in zip(input_size, REFERENCE_BORDER, strict=True))
    t, y, x, c = (torch.arange(size, dtype=torch.int32) for size in (num_frames, height, width, 3))
    t, y, x = (t & 255).view(-1, 1, 1, 1), y.view(-1, 1, 1), x.view(-1, 1)
    # 17tx + 7y + 13x + 31t + 61c + xy/8, in bytes, which wrap, before it has the size of the input.
    terms = (17 * t * x + 31 * t, 7 * y + 13 * x + ((x * y) >> 3), 61 * c)
    of_frames, of_pixels, of_colours = ((term & 255).to(torch.uint8) for term in terms)
    return (of_frames + of_pixels + of_colours).unsqueeze(0)


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
