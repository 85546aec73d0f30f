"""The learning rate of `optimizer.lr=auto`: the one of a few whose short trial ends with the lowest validation loss.

A trial is the run itself made short: the same code, start, batches and random numbers, with warm-up and decay, since a rate that is
judged while it is constant is judged too high. It works on copies, so that the run begins as if nothing had been tried.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from pytorch_lightning.utilities.seed import isolate_rng

from sslt import distributed, precision, stored
from sslt.adaptation.base import Adaptation
from sslt.callbacks.budget import Budget, seconds
from sslt.callbacks.checkpoint import Signals
from sslt.config import RATE, build, searched_around
from sslt.data.base import Samples
from sslt.data.streams.subsets import some
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.processes import accelerator
from sslt.runs import RUN_FILE, Run
from sslt.stages import common, contexts, fitting

log = logging.getLogger("sslt")
FACTORS = (1.0, 1 / 3, 3.0)  # of the recipe's own rate
SHARE = 0.05  # of the run's steps, that a trial has
LEAST_STEPS = 30  # of a trial, where the run has so many
SHARE_OF_TIME = 0.15  # of trainer.max_time, that all trials take
HELD = 1000  # validation samples that a trial is judged by
FOUND = "rate_search"  # of run.json: what a run that goes on does not search again


def settled(
    cfg: Any, run: Run, encoder: Encoder, parts: common.Parts, adaptation: Adaptation, held: Samples | None, *,
    least_steps: int, nothing_to_train: bool,
) -> tuple[Any, dict[str, float]]:  # fmt: skip
    """`cfg` with a number for its learning rate, and less of `trainer.max_time` by what the search took; metrics of the search.

    parts: of the run, its task named "finetune". held: labelled validation samples. least_steps, nothing_to_train: as of `fitting.fit`.
    Raises `UserError` where no rate gives a finite loss.
    """
    own = searched_around(cfg.optimizer.lr)
    if own is None:
        return cfg, {}
    if nothing_to_train:
        log.info("%s=auto: nothing is searched for, as the head is solved and not trained", RATE)
        return _with(cfg, own, 0.0), {}
    found = distributed.broadcast_object(_kept(run))
    if found is None:
        assert held is not None
        search = _Search(cfg, run, encoder, parts, adaptation, some(held, HELD, int(cfg.seed)), least_steps)
        found = distributed.broadcast_object(search.run(own))
        run.update(**{FOUND: found._asdict()})
    return _with(cfg, found.lr, found.seconds), {"train/lr": found.lr, "train/lr_search_seconds": round(found.seconds, 2)}


class _Found(NamedTuple):
    lr: float
    seconds: float


def _kept(run: Run) -> _Found | None:
    """What a run that goes on has found before."""
    info, file = run.info, run / RUN_FILE
    if FOUND not in info:
        return None
    about = stored.value(info, FOUND, dict, file)
    return _Found(*(stored.value(about, key, float, file) for key in _Found._fields))


def _with(cfg: Any, lr: float, spent: float) -> Any:
    changed: dict[str, Any] = {"optimizer": {"lr": lr}}
    if (limit := seconds(cfg.trainer.max_time)) is not None and spent:
        changed["trainer"] = {"max_time": max(round(limit - spent, 2), 0.01 * limit)}
    return OmegaConf.merge(cfg, changed)


class _Search:
    """The trials of one run."""

    def __init__(
        self, cfg: Any, run: Run, encoder: Encoder, parts: common.Parts, adaptation: Adaptation, held: Samples, least_steps: int
    ):  # fmt: skip
        self.cfg, self.run_, self.encoder, self.parts, self.adaptation, self.held = cfg, run, encoder, parts, adaptation, held
        self.sampling = build(cfg.sampling)
        self.began = time.monotonic()
        whole = fitting.bounds(cfg, parts.streams, self.sampling, least_steps)
        steps = fitting.total_steps(cfg, parts.streams, self.sampling, whole)
        self.steps = length(steps)
        self.max_time = whole.max_time

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    def run(self, own: float) -> _Found:
        """The best rate around `own`; `own` where there is no time for trials of `LEAST_STEPS`."""
        limit = self._limit(own)
        losses: dict[float, float] = {}
        for rate in [] if limit is not None and limit <= 0 else [_rounded(factor * own) for factor in FACTORS]:
            losses[rate], steps = self._trial(rate, Budget(None, self.steps, limit))
            if limit is not None and steps < min(LEAST_STEPS, self.steps or LEAST_STEPS):
                losses = {}
                break
        if not losses:
            log.info("%s=auto: trainer.max_time leaves no time to search, so that the recipe's own %g is taken", RATE, own)
            return _Found(own, self.spent)
        best = min(losses, key=lambda rate: (losses[rate] if math.isfinite(losses[rate]) else math.inf, rate))
        tried = ", ".join(f"{losses[rate]:.4f} at {rate:g}" for rate in sorted(losses))
        if not math.isfinite(losses[best]):
            raise UserError(f"{RATE}=auto: no rate that was tried gives a finite loss (validation: {tried}): give a smaller number")
        log.info("%s=auto: validation loss %s after %d steps: %g is taken (%.1f s)", RATE, tried, steps, best, self.spent)
        return _Found(best, self.spent)

    def _limit(self, own: float) -> float | None:
        """Seconds that a trial may train where the run has so many, what else it takes left out; None: any."""
        if self.max_time is None:
            return None
        self._trial(own, Budget(None, 1, None))  # the first step of a process allocates and compiles
        once = self.spent
        return distributed.broadcast_object((SHARE_OF_TIME * self.max_time - once) / len(FACTORS) - once)

    def _trial(self, rate: float, budget: Budget) -> tuple[float, int]:
        """Validation loss (nats a sample) after training a copy at `rate`, and how many optimizer steps that had.

        The loss, not the metric: on a few hundred samples many rates have the same one.
        """
        cfg = _with(self.cfg, rate, 0.0)
        kind = accelerator(cfg.trainer)
        whole = {id(self.encoder.processor): self.encoder.processor}  # may be large, and is only read
        with isolate_rng():
            encoder, terms, adaptation = copy.deepcopy((self.encoder, self.parts.terms, self.adaptation), whole)
            learner = fitting.learner_of(cfg, encoder, terms, self.parts.streams, adaptation, self.sampling, budget)
            signals = Signals()
            trainer = fitting.trainer_of(cfg, learner, budget, [signals, budget], [], self.run_.path)
            try:
                with contexts.training(cfg, learner, kind, precision.resolve(cfg.trainer.precision, kind), short=True):
                    trainer.fit(learner)
            finally:
                signals.restore()
            if learner.average is not None:
                learner.average.swap(learner)
            target: Any = terms["finetune"].objective
            found = predicted(encoder, target, self.held, common.device_of(cfg), common.eval_batch_size(cfg))
        return target.loss(found, self.held.answers), learner.optimizer_steps


def length(steps: int | None) -> int | None:
    """Optimizer steps of a trial for a run of `steps`; None where that is bounded by time alone."""
    return None if steps is None else min(max(math.ceil(SHARE * steps), LEAST_STEPS), steps)


def _rounded(rate: float) -> float:
    """To three digits, as one would type it."""
    return float(f"{rate:.3g}")
