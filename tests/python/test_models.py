"""The registered models: what they are made of, that every engine agrees, and what their errors say."""

import json

import pytest
import sifa
import torch
from lively import lively_model
from safetensors.torch import save_file
from sifa.insertion import InsertedSIFA
from sifa.models import VideoClassifier, model_card
from sifa.models.classifier import stack_frames
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

FRAMES = 8


def small(name: str, **options) -> VideoClassifier:
    return sifa.create_model(name, num_classes=5, num_frames=FRAMES, **options).eval()


def clips(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, FRAMES, size, size, generator=torch.Generator().manual_seed(1))


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What safetensors can write; the models' convolutions are channels-last."""
    return {key: value.contiguous() for key, value in state.items()}


def inserted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, InsertedSIFA)]


def lively(name: str) -> VideoClassifier:
    return lively_model(name, clips(), num_classes=5, num_frames=FRAMES)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if name == "sifa_resnet50" else ())
        for name in sifa.list_models()
    ]
)
def model(request):
    """Every registered model, made lively."""
    return lively(request.param)


def test_script_freeze_and_export_equal_eager(model):
    model, inputs = model.double(), clips().double()  # float32 rounding adds up over the blocks
    with torch.no_grad():
        expected = model(inputs)
        scripted = torch.jit.script(model)
        frozen = torch.jit.freeze(scripted)
        exported = torch.export.export(model, (inputs,)).module()
        for engine in (scripted, frozen, frozen, exported):  # frozen, the second run is the optimised one
            torch.testing.assert_close(engine(inputs), expected, rtol=1e-8, atol=1e-10)
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.parametrize("name", ["sifa_tiny", pytest.param("sifa_resnet18", marks=pytest.mark.slow)])
def test_compile_equals_eager(name):
    model, inputs = lively(name).double(), clips().double()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-8, atol=1e-10)


def test_gradient_reaches_every_parameter(model):
    model.train()(clips()).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_a_new_model_already_learns_its_offsets():
    model = small("sifa_tiny").train()
    model(clips()).square().sum().backward()
    offsets = [p for name, p in model.named_parameters() if "conv_offset" in name]
    assert len(offsets) == 3
    assert all(not p.any() and p.grad.any() for p in offsets)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sifa_tiny", {}, ["layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"]),
        ("sifa_resnet18", {"stages": [4]}, ["layer4.1.conv2"]),
        (
            "sifa_resnet50",
            {},
            [f"layer{s}.{b}.conv3" for s, b in ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5), (4, 1))],
        ),
        ("sifa_tiny", {"stages": ()}, []),
    ],
)
def test_where_sifa_is(name, options, expected):
    assert inserted(small(name, **options)) == [f"backbone.{place}" for place in expected]


