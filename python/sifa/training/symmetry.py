"""The symmetries of the bundled motion task, drawn for whole batches: they change the classes, too."""

import torch
from torch import Tensor

from ..data.motion import LABELS

# What a symmetry of the square makes of the names of the motions. Reversed in time every class stays: there
# and back is there and back.
_MIRROR = {"right": "left", "left": "right", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
_UPSIDE_DOWN = {"up": "down", "down": "up", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
_TRANSPOSE = {
    "right": "down",
    "down": "right",
    "left": "up",
    "up": "left",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
    "widen": "narrow",
    "narrow": "widen",
}


def _classes(motions: dict[str, str]) -> list[int]:
    renamed = ("-then-".join(motions.get(m, m) for m in label.split("-then-")) for label in LABELS)
    return [LABELS.index(label) for label in renamed]


_MIRRORED, _TURNED_OVER, _TRANSPOSED = map(_classes, (_MIRROR, _UPSIDE_DOWN, _TRANSPOSE))


def motion_symmetry(frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror, turn over, transpose, reverse in time and invert the colours of a batch, each with even odds.

    Draws from torch's global generator, once for the batch.

    Args:
        frames: uint8 (N, T, H, W, 3), H equal to W.
        labels: int64 (N,), indices of :data:`sifa.data.motion.LABELS`.
    """
    mirror, turn_over, transpose, reverse, invert = torch.randint(2, (5,)).tolist()
    if mirror:
        frames, labels = frames.flip(3), labels.new_tensor(_MIRRORED)[labels]
    if turn_over:
        frames, labels = frames.flip(2), labels.new_tensor(_TURNED_OVER)[labels]
    if transpose:
        frames, labels = frames.transpose(2, 3), labels.new_tensor(_TRANSPOSED)[labels]
    if reverse:
        frames = frames.flip(1)
    if invert:
        frames = 255 - frames
    return frames, labels
