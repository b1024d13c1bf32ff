"""The registered models: what they are made of, that every engine agrees, and what their errors say."""

import copy
import dataclasses
import json

import pytest
import sifa
import torch
from lively import lively_model
from safetensors.torch import save_file
from sifa.insertion import Insertion
from sifa.models import VideoClassifier, complexity, model_card
from sifa.models.classifier import max_of_step_pairs, stack_frames
from sifa.modules import GlobalContext, TemporalConvolution
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

FRAMES, SIZE = 8, 64
# Of each family the smallest; the others are in the long matrix.
SMALLEST = ("sifa_tiny", "sifa_resnet18", "sifa_swin_tiny", "sifa_mobilenetv4_small")
NAMES = [
    pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in sifa.list_models()
]


def small(name: str, **options) -> VideoClassifier:
    return sifa.create_model(
        name, **{"num_classes": 5, "num_frames": FRAMES, "input_size": SIZE, **options}
    ).eval()


def clips(count: int = 2, size: int = SIZE, num_frames: int = FRAMES) -> torch.Tensor:
    return torch.randn(count, 3, num_frames, size, size, generator=torch.Generator().manual_seed(1))


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What safetensors can write; the models' convolutions are channels-last."""
    return {key: value.contiguous() for key, value in state.items()}


def inserted(model: nn.Module, kind: type[nn.Module] = nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Insertion) and isinstance(module.inserted, kind)
    ]


def lively(name: str, **options) -> VideoClassifier:
    settings = {"num_classes": 5, "num_frames": FRAMES, "input_size": SIZE, **options}
    # With 50 residual branches wide open, rounding grows to 3e-7 even in float64.
    opening = 0.1 if name == "sifa_resnet152" else 1.0
    return lively_model(name, clips(num_frames=settings["num_frames"]), opening, **settings)


@pytest.fixture(params=NAMES)
def model(request):
    """Every registered model, made lively."""
    return lively(request.param)


def test_every_engine_equals_eager(model, tmp_path):
    """In float64: rounding in float32 adds up over the blocks."""
    model, inputs = model.double(), clips().double()
    with torch.no_grad():
        expected = model(inputs)
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)
        scripted = torch.jit.script(model)
        frozen = torch.jit.freeze(scripted)
        exported = torch.export.export(model, (inputs,))
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
        engines = {
            "script": scripted,
            "freeze": frozen,
            "freeze, optimised": frozen,  # from the second run on
            "export": exported.module(),
            "compile": torch.compile(model, fullgraph=True),
            "AOTInductor": torch._inductor.aoti_load_package(package),
        }
        for name, engine in engines.items():
            torch.testing.assert_close(
                engine(inputs), expected, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name, dtype):
    """The probabilities of a network that amplifies errors little, against those of float32.

    They move by less than when the offsets are taken away, or reversed where it would then blow up.
    """
    opening = 0.25 if name == "sifa_tiny" else 0.1  # which has few blocks
    model = lively_model(name, clips(), opening, num_classes=5, num_frames=FRAMES, input_size=SIZE)
    with torch.no_grad():
        expected = model(clips()).softmax(1)
        half = copy.deepcopy(model).to(dtype)(clips().to(dtype))
        for module in model.modules():
            if isinstance(module, sifa.SIFA):
                module.conv_offset.weight *= -1 if name in ("sifa_resnet101", "sifa_resnet152") else 0
        changed = model(clips()).softmax(1)
    assert half.dtype == dtype
    error = (half.float().softmax(1) - expected).abs().max()
    assert error < (0.15 if dtype == torch.bfloat16 else 0.03)
    assert error < (changed - expected).abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_a_new_model_gives_finite_numbers(name):
    torch.manual_seed(0)
    model = small(name)
    assert model(clips()).isfinite().all()
    assert model.train()(clips()).isfinite().all()


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
        ("sifa_tiny", {}, ["backbone.layer2.1.conv2", "backbone.layer3.1.conv2", "backbone.layer4.1.conv2"]),
        ("sifa_resnet18", {"stages": [4]}, ["layer4.1.conv2", "layer4_dual.1.conv2"]),
        (
            "sifa_resnet50",
            {},
            [f"backbone.layer{s}.{b}.conv3" for s, b in ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5))]
            + ["layer4.1.conv3", "layer4_dual.1.conv3"],
        ),
        (
            "sifa_resnet50",
            {"stages": (1, 2), "dual_branch": False},
            [f"backbone.layer{s}.{b}.conv3" for s, b in ((1, 1), (2, 1), (2, 3))],
        ),
        (
            "sifa_swin_tiny",
            {},
            [
                f"backbone.layers.{s}.blocks.{b}.drop_path1"
                for s in range(4)
                for b in (0, 2, 4)[: 1 + 2 * (s == 2)]
            ],
        ),
        ("sifa_tiny", {"stages": ()}, []),
        ("sifa_tiny", {"temporal": None}, []),
    ],
)
def test_where_sifa_is(name, options, expected):
    assert inserted(small(name, **options), sifa.SIFA) == expected


