"""Which frames a clip is made of: the golden table that C++ reads too, and the rule's properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sifa.data.sampling import frame_indices

TABLE = json.loads((Path(__file__).parents[1] / "data" / "frame_indices.json").read_text())
small = st.integers(1, 300)


@pytest.mark.parametrize(
    "row", TABLE, ids=lambda row: f"{row['num_frames']} of {row['total']} by {row['frame_stride']}"
)
def test_golden_table(row):
    assert frame_indices(row["total"], row["num_frames"], row["frame_stride"]) == row["indices"]


def test_golden_table_covers_both_rules_and_large_videos():
    enough = [row["total"] > (row["num_frames"] - 1) * row["frame_stride"] for row in TABLE]
    assert len(TABLE) >= 40
    assert 10 < sum(enough) < len(TABLE) - 10
    assert any(row["total"] > 2**32 for row in TABLE)


@given(total=small, num_frames=small, frame_stride=small)
def test_indices_lie_in_the_video_in_order(total, num_frames, frame_stride):
    indices = frame_indices(total, num_frames, frame_stride)
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < total


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
