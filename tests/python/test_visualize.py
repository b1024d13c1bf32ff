"""What `sifa visualize` draws: that it shows what the layer did, what the class rests on, and where."""

import json

import numpy as np
import pytest
import sifa
import torch
from lively import lively_model, moving_blocks
from PIL import Image
from sifa import cli
from sifa.artifact import FrameClassifier
from sifa.data.motion import write_video
from sifa.data.video import VideoFile
from sifa.visualize import Attention, choose_layers, choose_queries, draw_attention, trace_attention
from sifa.visualize.activation import Activation, class_activation
from sifa.visualize.figures import draw_activation, draw_maps, write_film
from sifa.visualize.overview import parse_point
from sifa.visualize.taps import COLOURS, draw_taps
from sifa.visualize.trace import Places, queries_at

BLACK = torch.zeros(3, 9, 9, 3, dtype=torch.uint8)


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


def test_where_all_taps_leave_the_frame_the_farthest_are_shown():
    """As in the last stage of a small network."""
    everywhere = {(step, y, x): 20.0 for step in range(3) for y in range(9) for x in range(9)}
    attention = planted({**everywhere, (1, 5, 4): 30.0, (1, 1, 1): 25.0, (2, 3, 3): 40.0})
    step, queries = choose_queries(attention)
    assert (step, queries[:2]) == (1, [(5, 4), (1, 1)])
    assert queries_at(attention, [(4, 4), (4, 4), (7, 1)])[1] == [(4, 4), (1, 7)]  # each once


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


def test_a_letter_at_the_upper_edge_covers_no_title(model, frames, tmp_path):
    titles = []
    for row in (0, 7):
        draw_attention(model, frames, tmp_path / "a.png", step=1, queries=[(row, 1)])
        # From above the panels' titles down to where the cross of an uppermost pixel begins.
        titles.append(Image.open(tmp_path / "a.png").crop((0, 86, 1200, 109)).tobytes())
    assert titles[0] == titles[1]


def test_taps_out_of_the_frame_are_counted_and_not_drawn_beside_it(tmp_path):
    # One query at the left edge of the frame: its tap goes out to the left, where the other panel is.
    pictures = {}
    for name, offset in (("inside", 2.0), ("outside", -2.0)):
        attention = planted({})
        attention.taps[0, 1, 0, 4, 1] += offset
        draw_taps(attention, BLACK, tmp_path / "taps.png", 0, [(4, 1)])
        pictures[name] = np.asarray(Image.open(tmp_path / "taps.png").convert("RGB")).astype(int)
    orange = {name: np.abs(p - np.array(COLOURS[0])).sum(2) < 30 for name, p in pictures.items()}
    top, bottom = 122, 122 + 562
    assert orange["inside"][top:bottom, 610:].any()
    assert not orange["outside"][top:bottom, 610:].any()
    assert (pictures["inside"] != pictures["outside"])[640:720, :600].any()  # what is said of the query
    gap = slice(top, bottom), slice(28 + 562 + 1, 28 + 562 + 19)
    assert (pictures["outside"][gap] == 255).all()


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


# Layers and points.


def test_layers_by_name_and_by_stage(model):
    first, second, *_, last = sifa_layers = [
        name for name, module in model.named_modules() if isinstance(module, sifa.SIFA)
    ]
    assert len(sifa_layers) > 2
    assert choose_layers(model)[0] == first
    assert [name.split(".")[1] for name in choose_layers(model)] == ["layer2", "layer3", "layer4"]
    assert choose_layers(model, ["4", last, "2", first]) == [last, first]
    assert choose_layers(model, [second]) == [second]
    with pytest.raises(
        ValueError, match="no SIFA layer or stage '9'; it has the stages 2, 3, 4 and the layers"
    ):
        choose_layers(model, ["9"])


def test_points_of_the_video_become_the_nearest_pixels():
    attention = planted({(1, 4, 4): 3.0, (1, 2, 8): 2.0, (0, 7, 1): 1.0, (2, 4, 4): 9.0})
    # Step 2 attends to itself: it is not chosen, however far its taps moved.
    assert queries_at(attention, [(4, 4), (8, 2), (0, 8)]) == (1, [(4, 4), (2, 8), (8, 0)])
    assert queries_at(attention, [(1, 7)]) == (0, [(7, 1)])


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "-1,2", "a,b", "1.5,2", "1;2"])
def test_points_that_are_none(text):
    with pytest.raises(ValueError, match="a query must be a pixel x,y of the video, such as 120,64, got"):
        parse_point(text)


