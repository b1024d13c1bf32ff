"""Random changes of training clips, by torchvision's transforms: one draw for all frames of a clip."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2


@dataclasses.dataclass
class Augmentation:
    """What is done to a training clip at random, in this order; the defaults are those of the released code.

    Args:
        scale: the share of the frame's area that the crop has, from and to; 1.0 and 1.0 take what fits.
        ratio: width by height of the crop, from and to.
        rand_augment: number of operations and their magnitude (0 to 30) of RandAugment; null: none.
        jitter: how far brightness, contrast, saturation and hue change; null: not at all.
        jitter_probability: of that change.
        grayscale: probability that colour is taken away.
        blur: probability of a Gaussian blur.
        blur_sigma: its width, from and to, in pixels of the input.
        flip: probability of a reflection left to right; 0 where left and right mean something, as in
            Something-Something.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    rand_augment: tuple[int, int] | None = None
    jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        def check(name: str, expected: str, fits: bool) -> None:
            if not fits:
                raise ValueError(f"augmentation.{name} must be {expected}, got {getattr(self, name)!r}")

        check("scale", "two shares, 0 < from <= to <= 1", 0 < self.scale[0] <= self.scale[1] <= 1)
        check("ratio", "two ratios, 0 < from <= to", 0 < self.ratio[0] <= self.ratio[1])
        for name in ("jitter_probability", "grayscale", "blur", "flip"):
            check(name, "a probability, 0 to 1", 0 <= getattr(self, name) <= 1)
        check("blur_sigma", "two widths, 0 < from <= to", 0 < self.blur_sigma[0] <= self.blur_sigma[1])
        if self.jitter is not None:
            fits = min(self.jitter) >= 0 and self.jitter[3] <= 0.5
            check("jitter", "four numbers of at least 0, the last (hue) at most 0.5", fits)
        if self.rand_augment is not None:
            operations, magnitude = self.rand_augment
            fits = operations >= 1 and 0 <= magnitude < _MAGNITUDES
            check("rand_augment", f"operations of at least 1 and a magnitude of 0 to {_MAGNITUDES - 1}", fits)

    def transform(self, input_size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
        """What makes a training clip: uint8 `(T, H, W, 3)` of any size to uint8 `(T, *input_size, 3)`.

        All frames of a clip are changed by the same draw, which comes from torch's global generator.
        """
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(input_size, scale=self.scale, ratio=self.ratio, antialias=True)
        ]
        if self.rand_augment is not None:
            steps.append(v2.RandAugment(*self.rand_augment, num_magnitude_bins=_MAGNITUDES))
        if self.jitter is not None and self.jitter_probability > 0:
            steps.append(v2.RandomApply([v2.ColorJitter(*self.jitter)], self.jitter_probability))
        if self.grayscale > 0:
            steps.append(v2.RandomGrayscale(self.grayscale))
        if self.blur > 0:
            steps.append(v2.RandomApply([_blur(input_size, self.blur_sigma)], self.blur))
        if self.flip > 0:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        return _FramesLast(v2.Compose(steps))


_MAGNITUDES = 31  # torchvision's number of magnitudes of RandAugment


def _blur(input_size: tuple[int, int], sigma: tuple[float, float]) -> nn.Module:
    """A blur whose kernel holds three sigmas on either side, as far as the frame does."""
    radius = min(round(3 * sigma[1]), (min(input_size) - 1) // 2)
    return v2.GaussianBlur(2 * max(1, radius) + 1, sigma)


class _FramesLast(nn.Module):
    """A transform of images (T, 3, H, W), applied to frames (T, H, W, 3)."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        images = self.transform(frames.permute(0, 3, 1, 2))
        return images.permute(0, 2, 3, 1).contiguous(memory_format=torch.contiguous_format)
