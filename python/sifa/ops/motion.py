"""The motion saliency and the offsets made of it, as PyTorch sees them.

``sifa::motion_saliency``, its backward and ``sifa::motion_offset``, the convolution of the saliency, have
kernels on the CPU and on CUDA. On the CPU ``sifa::motion_offset`` is one pass, since writing the saliency to
memory and convolving it into the few channels of an offset would cost more than its arithmetic, and so is
each half of its backward; on CUDA both run the saliency's kernels and PyTorch's convolution.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import reference
from .common import Check, cast, differentiate, register_autocast, shape_name, without_autocast

SALIENCY = "sifa::motion_saliency"
SALIENCY_BACKWARD = "sifa::motion_saliency_backward"
OFFSET = "sifa::motion_offset"
OFFSET_BACKWARD_FEATURES = "sifa::motion_offset_backward_features"
OFFSET_BACKWARD_WEIGHT = "sifa::motion_offset_backward_weight"

SCHEMAS = {
    SALIENCY: '(Tensor query, Tensor memory, int frame_shift=1, str edge="clamp", bool residual=False) '
    "-> Tensor",
    SALIENCY_BACKWARD: "(Tensor grad_output, Tensor query, Tensor memory, int frame_shift, str edge, "
    "bool residual) -> (Tensor, Tensor)",
    OFFSET: "(Tensor query, Tensor memory, Tensor weight, int frame_shift=1, "
    'str edge="clamp", bool residual=False) -> Tensor',
    OFFSET_BACKWARD_FEATURES: "(Tensor grad_output, Tensor query, Tensor memory, Tensor weight, "
    "int frame_shift, str edge, bool residual) -> (Tensor, Tensor)",
    OFFSET_BACKWARD_WEIGHT: "(Tensor grad_output, Tensor query, Tensor memory, int frame_shift, str edge, "
    "bool residual) -> Tensor",
}


def motion_saliency(
    query: Tensor, memory: Tensor, frame_shift: int = 1, edge: str = "clamp", residual: bool = False
) -> Tensor:
    """Return what moves between a frame and an adjacent one: sigmoid(f_n − f_t) ⊙ f_n.

    f_t is frame ``t`` of the query, f_n the memory frame ``t + frame_shift``; a clip passes itself as both.

    Args:
        query: (N, C, T, H, W) features; float32, float64, float16 or bfloat16. Like ``memory`` it is read in
            place when a pixel's channels are adjacent in memory (``torch.channels_last_3d``, slices of it, or
            a channels-last (N·T, C, H, W) tensor viewed as a clip), and converted once otherwise.
        memory: (N, C, M, H, W) features with the dtype and the device of ``query``.
        frame_shift: distance from a query frame to the memory frame it reads: 1 in the paper, -1 is causal.
        edge: for ``t + frame_shift`` outside [0, M): ``"clamp"`` reads the nearest memory frame, as in the
            paper; with ``"skip"`` that frame's saliency is 0.
        residual: add f_n, as the paper's released code does.

    Returns:
        (N, C, T, H, W) in the dtype of ``query``, in ``torch.channels_last_3d`` memory format. Computed in
        float32, for float64 in float64.

    Differentiable once in ``query`` and ``memory``, deterministically. Under autocast, computed in the active
    autocast dtype. It works in TorchScript, ``torch.compile`` and ``torch.export``.

    Raises:
        RuntimeError: an argument does not fit; the message names it, what was expected and what was given.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, section 3.
    """
    return torch.ops.sifa.motion_saliency(query, memory, frame_shift, edge, residual)


def motion_offset(
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    frame_shift: int = 1,
    edge: str = "clamp",
    residual: bool = False,
) -> Tensor:
    """Predict the offsets of :func:`sifa.inter_frame_attention`: a 3×3 convolution of the motion saliency.

    One operator on every device, so that what is traced on one runs on the others. On the CPU it never writes
    the saliency to memory; on CUDA it does, and leaves the convolution to cuDNN.

    Args:
        query: (N, C, T, H, W) features, as :func:`motion_saliency` takes them; so are the other arguments.
        memory: (N, C, M, H, W) features with the dtype and the device of ``query``.
        weight: (O, C, 3, 3) with the dtype and the device of ``query``, in any memory format; O = 2k² for
            offsets. The convolution pads with one zero and has no bias.
        frame_shift: distance from a query frame to the memory frame it reads.
        edge: ``"clamp"`` or ``"skip"``.
        residual: add the memory frame to the saliency.

    Returns:
        (N, O, T, H, W) in the dtype of ``query``. On the CPU accumulated in float32 (float64 for float64),
        and in ``torch.channels_last_3d`` memory format. The CPU kernel is Winograd's F(4×4, 3×3): its
        rounding errors are about twice those of PyTorch's convolution, and a saliency that is not finite
        reaches all offsets of the 4×4 tiles that it is in or beside, not its 3×3 neighbourhood alone; such
        offsets drop their taps. Gradients are computed in the same way, and err three to five times as much
        as PyTorch's. On CUDA the saliency is rounded to the dtype, and a float32 convolution is one in TF32
        unless ``torch.backends.cudnn.allow_tf32`` is off.

    Differentiable once in ``query``, ``memory`` and ``weight``, on the CPU deterministically. Under autocast,
    computed in the active autocast dtype. It works in TorchScript, ``torch.compile`` and ``torch.export``.

    Raises:
        RuntimeError: an argument does not fit; the message names it, what was expected and what was given.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022, section 3.
    """
    return torch.ops.sifa.motion_offset(query, memory, weight, frame_shift, edge, residual)


# --- Without a library -------------------------------------------------------------------------------------


def _fallback_saliency(query: Tensor, memory: Tensor, *arguments: Any) -> Tensor:
    _check_saliency(query, memory, *arguments)
    saliency = reference.motion_saliency(query, memory, *arguments)
    return saliency.contiguous(memory_format=torch.channels_last_3d)


def _fallback_saliency_backward(
    grad_output: Tensor, query: Tensor, memory: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    _check_saliency(query, memory, *arguments)
    return differentiate(
        lambda *inputs: reference.motion_saliency(*inputs, *arguments), (query, memory), grad_output
    )


def _fallback_offset(query: Tensor, memory: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    _check_offset(query, memory, weight, *arguments)
    offset = reference.motion_offset(query, memory, weight, *arguments)
    return offset.contiguous(memory_format=torch.channels_last_3d)


def _fallback_offset_backward_features(
    grad_output: Tensor, query: Tensor, memory: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    _check_offset_backward(grad_output, query, memory, weight, *arguments)

    def offset(query: Tensor, memory: Tensor) -> Tensor:
        return reference.motion_offset(query, memory, weight, *arguments)

    return differentiate(offset, (query, memory), grad_output)


def _fallback_offset_backward_weight(
    grad_output: Tensor, query: Tensor, memory: Tensor, *arguments: Any
) -> Tensor:
    _check_offset_backward(grad_output, query, memory, None, *arguments)
    weight = query.new_zeros(_weight_shape(grad_output, query))
    return differentiate(
        lambda weight: reference.motion_offset(query, memory, weight, *arguments), (weight,), grad_output
    )[0]


FALLBACKS: dict[str, Callable[..., Any]] = {
    SALIENCY: _fallback_saliency,
    SALIENCY_BACKWARD: _fallback_saliency_backward,
    OFFSET: _fallback_offset,
    OFFSET_BACKWARD_FEATURES: _fallback_offset_backward_features,
    OFFSET_BACKWARD_WEIGHT: _fallback_offset_backward_weight,
}


def _check(check: Check, query: Tensor, memory: Tensor, edge: str) -> None:
    check.rank(query, "query", "(N, C, T, H, W)")
    check.rank(memory, "memory", "(N, C, M, H, W)")
    check.edge(edge)
    check.device(memory, "memory", query)
    check.feature_dtype(query)
    check.dtype(memory, "memory", query)
    check.memory_size(memory, query)
    check.has_a_frame(memory, query, edge)


def _check_saliency(
    query: Tensor, memory: Tensor, frame_shift: int = 1, edge: str = "clamp", residual: bool = False
) -> None:
    _check(Check("motion_saliency"), query, memory, edge)


def _check_offset(
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    frame_shift: int = 1,
    edge: str = "clamp",
    residual: bool = False,
) -> None:
    check = Check("motion_offset")
    _check(check, query, memory, edge)
    _check_weight(check, weight, query)


def _check_weight(check: Check, weight: Tensor, query: Tensor) -> None:
    check.rank(weight, "weight", "(O, C, 3, 3)")
    check.device(weight, "weight", query)
    check.dtype(weight, "weight", query)
    channels = query.shape[1]
    fits = weight.shape[0] >= 1 and weight.shape[1] == channels and tuple(weight.shape[2:]) == (3, 3)
    expected = f"have the shape (O, C, 3, 3) with at least 1 output and the {channels} channels of query"
    check(fits, "weight", expected, shape_name(weight))


def _check_offset_backward(
    grad_output: Tensor,
    query: Tensor,
    memory: Tensor,
    weight: Tensor | None,
    frame_shift: int,
    edge: str,
    residual: bool,
) -> None:
    check = Check("motion_offset")
    _check(check, query, memory, edge)
    check.rank(grad_output, "grad_output", "(N, O, T, H, W)")
    check.device(grad_output, "grad_output", query)
    check.dtype(grad_output, "grad_output", query)
    check.size(grad_output, "grad_output", 0, "batch size", query)
    check.size(grad_output, "grad_output", 2, "frames", query)
    check.height_and_width(grad_output, "grad_output", query)
    given = grad_output.shape[1]
    if weight is None:
        check(given >= 1, "grad_output", "have at least 1 output", given)
    else:
        _check_weight(check, weight, query)
        outputs = weight.shape[0]
        check(given == outputs, "grad_output", f"have the outputs of weight ({outputs})", given)


# --- Shape inference, autograd, autocast, FLOPs -----------------------------------------------------------


def _fake_saliency(query: Tensor, memory: Tensor, *arguments: Any) -> Tensor:
    _check_saliency(query, memory, *arguments)
    return torch.empty_like(query, memory_format=torch.channels_last_3d)


def _fake_saliency_backward(
    grad_output: Tensor, query: Tensor, memory: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor, memory_format=torch.channels_last_3d) for tensor in (query, memory))


def _fake_offset(query: Tensor, memory: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    _check_offset(query, memory, weight, *arguments)
    batch, _, steps, height, width = query.shape
    shape = (batch, weight.shape[0], steps, height, width)
    return torch.empty(shape, dtype=query.dtype, device=query.device, memory_format=torch.channels_last_3d)


def _fake_offset_backward_features(
    grad_output: Tensor, query: Tensor, memory: Tensor, weight: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    _check_offset_backward(grad_output, query, memory, weight, *arguments)
    return tuple(torch.empty_like(tensor, memory_format=torch.channels_last_3d) for tensor in (query, memory))


def _fake_offset_backward_weight(
    grad_output: Tensor, query: Tensor, memory: Tensor, *arguments: Any
) -> Tensor:
    _check_offset_backward(grad_output, query, memory, None, *arguments)
    return query.new_empty(_weight_shape(grad_output, query))


def _weight_shape(grad_output: Tensor, query: Tensor) -> tuple[int, ...]:
    return grad_output.shape[1], query.shape[1], 3, 3


def _setup_saliency(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.arguments = inputs[2:]


def _saliency_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.sifa.motion_saliency_backward(grad_output, *ctx.saved_tensors, *ctx.arguments)
    return (*gradients, None, None, None)


def _double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "motion_saliency and motion_offset: the second derivative is not implemented; differentiate "
        "sifa.reference.motion_saliency or motion_offset, which are plain PyTorch, to any order instead"
    )


def _setup_offset(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.arguments = inputs[3:]


def _offset_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    query, memory, weight = ctx.saved_tensors
    wants_features = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
    wants_weight = ctx.needs_input_grad[2]
    grad_query = grad_memory = grad_weight = None
    if grad_output.device.type == "cpu":
        if wants_features:
            grad_query, grad_memory = torch.ops.sifa.motion_offset_backward_features(
                grad_output, query, memory, weight, *ctx.arguments
            )
        if wants_weight:
            grad_weight = torch.ops.sifa.motion_offset_backward_weight(
                grad_output, query, memory, *ctx.arguments
            )
    else:
        grad_query, grad_memory, grad_weight = _composed_offset_backward(
            grad_output, query, memory, weight, ctx.arguments, wants_features, wants_weight
        )
    return grad_query, grad_memory, grad_weight, None, None, None


def _composed_offset_backward(
    grad_output: Tensor,
    query: Tensor,
    memory: Tensor,
    weight: Tensor,
    arguments: tuple[Any, ...],
    wants_features: bool,
    wants_weight: bool,
) -> tuple[Tensor | None, ...]:
    if query.numel() == 0:  # no convolution of nothing
        return tuple(torch.zeros_like(tensor) for tensor in (query, memory, weight))
    batch, channels, steps, height, width = query.shape

    def fold(tensor: Tensor) -> Tensor:
        frames = tensor.contiguous(memory_format=torch.channels_last_3d).transpose(1, 2)
        return frames.reshape(batch * steps, tensor.shape[1], height, width)

    grad_query = grad_memory = None
    with without_autocast(query.device.type):  # it may be on for the backward alone
        saliency = torch.ops.sifa.motion_saliency(query, memory, *arguments)
        grad_saliency, grad_weight, _ = torch.ops.aten.convolution_backward(
            fold(grad_output),
            fold(saliency),
            weight,
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [wants_features, wants_weight, False],
        )
        if wants_features:
            grad_saliency = grad_saliency.view(batch, steps, channels, height, width).transpose(1, 2)
            grad_query, grad_memory = torch.ops.sifa.motion_saliency_backward(
                grad_saliency, query, memory, *arguments
            )
    return grad_query, grad_memory, grad_weight


def _saliency_autocast(device_type: str) -> Any:
    def kernel(query: Tensor, memory: Tensor, *arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with without_autocast(device_type):
            return torch.ops.sifa.motion_saliency(cast(query, dtype), cast(memory, dtype), *arguments)

    return kernel


def _offset_autocast(device_type: str) -> Any:
    def kernel(query: Tensor, memory: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        dtype = torch.get_autocast_dtype(device_type)
        with without_autocast(device_type):
            return torch.ops.sifa.motion_offset(
                cast(query, dtype), cast(memory, dtype), cast(weight, dtype), *arguments
            )

    return kernel


def _no_flops(*shapes: Any, **_: Any) -> int:
    """Return 0: PyTorch's counter does not count elementwise arithmetic."""
    return 0


