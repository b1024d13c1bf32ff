"""The same attention, made of other people's operators: what the fused operator is measured against.

Each takes a clip (N, C, T, H, W), channels last in memory, and offsets (N, 2k², T, H, W) in pixels, looks
one frame ahead and adds the clip; those with a softmax add nothing. Each is written as well as its operator
allows: all taps of all frames in one call, and nothing is copied that need not be.
"""

from __future__ import annotations

from collections.abc import Callable

import sifa
import torch
from sifa import reference
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torchvision.ops import deform_conv2d


def operator(clip: Tensor, offset: Tensor) -> Tensor:
    """The operator of this package."""
    return sifa.inter_frame_attention(clip, clip, offset, kernel_size_of(offset))


def plain(clip: Tensor, offset: Tensor) -> Tensor:
    """The plain PyTorch reference, written to be read and not to be fast."""
    return reference.inter_frame_attention(clip, clip, offset, kernel_size_of(offset))


def grid_sampled(clip: Tensor, offset: Tensor) -> Tensor:
    """All taps in one ``grid_sample``, whose zero padding is the deformable-convolution rule.

    Positions are float32, as under autocast: bfloat16 cannot tell the pixels of 28 columns apart well enough.
    """
    kernel_size = kernel_size_of(offset)
    height, width = clip.shape[-2:]
    y, x = reference.tap_positions(offset.float(), kernel_size).unbind(2)  # each (N, k², T, H, W)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    grid = grid.transpose(1, 2).flatten(0, 1).flatten(1, 2)  # (N·T, k²·H, W, 2)
    samples = functional.grid_sample(next_frames(clip).float(), grid, align_corners=True)
    return aggregated(clip, samples.to(clip.dtype).unflatten(2, (kernel_size**2, height)))


def deform_convolved(clip: Tensor, offset: Tensor) -> Tensor:
    """All taps as the k² outputs per channel of one depthwise ``deform_conv2d`` with one-hot weights.

    It is torchvision's, which has no bfloat16 on the CPU: like ``grid_sample`` it samples in float32.
    """
    kernel_size = kernel_size_of(offset)
    channels, taps = clip.shape[1], kernel_size**2
    one_hot = torch.eye(taps, device=clip.device).view(taps, 1, kernel_size, kernel_size)
    samples = deform_conv2d(
        next_frames(clip).float(),
        frames_of(offset).float(),
        one_hot.repeat(channels, 1, 1, 1),
        padding=kernel_size // 2,
    )
    return aggregated(clip, samples.to(clip.dtype).unflatten(1, (channels, taps)))


def operator_with_softmax(clip: Tensor, offset: Tensor) -> Tensor:
    """The operator as an attention in the narrower sense: weights sum to one, nothing is added."""
    return sifa.inter_frame_attention(
        clip, clip, offset, kernel_size_of(offset), softmax=True, residual=False
    )


def plain_with_softmax(clip: Tensor, offset: Tensor) -> Tensor:
    """The reference of :func:`operator_with_softmax`."""
    return reference.inter_frame_attention(
        clip, clip, offset, kernel_size_of(offset), softmax=True, residual=False
    )


def flex_attended(clip: Tensor, offset: Tensor, mask: BlockMask, attend: Callable[..., Tensor]) -> Tensor:
    """FlexAttention over the :func:`neighbourhoods` of the regular grid; the offsets are zeros and not read.

    A tap outside the frame keeps the logit 0 in the denominator of our softmax: as many keys of zeros as taps
    can fall outside are put behind the pixels, of which a query sees as many as taps of its own do.

    ``attend`` is ``torch.compile(flex_attention)``: by itself, because inductor cannot lower it behind the
    views that come before it here (torch 2.14.1, CPU).
    """
    del offset
    batch, channels, steps, height, width = clip.shape

    def tokens(frames: Tensor) -> Tensor:  # (N·T, heads = 1, H·W, C), a view
        return frames.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)

    keys = functional.pad(tokens(next_frames(clip)), (0, 0, 0, mask.seq_lengths[1] - height * width))
    output = attend(tokens(frames_of(clip)), keys, keys, block_mask=mask, scale=1 / channels)
    return output.view(batch, steps, height, width, channels).permute(0, 4, 1, 2, 3)


def neighbourhoods(height: int, width: int, kernel_size: int, device: str) -> BlockMask:
    """Which keys a pixel sees: its k×k neighbourhood, and a key of zeros for each of it outside the frame."""
    pixels, margin = height * width, kernel_size // 2

    def inside(size: int) -> Tensor:
        place = torch.arange(size, device=device)
        return (place + margin).clamp(max=size - 1) - (place - margin).clamp(min=0) + 1

    outside = (kernel_size**2 - torch.outer(inside(height), inside(width))).flatten()

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        rows, columns = query // width - key // width, query % width - key % width
        near = (rows.abs() <= margin) & (columns.abs() <= margin) & (key < pixels)
        return near | ((key >= pixels) & (key - pixels < outside[query]))

    keys = pixels + int(outside.max())
    return create_block_mask(seen, None, None, pixels, keys, device=device)


class PlainBlock(nn.Module):
    """:class:`sifa.SIFA` with its saliency and its convolution in torch's operators, and the same attention.

    Frames stay channels last, where torch's convolution is fastest.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(channels, 2 * kernel_size**2, 3, padding=1, bias=False)

    def offset(self, clip: Tensor) -> Tensor:
        """(N, 2k², T, H, W), in pixels."""
        frames, neighbours = frames_of(clip), next_frames(clip)
        saliency = torch.sigmoid(neighbours - frames) * neighbours
        return self.conv_offset(saliency).unflatten(0, (clip.shape[0], -1)).transpose(1, 2)

    def forward(self, clip: Tensor) -> Tensor:
        return operator(clip, self.offset(clip))


def kernel_size_of(offset: Tensor) -> int:
    """k, of offsets with 2k² channels."""
    return round((offset.shape[1] // 2) ** 0.5)


def frames_of(clip: Tensor) -> Tensor:
    """(N, C, T, H, W) as (N·T, C, H, W), without a copy if channels are last in memory."""
    return clip.transpose(1, 2).flatten(0, 1)


def next_frames(clip: Tensor) -> Tensor:
    """The frame that each attends to, as :func:`frames_of` gives them: the next one, of the last itself."""
    steps = clip.shape[2]
    index = (torch.arange(steps, device=clip.device) + 1).clamp(max=steps - 1)
    return clip.permute(0, 2, 3, 4, 1).index_select(1, index).flatten(0, 1).permute(0, 3, 1, 2)


def aggregated(clip: Tensor, samples: Tensor) -> Tensor:
    """What follows the samples (N·T, C, k², H, W): weights, weighted sum, residual."""
    frames = frames_of(clip)
    weights = (frames.unsqueeze(2) * samples).sum(1, keepdim=True) / clip.shape[1]
    output = frames + (weights * samples).sum(2)
    return output.unflatten(0, (clip.shape[0], -1)).transpose(1, 2)
