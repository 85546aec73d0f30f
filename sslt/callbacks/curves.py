"""Scalars over time: into metrics.csv always, into the chosen loggers, onto the progress line."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch

from sslt import distributed
from sslt.report.curves import MetricsCSV
from sslt.runs import Run


class Curves(pl.Callback):
    """Records the learner's scalars, over all ranks, every `log_every` steps, and what other callbacks hand to `record`.

    Throughput is samples of all ranks a second over training steps, without the first ones of a run (which compile,
    allocate and read) and without the time callbacks take.
    """

    def __init__(self, run: Run, samples_per_step: int):
        self.run, self.samples_per_step = run, samples_per_step
        self.csv = MetricsCSV(run / "metrics.csv")
        self.shown: dict[str, float] = {}
        self._step_started = 0.0
        self.busy, self.counted = 0.0, 0  # seconds of the steps that throughput counts, earlier parts of a resumed run included
        self.steps = 0  # of this process
        self._bytes: int | None = None  # of metrics.csv, when the checkpoint was written that this run goes on from

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.run.is_main:
            if pl_module.batches_seen == 0:
                self.csv.cut(0)
            elif self._bytes is None or not self.csv.cut(self._bytes):
                self.csv.truncate_after(pl_module.batches_seen)
        self.start_clock()

    def start_clock(self) -> None:
        """A step begins now: reading, views, forward, backward and update all count."""
        self._step_started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        shown = pl_module.batches_seen % pl_module.log_every == 0 or pl_module.batches_seen == 1
        if shown and pl_module.device.type == "cuda":
            torch.cuda.synchronize()  # steps since the last time were only queued when they were counted
        self.steps += 1
        if self.steps > 2:
            self.counted += 1
            self.busy += time.perf_counter() - self._step_started
        if shown:
            values = pl_module.scalars()
            values["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            self.record(trainer, pl_module, values)

    @property
    def throughput(self) -> float:
        """Samples a second, 0 before it is known."""
        return self.samples_per_step * self.counted / self.busy if self.busy else 0.0

    def record(self, trainer: pl.Trainer, pl_module: Any, values: dict[str, float]) -> None:
        """Write scalars at the present step."""
        self.shown.update(values)
        for key, value in values.items():
            trainer.callback_metrics[key] = torch.tensor(value)
        if not (self.run.is_main and distributed.rank() == 0):
            return
        self.csv.append(pl_module.batches_seen, pl_module.epoch_position, values)
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": pl_module.epoch_position}, step=pl_module.batches_seen)

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self.csv.size, "busy": self.busy, "counted": self.counted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bytes, self.busy, self.counted = state_dict["bytes"], state_dict["busy"], state_dict["counted"]


class Clock(pl.Callback):
    """Starts the clock of a step when every other callback is done. Must be the last callback."""

    def __init__(self, curves: Curves):
        self.curves = curves

    def on_train_batch_end(self, *_: Any) -> None:
        self.curves.start_clock()

    def on_train_epoch_end(self, *_: Any) -> None:
        self.curves.start_clock()
