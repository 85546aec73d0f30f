"""One line that says where training is: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl

from sslt import distributed
from sslt.callbacks.budget import Budget
from sslt.callbacks.curves import Curves
from sslt.targets.knn import NEAREST

log = logging.getLogger("sslt")
_LOG_SECONDS = 20.0  # between lines where there is no terminal
_FIRST_STEPS = 3  # of a process: they compile and allocate, and say nothing of those that follow
_KNOWN_STEPS, _KNOWN_SECONDS = 5, 3.0  # after these, from which the time left is told
FEW_STEPS = 50  # fewer than these within a time budget teach little


class Progress(pl.Callback):
    """Share done, epoch, step, loss, probe, samples/s and, as soon as it can be known, time left.

    Warns once where `max_time` will have held fewer than `FEW_STEPS` steps.
    """

    def __init__(self, budget: Budget, curves: Curves, title: str):
        self.budget, self.curves, self.title = budget, curves, title
        self._bar: Any = None
        self._task: Any = None
        self._printed = 0.0
        self._steps = 0  # of this process
        self._from: tuple[float, float] | None = None  # seconds and share done after its first steps
        self._warned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._warned = bool(pl_module.batches_seen)
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
        self._steps += 1
        if self._steps == _FIRST_STEPS:
            self._from = self.budget.elapsed, self._done(pl_module)
        self._warn_of_few(trainer, pl_module)
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
        for key, name in ((f"online/{NEAREST}", "kNN"), (next((k for k in shown if k.startswith("val/")), ""), "val")):
            if key in shown:
                parts.append(f"{name} {100 * shown[key]:.1f}%")
        if rate := self.curves.throughput:
            parts.append(f"{rate:,.0f} samples/s")
        if (left := self.left(pl_module)) is not None:
            parts.append(f"{_clock(left)} left")
        return "  ".join(parts)

    def left(self, pl_module: Any) -> float | None:
        """Seconds until the end at the pace since the first steps; None as long as it cannot be known."""
        if self._from is None or self._steps < _FIRST_STEPS + _KNOWN_STEPS:
            return None
        spent, done = self.budget.elapsed - self._from[0], self._done(pl_module) - self._from[1]
        if spent < _KNOWN_SECONDS or done <= 0:
            return None
        return spent * (1 - self._done(pl_module)) / done

    def _warn_of_few(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Once the steps are timed, or a quarter of the time is gone before they are: how many there will be, where that is few."""
        b = self.budget
        if self._warned or not b.max_time or (self._steps <= _FIRST_STEPS and b.elapsed < b.max_time / 4):
            return
        self._warned = True
        each = self.curves.busy / self.curves.counted if self.curves.counted else b.elapsed / self._steps
        batches = pl_module.batches_seen + max(b.max_time - b.elapsed, 0.0) / each
        steps = int(batches / trainer.accumulate_grad_batches)
        wanted = min(FEW_STEPS, b.max_steps or FEW_STEPS, (b.max_epochs or FEW_STEPS) * pl_module.steps_per_epoch)
        if steps < wanted:
            smaller = (
                "smaller images (max_image_size=), "
                if pl_module.encoder.modality == "image"
                else "less of each text (encoder.processor.max_length=, windows=), "
            )
            log.warning(
                "a step takes %.2g s, so that trainer.max_time holds about %d: too few to learn much from; give more time, or %sa smaller "
                "batch_size= or encoder=",
                each * trainer.accumulate_grad_batches, max(steps, 1), smaller,
            )  # fmt: skip

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
