"""Show what pretraining is worth: the tables of docs/results/first.md, made cell by cell and resumable.

    python scripts/results.py --data DIR [--root FOLDER] [--only cifar10,fashion_mnist,imdb]

Each cell is one `sslt` command in a run folder of its own below --root; a cell that is finished is not run again, one that was
interrupted goes on. The tables are written from the run folders after every cell, so they are never older than the runs.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
from pathlib import Path

from cells import SEEDS, Cells, about, numbers, percent

from sslt.runs import read_json

VISION = ("val_every_n_epochs=0", "optimizer.lr=0.0005", "views.scale=[0.4,1.0]")
TEXT = ("val_every_n_epochs=0", "optimizer.lr=0.0005")
PRETRAIN = {
    "cifar10": ["+task=simclr", "data=cifar10", "trainer.max_time=00:10:00"],
    "fashion_mnist": ["+task=simclr", "data=fashion_mnist", "trainer.max_time=00:10:00"],
    "imdb": ["+task=mlm", "data=imdb", "encoder=modernbert_tiny", "trainer.max_time=00:15:00"],
}
# data set → (name of the share of labels, its settings): the budget is the same from any start
LABELS: dict[str, list[tuple[str, list[str]]]] = {
    "cifar10": [
        ("1 %", ["label_fraction=0.01", "batch_size=64", "trainer.max_steps=150", *VISION]),
        ("10 %", ["label_fraction=0.1", "batch_size=128", "trainer.max_steps=180", *VISION]),
    ],
    "fashion_mnist": [
        ("1 %", ["label_fraction=0.01", "batch_size=64", "trainer.max_steps=150", *VISION]),
        ("10 %", ["label_fraction=0.1", "batch_size=128", "trainer.max_steps=180", *VISION]),
    ],
    "imdb": [
        ("500", ["labels_per_class=250", "trainer.max_steps=100", *TEXT]),
        ("2,500", ["labels_per_class=1250", "trainer.max_steps=250", *TEXT]),
        ("25,000", ["trainer.max_steps=800", "data.val_fraction=0.0001", *TEXT]),
    ],
}

# what the numbers alone do not say
NOTES = {
    "cifar10": "Fine-tuning of 150 to 180 steps stays below the linear probe on all labels; a longer budget is the user's to give.",
    "imdb": (
        "The encoder (1.4 million weights, 1.5 passes over the reviews) has learned to predict words: loss 9.0 to 4.0, where the "
        "frequencies of words alone give 6.2. For sentiment that is worth 5 points of a linear probe, under one point of fine-tuning on "
        "all labels, and nothing with 500. `encoder=bert_tiny` (absolute positions, norms behind) was still at 6.1 after 3,400 steps "
        "of the same task."
    ),
}


def table(root: Path, data: str) -> str:
    """The Markdown section of one data set."""
    pre = read_json(root / f"{data}-pretrain" / "metrics.json")
    before, after = (read_json(root / f"{data}-evaluate-{w}" / "metrics.json") for w in ("untrained", "trained"))
    lines = [f"## {data}", "", f"Pretraining: `sslt pretrain {shlex.join(PRETRAIN[data])}`"]
    if pre:
        lines += [
            "",
            f"{pre['train/steps']:,} steps, {pre['train/epochs']:.1f} epochs, {pre['throughput/samples_per_second']:.0f} samples/s, "
            f"{pre['train/seconds'] / 60:.1f} minutes.",
        ]
    lines += ["", "| probe of frozen features | untrained | pretrained | gain |", "|---|---|---|---|"]
    for key in ("knn/accuracy", "linear/accuracy", "10_shot/accuracy", "features/rankme"):
        if key in before and key in after:
            scale = 1 if "rankme" in key else 100
            a, b = scale * before[key], scale * after[key]
            lines.append(f"| {key} | {a:.1f} | {b:.1f} | {b - a:+.1f} |")
    lines += ["", "| fine-tuning, test accuracy | labels | from scratch | pretrained | gain |", "|---|---|---|---|---|"]
    for i, (name, settings) in enumerate(LABELS[data]):
        ours, theirs = (numbers(root, f"{data}-finetune-{i}-{start}-*") for start in ("pretrained", "scratch"))
        gain = f"{100 * (statistics.mean(ours) - statistics.mean(theirs)):+.1f}" if ours and theirs else "–"
        used = numbers(root, f"{data}-finetune-{i}-*", "train/labels")
        count = f"{int(used[0]):,}" if used else "–"
        lines.append(f"| {name} | {count} | {percent(theirs)} | {percent(ours)} | {gain} |")
        lines.append(f"| | | | `+target={data} {shlex.join(settings)}` | |")
    lines += ["", NOTES[data]] if data in NOTES else []
    return "\n".join(lines) + "\n"


def write(root: Path, out: Path, names: list[str]) -> None:
    """Write a section for every data set of which something is measured."""
    names = [d for d in names if numbers(root, f"{d}-evaluate-*", "knn/accuracy") or numbers(root, f"{d}-finetune-*")]

    text = f"""# First results: what pretraining is worth

Made by `python scripts/results.py --data DIR`; {about()}.
Three seeds unless a cell says otherwise; mean ± 95 % interval (Student's t, so wide with three).
The last checkpoint is reported, on the test split, read once.
"From scratch" is the same architecture and tokenizer with fresh weights, the same labels, steps and settings.
The CIFAR-10 used here is a JPEG re-encoding of the official set, so that figures are a little below those of the lossless one.

"""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n".join(table(root, d) for d in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of data sets (data.root)")
    parser.add_argument("--root", default="runs/results", help="where the run folders go")
    parser.add_argument("--out", default="docs/results/first.md")
    parser.add_argument("--only", default=",".join(PRETRAIN), help="data sets, with commas")
    parser.add_argument("--stage", default="all", choices=["all", "pretrain"], help="pretrain: stop before fine-tuning")
    args = parser.parse_args()
    root, names = Path(args.root), args.only.split(",")
    cells = Cells(root, args.data)
    for data in names:
        cells.run(f"{data}-pretrain", "pretrain", *PRETRAIN[data])
    for data in names if args.stage == "all" else ():
        start = root / f"{data}-pretrain"
        for name, where in (("untrained", f"scratch:{start}"), ("trained", str(start))):
            cells.run(f"{data}-evaluate-{name}", "evaluate", f"from={where}")
            write(root, Path(args.out), list(PRETRAIN))
        for i, (_, settings) in enumerate(LABELS[data]):
            for seed in SEEDS:
                for name, where in (("pretrained", str(start)), ("scratch", f"scratch:{start}")):
                    cells.run(
                        f"{data}-finetune-{i}-{name}-{seed}", "finetune", f"+target={data}", f"from={where}", f"seed={seed}", *settings
                    )
                    write(root, Path(args.out), list(PRETRAIN))


if __name__ == "__main__":
    main()
