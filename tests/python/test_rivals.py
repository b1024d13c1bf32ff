"""What the paper compares SIFA with: each operator is its definition, and takes SIFA's place in a network."""

import pytest
import sifa
import torch
from sifa.insertion import Insertion
from sifa.rivals import RIVALS, Correlation, TemporalDifference, TemporalShift
from torch import nn


def clip(channels=16):
    return torch.randn(2, channels, 4, 5, 6, generator=torch.Generator().manual_seed(0))


def randomised(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def test_shift():
    x = clip()
    y = TemporalShift(16)(x)
    for t in range(4):
        assert torch.equal(y[:, :2, t], x[:, :2, t + 1] if t < 3 else torch.zeros_like(x[:, :2, 0]))
        assert torch.equal(y[:, 2:4, t], x[:, 2:4, t - 1] if t > 0 else torch.zeros_like(x[:, :2, 0]))
    assert torch.equal(y[:, 4:], x[:, 4:])


def test_difference():
    x, module = clip(), randomised(TemporalDifference(16))
    for t in range(4):
        difference = x[:, :, min(t + 1, 3)] - x[:, :, t]
        expected = x[:, :, t] + module.projection(difference.unsqueeze(2)).squeeze(2)
        torch.testing.assert_close(module(x)[:, :, t], expected)


def test_correlation():
    x, module = clip(), randomised(Correlation(16))
    products = torch.zeros(2, 9, 4, 5, 6)
    for t in range(4):
        for y in range(5):
            for column in range(6):
                for p in range(9):
                    i, j = y + p // 3 - 1, column + p % 3 - 1
                    if 0 <= i < 5 and 0 <= j < 6:
                        there = x[:, :, min(t + 1, 3), i, j]
                        products[:, p, t, y, column] = (x[:, :, t, y, column] * there).mean(1)
    torch.testing.assert_close(module(x), x + module.projection(products))


@pytest.mark.parametrize("name", RIVALS)
def test_in_the_place_of_sifa(name):
    torch.manual_seed(0)
    options = {"num_classes": 5, "num_frames": 8, "input_size": 64}
    model = sifa.create_model("sifa_tiny", temporal=name, **options).eval()
    places = {n for n, m in model.named_modules() if isinstance(m, Insertion)}
    plain = sifa.create_model("sifa_tiny", **options)
    assert places == {n for n, m in plain.named_modules() if isinstance(m, Insertion)}
    for place in places:
        randomised(model.get_submodule(place).inserted)
    frames = torch.randn(2, 3, 8, 64, 64)
    # The same steps in another order, which a mean over steps does not tell apart.
    reordered = frames.unflatten(2, (2, 4)).flip(2).flatten(2, 3)
    unordered = sifa.create_model("sifa_tiny", temporal=None, **options).eval()
    with torch.no_grad():
        torch.testing.assert_close(unordered(frames), unordered(reordered), rtol=1e-3, atol=1e-4)
        logits = model(frames)
        assert not torch.allclose(logits, model(reordered), rtol=1e-2)
        scripted = torch.jit.script(model)(frames)
        torch.testing.assert_close(scripted, logits, rtol=1e-3, atol=1e-4)
    model.train()(frames).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("offset_from", ["saliency", "memory", "difference", "clip", "none"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
def test_every_variant_of_the_paper(offset_from, kernel_size):
    options = {"offset_from": offset_from, "kernel_size": kernel_size}
    model = sifa.create_model("sifa_tiny", num_classes=5, num_frames=8, input_size=32, **options)
    model(torch.randn(2, 3, 8, 32, 32)).square().sum().backward()
    offsets = {name: p for name, p in model.named_parameters() if "conv_offset" in name}
    assert len(offsets) == (0 if offset_from == "none" else 3)
    assert all(p.shape[0] == 2 * kernel_size**2 for p in offsets.values())
    assert all(p.grad.any() for p in offsets.values())
