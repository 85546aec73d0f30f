"""Metrics of tagged spans: those that are exactly right, in both ends and the type, as seqeval counts them strictly."""

from __future__ import annotations

import numpy as np

from sslt.data.ragged import Ragged
from sslt.errors import UserError
from sslt.targets.metrics.intervals import bootstrap


def tag_metrics(predicted: Ragged, true: Ragged, types: list[str]) -> dict[str, float]:
    """Micro averages over all spans: `f1`, `precision`, `recall`; and `type/<name>/precision`, `.../recall`, `.../f1`, `.../support`.

    predicted, true: of the same N texts, int64 [n, 3] of (start, end, type) each. A span counts once however often it is given. A ratio
    0/0 counts as 0 (seqeval's `mode="strict", scheme=IOB2`; Ramshaw & Marcus, 1995). Raises `UserError` for an empty split.
    """
    if not len(true):
        raise UserError("there is nothing to evaluate: the split holds no texts with tags")
    counts = _counted(predicted, true, len(types))
    found = dict(zip(("f1", "precision", "recall"), ratios(counts.sum(0)), strict=True))
    for i, name in enumerate(types):
        f1, precision, recall = ratios(counts[i])
        found |= {f"type/{name}/f1": f1, f"type/{name}/precision": precision, f"type/{name}/recall": recall}
        found[f"type/{name}/support"] = float(counts[i, 2])
    return found


def f1_difference(a: Ragged, b: Ragged, true: Ragged) -> tuple[float, float, float]:
    """By how much the F1 of `a` is above that of `b`, with its 95 % interval over texts."""
    ours, theirs = row_counts(a, true), row_counts(b, true)
    return bootstrap(len(true), lambda index: ratios(ours[index].sum(0))[0] - ratios(theirs[index].sum(0))[0])


def ratios(counts: np.ndarray) -> tuple[float, float, float]:
    """F1, precision and recall of (right, predicted, true)."""
    right, predicted, true = (float(n) for n in counts)
    return 2 * right / max(predicted + true, 1.0), right / max(predicted, 1.0), right / max(true, 1.0)


def row_counts(predicted: Ragged, true: Ragged) -> np.ndarray:
    """Of each text how many spans are right, predicted and true, int64 [N, 3]."""
    return _tally(predicted, true, lambda spans: spans[:, 0], len(true))


def _counted(predicted: Ragged, true: Ragged, n_types: int) -> np.ndarray:
    """Of each type how many spans are right, predicted and true, int64 [C, 3]."""
    return _tally(predicted, true, lambda spans: spans[:, 3], n_types)


def _tally(predicted, true, key, n: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    theirs, ours = _distinct(predicted), _distinct(true)
    both, times = np.unique(np.concatenate([theirs, ours]), axis=0, return_counts=True)
    return np.stack([np.bincount(key(spans), minlength=n) for spans in (both[times == 2], theirs, ours)], 1)


def _distinct(spans: Ragged) -> np.ndarray:
    """(text, start, end, type) of every span, once, int64 [n, 4]."""
    rows = np.repeat(np.arange(len(spans)), spans.sizes)
    return np.unique(np.concatenate([rows[:, None], spans.flat().reshape(-1, 3)], 1).astype(np.int64), axis=0)
