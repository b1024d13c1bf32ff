"""Short synthetic videos whose class is the *order* of two opposite motions, rendered from a seed.

A scene is a textured background and two textured, irregular objects on a torus. Everything in it is periodic
in time with a period of 16 frames: the labelled motion is a triangle wave (eight frames one way, eight frames
back), all the rest oscillates with random phases. The two labels of a pair ("right-then-left" and
"left-then-right") are therefore the *same sixteen frames*, cyclically shifted by eight. What follows from
that, and why it is built so:

* A network that averages over time steps without mixing them sees the same set of steps for both labels of a
  pair: it cannot exceed 50 %, whatever its stem. Only a network that relates one step to the next can.
* Every property that a label may move (place, angle, size, shape) has, under every other label, a value drawn
  from those it would run through: a frame picked at random tells neither the order nor which property moves.
* A video surrounds the labelled frames with the same periodic motion, as many frames before as after. A codec
  is then in its steady state at the labelled frames, and the first key frame, which lies at a random phase of
  the motion, tells nothing.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np
import torch

PERIOD = 16
"""Frames of one period of every motion, and of the labelled clip."""

LABELS = (
    "right-then-left",
    "left-then-right",
    "up-then-down",
    "down-then-up",
    "clockwise-then-counterclockwise",
    "counterclockwise-then-clockwise",
    "grow-then-shrink",
    "shrink-then-grow",
    "widen-then-narrow",
    "narrow-then-widen",
)
"""The classes; labels 2i and 2i+1 are the two orders of the same pair of motions."""

NUM_OBJECTS = 2

# The highest frequency of the background's texture, cycles per frame width; the least size that holds it.
_HIGHEST = 12
_LEAST_SIZE = 2 * _HIGHEST + 1

# Half the travel of each motion, (least, most): frame widths, frame widths, radians, log size, log aspect
# ratio. At 112 pixels the translations run at 1.25 to 5 pixels per frame, 5 to 20 per step of a stem of
# temporal stride 4.
_AMPLITUDE = np.array([(0.039, 0.156), (0.039, 0.156), (0.45, 1.2), (0.18, 0.35), (0.18, 0.35)])
# Which motion a label moves, and the sign of its first half (y grows downwards; a positive angle is
# clockwise).
_MOTION = ((0, 1), (0, -1), (1, -1), (1, 1), (2, 1), (2, -1), (3, 1), (3, -1), (4, 1), (4, -1))


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything that a video shows but its label; drawn by :func:`make_scene`.

    Attributes:
        position, radius: (objects, 2) and (objects,), in frame widths.
        outline: (objects, 3, 2) cosine and sine amplitudes of the outline's harmonics 2, 3 and 5.
        amplitude: (objects, 5) half travel of each motion, should it be the labelled one.
        rest: (objects, 5) place in -1..1 along each motion's travel while it is not the labelled one.
        wobble: (objects, 5, 2) cosine and sine amplitudes of an oscillation of period 8 that every motion
            has.
        object_texture: (objects, 3, 9, 5) Fourier coefficients; object_colour: (objects, 3).
        background_texture: (3, 25, 13) Fourier coefficients; background_colour: (3,).
        background_path: (2 axes, 2 harmonics, 2) cosine and sine amplitudes of the background's movement.
        lead: frames before, and after, the labelled ones.
    """

    position: np.ndarray
    radius: np.ndarray
    outline: np.ndarray
    amplitude: np.ndarray
    rest: np.ndarray
    wobble: np.ndarray
    object_texture: np.ndarray
    object_colour: np.ndarray
    background_texture: np.ndarray
    background_colour: np.ndarray
    background_path: np.ndarray
    lead: int


def label_index(label: str | int) -> int:
    """The index of a label given by name or index. Raises ValueError for anything else."""
    if isinstance(label, str) and label in LABELS:
        return LABELS.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(LABELS):
        return label
    raise ValueError(f"label must be one of {', '.join(LABELS)} or 0..{len(LABELS) - 1}, got {label!r}")


