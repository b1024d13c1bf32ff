"""Stand-Alone Inter-Frame Attention (SIFA, CVPR 2022): train in Python, run anywhere.

``import sifa`` loads the operators and the :class:`SIFA` module and nothing else. The models and
:func:`insert` bring timm and torchvision with them, so they are imported when first asked for: the
operators alone work beside any torch from 2.10 on, whatever those two make of it.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .modules import SIFA
from .ops import inter_frame_attention, motion_offset, motion_saliency

if TYPE_CHECKING:
    from .insertion import insert
    from .models import create_model, from_pretrained, list_models

__all__ = [
    "SIFA",
    "create_model",
    "from_pretrained",
    "insert",
    "inter_frame_attention",
    "list_models",
    "motion_offset",
    "motion_saliency",
]

try:
    __version__ = version("sifa")
except PackageNotFoundError:  # a checkout on PYTHONPATH that was never installed
    __version__ = "0+unknown"

_LAZY = {
    "create_model": ".models",
    "from_pretrained": ".models",
    "insert": ".insertion",
    "list_models": ".models",
}


def __getattr__(name: str) -> Any:
    """Import a public name that needs timm when it is first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
