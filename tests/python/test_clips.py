"""Clips: the same from any worker, in any order; views that Python and C++ share; broken videos survived."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from sifa.data.annotations import Annotations, Video
from sifa.data.clips import BrokenVideosError, TrainingClips, ViewClips, collate_clips, square
from sifa.data.sampling import view_indices
from sifa.data.video import read_frames
from sifa.preprocessing import ClipPreprocessing
from torch.utils.data import DataLoader

FRAMES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six videos as folders of images: pixel (y, x) of frame t of video v is (20 v + t, y, x)."""
    root = tmp_path_factory.mktemp("clips")
    for v, (height, width) in enumerate([(6, 10), (6, 10), (10, 6), (6, 10), (6, 10), (8, 8)]):
        (root / str(v)).mkdir()
        y, x = np.indices((height, width))
        for t in range(FRAMES):
            pixels = np.stack([np.full_like(y, 20 * v + t), y, x], -1).astype(np.uint8)
            Image.fromarray(pixels).save(root / str(v) / f"{t + 1:05d}.png")
    return root


@pytest.fixture
def annotations(root):
    return Annotations(tuple(Video(root / str(v), v % 3, f"video {v}") for v in range(6)), tuple("abc"), root)


def broken(annotations, *indices):
    """The annotations, some of whose videos are not there."""
    videos = list(annotations.videos)
    for index in indices:
        videos[index] = Video(annotations.source / "gone", videos[index].label, videos[index].name)
    return Annotations(tuple(videos), annotations.labels, annotations.source)


def jitter(frames):
    """A transform that shows what it drew: cuts to 4 x 4 and adds a random number to the last channel."""
    frames = frames[:, :4, :4].clone()
    frames[..., 2] += torch.randint(100, ())
    return frames


def training(annotations, **settings):
    settings = {"num_frames": 4, "frame_stride": 2, "transform": jitter, "seed": 3, **settings}
    return TrainingClips(annotations, **settings)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def test_a_training_clip(annotations):
    item = training(annotations)[0, 4]
    assert item["frames"].shape == (4, 4, 4, 3)
    assert item["frames"].dtype == torch.uint8
    assert (item["label"], item["index"]) == (1, 4)
    times = item["frames"][:, 0, 0, 0] - 80
    assert times.diff().tolist() == [2, 2, 2]
    assert 0 <= times[0] <= FRAMES - 7
    assert item["frames"][..., 2].unique().numel() == 4  # one draw for all frames


def test_what_is_random_depends_on_seed_epoch_and_index_alone(annotations):
    clips, again = training(annotations), training(annotations)
    backwards = {(e, i): again[e, i] for e in (1, 0) for i in reversed(range(6))}
    assert all(same(clips[place], item) for place, item in backwards.items())
    assert same(clips[2], clips[0, 2])
    shown = [
        tuple(training(annotations, seed=seed)[epoch, 2]["frames"][0, 0, 0].tolist())
        for seed in range(4)
        for epoch in range(8)
    ]
    assert len({time for time, *_ in shown}) > 3
    assert len({drawn for *_, drawn in shown}) > 20


def test_a_clip_that_is_not_random_is_the_one_that_is_tested_with(annotations):
    view = ViewClips(annotations, num_frames=4, frame_stride=2)[2]["frames"]
    for random in (True, False):
        clips = training(annotations, random_clips=random, transform=None)
        found = [torch.equal(clips[epoch, 2]["frames"], view) for epoch in range(20)]
        assert all(found) != random


def test_drawing_a_clip_leaves_the_global_generator_alone(annotations):
    clips = training(annotations)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = clips[0]["frames"]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(clips[0]["frames"], first)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_one_process_gives(annotations, method, workers):
    clips = training(broken(annotations, 1), max_broken=0.2)
    batches = [
        [(epoch, index) for index in order] for epoch, order in enumerate([[5, 0, 1], [3, 2, 1], [4, 1, 0]])
    ]
    loader = DataLoader(clips, batch_sampler=batches, num_workers=workers, multiprocessing_context=method)
    alone = training(broken(annotations, 1), max_broken=0.2)
    for batch, places in zip(loader, batches, strict=True):
        assert torch.equal(batch["frames"], torch.stack([alone[place]["frames"] for place in places]))
    assert clips.broken() == alone.broken() == ["video 1"]


