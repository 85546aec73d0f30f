"""What stands beside every result: the strongest cheap method and the majority's share on the same rows, the same encoder untrained."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import cache
from sslt.data.base import Samples
from sslt.data.streams.subsets import label_rows
from sslt.targets import baselines
from sslt.targets.baselines import Baseline, Rows

log = logging.getLogger("sslt")
FORMAT = 2  # raise it when the methods change


Labels = tuple[float, int | None, int]  # label_fraction, labels_per_class, seed


def cheap(
    cfg: Any, source: Any, samples: Mapping[str, Samples | None], labels: Labels, split: str = "test"
) -> tuple[dict[str, Any], np.ndarray | None]:
    """`baseline/…` and `majority/accuracy` on the rows of `samples` (train, val or none, and `split`), and which rows it has right.

    labels: which part of the training labels `samples` has. Kept on disk by the content of the rows; `baseline=false`: the majority
    alone. Called on one rank.
    """
    train, test = samples["train"], samples[split]
    assert train is not None and test is not None and train.labels is not None and test.labels is not None
    found: dict[str, Any] = {"majority/accuracy": baselines.majority(np.asarray(train.labels), np.asarray(test.labels))}
    if not cfg.baseline:
        return found, None
    key = cache.digest("baseline", FORMAT, source.modality, [None if s is None else s.fingerprint for s in samples.values()])
    entry = cache.get_or_make("baselines", key, lambda folder: _write(source, samples, labels, split, folder))
    found |= {"baseline/accuracy": entry.meta["accuracy"], "baseline/method": entry.meta["method"]}
    if entry.meta["val_accuracy"] is not None:
        found["baseline/val_accuracy"] = entry.meta["val_accuracy"]
    return found, np.array(entry["right"])


def _write(source: Any, samples: Mapping[str, Samples | None], labels: Labels, split: str, folder: Path) -> dict[str, Any]:
    log.info("the cheap methods on the same rows (baseline=false leaves them out)")
    train, val, test = (_rows(source, name, samples[name], labels) for name in ("train", "val", split))
    assert train is not None and test is not None
    best: Baseline = baselines.strongest(source.modality, train, val, test, len(source.classes))
    np.save(folder / "right.npy", best.right)
    shown = None if math.isnan(best.val_accuracy) else best.val_accuracy
    return {"method": best.method, "accuracy": best.accuracy, "val_accuracy": shown}


def _rows(source: Any, split: str, samples: Samples | None, labels: Labels) -> Rows | None:
    """The rows of `samples`: images as they are prepared, texts as the source has them."""
    if samples is None:
        return None
    if source.modality != "text":
        return Rows(samples, np.asarray(samples.labels))
    raw = source.get(split)
    index = np.arange(len(raw))
    if split == "train" and (part := label_rows(raw.labels, *labels)) is not None:
        index = part
    assert len(index) == len(samples)
    return Rows([raw.items[int(i)] for i in index], raw.labels[index])


def compared(ours: str, right: np.ndarray, others: Mapping[str, np.ndarray | None]) -> list[str]:
    """A line for each other in words: by how many points `ours`, right on the rows `right` [M], is ahead or behind, with the interval."""
    lines = []
    for name, theirs in others.items():
        if theirs is None:
            continue
        mean, low, high = (100 * v for v in baselines.difference(right, theirs))
        told = f"{100 * right.mean():.1f} % against {100 * theirs.mean():.1f} %"
        if low <= 0 <= high:
            lines.append(
                f"{ours} and {name} cannot be told apart: {told}, a difference of {mean:+.1f} points (95 %: {low:+.1f} to {high:+.1f})"
            )
        else:
            way, size = ("ahead of", mean) if mean > 0 else ("behind", -mean)
            bounds = sorted((abs(low), abs(high)))
            lines.append(f"{ours} is {size:.1f} points {way} {name}: {told} (95 %: {bounds[0]:.1f} to {bounds[1]:.1f})")
    return lines
