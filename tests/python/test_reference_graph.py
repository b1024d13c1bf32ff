"""The graph of the paper's released code, restated in plain PyTorch: the same state gives the same numbers.

Written from what the release is known to compute, with its names and its Conv3d layers, and without any of
the package's models. Its in-place shift ``x[:, :, 1:] = x[:, :, :-1]`` overlaps itself; what it means is
written here with a copy.
"""

import pytest
import sifa
import torch
from sifa import reference
from sifa.models import convert_reference_state_dict
from sifa.models.resnet import sifa_net
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

CLASSES = 7
WIDTHS = (8, 16, 32, 64)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ReleasedBlock(nn.Module):
    """A bottleneck of 1x1x1, 1x3x3 and 1x1x1 convolutions, plain, with global context, or with SIFA."""

    def __init__(self, inputs, width, stride, kind):
        super().__init__()
        outputs = 4 * width
        self.kind = kind
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(outputs)
            )
        if kind == "context":
            self.fc1 = nn.Conv3d(outputs, outputs // 16, 1)
            self.fc2 = nn.Conv3d(outputs // 16, outputs, 1)
        if kind == "sifa":
            self.conv_offset = nn.Conv3d(width, 18, (1, 3, 3), padding=(0, 1, 1), bias=False)
            self.def_cor = nn.Conv3d(width, 1, 1, bias=False)
            self.def_cor.weight.data.fill_(1 / width)
            self.def_cor.weight.requires_grad_(False)

    def attend(self, x):
        following = x.clone()
        following[:, :, :-1] = x[:, :, 1:]
        saliency = torch.sigmoid(following - x) * following + following
        offset = self.conv_offset(saliency)
        output = x.clone()
        # The last frame has no neighbour, and keeps its features.
        for t in range(x.shape[2] - 1):
            pixels, here = x[:, :, t], slice(t, t + 1)
            samples = self.samples(x[:, :, t + 1], offset[:, :, here].squeeze(2))
            weights = (pixels.unsqueeze(1) * samples).sum(2, keepdim=True) * self.def_cor.weight[
                0, 0, 0, 0, 0
            ]
            output[:, :, t] = pixels + (weights * samples).sum(1)
        return output

    def samples(self, frame, offset):
        """Nine bilinear samples per pixel, (N, 9, C, H, W), corner by corner from a zero-padded frame."""
        n, c, height, width = frame.shape
        padded = nn.functional.pad(frame, (1, 1, 1, 1))
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        samples = []
        for p in range(9):
            y = rows + p // 3 - 1 + offset[:, 2 * p]
            x = columns + p % 3 - 1 + offset[:, 2 * p + 1]
            inside = (y > -1) & (y < height) & (x > -1) & (x < width)
            y, x = y.clamp(-1, height), x.clamp(-1, width)
            total = 0
            for corner_y in (0, 1):
                for corner_x in (0, 1):
                    at_y, at_x = y.floor() + corner_y, x.floor() + corner_x
                    weight = (1 - (y - at_y).abs()) * (1 - (x - at_x).abs()) * inside
                    at = (at_y.clamp(-1, height) + 1) * (width + 2) + at_x.clamp(-1, width) + 1
                    index = at.long().flatten(1).unsqueeze(1).expand(n, c, -1)
                    total = total + padded.flatten(2).gather(2, index).view_as(frame) * weight.unsqueeze(1)
            samples.append(total)
        return torch.stack(samples, 1)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        if self.kind == "sifa":
            out = self.attend(out)
        out = self.bn3(self.conv3(out))
        if self.kind == "context":
            context = out.mean((2, 3, 4), keepdim=True)
            out = out + self.fc2(torch.relu(self.fc1(context)))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ReleasedNet(nn.Module):
    """The two heads of the released SIFA-Net."""

    def __init__(self, blocks):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (4, 7, 7), (4, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        inputs = 64
        for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 1):
            for name, stride in ((f"layer{stage}", 2 if stage > 1 else 1), ("layer4_dual", 1)):
                if name == "layer4_dual" and stage != 4:
                    continue
                kinds = ["context" if i % 2 == 0 else "sifa" for i in range(count)]
                stage_blocks = [
                    ReleasedBlock(
                        inputs if i == 0 else 4 * width,
                        width,
                        stride if i == 0 else 1,
                        kinds[i] if stage > 1 else "plain",
                    )
                    for i in range(count)
                ]
                setattr(self, name, nn.Sequential(*stage_blocks))
            inputs = 4 * width
        self.pool_dual = nn.MaxPool3d((2, 1, 1), (2, 1, 1))
        self.fc = nn.Linear(inputs, CLASSES)
        self.fc_dual = nn.Linear(inputs, CLASSES)

    def forward(self, clip):
        x = self.pool(torch.relu(self.bn1(self.conv1(clip))))
        x = self.layer3(self.layer2(self.layer1(x)))
        first = self.fc(self.layer4(x).mean((2, 3, 4)))
        return first, self.fc_dual(self.layer4_dual(self.pool_dual(x)).mean((2, 3, 4)))


def released(depth, clips, residual=1.0):
    """A network whose norms are calibrated to the clips, and whose offsets have 1.5 pixels.

    ``residual`` scales the residual branches, and with them how far rounding errors grow.
    """
    torch.manual_seed(depth)
    model = ReleasedNet(BLOCKS[depth]).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.2)
    for module in model.modules():
        if isinstance(module, ReleasedBlock):
            module.bn3.weight.data *= residual
    blocks = [module for module in model.modules() if isinstance(module, ReleasedBlock)]
    for block in blocks:
        if block.kind == "sifa":
            nn.init.normal_(block.conv_offset.weight)
            spread = []
            hook = block.conv_offset.register_forward_hook(lambda _, args, out, s=spread: s.append(out.std()))
            with torch.no_grad():
                model(clips)
                block.conv_offset.weight *= 1.5 / spread[0]
            hook.remove()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_running_stats()
    with torch.no_grad():
        model(clips)
    return model.eval()


def ours(depth, num_frames):
    network = ResNet(Bottleneck, BLOCKS[depth], num_classes=0, in_chans=12, channels=WIDTHS)
    return sifa_net(
        network, num_classes=CLASSES, num_frames=num_frames, edge="skip", residual_saliency=True
    ).eval()


def random_clips(num_frames, size=48):
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randn(2, 3, num_frames, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_frames", [16, 12, 8])
@pytest.mark.parametrize("form", ["plain", "checkpoint"])
def test_heads_equal_the_released_graph(depth, num_frames, form):
    if form == "checkpoint" and num_frames != 8:
        pytest.skip("the form of a checkpoint does not depend on T")
    clips = random_clips(num_frames)
    theirs, mine = released(depth, clips), ours(depth, num_frames).double()
    state = theirs.state_dict()
    if form == "checkpoint":
        state = {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    mine.load_state_dict(convert_reference_state_dict(state, mine))
    with torch.no_grad():
        expected = torch.stack(theirs(clips), 1)
        heads = mine.forward_heads(clips)
        assert heads.shape == (2, 2, CLASSES)
        torch.testing.assert_close(heads, expected, rtol=1e-9, atol=1e-9)
        mean = (expected.softmax(2)).mean(1)
        torch.testing.assert_close(mine(clips).softmax(1), mean, rtol=1e-9, atol=1e-9)
        # What is compared varies, and SIFA is part of it.
        assert expected.std() > 0.05
        for module in mine.modules():
            if isinstance(module, sifa.SIFA):
                module.conv_offset.weight.zero_()
        assert not torch.allclose(mine.forward_heads(clips), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_heads_equal_the_released_graph_in_float32(depth):
    clips = random_clips(16)
    theirs, mine = released(depth, clips, residual=0.2).float(), ours(depth, 16)
    mine.load_state_dict(convert_reference_state_dict(theirs.state_dict(), mine))
    with torch.no_grad():
        expected = torch.stack(theirs(clips.float()), 1)
        assert expected.std() > 0.05
        torch.testing.assert_close(mine.forward_heads(clips.float()), expected, rtol=1e-5, atol=1e-5)
        for module in mine.modules():
            if isinstance(module, sifa.SIFA):
                module.conv_offset.weight.zero_()
        assert not torch.allclose(mine.forward_heads(clips.float()), expected, rtol=1e-3, atol=1e-3)


def test_the_restated_sampling_is_the_operators():
    """The two statements of SIFA were written apart; one block of each on random offsets."""
    torch.manual_seed(0)
    block = ReleasedBlock(64, 16, 1, "sifa").double()
    nn.init.normal_(block.conv_offset.weight, std=0.5)
    x = torch.randn(2, 16, 3, 5, 6, dtype=torch.float64)
    following = torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
    offset = block.conv_offset(torch.sigmoid(following - x) * following + following)
    expected = reference.inter_frame_attention(x, x, offset, edge="skip")
    torch.testing.assert_close(block.attend(x), expected)


def test_reference_is_the_released_configuration():
    model = sifa.create_model("sifa_resnet50", num_classes=3, reference=True)
    blocks = [module for module in model.modules() if isinstance(module, sifa.SIFA)]
    assert len(blocks) == 7
    assert all(block.edge == "skip" and block.residual_saliency for block in blocks)
    assert model.config["edge"] == "skip"
    with pytest.raises(ValueError, match="reference=True needs edge='skip', got 'clamp'"):
        sifa.create_model("sifa_resnet50", reference=True, edge="clamp")


def test_what_finds_no_place_is_reported():
    model = ours(50, 8)
    state = ReleasedNet(BLOCKS[50]).state_dict()
    state["layer2.1.gate.weight"] = torch.zeros(3)
    del state["fc_dual.bias"]
    with pytest.warns(UserWarning, match="convert_reference_state_dict") as warnings:
        convert_reference_state_dict(state, model)
    message = str(warnings[0].message)
    assert "no place for layer2.1.gate.weight" in message
    assert "no value for head_dual.bias" in message
    assert "def_cor" not in message
    state["fc.bias"] = torch.zeros(400)
    with pytest.raises(RuntimeError, match=r"fc.bias: \(400,\) does not fit head.bias \(7,\)"):
        convert_reference_state_dict(state, model)
    with pytest.raises(ValueError, match="holds no parameter of this model"):
        convert_reference_state_dict({"weights": torch.zeros(1)}, model)
