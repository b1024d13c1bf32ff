"""The operator's derivatives: against finite differences, only where wanted, and only once."""

import itertools

import pytest
import sifa
import torch
from sifa import reference
from torch.testing import assert_close


def away_from_integers(offset):
    """Move positions off the pixel grid, where the slope of a bilinear surface jumps."""
    with torch.no_grad():
        return (offset.floor() + torch.empty_like(offset).uniform_(0.2, 0.8)).requires_grad_()


@pytest.mark.parametrize(
    ("edge", "frame_shift", "softmax", "groups"),
    list(itertools.product(["clamp", "skip"], [1, -1], [False, True], [1, 2])),
)
def test_gradcheck(make_inputs, device, edge, frame_shift, softmax, groups):
    inputs = make_inputs(1, 4, 2, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    options = (3, 1, groups, None, frame_shift, edge, softmax)
    query, memory, offset = *inputs[:2], away_from_integers(inputs[2])
    # The CUDA kernels add to the memory's gradient in any order unless told to be deterministic.
    assert torch.autograd.gradcheck(
        lambda *tensors: sifa.inter_frame_attention(*tensors, *options),
        (query, memory, offset),
        nondet_tol=1e-12 if device == "cuda" else 0.0,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 5, "dilation": 2, "softmax": True},
        {"residual": False, "scale": 1.7},
        {"frame_shift": 0, "memory_frames": 3, "groups": 3},
    ],
)
def test_gradcheck_of_the_other_options(make_inputs, device, options):
    memory_frames = options.pop("memory_frames", None)
    kernel_size = options.get("kernel_size", 3)
    query, memory, offset = make_inputs(
        1, 3, 2, 3, 2, memory_frames, kernel_size, torch.float64, device=device, requires_grad=True
    )
    assert torch.autograd.gradcheck(
        lambda *tensors: sifa.inter_frame_attention(*tensors, **options),
        (query, memory, away_from_integers(offset)),
        nondet_tol=1e-12 if device == "cuda" else 0.0,
    )


def test_gradients_have_the_layout_of_the_output(make_inputs, device):
    query, memory, offset = make_inputs(device=device, requires_grad=True)
    gradients = torch.ops.sifa.inter_frame_attention_backward(
        torch.ones_like(query), query, memory, offset, 3, 1, 1, None, 1, "clamp", False, True, False
    )
    for gradient, tensor in zip(gradients, (query, memory, offset), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
        assert gradient.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=3)))
def test_only_the_wanted_gradients(make_inputs, device, wanted):
    inputs = [x.requires_grad_(flag) for x, flag in zip(make_inputs(device=device), wanted, strict=True)]
    output = sifa.inter_frame_attention(*inputs)
    assert output.requires_grad == any(wanted)
    if not any(wanted):
        return
    output.sum().backward()
    everything = [tensor.detach().requires_grad_() for tensor in inputs]
    reference.inter_frame_attention(*everything).sum().backward()
    for tensor, full, flag in zip(inputs, everything, wanted, strict=True):
        if flag:
            assert_close(tensor.grad, full.grad, rtol=1e-5, atol=1e-4)
        else:
            assert tensor.grad is None


def test_no_graph_when_none_is_wanted(make_inputs, device):
    inputs = make_inputs(device=device, requires_grad=True)
    expected = sifa.inter_frame_attention(*inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = sifa.inter_frame_attention(*inputs)
        assert not output.requires_grad
        assert torch.equal(output, expected)


def test_an_input_changed_before_the_backward_is_noticed(make_inputs, device):
    query, memory, offset = make_inputs(device=device, requires_grad=True)
    output = sifa.inter_frame_attention(query, memory, offset)
    with torch.no_grad():
        offset.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_second_derivative_is_refused(make_inputs, device):
    query, memory, offset = make_inputs(device=device, requires_grad=True)
    output = sifa.inter_frame_attention(query, memory, offset)
    gradients = torch.autograd.grad(output.square().sum(), (query, memory, offset), create_graph=True)
    for gradient in gradients:
        with pytest.raises(
            RuntimeError, match="inter_frame_attention: the second derivative is not implement"
        ):
            torch.autograd.grad(gradient.sum(), query, retain_graph=True)


def test_the_deterministic_flag_reaches_the_kernel(make_inputs, device):
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.sifa.inter_frame_attention_backward.default:
                seen.append(args[-1])
            return func(*args, **(kwargs or {}))

    for wanted in (True, False):
        output = sifa.inter_frame_attention(*make_inputs(device=device, requires_grad=True))
        torch.use_deterministic_algorithms(wanted)
        try:
            with Recorder():
                output.sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
    assert seen == [True, False]
