"""Which frames of a video a clip is made of: the rule "center", the same in Python and in C++.

`tests/data/frame_indices.json` is the golden table that this file and `cpp/` are both tested against.
"""

from __future__ import annotations

RULE = "center"
"""Name of the rule in an artifact's metadata (`"sampling"`)."""


def frame_indices(total: int, num_frames: int, frame_stride: int = 1) -> list[int]:
    """Indices of the `num_frames` frames to read from a video of `total` decoded frames.

    A video that is long enough gives the window of every `frame_stride`-th frame in its middle; of two
    equally central windows, the earlier. A shorter one is spread evenly from its first frame on, and
    repeats frames when it has fewer than `num_frames`.

    Args:
        total: number of frames that decoding the video yields, at least 1.
        num_frames: length of the clip, at least 1.
        frame_stride: distance between two frames of the clip, in frames of the video, at least 1.

    Returns:
        `num_frames` indices in `[0, total)`, not decreasing.

    Raises:
        ValueError: an argument is below 1.
    """
    for name, value in (("total", total), ("num_frames", num_frames), ("frame_stride", frame_stride)):
        if value < 1:
            raise ValueError(f"frame_indices: {name} must be at least 1, got {value}")
    span = (num_frames - 1) * frame_stride + 1
    if total >= span:
        start = (total - span) // 2
        return [start + i * frame_stride for i in range(num_frames)]
    return [i * total // num_frames for i in range(num_frames)]
