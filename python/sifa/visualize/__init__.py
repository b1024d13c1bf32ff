"""Looking at a model: where its attention looked in a video, what moved it, and what it decided by."""

from .taps import draw_attention, draw_taps
from .trace import Attention, choose_layers, choose_queries, sifa_layers, trace_attention

__all__ = [
    "Attention",
    "choose_layers",
    "choose_queries",
    "draw_attention",
    "draw_taps",
    "sifa_layers",
    "trace_attention",
]