def test_where_the_global_context_is():
    places = inserted(small("sifa_resnet50"), GlobalContext)
    assert places == [
        *(f"backbone.layer{s}.{b}.bn3" for s, b in ((2, 0), (2, 2), (3, 0), (3, 2), (3, 4))),
        *(f"{stage}.{b}.bn3" for stage in ("layer4", "layer4_dual") for b in (0, 2)),
    ]


def test_the_global_context_is_its_equation():
    torch.manual_seed(0)
    x = torch.randn(2, 32, 3, 4, 5)
    for over, axes in (("clip", (2, 3, 4)), ("frame", (3, 4))):
        context = GlobalContext(32, over)
        mean = x.mean(axes, keepdim=True).movedim(1, -1)
        expected = x + context.fc2(context.fc1(mean).relu()).movedim(-1, 1)
        torch.testing.assert_close(context(x), expected)


def test_the_temporal_convolution_is_a_convolution_over_time():
    torch.manual_seed(0)
    module, x = TemporalConvolution(6), torch.randn(2, 6, 4, 3, 5)
    assert torch.equal(module(x), x)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    expected = x + nn.functional.conv3d(
        x, module.conv.weight[..., None, None], module.conv.bias, padding=(1, 0, 0)
    )
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))
    assert module(x[:, :, :1]).shape == (2, 6, 1, 3, 5)


def test_swin_with_the_released_temporal_convolution():
    plain, with_it = small("sifa_swin_tiny"), small("sifa_swin_tiny", temporal_conv=True)
    places = inserted(with_it, TemporalConvolution)
    assert places == [
        place.replace(f"blocks.{b}", f"blocks.{b + 1}")
        for place in inserted(plain)
        for b in (0, 2, 4)
        if f"blocks.{b}." in place
    ]
    more = sum(3 * with_it.get_submodule(place).inserted.conv.in_channels ** 2 for place in places)
    biases = sum(with_it.get_submodule(place).inserted.conv.in_channels for place in places)
    assert complexity(with_it).parameters - complexity(plain).parameters == more + biases


def test_the_logits_are_the_mean_of_the_heads_probabilities():
    model = lively("sifa_resnet18")
    with torch.no_grad():
        heads = model.forward_heads(clips())
        assert heads.shape == (2, 2, 5)
        assert not torch.allclose(heads[:, 0], heads[:, 1], atol=1e-2)
        torch.testing.assert_close(model(clips()).softmax(1), heads.softmax(2).mean(1))
    single = small("sifa_resnet18", dual_branch=False)
    torch.testing.assert_close(single.forward_heads(clips())[:, 0], single(clips()))


