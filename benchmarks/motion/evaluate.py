"""Asks of a model on the motion task what `sifa eval` does not: does it need SIFA, its offsets, the order?

    sifa data motion build/motion
    python benchmarks/motion/evaluate.py --control runs/motion-control
    python benchmarks/motion/evaluate.py --streaming

Both labels of a pair are the same frames in another order. So neither the control, trained without SIFA, nor
one frame repeated may tell them apart: the first ends with an error above 52 %, the second above 15 %.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import sifa
import torch
from sifa.artifact import FrameClassifier
from sifa.data.annotations import read_annotations
from sifa.data.clips import ViewClips
from sifa.evaluation.metrics import wilson
from sifa.insertion import Insertion
from sifa.models import VideoClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

_BATCH = 50
_SOME = 100  # clips: ten scenes under every label
_CONTROL_LIMIT = 0.52  # 50 %, and the noise of the codec and of 1,000 answers
_STILL_LIMIT = 0.15  # 10 % and the same


def main(arguments: list[str] | None = None) -> None:
    """See the module.

    Raises:
        SystemExit: the control or a repeated frame tells what only the order can.
    """
    options = parse(arguments)
    model = load(options.model, options.streaming)
    frames, labels = read_clips(options.videos / "val.txt", options.videos / "labels.txt")
    name = f"{model.name}{', causal' if model.config['frame_shift'] < 0 else ''}"
    found = predict(model, frames)
    print(f"{name}: top-1 {share(found == labels)}")
    for index, label in enumerate(model.labels):
        print(f"  {label}: {share((found == labels)[labels == index])}")
    print(f"processor time of a clip, one thread: {1000 * seconds(model, frames):.0f} ms")
    some = frames[:_SOME]
    for place, pixels in mean_offsets(model, some).items():
        print(f"mean |offset| at {place}: {pixels:.2f} pixels of its feature map")
    for what, change in (("offset", without_offsets), ("aggregate A", without_aggregate)):
        found = predict(change(copy.deepcopy(model)), frames)
        print(f"every {what} = 0: top-1 {share(found == labels)}")
    stills = [predict(model, still(some, t)) == labels[:_SOME] for t in range(model.num_frames)]
    print(
        f"one frame repeated: top-1 {share(torch.cat(stills))}, {len(some)} clips and every frame of theirs"
    )
    check("one frame repeated", torch.cat(stills), _STILL_LIMIT)
    if options.control is not None:
        right = predict(load(options.control), frames) == labels
        print(f"control, trained without SIFA: top-1 {share(right)}")
        check("the control", right, _CONTROL_LIMIT)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="folder of `sifa train`; the bundled weights by default")
    parser.add_argument("--streaming", action="store_true", help="the bundled weights of the causal variant")
    parser.add_argument("--control", help="folder of the same network trained without SIFA")
    parser.add_argument("--videos", type=Path, default=Path("build/motion"), help="of `sifa data motion`")
    return parser.parse_args(arguments)


def load(folder: str | None, streaming: bool = False) -> VideoClassifier:
    """A trained model, or the bundled one."""
    if folder is not None:
        return sifa.from_pretrained(folder).eval()
    return sifa.create_model("sifa_tiny", pretrained="motion", streaming=streaming).eval()


def read_clips(annotations: Path, labels: Path) -> tuple[Tensor, Tensor]:
    """The labelled clips of all videos, uint8 (N, T, H, W, 3), and their classes (N,)."""
    clips = ViewClips(read_annotations(annotations, labels=labels), num_frames=16, max_broken=0)
    batches = list(DataLoader(clips, batch_size=_BATCH))
    return tuple(torch.cat([batch[key] for batch in batches]) for key in ("frames", "label"))


@torch.inference_mode()
def predict(model: VideoClassifier, frames: Tensor) -> Tensor:
    """The top class of every clip, uint8 (N, T, H, W, 3)."""
    classifier = FrameClassifier(model)
    return torch.cat([classifier(part).argmax(1) for part in frames.split(_BATCH)])


@torch.inference_mode()
def seconds(model: VideoClassifier, frames: Tensor) -> float:
    """Processor time of one clip by itself on one thread, the median of 30."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    classifier, times = FrameClassifier(model), []
    for number in range(33):  # the first ones also allocate
        began = time.process_time()
        classifier(frames[number % len(frames)].unsqueeze(0))
        times.append(time.process_time() - began)
    torch.set_num_threads(threads)
    return torch.tensor(times[3:]).median().item()


@torch.inference_mode()
def mean_offsets(model: VideoClassifier, frames: Tensor) -> dict[str, float]:
    """Mean length of the offset vectors of each inserted SIFA, in pixels of its feature map."""
    lengths: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Insertion):

            def record(block: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                offset = block.offset(args[0])
                lengths.setdefault(name, []).append(offset.unflatten(1, (-1, 2)).norm(dim=2).mean())

            hooks.append(module.inserted.register_forward_pre_hook(record))
    predict(model, frames)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(values).mean().item() for name, values in lengths.items()}


def without_offsets(model: VideoClassifier) -> VideoClassifier:
    """Sets every offset to 0, in place: the taps lie on the regular grid."""
    for module in model.modules():
        if isinstance(module, Insertion):
            nn.init.zeros_(module.inserted.conv_offset.weight)
    return model


def without_aggregate(model: VideoClassifier) -> VideoClassifier:
    """Sets every aggregate A to 0, in place: SIFA's output Y = f + A becomes f."""
    for module in model.modules():
        if isinstance(module, Insertion):
            module.inserted = nn.Identity()
    return model


def still(frames: Tensor, t: int) -> Tensor:
    """Frame t of each clip in the place of all."""
    return frames[:, t : t + 1].expand(-1, frames.shape[1], -1, -1, -1)


def share(right: Tensor) -> str:
    """How many are right, and Wilson's interval of it."""
    low, high = wilson(right.double().mean().item(), len(right))
    return (
        f"{100 * right.double().mean():.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}) "
        f"of {len(right):,}"
    )


def check(what: str, right: Tensor, limit: float) -> None:
    """Raise SystemExit above what can be told without the order, and three standard errors."""
    error = 3 * (limit * (1 - limit) / right.numel()) ** 0.5
    if right.double().mean() > limit + error:
        raise SystemExit(f"{what} may reach {100 * limit:.0f} %: the videos give the order away")


if __name__ == "__main__":
    main()
