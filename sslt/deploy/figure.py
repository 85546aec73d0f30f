"""Score against latency, with every variant on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslt.report.plots import COLOURS, GREY, MARKERS, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def score_against_latency(rows: Sequence[Mapping[str, Any]], primary: str, batch_size: int, path: Path) -> None:
    """`draw` in a file of its own."""
    fig = figure(6.4, 4.2)
    draw(fig.add_subplot(), rows, primary, batch_size, "Score against latency")
    save(fig, path)


def draw(ax: Axes, rows: Sequence[Mapping[str, Any]], primary: str, batch_size: int, title: str) -> None:
    """A point a row: its median latency at `batch_size` (to its 95th percentile, a line), and its score.

    Upright lines are the 95 % interval of the difference to the first row, around that row's score.
    """
    first = rows[0][primary]
    for i, row in enumerate(rows):
        x, wide = row[f"latency/{batch_size}/p50_ms"], row[f"latency/{batch_size}/p95_ms"]
        y, colour = row[primary], COLOURS[i % len(COLOURS)]
        ax.plot([x, max(x, wide)], [y, y], color=colour, linewidth=1, alpha=0.6)
        if "difference_low" in row:
            ends = sorted(first + s * row[k] for k in ("difference_low", "difference_high") for s in (_sign(row, first, primary),))
            ax.plot([x, x], ends, color=colour, linewidth=1, alpha=0.6)
        ax.plot([x], [y], color=colour, marker=MARKERS[i % len(MARKERS)], linestyle="")
        ax.annotate(str(row["variant"]), (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    ax.axhline(first, color=GREY, linewidth=0.6, linestyle=":")
    ax.set_xscale("log")
    ax.margins(x=0.25, y=0.2)
    ax.set_xlabel(f"milliseconds a call of {batch_size}, median (line: to the 95th percentile)")
    ax.set_ylabel(f"{primary} on test")
    ax.set_title(title)


def _sign(row: Mapping[str, Any], first: float, primary: str) -> int:
    """-1 where a lower metric is the better one, so that being ahead lies below."""
    moved, ahead = row[primary] - first, row["difference"]
    return -1 if moved * ahead < 0 else 1
