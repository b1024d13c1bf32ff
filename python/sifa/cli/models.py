"""Commands about models: export one, look into a file, list them, run the demo."""

from __future__ import annotations

import dataclasses
import enum
import json
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .common import AsJson, app, print_table, progress

if TYPE_CHECKING:
    from ..models import VideoClassifier


class Format(str, enum.Enum):
    """What `sifa export` writes."""

    torchscript = "torchscript"
    aoti = "aoti"
    exported = "exported"


class Precision(str, enum.Enum):
    """What an exported network computes in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a model, checkpoint of `sifa train`, or name of a model (`sifa models`)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, e.g. model.pt.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="State dict of a named model, .safetensors; by default the bundled weights."),
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Do without trained weights, to try things out.")
    ] = False,
    num_frames: Annotated[int | None, typer.Option(help="Frames of a clip, if not the model's own.")] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes, if not the model's own.")
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="A TorchScript file; an AOTInductor package for this machine; or a portable program, which "
            "`sifa compile` finishes on the machine that runs it."
        ),
    ] = Format.torchscript,
    precision: Annotated[
        Precision, typer.Option(help="What the network computes in; float16 is for GPUs.")
    ] = Precision.float32,
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming", help="The causal variant of the model, as a graph of one step, for streams."
        ),
    ] = False,
    window: Annotated[
        bool,
        typer.Option(
            "--window",
            help="The model as a graph of a window that slides over a stream: what comes before its first "
            "block with SIFA or a clip-wide context is computed once per step.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as ONE file that Python and C++ run: weights, preprocessing, labels, metadata."""
    if weights is not None and random_weights:
        raise typer.BadParameter("give --weights or --random-weights, not both")
    if streaming and window:
        raise typer.BadParameter("give --streaming or --window, not both")
    trained = Path(model).exists() or Path(model).name != model
    if trained and (weights is not None or random_weights or num_classes is not None):
        raise typer.BadParameter(
            "--weights, --random-weights and --num-classes are for the name of a model, "
            f"and {model} has weights of its own"
        )
    with progress.status(f"exporting {model}"):
        if trained:
            from ..evaluation.engines import load_model

            network = load_model(model)
            if num_frames is not None:
                network.set_num_frames(num_frames)
        else:
            network = _named(model, weights, random_weights, num_frames, num_classes, streaming)
        kind = "streaming" if streaming else "window" if window else "clip"
        metadata = _write(network, output, format, precision, kind)
    if as_json:
        print(json.dumps({"path": str(output), "metadata": metadata}, indent=1))
        return
    size = output.stat().st_size / 1e6
    print(f"{output}: {network.name}, {len(metadata['labels'])} classes, {size:.1f} MB")
    if format is Format.exported:
        print(f"to finish it where it will run: sifa compile {shlex.quote(str(output))} -o model.pt2")
    else:
        print(f"to classify in C++: sifa-run {shlex.quote(str(output))} VIDEO")


