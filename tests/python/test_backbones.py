"""SIFA inside any image network: inserted, scripted, compiled, exported, and run by the C++ program."""

import json
import subprocess

import numpy as np
import pytest
import sifa
import timm
import torch
from lively import enliven, lively_model, moving_blocks
from sifa.artifact import FrameClassifier, export_torchscript
from sifa.data.motion import render_clip, write_video
from sifa.data.video import read_frames
from sifa.demo import find_sifa_run
from sifa.models import VideoClassifier

FRAMES, SIZE, CLASSES = 8, 64, 5
# timm's name, its options, and where SIFA goes.
BACKBONES = {
    "mobilenetv4_conv_small": ({}, {"where": "blocks.[23].[135].pw_proj"}),
    "efficientnet_b0": ({}, {"where": "blocks.[2345].1.conv_pwl"}),
    "convnext_atto": ({}, {"where": "stages.[123].blocks.1.conv_dw", "position": "after"}),
    "regnety_004": ({}, {"where": "s[34].b2.conv3"}),
    "vit_tiny_patch16_224": ({"img_size": SIZE, "depth": 4}, {"where": "blocks.[13].mlp"}),
}


def clips(count=2):
    return torch.randn(count, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def classifier(name):
    """What a user writes around a backbone of their own."""
    options, place = BACKBONES[name]
    torch.manual_seed(0)
    backbone = timm.create_model(name, in_chans=12, num_classes=0, pretrained=False, **options)
    sifa.insert(backbone, num_steps=FRAMES // 4, example=torch.zeros(FRAMES // 4, 12, SIZE, SIZE), **place)
    with torch.no_grad():
        num_features = backbone.eval()(torch.zeros(2, 12, SIZE, SIZE)).shape[1]
    model = VideoClassifier(backbone, num_features, CLASSES, FRAMES, temporal_stride=4, dropout=0.1)
    model.name, model.config = f"my_{name}", {}
    model.input_size, model.crop_fraction, model.frame_stride = (SIZE, SIZE), 1.0, 1
    model.mean, model.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    model.labels = list("abcde")
    # Rounding errors of float32 must not grow beyond what the comparison with C++ allows.
    blocks = FrameClassifier(model).preprocessing(moving_blocks(FRAMES, size=SIZE))
    return enliven(model, blocks, opening=0.25)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "lossless.mkv"
    write_video(path, render_clip(2, 2, size=80), lossless=True)
    return path


def check_sifa_run(model, video, folder):
    """Export the model, run the program on the video, and compare with eager on the same frames."""
    export_torchscript(model, folder / "model.pt")
    read, indices = read_frames(video, model.num_frames, model.frame_stride)
    with torch.no_grad():
        expected = FrameClassifier(model).eval()(read.unsqueeze(0))[0]
    assert expected.max() < 0.99
    command = [find_sifa_run(), folder / "model.pt", video, "--topk", str(len(expected)), "--json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    by_index = sorted(answer["classes"], key=lambda entry: entry["index"])
    assert answer["frames"]["indices"] == indices
    np.testing.assert_allclose([entry["probability"] for entry in by_index], expected, rtol=0, atol=1e-5)
    # Offsets are part of what is compared. Reversed: without any, a deep network may blow up.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, sifa.SIFA):
                module.conv_offset.weight.neg_()
        reversed_ = FrameClassifier(model).eval()(read.unsqueeze(0))[0]
    assert (reversed_ - expected).abs().max() > 1e-4


@pytest.mark.parametrize("name", BACKBONES)
def test_script_and_export(name):
    model, inputs = classifier(name).double(), clips().double()
    with torch.no_grad():
        expected = model(inputs)
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)
        for engine in (
            torch.jit.freeze(torch.jit.script(model)),
            torch.export.export(model, (inputs,)).module(),
        ):
            torch.testing.assert_close(engine(inputs), expected, rtol=1e-8, atol=1e-9)
        # SIFA is part of what is compared.
        for module in model.modules():
            if isinstance(module, sifa.SIFA):
                torch.nn.init.zeros_(module.conv_offset.weight)
        assert not torch.allclose(model(inputs), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.startswith("vit") else pytest.mark.slow) for name in BACKBONES],
)
def test_compile(name):
    model, inputs = classifier(name).double(), clips().double()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(inputs)
        torch.testing.assert_close(compiled, model(inputs), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", BACKBONES)
def test_sifa_run(name, video, tmp_path, runtime_module):
    check_sifa_run(classifier(name), video, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "sifa_resnet50",
        "sifa_swin_tiny",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in sifa.list_models()
            if name not in ("sifa_resnet50", "sifa_swin_tiny", "sifa_tiny")  # the last is test_agreement's
        ),
    ],
)
def test_registered_models_in_sifa_run(name, video, tmp_path, runtime_module):
    """SIFA-Net with its dual branch and SIFA-Transformer, scripted, exported, loaded and run in C++."""
    settings = {"num_classes": CLASSES, "num_frames": FRAMES, "input_size": SIZE}
    # The deepest network, at random, would let rounding grow beyond the comparison with C++.
    model = lively_model(name, opening=0.02 if name == "sifa_resnet152" else 0.1, **settings)
    model.frame_stride = 1
    assert (model.head_dual is not None) == ("resnet" in name)
    check_sifa_run(model, video, tmp_path)
