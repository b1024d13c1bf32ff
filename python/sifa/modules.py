"""Modules of clips: the SIFA block, and what stands beside it in the published networks."""

import torch
from torch import Tensor, nn

from .ops import inter_frame_attention, motion_offset


class SIFA(nn.Module):
    """Stand-alone inter-frame attention over a clip: (N, C, T, H, W) to the same shape.

    The block looks at frame ``n(t) = clamp(t + frame_shift, 0, T-1)`` from every frame ``t``, predicts where
    the k² taps of each pixel have moved from what differs between the two, and aggregates the samples found
    there (:func:`sifa.inter_frame_attention`). Offsets start at 0, so a new block attends to a regular grid.

    Args:
        channels: C.
        kernel_size: k, odd, from 1 to 9.
        dilation: distance between neighbouring taps in pixels, from 1 to 2²⁴.
        groups: number of groups of channels with weights of their own; divides ``channels``.
        frame_shift: 1 looks one frame ahead (the paper), -1 one back (causal).
        edge: ``"clamp"`` lets a frame without a neighbour attend to the nearest frame (the paper);
            ``"skip"`` gives it no aggregate (the released code).
        softmax: normalise the weights over the taps; neither the paper nor its code does.
        residual: add the input to the aggregate.
        residual_saliency: add the neighbour to the saliency, as the released code does.
        offset_from: what ``conv_offset`` sees: ``"saliency"`` is sigmoid(f_n − f_t) ⊙ f_n (the paper),
            ``"memory"`` is f_n, ``"difference"`` is f_n − f_t; ``"clip"`` is all of the clip, through a 3-D
            convolution that looks one frame ahead and back; ``"none"`` has no ``conv_offset`` and keeps the
            regular grid.

    Attributes:
        conv_offset: the bias-free 3×3 (``"clip"``: 3×3×3) convolution from C to 2k² channels, (Δy, Δx) per
            tap, in pixels; None with ``offset_from="none"``. From the saliency, the module itself is not
            called: :func:`sifa.motion_offset` takes its weight.

    A channels-last input is read in place; the output is ``torch.channels_last_3d``. Scriptable, compilable
    and exportable.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: ``forward`` got something other than (N, channels, T, H, W) floating point features.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        groups: int = 1,
        frame_shift: int = 1,
        edge: str = "clamp",
        softmax: bool = False,
        residual: bool = True,
        residual_saliency: bool = False,
        offset_from: str = "saliency",
    ) -> None:
        super().__init__()
        for valid, name, expected, given in (
            (channels >= 1, "channels", "at least 1", channels),
            (kernel_size in range(1, 10, 2), "kernel_size", "odd and between 1 and 9", kernel_size),
            (1 <= dilation <= 2**24, "dilation", "between 1 and 16777216", dilation),
            (
                groups >= 1 and channels % groups == 0,
                "groups",
                f"a divisor of the {channels} channels",
                groups,
            ),
            (edge in ("clamp", "skip"), "edge", '"clamp" or "skip"', repr(edge)),
            (
                offset_from in ("saliency", "memory", "difference", "clip", "none"),
                "offset_from",
                '"saliency", "memory", "difference", "clip" or "none"',
                repr(offset_from),
            ),
            (
                offset_from == "saliency" or not residual_saliency,
                "residual_saliency",
                'False unless offset_from is "saliency"',
                residual_saliency,
            ),
        ):
            if not valid:
                raise ValueError(f"SIFA: {name} must be {expected}, got {given}")
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.groups = groups
        self.frame_shift = frame_shift
        self.edge = edge
        self.softmax = softmax
        self.residual = residual
        self.residual_saliency = residual_saliency
        self.offset_from = offset_from
        self.conv_offset: nn.Conv2d | nn.Conv3d | None = None
        if offset_from != "none":
            convolution = nn.Conv3d if offset_from == "clip" else nn.Conv2d
            self.conv_offset = convolution(channels, 2 * kernel_size**2, 3, padding=1, bias=False)
            nn.init.zeros_(self.conv_offset.weight)

    def forward(self, clip: Tensor) -> Tensor:
        """Attend within ``clip`` (N, C, T, H, W); see the class."""
        if clip.dim() != 5 or clip.shape[1] != self.channels:
            raise RuntimeError(
                f"SIFA: clip must be 5-D (N, {self.channels}, T, H, W), got {list(clip.shape)}"
            )
        # The operator would convert it too, once as query and once as memory.
        clip = clip.contiguous(memory_format=torch.channels_last_3d)
        return self._attend(clip, clip, self.frame_shift, self.edge)

    def step(self, frame: Tensor, memory: Tensor, first: Tensor) -> Tensor:
        """What ``forward`` makes of the newest frame of a clip, given only the frame before it.

        Args:
            frame: (N, C, 1, H, W), the newest frame of each of N streams.
            memory: likewise, the frame before it.
            first: (N,) bool: the stream begins here, and its row of ``memory``, whatever it holds, is unused.

        Returns:
            (N, C, 1, H, W).

        Raises:
            RuntimeError: the block looks ahead, or ``frame`` is not (N, channels, 1, H, W).
        """
        if self.frame_shift != -1 or self.offset_from == "clip":
            raise RuntimeError(
                "SIFA: only a block that looks one frame back can be stepped (frame_shift=-1, and no "
                f'offset_from="clip"), got frame_shift={self.frame_shift}, offset_from="{self.offset_from}"'
            )
        if frame.dim() != 5 or frame.shape[1] != self.channels or frame.shape[2] != 1:
            raise RuntimeError(
                f"SIFA: frame must be 5-D (N, {self.channels}, 1, H, W), got {list(frame.shape)}"
            )
        alone = first.view(-1, 1, 1, 1, 1)
        frame = frame.contiguous(memory_format=torch.channels_last_3d)
        attended = self._attend(frame, torch.where(alone, frame, memory), 0, "clamp")
        if self.edge == "skip":
            attended = torch.where(alone, frame if self.residual else torch.zeros_like(frame), attended)
        return attended

    def offset(self, clip: Tensor) -> Tensor:
        """Return the offsets that ``forward`` uses: (N, 2k², T, H, W), in pixels."""
        return self._offset(clip, clip, self.frame_shift, self.edge)

    def _attend(self, query: Tensor, memory: Tensor, frame_shift: int, edge: str) -> Tensor:
        return inter_frame_attention(
            query,
            memory,
            self._offset(query, memory, frame_shift, edge),
            self.kernel_size,
            self.dilation,
            self.groups,
            None,
            frame_shift,
            edge,
            self.softmax,
            self.residual,
        )

    def _offset(self, query: Tensor, memory: Tensor, frame_shift: int, edge: str) -> Tensor:
        batch, channels, steps, height, width = query.shape
        taps = 2 * self.kernel_size * self.kernel_size
        if self.conv_offset is None:
            return query.new_zeros([1]).expand(batch, taps, steps, height, width)
        if self.offset_from == "clip":
            return self.conv_offset(query)
        if self.offset_from == "saliency":
            return motion_offset(
                query, memory, self.conv_offset.weight, frame_shift, edge, self.residual_saliency
            )
        # Picked and folded into the batch as (N, T, H, W, C): the frames never leave channels-last.
        index = (torch.arange(steps, device=query.device) + frame_shift).clamp(0, memory.shape[2] - 1)
        pixels = memory.permute(0, 2, 3, 4, 1)
        source = pixels.flatten(0, 1).permute(0, 3, 1, 2)
        if self.offset_from == "difference":
            neighbours = pixels.index_select(1, index).flatten(0, 1).permute(0, 3, 1, 2)
            source = neighbours - query.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
        frames = memory.shape[2] if self.offset_from == "memory" else steps
        offset = self.conv_offset(source).view(batch, frames, taps, height, width).permute(0, 2, 1, 3, 4)
        # From the memory alone, every frame is convolved once and its offsets are picked instead of it.
        return offset[:, :, index] if self.offset_from == "memory" else offset

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"groups={self.groups}, frame_shift={self.frame_shift}, edge={self.edge!r}, "
            f"softmax={self.softmax}, residual={self.residual}, "
            f"residual_saliency={self.residual_saliency}, offset_from={self.offset_from!r}"
        )


class GlobalContext(nn.Module):
    """Add to every pixel what two linear layers make of the mean feature: (N, C, T, H, W) to the same shape.

    ``x + fc2(relu(fc1(mean of x)))``, of the even blocks of SIFA-Net.

    Args:
        channels: C; the hidden layer has ``channels // 16``.
        over: ``"clip"`` takes the mean over T, H and W, as published; ``"frame"`` over H and W, so that no
            step depends on another.

    Raises:
        ValueError: ``over`` is neither.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, released code.
    """

    def __init__(self, channels: int, over: str = "clip") -> None:
        super().__init__()
        if over not in ("clip", "frame"):
            raise ValueError(f'global_context must be "clip", "frame" or None, got {over!r}')
        self.over_time = over == "clip"
        self.fc1 = nn.Linear(channels, channels // 16)
        self.fc2 = nn.Linear(channels // 16, channels)

    def forward(self, clip: Tensor) -> Tensor:
        """Add the context to ``clip`` (N, C, T, H, W)."""
        mean = clip.mean([3, 4])  # (N, C, T)
        if self.over_time:
            mean = mean.mean(2, keepdim=True)
        context = self.fc2(torch.relu(self.fc1(mean.transpose(1, 2))))
        return clip + context.transpose(1, 2)[..., None, None]

    def extra_repr(self) -> str:
        return f"over_time={self.over_time}"


class TemporalConvolution(nn.Module):
    """Add a convolution over three steps, zero-initialised: (N, C, T, H, W) to the same shape.

    Args:
        channels: C. The convolution has 3 C² weights and C biases, and pads with zero frames.

    Source: the released code of SIFA-Transformer, odd blocks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, clip: Tensor) -> Tensor:
        """Add the convolution of ``clip`` (N, C, T, H, W) to it."""
        # A matrix product per pixel and tap: in channels-last memory nothing is transposed for it.
        steps = clip.permute(0, 2, 3, 4, 1)
        before, here, after = self.conv.weight.unbind(2)
        mixed = nn.functional.linear(steps, here, self.conv.bias)
        from_before = nn.functional.linear(steps[:, :-1], before)
        from_after = nn.functional.linear(steps[:, 1:], after)
        nothing = torch.zeros_like(mixed[:, :1])
        mixed = mixed + torch.cat([nothing, from_before], 1) + torch.cat([from_after, nothing], 1)
        return clip + mixed.permute(0, 4, 1, 2, 3)
