"""What is measured between two steps of a training."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

from sslt import signals

log = logging.getLogger("sslt")


def whole_step(trainer: pl.Trainer, pl_module: Any) -> bool:
    """Whether the last batch ended an optimizer step: they begin anew with every epoch."""
    position = pl_module.batches_seen % pl_module.steps_per_epoch
    return bool(position % trainer.accumulate_grad_batches == 0)


class BetweenSteps(pl.Callback):
    """Measures the model as it is. A signal does not wait for the end of it: the run is saved, and whoever goes on measures first.

    What a subclass keeps in its checkpoint is `kept` and `take`.
    """

    owed = False

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        raise NotImplementedError

    def kept(self) -> dict[str, Any]:
        raise NotImplementedError

    def take(self, kept: dict[str, Any]) -> None:
        raise NotImplementedError

    def attempt(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """`measure`, or owe it where a signal comes."""
        try:
            with signals.leavable():
                self.measure(trainer, pl_module)
        except signals.Left:
            log.info("measuring is left for whoever goes on: the run is saved and ends after step %d", pl_module.batches_seen)
            self.owed = pl_module.interrupted = trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.owed:
            self.owed = False
            self.measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**self.kept(), "owed": self.owed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.take(state_dict)
        self.owed = state_dict.get("owed", False)
