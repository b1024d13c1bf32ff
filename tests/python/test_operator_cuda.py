"""The CUDA kernels on a GPU, against the plain PyTorch reference in float64.

What needs no GPU (the arithmetic of the same kernels) is in tests/cpp/test_cuda_arithmetic.cpp.
"""

import pytest
import sifa
import torch
from sifa import reference

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(
        not torch._C._dispatch_has_kernel_for_dispatch_key("sifa::inter_frame_attention", "CUDA"),
        reason="libsifa_ops_cuda.so is not built",
    ),
]

# Relative to the largest value: rounding to the type, once.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(TOLERANCE)

OPTIONS = {
    "defaults": {},
    "causal": {"frame_shift": -1},
    "skip": {"edge": "skip"},
    "causal skip": {"frame_shift": -1, "edge": "skip"},
    "far": {"frame_shift": 1000},
    "same frame, no residual": {"frame_shift": 0, "residual": False},
    "groups": {"groups": 4},
    "softmax": {"softmax": True},
    "softmax, skip, groups": {"softmax": True, "edge": "skip", "groups": 2},
    "dilation, scale": {"dilation": 2, "scale": 0.3},
}


def assert_matches(actual, expected, dtype):
    expected = expected.detach().double().cpu()
    tolerance = TOLERANCE[dtype]
    atol = tolerance * max(1.0, expected.abs().max().item()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach().double().cpu(), expected, rtol=tolerance, atol=atol)


def in_float64(*tensors):
    return tuple(tensor.detach().cpu().double().requires_grad_() for tensor in tensors)


def check_forward(query, memory, offset, **options):
    output = sifa.inter_frame_attention(query, memory, offset, **options)
    expected = reference.inter_frame_attention(*in_float64(query, memory, offset), **options)
    assert output.device == query.device
    assert output.dtype == query.dtype
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    assert_matches(output, expected, query.dtype)


def gradients(query, memory, offset, grad_output, **options):
    inputs = [tensor.detach().requires_grad_() for tensor in (query, memory, offset)]
    return torch.autograd.grad(sifa.inter_frame_attention(*inputs, **options), inputs, grad_output)


