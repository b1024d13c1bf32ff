"""A classifier on a window that slides over a stream: what does not depend on the window is computed once.

Up to the first inserted module that looks at other steps (SIFA, a clip-wide context) a step's features are
its own. They are kept as the state, one row per step of the window; a call computes those of the new steps
only, and the rest of the network on the whole window.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..insertion import Insertion
from ..modules import SIFA
from .classifier import VideoClassifier, stack_frames
from .streaming import Stem, mixes_steps


class WindowClassifier(nn.Module):
    """Classifies the last ``model.num_frames`` frames of streams: what a window's artifact computes.

    The first call of a stream takes ``num_frames`` frames, each further one the frames of 1 to ``num_steps``
    steps. The probabilities are those of the clip model on the last ``num_frames`` frames.

    Args:
        model: any classifier (``sifa.create_model``) with the attributes ``input_size``, ``crop_fraction``,
            ``mean`` and ``std``. A copy of it is used, in evaluation mode.

    Attributes:
        stride: frames of one step.
        state_like: a list of one empty tensor, (0, num_steps, ...), of the shape and dtype of the state: what
            the backbone's first block that looks at other steps is given, for every step of the window.

    Raises:
        ValueError: the backbone cannot be cut before that block: not all that the block and those behind it
            see goes through it, as one tensor, once.
    """

    def __init__(self, model: VideoClassifier) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval()
        self.stride = model.temporal_stride
        self.stem: nn.Module = Stem(model, model.num_steps)
        self.model = model
        window, features = _split(model)
        self._window = [window]  # a plain list: it is part of the backbone already
        self.state_like = [features.new_empty(0, *features.shape[1:], device="cpu")]

    def forward(self, frames: Tensor, state: list[Tensor], first: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Move the windows of N streams on.

        Args:
            frames: (N, F, H, W, 3) uint8 RGB, the next frames of every stream, of whole steps; all
                ``num_frames`` of a window for streams that begin.
            state: what the previous call returned; anything of its shape for streams that begin.
            first: (N,) bool, as for :class:`StreamingClassifier`; what it says is in the frames already.

        Returns:
            Probabilities, float32 (N, num_classes), and the next state.
        """
        (window,) = self._window
        window.begin(state[0])
        heads = self.model.heads_of(self.model.backbone(self.stem(frames)))
        return torch.softmax(self.model.merge_heads(heads).float(), dim=1), [window.end()]

    def script_parts(self) -> WindowClassifier:
        """Script, in place, what looks at its input's sizes and device, so that the rest can be traced.

        See :meth:`StreamingClassifier.script_parts`.
        """
        self.stem = torch.jit.script(self.stem)
        self._window[0].join = torch.jit.script(self._window[0].join)
        for place in self.model.modules():
            if isinstance(place, Insertion) and isinstance(place.inserted, SIFA):
                place.inserted = torch.jit.script(place.inserted)
        return self


class _Window(nn.Module):
    """A block of the backbone that is shown features of the new steps, and sees those of the whole window.

    ``begin`` gives it the features of the window before, and ``end`` takes those of the new one away: between
    two calls it holds nothing.
    """

    def __init__(self, block: nn.Module, num_steps: int, channels_last: bool) -> None:
        super().__init__()
        self.block = block
        self.join: nn.Module = _Join(num_steps, channels_last)
        self._features: Tensor | None = None

    def begin(self, features: Tensor) -> None:
        self._features = features

    def end(self) -> Tensor:
        features, self._features = self._features, None
        assert features is not None
        return features

    def forward(self, x: Tensor) -> Tensor:
        folded, self._features = self.join(x, self._features)
        return self.block(folded)


class _Join(nn.Module):
    """Features of the new steps, (N * F, ...), and of the last window, (N, num_steps, ...), to the new one's.

    Returned folded, (N * num_steps, ...), as the backbone has them, and as the next state. ``channels_last``:
    the backbone's are maps (N * F, C, H, W) in channels-last memory, the state's (N, num_steps, H, W, C).
    """

    def __init__(self, num_steps: int, channels_last: bool) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.channels_last = channels_last

    def forward(self, new: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        if self.channels_last:
            new = new.permute(0, 2, 3, 1)
        steps = new.shape[0] // last.shape[0]
        new = new.unflatten(0, [last.shape[0], steps])
        # Not `cat([last[:, steps:], new], 1)`, of which AOTInductor makes something else (torch 2.14), and
        # not `contiguous()`, which binds an exported program to batches of more than one.
        window = torch.cat([last, new], 1).narrow(1, steps, self.num_steps)
        window = window.clone(memory_format=torch.contiguous_format)
        folded = window.flatten(0, 1)
        if self.channels_last:
            folded = folded.permute(0, 3, 1, 2)
        return folded, window


def _split(model: VideoClassifier) -> tuple[_Window, Tensor]:
    """Put a ``_Window`` where the backbone first looks at other steps; with a state (1, num_steps, ...).

    That is the outermost block with such a module in it, a sequence or list of blocks being none. In a
    backbone without one it is behind the last block.

    Raises:
        ValueError: see :class:`WindowClassifier`.
    """
    first = None
    for name, module in model.backbone.named_modules():
        if isinstance(module, Insertion) and not mixes_steps(module.inserted):
            module.num_steps = 1  # so that it takes any number of steps
        elif isinstance(module, Insertion) and first is None:
            first = name
    if first is None:
        model.backbone = nn.Sequential(model.backbone, nn.Identity())
        first = "1"
    path = first.split(".")
    depth = 1
    while _is_sequence(model.backbone.get_submodule(".".join(path[:depth]))):
        depth += 1
    place = ".".join(path[:depth])
    block = model.backbone.get_submodule(place)

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, 3, model.num_frames, *model.input_size, generator=generator)
    clip = clip.to(model.head.weight)
    with torch.no_grad():
        expected = model(clip)
    hook.remove()
    if len(calls) != 1 or calls[0][1] or len(calls[0][0]) != 1 or not isinstance(calls[0][0][0], Tensor):
        raise _cannot_be_cut(place)
    features: Tensor = calls[0][0][0]
    channels_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        features = features.permute(0, 2, 3, 1)
    state = features.unsqueeze(0)
    window = _Window(block, model.num_steps, channels_last)
    model.backbone.set_submodule(place, window)

    # The last step after a window that ends before it: the same features, and the same answer.
    window.begin(torch.cat([state[:, :1], state[:, :-1]], 1))
    last = stack_frames(clip[:, :, -model.temporal_stride :], model.temporal_stride)
    try:
        with torch.no_grad():
            pairs = [(model.merge_heads(model.heads_of(model.backbone(last))), expected)]
            pairs.append((window.end(), state))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _cannot_be_cut(place) from error
    bound = torch.finfo(clip.dtype).eps ** 0.5  # half of the digits
    if not all((here - there).abs().max() <= bound * (1 + there.abs().max()) for here, there in pairs):
        raise _cannot_be_cut(place)
    return window, state


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module only holds blocks, each of which is given what the one before it gives."""
    if isinstance(module, nn.ModuleList):
        return True
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _cannot_be_cut(place: str) -> ValueError:
    return ValueError(
        f"this model cannot slide as a window: not everything goes through backbone.{place} once, as one "
        "tensor; export it as a clip, which slides too, computed whole"
    )
