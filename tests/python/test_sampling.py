"""Which frames a clip is made of: the golden table that C++ reads too, the rules, views and random draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sifa.data.sampling import RULES, draw_seed, frame_indices, random_indices, view_indices

TABLE = json.loads((Path(__file__).parents[1] / "data" / "frame_indices.json").read_text())
small = st.integers(1, 300)


@pytest.mark.parametrize(
    "row",
    TABLE,
    ids=lambda row: f"{row['sampling']}: {row['num_frames']} of {row['total']} by {row['frame_stride']}",
)
def test_golden_table(row):
    given = row["total"], row["num_frames"], row["frame_stride"], row["sampling"]
    assert frame_indices(*given) == row["indices"]


@pytest.mark.parametrize(("sampling", "count"), [("center", 40), ("segments", 20)])
def test_golden_table_covers_short_long_and_large_videos(sampling, count):
    rows = [row for row in TABLE if row["sampling"] == sampling]
    enough = [row["total"] > (row["num_frames"] - 1) * row["frame_stride"] for row in rows]
    assert len(rows) >= count
    assert count / 4 < sum(enough) < len(rows) - count / 4
    assert any(row["total"] > 2**32 for row in rows)


def assert_in_order(indices, total, num_frames):
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < total


@given(total=small, num_frames=small, frame_stride=small, sampling=st.sampled_from(RULES), clips=small)
def test_indices_lie_in_the_video_in_order(total, num_frames, frame_stride, sampling, clips):
    given = total, num_frames, frame_stride, sampling
    assert_in_order(frame_indices(*given), total, num_frames)
    views = [view_indices(*given, clip, clips) for clip in sorted({0, clips // 2, clips - 1})]
    for indices in views:
        assert_in_order(indices, total, num_frames)
    assert views == sorted(views)
    assert_in_order(random_indices(*given, np.random.default_rng(clips)), total, num_frames)


@given(margin=st.integers(0, 100), num_frames=small, frame_stride=small)
def test_a_long_video_is_sampled_in_its_middle(margin, num_frames, frame_stride):
    total = (num_frames - 1) * frame_stride + 1 + margin
    indices = frame_indices(total, num_frames, frame_stride)
    before, after = indices[0], total - 1 - indices[-1]
    assert after - before in (0, 1)
    assert all(b - a == frame_stride for a, b in zip(indices, indices[1:], strict=False))


@pytest.mark.parametrize("name", ["total", "num_frames", "frame_stride"])
@pytest.mark.parametrize("value", [0, -3])
def test_errors_name_the_argument(name, value):
    arguments = {"total": 10, "num_frames": 4, "frame_stride": 2, name: value}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        frame_indices(**arguments)


def test_one_view_is_the_clip_of_an_artifact():
    for sampling in RULES:
        assert view_indices(37, 8, 2, sampling) == frame_indices(37, 8, 2, sampling)


def test_windows_of_several_views_reach_from_the_first_frame_to_the_last():
    starts = [view_indices(100, 4, 3, "center", clip, 4)[0] for clip in range(4)]
    assert starts == [0, 30, 60, 90]  # a window is 10 frames long


def test_several_views_of_segments_see_different_frames_of_each():
    views = [view_indices(24, 3, 1, "segments", clip, 2) for clip in range(2)]
    assert views == [[2, 10, 18], [6, 14, 22]]


def test_random_windows_reach_every_start_equally_often():
    generator = np.random.default_rng(0)
    starts = [random_indices(12, 3, 4, "center", generator)[0] for _ in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 4  # a window is 9 frames long
    assert counts.min() > 900
    assert np.diff(random_indices(12, 3, 4, "center", generator)).tolist() == [4, 4]


def test_random_frames_of_segments_reach_every_frame_of_each():
    generator = np.random.default_rng(0)
    draws = np.array([random_indices(10, 3, 9, "segments", generator) for _ in range(2000)])
    for column, (low, high) in zip(draws.T, [(0, 3), (3, 6), (6, 10)], strict=True):
        values, counts = np.unique(column, return_counts=True)
        assert values.tolist() == list(range(low, high))
        assert counts.min() > 0.8 * 2000 / (high - low)
    # Segments are drawn from independently.
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.1


def test_a_video_too_short_for_a_random_clip_repeats_frames():
    generator = np.random.default_rng(0)
    assert random_indices(3, 6, 2, "center", generator) == frame_indices(3, 6, 2)
    assert random_indices(3, 6, 2, "segments", generator) == [0, 0, 1, 1, 2, 2]


def test_seeds_of_different_places_differ():
    seeds = {draw_seed(*place) for place in [(0,), (0, 0), (0, 1), (1, 0), (0, 1, 2), (0, 2, 1), (1, 0, 2)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert draw_seed(5, 1, 2) == draw_seed(5, 1, 2)


@pytest.mark.parametrize("clip", [-1, 3])
def test_errors_of_views(clip):
    with pytest.raises(ValueError, match=f"clip must be 0 to 2, one of num_clips=3, got {clip}"):
        view_indices(10, 4, 1, "center", clip, 3)


@pytest.mark.parametrize("function", [frame_indices, lambda *given: random_indices(*given, None)])
def test_an_unknown_rule(function):
    with pytest.raises(ValueError, match="sampling must be center or segments, got 'random'"):
        function(10, 4, 1, "random")
