"""The equations: a case worked out by hand and a slow loop, met by the reference and the operator alike."""

import math

import pytest
import sifa
import torch
from sifa import reference
from torch.testing import assert_close

QUERY = torch.tensor([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
MEMORY = torch.tensor([[0.0, 1, 0], [2, 3, 4], [0, 5, 0]])


@pytest.fixture(params=[reference.inter_frame_attention, sifa.inter_frame_attention])
def attention(request):
    return request.param


def hand_case(tap_offset=(0.0, 0.0)):
    """A clip of two 3×3 frames with one channel; the centre tap of frame 0's centre pixel is moved."""
    clip = torch.stack([QUERY, MEMORY])[None, None].clone()
    offset = torch.zeros(1, 18, 2, 3, 3)
    offset[0, 8:10, 0, 1, 1] = torch.tensor(tap_offset)
    return clip, offset


def test_sums_of_squares_by_hand(attention):
    clip, offset = hand_case()
    output = attention(clip, clip, offset)
    # One channel and one group make scale = 1, so A = Σ_p (q·k'_p)·k'_p = q·Σ_p k'_p².
    # Centre of frame 0: q = 5 and Σ k'² = 0+1+0 + 4+9+16 + 0+25+0 = 55.
    assert output[0, 0, 0, 1, 1] == 5 + 5 * 55
    # Top left corner: q = 1, four taps are inside: 0+1+4+9 = 14. Bottom right: q = 9, 9+16+25+0 = 50.
    assert output[0, 0, 0, 0, 0] == 1 + 1 * 14
    assert output[0, 0, 0, 2, 2] == 9 + 9 * 50
    # Frame 1 is the last and attends to itself. Centre: q = 3.
    assert output[0, 0, 1, 1, 1] == 3 + 3 * 55


def test_edges_and_shifts_by_hand(attention):
    clip, offset = hand_case()
    # Without a neighbour there is no aggregate.
    assert_close(attention(clip, clip, offset, edge="skip")[0, 0, 1], MEMORY)
    assert_close(
        attention(clip, clip, offset, edge="skip", residual=False)[0, 0, 1], torch.zeros_like(MEMORY)
    )
    # One frame back, frame 1 reads frame 0, whose centre has Σ k'² = 1+4+9+16+25+36+49+64+81 = 285.
    assert attention(clip, clip, offset, frame_shift=-1)[0, 0, 1, 1, 1] == 3 + 3 * 285
    # Frame 0 has nothing before it: clamped to itself, or skipped.
    assert attention(clip, clip, offset, frame_shift=-1)[0, 0, 0, 1, 1] == 5 + 5 * 285
    assert attention(clip, clip, offset, frame_shift=-1, edge="skip")[0, 0, 0, 1, 1] == 5


@pytest.mark.parametrize(
    ("tap_offset", "sample"),
    [
        # (1.5, 0.75): half of row 1 and half of row 2, a quarter of column 0 and three quarters of column 1:
        # .125·2 + .375·3 + .125·0 + .375·5 = 3.25
        ((0.5, -0.25), 3.25),
        # (-0.5, 1): half of the pixel (0, 1); the corner above the frame counts as 0.
        ((-1.5, 0.0), 0.5),
        # (2.5, 1): half of the pixel (2, 1).
        ((1.5, 0.0), 2.5),
        # y = -1 is no longer inside -1 < y < 3, and neither are x = 3 and what is not a number.
        ((-2.0, 0.0), 0.0),
        ((0.0, 2.0), 0.0),
        ((math.nan, 0.0), 0.0),
        ((0.0, math.inf), 0.0),
        ((-math.inf, math.nan), 0.0),
    ],
)
def test_moved_tap_by_hand(attention, tap_offset, sample):
    clip, offset = hand_case(tap_offset)
    output = attention(clip, clip, offset)
    # Of Σ k'² = 55 the centre tap had 3² = 9.
    assert output[0, 0, 0, 1, 1] == 5 + 5 * (46 + sample**2)


def test_gradients_by_hand(attention):
    clip, offset = hand_case((0.5, -0.25))
    query, memory = clip.clone().requires_grad_(), clip.clone().requires_grad_()
    offset.requires_grad_()
    attention(query, memory, offset)[0, 0, 0, 1, 1].backward()
    # Y = q + q·(46 + k'²) with q = 5 and k' = 3.25, so dY/dq = 1 + 46 + 10.5625 and dY/dk' = 2·5·3.25.
    assert query.grad[0, 0, 0, 1, 1] == 1 + 46 + 10.5625
    # dk'/dy is the lower row minus the upper: (.25·0 + .75·5) - (.25·2 + .75·3) = 1;
    # dk'/dx is the right column minus the left: (.5·3 + .5·5) - (.5·2 + .5·0) = 3.
    assert_close(offset.grad[0, 8:10, 0, 1, 1], torch.tensor([32.5 * 1, 32.5 * 3]))
    # Pixel (2, 1) of frame 1, of value 5, is tap 7 (dA/dk' = 2·5·5) and 3/8 of the moved tap.
    assert_close(memory.grad[0, 0, 1, 2, 1], torch.tensor(50 + 32.5 * 0.375))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("tap_offset", [(-2.0, 0.0), (0.0, 2.0), (math.nan, 0.0), (0.0, math.inf)])
def test_a_dropped_tap_has_no_gradient(attention, tap_offset, softmax):
    clip, offset = hand_case(tap_offset)
    clip.requires_grad_()
    offset.requires_grad_()
    # At y = -1 and x = 3 exactly the bilinear surface has a slope, and a softmax would pass it on.
    attention(clip, clip, offset, softmax=softmax)[0, 0, 0, 1, 1].backward()
    assert offset.grad[0, 8:10, 0, 1, 1].tolist() == [0, 0]
    # At the other taps the frame's bilinear surface has slopes, so the rest is not 0.
    assert offset.grad.abs().sum() > 0
    assert clip.grad.isfinite().all()


def test_softmax_keeps_the_logit_of_dropped_taps(attention):
    # On a 1×1 frame only the centre tap is inside. Its logit is ln 2 · 1 and the eight others are 0, so its
    # weight is 2 / (2 + 8) and the aggregate 0.2 · 1.
    query = torch.full((1, 1, 1, 1, 1), math.log(2.0))
    output = attention(
        query, torch.ones_like(query), torch.zeros(1, 18, 1, 1, 1), softmax=True, residual=False
    )
    assert_close(output.flatten(), torch.tensor([0.2]))


def test_groups_weigh_their_own_channels(attention, make_inputs):
    query, memory, offset = make_inputs(channels=6)
    output = attention(query, memory, offset, groups=3, scale=0.5)
    for group in (slice(0, 2), slice(2, 4), slice(4, 6)):
        assert_close(output[:, group], attention(query[:, group], memory[:, group], offset, scale=0.5))
    # The default scale divides by the channels of a group.
    assert_close(attention(query, memory, offset, groups=3), attention(query, memory, offset, 3, 1, 3, 0.5))


def slow_loop(
    query, memory, offset, kernel_size, dilation, groups, scale, frame_shift, edge, softmax, residual
):
    """The definition, one number at a time."""
    batch, channels, frames, height, width = query.shape
    size = channels // groups
    output = query.clone() if residual else torch.zeros_like(query)

    def pixel(frame, row, column):
        inside = 0 <= row < height and 0 <= column < width
        return frame[:, row, column] if inside else torch.zeros(channels, dtype=query.dtype)

    for n, t, row, column in torch.cartesian_prod(
        *map(torch.arange, (batch, frames, height, width))
    ).tolist():
        neighbour = t + frame_shift
        if edge == "skip" and not 0 <= neighbour < memory.shape[2]:
            continue
        frame = memory[n, :, min(max(neighbour, 0), memory.shape[2] - 1)]
        samples = []
        for p in range(kernel_size**2):
            i, j = divmod(p, kernel_size)
            y = row + (i - (kernel_size - 1) // 2) * dilation + offset[n, 2 * p, t, row, column].item()
            x = column + (j - (kernel_size - 1) // 2) * dilation + offset[n, 2 * p + 1, t, row, column].item()
            sample = torch.zeros(channels, dtype=query.dtype)
            if -1 < y < height and -1 < x < width:
                top, left = math.floor(y), math.floor(x)
                for corner_y, corner_x in (
                    (top, left),
                    (top, left + 1),
                    (top + 1, left),
                    (top + 1, left + 1),
                ):
                    share = (1 - abs(y - corner_y)) * (1 - abs(x - corner_x))
                    sample = sample + share * pixel(frame, corner_y, corner_x)
            samples.append(sample)
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            taps = torch.stack([sample[part] for sample in samples])
            weights = scale * (taps @ query[n, part, t, row, column])
            if softmax:
                weights = weights.softmax(0)
            output[n, part, t, row, column] += weights @ taps
    return output


@pytest.mark.parametrize(
    "arguments",
    [
        (3, 1, 1, 0.25, 1, "clamp", False, True),
        (3, 2, 2, 0.5, -1, "skip", True, True),
        (5, 1, 4, 1.0, 0, "clamp", True, False),
        (1, 1, 1, -0.7, 2, "skip", False, False),
    ],
)
def test_slow_loop(attention, make_inputs, arguments):
    query, memory, offset = make_inputs(
        2, 4, 2, 3, 4, memory_frames=3, kernel_size=arguments[0], dtype=torch.float64
    )
    offset[0, 1, 0, 1, 1] = math.nan
    assert_close(attention(query, memory, offset, *arguments), slow_loop(query, memory, offset, *arguments))


def test_the_pieces_make_the_whole(make_inputs):
    query, memory, offset = make_inputs(channels=4, memory_frames=2, dtype=torch.float64)
    offset[:, 0] = math.nan
    positions = reference.tap_positions(offset, 3, 2)
    assert positions.shape == (2, 9, 2, 3, 5, 6)
    # Tap 5 is row 1, column 2 of the 3×3: (0, +1)·dilation from the pixel.
    expected = torch.tensor([4.0, 3 + 2], dtype=torch.float64) + offset[1, 10:12, 2, 4, 3]
    assert_close(positions[1, 5, :, 2, 4, 3], expected)
    frames = reference.neighbour_frames(memory, 3)
    assert_close(frames, memory[:, :, [1, 1, 1]])
    skipped = reference.neighbour_frames(memory, 3, edge="skip")
    assert_close(skipped, torch.cat([memory[:, :, 1:], torch.zeros_like(memory)], 2))
    weights = reference.attention_weights(query, memory, offset, dilation=2, groups=2, softmax=True)
    assert weights.shape == (2, 2, 9, 3, 5, 6)
    assert_close(weights.sum(2), torch.ones(2, 2, 3, 5, 6, dtype=torch.float64))
    # Where every feature of a frame is 1, a sample inside is 1 and the aggregate is the sum of its weights.
    ones = torch.ones_like(memory)
    still = torch.zeros_like(offset)
    inner = reference.attention_weights(query, ones, still, groups=2).sum(2)[..., 1:-1, 1:-1]
    aggregate = reference.inter_frame_attention(query, ones, still, groups=2, residual=False)
    assert_close(aggregate[:, ::2, :, 1:-1, 1:-1], inner)


def test_half_features_are_computed_in_float32(make_inputs):
    query, memory, offset = make_inputs(dtype=torch.bfloat16, offset_dtype=torch.float32)
    output = reference.inter_frame_attention(query, memory, offset)
    exact = reference.inter_frame_attention(query.float(), memory.float(), offset)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16())


def test_second_derivatives_of_the_reference(make_inputs):
    query, memory, offset = make_inputs(1, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    # Away from the integers, where the slope jumps.
    offset = (offset.detach().floor() + torch.empty_like(offset).uniform_(0.2, 0.8)).requires_grad_()
    assert torch.autograd.gradgradcheck(reference.inter_frame_attention, (query, memory, offset))
