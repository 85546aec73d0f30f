"""From numbers to words: which objective learns, the table of all, the best by validation, and a picture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from cells import percent

from sslt.evaluation.few_shot import mean_interval
from sslt.evaluation.spectrum import collapse_warning

FALL = 0.01  # share of its first value by which a loss must fall: less is no more than its noise


@dataclasses.dataclass
class Seed:
    """What is measured of an objective with one seed.

    rate: samples a second. loss: at first and at last. dim: of the features. before, after: numbers of `sslt evaluate`, and
    `finetuned`, the accuracy after fine-tuning, of the untrained and of the pretrained encoder. both: where a momentum teacher and its
    student are left, numbers of `sslt evaluate` by these names; evaluated: which of them `after` is of.
    """

    epochs: float
    rate: float
    loss: tuple[float, float]
    dim: int
    before: Mapping[str, float]
    after: Mapping[str, float]
    both: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    evaluated: str = "student"


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The mean of the first and of the last twentieth of a curve."""
    n = max(1, len(values) // 20)
    return statistics.fmean(values[:n]), statistics.fmean(values[-n:])


def problems(seeds: Sequence[Seed]) -> list[str]:
    """Why an objective does not count as learning; [] if it does. Losses and accuracies are means over seeds; no seed may collapse."""
    found = []
    first, last = (statistics.fmean(s.loss[i] for s in seeds) for i in (0, 1))
    if not first - last >= FALL * abs(first):
        found.append("the loss does not fall")
    if any(collapse_warning(*(_spectrum(m) for m in (s.before, s.after)), s.dim, "") for s in seeds):
        found.append("the features collapse")
    if not _mean(seeds, "after", "linear/accuracy") > _mean(seeds, "before", "linear/accuracy"):
        found.append("the linear probe does not beat the untrained encoder's")
    return found


def verdict(seeds: Sequence[Seed], reason: str | None) -> str:
    """ "learns", or why not, with the reason that somebody found."""
    found = problems(seeds)
    return f"{'; '.join(found)} ({reason or 'not looked into yet'})" if found else "learns"


def best(found: Mapping[str, Sequence[Seed]], n: int) -> list[str]:
    """The n tasks with the best linear probe on the validation split, by their first seed; the test split has no say."""
    return sorted(found, key=lambda task: -found[task][0].after["linear/val_accuracy"])[:n]


def table(found: Mapping[str, Sequence[Seed]], encoders: Mapping[str, str], few: str, reasons: Mapping[str, str]) -> str:
    """A Markdown table, those that learn first, each group by its linear probe."""
    scores = {"kNN": "knn/accuracy", "linear probe": "linear/accuracy", f"fine-tuned, {few}": "finetuned"}
    head = ["objective", "encoder", "epochs", "samples/s", "loss", *scores, "RankMe", "verdict"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for task in sorted(found, key=lambda t: (bool(problems(found[t])), -_mean(found[t], "after", "linear/accuracy"))):
        seeds = found[task]
        epochs, rate, first, last = (statistics.fmean(x) for x in zip(*((s.epochs, s.rate, *s.loss) for s in seeds), strict=True))
        cells = [task, encoders[task], f"{epochs:.1f}", f"{rate:,.0f}", f"{first:.3g} → {last:.3g}"]
        cells += [f"{_share(seeds, 'before', key)} → {_share(seeds, 'after', key)}" for key in scores.values()]
        cells += [" → ".join(f"{_mean(seeds, when, 'features/rankme'):.0f}" for when in ("before", "after"))]
        lines.append(f"| {' | '.join([*cells, verdict(seeds, reasons.get(task))])} |")
    return "\n".join(lines)


def teachers(found: Mapping[str, Sequence[Seed]]) -> str:
    """A Markdown table of the student and its momentum teacher, where a run leaves both; empty if none does."""
    lines = [
        "| objective | evaluated by its authors | kNN, student | kNN, teacher | linear, student | linear, teacher |",
        "|---|---|---|---|---|---|",
    ]
    having = {task: [seed.both for seed in seeds] for task, seeds in found.items() if all(seed.both for seed in seeds)}
    for task, both in sorted(having.items()):
        cells = [percent([of[who][key] for of in both]) for key in ("knn/accuracy", "linear/accuracy") for who in ("student", "teacher")]
        lines.append(f"| {task} | {found[task][0].evaluated} | {' | '.join(cells)} |")
    return "\n".join(lines) if having else ""


def picture(found: Mapping[str, Sequence[Seed]], path: Path, title: str) -> None:
    """Bars of the linear probe, best above; a line on each is the untrained encoder's; grey ones do not count as learning."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sslt.report.plots import COLOURS, GREY

    order = sorted(found, key=lambda task: _mean(found[task], "after", "linear/accuracy"))
    figure = Figure(figsize=(6.4, 1.2 + 0.24 * len(order)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, task in enumerate(order):
        values = _values(found[task], "after", "linear/accuracy")
        mean, half = mean_interval(values) if len(values) > 1 else (values[0], 0.0)
        before = 100 * _mean(found[task], "before", "linear/accuracy")
        axes.barh(y, 100 * mean, color="#bbbbbb" if problems(found[task]) else COLOURS[0], xerr=100 * half or None, ecolor=GREY, capsize=2)
        axes.plot([before, before], [y - 0.4, y + 0.4], color=COLOURS[1], linewidth=1.5, label="untrained" if y == 0 else None)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    axes.set_ylim(-0.8, len(order) - 0.2)
    axes.set_xlabel("linear probe, test accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if order:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _values(seeds: Sequence[Seed], when: str, key: str) -> list[float]:
    return [getattr(s, when)[key] for s in seeds]


def _mean(seeds: Sequence[Seed], when: str, key: str) -> float:
    return statistics.fmean(_values(seeds, when, key))


def _share(seeds: Sequence[Seed], when: str, key: str) -> str:
    """A number of one seed, or mean ± interval, in percent."""
    values = _values(seeds, when, key)
    return f"{100 * values[0]:.1f}" if len(values) == 1 else percent(values)


def _spectrum(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[f"features/{name}"] for name in ("rankme", "std")}
