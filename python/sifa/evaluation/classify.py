"""The loop under evaluation and prediction: annotated videos in, one row of probabilities per video out."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..data.annotations import Annotations
from ..data.clips import ViewClips, square
from .engines import Engine


@dataclass(frozen=True)
class Views:
    """How many clips of a video, spread over time, and how many squares of each are averaged."""

    clips: int = 1
    crops: int = 1

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


def parse_views(text: str) -> Views:
    """`"10x3"`: 10 clips, 3 squares of the short side each; with `"10x1"` the frames are whole.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})x([13])", text)
    if match is None:
        raise ValueError(f"views must be clips x crops, such as 1x1 or 10x3, with 1 or 3 crops, got {text!r}")
    return Views(int(match[1]), int(match[2]))


def classify(
    engine: Engine,
    annotations: Annotations,
    indices: Sequence[int],
    *,
    views: Views,
    batch_size: int = 8,
    workers: int = 0,
    template: str | None = None,
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield, for each video in turn, its index and its probabilities `(num_classes,)`, the mean of its views.

    A video that cannot be read gives None, and a line in the log that says why.

    Args:
        engine: the model.
        annotations: the videos; their labels are not looked at.
        indices: which of the videos.
        views: of each video.
        batch_size: views that go through the model at once, of one or several videos of the same size.
        workers: processes that decode; 0 decodes in this one.
        template: names of the images in a folder of frames: see `sifa.data.sources.open_source`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    # Whole frames come out of the data set and are cut here: a clip is decoded once for all of its squares.
    clips = ViewClips(
        annotations,
        num_frames=engine.num_frames,
        frame_stride=engine.frame_stride,
        sampling=engine.sampling,
        clips=views.clips,
        template=template,
        max_broken=1.0,  # what is too many is known at the end, of all processes
    )
    items = [index * views.clips + clip for index in indices for clip in range(views.clips)]
    loader = DataLoader(Subset(clips, items), batch_size=None, num_workers=workers)
    total = views.clips * views.crops
    sums = {index: torch.zeros(len(engine.labels)) for index in indices}
    missing = dict.fromkeys(indices, total)
    broken: set[int] = set()
    order = deque(indices)
    pending: list[tuple[int, Tensor]] = []

    def flush() -> None:
        if pending:
            for (index, _), row in zip(
                pending, engine(torch.stack([view for _, view in pending])), strict=True
            ):
                sums[index] += row / total
                missing[index] -= 1
            pending.clear()

    def finished() -> Iterator[tuple[int, Tensor | None]]:
        while order and missing[order[0]] == 0:
            index = order.popleft()
            yield index, None if index in broken else sums[index]
            del sums[index]

    for item in loader:
        index = int(item["index"])
        if item["broken"]:
            broken.add(index)
            missing[index] -= views.crops
        else:
            for crop in range(views.crops):
                view = square(item["frames"], crop, views.crops)
                if pending and (len(pending) == batch_size or pending[0][1].shape != view.shape):
                    flush()
                pending.append((index, view))
        yield from finished()
    flush()
    yield from finished()