def make_scene(seed: int) -> Scene:
    """Draws a scene. The same seed gives the same scene, which any of the labels can move."""
    rng = np.random.default_rng(seed)
    n = NUM_OBJECTS
    amplitude = rng.uniform(_AMPLITUDE[:, 0], _AMPLITUDE[:, 1], size=(n, 5))
    wobble = _circle(rng, (n, 5)) * (rng.uniform(0, 0.3, size=(n, 5)) * _AMPLITUDE[:, 0])[..., None]
    return Scene(
        position=rng.uniform(0, 1, size=(n, 2)),
        radius=rng.uniform(0.12, 0.17, size=n),
        outline=_circle(rng, (n, 3)) * rng.uniform(0.05, 0.15, size=(n, 3, 1)),
        amplitude=amplitude,
        rest=_triangle(rng.integers(0, PERIOD, size=(n, 5))),
        wobble=wobble,
        object_texture=_texture(rng, (n, 3), highest=4, exponent=0.5),
        object_colour=rng.uniform(-0.4, 0.4, size=(n, 3)),
        background_texture=_texture(rng, (3,), highest=_HIGHEST, exponent=1.0),
        background_colour=rng.uniform(-0.3, 0.3, size=3),
        background_path=_circle(rng, (2, 2)) * rng.uniform(0.0, 0.03, size=(2, 2, 1)),
        lead=int(rng.integers(PERIOD, 2 * PERIOD)),
    )


def render_clip(label: str | int, scene: Scene | int, size: int = 112) -> torch.Tensor:
    """Renders the labelled frames only.

    Args:
        label: a name of :data:`LABELS` or its index.
        scene: a :class:`Scene`, or the seed of one.
        size: height and width in pixels, at least 25: what the background's texture needs.

    Returns:
        uint8 (16, size, size, 3), RGB.
    """
    index = label_index(label)
    if not isinstance(size, int) or size < _LEAST_SIZE:
        raise ValueError(f"size must be an integer of at least {_LEAST_SIZE}, got {size!r}")
    scene = make_scene(scene) if isinstance(scene, int) else scene
    motion, first = _MOTION[index]
    clip = _render_period(scene, motion, size)
    return clip if first > 0 else clip.roll(PERIOD // 2, 0)


def render_video(
    label: str | int, scene: Scene | int, size: int = 112, lead: int | None = None
) -> torch.Tensor:
    """Renders a whole video: the labelled frames in its middle, periodic motion before and after.

    The sampling rule (centre, 16 frames, stride 1) picks exactly the frames that :func:`render_clip` returns.

    Args:
        label, scene, size: as in :func:`render_clip`.
        lead: frames before and after the labelled ones; ``scene.lead`` (16 to 31) by default.

    Returns:
        uint8 (16 + 2 * lead, size, size, 3), RGB.
    """
    scene = make_scene(scene) if isinstance(scene, int) else scene
    lead = scene.lead if lead is None else lead
    if lead < 0:
        raise ValueError(f"lead must be at least 0, got {lead}")
    clip = render_clip(label, scene, size)
    return clip[torch.arange(-lead, PERIOD + lead) % PERIOD]


def write_video(
    path: str | pathlib.Path, frames: torch.Tensor, frame_rate: float = 16.0, lossless: bool = False
) -> None:
    """Writes frames to a video file through torchcodec (FFmpeg); the same frames give the same file.

    Args:
        path: the file; its extension names the container (``.mp4``, or ``.mkv``).
        frames: uint8 (F, H, W, 3), RGB; H and W even unless ``lossless``.
        frame_rate: frames per second.
        lossless: H.264 in RGB without loss, which decoders return bit for bit, instead of H.264 yuv420p.
    """
    from torchcodec.encoders import VideoEncoder

    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(
            f"frames must be uint8 (F, H, W, 3), each at least 1, got {frames.dtype} {tuple(frames.shape)}"
        )
    height, width = frames.shape[1:3]
    if not lossless and (height % 2 or width % 2):
        raise ValueError(
            f"frames must have an even H and W, of at least 2 pixels, unless lossless, got {height} x {width}"
        )
    encoder = VideoEncoder(frames.permute(0, 3, 1, 2).contiguous(), frame_rate=frame_rate)
    if lossless:
        encoder.to_file(path, codec="libx264rgb", crf=0)
    else:
        # With its macroblock tree, x264 (core 164, AVX-512) encodes the same frames to different files.
        encoder.to_file(
            path, codec="libx264", pixel_format="yuv420p", extra_options={"x264-params": "mbtree=0"}
        )


def _circle(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """(..., 2): cosine and sine of a uniform phase."""
    phase = rng.uniform(0, 2 * math.pi, size=shape)
    return np.stack([np.cos(phase), np.sin(phase)], -1)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], highest: int, exponent: float) -> np.ndarray:
    """Fourier coefficients (..., 2 highest + 1, highest + 1) of unit-variance noise with random phases.

    Rows are vertical frequencies -highest..highest, columns horizontal ones 0..highest, in cycles per tile;
    the amplitude falls with frequency to the power of -exponent.
    """
    fy, fx = np.meshgrid(np.arange(-highest, highest + 1), np.arange(highest + 1), indexing="ij")
    frequency = np.hypot(fy, fx)
    amplitude = np.where(
        (frequency > 0) & (frequency <= highest), np.maximum(frequency, 1.0) ** -exponent, 0.0
    )
    amplitude /= np.sqrt(np.sum(2 * amplitude**2))
    phase = rng.uniform(0, 2 * math.pi, size=shape + frequency.shape)
    return amplitude * np.exp(1j * phase)


