"""Ends a run of a search that falls behind the others at the same epoch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from sslt import distributed
from sslt.callbacks.budget import Budget
from sslt.runs import Run
from sslt.sweeps import metric as metrics
from sslt.sweeps.folder import Sweep
from sslt.sweeps.study import make_pruner, open_study

log = logging.getLogger("sslt")


class Pruning(pl.Callback):
    """After each measurement of what the search chooses by, the study is told, and asked whether the run is worth its time.

    A pruned run ends as one that somebody stopped: its checkpoint is written, so that it can still be gone on with by itself. Rank 0
    asks. folder: of the sweep; run: the folder of the trial, since what is trained beside it (`compare=scratch`) is none.
    """

    def __init__(
        self, folder: str, run: str, pruner: str, pruner_trials: int, warmup_epochs: int, metric: str | None, direction: str | None
    ):  # fmt: skip
        self.sweep, self.run = Sweep(Path(folder)), Run(run)
        self.kind, self.pruner_trials, self.warmup_epochs = pruner, pruner_trials, warmup_epochs
        self.metric, self.direction = metric, direction
        self._seen: Any = None  # the last measurement

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if Path(trainer.default_root_dir).absolute() != self.run.path.absolute():
            return
        why = self._behind(trainer, pl_module) if distributed.rank() == 0 and not pl_module.interrupted else None
        if distributed.broadcast_object(why):
            pl_module.interrupted = trainer.should_stop = True

    def _behind(self, trainer: pl.Trainer, pl_module: Any) -> str | None:
        """What there is to say of a run that is to end now; None of one that goes on."""
        import optuna

        measured = trainer.callback_metrics
        name, higher, value = metrics.of(self.run, self.metric, self.direction, {k: float(v) for k, v in measured.items()})
        if value is None or measured[name] is self._seen:
            return None
        self._seen = measured[name]
        epoch = pl_module.batches_seen // pl_module.steps_per_epoch
        number = self.sweep.number_of(self.run.path)
        study = open_study(self.sweep.path, make_pruner(self.kind, self.pruner_trials, self.warmup_epochs))
        known = study.get_trials(deepcopy=False)[number]
        trial = optuna.trial.Trial(study, known._trial_id)
        if epoch not in known.intermediate_values:  # a run that was killed measures again what it had told
            trial.report(value if higher else -value, epoch)
        if _is_last(trainer, pl_module) or not trial.should_prune():
            return None
        self.run.update(pruned={"epoch": epoch, "values": {name: value}})
        said = f"pruned after epoch {epoch}: {name} of {value:.4g} falls behind the other trials"
        log.info("%s", said)
        return said


def _is_last(trainer: pl.Trainer, pl_module: Any) -> bool:
    """Whether the run has reached its bound: what is left to do is to measure it."""
    budgets = [c for c in trainer.callbacks if isinstance(c, Budget)]  # type: ignore[attr-defined]
    return trainer.should_stop or any(b.share(pl_module, b.elapsed) >= 1 for b in budgets)
