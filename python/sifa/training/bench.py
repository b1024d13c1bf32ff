"""Whether reading videos keeps up with the model: the training's own loader and steps, timed."""

from __future__ import annotations

import dataclasses
import time

import torch

from ..data.clips import TrainingClips
from .loading import TrainingOrder
from .module import heads_loss, make_optimizer
from .recipe import Recipe
from .run import make_loaders, make_model, read_videos


@dataclasses.dataclass(frozen=True)
class Pace:
    """What :func:`measure` found.

    Attributes:
        clips_per_second: that one core reads, with augmentation: by processor time.
        read_milliseconds, augment_milliseconds: of processor time, the parts of a clip.
        step_seconds: an optimizer step, without waiting.
        wait_share: the share of a step's whole time that went by waiting for its clips.
        workers: that read meanwhile.
        batch_size: clips of a step.
    """

    clips_per_second: float
    read_milliseconds: float
    augment_milliseconds: float
    step_seconds: float
    wait_share: float
    workers: int
    batch_size: int


def measure(recipe: Recipe, clips: int = 16, steps: int = 8) -> Pace:
    """Read some clips in this process, then train for some steps with the recipe's workers.

    Args:
        recipe: a training; nothing is saved.
        clips: that are read one by one.
        steps: that are timed, after one that is not.

    Raises:
        ValueError, FileNotFoundError: as :func:`sifa.training.run.train` does.
    """
    training, held_out = read_videos(recipe)
    model = make_model(recipe, training.labels)
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    model = model.to("cuda" if on_gpu else "cpu").train()
    order = TrainingOrder(len(training.videos), recipe.batch_size, recipe.accumulate, seed=recipe.seed)
    loader, _ = make_loaders(recipe, model, training, held_out, order)
    whole, plain = _processor_time(loader.dataset, clips), _processor_time(loader.dataset.plain(), clips)

    optimizer = make_optimizer(model, recipe.optimizer)
    began = waited = 0.0
    parts = 0
    while parts < (steps + 1) * recipe.accumulate:
        for batch in loader:
            if parts == recipe.accumulate:  # the first step starts the workers
                began, waited = time.perf_counter(), loader.waited
            frames = batch["frames"].to(model.head.weight.device)
            clip = frames.permute(0, 4, 1, 2, 3).float().div(255)
            heads_loss(model.forward_heads(clip), batch["label"].to(frames.device), recipe.loss).backward()
            parts += 1
            if parts % recipe.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
            if parts == (steps + 1) * recipe.accumulate:
                break
    if on_gpu:
        torch.cuda.synchronize()
    total, waiting = time.perf_counter() - began, loader.waited - waited
    return Pace(
        clips_per_second=1 / whole,
        read_milliseconds=1000 * plain,
        augment_milliseconds=1000 * max(0.0, whole - plain),
        step_seconds=(total - waiting) / steps,
        wait_share=waiting / total,
        workers=recipe.data.workers,
        batch_size=recipe.batch_size,
    )


def _processor_time(dataset: TrainingClips, clips: int) -> float:
    """Seconds of processor time for a clip, all threads together."""
    dataset[0, 0]
    began = time.process_time()
    for number in range(clips):
        dataset[number // len(dataset), number % len(dataset)]
    return (time.process_time() - began) / clips
