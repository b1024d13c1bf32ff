"""The motion saliency and the offsets made of it: numbers, gradients, contracts, compilers, errors."""

import io
import itertools
import math

import pytest
import sifa
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sifa import reference
from sifa.ops.motion import _composed_offset_backward
from test_operator import LAYOUTS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

# TorchScript is deprecated upstream and still what C++ loads.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

SALIENCY = torch.ops.sifa.motion_saliency.default
SALIENCY_BACKWARD = torch.ops.sifa.motion_saliency_backward.default
OFFSET = torch.ops.sifa.motion_offset.default
OFFSET_BACKWARD_FEATURES = torch.ops.sifa.motion_offset_backward_features.default
OFFSET_BACKWARD_WEIGHT = torch.ops.sifa.motion_offset_backward_weight.default

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OPTIONS = {
    "paper": {},
    "causal": {"frame_shift": -1},
    "same-frame": {"frame_shift": 0},
    "skip": {"edge": "skip"},
    "causal-skip": {"frame_shift": -1, "edge": "skip"},
    "released": {"edge": "skip", "residual": True},
    "beyond-the-clip": {"frame_shift": 7, "residual": True},
    "far-behind": {"frame_shift": -(2**40)},
    "nothing-there": {"frame_shift": -7, "edge": "skip"},
}


def plain_saliency(query, memory, frame_shift=1, edge="clamp", residual=False):
    """The definition, one frame at a time, in float64."""
    query, memory = query.double(), memory.double()
    last = memory.shape[2] - 1
    saliency = []
    for t in range(query.shape[2]):
        n = t + frame_shift
        if edge == "skip" and not 0 <= n <= last:
            saliency.append(0 * query[:, :, t])
            continue
        neighbour = memory[:, :, min(max(n, 0), last)]
        share = torch.sigmoid(neighbour - query[:, :, t])
        saliency.append(share * neighbour + (neighbour if residual else 0))
    return torch.stack(saliency, 2) if saliency else query


def plain_offset(query, memory, weight, *arguments, **options):
    """Nine shifted products of the saliency and a matrix, in float64."""
    saliency = torch.nn.functional.pad(plain_saliency(query, memory, *arguments, **options), (1, 1, 1, 1))
    height, width = query.shape[3:]
    total = 0
    for i in range(3):
        for j in range(3):
            shifted = saliency[..., i : i + height, j : j + width]
            total = total + torch.einsum("ncthw,oc->nothw", shifted, weight[:, :, i, j].double())
    return total


FUNCTIONS = {
    "saliency": (sifa.motion_saliency, plain_saliency, 2),
    "offset": (sifa.motion_offset, plain_offset, 3),
}


@pytest.fixture(params=FUNCTIONS)
def operator(request):
    """(function, its plain restatement, number of tensors)."""
    return FUNCTIONS[request.param]


@pytest.fixture
def make_inputs():
    """Return a function that makes random (query, memory, weight)."""

    def make(
        batch=2,
        channels=8,
        frames=3,
        height=5,
        width=6,
        memory_frames=None,
        outputs=18,
        dtype=torch.float32,
        device="cpu",
        requires_grad=False,
    ):
        def features(count):
            values = torch.randn(batch, channels, count, height, width, dtype=torch.float64)
            return values.to(device, dtype, memory_format=torch.channels_last_3d)

        weight = torch.randn(outputs, channels, 3, 3, dtype=torch.float64) / (9 * channels) ** 0.5
        inputs = features(frames), features(frames if memory_frames is None else memory_frames), weight
        return tuple(x.to(device, dtype).requires_grad_(requires_grad) for x in inputs)

    return make


def assert_near(actual, expected, dtype, what):
    """A sum errs by units of the type it is summed in, of its largest terms, and is rounded once."""
    assert actual.dtype == dtype
    terms = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    largest = expected.abs().max().item() if expected.numel() else 0.0
    assert_close(
        actual.double(),
        expected,
        rtol=torch.finfo(dtype).eps,
        atol=16 * terms * largest + torch.finfo(dtype).smallest_normal,
        msg=lambda text: f"{what}: {text}",
    )


def assert_near_rounded(actual, expected, dtype, what):
    """PyTorch's convolution and its backward, on CUDA, see the saliency and its gradient rounded."""
    assert actual.dtype == dtype
    largest = expected.abs().max().item() if expected.numel() else 0.0
    eps = torch.finfo(dtype).eps
    assert_close(actual.double(), expected, rtol=2 * eps, atol=2 * eps * largest, msg=what)


