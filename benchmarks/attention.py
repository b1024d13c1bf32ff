"""Measures sifa.inter_frame_attention against the same function made of PyTorch's own operators.

python benchmarks/attention.py [--json FILE] [--device cuda]

The rivals, all of one formulation each and all checked against the reference in the same run:

* ``fused``: the operator of this package;
* ``grid_sample``: all k² taps of all frames in one call of ``torch.nn.functional.grid_sample``, the form that
  people write; eager, and compiled with ``torch.compile``;
* ``reference``: ``sifa.reference.inter_frame_attention``, written to be read and not to be fast.

They are timed in turns, one call each per round, so that whatever else the machine does falls on all of them.
Printed are the median and the quartiles over the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import sifa
import torch
from measuring import description, quartiles
from sifa import reference
from torch import Tensor
from torch.nn import functional

KERNEL_SIZE = 3
NUM_CLIPS, NUM_STEPS = 8, 4
# Channels, height and width of a ResNet-50's conv3 inputs at 224 pixels, in its last three stages.
SHAPES = [(128, 28, 28), (256, 14, 14), (512, 7, 7)]
# Relative to the largest value of the reference. The grid_sample form rounds its samples to bfloat16.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}

Attention = Callable[[Tensor, Tensor], Tensor]


def fused(clip: Tensor, offset: Tensor) -> Tensor:
    """The operator: the clip attends to itself, one frame ahead."""
    return sifa.inter_frame_attention(clip, clip, offset, KERNEL_SIZE)


def plain(clip: Tensor, offset: Tensor) -> Tensor:
    """The reference implementation."""
    return reference.inter_frame_attention(clip, clip, offset, KERNEL_SIZE)


def grid_sampled(clip: Tensor, offset: Tensor) -> Tensor:
    """All taps in one ``grid_sample``, whose zero padding is the deformable-convolution rule.

    Positions are float32, as under autocast: bfloat16 cannot tell the pixels of 28 columns apart well enough.
    """
    batch, channels, num_steps, height, width = clip.shape
    num_taps = KERNEL_SIZE**2
    pixels = clip.transpose(1, 2).flatten(0, 1)  # (N·T, C, H, W), channels last in memory
    neighbours = torch.cat([clip[:, :, 1:], clip[:, :, -1:]], dim=2).transpose(1, 2).flatten(0, 1)
    y, x = reference.tap_positions(offset.float(), KERNEL_SIZE).unbind(2)  # each (N, k², T, H, W)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    grid = grid.transpose(1, 2).reshape(batch * num_steps, num_taps * height, width, 2)
    samples = functional.grid_sample(neighbours.float(), grid, align_corners=True).to(clip.dtype)
    samples = samples.unflatten(2, (num_taps, height))  # (N·T, C, k², H, W)
    weights = (pixels.unsqueeze(2) * samples).sum(1, keepdim=True) / channels
    output = pixels + (weights * samples).sum(2)
    return output.unflatten(0, (batch, num_steps)).transpose(1, 2)


def forward(attention: Attention, clip: Tensor, offset: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, without a graph."""
    del gradient
    with torch.no_grad():
        return [attention(clip, offset)]


def forward_and_backward(
    attention: Attention, clip: Tensor, offset: Tensor, gradient: Tensor
) -> list[Tensor]:
    """The output, and the gradients of clip and offset."""
    output = attention(clip, offset)
    return [output.detach(), *torch.autograd.grad(output, (clip, offset), gradient)]


def measure(shape: tuple[int, int, int], dtype: torch.dtype, device: str, num_rounds: int) -> list[dict]:
    """Time every rival on one shape and one dtype, forward, and forward with backward."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(0)

    def random(num_channels: int, dtype: torch.dtype) -> Tensor:
        values = torch.randn(NUM_CLIPS, num_channels, NUM_STEPS, height, width, generator=generator)
        return values.to(device, dtype).contiguous(memory_format=torch.channels_last_3d)

    clip = random(channels, dtype).requires_grad_()
    # Sigma is 1 pixel. In bfloat16 whole pixels would be frequent, where the gradient has a jump.
    offset = random(2 * KERNEL_SIZE**2, torch.float32).requires_grad_()
    gradient = random(channels, dtype)
    torch.compiler.reset()
    rivals: dict[str, Attention] = {
        "fused": fused,
        "grid_sample": grid_sampled,
        "grid_sample, compiled": torch.compile(grid_sampled),
        "reference": plain,
    }
    rows = []
    for mode in (forward, forward_and_backward):
        # In double precision, from the same rounded inputs.
        exact = mode(
            plain,
            *(tensor.detach().double().requires_grad_() for tensor in (clip, offset)),
            gradient.double(),
        )
        for name, attention in rivals.items():
            check(name, mode(attention, clip, offset, gradient), exact, TOLERANCES[dtype])
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(num_rounds):
            for name, attention in rivals.items():
                synchronize(device)
                start = time.perf_counter()
                mode(attention, clip, offset, gradient)
                synchronize(device)
                times[name].append(1e3 * (time.perf_counter() - start))
        for name, values in times.items():
            low, median, high = quartiles(values)
            rows.append(
                {
                    "shape": [NUM_CLIPS, channels, NUM_STEPS, height, width],
                    "dtype": str(dtype).removeprefix("torch."),
                    "pass": mode.__name__.replace("_", " "),
                    "name": name,
                    "median_ms": median,
                    "quartiles_ms": [low, high],
                }
            )
    return rows


def check(name: str, actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Stop unless what is timed computes what the reference computes."""
    for what, value, exact in zip(
        ("output", "clip gradient", "offset gradient"), actual, expected, strict=False
    ):
        error = ((value.double() - exact).abs().max() / exact.abs().max()).item()
        if not error <= tolerance:
            raise SystemExit(
                f"{name}: its {what} is off by {error:.1e} of the largest value (allowed: {tolerance})"
            )


def synchronize(device: str) -> None:
    """Wait for the device, if it runs asynchronously."""
    if device != "cpu":
        torch.cuda.synchronize()


def table_lines(rows: list[dict]) -> list[str]:
    """The measurements as lines of a Markdown table: one per shape, dtype and pass, one column per rival."""
    cells: dict[tuple, list[str]] = {}
    for row in rows:
        low, high = row["quartiles_ms"]
        line = ("×".join(map(str, row["shape"])), row["dtype"], row["pass"])
        cells.setdefault(line, []).append(f"{row['median_ms']:.2f} ({low:.2f}–{high:.2f})")
    return ["| " + " | ".join([*line, *values]) + " |" for line, values in cells.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measurements to FILE")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()

    facts = description(arguments.device)
    print(", ".join(facts.values()))
    print("milliseconds: median (quartiles)\n")
    rows: list[dict] = []
    for shape in SHAPES:
        for dtype in TOLERANCES:
            measured = measure(shape, dtype, arguments.device, arguments.rounds)
            if not rows:
                columns = ["shape", "dtype", "pass", *dict.fromkeys(row["name"] for row in measured)]
                print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
            print("\n".join(table_lines(measured)), flush=True)
            rows += measured
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
