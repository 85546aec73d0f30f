"""The measurements of the stages: a target on a split as it is, corrupted, or as a stream that it adapts to."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from sslt import distributed
from sslt.config import build
from sslt.data.answers import Class
from sslt.data.base import Samples, many
from sslt.data.streams.subsets import some
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.evaluation.features import MEASURED, predicted
from sslt.runs import Run
from sslt.targets.base import Target
from sslt.targets.classification import Classification

log = logging.getLogger("sslt")


class Measured(NamedTuple):
    """What was measured, and what was answered."""

    metrics: dict[str, Any]
    predictions: Any


def measured(
    encoder: Encoder, target: Target, samples: Samples, device: torch.device, batch: int, split: str,
    *, detail: bool = True, figures: Run | None = None, number_format: str = MEASURED,
) -> Measured:  # fmt: skip
    """A target over a whole split, its metrics named `<split>/…`; with `figures`, its pictures. detail: not only what is watched."""
    assert samples.answers is not None
    predictions = predicted(encoder, target, samples, device, batch, number_format)
    found = target.measure(predictions, samples.answers)
    named: dict[str, Any] = {f"{split}/{k}": float(v) for k, v in found.items() if detail or k == target.primary or k in target.watched}
    if figures is not None and figures.is_main:
        target.figures(figures.path, split, predictions, samples.answers)
        for name, note in target.notes(samples.answers).items():
            log.info("%s/%s: %s", split, name, note)
            named[f"{split}/{name}"] = note
    return Measured(named, predictions)


def watched(
    encoder: Encoder, target: Target, samples: Samples, device: torch.device, batch: int, split: str, number_format: str
) -> dict[str, float]:
    """What is watched while training: of a target that answers slowly, a few rows answered, and all judged."""
    few = samples if target.watched_rows is None else some(samples, target.watched_rows, 0)
    found = measured(encoder, target, few, device, batch, split, detail=False, number_format=number_format).metrics
    if len(few) < len(samples):
        judged = target.judged(predicted(encoder, target, samples, device, batch, number_format, how=target.judge))
        found |= {f"{split}/{k}": v for k, v in judged.items()}
    return found


def corrupted(cfg: Any, encoder: Encoder, samples: Samples) -> Samples:
    """The samples under `corruption=`."""
    from sslt.data.views.corruptions import Corrupted

    corruption = build(cfg.corruption)
    if corruption.modality != encoder.modality:
        raise UserError(
            f"corruption {corruption.name} is for {many(corruption.modality)}, but from={cfg['from']} reads {many(encoder.modality)}"
        )
    corruption.fit(encoder.processor)
    return Corrupted(samples, corruption, cfg.seed)


def test_time(cfg: Any, encoder: Encoder, target: Target, samples: Samples, device: torch.device) -> dict[str, float]:
    """Metrics, named `test_time/…`, of a classifier that adapts to the split as a stream of batches in shuffled order.

    Each rank would adapt to its share alone: one process only.
    """
    if distributed.active():
        raise UserError("test_time= follows one stream: set trainer.devices=1")
    if not isinstance(target, Classification):
        raise UserError(f"test_time= adapts by the entropy of classes, and this target answers with {target.answer.words}")
    adapter = build(cfg.test_time)
    adapter.start(encoder.to(device), lambda e, inputs: target.scores(e, inputs).float())
    order = np.random.default_rng([cfg.seed, 0x7E57]).permutation(len(samples))
    parts = []
    target.to(device).eval()
    for i in range(0, len(order), cfg.batch_size):
        batch = {k: v.to(device) for k, v in samples.batch(order[i : i + cfg.batch_size]).items()}
        parts.append(adapter.predict(encoder.inputs(batch)).cpu())
    logits = torch.cat(parts)
    assert samples.answers is not None
    adapted = target.measure(Class(logits.argmax(1).numpy(), target.space, scores=logits.numpy()), samples.answers.take(order))
    return {f"test_time/{k}": float(v) for k, v in adapted.items() if "/" not in k and k not in ("precision", "recall")}