def test_the_stem_is_the_published_one():
    """A 2-D convolution of stacked frames with the parameters and the result of a Conv3d."""
    convolution = small("sifa_resnet50").backbone.conv1
    published = nn.Conv3d(3, 64, (4, 7, 7), stride=(4, 2, 2), padding=(0, 3, 3), bias=False)
    assert convolution.weight.numel() == published.weight.numel()
    published.weight.data = convolution.weight.data.view(64, 3, 4, 7, 7)
    expected = published(clips())
    actual = convolution(stack_frames(clips(), 4)).unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_parameter_counts():
    def learnable(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    tiny, plain = sifa.create_model("sifa_tiny"), sifa.create_model("sifa_tiny", stages=())
    offsets = sum(18 * 9 * channels for channels in (48, 96, 128))
    assert learnable(tiny) == learnable(plain) + offsets < 1_500_000
    # timm's ResNet-50 with 400 classes, 9 more channels in its stem, and the offsets of six blocks.
    stem, head = 64 * 9 * 49, 2048 * 400 + 400
    assert learnable(sifa.create_model("sifa_resnet50")) == 23_508_032 + stem + head + 18 * 9 * (
        2 * 128 + 3 * 256 + 512
    )


class _Copies(TorchDispatchMode):
    """Counts the operators that copy or convert a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sifa_tiny", "sifa_resnet50"])
def test_features_stay_channels_last_without_copies(name):
    """One copy, that stacks the frames; from there on the network reads and writes channels-last in place."""
    model = small(name)
    formats = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
    with torch.no_grad(), _Copies() as copies:
        model(clips())
    assert len(formats) > 10
    assert all(formats)
    assert len(copies.seen) == 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "frames_first", "sliced"])
def test_any_layout_of_the_clip(layout):
    model, clip = small("sifa_tiny"), clips()
    same = {
        "contiguous": clip,
        "channels_last_3d": clip.contiguous(memory_format=torch.channels_last_3d),
        "frames_first": clip.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3),
        "sliced": torch.cat([clip, clip], 2)[:, :, FRAMES:],
    }[layout]
    torch.testing.assert_close(model(same), model(clip))


def test_set_num_frames():
    model = small("sifa_tiny")
    assert model.num_frames == model.config["num_frames"] == FRAMES
    model.set_num_frames(12)
    assert model.num_frames == model.config["num_frames"] == 12
    longer = torch.randn(2, 3, 12, 64, 64)
    assert model(longer).shape == (2, 5)
    torch.testing.assert_close(model(longer)[1:], model(longer[1:]))  # clips do not see each other
    with pytest.raises(ValueError, match="clip must have 12 frames, got 8; use set_num_frames"):
        model(clips())
    with pytest.raises(torch.jit.Error, match="clip must have 12 frames, got 8"):
        torch.jit.script(model)(clips())


@pytest.mark.parametrize("num_frames", [0, -4, 6, 8.0, True])
def test_bad_num_frames(num_frames):
    with pytest.raises(ValueError, match="num_frames must be a positive multiple of 4, got"):
        sifa.create_model("sifa_tiny", num_frames=num_frames)
    with pytest.raises(ValueError, match="num_frames must be a positive multiple of 4, got"):
        small("sifa_tiny").set_num_frames(num_frames)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(3, 8, 64, 64), r"clip must be \(N, 3, T, H, W\), got \[3, 8, 64, 64\]"),
        (torch.zeros(1, 8, 3, 64, 64), r"clip must be \(N, 3, T, H, W\), got \[1, 8, 3, 64, 64\]"),
        (torch.zeros(1, 3, 16, 64, 64), "clip must have 8 frames, got 16"),
    ],
)
def test_bad_clips(clip, message):
    with pytest.raises(ValueError, match=message):
        small("sifa_tiny")(clip)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sifa_resnet5"}, "no model is called 'sifa_resnet5'; did you mean 'sifa_resnet50'"),
        ({"name": "x"}, "no model is called 'x'; known: sifa_resnet18, sifa_resnet50, sifa_tiny"),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"stages": [1]}, r"stages must be among \[2, 3, 4\], those with a second block, got \[1\]"),
        ({"name": "sifa_resnet18", "stages": [5]}, r"stages must be among \[1, 2, 3, 4\], .*, got \[5\]"),
        ({"kernel": 3}, "unknown model option 'kernel'; known: stages, dropout, kernel_size, dilation"),
        ({"residual": False}, "unknown model option 'residual'"),
        ({"kernel_size": 2}, "kernel_size must be odd"),
        (
            {"pretrained": "imagenet"},
            r"a tag of sifa_tiny \(it has: 'motion'\) or the path of a .safetensors file",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sifa.create_model(**{"name": "sifa_tiny", **arguments})


def test_list_models_and_cards():
    assert sifa.list_models() == ["sifa_resnet18", "sifa_resnet50", "sifa_tiny"]
    assert sifa.list_models("*resnet*") == ["sifa_resnet18", "sifa_resnet50"]
    for name in sifa.list_models():
        card = model_card(name)
        assert (card.name, card.num_frames % 4) == (name, 0)


def test_attributes_describe_the_model_and_make_it_again():
    model = small("sifa_tiny", kernel_size=5, frame_shift=-1, edge="skip", stages=(3, 4), dropout=0.2)
    assert (model.name, model.num_classes, model.num_frames) == ("sifa_tiny", 5, FRAMES)
    assert (model.input_size, model.crop_fraction, model.frame_stride) == ((112, 112), 1.0, 1)
    assert len(model.mean) == len(model.std) == 3
    assert model.labels == [f"class_{i}" for i in range(5)]
    assert model.dropout.p == 0.2
    again = sifa.create_model(model.name, **json.loads(json.dumps(model.config)))
    assert str(again) == str(model.train())
    assert again.config == model.config


def test_dropout_acts_in_training_only():
    model = small("sifa_tiny", dropout=0.5)
    torch.testing.assert_close(model(clips()), model(clips()))
    model.dropout.train()
    assert not torch.allclose(model(clips()), model(clips()))


def test_weights_from_a_file(tmp_path):
    model, path = small("sifa_tiny"), tmp_path / "weights.safetensors"
    save_file(contiguous(model.state_dict()), path)
    loaded = small("sifa_tiny", pretrained=str(path))
    assert torch.equal(loaded(clips()), model(clips()))
    assert loaded.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="no file of weights at .*weights.safetensors"):
        small("sifa_tiny", pretrained=str(path))
    state = small("sifa_tiny").state_dict()
    del state["head.bias"]
    state["neck.bias"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(7, 128)
    save_file(contiguous(state), path)
    with pytest.raises(RuntimeError) as error:
        small("sifa_tiny", pretrained=str(path))
    for line in (
        "weights.safetensors do not fit sifa_tiny:",
        "missing: head.bias",
        "unexpected: neck.bias",
        "head.weight: the model has (5, 128), the weights (7, 128)",
    ):
        assert line in str(error.value)
