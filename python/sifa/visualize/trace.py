"""What the SIFA layers of a model do on a clip: taps, weights, saliency, in pixels of the video's frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import VideoClassifier
from ..modules import SIFA
from ..preprocessing import ClipPreprocessing, resize_and_crop
from ..reference import attention_weights, motion_saliency, tap_positions


@dataclass(frozen=True)
class Places:
    """Where pixel `i` of a feature map lies in a frame: at `stride * i + shift`, per axis `(y, x)`."""

    stride: tuple[float, float]
    shift: tuple[float, float]

    def of(self, positions: Tensor, axis: int = 0) -> Tensor:
        """Positions of the feature map as positions of the frame; `axis` is the one that holds `(y, x)`."""
        sizes = [1] * positions.dim()
        sizes[axis] = 2
        stride, shift = torch.tensor(self.stride).view(sizes), torch.tensor(self.shift).view(sizes)
        return positions.cpu().float() * stride + shift


@dataclass(frozen=True)
class Attention:
    """What one SIFA layer did on one clip, in pixels `(y, x)` of the video's frames.

    Attributes:
        layer: the module's name in the model.
        queries: `(2, h, w)`, the place of every pixel of the layer's feature map.
        grid: `(k², 2, h, w)`, where the taps would read without offsets.
        taps: `(k², 2, T, h, w)`, where they read in the neighbouring step's frame.
        weights: `(k², T, h, w)`, averaged over groups; 0 where a tap falls outside the feature map.
        saliency: `(T, h, w)`, the motion saliency, its magnitude averaged over channels.
        neighbours: the step that each of the T steps attends to.
        frames: for each step, the index in the clip of the frame that stands for it, the middle one.
        places: where the feature map lies in the frames.
    """

    layer: str
    queries: Tensor
    grid: Tensor
    taps: Tensor
    weights: Tensor
    saliency: Tensor
    neighbours: list[int]
    frames: list[int]
    places: Places


def sifa_layers(model: VideoClassifier) -> dict[str, SIFA]:
    """The SIFA modules of a model by name. Raises ValueError if there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SIFA)}
    if not layers:
        raise ValueError(f"{model.name} has no SIFA layer")
    return layers


def shown_name(layer: str) -> str:
    """A layer's name without the attribute that every inserted block has."""
    return layer.removesuffix(".inserted")


def choose_layers(model: VideoClassifier, wanted: Sequence[str] = ()) -> list[str]:
    """Names of the SIFA layers that are asked for.

    Args:
        model: a classifier as `sifa.create_model` returns it.
        wanted: for each layer its name, or the number of its stage, the first one in module names
            (`"2"` for `backbone.layer2.1.conv2.inserted`), which stands for the first layer of that stage;
            by default the first layer of every stage.

    Raises:
        ValueError: the model has no such layer or stage.
    """
    names = list(sifa_layers(model))
    stages: dict[str, str] = {}
    for name in names:
        stages.setdefault(_stage(name), name)
    chosen = []
    for entry in wanted or stages:
        name = stages.get(entry, entry)
        if name not in names:
            raise ValueError(
                f"{model.name} has no SIFA layer or stage {entry!r}; it has the stages {', '.join(stages)} "
                f"and the layers {', '.join(names)}"
            )
        if name not in chosen:
            chosen.append(name)
    return chosen


def trace_attention(model: VideoClassifier, frames: Tensor, layer: str | None = None) -> Attention:
    """Run a model on one clip and record what a SIFA layer of it attends to.

    Args:
        model: a classifier as `sifa.create_model` returns it.
        frames: uint8 `(T, H, W, 3)` RGB, as read from a video.
        layer: name of a `sifa.SIFA` module in the model; by default the first one.

    Raises:
        ValueError: the model has no such layer, or the frames do not fit it.
    """
    layers = sifa_layers(model)
    name = next(iter(layers)) if layer is None else layer
    if name not in layers:
        raise ValueError(f"{model.name} has no SIFA layer {name!r}; it has {', '.join(layers)}")
    sifa = layers[name]
    seen: list[Tensor] = []
    hook = sifa.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        with torch.no_grad():
            _, resizing = run(model, frames)
    finally:
        hook.remove()
    clip = seen[0]
    steps, (height, width) = clip.shape[2], clip.shape[3:]
    places = places_in_frame(model, frames, resizing, (height, width))
    with torch.no_grad():
        # The kernel goes from the clip to the offsets in one pass: the saliency is computed again.
        offset = sifa.offset(clip)
        taps = tap_positions(offset, sifa.kernel_size, sifa.dilation)[0]
        grid = tap_positions(torch.zeros_like(offset[:, :, :1]), sifa.kernel_size, sifa.dilation)[0, :, :, 0]
        saliency = motion_saliency(clip, clip, sifa.frame_shift, sifa.edge, sifa.residual_saliency)
        weights = attention_weights(
            clip,
            clip,
            offset,
            sifa.kernel_size,
            sifa.dilation,
            sifa.groups,
            None,
            sifa.frame_shift,
            sifa.edge,
            sifa.softmax,
        )[0].mean(0)
    pixels = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    return Attention(
        layer=name,
        queries=places.of(pixels),
        grid=places.of(grid, 1),
        taps=places.of(taps, 1),
        weights=weights.cpu().float(),
        saliency=saliency[0].abs().mean(0).cpu().float(),
        neighbours=[min(max(t + sifa.frame_shift, 0), steps - 1) for t in range(steps)],
        frames=frames_of_steps(len(frames), steps),
        places=places,
    )


