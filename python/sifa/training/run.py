"""A training from its recipe to the folder with the model: made, resumed, watched and saved."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ..data.annotations import Annotations, read_annotations
from ..data.clips import TrainingClips, ViewClips, collate_clips
from ..data.sampling import draw_seed
from ..models import VideoClassifier, create_model, from_pretrained, model_card
from ..models.classifier import CONFIG_FILE
from ..preprocessing import ClipPreprocessing
from . import checkpoint
from . import recipe as recipes
from .callbacks import Checkpoints, EpochLines
from .loading import (
    TrainingLoader,
    TrainingOrder,
    ValidationLoader,
    ValidationOrder,
    end_workers,
    ignore_signals,
)
from .module import ClassifierTraining
from .processes import Processes, cluster
from .recipe import Recipe

HELD_OUT = "held_out.txt"
"""Name of the list of the videos that a training validated on, in its folder."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training ended with.

    Attributes:
        folder: that of the model.
        annotations: of the videos that were validated on.
        metrics: of the last validation: `val/loss`, `val/top1`, `val/top5`; shares.
        broken: names of the videos that could not be read.
        is_first: whether this process is the one that speaks for all.
    """

    folder: Path
    annotations: Path
    metrics: dict[str, float]
    broken: list[str]
    is_first: bool


def train(recipe: Recipe) -> Result:
    """Train by a recipe, or go on with it where the checkpoint in its folder says.

    The folder gets the recipe, `last.ckpt`, logs of every start (`logs/0`, `logs/1`, …), and at the end the
    model, as `sifa.from_pretrained` reads it.

    Raises:
        FileNotFoundError: annotations, or all their videos, are not where they should be.
        ValueError: the recipe is out of range, or does not fit the data; or the folder holds a training by
            another recipe, with other videos, or by another number of processes; or one that is finished.
        BrokenVideosError: too many videos cannot be read.
        Interrupted: a signal came; what was done is saved.
    """
    processes = Processes.of_environment()
    folder = Path(recipe.output)
    training, held_out = read_videos(recipe)
    torch.manual_seed(draw_seed(recipe.seed))
    model = make_model(recipe, training.labels)
    facts: dict[str, Any] = {
        "recipe": recipes.write_recipe(recipe),
        "model": model.facts(),
        "training": fingerprint(training),
        "held_out": fingerprint(held_out),
        "processes": processes.count,
    }
    position = resume_position(folder, recipe, facts)
    order = TrainingOrder(
        len(training.videos),
        recipe.batch_size,
        recipe.accumulate,
        processes.count,
        processes.rank,
        recipe.seed,
        position or 0,
    )
    loaders = make_loaders(recipe, model, training, held_out, order)
    module = ClassifierTraining(model, recipe, order.steps)
    module.batches = position or 0
    with quiet():
        trainer = make_trainer(recipe, folder, processes, facts)
    if trainer.is_global_zero:
        write_down(folder, facts["recipe"], held_out)
    resumed = folder / checkpoint.FILE if position is not None else None
    with process_group_of_trainer():
        try:
            with quiet():
                trainer.fit(module, *loaders, ckpt_path=resumed, weights_only=True)
        finally:
            # They ignore the signals that end this process, which would wait for them at its end.
            for loader in loaders:
                end_workers(loader)
        broken = of_all_processes([name for loader in loaders for name in loader.dataset.broken()])
    if trainer.is_global_zero:
        model.to("cpu").save_pretrained(folder)
        write_held_out(folder, held_out, broken)
    metrics = {
        name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
    }
    annotations = Path(recipe.data.validation) if recipe.data.validation else folder / HELD_OUT
    return Result(folder, annotations, metrics, broken, trainer.is_global_zero)


@contextlib.contextmanager
def process_group_of_trainer() -> Iterator[None]:
    """Leave the process group that the trainer joins and does not leave, which ends its threads.

    One of gloo's that frees a tensor while Python ends would abort the process, the training being done.
    """
    given = torch.distributed.is_initialized()
    try:
        yield
    finally:
        if torch.distributed.is_initialized() and not given:
            torch.distributed.destroy_process_group()


def of_all_processes(names: list[str]) -> list[str]:
    """The names that any process has, each once."""
    if not torch.distributed.is_initialized():
        return names
    gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(gathered, names)
    return list(dict.fromkeys(name for each in gathered for name in each))


# --- What a training is made of ---------------------------------------------------------------------------


def read_videos(recipe: Recipe) -> tuple[Annotations, Annotations]:
    """The videos to train on, and those that are held out."""
    data = recipe.data
    if data.train is None:
        raise ValueError(
            "a training needs videos: give --data.train=ANNOTATIONS, a list, table or folder of them"
        )
    if (data.validation is None) == (data.held_out == 0):
        raise ValueError(
            "give either --data.validation=ANNOTATIONS or --data.held_out=SHARE of the training videos, to "
            "validate on after each epoch"
        )
    read: dict[str, Any] = {"format": data.format, "root": data.root}
    training = read_annotations(data.train, labels=data.labels, split=data.train_split, **read)
    if data.validation is None:
        return hold_out(training, data.held_out, recipe.seed)
    labels = data.labels or training.labels
    return training, read_annotations(data.validation, labels=labels, split=data.validation_split, **read)


def hold_out(annotations: Annotations, share: float, seed: int) -> tuple[Annotations, Annotations]:
    """Split off a share of the videos of each class, at least one and not all, by their names and the seed.

    Raises:
        ValueError: a class has only one video.
    """
    of_class: dict[int, set[str]] = {}  # a list may name a video twice
    for video in annotations.videos:
        of_class.setdefault(video.label, set()).add(video.name)
    held_out: set[str] = set()
    for label, names in of_class.items():
        if len(names) < 2:
            raise ValueError(
                f"{annotations.labels[label]} has one video in {annotations.source}, and none can be held "
                "out: add videos, or give --data.validation=ANNOTATIONS"
            )
        count = min(max(1, round(share * len(names))), len(names) - 1)
        drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        held_out.update(drawn[:count])
    parts = (
        tuple(video for video in annotations.videos if (video.name in held_out) == wanted)
        for wanted in (False, True)
    )
    training, validation = (dataclasses.replace(annotations, videos=part) for part in parts)
    return training, validation


def fingerprint(annotations: Annotations) -> str:
    """What tells one set of videos from another: their names, classes and order."""
    names = [(video.name, annotations.labels[video.label]) for video in annotations.videos]
    return hashlib.sha256(repr(names).encode()).hexdigest()


def make_model(recipe: Recipe, labels: tuple[str, ...]) -> VideoClassifier:
    """The recipe's network for these classes."""
    choice = recipe.model
    if choice.pretrained is not None and Path(choice.pretrained).is_dir():
        if choice.input_size or choice.streaming or choice.reference or choice.options:
            raise ValueError(
                f"model.pretrained={choice.pretrained} is a folder, which says what its model is: leave "
                "model.input_size, model.streaming, model.reference and model.options out"
            )
        model = from_pretrained(choice.pretrained, num_classes=len(labels), num_frames=choice.num_frames)
        if model.name != choice.name:
            raise ValueError(
                f"{choice.pretrained} holds a {model.name}, and the recipe wants a {choice.name}"
            )
        fit_head(model, labels)
    else:
        # Bundled weights come with their own classes, an image network's with none.
        bundled = choice.pretrained in model_card(choice.name).bundled(choice.streaming)
        model = create_model(
            choice.name,
            num_classes=None if bundled else len(labels),
            num_frames=choice.num_frames,
            input_size=choice.input_size,
            pretrained=choice.pretrained,
            streaming=choice.streaming,
            reference=choice.reference,
            **choice.options,
        )
        if bundled:
            fit_head(model, labels)
    model.labels = list(labels)
    model.sampling = recipe.data.sampling
    model.frame_stride = recipe.data.frame_stride or model.frame_stride
    return model


