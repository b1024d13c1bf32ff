"""Insertion of SIFA, and of other modules of clips, at named places of an image backbone.

The backbone runs on the frames of clips, folded into its batch, and keeps its own forward: the module at
each place is replaced by a wrapper that shows its input (or its output) to a module of clips, such as
:class:`sifa.SIFA`, without a copy where the layout allows it.
"""

import difflib
import fnmatch
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from .modules import SIFA

LAYOUTS = ("NCHW", "NHWC", "NLC")


class Insertion(nn.Module):
    """A backbone's module with a module of clips before or after it; called as the first is.

    Features are folded, (N * num_steps, C, H, W), (N * num_steps, H, W, C) or tokens (N * num_steps,
    prefix_tokens + H * W, C): see ``layout``. Called with anything else it raises ValueError.

    Args:
        module: the backbone's module.
        inserted: called with a view (N, C, num_steps, H, W) of the folded features; keeps their shape.
        num_steps: consecutive entries of the batch that form one clip.
        before: whether ``inserted`` sees the module's input rather than its output.
        layout: of the folded features, "NCHW", "NHWC" or "NLC" (tokens).
        prefix_tokens: leading tokens of "NLC" that belong to no pixel and pass untouched.
        grid: height and width of the token grid of "NLC"; other token counts are laid out with its aspect
            ratio.
    """

    before: Final[bool]
    layout: Final[str]

    def __init__(
        self,
        module: nn.Module,
        inserted: nn.Module,
        num_steps: int,
        before: bool,
        layout: str,
        prefix_tokens: int = 0,
        grid: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.module = module
        self.inserted = inserted
        self.num_steps = num_steps
        self.before = before
        self.layout = layout
        self.prefix_tokens = prefix_tokens
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Run both modules in their order."""
        if self.before:
            return self.module(self.on_clips(x))
        return self.on_clips(self.module(x))

    def on_clips(self, x: Tensor) -> Tensor:
        """Run ``inserted`` on folded features (see the class); the result has their shape.

        Raises:
            ValueError: another rank, a batch that ``num_steps`` does not divide, or a number of tokens that
                fills no grid of the stated shape.
        """
        rank = 3 if self.layout == "NLC" else 4
        if x.dim() != rank:
            raise ValueError(
                f"insertion: expected {self.layout} features of rank {rank}, got {list(x.shape)}"
            )
        steps = self.num_steps
        if x.shape[0] % steps != 0:
            raise ValueError(
                f"insertion: expected clips of {steps} steps folded into the batch, got a batch of "
                f"{x.shape[0]}; feed whole clips, or set another number with sifa.insertion.set_num_steps"
            )
        # Not `x.shape[0] // steps`, which a trace holds as tensors, on a GPU the GPU's: reading their
        # quotient waits for it, which no CUDA graph can.
        if self.layout == "NCHW":
            clip = x.unflatten(0, [-1, steps]).permute(0, 2, 1, 3, 4)
            return self.inserted(clip).permute(0, 2, 1, 3, 4).flatten(0, 1)
        if self.layout == "NHWC":
            clip = x.unflatten(0, [-1, steps]).permute(0, 4, 1, 2, 3)
            return self.inserted(clip).permute(0, 2, 3, 4, 1).flatten(0, 1)
        tokens = x.shape[1] - self.prefix_tokens
        height = int(math.sqrt(tokens * self.grid[0] / self.grid[1]) + 0.5)
        width = int(math.sqrt(tokens * self.grid[1] / self.grid[0]) + 0.5)
        if height * width != tokens:
            raise ValueError(
                f"insertion: expected a token grid shaped like {self.grid[0]}x{self.grid[1]}, "
                f"which {tokens} tokens (after {self.prefix_tokens} prefix tokens) do not fill"
            )
        grid = [height, width]
        pixels = x[:, self.prefix_tokens :].unflatten(1, grid).unflatten(0, [-1, steps])
        attended = (
            self.inserted(pixels.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        )
        if self.prefix_tokens == 0:
            return attended
        return torch.cat([x[:, : self.prefix_tokens], attended], 1)

    def extra_repr(self) -> str:
        return f"num_steps={self.num_steps}, before={self.before}, layout={self.layout!r}"


class InsertionWithArguments(Insertion):
    """:class:`Insertion` around a module that takes further arguments, which are forwarded to it.

    TorchScript knows no ``*args``: scripted, it takes and passes on one argument. Where the backbone calls
    the module with more (``attn`` of a vision transformer), insert at a neighbour that takes one (``norm1``,
    ``mlp``) to script it. ``torch.jit.script`` puts the scripted form into the model that it is given too: to
    go on with the eager one, script a copy, as ``sifa export`` does.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run ``inserted`` on ``x`` (or on the output) and the module with all the arguments."""
        if self.before:
            return self.module(self.on_clips(x), *args, **kwargs)
        return self.on_clips(self.module(x, *args, **kwargs))

    def __prepare_scriptable__(self) -> Insertion:
        scriptable = Insertion(
            self.module,
            self.inserted,
            self.num_steps,
            self.before,
            self.layout,
            self.prefix_tokens,
            self.grid,
        )
        scriptable.training = self.training  # not train(), which would change the shared modules too
        return scriptable


def insert(
    backbone: nn.Module,
    where: str | Sequence[str],
    num_steps: int,
    position: str = "before",
    layout: str = "auto",
    *,
    example: Tensor | None = None,
    **sifa_config: Any,
) -> nn.Module:
    """Insert SIFA into an image backbone, at modules given by name.

    The backbone is changed in place and then runs on clips whose ``num_steps`` frames are consecutive entries
    of its batch. Load the backbone's own weights before: the wrapped modules' parameters are renamed
    (``conv3.weight`` becomes ``conv3.module.weight``). The channels at each place are found by running the
    backbone once on ``example``.

    Args:
        backbone: any module that takes one batch of images.
        where: names as in ``backbone.named_modules()``, or patterns of :mod:`fnmatch` over them
            (``"layer[234].1.conv3"``, ``"blocks.*.mlp"``), or several of either.
        num_steps: frames per clip as the backbone sees them.
        position: ``"before"`` or ``"after"`` the named modules.
        layout: of the features there: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` (tokens; the backbone's
            ``num_prefix_tokens`` leading ones pass untouched), or ``"auto"``: three dimensions are tokens,
            and of four dimensions the two equal ones are height and width.
        example: (num_steps, channels, H, W) input of the backbone, H = W for ``layout="auto"``; by default
            zeros of the size that timm states for the backbone, 224x224 without one.
        **sifa_config: arguments of :class:`sifa.SIFA` other than ``channels``.

    Returns:
        ``backbone``.

    Raises:
        ValueError: a name or pattern that matches nothing, an argument out of range, features that are not
            images or tokens, or a layout that the example does not tell.
        RuntimeError: the backbone does not run on ``example``.

    Source: Long et al., "Stand-Alone Inter-Frame Attention in Video Models", CVPR 2022.
    """
    return insert_module(
        backbone,
        where,
        num_steps,
        lambda channels: SIFA(channels, **sifa_config),
        position,
        layout,
        example=example,
    )


def insert_module(
    backbone: nn.Module,
    where: str | Sequence[str],
    num_steps: int,
    make: Callable[[int], nn.Module],
    position: str = "before",
    layout: str = "auto",
    *,
    example: Tensor | None = None,
) -> nn.Module:
    """Insert modules of clips into an image backbone: :func:`insert` for any of them.

    Args:
        make: returns a module from (N, C, num_steps, H, W) to the same shape, given C.
        backbone, where, num_steps, position, layout, example: see :func:`insert`.
    """
    if position not in ("before", "after"):
        raise ValueError(f'insert: position must be "before" or "after", got {position!r}')
    if layout not in (*LAYOUTS, "auto"):
        raise ValueError(f"insert: layout must be one of {', '.join(LAYOUTS)} or auto, got {layout!r}")
    _check_num_steps(num_steps)
    names = _matching_names(backbone, [where] if isinstance(where, str) else list(where))
    features = _features_at(
        backbone, names, position, _default_example(backbone, num_steps) if example is None else example
    )

    # All are made before the first takes its place: where one is refused, the backbone is as it was.
    insertions = {}
    for name in names:
        found = features[name]
        place = f"{position} {name!r}"
        there = _layout_of(found, place) if layout == "auto" else layout
        if found.dim() != (3 if there == "NLC" else 4):
            raise ValueError(
                f"insert: features {place} must have the rank of {there}, got {tuple(found.shape)}"
            )
        channels = found.shape[1] if there == "NCHW" else found.shape[-1]
        prefix_tokens, grid = _token_grid(backbone, found, place) if there == "NLC" else (0, (1, 1))
        module = backbone.get_submodule(name)
        module_of_clips = make(channels).to(found.device, found.dtype).train(module.training)
        wrapper = InsertionWithArguments if _takes_further_arguments(module) else Insertion
        inserted = wrapper(
            module, module_of_clips, num_steps, position == "before", there, prefix_tokens, grid
        )
        inserted.training = module.training  # not train(), which would change the module's parts too
        insertions[name] = inserted
    # From the inside out: once a module is wrapped, what it holds has another name.
    for name in reversed(names):
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, insertions[name])
    return backbone


def set_num_steps(backbone: nn.Module, num_steps: int) -> None:
    """Change the number of steps per clip of every insertion. Raises ValueError if it is below 1."""
    _check_num_steps(num_steps)
    for module in backbone.modules():
        if isinstance(module, Insertion):
            module.num_steps = num_steps


def _check_num_steps(num_steps: int) -> None:
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be an integer of at least 1, got {num_steps!r}")


def _matching_names(backbone: nn.Module, where: list[str]) -> list[str]:
    """Names of modules that match any entry, in the backbone's order, less what is wrapped already."""
    wrapped = tuple(f"{name}." for name, module in backbone.named_modules() if isinstance(module, Insertion))
    names = [name for name, _ in backbone.named_modules() if name and not name.startswith(wrapped)]
    if not where:
        raise ValueError("insert: where must name at least one module, got none")
    for pattern in where:
        if not fnmatch.filter(names, pattern):
            close = difflib.get_close_matches(pattern, names, n=3)
            hint = (
                f"did you mean {' or '.join(map(repr, close))}?"
                if close
                else "see named_modules() for the names"
            )
            raise ValueError(f"insert: no module of {type(backbone).__name__} matches {pattern!r}; {hint}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in where)]


def _default_example(backbone: nn.Module, num_steps: int) -> Tensor:
    convolution = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if convolution is None else convolution.in_channels
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if size is None:
        size = getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]
    parameter = next(backbone.parameters(), torch.empty(0))
    return torch.zeros(num_steps, channels, *size, device=parameter.device, dtype=parameter.dtype)


def _features_at(backbone: nn.Module, names: list[str], position: str, example: Tensor) -> dict[str, Tensor]:
    """The tensor before or after each named module, from one run of the backbone in evaluation mode."""
    found: dict[str, Any] = {}
    hooks = []
    for name in names:
        module = backbone.get_submodule(name)
        if position == "before":
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: found.__setitem__(name, args[0] if args else None)
                )
            )
        else:
            hooks.append(
                module.register_forward_hook(
                    lambda _, args, output, name=name: found.__setitem__(name, output)
                )
            )
    training = {module: module.training for module in backbone.modules()}
    try:
        with torch.no_grad():
            backbone.eval()(example)
    except Exception as error:
        raise RuntimeError(
            f"insert: the backbone does not run on an input of shape {tuple(example.shape)} ({error}); "
            "pass example=, a batch of num_steps images that it takes"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    for name in names:
        if name not in found:
            raise ValueError(
                f"insert: module {name!r} was not called when the backbone ran; choose one that is"
            )
        if not isinstance(found[name], Tensor):
            raise ValueError(
                f"insert: features {position} {name!r} must be one tensor, got {type(found[name]).__name__}; "
                "choose a module whose first argument (or whole output) is the feature map"
            )
    return found


def _layout_of(features: Tensor, place: str) -> str:
    if features.dim() == 3:
        return "NLC"
    if features.dim() != 4:
        raise ValueError(
            f"insert: features {place} must be images (rank 4) or tokens (rank 3), got "
            f"{tuple(features.shape)}"
        )
    _, a, b, c = features.shape
    if (a == b) == (b == c):
        raise ValueError(
            f"insert: the shape {tuple(features.shape)} {place} does not tell its layout; say layout= "
            f"one of {', '.join(LAYOUTS)}"
        )
    return "NHWC" if a == b else "NCHW"


def _token_grid(backbone: nn.Module, tokens: Tensor, place: str) -> tuple[int, tuple[int, int]]:
    """Number of prefix tokens, and the grid's height and width: what the backbone states, or a square."""
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    count = tokens.shape[1] - prefix
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == count:
        return prefix, (int(grid[0]), int(grid[1]))
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        raise ValueError(
            f"insert: {tokens.shape[1]} tokens {place} less {prefix} prefix tokens form no square grid, "
            "and the backbone has no patch_embed.grid_size of that many"
        )
    return prefix, (side, side)


def _takes_further_arguments(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return len(parameters) > 1 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
