"""A linear tagger beside a fine-tuned encoder: their log-probabilities of every token's tag are added up (late fusion)."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Tags
from sslt.data.base import Samples
from sslt.data.ragged import Ragged
from sslt.encoders.base import Encoder, evaluating
from sslt.targets import bio, fusion
from sslt.targets.linear_tagger import DEMANDS, LinearTagger, mixed
from sslt.targets.metrics.tags import tag_metrics

log = logging.getLogger("sslt")
BATCH = 64
EQUAL = (0.5, 0.5, 0.0)  # where nothing can be weighed
ENCODER, LINEAR, BOTH = "encoder", "linear_tagger", "together"


class Held(NamedTuple):
    """A batch: log-probabilities [B, L, K] by the encoder and by the linear tagger, words that stay `whole`, places, and its rows."""

    own: Tensor
    whole: Tensor
    others: Tensor
    places: Tensor
    rows: np.ndarray

    def spans(self, mix: Tensor) -> Ragged:
        return bio.decode(mixed(mix, self.own, self.others), self.places, self.whole)[0]


def beside(
    target: Any, encoder: Encoder, train: Samples, val: Samples | None, device: torch.device
) -> tuple[LinearTagger, dict[str, float]]:
    """A linear tagger of the same training texts, with the weights and the demand that are best on `val`; and the F1 that each has there.

    target: `Tagging`, which scores the encoder's tokens. Weights are the most likely ones of the tokens' tags; by F1 validation chooses
    between these and either tagger alone, and how much is demanded of a token to be in no span.
    """
    assert isinstance(train.answers, Tags)
    tagger = LinearTagger.solve([train.text(i) or "" for i in range(len(train))], train.answers).to(device)
    if val is None or not isinstance(val.answers, Tags):
        tagger.mix = tagger.mix.new_tensor(EQUAL)
        return tagger, {}
    held: list[Held] = []
    labels: list[tuple[Tensor, Tensor]] = []
    with evaluating(encoder), evaluating(target):
        for index in val.ordered_batches(BATCH):
            batch = {k: x.to(device) for k, x in val.batch(index).items()}
            own, whole = target.scores(encoder, batch)
            held.append(Held(own, whole, tagger.of_tokens(batch), batch["places"], np.asarray(index)))
            true, text = bio.labels(batch["places"], batch["tags"])
            labels.append((true[text], text))
    both = [torch.cat([part[text] for part, (_, text) in zip(parts, labels, strict=True)])
            for parts in ([h.own for h in held], [h.others for h in held])]  # fmt: skip
    weights = fusion.weigh(both, torch.cat([true for true, _ in labels]), fusion.CLASSES.loss)
    tried = {BOTH: tuple(weights), LINEAR: (0.0, 1.0), ENCODER: (1.0, 0.0)}
    f1 = {}
    for name, shares in tried.items():
        for demand in DEMANDS:
            f1[name, demand] = _f1(held, tagger.mix.new_tensor([*shares, demand]), val.answers)
    best = max(f1, key=lambda key: f1[key])
    tagger.mix = tagger.mix.new_tensor([*tried[best[0]], best[1]])
    found = {name: max(v for (n, _), v in f1.items() if n == name) for name in tried}
    found[ENCODER] = f1[ENCODER, 0.0]  # as it answers alone: nothing is demanded of it then
    log.info("on validation the encoder has an F1 of %.1f, a linear tagger %.1f, both together %.1f (late_fusion=false: the encoder alone)",
             *(100 * found[name] for name in (ENCODER, LINEAR, BOTH)))  # fmt: skip
    if best[0] == LINEAR:
        log.warning("the encoder adds nothing to the linear tagger, which alone tags: train it for longer, or on more texts")
    return tagger, {f"val/{name}_f1": found[name] for name in (ENCODER, LINEAR)}


def _f1(held: list[Held], mix: Tensor, answers: Tags) -> float:
    spans = Ragged.of([row for h in held for row in h.spans(mix)], np.int64, 3)
    return tag_metrics(spans, answers.values.take(np.concatenate([h.rows for h in held])), answers.types)["f1"]