def fit_head(model: VideoClassifier, labels: Sequence[str]) -> None:
    """Let a trained head tell these classes: the same in another order move, for others it is a new one."""
    if sorted(model.labels) != sorted(labels):
        model.replace_head(len(labels))
        return
    rows = [model.labels.index(label) for label in labels]
    with torch.no_grad():
        for head in (model.head, model.head_dual):
            if head is not None:
                for parameter in head.parameters():  # weight and bias, a row per class
                    parameter.copy_(parameter[rows])


def make_loaders(
    recipe: Recipe, model: VideoClassifier, training: Annotations, held_out: Annotations, order: TrainingOrder
) -> tuple[TrainingLoader, ValidationLoader]:
    """The batches to train on, from the order's position on, and those to validate on."""
    data = recipe.data
    clip: dict[str, Any] = {
        "num_frames": model.num_frames,
        "frame_stride": model.frame_stride,
        "sampling": data.sampling,
        "template": data.template,
        "max_broken": data.max_broken,
    }
    preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
    transform = recipe.augmentation.transform(model.input_size)
    options: dict[str, Any] = {
        "num_workers": data.workers,
        "collate_fn": collate_clips,
        "worker_init_fn": ignore_signals,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": data.workers > 0,
    }
    clips = TrainingClips(
        training, transform=transform, seed=recipe.seed, random_clips=data.random_clips, **clip
    )
    views = ViewClips(held_out, preprocessing=preprocessing, **clip)
    part = recipe.batch_size // (order.processes * recipe.accumulate)
    validation = ValidationOrder(len(views), part, order.processes, order.rank)
    return TrainingLoader(clips, order, **options), ValidationLoader(views, validation, **options)


