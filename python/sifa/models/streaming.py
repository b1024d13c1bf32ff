"""A causal classifier one step at a time: the same network, with its past as an explicit state.

A stream feeds the frames of one step and the state, and gets probabilities and the next state. Nothing of the
network is written twice: every SIFA block steps by its own method, and everything else already works on one
step as it does on many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..insertion import Insertion
from ..modules import SIFA, GlobalContext
from ..preprocessing import ClipPreprocessing
from .classifier import VideoClassifier, stack_frames


def mixes_steps(inserted: nn.Module) -> bool:
    """Whether a step of what an inserted module gives depends on other steps of the clip."""
    return not isinstance(inserted, GlobalContext) or inserted.over_time


def find_non_causal(model: nn.Module) -> str | None:
    """The first inserted module that looks at later steps, as ``type at name``; None if none does."""
    for name, module in model.named_modules():
        if not isinstance(module, Insertion):
            continue
        inserted = module.inserted
        is_causal = (
            isinstance(inserted, SIFA) and inserted.frame_shift <= 0 and inserted.offset_from != "clip"
        )
        if mixes_steps(inserted) and not is_causal:
            return f"{type(inserted).__name__} at {name}"
    return None


class StreamingClassifier(nn.Module):
    """Classifies streams step by step: what a streaming artifact computes.

    After every step the probabilities are those of the clip model whose features are averaged over the last
    ``model.num_steps`` steps of the whole stream (over all of them, while there are fewer).

    Args:
        model: a causal classifier (``sifa.create_model(..., streaming=True)``) with the attributes
            ``input_size``, ``crop_fraction``, ``mean`` and ``std``. A copy of it is used, in evaluation mode.

    Attributes:
        stride: frames of one step.
        state_like: for every tensor of the state, an empty tensor (0, ...) of its shape and dtype. These are
            a feature map (N, H, W, C) per SIFA layer, the features of the last steps (N, num_steps, F) in
            float32, and how many of these there are (N,), int64.

    Raises:
        ValueError: the model has the dual branch, or a module that looks ahead.
    """

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        culprit = "the dual branch" if model.head_dual is not None else find_non_causal(model)
        if culprit is not None:
            raise ValueError(
                f"this model cannot be streamed: {culprit} depends on later steps; create it with "
                "streaming=True"
            )
        self.window = model.num_steps
        model = copy.deepcopy(model).eval()
        model.set_num_frames(model.temporal_stride)
        self.stride = model.temporal_stride
        self.stem: nn.Module = Stem(model, max_steps=1)
        self.backbone = model.backbone
        self.head = model.head
        places = [m for m in model.modules() if isinstance(m, Insertion) and isinstance(m.inserted, SIFA)]
        self.state_like = [*_feature_maps(model, places)]
        self.state_like += [torch.empty(0, self.window, model.head.in_features)]
        self.state_like += [torch.empty(0, dtype=torch.int64)]
        # A plain list: they are part of the backbone already.
        self._layers: list[_SteppedSIFA] = []
        for place in places:
            assert isinstance(place.inserted, SIFA)
            layer = _SteppedSIFA(place.inserted)
            place.inserted = layer
            self._layers.append(layer)

    def initial_state(self, streams: int) -> list[Tensor]:
        """Zeros for a number of streams, whose first step is then called with ``first`` set."""
        device = self.head.weight.device
        return [
            torch.zeros(streams, *like.shape[1:], dtype=like.dtype, device=device) for like in self.state_like
        ]

    def forward(self, frames: Tensor, state: list[Tensor], first: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Take one step of N streams.

        Args:
            frames: (N, stride, H, W, 3) uint8 RGB, the next frames of every stream.
            state: what the previous step returned.
            first: (N,) bool: the stream begins with this step, whatever its row of the state holds.

        Returns:
            Probabilities, float32 (N, num_classes), and the next state.
        """
        for layer, pixels in zip(self._layers, state, strict=False):  # the head's tensors follow
            layer.begin(pixels.permute(0, 3, 1, 2).unsqueeze(2), first)
        features = self.backbone(self.stem(frames)).float()
        maps = [layer.end().squeeze(2).permute(0, 2, 3, 1).contiguous() for layer in self._layers]
        recent, count = state[-2], state[-1]
        recent = torch.where(first[:, None, None], 0.0, recent)
        recent = torch.cat([recent[:, 1:], features.unsqueeze(1)], 1)
        count = (torch.where(first, 0, count) + 1).clamp(max=self.window)
        mean = recent.sum(1) / count.unsqueeze(1)
        logits = self.head(mean.to(self.head.weight.dtype))
        return torch.softmax(logits.float(), dim=1), [*maps, recent, count]

    def script_parts(self) -> StreamingClassifier:
        """Script, in place, what looks at its input's sizes and device, so that the rest can be traced.

        The way to TorchScript: the layers get and leave their maps as attributes, which scripting cannot
        follow through a module that is reached twice, and tracing can.
        """
        self.stem = torch.jit.script(self.stem)
        for layer in self._layers:
            layer.step = torch.jit.script(layer.step)
        return self


