"""What the operator promises beside its numbers: schema, errors, memory, determinism, autocast, FLOPs."""

import math

import pytest
import sifa
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

FORWARD = torch.ops.sifa.inter_frame_attention.default
BACKWARD = torch.ops.sifa.inter_frame_attention_backward.default


def test_schemas():
    """Exported models store calls of these: a change breaks every artifact."""
    assert str(FORWARD._schema) == (
        "sifa::inter_frame_attention(Tensor query, Tensor memory, Tensor offset, int kernel_size=3, "
        'int dilation=1, int groups=1, float? scale=None, int frame_shift=1, str edge="clamp", '
        "bool softmax=False, bool residual=True) -> Tensor"
    )
    assert str(BACKWARD._schema) == (
        "sifa::inter_frame_attention_backward(Tensor grad_output, Tensor query, Tensor memory, "
        "Tensor offset, int kernel_size, int dilation, int groups, float? scale, int frame_shift, str edge, "
        "bool softmax, bool residual, bool deterministic) -> (Tensor, Tensor, Tensor)"
    )


# --- torch.library.opcheck --------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("sizes", "arguments"),
    [
        ({}, ()),
        ({"dtype": torch.bfloat16, "offset_dtype": torch.float32}, (3, 2, 4, 0.5, -1, "skip", True, False)),
        ({"memory_frames": 2, "kernel_size": 5}, (5, 1, 2)),
        ({"frames": 1, "memory_frames": 1, "height": 1, "width": 1}, (3, 1, 1, None, 0)),
        ({"batch": 0}, ()),
    ],
)
def test_opcheck(make_inputs, device, requires_grad, sizes, arguments):
    inputs = make_inputs(device=device, requires_grad=requires_grad, **sizes)
    torch.library.opcheck(FORWARD, (*inputs, *arguments))
    contiguous = [tensor.detach().contiguous().requires_grad_(requires_grad) for tensor in inputs]
    torch.library.opcheck(FORWARD, (*contiguous, *arguments))


@pytest.mark.parametrize("deterministic", [False, True])
def test_opcheck_of_the_backward(make_inputs, device, deterministic):
    inputs = make_inputs(device=device, memory_frames=2)
    arguments = (torch.randn_like(inputs[0]), *inputs, 3, 1, 2, None, 1, "clamp", True, True, deterministic)
    torch.library.opcheck(BACKWARD, arguments)


# --- Errors -----------------------------------------------------------------------------------------------

# A call that works is changed in one place: (name, value or function of the old value, message).
ERRORS = [
    ("query", lambda x: x[0], r"query must be 5-D \(N, C, T, H, W\), got 4-D \(8, 3, 4, 5\)"),
    ("memory", lambda x: x[0, 0, 0, 0], r"memory must be 5-D \(N, C, M, H, W\), got 1-D \(5\)"),
    (
        "offset",
        lambda x: x[:, :, 0],
        r"offset must be 5-D \(N, 2\*kernel_size\^2, T, H, W\), got 4-D \(2, 18, 4, 5\)",
    ),
    ("memory", lambda x: torch.cat([x, x[:1]]), r"memory must have the batch size of query \(2\), got 3"),
    ("memory", lambda x: x[:, :6], r"memory must have the channels of query \(8\), got 6"),
    ("memory", lambda x: x[..., :4], r"memory must have the height and width of query \(4x5\), got 4x4"),
    ("memory", lambda x: x[..., :3, :], r"memory must have the height and width of query \(4x5\), got 3x5"),
    ("memory", lambda x: x[:, :, :0], r"memory must have at least one frame, got 0"),
    ("memory", lambda x: x.double(), r"memory must have the dtype of query \(float32\), got float64"),
    (
        "memory",
        lambda x: x.to("meta"),
        r"memory must be on the device of query \(cpu\), got (device type|meta)",
    ),
    ("offset", lambda x: x[:1], r"offset must have the batch size of query \(2\), got 1"),
    ("offset", lambda x: x[:, :9], r"offset must have 2\*kernel_size\^2 = 18 channels, got 9"),
    ("offset", lambda x: x[:, :, :2], r"offset must have the frames of query \(3\), got 2"),
    ("offset", lambda x: x.mT, r"offset must have the height and width of query \(4x5\), got 5x4"),
    ("offset", lambda x: x.double(), r"offset must have the dtype of query or float32, got float64"),
    ("offset", lambda x: x.half(), r"offset must have the dtype of query or float32, got float16"),
    ("offset", lambda x: x.long(), r"offset must have the dtype of query or float32, got int64"),
    (
        "query",
        lambda x: x.long(),
        r"query must be float32, float64, float16 or bfloat16, got int64",
    ),
    (
        "query",
        lambda x: x[..., :1].expand(-1, -1, -1, -1, 2**24 + 1),
        r"query must have a height and a width of at most 16777216, got 4x16777217",
    ),
    ("kernel_size", 5, r"offset must have 2\*kernel_size\^2 = 50 channels, got 18"),
    ("kernel_size", 4, r"kernel_size must be odd and between 1 and 9, got 4"),
    ("kernel_size", 11, r"kernel_size must be odd and between 1 and 9, got 11"),
    ("kernel_size", -3, r"kernel_size must be odd and between 1 and 9, got -3"),
    ("dilation", 0, r"dilation must be at least 1, got 0"),
    ("dilation", 2**40, r"dilation must be at most 16777216, got 1099511627776"),
    ("groups", 3, r"groups must divide the 8 channels of query, got 3"),
    ("groups", 16, r"groups must divide the 8 channels of query, got 16"),
    ("groups", 0, r"groups must be at least 1, got 0"),
    ("scale", math.nan, r"scale must be finite, got nan"),
    ("scale", math.inf, r"scale must be finite, got inf"),
    ("edge", "wrap", r'edge must be "clamp" or "skip", got "wrap"'),
    ("edge", "", r'edge must be "clamp" or "skip", got ""'),
]


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
@pytest.mark.parametrize(("name", "change", "message"), ERRORS, ids=[message for *_, message in ERRORS])
def test_errors_name_the_argument(make_inputs, name, change, message, fake):
    """The kernels check real tensors; compilers, which see none, get the same sentences from the fake."""
    query, memory, offset = make_inputs(height=4)[:2] + (torch.zeros(2, 18, 3, 4, 5),)
    query, memory = query[..., :5], memory[..., :5]
    arguments = {"query": query, "memory": memory, "offset": offset}
    arguments[name] = change(arguments[name]) if callable(change) else change
    with FakeTensorMode() if fake else torch.no_grad() as mode:
        if fake:
            arguments = {
                key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for key, value in arguments.items()
            }
        with pytest.raises(RuntimeError, match=f"^inter_frame_attention: {message}"):
            sifa.inter_frame_attention(**arguments)