def check_backward(query, memory, offset, **options):
    grad_output = torch.randn(query.shape, device=query.device).to(query.dtype)
    actual = gradients(query, memory, offset, grad_output, **options)
    inputs = in_float64(query, memory, offset)
    expected = torch.autograd.grad(
        reference.inter_frame_attention(*inputs, **options), inputs, grad_output.cpu().double()
    )
    for given, wanted, tensor in zip(actual, expected, (query, memory, offset), strict=True):
        assert given.dtype == tensor.dtype
        assert given.is_contiguous(memory_format=torch.channels_last_3d)
        assert_matches(given, wanted, tensor.dtype)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def inputs_on_gpu(make_inputs):
    """Return ``make_inputs`` for the GPU, with offsets that are multiples of 2^-12 pixel.

    Positions are then exact in float32, and lie on the same side of every integer as the reference's: there
    the derivative jumps.
    """

    def make(**arguments):
        query, memory, offset = make_inputs(**{"device": "cuda", **arguments})
        exact = (offset.double() * 4096).round() / 4096
        return query, memory, exact.to(offset.dtype)

    return make


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("float_offset", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(inputs_on_gpu, dtype, float_offset, name):
    offset_dtype = torch.float32 if float_offset else dtype
    check_forward(*inputs_on_gpu(channels=32, dtype=dtype, offset_dtype=offset_dtype), **OPTIONS[name])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("float_offset", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(inputs_on_gpu, dtype, float_offset, name):
    offset_dtype = torch.float32 if float_offset else dtype
    check_backward(*inputs_on_gpu(channels=32, dtype=dtype, offset_dtype=offset_dtype), **OPTIONS[name])


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_kernel_sizes(inputs_on_gpu, kernel_size, softmax):
    inputs = inputs_on_gpu(kernel_size=kernel_size)
    check_forward(*inputs, kernel_size=kernel_size, softmax=softmax)
    check_backward(*inputs, kernel_size=kernel_size, softmax=softmax)


# One element at a time where 16 bytes do not fit; teams of one lane, of one warp (up to 256), of 16 warps.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 24, 33, 64, 96, 256, 257, 264, 512, 1200, 2048, 4096])
def test_channels(inputs_on_gpu, channels, dtype):
    inputs = inputs_on_gpu(batch=1, channels=channels, frames=2, height=3, width=4, dtype=dtype)
    check_forward(*inputs)
    check_backward(*inputs)


@pytest.mark.parametrize("groups", [2, 3, 12, 48])
def test_groups(inputs_on_gpu, groups):
    inputs = inputs_on_gpu(channels=48)
    check_forward(*inputs, groups=groups)
    check_backward(*inputs, groups=groups)


def test_too_many_channels(inputs_on_gpu):
    inputs = inputs_on_gpu(batch=1, channels=4104, frames=1, height=1, width=1)
    with pytest.raises(
        RuntimeError, match="query must have at most 4096 channels per group on CUDA, got 4104"
    ):
        sifa.inter_frame_attention(*inputs)
    check_forward(*inputs, groups=2)


@pytest.mark.parametrize(
    "sizes",
    [
        {"height": 1, "width": 1},
        {"frames": 1},
        {"frames": 1, "memory_frames": 4},
        {"frames": 4, "memory_frames": 1},
        {"height": 37, "width": 1},
        {"batch": 3, "height": 28, "width": 28},
    ],
    ids=str,
)
def test_sizes(inputs_on_gpu, sizes):
    inputs = inputs_on_gpu(**sizes)
    check_forward(*inputs)
    check_backward(*inputs)


@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"frames": 0}, {"height": 0}, {"frames": 0, "memory_frames": 0}], ids=str
)
def test_empty(inputs_on_gpu, sizes):
    inputs = inputs_on_gpu(**sizes)
    assert sifa.inter_frame_attention(*inputs).shape == inputs[0].shape
    for gradient, tensor in zip(gradients(*inputs, torch.zeros_like(inputs[0])), inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_no_memory(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu(memory_frames=0)
    torch.testing.assert_close(sifa.inter_frame_attention(query, memory, offset, edge="skip"), query)
    grad_output = torch.randn_like(query)
    grad_query, grad_memory, grad_offset = gradients(query, memory, offset, grad_output, edge="skip")
    torch.testing.assert_close(grad_query, grad_output)
    assert grad_memory.shape == memory.shape
    assert not grad_offset.any()


def strided(tensor, layout):
    """Return a tensor equal to ``tensor``, laid out in one of the ways that callers come with."""
    batch, channels, frames, height, width = tensor.shape
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "every second frame":
        return tensor.repeat_interleave(2, 2).contiguous(memory_format=torch.channels_last_3d)[:, :, ::2]
    if layout == "crop":
        padded = torch.nn.functional.pad(tensor, (2, 1, 1, 2), value=float("nan"))
        return padded.contiguous(memory_format=torch.channels_last_3d)[..., 1:-2, 2:-1]
    if layout == "some of the channels":  # neither the address nor the strides are multiples of 16 bytes
        padded = torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 0, 1, 2), value=float("nan"))
        return padded.contiguous(memory_format=torch.channels_last_3d)[:, 1:-2]
    if layout == "2-D backbone":
        flat = tensor.transpose(1, 2).reshape(batch * frames, channels, height, width)
        flat = flat.contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, (batch, frames)).transpose(1, 2)
    if layout == "width before height":
        return tensor.permute(0, 2, 4, 3, 1).contiguous().permute(0, 4, 1, 3, 2)
    raise ValueError(layout)


