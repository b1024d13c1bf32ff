"""A causal model step by step: equal to the clip model on the whole prefix, whatever the engine.

Offsets have a standard deviation of 2 pixels (`lively`), and the state a new stream is given is not a number,
so that nothing of it can get through.
"""

import pytest
import sifa
import torch
from lively import lively_model, moving_blocks, offsets
from make_runtime_data import pattern
from prefixes import on_prefixes
from sifa.models.streaming import StreamingClassifier
from sifa.preprocessing import ClipPreprocessing

STRIDE = 4
WINDOW = 3  # steps that the head averages
STEPS = 8
SIZE = 64

# TorchScript is deprecated upstream and still what C++ loads.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


def causal(name="sifa_tiny", **options):
    """In float64: the random networks amplify rounding."""
    settings = {"num_classes": 5, "num_frames": WINDOW * STRIDE, "input_size": SIZE, **options}
    return lively_model(name, streaming=True, **settings).double()


def videos(count=2, steps=STEPS):
    """Neither square nor of the network's size."""
    return moving_blocks(steps * STRIDE, size=80)[2 : 2 + count, :, :70].contiguous()


def new_state(stepping, streams):
    return [
        torch.full((streams, *like.shape[1:]), float("nan")).to(like.dtype) for like in stepping.state_like
    ]