@pytest.mark.parametrize(
    ("grad_output", "message"),
    [
        (torch.zeros(2, 8, 3, 5), r"grad_output must be 5-D .* got 4-D"),
        (torch.zeros(2, 8, 3, 5, 5), r"grad_output must have the height and width of query \(5x6\), got 5x5"),
        (torch.zeros(2, 8, 3, 5, 6).double(), r"grad_output must have the dtype of query \(float32\)"),
    ],
)
def test_errors_of_the_backward(make_inputs, grad_output, message):
    with pytest.raises(RuntimeError, match=f"^inter_frame_attention: {message}"):
        BACKWARD(grad_output, *make_inputs(), 3, 1, 1, None, 1, "clamp", False, True, False)


def test_wrong_kinds_of_arguments_are_refused(make_inputs):
    query, memory, offset = make_inputs()
    with pytest.raises(RuntimeError, match="kernel_size"):
        sifa.inter_frame_attention(query, memory, offset, 3.5)
    with pytest.raises(RuntimeError, match="memory"):
        sifa.inter_frame_attention(query, None, offset)


def test_devices_are_not_mixed(make_inputs, device):
    if device == "cpu":
        pytest.skip("needs a second device")
    query, memory, offset = make_inputs()
    for name, inputs in (
        ("memory", (query.to(device), memory, offset.to(device))),
        ("offset", (query.to(device), memory.to(device), offset)),
    ):
        message = f"inter_frame_attention: {name} must be on the device of query \\(cuda:0\\), got cpu"
        with pytest.raises(RuntimeError, match=message):
            sifa.inter_frame_attention(*inputs)


# --- Memory -----------------------------------------------------------------------------------------------


