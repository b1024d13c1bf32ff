"""Evaluation of a model on annotated videos, in one process or several, each video counted exactly once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..data.annotations import Annotations, read_annotations
from ..data.clips import BrokenVideosError
from ..training.processes import cluster
from .classify import Views, classify
from .engines import Engine
from .metrics import Metrics, measure


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        source, engine, model: what was evaluated, a key of `ENGINES`, the name of the model.
        annotations: the videos and their classes.
        views: of each video.
        metrics: the numbers, of the videos that could be read.
        indices: which videos of the annotations these are, `(N,)`, ascending.
        probabilities: `(N, num_classes)`, of these videos.
        broken: names of the videos that could not be read.
    """

    source: str
    engine: str
    model: str
    annotations: Annotations
    views: Views
    metrics: Metrics
    indices: Tensor
    probabilities: Tensor
    broken: list[str]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.annotations.labels

    def facts(self) -> dict[str, Any]:
        """All numbers, without those of single videos; can be written as JSON."""
        return {
            "source": self.source,
            "engine": self.engine,
            "model": self.model,
            "annotations": str(self.annotations.source),
            "views": str(self.views),
            **asdict(self.metrics),
            "broken": self.broken,
        }

    def results(self) -> list[dict[str, Any]]:
        """Every video that was read: its name, class, the class it was taken for and both probabilities."""
        entries = []
        for index, row in zip(self.indices.tolist(), self.probabilities, strict=True):
            video, predicted = self.annotations.videos[index], int(row.argmax())
            entries.append(
                {
                    "video": video.name,
                    "label": self.labels[video.label],
                    "predicted": self.labels[predicted],
                    "probability": float(row[predicted]),
                    "probability_of_label": float(row[video.label]),
                }
            )
        return entries


def annotations_for(engine: Engine, path: str | os.PathLike[str], **settings: Any) -> Annotations:
    """Annotations whose classes are those of the model.

    Args:
        engine: the model. Where its labels are names, the annotations are read with them; where they are
            only numbered (`class_0`, …), the annotations give the names.
        path, **settings: of `sifa.data.annotations.read_annotations`.

    Raises:
        ValueError: the annotations have other classes than the model.
        FileNotFoundError, AnnotationError: as `read_annotations`.
    """
    numbered = [f"class_{index}" for index in range(len(engine.labels))]
    if settings.get("labels") is None and engine.labels != numbered:
        settings["labels"] = engine.labels
    annotations = read_annotations(path, **settings)
    count, expected = len(annotations.labels), len(engine.labels)
    if count < expected and list(annotations.labels) == numbered[:count]:
        return Annotations(annotations.videos, tuple(numbered), annotations.source)
    if count != expected:
        raise ValueError(
            f"{annotations.source} has {count} classes and {engine.source} {expected}: "
            "evaluate a model on the classes that it was trained on"
        )
    return annotations


def evaluate(
    engine: Engine,
    annotations: Annotations,
    *,
    views: Views,
    batch_size: int = 8,
    workers: int = 0,
    max_broken: float = 0.05,
    template: str | None = None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Evaluation:
    """Classify every video and compare with its class.

    In a process group (`process_group`), each process takes every n-th video and all of them return the same
    evaluation of all videos, whatever the number of videos is.

    Args:
        engine: the model.
        annotations: the videos, with the labels of the model: see `annotations_for`.
        views, batch_size, workers, template: see `classify`.
        max_broken: the share of videos that may be unreadable; they are named and not counted.
        progress: called with the videos that this process has done, and has to do.

    Raises:
        BrokenVideosError: more videos are broken, or all of them.
        ValueError: an argument is out of its range, or the model's output is not finite.
    """
    if not 0 <= max_broken <= 1:
        raise ValueError(f"max_broken must be a share, 0 to 1, got {max_broken}")
    parallel = distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    total = len(annotations.videos)
    own = range(rank, total, world)
    rows: dict[int, Tensor | None] = {}
    progress(0, len(own))
    for index, row in classify(
        *(engine, annotations, own),
        views=views,
        batch_size=batch_size,
        workers=workers,
        template=template,
    ):
        rows[index] = row
        progress(len(rows), len(own))
    if parallel:
        parts: list[Any] = [None] * world
        distributed.all_gather_object(parts, rows)
        rows = {index: row for part in parts for index, row in part.items()}
        counted = sum(map(len, parts))
    else:
        counted = len(rows)
    if not counted == len(rows) == total:
        raise RuntimeError(
            f"there are {counted} results of {len(rows)} videos for {total} videos: "
            "all processes must be given the same annotations"
        )
    broken = [annotations.videos[index].name for index in sorted(rows) if rows[index] is None]
    if len(broken) > max_broken * total or len(broken) == total:
        raise BrokenVideosError(
            f"{len(broken)} of the {total} videos of {annotations.source} cannot be read, more than "
            f"max_broken={max_broken:g} of them; the first is {broken[0]}; "
            f"`sifa data check {annotations.source}` lists them all"
        )
    indices = torch.tensor([index for index in sorted(rows) if rows[index] is not None])
    probabilities = torch.stack([row for _, row in sorted(rows.items()) if row is not None])
    targets = torch.tensor([annotations.videos[index].label for index in indices.tolist()])
    return Evaluation(
        source=engine.source,
        engine=engine.kind,
        model=engine.model,
        annotations=annotations,
        views=views,
        metrics=measure(probabilities, targets, list(annotations.labels)),
        indices=indices,
        probabilities=probabilities,
        broken=broken,
    )


@contextmanager
def process_group() -> Iterator[int]:
    """Join the processes that torchrun or srun started, if one did; yields the number of this one, from 0."""
    found = cluster()
    if found is None or found.world_size() < 2:
        yield 0
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.main_address, str(found.main_port)
    # Only results are exchanged, on the CPU, wherever the models run.
    distributed.init_process_group("gloo", rank=found.global_rank(), world_size=found.world_size())
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: of several on a machine with GPUs, `"cuda"` means one for each."""
    found = cluster()
    return f"cuda:{found.local_rank()}" if device == "cuda" and found is not None else device