def check(operator, inputs, options, copies=None, backward=True):
    """Compare values, dtype, layout and gradients with the restatement's."""
    function, plain, number = operator
    inputs = [tensor.detach().requires_grad_() for tensor in inputs[:number]]
    doubles = [tensor.detach().double().clone().requires_grad_() for tensor in (copies or inputs)[:number]]
    output, expected = function(*inputs, **options), plain(*doubles, **options)
    dtype = inputs[0].dtype
    rounded = number == 3 and output.is_cuda and dtype in (torch.float16, torch.bfloat16)
    if rounded:
        assert_near_rounded(output.detach(), expected.detach(), dtype, "output")
    else:
        assert_near(output.detach(), expected.detach(), dtype, "output")
    if function is sifa.motion_saliency or not output.is_cuda:
        assert output.is_contiguous(memory_format=torch.channels_last_3d)
    if not backward:
        return
    upstream = torch.randn_like(output)
    wanted = torch.autograd.grad(expected, doubles, upstream.double(), materialize_grads=True)
    gradients = torch.autograd.grad(output, inputs, upstream)
    for name, gradient, full in zip(("query", "memory", "weight"), gradients, wanted, strict=False):
        if rounded:
            assert_near_rounded(gradient, full, dtype, name)
        else:
            assert_near(gradient, full, dtype, f"gradient of {name}")


# --- Numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_options(operator, make_inputs, device, options, dtype):
    check(operator, make_inputs(dtype=dtype, device=device), options)


@pytest.mark.parametrize("channels", [1, 3, 5, 17, 33, 63, 64, 65, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_remainder_of_the_vectors(operator, make_inputs, device, channels, dtype):
    check(operator, make_inputs(1, channels, 2, 4, 5, dtype=dtype, device=device), {})


@pytest.mark.parametrize("outputs", [1, 2, 7, 16, 17, 18, 50, 98])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_outputs(make_inputs, device, outputs, dtype):
    inputs = make_inputs(1, 8, 2, 6, 7, outputs=outputs, dtype=dtype, device=device)
    check(FUNCTIONS["offset"], inputs, {})


# Rows of tiles that fill several groups, and are cut into pieces; many small frames in one group; parts of
# the weight's gradient that begin inside a frame.
@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 2, 40, 30),
        (1, 3, 1, 3, 431),
        (2, 3, 1, 2, 850),
        (40, 2, 3, 3, 3),
        (3, 70, 4, 7, 7),
        (7, 3, 1, 40, 40),
    ],
)
def test_sizes(operator, make_inputs, device, shape):
    check(operator, make_inputs(*shape, device=device), {})


@pytest.mark.parametrize("edge", ["clamp", "skip"])
@pytest.mark.parametrize("frame_shift", [-3, -1, 0, 1, 2])
@pytest.mark.parametrize(("frames", "memory_frames"), [(1, 3), (4, 2), (2, 5), (3, 1)])
def test_memory_of_another_length(operator, make_inputs, device, edge, frame_shift, frames, memory_frames):
    inputs = make_inputs(1, 4, frames, 3, 4, memory_frames, device=device)
    check(operator, inputs, {"edge": edge, "frame_shift": frame_shift})


@pytest.mark.parametrize(
    "shape",
    [
        (0, 8, 3, 5, 6),
        (2, 8, 0, 5, 6),
        (2, 8, 3, 0, 6),
        (2, 8, 3, 5, 0),
        (2, 0, 3, 5, 6),
        (1, 8, 1, 5, 6),
        (2, 8, 3, 1, 1),
        (1, 1, 1, 1, 1),
        (2, 4, 2, 1, 7),
        (2, 4, 2, 7, 1),
    ],
)
def test_empty_and_single(operator, make_inputs, device, shape):
    check(operator, make_inputs(*shape, device=device), {})


@pytest.mark.parametrize("channels", [70, 130])
@pytest.mark.parametrize("frames", [7, 31])
def test_many_readers_of_a_frame(operator, make_inputs, device, frames, channels):
    """Their sums go on from one group of 30 to the next, in several chunks of channels."""
    inputs = make_inputs(1, channels, frames, 5, 9, memory_frames=1, dtype=torch.float64, device=device)
    check(operator, inputs, {})


def test_no_channels_are_zero_offsets(make_inputs, device):
    sifa.motion_offset(*make_inputs(1, 3, 2, 20, 20, device=device))  # leaves its scratch behind
    assert not sifa.motion_offset(*make_inputs(1, 0, 2, 20, 20, device=device)).any()


