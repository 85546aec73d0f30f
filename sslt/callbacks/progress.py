"""One line that says where training is: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytorch_lightning as pl

from sslt import distributed
from sslt.callbacks.budget import Budget
from sslt.callbacks.curves import Curves

_LOG_SECONDS = 20.0  # between lines where there is no terminal


class Progress(pl.Callback):
    """Share done, epoch, step, loss, probe, samples/s and time left."""

    def __init__(self, budget: Budget, curves: Curves, title: str):
        self.budget, self.curves, self.title = budget, curves, title
        self._bar: Any = None
        self._task: Any = None
        self._printed = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}"), console=Console(stderr=True), refresh_per_second=4,
            )  # fmt: skip
            self._task = self._bar.add_task(self.title, total=1.0, text="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        if now - self._printed < (0.25 if self._bar is not None else _LOG_SECONDS):
            return
        self._printed = now
        done = self._done(pl_module)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=self._text(pl_module))
        else:
            print(f"{self.title} {100 * done:3.0f}%  {self._text(pl_module)}", file=sys.stderr, flush=True)

    def _done(self, pl_module: Any) -> float:
        return self.budget.share(pl_module, self.budget.elapsed)

    def _text(self, pl_module: Any) -> str:
        shown = self.curves.shown
        alone = not distributed.active() or "loss" not in shown  # no rank waits for the others for this line
        loss = float(pl_module.last["loss"]) if alone else shown["loss"]
        parts = [f"epoch {pl_module.epoch_position:.1f}", f"step {pl_module.batches_seen}", f"loss {loss:.3f}"]
        for key, name in (("online/knn_accuracy", "kNN"), ("val/accuracy", "val")):
            if key in shown:
                parts.append(f"{name} {100 * shown[key]:.1f}%")
        if rate := self.curves.throughput:
            parts.append(f"{rate:,.0f} samples/s")
        done = self._done(pl_module)
        if done > 1e-3:
            parts.append(f"{_clock(self.budget.elapsed * (1 - done) / done)} left")
        return "  ".join(parts)

    def close(self) -> None:
        """Take the live bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self.close()


def _clock(s: float) -> str:
    m, s = divmod(int(s), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
