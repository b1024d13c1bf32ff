"""The operators in a page of plain PyTorch, written to be read beside their equations.

The equations are those of "Stand-Alone Inter-Frame Attention in Video Models" (CVPR 2022), for query
features f (N, C, T, H, W), memory features g (N, C, M, H, W) and offsets o (N, 2k², T, H, W):

    neighbour  n_t  = g_clamp(t + frame_shift, 0, M - 1), or, with edge="skip", zeros outside [0, M)
    tap        u_tp = (y + (i - (k-1)/2)·dilation + o_t[2p],  x + (j - (k-1)/2)·dilation + o_t[2p+1])
               with p = i·k + j
    sample     k'_tp = bilinear value of n_t at u_tp; zero unless -1 < y < H and -1 < x < W
    weight     w_tp = scale · <f_t, k'_tp> per group of C/groups channels, then optionally softmax over p
    aggregate  A_t  = Σ_p w_tp · k'_tp
    output     Y_t  = f_t + A_t

The offsets come from the same frames:

    saliency   m_t  = sigmoid(n_t - f_t) · n_t, or, with residual, that plus n_t
    offset     o_t  = the 3×3 convolution of m_t, with a padding of one zero and no bias

It runs on any device and dtype that PyTorch has, is differentiable by autograd, and stores every sample:
it is the documentation and the oracle of the fused operators, and what runs where there is no binary.
"""

import torch
from torch import Tensor


def inter_frame_attention(
    query: Tensor,
    memory: Tensor,
    offset: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    groups: int = 1,
    scale: float | None = None,
    frame_shift: int = 1,
    edge: str = "clamp",
    softmax: bool = False,
    residual: bool = True,
) -> Tensor:
    """Compute what :func:`sifa.inter_frame_attention` computes; see there for arguments and shapes.

    Arithmetic is float64 for float64 features and float32 otherwise; the result has the dtype and the
    shape of ``query``. Arguments are not checked.
    """
    features, neighbours, positions = _prepare(
        query, memory, offset, kernel_size, dilation, frame_shift, edge
    )
    samples = _sample(neighbours, positions)
    weights = _weights(features, samples, groups, scale, softmax)
    aggregate = (weights.unsqueeze(2) * samples.unflatten(1, (groups, -1))).sum(3).flatten(1, 2)
    output = features + aggregate if residual else aggregate
    return output.to(query.dtype)


def motion_saliency(
    query: Tensor, memory: Tensor, frame_shift: int = 1, edge: str = "clamp", residual: bool = False
) -> Tensor:
    """Compute what :func:`sifa.motion_saliency` computes; see there for arguments and shapes."""
    return _saliency(query, memory, frame_shift, edge, residual).to(query.dtype)


def motion_offset(
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    frame_shift: int = 1,
    edge: str = "clamp",
    residual: bool = False,
) -> Tensor:
    """Compute what :func:`sifa.motion_offset` computes; see there for arguments and shapes."""
    saliency = _saliency(query, memory, frame_shift, edge, residual)
    weight = weight.to(saliency.dtype)
    if saliency.numel() == 0:  # PyTorch convolves no frames without pixels or channels, but it adds them up
        offset = torch.einsum("ncthw,oc->nothw", saliency, weight.sum((2, 3)))
    else:
        # A 2-D convolution of every frame.
        offset = torch.nn.functional.conv3d(saliency, weight.unsqueeze(2), padding=(0, 1, 1))
    return offset.to(query.dtype)


def attention_weights(
    query: Tensor,
    memory: Tensor,
    offset: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    groups: int = 1,
    scale: float | None = None,
    frame_shift: int = 1,
    edge: str = "clamp",
    softmax: bool = False,
) -> Tensor:
    """Return the weights w, (N, groups, k², T, H, W); float64 for float64 features, float32 otherwise."""
    features, neighbours, positions = _prepare(
        query, memory, offset, kernel_size, dilation, frame_shift, edge
    )
    return _weights(features, _sample(neighbours, positions), groups, scale, softmax)


