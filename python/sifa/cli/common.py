"""What all groups of commands share: the app, progress on a terminal, tables, what a missing extra says."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Models need timm, and timm a second: everything heavy is imported by the command that uses it.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Stand-alone inter-frame attention for video: train in Python, run anywhere.",
)

progress = Console(stderr=True)
"""Where progress is shown: standard error, and only on a terminal."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"sifa {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


def need(command: str, *modules: str) -> None:
    """Say what to install if a command needs modules that are not there.

    Raises:
        ImportError: one is missing; the message names all that are, and the extra that brings them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"`sifa {command}` needs {', '.join(missing)}: pip install 'sifa[train]'")


def check_folder(folder: Path, option: str = "--output") -> None:
    """Say before the work, not after it, that its result has no place. Raises NotADirectoryError."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{place} is a file: name another folder with {option}")


def given(choices: Mapping[str, Any]) -> list[str]:
    """The options of a command for those choices that were made, which are not None."""
    return [f"--{name}={value}" for name, value in choices.items() if value is not None]


def print_table(table: Table) -> None:
    """A table on stdout: as wide as the terminal, or as its longest line in a pipe."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table)


def progress_bar(shown: bool = True) -> Progress:
    """A progress bar on a terminal; what is printed meanwhile still goes to standard output."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=progress,
        redirect_stdout=False,
        disable=not (shown and progress.is_terminal),
    )
