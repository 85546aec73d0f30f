"""Pictures of a run. Each function writes one file, whole or not at all, in the format its name ends in (else PNG).

Figures are made without pyplot, whose global state is neither thread-safe nor needed. Colours are those of Okabe and
Ito, which the colour-blind can tell apart, and matplotlib's perceptually uniform maps.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.cache import write_atomic
from sslt.report.curves import MetricsCSV
from sslt.scales import is_share, of_part

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "^", "s")  # with the colours: 21 kinds of points that can be told apart
GREY = "#666666"

MAX_NAMED = 20  # names that a legend holds
MAX_POINTS = 600  # of an embedding map: whoever waits for the run waits a second for them, and six for twice as many
MIN_TSNE = 50
MAX_PANELS = 12
SMOOTH_FROM = 200  # points of a curve from which on a running mean is drawn over it

log = logging.getLogger("sslt")


def views_grid(views: Tensor, path: Path, max_samples: int = 12) -> None:
    """What the encoder sees: `views` [V, B, C, H, W] in 0..1, a row per view, a column per sample."""
    n_views, n_samples = views.shape[0], min(views.shape[1], max_samples)
    title = f"{counted(n_views, 'view')} of {counted(n_samples, 'sample')}, a column each"
    _grid(views[:, :n_samples], [f"view {v + 1}" for v in range(n_views)], None, title, path)


def picture_grid(rows: Mapping[str, Tensor], captions: Sequence[str] | None, path: Path) -> None:
    """What an objective draws: `rows` name → [N, C, H, W] in 0..1, all of one shape; `captions` [N] under the columns."""
    _grid(torch.stack(list(rows.values())), list(rows), captions, None, path)


def _grid(tiles: Tensor, names: Sequence[str], captions: Sequence[str] | None, title: str | None, path: Path) -> None:
    """Tiles [rows, columns, C, H, W] in 0..1 on one canvas."""
    n_views, n_samples = tiles.shape[:2]
    tiles = tiles.detach().cpu().float().clamp(0, 1).nan_to_num(0)
    tiles = tiles[:, :, :3] if tiles.shape[2] >= 3 else tiles[:, :, :1].expand(-1, -1, 3, -1, -1)
    height, width = tiles.shape[-2:]
    gap = max(1, width // 16)
    canvas = torch.ones(n_views * (height + gap) - gap, n_samples * (width + gap) - gap, 3)
    for v in range(n_views):
        for b in range(n_samples):
            y, x = v * (height + gap), b * (width + gap)
            canvas[y : y + height, x : x + width] = tiles[v, b].permute(1, 2, 0)

    inches = max(0.9, 5 / n_samples)  # per tile, so that a few samples still make a picture of some width
    fig = figure(0.7 + inches * n_samples, 0.5 + inches * n_views * height / width)
    ax = fig.add_subplot()
    ax.imshow(canvas.numpy(), interpolation="nearest" if max(height, width) < 128 else "antialiased")
    places = [b * (width + gap) + width / 2 for b in range(n_samples)] if captions else []
    ax.set_xticks(places, [short(c, 60) for c in captions or []], fontsize=7)
    ax.set_yticks([v * (height + gap) + height / 2 for v in range(n_views)], names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)
    save(fig, path)


def label_curves(lines: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Score 0..1 against the number of labels, on a logarithmic axis; a line for each name's (labels, score) points."""
    fig = figure(5.2, 3.6)
    ax = fig.add_subplot()
    for i, (name, points) in enumerate(lines.items()):
        ordered = sorted(points)
        ax.plot([n for n, _ in ordered], [100 * s for _, s in ordered], color=COLOURS[i % 7], marker=MARKERS[i % 3], label=name)
    ax.set_xscale("log")
    ax.set_xlabel("labels")
    ax.set_ylabel("score on test, %")
    ax.legend(frameon=False)
    ax.set_title("Score against labels")
    save(fig, path)


def curves(metrics_csv: Path, path: Path) -> None:
    """Every scalar of a `MetricsCSV` over the steps, a panel each: losses first, then learning rates, then the rest.

    Names that differ only before the last `/` share a panel (`train/loss` and `val/loss`). Values that are not finite
    leave gaps; names with no finite value and those of parts of a split are not drawn.
    """
    panels = _panels(MetricsCSV.read(metrics_csv))
    if not panels:
        fig = figure(5, 2)
        fig.text(0.5, 0.5, "no numbers recorded yet", ha="center", va="center", color=GREY)
        save(fig, path)
        return
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    fig = figure(0.4 + 3.6 * columns, 2.5 * rows)
    axes = fig.subplots(rows, columns, squeeze=False).reshape(-1)
    for ax, (name, series) in zip(axes, panels.items(), strict=False):
        _curve_panel(ax, name, series)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[max(0, len(panels) - columns) : len(panels)]:
        ax.set_xlabel("step")
    save(fig, path)


Series = tuple[np.ndarray, np.ndarray]  # steps, values


