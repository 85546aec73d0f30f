"""Numbers while training: kNN and collapse on features during pretraining, validation during fine-tuning."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytorch_lightning as pl

from sslt import distributed
from sslt.callbacks.between_steps import BetweenSteps
from sslt.callbacks.curves import Curves
from sslt.data.base import Samples, stratified
from sslt.data.streams.subsets import of_few_shards
from sslt.encoders.base import Encoder
from sslt.evaluation.features import encode
from sslt.evaluation.spectrum import collapse_report, collapse_warning
from sslt.targets.knn import NEAREST, nearest

log = logging.getLogger("sslt")
SHARE_OF_TIME = 0.02  # of a run's seconds, that one probe may take
FEWEST = 64  # samples of a probe
MOST_OF_RUN, UNNOTICED = 0.2, 10.0  # share of a run's time that its probes may take in all, and seconds that are none to speak of


class OnlineProbe(BetweenSteps):
    """kNN on a few labelled samples, and a warning in words when features collapse.

    A seeded, stratified `bank` of training samples classifies `queries` of validation samples, never of the test set: an
    indication for whoever watches, not a result. Without labels only the spectrum is watched. Says when a run ends below where it began.

    encoder: the one that the run will be known by, perhaps a teacher; where weights are averaged, the average is measured. max_time:
    seconds of the run; of fewer samples than asked for, where a probe would take more than `SHARE_OF_TIME` of them.
    """

    def __init__(
        self,
        curves: Curves,
        encoder: Encoder,
        bank: Samples,
        queries: Samples | None,
        every_n_epochs: int,
        samples: int,
        batch_size: int,
        max_time: float | None = None,
    ):
        self.curves, self.encoder, self.every, self.batch_size = curves, encoder, every_n_epochs, batch_size
        self.bank = _subset(bank, samples)
        self.queries = _subset(queries, samples // 2) if queries is not None else None
        self.start: dict[str, float] | None = None
        self.warned: set[str] = set()  # of what was warned already: "features", and names of objectives
        self.last: dict[str, float] = {}
        self.features: Any = None  # of the bank, as last measured
        self._measured_at = -1
        self.max_time = max_time
        self._began, self._spent = time.monotonic(), 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._began, self._spent = time.monotonic(), 0.0
        super().on_train_start(trainer, pl_module)
        if self.start is None:  # what collapse is judged against, and the first point of the curve
            self._keep_to_time(pl_module)
            self.measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if _epoch_due(pl_module, self.every) and self._has_time():
            self.attempt(trainer, pl_module)

    def _has_time(self) -> bool:
        """Whether probes took little of the run so far: epochs of few samples can be shorter than a probe. The same on every rank."""
        allowed = max(UNNOTICED, MOST_OF_RUN * (time.monotonic() - self._began))
        return distributed.broadcast_object(self._spent <= allowed)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.interrupted:
            return
        if self._measured_at != pl_module.batches_seen:  # the bound was no whole epoch
            self.measure(trainer, pl_module)
        elif self.features is None:  # measured before the run was interrupted
            self.features = self._encode(pl_module, self.bank)
        if said := self.below_start(pl_module):
            log.warning("%s", said)

    def below_start(self, pl_module: Any) -> str | None:
        """What to tell the user where kNN ends below what it was before training, by more than chance explains (95 %, normal)."""
        before, after = (self.start or {}).get(NEAREST), self.last.get(f"online/{NEAREST}")
        if before is None or after is None or self.queries is None:
            return None
        n = len(self.queries)
        if before - after <= 1.96 * math.sqrt((before * (1 - before) + after * (1 - after)) / n):
            return None
        return (
            f"the features end below those that training began with: kNN of {100 * after:.1f} % on {n:,} validation samples, "
            f"{100 * before:.1f} % before; {_advice(pl_module)}"
        )

    def _keep_to_time(self, pl_module: Any) -> None:
        """Time a few samples, and watch no more than the time allows."""
        few = self.bank.subset(np.arange(min(len(self.bank), 16)))
        if not self.max_time or len(few) == len(self.bank):
            return
        encode(self.encoder, few, pl_module.device, self.batch_size, "auto")  # allocates
        began = time.perf_counter()
        encode(self.encoder, few, pl_module.device, self.batch_size, "auto")
        each = (time.perf_counter() - began) / len(few)
        wanted = len(self.bank) + (0 if self.queries is None else len(self.queries))
        share = distributed.broadcast_object(SHARE_OF_TIME * self.max_time / (each * wanted))
        if share < 1:
            self._cut([max(int(share * len(part)), FEWEST) for part in (self.bank, self.queries) if part is not None])
            log.info("the probes watch %d samples, so that one takes little of trainer.max_time", len(self.bank))

    def _cut(self, sizes: list[int]) -> None:
        """Watch so many samples of the bank, and of the queries."""
        self.bank = _subset(self.bank, sizes[0])
        if self.queries is not None:
            self.queries = _subset(self.queries, sizes[1])

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Probe the encoder as it is now."""
        began = time.monotonic()
        x = self._encode(pl_module, self.bank)
        self.features = x
        now = collapse_report(x)
        values = {f"online/{k}": float(now[k]) for k in ("rankme", "std") if k in now}
        if self.queries is not None and self.bank.answers is not None:
            q = self._encode(pl_module, self.queries)
            values |= {f"online/{k}": v for k, v in nearest(x, self.bank, q, self.queries).items()}
        self.last, self._measured_at = values, pl_module.batches_seen
        self.curves.record(trainer, pl_module, values)
        knn = {NEAREST: values[f"online/{NEAREST}"]} if f"online/{NEAREST}" in values else {}
        self.start = self.start or {k: float(v) for k, v in now.items()} | knn
        troubles = {"features": collapse_warning(self.start, now, min(x.shape[1], len(x) - 1), _advice(pl_module))}
        troubles |= {name: objective.trouble() for name, objective in pl_module.objectives.items()}
        for name, trouble in troubles.items():
            if trouble and name not in self.warned:
                log.warning("step %d: %s", pl_module.batches_seen, trouble)
                self.warned.add(name)
        self._spent += time.monotonic() - began

    def _encode(self, pl_module: Any, samples: Samples) -> Any:
        with pl_module.as_saved():
            return encode(self.encoder, samples, pl_module.device, self.batch_size, "auto")

    def kept(self) -> dict[str, Any]:
        watched = [len(part) for part in (self.bank, self.queries) if part is not None]
        return {
            "start": self.start,
            "warned": sorted(self.warned),
            "last": self.last,
            "measured_at": self._measured_at,
            "watched": watched,
        }

    def take(self, kept: dict[str, Any]) -> None:
        self.start, self.last = kept["start"], kept["last"]
        self._measured_at = kept.get("measured_at", -1)
        if "watched" in kept:
            self._cut(kept["watched"])
        warned = kept["warned"]  # of an older checkpoint: whether features were warned of
        self.warned = ({"features"} if warned else set()) if isinstance(warned, bool) else set(warned)


