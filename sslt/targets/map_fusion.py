"""A model of pixels beside an encoder that draws maps: what each says of a pixel is weighed on validation (late fusion)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Map
from sslt.data.base import Samples
from sslt.data.streams.subsets import in_order, some
from sslt.encoders.base import Encoder, evaluating
from sslt.targets import fusion
from sslt.targets.map_heads import in_own_size, resized
from sslt.targets.metrics.maps import map_metrics
from sslt.targets.pixel_models import CHUNK, drawn, solve

log = logging.getLogger("sslt")
PIXELS, IMAGES = 20_000, 300  # of validation, that the two are weighed on and judged by, at most


def add(target: Any, encoder: Encoder, train: Samples, val: Samples, device: torch.device) -> dict[str, float]:
    """Put the model of pixels that is best on `val` beside the encoder, most likely weighed or, if better, alone.

    Nothing changes where neither is better than the encoder alone. target: `Segmentation`. Returns the mean IoU of the two on `val`.
    """
    models = [model.to(device) for model in solve(train, len(target.space["classes"]))]
    if not models:
        return {}
    val = some(val, IMAGES, 0)
    rng, each = np.random.default_rng(0), max(1, PIXELS // len(val))
    maps: list[list[Map]] = []
    scores: list[Tensor] = []
    truth: list[Tensor] = []
    for batch in _batches(val, device):
        with evaluating(encoder), evaluating(target):
            inputs = encoder.inputs(batch)
            own = resized(target.scores(encoder, inputs), inputs["image"]).float()
            every = [own, *(model(encoder, inputs) for model in models)]
        maps.append([in_own_size(s, batch, target.space) for s in every])
        for i, classes in enumerate(batch["map"].flatten(1)):
            index = drawn(classes, each, rng)
            scores.append(torch.stack([s[i].flatten(1)[:, index].T for s in every]))
            truth.append(classes[index].long())
    own_miou, *others = [_miou([row[k] for row in maps], val) for k in range(1 + len(models))]
    k = max(range(len(models)), key=others.__getitem__)
    model, alone = models[k], others[k]
    own_share, factor = fusion.weigh(list(torch.cat(scores, 1)[[0, 1 + k]]), torch.cat(truth), fusion.CLASSES.loss)
    model.scale(factor)
    model.share.fill_(own_share)
    target.beside.append(model)
    with evaluating(encoder), evaluating(target):
        together = _miou([target.predict(encoder, batch) for batch in _batches(val, device)], val)
    log.info("on validation the encoder has a mean IoU of %.1f, %s %.1f, both together %.1f (late_fusion=false: the encoder alone)",
             100 * own_miou, model.title, 100 * alone, 100 * together)  # fmt: skip
    if not max(alone, together) > own_miou:
        del target.beside[-1]
    elif alone > together:
        log.info("%s alone is better than both together: it answers alone", model.title)
        model.share.zero_()
    return {"val/encoder_miou": own_miou, f"val/{model.name}_miou": alone}


def _batches(samples: Samples, device: torch.device) -> Any:
    return ({k: v.to(device) for k, v in batch.items()} for batch in in_order(samples, CHUNK))


def _miou(parts: list[Map], samples: Samples) -> float:
    assert isinstance(samples.answers, Map)
    return map_metrics(Map.join(parts), samples.answers)["miou"]
