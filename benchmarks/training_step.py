"""Measures what SIFA adds to a training step: forward, backward and SGD of a network with it and without it.

python benchmarks/training_step.py [--model NAME] [--batch N] [--rounds N] [--device cuda]

Both are the same network but for ``temporal=None``, on clips of the card's size, with a loss on every head.
Offsets are random, of one pixel. They are timed in turns, one step each per round: on a CPU by processor
time, which other work on the machine hardly changes, so that what counts is the ratio and not the seconds.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import sifa
import torch
from measuring import CudaClock, description, in_turns, ratios, spread, usable_device
from models import with_offsets
from torch import Tensor, nn


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sifa.list_models(), default="sifa_resnet50")
    parser.add_argument("--batch", type=int, default=1, help="clips of a step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", type=usable_device, choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    with_sifa, without = (
        sifa.create_model(options.model, **other).to(options.device) for other in ({}, {"temporal": None})
    )
    clips = torch.randn(options.batch, 3, with_sifa.num_frames, *with_sifa.input_size).to(options.device)
    with torch.no_grad():
        with_offsets(with_sifa, clips)
    steps = {"with": training_step(with_sifa, clips), "without": training_step(without, clips)}
    clock = processor_time if options.device == "cpu" else CudaClock().time
    for step in steps.values():
        step()
    probes = {name: functools.partial(clock, step) for name, step in steps.items()}
    seconds = in_turns(probes, options.rounds, float("inf"), options.model)
    print(", ".join(description(options.device).values()))
    print(f"{options.model}, a step of {'×'.join(map(str, clips.shape))}: median (quartiles)")
    for name, values in seconds.items():
        print(f"{name} SIFA: {spread([1e3 * value for value in values], 1)} ms")
    print(f"ratio: {spread(ratios(seconds['with'], seconds['without']), 3)}")


def training_step(model: nn.Module, clips: Tensor) -> Callable[[], None]:
    """What runs one step of a model on clips."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, momentum=0.9)
    labels = torch.zeros(len(clips), dtype=torch.int64, device=clips.device)

    def step() -> None:
        losses = [nn.functional.cross_entropy(head, labels) for head in model.forward_heads(clips).unbind(1)]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def processor_time(call: Callable[[], object]) -> float:
    """The seconds of processor time that a call takes, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
