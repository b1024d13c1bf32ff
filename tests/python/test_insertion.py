"""Insertion: where SIFA goes, what it sees, that nothing else changes, and what the errors say."""

import copy
from typing import Any

import pytest
import sifa
import timm
import torch
from sifa.insertion import Insertion, set_num_steps
from torch import Tensor, nn

STEPS = 3


class Images(nn.Module):
    """Two convolutions (NCHW)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class ChannelsLast(nn.Module):
    """Two linear layers on (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.second = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.permute(0, 2, 3, 1)).relu())


class Scaled(nn.Module):
    """A module with a keyword argument."""

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return x * factor


class WithKeyword(nn.Module):
    """Passes a keyword argument to its submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, factor=3.0)


class Tokens(nn.Module):
    """A linear layer on tokens, behind ``num_prefix_tokens`` that stand for no pixel."""

    num_prefix_tokens = 2

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.mix(torch.cat([torch.ones_like(tokens[:, :2]), tokens], 1))


class WithArguments(nn.Module):
    def forward(self, *inputs: Any) -> Tensor:
        return inputs[0] * (inputs[1] if len(inputs) > 1 else 1)


def randomise(module: nn.Module) -> None:
    """Offsets of a pixel or more, without which deformation is not tested."""
    for name, parameter in module.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(parameter, std=1.0)


def frames(clips: int = 2, size: int = 8) -> Tensor:
    return torch.randn(clips * STEPS, 3, size, size, generator=torch.Generator().manual_seed(0))


def on_clip(block: sifa.SIFA, images: Tensor) -> Tensor:
    """SIFA by hand on folded NCHW features."""
    clip = images.unflatten(0, (-1, STEPS)).transpose(1, 2)
    return block(clip).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("position", ["before", "after"])
def test_nchw_is_sifa_on_the_clip(position):
    backbone = Images()
    expected_first, second = backbone.first, backbone.second
    assert sifa.insert(backbone, "second", STEPS, position=position) is backbone
    randomise(backbone)
    block = backbone.second.inserted
    assert block.channels == (6 if position == "before" else 4)
    hidden = expected_first(frames()).relu()
    expected = second(on_clip(block, hidden)) if position == "before" else on_clip(block, second(hidden))
    torch.testing.assert_close(backbone(frames()), expected)
    assert not torch.allclose(backbone(frames()), second(hidden), atol=1e-3)


def test_nhwc_is_sifa_on_the_clip():
    backbone = ChannelsLast()
    sifa.insert(backbone, "second", STEPS)
    randomise(backbone)
    assert backbone.second.layout == "NHWC"
    hidden = backbone.first(frames().permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
    expected = backbone.second.module(on_clip(backbone.second.inserted, hidden).permute(0, 2, 3, 1))
    torch.testing.assert_close(backbone(frames()), expected)


def test_tokens_are_a_grid_and_prefix_tokens_pass_untouched():
    backbone = Tokens()
    sifa.insert(backbone, "mix", STEPS, example=frames(1))
    randomise(backbone)
    wrapper = backbone.mix
    assert (wrapper.layout, wrapper.prefix_tokens, wrapper.grid) == ("NLC", 2, (8, 8))
    for size in (8, 5):
        images = frames(size=size)
        tokens = torch.cat([torch.ones(len(images), 2, 3), images.flatten(2).transpose(1, 2)], 1)
        seen = wrapper.on_clips(tokens)
        assert torch.equal(seen[:, :2], tokens[:, :2])
        expected = on_clip(wrapper.inserted, images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(seen[:, 2:], expected)


def test_channels_last_features_are_read_and_returned_without_a_copy():
    backbone = Images().to(memory_format=torch.channels_last)
    sifa.insert(backbone, "second", STEPS)
    seen = {}
    wrapper = backbone.second
    wrapper.register_forward_pre_hook(lambda _, args: seen.update(outer=args[0]))
    wrapper.inserted.register_forward_pre_hook(lambda _, args: seen.update(clip=args[0]))
    wrapper.inserted.register_forward_hook(lambda _, args, output: seen.update(attended=output))
    wrapper.module.register_forward_pre_hook(lambda _, args: seen.update(inner=args[0]))
    backbone(frames().contiguous(memory_format=torch.channels_last))
    assert seen["clip"].data_ptr() == seen["outer"].data_ptr()
    assert seen["clip"].is_contiguous(memory_format=torch.channels_last_3d)
    assert seen["inner"].data_ptr() == seen["attended"].data_ptr()
    assert seen["inner"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("0", ["0"]),
        ("[02]", ["0", "2"]),
        (["2", "0", "*"], ["0", "1", "2"]),
    ],
)
def test_names_patterns_and_lists(where, expected):
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    sifa.insert(backbone, where, STEPS, example=frames(1))
    assert [name for name, m in backbone.named_modules() if isinstance(m, Insertion)] == expected


def test_a_second_insertion_leaves_the_first_alone():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    sifa.insert(backbone, "0", STEPS, example=frames(1), position="after")
    sifa.insert(backbone, "1", STEPS, example=frames(1))
    with pytest.raises(ValueError, match="no module of Sequential matches '0.module'"):
        sifa.insert(backbone, "0.module", STEPS, example=frames(1))
    assert backbone(frames()).shape == (2 * STEPS, 4, 8, 8)


def test_keyword_arguments_reach_the_module_and_script_takes_the_defaults():
    backbone = WithKeyword()
    sifa.insert(backbone, "scaled", STEPS, example=frames(1))
    randomise(backbone)
    attended = on_clip(backbone.scaled.inserted, frames())
    torch.testing.assert_close(backbone(frames()), attended * 3)
    scripted = torch.jit.script(backbone.scaled)
    torch.testing.assert_close(scripted(frames()), attended * 2)


def test_configuration_dtype_and_mode_are_passed_on():
    backbone = Images().double().train()
    backbone.first.eval()
    sifa.insert(backbone, "second", STEPS, kernel_size=5, frame_shift=-1, edge="skip")
    block = backbone.second.inserted
    assert (block.kernel_size, block.frame_shift, block.edge) == (5, -1, "skip")
    assert block.conv_offset.weight.dtype == torch.float64
    assert backbone.second.training
    assert not backbone.first.training
    assert backbone(frames().double()).dtype == torch.float64


def test_frozen_parts_of_a_wrapped_module_stay_frozen():
    backbone = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), Scaled()).train()
    backbone[0][0].eval()
    backbone[1].norm = nn.BatchNorm2d(3).eval()
    sifa.insert(backbone, ["0", "1"], STEPS, example=frames(1))
    assert [backbone[0].training, backbone[0].module[0].training] == [True, False]
    assert [backbone[1].training, backbone[1].module.norm.training] == [True, False]
    torch.jit.script(backbone[1])
    assert [backbone[1].training, backbone[1].module.norm.training] == [True, False]


def test_a_module_and_one_inside_it():
    backbone = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)), nn.Conv2d(5, 3, 1))
    plain = copy.deepcopy(backbone)
    sifa.insert(backbone, ["0", "0.1"], STEPS, example=frames(1))
    randomise(backbone)
    names = [name for name, m in backbone.named_modules() if isinstance(m, Insertion)]
    assert names == ["0", "0.module.1"]
    outer, inner = backbone[0].inserted, backbone[0].module[1].inserted
    expected = plain[1](plain[0][1](on_clip(inner, plain[0][0](on_clip(outer, frames())))))
    torch.testing.assert_close(backbone(frames()), expected)


def test_a_refused_insertion_changes_nothing():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 4, 1))
    with pytest.raises(ValueError, match="groups must be a divisor of the 5 channels"):
        sifa.insert(backbone, "[12]", STEPS, example=frames(1), groups=4)
    assert not [m for m in backbone.modules() if isinstance(m, Insertion)]


def test_positional_arguments_reach_a_module_that_takes_any_number():
    backbone = nn.Sequential(nn.Identity())
    backbone[0] = WithArguments()
    sifa.insert(backbone, "0", STEPS, example=frames(1))
    torch.testing.assert_close(backbone[0](frames(), 3.0), on_clip(backbone[0].inserted, frames()) * 3)


def test_a_dry_run_changes_no_state():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).train()
    sifa.insert(backbone, "2", STEPS, example=frames(1))
    assert torch.equal(backbone[1].running_mean, torch.zeros(4))
    assert int(backbone[1].num_batches_tracked) == 0
    assert not backbone[0]._forward_pre_hooks
    assert backbone[1].training


@pytest.mark.parametrize(
    ("name", "where", "layout"),
    [
        ("vit_tiny_patch16_224", "blocks.*.mlp", "NLC"),
        ("swin_tiny_patch4_window7_224", "layers.*.blocks.0.drop_path1", "NHWC"),
        ("mobilenetv3_small_050", "blocks.[23].1.conv_pw", "NCHW"),
    ],
)
def test_timm_backbones_script_and_export(name, where, layout):
    sizes = {"vit": {"img_size": 64, "depth": 2}, "swin": {"img_size": 56, "depths": (2, 1), "embed_dim": 24}}
    options = sizes.get(name.split("_")[0], {})
    backbone = timm.create_model(name, num_classes=5, pretrained=False, **options).eval()
    for (
        parameter
    ) in backbone.parameters():  # timm's own initialisation leaves the aggregate, cubic in it, near 0
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    size = options.get("img_size", 64)
    example = torch.randn(STEPS, 3, size, size, generator=torch.Generator().manual_seed(1))
    plain = backbone(example)
    sifa.insert(backbone, where, STEPS, example=example)
    inserted = [module for module in backbone.modules() if isinstance(module, Insertion)]
    assert inserted
    assert all(module.layout == layout for module in inserted)
    randomise(backbone)
    with torch.no_grad():
        expected = backbone(example)
        assert not torch.allclose(expected, plain, rtol=1e-3)
        exported = torch.export.export(backbone, (example,)).module()
        torch.testing.assert_close(exported(example), expected, rtol=1e-4, atol=1e-5)
        scripted = torch.jit.freeze(torch.jit.script(backbone))
        torch.testing.assert_close(scripted(example), expected, rtol=1e-4, atol=1e-5)


def test_the_default_example_is_the_size_that_the_backbone_states():
    backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=48, depth=1, in_chans=12)
    sifa.insert(backbone, "blocks.0", STEPS, position="after")
    assert backbone.blocks[0].grid == (3, 3)


def test_set_num_steps():
    backbone = sifa.insert(Images(), "second", STEPS)
    with pytest.raises(
        ValueError,
        match="expected clips of 3 steps folded into the batch, got a batch of 4; feed whole clips",
    ):
        backbone(torch.zeros(4, 3, 8, 8))
    set_num_steps(backbone, 4)
    assert backbone(torch.zeros(4, 3, 8, 8)).shape == (4, 4, 8, 8)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        set_num_steps(backbone, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "secnd"}, "no module of Images matches 'secnd'; did you mean 'second'"),
        ({"where": "layer9.*"}, r"no module of Images matches 'layer9.\*'; see named_modules"),
        ({"where": []}, "where must name at least one module, got none"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"position": "inside"}, 'position must be "before" or "after", got \'inside\''),
        ({"layout": "NCL"}, "layout must be one of NCHW, NHWC, NLC or auto, got 'NCL'"),
        ({"layout": "NLC"}, r"features before 'second' must have the rank of NLC, got \(3, 6, 8, 8\)"),
        (
            {"example": torch.zeros(3, 3, 8, 6)},
            r"the shape \(3, 6, 8, 6\) before 'second' does not tell its layout",
        ),
        ({"kernel_size": 4}, "SIFA: kernel_size must be odd"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sifa.insert(Images(), **{"where": "second", "num_steps": STEPS, "example": frames(1), **arguments})


def test_bad_places():
    backbone = Images()
    backbone.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="module 'spare' was not called"):
        sifa.insert(backbone, "spare", STEPS)
    with pytest.raises(ValueError, match=r"must be images \(rank 4\) or tokens \(rank 3\), got \(3, 192\)"):
        sifa.insert(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "1", STEPS, example=frames(1))
    with pytest.raises(ValueError, match="must be one tensor, got tuple"):
        sifa.insert(nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2, return_indices=True)), "1", 3, "after")
    with pytest.raises(
        RuntimeError, match=r"does not run on an input of shape \(3, 3, 8, 8\).*pass example="
    ):
        sifa.insert(nn.Sequential(nn.Linear(5, 5)), "0", STEPS, example=frames(1))
    tokens = Tokens()
    tokens.num_prefix_tokens = 1
    with pytest.raises(ValueError, match="66 tokens before 'mix' less 1 prefix tokens form no square grid"):
        sifa.insert(tokens, "mix", STEPS, example=frames(1))


def test_features_of_another_rank_or_grid_are_refused_when_called():
    wrapper = sifa.insert(Tokens(), "mix", STEPS, example=frames(1)).mix
    with pytest.raises(ValueError, match="NLC features of rank 3, got"):
        wrapper(frames())
    with pytest.raises(
        ValueError, match=r"shaped like 8x8, which 12 tokens \(after 2 prefix tokens\) do not fill"
    ):
        wrapper(torch.zeros(STEPS, 14, 3))