def _panels(record: Mapping[str, tuple[list[int], list[float]]]) -> dict[str, dict[str, Series]]:
    """Panel name -> full metric name -> series, in the order of drawing, at most `MAX_PANELS`."""
    panels: dict[str, dict[str, Series]] = {}
    for name in sorted(record):
        steps, values = np.array(record[name][0]), np.array(record[name][1], dtype=float)
        if not of_part(name) and np.isfinite(values).any():
            panels.setdefault(name.rsplit("/", 1)[-1], {})[name] = (steps, values)

    def place(panel: str) -> tuple[int, str]:
        is_rate = panel.startswith(("lr", "learning_rate"))
        return 0 if "loss" in panel else 1 if is_rate else 2 if is_share(panel) else 3, panel

    ordered = sorted(panels, key=place)
    if len(ordered) > MAX_PANELS:
        log.info("curves: not drawn for lack of room: %s", ", ".join(ordered[MAX_PANELS:]))
    return {panel: panels[panel] for panel in ordered[:MAX_PANELS]}


def _curve_panel(ax: Axes, name: str, series: Mapping[str, Series]) -> None:
    for i, (full_name, (steps, values)) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        style = "-" if i < len(COLOURS) else "--"
        finite = np.isfinite(values)
        values = np.where(finite, values, np.nan)
        if len(values) > SMOOTH_FROM:
            ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
            steps, values = _running_mean(steps[finite], values[finite])
        few = len(values) <= 30
        label = full_name.rsplit("/", 1)[0]
        ax.plot(steps, values, style, color=colour, linewidth=1.5, label=label, marker="." if few else None)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=7)
    ax.set_title(name if len(series) > 1 else next(iter(series)), fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.2, linewidth=0.6)
    ax.tick_params(labelsize=8)
    ax.locator_params(nbins=5)
    if is_share(name):
        from matplotlib.ticker import PercentFormatter

        ax.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        ax.ticklabel_format(axis="y", scilimits=(-2, 5))


def _running_mean(steps: np.ndarray, values: np.ndarray) -> Series:
    """Mean over windows of a fiftieth of the curve, where the window is full."""
    window = max(2, len(values) // 50)
    half = (window - 1) // 2
    return steps[half : half + len(values) - window + 1], np.convolve(values, np.full(window, 1 / window), "valid")


def embedding_map(x: Tensor, labels: Tensor | None, named: Sequence[str] | None, path: Path, seed: int = 0) -> None:
    """Features [N, D] in two dimensions: t-SNE of at most `MAX_POINTS` of them after PCA to 50, coloured by `labels` [N].

    By the first two principal components where there are fewer than 50 samples, where all are the same, or where
    scikit-learn is not installed. Samples with features that are not finite are left out.
    """
    features = x.detach().cpu().float().numpy()
    index = np.flatnonzero(np.isfinite(features).all(1))
    if len(index) > MAX_POINTS:
        index = np.sort(np.random.default_rng(seed).choice(index, MAX_POINTS, replace=False))
    points, method = _project(features[index], seed)
    fig = figure(7.2, 5.6)
    ax = fig.add_subplot()
    names = None
    if labels is None:
        ax.scatter(points[:, 0], points[:, 1], s=9, c=COLOURS[0], alpha=0.7, linewidths=0)
    else:
        y = labels.detach().cpu().numpy()[index]
        names = list(named) if named is not None else [str(i) for i in range(int(y.max(initial=-1)) + 1)]
        _scatter_named(ax, points, y, names)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_color("#cccccc")
    ax.set_aspect("equal", adjustable="datalim")
    coloured = "" if names is None else f", coloured by {'class' if len(names) <= MAX_NAMED else 'class index'}"
    ax.set_title(f"Features of {counted(len(index), 'sample')} ({method}){coloured}")
    save(fig, path)


def _project(features: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Points [N, 2] and the name of the method."""
    centred = torch.from_numpy(features - features.mean(0, keepdims=True)) if len(features) else torch.zeros(0, 1)
    if len(centred) == 0 or float(centred.abs().max()) == 0:
        return np.zeros((len(centred), 2)), "all at one point"
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    components = (u * s)[:, :50].numpy()
    if len(components) >= MIN_TSNE:
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            log.info("scikit-learn is not installed: the embedding map shows principal components, not t-SNE")
        else:
            # From principal components half of the usual steps is enough: divergences of 0.45 and 0.44, in a third of the time (digits).
            tsne = TSNE(2, perplexity=min(30, (len(components) - 1) / 3), init="pca", max_iter=500, random_state=seed)
            return tsne.fit_transform(components), "t-SNE"
    return np.pad(components, ((0, 0), (0, 2)))[:, :2], "principal components"


def _scatter_named(ax: Axes, points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    if len(names) > MAX_NAMED:
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=9,
            c=labels,
            cmap="viridis",
            vmin=0,
            vmax=len(names) - 1,
            alpha=0.8,
            linewidths=0,
        )
        return
    for i, name in enumerate(names):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)]
        own = points[labels == i]
        ax.scatter(own[:, 0], own[:, 1], s=11, c=colour, marker=marker, alpha=0.7, linewidths=0, label=short(name))
    legend = ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, markerscale=2)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    out: Any = io.BytesIO()
    kind = path.suffix[1:] or "png"
    if kind == "png":
        fig.canvas.print_png(out)  # type: ignore[attr-defined]  # savefig draws all of it once more, to lay it out
    else:
        fig.savefig(out, format=kind)
    write_atomic(path, out.getvalue())


def short(name: str, most: int = 24) -> str:
    """A name that fits beside an axis; `$` would start mathematics."""
    name = str(name).replace("$", r"\$")
    return name if len(name) <= most else name[: most - 1] + "…"


def counted(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
