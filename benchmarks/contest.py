"""Who takes part in a case of the benchmark, with which inputs, and whether all compute the same."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable

import formulations
import sifa
import torch
from cases import (
    BLOCK_RIVALS,
    COMPILED,
    COMPILED_BLOCK,
    COMPILED_TORCH_BLOCK,
    DEFORM,
    FLEX,
    GRID,
    REFERENCE,
    RIVALS,
    TORCH_BLOCK,
    Case,
)
from ceilings import last_level_cache_bytes
from floors import Corners, Work, attention_work, block_work
from measuring import CpuClock, CudaClock, progress
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

OPERATOR, ZERO, ONE_THREAD = "operator", "operator, zero offsets", "operator, 1 thread"
DETERMINISTIC = "operator, deterministic"  # only the backward on a GPU has two ways
FORWARD, BOTH = PASSES = ("forward", "forward and backward")
# Relative to the largest value. The other formulations round their samples to the dtype of the features.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}
# Relative in the Euclidean norm. Offsets that a block rounded otherwise put some samples on the other side of
# a whole pixel, where the gradient jumps.
BLOCK_TOLERANCES = {"float32": 5e-3, "bfloat16": 0.3, "float16": 0.05}
# Samples (elements times k²) of a clip up to which the reference is the judge; it needs 10 times the memory.
JUDGED_BY_REFERENCE = 40_000_000
# What returns sooner is called several times in a round.
SHORT_CALL, SHORT_CALLS = 0.02, 5
# A rival whose call takes longer than this is given up.
LONGEST_CALL = 20.0


class Problem:
    """The inputs of some contestants: leaves that gradients are taken of, and the gradient of the output.

    ``rewrite`` makes the caches what the layers around would have made them; ``next`` gives the inputs of the
    next call, other copies of them with ``num_copies``.
    """

    def __init__(self, leaves: tuple[Tensor, ...], gradient: Tensor, num_copies: int = 1) -> None:
        self.gradient = gradient
        self._sources = (*(leaf.detach().clone() for leaf in leaves), gradient.clone())
        copies = [leaves, *([tuple(map(fresh_leaf, leaves)) for _ in range(num_copies - 1)])]
        self._copies = [(each, gradient if i == 0 else gradient.clone()) for i, each in enumerate(copies)]
        self._turn = 0

    def rewrite(self, backward: bool) -> None:
        """Write the output's gradient, if there is a backward, and then the inputs, with what they hold."""
        leaves, gradient = self._copies[0]
        *sources, of_gradient = self._sources
        with torch.no_grad():
            if backward:
                gradient.copy_(of_gradient)
            for leaf, source in zip(leaves, sources, strict=True):
                leaf.copy_(source)

    def next(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """The leaves and the output's gradient of the next call."""
        self._turn = (self._turn + 1) % len(self._copies)
        return self._copies[self._turn]


def fresh_leaf(tensor: Tensor) -> Tensor:
    """A copy that gradients are taken of."""
    return tensor.detach().clone().requires_grad_()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something that is timed: a function of its problem's leaves."""

    function: Callable[..., Tensor]
    problem: Problem
    dtype: str
    threads: int | None = None
    deterministic: bool = False

    def run(self, backward: bool) -> list[Tensor]:
        """The output; with ``backward`` also the gradients of the leaves."""
        leaves, gradient = self.problem.next()
        if not backward:
            with torch.no_grad():
                return [self.function(*(leaf.detach() for leaf in leaves))]
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            output = self.function(*leaves)
            return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]
        finally:
            torch.use_deterministic_algorithms(False)


