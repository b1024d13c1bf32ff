"""Inter-frame attention as PyTorch sees it: the public function, and what the stable ABI cannot hold."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import reference
from .common import Check, cast, differentiate, dtype_name, register_autocast, without_autocast

FORWARD = "sifa::inter_frame_attention"
BACKWARD = "sifa::inter_frame_attention_backward"

SCHEMAS = {
    FORWARD: "(Tensor query, Tensor memory, Tensor offset, int kernel_size=3, int dilation=1, int groups=1, "
    'float? scale=None, int frame_shift=1, str edge="clamp", bool softmax=False, bool residual=True) '
    "-> Tensor",
    BACKWARD: "(Tensor grad_output, Tensor query, Tensor memory, Tensor offset, int kernel_size, "
    "int dilation, int groups, float? scale, int frame_shift, str edge, bool softmax, bool residual, "
    "bool deterministic) -> (Tensor, Tensor, Tensor)",
}


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
    """Let every pixel of a frame attend to a deformed k×k neighbourhood of an adjacent frame.

    Query frame ``t`` reads memory frame ``t + frame_shift``. Each of the k² taps is sampled bilinearly where
    ``offset`` moves it, weighted by its scaled inner product with the query pixel, and the weighted samples
    are summed. :mod:`sifa.reference` holds the equations and the same function in plain PyTorch.

    A clip attends to itself: pass it as both ``query`` and ``memory``. A stream passes its new frame and the
    cached one, with ``frame_shift=0``.

    Args:
        query: (N, C, T, H, W) features; float32, float64, float16 or bfloat16; H and W up to 2²⁴, and on
            CUDA up to 4096 channels per group. Like ``memory`` it is read in place when a pixel's channels
            are adjacent in memory (``torch.channels_last_3d``, slices of it, or a channels-last
            (N·T, C, H, W) tensor viewed as a clip), and converted once otherwise.
        memory: (N, C, M, H, W) features with the dtype and the device of ``query``.
        offset: (N, 2·kernel_size², T, H, W) in pixels, in the dtype of ``query`` or float32: channel ``2p``
            is Δy and ``2p+1`` is Δx of tap ``p``, taps row by row; all groups share them. A tap that is not
            strictly within one pixel of the frame, or not a number, contributes 0 and has the gradient 0.
        kernel_size: k, odd, from 1 to 9.
        dilation: distance between neighbouring taps in pixels, from 1 to 2²⁴.
        groups: number of groups of channels with weights of their own; divides C.
        scale: factor of the inner products, finite; ``groups / C`` if None.
        frame_shift: distance from a query frame to the memory frame it reads: 1 in the paper, -1 is causal.
        edge: for ``t + frame_shift`` outside [0, M): ``"clamp"`` reads the nearest memory frame, as in the
            paper; ``"skip"`` gives that frame no aggregate, as in the paper's released code.
        softmax: normalise the weights over the k² taps; a tap outside the frame keeps the logit 0.
        residual: add ``query`` to the aggregate.

    Returns:
        (N, C, T, H, W) in the dtype of ``query``, in ``torch.channels_last_3d`` memory format.

    Differentiable once in ``query``, ``memory`` and ``offset``. Under autocast, features are computed in the
    active autocast dtype and offsets in float32. It works in TorchScript, ``torch.compile`` and
    ``torch.export``.

    Raises:
        RuntimeError: an argument does not fit; the message names it, what was expected and what was given.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022.
    """
    return torch.ops.sifa.inter_frame_attention(
        query,
        memory,
        offset,
        kernel_size,
        dilation,
        groups,
        scale,
        frame_shift,
        edge,
        softmax,
        residual,
    )


# --- Without a library -------------------------------------------------------------------------------------


def _fallback_forward(query: Tensor, memory: Tensor, offset: Tensor, *arguments: Any) -> Tensor:
    _check_arguments(query, memory, offset, *arguments)
    output = reference.inter_frame_attention(query, memory, offset, *arguments)
    return output.contiguous(memory_format=torch.channels_last_3d)


def _fallback_backward(
    grad_output: Tensor, query: Tensor, memory: Tensor, offset: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    options = arguments[:-1]  # deterministic is last, and plain PyTorch follows the global flag
    _check_arguments(query, memory, offset, *options)
    return differentiate(
        lambda *inputs: reference.inter_frame_attention(*inputs, *options),
        (query, memory, offset),
        grad_output,
    )


def _check_arguments(
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
) -> None:
    """Check what kernels/checks.cpp checks, in the same words."""

    check = Check("inter_frame_attention")
    check.rank(query, "query", "(N, C, T, H, W)")
    check.rank(memory, "memory", "(N, C, M, H, W)")
    check.rank(offset, "offset", "(N, 2*kernel_size^2, T, H, W)")
    channels, steps, height, width = query.shape[1:]

    check(kernel_size in range(1, 10, 2), "kernel_size", "be odd and between 1 and 9", kernel_size)
    check(dilation >= 1, "dilation", "be at least 1", dilation)
    check(dilation <= 2**24, "dilation", "be at most 16777216", dilation)
    check(groups >= 1, "groups", "be at least 1", groups)
    check(channels % groups == 0, "groups", f"divide the {channels} channels of query", groups)
    check(scale is None or math.isfinite(scale), "scale", "be finite", scale)
    check.edge(edge)

    check.device(memory, "memory", query)
    check.device(offset, "offset", query)
    # A symbolic size is left to the kernel: a check here would become a constraint of the exported program.
    if isinstance(height, int) and isinstance(width, int):
        fits = height <= 2**24 and width <= 2**24
        check(fits, "query", "have a height and a width of at most 16777216", f"{height}x{width}")
    check.feature_dtype(query)
    check.dtype(memory, "memory", query)
    fits = offset.dtype in (query.dtype, torch.float32)
    check(fits, "offset", "have the dtype of query or float32", dtype_name(offset))

    check.memory_size(memory, query)
    check.size(offset, "offset", 0, "batch size", query)
    taps = 2 * kernel_size * kernel_size
    check(offset.shape[1] == taps, "offset", f"have 2*kernel_size^2 = {taps} channels", offset.shape[1])
    check.size(offset, "offset", 2, "frames", query)
    check.height_and_width(offset, "offset", query)
    check.has_a_frame(memory, query, edge)


FALLBACKS: dict[str, Callable[..., Any]] = {FORWARD: _fallback_forward, BACKWARD: _fallback_backward}


# --- Shape inference, autograd, autocast, FLOPs -----------------------------------------------------------


def _fake_forward(query: Tensor, memory: Tensor, offset: Tensor, *arguments: Any) -> Tensor:
    _check_arguments(query, memory, offset, *arguments)
    return torch.empty_like(query, memory_format=torch.channels_last_3d)


def _fake_backward(
    grad_output: Tensor, query: Tensor, memory: Tensor, offset: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(tensor, memory_format=torch.channels_last_3d) for tensor in (query, memory, offset)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    # The stable ABI does not show the global flag to the kernel, so it travels as an argument.
    deterministic = torch.are_deterministic_algorithms_enabled()
    gradients = torch.ops.sifa.inter_frame_attention_backward(
        grad_output, *ctx.saved_tensors, *ctx.arguments, deterministic
    )
    return (*gradients, *(None for _ in ctx.arguments))


def _double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "inter_frame_attention: the second derivative is not implemented; differentiate "
        "sifa.reference.inter_frame_attention, which is plain PyTorch, to any order instead"
    )


def _autocast_kernel(device_type: str) -> Any:
    """Return the kernel that casts features to the active autocast dtype and offsets to float32.

    ``torch.library.register_autocast`` would cast offsets too; positions beyond 256 pixels need more than
    bfloat16 to be exact.
    """

    def kernel(query: Tensor, memory: Tensor, offset: Tensor, *arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with without_autocast(device_type):
            return torch.ops.sifa.inter_frame_attention(
                cast(query, dtype), cast(memory, dtype), cast(offset, torch.float32), *arguments
            )

    return kernel


def _forward_flops(query_shape: tuple[int, ...], *arguments: Any, kernel_size: int = 3, **_: Any) -> int:
    """Return 12·k²·C per query pixel, counting a multiply-add as 2 as PyTorch's counter does.

    A tap costs 6 multiply-adds per channel: 4 corners of its sample, 1 in its weight, 1 in the aggregate.
    """
    kernel_size = arguments[2] if len(arguments) > 2 else kernel_size
    return 12 * kernel_size**2 * math.prod(query_shape)


def _backward_flops(grad_shape: tuple[int, ...], *arguments: Any, **_: Any) -> int:
    """Return 34·k²·C per query pixel.

    A tap costs 17 multiply-adds per channel: 4 to sample again, 1 for its weight and 1 for the weight's
    gradient, 1 towards the query, 2 for the sample's gradient, and that times 4 corners towards the memory
    and 4 towards the position.
    """
    kernel_size = arguments[3]
    return 34 * kernel_size**2 * math.prod(grad_shape)


def register() -> None:
    """Add to the loaded operators what the library does not bring."""
    torch.library.register_fake(FORWARD, _fake_forward)
    torch.library.register_fake(BACKWARD, _fake_backward)
    torch.library.register_autograd(FORWARD, _backward, setup_context=_setup_context)
    torch.library.register_autograd(BACKWARD, _double_backward)
    register_autocast("inter_frame_attention", _autocast_kernel)
    register_flop_formula(torch.ops.sifa.inter_frame_attention)(_forward_flops)
    register_flop_formula(torch.ops.sifa.inter_frame_attention_backward)(_backward_flops)
