"""Batches in an order that seed and epoch fix, from any position on, for any number of processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ..data.clips import TrainingClips, ViewClips
from ..data.sampling import draw_seed


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """The batches of one process: lists of (epoch, index of a video), shuffled anew for each epoch.

    The videos of an optimizer step are the same however many processes share it and in however many parts
    each of them takes its share. Those that fill no whole step are left out of the epoch.

    Args:
        num_videos: in all.
        batch_size: videos of an optimizer step, over all processes.
        accumulate: parts in which a process takes its share of a step.
        processes, rank: how many processes there are, and which of them this is.
        seed: of the shuffling.
        position: batches of this process that earlier runs have used, over all epochs.

    Raises:
        ValueError: there are fewer videos than a step takes, or it cannot be shared equally.
    """

    def __init__(
        self,
        num_videos: int,
        batch_size: int,
        accumulate: int = 1,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        position: int = 0,
    ) -> None:
        if batch_size < 1 or accumulate < 1 or batch_size % (processes * accumulate):
            raise ValueError(
                f"batch_size must be a multiple of processes x accumulate, {processes} x {accumulate}, got "
                f"{batch_size}"
            )
        if num_videos < batch_size:
            raise ValueError(
                f"there are {num_videos} videos to train on, fewer than one batch of {batch_size}: give more "
                "videos, or a smaller --batch_size"
            )
        self.num_videos, self.batch_size, self.accumulate = num_videos, batch_size, accumulate
        self.processes, self.rank, self.seed = processes, rank, seed
        self.steps = num_videos // batch_size
        self.epoch, self._first = divmod(position, len(self))

    @property
    def sampler(self) -> TrainingOrder:
        """Itself: the trainer tells the epoch to what a batch sampler draws from, and to no batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; called by the trainer. In the epoch it is at, it stays."""
        if epoch != self.epoch:
            self.epoch, self._first = epoch, 0

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(draw_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_videos, generator=generator)[: self.steps * self.batch_size]
        parts = order.view(self.steps, self.accumulate, self.processes, -1)[:, :, self.rank].flatten(0, 1)
        for part in parts[self._first :].tolist():
            yield [(self.epoch, index) for index in part]


class ValidationOrder(Sampler[list[int]]):
    """The batches of one process: lists of the indices that are `rank` modulo `processes`.

    So that all processes have as many batches, a process that has a video fewer sees the last video of all
    once more; its index tells it from the process's own.
    """

    def __init__(self, num_videos: int, batch_size: int, processes: int = 1, rank: int = 0) -> None:
        self.batch_size = batch_size
        share = -(-num_videos // processes)
        own = list(range(rank, num_videos, processes))
        self._own = own + [num_videos - 1] * (share - len(own))

    def __len__(self) -> int:
        return -(-len(self._own) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self._own), self.batch_size):
            yield self._own[start : start + self.batch_size]


class TrainingLoader(DataLoader[dict[str, Any]]):
    """Batches of `TrainingClips` in a `TrainingOrder`, and how long they were waited for.

    Attributes:
        waited: in seconds, over all epochs.
    """

    dataset: TrainingClips

    def __init__(self, clips: TrainingClips, order: TrainingOrder, **options: Any) -> None:
        super().__init__(clips, batch_sampler=order, **options)
        self.waited = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Nothing is drawn before the first batch is asked for, when the trainer has set the epoch."""
        batches = super().__iter__()
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            yield batch


class ValidationLoader(DataLoader[dict[str, Any]]):
    """Batches of `ViewClips` in a `ValidationOrder`."""

    dataset: ViewClips

    def __init__(self, clips: ViewClips, order: ValidationOrder, **options: Any) -> None:
        super().__init__(clips, batch_sampler=order, **options)


def end_workers(loader: DataLoader[dict[str, Any]]) -> None:
    """End the processes that a loader keeps for its next epoch."""
    if loader._iterator is not None and loader.num_workers > 0:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


def ignore_signals(worker: int) -> None:
    """Leave the signals to the training process, which still needs the workers' batches to end its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
