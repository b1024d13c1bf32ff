"""Everything there is to see of a model on one clip, into a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models import VideoClassifier
from .activation import Activation, class_activation
from .figures import draw_activation, draw_maps, write_film
from .taps import COLOURS, draw_taps
from .trace import Attention, choose_layers, choose_queries, queries_at, shown_name, trace_attention


def visualize(
    model: VideoClassifier,
    frames: Tensor,
    folder: Path,
    *,
    layers: Sequence[str] = (),
    points: Sequence[tuple[int, int]] = (),
    target: str | int | None = None,
    film: bool = True,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Draw taps and weights, saliency and offsets of chosen layers, and the class activation.

    Args:
        model: a classifier as `sifa.create_model` returns it.
        frames: uint8 `(T, H, W, 3)` RGB, as read from a video.
        folder: where the pictures go; made if need be.
        layers: names or stages, as `choose_layers` takes them; by default the first layer of every stage.
        points: up to four pixels `(x, y)` of the video whose attention is drawn; by default, for each layer,
            those whose taps moved farthest.
        target: the class whose evidence is drawn; by default the most likely one.
        film: write the annotated MP4s too.
        progress: called with what is being done.

    Returns:
        The `label`, `index` and `probability` of the class, the picture `activation`, and `layers`: for each
        its `layer`, the `step` and the pixels `queries` `(y, x)` of its feature map, and the files `taps`,
        `maps` and `film`.

    Raises:
        ValueError: no such layer, class or point, or the frames do not fit the model.
    """
    height, width = frames.shape[1:3]
    if len(points) > len(COLOURS):
        raise ValueError(f"at most {len(COLOURS)} queries can be drawn, got {len(points)}")
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"a query must be a pixel x,y of the {width}x{height} video, got {x},{y}")
    names = choose_layers(model, layers)
    progress("class activation")
    activation = class_activation(model, frames, target)
    folder.mkdir(parents=True, exist_ok=True)
    draw_activation(activation, frames, folder / "activation.png")
    return {
        "label": activation.label,
        "index": activation.index,
        "probability": activation.probability,
        "activation": str(folder / "activation.png"),
        "layers": [
            _draw_layer(
                trace_attention(model, frames, name), activation, frames, folder, points, film, progress
            )
            for name in names
        ],
    }


def _draw_layer(
    attention: Attention,
    activation: Activation,
    frames: Tensor,
    folder: Path,
    points: Sequence[tuple[int, int]],
    film: bool,
    progress: Callable[[str], Any],
) -> dict[str, Any]:
    """Draw what there is to see of one layer; returns its entry of `visualize`."""
    step, queries = queries_at(attention, points) if points else choose_queries(attention)
    name = shown_name(attention.layer)
    entry: dict[str, Any] = {"layer": attention.layer, "step": step, "queries": queries}
    progress(f"{name}: taps and maps")
    entry["taps"] = str(folder / f"{name}-taps.png")
    draw_taps(attention, frames, entry["taps"], step, queries)
    entry["maps"] = str(folder / f"{name}-maps.png")
    draw_maps(attention, frames, entry["maps"])
    if film:
        entry["film"] = str(folder / f"{name}.mp4")
        write_film(
            *(attention, activation, frames, queries, entry["film"]),
            progress=lambda frame: progress(f"{name}: film, frame {frame + 1} of {len(frames)}"),
        )
    return entry


def parse_point(text: str) -> tuple[int, int]:
    """`"120,64"`: a pixel `(x, y)` of the video. Raises ValueError for another form."""
    match = re.fullmatch(r"(\d{1,6}),(\d{1,6})", text)
    if match is None:
        raise ValueError(f"a query must be a pixel x,y of the video, such as 120,64, got {text!r}")
    return int(match[1]), int(match[2])