def _triangle(frame: np.ndarray) -> np.ndarray:
    """The labelled motion: -1 to 1 over frames 0..7, and back over frames 8..15."""
    step = np.where(frame < PERIOD // 2, frame, PERIOD - 1 - frame)
    return 2.0 * step / (PERIOD // 2 - 1) - 1.0


def _tile(coefficients: np.ndarray, size: int, shift: np.ndarray | None = None) -> torch.Tensor:
    """Renders periodic noise (..., size, size) from its Fourier coefficients.

    With ``shift`` (F, 2), the translation (x, y) in tiles of each of F frames, it is (F, ..., size, size).
    """
    highest = coefficients.shape[-1] - 1
    spectrum = torch.from_numpy(coefficients.astype(np.complex64))
    if shift is not None:
        fy = np.arange(-highest, highest + 1)[:, None]
        fx = np.arange(highest + 1)[None, :]
        angle = -2 * math.pi * (shift[:, 0, None, None] * fx + shift[:, 1, None, None] * fy)
        turn = torch.from_numpy(np.exp(1j * angle).astype(np.complex64))
        spectrum = turn.reshape(-1, *[1] * (spectrum.ndim - 2), *turn.shape[1:]) * spectrum
    full = spectrum.new_zeros(*spectrum.shape[:-2], size, size // 2 + 1)
    full[..., : highest + 1, : highest + 1] = spectrum[..., highest:, :]
    full[..., -highest:, : highest + 1] = spectrum[..., :highest, :]
    return torch.fft.irfft2(full, s=(size, size), norm="forward")


def _render_period(scene: Scene, motion: int, size: int) -> torch.Tensor:
    """uint8 (16, size, size, 3): one period in which ``motion`` goes up its range in the first half."""
    time = np.arange(PERIOD)
    turn = 2 * math.pi * time / PERIOD
    path = scene.background_path
    shift = sum(
        path[None, :, h, 0] * np.cos((h + 1) * turn)[:, None]
        + path[None, :, h, 1] * np.sin((h + 1) * turn)[:, None]
        for h in range(2)
    )
    image = 0.35 * _tile(scene.background_texture, size, shift)
    image += torch.from_numpy(scene.background_colour.astype(np.float32)).reshape(1, 3, 1, 1)

    pixel = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    for n in range(len(scene.radius)):
        along = np.repeat(scene.rest[n][None], PERIOD, 0)
        along[:, motion] = _triangle(time)
        wobble = (
            np.cos(2 * turn)[:, None] * scene.wobble[n, :, 0]
            + np.sin(2 * turn)[:, None] * scene.wobble[n, :, 1]
        )
        state = scene.amplitude[n] * along + wobble
        x, y, angle, grow, widen = (
            torch.from_numpy(state.astype(np.float32)).reshape(PERIOD, 5, 1, 1).unbind(1)
        )
        # The pixel's place relative to the object's centre, on the torus, then in the object's own frame.
        dx = torch.remainder(pixel[None, None, :] - float(scene.position[n, 0]) - x + 0.5, 1.0) - 0.5
        dy = torch.remainder(pixel[None, :, None] - float(scene.position[n, 1]) - y + 0.5, 1.0) - 0.5
        dx = dx * torch.exp(-grow - widen)
        dy = dy * torch.exp(-grow + widen)
        u = torch.cos(angle) * dx + torch.sin(angle) * dy
        v = torch.cos(angle) * dy - torch.sin(angle) * dx
        distance = torch.sqrt(u * u + v * v).clamp_min(1e-6)
        # Powers of it are the harmonics of the polar angle.
        around = torch.complex(u / distance, v / distance)
        second, third = around * around, around * around * around
        edge = torch.ones_like(u)
        for turned, (a, b) in zip((second, third, second * third), scene.outline[n].tolist(), strict=True):
            edge = edge + a * turned.real + b * turned.imag
        radius = float(scene.radius[n])
        inside = ((edge * radius - distance) * size + 0.5).clamp(0, 1)  # one pixel of antialiasing
        tile = 0.5 * _tile(scene.object_texture[n], 64)
        tile += torch.from_numpy(scene.object_colour[n].astype(np.float32)).reshape(3, 1, 1)
        grid = torch.stack([u, v], -1) / (1.5 * radius)
        skin = torch.nn.functional.grid_sample(
            tile.expand(PERIOD, -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        image = torch.lerp(image, skin, inside[:, None])
    return (image * 70 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
