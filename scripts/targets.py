"""What tags, maps and scores give, and what pretraining is worth for them: docs/results/targets.md, made cell by cell and resumable.

    python scripts/targets.py --data DIR [--only stsb,cluener] [--seeds 3] [--root FOLDER]

Each cell is one `sslt` command in a run folder below --root. What was measured is kept in --kept, so that a cell that is finished is not
run again. The document is written from that file after every set.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cells import Cells, about, fill, percent


class Arm(NamedTuple):
    """A start that is measured: `from=scratch`, or from the pretraining of the set."""

    name: str
    pretrained: bool


class Regime(NamedTuple):
    """How many labels fine-tuning has, and for how long it runs (empty: as long as by default)."""

    name: str
    settings: list[str]


class Set(NamedTuple):
    """metric: of `test/…`. target: of fine-tuning. pretrain: what the encoder learned before. note: what the columns are."""

    metric: str
    target: list[str]
    pretrain: list[str]
    regimes: list[Regime]
    note: str
    evaluates: bool = False  # whether an encoder is measured without fine-tuning, too


def of_images(n: int, train: int, time: str) -> Regime:
    return Regime(f"{n} images", [f"label_fraction={n / train:.4f}", f"trainer.max_time={time}"])


SETS = {
    "stsb-en": Set(
        "spearman", ["+target=stsb", "data.language=en"],
        ["+task=simcse", "data=stsb", "data.language=en", "trainer.max_time=00:02:00"],
        [Regime("all", ["trainer.max_time=00:01:00"])],
        "Spearman's correlation of scores. Baseline: overlap of words (the better of TF-IDF and Jaccard on validation). "
        "SimCSE trains a small transformer here. The recipe's own encoder, a bag of words from scratch "
        "(`sslt finetune +target=stsb from=scratch`), is the better choice on a CPU: 71.3 with one seed.", True),
    "stsb-zh": Set(
        "spearman", ["+target=stsb", "data.language=zh"],
        ["+task=simcse", "data=stsb", "data.language=zh", "trainer.max_time=00:02:00"],
        [Regime("all", ["trainer.max_time=00:01:00"])],
        "The same sentences in Chinese.", True),
    "cluener": Set(
        "f1", ["+target=cluener"], ["+task=mlm", "data=cluener", "trainer.max_time=00:02:00"],
        [Regime("10 %", ["label_fraction=0.1", "trainer.max_time=00:01:00"]), Regime("all", ["trainer.max_time=00:02:00"])],
        "Entity-level micro F1, as seqeval's strict one. Baseline: the better of a linear tagger (a chain on hashed features, which "
        "also stands beside the encoder) and the dictionary of the training entities. BERT-base: 79.6 as published. "
        "What is gained over a dictionary (61.8 with all labels) is the linear tagger's: neither encoder adds to it in this time."),
    "nuclei": Set(
        "miou", ["+target=nuclei"],
        ["+task=simclr", "data=nuclei", "max_image_size=128", "batch_size=64", "trainer.max_time=00:01:30"],
        [of_images(n, 240, "00:00:40") for n in (10, 20, 100)],
        "Mean intersection over union of nucleus and ground, in the images' own pixels. Baseline: Otsu's threshold, "
        "which is ahead at 128 pixels and in this time, and SimCLR changes nothing. "
        "At the recipe's own 256 pixels, from scratch, with all 240 images and 90 seconds: 86.7 against 86.5, one seed."),
    "scenes": Set(
        "miou", ["+target=scenes", "data.answer=map"],
        ["+task=simclr", "data=scenes", "trainer.max_time=00:02:00"],
        [Regime("10 %", ["label_fraction=0.1", "trainer.max_time=00:01:00"]), Regime("all", ["trainer.max_time=00:01:30"])],
        "Mean intersection over union of the ten digits and the ground. Baseline: logistic regression on colour and position. "
        "Rare classes weigh more in the beginning (`objective.balance`); before that was so, training stayed at the ground everywhere "
        "with one seed and not with the next. SimCLR on whole scenes does not help to find what is in them."),
}  # fmt: skip
ARMS = [Arm("scratch", False), Arm("pretrained", True)]


def measure(cells: Cells, name: str, seed: int) -> None:
    """All cells of a set with a seed, which is that of pretraining, of the draw of labels and of fine-tuning."""
    of = SETS[name]

    def pretrained() -> str:
        return str(cells.run(f"{name}-{seed}", "pretrain", *of.pretrain, f"seed={seed}"))

    if of.evaluates:
        cells.measure(f"{name}-{seed}-untrained", "evaluate", *of.target, lambda: f"from=scratch:{pretrained()}", f"seed={seed}")
        cells.measure(f"{name}-{seed}-encoder", "evaluate", *of.target, lambda: f"from={pretrained()}", f"seed={seed}")
    for regime in of.regimes:
        for arm in ARMS:
            start = (lambda: f"from={pretrained()}") if arm.pretrained else (lambda: f"from=scratch:{pretrained()}")
            cells.measure(f"{name}-{seed}-{regime.name}-{arm.name}", "finetune", *of.target, start, f"seed={seed}", *regime.settings)


def section(cells: Cells, name: str) -> list[str]:
    """What is known of a set, as a table."""
    of = SETS[name]
    rows = ["| labels | baseline | from scratch | pretrained |", "|---|---|---|---|"]
    key = f"test/{of.metric}"
    for regime in of.regimes:
        start = f"{name}-[0-9]-{regime.name}"
        found = [cells.values(f"{start}-{arm.name}", key) for arm in ARMS]
        if any(found):
            base = cells.values(f"{start}-pretrained", f"baseline/{of.metric}")
            labels = cells.values(f"{start}-pretrained", "train/labels")
            named = f"{regime.name} ({int(labels[0]):,})" if labels else regime.name
            rows.append(f"| {named} | {' | '.join(map(percent, [base, *found]))} |")
    if of.evaluates:
        both = [percent(cells.values(f"{name}-[0-9]-{which}", key)) for which in ("untrained", "encoder")]
        base = percent(cells.values(f"{name}-[0-9]-encoder", f"baseline/{of.metric}"))
        rows += ["", f"Without fine-tuning (`sslt evaluate`): untrained {both[0]}, pretrained {both[1]}; word overlap {base}."]
    commands = [f"`sslt pretrain {' '.join(of.pretrain)}`", f"`sslt finetune {' '.join(of.target)} from=RUN`"]
    return [f"## {name}", "", ", then ".join(commands), "", of.note, "", *rows, ""]


HOW = """# Targets beyond classes

Made by `python scripts/targets.py --data DIR`; {about}.
Every cell is a command with its defaults but for the time it may take, which the script gives. Mean ± 95 % interval (Student's t) over
three seeds, each with a pretraining and a draw of labels of its own. The last weights are reported, on the test split, read once. All
numbers are percentages. "From scratch" is the same architecture with fresh weights, by `from=scratch:RUN`, in the same time.
"""


def write(cells: Cells, out: Path) -> None:
    """The document, of all that is measured."""
    measured = [name for name in SETS if cells.values(f"{name}-.*", f"test/{SETS[name].metric}")]
    (out / "targets.md").write_text("\n".join([HOW.format(about=about()), *(line for name in measured for line in section(cells, name))]))


if __name__ == "__main__":
    fill(__doc__, "targets", SETS, measure, write)
