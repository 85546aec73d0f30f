"""Checkpoints: whole or not at all, by epoch, by time, and when somebody stops the run."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from sslt import distributed
from sslt.errors import UserError


@contextlib.contextmanager
def signals_restored() -> Iterator[None]:
    """Afterwards SIGINT and SIGTERM are handled as before. Around a fit, for Lightning sets handlers of its own as well."""
    try:
        before = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where nothing was changed
            for sig, handler in before.items():
                signal.signal(sig, handler)


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor. Lightning's own makes the whole file in memory first, beside weights and optimizer."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as f:  # torch opening it by name would not tell a full disk from any other mistake
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())


class Checkpoint(pl.Callback):
    """Keeps `last.ckpt`. Must come after the others, so that it saves what the others did.

    every_minutes: at most this much work is lost to a kill; also saved after every epoch that took longer, and on Ctrl-C and
    SIGTERM, which end the run at the next step (a second Ctrl-C ends it at once). keep_every_n_epochs: keep copies
    `epoch=N.ckpt`; 0 keeps none.
    """

    def __init__(self, folder: Path, every_minutes: float, keep_every_n_epochs: int = 0):
        self.folder, self.period, self.keep = folder, every_minutes * 60, keep_every_n_epochs
        self.signal: int | None = None
        self._last = 0.0
        self._saved_at = -1

    # ---------------------------------------------------------------- signals
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._last = time.monotonic()
        self._saved_at = pl_module.batches_seen
        try:
            for sig in (signal.SIGINT, signal.SIGTERM):
                signal.signal(sig, self._on_signal)
        except ValueError:
            pass  # not in the main thread: signals are somebody else's

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    # ---------------------------------------------------------------- when
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        overdue = bool(self.period) and time.monotonic() - self._last > self.period
        stop, due = distributed.any_rank([self.signal is not None, overdue], pl_module.device)
        position = pl_module.batches_seen % pl_module.steps_per_epoch
        between_steps = position % trainer.accumulate_grad_batches == 0  # gradients that wait for more batches are not saved
        if stop and between_steps:
            pl_module.interrupted = trainer.should_stop = True
        if (stop or due) and between_steps and position:  # at the end of an epoch it is saved when the other callbacks are done
            self.save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        whole = pl_module.batches_seen % pl_module.steps_per_epoch == 0
        epoch = pl_module.batches_seen // pl_module.steps_per_epoch
        waited = time.monotonic() - self._last > min(self.period, 30)
        (due,) = distributed.any_rank([waited], pl_module.device)
        if whole and (due or pl_module.interrupted):
            self.save(trainer, pl_module)
        if whole and self.keep and epoch % self.keep == 0:
            self.save(trainer, pl_module, f"epoch={epoch}.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._saved_at != pl_module.batches_seen and not pl_module.interrupted:
            self.save(trainer, pl_module)

    # ---------------------------------------------------------------- how
    def save(self, trainer: pl.Trainer, pl_module: Any, name: str = "last.ckpt") -> None:
        """Write a checkpoint beside its place, then rename it into it. Refuses weights that are not finite."""
        bad = next((n for n, p in pl_module.named_parameters() if not torch.isfinite(p).all()), None)
        if bad is not None:
            raise UserError(f"the weights of {bad} are no longer finite at step {pl_module.batches_seen}; {self.advice()}")
        self.folder.mkdir(parents=True, exist_ok=True)
        tmp = self.folder / f".{name}.tmp"
        try:
            trainer.save_checkpoint(tmp)
            if trainer.is_global_zero:
                os.replace(tmp, self.folder / name)
        finally:
            if trainer.is_global_zero:
                tmp.unlink(missing_ok=True)
        self._last = time.monotonic()
        self._saved_at = pl_module.batches_seen

    def advice(self) -> str:
        """What to do after a loss went wrong."""
        last = self.folder / "last.ckpt"
        kept = f"the last good checkpoint is kept in {last}; " if last.exists() else ""
        return f"{kept}lower optimizer.lr, raise schedule.warmup, or set trainer.gradient_clip_val=1 or trainer.precision=32"


class NaNGuard(pl.Callback):
    """Ends the run when the loss is not finite, naming the step.

    On a GPU the loss is looked at every `every` steps, so that no step waits for it; the first bad step is remembered there.
    """

    def __init__(self, checkpoint: Checkpoint, every: int = 50):
        self.checkpoint, self.every = checkpoint, every
        self._first_bad: torch.Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        loss = pl_module.last["loss"]
        step = pl_module.batches_seen
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                self._stop(step, float(loss))
            return
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, dtype=torch.long, device=loss.device)
        self._first_bad = torch.where((self._first_bad < 0) & ~torch.isfinite(loss), step, self._first_bad)
        if step % self.every == 0 or trainer.should_stop:
            bad = int(self._first_bad)
            if bad >= 0:
                self._stop(bad, float("nan"))

    def _stop(self, step: int, value: float) -> None:
        raise UserError(f"the loss became {value} at step {step}; {self.checkpoint.advice()}")
