"""The modules that a model's option ``temporal`` chooses among: SIFA, or what the paper compares it with."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..modules import SIFA
from ..rivals import RIVALS

# The channels come from the backbone; what follows needs the features, not the aggregate alone.
SIFA_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(SIFA).parameters.items()
    if name not in ("channels", "residual")
}
"""The options of :class:`sifa.SIFA` that a model has too, and their defaults."""


def checked_stages(stages: Iterable[int]) -> list[int]:
    """The stages, sorted. Raises ValueError unless they are some of 1, 2, 3 and 4."""
    if isinstance(stages, int | str) or not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(f"stages must be some of 1, 2, 3 and 4, such as (3, 4), got {stages!r}")
    return sorted(set(stages))


def temporal_module(temporal: str, channels: int, **sifa: Any) -> nn.Module:
    """A module of clips, (N, channels, T, H, W) to the same shape.

    Args:
        temporal: ``"sifa"``, or a rival in its place: ``"convolution"``, ``"shift"``, ``"correlation"`` or
            ``"difference"`` (see :mod:`sifa.rivals`).
        channels: C.
        **sifa: arguments of :class:`sifa.SIFA`, for ``"sifa"`` only.

    Raises:
        ValueError: an unknown name, an option that is no rival's, or one out of its range.
    """
    if temporal == "sifa":
        return SIFA(channels, **sifa)
    if temporal not in RIVALS:
        known = ", ".join(map(repr, ("sifa", *RIVALS)))
        raise ValueError(f"temporal must be None or one of {known}, got {temporal!r}")
    if sifa:
        raise ValueError(f"{', '.join(sifa)}: an option of SIFA, which temporal={temporal!r} has no use for")
    return RIVALS[temporal](channels)
