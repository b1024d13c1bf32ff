"""Reading frames from a video file, through torchcodec and the system's FFmpeg.

Python and C++ must see the same frames. C++ reads through OpenCV, whose FFmpeg backend knows only the first
video stream of a file, so this module asks torchcodec for that stream too (by itself it takes the one
FFmpeg calls best). Colours differ where a stream is tagged BT.709, by up to 20 of 255: torchcodec heeds the
tag, OpenCV takes every video for BT.601. And torchcodec finds a frame by its time: where that fails (MPEG
transport and program streams, AVI with B-frames, streams without timestamps), the `ffmpeg` program decodes
from the start.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .sampling import frame_indices

TIMEOUT = 300.0
"""Seconds that the `ffmpeg` program may take for a file: nothing waits for a damaged one for ever."""


_TEXTS = (".ans", ".art", ".asc", ".diz", ".ice", ".nfo", ".txt", ".vt")
"""Of these FFmpeg makes videos, of what a terminal would show: a list of videos is not one."""


class VideoError(RuntimeError):
    """A file cannot be read as a video; the message says which and why."""


def read_frames(
    path: str | os.PathLike[str], num_frames: int, frame_stride: int = 1, sampling: str = "center"
) -> tuple[Tensor, list[int]]:
    """Read the clip that an exported model is fed with: of one video, by a rule.

    Args:
        path: a video file of any format FFmpeg reads.
        num_frames: length of the clip.
        frame_stride: distance between two frames of the clip, in frames of the video.
        sampling: one of `sifa.data.sampling.RULES`.

    Returns:
        The frames, uint8 `(num_frames, H, W, 3)` RGB, and their indices in the first video stream, as
        `sifa.data.sampling.frame_indices` chooses them from the stream's exact number of frames.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is a folder or not a video, or has no frames, or they cannot be decoded.
        ImportError: torchcodec, or the FFmpeg it needs, is missing.
        ValueError: `num_frames` or `frame_stride` is below 1, or there is no such rule.
    """
    video = VideoFile(path)
    indices = frame_indices(video.num_frames, num_frames, frame_stride, sampling)
    return video.read(indices), indices


class VideoFile:
    """An open video file, of which only what the wanted frames need is decoded, where the file allows it.

    Args:
        path: a video file of any format FFmpeg reads.

    Attributes:
        num_frames: the exact number of frames in the first video stream.
        fps: its frames per second on average, None if the file does not say.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is a folder or not a video, or has no frames.
        ImportError: torchcodec, or the FFmpeg it needs, is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if self._path.is_dir():
            raise VideoError(f"{self._path} is a folder: name a video file")
        if not self._path.is_file():
            raise FileNotFoundError(f"there is no file {self._path}")
        if self._path.suffix.lower() in _TEXTS:
            raise VideoError(f"{self._path} is a text by its name, which FFmpeg would draw; name a video")
        self.num_frames, self.fps, self._fetch = _open(self._path)

    def read(self, indices: Sequence[int]) -> Tensor:
        """The frames of these indices, uint8 `(len(indices), H, W, 3)` RGB, upright if the video is rotated.

        Raises:
            VideoError: they cannot be decoded.
        """
        try:
            return self._fetch(list(indices))
        except (RuntimeError, IndexError) as error:
            raise VideoError(
                f"cannot decode frames {min(indices)} to {max(indices)} of {self._path}: {_reason(error)}"
            ) from error


def _open(path: Path) -> tuple[int, float | None, Callable[[list[int]], Tensor]]:
    """The exact number of frames in the first video stream, their rate, and what reads some of them."""
    try:
        decoder = _first_video_stream(path)
        # Where the first frame is not found at its own time, no frame is.
        first = decoder.get_frame_at(0).pts_seconds
        if abs(first - decoder.metadata.begin_stream_seconds) > 1e-3:
            raise RuntimeError(f"its timestamps do not fit its frames, the first is at {first:.3f} s")
    except (RuntimeError, ValueError, IndexError) as error:
        try:
            return _count_with_ffmpeg(path), None, lambda indices: _decode_with_ffmpeg(path, indices)
        except (RuntimeError, OSError) as second:
            reasons = f"{_reason(error)}; {_reason(second)}".replace(f"{path} ", "")  # it is said already
            raise VideoError(f"{path} is not a video that FFmpeg can read: {reasons}") from error
    fps = decoder.metadata.average_fps
    return len(decoder), fps, lambda indices: decoder.get_frames_at(indices).data


def _first_video_stream(path: Path) -> Any:
    """A torchcodec decoder of the video stream with the lowest index, which knows its number of frames."""
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
    best = VideoDecoder(path, **settings)
    for index in range(best.stream_index):
        try:
            return VideoDecoder(path, stream_index=index, **settings)
        except (RuntimeError, ValueError):  # sound or subtitles
            continue
    return best


def _count_with_ffmpeg(path: Path) -> int:
    """The number of frames in the first video stream, by decoding all of them."""
    show = ["-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "default=nokey=1"]
    count = re.search(
        rb"\d+", _run("ffprobe", "-v", "error", "-select_streams", "v:0", *show, f"file:{path}")
    )
    if count is None or int(count[0]) == 0:
        raise RuntimeError("it has no frames")
    return int(count[0])


def _decode_with_ffmpeg(path: Path, indices: list[int]) -> Tensor:
    """The frames of the given indices, uint8 `(T, H, W, 3)`, by decoding from the start."""
    wanted = sorted(set(indices))
    # One tick of the frame rate for each frame that is kept, so that none is doubled or dropped.
    pick = f"select='{'+'.join(f'eq(n,{index})' for index in wanted)}',setpts=N/FRAME_RATE/TB"
    output = [
        "-map",
        "0:v:0",
        "-vf",
        pick,
        "-frames:v",
        str(len(wanted)),
        "-c:v",
        "ppm",
        "-f",
        "image2pipe",
        "-",
    ]
    images = _run("ffmpeg", "-v", "error", "-nostdin", "-i", f"file:{path}", *output)
    frames, start = [], 0
    while header := re.compile(rb"P6\s(\d+)\s(\d+)\s255\s").match(images, start):
        width, height = int(header[1]), int(header[2])
        start = header.end() + height * width * 3
        frame = torch.frombuffer(bytearray(images[header.end() : start]), dtype=torch.uint8)
        frames.append(frame.view(height, width, 3))
    if len(frames) != len(wanted):
        raise RuntimeError(f"ffmpeg gave {len(frames)} of {len(wanted)} frames")
    return torch.stack([frames[wanted.index(index)] for index in indices])


def _run(*command: str) -> bytes:
    """What a program prints; RuntimeError with its complaint if it fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT).stdout
    except FileNotFoundError as error:
        raise RuntimeError(f"there is no program {command[0]}: sudo apt-get install ffmpeg") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error.stderr.decode(errors="replace") or f"{command[0]} failed") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} was still busy after {TIMEOUT} seconds") from error


def _reason(error: Exception) -> str:
    """The first line of an error, without what leads it: a place in torchcodec's source, FFmpeg's address."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"^\S+, \S+:\d+, |^\[[^]]* @ 0x[0-9a-f]+\] ", "", text.splitlines()[0]).rstrip(" .")
