"""The picture of the attention: that it shows what the layer did, and where in the video."""

import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from PIL import Image
from sifa.artifact import FrameClassifier
from sifa.visualize import Attention, choose_queries, draw_attention, trace_attention
from sifa.visualize.trace import Places


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def frames():
    return moving_blocks(16, count=3, size=224)[2]


@pytest.fixture(scope="module")
def attention(model, frames):
    return trace_attention(model, frames)


def first_layer(model):
    return next((name, module) for name, module in model.named_modules() if isinstance(module, sifa.SIFA))


def test_describes_the_first_layer(model, attention):
    assert attention.layer == first_layer(model)[0]
    assert attention.taps.shape == (9, 2, 4, 14, 14)
    assert attention.weights.shape == (9, 4, 14, 14)
    assert attention.neighbours == [1, 2, 3, 3]
    assert attention.frames == [2, 6, 10, 14]
    assert attention.places.stride == (
        16,
        16,
    )  # stride 8 in the network, whose input is the frame at half its size


@pytest.mark.parametrize("size", [(112, 112), (224, 224), (112, 160), (300, 200)])
def test_places_are_the_centres_of_receptive_fields(model, size):
    # What of the network's input a pixel of the feature map depends on, found by differentiation.
    clip = torch.rand(4, 3, 16, 112, 112).requires_grad_()
    seen = []
    hook = first_layer(model)[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(clip)
    hook.remove()
    y, x = 6, 8
    seen[0][:, :, 1, y, x].sum().backward()
    depends = clip.grad.abs().sum((0, 1, 2)) > 0
    centre = [index.float().mean().item() for index in (depends.any(1).nonzero(), depends.any(0).nonzero())]
    # From the network's input (frame resized to a short side of 112, centre crop) back to the frame.
    scale = min(size) / 112
    margin = [(side / scale - 112) / 2 for side in size]
    expected = [(c + m + 0.5) * scale - 0.5 for c, m in zip(centre, margin, strict=True)]
    frames = torch.zeros(16, *size, 3, dtype=torch.uint8)
    place = trace_attention(model, frames).queries[:, y, x]
    torch.testing.assert_close(place, torch.tensor(expected), rtol=0, atol=0.51 * scale)
    if size[0] == size[1]:
        torch.testing.assert_close(place, torch.tensor(expected), rtol=0, atol=1e-4)


def test_taps_and_weights_are_what_the_layer_used(model, frames, attention):
    layer = first_layer(model)[1]
    seen = {}
    hook = layer.register_forward_hook(
        lambda module, inputs, output: seen.update(clip=inputs[0], output=output)
    )
    with torch.no_grad():
        model(FrameClassifier(model).preprocessing(frames.unsqueeze(0)))
    hook.remove()
    step = 1
    neighbour = seen["clip"][0, :, attention.neighbours[step]].expand(9, -1, -1, -1)
    # Back to the feature map, and to grid_sample's coordinates.
    origin = attention.queries[:, 0, 0].view(2, 1, 1)
    taps = (attention.taps[:, :, step] - origin) / attention.places.stride[0]
    grid = (taps.flip(1).permute(0, 2, 3, 1) + 0.5) / 14 * 2 - 1
    samples = torch.nn.functional.grid_sample(neighbour, grid, align_corners=False)
    aggregate = (samples * attention.weights[:, step].unsqueeze(1)).sum(0)
    expected = seen["output"][0, :, step]
    if layer.residual:
        expected = expected - seen["clip"][0, :, step]
    torch.testing.assert_close(aggregate, expected, rtol=1e-3, atol=1e-3)
    assert (attention.taps - attention.grid.unsqueeze(2)).std() > 8


def planted(moved):
    """A quiet 9 x 9 attention of 3 steps but for the pixels `(step, y, x)` whose taps are moved."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    queries = torch.stack([y, x])
    taps = queries.view(1, 2, 1, 9, 9).repeat(1, 1, 3, 1, 1)
    for (step, row, column), offset in moved.items():
        taps[0, 0, step, row, column] += offset
    return Attention(
        layer="layer",
        queries=queries,
        grid=queries.unsqueeze(0),
        taps=taps,
        weights=torch.ones(1, 3, 9, 9),
        saliency=torch.zeros(3, 9, 9),
        neighbours=[1, 2, 2],
        frames=[0, 1, 2],
        places=Places((1, 1), (0, 0)),
    )


def test_queries_are_far_moved_apart_inside_and_of_one_step():
    attention = planted(
        {
            (1, 4, 4): 3.0,
            (1, 4, 5): 2.9,  # beside a better one
            (1, 2, 8): 2.0,
            (1, 7, 1): -1.0,
            (1, 8, 4): 5.0,  # leaves the frame
            (0, 4, 4): 4.0,  # alone in its step
            (2, 4, 4): 4.0,  # the last step attends to itself
            (2, 1, 1): 4.0,
        }
    )
    assert choose_queries(attention) == (1, [(4, 4), (2, 8), (7, 1)])


def test_picture(model, frames, tmp_path):
    queries = [(3, 3), (7, 10)]
    attention = draw_attention(model, frames, tmp_path / "a.png", step=1, queries=queries)
    picture = Image.open(tmp_path / "a.png").convert("RGB")
    assert picture.width == 1200
    # The left panel shows a query's cross, the right one its heaviest tap, in the query's colour.
    scale = (1200 - 2 * 28 - 20) / 2 / 224
    for (y, x), colour in zip(queries, [(230, 159, 0), (86, 180, 233)], strict=True):
        tap = attention.weights[:, 1, y, x].argmax()
        places = attention.queries[:, y, x], attention.taps[tap, :, 1, y, x]
        for place, left in zip(places, (28, 28 + 562 + 20), strict=True):
            row, column = ((place + 0.5) * scale).tolist()
            pixel = picture.getpixel((round(left + column), round(122 + row)))
            assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12
    draw_attention(model, frames, tmp_path / "b.png", step=1, queries=[(3, 3), (7, 3)])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_picture_of_the_default_queries_and_of_another_layer(model, tmp_path):
    frames = moving_blocks(16, count=1)[0][:, :96]
    layer = [name for name, module in model.named_modules() if isinstance(module, sifa.SIFA)][1]
    attention = draw_attention(model, frames, tmp_path / "picture.png", layer=layer)
    assert attention.layer == layer
    assert Image.open(tmp_path / "picture.png").width == 1200


def test_picture_of_a_single_tap_without_an_offset(tmp_path):
    model = sifa.create_model("sifa_tiny", kernel_size=1)
    attention = draw_attention(model, moving_blocks(16, count=1)[0], tmp_path / "picture.png")
    assert torch.equal(attention.taps[:, :, 0], attention.grid)
    assert Image.open(tmp_path / "picture.png").width == 1200


def test_leaves_the_model_as_it_was(model, frames):
    model.train()
    model.backbone.bn1.eval()
    try:
        trace_attention(model, frames)
        assert model.training
        assert not model.backbone.bn1.training
        assert not model.backbone.bn1._forward_hooks
        assert not first_layer(model)[1]._forward_pre_hooks
    finally:
        model.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "nowhere"}, "has no SIFA layer 'nowhere'; it has backbone"),
        ({"step": 1}, "step and queries must be given together"),
        ({"step": 4, "queries": [(0, 0)]}, "step must be between 0 and 3, got 4"),
        ({"step": 0, "queries": []}, "between 1 and 4 queries can be drawn, got 0"),
        ({"step": 0, "queries": [(0, 14)]}, r"pixels \(y, x\) of the 14x14 feature map, got \(0, 14\)"),
    ],
)
def test_errors(model, frames, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_attention(model, frames, tmp_path / "picture.png", **arguments)
    assert not (tmp_path / "picture.png").exists()


def test_a_model_without_sifa(frames):
    with pytest.raises(ValueError, match="sifa_tiny has no SIFA layer"):
        trace_attention(sifa.create_model("sifa_tiny", stages=()), frames)
