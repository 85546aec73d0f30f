"""How long a run lasts, by whichever bound is set, and how far it is."""

from __future__ import annotations

import time
from typing import Any, cast

import pytorch_lightning as pl

from sslt.callbacks.agreement import Agreement
from sslt.errors import UserError


def seconds(text: str | int | float | None) -> float | None:
    """Seconds of `HH:MM:SS`, `DD:HH:MM:SS`, or a plain number."""
    if text is None or isinstance(text, (int, float)):
        return text
    parts = str(text).split(":")
    try:
        values = [float(p) for p in parts]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 4:
        raise UserError(f"trainer.max_time={text}: write it as HH:MM:SS, for instance 00:10:00")
    total = 0.0
    for value, unit in zip(reversed(values), (1, 60, 3600, 86400), strict=False):
        total += value * unit
    return total


class Budget(pl.Callback):
    """Ends training at `max_time` seconds of training time (kept across resumes) and tells the learner its progress.

    Progress is the largest of the shares of epochs, steps and time that are used up, so that the learning rate is
    annealed when the first bound is reached; then what is to follow the last step is done, before others measure. The
    clock runs from the first step; under DDP it is rank 0's.
    """

    def __init__(self, max_epochs: int | None, max_steps: int | None, max_time: float | None):
        self.max_epochs, self.max_steps, self.max_time = max_epochs, max_steps, max_time
        self.before = 0.0
        self.started: float | None = None
        self.agreement = Agreement()
        self._agreed = 0.0  # seconds, by rank 0's clock

    @property
    def _time_is_up(self) -> bool:
        return bool(self.max_time) and self._agreed >= cast(float, self.max_time) * (1 - 1e-6)

    @property
    def elapsed(self) -> float:
        """Seconds trained so far, earlier parts of a resumed run included."""
        return self.before + (time.monotonic() - self.started if self.started is not None else 0.0)

    def progress(self, learner: Any) -> float:
        """Share of the budget that is used up, 0..1, the same on every rank. Called once a step."""
        if self.max_time:
            self._agreed = max(self._agreed, self.agreement.elapsed(self.elapsed))
        return self.share(learner, self._agreed)

    def share(self, learner: Any, elapsed: float) -> float:
        """The largest share used up of epochs, steps and seconds, 0..1."""
        used = [
            learner.epoch_position / self.max_epochs if self.max_epochs else 0.0,
            learner.global_step / self.max_steps if self.max_steps else 0.0,
            elapsed / self.max_time if self.max_time else 0.0,
        ]
        return min(max(used), 1.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.monotonic()
        self.agreement.start(self.elapsed)
        if self.max_time and self.before >= self.max_time:  # all of it was trained before the run was interrupted
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.agreement.meet(self.elapsed, pl_module.batches_seen % pl_module.steps_per_epoch == 0)
        if self._time_is_up:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not pl_module.interrupted and (self._time_is_up or self.share(pl_module, 0.0) >= 1):  # the last of them
            pl_module.finish()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not pl_module.interrupted:
            pl_module.finish()
        self.before, self.started = self.elapsed, None

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = float(state_dict["elapsed"])
