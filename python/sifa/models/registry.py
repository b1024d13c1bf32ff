"""Models by name: the cards that describe them, and the creation and loading of one."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib.resources
import json
import pathlib
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .classifier import VideoClassifier
from .resnet import resnet, tiny


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a model before it is created.

    Attributes:
        name: for :func:`create_model`.
        summary: one sentence.
        build: called with ``num_classes``, ``num_frames`` and the model's options.
        num_classes, num_frames, frame_stride: defaults; a clip is ``num_frames`` frames, ``frame_stride``
            apart.
        input_size: (H, W) in pixels; frames are resized to a short side of ``round(H / crop_fraction)`` and
            cropped.
        crop_fraction, mean, std: see :class:`VideoClassifier`.
        weights: tag of each bundled set of weights and its file in ``sifa/weights``, without the extension.
    """

    name: str
    summary: str
    build: Callable[..., VideoClassifier]
    num_classes: int
    num_frames: int
    frame_stride: int
    input_size: tuple[int, int]
    crop_fraction: float
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)


def _resnet_card(depth: int) -> ModelCard:
    return ModelCard(
        name=f"sifa_resnet{depth}",
        summary=f"SIFA in stages 2 to 4 of timm's ResNet-{depth}, for Kinetics-400.",
        build=lambda **options: resnet(f"resnet{depth}", **options),
        num_classes=400,
        num_frames=16,
        frame_stride=4,
        input_size=(224, 224),
        crop_fraction=0.875,
    )


_CARDS = {
    card.name: card
    for card in (
        ModelCard(
            name="sifa_tiny",
            summary="A narrow ResNet for the bundled motion task and for embedded boards.",
            build=tiny,
            num_classes=10,
            num_frames=16,
            frame_stride=1,
            input_size=(112, 112),
            crop_fraction=1.0,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            weights={"motion": "sifa_tiny"},
        ),
        _resnet_card(18),
        _resnet_card(50),
    )
}


def list_models(pattern: str = "*") -> list[str]:
    """The names that :func:`create_model` knows, of those that match an :mod:`fnmatch` pattern, sorted."""
    return sorted(fnmatch.filter(_CARDS, pattern))


def model_card(name: str) -> ModelCard:
    """The card of a model. Raises ValueError, with the closest names, if there is none of that name."""
    if name not in _CARDS:
        close = difflib.get_close_matches(name, _CARDS, n=3)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else f"known: {', '.join(list_models())}"
        )
        raise ValueError(f"no model is called {name!r}; {hint}")
    return _CARDS[name]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    num_frames: int | None = None,
    pretrained: str | None = None,
    **config: Any,
) -> VideoClassifier:
    """Creates a video classifier.

    Args:
        name: one of :func:`list_models`.
        num_classes, num_frames: the card's by default; ``num_frames`` is what the user feeds and a multiple
            of the stem's temporal stride of 4.
        pretrained: tag of bundled weights (``"motion"`` for ``sifa_tiny``), or the path of a safetensors file
            with a state dict of this model. None leaves the random initialisation.
        **config: options of the model: see :func:`sifa.models.resnet.resnet`.

    Raises:
        ValueError: unknown name, option or tag, or an option out of its range.
        FileNotFoundError: there is no such file of weights.
        RuntimeError: the file of weights is damaged, or they do not fit; every key that differs is named.
    """
    card = model_card(name)
    settings = {
        "num_classes": card.num_classes if num_classes is None else num_classes,
        "num_frames": card.num_frames if num_frames is None else num_frames,
        **config,
    }
    if not isinstance(settings["num_classes"], int) or settings["num_classes"] < 1:
        raise ValueError(f"num_classes must be an integer of at least 1, got {num_classes!r}")
    model = card.build(**settings)
    model.name = card.name
    model.config = json.loads(json.dumps(settings))
    model.input_size = card.input_size
    model.crop_fraction = card.crop_fraction
    model.mean = card.mean
    model.std = card.std
    model.frame_stride = card.frame_stride
    model.labels = [f"class_{i}" for i in range(model.num_classes)]
    if pretrained is not None:
        _load(model, card, pretrained)
    return model


def _load(model: VideoClassifier, card: ModelCard, pretrained: str) -> None:
    if pretrained in card.weights:
        folder = importlib.resources.files("sifa") / "weights"
        with importlib.resources.as_file(folder / f"{card.weights[pretrained]}.safetensors") as path:
            state = _read_state(path)
        labels = json.loads((folder / f"{card.weights[pretrained]}.json").read_text())["labels"]
        _load_state(model, state, f"the bundled weights {pretrained!r}")
        model.labels = labels
        return
    path = pathlib.Path(pretrained)
    if path.suffix != ".safetensors":
        tags = ", ".join(map(repr, card.weights)) or "none"
        raise ValueError(
            f"pretrained must be a tag of {card.name} (it has: {tags}) or the path of a .safetensors file, "
            f"got {pretrained!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    _load_state(model, _read_state(path), str(path))


def _read_state(path: pathlib.Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:  # derives from Exception alone
        raise RuntimeError(f"{path} is not a safetensors file: {error}; copy or make it again") from error


def _load_state(model: VideoClassifier, state: dict[str, Tensor], source: str) -> None:
    """Loads a state dict whose keys and shapes are exactly the model's; the error lists all that differ."""
    own = model.state_dict()
    problems = [f"missing: {key}" for key in own if key not in state]
    problems += [f"unexpected: {key}" for key in state if key not in own]
    problems += [
        f"{key}: the model has {tuple(own[key].shape)}, the weights {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if problems:
        raise RuntimeError(f"{source} do not fit {model.name}:\n  " + "\n  ".join(problems))
    model.load_state_dict(state)
