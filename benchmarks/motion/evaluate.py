"""Evaluates sifa_tiny on held-out videos of the motion task, through a codec; prints what RESULTS.md states.

    python benchmarks/motion/evaluate.py build/motion/sifa_tiny.safetensors \\
        --control build/motion/control.safetensors
"""

from __future__ import annotations

import argparse
import copy

import clips as motion_clips
import sifa
import torch
from sifa.data import motion
from sifa.insertion import Insertion
from torch import Tensor, nn
from train import normalise


@torch.inference_mode()
def predict(model: nn.Module, clips: Tensor) -> Tensor:
    """The top class of every clip, uint8 (N, T, H, W, 3)."""
    return torch.cat([model(normalise(part, model)).argmax(1) for part in clips.split(50)])


@torch.inference_mode()
def mean_offsets(model: nn.Module, clips: Tensor) -> dict[str, float]:
    """Mean length of the offset vectors of each inserted SIFA, in pixels of its feature map."""
    lengths: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Insertion):

            def record(block: nn.Module, args: tuple[Tensor], name: str = name) -> None:
                offset = block.offset(args[0])
                lengths.setdefault(name, []).append(offset.unflatten(1, (-1, 2)).norm(dim=2).mean())

            hooks.append(module.inserted.register_forward_pre_hook(record))
    predict(model, clips)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(values).mean().item() for name, values in lengths.items()}


def without_offsets(model: nn.Module) -> nn.Module:
    """Sets every offset to 0, in place: the taps lie on the regular grid."""
    for module in model.modules():
        if isinstance(module, Insertion):
            nn.init.zeros_(module.inserted.conv_offset.weight)
    return model


def without_aggregate(model: nn.Module) -> nn.Module:
    """Sets every aggregate A to 0, in place: SIFA's output Y = f + A becomes f."""
    for module in model.modules():
        if isinstance(module, Insertion):
            module.inserted = nn.Identity()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "weights", nargs="?", default="motion", help="safetensors file; the bundled weights by default"
    )
    parser.add_argument("--control", help="safetensors file of the same network trained without SIFA")
    parser.add_argument("--scenes", type=int, default=100, help="held-out scenes, each under all ten labels")
    arguments = parser.parse_args()

    clips, labels = motion_clips.held_out_clips(arguments.scenes)
    model = sifa.create_model("sifa_tiny", pretrained=arguments.weights).eval()
    print(f"{len(clips)} held-out videos, {arguments.scenes} of each of {len(motion.LABELS)} classes")

    found = predict(model, clips)
    print(f"sifa_tiny: top-1 {percent(found == labels)}")
    for index, label in enumerate(motion.LABELS):
        print(f"  {label}: {percent((found == labels)[labels == index])}")
    stills = [predict(model, clips[:, [t] * motion.PERIOD]) == labels for t in range(motion.PERIOD)]
    print(f"sifa_tiny, one frame repeated: top-1 {percent(torch.stack(stills))}, the mean over all 16 frames")
    for frame, correct in enumerate(stills):
        print(f"  frame {frame}: {percent(correct)}")
    for name, pixels in mean_offsets(model, clips[:: max(1, len(clips) // 100)]).items():
        print(f"mean |offset| at {name}: {pixels:.2f} pixels of its feature map")
    found = predict(without_offsets(copy.deepcopy(model)), clips)
    print(f"sifa_tiny, every offset = 0: top-1 {percent(found == labels)}")
    found = predict(without_aggregate(model), clips)
    print(f"sifa_tiny, every aggregate A = 0: top-1 {percent(found == labels)}")
    if arguments.control:
        control = sifa.create_model("sifa_tiny", stages=(), pretrained=arguments.control).eval()
        print(f"control, trained without SIFA: top-1 {percent(predict(control, clips) == labels)}")


def percent(correct: Tensor) -> str:
    return f"{100 * correct.float().mean().item():.1f} %"


if __name__ == "__main__":
    main()
