"""`sifa eval`, `sifa predict` and `sifa visualize`: how good a model is, what it says, where it looks."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .common import AsJson, app, check_folder, need, print_table, progress, progress_bar

Engine = Annotated[
    str | None,
    typer.Option(
        help="pytorch, torchscript or cpp (sifa.runtime); by default what MODEL is, a file of `sifa export` "
        "being torchscript."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]
ViewsOption = Annotated[
    str, typer.Option(help="Clips x crops of each video, averaged: 1x1 (whole frames), 10x3, 1x3, …")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Views that go through the model at once.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode; 0 decodes in the main one.")]


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Folder of a model, checkpoint, exported file, or name of a bundled model.")
    ],
    annotations: Annotated[str, typer.Argument(help="Annotation file, or folder of a folder per class.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html and report.json.")
    ] = Path("sifa-eval"),
    views: ViewsOption = "1x1",
    engine: Engine = None,
    device: Device = "cpu",
    batch_size: BatchSize = 8,
    workers: Workers = 2,
    format: Annotated[
        str, typer.Option(help="videos, frames, kinetics, something or folders; found out by default.")
    ] = "auto",
    root: Annotated[Path | None, typer.Option(help="Folder that relative paths start from.")] = None,
    labels: Annotated[Path | None, typer.Option(help="File of class names, if the model has none.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a Kinetics CSV or a folder tree.")] = None,
    template: Annotated[
        str | None, typer.Option(help='Names of images in a folder of frames, e.g. "{:05d}.jpg".')
    ] = None,
    max_broken: Annotated[
        float, typer.Option(min=0, max=1, help="Share of videos that may be unreadable.")
    ] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on annotated videos: accuracies, confusion, calibration, mistakes, as a report.

    Under `torchrun` or `srun` the processes share the videos, and each video is counted once.
    """
    need("eval", "jinja2", "lightning", "matplotlib", "torchmetrics")
    from ..evaluation.classify import parse_views
    from ..evaluation.engines import load_engine
    from ..evaluation.evaluate import annotations_for, own_device, process_group
    from ..evaluation.evaluate import evaluate as run
    from ..evaluation.report import write_report

    chosen = parse_views(views)
    check_folder(output)
    with process_group() as rank, progress_bar(rank == 0) as bar:
        loaded = load_engine(model, engine, own_device(device))
        listed = annotations_for(*(loaded, annotations), format=format, root=root, labels=labels, split=split)
        task = bar.add_task("evaluating", total=None)
        result = run(
            *(loaded, listed),
            views=chosen,
            batch_size=batch_size,
            workers=workers,
            max_broken=max_broken,
            template=template,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        if rank != 0:
            return
        bar.update(task, description="writing the report")
        page, data = write_report(result, output, template)
    facts = result.facts()
    if as_json:
        print(json.dumps({**facts, "report": str(page), "data": str(data)}, indent=1))
        return
    low, high = (100 * bound for bound in facts["top1_interval"])
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("videos", str(facts["videos"]))
    table.add_row("top-1", f"{100 * facts['top1']:.1f} %  (95 % interval {low:.1f} to {high:.1f})")
    if len(listed.labels) > 5:
        table.add_row("top-5", f"{100 * facts['top5']:.1f} %")
    table.add_row("mean class accuracy", f"{100 * facts['mean_class_accuracy']:.1f} %")
    table.add_row("calibration error", f"{facts['calibration_error']:.3f}")
    print_table(table)
    if result.broken:
        print(f"{_counted(len(result.broken))} unreadable, such as {result.broken[0]}: the report names all")
    print(f"\nto look at the mistakes: open {page}")
    if loaded.kind == "pytorch":
        print(f"to export:               sifa export {shlex.quote(model)} -o model.pt")
    else:
        print(f"to classify in C++:      sifa-run {shlex.quote(model)} VIDEO")


@app.command()
def predict(
    places: Annotated[
        list[str], typer.Argument(metavar="VIDEO_OR_FOLDER…", help="Videos, or folders of them.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Folder of a model, checkpoint, exported file, or name of a bundled model."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File of JSON lines; standard output by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with OUTPUT, skipping the videos that it holds.")
    ] = False,
    shard: Annotated[
        str, typer.Option(help="i/N: the i-th of N shares of the videos, such as 2/4, for several machines.")
    ] = "1/1",
    topk: Annotated[int, typer.Option(min=1, help="Classes per video.")] = 5,
    views: ViewsOption = "1x1",
    engine: Engine = None,
    device: Device = "cpu",
    batch_size: BatchSize = 8,
    workers: Workers = 2,
) -> None:
    """Classify videos, a line of JSON each: the most likely classes, or why there are none."""
    from ..evaluation.classify import parse_views
    from ..evaluation.engines import load_engine
    from ..evaluation.predict import find_videos, lines_of, origin_of, parse_shard, shard_of
    from ..evaluation.predict import predict as run

    if resume and output is None:
        raise typer.BadParameter("--resume goes on with a file: name it with --output")
    chosen = parse_views(views)
    videos = shard_of(find_videos(places), parse_shard(shard))
    loaded = load_engine(model, engine, device)
    broken = 0
    # On a terminal the lines are progress enough, and a bar would run through them.
    if output is None:
        lines: Any = nullcontext((set[str](), _print))
    else:
        lines = lines_of(output, origin_of(loaded, chosen), resume)
    with lines as (done, write), progress_bar(output is not None or not sys.stdout.isatty()) as bar:
        left = [video for video in videos if str(video) not in done]
        task = bar.add_task("predicting", total=len(videos), completed=len(videos) - len(left))
        for entry in run(*(loaded, left), views=chosen, topk=topk, batch_size=batch_size, workers=workers):
            write(entry)
            broken += "error" in entry
            bar.advance(task)
    if output is not None:
        skipped = f", there already: {len(videos) - len(left)}" if resume else ""
        failed = f", of which unreadable: {broken}" if broken else ""
        print(f"{output}: {_counted(len(left))}{failed}{skipped}")
    if left and broken == len(left):
        raise RuntimeError(f"not one of the {len(left)} videos can be read")


@app.command()
def visualize(
    video: Annotated[str, typer.Argument(help="Video file.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder of a model, checkpoint, or name of a bundled model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path(
        "sifa-visualize"
    ),
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Number of a stage, whose first SIFA layer is drawn, or name of a layer; repeat for more. "
            "By default the first layer of every stage."
        ),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="Pixel of the video whose attention is drawn; up to four. By default, for each layer, those "
            "whose taps moved farthest.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--class", help="Label whose evidence is drawn; by default the most likely class."),
    ] = None,
    film: Annotated[bool, typer.Option(help="Write an annotated MP4 of each layer.")] = True,
    as_json: AsJson = False,
) -> None:
    """Draw where a model looks: taps and weights, saliency, offsets, class activation, as PNG and MP4."""
    need("visualize", "matplotlib")
    from ..data.video import read_frames
    from ..evaluation.engines import load_model
    from ..visualize.overview import parse_point
    from ..visualize.overview import visualize as run
    from ..visualize.trace import shown_name

    points = [parse_point(text) for text in query or []]
    check_folder(output)
    with progress.status("loading") as status:
        network = load_model(model)
        frames, _ = read_frames(video, network.num_frames, network.frame_stride, network.sampling)
        result = run(
            *(network, frames, output),
            layers=layer or (),
            points=points,
            target=target,
            film=film,
            progress=status.update,
        )
    if as_json:
        print(json.dumps(result, indent=1))
        return
    print(f"{video}: {result['label']}, probability {result['probability']:.4f}")
    print(f"what speaks for it: {result['activation']}")
    for entry in result["layers"]:
        print(f"{shown_name(entry['layer'])}:")
        for words, key in (("taps and weights", "taps"), ("saliency, offsets", "maps"), ("film", "film")):
            if key in entry:
                print(f"  {words + ':':18} {entry[key]}")


def _print(entry: dict[str, Any]) -> None:
    print(json.dumps(entry), flush=True)


def _counted(videos: int) -> str:
    return f"{videos} video{'' if videos == 1 else 's'}"
