"""The joint loss: an unlabelled objective beside the task's, α·L_pretrain + (1-α)·L_finetune."""

from __future__ import annotations

import dataclasses
from typing import Any

from sslt.config import build
from sslt.data.base import Samples, many
from sslt.data.streams.joined import Joined
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.learner import Term
from sslt.stages import common


@dataclasses.dataclass
class Mix:
    """α as a function of progress: a straight line from `start` to `end`; of the task's own terms, (1 - α) · `of_task`."""

    start: float
    end: float
    of_task: float | None = None

    def __call__(self, progress: float) -> float:
        alpha = self.start + (self.end - self.start) * progress
        return alpha if self.of_task is None else (1 - alpha) * self.of_task


def add(cfg: Any, encoder: Encoder, source: Any, parts: common.Parts, own: Samples | None = None) -> None:
    """Add the unlabelled term of `joint=` and weigh the task's terms by what it leaves.

    own: which samples of the task's data it may see (None: all that may be learned from).
    """
    o = cfg.joint
    start, end = o.weight, o.weight if o.final_weight is None else o.final_weight
    for key, value in (("weight", start), ("final_weight", end)):
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"joint.{key}={value}: give α of α·L_pretrain + (1-α)·L_finetune, a number from 0 to 1")
    views = build(o.views)
    if views.modality not in (None, source.modality):
        raise UserError(
            f"joint.views makes views of {many(views.modality)}, but {source.name} holds {many(source.modality)}: choose another +joint="
        )
    unlabelled = source if o.get("data") is None else build(o.data)
    if unlabelled.modality != source.modality:
        raise UserError(f"joint.data holds {many(unlabelled.modality)}, but the task's data are {many(source.modality)}")
    samples = own if own is not None and unlabelled is source else common.prepare(encoder, unlabelled, "unlabeled")
    if parts.unlabelled and o.get("data") is None:
        samples = Joined([samples, *parts.unlabelled])
    if o.pack:
        samples = samples.packed(encoder.processor.max_length)
    if o.batch_size is not None and (not isinstance(o.batch_size, int) or o.batch_size < 1):
        raise UserError(f"joint.batch_size={o.batch_size}: give a whole number, 1 or more, or null for the task's")
    size = o.batch_size or next(iter(parts.streams.values())).batch_size
    parts.streams["joint"] = common.stream(cfg, samples, size, views, drop_last=True)
    for term in parts.terms.values():
        term.weight = Mix(start, end, term.weight_at(0.0))
    parts.terms["joint"] = Term(build(o.objective, encoder), "joint", Mix(start, end))
