"""The step of a training: loss on every head, optimizer, schedule, and random draws that can be repeated."""

from __future__ import annotations

import fnmatch
import math
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.sampling import draw_seed
from ..models import VideoClassifier
from ..preprocessing import ClipPreprocessing
from .loading import TrainingLoader
from .recipe import LossChoice, OptimizerChoice, Recipe
from .symmetry import motion_symmetry

# Where the draws of the steps lie among those of the seed; those of the data lie at their epoch.
_STEPS = 1 << 31


class ClassifierTraining(LightningModule):
    """Trains a video classifier by a recipe, on the batches of :mod:`sifa.training.loading`.

    Args:
        model: changed in place.
        recipe: every choice.
        steps_per_epoch: optimizer steps.

    Attributes:
        batches: batches of this process that were trained on so far, over all epochs: the loader's position.
    """

    def __init__(self, model: VideoClassifier, recipe: Recipe, steps_per_epoch: int) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.batches = 0
        # A crop has the size of the model's input already, and is resized by nothing.
        self.normalise = ClipPreprocessing(model.input_size, 1.0, model.mean, model.std)
        self.mix = make_mix(recipe.loss, model.num_classes)
        self.heads = torch.compile(model.forward_heads) if recipe.compile else model.forward_heads
        # A loss that is no number, such as float16 may give, would be left out of the mean by default.
        self.val_loss = MeanMetric(nan_strategy=math.inf)
        self.val_top1, self.val_top5 = (
            MulticlassAccuracy(model.num_classes, top_k=min(k, model.num_classes), average="micro")
            for k in (1, 5)
        )
        # The sum of the losses of this epoch and of how many clips, in this process. No buffer: those of the
        # first process are sent to the others with every step.
        self._losses = torch.zeros(2, dtype=torch.float64)
        self._step_began = self._waited = 0.0

    # --- The steps ----------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        """Begin to time: a validation is no part of the step after it."""
        self._step_began, self._waited = time.perf_counter(), self._loader().waited

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed what the batch draws from here on: MixUp, dropout, drop-path."""
        torch.manual_seed(draw_seed(self.recipe.seed, _STEPS, self.batches, self.global_rank))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        frames, labels = batch["frames"], batch["label"]
        if self.recipe.symmetries == "motion":
            frames, labels = motion_symmetry(frames, labels)
        clips, targets = self.mix(self.normalise(frames), labels)
        try:
            heads = self.heads(clips)
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "a part of one clip of this size leaves batch normalisation one value per channel: give a "
                "larger --batch_size or --model.input_size, or a smaller --accumulate"
            ) from error
        loss = heads_loss(heads, targets, self.recipe.loss)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self._losses = self._losses.to(loss.device)
        self._losses[0] += loss.detach() * len(clips)
        self._losses[1] += len(clips)
        self.batches += 1
        return loss

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Any], batch_idx: int) -> None:
        """Say what share of the batch's time went by waiting for it."""
        now, waited = time.perf_counter(), self._loader().waited
        self.log("train/data_wait", (waited - self._waited) / max(now - self._step_began, 1e-9))
        self._step_began, self._waited = now, waited

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss and accuracy on frames as an exported model gets them."""
        heads = self.heads(batch["clip"])
        own = batch["index"] % self.trainer.world_size == self.global_rank
        counted = own & ~batch["broken"]
        if not counted.any():
            return
        heads, labels = heads[counted], batch["label"][counted]
        self.val_loss.update(heads_loss(heads, labels, LossChoice()), len(labels))
        scores = heads.softmax(2).mean(1)
        self.val_top1.update(scores, labels)
        self.val_top5.update(scores, labels)

    def on_validation_epoch_end(self) -> None:
        """Log the validation, and the mean loss of the epoch, of all processes."""
        loss, clips = self._all_losses().tolist()
        self._losses.zero_()
        self.log("train/epoch_loss", loss / clips)
        self.log("val/loss", self.val_loss)
        self.log("val/top1", self.val_top1, prog_bar=True)
        self.log("val/top5", self.val_top5)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the losses of the epoch so far."""
        checkpoint["losses"] = self._all_losses().tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them, in one process for all."""
        if self.global_rank == 0:
            self._losses.copy_(torch.tensor(checkpoint["losses"], dtype=torch.float64))

    def _all_losses(self) -> Tensor:
        """Sum of the losses of the epoch so far and of how many clips, of all processes."""
        losses = self._losses.to(self.device, copy=True)
        return self.trainer.strategy.reduce(losses, reduce_op="sum")

    def _loader(self) -> TrainingLoader:
        loader = self.trainer.train_dataloader
        assert isinstance(loader, TrainingLoader)
        return loader

    # --- The optimizer ------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and schedule, stepped after every optimizer step."""
        optimizer = make_optimizer(self.model, self.recipe.optimizer)
        schedule = make_schedule(optimizer, self.recipe.optimizer, self.steps_per_epoch, self.recipe.epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def heads_loss(heads: Tensor, targets: Tensor, choice: LossChoice) -> Tensor:
    """Cross-entropy, summed over the heads.

    Args:
        heads: logits (N, heads, classes).
        targets: classes (N,), or probabilities (N, classes).
        choice: weight and label smoothing.
    """
    losses = [
        functional.cross_entropy(logits.float(), targets, label_smoothing=choice.label_smoothing)
        for logits in heads.unbind(1)
    ]
    return choice.weight * torch.stack(losses).sum()


class Mix(nn.Module):
    """MixUp or CutMix of the clips of a batch, one of them drawn for each batch.

    Maps clips (N, 3, T, H, W) and classes (N,) to mixed clips and probabilities (N, num_classes).
    """

    def __init__(self, transforms: list[nn.Module]) -> None:
        super().__init__()
        self.transform = v2.RandomChoice(transforms)

    def forward(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        video = tv_tensors.Video(clips.transpose(1, 2))
        mixed, targets = self.transform(video, labels)
        return mixed.as_subclass(Tensor).transpose(1, 2), targets


def make_mix(choice: LossChoice, num_classes: int) -> nn.Module:
    """What mixes a batch by the recipe; what changes nothing if it wants none."""
    transforms: list[nn.Module] = []
    if choice.mixup > 0:
        transforms.append(v2.MixUp(alpha=choice.mixup, num_classes=num_classes))
    if choice.cutmix > 0:
        transforms.append(v2.CutMix(alpha=choice.cutmix, num_classes=num_classes))
    return Mix(transforms) if transforms else Unmixed()


class Unmixed(nn.Module):
    """Clips and classes as they are."""

    def forward(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return clips, labels


def make_optimizer(model: nn.Module, choice: OptimizerChoice) -> Optimizer:
    """The optimizer of a recipe; parameters that do not decay are a group of their own."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        named = any(fnmatch.fnmatchcase(name, pattern) for pattern in choice.no_decay)
        vector = parameter.ndim < 2 and not choice.decay_vectors
        (exempt if named or vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": choice.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if choice.name == "sgd":
        return SGD(groups, choice.learning_rate, momentum=choice.momentum, nesterov=choice.nesterov)
    return AdamW(groups, choice.learning_rate, betas=choice.betas)


def make_schedule(
    optimizer: Optimizer, choice: OptimizerChoice, steps_per_epoch: int, epochs: int
) -> LambdaLR:
    """A linear warm-up from `warmup_start`, then half a cosine to `final_learning_rate`, a value per step."""
    warmup = round(choice.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    final = choice.final_learning_rate / choice.learning_rate

    def factor(step: int) -> float:
        if step < warmup:
            return choice.warmup_start + (1 - choice.warmup_start) * step / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