# Class activation.


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sifa_tiny", {}),
        # A dual branch, and of three steps one in no pair.
        ("sifa_resnet18", {"num_frames": 12, "stages": (4,)}),
        ("sifa_swin_tiny", {"num_frames": 8}),
    ],
)
def test_the_activation_sums_to_the_logit(name, settings):
    model = sifa.create_model(name, num_classes=5, **settings).eval()
    frames = moving_blocks(model.num_frames, count=1, size=120)[0]
    with torch.no_grad():
        heads = model.forward_heads(FrameClassifier(model).preprocessing(frames.unsqueeze(0)))[0]
        probabilities = FrameClassifier(model)(frames.unsqueeze(0))[0]
    biases = torch.stack([head.bias for head in (model.head, model.head_dual) if head is not None])
    for index in (0, 3):
        found = class_activation(model, frames, index)
        expected = (heads - biases).mean(0)[index]
        assert expected.abs() > 1e-3
        torch.testing.assert_close(found.maps.sum(), expected.detach(), rtol=1e-3, atol=1e-6)
        assert (found.label, found.index) == (f"class_{index}", index)
        assert found.probability == pytest.approx(float(probabilities[index]), abs=1e-5)
        assert len(found.maps) == len(found.frames) == model.num_steps
        assert found.maps.std() > 0
    best = int(probabilities.argmax())
    assert class_activation(model, frames).index == best
    assert class_activation(model, frames, "class_2").index == class_activation(model, frames, "2").index == 2


def test_the_activation_lies_where_the_class_is_decided(model):
    # The head reads one channel; of the last maps, that channel is what the activation must be.
    seen = []
    frames = moving_blocks(16, count=1)[0]
    weight = model.head.weight.detach().clone()
    features = model.backbone.forward_features
    try:
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.weight[1, 5] = 2.0
        found = class_activation(model, frames, 1)
        with torch.no_grad():
            clip = FrameClassifier(model).preprocessing(frames.unsqueeze(0))
            object.__setattr__(
                model.backbone, "forward_features", lambda x: seen.append(features(x)) or seen[0]
            )
            model(clip)
    finally:
        vars(model.backbone).pop("forward_features", None)
        with torch.no_grad():
            model.head.weight.copy_(weight)
    channel = seen[0][:, 5]
    torch.testing.assert_close(found.maps, 2 * channel / channel.numel(), rtol=1e-4, atol=1e-6)
    assert "forward_features" not in vars(model.backbone)
    assert not model.head._forward_hooks


@pytest.mark.parametrize("target", ["nowhere", "10", 10, -1, ""])
def test_a_class_that_there_is_not(model, frames, target):
    with pytest.raises(
        ValueError, match="the class must be a label of the model or an index from 0 to 9, got"
    ):
        class_activation(model, frames, target)


# Maps and film, of what is planted in black frames of 9 x 9 pixels.


YELLOW, ORANGE, PURPLE = (253, 231, 55), (179, 88, 6), (84, 39, 136)


def colour_at(path, colour, rows=(0.0, 1.0)):
    """The mean `(x, y)` of the pixels near a colour, as shares of a picture without its colour bars."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = picture.shape[0]
    picture = picture[int(rows[0] * height) : int(rows[1] * height), :1050]
    near = np.abs(picture - np.array(colour)).sum(2) < 150
    assert near.any()
    y, x = near.nonzero()
    return x.mean() / picture.shape[1], y.mean() / picture.shape[0]


def test_maps_show_saliency_where_it_is(tmp_path):
    places = {}
    for name, (step, y, x) in {"right up": (0, 1, 7), "left down": (0, 7, 1), "later": (1, 1, 7)}.items():
        attention = planted({})
        attention.saliency[step, y - 1 : y + 2, x - 1 : x + 2] = 1
        draw_maps(attention, BLACK, tmp_path / "maps.png")
        places[name] = colour_at(tmp_path / "maps.png", YELLOW, (0.3, 0.66))
    right_up, left_down, later = places["right up"], places["left down"], places["later"]
    assert right_up[0] > left_down[0] + 0.1
    assert right_up[1] < left_down[1] - 0.3
    assert later[0] == pytest.approx(right_up[0] + 1 / 3, abs=0.04)
    assert later[1] == pytest.approx(right_up[1], abs=0.02)


def test_maps_show_offsets_as_arrows(tmp_path):
    places = []
    for axis, offset in ((1, 3.0), (1, -3.0), (0, 3.0), (0, -3.0)):
        attention = planted({})
        attention.taps[:, axis, 0, 4, 4] += offset
        draw_maps(attention, BLACK, tmp_path / "maps.png")
        places.append(colour_at(tmp_path / "maps.png", YELLOW, (0.7, 1.0)))
    (right, _), (left, _), (_, down), (_, up) = places
    assert right > left + 0.05
    assert down > up + 0.1


def planted_activation(maps):
    return Activation("a label", 0, 0.5, maps, [0, 1, 2], Places((1, 1), (0, 0)))


def test_activation_shows_what_speaks_for_and_against(tmp_path):
    maps = torch.zeros(3, 9, 9)
    maps[0, 3:6, 0:3] = 1
    maps[1, 3:6, 6:9] = -1
    draw_activation(planted_activation(maps), BLACK, tmp_path / "a.png")
    orange, purple = (colour_at(tmp_path / "a.png", colour, (0.0, 0.6)) for colour in (ORANGE, PURPLE))
    assert orange[0] < 0.25
    assert 0.45 < purple[0] < 0.7
    # And what each step does, as bars.
    orange, purple = (colour_at(tmp_path / "a.png", colour, (0.6, 1.0)) for colour in (ORANGE, PURPLE))
    assert orange[1] < purple[1] - 0.2
    assert orange[0] < purple[0] - 0.2


def test_many_steps_are_spread_over_the_clip(tmp_path):
    frames = torch.zeros(16, 9, 9, 3, dtype=torch.uint8)
    maps = torch.zeros(16, 9, 9)
    maps[15, 3:6, 6:9] = 1
    activation = Activation("a label", 0, 0.5, maps, list(range(16)), Places((1, 1), (0, 0)))
    draw_activation(activation, frames, tmp_path / "a.png")
    assert colour_at(tmp_path / "a.png", ORANGE, (0.1, 0.4))[0] > 0.8  # the last one is shown


def test_film(tmp_path):
    attention = planted({(0, 4, 4): 3.0})
    maps = torch.zeros(3, 9, 9)
    maps[1] = 1
    drawn = []
    write_film(
        *(attention, planted_activation(maps), BLACK, [(4, 4)], tmp_path / "film.mp4"),
        progress=drawn.append,
    )
    film = VideoFile(tmp_path / "film.mp4")
    assert (film.num_frames, film.fps, drawn) == (3, 4, [0, 1, 2])
    first, second, _ = film.read([0, 1, 2]).int()
    assert first.shape[1] == 960
    # The class activation, below in the middle, is of the second step alone.
    panel = (slice(first.shape[0] * 5 // 8, first.shape[0] * 7 // 8), slice(400, 560))
    assert (first[panel] - second[panel]).abs().float().mean() > 30
    write_film(attention, planted_activation(maps), BLACK, [(0, 0)], tmp_path / "other.mp4")
    asks = VideoFile(tmp_path / "other.mp4").read([0, 1, 2]).int()[0]
    assert (asks[:300, :320] - first[:300, :320]).abs().max() > 100


# The command.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of one's own, and a video."""
    folder = tmp_path_factory.mktemp("visualize")
    lively_model(num_frames=8, num_classes=3).save_pretrained(folder / "model")
    write_video(folder / "video.mp4", moving_blocks(8, count=1, size=160)[0][:, :112])
    return folder


