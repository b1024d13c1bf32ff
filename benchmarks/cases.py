"""What the operator is measured on: a base case, then one axis of it varied at a time, each with its rivals.

All combinations would take hours, most of them in the rivals. A combination that is not here is not measured,
and neither is a rival that a case does not name; the tables say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

GRID, COMPILED, DEFORM, FLEX, REFERENCE = RIVALS = (
    "grid_sample",
    "grid_sample, compiled",
    "deform_conv2d",
    "FlexAttention",
    "reference",
)
TORCH_BLOCK, COMPILED_BLOCK, COMPILED_TORCH_BLOCK = BLOCK_RIVALS = (
    "torch's operators",
    "SIFA, compiled",
    "torch's operators, compiled",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of the operator (or of the whole block), and who is measured on it."""

    name: str
    channels: int = 128
    height: int = 28
    width: int = 28
    batch: int = 8
    steps: int = 4
    dtype: str = "float32"
    kernel_size: int = 3
    sigma: float = 1.0  # of the offsets, in pixels
    kind: str = "attention"  # or "softmax": attention with a softmax on the regular grid; or "block"
    rivals: tuple[str, ...] = (GRID,)
    variants: bool = False  # also the operator in other ways: zero offsets, other dtypes, one thread, …

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, C, T, H, W)."""
        return self.batch, self.channels, self.steps, self.height, self.width


def _cases() -> Iterator[Case]:
    every = (GRID, COMPILED, DEFORM, REFERENCE)
    base = Case("base", rivals=every, variants=True)
    yield base
    # The inputs of conv3 in the last three stages of a ResNet-50 at 224 pixels; base is the first.
    resnet = [Case(f"resnet50-{c}", c, size, size) for c, size in ((128, 28), (256, 14), (512, 7))]
    for case in resnet[1:]:
        yield dataclasses.replace(case, rivals=every)
    for case in resnet:
        for dtype in ("bfloat16", "float16"):
            yield dataclasses.replace(case, name=f"{case.name}-{dtype}", dtype=dtype)
    for case in resnet:
        yield dataclasses.replace(case, name=f"{case.name}-k5", kernel_size=5)
    for what, change in (
        ("zero-offsets", {"sigma": 0.0}),
        ("large-offsets", {"sigma": 8.0}),
        ("batch1", {"batch": 1}),
        ("batch16", {"batch": 16}),
        ("T16", {"steps": 16}),
    ):
        yield dataclasses.replace(base, name=f"base-{what}", rivals=(GRID,), variants=False, **change)
    # The window attentions' outputs in the four stages of Swin-B at 224 pixels.
    for channels, size in ((128, 56), (256, 28), (512, 14), (1024, 7)):
        for dtype in ("float32", "bfloat16"):
            name = f"swin-base-{channels}" + ("" if dtype == "float32" else f"-{dtype}")
            yield Case(name, channels, size, size, batch=1, dtype=dtype)
    large = Case("720p", 64, 90, 160, batch=1)
    yield large
    for dtype in ("bfloat16", "float16"):
        yield dataclasses.replace(large, name=f"720p-{dtype}", dtype=dtype)
    yield dataclasses.replace(large, name="720p-zero-offsets", sigma=0.0)
    yield dataclasses.replace(large, name="720p-large-offsets", sigma=8.0)
    # Here grid_sample alone would take many seconds and gigabytes per call.
    yield dataclasses.replace(large, name="720p-T16", steps=16, rivals=())
    yield dataclasses.replace(large, name="720p-batch16", batch=16, rivals=())
    for case in resnet[:2]:
        yield dataclasses.replace(
            case, name=f"softmax-{case.channels}", sigma=0.0, kind="softmax", rivals=(FLEX, REFERENCE)
        )
    yield dataclasses.replace(base, name="block-128", kind="block", rivals=BLOCK_RIVALS, variants=False)
    for case in resnet[1:]:
        yield dataclasses.replace(case, name=f"block-{case.channels}", kind="block", rivals=(TORCH_BLOCK,))
    yield dataclasses.replace(
        base, name="block-128-bfloat16", dtype="bfloat16", kind="block", rivals=(TORCH_BLOCK,), variants=False
    )


def _cuda_cases() -> Iterator[Case]:
    """What the aims for GPUs are about: large batches in float16."""
    for channels, height, width in ((128, 28, 28), (256, 14, 14), (512, 7, 7), (64, 90, 160)):
        name = f"cuda-{channels}x{height}x{width}"
        yield Case(name, channels, height, width, 16, dtype="float16", rivals=(GRID, COMPILED))


CASES = list(_cases())
CUDA_CASES = list(_cuda_cases())

# For `--quick`: does the harness still work?
TINY = [
    Case("tiny", 16, 5, 6, batch=2, steps=3, rivals=(GRID, DEFORM, REFERENCE), variants=True),
    Case("tiny-softmax", 16, 5, 6, batch=2, steps=3, sigma=0.0, kind="softmax", rivals=(REFERENCE,)),
    Case("tiny-block", 16, 5, 6, batch=2, steps=3, kind="block", rivals=(TORCH_BLOCK,)),
]
