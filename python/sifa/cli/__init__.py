"""The `sifa` command: each module beside this one holds a group of commands, `common` what they share."""

from __future__ import annotations

import sys

# A group registers its commands with the app when it is imported.
from . import data, evaluation, models, train  # noqa: F401
from .common import app

__all__ = ["app", "main"]


def main(args: list[str] | None = None) -> None:
    """Run the command line; a failure is one line on stderr and exit code 1, bad usage exit code 2."""
    try:
        app(args)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"sifa: {_sentence(error)}", file=sys.stderr)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    """What an error says, in one line; of one that a worker passes on, without the worker's traceback."""
    words = str(error)
    if words.startswith("Caught ") and "Original Traceback" in words:
        words = words.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(words.split())