class Contest:
    """The contestants of one case, ready to run."""

    def __init__(self, case: Case, device: str, cold: bool = False) -> None:
        self.case, self.device, self.cold = case, device, cold
        self.contestants: dict[str, Contestant] = {}
        self.reasons: dict[str, str] = {}  # by contestant, or "contestant/pass", why it is not measured
        torch.compiler.reset()
        if case.kind == "block":
            self._add_blocks()
        else:
            self._add_formulations()

    def _random(self, channels: int, dtype: str, seed: int) -> Tensor:
        batch, _, steps, height, width = self.case.shape
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(batch, channels, steps, height, width, generator=generator)
        values = values.contiguous(memory_format=torch.channels_last_3d)
        return values.to(self.device, getattr(torch, dtype))

    def _num_copies(self, num_bytes: int) -> int:
        return 2 + 2 * last_level_cache_bytes(self.device) // num_bytes if self.cold else 1

    def _problem(self, dtype: str, sigma: float) -> Problem:
        case = self.case
        clip = self._random(case.channels, dtype, 0)
        # In float32 beside every dtype, a thousandth of a pixel from whole ones, where the gradient jumps.
        offset = sigma * self._random(2 * case.kernel_size**2, "float32", 1)
        if sigma > 0:
            offset = offset.floor() + (offset - offset.floor()).clamp(1e-3, 1 - 1e-3)
        leaves = clip.requires_grad_(), offset.requires_grad_()
        return Problem(leaves, self._random(case.channels, dtype, 2), self._num_copies(clip.nbytes))

    def _add_formulations(self) -> None:
        case = self.case
        problem = self._problem(case.dtype, case.sigma)
        self.offset = problem.next()[0][1].detach()
        if case.kind == "softmax":
            operator, self.judge = formulations.operator_with_softmax, formulations.plain_with_softmax
        else:
            operator, self.judge = formulations.operator, formulations.plain
        self.contestants[OPERATOR] = Contestant(operator, problem, case.dtype)
        if case.variants:
            for dtype in ("bfloat16", "float16"):
                variant = self._problem(dtype, case.sigma)
                self.contestants[f"{OPERATOR}, {dtype}"] = Contestant(operator, variant, dtype)
            self.contestants[ZERO] = Contestant(operator, self._problem(case.dtype, 0.0), case.dtype)
            if self.device == "cpu" and torch.get_num_threads() > 1:
                self.contestants[ONE_THREAD] = Contestant(operator, problem, case.dtype, threads=1)
            if self.device != "cpu":
                self.contestants[DETERMINISTIC] = Contestant(
                    operator, problem, case.dtype, deterministic=True
                )
        functions = {
            GRID: formulations.grid_sampled,
            COMPILED: torch.compile(formulations.grid_sampled, dynamic=False),
            DEFORM: formulations.deform_convolved,
            REFERENCE: self.judge,
        }
        if FLEX in case.rivals:
            mask = formulations.neighbourhoods(case.height, case.width, case.kernel_size, self.device)
            attend = torch.compile(flex_attention, dynamic=False)
            functions[FLEX] = functools.partial(formulations.flex_attended, mask=mask, attend=attend)
        for name in case.rivals:
            self.contestants[name] = Contestant(functions[name], problem, case.dtype)
        for name in set(RIVALS) - set(case.rivals):
            if name == FLEX and case.kind != "softmax":
                self.reasons[name] = "FlexAttention has a softmax and a regular grid: see the cases softmax-…"
            elif case.kind == "softmax" and name != FLEX:
                self.reasons[name] = "written without a softmax: see the other cases"
            else:
                self.reasons[name] = "left out to bound the time"
        if case.kind == "softmax" and self.device == "cpu":
            self.reasons[f"{FLEX}/{BOTH}"] = "FlexAttention has no backward on the CPU"

    def _add_blocks(self) -> None:
        case = self.case
        dtype = getattr(torch, case.dtype)
        torch.manual_seed(0)
        block = sifa.SIFA(case.channels, kernel_size=case.kernel_size).to(self.device)
        block.to(memory_format=torch.channels_last)
        clip = self._random(case.channels, case.dtype, 0)
        with torch.no_grad():  # offsets of the wanted spread
            block.conv_offset.weight.normal_()
            block.conv_offset.weight *= case.sigma / block.offset(clip.float()).std()
            block.to(dtype)
            self.offset = block.offset(clip).float()
        rival = formulations.PlainBlock(case.channels, case.kernel_size).to(self.device, dtype)
        rival.conv_offset.weight = block.conv_offset.weight
        leaves = clip.requires_grad_(), block.conv_offset.weight
        # Copies would need blocks of their own for their weights: the block is always measured warm.
        problem = Problem(leaves, self._random(case.channels, case.dtype, 2))
        functions = {
            OPERATOR: block,
            TORCH_BLOCK: rival,
            COMPILED_BLOCK: torch.compile(block, dynamic=False),
            COMPILED_TORCH_BLOCK: torch.compile(rival, dynamic=False),
        }
        exact = formulations.PlainBlock(case.channels, case.kernel_size).to(self.device, torch.float64)

        def judge(clip: Tensor, weight: Tensor) -> Tensor:
            return torch.func.functional_call(exact, {"conv_offset.weight": weight}, (clip,))

        self.judge = judge
        for name in (OPERATOR, *case.rivals):
            module = functions[name]
            self.contestants[name] = Contestant(
                lambda clip, _, module=module: module(clip), problem, case.dtype
            )
        for name in set(BLOCK_RIVALS) - set(case.rivals):
            self.reasons[name] = "left out to bound the time"

    def measured(self, name: str, which: str) -> bool:
        """Whether a contestant takes part in a pass."""
        return not ({name, f"{name}/{which}"} & self.reasons.keys())

    def reason(self, name: str, which: str) -> str:
        """Why a contestant does not take part in a pass."""
        return self.reasons.get(name) or self.reasons[f"{name}/{which}"]

    def check(self) -> str:
        """Stop unless all compute the same, and leave out who cannot; returns what they are compared with.

        Compared is the last clip, which does not depend on the others; of the block, whose weight's gradient
        does, all.
        """
        case = self.case
        clips = slice(None if case.kind == "block" else -1, None)
        num_samples = math.prod(case.shape[1:]) * case.kernel_size**2
        by_reference = num_samples <= JUDGED_BY_REFERENCE or case.kind == "block"
        judge = self.judge if by_reference else self.contestants[OPERATOR].function
        exact: dict[Problem, list[Tensor]] = {}
        for name, contestant in self.contestants.items():
            for which in PASSES:
                if not self.measured(name, which):
                    continue
                progress(f"{case.name}: checking {name}, {which}")
                problem = contestant.problem
                if problem not in exact:
                    leaves, gradient = problem.next()
                    doubles = tuple(leaf.detach()[clips].double().requires_grad_() for leaf in leaves)
                    expert = Contestant(judge, Problem(doubles, gradient[clips].double()), "float64")
                    exact[problem] = expert.run(backward=True)
                start = time.perf_counter()
                try:
                    actual = contestant.run(which == BOTH)
                except Exception as error:
                    if name.startswith(OPERATOR):
                        raise
                    self.reasons[f"{name}/{which}"] = str(error).strip().splitlines()[0][:120]
                    continue
                actual = [value[clips] for value in actual]
                self._compare(name, actual, exact[problem], contestant.dtype)  # which waits for a GPU
                took = time.perf_counter() - start
                if name in (COMPILED, FLEX, COMPILED_BLOCK, COMPILED_TORCH_BLOCK):
                    took = 0.0  # it was compiling
                if took > LONGEST_CALL and not name.startswith(OPERATOR):
                    self.reasons[f"{name}/{which}"] = f"one call takes {took:.0f} s"
        progress("")
        return "the reference in float64" if by_reference else "the operator in float64"

    def _compare(self, name: str, actual: list[Tensor], exact: list[Tensor], dtype: str) -> None:
        whole = self.case.sigma == 0 or name == ZERO
        what = [
            "output",
            "clip gradient",
            "weight gradient" if self.case.kind == "block" else "offset gradient",
        ]
        for part, value, expected in zip(what, actual, exact, strict=False):
            # On whole pixels the derivative has two sides, and rounding of a position chooses between them.
            if part == "offset gradient" and whole and not name.startswith(OPERATOR):
                continue
            if self.case.kind == "block":
                error, allowed = (value - expected).norm() / expected.norm(), BLOCK_TOLERANCES[dtype]
            else:
                error = (value - expected).abs().max() / expected.abs().max()
                allowed = TOLERANCES[dtype]
            if not error <= allowed:
                raise SystemExit(
                    f"{self.case.name}, {name}: its {part} is off by {error:.1e} (allowed: {allowed})"
                )

    def work(self, corners: Corners, which: str) -> Work:
        """What the case cannot do without."""
        case, backward = self.case, which == BOTH
        size = getattr(torch, case.dtype).itemsize
        if case.kind == "block":
            plain = self.device == "cpu" and case.dtype == "float32"
            return block_work(case.shape, size, case.kernel_size, corners, backward, convolution=plain)
        return attention_work(case.shape, size, 4, case.kernel_size, corners, backward)


class Stopwatch:
    """Times contestants' calls on a device, and remembers what launching them cost."""

    def __init__(self, device: str) -> None:
        self._clock = CpuClock() if device == "cpu" else CudaClock()
        self.launches: dict[str, list[float]] = {}

    def probe(self, key: str, contestant: Contestant, backward: bool, cold: bool) -> Callable[[], float]:
        """A function that measures a call of a contestant, in seconds."""

        def call() -> object:
            return contestant.run(backward)

        def measure() -> float:
            times, launches = [], []
            with threads(contestant.threads):
                # Does not count, as heap and caches are what the contestant before left. It only helps to
                # tell a short call from a long one: the next may be interrupted.
                first = self._clock.time(call)
                while not times or (min(first, *times) < SHORT_CALL and len(times) < SHORT_CALLS):
                    if not cold:
                        contestant.problem.rewrite(backward)
                    times.append(self._clock.time(call))
                    if isinstance(self._clock, CudaClock):
                        launches.append(self._clock.launch)
            if launches:
                self.launches.setdefault(key, []).append(statistics.median(launches))
            return statistics.median(times)

        return measure


@contextlib.contextmanager
def threads(number: int | None):
    """Let torch use so many threads, or as many as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