def test_no_memory_frame_at_all(operator, make_inputs, device):
    function, _, number = operator
    inputs = make_inputs(memory_frames=0, device=device, requires_grad=True)[:number]
    output = function(*inputs, edge="skip")
    assert not output.any()
    for tensor, gradient in zip(inputs, torch.autograd.grad(output.sum(), inputs), strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("which", [0, 1])
def test_layouts(operator, make_inputs, device, layout, which):
    inputs = list(make_inputs(device=device))
    inputs[which] = layout(inputs[which])
    copies = [tensor.clone() for tensor in inputs]
    check(operator, inputs, {}, copies)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(
    "layout",
    [
        lambda w: w.contiguous(memory_format=torch.channels_last),
        lambda w: torch.cat([w, w], 1)[:, 1::2],
        lambda w: w.mT.contiguous().mT,
        lambda w: w[:1].expand_as(w),
    ],
)
def test_layouts_of_the_weight(make_inputs, device, layout):
    query, memory, weight = make_inputs(device=device)
    check(FUNCTIONS["offset"], (query, memory, layout(weight)), {})


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_the_gradient(operator, make_inputs, device, layout):
    function, _, number = operator
    inputs = make_inputs(device=device, requires_grad=True)[:number]
    output = function(*inputs)
    upstream = layout(torch.randn(output.shape, device=device))
    expected = torch.autograd.grad(output, inputs, upstream.clone(), retain_graph=True)
    assert_close(torch.autograd.grad(output, inputs, upstream), expected)


def test_a_clip_is_its_own_memory(operator, make_inputs, device):
    function, plain, number = operator
    clip, _, weight = make_inputs(dtype=torch.float64, device=device)
    gradients = []
    for call in (function, plain):
        leaf = clip.clone().requires_grad_()
        call(leaf, leaf, *(weight,)[: number - 2]).square().sum().backward()
        gradients.append(leaf.grad)
    assert_close(*gradients)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sigmoid_is_exact_over_its_range(device, dtype, residual):
    """Differences up to 1e4, of which the exponential holds a hundredth, to a few units of the last place."""
    fine = torch.linspace(-110, 110, 40001, dtype=torch.float64)
    difference = torch.cat([fine, torch.tensor([-1e4, -3e3, -1e3, 1e3, 3e3, 1e4], dtype=torch.float64)])
    memory = torch.full_like(difference, 1.5).to(dtype)
    query = (memory - difference.to(dtype)).to(dtype)
    shape = (1, 1, 1, 1, -1)
    actual = sifa.motion_saliency(
        query.view(shape).to(device), memory.view(shape).to(device), 0, residual=residual
    )
    expected = memory.double() / (1 + torch.exp(query.double() - memory.double()))
    expected = (expected + memory.double() if residual else expected).view(shape)
    # Below every normal number, 0 is right too.
    smallest = torch.finfo(dtype).smallest_normal
    assert_close(actual.double().cpu(), expected, rtol=4 * torch.finfo(dtype).eps, atol=2 * smallest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_features(operator, make_inputs, device, dtype):
    inputs = make_inputs(dtype=dtype, device=device)
    query, memory = (torch.where(x > 0.5, 1e4, torch.where(x < -0.5, -1e4, x)) for x in inputs[:2])
    # float16 does not hold the weight's gradient. On CUDA, where it is PyTorch's, bfloat16's sums cancel far
    # below the precision of their terms.
    exact = dtype in (torch.float32, torch.float64) or (dtype == torch.bfloat16 and device == "cpu")
    backward = operator[2] == 2 or exact
    check(operator, (query, memory, inputs[2]), {}, backward=backward)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_stays_where_it_is(make_inputs, device, dtype, value, which):
    """Saliencies do as the definition does; so do offsets that see them, and those far off see nothing."""
    inputs = list(make_inputs(1, 20, 3, 13, 14, dtype=dtype, device=device))
    clean = sifa.motion_offset(*inputs)
    inputs[which] = inputs[which].clone()
    inputs[which][:, 3, 1, 4, 3] = value
    saliency = sifa.motion_saliency(*inputs[:2])
    expected = plain_saliency(*inputs[:2])
    assert_close(saliency.double().isnan(), expected.isnan())
    assert_close(saliency.isinf(), expected.isinf())
    offset = sifa.motion_offset(*inputs)
    frame = 1 if which == 0 else 0  # memory frame 1 is what frame 0 reads
    if not expected.isfinite().all():
        assert not offset[:, :, frame, 3:6, 2:5].isfinite().any()
    near = torch.zeros_like(clean, dtype=torch.bool)
    near[:, :, frame, :8, :8] = True  # the tiles of 4 × 4 whose windows of 6 × 6 hold the pixel
    assert torch.equal(offset[~near], clean[~near])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_in_the_gradient_stays_in_its_tiles(make_inputs, dtype, value):
    query, memory, weight = make_inputs(1, 20, 3, 13, 14, dtype=dtype)
    gradient = torch.randn(1, 18, 3, 13, 14).to(dtype)

    def backward():
        features = OFFSET_BACKWARD_FEATURES(gradient, query, memory, weight, 1, "clamp", True)
        return (*features, OFFSET_BACKWARD_WEIGHT(gradient, query, memory, 1, "clamp", True))

    clean = backward()
    gradient[:, 7, 1, 4, 3] = value
    *features, of_weight = backward()
    for actual, expected, frame in zip(features, clean, (1, 2), strict=False):  # frame 1 reads frame 2
        assert not actual[:, :, frame, 3:6, 2:5].isfinite().any()
        near = torch.zeros_like(actual, dtype=torch.bool)
        near[:, :, frame, :8, :8] = True  # the tiles of 4 × 4 whose windows of 6 × 6 hold the pixel
        assert torch.equal(actual[~near], expected[~near])
    assert not of_weight[7].isfinite().any()
    others = torch.arange(18) != 7
    assert torch.equal(of_weight[others], clean[2][others])


def test_skipped_frames_read_nothing(operator, make_inputs, device):
    function, _, number = operator
    query, memory, weight = make_inputs(device=device)
    query[:, :, 2] = math.nan
    output = function(query, memory, *(weight,)[: number - 2], edge="skip")
    assert not output[:, :, 2].any()


def test_zero_weights_are_zero_offsets(make_inputs, device):
    query, memory, weight = make_inputs(device=device)
    assert not sifa.motion_offset(query, memory, torch.zeros_like(weight)).any()


def test_the_reference_says_the_same(make_inputs):
    sizes = {"memory_frames": 2}, {"channels": 0}, {"frames": 0, "memory_frames": 2}, {"height": 0}
    for size, options in itertools.product(sizes, OPTIONS.values()):
        inputs = make_inputs(dtype=torch.float64, requires_grad=True, **size)
        for function, plain, number in (
            (reference.motion_saliency, plain_saliency, 2),
            (reference.motion_offset, plain_offset, 3),
        ):
            actual, expected = function(*inputs[:number], **options), plain(*inputs[:number], **options)
            assert_close(actual, expected)
            upstream = torch.randn_like(actual)
            gradients = [
                torch.autograd.grad(output, inputs[:number], upstream, materialize_grads=True)
                for output in (actual, expected)
            ]
            assert_close(*gradients)


@st.composite
def calls(draw):
    """Sizes and options of any call that must work."""
    sizes = {
        "batch": draw(st.integers(0, 2)),
        "channels": draw(st.integers(1, 70)),
        "frames": draw(st.integers(0, 4)),
        "memory_frames": draw(st.integers(1, 4)),
        "height": draw(st.integers(1, 9)),
        "width": draw(st.integers(1, 40)),
        "outputs": draw(st.integers(1, 20)),
        "dtype": draw(st.sampled_from(DTYPES)),
    }
    options = {
        "frame_shift": draw(st.integers(-4, 4)),
        "edge": draw(st.sampled_from(["clamp", "skip"])),
        "residual": draw(st.booleans()),
    }
    layouts = [draw(st.sampled_from(["contiguous", "channels_last", "folded"])) for _ in range(2)]
    return sizes, options, layouts, draw(st.integers(0, 2**31))


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(call=calls())
def test_any_call(operator, make_inputs, device, call):
    sizes, options, layouts, seed = call
    torch.manual_seed(seed)
    query, memory, weight = make_inputs(device=device, **sizes)
    check(operator, (LAYOUTS[layouts[0]](query), LAYOUTS[layouts[1]](memory), weight), options)


# --- Derivatives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["clamp", "skip"])
@pytest.mark.parametrize(("frame_shift", "residual"), [(1, False), (-1, True), (0, False)])
def test_gradcheck(operator, make_inputs, device, edge, frame_shift, residual):
    function, _, number = operator
    inputs = make_inputs(1, 3, 3, 3, 2, 2, outputs=2, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: function(*tensors, frame_shift, edge, residual), inputs[:number]
    )


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_wanted_gradients(operator, make_inputs, device, wanted):
    function, _, number = operator
    inputs = make_inputs(device=device)[:number]
    full = [tensor.clone().requires_grad_() for tensor in inputs]
    function(*full).square().sum().backward()
    some = [tensor.clone().requires_grad_(flag) for tensor, flag in zip(inputs, wanted, strict=False)]
    output = function(*some)
    assert output.requires_grad == any(wanted[:number])
    if output.requires_grad:
        output.square().sum().backward()
    for tensor, complete, flag in zip(some, full, wanted, strict=False):
        if flag:
            assert_close(tensor.grad, complete.grad)
        else:
            assert tensor.grad is None


def test_the_weights_gradient_alone_needs_no_saliency_gradient(make_inputs):
    """What an inference-like use of the features saves: its backward is not run."""
    query, memory, weight = make_inputs()
    output = sifa.motion_offset(query, memory, weight.requires_grad_())
    with torch.profiler.profile() as profiler:
        output.sum().backward()
    names = {event.name for event in profiler.events()}
    assert "sifa::motion_offset_backward_features" not in names
    assert "sifa::motion_offset_backward_weight" in names


def test_fixed_weights_need_no_gradient_of_theirs(make_inputs):
    query, memory, weight = make_inputs()
    output = sifa.motion_offset(query.requires_grad_(), memory, weight)
    with torch.profiler.profile() as profiler:
        output.sum().backward()
    names = {event.name for event in profiler.events()}
    assert "sifa::motion_offset_backward_features" in names
    assert "sifa::motion_offset_backward_weight" not in names


def test_an_input_changed_before_the_backward_is_noticed(operator, make_inputs, device):
    function, _, number = operator
    inputs = make_inputs(device=device, requires_grad=True)[:number]
    output = function(*inputs)
    with torch.no_grad():
        inputs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_second_derivative_is_refused(operator, make_inputs, device):
    function, _, number = operator
    inputs = make_inputs(device=device, requires_grad=True)[:number]
    gradient = torch.autograd.grad(function(*inputs).square().sum(), inputs[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="motion_offset: the second derivative is not implemented"):
        torch.autograd.grad(gradient.sum(), inputs[1])


# --- Contracts --------------------------------------------------------------------------------------------


def test_schemas():
    """Exported models store calls of these: a change breaks every artifact."""
    assert str(SALIENCY._schema) == (
        'sifa::motion_saliency(Tensor query, Tensor memory, int frame_shift=1, str edge="clamp", '
        "bool residual=False) -> Tensor"
    )
    assert str(SALIENCY_BACKWARD._schema) == (
        "sifa::motion_saliency_backward(Tensor grad_output, Tensor query, Tensor memory, int frame_shift, "
        "str edge, bool residual) -> (Tensor, Tensor)"
    )
    assert str(OFFSET._schema) == (
        "sifa::motion_offset(Tensor query, Tensor memory, Tensor weight, int frame_shift=1, "
        'str edge="clamp", bool residual=False) -> Tensor'
    )
    assert str(OFFSET_BACKWARD_FEATURES._schema) == (
        "sifa::motion_offset_backward_features(Tensor grad_output, Tensor query, Tensor memory, "
        "Tensor weight, int frame_shift, str edge, bool residual) -> (Tensor, Tensor)"
    )
    assert str(OFFSET_BACKWARD_WEIGHT._schema) == (
        "sifa::motion_offset_backward_weight(Tensor grad_output, Tensor query, Tensor memory, "
        "int frame_shift, str edge, bool residual) -> Tensor"
    )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    ("sizes", "arguments"),
    [
        ({}, ()),
        ({"dtype": torch.bfloat16, "memory_frames": 2}, (-1, "skip", True)),
        ({"frames": 1, "height": 1, "width": 1}, (0,)),
        ({"batch": 0}, ()),
    ],
)
def test_opcheck(make_inputs, device, requires_grad, sizes, arguments):
    inputs = make_inputs(device=device, requires_grad=requires_grad, **sizes)
    for layout in (lambda x: x, torch.Tensor.contiguous):
        laid_out = [layout(tensor.detach()).requires_grad_(requires_grad) for tensor in inputs]
        torch.library.opcheck(SALIENCY, (*laid_out[:2], *arguments))
        if device == "cpu":
            torch.library.opcheck(OFFSET, (*laid_out, *arguments))


def test_opcheck_of_the_backward(make_inputs, device):
    query, memory, _ = make_inputs(device=device, memory_frames=2)
    torch.library.opcheck(SALIENCY_BACKWARD, (torch.randn_like(query), query, memory, 1, "clamp", True))


@pytest.mark.parametrize(
    "sizes", [{}, {"memory_frames": 2, "dtype": torch.bfloat16}, {"memory_frames": 0}, {"batch": 0}]
)
def test_opcheck_of_the_offsets_backward(make_inputs, sizes):
    query, memory, weight = make_inputs(**sizes)
    gradient = torch.randn_like(OFFSET(query, memory, weight, edge="skip"))
    torch.library.opcheck(OFFSET_BACKWARD_FEATURES, (gradient, query, memory, weight, 1, "skip", True))
    torch.library.opcheck(OFFSET_BACKWARD_WEIGHT, (gradient, query, memory, 1, "skip", True))


# A call that works is changed in one place: (name, value or function of the old value, message).
ERRORS = [
    ("query", lambda x: x[0], r"query must be 5-D \(N, C, T, H, W\), got 4-D \(8, 3, 4, 5\)"),
    ("memory", lambda x: x[0, 0, 0, 0], r"memory must be 5-D \(N, C, M, H, W\), got 1-D \(5\)"),
    ("memory", lambda x: torch.cat([x, x[:1]]), r"memory must have the batch size of query \(2\), got 3"),
    ("memory", lambda x: x[:, :6], r"memory must have the channels of query \(8\), got 6"),
    ("memory", lambda x: x[..., :4], r"memory must have the height and width of query \(4x5\), got 4x4"),
    ("memory", lambda x: x[:, :, :0], r"memory must have at least one frame, got 0"),
    ("memory", lambda x: x.double(), r"memory must have the dtype of query \(float32\), got float64"),
    (
        "memory",
        lambda x: x.to("meta"),
        r"memory must be on the device of query \(cpu\), got (device type|meta)",
    ),
    ("query", lambda x: x.long(), r"query must be float32, float64, float16 or bfloat16, got int64"),
    ("edge", "wrap", r'edge must be "clamp" or "skip", got "wrap"'),
]
SHAPE = r"weight must have the shape \(O, C, 3, 3\) with at least 1 output and the 8 channels of query, got "
WEIGHT_ERRORS = [
    ("weight", lambda x: x[0], r"weight must be 4-D \(O, C, 3, 3\), got 3-D \(8, 3, 3\)"),
    ("weight", lambda x: x[:, :7], SHAPE + r"4-D \(18, 7, 3, 3\)"),
    ("weight", lambda x: x[:0], SHAPE + r"4-D \(0, 8, 3, 3\)"),
    ("weight", lambda x: x[..., :1], SHAPE + r"4-D \(18, 8, 3, 1\)"),
    ("weight", lambda x: x.half(), r"weight must have the dtype of query \(float32\), got float16"),
    (
        "weight",
        lambda x: x.to("meta"),
        r"weight must be on the device of query \(cpu\), got (device type|meta)",
    ),
]
ALL_ERRORS = [("motion_saliency", *error) for error in ERRORS] + [
    ("motion_offset", *error) for error in ERRORS + WEIGHT_ERRORS
]


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
@pytest.mark.parametrize(("function", "name", "change", "message"), ALL_ERRORS)
def test_errors_name_the_argument(make_inputs, function, name, change, message, fake):
    """The kernels check real tensors; compilers, which see none, get the same sentences from the fake."""
    names = ("query", "memory", "weight")[: 2 if function == "motion_saliency" else 3]
    arguments = dict(zip(names, make_inputs(height=4, width=5), strict=False))
    arguments[name] = change(arguments[name]) if callable(change) else change
    with FakeTensorMode() if fake else torch.no_grad() as mode:
        if fake:
            arguments = {
                key: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
                for key, value in arguments.items()
            }
        with pytest.raises(RuntimeError, match=f"^{function}: {message}"):
            getattr(sifa, function)(**arguments)


def test_errors_of_the_backward(make_inputs):
    query, memory, _ = make_inputs()
    for gradient, message in (
        (torch.zeros(2, 8, 3, 5), "grad_output must be 5-D .* got 4-D"),
        (torch.zeros(2, 8, 3, 5, 5), r"grad_output must have the height and width of query \(5x6\), got 5x5"),
        (query.double(), r"grad_output must have the dtype of query \(float32\)"),
    ):
        with pytest.raises(RuntimeError, match=f"^motion_saliency: {message}"):
            SALIENCY_BACKWARD(gradient, query, memory, 1, "clamp", False)


GRADIENT_ERRORS = [
    (lambda g: g[0], r"grad_output must be 5-D \(N, O, T, H, W\), got 4-D \(18, 3, 5, 6\)"),
    (lambda g: g[:1], r"grad_output must have the batch size of query \(2\), got 1"),
    (lambda g: g[:, :, :2], r"grad_output must have the frames of query \(3\), got 2"),
    (lambda g: g[..., :5], r"grad_output must have the height and width of query \(5x6\), got 5x5"),
    (lambda g: g.double(), r"grad_output must have the dtype of query \(float32\), got float64"),
    (
        lambda g: g.to("meta"),
        r"grad_output must be on the device of query \(cpu\), got (device type|meta)",
    ),
]


@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
@pytest.mark.parametrize(
    ("which", "change", "message"),
    [(which, *error) for which in ("features", "weight") for error in GRADIENT_ERRORS]
    + [
        ("features", lambda g: g[:, :17], r"grad_output must have the outputs of weight \(18\), got 17"),
        ("weight", lambda g: g[:, :0], "grad_output must have at least 1 output, got 0"),
    ],
)
def test_errors_of_the_offsets_backward(make_inputs, which, change, message, fake):
    query, memory, weight = make_inputs()
    tensors = [change(torch.zeros(2, 18, 3, 5, 6)), query, memory, *([weight] if which == "features" else [])]
    operator = OFFSET_BACKWARD_FEATURES if which == "features" else OFFSET_BACKWARD_WEIGHT
    with FakeTensorMode() if fake else torch.no_grad() as mode:
        if fake:
            tensors = [mode.from_tensor(tensor) for tensor in tensors]
        with pytest.raises(RuntimeError, match=f"^motion_offset: {message}"):
            operator(*tensors, 1, "clamp", False)


def test_the_backward_checks_the_weight(make_inputs):
    query, memory, weight = make_inputs()
    with pytest.raises(RuntimeError, match=r"^motion_offset: weight must have the shape \(O, C, 3, 3\)"):
        OFFSET_BACKWARD_FEATURES(torch.zeros(2, 18, 3, 5, 6), query, memory, weight[:, :7], 1, "clamp", False)


@pytest.fixture
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "shape", [(1, 64, 2, 28, 28), (3, 130, 3, 7, 7), (1, 20, 1, 5, 900), (1, 4, 4, 90, 160)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("restore_threads")
def test_the_same_bits_with_any_number_of_threads(operator, make_inputs, dtype, shape):
    function, _, number = operator
    inputs = make_inputs(*shape, dtype=dtype, requires_grad=True)[:number]
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        output = function(*inputs)
        gradients = torch.autograd.grad(output.square().sum(), inputs)
        results.append([output, *gradients])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_gradients_are_the_same_again(operator, make_inputs, device):
    function, _, number = operator
    if number == 3 and device != "cpu":
        pytest.skip("the gradients of the offset are PyTorch's on CUDA, which promises no such thing")
    inputs = make_inputs(2, 64, 6, 13, 17, 2, device=device, requires_grad=True)[:number]
    output = function(*inputs)  # clamped: five query frames add to one memory frame
    results = [torch.autograd.grad(output.square().sum(), inputs, retain_graph=True) for _ in range(3)]
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("active", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast(operator, make_inputs, device, active, given):
    function, _, number = operator
    inputs = make_inputs(dtype=given, device=device, requires_grad=True)[:number]
    with torch.autocast(device, dtype=active):
        output = function(*inputs)
    assert output.dtype == active
    assert torch.equal(output, function(*(tensor.to(active) for tensor in inputs)))
    gradients = torch.autograd.grad(output.float().sum(), inputs)
    assert [gradient.dtype for gradient in gradients] == [given] * number


def test_autocast_around_the_backward_alone(operator, make_inputs, device):
    """Gradients are computed in the dtype of the forward, whatever is active then."""
    function, _, number = operator
    inputs = make_inputs(device=device, requires_grad=True)[:number]
    output = function(*inputs)
    upstream = torch.randn_like(output)
    expected = torch.autograd.grad(output, inputs, upstream, retain_graph=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        gradients = torch.autograd.grad(output, inputs, upstream)
    assert_close(gradients, expected)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("options", [(1, "clamp", False), (-1, "skip", True)])
def test_the_composed_backward(make_inputs, wanted, options, active):
    """What CUDA and "meta" have instead of a kernel of their own, here on the CPU."""
    query, memory, weight = make_inputs(memory_frames=2)
    gradient = torch.randn_like(OFFSET(query, memory, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=active):
        composed = _composed_offset_backward(gradient, query, memory, weight, options, *wanted)
    expected = (
        *OFFSET_BACKWARD_FEATURES(gradient, query, memory, weight, *options),
        OFFSET_BACKWARD_WEIGHT(gradient, query, memory, *options),
    )
    for actual, own, flag in zip(composed, expected, (wanted[0], wanted[0], wanted[1]), strict=True):
        if flag:
            assert_near(actual, own.double(), torch.float32, "the composed gradient")
        else:
            assert actual is None


def test_autocast_leaves_float64_alone(make_inputs):
    inputs = make_inputs(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sifa.motion_offset(*inputs), OFFSET(*inputs))
        assert sifa.motion_saliency(*inputs[:2]).dtype == torch.float64
    assert sifa.motion_offset(*inputs).dtype == torch.float64


def test_flops(make_inputs, device):
    """A convolution's for the offsets; nothing for what is elementwise, as PyTorch's counter has it."""
    query, memory, weight = make_inputs(2, 8, 3, 5, 6, device=device, requires_grad=True)
    pixels = 2 * 3 * 5 * 6
    on_meta = tuple(x.detach().to("meta").requires_grad_() for x in (query, memory, weight))
    for inputs in ((query, memory, weight), on_meta):
        with FlopCounterMode(display=False) as counter:
            offset = sifa.motion_offset(*inputs)
        assert counter.get_total_flops() == 2 * 9 * 8 * 18 * pixels
        with FlopCounterMode(display=False) as counter:
            offset.sum().backward()
        assert counter.get_total_flops() == 2 * 2 * 9 * 8 * 18 * pixels
        with FlopCounterMode(display=False) as counter:
            sifa.motion_saliency(*inputs[:2]).sum().backward()
        assert counter.get_total_flops() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fake_output_is_like_the_real_one(operator, make_inputs, dtype):
    function, _, number = operator
    for shape in ((2, 8, 3, 5, 6), (2, 8, 1, 1, 1), (1, 1, 3, 1, 4), (0, 8, 3, 5, 6)):
        for layout in (lambda x: x, torch.Tensor.contiguous):
            tensors = [layout(tensor) for tensor in make_inputs(*shape, dtype=dtype)[:number]]
            real = function(*tensors)
            with FakeTensorMode() as mode:
                fake = function(*map(mode.from_tensor, tensors))
            assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
            meta = function(*(tensor.to("meta") for tensor in tensors))
            assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)


# --- Compilers --------------------------------------------------------------------------------------------


def gradients_of(function, *inputs):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output, *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compiled_operators_do_not_recompile(operator, make_inputs, device, requires_grad):
    function, _, number = operator
    torch._dynamo.utils.counters.clear()
    # Inductor fixes the sizes of PyTorch's backward of a convolution, which that of the offset calls on CUDA.
    backend = "aot_eager" if requires_grad and number == 3 and device != "cpu" else "inductor"
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for batch, frames, height, width in ((2, 4, 6, 7), (3, 5, 9, 12), (5, 2, 2, 3)):
        inputs = make_inputs(batch, 8, frames, height, width, frames + 1, device=device)[:number]
        if requires_grad:
            assert_close(gradients_of(compiled, *inputs), gradients_of(function, *inputs))
        else:
            assert_close(compiled(*inputs), function(*inputs))
    # cuDNN's convolution is PyTorch's to compile again.
    if device == "cpu" or function is sifa.motion_saliency:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def motion(query: torch.Tensor, memory: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a user writes."""
    behind = sifa.motion_offset(query, memory, weight, frame_shift=-1, residual=True)
    saliency = sifa.motion_saliency(query, memory, edge="skip").mean(1, keepdim=True)
    return sifa.motion_offset(query, memory, weight) - behind * saliency


def test_script(make_inputs, device):
    scripted = torch.jit.script(motion)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    loaded = torch.jit.load(io.BytesIO(file.getvalue()))
    inputs = make_inputs(device=device)
    for _ in range(3):  # the profiling executor changes its mind in the first calls
        for engine in (scripted, loaded):
            assert_close(gradients_of(engine, *inputs), gradients_of(motion, *inputs))


class Offset(torch.nn.Module):
    """What a user exports."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 18, 3)

    def forward(self, query, memory):
        offset = sifa.motion_offset(query, memory, self.conv.weight, -1, "skip", True)
        return offset + sifa.motion_saliency(query, memory).mean()


def test_export_and_aot_inductor(make_inputs, tmp_path):
    module = Offset().eval()
    query, memory, _ = make_inputs(memory_frames=4)
    axes = {0: "n", 3: "h", 4: "w"}
    dims = {axis: torch.export.Dim(name, min=2, max=64) for axis, name in axes.items()}
    frames = torch.export.Dim("t", min=2, max=64), torch.export.Dim("m", min=2, max=64)
    exported = torch.export.export(
        module, (query, memory), dynamic_shapes=({**dims, 2: frames[0]}, {**dims, 2: frames[1]})
    )
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(OFFSET) == targets.count(SALIENCY) == 1
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "offset.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for sizes in ((2, 8, 3, 5, 6, 4), (3, 8, 5, 9, 4, 2)):
        query, memory, _ = make_inputs(*sizes)
        with torch.no_grad():
            expected = module(query, memory)
            assert_close(exported.module()(query, memory), expected)
            assert_close(compiled(query, memory), expected)
