"""The Optuna study of a sweep's folder: what was asked, what was told, and what says that a trial falls behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

JOURNAL, STUDY = "trials.log", "sweep"
PRUNERS = ("median", "hyperband")


def open_study(folder: Path, pruner: Any = None) -> Any:
    """The study of a folder, whose values are to be large: a metric that is to be small is told with its sign changed.

    It lies in a journal, which several processes and machines can write to, on network file systems too.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    return optuna.create_study(storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner)


def make_pruner(kind: str, pruner_trials: int, warmup_epochs: int) -> Any:
    """What says which trials fall behind.

    median: those whose best number is below the median of what the finished trials had at the same epoch. hyperband: Li et al., 2018.
    """
    import optuna

    if kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruner_trials, n_warmup_steps=warmup_epochs)
    return optuna.pruners.HyperbandPruner(min_resource=max(1, warmup_epochs))
