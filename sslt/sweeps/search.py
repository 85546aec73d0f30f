"""`hydra/sweeper=optuna`: a search that learns from the trials so far (Optuna; Akiba et al., 2019), by ask and tell.

What was asked and told lies in the sweep's folder, so that a search that was killed goes on with the same trials: the randomness of a
trial is a function of (seed, number), and what it is conditioned on are the batches that ended before its own.
"""

from __future__ import annotations

from typing import Any

from sslt.errors import UserError, nearest
from sslt.runs import Run, display
from sslt.sweeps import metric as metrics
from sslt.sweeps.folder import DONE, Cell
from sslt.sweeps.space import distributions, typed
from sslt.sweeps.study import PRUNERS, open_study
from sslt.sweeps.sweeper import Cells

SAMPLERS = ("tpe", "random")
_COUNTS = ("n_trials", "n_jobs", "startup_trials", "pruner_trials", "warmup_epochs")


class Search(Cells):
    """Cells are trials of an Optuna study. Arguments: see configs/hydra/sweeper/optuna.yaml."""

    def __init__(
        self, n_trials: int, n_jobs: int, sampler: str, startup_trials: int, seed: int, pruner: str | None, pruner_trials: int,
        warmup_epochs: int, params: dict[str, Any] | None, metric: str | None, direction: str | None,
    ):  # fmt: skip
        super().__init__(params, metric, direction)
        self.n_trials, self.n_jobs, self.startup_trials, self.warmup_epochs = n_trials, n_jobs, startup_trials, warmup_epochs
        self.sampler, self.seed, self.pruner, self.pruner_trials = sampler, seed, pruner, pruner_trials

    def check(self) -> None:
        super().check()
        for name in _COUNTS:
            value, least = getattr(self, name), 1 if name in ("n_trials", "n_jobs") else 0
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"hydra.sweeper.{name}={value}: give a whole number, {least} or more")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UserError(f"hydra.sweeper.seed={self.seed}: give a whole number, 0 or more")
        if self.sampler not in SAMPLERS:
            raise UserError(f"hydra.sweeper.sampler={self.sampler}{nearest(str(self.sampler), SAMPLERS)}")
        if self.pruner not in (None, *PRUNERS):
            raise UserError(f"hydra.sweeper.pruner={self.pruner}{nearest(str(self.pruner), PRUNERS)}")
        if self.pruner and self.command.verb not in ("pretrain", "finetune"):
            raise UserError(f"hydra.sweeper.pruner={self.pruner}: `sslt {self.command.verb}` has no curve of its own to be ended by")
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UserError("hydra/sweeper=optuna needs the package optuna: pip install 'sslt[sweep]'") from None

    def cover(self, overrides: list[Any]) -> None:
        space = distributions(overrides)
        if not space:
            raise UserError("there is nothing to search for: give a setting several values, optimizer.lr=tag(log,interval(1e-4,1e-1))")
        fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
        study = open_study(self.folder.path)
        if self.pruner:
            self.command.job.pruning = {
                "_target_": "sslt.sweeps.pruning.Pruning", "folder": str(self.folder.path.absolute()), "pruner": self.pruner,
                "pruner_trials": self.pruner_trials, "warmup_epochs": self.warmup_epochs,
                "metric": self.metric, "direction": self.direction,
            }  # fmt: skip
        for start in range(0, self.n_trials, self.n_jobs):
            numbers = range(start, min(start + self.n_jobs, self.n_trials))
            trials = [self._ask(study, number, space) for number in numbers]
            cells = self.enter([self._cell(trial, fixed, space) for trial in trials])
            mine = [c for c, t in zip(cells, trials, strict=True) if c.number == t.number]  # others had these values before
            self.run([cell for cell in mine if not _is_over(study, trials[cell.number - start])])
            for cell, trial in zip(cells, trials, strict=True):
                if not _is_over(study, trial):
                    self._tell(study, trial, cell)

    def _ask(self, study: Any, number: int, space: dict[str, Any]) -> Any:
        """The trial of a number, its parameters drawn: a new one, or one of before that the folder knows."""
        import optuna

        study.sampler = self._sampler(number)
        known = study.get_trials(deepcopy=False)
        trial = optuna.trial.Trial(study, known[number]._trial_id) if number < len(known) else study.ask()
        if number < len(known) and known[number].state.is_finished():
            return trial
        for key, distribution in space.items():
            trial._suggest(key, distribution)  # of one that is known: what was drawn then
        return trial

    def _sampler(self, number: int) -> Any:
        """A sampler whose randomness is that of one trial."""
        import numpy as np
        import optuna

        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials)

    def _cell(self, trial: Any, fixed: list[str], space: dict[str, Any]) -> tuple[int, list[str], dict[str, str]]:
        chosen = {key: typed(trial.params[key]) for key in space}
        return trial.number, [*fixed, *(f"{k}={v}" for k, v in chosen.items())], chosen

    def _tell(self, study: Any, trial: Any, cell: Cell) -> None:
        """Hand back what a trial came to."""
        from optuna.trial import TrialState

        state = cell.state
        if state not in DONE:
            return  # it goes on, or is tried again, when the sweep is gone on with: what a study was told once it is never told otherwise
        if state == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
            return
        name, higher, value = metrics.of(Run(cell.folder), self.metric, self.direction)
        if value is None:
            error = f"{display(cell.folder)} has no {name}, which the search chooses by: give hydra.sweeper.metric= one that it has"
            self._note(cell, {"code": 2, "error": error, "told": False})
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value if higher else -value)


def _is_over(study: Any, trial: Any) -> bool:
    return bool(study.get_trials(deepcopy=False)[trial.number].state.is_finished())
