"""Models by name: the cards that describe them, and the creation of one."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import importlib.resources
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .classifier import VideoClassifier, check_num_classes
from .edge import edge
from .resnet import TINY_DEFAULTS, resnet, sifa_net, tiny
from .streaming import find_non_causal
from .swin import swin
from .variants import SIFA_OPTIONS
from .weights import imagenet_state, load_imagenet, load_own, read_state

REFERENCE = {
    "edge": "skip",
    "residual_saliency": True,
    "global_context": "clip",
    "dual_branch": True,
}
"""What ``reference=True`` sets: the graph of the paper's released code."""


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a model before it is created.

    Attributes:
        name: for :func:`create_model`.
        summary: one sentence.
        build: called with ``num_classes``, ``num_frames`` and the model's options.
        options: these options and their defaults.
        num_classes, num_frames, frame_stride: defaults; a clip is ``num_frames`` frames, ``frame_stride``
            apart.
        input_size: (H, W) in pixels; frames are resized to a short side of ``round(H / crop_fraction)`` and
            cropped.
        crop_fraction, mean, std: see :class:`VideoClassifier`.
        parameters, multiply_adds, attention_multiply_adds: see :class:`Complexity`; with these defaults.
        backbone: timm's name of the image network, for ImageNet weights; None if it is none of timm's.
        streaming: what ``streaming=True`` sets.
        weights: tag of each bundled set of weights and its file in ``sifa/weights``, without the extension.
        streaming_weights: likewise, of those that were trained with ``streaming=True``.
    """

    name: str
    summary: str
    build: Callable[..., VideoClassifier]
    options: Mapping[str, Any]
    num_classes: int
    num_frames: int
    frame_stride: int
    input_size: tuple[int, int]
    crop_fraction: float
    parameters: int
    multiply_adds: int
    attention_multiply_adds: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    backbone: str | None = None
    streaming: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"frame_shift": -1})
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    streaming_weights: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def bundled(self, streaming: bool) -> Mapping[str, str]:
        """The bundled weights of the causal variant, or of the other: neither knows where the other looks."""
        return self.streaming_weights if streaming else self.weights


def _options(build: Callable[..., Any], **other_defaults: Any) -> dict[str, Any]:
    """A builder's own options, then those of SIFA, and their defaults."""
    own = {
        name: parameter.default
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY
        and name not in ("num_classes", "num_frames", "input_size")
    }
    return {**own, **SIFA_OPTIONS, **other_defaults}


def _kinetics(name: str, backbone: str, build: Callable[..., VideoClassifier], **facts: Any) -> ModelCard:
    return ModelCard(
        name=name,
        build=build,
        backbone=backbone,
        num_classes=400,
        **{"frame_stride": 4, "input_size": (224, 224), "crop_fraction": 0.875, "num_frames": 16, **facts},
    )


def _resnet_card(depth: int, *counts: int) -> ModelCard:
    backbone = f"resnet{depth}"
    return _kinetics(
        f"sifa_resnet{depth}",
        backbone,
        functools.partial(resnet, backbone),
        summary=f"SIFA-Net on timm's ResNet-{depth}, for Kinetics-400.",
        options=_options(sifa_net),
        streaming={"frame_shift": -1, "global_context": "frame", "dual_branch": False},
        **dict(zip(_COUNTS, counts, strict=True)),
    )


def _swin_card(size: str, *counts: int) -> ModelCard:
    backbone = f"swin_{size}_patch4_window7_224"
    return _kinetics(
        f"sifa_swin_{size}",
        backbone,
        functools.partial(swin, backbone),
        summary=f"SIFA-Transformer on timm's Swin-{size[0].upper()}, for Kinetics-400.",
        options=_options(swin),
        streaming={"frame_shift": -1, "temporal_conv": False},
        num_frames=64,
        frame_stride=2,
        **dict(zip(_COUNTS, counts, strict=True)),
    )


def _edge_card(name: str, backbone: str, place: tuple[str, str, str | None], *counts: int) -> ModelCard:
    return _kinetics(
        name,
        backbone,
        functools.partial(edge, backbone, *place),
        summary=f"timm's {backbone} with SIFA, for boards of Jetson class.",
        options=_options(edge),
        **dict(zip(_COUNTS, counts, strict=True)),
    )