def test_segments(annotations):
    item = training(annotations, sampling="segments", num_frames=6)[0, 0]
    assert [time // 2 for time in item["frames"][:, 0, 0, 0].tolist()] == list(range(6))


def test_a_short_video_repeats_frames(annotations):
    item = training(annotations, num_frames=24)[0, 0]
    assert item["frames"][:, 0, 0, 0].tolist() == [t // 2 for t in range(24)]
    assert len(ViewClips(annotations, num_frames=24, clips=3)[1]["frames"]) == 24


def test_a_broken_video_is_replaced_and_logged_once(annotations, caplog):
    clips = training(broken(annotations, 2), max_broken=0.2)
    with caplog.at_level(logging.WARNING):
        items = [clips[epoch, 2] for epoch in range(12)]
    indices = {item["index"] for item in items}
    assert 2 not in indices
    assert len(indices) > 2
    assert all(item["label"] == item["index"] % 3 for item in items)
    assert all(int(item["frames"][0, 0, 0, 0]) // 20 == item["index"] for item in items)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("skipped video 2: there is no file ")
    assert clips.broken() == ["video 2"]


def test_a_broken_video_is_named_once(annotations, caplog):
    videos = broken(annotations, 2).videos
    named = dataclasses.replace(
        annotations, videos=tuple(dataclasses.replace(video, name=video.path.name) for video in videos)
    )
    training(named, max_broken=0.2)[0, 2]
    assert caplog.messages == [f"skipped: there is no file {videos[2].path}"]


def test_what_replaces_a_video_does_not_depend_on_what_is_known(annotations):
    annotations = broken(annotations, 0, 2, 4)
    fresh, used = (training(annotations, max_broken=0.5) for _ in range(2))
    for index in range(6):
        used[7, index]
    assert all(same(fresh[1, index], used[1, index]) for index in range(6))


def test_too_many_broken_videos(annotations):
    clips = ViewClips(broken(annotations, 1, 3, 5), num_frames=4, max_broken=0.34)
    clips[1], clips[3]
    with pytest.raises(
        BrokenVideosError,
        match=r"3 of the 6 videos of .* cannot be read, more than max_broken=0.34 .*; one is video 5: .*",
    ):
        clips[5]
    clips = training(broken(annotations, *range(6)), max_broken=1)
    for _ in range(2):
        with pytest.raises(BrokenVideosError, match="not one of the 6 videos of .* can be read"):
            clips[0]


def test_too_many_broken_videos_end_the_workers_too(annotations):
    batches = iter(DataLoader(training(broken(annotations, 1, 3, 5)), batch_size=2, num_workers=2))
    with pytest.raises(BrokenVideosError, match="of the 6 videos"):
        list(batches)
    batches._shutdown_workers()  # the garbage collector would wait for them for 10 seconds


def test_one_view_is_what_an_artifact_is_fed(root, annotations):
    views = ViewClips(annotations, num_frames=4, frame_stride=2)
    assert len(views) == 6
    item = views[2]
    assert item["frames"].shape == (4, 10, 6, 3)
    assert item["frames"][:, 0, 0, 0].tolist() == [40 + t for t in view_indices(FRAMES, 4, 2, "center")]
    assert {key: item[key] for key in ("label", "index", "view", "broken")} == {
        "label": 2,
        "index": 2,
        "view": 0,
        "broken": False,
    }


@pytest.mark.parametrize(("index", "long"), [(1, 2), (2, 1)])  # the video's long side: width, height
def test_views_are_clips_by_crops(annotations, index, long):
    views = ViewClips(annotations, num_frames=3, frame_stride=1, clips=4, crops=3)
    assert views.views == 12
    assert len(views) == 72
    items = [views[index * 12 + view] for view in range(12)]
    assert [item["index"] for item in items] == [index] * 12
    assert [item["view"] for item in items] == list(range(12))
    for view, item in enumerate(items):
        frames = item["frames"]
        assert frames.shape == (3, 6, 6, 3)
        assert frames.is_contiguous()
        assert frames[:, 0, 0, 0].tolist() == [20 * index + [0, 3, 6, 9][view // 3] + t for t in range(3)]
        assert frames[0, 0, 0, long].item() == [0, 2, 4][view % 3]
        assert frames[0, 0, 0, 3 - long].item() == 0


def test_square_of_a_square_is_whole():
    frames = torch.arange(3 * 4 * 4 * 3).view(3, 4, 4, 3)
    assert all(torch.equal(square(frames, crop, 3), frames) for crop in range(3))


def test_preprocessed_views_are_what_the_graph_makes_of_the_frames(annotations):
    preprocessing = ClipPreprocessing((5, 5), 1.0, (0.5,) * 3, (0.25,) * 3)
    settings = {"num_frames": 4, "clips": 2, "crops": 3}
    raw, ready = (
        ViewClips(annotations, **settings),
        ViewClips(annotations, preprocessing=preprocessing, **settings),
    )
    batch = next(iter(DataLoader(ready, batch_size=len(ready))))
    assert "frames" not in batch
    assert batch["clip"].shape == (36, 3, 4, 5, 5)
    for item in (0, 17, 35):
        assert torch.equal(batch["clip"][item], preprocessing(raw[item]["frames"].unsqueeze(0))[0])


def test_a_broken_video_keeps_its_place_among_the_views(annotations, caplog):
    views = ViewClips(broken(annotations, 1), num_frames=4, clips=2, crops=3, max_broken=0.2)
    items = list(views)
    assert [(item["index"], item["view"]) for item in items] == [(i, v) for i in range(6) for v in range(6)]
    assert [item["broken"] for item in items] == [item["index"] == 1 for item in items]
    assert all(item["frames"].ndim == 4 for item in items)
    assert len(caplog.messages) == 1


def test_collate_stacks_what_fits(annotations):
    views = ViewClips(annotations, num_frames=4)
    batch = collate_clips([views[0], views[1]])
    assert batch["frames"].shape == (2, 4, 6, 10, 3)
    assert batch["label"].tolist() == [0, 1]
    batch = collate_clips([views[0], views[2]])
    assert [tuple(frames.shape) for frames in batch["frames"]] == [(4, 6, 10, 3), (4, 10, 6, 3)]
    assert batch["index"].tolist() == [0, 2]
    assert batch["broken"].tolist() == [False, False]


def test_a_video_file_is_read_as_a_whole_video_is_classified(tmp_path):
    from sifa.data.motion import render_video, write_video

    write_video(tmp_path / "video.mp4", render_video(0, 1, 32))
    annotations = Annotations((Video(tmp_path / "video.mp4", 0, "video"),), ("a",), tmp_path)
    item = ViewClips(annotations, num_frames=8, frame_stride=3)[0]
    assert torch.equal(item["frames"], read_frames(tmp_path / "video.mp4", 8, 3)[0])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainingClips, {"num_frames": 0}, "num_frames must be at least 1, got 0"),
        (TrainingClips, {"sampling": "random"}, "sampling must be center or segments, got 'random'"),
        (TrainingClips, {"max_broken": 5}, "max_broken must be a share, 0 to 1, got 5"),
        (TrainingClips, {"template": "x.jpg"}, "template must name the images by number"),
        (ViewClips, {"clips": 0}, "clips must be at least 1, got 0"),
        (ViewClips, {"crops": 2}, r"crops must be 1 \(whole frames\) or 3"),
    ],
)
def test_settings_are_checked(annotations, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(annotations, **{"num_frames": 4, **settings})


def test_an_index_out_of_range(annotations):
    with pytest.raises(IndexError):
        training(annotations)[0, 6]
    with pytest.raises(IndexError):
        ViewClips(annotations, num_frames=4, clips=2)[12]
