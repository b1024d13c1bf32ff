"""Measures what SIFA adds to a whole network: every family with it and without it, by every engine.

python benchmarks/models.py [--models NAME …] [--batch N] [--rounds N] [--device cuda] [--dtype float16]
[--json FILE]

Both are the same network but for ``temporal=None``, run on clips of the card's size, without gradients.
They are timed in turns, one call each per round. Offsets are random, of one pixel: the zeros of a new model
would be read from fewer places. Printed are the medians and quartiles over the rounds, in milliseconds, and
those of the ratio of the two.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import sifa
import torch
from measuring import (
    CpuClock,
    CudaClock,
    description,
    in_turns,
    progress,
    quartiles,
    ratios,
    spread,
    usable_device,
)
from torch import Tensor, nn

# Of each family one; SIFA-Net also without its dual branch, which weighs more than SIFA does.
MODELS: list[tuple[str, dict]] = [
    ("sifa_resnet50", {"dual_branch": False}),
    ("sifa_resnet50", {}),
    ("sifa_swin_tiny", {"num_frames": 16}),
    ("sifa_mobilenetv4_small", {}),
    ("sifa_tiny", {}),
]


def frozen(model: nn.Module) -> torch.jit.ScriptModule:
    """The model as the C++ runtime gets it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*is deprecated")
        return torch.jit.freeze(torch.jit.script(copy.deepcopy(model)))  # scripting may change the model


ENGINES: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "eager": lambda model: model,
    "TorchScript": frozen,
    "compiled": torch.compile,
}


def with_offsets(model: nn.Module, clip: Tensor) -> nn.Module:
    """The model in evaluation mode, its offsets made random with a standard deviation of one pixel."""

    def calibrate(layer: sifa.SIFA, inputs: tuple[Tensor, ...]) -> None:
        layer.conv_offset.weight /= layer.offset(inputs[0]).std()

    layers = [m for m in model.modules() if isinstance(m, sifa.SIFA)]
    for layer in layers:
        nn.init.normal_(layer.conv_offset.weight)
    hooks = [layer.register_forward_pre_hook(calibrate) for layer in layers]
    model.eval()(clip)
    for hook in hooks:
        hook.remove()
    return model


def measure(name: str, options: dict, batch: int, num_rounds: int, device: str, dtype: torch.dtype) -> dict:
    """Time a model with and without SIFA, by every engine."""
    torch.manual_seed(0)
    model, plain = (sifa.create_model(name, **options, **without) for without in ({}, {"temporal": None}))
    model, plain = model.to(device), plain.to(device)
    clip = torch.randn(batch, 3, model.num_frames, *model.input_size).to(device)
    clock = CpuClock() if device == "cpu" else CudaClock()
    row: dict = {"name": name, "options": options, "clip": list(clip.shape)}
    with torch.no_grad():
        rivals = {"with": with_offsets(model, clip).to(dtype), "without": plain.eval().to(dtype)}
        clip = clip.to(dtype)
        if not model(clip).isfinite().all():
            raise SystemExit(f"{name}: its output is not finite, so its time would mean nothing")
        for engine, prepare in ENGINES.items():
            torch.compiler.reset()
            run = {n: prepare(m) for n, m in rivals.items()}
            for n, network in run.items():
                progress(f"{name}, {engine}: first calls, {n}")
                network(clip)
                network(clip)
            probes = {n: functools.partial(clock.time, functools.partial(m, clip)) for n, m in run.items()}
            seconds = in_turns(probes, num_rounds, float("inf"), f"{name}, {engine}")
            row[engine] = {n: [1e3 * value for value in values] for n, values in seconds.items()}
            row[engine]["ratio"] = ratios(seconds["with"], seconds["without"])
            row[engine]["quartiles"] = {n: quartiles(values) for n, values in row[engine].items()}
    return row


def table_line(row: dict) -> str:
    """The measurements of one model as a line of a Markdown table."""
    options = "".join(f", {key}={value}" for key, value in row["options"].items())
    cells = [row["name"] + options, "×".join(map(str, row["clip"]))]
    for engine in ENGINES:
        for what, digits in (("with", 1), ("without", 1), ("ratio", 3)):
            cells.append(spread(row[engine][what], digits))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--device", type=usable_device, choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--models", nargs="*", choices=[name for name, _ in MODELS], help="only these")
    parser.add_argument("--batch", type=int, default=1, help="clips of a call")
    parser.add_argument("--rounds", type=int, default=20, help="at least 2")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}")

    facts = {**description(arguments.device), "dtype": arguments.dtype}
    print(", ".join(facts.values()))
    print("milliseconds per call: median (quartiles)\n")
    columns = [
        "model",
        "clip",
        *(f"{engine}, {what}" for engine in ENGINES for what in ("SIFA", "none", "ratio")),
    ]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    rows = []
    for name, options in MODELS:
        if not arguments.models or name in arguments.models:
            dtype = getattr(torch, arguments.dtype)
            how = (arguments.batch, arguments.rounds, arguments.device, dtype)
            rows.append(measure(name, options, *how))
            print(table_line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
