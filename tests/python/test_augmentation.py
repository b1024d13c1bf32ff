"""Augmentation: one draw for all frames of a clip, of the size that the network takes; checked settings."""

import pytest
import torch
from sifa.data.augmentation import Augmentation

NONE = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "jitter": None, "grayscale": 0.0, "blur": 0.0, "flip": 0.0}


@pytest.fixture(scope="module")
def frame():
    """A frame (24, 32, 3) of smooth colours, which differ from left to right and from channel to channel."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    return torch.stack([7 * x, 10 * y, 255 - 3 * x - 5 * y], -1).to(torch.uint8)


def augmented(frames, size=(16, 16), seed=0, **settings):
    transform = Augmentation(**{**NONE, **settings}).transform(size)
    torch.manual_seed(seed)
    return transform(frames)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": (0.2, 1.0), "ratio": (0.75, 1.33)},
        {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_probability": 1.0},
        {"grayscale": 0.5},
        {"blur": 1.0},
        {"flip": 0.5},
        {"rand_augment": (2, 20)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_all_frames_of_a_clip_are_changed_alike_and_clips_differently(frame, settings):
    clip = frame.expand(5, -1, -1, -1)
    results = [augmented(clip, seed=seed, **settings) for seed in range(12)]
    for result in results:
        assert result.shape == (5, 16, 16, 3)
        assert result.dtype == torch.uint8
        assert result.is_contiguous()
        assert (result == result[:1]).all()
    assert len({tuple(result[0].flatten().tolist()) for result in results}) > 1
    assert torch.equal(augmented(clip, seed=3, **settings), results[3])


def test_the_defaults_are_those_of_the_released_code(frame):
    transform = Augmentation().transform((16, 16))
    assert [type(step).__name__ for step in transform.transform.transforms] == [
        "RandomResizedCrop",
        "RandomApply",
        "RandomGrayscale",
        "RandomApply",
        "RandomHorizontalFlip",
    ]
    assert transform(frame.expand(3, -1, -1, -1)).shape == (3, 16, 16, 3)


def test_nothing_but_the_crop(frame):
    clip = frame[:, :24].unsqueeze(0)
    assert torch.equal(augmented(clip, size=(24, 24)), clip)


def test_frames_of_different_times_stay_in_order(frame):
    clip = torch.stack([frame // 4, frame // 2, frame])
    levels = augmented(clip, scale=(0.5, 1.0), blur=1.0).float().mean((1, 2, 3))
    assert levels.tolist() == sorted(levels.tolist())
    assert levels[2] > 3 * levels[0]


def test_flip_and_its_absence(frame):
    clip = frame[:, :24].unsqueeze(0)
    assert torch.equal(augmented(clip, size=(24, 24), flip=1.0), clip.flip(2))
    assert all(torch.equal(augmented(clip, size=(24, 24), seed=seed), clip) for seed in range(20))


def test_grayscale(frame):
    result = augmented(frame.unsqueeze(0), grayscale=1.0)
    assert (result == result[..., :1]).all()


def test_blur_of_a_small_input(frame):
    result = augmented(frame.unsqueeze(0), size=(5, 8), blur=1.0)
    assert result.shape == (1, 5, 8, 3)
    noise = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8)
    assert augmented(noise, blur=1.0, blur_sigma=(2.0, 2.0)).float().std() < 0.3 * noise.float().std()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"scale": (0.0, 1.0)},
            r"augmentation.scale must be two shares, 0 < from <= to <= 1, got \(0.0, 1.0\)",
        ),
        ({"scale": (0.9, 0.5)}, "augmentation.scale must be two shares"),
        ({"ratio": (2.0, 1.0)}, "augmentation.ratio must be two ratios"),
        ({"flip": 1.5}, "augmentation.flip must be a probability, 0 to 1, got 1.5"),
        ({"grayscale": -0.1}, "augmentation.grayscale must be a probability"),
        ({"blur": 2.0}, "augmentation.blur must be a probability"),
        ({"jitter_probability": 2.0}, "augmentation.jitter_probability must be a probability"),
        ({"blur_sigma": (0.0, 1.0)}, "augmentation.blur_sigma must be two widths"),
        (
            {"jitter": (0.4, 0.4, 0.4, 0.6)},
            r"augmentation.jitter must be four numbers .* \(hue\) at most 0.5",
        ),
        ({"rand_augment": (2, 31)}, "augmentation.rand_augment must be operations .* a magnitude of 0 to 30"),
        ({"rand_augment": (0, 5)}, "augmentation.rand_augment must be operations of at least 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
