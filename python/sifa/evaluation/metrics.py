"""Numbers that say how good predictions are: accuracies, confusion, calibration, overall and per class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

BINS = 15
"""Bins of confidence, equally wide, for the calibration."""


@dataclass(frozen=True)
class ClassResult:
    """How the videos of one class fared.

    Attributes:
        label, index: of the class.
        videos: how many there are; where there are none, the accuracies are None.
        top1, top5: the share of them whose class is the most likely one, is among the five most likely ones.
        precision: the share of its videos among those taken for it; None if none is.
        confidence: the mean probability given to the class on its own videos, or None.
        taken_for, times: the class that its videos are most often taken for by mistake, and how often.
    """

    label: str
    index: int
    videos: int
    top1: float | None
    top5: float | None
    precision: float | None
    confidence: float | None
    taken_for: str | None
    times: int


@dataclass(frozen=True)
class CalibrationBin:
    """Videos whose top probability lies in `[low, high)`: how many, its mean, the share that is right."""

    low: float
    high: float
    videos: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Metrics:
    """All numbers of an evaluation; shares between 0 and 1.

    Attributes:
        videos: how many they are of.
        top1, top5: the share of videos whose class is the most likely one, among the five most likely ones.
        top1_interval: Wilson's 95 % interval of `top1`.
        mean_class_accuracy: the mean of the classes' `top1`, of those that have videos.
        calibration_error: the expected calibration error: the mean distance of confidence and accuracy over
            `BINS` bins, weighted by their videos.
        calibration: these bins.
        classes: one entry per class, in the model's order.
        confusion: `confusion[i][j]` videos of class i are taken for class j.
    """

    videos: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    mean_class_accuracy: float
    calibration_error: float
    calibration: list[CalibrationBin]
    classes: list[ClassResult]
    confusion: list[list[int]]


def measure(probabilities: Tensor, targets: Tensor, labels: list[str]) -> Metrics:
    """The metrics of predictions.

    Args:
        probabilities: `(N, num_classes)`, N at least 1, each row summing to 1.
        targets: `(N,)`, the true classes.
        labels: names of the classes.

    Raises:
        ValueError: there are no predictions, or a probability is not a number.
    """
    if len(targets) == 0:
        raise ValueError("there are no predictions to measure")
    if not probabilities.isfinite().all():
        count = int((~probabilities.isfinite().all(1)).sum())
        raise ValueError(f"{count} of {len(targets)} predictions are not numbers: the model is broken")
    count, top = len(labels), min(5, len(labels))
    # With fewer than two classes there is nothing to classify, and torchmetrics refuses.
    if count < 2:
        raise ValueError("a model of one class is always right: there is nothing to evaluate")
    # A mean of softmaxes can exceed 1 by a rounding error, and torchmetrics would then take all for logits;
    # exactly 1 would be a bin of its own.
    probabilities = probabilities.float().clamp(0, 1 - 2**-24)
    confusion = multiclass_confusion_matrix(probabilities, targets, count)
    top1 = float(multiclass_accuracy(probabilities, targets, count, average="micro"))
    near = multiclass_accuracy(probabilities, targets, count, average="none", top_k=top)
    classes = [
        _class_result(index, labels, probabilities[targets == index], confusion, float(near[index]))
        for index in range(count)
    ]
    present = [entry.top1 for entry in classes if entry.top1 is not None]
    return Metrics(
        videos=len(targets),
        top1=top1,
        top5=float(multiclass_accuracy(probabilities, targets, count, average="micro", top_k=top)),
        top1_interval=wilson(top1, len(targets)),
        mean_class_accuracy=sum(present) / len(present),
        calibration_error=float(multiclass_calibration_error(probabilities, targets, count, n_bins=BINS)),
        calibration=_calibration(probabilities, targets),
        classes=classes,
        confusion=confusion.tolist(),
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share counted in `count` draws (Wilson, 1927); it stays in [0, 1]."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def most_confused(metrics: Metrics, count: int) -> list[tuple[int, int, int]]:
    """The `count` pairs `(true class, taken for, videos)` that are mistaken most often, by index."""
    pairs = [
        (true, taken, videos)
        for true, row in enumerate(metrics.confusion)
        for taken, videos in enumerate(row)
        if true != taken and videos > 0
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[:2]))[:count]


def worst_classes(metrics: Metrics, count: int) -> list[ClassResult]:
    """The `count` classes with the lowest top-1 accuracy, without those that have no mistake or no video."""
    wrong = [entry for entry in metrics.classes if entry.top1 is not None and entry.top1 < 1]
    return sorted(wrong, key=lambda entry: (entry.top1, -entry.videos, entry.index))[:count]


def _class_result(index: int, labels: list[str], own: Tensor, confusion: Tensor, near: float) -> ClassResult:
    """The result of a class, from the probabilities of its own videos and its top-5 accuracy."""
    videos, taken = len(own), int(confusion[:, index].sum())
    mistakes = confusion[index].clone()
    mistakes[index] = 0
    worst = int(mistakes.argmax())
    return ClassResult(
        label=labels[index],
        index=index,
        videos=videos,
        top1=int(confusion[index, index]) / videos if videos else None,
        top5=near if videos else None,
        precision=int(confusion[index, index]) / taken if taken else None,
        confidence=float(own[:, index].mean()) if videos else None,
        taken_for=labels[worst] if mistakes[worst] > 0 else None,
        times=int(mistakes[worst]),
    )


def _calibration(probabilities: Tensor, targets: Tensor) -> list[CalibrationBin]:
    """The bins whose weighted mean distance of confidence and accuracy is the calibration error."""
    confidence, predicted = probabilities.max(1)
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1), right=True) - 1
    entries = []
    for index in range(BINS):
        inside = bins == index
        videos = int(inside.sum())
        entries.append(
            CalibrationBin(
                low=index / BINS,
                high=(index + 1) / BINS,
                videos=videos,
                confidence=float(confidence[inside].mean()) if videos else None,
                accuracy=float((predicted == targets)[inside].float().mean()) if videos else None,
            )
        )
    return entries
