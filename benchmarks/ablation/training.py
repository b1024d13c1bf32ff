"""One training of the ablation: a configuration and a seed, from clips to the accuracy on held-out ones."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import clips
import sifa
import torch
from configurations import BACKBONE, CONFIGURATIONS
from sifa.data import hard_motion
from torch import Tensor, nn

_WARM_UP = 0.1  # the share of the steps in which the learning rate rises
_TEST_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Budget:
    """What all trainings share.

    Attributes:
        size: height and width of a clip in pixels.
        training, held_out: scenes, of two clips each.
        steps, batch: optimizer steps, and clips of each.
        rate: the highest learning rate of AdamW.
    """

    size: int = 64
    training: int = 6000
    held_out: int = 900
    steps: int = 2000
    batch: int = 16
    rate: float = 1e-3


class DeadlineError(RuntimeError):
    """The time given was over before the training was."""


class Trainer:
    """Trains configurations on clips that it keeps on one device.

    Args:
        folder: of the clips.
        budget: what all trainings share.
        device: `cpu` or `cuda`.
        deadline: when to give up, as :func:`time.time` counts.
    """

    def __init__(self, folder: Path, budget: Budget, device: str, deadline: float) -> None:
        self.budget, self.device, self.deadline = budget, device, deadline
        self.training, self.held_out = (
            tuple(part.to(device) for part in clips.read_clips(folder, name, budget.size, scenes))
            for name, scenes in (("training", budget.training), ("held-out", budget.held_out))
        )

    def train(self, name: str, seed: int) -> dict[str, Any]:
        """Train one and test it.

        Raises:
            DeadlineError: see the class.
        """
        began = time.perf_counter()
        torch.manual_seed(seed)
        model = sifa.create_model(
            BACKBONE,
            num_classes=len(hard_motion.LABELS),
            num_frames=hard_motion.PERIOD,
            input_size=self.budget.size,
            **CONFIGURATIONS[name],
        ).to(self.device)
        losses = self._fit(model, seed)
        return {
            "configuration": name,
            "seed": seed,
            **self._accuracy(model),
            "training_losses": losses,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _fit(self, model: nn.Module, seed: int) -> list[float]:
        """Train; the mean losses of ten parts of it."""
        budget = self.budget
        frames, labels = self.training
        optimizer = _adamw(model, budget.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, budget.rate, budget.steps, pct_start=_WARM_UP
        )
        order = _order(len(labels), budget.steps, budget.batch, seed).to(self.device)
        model.train()
        losses = []
        for batch in order:
            if time.time() > self.deadline:
                raise DeadlineError(f"stopped after {len(losses)} of {budget.steps} steps")
            logits = model(_clip(frames[batch], model))
            loss = nn.functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return [part.mean().item() for part in torch.stack(losses).tensor_split(10) if len(part)]

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> dict[str, Any]:
        """Top-1 accuracy on the held-out clips, and on each kind of them."""
        model.eval()
        frames, labels = self.held_out
        right = torch.cat(
            [
                model(_clip(some, model)).argmax(1) == truth
                for some, truth in zip(frames.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True)
            ]
        ).double()
        kinds = clips.kinds("held-out", self.budget.held_out)
        of_kind = {
            kind: right[[found == kind for found in kinds]].mean().item() for kind in hard_motion.KINDS
        }
        return {"top1": right.mean().item(), "top1_of_kind": of_kind}


def _clip(frames: Tensor, model: nn.Module) -> Tensor:
    """uint8 (N, T, H, W, 3) to the float (N, 3, T, H, W) that the model takes."""
    mean, std = model.mean[0], model.std[0]  # those of sifa_tiny are the same for all colours
    return frames.float().mul_(1 / (255 * std)).sub_(mean / std).permute(0, 4, 1, 2, 3)


def _order(clips: int, steps: int, batch: int, seed: int) -> Tensor:
    """The clips of each step, (steps, batch): every epoch a new permutation."""
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps * batch / clips)
    order = torch.cat([torch.randperm(clips, generator=generator) for _ in range(epochs)])
    return order[: steps * batch].view(steps, batch)


def _adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """AdamW; norms, biases and offsets do not decay."""
    exempt: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (exempt if parameter.ndim < 2 or "conv_offset" in name else decayed).append(parameter)
    groups = [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}]
    return torch.optim.AdamW(groups, rate)
