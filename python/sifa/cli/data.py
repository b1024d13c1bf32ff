"""`sifa data`: whether videos can be trained on, how fast they are read, and the bundled task's own."""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .common import AsJson, app, check_folder, given, need, print_table, progress, progress_bar

data_app = typer.Typer(no_args_is_help=True, help="Look at videos before training, or render some.")
app.add_typer(data_app, name="data")

_LISTED = 20  # classes, and unreadable videos, that are listed in full


@data_app.command()
def check(
    annotations: Annotated[str, typer.Argument(help="Annotation file, or folder of a folder per class.")],
    sheet: Annotated[
        Path, typer.Option(help="Picture with frames of some videos; its extension names the format.")
    ] = Path("contact-sheet.jpg"),
    format: Annotated[
        str, typer.Option(help="videos, frames, kinetics, something or folders; found out by default.")
    ] = "auto",
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths start from.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of class names.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a Kinetics CSV or a folder tree.")] = None,
    template: Annotated[
        str | None, typer.Option(help='Names of images in a folder of frames, e.g. "{:05d}.jpg".')
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Read a little of every video: how many and how long they are, and which of them cannot be read."""
    from ..data.annotations import read_annotations
    from ..data.check import check_picture, check_videos, contact_sheet
    from ..data.sources import check_template

    read: dict[str, Any] = {"format": format, "root": root, "labels": labels, "split": split}
    check_folder(sheet.parent, "--sheet")
    check_picture(sheet)
    if template is not None:
        check_template(template)
    listed = read_annotations(annotations, **read)
    with _bar("reading") as advance:
        checked = check_videos(listed, template=template, workers=workers, progress=advance)
    rows = contact_sheet(listed, checked, sheet, template)
    readable = [entry for entry in checked if entry.error is None]
    broken = [entry for entry in checked if entry.error is not None]
    counts = dict.fromkeys(listed.labels, 0)
    for entry in readable:
        counts[listed.labels[entry.video.label]] += 1
    frames = [entry.num_frames for entry in readable]
    seconds = [entry.num_frames / entry.fps for entry in readable if entry.fps]
    sizes = sorted({entry.size for entry in readable})
    facts = {
        "videos": len(checked),
        "classes": counts,
        "frames": _summary(frames),
        "seconds": _summary(seconds),
        "sizes": sizes,
        "unreadable": {entry.video.name: entry.error for entry in broken},
        "sheet": str(sheet) if rows else None,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        data = {"train": annotations, "format": None if format == "auto" else format, "root": root}
        data |= {"labels": labels, "train_split": split, "template": template}
        _print_check(facts, given({f"data.{name}": value for name, value in data.items()}))
    if not readable:
        raise RuntimeError(f"not one of the {len(checked)} videos of {annotations} can be read")


def _summary(values: list[float] | list[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"least": min(values), "median": statistics.median(values), "most": max(values)}


def _print_check(facts: dict[str, Any], options: list[str]) -> None:
    counts, broken = facts["classes"], facts["unreadable"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("videos", f"{facts['videos']}, {len(broken)} of them unreadable")
    table.add_row("classes", str(len(counts)))
    for name, unit in (("frames", "frames"), ("seconds", "s")):
        if (span := facts[name]) is not None:
            table.add_row(
                "length", f"{span['least']:.4g} to {span['most']:.4g} {unit}, median {span['median']:.4g}"
            )
    if facts["sizes"]:
        (height, width), (high, wide) = facts["sizes"][0], facts["sizes"][-1]
        table.add_row("size", f"{len(facts['sizes'])} different, {width}x{height} to {wide}x{high}")
    print_table(table)
    ordered = sorted(counts.items(), key=lambda item: item[1])
    shown = ordered if len(ordered) <= _LISTED else [*ordered[: _LISTED // 2], *ordered[-_LISTED // 2 :]]
    classes = Table("class", "videos", box=None, pad_edge=False)
    for label, count in shown:
        classes.add_row(label, str(count))
    print()
    print_table(classes)
    if len(shown) < len(ordered):
        print(f"(those with the fewest and the most videos; {len(ordered) - len(shown)} are between)")
    for label, count in ordered:
        if count < 2:
            videos = "1 readable video" if count == 1 else "no readable videos"
            print(f"warning: {label} has {videos}: give it more, or leave the class out")
    for name, error in list(broken.items())[:_LISTED]:
        print(f"unreadable: {name}: {error}")
    if len(broken) > _LISTED:
        print(f"unreadable: {len(broken) - _LISTED} more, which --json lists")
    if facts["sheet"] is None:
        return
    print(f"\nto look at them: open {facts['sheet']}")
    print(f"to train:        {shlex.join(['sifa', 'train', 'own-actions', *options])}")


@data_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A bundled recipe, or a YAML file; --key=value changes it.")],
    as_json: AsJson = False,
) -> None:
    """Time a training's clips and steps: clips per second and core, and the share of a step spent waiting."""
    need("data bench", "jsonargparse", "lightning", "tensorboard", "torchmetrics", "torchvision")
    from ..training.bench import measure
    from ..training.recipe import read_recipe

    with progress.status("timing") if progress.is_terminal else nullcontext():
        pace = measure(read_recipe(recipe, context.args))
    if as_json:
        print(json.dumps(dataclasses.asdict(pace), indent=1))
        return
    print(
        f"{pace.clips_per_second:.1f} clips per second and core: {pace.read_milliseconds:.0f} ms to read one "
        f"and {pace.augment_milliseconds:.0f} ms to augment it\n"
        f"a step of {pace.batch_size} clips takes {pace.step_seconds:.2f} s, and with {pace.workers} workers "
        f"{100 * pace.wait_share:.0f} % of the time goes by waiting for them"
    )
    if pace.wait_share > 0.1:
        print("to wait less: more --data.workers, if there are cores for them, or smaller videos")


@data_app.command()
def motion(
    folder: Annotated[Path, typer.Argument(help="Where the videos and their lists go.")],
    pairs: Annotated[
        int, typer.Option(min=1, help="Scenes to train on, each under both labels of a pair.")
    ] = 3200,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to validate on, each under all labels.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
) -> None:
    """Render the videos of the bundled motion task; what is there already is kept."""
    from ..data.motion_videos import render_task

    with _bar("rendering") as advance:
        render_task(folder, pairs, scenes, workers, advance)
    print(
        f"{folder}: {2 * pairs} videos to train on, {10 * scenes} to validate on\n"
        f"to train: sifa train motion --data.train={shlex.quote(str(folder / 'train.txt'))} "
        f"--data.validation={shlex.quote(str(folder / 'val.txt'))} "
        f"--data.labels={shlex.quote(str(folder / 'labels.txt'))}"
    )


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, moved by what is yielded: called with how many are done, and of how many."""
    with progress_bar() as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
