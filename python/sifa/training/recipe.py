"""The recipe: every choice of a training, as a dataclass that jsonargparse reads from YAML and options."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from ..data.augmentation import Augmentation

FILE = "recipe.yaml"
"""Name of the file that a training leaves in its folder, with every choice as it was made."""


@dataclasses.dataclass
class ModelChoice:
    """The network.

    Args:
        name: one of `sifa models`.
        pretrained: where its weights come from: a tag of bundled weights (motion), imagenet, imagenet:TAG,
            imagenet:FILE, a .safetensors file, or the folder of an earlier training. For other classes than
            those, the heads are new. null: random.
        num_frames: frames of a clip; null: the model's own.
        input_size: height and width in pixels; null: the model's own.
        streaming: make it causal, for streams.
        reference: make the graph of the paper's released code (SIFA-Net only).
        options: further options of the model, by name, as in docs/models.md.
    """

    name: str = "sifa_tiny"
    pretrained: str | None = None
    num_frames: int | None = None
    input_size: int | None = None
    streaming: bool = False
    reference: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class OptimizerChoice:
    """The optimizer and its learning rate, which warms up linearly and then falls as a cosine, step by step.

    Args:
        name: SGD with momentum, or AdamW.
        learning_rate: the highest, for a whole batch of `batch_size` clips.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        betas: of AdamW.
        weight_decay: of everything that the next two do not exempt.
        decay_vectors: decay norms and biases, too.
        no_decay: patterns of names of parameters that do not decay.
        warmup_epochs: length of the warm-up.
        warmup_start: the share of the learning rate that it starts with.
        final_learning_rate: what the cosine ends at.
        gradient_clip: the largest norm of the gradient; null: any.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    decay_vectors: bool = True
    no_decay: list[str] = dataclasses.field(default_factory=list)
    warmup_epochs: float = 0.0
    warmup_start: float = 0.01
    final_learning_rate: float = 1e-6
    gradient_clip: float | None = 40.0


