"""The pictures of a report: confusion matrix, calibration, thumbnails, as PNG and JPEG bytes.

The colour maps are perceptually uniform, and nothing is told by colour alone.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .metrics import Metrics

_NAMED = 40  # classes whose names can still be read beside a confusion matrix
_NUMBERED = 15  # classes whose counts can still be read in its cells


def confusion_picture(metrics: Metrics) -> bytes:
    """The confusion matrix, each row as shares of its class's videos, as PNG."""
    counts = torch.tensor(metrics.confusion, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    classes = len(counts)
    named = classes <= _NAMED
    side = 4.0 + (0.45 if classes <= _NUMBERED else 0.22) * classes if named else 10.0
    figure = Figure(figsize=(max(side, 6.0), max(side * 0.88, 5.0)), layout="constrained")
    axis = figure.add_subplot()
    # Mistakes are small shares: on a square-root scale a tenth can still be told from none.
    scale = PowerNorm(0.5, 0, 1)
    image = axis.imshow(shares.numpy(), cmap="cividis", norm=scale, interpolation="nearest")
    axis.set_xlabel("taken for" if named else "taken for (index of the class)")
    axis.set_ylabel("true class" if named else "true class (index)")
    if named:
        labels = [_short(entry.label) for entry in metrics.classes]
        axis.set_xticks(range(classes), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
        axis.set_yticks(range(classes), labels, fontsize=9)
    if classes <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts.numpy().astype(int)):
            if count:
                ink = "black" if scale(float(shares[row, column])) > 0.5 else "white"
                axis.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=9)
    figure.colorbar(image, ax=axis, label="share of the true class's videos", shrink=0.8)
    return _png(figure)


def reliability_picture(metrics: Metrics) -> bytes:
    """Accuracy over confidence, and how many videos each bin of confidence holds, as PNG."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    filled = [entry for entry in metrics.calibration if entry.confidence is not None]
    width = metrics.calibration[0].high - metrics.calibration[0].low
    middles = [(entry.low + entry.high) / 2 for entry in filled]
    accuracy = [entry.accuracy for entry in filled]
    upper.bar(middles, accuracy, width, color="#7c97c4", edgecolor="black", label="accuracy in the bin")
    upper.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="accuracy = confidence")
    upper.plot(
        [entry.confidence for entry in filled],
        accuracy,
        "D",
        color="#e69f00",
        markeredgecolor="black",
        label="at its mean confidence",
    )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    figure.suptitle(f"expected calibration error {metrics.calibration_error:.3f}", fontsize=11)
    # Bars may be anywhere: the legend stays out of their way.
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    lower.bar(middles, [entry.videos for entry in filled], width, color="#7c97c4", edgecolor="black")
    lower.set(xlabel="confidence (probability of the most likely class)", ylabel="videos")
    lower.yaxis.get_major_locator().set_params(integer=True)
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def thumbnail(frames: Tensor, height: int = 84) -> bytes:
    """Frames, uint8 `(T, H, W, 3)`, small and side by side, as JPEG."""
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    width = max(1, round(images[0].width * height / images[0].height))
    # A panorama keeps its shape, but not its width.
    width = min(width, 3 * height)
    strip = Image.new("RGB", (len(images) * (width + 2) - 2, height), "white")
    for number, image in enumerate(images):
        strip.paste(image.resize((width, height), Image.Resampling.LANCZOS), (number * (width + 2), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _short(label: str) -> str:
    return label if len(label) <= 32 else label[:30] + "…"