class Validation(BetweenSteps):
    """Numbers of the model as it is, every few epochs and at the end, and which epoch was the best by one of them.

    measure: number format → named scalars. key: the one that says which epoch is best (None: none does), the highest where `sign` is 1,
    the lowest where it is -1. keep: called when it is better than ever, to keep those weights. `highest` holds, for the record, the
    highest value of each number.
    """

    def __init__(
        self,
        curves: Curves,
        measure: Callable[[str], dict[str, float]],
        every_n_epochs: int,
        key: str | None,
        keep: Callable[[], None],
        sign: float = 1.0,
    ):
        self.sign, self.best = sign, -math.inf
        self.curves, self.scores, self.every, self.key, self.keep = curves, measure, every_n_epochs, key, keep
        self.highest: dict[str, float] = {}
        self.best_epoch: float | None = None
        self._measured_at = -1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if _epoch_due(pl_module, self.every):
            self.attempt(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not pl_module.interrupted and self._measured_at != pl_module.batches_seen:
            self.measure(trainer, pl_module)

    def measure(self, trainer: pl.Trainer, pl_module: Any) -> None:
        with pl_module.as_saved():
            found = self.scores("auto")
            self.curves.record(trainer, pl_module, found)
            if self.key is not None and self.sign * found[self.key] > self.best:
                self.best = self.sign * found[self.key]
                self.best_epoch = round(pl_module.epoch_position, 4)
                self.keep()
        self._measured_at = pl_module.batches_seen
        self.highest = {k: max(v, self.highest.get(k, -math.inf)) for k, v in found.items()}

    def kept(self) -> dict[str, Any]:
        return {"highest": self.highest, "best": self.best, "best_epoch": self.best_epoch, "measured_at": self._measured_at}

    def take(self, kept: dict[str, Any]) -> None:
        self.highest, self.best_epoch = kept["highest"], kept["best_epoch"]
        self.best = kept.get("best", self.highest.get(self.key or "", -math.inf))
        self._measured_at = kept.get("measured_at", -1)


def _advice(learner: Any) -> str:
    """What the first objective, the run's own, advises."""
    return next(iter(learner.objectives.values())).advice


def _epoch_due(learner: Any, every: int) -> bool:
    """Whether a whole number of epochs was just ended (a stopped run ends its epoch early) and it is one to measure after."""
    epoch, rest = divmod(learner.batches_seen, learner.steps_per_epoch)
    return bool(every) and rest == 0 and epoch % every == 0


def _subset(samples: Samples, n: int) -> Samples:
    samples = of_few_shards(samples, n)
    if len(samples) <= n:
        return samples
    if samples.answers is not None:
        return samples.subset(stratified(samples.answers.strata, fraction=n / len(samples), seed=0)).held()
    return samples.subset(np.sort(np.random.default_rng(0).choice(len(samples), n, replace=False))).held()