@dataclasses.dataclass
class LossChoice:
    """Cross-entropy, summed over the heads of the model.

    Args:
        weight: a factor of the loss.
        label_smoothing: the share of the target that is spread over all classes.
        mixup: alpha of MixUp, on the clips of a batch; 0: none.
        cutmix: alpha of CutMix, likewise. With both, each batch gets one or the other.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclasses.dataclass
class DataChoice:
    """The videos.

    Args:
        train: annotations of the videos to train on: a list, a table or a folder with a folder per class.
        validation: annotations of those that are validated on after each epoch; null: `held_out` of `train`.
        held_out: the share of the videos of each class that is held out; only without `validation`.
        train_split: the split of `train` to use (kinetics: rows; folders: the subfolder).
        validation_split: likewise, of `validation`.
        format: of the annotations: auto, videos, frames, kinetics, something or folders.
        root: the folder that relative paths in the annotations start from; null: the annotations' own.
        labels: a file with the names of the classes; null: what the annotations say.
        template: the names of a video's images, by number from 1, such as {:05d}.jpg; null: all, in order.
        sampling: how a clip is cut out: a window of frames (center) or a frame of each segment (segments).
        frame_stride: distance between the frames of a window; null: the model's own.
        random_clips: learn from a clip at a random place of each video, another in every epoch; false: from
            the one that is tested with, for classes that depend on where a clip begins.
        max_broken: the share of broken videos above which the training ends with an error.
        workers: processes that read videos, for each training process.
    """

    train: str | None = None
    validation: str | None = None
    held_out: float = 0.0
    train_split: str | None = None
    validation_split: str | None = None
    format: str = "auto"
    root: str | None = None
    labels: str | None = None
    template: str | None = None
    sampling: Literal["center", "segments"] = "center"
    frame_stride: int | None = None
    random_clips: bool = True
    max_broken: float = 0.01
    workers: int = 4


@dataclasses.dataclass
class Recipe:
    """Every choice of a training.

    Args:
        output: the folder for checkpoint, logs and model; where it holds a stopped training, that goes on.
        seed: of initialisation, order, augmentation and dropout.
        epochs: passes over the training videos.
        batch_size: clips of an optimizer step, over all processes and parts.
        accumulate: parts in which each process takes its share of a step, to fit into memory.
        precision: 32-true, or bf16-mixed or 16-mixed for autocast.
        compile: compile the model.
        sync_batchnorm: normalise over the clips of all processes (GPUs only).
        ema: decay of an average of the weights that is validated and kept in their place; null: none.
        log_every: optimizer steps between two lines in the logs.
        checkpoint_minutes: time between two checkpoints within an epoch.
        device: auto, cpu or cuda.
        symmetries: none, or motion: whole batches of the bundled motion task are mirrored, turned, reversed
            and inverted at random, and their classes change with them.
        model: the network.
        data: the videos.
        augmentation: what is done to a training clip at random.
        optimizer: the optimizer.
        loss: the loss.
    """

    output: str = "runs/training"
    seed: int = 0
    epochs: int = 10
    batch_size: int = 16
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    sync_batchnorm: bool = False
    ema: float | None = None
    log_every: int = 10
    checkpoint_minutes: float = 30.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    symmetries: Literal["none", "motion"] = "none"
    model: ModelChoice = dataclasses.field(default_factory=ModelChoice)
    data: DataChoice = dataclasses.field(default_factory=DataChoice)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    optimizer: OptimizerChoice = dataclasses.field(default_factory=OptimizerChoice)
    loss: LossChoice = dataclasses.field(default_factory=LossChoice)


MAY_CHANGE = ("output", "log_every", "checkpoint_minutes", "data.workers")
"""The choices that a resumed training may change: no number in it depends on them."""


def list_recipes() -> list[str]:
    """The names of the bundled recipes."""
    folder = importlib.resources.files(__package__) / "recipes"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def read_recipe(name: str | None, overrides: Sequence[str] = ()) -> Recipe:
    """A bundled recipe, or that of a file, with choices changed as on the command line.

    Args:
        name: one of :func:`list_recipes`, or a YAML file; None for the defaults.
        overrides: `--key=value`, with dots into a group: `--data.train=train.txt`.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: a key is unknown, or a value of another type or out of its range.
    """
    parser = make_parser()
    start = [] if name is None else [f"--config={_file(name)}"]
    try:
        found = parser.parse_args([*start, *overrides])
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"recipe {name or 'of defaults'}: {' '.join(str(error).split())}") from error
    recipe = _recipe(parser, found)
    _check(recipe)
    return recipe


def parse_recipe(text: str) -> Recipe:
    """A recipe from the YAML of :func:`write_recipe`."""
    parser = make_parser()
    return _recipe(parser, parser.parse_string(text))


def write_recipe(recipe: Recipe) -> str:
    """A recipe as YAML, from which :func:`read_recipe` reads it again."""
    return make_parser().dump(Namespace(dataclasses.asdict(recipe)), skip_unset=False)


def make_parser() -> ArgumentParser:
    """The command line of a recipe: an option for each choice, and `--config` for a YAML file."""
    parser = ArgumentParser(
        prog="sifa train RECIPE",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
        usage="%(prog)s [--KEY=VALUE ...]",
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file of choices, over those of RECIPE"
    )
    parser.add_class_arguments(Recipe, None)
    return parser


def _recipe(parser: ArgumentParser, found: Namespace) -> Recipe:
    found.pop("config", None)
    return Recipe(**vars(parser.instantiate(found)))


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """The choices that differ, as `key: one, the other`, but for those that may change."""
    flat, flat_other = (_flattened(dataclasses.asdict(r)) for r in (recipe, other))
    return [
        f"{key}: {flat[key]!r}, {flat_other.get(key)!r}"
        for key in flat
        if key not in MAY_CHANGE and flat[key] != flat_other.get(key)
    ]


def _flattened(choices: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in choices.items():
        if isinstance(value, dict) and key != "options":
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _file(name: str) -> Path:
    if name in list_recipes():
        return Path(str(importlib.resources.files(__package__) / "recipes" / f"{name}.yaml"))
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"there is no recipe {name}, bundled or file; bundled: {', '.join(list_recipes())}"
        )
    try:
        Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no recipe: it is no text in UTF-8") from error
    return Path(name)


def _check(recipe: Recipe) -> None:
    """Raise ValueError if a number is out of its range."""
    o, loss, data = recipe.optimizer, recipe.loss, recipe.data
    rules = [
        ("seed", recipe.seed, recipe.seed >= 0, "at least 0"),
        ("epochs", recipe.epochs, recipe.epochs >= 1, "at least 1"),
        ("batch_size", recipe.batch_size, recipe.batch_size >= 1, "at least 1"),
        ("accumulate", recipe.accumulate, recipe.accumulate >= 1, "at least 1"),
        ("ema", recipe.ema, recipe.ema is None or 0 < recipe.ema < 1, "null or between 0 and 1"),
        ("log_every", recipe.log_every, recipe.log_every >= 1, "at least 1"),
        ("checkpoint_minutes", recipe.checkpoint_minutes, recipe.checkpoint_minutes > 0, "above 0"),
        ("data.held_out", data.held_out, 0 <= data.held_out < 1, "at least 0 and below 1"),
        (
            "data.frame_stride",
            data.frame_stride,
            data.frame_stride is None or data.frame_stride >= 1,
            "null or at least 1",
        ),
        ("data.max_broken", data.max_broken, 0 <= data.max_broken <= 1, "0 to 1"),
        ("data.workers", data.workers, data.workers >= 0, "at least 0"),
        ("optimizer.learning_rate", o.learning_rate, o.learning_rate > 0, "above 0"),
        ("optimizer.momentum", o.momentum, 0 <= o.momentum < 1, "at least 0 and below 1"),
        ("optimizer.betas", o.betas, all(0 <= beta < 1 for beta in o.betas), "two of at least 0 and below 1"),
        ("optimizer.weight_decay", o.weight_decay, o.weight_decay >= 0, "at least 0"),
        ("optimizer.warmup_start", o.warmup_start, 0 <= o.warmup_start <= 1, "0 to 1"),
        (
            "optimizer.final_learning_rate",
            o.final_learning_rate,
            0 <= o.final_learning_rate <= o.learning_rate,
            "0 to optimizer.learning_rate",
        ),
        ("optimizer.warmup_epochs", o.warmup_epochs, 0 <= o.warmup_epochs <= recipe.epochs, "0 to epochs"),
        (
            "optimizer.gradient_clip",
            o.gradient_clip,
            o.gradient_clip is None or o.gradient_clip > 0,
            "above 0",
        ),
        ("loss.weight", loss.weight, loss.weight > 0, "above 0"),
        (
            "loss.label_smoothing",
            loss.label_smoothing,
            0 <= loss.label_smoothing < 1,
            "at least 0 and below 1",
        ),
        ("loss.mixup", loss.mixup, loss.mixup >= 0, "at least 0"),
        ("loss.cutmix", loss.cutmix, loss.cutmix >= 0, "at least 0"),
    ]
    for key, value, fits, expected in rules:
        if not fits:
            raise ValueError(f"{key} must be {expected}, got {value!r}: give --{key}=VALUE")
