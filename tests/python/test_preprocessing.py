"""Preprocessing inside the graph: for frames of any size, and the same in eager, script and export."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sifa.preprocessing import ClipPreprocessing, resize_and_crop
from torchvision.transforms.v2 import functional as vision

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(129, 152), (152, 129), (112, 112), (64, 48), (1, 1), (1, 7), (3, 2), (270, 480)]


def preprocessing(input_size=(112, 112), crop_fraction=0.875):
    return ClipPreprocessing(input_size, crop_fraction, MEAN, STD).eval()


def random_frames(height, width, batch=1, steps=2):
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (batch, steps, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def scripted():
    return torch.jit.freeze(torch.jit.script(preprocessing()))


@pytest.fixture(scope="module")
def exported():
    sizes = {2: torch.export.Dim("height", min=1, max=4096), 3: torch.export.Dim("width", min=1, max=4096)}
    return torch.export.export(preprocessing(), (random_frames(90, 120),), dynamic_shapes=(sizes,)).module()


@pytest.mark.parametrize("size", SIZES)
def test_script_and_export_equal_eager(size, scripted, exported):
    frames = random_frames(*size)
    expected = preprocessing()(frames)
    assert expected.shape == (1, 3, 2, 112, 112)
    assert torch.equal(scripted(frames), expected)
    assert torch.equal(exported(frames), expected)


@pytest.mark.parametrize("size", [(128, 170), (170, 128), (128, 128), (256, 340), (60, 80)])
def test_equals_torchvision(size):
    # Sizes at which torchvision rounds to the same integers.
    frames = random_frames(*size, batch=2)
    images = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    images = vision.resize(images, [128], antialias=True)
    images = vision.normalize(vision.center_crop(images, [112, 112]) / 255, MEAN, STD)
    expected = images.view(2, 2, 3, 112, 112).transpose(1, 2)
    torch.testing.assert_close(preprocessing()(frames), expected, rtol=0, atol=1e-5)


def test_a_frame_of_the_input_size_passes_as_it_is():
    frames = random_frames(112, 112)
    expected = (frames[0].permute(3, 0, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1, 1)
    torch.testing.assert_close(preprocessing(crop_fraction=1.0)(frames)[0], expected, rtol=0, atol=1e-6)


def test_one_pixel_becomes_a_uniform_clip():
    frames = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 3, 1, 1, 3)
    clip = preprocessing()(frames)
    assert clip.shape == (1, 3, 3, 112, 112)
    expected = (torch.tensor([10, 20, 30]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(clip, expected.view(1, 3, 1, 1, 1).expand_as(clip), rtol=0, atol=1e-6)


def test_strided_frames_and_an_empty_batch():
    frames = random_frames(40, 50, steps=4)
    assert torch.equal(
        preprocessing()(frames[:, ::2, 5:, 3:]), preprocessing()(frames[:, ::2, 5:, 3:].clone())
    )
    assert preprocessing()(frames[:0]).shape == (0, 3, 4, 112, 112)


def test_stays_float32_in_a_half_precision_model():
    frames = random_frames(40, 50)
    assert preprocessing().half()(frames).dtype == torch.float32


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    side=st.integers(1, 400),
    margin=st.integers(0, 60),
)
def test_geometry(height, width, side, margin):
    resize = side + margin
    rows, columns, top, left = resize_and_crop(height, width, (resize, resize), (side, side))
    assert min(rows, columns) == resize
    # The aspect ratio is kept to within one pixel.
    assert abs(rows * width - columns * height) < max(height, width)
    assert top >= 0
    assert left >= 0
    assert abs(rows - side - 2 * top) <= 1
    assert abs(columns - side - 2 * left) <= 1


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_geometry_covers_an_oblong_input(height, width):
    rows, columns, top, left = resize_and_crop(height, width, (100, 160), (90, 144))
    assert rows >= 100
    assert columns >= 160
    assert rows == 100 or columns == 160
    assert min(top, left) >= 0


BAD = [
    (torch.zeros(1, 2, 8, 8, 3), "frames must be uint8 .* got floating-point numbers"),
    (torch.zeros(1, 2, 8, 8, 3, dtype=torch.int64), "frames must be uint8 .* got another integer type"),
    (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"must be \(N, T, H, W, 3\).* got shape \[2, 8, 8, 3\]"),
    (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), r"RGB last, got shape \[1, 2, 3, 8, 8\]"),
    (torch.zeros(1, 2, 0, 8, 3, dtype=torch.uint8), "at least one pixel, got 0x8"),
]


@pytest.mark.parametrize(("frames", "message"), BAD)
def test_errors_survive_scripting(frames, message, scripted):
    with pytest.raises(ValueError, match=message):
        preprocessing()(frames)
    with pytest.raises(torch.jit.Error, match=message):
        scripted(frames)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 112), 1.0, MEAN, STD), "input_size must be two positive numbers"),
        (((112, 112), 1.5, MEAN, STD), r"crop_fraction must be in \(0, 1\], got 1.5"),
        (((112, 112), 1.0, MEAN, (1, 0, 1)), "std positive"),
        (((112, 112), 1.0, (0.5,), STD), "3 numbers each"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipPreprocessing(*arguments)
