"""From raw video frames to a network's input, as a module that becomes part of every exported graph.

Resizing, cropping and normalising inside the graph is what keeps Python and C++ from disagreeing: whoever
holds decoded RGB frames of any size has everything the model needs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def resize_and_crop(
    height: int, width: int, resize_to: tuple[int, int], crop_to: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Where the network's input lies in a frame: `(resized height, resized width, top, left)` in pixels.

    The frame is scaled, keeping its aspect ratio, to the smallest size that covers `resize_to` (for a
    square: its short side becomes that long), and the centre `crop_to` is cut out. Integers only and no
    branch on a size: eager, script and an export with dynamic sizes give the same pixels.
    """
    fit_height = height * resize_to[1] // width
    fit_width = width * resize_to[0] // height
    if torch.jit.is_scripting():
        resized_height = max(resize_to[0], fit_height)
        resized_width = max(resize_to[1], fit_width)
    else:
        resized_height = torch.sym_max(resize_to[0], fit_height)  # type: ignore[assignment]
        resized_width = torch.sym_max(resize_to[1], fit_width)  # type: ignore[assignment]
    return (
        resized_height,
        resized_width,
        (resized_height - crop_to[0]) // 2,
        (resized_width - crop_to[1]) // 2,
    )


class ClipPreprocessing(nn.Module):
    """Raw RGB frames to a normalised clip: uint8 `(N, T, H, W, 3)` to float32 `(N, 3, T, h, w)`.

    Antialiased bilinear resize of the short side to `round(h / crop_fraction)`, centre crop to
    `input_size`, division by 255, and normalisation with `mean` and `std`. Identical in eager, script and
    export.

    Args:
        input_size: height and width of the network's input, in pixels.
        crop_fraction: the share of the resized frame, along one side, that the crop keeps; in (0, 1].
        mean: per channel (R, G, B), for values in [0, 1].
        std: likewise.

    Raises:
        ValueError: a setting is out of range; in forward (`torch.jit.Error` when scripted): the frames have
            another type, rank or channel count, or no pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, input_size: Sequence[int], crop_fraction: float, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        height, width = input_size
        if height < 1 or width < 1:
            raise ValueError(f"input_size must be two positive numbers of pixels, got {tuple(input_size)}")
        if not 0 < crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be in (0, 1], got {crop_fraction}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must be 3 numbers each, std positive, got {mean} and {std}")
        self.crop_to: tuple[int, int] = (int(height), int(width))
        self.resize_to: tuple[int, int] = (round(height / crop_fraction), round(width / crop_fraction))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """See the class."""
        if frames.dtype != torch.uint8:
            given = "floating-point numbers" if frames.is_floating_point() else "another integer type or bool"
            raise ValueError("frames must be uint8 (values 0 to 255), got " + given)
        if frames.dim() != 5 or frames.size(4) != 3:
            shape: list[int] = list(frames.shape)
            raise ValueError(f"frames must be (N, T, H, W, 3), RGB last, got shape {shape}")
        batch, steps, height, width = frames.size(0), frames.size(1), frames.size(2), frames.size(3)
        if height < 1 or width < 1:
            raise ValueError(f"frames must have at least one pixel, got {height}x{width}")
        rows, columns, top, left = resize_and_crop(height, width, self.resize_to, self.crop_to)
        images = frames.reshape(batch * steps, height, width, 3).permute(0, 3, 1, 2).float()
        images = functional.interpolate(
            images, size=[rows, columns], mode="bilinear", align_corners=False, antialias=True
        )
        images = images[:, :, top : top + self.crop_to[0], left : left + self.crop_to[1]]
        images = (images / 255.0 - self.mean) / self.std
        return images.reshape(batch, steps, 3, self.crop_to[0], self.crop_to[1]).permute(0, 2, 1, 3, 4)
