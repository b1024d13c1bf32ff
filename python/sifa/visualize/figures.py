"""Pictures of maps over frames: saliency, offset field, class activation; and the film that shows them all.

Colours are perceptually uniform (cividis, viridis) or, around zero, purple and orange: colour-blind readers
tell them apart, and they survive greyscale.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from ..data.motion import write_video
from .activation import Activation
from .taps import COLOURS
from .trace import Attention, Places, shown_name

_COLUMNS = 6  # more frames side by side are too small to be read
_SALIENCY, _OFFSET, _EVIDENCE = "cividis", "viridis", "PuOr_r"


def draw_maps(attention: Attention, frames: Tensor, path: str | os.PathLike[str]) -> None:
    """Draw a layer's motion saliency and offset field at every step (at most six, spread over the clip).

    Args:
        attention: what `trace_attention` recorded.
        frames: the same uint8 `(T, H, W, 3)` frames.
        path: the PNG to write.
    """
    steps = _spread(len(attention.frames))
    figure, axes = _grid(frames, 3, len(steps), f"What moves the taps: {shown_name(attention.layer)}")
    saliency = _saliency_scale(attention)
    offset = _offset_scale(attention)
    for column, step in enumerate(steps):
        frame = frames[attention.frames[step]]
        axes[0, column].set_title(_step_title(attention, step), fontsize=11)
        _show_frame(axes[0, column], frame)
        _show_saliency(axes[1, column], attention, frame, step, saliency)
        _show_offsets(axes[2, column], attention, frame, step, offset)
    for row, words in enumerate(("frame", "motion saliency", "offset field")):
        axes[row, 0].set_ylabel(words, fontsize=11)
    _scale_beside(figure, axes[1], _SALIENCY, saliency, "mean magnitude\nover channels")
    _scale_beside(figure, axes[2], _OFFSET, offset, "mean offset of the\ntaps, pixels")
    figure.savefig(Path(path), dpi=100, metadata={"Software": None})


def draw_activation(activation: Activation, frames: Tensor, path: str | os.PathLike[str]) -> None:
    """Draw what speaks for a class at every step (at most six of them), and how much each step does.

    Args:
        activation: what `class_activation` found.
        frames: the same uint8 `(T, H, W, 3)` frames.
        path: the PNG to write.
    """
    steps = _spread(len(activation.frames))
    title = f"What speaks for “{activation.label}” (probability {activation.probability:.3f})"
    figure, axes = _grid(frames, 2, len(steps), title, last_row=2.4)
    scale = _evidence_scale(activation)
    for column, step in enumerate(steps):
        frame = activation.frames[step]
        axes[0, column].set_title(f"step {step}, frame {frame}", fontsize=11)
        _show_evidence(axes[0, column], activation, frames[frame], step, scale)
        axes[1, column].remove()
    axes[0, 0].set_ylabel("evidence", fontsize=11)
    _scale_beside(figure, axes[0], _EVIDENCE, scale, "part of the logit\n(orange: for,\npurple: against)")
    bars = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
    totals = activation.maps.sum((1, 2)).tolist()
    colours = [ScalarMappable(cmap=_EVIDENCE).get_cmap()(0.85 if total > 0 else 0.15) for total in totals]
    bars.bar(range(len(totals)), totals, color=colours, edgecolor="black", linewidth=0.6)
    bars.axhline(0, color="black", linewidth=0.8)
    bars.set_xticks(range(len(totals)))
    bars.set_xlabel("step", fontsize=11)
    bars.set_ylabel("part of the logit\nfrom each step", fontsize=11)
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(path), dpi=100, metadata={"Software": None})


def write_film(
    attention: Attention,
    activation: Activation,
    frames: Tensor,
    queries: Sequence[tuple[int, int]],
    path: str | os.PathLike[str],
    *,
    frame_rate: float = 4.0,
    progress: Callable[[int], Any] = lambda frame: None,
) -> None:
    """Write an annotated MP4 of a clip: queries and their taps, saliency, offset field, class activation.

    Args:
        attention: what `trace_attention` recorded.
        activation: what `class_activation` found in the same frames.
        frames: uint8 `(T, H, W, 3)`.
        queries: pixels `(y, x)` of the layer's feature map, at most four.
        path: the file to write; its ending names the container.
        frame_rate: frames per second: slow enough to be followed.
        progress: called with the index of each frame that is drawn.
    """
    saliency = _saliency_scale(attention)
    offset, evidence = _offset_scale(attention), _evidence_scale(activation)
    stem = len(frames) // len(attention.frames)
    pictures = []
    for index, frame in enumerate(frames):
        progress(index)
        # The dual branch has steps of its own, of twice as many frames.
        step = min(index // stem, len(attention.frames) - 1)
        moment = min(index * len(activation.maps) // len(frames), len(activation.maps) - 1)
        title = f"{activation.label} {activation.probability:.3f}   ·   {shown_name(attention.layer)}"
        figure, axes = _grid(frames, 2, 3, title, titles=3)
        neighbour = attention.frames[attention.neighbours[step]]
        panels = axes.flat
        _show_frame(panels[0], frame)
        _show_queries(panels[0], attention, queries)
        panels[0].set_title(f"frame {index}: the pixels that ask", fontsize=11)
        _show_frame(panels[1], frames[neighbour])
        _show_taps(panels[1], attention, queries, step)
        panels[1].set_title(f"frame {neighbour}: their taps, area = weight", fontsize=11)
        _show_saliency(panels[2], attention, frame, step, saliency)
        panels[2].set_title(f"motion saliency, step {step}", fontsize=11)
        _show_offsets(panels[3], attention, frame, step, offset)
        panels[3].set_title(f"offset field, step {step}", fontsize=11)
        _show_evidence(panels[4], activation, frame, moment, evidence)
        panels[4].set_title(f"class activation, step {moment}", fontsize=11)
        _legend(panels[5], saliency, offset, evidence)
        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(80)
        canvas.draw()
        picture = torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        pictures.append(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
    write_video(Path(path), torch.stack(pictures), frame_rate=frame_rate)


def _grid(
    frames: Tensor, rows: int, columns: int, title: str, last_row: float | None = None, titles: int = 1
) -> tuple[Figure, np.ndarray]:
    """A figure of axes without ticks, 12 inches wide, whose cells have the shape of a frame.

    `last_row` is the height of a last row that holds no frames, `titles` the rows whose axes have a title.
    """
    height, width = frames.shape[1:3]
    panel = 10.4 / columns * height / width
    heights = [panel] * (rows - 1) + [last_row or panel]
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.04)
    figure = Figure(figsize=(12, sum(heights) + 0.12 * rows + 0.3 * titles + 0.5), layout=layout)
    figure.suptitle(title, fontsize=15, x=0.01, ha="left")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _spread(steps: int) -> list[int]:
    """At most `_COLUMNS` of the steps, the first and the last among them."""
    if steps <= _COLUMNS:
        return list(range(steps))
    return [round(column * (steps - 1) / (_COLUMNS - 1)) for column in range(_COLUMNS)]


def _step_title(attention: Attention, step: int) -> str:
    neighbour = attention.neighbours[step]
    if neighbour == step:
        return f"step {step}, to itself"
    return f"step {step} → {neighbour}"


def _show_frame(axis: Axes, frame: Tensor, muted: bool = False) -> None:
    """A frame, or a grey and lighter one for something to be drawn over it."""
    picture = frame.cpu().numpy()
    if muted:
        grey = picture.mean(2, keepdims=True).repeat(3, 2)
        picture = (grey * 0.7 + 76).astype(np.uint8)
    axis.imshow(picture)
    axis.set_xlim(-0.5, picture.shape[1] - 0.5)
    axis.set_ylim(picture.shape[0] - 0.5, -0.5)


def _show_map(
    axis: Axes, frame: Tensor, values: Tensor, places: Places, colours: str, scale: Normalize, opacity: Any
) -> None:
    """A map `(h, w)` over a grey frame, interpolated; beyond its outermost pixels it goes on as they are.

    `opacity` gives that of each value: matplotlib interpolates colours, but no opacity.
    """
    _show_frame(axis, frame, muted=True)
    limits = axis.get_xlim(), axis.get_ylim()
    padded = torch.nn.functional.pad(values[None, None], (1, 1, 1, 1), mode="replicate")
    smooth = torch.nn.functional.interpolate(padded, size=(256, 256), mode="bilinear", align_corners=False)
    low = [shift - 1.5 * stride for stride, shift in zip(places.stride, places.shift, strict=True)]
    high = [
        start + stride * (count + 2)
        for start, stride, count in zip(low, places.stride, values.shape, strict=True)
    ]
    extent = (low[1], high[1], high[0], low[0])
    smooth = smooth[0, 0]
    axis.imshow(smooth.numpy(), cmap=colours, norm=scale, extent=extent, alpha=opacity(smooth).numpy())
    axis.set(xlim=limits[0], ylim=limits[1])


def _saliency_scale(attention: Attention) -> Normalize:
    return Normalize(0, max(float(attention.saliency.max()), 1e-6))


def _show_saliency(axis: Axes, attention: Attention, frame: Tensor, step: int, scale: Normalize) -> None:
    values = attention.saliency[step]
    _show_map(
        *(axis, frame, values, attention.places, _SALIENCY, scale),
        opacity=lambda smooth: torch.full_like(smooth, 0.7),
    )


def _offset_field(attention: Attention) -> Tensor:
    """`(2, T, h, w)`: the mean offset of the taps, `(y, x)` in pixels of the frame."""
    return (attention.taps - attention.grid.unsqueeze(2)).mean(0)


def _offset_scale(attention: Attention) -> Normalize:
    return Normalize(0, max(float(_offset_field(attention).norm(dim=0).max()), 1e-6))


def _show_offsets(axis: Axes, attention: Attention, frame: Tensor, step: int, scale: Normalize) -> None:
    """An arrow per pixel of the feature map (of a large one every other), as long as the offset is."""
    _show_frame(axis, frame, muted=True)
    every = -(-max(attention.queries.shape[1:]) // 16)
    y, x = attention.queries[:, ::every, ::every]
    moved_y, moved_x = _offset_field(attention)[:, step, ::every, ::every]
    axis.quiver(
        *(x, y, moved_x, moved_y, torch.hypot(moved_x, moved_y)),
        cmap=_OFFSET,
        norm=scale,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.009,
        edgecolor="black",
        linewidth=0.4,
    )


def _evidence_scale(activation: Activation) -> Normalize:
    reach = max(float(activation.maps.abs().max()), 1e-6)
    return Normalize(-reach, reach)


def _show_evidence(axis: Axes, activation: Activation, frame: Tensor, step: int, scale: Normalize) -> None:
    """The map over the frame, which shows where the map says little."""
    _show_map(
        *(axis, frame, activation.maps[step], activation.places, _EVIDENCE, scale),
        opacity=lambda smooth: (smooth.abs() / scale.vmax).clamp(0, 1) * 0.8,
    )


def _show_queries(axis: Axes, attention: Attention, queries: Sequence[tuple[int, int]]) -> None:
    for number, (row, column) in enumerate(queries):
        y, x = attention.queries[:, row, column].tolist()
        colour = _colour(number)
        axis.plot(x, y, "P", markersize=13, markerfacecolor=colour, markeredgecolor="black")
        is_high = y < 0.15 * max(axis.get_ylim())  # where the panel's title would be covered
        axis.annotate(
            *(chr(65 + number), (x, y)),
            xytext=(9, -21 if is_high else 9),
            textcoords="offset points",
            fontsize=11,
            bbox={"boxstyle": "square,pad=0.2", "facecolor": colour, "edgecolor": "black"},
        )


def _show_taps(axis: Axes, attention: Attention, queries: Sequence[tuple[int, int]], step: int) -> None:
    """Discs, their area the weight relative to the query's largest; rings where it is negative."""
    limits = axis.get_xlim(), axis.get_ylim()
    for number, (row, column) in enumerate(queries):
        y, x = attention.taps[:, :, step, row, column].T
        weights = attention.weights[:, step, row, column]
        share = weights.abs() / weights.abs().max().clamp_min(1e-12)
        face: Any = [_colour(number) if weight >= 0 else "none" for weight in weights.tolist()]
        edge: Any = ["black" if weight >= 0 else _colour(number) for weight in weights.tolist()]
        axis.scatter(x, y, s=(share * 150).clamp_min(8), c=face, edgecolors=edge, linewidths=1.2)
        place_y, place_x = attention.queries[:, row, column].tolist()
        axis.plot(place_x, place_y, "P", markersize=8, markerfacecolor="white", markeredgecolor="black")
    axis.set(xlim=limits[0], ylim=limits[1])


def _colour(number: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in COLOURS[number])


def _scale_beside(figure: Figure, axes: np.ndarray, colours: str, scale: Normalize, words: str) -> None:
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=list(axes), fraction=0.03, pad=0.01, aspect=12)
    bar.set_label(words, fontsize=10)
    bar.ax.tick_params(labelsize=9)


def _legend(axis: Axes, *scales: Normalize) -> None:
    """The three colour scales in the last panel of the film."""
    axis.set_axis_off()
    names = (
        ("motion saliency (mean magnitude)", _SALIENCY),
        ("mean offset of the taps (pixels)", _OFFSET),
        ("part of the logit (orange: for, purple: against)", _EVIDENCE),
    )
    for row, ((words, colours), scale) in enumerate(zip(names, scales, strict=True)):
        inset = axis.inset_axes((0.05, 0.78 - 0.32 * row, 0.9, 0.07))
        axis.figure.colorbar(ScalarMappable(scale, colours), cax=inset, orientation="horizontal")
        inset.set_title(words, fontsize=10)
        inset.tick_params(labelsize=9)
