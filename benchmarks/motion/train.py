"""Trains sifa_tiny (or the same network without SIFA) on the motion task, from codec-rendered clips.

python benchmarks/motion/train.py --output build/motion/sifa_tiny.safetensors
python benchmarks/motion/train.py --without-sifa --output build/motion/control.safetensors
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import clips as motion_clips
import sifa
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# What each symmetry of the square does to the labels: transposing the frame turns right into down and
# clockwise into counterclockwise, and so on. Time reversal keeps every label: there and back is there and
# back.
MIRROR_X = (1, 0, 2, 3, 5, 4, 6, 7, 8, 9)
MIRROR_Y = (0, 1, 3, 2, 5, 4, 6, 7, 8, 9)
TRANSPOSE = (3, 2, 1, 0, 5, 4, 6, 7, 9, 8)


def augment(clips: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random symmetry of the square, of time and of the colours for a whole batch (N, T, H, W, 3)."""
    flip_x, flip_y, transpose, reverse, invert = torch.randint(2, (5,), generator=generator).tolist()
    if flip_x:
        clips, labels = clips.flip(3), torch.tensor(MIRROR_X)[labels]
    if flip_y:
        clips, labels = clips.flip(2), torch.tensor(MIRROR_Y)[labels]
    if transpose:
        clips, labels = clips.transpose(2, 3), torch.tensor(TRANSPOSE)[labels]
    if reverse:
        clips = clips.flip(1)
    if invert:
        clips = 255 - clips
    return clips, labels


def normalise(clips: Tensor, model: nn.Module) -> Tensor:
    """uint8 (N, T, H, W, 3) to the float (N, 3, T, H, W) that the model takes."""
    mean, std = torch.tensor(model.mean), torch.tensor(model.std)
    return clips.float().mul_(1 / (255 * std)).sub_(mean / std).permute(0, 4, 1, 2, 3)


def train(
    model: nn.Module, clips: Tensor, labels: Tensor, epochs: int, batch: int, rate: float, seed: int
) -> None:
    """AdamW and one cycle of the learning rate; no weight decay on norms, biases and offsets."""
    generator = torch.Generator().manual_seed(seed)
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "conv_offset" in n]
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "conv_offset" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed}], rate, weight_decay=0.05
    )
    steps = len(clips) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps, pct_start=0.25)
    model.train()
    start = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(clips), generator=generator)
        correct = total_loss = 0.0
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch].tolist()
            augmented, target = augment(torch.stack([clips[i] for i in chosen]), labels[chosen], generator)
            logits = model(normalise(augmented, model))
            loss = nn.functional.cross_entropy(logits, target, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            correct += (logits.argmax(1) == target).sum().item()
            total_loss += loss.item()
            if sys.stderr.isatty():
                print(f"\repoch {epoch + 1}: {step + 1}/{steps}", end="", file=sys.stderr, flush=True)
        print(
            f"epoch {epoch + 1}/{epochs}: loss {total_loss / steps:.3f}, "
            f"training top-1 {100 * correct / (steps * batch):.1f} %, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--without-sifa", action="store_true", help="the control: no SIFA in the network")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="safetensors file to write")
    parser.add_argument("--pairs", type=int, default=3200, help="training scenes, each under two labels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = sifa.create_model("sifa_tiny", **({"stages": ()} if arguments.without_sifa else {}))
    clips, labels = motion_clips.training_clips(arguments.pairs)
    train(model, clips, labels, arguments.epochs, arguments.batch, arguments.rate, arguments.seed)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    # safetensors takes contiguous tensors only, the convolutions are channels-last.
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, arguments.output)


if __name__ == "__main__":
    main()
