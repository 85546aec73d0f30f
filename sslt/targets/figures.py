"""Pictures of a classifier's predictions, drawn as those of `report/plots.py` are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from sslt.report.plots import COLOURS, GREY, MAX_NAMED, counted, figure, save, short
from sslt.targets.metrics.classes import calibration_bins


def confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """A confusion matrix of counts [C, C], rows true, columns predicted; coloured by the share of each row.

    Up to 20 classes each cell has its count; up to 100 every class is named.
    """
    from matplotlib.colors import PowerNorm

    matrix = np.asarray(matrix)
    n = len(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = float(np.clip(0.5 * n, 3.2, 10 if n <= 40 else 14))
    fig = figure(side + 2.2, side + 1.4)
    ax = fig.add_subplot()
    image = ax.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the rare confusions are what one looks for

    every = 1 if n <= 100 else math.ceil(n / 100)
    ticks = range(0, n, every)
    size = float(np.clip(72 * side / n * 0.62, 4, 9))
    names = [short(classes[i]) for i in ticks]
    upright = max(map(len, names), default=0) * 0.6 * size / 72 > 0.9 * side / n  # inches of text and of a cell
    ax.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=size)
    ax.set_yticks(ticks, names, fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if n <= MAX_NAMED:
        for i, j in np.argwhere(matrix > 0):
            ax.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=min(size, 8),
                    color="white" if share[i, j] > 0.35 else "black")  # fmt: skip
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    accuracy = np.trace(matrix) / max(1, matrix.sum())
    ax.set_title(f"Confusion of {counted(n, 'class', 'classes')}, {accuracy:.1%} correct")
    bar = fig.colorbar(image, ax=ax, shrink=0.6, label="share of the true class")
    bar.outline.set_visible(False)  # type: ignore[operator]
    save(fig, path)


def reliability(logits: Tensor, labels: Tensor, path: Path) -> None:
    """How far the confidence of `logits` [N, C] can be trusted: accuracy against confidence in 15 bins, and counts.

    Guo et al. 2017, figure 1. Raises `UserError` as `classification_metrics` does.
    """
    from matplotlib.ticker import PercentFormatter

    bins = calibration_bins(logits, labels)
    n = len(bins.counts)
    left, filled = np.arange(n) / n, bins.counts > 0
    fig = figure(4.8, 5.6)
    top, bottom = fig.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    top.bar(left[filled], bins.accuracy[filled], 1 / n, align="edge", color=COLOURS[4], edgecolor="white")
    top.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    top.plot(bins.confidence[filled], bins.accuracy[filled], "o", color=COLOURS[0], markersize=4)
    top.text(0.03, 0.95, "above the line: too cautious\nbelow: too confident", va="top", fontsize=8, color=GREY)
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1)
    bottom.bar(left, bins.counts / bins.counts.sum(), 1 / n, align="edge", color="#bbbbbb", edgecolor="white")
    bottom.set_ylabel("samples")
    bottom.set_xlabel("confidence")
    bottom.set_xlim(0, 1)
    for ax in (top, bottom):
        ax.spines[["top", "right"]].set_visible(False)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.xaxis.set_major_formatter(PercentFormatter(1))
    bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    top.set_title(f"Accuracy by confidence, expected calibration error {bins.error:.1%}", fontsize=10)
    save(fig, path)