@pytest.mark.parametrize(
    "layout",
    [
        "contiguous",
        "every second frame",
        "crop",
        "some of the channels",
        "2-D backbone",
        "width before height",
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(inputs_on_gpu, dtype, layout):
    query, memory, offset = (strided(tensor, layout) for tensor in inputs_on_gpu(channels=16, dtype=dtype))
    check_forward(query, memory, offset)
    check_backward(query, memory, offset)


def test_expanded(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu(batch=1, frames=1, height=1)
    query, memory = query.expand(2, -1, 3, 4, -1), memory.expand(2, -1, 3, 4, -1)
    offset = offset.expand(2, -1, 3, 4, -1)
    check_forward(query, memory, offset)
    check_backward(query, memory, offset)


def test_expanded_grad_output(inputs_on_gpu):
    inputs = inputs_on_gpu()
    one = torch.ones((), device="cuda").expand(inputs[0].shape)
    for actual, expected in zip(gradients(*inputs, one), gradients(*inputs, one.contiguous()), strict=True):
        torch.testing.assert_close(actual, expected)


def test_channels_last_is_read_in_place(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu(channels=64, height=32, width=32)
    query, memory = query[:, :, 1:], memory[..., :, :]
    offset = offset[:, :, 1:]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = sifa.inter_frame_attention(query, memory, offset)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak == torch.cuda.memory_allocated() - before
    assert peak <= output.numel() * output.element_size() + 512


def test_offsets_that_are_not_finite(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu()
    wild = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9], device="cuda")
    dropped = torch.rand(offset.shape, device="cuda") < 0.3
    offset = torch.where(dropped, wild[torch.randint(len(wild), offset.shape, device="cuda")], offset)
    for softmax in (False, True):
        check_forward(query, memory, offset, softmax=softmax)
        check_backward(query, memory, offset, softmax=softmax)
        grad_offset = gradients(query, memory, offset, torch.ones_like(query), softmax=softmax)[2]
        assert (grad_offset[dropped] == 0).all()
    offset = torch.full_like(offset, float("nan"))
    torch.testing.assert_close(sifa.inter_frame_attention(query, memory, offset), query)


def test_integer_positions_and_borders(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu(height=4, width=4)
    offset = offset.round()  # -1 and H exactly are dropped, H - 1 is the last row
    check_forward(query, memory, offset)
    check_backward(query, memory, offset)


def test_current_stream(inputs_on_gpu):
    query, memory, offset = inputs_on_gpu()
    expected = sifa.inter_frame_attention(query, memory, offset)
    grad_output = torch.randn_like(query)
    expected_gradients = gradients(query, memory, offset, grad_output)
    late = torch.zeros_like(query)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # longer than any launch
        late.copy_(query)
        output = sifa.inter_frame_attention(late, memory, offset)
        late_gradients = gradients(late, memory, offset, grad_output)
    stream.synchronize()
    torch.testing.assert_close(output, expected)
    for actual, wanted in zip(late_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_graph(inputs_on_gpu, dtype):
    inputs = [tensor.requires_grad_() for tensor in inputs_on_gpu(dtype=dtype)]
    grad_output = torch.randn_like(inputs[0])

    def step():
        output = sifa.inter_frame_attention(*inputs)
        return output, *torch.autograd.grad(output, inputs, grad_output)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for _ in range(2):
        with torch.no_grad():
            for tensor, new in zip(inputs, inputs_on_gpu(dtype=dtype), strict=True):
                tensor.copy_(new)
        graph.replay()
        for actual, expected in zip(results, step(), strict=True):
            assert_matches(actual, expected, dtype)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_other_device(inputs_on_gpu):
    inputs = inputs_on_gpu(device="cuda:1")
    with torch.cuda.device(0):
        check_forward(*inputs)
        check_backward(*inputs)
        assert torch.cuda.current_device() == 0
    query, memory, offset = inputs
    with pytest.raises(RuntimeError, match=r"memory must be on the device of query \(cuda:1\), got cuda:0"):
        sifa.inter_frame_attention(query, memory.to("cuda:0"), offset)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("deterministic")
def test_deterministic(inputs_on_gpu, dtype, softmax):
    # All taps meet in few pixels, so that the order of additions shows.
    query, memory, offset = inputs_on_gpu(channels=24, height=12, width=12, sigma=6.0, dtype=dtype)
    options = {"softmax": softmax, "groups": 3, "frame_shift": 5}
    check_backward(query, memory, offset, **options)
    grad_output = torch.randn_like(query)
    first = gradients(query, memory, offset, grad_output, **options)
    for _ in range(3):
        for a, b in zip(gradients(query, memory, offset, grad_output, **options), first, strict=True):
            assert torch.equal(a, b)


def test_forward_is_deterministic(inputs_on_gpu):
    inputs = inputs_on_gpu(channels=600, height=12, width=12)
    first = sifa.inter_frame_attention(*inputs)
    for _ in range(3):
        assert torch.equal(sifa.inter_frame_attention(*inputs), first)


@pytest.mark.parametrize("name", ["query", "memory", "offset"])
def test_mixed_devices(inputs_on_gpu, name):
    inputs = dict(zip(("query", "memory", "offset"), inputs_on_gpu(), strict=True))
    inputs[name] = inputs[name].cpu()
    wrong, right, given = ("memory", "cpu", "cuda:0") if name == "query" else (name, "cuda:0", "cpu")
    with pytest.raises(
        RuntimeError, match=rf"{wrong} must be on the device of query \({right}\), got {given}"
    ):
        sifa.inter_frame_attention(**inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(inputs_on_gpu, dtype):
    query, memory, offset = inputs_on_gpu()
    with torch.autocast("cuda", dtype):
        output = sifa.inter_frame_attention(query, memory, offset)
    assert output.dtype == dtype
    assert_matches(output, reference.inter_frame_attention(query.to(dtype), memory.to(dtype), offset), dtype)


def large_features():
    """Return 4 GiB of float16 features, (1, 512, 1, 2056, 2048)."""
    features = torch.empty(1, 2056, 2048, 512, device="cuda", dtype=torch.float16)
    for row in features[0]:
        row.normal_()
    features = features.unsqueeze(1).permute(0, 4, 1, 2, 3)
    assert features.numel() > 2**31
    return features


def large_offset():
    """Return offsets for them whose positions are exact in float32, on row 10 as on row 2000."""
    offset = torch.randn(1, 18, 1, 2056, 2048, device="cuda").clamp_(-3, 3)
    return (offset * 1024).round() / 1024


def test_more_than_31_bits_of_elements():
    """The end of a tensor of 2^31 elements and more, against the same pixels in a small one."""
    needed = 16 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed // 2**30} GiB of free GPU memory")
    features, offset = large_features(), large_offset()
    output = sifa.inter_frame_attention(features, features, offset)
    last, end = slice(-16, None), slice(-8, None)
    expected = sifa.inter_frame_attention(
        features[..., last, :], features[..., last, :], offset[..., last, :]
    )
    assert torch.equal(output[..., end, :], expected[..., end, :])
    check_forward(features[..., last, :64], features[..., last, :64], offset[..., last, :64])


def test_more_than_31_bits_of_elements_backward():
    """As above; the rows at the end get no gradient from those that the small tensors lack."""
    needed = 64 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed // 2**30} GiB of free GPU memory")
    features, offset = large_features(), large_offset()
    last, end = slice(-24, None), slice(-8, None)
    whole = gradients(features, features, offset, features)
    small = [tensor[..., last, :] for tensor in (features, features, offset, features)]
    for given, wanted in zip(whole, gradients(*small), strict=True):
        assert_matches(given[..., end, :], wanted[..., end, :], given.dtype)


# --- The motion operators: what test_operator_motion.py, which runs on every device, does not ask ----------


def motion_inputs(dtype=torch.float32, channels=32, frames=4, height=9, width=11):
    """Return (query, memory, weight) on the GPU."""

    def features():
        values = torch.randn(2, channels, frames, height, width, device="cuda").to(dtype)
        return values.contiguous(memory_format=torch.channels_last_3d)

    weight = torch.randn(18, channels, 3, 3, device="cuda") / (9 * channels) ** 0.5
    return features(), features(), weight.to(dtype)


def motion_step(function, inputs, grad_output=None):
    """Return the output and the gradients of the inputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    grad_output = torch.ones_like(output) if grad_output is None else grad_output
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


@pytest.fixture(params=["motion_saliency", "motion_offset"])
def motion(request):
    """(function, number of tensors that it takes)."""
    return getattr(sifa, request.param), 2 if request.param == "motion_saliency" else 3


@pytest.mark.parametrize("options", [{}, {"frame_shift": -1, "edge": "skip", "residual": True}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_motion_is_what_the_cpu_computes(motion, dtype, options):
    function, number = motion
    inputs = motion_inputs(dtype)[:number]
    on_cpu = [tensor.cpu() for tensor in inputs]
    grad_output = torch.randn_like(function(*on_cpu))
    expected = motion_step(lambda *x: function(*x, **options), on_cpu, grad_output)
    given = motion_step(lambda *x: function(*x, **options), inputs, grad_output.cuda())
    for actual, wanted in zip(given, expected, strict=True):
        assert actual.is_cuda
        assert actual.dtype == dtype
        assert_matches(actual, wanted, dtype)


def test_motion_on_the_current_stream(motion):
    function, number = motion
    inputs = motion_inputs()[:number]
    expected = motion_step(function, inputs)
    late = torch.zeros_like(inputs[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # longer than any launch
        late.copy_(inputs[0])
        given = motion_step(function, (late, *inputs[1:]))
    stream.synchronize()
    for actual, wanted in zip(given, expected, strict=True):
        assert_matches(actual, wanted, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_motion_in_a_cuda_graph(motion, dtype):
    function, number = motion
    inputs = motion_inputs(dtype)[:number]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        motion_step(function, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = motion_step(function, inputs)
    for _ in range(2):
        for tensor, new in zip(inputs, motion_inputs(dtype), strict=False):
            tensor.copy_(new)
        graph.replay()
        for actual, expected in zip(results, motion_step(function, inputs), strict=True):
            assert_matches(actual, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("deterministic")
def test_motion_is_deterministic(motion, dtype):
    function, number = motion
    inputs = motion_inputs(dtype)[:number]
    first = motion_step(lambda *x: function(*x, frame_shift=7), inputs)  # all frames read the last
    for _ in range(3):
        again = motion_step(lambda *x: function(*x, frame_shift=7), inputs)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_motion_on_another_device(motion):
    function, number = motion
    inputs = motion_inputs()[:number]
    expected = motion_step(function, inputs)
    with torch.cuda.device(0):
        given = motion_step(function, [tensor.to("cuda:1") for tensor in inputs])
        assert torch.cuda.current_device() == 0
    for actual, wanted in zip(given, expected, strict=True):
        assert actual.device.index == 1
        assert_matches(actual, wanted, torch.float32)


def test_motion_saliency_of_more_than_31_bits_of_elements():
    """Its pixels do not see one another: the end of a large tensor is exactly that of a small one."""
    needed = 40 * 2**30
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed // 2**30} GiB of free GPU memory")
    features = large_features()
    memory = features.flip(4)
    end = slice(-8, None)
    whole = motion_step(sifa.motion_saliency, (features, memory), features)
    small = [tensor[..., end, :] for tensor in (features, memory, features)]
    for given, wanted in zip(whole, motion_step(sifa.motion_saliency, small[:2], small[2]), strict=True):
        assert torch.equal(given[..., end, :], wanted)
