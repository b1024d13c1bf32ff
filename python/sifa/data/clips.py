"""Clips out of annotated videos, as PyTorch data sets: random ones to learn from, fixed views to test with.

What is random about a clip derives from the seed, the epoch and its index alone: the same clip comes out of
any worker, in any order, and after a training was interrupted.

A video that cannot be read costs one line in the log, and the mark that it is broken; more than a stated
share of them is an error. No worker waits for, or dies of, one.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .annotations import Annotations, Video
from .sampling import draw_seed, frame_indices, random_indices, view_indices
from .sources import check_template, open_source
from .video import VideoError

_log = logging.getLogger(__name__)

_PLACEHOLDER = 32  # pixels; height and width of what stands for the frames of a broken video


class BrokenVideosError(RuntimeError):
    """Too many videos cannot be read; the message says how many, and names one."""


class ClipDataset(Dataset):
    """What both kinds of clips share: the videos, the rule, and what is known of broken ones.

    Args:
        annotations: the videos.
        num_frames, frame_stride, sampling: which frames are a clip: see `sifa.data.sampling`.
        template: names of the images in a folder of frames: see `sifa.data.sources.open_source`.
        max_broken: the share of videos that may be unreadable.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        num_frames: int,
        frame_stride: int = 1,
        sampling: str = "center",
        template: str | None = None,
        max_broken: float = 0.05,
    ) -> None:
        frame_indices(1, num_frames, frame_stride, sampling)  # checks them
        if template is not None:
            check_template(template)
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken must be a share, 0 to 1, got {max_broken}")
        self.annotations = annotations
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.sampling = sampling
        self._template = template
        self._max_broken = max_broken
        # In shared memory: workers mark here, and every process sees which videos have been logged.
        self._broken = torch.zeros(len(annotations.videos), dtype=torch.bool).share_memory_()

    def broken(self) -> list[str]:
        """The names of the videos that could not be read so far, in this process and its workers."""
        return [self.annotations.videos[index].name for index in self._broken.nonzero().flatten().tolist()]

    def _read(self, index: int, choose: Callable[[int], Sequence[int]]) -> Tensor | None:
        """The frames that ``choose`` picks by the video's length, or None for a video that is broken.

        Raises:
            BrokenVideosError: too many are.
        """
        video = self.annotations.videos[index]
        if self._broken[index]:
            return None
        try:
            source = open_source(video.path, num_frames=video.num_frames, template=self._template)
            return source.read(choose(source.num_frames))
        except (OSError, VideoError) as error:
            self._mark(index, video, error)
            return None

    def _mark(self, index: int, video: Video, error: Exception) -> None:
        self._broken[index] = True
        # Most errors say the path, and most names are a part of it.
        said = video.name in str(video.path) and str(video.path) in str(error)
        name = "" if said else f" {video.name}"
        _log.warning("skipped%s: %s", name, error)
        count, total = int(self._broken.sum()), len(self.annotations.videos)
        if count > self._max_broken * total:
            raise BrokenVideosError(
                f"{count} of the {total} videos of {self.annotations.source} cannot be read, more than "
                f"max_broken={self._max_broken:g} of them; one is {video.name}: {error}; "
                "`sifa data check` lists them all"
            ) from error