def run(step, frames, state, first=None):
    """Every step's answer, (steps, N, classes). `first`: (steps, N), by default at the first step."""
    answers = []
    for i in range(frames.shape[1] // STRIDE):
        begins = torch.full((frames.shape[0],), i == 0) if first is None else first[i]
        probabilities, state = step(frames[:, i * STRIDE : (i + 1) * STRIDE].contiguous(), state, begins)
        answers.append(probabilities)
    return torch.stack(answers)


@pytest.fixture(scope="module")
def model():
    return causal()


@pytest.fixture(scope="module")
def stepping(model):
    return StreamingClassifier(model)


@torch.no_grad()
def test_the_comparison_can_fail(model, stepping):
    frames = videos()
    preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
    clip = preprocessing(frames[:, : WINDOW * STRIDE]).double()
    assert min(layer.std() for layer in offsets(model, clip).values()) >= 1
    expected = run(stepping, frames, new_state(stepping, 2))
    assert (expected[1:] - expected[:-1]).abs().amax(2).min() > 1e-3  # every step says something else
    forgetful = run(stepping, frames, new_state(stepping, 2), torch.ones(STEPS, 2, dtype=torch.bool))
    assert (forgetful[1:] - expected[1:]).abs().amax(2).min() > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sifa_tiny", {}),
        ("sifa_tiny", {"edge": "skip", "residual_saliency": True, "groups": 4}),
        ("sifa_tiny", {"offset_from": "difference", "softmax": True, "global_context": "frame"}),
        ("sifa_tiny", {"offset_from": "memory", "kernel_size": 5}),
        ("sifa_resnet18", {}),
        ("sifa_swin_tiny", {}),
        ("sifa_mobilenetv4_small", {}),
    ],
)
@torch.no_grad()
def test_every_step_equals_the_clip_model_on_the_prefix(name, options):
    model, frames = causal(name, **options), videos(steps=5)
    stepping = StreamingClassifier(model)
    assert len(stepping.state_like) == 2 + sum(isinstance(m, sifa.SIFA) for m in model.modules())
    answers = run(stepping, frames, new_state(stepping, 2))
    torch.testing.assert_close(answers, on_prefixes(model, frames), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_sifa_a_full_window_is_the_clip_model():
    model = sifa.create_model(
        "sifa_tiny", num_frames=WINDOW * STRIDE, input_size=SIZE, streaming=True, temporal=None
    ).eval()
    stepping, frames = StreamingClassifier(model), videos()
    answers = run(stepping, frames, new_state(stepping, 2))
    for end in range(WINDOW, STEPS + 1):
        clip = stepping.stem.preprocessing(frames[:, (end - WINDOW) * STRIDE : end * STRIDE])
        torch.testing.assert_close(answers[end - 1], model(clip).softmax(1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_late_steps_equal_a_clip_that_starts_one_window_and_the_layers_earlier(model, stepping):
    frames = moving_blocks(40 * STRIDE, count=1, size=SIZE)
    answers = run(stepping, frames, new_state(stepping, 1))
    layers = sum(isinstance(m, sifa.SIFA) for m in model.modules())
    reach = WINDOW + layers
    for step in (reach, 20, 39):
        clip = frames[:, (step + 1 - reach) * STRIDE : (step + 1) * STRIDE]
        torch.testing.assert_close(answers[step], on_prefixes(model, clip)[-1], rtol=0, atol=1e-5)
    shorter = frames[:, (40 - WINDOW) * STRIDE :]
    assert (answers[-1] - on_prefixes(model, shorter)[-1]).abs().max() > 1e-4  # a window alone is too short


@pytest.mark.slow
@torch.no_grad()
def test_late_steps_of_a_run_of_10000(model, stepping):
    video = torch.from_numpy(pattern(256, SIZE, SIZE)).unsqueeze(0)  # it repeats
    reach = WINDOW + sum(isinstance(m, sifa.SIFA) for m in model.modules())

    def frames(begin, end):
        return torch.stack([video[:, i % 256] for i in range(begin * STRIDE, end * STRIDE)], 1)

    state = new_state(stepping, 1)
    sizes = []
    for step in range(10_000):
        answer, state = stepping(frames(step, step + 1), state, torch.tensor([step == 0]))
        sizes.append(sum(tensor.numel() for tensor in state))
        if step in (100, 5000, 9999):
            expected = on_prefixes(model, frames(step + 1 - reach, step + 1))[-1]
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)
    assert len(set(sizes)) == 1


@torch.no_grad()
def test_every_stream_begins_and_restarts_on_its_own(stepping):
    frames = videos(3)
    first = torch.zeros(STEPS, 3, dtype=torch.bool)
    first[0] = True
    first[3, 1] = first[5, 1] = first[4, 2] = True
    together = run(stepping, frames, new_state(stepping, 3), first)
    for stream, restarts in enumerate(([0], [0, 3, 5], [0, 4])):
        for begin, end in zip(restarts, [*restarts[1:], STEPS], strict=True):
            part = frames[stream : stream + 1, begin * STRIDE : end * STRIDE]
            alone = run(stepping, part, new_state(stepping, 1))[:, 0]
            torch.testing.assert_close(together[begin:end, stream], alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_state_is_an_argument(stepping):
    """A step leaves its arguments as they were, keeps nothing, and gives tensors of the stated shapes."""
    frames, first = videos(2, 1), torch.ones(2, dtype=torch.bool)
    state = stepping.initial_state(2)
    before = [tensor.clone() for tensor in state]
    answer, after = stepping(frames, state, first)
    assert all(map(torch.equal, state, before))
    for tensor, like in zip(after, stepping.state_like, strict=True):
        assert tensor.shape == (2, *like.shape[1:])
        assert tensor.dtype == like.dtype
        assert tensor.is_contiguous()
    assert torch.equal(stepping(frames, after, first)[0], answer)
    with pytest.raises(ValueError, match="frames must be the 4 of one step, got 8"):
        stepping(videos(2, 2), state, first)


@torch.no_grad()
def test_the_model_is_left_as_it_was(model):
    clip = torch.randn(1, 3, WINDOW * STRIDE, SIZE, SIZE, dtype=torch.float64)
    before = model(clip)
    stepping = StreamingClassifier(model)
    stepping(videos(1, 1), stepping.initial_state(1), torch.ones(1, dtype=torch.bool))
    assert torch.equal(model(clip), before)


def test_what_cannot_be_streamed():
    for options, culprit in (
        ({}, "SIFA at backbone.layer2.1.conv2"),
        ({"temporal": "shift"}, "TemporalShift at backbone.layer2.1.conv2"),
    ):
        with pytest.raises(ValueError, match=f"cannot be streamed: {culprit} depends on later steps; create"):
            StreamingClassifier(sifa.create_model("sifa_tiny", num_frames=8, **options))
    with pytest.raises(ValueError, match="cannot be streamed: the dual branch depends on later steps"):
        StreamingClassifier(sifa.create_model("sifa_tiny", num_frames=8, dual_branch=True, frame_shift=-1))


# --- The block --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["clamp", "skip"])
@pytest.mark.parametrize("residual", [True, False])
def test_a_block_steps_as_it_attends(randomize_offsets, edge, residual):
    clip = torch.randn(2, 8, 4, 6, 7)
    block = randomize_offsets(sifa.SIFA(8, groups=2, frame_shift=-1, edge=edge, residual=residual), 1.5, clip)
    memory = torch.full_like(clip[:, :, :1], float("nan"))
    for t in range(4):
        frame = clip[:, :, t : t + 1]
        output = block.step(frame, memory, torch.full((2,), t == 0))
        torch.testing.assert_close(output, block(clip[:, :, : t + 1])[:, :, -1:], rtol=0, atol=1e-5)
        memory = frame


def test_what_a_block_cannot_step():
    frame, first = torch.randn(1, 8, 1, 5, 5), torch.ones(1, dtype=torch.bool)
    for options in ({}, {"frame_shift": -1, "offset_from": "clip"}):
        with pytest.raises(RuntimeError, match="SIFA: only a block that looks one frame back can be stepped"):
            sifa.SIFA(8, **options).step(frame, frame, first)
    with pytest.raises(RuntimeError, match=r"frame must be 5-D \(N, 8, 1, H, W\), got \[1, 8, 2, 5, 5\]"):
        sifa.SIFA(8, frame_shift=-1).step(frame.expand(1, 8, 2, 5, 5), frame, first)
