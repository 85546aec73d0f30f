"""Which of the weights that training leaves are its result, `encoder/`, and which lie beside it: student, teacher, or not averaged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.learner import Learner
from sslt.objectives.base import Objective
from sslt.report.cards import model_card
from sslt.runs import Run
from sslt.stages import common

log = logging.getLogger("sslt")
RAW = "raw"
_OF_THE_RUN = ("train/", "throughput/", "model/", "data/")  # numbers that hold for all its encoders


def of_objective(cfg: Any, objective: Objective, encoder: Encoder) -> dict[str, Encoder]:
    """The encoders that pretraining will leave, by name; first the one that the objective's authors evaluate.

    Raises `UserError` where weights are to be averaged of which a teacher is an average already.
    """
    found = objective.encoders(encoder)
    first = objective.evaluated
    if len(found) > 1:
        if cfg.ema is not None:
            raise UserError(f"ema={cfg.ema}: {cfg.get('name') or 'this objective'} has a teacher, which is such an average: leave out ema=")
        others = " and ".join(f"{name}/" for name in found if name != first)
        log.info("encoder/ will be the %s, as its authors evaluate it, and is what online probes measure; beside it: %s", first, others)
    return {first: found[first], **found}


def save(run: Run, learner: Learner, encoders: Mapping[str, Encoder], cfg: Any, source: Any, metrics: dict[str, Any]) -> list[str]:
    """Write `encoder/`, the first, and each other into a folder of its name. Returns the names of those folders.

    metrics: of the first; says which it is by `encoder/is` where there are several.
    """
    (first, encoder), *others = encoders.items()
    if others:
        metrics["encoder/is"] = first
    for name, other in others:
        _save_beside(run, name, other, cfg, source, metrics)
    save_raw(run, learner, encoder, cfg, source, metrics)
    common.save_result(run, encoder, cfg, source, metrics)
    return [name for name, _ in others] + ([] if learner.average is None else [RAW])


def save_raw(
    run: Run, learner: Learner, encoder: Encoder, cfg: Any, source: Any, metrics: dict[str, Any], also: Callable[[Run], None] | None = None
) -> None:
    """Write `raw/`, the encoder as the last step left it, where its weights are averaged. also: called with that folder, for a head."""
    if learner.average is None:
        return
    with learner.average.applied(learner):
        _save_beside(run, RAW, encoder, cfg, source, metrics)
        if also is not None:
            also(Run(run / RAW, run.is_main))


def _save_beside(run: Run, name: str, encoder: Encoder, cfg: Any, source: Any, metrics: dict[str, Any]) -> None:
    if run.is_main:
        shared = {k: v for k, v in metrics.items() if k.startswith(_OF_THE_RUN)}
        encoder.save(run / name, model_card(run, encoder, cfg, source, {**shared, "encoder/is": name}))
