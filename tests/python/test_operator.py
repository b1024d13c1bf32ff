"""The operator against the plain PyTorch reference, forward and backward, over everything it takes."""

import math

import pytest
import sifa
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sifa import reference
from torch.testing import assert_close

OPTIONS = {
    "paper": {},
    "causal": {"frame_shift": -1},
    "skip": {"edge": "skip"},
    "causal-skip-softmax": {"frame_shift": -1, "edge": "skip", "softmax": True},
    "softmax": {"softmax": True},
    "groups": {"groups": 4},
    "one-channel-groups": {"groups": 8, "softmax": True},
    "scale": {"scale": -0.37},
    "aggregate": {"residual": False},
    "same-frame": {"frame_shift": 0, "softmax": True, "groups": 2},
    "beyond-the-clip": {"frame_shift": 7},
    "nothing-there": {"frame_shift": -7, "edge": "skip"},
    "1x1": {"kernel_size": 1, "softmax": True},
    "5x5-dilated": {"kernel_size": 5, "dilation": 2, "groups": 2},
    "7x7": {"kernel_size": 7, "residual": False},
    "9x9": {"kernel_size": 9, "softmax": True},
}

# Features, offsets.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


def check(inputs, options, reference_inputs=None, **tolerance):
    """Compare values, dtypes, shapes and gradients of the operator with the reference's."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    copies = [tensor.detach().clone().requires_grad_() for tensor in reference_inputs or inputs]
    output = sifa.inter_frame_attention(*inputs, **options)
    expected = reference.inter_frame_attention(*copies, **options)
    assert_close(output, expected, **tolerance)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(output, inputs, weight)
    expected_gradients = torch.autograd.grad(expected, copies, weight)
    for name, gradient, wanted in zip(
        ("query", "memory", "offset"), gradients, expected_gradients, strict=True
    ):
        # A sum of many terms in float32 or float64 errs by the size of its terms; a half precision gradient
        # is such a sum, rounded once.
        precision = torch.finfo(wanted.dtype).eps
        terms = torch.finfo(torch.promote_types(wanted.dtype, torch.float32)).eps
        largest = wanted.abs().max().item() if wanted.numel() else 0.0
        assert_close(
            gradient,
            wanted,
            rtol=max(precision, 16 * terms),
            atol=16 * terms * largest,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("dtype", "offset_dtype"), DTYPES)
def test_options(make_inputs, device, options, dtype, offset_dtype):
    kernel_size = options.get("kernel_size", 3)
    inputs = make_inputs(kernel_size=kernel_size, dtype=dtype, offset_dtype=offset_dtype, device=device)
    check(inputs, options)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 12, 17, 33, 40, 63, 72, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_remainder_of_the_vectors(make_inputs, device, channels, dtype):
    check(make_inputs(2, channels, 2, 4, 5, dtype=dtype, device=device), {})


@pytest.mark.parametrize(("channels", "groups"), [(12, 4), (18, 6), (40, 5), (48, 2), (51, 3), (136, 4)])
@pytest.mark.parametrize("softmax", [False, True])
def test_groups_of_every_size(make_inputs, device, channels, groups, softmax):
    check(make_inputs(1, channels, 2, 4, 5, device=device), {"groups": groups, "softmax": softmax})


@pytest.mark.parametrize("planes", [True, False], ids=["planes", "channels-last"])
@pytest.mark.parametrize(("dtype", "offset_dtype"), DTYPES)
def test_several_tiles(make_inputs, device, planes, dtype, offset_dtype):
    """Of pixels, which a kernel takes together: whole ones and parts of one, across and down."""
    query, memory, offset = make_inputs(
        1, 16, 2, 9, 14, dtype=dtype, offset_dtype=offset_dtype, device=device
    )
    check((query, memory, offset if planes else offset.to(memory_format=torch.channels_last_3d)), {})


@pytest.mark.parametrize("edge", ["clamp", "skip"])
@pytest.mark.parametrize("frame_shift", [-3, -1, 0, 1, 2])
@pytest.mark.parametrize(("frames", "memory_frames"), [(1, 3), (4, 2), (2, 5), (3, 1)])
def test_memory_of_another_length(make_inputs, device, edge, frame_shift, frames, memory_frames):
    inputs = make_inputs(frames=frames, memory_frames=memory_frames, device=device)
    check(inputs, {"edge": edge, "frame_shift": frame_shift})


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (0, 8, 3, 5, 6),
        (2, 8, 0, 5, 6),
        (2, 8, 3, 0, 6),
        (2, 8, 3, 5, 0),
        (1, 8, 1, 5, 6),
        (2, 8, 3, 1, 1),
        (1, 1, 1, 1, 1),
        (2, 4, 2, 1, 7),
        (2, 4, 2, 7, 1),
    ],
)
def test_empty_and_single(make_inputs, device, shape, softmax):
    check(make_inputs(*shape, device=device), {"softmax": softmax})


def test_no_memory_frame_at_all(make_inputs, device):
    query, memory, offset = make_inputs(memory_frames=0, device=device)
    check((query, memory, offset), {"edge": "skip"})
    assert_close(sifa.inter_frame_attention(query, memory, offset, edge="skip"), query)


def test_a_clip_is_its_own_memory(make_inputs, device):
    clip, _, offset = make_inputs(dtype=torch.float64, device=device)
    gradients = []
    for function in (sifa.inter_frame_attention, reference.inter_frame_attention):
        leaf = clip.clone().requires_grad_()
        function(leaf, leaf, offset).square().sum().backward()
        gradients.append(leaf.grad)
    assert_close(*gradients)


# name: (tensor with the strides wanted, of a (2, 8, 3, 5, 6) or an offset's shape)
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "folded": lambda x: (
        x.transpose(1, 2)
        .flatten(0, 1)
        .contiguous(memory_format=torch.channels_last)
        .unflatten(0, (x.shape[0], x.shape[2]))
        .transpose(1, 2)
    ),
    "batch_expanded": lambda x: x[:1].expand_as(x),
    "frames_expanded": lambda x: x[:, :, :1].expand_as(x),
    "pixels_expanded": lambda x: x.contiguous(memory_format=torch.channels_last_3d)[..., :1, :1].expand_as(x),
    "channels_expanded": lambda x: x[:, :1].expand_as(x),
    "sliced_frames": lambda x: torch.cat([x, x], 2).to(memory_format=torch.channels_last_3d)[:, :, ::2],
    "sliced_pixels": lambda x: torch.nn.functional.pad(x, (2, 1, 1, 3)).to(
        memory_format=torch.channels_last_3d
    )[..., 1:-3, 2:-1],
    "every_other_pixel": lambda x: (
        x.repeat_interleave(2, 3)
        .repeat_interleave(2, 4)
        .to(memory_format=torch.channels_last_3d)[..., ::2, ::2]
    ),
    "sliced_channels": lambda x: torch.cat([x, x, x], 1).to(memory_format=torch.channels_last_3d)[
        :, x.shape[1] : 2 * x.shape[1]
    ],
    "every_other_channel": lambda x: x.repeat_interleave(2, 1).to(memory_format=torch.channels_last_3d)[
        :, ::2
    ],
    "transposed": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
    "shifted_storage": lambda x: (
        torch.cat([x.flatten()[:1], x.flatten()]).narrow(0, 1, x.numel()).view(x.shape)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("which", [0, 1, 2])
def test_layouts(make_inputs, device, layout, which):
    inputs = list(make_inputs(device=device))
    shape = inputs[which].shape
    inputs[which] = layout(inputs[which])
    assert inputs[which].shape == shape
    before = [tensor.clone() for tensor in inputs]
    check(inputs, {}, reference_inputs=before)
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_the_gradient(make_inputs, device, layout):
    inputs = [tensor.requires_grad_() for tensor in make_inputs(device=device)]
    weight = layout(torch.randn(2, 8, 3, 5, 6, device=device))
    gradients = torch.autograd.grad(sifa.inter_frame_attention(*inputs), inputs, weight)
    expected = torch.autograd.grad(reference.inter_frame_attention(*inputs), inputs, weight.clone())
    assert_close(gradients, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e4, -6e4])
def test_offsets_that_are_not_numbers_drop_their_tap(make_inputs, device, softmax, dtype, value):
    query, memory, offset = make_inputs(dtype=dtype, device=device)
    bad = torch.rand(offset.shape, device=device) < 0.2
    offset = offset.masked_fill(bad, value)
    check((query, memory, offset), {"softmax": softmax})
    leaf = offset.clone().requires_grad_()
    sifa.inter_frame_attention(query, memory, leaf, softmax=softmax).sum().backward()
    pairs = bad.unflatten(1, (-1, 2)).any(2, keepdim=True).expand(-1, -1, 2, -1, -1, -1).flatten(1, 2)
    assert (leaf.grad[pairs] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38, 1e19, -1e10, 2.0**31, 2.0**63])
def test_nothing_but_dropped_taps(make_inputs, device, value):
    query, memory, offset = make_inputs(device=device)
    offset = torch.full_like(offset, value)
    assert_close(sifa.inter_frame_attention(query, memory, offset), query)


def test_not_a_number_in_the_memory_stays_where_it_is(make_inputs, device):
    query, memory, offset = make_inputs(batch=1, frames=3, device=device)
    memory[:, :, 0] = math.nan  # no frame reads frame 0 with a shift of 1
    output = sifa.inter_frame_attention(query, memory, offset)
    assert output.isfinite().all()


def test_infinity_at_the_border_is_not_multiplied_by_the_zeros_outside(make_inputs, device):
    """A corner outside the frame counts as 0, and is not the nearest pixel times 0, which is not a number."""
    query, memory, offset = make_inputs(batch=1, device=device)
    query, memory, offset = query.abs(), memory.abs(), 3 * offset + 0.3
    memory[..., 0, :] = math.inf
    memory[..., :, -1] = math.inf
    output = sifa.inter_frame_attention(query, memory, offset)
    assert output.isinf().any()
    assert output.isfinite().any()
    assert not output.isnan().any()
    assert_close(output, reference.inter_frame_attention(query, memory, offset))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_softmax_of_large_logits(device, dtype, size, sign):
    """Logits of ±1000, more than the exponential can hold; in 5x5 pixels, taps at the border are dropped."""
    query = torch.full((1, 1, 1, size, size), sign * 100.0, dtype=dtype, device=device)
    memory = torch.full_like(query, 10.0)
    kernel_size = 1 if size == 1 else 3
    offset = torch.zeros(1, 2 * kernel_size**2, 1, size, size, dtype=dtype, device=device)
    arguments = (query, memory, offset, kernel_size, 1, 1, None, 0, "clamp", True, False)
    output = sifa.inter_frame_attention(*arguments)
    assert_close(output, reference.inter_frame_attention(*arguments))
    middle = output[..., size // 2, size // 2]
    assert_close(middle, torch.full_like(middle, 10))  # no tap is dropped there


def test_positions_on_the_borders(make_inputs, device):
    """Offsets that put taps exactly at -1, 0, H-1 and H, where a comparison decides."""
    query, memory, offset = make_inputs(dtype=torch.float64, device=device)
    check((query, memory, offset.round()), {})
    check((query, memory, (2 * offset).round() / 2), {"softmax": True})


def test_a_dilation_beyond_the_frame(make_inputs, device):
    check(make_inputs(device=device), {"dilation": 100})


@st.composite
def calls(draw):
    """Sizes and options of any call that must work."""
    group_size, groups = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    kernel_size = draw(st.sampled_from([1, 3, 3, 5]))
    dtype, offset_dtype = draw(st.sampled_from(DTYPES))
    sizes = {
        "batch": draw(st.integers(0, 2)),
        "channels": group_size * groups,
        "frames": draw(st.integers(0, 4)),
        "memory_frames": draw(st.integers(1, 4)),
        "height": draw(st.integers(1, 6)),
        "width": draw(st.integers(1, 6)),
        "kernel_size": kernel_size,
        "dtype": dtype,
        "offset_dtype": offset_dtype,
        "sigma": draw(st.sampled_from([0.0, 0.5, 3.0])),
    }
    options = {
        "kernel_size": kernel_size,
        "dilation": draw(st.integers(1, 3)),
        "groups": groups,
        "scale": draw(st.none() | st.floats(-2, 2)),
        "frame_shift": draw(st.integers(-3, 3)),
        "edge": draw(st.sampled_from(["clamp", "skip"])),
        "softmax": draw(st.booleans()),
        "residual": draw(st.booleans()),
    }
    layouts = [draw(st.sampled_from(["contiguous", "channels_last", "folded"])) for _ in range(3)]
    return sizes, options, layouts, draw(st.integers(0, 2**31))


@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(call=calls())
def test_any_call(make_inputs, device, call):
    sizes, options, layouts, seed = call
    torch.manual_seed(seed)
    inputs = make_inputs(device=device, **sizes)
    inputs = [LAYOUTS[layout](tensor) for layout, tensor in zip(layouts, inputs, strict=True)]
    check(inputs, options)
