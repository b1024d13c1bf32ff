"""A window that slides over a stream: equal to the clip model on the same frames, and nothing is done twice.

Offsets have a standard deviation of 2 pixels (`lively`), and the state a new stream is given is not a number,
so that nothing of it can get through.
"""

import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from sifa.artifact import FrameClassifier
from sifa.models import VideoClassifier
from sifa.models.window import WindowClassifier
from torch import nn

STRIDE = 4
STEPS = 3  # of the window


def make(name="sifa_tiny", **options):
    """In float64: the random networks amplify rounding."""
    settings = {"num_classes": 5, "num_frames": STEPS * STRIDE, "input_size": 64, **options}
    build = sifa.create_model if "temporal" in options else lively_model
    return build(name, **settings).double().eval()


def videos(steps):
    """Neither square nor of the network's size."""
    return moving_blocks(steps * STRIDE, size=80)[2:4, :, :70].contiguous()


def new_state(window, streams):
    return [torch.full((streams, *like.shape[1:]), float("nan")).to(like.dtype) for like in window.state_like]


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("sifa_tiny", {}, "layer2.1"),
        ("sifa_tiny", {"temporal": None}, "1"),  # a 2-D network: only the last layer sees the window
        ("sifa_resnet18", {}, "layer2.0"),  # its clip-wide context
        ("sifa_resnet18", {"global_context": "frame"}, "layer2.1"),
        ("sifa_resnet18", {"stages": (4,)}, "1"),  # of the two branches, behind the backbone
        ("sifa_resnet18", {"dual_branch": True}, "layer2.0"),
        ("sifa_tiny", {"num_frames": STRIDE, "kernel_size": 1}, "layer2.1"),
        ("sifa_tiny", {"temporal": "shift"}, "layer2.1"),
        ("sifa_tiny", {"streaming": True}, "layer2.1"),
        ("sifa_swin_tiny", {}, "layers.0"),
        ("sifa_mobilenetv4_small", {}, "blocks.2.1"),
        ("sifa_convnext_atto", {}, "stages.1"),
    ],
)
@torch.no_grad()
def test_equals_the_clip_model_on_the_same_frames(name, options, first):
    model, frames = make(name, **options), videos(STEPS + 6)
    length = model.num_steps
    classifier, window = FrameClassifier(model), WindowClassifier(model)
    cut = [name for name, module in window.model.backbone.named_modules() if hasattr(module, "join")]
    assert cut == [first]
    state, end, answers = new_state(window, 2), 0, []
    for steps in (length, 1, min(2, length), length):
        given = frames[:, end * STRIDE : (end + steps) * STRIDE]
        answer, state = window(given, state, torch.full((2,), end == 0))
        end += steps
        expected = classifier(frames[:, (end - length) * STRIDE : end * STRIDE])
        torch.testing.assert_close(answer, expected.to(answer.dtype), rtol=0, atol=1e-5)
        answers.append(answer)
    assert (answers[1] - answers[0]).abs().max() > 1e-4  # windows differ: the comparison can fail


@torch.no_grad()
def test_what_does_not_depend_on_the_window_is_computed_for_new_frames_only():
    window = WindowClassifier(make())
    seen = {}
    for name in ("conv1", "layer2.0", "layer2.1.block", "layer4.1"):
        module = window.model.backbone.get_submodule(name)
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, len(args[0])))
    _, state = window(videos(STEPS), new_state(window, 2), torch.ones(2, dtype=torch.bool))
    assert seen == {"conv1": 6, "layer2.0": 6, "layer2.1.block": 6, "layer4.1": 6}
    window(videos(1), state, torch.zeros(2, dtype=torch.bool))
    assert seen == {"conv1": 2, "layer2.0": 2, "layer2.1.block": 6, "layer4.1": 6}


@torch.no_grad()
def test_the_state_is_an_argument():
    """A call leaves its arguments and the model as they were, and keeps nothing."""
    model = make()
    clip = torch.randn(1, 3, STEPS * STRIDE, 64, 64, dtype=torch.float64)
    before = model(clip)
    window = WindowClassifier(model)
    frames, going_on = videos(1), torch.zeros(2, dtype=torch.bool)
    _, state = window(videos(STEPS), new_state(window, 2), ~going_on)
    kept = [tensor.clone() for tensor in state]
    answer, after = window(frames, state, going_on)
    assert all(map(torch.equal, state, kept))
    for tensor, like in zip(after, window.state_like, strict=True):
        assert (tensor.shape, tensor.dtype) == ((2, *like.shape[1:]), like.dtype)
        assert tensor.is_contiguous()
    assert torch.equal(window(frames, state, going_on)[0], answer)
    assert torch.equal(model(clip), before)
    for count in (0, 3, (STEPS + 1) * STRIDE):
        given = videos(STEPS + 1)[:, :count]
        with pytest.raises(ValueError, match=f"frames must be those of 1 to 3 steps, 4 of each, got {count}"):
            window(given, state, going_on)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, scale=1.0):
        return self.conv(x) * scale


class Backbone(nn.Module):
    """Two blocks behind a convolution, called in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.stem = nn.Conv2d(3 * STRIDE, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        first, second = self.blocks
        features = {
            "in order": lambda: second(first(x)),
            "beside a skip": lambda: x + second(first(x)),
            "twice": lambda: second(second(first(x))),
            "with an argument": lambda: second(first(x), scale=2.0),
        }[self.way]()
        return features.mean((2, 3))


@pytest.mark.parametrize("way", ["in order", "beside a skip", "twice", "with an argument"])
@torch.no_grad()
def test_a_backbone_that_does_not_go_through_one_block_is_refused(way):
    example = torch.zeros(STEPS, 3 * STRIDE, 16, 16)
    backbone = sifa.insert(Backbone("in order"), "blocks.1.conv", STEPS, layout="NCHW", example=example)
    backbone.way = way
    model = VideoClassifier(backbone, 8, 5, STEPS * STRIDE, STRIDE, 0.0).double().eval()
    model.input_size, model.crop_fraction = (16, 16), 1.0
    model.mean, model.std = (0.5,) * 3, (0.25,) * 3
    if way == "in order":
        window = WindowClassifier(model)
        frames = torch.randint(0, 256, (1, (STEPS + 1) * STRIDE, 20, 20, 3), dtype=torch.uint8)
        _, state = window(frames[:, :-STRIDE], new_state(window, 1), torch.ones(1, dtype=torch.bool))
        answer, _ = window(frames[:, -STRIDE:], state, torch.zeros(1, dtype=torch.bool))
        torch.testing.assert_close(answer, FrameClassifier(model)(frames[:, STRIDE:]), rtol=0, atol=1e-5)
        return
    with pytest.raises(
        ValueError, match=r"cannot slide as a window: .* backbone.blocks.1 once, as one tensor"
    ):
        WindowClassifier(model)
