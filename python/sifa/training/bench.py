"""Whether reading videos keeps up with the model: some steps of a training, timed, and nothing saved."""

from __future__ import annotations

import dataclasses
import resource
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..data.clips import TrainingClips
from .loading import TrainingLoader, TrainingOrder
from .module import ClassifierTraining
from .recipe import Recipe
from .run import accelerator, make_loaders, make_model, quiet, read_videos


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
    """Read some clips in this process, then train in it for some steps, with the recipe's workers.

    Args:
        recipe: a training.
        clips: that are read one by one.
        steps: that are timed, after one that is not.

    Raises:
        ValueError, FileNotFoundError: as :func:`sifa.training.run.train` does.
    """
    training, held_out = read_videos(recipe)
    model = make_model(recipe, training.labels)
    order = TrainingOrder(len(training.videos), recipe.batch_size, recipe.accumulate, seed=recipe.seed)
    loader, _ = make_loaders(recipe, model, training, held_out, order)
    whole, plain = _processor_time(loader.dataset, clips), _processor_time(loader.dataset.plain(), clips)
    clock = _Clock(loader)
    with quiet():
        trainer = Trainer(
            accelerator=accelerator(recipe),
            devices=1,
            precision=recipe.precision,
            max_steps=steps + 1,
            max_epochs=-1,
            accumulate_grad_batches=recipe.accumulate,
            gradient_clip_val=recipe.optimizer.gradient_clip,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        trainer.fit(ClassifierTraining(model, recipe, order.steps), loader)
    (began, waited_before), (ended, waited) = clock.steps[1], clock.steps[steps + 1]
    total, waiting = ended - began, waited - waited_before
    return Pace(
        clips_per_second=1 / whole,
        read_milliseconds=1000 * plain,
        augment_milliseconds=1000 * max(0.0, whole - plain),
        step_seconds=(total - waiting) / steps,
        wait_share=waiting / total,
        workers=recipe.data.workers,
        batch_size=recipe.batch_size,
    )


class _Clock(Callback):
    """When each number of steps was done, and how long had been waited by then."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader
        self.steps: dict[int, tuple[float, float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.setdefault(trainer.global_step, (time.perf_counter(), self.loader.waited))


def _processor_time(dataset: TrainingClips, clips: int) -> float:
    """Seconds of processor time for a clip, all threads together."""
    dataset[0, 0]
    began = _spent()
    for number in range(clips):
        dataset[number // len(dataset), number % len(dataset)]
    return (_spent() - began) / clips


def _spent() -> float:
    """Seconds of processor time of this process and of those that it has waited for, as FFmpeg's are."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
