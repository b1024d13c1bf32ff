"""Reading the frames of a clip from a video file, through torchcodec and the system's FFmpeg.

Python and C++ must see the same frames. C++ reads through OpenCV, whose FFmpeg backend knows only the first
video stream of a file, so this module asks torchcodec for that stream too (by itself it takes the one
FFmpeg calls best).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from .sampling import frame_indices


class VideoError(RuntimeError):
    """A file cannot be read as a video; the message says which and why."""


def read_frames(
    path: str | os.PathLike[str], num_frames: int, frame_stride: int = 1
) -> tuple[Tensor, list[int]]:
    """Read the clip in the middle of a video.

    Only what the wanted frames need is decoded. A rotated video comes out upright.

    Args:
        path: a video file of any format FFmpeg reads.
        num_frames: length of the clip.
        frame_stride: distance between two frames of the clip, in frames of the video.

    Returns:
        The frames, uint8 `(num_frames, H, W, 3)` RGB, and their indices in the first video stream, as
        `sifa.data.sampling.frame_indices` chooses them from the stream's exact number of frames.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: the file is not a video, or has no frames, or they cannot be decoded.
        ImportError: torchcodec, or the FFmpeg it needs, is missing.
        ValueError: `num_frames` or `frame_stride` is below 1.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    decoder = _open_first_video_stream(path)
    total = len(decoder)
    if total == 0:
        raise VideoError(f"{path} has no frames")
    indices = frame_indices(total, num_frames, frame_stride)
    try:
        frames = decoder.get_frames_at(indices).data
    except (RuntimeError, IndexError) as error:
        raise VideoError(
            f"cannot decode frames {indices[0]} to {indices[-1]} of {path}: {_reason(error)}"
        ) from error
    return frames, indices


def _open_first_video_stream(path: Path) -> Any:
    """A torchcodec decoder of the video stream with the lowest index, exact about the number of frames."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ModuleNotFoundError as error:
        raise ImportError("reading videos needs torchcodec: pip install torchcodec") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            "torchcodec is installed but cannot be loaded. It needs FFmpeg: sudo apt-get install ffmpeg. "
            f"({_reason(error)})"
        ) from error
    settings: dict[str, Any] = {"dimension_order": "NHWC", "seek_mode": "exact", "device": "cpu"}
    try:
        best = VideoDecoder(path, **settings)
    except (RuntimeError, ValueError) as error:
        raise VideoError(f"{path} is not a video that FFmpeg can read: {_reason(error)}") from error
    for index in range(best.stream_index):
        try:
            return VideoDecoder(path, stream_index=index, **settings)
        except (RuntimeError, ValueError):  # sound or subtitles
            continue
    return best


def _reason(error: Exception) -> str:
    """The first line of a torchcodec error, without the place in its source that leads it."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\S+, \S+:\d+, ", "", text.splitlines()[0]).rstrip(" .")
