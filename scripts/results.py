"""What pretraining is worth with few labels and with many: docs/results/first.md and finetuning.md, made cell by cell and resumable.

    python scripts/results.py --data DIR [--only imdb,cifar10] [--recipes crops,simclr] [--seeds 3] [--root FOLDER]

Each cell is one `sslt` command with its defaults in a run folder below --root. What was measured is kept in --kept, so that a cell that is
finished is not run again on another machine either; one that was interrupted goes on. The documents are written from that file after
every set.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

from cells import SEEDS, Cells, about, parser, percent
from sets import SETS, Set, find

# modality → recipe → settings; the minutes are those of the set
RECIPES = {
    "text": {"crops": ["+task=crops"]},
    "image": {"patches": ["+task=patch_kmeans"], "simclr": ["+task=simclr"]},
}
# set → recipe → which of these it is, for how many minutes
LONGER = {"cifar10": {"simclr_20": ("simclr", 20)}}
ARMS = {"probe": ["adaptation=probe"], "full": []}


class Regime(NamedTuple):
    """How many labels fine-tuning has."""

    name: str
    settings: list[str]


REGIMES = [
    Regime("5 a class", ["labels_per_class=5"]),
    Regime("20 a class", ["labels_per_class=20"]),
    Regime("1 %", ["label_fraction=0.01"]),
    Regime("10 %", ["label_fraction=0.1"]),
    Regime("all", []),
]
FEW_AND_ALL = [*REGIMES[:4], Regime("all", ["trainer.max_time=00:00:10:00"])]  # of images an epoch of all takes minutes
OTHER_REGIMES = {
    "cifar10": FEW_AND_ALL,
    "fashion_mnist": FEW_AND_ALL,
    "mnist": FEW_AND_ALL,
    "imdb": [*REGIMES[:2], Regime("250 a class", ["labels_per_class=250"]), Regime("1,250 a class", ["labels_per_class=1250"]), REGIMES[4]],
    "usps": [*REGIMES[:2], *REGIMES[3:]],  # 1 % are 6 of a class
    "trec": [*REGIMES[:2], *REGIMES[3:]],
    "kitchen": [*REGIMES[:2], *REGIMES[3:]],
    "banking77": [*REGIMES[:2], REGIMES[4]],  # 1 % and 10 % are 1 and 10 of a class
    "clinc150": [*REGIMES[:2], REGIMES[4]],
}


def regimes(name: str) -> list[Regime]:
    return OTHER_REGIMES.get(name, REGIMES)


def recipes(name: str) -> list[str]:
    """The ways to pretrain on a set."""
    return [*RECIPES[SETS[name][0]], *LONGER.get(name, {})]


def pretraining(name: str, of: Set, recipe: str) -> list[str]:
    """The settings of `sslt pretrain`."""
    base, minutes = LONGER.get(name, {}).get(recipe, (recipe, of.minutes))
    time = f"trainer.max_time=00:{int(minutes):02}:{int(minutes * 60) % 60:02}"
    return [*RECIPES[of.modality][base], *of.corpus, time]


def measure(cells: Cells, name: str, of: Set, recipe: str, seed: int, only: list[str], arms: list[str]) -> None:
    """All cells of a set by a recipe with a seed, which is that of pretraining, of the draw of labels and of fine-tuning."""
    start = f"{name}-{recipe}-{seed}"

    def pretrained() -> str:
        command = ["pretrain", *pretraining(name, of, recipe), f"seed={seed}"]
        cells.measure(start, *command)
        return str(cells.run(start, *command))

    labelled = [of.target[0].replace("+target", "data"), *of.target[1:]]
    cells.measure(f"{start}-evaluate", "evaluate", lambda: f"from={pretrained()}", *labelled)
    for regime in regimes(name):
        if only and regime.name not in only:
            continue
        common = [*of.target, f"seed={seed}", *regime.settings]
        for arm in arms:
            cells.measure(f"{start}-{regime.name}-{arm}", "finetune", lambda: f"from={pretrained()}", *common, *ARMS[arm])
        if "full" in arms:
            cells.measure(f"{start}-{regime.name}-scratch", "finetune", lambda: f"from=scratch:{pretrained()}", *common)


def chosen(cells: Cells, start: str, regime: str) -> list[float]:
    """Test accuracy of probe or fine-tuning, whichever is better on the validation split, by seed."""
    best = []
    for seed in SEEDS:
        arms = [cells.found.get(f"{start}-{seed}-{regime}-{arm}") for arm in ARMS]
        if all(arms):
            best.append(max((a for a in arms if a), key=lambda a: a.get("val/accuracy", 0.0))["test/accuracy"])
    return best


def first(cells: Cells, name: str, of: Set, recipe: str) -> list[str]:
    """The section of a set and a recipe in first.md."""
    start = f"{name}-{recipe}"
    # files that had to be made are there by default
    settings = [setting.replace(str(cells.root), "runs/results") for setting in pretraining(name, of, recipe)]
    lines = [f"### {name}, {recipe}", "", f"`{' '.join(['sslt pretrain', *settings])}`", ""]
    lines += [NOTES[name, recipe], ""] if (name, recipe) in NOTES else []
    probed = {k: cells.values(f"{start}-[0-9]-evaluate", k) for k in (
        "untrained/knn/accuracy", "knn/accuracy", "untrained/linear/accuracy", "linear/accuracy", "baseline/accuracy")}  # fmt: skip
    steps = cells.values(f"{start}-[0-9]", "train/steps")
    if steps:
        lines += [f"{statistics.mean(steps):,.0f} steps, {statistics.mean(cells.values(f'{start}-[0-9]', 'train/epochs')):.1f} epochs.", ""]
    lines += [
        f"All labels, untrained → pretrained: kNN {percent(probed['untrained/knn/accuracy'])} → {percent(probed['knn/accuracy'])}, "
        f"linear {percent(probed['untrained/linear/accuracy'])} → {percent(probed['linear/accuracy'])}; "
        f"cheap baseline {percent(probed['baseline/accuracy'])}.",
        "",
        "| labels | cheap baseline | from scratch | probe | full | the better on validation | ahead of the baseline |",
        "|---|---|---|---|---|---|---|",
    ]
    for regime in regimes(name):
        if row := _row(cells, start, regime):
            lines.append(row)
    return lines


def _row(cells: Cells, start: str, regime: Regime) -> str | None:
    ours = chosen(cells, start, regime.name)
    if not ours:
        return None
    found = {arm: cells.values(f"{start}-[0-9]-{regime.name}-{arm}") for arm in (*ARMS, "scratch")}
    cheap = cells.values(f"{start}-[0-9]-{regime.name}-probe", "baseline/accuracy")
    labels = int(cells.values(f"{start}-[0-9]-{regime.name}-probe", "train/labels")[0])
    ahead = 100 * (statistics.mean(ours) - statistics.mean(cheap))
    cells_ = [percent(v) for v in (cheap, found["scratch"], found["probe"], found["full"], ours)]
    return f"| {regime.name} ({labels:,}) | {' | '.join(cells_)} | {ahead:+.1f} |"


def rules(cells: Cells, names: list[str]) -> list[str]:
    """finetuning.md: in how many cells fine-tuning of the whole encoder is no worse than what it is compared with."""
    lines = ["| set, start | labels | full - probe | full - scratch | full - cheap baseline |", "|---|---|---|---|---|"]
    tally: dict[str, list[float]] = {"probe": [], "scratch": [], "baseline": []}
    for name in names:
        for recipe in recipes(name):
            for regime in regimes(name):
                start = f"{name}-{recipe}-[0-9]-{regime.name}"
                full = cells.values(f"{start}-full")
                against: dict[str, Any] = {arm: cells.values(f"{start}-{arm}") for arm in ("probe", "scratch")}
                against["baseline"] = cells.values(f"{start}-full", "baseline/accuracy")
                if not full or not all(against.values()):
                    continue
                gaps = {k: 100 * (statistics.mean(full) - statistics.mean(v)) for k, v in against.items()}
                for k, gap in gaps.items():
                    tally[k].append(gap)
                lines.append(f"| {name}, {recipe} | {regime.name} | {' | '.join(f'{gaps[k]:+.1f}' for k in tally)} |")
    told = [
        f"{sum(g >= -0.5 for g in gaps)} of {len(gaps)} cells at most half a point below {what} ({statistics.mean(gaps):+.1f} on average)"
        for what, gaps in (("the probe", tally["probe"]), ("training from scratch", tally["scratch"]))
        if gaps
    ]
    if tally["baseline"]:
        told.append(f"{sum(g > 0 for g in tally['baseline'])} of {len(tally['baseline'])} above the cheap baseline")
    return [f"Fine-tuning of all weights is in {'; in '.join(told)}.", "", *lines]


# what the numbers do not say
NOTES = {
    ("cifar10", "simclr"): "Six epochs, of one core. Fine-tuned this network is ahead of patches with any number of labels, most with "
    "many; as they are, features of patches are ahead (linear 71.1, kNN 71.2). With many labels it is not far behind from scratch.",
}
HOW = """Made by `python scripts/results.py --data DIR`; {about}.
Every cell is a command with its defaults. Three seeds unless a cell says otherwise, each with a pretraining and a draw of labels of its
own; mean ± 95 % interval (Student's t, so wide with three). The last weights are reported, on the test split, read once. Labels come by
`sslt finetune +target=SET from=RUN labels_per_class=N`, or `label_fraction=`, all of a set by neither (of large sets of images with
`trainer.max_time=00:10:00`); the probe by `adaptation=probe`; from scratch by `from=scratch:RUN`. The script puts sets that come in
another layout into tables below its --root. SimCLR's small ResNet is that of before 2026-11-28: `encoder.stem_start=random`.
"""
BESIDE = """The cheap baseline is the strongest of the methods that `sslt` puts beside its results (TF-IDF; pixels, gradients and colours,
whitened patches), picked on the validation split, from the same labels. "From scratch" is the same architecture with fresh weights. The
CIFAR-10 used here is a JPEG re-encoding of the official set, so that figures are a little below those of the lossless one. SimCLR and
masked words by older defaults: [earlier.md](earlier.md).
"""
SOFTENED = """## As sure as training views have it

Fine-tuning starts from the linear probe of the encoder, which is solved on whole images. What crops and shifts show of them it then got
wrong with all its confidence: a loss of 19 in the first step on digits, where guessing has 2.3. Since 2026-11-27 its logits are first
scaled down to where the loss on training views is least. Encoder alone, three draws of labels, the same pretrained encoder:

    sslt pretrain +task=simclr data=digits trainer.max_time=00:00:40 online_probe.every_n_epochs=0
    sslt finetune +target=digits from=RUN labels_per_class=5 baseline=false late_fusion=false seed=0,1,2 -m

| set, labels | as it was solved | scaled | gain, paired |
|---|---|---|---|
| digits, 5 a class | 80.5 ± 16.8 | 87.6 ± 6.9 | +7.1 ± 18.5 |
| digits, 20 a class | 91.6 ± 2.5 | 94.9 ± 2.9 | +3.2 ± 5.2 |
| usps, 5 a class (1.5 minutes of SimCLR, batches of 32) | 77.7 ± 3.4 | 84.2 ± 4.7 | +6.5 ± 1.9 |

It gained in each of the nine pairs. Other cells of this page start from encoders that stand still, or from texts, which have no such views.
"""


def write(cells: Cells, out: Path, sets: dict[str, Set]) -> None:
    """Both documents, of all that is measured."""
    how = HOW.format(about=about())
    measured = [n for n in sets if cells.values(f"{n}-.*", "test/accuracy")]
    text = ["# First results: what pretraining is worth", "", how + BESIDE]
    for name in measured:
        for recipe in recipes(name):
            if cells.values(f"{name}-{recipe}-.*", "test/accuracy"):
                text += [*first(cells, name, sets[name], recipe), ""]
    (out / "first.md").write_text("\n".join(text))
    (out / "finetuning.md").write_text("\n".join(["# Fine-tuning", "", how, *rules(cells, measured), "", SOFTENED]))


def main() -> None:
    options = parser(__doc__, Path("docs/results"), "results", "cells.jsonl")
    options.add_argument("--recipes", default="", help="of pretraining, with commas; all, if empty")
    options.add_argument("--arms", default=",".join(ARMS), help="probe, full")
    args = options.parse_args()
    cells = Cells(args.root, args.data, args.kept)
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {name: find(name, Path(args.data), args.root / "data") for name in SETS}
    for seed in SEEDS[: args.seeds]:
        for name in args.only.split(",") if args.only else SETS:
            of = sets[name]
            for recipe in recipes(name):
                if not args.recipes or recipe in args.recipes.split(","):
                    measure(cells, name, of, recipe, seed, list(filter(None, args.regimes.split(","))), args.arms.split(","))
                    write(cells, args.out, sets)


if __name__ == "__main__":
    main()
