"""What annotated videos are like, before a training: numbers, what cannot be read, a picture."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .annotations import Annotations, Video
from .sources import open_source
from .video import VideoError

_SHOWN = 6  # frames of each video in the picture
_ROWS = 24
_HEIGHT = 96  # of a frame in the picture, in pixels


@dataclasses.dataclass(frozen=True)
class CheckedVideo:
    """What is known of one video after some of its frames were read.

    Attributes:
        video: as annotated.
        num_frames: how many frames it has; 0 if it cannot be read.
        fps: frames per second, None if nothing says so.
        size: height and width in pixels.
        error: why it cannot be read; None if it can.
    """

    video: Video
    num_frames: int = 0
    fps: float | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def check_videos(
    annotations: Annotations,
    *,
    template: str | None = None,
    workers: int = 2,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[CheckedVideo]:
    """Read the first, the middle and the last frame of every video.

    Args:
        annotations: the videos.
        template: names of the images in a folder of frames: see `sifa.data.sources.open_source`.
        workers: threads that read.
        progress: called with how many are done, and of how many.

    Returns:
        One entry for each video, in their order.
    """
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        checked = []
        for entry in pool.map(lambda video: _check(video, template), annotations.videos):
            checked.append(entry)
            progress(len(checked), len(annotations.videos))
    return checked


def _check(video: Video, template: str | None) -> CheckedVideo:
    try:
        source = open_source(video.path, num_frames=video.num_frames, template=template)
        last = source.num_frames - 1
        frames = source.read([0, last // 2, last])
    except (OSError, VideoError) as error:
        return _broken(video, error)
    height, width = frames.shape[1:3]
    return CheckedVideo(video, source.num_frames, source.fps, (height, width))


def _broken(video: Video, error: Exception) -> CheckedVideo:
    return CheckedVideo(video, error=" ".join(str(error).split()))


def check_picture(path: str | os.PathLike[str]) -> None:
    """Say before the videos are read that their picture cannot be written. Raises ValueError."""
    suffix = Path(path).suffix.lower()
    if Image.registered_extensions().get(suffix) not in Image.SAVE:
        raise ValueError(f"{path} is no picture that can be written: end its name in .jpg or .png")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a picture in it")


def contact_sheet(
    annotations: Annotations,
    checked: list[CheckedVideo],
    path: str | os.PathLike[str],
    template: str | None = None,
) -> int:
    """Write a picture with frames of some videos, a row each, of as many classes as there is room for.

    Args:
        annotations: for the names of the classes.
        checked: of the same videos; those that cannot be read are left out. One of which that shows only
            now, at other frames than were read before, has its error entered.
        path: of the picture, whose extension names its format.
        template: see `check_videos`.

    Returns:
        The number of rows, up to 24.
    """
    chosen = _spread([entry for entry in checked if entry.error is None])
    font = ImageFont.load_default(14)
    rows: list[Image.Image] = []
    for entry in chosen:
        text = f"{annotations.labels[entry.video.label]}   {entry.video.name}, {entry.num_frames} frames"
        try:
            source = open_source(entry.video.path, num_frames=entry.video.num_frames, template=template)
            frames = source.read([i * (source.num_frames - 1) // (_SHOWN - 1) for i in range(_SHOWN)])
        except (OSError, VideoError) as error:
            checked[checked.index(entry)] = _broken(entry.video, error)
            continue
        rows.append(_row(frames, text, font))
    if not rows:
        return 0
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return len(rows)


def _spread(entries: list[CheckedVideo]) -> list[CheckedVideo]:
    """The first video of every class, then the second, up to the number of rows; ordered by class."""
    of_class: dict[int, list[CheckedVideo]] = {}
    for entry in entries:
        of_class.setdefault(entry.video.label, []).append(entry)
    turns = [(turn, label) for label, videos in of_class.items() for turn in range(len(videos))]
    chosen = sorted(turns)[:_ROWS]
    return [of_class[label][turn] for turn, label in sorted(chosen, key=lambda place: (place[1], place[0]))]


def _row(frames: Tensor, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    height, width = frames.shape[1:3]
    # A panorama keeps its shape, but not its width.
    shown = min(max(1, round(width * _HEIGHT / height)), 3 * _HEIGHT)
    row = Image.new("RGB", (max(_SHOWN * (shown + 2), 640), _HEIGHT + 24), "white")
    ImageDraw.Draw(row).text((4, 3), text, "black", font)
    for number, frame in enumerate(frames.to(torch.uint8)):
        image = Image.fromarray(frame.numpy()).resize((shown, _HEIGHT))
        row.paste(image, (number * (shown + 2), 22))
    return row
