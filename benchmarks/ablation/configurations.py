"""What the ablation compares: the paper's tables (a) to (e), as options of one small network.

A configuration that several tables share is trained once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

BACKBONE = "sifa_tiny"
CONTROL = "2-D"
FULL = "SIFA"
RIGID = "rigid"

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    CONTROL: {"temporal": None},
    RIGID: {"offset_from": "none"},
    FULL: {},
    "offsets: next frame": {"offset_from": "memory"},
    "offsets: 3-D convolution": {"offset_from": "clip"},
    "offsets: difference": {"offset_from": "difference"},
    "k = 1": {"kernel_size": 1},
    "k = 5": {"kernel_size": 5},
    "k = 7": {"kernel_size": 7},
    "k = 9": {"kernel_size": 9},
    "stage 2": {"stages": (2,)},
    "stage 3": {"stages": (3,)},
    "stage 4": {"stages": (4,)},
    "stages 3, 4": {"stages": (3, 4)},
    "temporal convolution": {"temporal": "convolution"},
    "temporal shift": {"temporal": "shift"},
    "correlation": {"temporal": "correlation"},
    "temporal difference": {"temporal": "difference"},
}
"""The options of :func:`sifa.create_model` by name; they are trained in this order."""


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        title: of the table.
        rows: (what a row says, the configuration it is).
    """

    title: str
    rows: tuple[tuple[str, str], ...]


TABLES = (
    Table(
        "(a) Attention between frames",
        (("none: the 2-D network", CONTROL), ("rigid 3×3 window", RIGID), ("deformable: SIFA", FULL)),
    ),
    Table(
        "(b) What the offsets are predicted from",
        (
            ("nothing: rigid", RIGID),
            ("the next frame", "offsets: next frame"),
            ("the clip, by a 3-D convolution", "offsets: 3-D convolution"),
            ("the difference", "offsets: difference"),
            ("the saliency", FULL),
        ),
    ),
    Table(
        "(c) Size of the neighbourhood",
        tuple((f"k = {k}", FULL if k == 3 else f"k = {k}") for k in (1, 3, 5, 7, 9)),
    ),
    Table(
        "(d) Stages with SIFA",
        (
            ("none", CONTROL),
            ("2", "stage 2"),
            ("3", "stage 3"),
            ("4", "stage 4"),
            ("3 and 4", "stages 3, 4"),
            ("2, 3 and 4", FULL),
        ),
    ),
    Table(
        "(e) Other temporal operators in SIFA's place",
        (
            ("temporal shift", "temporal shift"),
            ("temporal convolution", "temporal convolution"),
            ("correlation", "correlation"),
            ("temporal difference", "temporal difference"),
            ("SIFA", FULL),
        ),
    ),
)