class TrainingClips(ClipDataset):
    """A clip of each video to learn from: item ``(epoch, i)`` is one of video i, by default a random one.

    The epoch is part of the item, so that a sampler decides it and no worker has to be told. An index alone
    is of epoch 0. An item is a dict of `frames`, uint8 `(T, h, w, 3)` RGB as the transform leaves them;
    `label`; and `index`, of the video. In the place of a broken video stands another one, drawn at random.

    Args:
        annotations, **clip: see :class:`ClipDataset`.
        transform: augmentation, from uint8 `(T, H, W, 3)` to the same type of one size for all
            (`sifa.data.augmentation`); it draws from torch's global generator, which is seeded for it and
            left as it was.
        seed: what every random draw derives from, with the epoch and the index.
        random_clips: whether the clip is another one in every epoch, or the video's only view.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        random_clips: bool = True,
        **clip: Any,
    ) -> None:
        super().__init__(annotations, **clip)
        self._transform = transform
        self._seed = seed
        self._random_clips = random_clips

    def __len__(self) -> int:
        return len(self.annotations.videos)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, Any]:
        epoch, first = item if isinstance(item, tuple) else (0, item)
        first = range(len(self))[first]
        frames, attempt = None, 0
        while frames is None:
            if self._broken.all():
                raise BrokenVideosError(
                    f"not one of the {len(self)} videos of {self.annotations.source} can be read"
                )
            # Draws of its own for each attempt: what is known of other videos must change nothing.
            generator = np.random.default_rng(draw_seed(self._seed, epoch, first, attempt))
            index = first if attempt == 0 else int(generator.integers(len(self)))
            frames = self._read(index, functools.partial(self._choose, generator))
            attempt += 1
        if self._transform is not None:
            # torchvision draws from the global generator.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(generator.integers(2**63)))
                frames = self._transform(frames)
        return {"frames": frames, "label": self.annotations.videos[index].label, "index": index}

    def plain(self) -> TrainingClips:
        """The same clips without the transform."""
        plain = copy.copy(self)
        plain._transform = None
        return plain

    def _choose(self, generator: np.random.Generator, total: int) -> list[int]:
        rule = (total, self.num_frames, self.frame_stride, self.sampling)
        return random_indices(*rule, generator) if self._random_clips else frame_indices(*rule)


class ViewClips(ClipDataset):
    """Fixed views of each video: `clips` in time × `crops` in space, item ``i * clips * crops + view``.

    An item is a dict of `frames`, uint8 `(T, H, W, 3)` RGB; `label`; `index`, of the video; `view`, which is
    `clip * crops + crop`; and `broken`. The frames of a broken video are black, and `broken` says not to
    count them: each item comes back exactly once, whatever it is.

    With one crop the frames are whole, as a video is classified in C++. With three they are the left, middle
    and right (or upper, middle and lower) square of the short side. Resizing, cropping and normalising is the
    model's: `preprocessing`, or the graph of an artifact.

    Args:
        annotations, **clip: see :class:`ClipDataset`.
        clips: of each video, spread over it; one is the clip of `sifa.data.sampling.frame_indices`.
        crops: 1 or 3.
        preprocessing: the model's `ClipPreprocessing`; an item then holds, instead of `frames`, its output
            `clip`, float32 `(3, T, h, w)`, so that videos of all sizes fit in a batch.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        clips: int = 1,
        crops: int = 1,
        preprocessing: Callable[[Tensor], Tensor] | None = None,
        **clip: Any,
    ) -> None:
        super().__init__(annotations, **clip)
        if clips < 1:
            raise ValueError(f"clips must be at least 1, got {clips}")
        if crops not in (1, 3):
            raise ValueError(f"crops must be 1 (whole frames) or 3 (squares of the short side), got {crops}")
        self.clips = clips
        self.crops = crops
        self._preprocessing = preprocessing

    @property
    def views(self) -> int:
        """Views of each video."""
        return self.clips * self.crops

    def __len__(self) -> int:
        return len(self.annotations.videos) * self.views

    def __getitem__(self, item: int) -> dict[str, Any]:
        index, view = divmod(range(len(self))[item], self.views)
        clip, crop = divmod(view, self.crops)
        frames = self._read(index, lambda total: self._fixed(total, clip))
        broken = frames is None
        if frames is None:
            frames = torch.zeros(self.num_frames, _PLACEHOLDER, _PLACEHOLDER, 3, dtype=torch.uint8)
        facts = {
            "label": self.annotations.videos[index].label,
            "index": index,
            "view": view,
            "broken": broken,
        }
        frames = square(frames, crop, self.crops)
        if self._preprocessing is None:
            return {"frames": frames, **facts}
        with torch.no_grad():
            return {"clip": self._preprocessing(frames.unsqueeze(0))[0], **facts}

    def _fixed(self, total: int, clip: int) -> list[int]:
        return view_indices(total, self.num_frames, self.frame_stride, self.sampling, clip, self.clips)


def square(frames: Tensor, crop: int, crops: int) -> Tensor:
    """The part of the frames that one of `crops` spatial views sees: a square of the short side, or all.

    Args:
        frames: `(T, H, W, 3)`.
        crop: which one, from 0: along the long side the first, middle or last of three.
        crops: 3, or 1 for whole frames.
    """
    if crops == 1:
        return frames
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) * crop // (crops - 1), (width - side) * crop // (crops - 1)
    return frames[:, top : top + side, left : left + side].contiguous()


def collate_clips(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items: every entry stacked, except `frames` of different sizes: a list of N tensors."""
    sizes = {item["frames"].shape for item in items if "frames" in item}
    if len(sizes) < 2:
        return default_collate(list(items))
    frames = [item["frames"] for item in items]
    rest = [{key: value for key, value in item.items() if key != "frames"} for item in items]
    return {"frames": frames, **default_collate(rest)}