class Stem(nn.Module):
    """The frames of one or more steps to the backbone's input: checked, preprocessed, stacked."""

    def __init__(self, model: VideoClassifier, max_steps: int) -> None:
        super().__init__()
        self.preprocessing = ClipPreprocessing(model.input_size, model.crop_fraction, model.mean, model.std)
        self.stride = model.temporal_stride
        self.max_steps = max_steps
        self.dtype = model.head.weight.dtype

    def forward(self, frames: Tensor) -> Tensor:
        clip = self.preprocessing(frames)
        given = clip.shape[2]
        steps = given // self.stride
        if steps < 1 or steps > self.max_steps or given != steps * self.stride:
            expected = f"the {self.stride} of one step"
            if self.max_steps > 1:
                expected = f"those of 1 to {self.max_steps} steps, {self.stride} of each"
            raise ValueError(f"frames must be {expected}, got {given}")
        return stack_frames(clip.to(self.dtype), self.stride)


class _SteppedSIFA(nn.Module):
    """A SIFA layer that is shown one frame at a time, in the place of the layer that is shown clips.

    ``begin`` gives it the frame before, and ``end`` takes the new one away: between two steps it holds
    nothing, so the state stays an argument.
    """

    def __init__(self, layer: SIFA) -> None:
        super().__init__()
        self.step: nn.Module = _Step(layer)
        self._memory: Tensor | None = None
        self._first: Tensor | None = None

    def begin(self, memory: Tensor, first: Tensor) -> None:
        self._memory, self._first = memory, first

    def end(self) -> Tensor:
        frame, self._memory, self._first = self._memory, None, None
        assert frame is not None
        return frame

    def forward(self, frame: Tensor) -> Tensor:
        memory, self._memory = self._memory, frame
        return self.step(frame, memory, self._first)


class _Step(nn.Module):
    """``SIFA.step`` as a module, which can be scripted."""

    def __init__(self, layer: SIFA) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, frame: Tensor, memory: Tensor, first: Tensor) -> Tensor:
        return self.layer.step(frame, memory, first)


def _feature_maps(model: VideoClassifier, places: list[Insertion]) -> Iterator[Tensor]:
    """For every place an empty tensor (0, H, W, C), of what is inserted there sees of one step."""
    seen: dict[Insertion, Tensor] = {}
    hooks = [
        place.inserted.register_forward_pre_hook(
            lambda _, args, place=place: seen.__setitem__(place, args[0][:0, :, 0].permute(0, 2, 3, 1))
        )
        for place in places
    ]
    weight = model.head.weight
    with torch.no_grad():
        model(weight.new_zeros(1, 3, model.temporal_stride, *model.input_size))
    for hook in hooks:
        hook.remove()
    for place in places:
        yield torch.empty(seen[place].shape, dtype=seen[place].dtype)