@pytest.fixture
def run(capsys, saved, monkeypatch):
    monkeypatch.chdir(saved)

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            cli.main(["visualize", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return run


def test_command(run, tmp_path):
    code, out, err = run("video.mp4", "-m", "model", "-o", tmp_path / "v", "--layer", "4", "--query", "80,60")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("video.mp4: class_")
    name = "backbone.layer4.1.conv2"
    written = {f"{name}-taps.png", f"{name}-maps.png", f"{name}.mp4", "activation.png"}
    assert {path.name for path in (tmp_path / "v").iterdir()} == written
    assert all(str(tmp_path / "v" / file) in out for file in written)
    assert VideoFile(tmp_path / "v" / f"{name}.mp4").num_frames == 8


def test_command_in_json(run, tmp_path):
    code, out, err = run(
        *("video.mp4", "-m", "model", "-o", tmp_path / "v", "--class", "class_1"),
        *("--query", "0,0", "--query", "159,111", "--no-film", "--json"),
    )
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["label"], facts["index"]) == ("class_1", 1)
    assert [entry["layer"].split(".")[1] for entry in facts["layers"]] == ["layer2", "layer3", "layer4"]
    assert [len(entry["queries"]) for entry in facts["layers"]] == [2, 2, 2]
    assert all("film" not in entry for entry in facts["layers"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video.mp4", "--query", "160,5"], "a query must be a pixel x,y of the 160x112 video, got 160,5"),
        (["video.mp4", "--query", "here"], "such as 120,64, got 'here'"),
        (["video.mp4", *["--query", "1,1"] * 5], "at most 4 queries can be drawn, got 5"),
        (["video.mp4", "--class", "jump"], "the class must be a label of the model or an index from 0 to 2"),
        (["video.mp4", "--layer", "7"], "has no SIFA layer or stage '7'"),
        (["nowhere.mp4"], "there is no file nowhere.mp4"),
        (["model/config.json"], "config.json is not a video that FFmpeg can read"),
        (["video.mp4", "-m", "model/config.json"], "model/config.json is no model"),
        (["video.mp4", "-o", "video.mp4"], "video.mp4 is a file: name another folder with --output"),
        (["video.mp4", "-m", "nowhere"], "there is no folder or file nowhere"),
    ],
)
def test_failures_are_one_line(run, tmp_path, arguments, message):
    model = [] if "-m" in arguments else ["-m", "model"]
    code, out, err = run("-o", tmp_path / "v", *arguments, *model)
    assert (code, out) == (1, "")
    assert err.startswith("sifa: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "v").exists()