_COUNTS = ("parameters", "multiply_adds", "attention_multiply_adds")
_CARDS = {
    card.name: card
    for card in (
        ModelCard(
            name="sifa_tiny",
            summary="A narrow ResNet for the bundled motion task and for embedded boards.",
            build=tiny,
            options=_options(sifa_net, **TINY_DEFAULTS),
            num_classes=10,
            num_frames=16,
            frame_stride=1,
            input_size=(112, 112),
            crop_fraction=1.0,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            parameters=1_004_682,
            multiply_adds=224_271_872,
            attention_multiply_adds=3_490_560,
            streaming={"frame_shift": -1, "dual_branch": False},
            weights={"motion": "sifa_tiny"},
            streaming_weights={"motion": "sifa_tiny_streaming"},
        ),
        _resnet_card(18, 20_314_232, 12_105_545_728, 48_771_072),
        _resnet_card(34, 35_332_448, 21_484_126_208, 92_123_136),
        _resnet_card(50, 43_040_928, 23_902_621_696, 92_123_136),
        _resnet_card(101, 63_554_272, 39_012_798_464, 178_827_264),
        _resnet_card(152, 80_389_280, 54_220_189_696, 298_045_440),
        _swin_card("tiny", 28_198_474, 74_384_019_456, 617_766_912),
        _swin_card("small", 49_889_626, 143_559_462_912, 1_007_935_488),
        _swin_card("base", 88_146_248, 251_835_760_640, 1_343_913_984),
        # Before a norm: in the sum over blocks the aggregate, cubic in the features, would only grow.
        _edge_card(
            "sifa_mobilenetv4_small",
            "mobilenetv4_conv_small",
            ("before", "blocks.[23].[135].pw_proj", "blocks.[23].[135].pw_proj.bn"),
            3_360_528,
            1_011_719_424,
            47_416_320,
        ),
        _edge_card(
            "sifa_efficientnet_lite0",
            "efficientnet_lite0",
            ("before", "blocks.[2345].1.conv_pwl", "blocks.[2345].1.bn3"),
            4_298_128,
            1_971_017_600,
            101_606_400,
        ),
        _edge_card(
            "sifa_convnext_atto",
            "convnext_atto",
            ("after", "stages.[123].blocks.[135].conv_dw", None),
            3_651_240,
            2_372_198_400,
            37_255_680,
        ),
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
    input_size: int | Sequence[int] | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    streaming: bool = False,
    reference: bool = False,
    **config: Any,
) -> VideoClassifier:
    """Create a video classifier.

    Args:
        name: one of :func:`list_models`.
        num_classes, num_frames: the card's by default; ``num_frames`` is what the user feeds: a multiple of
            the stem's temporal stride of 4, and at least 8 with the dual branch.
        input_size: height and width in pixels that frames are resized and cropped to, one number for a
            square; the card's by default. Transformers take no other, convolutional networks any.
        pretrained: where the weights come from; None leaves the random initialisation.
            A tag of bundled weights (``"motion"`` for ``sifa_tiny``; with ``streaming=True`` those of the
            causal one);
            the path of a ``.safetensors`` file with a state dict of this model;
            ``"imagenet"``, ``"imagenet:TAG"`` or ``"imagenet:FILE"`` for a start from the image network:
            timm's default weights, those of one of timm's tags, or a file of such weights
            (:func:`sifa.models.weights.load_imagenet`).
        streaming: make a model whose step t depends on the steps up to t only, for streams: looks one frame
            back, and has no clip-wide term.
        reference: make the graph of the paper's released code (SIFA-Net only): ``edge="skip"``,
            ``residual_saliency=True``.
        **config: options of the model: see :func:`sifa.models.resnet.sifa_net`,
            :func:`sifa.models.swin.swin` and :func:`sifa.models.edge.edge`.

    Raises:
        ValueError: unknown name, option or tag, or an option out of its range.
        FileNotFoundError: there is no such file of weights.
        RuntimeError: the file of weights is damaged, or they do not fit; every key that differs is named.
    """
    card = model_card(name)
    for option in config:
        if option not in card.options:
            raise ValueError(
                f"unknown option {option!r} of {name}; known: input_size, streaming, reference, "
                f"{', '.join(card.options)}"
            )
    temporal = config.get("temporal", "sifa")
    if temporal != "sifa" and (unused := [option for option in config if option in SIFA_OPTIONS]):
        raise ValueError(
            f"{', '.join(unused)}: an option of SIFA, which temporal={temporal!r} has no use for"
        )
    presets = [("streaming", card.streaming)] if streaming else []
    presets += [("reference", REFERENCE)] if reference else []
    for preset, values in presets:
        config = _with_preset(config, values, preset, card)
    settings = {
        "num_classes": card.num_classes if num_classes is None else num_classes,
        "num_frames": card.num_frames if num_frames is None else num_frames,
        **card.options,
        **config,
    }
    if temporal != "sifa":
        settings = {option: value for option, value in settings.items() if option not in SIFA_OPTIONS}
    check_num_classes(settings["num_classes"])
    size = _two_sides(card.input_size if input_size is None else input_size)
    if input_size is not None:
        settings["input_size"] = size
    sized = {"input_size": size} if "input_size" in inspect.signature(card.build).parameters else {}
    model = card.build(**{key: v for key, v in settings.items() if key != "input_size"}, **sized)
    if streaming:
        _check_causal(model)
    model.name = card.name
    model.config = json.loads(json.dumps(settings))
    model.input_size = size
    model.crop_fraction = card.crop_fraction
    model.mean = card.mean
    model.std = card.std
    model.frame_stride = card.frame_stride
    model.labels = [f"class_{i}" for i in range(model.num_classes)]
    if pretrained is not None:
        _load(model, card, pretrained, streaming)
    return model


def _two_sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise ValueError(f"input_size must be one or two positive integers, got {size!r}")
    return sides[0], sides[1]


def _with_preset(
    config: dict[str, Any], preset: Mapping[str, Any], name: str, card: ModelCard
) -> dict[str, Any]:
    for option, value in preset.items():
        if option not in card.options:
            raise ValueError(f"{name}=True needs the option {option}, which {card.name} has not")
        if config.get(option, value) != value:
            raise ValueError(f"{name}=True needs {option}={value!r}, got {config[option]!r}: leave it out")
    return {**config, **preset}


def _check_causal(model: VideoClassifier) -> None:
    culprit = find_non_causal(model)
    if culprit is not None:
        raise ValueError(f"streaming=True: {culprit} depends on later steps; choose options without it")


def _load(
    model: VideoClassifier, card: ModelCard, pretrained: str | os.PathLike[str], streaming: bool
) -> None:
    bundled = card.bundled(streaming)
    tags = ", ".join(map(repr, (*bundled, *(["imagenet"] if card.backbone else [])))) or "none"
    expected = f"pretrained must be a tag of {card.name} (it has: {tags}) or the path of a .safetensors file"
    if not isinstance(pretrained, str | os.PathLike):
        raise ValueError(f"{expected}, got {pretrained!r}")
    pretrained = os.fspath(pretrained)
    kind, _, which = pretrained.partition(":")
    if pretrained in bundled:
        folder = importlib.resources.files("sifa") / "weights"
        with importlib.resources.as_file(folder / f"{bundled[pretrained]}.safetensors") as path:
            state = read_state(path)
        labels = json.loads((folder / f"{bundled[pretrained]}.json").read_text())["labels"]
        load_own(model, state, f"the bundled weights {pretrained!r}")
        model.labels = labels
    elif kind == "imagenet":
        if card.backbone is None:
            raise ValueError(
                f"pretrained: the backbone of {card.name} is none of timm's, and has no ImageNet weights"
            )
        state, normalisation = imagenet_state(card.backbone, which)
        load_imagenet(model, state)
        for attribute, value in normalisation.items():
            setattr(model, attribute, value)
    elif Path(pretrained).suffix == ".safetensors":
        load_own(model, read_state(Path(pretrained)), pretrained)
    else:
        raise ValueError(f"{expected}, got {pretrained!r}")
