"""The harder preset of the motion task: in which order regions, each by itself, move to and fro.

A frame is a torus of regions. The texture of each moves for a step of four frames in one direction, for the
next step in the opposite one, and rests for two. The class is the axis of the movement and which of the two
directions comes first: the same in all regions of a clip. Which of its four steps a region begins with is
drawn. The borders are deformed as time goes by, small discs hide what is behind them, and between two steps
the camera jumps. Scenes are of three kinds, to tell what a network can do:

* `whole`: one region fills the frame. What a step shows is the same everywhere.
* `near`: four regions, each of which begins with another step, so that at any time all four are shown,
  whatever the order. It does not help to pool a step over the frame and to relate the pooled steps: they look
  the same. The camera jumps by little, and a region is found again nearly where it was.
* `far`: the same with long jumps. A region must be found again where it went, by its colour and texture, to
  see what it does next: with sifa_tiny on 64 pixels, beyond a window of three pixels of the first feature map
  that has SIFA, though not of the last.

Under both orders the four steps of a region show the same, at places that do not depend on the order. A
network that averages over steps without relating them tells the axis and no more: it cannot exceed 50 %. Nor
does what the first or the last step of a clip shows tell the order.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch.nn import functional

from .motion import PERIOD, _circle, _tile

LABELS = ("right-then-left", "left-then-right", "up-then-down", "down-then-up")
"""The classes; labels 2i and 2i+1 are the two orders of the same pair of directions."""

VERSION = 1
"""Of the task: clips of different versions cannot be compared."""

STEP = 4
"""Frames of one movement, and between two jumps of the camera."""

KINDS = ("whole", "near", "far")
"""The kinds of scenes; that of a scene is its seed, modulo three."""

# Of each kind: regions along each side, and how far the camera jumps, least and most, in frame widths.
_REGIONS = {"whole": 1, "near": 2, "far": 2}
_JUMP = {"whole": (0.0, 0.3), "near": (0.0, 0.08), "far": (0.15, 0.3)}
# Cycles per frame width of the textures, least and most; the least size that holds them.
_FREQUENCIES = (3, 7)
_LEAST_SIZE = 2 * _FREQUENCIES[1] + 1
_SPEED = (0.05, 0.09)  # of the textures, in frame widths per frame
_BEND = 0.02  # how far a border is deformed, in frame widths
_DISCS, _RADIUS = 3, (0.04, 0.08)
_MOVEMENTS = ("right", "down", "left", "up", "rest")
_VELOCITY = np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)])  # x, y; y grows downwards


@dataclasses.dataclass(frozen=True)
class HardScene:
    """Everything that a clip shows but its label; drawn by :func:`make_scene`.

    Attributes:
        side: regions along each side of the frame.
        camera: (steps, 2) where the camera is at each step, x and y in frame widths.
        first: (regions,) which of its four steps a region begins with.
        speed: (regions,) in frame widths per frame.
        texture: (regions, 3, 15, 8) Fourier coefficients; colour: (regions, 3).
        bend: (2, 2) phases of the deformation of the borders in time and in space, of x and y.
        disc_path: (discs, 2, 2) centre, and phase of the movement, x and y; disc_radius: (discs,);
            disc_colour: (discs, 3).
    """

    side: int
    camera: np.ndarray
    first: np.ndarray
    speed: np.ndarray
    texture: np.ndarray
    colour: np.ndarray
    bend: np.ndarray
    disc_path: np.ndarray
    disc_radius: np.ndarray
    disc_colour: np.ndarray


def scene_kind(seed: int) -> str:
    """Which of :data:`KINDS` the scene of a seed is."""
    return KINDS[seed % len(KINDS)]


def make_scene(seed: int) -> HardScene:
    """Draws a scene. The same seed gives the same scene, which any of the labels can move."""
    rng = np.random.default_rng(seed)
    kind, steps = scene_kind(seed), PERIOD // STEP
    side = _REGIONS[kind]
    regions = side**2
    jumps = _circle(rng, (steps,)) * rng.uniform(*_JUMP[kind], size=(steps, 1))
    return HardScene(
        side=side,
        camera=rng.uniform(0, 1, size=2) + np.cumsum(jumps, 0),
        first=rng.permutation(4)[:regions],
        speed=rng.uniform(*_SPEED, size=regions),
        texture=_band(rng, (regions, 3)),
        colour=rng.uniform(-0.6, 0.6, size=(regions, 3)),
        bend=rng.uniform(0, 2 * math.pi, size=(2, 2)),
        disc_path=np.stack(
            [rng.uniform(0, 1, size=(_DISCS, 2)), rng.uniform(0, 2 * math.pi, size=(_DISCS, 2))], 1
        ),
        disc_radius=rng.uniform(*_RADIUS, size=_DISCS),
        disc_colour=rng.uniform(-1.5, 1.5, size=(_DISCS, 3)),
    )


def movements(label: int, scene: HardScene) -> np.ndarray:
    """(steps, regions): what each region does; 0 is right, 1 down, 2 left, 3 up, and 4 rest."""
    names = [*LABELS[label].split("-then-"), "rest", "rest"]
    order = np.array([_MOVEMENTS.index(name) for name in names])
    return order[(np.arange(PERIOD // STEP)[:, None] + scene.first) % len(order)]


def render_clip(label: int, scene: HardScene | int, size: int = 64) -> torch.Tensor:
    """Renders a clip.

    Args:
        label: the index of one of :data:`LABELS`.
        scene: a :class:`HardScene`, or the seed of one.
        size: height and width in pixels, at least 15: what the textures need.

    Returns:
        uint8 (16, size, size, 3), RGB.

    Raises:
        ValueError: there is no such label, or the size is too small.
    """
    if label not in range(len(LABELS)):
        raise ValueError(
            f"label must be 0..{len(LABELS) - 1}, an index of {', '.join(LABELS)}, got {label!r}"
        )
    if size < _LEAST_SIZE:
        raise ValueError(f"size must be at least {_LEAST_SIZE}, got {size}")
    scene = make_scene(scene) if isinstance(scene, int) else scene
    step, moves = np.arange(PERIOD) // STEP, movements(label, scene)
    x, y = _bent(*_places(scene.camera[step], size), scene.bend)
    column, row = (torch.remainder((scene.side * axis).floor(), scene.side) for axis in (x, y))
    image = torch.zeros(PERIOD, 3, size, size)
    for n, (texture, colour) in enumerate(zip(scene.texture, scene.colour, strict=True)):
        path = np.cumsum(_VELOCITY[moves[step, n]] * scene.speed[n], 0)
        tile = 0.5 * _tile(texture, size)
        skin = _sample(tile, x - _frames(path[:, 0]), y - _frames(path[:, 1])) + _frames(colour)
        here = (column == n % scene.side) & (row == n // scene.side)
        image = torch.where(here.unsqueeze(1), skin, image)
    for (centre, phase), radius, colour in zip(
        scene.disc_path, scene.disc_radius, scene.disc_colour, strict=True
    ):
        turn = 2 * math.pi * np.arange(PERIOD)[:, None] / PERIOD
        x, y = _places(centre + 0.1 * np.cos(turn + phase) - 0.5, size)
        distance = torch.hypot(torch.remainder(x, 1) - 0.5, torch.remainder(y, 1) - 0.5)
        inside = ((radius - distance) * size + 0.5).clamp(0, 1)  # one pixel of antialiasing
        image = torch.lerp(image, _frames(colour), inside.unsqueeze(1))
    return (image * 70 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _band(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Fourier coefficients, as of `motion._tile`, of noise that has the frequencies of the textures."""
    least, most = _FREQUENCIES
    fy, fx = np.meshgrid(np.arange(-most, most + 1), np.arange(most + 1), indexing="ij")
    frequency = np.hypot(fy, fx)
    amplitude = ((frequency >= least) & (frequency <= most)).astype(float)
    amplitude /= np.sqrt(np.sum(2 * amplitude**2))
    return amplitude * np.exp(1j * rng.uniform(0, 2 * math.pi, size=shape + frequency.shape))


