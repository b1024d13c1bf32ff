"""What happens beside the steps of a training: checkpoints, stopping on a signal, a line per epoch."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_GO_ON, _SAVE, _STOP = range(3)


class Interrupted(RuntimeError):
    """A signal ended the training, after it was saved; `signal` is its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Checkpoints(Callback):
    """Writes one checkpoint: before each validation, after `minutes` of training, and when a signal comes.

    It is written where an optimizer step has ended, so that no gradient is lost; with several processes when
    one of them is asked to. A second SIGINT stops at once.

    Args:
        path: the file, replaced in one piece.
        minutes: time between two checkpoints within an epoch.
        facts: what else the checkpoint says, under the key `"sifa"`.
    """

    def __init__(self, path: Path, minutes: float, facts: Mapping[str, Any]) -> None:
        self.path = path
        self._seconds = 60 * minutes
        self._facts = facts
        self._received: int | None = None
        self._stopping = False
        self._handlers: dict[int, Any] = {}
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals, which the trainer has taken for itself before."""
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or save and stop, between two optimizer steps."""
        # After the last batch of an epoch the validation comes, and saves.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or batch_idx + 1 == trainer.num_training_batches:
            return
        wish = self._wish(trainer)
        if wish != _GO_ON:
            self._save(trainer)
        self._stopping = wish == _STOP

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if that was the wish: the step before is in the logs now."""
        if self._stopping:
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save: before the weights are swapped for their average, and in a state to validate again from."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop; the checkpoint is that of the validation's start."""
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the facts, and the state from which an unfinished validation begins again."""
        checkpoint["sifa"] = {**self._facts, "batches": pl_module.batches}
        if trainer.validating:
            # The trainer goes back to a validation that it finds amid its first batch.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back to the trainer, which gives them back in its turn."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise Interrupted(f"stopped by a second SIGINT, without saving; {self.path} is as it was", number)
        self._received = number

    def _wish(self, trainer: Trainer) -> int:
        """The greatest wish of any process."""
        mine = _GO_ON
        if time.monotonic() - self._saved_at > self._seconds:
            mine = _SAVE
        if self._received is not None:
            mine = _STOP
        if trainer.world_size == 1:
            return mine
        wish = torch.tensor(mine, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(wish, reduce_op="max"))

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._wish(trainer) == _STOP:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        number = self._received or signal.SIGTERM
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} in epoch {trainer.current_epoch + 1} after step "
            f"{trainer.global_step}; saved to {self.path}",
            number,
        )

    def _save(self, trainer: Trainer) -> None:
        unfinished = self.path.with_suffix(".part")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.path)
        trainer.strategy.barrier()
        self._saved_at = time.monotonic()


class EpochLines(Callback):
    """Prints a line per epoch on stderr, where there is no terminal for a progress bar."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it."""
        if not trainer.is_global_zero:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: "
            f"loss {found['train/epoch_loss']:.3f}, validation loss {found['val/loss']:.3f}, "
            f"top-1 {100 * found['val/top1']:.1f} %, top-5 {100 * found['val/top5']:.1f} %",
            file=sys.stderr,
            flush=True,
        )