def _offset_flops(
    query_shape: tuple[int, ...],
    memory_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *arguments: Any,
    **_: Any,
) -> int:
    """Return what the counter says of the convolution: 2·9·C·O per pixel."""
    batch, _channels, steps, height, width = query_shape
    outputs, channels, rows, columns = weight_shape
    return 2 * batch * steps * height * width * outputs * channels * rows * columns


def _offset_backward_flops(
    grad_output_shape: tuple[int, ...], query_shape: tuple[int, ...], *shapes: Any, **_: Any
) -> int:
    """Return as much for either half of the backward."""
    weight_shape = (grad_output_shape[1], query_shape[1], 3, 3)
    return _offset_flops(query_shape, query_shape, weight_shape)


def register() -> None:
    """Add to the loaded operators what the library does not bring."""
    torch.library.register_fake(SALIENCY, _fake_saliency)
    torch.library.register_fake(SALIENCY_BACKWARD, _fake_saliency_backward)
    torch.library.register_fake(OFFSET, _fake_offset)
    torch.library.register_fake(OFFSET_BACKWARD_FEATURES, _fake_offset_backward_features)
    torch.library.register_fake(OFFSET_BACKWARD_WEIGHT, _fake_offset_backward_weight)
    torch.library.register_autograd(SALIENCY, _saliency_backward, setup_context=_setup_saliency)
    torch.library.register_autograd(SALIENCY_BACKWARD, _double_backward)
    torch.library.register_autograd(OFFSET, _offset_backward, setup_context=_setup_offset)
    torch.library.register_autograd(OFFSET_BACKWARD_FEATURES, _double_backward)
    torch.library.register_autograd(OFFSET_BACKWARD_WEIGHT, _double_backward)
    register_autocast("motion_saliency", _saliency_autocast)
    register_autocast("motion_offset", _offset_autocast)
    register_flop_formula(torch.ops.sifa.motion_saliency)(_no_flops)
    register_flop_formula(torch.ops.sifa.motion_saliency_backward)(_no_flops)
    register_flop_formula(torch.ops.sifa.motion_offset)(_offset_flops)
    register_flop_formula(torch.ops.sifa.motion_offset_backward_features)(_offset_backward_flops)
    register_flop_formula(torch.ops.sifa.motion_offset_backward_weight)(_offset_backward_flops)