def allocations(function):
    """Return the bytes of every tensor that ``function`` allocates, and the names of all it runs."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.events()
    sizes = [event.self_cpu_memory_usage for event in events if event.self_cpu_memory_usage > 0]
    return sizes, {event.name for event in events}


IN_PLACE = {
    "channels_last_3d": lambda x: x,
    "folded": lambda x: (
        x.transpose(1, 2)
        .flatten(0, 1)
        .contiguous(memory_format=torch.channels_last)
        .unflatten(0, (x.shape[0], x.shape[2]))
        .transpose(1, 2)
    ),
    "sliced": lambda x: x[1:, :, ::2, 1:, 1:4],
    "repeated_frame": lambda x: x[:, :, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_channels_last_is_read_in_place(make_inputs, layout):
    query, memory, offset = (layout(tensor) for tensor in make_inputs())
    assert query.stride(1) == 1
    sizes, names = allocations(lambda: sifa.inter_frame_attention(query, memory, offset))
    assert sizes == [4 * query.numel()], "the output is the only tensor"
    assert not names & {"aten::contiguous", "aten::clone", "aten::copy_", "aten::to"}


@pytest.mark.parametrize("layout", IN_PLACE.values(), ids=IN_PLACE.keys())
def test_channels_last_is_read_in_place_by_the_backward(make_inputs, layout):
    inputs = [layout(tensor) for tensor in make_inputs()]
    weight = torch.ones_like(inputs[0], memory_format=torch.channels_last_3d)
    arguments = (weight, *inputs, 3, 1, 1, None, 1, "clamp", False, True, False)
    sizes, names = allocations(lambda: BACKWARD(*arguments))
    # Beside the three gradients, whatever the kernel needs to add them up, but no copy of an input.
    assert sorted(sizes)[-3:] == sorted(4 * tensor.numel() for tensor in inputs)
    assert not names & {"aten::contiguous", "aten::clone", "aten::copy_", "aten::to"}


def test_another_layout_is_converted_once(make_inputs):
    query, memory, offset = make_inputs()
    query, memory = query.contiguous(), memory.contiguous()
    sizes, _ = allocations(lambda: sifa.inter_frame_attention(query, memory, offset))
    assert sizes == [4 * query.numel()] * 3


def test_the_output_is_new_and_the_inputs_are_untouched(make_inputs, device):
    inputs = make_inputs(device=device)
    copies = [tensor.clone() for tensor in inputs]
    output = sifa.inter_frame_attention(*inputs)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    assert output.untyped_storage().data_ptr() not in pointers
    output.fill_(0)
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


# --- Determinism ------------------------------------------------------------------------------------------


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("restore_threads")
def test_the_same_bits_with_any_number_of_threads(make_inputs, dtype, softmax):
    # Large enough to be cut into pieces, and clamped so that two query frames add to one memory frame.
    inputs = make_inputs(2, 64, 3, 13, 17, dtype=dtype, sigma=3.0, requires_grad=True)
    results = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        output = sifa.inter_frame_attention(*inputs, groups=2, softmax=softmax)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_deterministic_algorithms_give_the_same_bits_again(make_inputs, device):
    inputs = make_inputs(2, 64, 3, 13, 17, device=device, sigma=3.0, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        results = [
            torch.autograd.grad(sifa.inter_frame_attention(*inputs).square().sum(), inputs) for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# --- Autocast ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("active", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast(make_inputs, device, active, given):
    inputs = make_inputs(dtype=given, device=device, requires_grad=True)
    with torch.autocast(device, dtype=active):
        output = sifa.inter_frame_attention(*inputs, groups=2)
    query, memory, offset = inputs
    expected = sifa.inter_frame_attention(query.to(active), memory.to(active), offset.float(), groups=2)
    assert output.dtype == active
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output.float().sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [given] * 3
    # Offsets are not rounded to the active type on their way.
    if given == torch.float32:
        rounded = sifa.inter_frame_attention(query.to(active), memory.to(active), offset.to(active), groups=2)
        assert not torch.equal(output, rounded)


def test_autocast_makes_mixed_types_one(make_inputs, device):
    query, memory, offset = make_inputs(device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = sifa.inter_frame_attention(query, memory.bfloat16(), offset.half())
    assert output.dtype == torch.bfloat16


def test_autocast_leaves_float64_alone(make_inputs, device):
    inputs = make_inputs(dtype=torch.float64, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = sifa.inter_frame_attention(*inputs)
    assert torch.equal(output, sifa.inter_frame_attention(*inputs))


def test_autocast_can_be_switched_off(make_inputs, device):
    inputs = make_inputs(device=device)
    with torch.autocast(device, dtype=torch.bfloat16), torch.autocast(device, enabled=False):
        assert sifa.inter_frame_attention(*inputs).dtype == torch.float32


# --- FLOPs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_flops(make_inputs, device, kernel_size):
    inputs = make_inputs(2, 8, 3, 5, 6, kernel_size=kernel_size, device=device, requires_grad=True)
    taps = 2 * 3 * 5 * 6 * kernel_size**2
    with FlopCounterMode(display=False) as counter:
        output = sifa.inter_frame_attention(*inputs, kernel_size=kernel_size)
    assert counter.get_total_flops() == 12 * 8 * taps
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 34 * 8 * taps


def test_flops_of_the_default_kernel_size(make_inputs, device):
    with FlopCounterMode(display=False) as counter:
        sifa.inter_frame_attention(*make_inputs(device=device))
        torch.ops.sifa.inter_frame_attention(*make_inputs(device=device))
    assert counter.get_total_flops() == 2 * 12 * 8 * (2 * 3 * 5 * 6) * 9


# --- Compilers' view --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fake_output_is_like_the_real_one(make_inputs, dtype):
    for shape in ((2, 8, 3, 5, 6), (2, 8, 1, 1, 1), (1, 1, 3, 1, 4), (0, 8, 3, 5, 6)):
        inputs = make_inputs(*shape, dtype=dtype)
        for layout in (lambda x: x, torch.Tensor.contiguous):
            tensors = [layout(tensor) for tensor in inputs]
            real = sifa.inter_frame_attention(*tensors)
            with FakeTensorMode() as mode:
                fake = sifa.inter_frame_attention(*map(mode.from_tensor, tensors))
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_meta_tensors_work(make_inputs):
    inputs = [tensor.to("meta") for tensor in make_inputs()]
    output = sifa.inter_frame_attention(*inputs)
    assert output.device.type == "meta"
    assert_close(output.shape, inputs[0].shape)
