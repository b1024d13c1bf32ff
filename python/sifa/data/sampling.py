"""Which frames of a video a clip is made of: rules that Python and C++ share, and their random counterparts.

`tests/data/frame_indices.json` is the golden table that :func:`frame_indices` here and in `cpp/` are both
tested against.
"""

from __future__ import annotations

import numpy as np

RULES = ("center", "segments")
"""The sampling rules, by the names that stand in an artifact's metadata (`"sampling"`)."""


def frame_indices(total: int, num_frames: int, frame_stride: int = 1, sampling: str = "center") -> list[int]:
    """Indices of the `num_frames` frames to read from a video of `total` decoded frames.

    `"center"`: a video that is long enough gives the window of every `frame_stride`-th frame in its middle;
    of two equally central windows, the earlier. A shorter one is spread evenly from its first frame on, and
    repeats frames when it has fewer than `num_frames`.

    `"segments"`: the video is cut into `num_frames` segments of equal length, each of which gives the frame
    in its middle, whatever `frame_stride` is; a video of fewer frames repeats them.

    Args:
        total: number of frames that decoding the video yields, at least 1.
        num_frames: length of the clip, at least 1.
        frame_stride: distance between two frames of the clip, in frames of the video, at least 1.
        sampling: one of `RULES`.

    Returns:
        `num_frames` indices in `[0, total)`, not decreasing.

    Raises:
        ValueError: a number is below 1, or there is no such rule.
    """
    return view_indices(total, num_frames, frame_stride, sampling)


def view_indices(
    total: int, num_frames: int, frame_stride: int, sampling: str, clip: int = 0, num_clips: int = 1
) -> list[int]:
    """Indices of one of `num_clips` clips that are spread over a video; the only one is `frame_indices`.

    `"center"`: of several windows the first starts at the first frame and the last ends at the last, the
    others lie evenly between. `"segments"`: clip `c` takes each segment at the middle of its `c`-th
    `num_clips`-th part.

    Args:
        total, num_frames, frame_stride, sampling: as in `frame_indices`.
        clip: which one, from 0.
        num_clips: of how many.

    Raises:
        ValueError: as in `frame_indices`; or `clip` is not one of `num_clips`.
    """
    _check(total, num_frames, frame_stride, sampling)
    if not 0 <= clip < num_clips:
        raise ValueError(f"clip must be 0 to {num_clips - 1}, one of num_clips={num_clips}, got {clip}")
    if sampling == "segments":
        parts = 2 * num_clips * num_frames
        return [(2 * (i * num_clips + clip) + 1) * total // parts for i in range(num_frames)]
    room = total - ((num_frames - 1) * frame_stride + 1)
    if room < 0:
        return [i * total // num_frames for i in range(num_frames)]
    start = room // 2 if num_clips == 1 else clip * room // (num_clips - 1)
    return [start + i * frame_stride for i in range(num_frames)]


def random_indices(
    total: int, num_frames: int, frame_stride: int, sampling: str, generator: np.random.Generator
) -> list[int]:
    """Indices of a clip for training: a random window (`"center"`), or a random frame of each segment.

    A video that is too short gives what `frame_indices` does (`"center"`), or repeats frames (`"segments"`).

    Args:
        total, num_frames, frame_stride, sampling: as in `frame_indices`.
        generator: what is random comes from it, one draw per call.

    Raises:
        ValueError: as in `frame_indices`.
    """
    _check(total, num_frames, frame_stride, sampling)
    if sampling == "segments":
        edges = [i * total // num_frames for i in range(num_frames + 1)]
        within = generator.random(num_frames)
        return [
            edge + int(share * max(1, after - edge))
            for edge, after, share in zip(edges[:-1], edges[1:], within, strict=True)
        ]
    room = total - ((num_frames - 1) * frame_stride + 1)
    if room < 0:
        return frame_indices(total, num_frames, frame_stride, sampling)
    start = int(generator.integers(room + 1))
    return [start + i * frame_stride for i in range(num_frames)]


def draw_seed(seed: int, *place: int) -> int:
    """The seed of the random draws at one place, such as `(epoch, index of the sample)`; in `[0, 2**63)`.

    Every random draw in training derives from it, so that what a sample becomes does not depend on which
    worker or process makes it, nor on what was drawn before.

    Args:
        seed: of the whole training, at least 0.
        place: where the draw happens, each at least 0; the order matters.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _check(total: int, num_frames: int, frame_stride: int, sampling: str) -> None:
    for name, value in (("total", total), ("num_frames", num_frames), ("frame_stride", frame_stride)):
        if value < 1:
            raise ValueError(f"frame_indices: {name} must be at least 1, got {value}")
    if sampling not in RULES:
        raise ValueError(f"frame_indices: sampling must be {' or '.join(RULES)}, got {sampling!r}")