def accelerator(recipe: Recipe) -> str:
    """What the recipe trains on, by Lightning's name.

    Raises:
        ValueError: it is a GPU, and torch sees none.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; give --device=cpu, or auto")
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    return "gpu" if on_gpu else "cpu"


def make_trainer(recipe: Recipe, folder: Path, processes: Processes, facts: dict[str, Any]) -> Trainer:
    """Lightning's trainer as the recipe wants it."""
    if recipe.sync_batchnorm and accelerator(recipe) != "gpu":
        raise ValueError("sync_batchnorm works on GPUs only: give --sync_batchnorm=false")
    callbacks: list[Callback] = []
    if recipe.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema))
    # Behind the average, so that a checkpoint between two steps holds the average of the last of them, too.
    callbacks.append(Checkpoints(folder / checkpoint.FILE, recipe.checkpoint_minutes, facts))
    on_terminal = sys.stderr.isatty()
    callbacks.append(RichProgressBar(console_kwargs={"stderr": True}) if on_terminal else EpochLines())
    start = len(list((folder / "logs").glob("*")))
    logs: dict[str, Any] = {"save_dir": folder, "name": "logs", "version": str(start)}
    environment = cluster()
    return Trainer(
        accelerator=accelerator(recipe),
        devices=processes.per_node,
        num_nodes=processes.nodes,
        plugins=[] if environment is None else [environment],
        strategy="ddp" if processes.count > 1 else "auto",
        precision=recipe.precision,
        max_epochs=recipe.epochs,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.optimizer.gradient_clip,
        sync_batchnorm=recipe.sync_batchnorm,
        log_every_n_steps=recipe.log_every,
        logger=[CSVLogger(**logs), TensorBoardLogger(**logs)],
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=on_terminal,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def write_down(folder: Path, recipe: str, held_out: Annotations) -> None:
    """Leave the recipe and the list of held-out videos in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / recipes.FILE).write_text(recipe)
    write_held_out(folder, held_out)


def write_held_out(folder: Path, held_out: Annotations, broken: Sequence[str] = ()) -> None:
    """List the videos to evaluate on, without those that were found broken."""
    videos = [video for video in held_out.videos if video.name not in broken]
    (folder / HELD_OUT).write_text("".join(f"{video.path.resolve()} {video.label}\n" for video in videos))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's remarks and advice from the terminal; what matters this package says itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    logger.setLevel(level)


# --- Going on ---------------------------------------------------------------------------------------------


def resume_position(folder: Path, recipe: Recipe, facts: dict[str, Any]) -> int | None:
    """How many batches the training in a folder has used; None if there is none.

    Raises:
        ValueError: it is another training than the recipe's, or a finished one.
    """
    elsewhere = "give --output=FOLDER to train in another, or remove it"
    if (folder / CONFIG_FILE).exists():
        raise ValueError(f"{folder} holds a finished model: {elsewhere}")
    path = folder / checkpoint.FILE
    if not path.exists():
        return None
    saved = checkpoint.read_checkpoint(path)["sifa"]
    changed = recipes.differences(recipes.parse_recipe(saved["recipe"]), recipe)
    if changed:
        raise ValueError(
            f"{folder} holds a training by another recipe (there, here): {'; '.join(changed)}: {elsewhere}"
        )
    for key, what in (("training", "training videos"), ("held_out", "held-out videos")):
        if saved[key] != facts[key]:
            raise ValueError(f"{folder} holds a training with other {what}: {elsewhere}")
    if saved["processes"] != facts["processes"]:
        raise ValueError(
            f"{folder} holds a training by {saved['processes']} processes, and this is one by "
            f"{facts['processes']}: go on with {saved['processes']}, or {elsewhere}"
        )
    return int(saved["batches"])