@pytest.mark.parametrize("num_frames", [8, 12, 16])
def test_the_dual_branch_pools_pairs_of_steps(num_frames):
    x = torch.randn(2, 3, num_frames // 4, 5, 6)
    folded = x.transpose(1, 2).flatten(0, 1)
    expected = nn.functional.max_pool3d(x, (2, 1, 1), (2, 1, 1)).transpose(1, 2).flatten(0, 1)
    assert torch.equal(max_of_step_pairs(folded, num_frames // 4), expected)
    with torch.no_grad():
        assert small("sifa_resnet18", num_frames=num_frames)(clips(num_frames=num_frames)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sifa_tiny", {}),
        ("sifa_resnet18", {}),
        ("sifa_tiny", {"global_context": "frame", "edge": "skip", "offset_from": "difference"}),
        ("sifa_swin_tiny", {}),
        ("sifa_mobilenetv4_small", {}),
    ],
)
def test_a_streaming_model_is_causal(name, options):
    """Perturbing a later frame changes nothing earlier, bit for bit; an earlier one changes what is later."""
    model = lively(name, streaming=True, num_frames=16, **options)
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_hook(lambda _, args, output: seen.append(output.unflatten(0, (-1, 4))))
    clip = clips(1, num_frames=16)
    with torch.no_grad():
        model(clip)
        for step in range(4):
            changed = clip.clone()
            changed[:, :, 4 * step + 3] += 1
            model(changed)
            assert torch.equal(seen[-1][:, :step], seen[0][:, :step])
            assert not torch.equal(seen[-1][:, step], seen[0][:, step])
            if step < 3:
                assert not torch.equal(seen[-1][:, step + 1], seen[0][:, step + 1])
        # The check can fail.
        ahead = lively(name, num_frames=16, **options)
        first = ahead.backbone(stack_frames(clip, 4))
        clip[:, :, 15] += 1
        assert not torch.equal(ahead.backbone(stack_frames(clip, 4))[:3], first[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_shift": 1}, "streaming=True needs frame_shift=-1, got 1"),
        ({"dual_branch": True}, "streaming=True needs dual_branch=False, got True"),
        ({"offset_from": "clip"}, "streaming=True: SIFA at backbone.layer2.1.conv2 depends on later steps"),
    ],
)
def test_what_a_streaming_model_cannot_have(options, message):
    with pytest.raises(ValueError, match=message):
        small("sifa_resnet18", streaming=True, **options)
    with pytest.raises(ValueError, match="GlobalContext at backbone.layer2.0.bn2 depends on later steps"):
        small("sifa_tiny", streaming=True, global_context="clip")
    with pytest.raises(ValueError, match="streaming=True needs dual_branch=False, got True"):
        small("sifa_tiny", streaming=True, dual_branch=True)
    small("sifa_tiny", streaming=True, temporal=None)


def test_the_stem_is_the_published_one():
    """A 2-D convolution of stacked frames with the parameters and the result of a Conv3d."""
    convolution = small("sifa_resnet50").backbone.conv1
    published = nn.Conv3d(3, 64, (4, 7, 7), stride=(4, 2, 2), padding=(0, 3, 3), bias=False)
    assert convolution.weight.numel() == published.weight.numel()
    published.weight.data = convolution.weight.data.view(64, 3, 4, 7, 7)
    expected = published(clips())
    actual = convolution(stack_frames(clips(), 4)).unflatten(0, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_frames", "parameters", "giga_multiply_adds"),
    [
        ("sifa_resnet50", 16, 43_040_928, 23.90),
        ("sifa_resnet50", 32, 43_040_928, 47.80),
        ("sifa_resnet101", 16, 63_554_272, 39.01),
    ],
)
def test_the_published_size_and_cost(name, num_frames, parameters, giga_multiply_adds):
    with torch.device("meta"):
        counted = complexity(sifa.create_model(name, num_frames=num_frames))
    assert counted.parameters == parameters
    assert round(counted.multiply_adds / 1e9, 2) == giga_multiply_adds


def test_cards_state_what_is_counted(subtests):
    for name in sifa.list_models():
        card = model_card(name)
        with subtests.test(name):
            with torch.device("meta"):
                counted = complexity(sifa.create_model(name))
            stated = (card.parameters, card.multiply_adds, card.attention_multiply_adds)
            assert dataclasses.astuple(counted) == stated
            if card.backbone and "resnet" not in name and "swin" not in name:
                assert counted.parameters < 5_000_000  # an edge model
    assert model_card("sifa_tiny").parameters < 1_500_000


def test_the_operator_is_counted_apart():
    model = small("sifa_tiny", num_frames=16)
    pixels = [(48, 8), (96, 4), (128, 2)]  # channels and side of the three maps, at 64 pixels
    attention = sum(6 * 9 * channels * 4 * side**2 for channels, side in pixels)
    assert complexity(model).attention_multiply_adds == attention


class _Copies(TorchDispatchMode):
    """Counts the operators that copy or convert a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous"):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_features_stay_channels_last_without_copies(name):
    """One copy, that stacks the frames; from there on the network reads and writes channels-last in place.

    Swin and ConvNeXt copy within their own blocks, whose layers change between channels first and last.
    """
    model = small(name)
    formats = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
            )
        if isinstance(module, sifa.SIFA):  # its offsets are no call of a convolution
            module.register_forward_pre_hook(
                lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last_3d))
            )
    with torch.no_grad(), _Copies() as copies:
        model(clips())
    assert len(formats) > (5 if "swin" in name else 10)  # Swin has few convolutions
    assert all(formats)
    if "swin" not in name and "convnext" not in name:
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
    longer = torch.randn(2, 3, 12, 64, 64, generator=torch.Generator().manual_seed(2))
    assert model(longer).shape == (2, 5)
    # Clips do not see each other. In float64: convolutions of one clip and of two round differently.
    exact = copy.deepcopy(model).double()
    torch.testing.assert_close(exact(longer.double())[1:], exact(longer[1:].double()))
    with pytest.raises(ValueError, match="clip must have 12 frames, got 8; use set_num_frames"):
        model(clips())
    with pytest.raises(torch.jit.Error, match="clip must have 12 frames, got 8"):
        torch.jit.script(model)(clips())
    assert not hasattr(torch.jit.script(model), "set_num_frames")  # its blocks could not be told


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
        ({"name": "x"}, "no model is called 'x'; known: sifa_convnext_atto, sifa_efficientnet_lite0, "),
        ({"num_classes": 0}, "num_classes must be an integer of at least 1, got 0"),
        ({"stages": [1]}, "stages must have a second block, which stage 1 of this network has not"),
        (
            {"name": "sifa_resnet18", "stages": [5]},
            r"stages must be some of 1, 2, 3 and 4, such as \(3, 4\), got \[5\]",
        ),
        (
            {"name": "sifa_swin_tiny", "stages": [0]},
            r"stages must be some of 1, 2, 3 and 4, such as \(3, 4\), got \[0\]",
        ),
        (
            {"kernel": 3},
            "unknown option 'kernel' of sifa_tiny; known: input_size, streaming, reference, stages",
        ),
        ({"residual": False}, "unknown option 'residual'"),
        ({"name": "sifa_swin_tiny", "dual_branch": True}, "unknown option 'dual_branch' of sifa_swin_tiny"),
        ({"global_context": "video"}, 'global_context must be "clip", "frame" or None, got \'video\''),
        ({"temporal": "tsm"}, "temporal must be None or one of 'sifa', 'convolution', .*, got 'tsm'"),
        ({"temporal": "shift", "kernel_size": 5}, "kernel_size: an option of SIFA, which temporal='shift'"),
        ({"stages": 4}, r"stages must be some of 1, 2, 3 and 4, such as \(3, 4\), got 4"),
        (
            {"temporal": None, "kernel_size": 3},
            "kernel_size: an option of SIFA, which temporal=None has no use",
        ),
        (
            {"name": "sifa_swin_tiny", "reference": True},
            "reference=True needs the option global_context, which",
        ),
        (
            {"streaming": True, "temporal": "shift"},
            "TemporalShift at backbone.layer2.1.conv2 depends on later",
        ),
        ({"input_size": 0}, "input_size must be one or two positive integers, got 0"),
        ({"input_size": (64, 64, 3)}, "input_size must be one or two positive integers"),
        (
            {"name": "sifa_resnet18", "num_frames": 4},
            "num_frames must be at least 8 with the dual branch, got 4",
        ),
        ({"kernel_size": 2}, "kernel_size must be odd"),
        ({"pretrained": "imagenet"}, "the backbone of sifa_tiny is none of timm's"),
        ({"pretrained": True}, r"pretrained must be a tag of sifa_tiny \(it has: 'motion'\) or .*, got True"),
        (
            {"pretrained": "kinetics"},
            r"a tag of sifa_tiny \(it has: 'motion'\) or the path of a .safetensors file",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sifa.create_model(**{"name": "sifa_tiny", **arguments})


def test_list_models_and_cards():
    assert sifa.list_models() == sorted(sifa.list_models())
    assert sifa.list_models("*resnet*") == [f"sifa_resnet{depth}" for depth in (101, 152, 18, 34, 50)]
    assert sifa.list_models("*swin*") == ["sifa_swin_base", "sifa_swin_small", "sifa_swin_tiny"]
    assert len(sifa.list_models()) == 12
    for name in sifa.list_models():
        card = model_card(name)
        assert (card.name, card.num_frames % 4) == (name, 0)


def test_attributes_describe_the_model_and_make_it_again():
    model = small("sifa_tiny", kernel_size=5, frame_shift=-1, edge="skip", stages=(3, 4), dropout=0.2)
    assert (model.name, model.num_classes, model.num_frames) == ("sifa_tiny", 5, FRAMES)
    assert (model.input_size, model.crop_fraction, model.frame_stride) == ((64, 64), 1.0, 1)
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
