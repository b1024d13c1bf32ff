"""Counts what inter-frame attention cannot do without, and turns it into the time that no kernel goes below.

Per pass there are three counts, and a machine has a ceiling for each (:mod:`ceilings`):

* bytes that must move: every input read once and every output written once. Query and memory are one clip,
  and so are their gradients;
* tap bytes that the first-level cache must deliver: a tap reads 4 corners of C elements, so forward 36·C
  elements per pixel at k = 3; the backward reads the corners again, and what it adds their gradients to;
* operations, with a multiply-add as 2: forward per tap and channel 6 multiply-adds, 4 for the corners of the
  sample, 1 in the weight and 1 in the aggregate; backward 17 (sifa.ops says which).

A corner outside the frame, or one with the share 0, need not be read: a tap on a whole pixel has one corner.
The floor counts only the corners that the offsets at hand leave; the table shows them as a share of all.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from sifa import reference
from torch import Tensor


@dataclass(frozen=True)
class Corners:
    """How many corners and taps some offsets leave, over all pixels."""

    read: int  # corners inside the frame with a share of the sample
    felt: int  # corners inside the frame that the sample or its derivative by the position depends on
    blended: int  # those of `read` that are blended with others: a lone corner's share goes into the weight
    taps: int  # taps with any corner inside


def count_corners(offset: Tensor, kernel_size: int) -> Corners:
    """Count what (N, 2k², T, H, W) offsets leave of the taps' corners."""
    height, width = offset.shape[-2:]
    y, x = reference.tap_positions(offset.detach().cpu().double(), kernel_size).unbind(2)
    counted = (y > -1) & (y < height) & (x > -1) & (x < width)
    fractional_y, fractional_x = y != y.floor(), x != x.floor()
    corners = torch.zeros_like(y, dtype=torch.int32)
    felt = torch.zeros_like(corners)
    for down in (0, 1):
        for right in (0, 1):
            row, column = y.floor() + down, x.floor() + right
            inside = counted & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            # A whole coordinate gives the further corner no share, but its derivative still needs it.
            zeros = (down * ~fractional_y).int() + (right * ~fractional_x).int()
            corners += inside & (zeros == 0)
            felt += inside & (zeros <= 1)
    return Corners(
        read=int(corners.sum()),
        felt=int(felt.sum()),
        blended=int(corners[corners > 1].sum()),
        taps=int((corners > 0).sum()),
    )


@dataclass(frozen=True)
class Work:
    """What one pass cannot do without."""

    bytes: int
    full_tap_bytes: int  # if every corner of every tap counted: 36·C elements per pixel forward, at k = 3
    tap_bytes: int  # of those, what the offsets leave
    operations: int


def attention_work(
    shape: tuple[int, int, int, int, int],
    element_size: int,
    offset_element_size: int,
    kernel_size: int,
    corners: Corners,
    backward: bool,
) -> Work:
    """What the operator cannot do without, forward or forward and backward."""
    batch, channels, steps, height, width = shape
    pixels = batch * steps * height * width
    clip = pixels * channels * element_size
    offset = pixels * 2 * kernel_size**2 * offset_element_size
    moved = 2 * clip + offset
    full = 4 * kernel_size**2 * clip
    taps = corners.read * channels * element_size
    multiply_adds = channels * (corners.blended + 2 * corners.taps)
    if backward:
        moved += 3 * clip + 2 * offset  # read: clip, offsets, the output's gradient; write: two gradients
        full *= 3
        taps += (corners.felt + corners.read) * channels * element_size
        multiply_adds += channels * (corners.blended + corners.felt + corners.read + 5 * corners.taps)
    return Work(moved, full, taps, 2 * multiply_adds)


def block_work(
    shape: tuple[int, int, int, int, int],
    element_size: int,
    kernel_size: int,
    corners: Corners,
    backward: bool,
    convolution: bool,
) -> Work:
    """What the whole block cannot do without: attention, whose offsets need not move, and a convolution.

    The convolution, C to 2k² channels over 3×3, is multiplied three times if there is a backward. Where there
    are matrix units the ceiling of multiply-adds does not bound it, and ``convolution`` is False. The
    saliency is elementwise and not counted.
    """
    work = attention_work(shape, element_size, 0, kernel_size, corners, backward)
    if not convolution:
        return work
    multiply_adds = math.prod(shape) * 9 * 2 * kernel_size**2 * (3 if backward else 1)
    return dataclasses.replace(work, operations=work.operations + 2 * multiply_adds)


@dataclass(frozen=True)
class Rates:
    """Ceilings of one moment, per second."""

    copy: float
    read: float
    operations: float


@dataclass(frozen=True)
class Floor:
    """The least time of a pass, in seconds, and which of the three ceilings sets it."""

    seconds: float
    set_by: str


def floor_of(work: Work, rates: Rates) -> Floor:
    """The largest of the times that the three counts take at the ceilings."""
    parts = {
        "copy": work.bytes / rates.copy,
        "taps": work.tap_bytes / rates.read,
        "operations": work.operations / rates.operations,
    }
    set_by = max(parts, key=parts.__getitem__)
    return Floor(parts[set_by], set_by)
