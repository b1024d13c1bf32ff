"""The temporal operators that the paper compares SIFA with, for ablations: each takes its place in a network.

All are modules of clips, (N, C, T, H, W) to the same shape, and look like SIFA one step ahead or, where the
method says so, both ways. They are plain PyTorch, and no part of what is deployed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .modules import TemporalConvolution


def next_step(clip: Tensor) -> Tensor:
    """The frame after each of (N, C, T, H, W); the last is its own neighbour."""
    return torch.cat([clip[:, :, 1:], clip[:, :, -1:]], 2)


class TemporalShift(nn.Module):
    """Shift an eighth of the channels one step ahead and an eighth one back, in place of their features.

    Source: Lin et al., "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fold = channels // 8

    def forward(self, clip: Tensor) -> Tensor:
        """Shift within ``clip``; what comes from beyond its ends is zero."""
        ahead, back, rest = clip.split([self.fold, self.fold, clip.shape[1] - 2 * self.fold], 1)
        nothing = torch.zeros_like(ahead[:, :, :1])
        ahead = torch.cat([ahead[:, :, 1:], nothing], 2)
        back = torch.cat([nothing, back[:, :, :-1]], 2)
        return torch.cat([ahead, back, rest], 1)


class Correlation(nn.Module):
    """Add a projection of the inner products with a rigid k×k neighbourhood of the next frame.

    Rigid local attention: the window does not move with what it looks at. The projection, a 1×1 convolution
    from k² to C channels, starts at zero.

    Source: Wang et al., "Video Modeling with Correlation Networks", CVPR 2020.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.projection = nn.Conv3d(kernel_size**2, channels, 1)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def forward(self, clip: Tensor) -> Tensor:
        """Add the projected correlation to ``clip``."""
        height, width = clip.shape[3], clip.shape[4]
        margin = self.kernel_size // 2
        padded = functional.pad(next_step(clip), [margin, margin, margin, margin])
        products = []
        for i in range(self.kernel_size):
            for j in range(self.kernel_size):
                products.append((clip * padded[..., i : i + height, j : j + width]).mean(1))
        return clip + self.projection(torch.stack(products, 1))


class TemporalDifference(nn.Module):
    """Add a projection of the difference to the next frame; the 1×1 convolution starts at zero.

    Source: Wang et al., "TDN: Temporal Difference Networks for Efficient Action Recognition", CVPR 2021.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv3d(channels, channels, 1)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def forward(self, clip: Tensor) -> Tensor:
        """Add the projected difference to ``clip``."""
        return clip + self.projection(next_step(clip) - clip)


RIVALS: dict[str, Callable[[int], nn.Module]] = {
    "convolution": TemporalConvolution,
    "shift": TemporalShift,
    "correlation": Correlation,
    "difference": TemporalDifference,
}
"""By the name of the option ``temporal`` of :func:`sifa.create_model`."""