def neighbour_frames(memory: Tensor, num_steps: int, frame_shift: int = 1, edge: str = "clamp") -> Tensor:
    """Return the frame that each of ``num_steps`` query frames attends to: (N, C, num_steps, H, W).

    With ``edge="skip"`` a query frame whose neighbour does not exist gets a frame of zeros: all its samples,
    hence its aggregate, are then zero.
    """
    num_frames = memory.shape[2]
    index = torch.arange(num_steps, device=memory.device) + frame_shift
    if edge == "skip":
        blank = memory.new_zeros((*memory.shape[:2], 1, *memory.shape[3:]))
        memory = torch.cat([memory, blank], dim=2)
        index = torch.where((index >= 0) & (index < num_frames), index, num_frames)
    return memory.index_select(2, index.clamp(0, memory.shape[2] - 1))


def tap_positions(offset: Tensor, kernel_size: int = 3, dilation: int = 1) -> Tensor:
    """Return where every tap reads, (N, k², 2, T, H, W): (y, x) in pixels of the neighbouring frame.

    ``offset`` is (N, 2k², T, H, W) and holds (Δy, Δx) per tap, taps row by row.
    """
    height, width = offset.shape[-2:]
    steps = torch.arange(kernel_size, device=offset.device, dtype=offset.dtype)
    steps = (steps - (kernel_size - 1) / 2) * dilation
    taps = torch.cartesian_prod(steps, steps).view(-1, 2, 1, 1, 1)
    y = torch.arange(height, device=offset.device, dtype=offset.dtype).view(-1, 1).expand(height, width)
    x = torch.arange(width, device=offset.device, dtype=offset.dtype).expand(height, width)
    pixels = torch.stack([y, x]).unsqueeze(1)
    return pixels + taps + offset.unflatten(1, (-1, 2))


def _saliency(query: Tensor, memory: Tensor, frame_shift: int, edge: str, residual: bool) -> Tensor:
    """Return m in the type it is computed in; without a neighbour, which is zeros then, it is 0."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    neighbours = neighbour_frames(memory.to(dtype), query.shape[2], frame_shift, edge)
    saliency = torch.sigmoid(neighbours - query.to(dtype)) * neighbours
    return saliency + neighbours if residual else saliency


def _prepare(
    query: Tensor,
    memory: Tensor,
    offset: Tensor,
    kernel_size: int,
    dilation: int,
    frame_shift: int,
    edge: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, n and u of the equations in the type they are computed in."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    neighbours = neighbour_frames(memory.to(dtype), query.shape[2], frame_shift, edge)
    return query.to(dtype), neighbours, tap_positions(offset.to(dtype), kernel_size, dilation)


def _sample(frames: Tensor, positions: Tensor) -> Tensor:
    """Read (N, C, T, H, W) ``frames`` at (N, P, 2, T, H, W) ``positions``: (N, C, P, T, H, W)."""
    batch, _, num_steps, height, width = frames.shape
    y, x = positions.unbind(2)
    # A NaN fails every comparison. What is dropped is replaced before it is used, so that its gradient is 0.
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = y.where(inside, 0), x.where(inside, 0)
    top, left = y.detach().floor(), x.detach().floor()
    n = torch.arange(batch, device=frames.device).view(-1, 1, 1, 1, 1)
    t = torch.arange(num_steps, device=frames.device).view(-1, 1, 1)
    pixels = frames.permute(0, 2, 3, 4, 1)
    total = pixels.new_zeros(())
    for row, row_share in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_share in ((left, 1 - (x - left)), (left + 1, x - left)):
            counts = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            corner = pixels[n, t, row.where(counts, 0).long(), column.where(counts, 0).long()]
            share = (row_share * column_share).where(counts, 0).unsqueeze(-1)
            total = total + share * corner.where(counts.unsqueeze(-1), 0)
    return total.permute(0, 5, 1, 2, 3, 4)


def _weights(features: Tensor, samples: Tensor, groups: int, scale: float | None, softmax: bool) -> Tensor:
    """Return w, (N, groups, P, T, H, W); a dropped tap has the logit <f, 0> = 0 in the softmax."""
    scale = groups / features.shape[1] if scale is None else scale
    features, samples = features.unflatten(1, (groups, -1)), samples.unflatten(1, (groups, -1))
    logits = scale * (features.unsqueeze(3) * samples).sum(2)
    return logits.softmax(dim=2) if softmax else logits
