"""Fixtures that the Python tests share: a fixed seed, the devices, inputs of the operator, large offsets."""

import pytest
import sifa
import torch
import torch._dynamo


def _has_cuda_kernels() -> bool:
    return torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        "sifa::inter_frame_attention", "CUDA"
    )


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    """Let no test see what an earlier one compiled."""
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", "cuda"] if _has_cuda_kernels() else ["cpu"])
def device(request):
    """Every device that this machine can run the operator on."""
    return request.param


@pytest.fixture
def make_inputs():
    """Return a function that makes random (query, memory, offset) for the operator."""

    def make(
        batch=2,
        channels=8,
        frames=3,
        height=5,
        width=6,
        memory_frames=None,
        kernel_size=3,
        dtype=torch.float32,
        offset_dtype=None,
        device="cpu",
        sigma=1.5,
        requires_grad=False,
    ):
        def features(count):
            values = torch.randn(batch, channels, count, height, width, dtype=torch.float64)
            values = values.to(device, dtype, memory_format=torch.channels_last_3d)
            return values.requires_grad_(requires_grad)

        query = features(frames)
        memory = features(frames if memory_frames is None else memory_frames)
        shape = (batch, 2 * kernel_size**2, frames, height, width)
        offset = sigma * torch.randn(shape, dtype=torch.float64)
        offset = offset.to(device, offset_dtype or dtype).requires_grad_(requires_grad)
        return query, memory, offset

    return make


@pytest.fixture
def randomize_offsets():
    """Return ``randomize(module, sigma, *inputs)``: offsets of standard deviation ``sigma`` pixels.

    A new SIFA layer has no offsets, so a test with it proves nothing about deformation. ``module(*inputs)``
    is run once; each layer's ``conv_offset`` is scaled when the layers before it are already done.
    """

    def randomize(module, sigma, *inputs):
        layers = [layer for layer in module.modules() if isinstance(layer, sifa.SIFA)]
        convolutions = [layer.conv_offset for layer in layers if layer.conv_offset is not None]
        assert convolutions, "the module has no SIFA layer with a conv_offset"

        def calibrate(convolution, _, offset):
            factor = sigma / offset.float().std()
            convolution.weight.data *= factor
            return offset * factor

        with torch.no_grad():
            for convolution in convolutions:
                torch.nn.init.normal_(convolution.weight)
            hooks = [convolution.register_forward_hook(calibrate) for convolution in convolutions]
            module(*inputs)
            for hook in hooks:
                hook.remove()
        return module

    return randomize
