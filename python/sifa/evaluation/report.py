"""The report of an evaluation: one HTML file that needs nothing else, and the same numbers as JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import torch

from .. import __version__
from ..data.clips import ViewClips
from .engines import ENGINES
from .evaluate import Evaluation
from .metrics import most_confused, worst_classes
from .pictures import confusion_picture, reliability_picture, thumbnail

HTML, JSON = "report.html", "report.json"
"""Names of the two files in a report's folder."""

_SHOWN = 8  # worst classes, and confused pairs
_EXAMPLES = 4  # videos of each


@dataclass(frozen=True)
class _Example:
    """A video that was mistaken, for the page."""

    name: str
    predicted: str
    probability: float
    picture: str | None


def write_report(evaluation: Evaluation, folder: Path, template: str | None = None) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into a folder, made if need be; returns their paths.

    Args:
        evaluation: what `sifa.evaluation.evaluate` returned.
        folder: overwritten if the files are there.
        template: names of the images in a folder of frames, for the thumbnails: see
            `sifa.data.sources.open_source`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / HTML, folder / JSON
    facts = {**evaluation.facts(), "sifa_version": __version__, "results": evaluation.results()}
    data.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    page.write_text(_page(evaluation, template), encoding="utf-8")
    return page, data


def _page(evaluation: Evaluation, template: str | None) -> str:
    metrics = evaluation.metrics
    examples = _Examples(evaluation, template)
    worst = [
        {**asdict(entry), "examples": examples.of(entry.index)} for entry in worst_classes(metrics, _SHOWN)
    ]
    confused = [
        {
            "label": evaluation.labels[true],
            "taken_for": evaluation.labels[taken],
            "times": times,
            "of": metrics.classes[true].videos,
            "examples": examples.of(true, taken),
        }
        for true, taken, times in most_confused(metrics, _SHOWN)
    ]
    # Labels and file names come from anywhere: everything is escaped.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f} %"
    source = (files(__package__) / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        evaluation=evaluation,
        metrics=metrics,
        engine=ENGINES[evaluation.engine],
        confidence=float(evaluation.probabilities.amax(1).mean()),
        reliability=_uri(reliability_picture(metrics), "png"),
        confusion=_uri(confusion_picture(metrics), "png"),
        worst=worst,
        confused=confused,
        classes=sorted(metrics.classes, key=lambda entry: (entry.top1 is None, entry.top1, entry.index)),
        versions=f"sifa {__version__}, torch {torch.__version__}, torchmetrics {version('torchmetrics')}",
    )


class _Examples:
    """The mistakes of an evaluation, the most confident ones first, with three frames of each."""

    def __init__(self, evaluation: Evaluation, template: str | None) -> None:
        self._evaluation = evaluation
        self._confidence, self._predicted = evaluation.probabilities.max(1)
        self._targets = torch.tensor(
            [evaluation.annotations.videos[index].label for index in evaluation.indices.tolist()]
        )
        self._frames = ViewClips(
            evaluation.annotations, num_frames=3, sampling="segments", template=template, max_broken=1.0
        )

    def of(self, true: int, taken: int | None = None) -> list[_Example]:
        """Mistaken videos of a class, of all or of those that were taken for another one."""
        wrong = (self._targets == true) & (self._predicted != true)
        if taken is not None:
            wrong &= self._predicted == taken
        rows = wrong.nonzero().flatten()
        rows = rows[self._confidence[rows].argsort(descending=True, stable=True)][:_EXAMPLES]
        return [self._example(row) for row in rows.tolist()]

    def _example(self, row: int) -> _Example:
        index = int(self._evaluation.indices[row])
        item: dict[str, Any] = self._frames[index]
        return _Example(
            name=self._evaluation.annotations.videos[index].name,
            predicted=self._evaluation.labels[int(self._predicted[row])],
            probability=float(self._confidence[row]),
            picture=None if item["broken"] else _uri(thumbnail(item["frames"]), "jpeg"),
        )


def _uri(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
