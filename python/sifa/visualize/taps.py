"""A picture of where the attention looked: taps and weights of chosen pixels, drawn over the frames."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..models import VideoClassifier
from .trace import Attention, choose_queries, shown_name, trace_attention

# Okabe and Ito's colours, told apart by colour-blind readers; each query also has a letter.
COLOURS = ((230, 159, 0), (86, 180, 233), (240, 228, 66), (204, 121, 167))
_INK, _PAPER, _GREY = (25, 25, 25), (255, 255, 255), (110, 110, 110)
_SCALE = 2  # everything is drawn larger and reduced: PIL draws without antialiasing


def draw_attention(
    model: VideoClassifier,
    frames: Tensor,
    path: str | os.PathLike[str],
    *,
    layer: str | None = None,
    step: int | None = None,
    queries: Sequence[tuple[int, int]] | None = None,
) -> Attention:
    """Run a model on a clip and draw where a SIFA layer looked from chosen pixels: see `draw_taps`.

    Args:
        model: a classifier as `sifa.create_model` returns it.
        frames: uint8 `(T, H, W, 3)` RGB, as read from a video.
        path: the picture to write.
        layer: name of a `sifa.SIFA` module; by default the first one.
        step: the step (of the stem's temporal stride) whose pixels ask; with `queries` only.
        queries: up to four pixels `(y, x)` of the layer's feature map; by default those of
            `choose_queries`.

    Raises:
        ValueError: no such layer, step or pixel.
    """
    attention = trace_attention(model, frames, layer)
    if (step is None) != (queries is None):
        raise ValueError("step and queries must be given together")
    if step is None or queries is None:
        step, queries = choose_queries(attention)
    draw_taps(attention, frames, path, step, queries)
    return attention


def draw_taps(
    attention: Attention,
    frames: Tensor,
    path: str | os.PathLike[str],
    step: int,
    queries: Sequence[tuple[int, int]],
) -> None:
    """Draw the taps and weights of chosen pixels, and write the picture (PNG by the file's ending).

    Left the frame of the queries, right the frame they attend to, below each query's taps enlarged, with how
    far they moved on average and how many of them left the frame. A tap is a disc whose area is its weight,
    relative to the largest of its query; a ring is a negative weight.

    Args:
        attention: what `trace_attention` recorded.
        frames: the same uint8 `(T, H, W, 3)` frames.
        path: the picture to write.
        step: the step whose pixels ask.
        queries: up to four pixels `(y, x)` of the layer's feature map.

    Raises:
        ValueError: no such step or pixel.
    """
    steps, (height, width) = len(attention.neighbours), attention.queries.shape[1:]
    if not 0 <= step < steps:
        raise ValueError(f"step must be between 0 and {steps - 1}, got {step}")
    if not 1 <= len(queries) <= len(COLOURS):
        raise ValueError(f"between 1 and {len(COLOURS)} queries can be drawn, got {len(queries)}")
    for y, x in queries:
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(
                f"queries must be pixels (y, x) of the {height}x{width} feature map, got {(y, x)}"
            )
    _Picture(attention, frames, step, queries).save(Path(path))


class _View:
    """A part of a frame, shown in a rectangle of the canvas."""

    def __init__(
        self, box: tuple[float, float, float, float], corner: tuple[float, float], width: float
    ) -> None:
        self.box = box  # left, top, right, bottom in the frame, whose first pixel covers 0 to 1
        self.corner = corner
        self.scale = width / (box[2] - box[0])
        self.size = (round(width), round((box[3] - box[1]) * self.scale))

    def place(self, position: Tensor) -> tuple[float, float]:
        """Canvas `(x, y)` of a frame position `(y, x)`."""
        y, x = (position + 0.5).tolist()
        left, top = self.corner
        return left + (x - self.box[0]) * self.scale, top + (y - self.box[1]) * self.scale

    def holds(self, position: Tensor) -> bool:
        """Whether a frame position `(y, x)` is in the part that is shown."""
        y, x = (position + 0.5).tolist()
        left, top, right, bottom = self.box
        return left <= x <= right and top <= y <= bottom


class _Picture:
    """The canvas and what is drawn on it; lengths are pixels of the finished picture."""

    WIDTH, MARGIN, GAP = 1200, 28, 20

    def __init__(
        self, attention: Attention, frames: Tensor, step: int, queries: Sequence[tuple[int, int]]
    ) -> None:
        self.attention, self.step = attention, step
        neighbour = attention.neighbours[step]
        asked, read = attention.frames[step], attention.frames[neighbour]
        now, then = _toned(frames[asked]), _toned(frames[read])
        height, width = frames.shape[1:3]
        panel = (self.WIDTH - 2 * self.MARGIN - self.GAP) / 2
        across = max(3, len(queries))
        detail = (self.WIDTH - 2 * self.MARGIN - self.GAP * (across - 1)) / across
        top = 122.0
        below = top + panel * height / width + 60
        size = (self.WIDTH * _SCALE, round((below + detail + 64) * _SCALE))
        self.image = Image.new("RGB", size, _PAPER)
        self.draw = ImageDraw.Draw(self.image)

        left, right = float(self.MARGIN), self.MARGIN + panel + self.GAP
        rows, columns = attention.queries.shape[1:]
        self.text((left, 20), "Where the attention looked", 30)
        self.text(
            (left, 60),
            f"{shown_name(attention.layer)}: step {step} attends to step {neighbour}, "
            f"feature map {rows} x {columns}, "
            f"one pixel of it every {attention.places.stride[0]:.3g} pixels of the video",
            17,
            _GREY,
        )
        self.text((left, top - 28), f"frame {asked}: the pixels that ask", 19)
        self.text((right, top - 28), f"frame {read}: where they look", 19)
        whole = (0.0, 0.0, float(width), float(height))
        ask, look = _View(whole, (left, top), panel), _View(whole, (right, top), panel)
        self.show(now, ask)
        self.show(then, look)
        for number, query in enumerate(queries):
            colour = COLOURS[number]
            place = attention.queries[:, query[0], query[1]]
            self.cross(ask.place(place), 11, colour)
            # Above the cross, or below it where the panel's title would be covered.
            is_high = ask.place(place)[1] - 34 < top
            self.chip(ask.place(place), (16, 12 if is_high else -34), number)
            self.taps(look, query, colour, 9)
            self.cross(look.place(place), 6, _PAPER)
            corner = (left + number * (detail + self.GAP), below)
            close = _View(self.surroundings(query, width, height), corner, detail)
            self.show(then, close)
            self.grid(close, query)
            self.taps(close, query, colour, 20)
            self.cross(close.place(place), 8, _PAPER)
            self.chip(corner, (0, -34), number)
            grid, taps, _ = self.of(query)
            moved = (taps - grid).norm(dim=1).mean()
            lost = sum(not look.holds(tap) for tap in taps)
            words = f"moved {moved:.1f} px" + (f", {lost} outside" if lost else "")
            self.text((corner[0] + 36, corner[1] - 30), words, 17)
        self.legend(below + detail + 20)

    def save(self, path: Path) -> None:
        """Reduce the canvas to its size, which smooths it, and write it."""
        self.image.reduce(_SCALE).save(path)

    def of(self, query: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Grid `(k², 2)`, taps `(k², 2)` and weights `(k²,)` of a query, the largest weight scaled to 1."""
        y, x = query
        weights = self.attention.weights[:, self.step, y, x]
        grid, taps = self.attention.grid[:, :, y, x], self.attention.taps[:, :, self.step, y, x]
        return grid, taps, weights / weights.abs().max().clamp_min(1e-12)

    def surroundings(
        self, query: tuple[int, int], width: int, height: int
    ) -> tuple[float, float, float, float]:
        """The square of the frame that holds a query's taps, with some room."""
        grid, taps, _ = self.of(query)
        points = torch.cat([grid, taps]) + 0.5
        low, high = points.amin(0), points.amax(0)
        # A single tap without an offset has no extent.
        side = max(float((high - low).max()) * 1.4, 2 * max(self.attention.places.stride))
        middle = (low + high) / 2
        x, y = float(middle[1]) - side / 2, float(middle[0]) - side / 2
        return x, y, x + side, y + side

    def show(self, image: Image.Image, view: _View) -> None:
        """Put the part of a frame that a view shows on the canvas; outside the frame it stays grey."""
        left, top, right, bottom = view.box
        size = (view.size[0] * _SCALE, view.size[1] * _SCALE)
        zoom = (right - left) / size[0]
        part = image.transform(
            size,
            Image.Transform.AFFINE,
            (zoom, 0, left, 0, zoom, top),
            Image.Resampling.BICUBIC,
            fillcolor=(200, 200, 200),
        )
        self.image.paste(part, (round(view.corner[0] * _SCALE), round(view.corner[1] * _SCALE)))

    def grid(self, view: _View, query: tuple[int, int]) -> None:
        """Where the taps would be without offsets, and a line from there to where they are."""
        grid, taps, _ = self.of(query)
        for start, end in zip(grid, taps, strict=True):
            self.line(view.place(start), view.place(end), _INK, 4.0)
            self.line(view.place(start), view.place(end), _PAPER, 2.0)
        for start in grid:
            x, y = view.place(start)
            self.box((x - 4.5, y - 4.5, x + 4.5, y + 4.5), _PAPER, _INK, 1.5)

    def taps(self, view: _View, query: tuple[int, int], colour: tuple[int, int, int], radius: float) -> None:
        """A disc for each tap in view, its area the weight; a ring if that is negative; large ones first."""
        _, taps, weights = self.of(query)
        for tap in weights.abs().argsort(descending=True).tolist():
            if not view.holds(taps[tap]):
                continue
            size = max(radius * float(weights[tap].abs()) ** 0.5, 2.0)
            x, y = view.place(taps[tap])
            box = (x - size, y - size, x + size, y + size)
            if weights[tap] < 0:
                self.ring(box, None, _INK, 4.5)
                self.ring((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), None, colour, 2.5)
            else:
                self.ring(box, colour, _INK, 1.5)

    def legend(self, y: float) -> None:
        """What the marks mean, in one line."""
        x = float(self.MARGIN)
        self.cross((x + 9, y + 11), 8, _PAPER)
        x = self.text((x + 26, y), "a pixel that asks, or its place in the other frame", 17) + 28
        self.ring((x, y + 2, x + 18, y + 20), _PAPER, _INK, 1.5)
        x = self.text((x + 26, y), "a tap, its area is its weight (ring: negative)", 17) + 28
        self.box((x, y + 6, x + 9, y + 15), _PAPER, _INK, 1.5)
        self.text((x + 18, y), "the tap without its offset", 17)

    def chip(self, anchor: tuple[float, float], shift: tuple[float, float], number: int) -> None:
        """A query's letter on its colour."""
        x, y = anchor[0] + shift[0], anchor[1] + shift[1]
        self.box((x, y, x + 27, y + 27), COLOURS[number], _INK, 1.5)
        self.draw.text(
            ((x + 13.5) * _SCALE, (y + 13.5) * _SCALE), chr(65 + number), _INK, _font(19), anchor="mm"
        )

    def cross(self, at: tuple[float, float], reach: float, colour: tuple[int, int, int]) -> None:
        x, y = at
        for ink, width, more in ((_INK, 7.0, 1.5), (colour, 4.0, 0.0)):
            self.line((x - reach - more, y), (x + reach + more, y), ink, width)
            self.line((x, y - reach - more), (x, y + reach + more), ink, width)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], colour: tuple[int, int, int], width: float
    ) -> None:
        points = [value * _SCALE for value in (*start, *end)]
        self.draw.line(points, colour, round(width * _SCALE))

    def box(self, box: tuple[float, float, float, float], fill: Any, edge: Any, width: float) -> None:
        self.draw.rectangle([value * _SCALE for value in box], fill, edge, round(width * _SCALE))

    def ring(self, box: tuple[float, float, float, float], fill: Any, edge: Any, width: float) -> None:
        self.draw.ellipse([value * _SCALE for value in box], fill, edge, round(width * _SCALE))

    def text(
        self, at: tuple[float, float], words: str, size: float, colour: tuple[int, int, int] = _INK
    ) -> float:
        """Write words, their top left at `at`; returns where they end."""
        self.draw.text((at[0] * _SCALE, at[1] * _SCALE), words, colour, _font(size))
        return at[0] + self.draw.textlength(words, _font(size)) / _SCALE


def _font(size: float) -> Any:
    return ImageFont.load_default(size * _SCALE)


def _toned(frame: Tensor) -> Image.Image:
    """A frame with less colour and contrast, so that the marks on it stand out."""
    image = Image.fromarray(frame.cpu().numpy())
    muted = Image.blend(image, image.convert("L").convert("RGB"), 0.4)
    return Image.blend(muted, Image.new("RGB", image.size, _PAPER), 0.1)
