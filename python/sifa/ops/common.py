"""What the operators share in Python: argument checks in the words of kernels/checks.cpp, and autocast."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class Check:
    """Checks of one operator's arguments; each raises RuntimeError: what must be, and what was given."""

    def __init__(self, operator: str) -> None:
        self.operator = operator

    def __call__(self, condition: Any, name: str, expected: str, given: object) -> None:
        torch._check(condition, lambda: f"{self.operator}: {name} must {expected}, got {given}")

    def rank(self, tensor: Tensor, name: str, axes: str) -> None:
        number = axes.count(",") + 1
        self(tensor.dim() == number, name, f"be {number}-D {axes}", shape_name(tensor))

    def edge(self, edge: str) -> None:
        self(edge in ("clamp", "skip"), "edge", 'be "clamp" or "skip"', f'"{edge}"')

    def device(self, tensor: Tensor, name: str, query: Tensor) -> None:
        expected = f"be on the device of query ({query.device})"
        self(tensor.device == query.device, name, expected, tensor.device)

    def feature_dtype(self, query: Tensor) -> None:
        allowed = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        expected = "be float32, float64, float16 or bfloat16"
        self(query.dtype in allowed, "query", expected, dtype_name(query))

    def dtype(self, tensor: Tensor, name: str, query: Tensor) -> None:
        expected = f"have the dtype of query ({dtype_name(query)})"
        self(tensor.dtype == query.dtype, name, expected, dtype_name(tensor))

    def size(self, tensor: Tensor, name: str, axis: int, what: str, query: Tensor) -> None:
        size = query.shape[axis]
        self(tensor.shape[axis] == size, name, f"have the {what} of query ({size})", tensor.shape[axis])

    def height_and_width(self, tensor: Tensor, name: str, query: Tensor) -> None:
        height, width = query.shape[3:]
        self(
            tensor.shape[3] == height and tensor.shape[4] == width,
            name,
            f"have the height and width of query ({height}x{width})",
            f"{tensor.shape[3]}x{tensor.shape[4]}",
        )

    def memory_size(self, memory: Tensor, query: Tensor) -> None:
        self.size(memory, "memory", 0, "batch size", query)
        self.size(memory, "memory", 1, "channels", query)
        self.height_and_width(memory, "memory", query)

    def has_a_frame(self, memory: Tensor, query: Tensor, edge: str) -> None:
        if edge == "clamp":
            fits = memory.shape[2] > 0 or query.shape[2] == 0
            self(fits, "memory", "have at least one frame", memory.shape[2])


def shape_name(tensor: Tensor) -> str:
    return f"{tensor.dim()}-D ({', '.join(str(size) for size in tensor.shape)})"


def differentiate(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradients of a plain PyTorch function inside of a kernel; of clips, channels-last."""
    inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
    # A kernel runs with autograd taken out of the dispatcher; here autograd is how the gradient is computed.
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set() & torch._C._after_autograd_keyset
    # Autocast comes back with autograd, even where it is off, and would round what a convolution reads.
    off = without_autocast(grad_output.device.type)
    with torch._C._ForceDispatchKeyGuard(include, exclude), off, torch.enable_grad():
        gradients = torch.autograd.grad(function(*inputs), inputs, grad_output)

    def lay_out(gradient: Tensor) -> Tensor:
        is_clip = gradient.dim() == 5
        return gradient.contiguous(
            memory_format=torch.channels_last_3d if is_clip else torch.contiguous_format
        )

    return tuple(map(lay_out, gradients))


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which operators see the dtypes they are given."""
    if not torch.amp.is_autocast_available(device_type):  # such as "meta", which torch.autocast refuses
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: float64 and what is no floating point number are left alone."""
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(dtype) if narrow else tensor


# Kept at module level: the registrations end with the object.
_autocast = torch.library.Library("sifa", "IMPL")


def register_autocast(operator: str, make_kernel: Callable[[str], Callable[..., Any]]) -> None:
    """Register what ``make_kernel`` returns for the device types "cpu" and "cuda".

    ``torch.library.register_autocast`` casts to one dtype that is fixed at import, whatever the active one.
    """
    _autocast.impl(operator, make_kernel("cpu"), "AutocastCPU")
    _autocast.impl(operator, make_kernel("cuda"), "AutocastCUDA")