def choose_queries(attention: Attention, count: int = 3) -> tuple[int, list[tuple[int, int]]]:
    """The step and the `count` feature-map pixels `(y, x)` whose taps moved farthest with the most weight.

    The pixels lie apart from each other, and their taps inside the frame where there are such pixels, so
    that the picture can be read.
    """
    score = _movement(attention)
    most = float(score.max()) + 1.0
    low, high = attention.queries.amin((1, 2)), attention.queries.amax((1, 2))
    inside = (attention.taps >= low.view(1, 2, 1, 1, 1)) & (attention.taps <= high.view(1, 2, 1, 1, 1))
    score = torch.where(inside.all(1).all(0), score, score - most)
    for step, neighbour in enumerate(attention.neighbours):
        if neighbour == step:
            score[step] -= 2 * most
    height, width = score.shape[1:]
    step = int(score.flatten(1).topk(min(count, height * width)).values.sum(1).argmax())
    left, chosen = score[step].clone(), []
    apart = max(1, min(height, width) // 3)
    for _ in range(min(count, height * width)):
        y, x = divmod(int(left.argmax()), width)
        if left[y, x] == -torch.inf:
            break
        chosen.append((y, x))
        left[max(0, y - apart + 1) : y + apart, max(0, x - apart + 1) : x + apart] = -torch.inf
    return step, chosen


def queries_at(attention: Attention, points: Sequence[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
    """The step and the feature-map pixels `(y, x)` that show points `(x, y)` of the frame best.

    The pixels are the nearest ones, each once; the step is that in which their taps move farthest with the
    most weight.
    """
    queries = []
    for x, y in points:
        distance = (attention.queries - torch.tensor([float(y), float(x)]).view(2, 1, 1)).norm(dim=0)
        row, column = divmod(int(distance.argmin()), distance.shape[1])
        if (row, column) not in queries:
            queries.append((row, column))
    score = _movement(attention)
    moving = [step for step, neighbour in enumerate(attention.neighbours) if neighbour != step] or [0]
    step = max(moving, key=lambda step: sum(float(score[step, y, x]) for y, x in queries))
    return step, queries


def frames_of_steps(num_frames: int, steps: int) -> list[int]:
    """For each of the steps that a clip of frames becomes the index of the frame that stands for it."""
    stem = num_frames // steps
    return [step * stem + stem // 2 for step in range(steps)]


def run(model: VideoClassifier, frames: Tensor) -> tuple[Tensor, list[tuple[torch.Size, torch.Size, Any]]]:
    """The logits `(classes,)` of a clip, and every module on the way that changed the size of a map.

    The model runs in eval mode and is left as it was; gradients are the caller's choice.

    Raises:
        ValueError: the frames do not fit the model.
    """
    resizing: list[tuple[torch.Size, torch.Size, Any]] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        before, after = inputs[0].shape[-2:], output.shape[-2:]
        if before != after:
            resizing.append((before, after, module))

    sized = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    hooks = [module.register_forward_hook(record) for module in sized]
    preprocessing = _preprocessing(model).to(frames.device)
    training = {module: module.training for module in model.modules()}
    try:
        clip = preprocessing(frames.unsqueeze(0)).to(next(model.parameters()))
        return model.eval()(clip)[0], resizing
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()


def places_in_frame(
    model: VideoClassifier,
    frames: Tensor,
    resizing: list[tuple[torch.Size, torch.Size, Any]],
    size: tuple[int, int],
) -> Places:
    """Where the pixels of a feature map of `size` lie in the frames, through crop and resize.

    Every convolution or pooling on the way that makes the map smaller moves its pixels by its stride,
    kernel and padding; what no such module explains (a space-to-depth reshape, say) is taken to tile its
    input.
    """
    reached, stride, shift = torch.Size(model.input_size), [1.0, 1.0], [0.0, 0.0]
    for before, after, module in resizing:
        if reached == torch.Size(size):
            break
        if before != reached:  # beside the way, as a block's shortcut is
            continue
        reached = after
        for axis in (0, 1):
            kernel, step, padding, dilation = (
                value if isinstance(value, int) else value[axis]
                for value in (
                    module.kernel_size,
                    module.stride,
                    module.padding,
                    getattr(module, "dilation", 1),
                )
            )
            shift[axis] += stride[axis] * ((kernel - 1) * dilation / 2 - padding)
            stride[axis] *= step
    for axis in (0, 1):
        tiles = reached[axis] / size[axis]
        shift[axis] += stride[axis] * (tiles - 1) / 2
        stride[axis] *= tiles
    # Pixel i of a frame covers [i - 1/2, i + 1/2].
    preprocessing = _preprocessing(model)
    height, width = frames.shape[1:3]
    rows, columns, top, left = resize_and_crop(height, width, preprocessing.resize_to, preprocessing.crop_to)
    zoom = (height / rows, width / columns)
    corner = (top, left)
    return Places(
        (stride[0] * zoom[0], stride[1] * zoom[1]),
        (
            (shift[0] + corner[0] + 0.5) * zoom[0] - 0.5,
            (shift[1] + corner[1] + 0.5) * zoom[1] - 0.5,
        ),
    )


def _preprocessing(model: VideoClassifier) -> ClipPreprocessing:
    return ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)


def _movement(attention: Attention) -> Tensor:
    """`(T, h, w)`: how far the taps of each pixel moved, summed with the magnitude of their weights."""
    moved = (attention.taps - attention.grid.unsqueeze(2)).norm(dim=1)
    return (attention.weights.abs() * moved).sum(0)


def _stage(name: str) -> str:
    """The first number in a module's name, which is its stage in every backbone of timm's."""
    number = re.search(r"\d+", name)
    return number[0] if number else name
