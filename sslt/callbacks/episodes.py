"""Few-shot accuracy on validation classes while training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl

from sslt.callbacks.between_steps import BetweenSteps, whole_step
from sslt.callbacks.curves import Curves
from sslt.data.streams.episodes import ClassSet
from sslt.evaluation.episodes import episode_accuracies


class EpisodeValidation(BetweenSteps):
    """Accuracy on the same episodes of validation classes every few steps and at the end; remembers the best.

    best: called when it is the best so far (to keep those weights where the user asked for them). every_n_steps: 0 is never.
    """

    def __init__(
        self, curves: Curves, method: Any, classes: ClassSet, draws: np.ndarray, shot: int, every_n_steps: int, batch_size: int,
        best: Callable[[], None] | None = None,
    ):  # fmt: skip
        self.curves, self.method, self.classes, self.draws, self.shot = curves, method, classes, draws, shot
        self.every, self.batch_size, self.on_best = every_n_steps, batch_size, best
        self.best = -1.0
        self.last: dict[str, float] = {}
        self._measured_at = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.every and pl_module.batches_seen % self.every == 0 and whole_step(trainer, pl_module):
            self.attempt(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.every and not pl_module.interrupted and self._measured_at != pl_module.batches_seen:
            self.measure(trainer, pl_module)

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score the validation episodes."""
        with pl_module.as_saved():
            self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        device, encoder = pl_module.device, pl_module.measured
        found = episode_accuracies(
            self.method, encoder, self.classes, self.draws, self.shot, device, self.batch_size, number_format="auto", cached=False
        )
        self._measured_at = pl_module.batches_seen
        self.last = {"val/accuracy": float(found.mean())}
        self.curves.record(trainer, pl_module, self.last)
        if self.last["val/accuracy"] > self.best:
            self.best = self.last["val/accuracy"]
            if self.on_best is not None:
                self.on_best()

    def kept(self) -> dict[str, Any]:
        return {"best": self.best, "last": self.last, "measured_at": self._measured_at}

    def take(self, kept: dict[str, Any]) -> None:
        self.best, self.last, self._measured_at = kept["best"], kept["last"], kept["measured_at"]
