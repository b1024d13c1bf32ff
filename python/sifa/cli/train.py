"""`sifa train`: a training by a recipe, whose choices are the options."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import AsJson, app, check_folder, given, need

# What is not known here is a choice of the recipe, which jsonargparse reads.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASS_ON)
def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A bundled recipe, or a YAML file.")] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the recipe with every choice, and stop.")
    ] = False,
    show_help: Annotated[bool, typer.Option("--help", help="Print what can be chosen, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model by a RECIPE, --key=value changing it; a training that was stopped goes on."""
    need("train", "jsonargparse", "lightning", "tensorboard", "torchmetrics", "torchvision")
    from ..training.recipe import list_recipes, make_parser, read_recipe, write_recipe

    if recipe is not None and recipe.startswith("--"):  # a choice, and no recipe before it
        context.args.insert(0, recipe)
        recipe = None
    if show_help:
        print(f"{context.command.help}\n\nbundled recipes: {', '.join(list_recipes())}\n")
        make_parser().print_help()
        return
    if recipe is None and not print_config:
        raise typer.BadParameter(f"name a recipe: {', '.join(list_recipes())}, or a YAML file")
    chosen = read_recipe(recipe, context.args)
    if print_config:
        print(write_recipe(chosen), end="")
        return
    check_folder(Path(chosen.output))
    from ..training.callbacks import Interrupted
    from ..training.processes import Processes
    from ..training.run import train as run

    try:
        result = run(chosen)
    except Interrupted as stopped:
        processes = Processes.of_environment()
        # Of several processes the command began with torchrun or srun, and one of them says it.
        command = f": {shlex.join(['sifa', *sys.argv[1:]])}" if processes.count == 1 else ""
        if processes.rank == 0:
            print(f"sifa: {stopped}\nThe same command goes on from there{command}", file=sys.stderr)
        raise typer.Exit(128 + stopped.signal) from None
    if not result.is_first:
        return
    if as_json:
        facts = {"model": str(result.folder), "metrics": result.metrics, "broken": result.broken}
        print(json.dumps(facts, indent=1))
        return
    top1, top5 = (100 * result.metrics[f"val/top{k}"] for k in (1, 5))
    print(
        f"{result.folder}: trained; of the held-out videos {top1:.1f} % right, {top5:.1f} % in the top five"
    )
    if result.broken:
        print(f"videos that could not be read: {len(result.broken)}, among them {result.broken[0]}")
    data = chosen.data
    choices: dict[str, Any] = {"template": data.template}
    if data.validation is not None:  # not the list that the training wrote, without its broken videos
        format = None if data.format == "auto" else data.format
        broken = data.max_broken if result.broken else None
        choices |= {"format": format, "root": data.root, "split": data.validation_split, "max-broken": broken}
    evaluate = shlex.join(["sifa", "eval", str(result.folder), str(result.annotations), *given(choices)])
    export = shlex.join(["sifa", "export", str(result.folder), "-o", "model.pt"])
    print(f"to evaluate: {evaluate}\nto export:   {export}")