@app.command(name="compile")
def compile_(
    program: Annotated[Path, typer.Argument(help="What `sifa export --format exported` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, e.g. model.pt2.")],
    device: Annotated[str, typer.Option(help="Where the package will run: cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Finish an exported program on the machine that runs it: an AOTInductor package, in a minute or more."""
    with progress.status(f"compiling {program}"):
        from ..artifact import compile_program

        metadata = compile_program(program, output, device)
    if as_json:
        print(json.dumps({"path": str(output), "metadata": metadata}, indent=1))
    else:
        print(f"{output}: {metadata['model']['name']}, {device}, {output.stat().st_size / 1e6:.1f} MB")


@app.command()
def info(
    what: Annotated[
        str, typer.Argument(metavar="FILE|MODEL", help="An exported file, or the name of a model.")
    ],
    num_frames: Annotated[
        int | None, typer.Option(help="Count the multiply-adds of a MODEL for clips of this many frames.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the metadata of an exported file, or the card of a model: its size, its cost, its options."""
    from ..models import list_models

    if Path(what).is_file():
        from ..artifact import read_metadata

        if num_frames is not None:
            raise typer.BadParameter("--num-frames is for the name of a model: a file's frames are fixed")
        facts = read_metadata(what)
    elif what in list_models():
        facts = _card(what)
        if num_frames is not None:
            facts |= {"num_frames": num_frames, **_counted(what, num_frames)}
    else:
        raise FileNotFoundError(
            f"there is no file {what}, and no model of that name: {', '.join(list_models())}"
        )
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, _shown(key, value))
    print_table(table)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that `sifa export` knows."""
    from ..models import list_models

    cards = [_card(name) for name in list_models()]
    if as_json:
        print(json.dumps(cards, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "parameters", "multiply-adds", "clip", "weights", "summary"):
        table.add_column(heading, no_wrap=heading != "summary")
    for card in cards:
        clip = " x ".join(map(str, (card["num_frames"], *card["input_size"])))
        parameters = f"{card['parameters'] / 1e6:.1f} M"
        cost = f"{card['multiply_adds'] / 1e9:.1f} G"
        weights = ", ".join(card["weights"]) or "-"
        table.add_row(card["name"], parameters, cost, clip, weights, card["summary"])
    print_table(table)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and installation have for SIFA, and for every problem what fixes it."""
    from ..doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps(findings, indent=1))
    else:
        for finding in findings:
            print(f"{finding['name']}: {finding['value']}")
            for kind in ("problem", "fix"):
                if finding[kind]:
                    print(f"  {kind}: {finding[kind]}")
    if any(finding["problem"] for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write to; build/demo or sifa-demo by default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Render a video, classify it with the C++ program, compare with Python, draw the attention."""
    from ..demo import run_demo

    # In a checkout what is made goes where everything made goes.
    folder = output or (Path("build/demo") if Path("build").is_dir() else Path("sifa-demo"))
    with progress.status("starting") as status:
        result = run_demo(folder, status.update)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    classes = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    classes.add_column("C++ (sifa-run) says", no_wrap=True)
    classes.add_column("probability", justify="right")
    for entry in result["classes"]:
        classes.add_row(entry["label"], f"{entry['probability']:.4f}")
    agreement = Table(box=None, pad_edge=False, header_style="bold")
    agreement.add_column("the same video in", no_wrap=True)
    agreement.add_column("top class", no_wrap=True)
    agreement.add_column("largest difference from eager", justify="right")
    for entry in result["agreement"]:
        agreement.add_row(entry["engine"], entry["label"], f"{entry['difference']:.1e}")
    print(f"video: {result['video']}")
    print(f"truth: {result['truth']}\n")
    print_table(classes)
    print()
    print_table(agreement)
    print(f"\nmodel: {result['model']}")
    print(f"where the attention looked: {result['picture']}")


def _write(
    network: VideoClassifier, output: Path, format: Format, precision: Precision, kind: str
) -> dict[str, Any]:
    """Export in any format; an AOTInductor package by way of the portable program."""
    from ..artifact import compile_program, export_program, export_torchscript

    settings: dict[str, Any] = {"precision": precision.value, "kind": kind}
    if format is Format.torchscript:
        return export_torchscript(network, output, **settings)
    if format is Format.exported:
        return export_program(network, output, **settings)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.pt2"
        export_program(network, program, **settings)
        return compile_program(program, output)


def _card(name: str) -> dict[str, Any]:
    """The card of a model as JSON-able facts."""
    from ..models import model_card

    card = model_card(name)
    facts = {
        field.name: getattr(card, field.name) for field in dataclasses.fields(card) if field.name != "build"
    }
    mappings = {name: dict(getattr(card, name)) for name in ("options", "streaming")}
    tags = {name: list(getattr(card, name)) for name in ("weights", "streaming_weights")}
    return {**facts, **mappings, **tags}


def _counted(name: str, num_frames: int) -> dict[str, int]:
    import torch

    from ..models import complexity, create_model

    with torch.device("meta"):
        return dataclasses.asdict(complexity(create_model(name, num_frames=num_frames)))


def _shown(key: str, value: Any) -> str:
    """A metadata value for people."""
    if key == "labels" and len(value) > 12:
        return f"{', '.join(value[:10])}, ... ({len(value)} in all)"
    if key == "labels":
        return ", ".join(value)
    if key == "reference":
        return f"output on a frame pattern, tolerance {value['tolerance']:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown('', entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value)) if key == "input_size" else ", ".join(map(str, value)) or "-"
    if key.endswith("multiply_adds"):
        return f"{value / 1e9:.2f} G"
    return f"{value:,}" if key == "parameters" else str(value)


def _named(
    name: str,
    weights: Path | None,
    random_weights: bool,
    num_frames: int | None,
    num_classes: int | None,
    streaming: bool,
) -> VideoClassifier:
    """A registered model with its bundled weights, those of a file, or random ones."""
    import torch

    from ..models import create_model, model_card

    bundled = next(iter(model_card(name).bundled(streaming)), None)
    pretrained = bundled if weights is None else str(weights)
    if random_weights:
        pretrained = None
        torch.manual_seed(0)
    elif pretrained is None:
        kind = "weights of its causal variant" if streaming else "weights"
        raise ValueError(f"{name} has no bundled {kind}: give --weights FILE, or --random-weights")
    return create_model(
        name, num_classes=num_classes, num_frames=num_frames, pretrained=pretrained, streaming=streaming
    )