def _frames(values: np.ndarray) -> torch.Tensor:
    """(F,) to (F, 1, 1), float32."""
    return torch.from_numpy(values.astype(np.float32)).reshape(-1, 1, 1)


def _places(shift: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of every pixel, (F, size, size), in frames that are shifted by (F, 2)."""
    pixel = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x = pixel[None, None, :] - _frames(shift[:, 0])
    y = pixel[None, :, None] - _frames(shift[:, 1])
    return x.expand(-1, size, -1), y.expand(-1, -1, size)


def _bent(x: torch.Tensor, y: torch.Tensor, bend: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Places as waves that swing once in a clip deform them."""
    turn = 2 * math.pi * np.arange(PERIOD) / PERIOD
    by_x, by_y = (_frames(_BEND * np.cos(turn + phase)) for phase in bend[:, 0])
    bent = x + by_x * torch.sin(4 * math.pi * y + float(bend[0, 1]))
    return bent, y + by_y * torch.sin(4 * math.pi * bent + float(bend[1, 1]))


def _sample(tile: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Values (F, 3, size, size) of a periodic tile (3, n, n) at places (F, size, size)."""
    n = tile.shape[-1]
    tile = functional.pad(tile.unsqueeze(0), (1, 1, 1, 1), mode="circular")
    grid = torch.stack([torch.remainder(x, 1), torch.remainder(y, 1)], -1)
    grid = (grid * n + 1) * (2 / (n + 2)) - 1
    return functional.grid_sample(tile.expand(len(x), -1, -1, -1), grid, align_corners=False)
