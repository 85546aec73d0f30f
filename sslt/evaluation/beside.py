"""What stands beside every result: the strongest cheap method on the same rows, and what who sees no sample reaches there."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import cache
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.streams.subsets import label_rows
from sslt.targets.base import Rows, Target

log = logging.getLogger("sslt")
FORMAT = 6  # raise it when the methods change


Labels = tuple[float, int | None, int]  # label_fraction, labels_per_class, seed


def cheap(
    cfg: Any, target: Target, source: Any, samples: Mapping[str, Samples | None], labels: Labels, split: str = "test"
) -> tuple[dict[str, Any], Answers | None]:
    """`baseline/…` and what sees no sample, on the rows of `samples` (train, val or none, and `split`), and what the baseline answers.

    labels: which part of the training answers `samples` has. Kept on disk by the content of the rows; `baseline=false`: without the
    baseline. Called on one rank.
    """
    train, test = samples["train"], samples[split]
    assert train is not None and test is not None and train.answers is not None and test.answers is not None
    found: dict[str, Any] = dict(target.trivial(train.answers, test.answers))
    if not cfg.baseline:
        return found, None
    kind = [f"{type(target).__qualname__} of {target.answer.kind}", *target.cheap_settings]
    rows = [None if of is None else of.fingerprint for of in (train, samples["val"], test)]
    key = cache.digest("baseline", FORMAT, kind, source.modality, rows)
    entry = cache.get_or_make("baselines", key, lambda folder: _write(target, source, samples, labels, split, folder))
    if entry.meta["method"] is None:
        return found, None
    found |= entry.meta["more"]
    predictions = Answers.load(entry, entry.meta["predictions"])
    found[f"baseline/{target.primary}"] = target.score(predictions, test.answers)
    found["baseline/method"] = entry.meta["method"]
    if entry.meta["val_score"] is not None:
        found[f"baseline/val_{target.primary}"] = entry.meta["val_score"]
    return found, predictions


def _write(target: Target, source: Any, samples: Mapping[str, Samples | None], labels: Labels, split: str, folder: Path) -> dict[str, Any]:
    log.info("the cheap methods on the same rows (baseline=false leaves them out)")
    train, val, test = (_rows(source, name, samples[name], labels) for name in ("train", "val", split))
    assert train is not None and test is not None
    best = target.cheapest(source.modality, train, val, test)
    if best is None:
        return {"method": None}
    shown = None if math.isnan(best.val_score) else best.val_score
    return {"method": best.method, "val_score": shown, "predictions": best.predictions.save(folder), "more": dict(best.more)}


def _rows(source: Any, split: str, samples: Samples | None, labels: Labels) -> Rows | None:
    """The rows of `samples`: images and histories as they are prepared, texts as the source has them."""
    if samples is None:
        return None
    if source.modality != "text":
        return Rows(samples, samples.answers)
    raw = source.get(split)
    index = np.arange(len(raw))
    if split == "train" and (part := label_rows(raw.answers, *labels)) is not None:
        index = part
    assert len(index) == len(samples)
    return Rows([raw.items[int(i)] for i in index], raw.answers.take(index))


def compared(target: Target, ours: str, predictions: Answers, others: Mapping[str, Answers | None], answers: Answers | None) -> list[str]:
    """A line for each other in words: by how many points `ours` is ahead or behind on the same rows, with the interval."""
    lines: list[str] = []
    assert answers is not None
    for name, theirs in others.items():
        if theirs is None:
            continue
        mean, low, high = (100 * v for v in target.difference(predictions, theirs, answers))
        a, b = (100 * target.score(p, answers) for p in (predictions, theirs))
        unit, of = (" %", "") if target.primary == "accuracy" else ("", f" of {target.primary}")
        told = f"{a:.1f}{unit} against {b:.1f}{unit}{of}"
        if not (low > 0 or high < 0):
            lines.append(
                f"{ours} and {name} cannot be told apart: {told}, a difference of {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
            )
        else:
            way, size = ("ahead of", mean) if mean > 0 else ("behind", -mean)
            bounds = sorted((abs(low), abs(high)))
            lines.append(f"{ours} is {size:.1f} points {way} {name}: {told} (95 %: {bounds[0]:.1f} to {bounds[1]:.1f})")
    return lines
