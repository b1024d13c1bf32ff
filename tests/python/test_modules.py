"""The SIFA block against the equations, its options, its memory and its errors."""

import copy

import pytest
import sifa
import torch
import torch.nn.functional as F
from sifa import reference
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

# TorchScript is deprecated upstream and still what C++ loads.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

CLIP = (2, 8, 4, 6, 7)


@pytest.fixture
def clip():
    return torch.randn(CLIP).contiguous(memory_format=torch.channels_last_3d)


def equations(block, clip):
    """Section by section, frame by frame, with a convolution per frame."""
    last = clip.shape[2] - 1
    offsets = []
    for t in range(clip.shape[2]):
        frame = clip[:, :, t]
        neighbour = clip[:, :, min(max(t + block.frame_shift, 0), last)]
        if block.offset_from == "clip":
            # A 3-D convolution is one 2-D convolution per frame that it reaches, zeros beyond the ends.
            frames = [clip[:, :, i] if 0 <= i <= last else torch.zeros_like(frame) for i in (t - 1, t, t + 1)]
            weights = block.conv_offset.weight.unbind(2)
            offsets.append(sum(F.conv2d(f, w, padding=1) for f, w in zip(frames, weights, strict=True)))
            continue
        saliency = {
            "saliency": torch.sigmoid(neighbour - frame) * neighbour,
            "memory": neighbour,
            "difference": neighbour - frame,
        }[block.offset_from]
        if block.residual_saliency:
            saliency = saliency + neighbour
        if (
            block.offset_from == "saliency"
            and block.edge == "skip"
            and not 0 <= t + block.frame_shift <= last
        ):
            saliency = torch.zeros_like(frame)
        offsets.append(F.conv2d(saliency, block.conv_offset.weight, padding=1))
    offset = torch.stack(offsets, 2)
    output = reference.inter_frame_attention(
        clip,
        clip,
        offset,
        block.kernel_size,
        block.dilation,
        block.groups,
        None,
        block.frame_shift,
        block.edge,
        block.softmax,
        block.residual,
    )
    return offset, output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"frame_shift": -1},
        {"frame_shift": 3},
        {"frame_shift": -9},
        {"edge": "skip"},
        {"residual_saliency": True, "edge": "skip"},
        {"offset_from": "memory", "groups": 4},
        {"offset_from": "difference", "softmax": True},
        {"offset_from": "clip"},
        {"kernel_size": 5, "dilation": 2, "residual": False},
    ],
)
def test_equations(randomize_offsets, clip, options):
    block = randomize_offsets(sifa.SIFA(8, **options), 1.5, clip)
    offset, output = equations(block, clip)
    assert 1.4 < offset.std() < 1.6
    assert_close(block.offset(clip), offset, rtol=1e-4, atol=1e-5)
    assert_close(block(clip), output, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_clip_and_the_weights(randomize_offsets, clip):
    block = randomize_offsets(sifa.SIFA(8, groups=2), 1.5, clip)
    results = []
    for function in (block, lambda x: equations(block, x)[1]):
        leaf = clip.clone().requires_grad_()
        block.zero_grad()
        function(leaf).square().sum().backward()
        results.append((leaf.grad, block.conv_offset.weight.grad.clone()))
    for mine, expected in zip(*results, strict=True):
        assert_close(mine, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_new_block_attends_to_the_regular_grid(clip):
    block = sifa.SIFA(8)
    assert [name for name, _ in block.named_parameters()] == ["conv_offset.weight"]
    assert block.conv_offset.weight.shape == (18, 8, 3, 3)
    assert (block.conv_offset.weight == 0).all()
    regular = sifa.SIFA(8, offset_from="none")
    assert not list(regular.parameters())
    assert_close(block(clip), regular(clip))
    assert_close(block(clip), sifa.inter_frame_attention(clip, clip, torch.zeros(2, 18, 4, 6, 7)))
    # It learns from there: the gradient of the offsets is not 0.
    block(clip).square().sum().backward()
    assert block.conv_offset.weight.grad.abs().max() > 0


def test_a_causal_block_sees_no_later_frame(randomize_offsets, clip):
    for frame_shift, unchanged in ((-1, slice(0, 2)), (1, slice(3, 4))):
        block = randomize_offsets(sifa.SIFA(8, frame_shift=frame_shift), 1.5, clip)
        other = clip.clone()
        other[:, :, 2] += 1
        before, after = block(clip), block(other)
        assert torch.equal(before[:, :, unchanged], after[:, :, unchanged])
        assert not torch.equal(before[:, :, 2], after[:, :, 2])


def test_frames_of_different_clips_never_meet(randomize_offsets, clip):
    block = randomize_offsets(sifa.SIFA(8), 1.5, clip)
    together = block(clip)
    assert_close(torch.cat([block(clip[:1]), block(clip[1:])]), together)


def test_any_layout_gives_the_same(randomize_offsets, clip):
    block = randomize_offsets(sifa.SIFA(8), 1.5, clip)
    expected = block(clip)
    folded = clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    padded = F.pad(clip, (1, 1)).contiguous(memory_format=torch.channels_last_3d)[..., 1:-1]
    for other in (clip.contiguous(), folded.unflatten(0, (2, 4)).transpose(1, 2), padded):
        output = block(other)
        assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert output.is_contiguous(memory_format=torch.channels_last_3d)


def test_channels_last_is_never_copied(clip):
    """Every tensor as large as the clip is accounted for."""
    folded = clip.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    viewed = folded.unflatten(0, (2, 4)).transpose(1, 2)
    block = sifa.SIFA(8)
    with torch.no_grad():
        block(viewed)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            block(viewed)
    large = [e for e in profiler.events() if e.self_cpu_memory_usage == 4 * clip.numel()]
    # The output: neither the neighbours nor their saliency are ever written.
    assert len(large) == 1


@pytest.mark.parametrize("shape", [(0, 8, 4, 6, 7), (2, 8, 1, 6, 7), (1, 8, 3, 1, 1), (1, 8, 1, 1, 1)])
@pytest.mark.parametrize("offset_from", ["saliency", "memory", "difference", "clip", "none"])
def test_empty_and_single(shape, offset_from):
    clip = torch.randn(shape, requires_grad=True)
    output = sifa.SIFA(8, offset_from=offset_from)(clip)
    assert output.shape == shape
    output.sum().backward()
    assert clip.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(randomize_offsets, clip, dtype):
    block = randomize_offsets(sifa.SIFA(8), 1.5, clip)
    narrow = copy.deepcopy(block).to(dtype)
    output = narrow(clip.to(dtype))
    assert output.dtype == dtype
    assert narrow.offset(clip.to(dtype)).dtype == dtype
    if dtype == torch.float64:
        assert_close(output, block(clip).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scripted", [False, True])
def test_autocast(randomize_offsets, clip, scripted):
    block = randomize_offsets(sifa.SIFA(8), 1.5, clip)
    function = torch.jit.script(block) if scripted else block
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = function(clip)
        offset = block.offset(clip)
    assert output.dtype == torch.bfloat16
    features = clip.bfloat16()
    expected = sifa.inter_frame_attention(features, features, offset.float())
    assert_close(output, expected)
    output.float().sum().backward()
    assert block.conv_offset.weight.grad.dtype == torch.float32


def test_state_is_one_tensor(clip, randomize_offsets):
    block = randomize_offsets(sifa.SIFA(8, groups=2), 1.5, clip)
    other = sifa.SIFA(8, groups=2)
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(clip), block(clip))
    assert torch.equal(copy.deepcopy(block)(clip), block(clip))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"kernel_size": 2}, "kernel_size must be odd and between 1 and 9, got 2"),
        ({"dilation": 0}, "dilation must be between 1 and 16777216, got 0"),
        ({"dilation": 2**40}, "dilation must be between 1 and 16777216, got 1099511627776"),
        ({"groups": 3}, "groups must be a divisor of the 8 channels, got 3"),
        ({"groups": 0}, "groups must be a divisor of the 8 channels, got 0"),
        ({"edge": "wrap"}, 'edge must be "clamp" or "skip", got \'wrap\''),
        ({"offset_from": "flow"}, 'offset_from must be "saliency", "memory", "difference", "clip" or "none"'),
        (
            {"offset_from": "none", "residual_saliency": True},
            'residual_saliency must be False unless offset_from is "saliency", got True',
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"^SIFA: {message}"):
        sifa.SIFA(**{"channels": 8, **options})


@pytest.mark.parametrize("shape", [(2, 8, 6, 7), (2, 6, 4, 6, 7)])
def test_bad_clips(shape):
    for block in (sifa.SIFA(8), torch.jit.script(sifa.SIFA(8))):
        with pytest.raises(
            (RuntimeError, torch.jit.Error), match=r"SIFA: clip must be 5-D \(N, 8, T, H, W\), got"
        ):
            block(torch.zeros(shape))


def test_repr_says_how_it_is_set_up():
    text = repr(sifa.SIFA(8, groups=2, frame_shift=-1, offset_from="difference"))
    for part in ("8, kernel_size=3", "groups=2", "frame_shift=-1", "offset_from='difference'"):
        assert part in text
