"""Show what the ways of carrying an encoder over are worth: docs/results/transfer.md, made cell by cell and resumable.

    python scripts/transfer.py --data DIR [--root FOLDER] [--only modes,digits,text,episodes,joint]

Each cell is one `sslt` command in a run folder below --root; what is finished is not run again. The document is written after every cell:
sections of which something is measured anew, the others as they were.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from cells import SEEDS, Cells, about, numbers, percent

from sslt.runs import Run, read_json

PRETRAIN = {
    "cifar10": ["+task=simclr", "data=cifar10", "trainer.max_time=00:10:00"],
    "imdb": ["+task=crops", "data=imdb", "trainer.max_time=00:10:00"],
}
MODES = {
    "full": ["adaptation=full"],
    "layer decay 0.7": ["adaptation=full", "adaptation.layer_decay=0.7"],
    "probe": ["adaptation=probe"],
    "partial, last block": ["adaptation=partial", "adaptation.blocks=1"],
    "gradual": ["adaptation=gradual"],
    "LP-FT": ["adaptation=lpft"],
    "L2-SP": ["adaptation=l2sp"],
    "BitFit": ["adaptation=bitfit"],
    "LoRA": ["adaptation=lora"],
    "AdaLoRA": ["adaptation=adalora"],
    "adapter": ["adaptation=adapter"],
    "IA3": ["adaptation=ia3"],
    "prefix": ["adaptation=prefix"],
    "prompt": ["adaptation=prompt"],
}
TARGETS = {
    "cifar10, 1 %": ["+target=cifar10", "label_fraction=0.01"],
    "cifar10, 10 %": ["+target=cifar10", "label_fraction=0.1"],
    "imdb, 2,500 labels": ["+target=imdb", "labels_per_class=1250"],
}
ALONE = ["late_fusion=false", "baseline=false"]  # modes are compared by what they make of the encoder
SHIFTS = ("source_only", "mmd", "coral", "dann", "cdan", "target_supervised")
# name → source, target, labels per class of the source, samples of the target: the 2,000/1,800 protocol
DIGITS = {"mnist-usps": ("mnist", "usps", 200, 1800), "usps-mnist": ("usps", "mnist", 180, 2000)}
DIGITS_SETTINGS = ["trainer.max_epochs=40", "val_every_n_epochs=5", "optimizer.betas=[0.5,0.999]"]
# Settings of a direction are picked with DANN and a seed of their own, by the criterion that sees no label of the target
DIGITS_GRID = [
    [f"views={views}", f"optimizer.lr={rate}", f"adaptation.layer_decay={decay}"]
    for views in ("plain", "shifted")
    for rate in (0.001, 0.002)
    for decay in (1.0, 0.6)
]
DIGITS_SEED = 3
EPISODES = ("protonet", "maml", "fomaml", "anil")
SHORT = ("protonet", "maml")  # learned in less time as well, to say what time is worth
SHOTS = (1, 5)


def modes(cells: Cells) -> Iterator[str]:
    """Every adaptation, from the pretrained encoder of each target."""
    for target, settings in TARGETS.items():
        data = settings[0].partition("=")[2]
        start = lambda data=data: f"from={cells.run(f'{data}-pretrain', 'pretrain', *PRETRAIN[data]).path}"  # noqa: E731
        for seed in SEEDS:
            for name, chosen in MODES.items():
                args = [*settings, start, *ALONE, *chosen, f"seed={seed}"]
                cells.measure(f"modes, {target}, {name}, {seed}", "finetune", *args, may_fail=True, alone=True)
                yield "modes"


def digits(cells: Cells) -> Iterator[str]:
    """MNIST and USPS, each as the other's source."""
    for name in DIGITS:
        for i, settings in enumerate(DIGITS_GRID):
            cells.run(f"digits-pick-{name}-{i}", "finetune", *digit_settings(name, "dann", settings), f"seed={DIGITS_SEED}")
        picked = picked_settings(cells.root, name)
        for shift in SHIFTS:
            for seed in SEEDS:
                cells.run(f"digits-{name}-{shift}-{seed}", "finetune", *digit_settings(name, shift, picked), f"seed={seed}")
                yield "digits"


def digit_settings(name: str, shift: str, settings: list[str]) -> list[str]:
    """Arguments of `sslt finetune`."""
    source, target, labels, samples = DIGITS[name]
    args = [f"+target={source}", "from=scratch", f"+shift={shift}", f"data@shift.target={target}"]
    return [*args, f"labels_per_class={labels}", f"shift.target_samples={samples}", *DIGITS_SETTINGS, *settings]


def picked_settings(root: Path, name: str) -> list[str]:
    """Those of the grid with the highest information maximisation on the target's samples; [] before all are tried."""
    runs = [Run(root / f"digits-pick-{name}-{i}") for i in range(len(DIGITS_GRID))]
    if not all(run.finished for run in runs):
        return []
    return max(zip(runs, DIGITS_GRID, strict=True), key=lambda pair: pair[0].metrics["shift/entropy"])[1]


def text(cells: Cells) -> Iterator[str]:
    """Reviews of books as the source, of kitchenware as the target."""
    folder = Path(cells.data) / "amazon-multidomain-sentiment"
    for shift in ("source_only", "coral", "dann", "target_supervised"):
        for seed in SEEDS:
            args = ["+target=text_csv", f"data.path={folder / 'books.tsv.xz'}", "from=scratch", f"+shift={shift}"]
            target = ["data@shift.target=text_csv", f"shift.target.path={folder / 'kitchen.tsv.xz'}"]
            cells.run(f"text-{shift}-{seed}", "finetune", *args, *target, f"seed={seed}", "trainer.max_epochs=5")
            yield "text"


def episodes(cells: Cells) -> Iterator[str]:
    """Omniglot, 5-way: learners from scratch within 15 minutes, two also within 4, and a SimCLR encoder with nearest centroids."""

    def learn(name: str, method: str, shot: int, time: str) -> None:
        args = ["+target=omniglot", f"+episodes={method}", "from=scratch", f"episodes.shot={shot}", f"trainer.max_time={time}"]
        args += ["encoder=conv4_stride"] if method in ("maml", "fomaml") else []  # as Finn et al. for Omniglot
        cells.run(name, "finetune", *args)

    for shot in SHOTS:
        for method in EPISODES:
            learn(f"episodes-{method}-{shot}", method, shot, "00:15:00")
            yield "episodes"
    start = cells.run("omniglot-pretrain", "pretrain", "+task=simclr", "data=omniglot", "encoder=conv4", "trainer.max_time=00:15:00").path
    for shot in SHOTS:
        cells.run(f"episodes-simclr-{shot}", "evaluate", f"from={start}", "+episodes=centroid", f"episodes.shot={shot}")
        yield "episodes"
    for method in SHORT:
        learn(f"episodes-{method}-short", method, 1, "00:04:00")
        yield "episodes"


def joint(cells: Cells) -> Iterator[str]:
    """IMDB with 2,500 labels in 10 minutes: everything joint, against pretraining for 8 and fine-tuning for 2."""
    labels = ["+target=imdb", "labels_per_class=1250", "val_every_n_epochs=0", "encoder=modernbert_tiny"]
    for seed in SEEDS:
        args = ["+joint=mlm", "joint.weight=0.7", "joint.final_weight=0.1", "joint.batch_size=32", "trainer.max_time=00:10:00"]
        cells.run(f"joint-joint-{seed}", "finetune", *labels, "from=scratch", *args, f"seed={seed}")
        pre = ["+task=mlm", "data=imdb", "encoder=modernbert_tiny", "trainer.max_time=00:08:00", "online_probe.every_n_epochs=0"]
        start = cells.run(f"joint-pretrain-{seed}", "pretrain", *pre, f"seed={seed}").path
        cells.run(f"joint-then-{seed}", "finetune", *labels, f"from={start}", "trainer.max_time=00:02:00", f"seed={seed}")
        yield "joint"


SHOTS_OF_ANIL = (
    "The figures of ANIL here are those of one inner step at rate 0.2, for training and tests, which a short run shows "
    "to be too large: after it the head does not hold what the features do. Measured on the encoder of a short run (290 steps, "
    "conv4, 1-shot, 60 test episodes), 1-shot / 5-shot: one step at 0.2 gives 70.4 / 76.4, three give 62.1 / 63.6 (they overshoot: "
    "features of a ReLU share a direction, and are about 14 long), twenty 82.5 / 92.4; at 0.05 five steps give 82.2 / 90.6 and twenty "
    "82.7 / 92.8; the classes' means, without any step, 83.2 / 93.1 (100 episodes). `+episodes=anil` has 5 steps at 0.05 since, and "
    "20 in tests: after 120 steps of 5-shot training with `encoder=conv4_stride` (one seed, 200 episodes) it is at 69.0 ± 1.4 where "
    "the former settings are at 49.8 ± 1.5. With statistics of the episode at hand in place of running ones, as MAML has, one step at "
    "0.2 gives 78.2 / 86.5 of the same encoder. MAML for equal steps instead of equal minutes (500 steps, one seed, 200 test episodes, "
    "rate 0.4 inside), 1-shot / 5-shot: 83.2 / 92.5 with one step in tests, 83.7 / 93.6 with three. So five shots are worth ten points "
    "there; in equal minutes they have fewer episodes, each of 50 images instead of 30. The published figures come of 60,000 steps of "
    "32 episodes."
)
PARTS = {"modes": modes, "digits": digits, "text": text, "episodes": episodes, "joint": joint}


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


# -------------------------------------------------------------------- the document
def write(cells: Cells, out: Path) -> None:
    """Write a section for everything of which something is measured; those of which nothing is here stay as they are."""
    head = """# Ways to carry an encoder over

Made by `python scripts/transfer.py --data DIR`. Three seeds unless a cell says otherwise; mean ± 95 % interval (Student's t).
The last checkpoint is reported, on the test split; under a shift the epoch is picked without target labels, and the oracle, which reads
them at every validation, decides nothing. Before 2026-11-28 the small ResNet began with `encoder.stem_start=random`.
"""
    made = [
        *(_modes(cells, target) for target in TARGETS),
        *(_digits(cells.root, name) for name in DIGITS),
        _text(cells.root),
        _episodes(cells.root),
        _joint(cells.root),
    ]
    sections = {text.splitlines()[0]: text for text in (old.strip() for old in _old(out))}
    new = {text.splitlines()[0]: text for text in made if text}
    first = {title: text for title, text in new.items() if title.startswith("## Modes")}  # what comes first, where it is new
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(head + "".join(f"\n{section}\n" for section in {**first, **sections, **new}.values()))


def _old(out: Path) -> list[str]:
    """The sections of a document, with their titles."""
    return [f"## {text}" for text in out.read_text().split("\n## ")[1:]] if out.exists() else []


def _modes(cells: Cells, target: str) -> str:
    rows, refused = [], []
    for name, chosen in MODES.items():
        of = re.escape(f"modes, {target}, {name}, ")
        get = lambda key, of=of: cells.values(rf"{of}\d", key)  # noqa: E731
        if get("error"):
            refused.append(f"{name}: {get('error')[0].removeprefix('UserError: ')}")
        elif get("test/accuracy"):
            moving, stored = (mean(get(k)) for k in ("model/moving_parameters", "model/stored_bytes"))
            memory, steps = mean(cells.values(f"{of}{SEEDS[0]}", "train/peak_memory_bytes")), mean(get("train/steps"))
            row = [
                percent(get("test/accuracy")),
                f"{moving:,.0f}",
                f"{stored / 1e6:.2f}",
                f"{steps:.0f}",
                f"{mean(get('train/seconds')):.0f}",
            ]
            rows.append(f"| {name} (`{shlex.join(chosen)}`) | {' | '.join([*row, f'{memory / 1e6:,.0f}'])} |")
    if not rows:
        return ""
    settings = TARGETS[target]
    commands = [["pretrain", *PRETRAIN[settings[0].partition("=")[2]]], ["finetune", *settings, "from=RUN", *ALONE]]
    first, then = (f"`sslt {shlex.join(command)}`" for command in commands)
    text = (
        f"## Modes: {target}\n\n{then}, with RUN by {first}; {about()}. All else is the default. Memory is that of the process, with seed "
    )
    text += f"{SEEDS[0]}.\n\n| adaptation | test accuracy | moving parameters | stored, MB | steps | seconds | peak memory, MB |\n"
    text += "|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    return text + ("\n\nRefused: " + "; ".join(refused) + "." if refused else "")


def _digits(root: Path, name: str) -> str:
    _, _, labels, samples = DIGITS[name]
    command = shlex.join(["sslt", "finetune", *digit_settings(name, "METHOD", picked_settings(root, name))])
    what = (
        f"LeNet from scratch, {10 * labels:,} labelled source and {samples:,} unlabelled target images: `{command}`. Views, rate and "
        f"layer decay, the same for all methods, are those of {len(DIGITS_GRID)} tried with DANN and seed {DIGITS_SEED} under which "
        "predictions on unlabelled target images are surest one by one and most even over the classes; source_only was not tuned by "
        "itself. References with all images and epochs picked on target labels (Transfer-Learning-Library), MNIST to USPS / USPS to MNIST: "
        "source only 82.1 / 74.6, DANN 91.7 / 95.2, CDAN 96.0 / 97.7."
    )
    return _shift(root, f"digits-{name}", f"New domain: {name}", what)


def _text(root: Path) -> str:
    what = (
        "bert_tiny from scratch, all labelled reviews of books, those of kitchenware without labels: `sslt finetune +target=text_csv "
        "data.path=DIR/amazon-multidomain-sentiment/books.tsv.xz from=scratch +shift=METHOD data@shift.target=text_csv "
        "shift.target.path=DIR/amazon-multidomain-sentiment/kitchen.tsv.xz trainer.max_epochs=5`."
    )
    return _shift(root, "text", "New domain: reviews of books → of kitchenware", what)


def _shift(root: Path, prefix: str, title: str, what: str) -> str:
    rows = []
    for shift in SHIFTS:
        get = lambda key, shift=shift: numbers(root, f"{prefix}-{shift}-*", key)  # noqa: E731
        if get("test/accuracy"):
            distance = f"{mean(get('shift/proxy_a_distance_before')):.2f} → {mean(get('shift/proxy_a_distance_after')):.2f}"
            scores = [percent(get(k)) for k in ("test/accuracy", "oracle/test/accuracy", "shift/source_val_accuracy")]
            rows.append(f"| {shift} | {' | '.join(scores)} | {distance} |")
    head = "| method | target, picked without labels | oracle | source validation | proxy A-distance |\n|---|---|---|---|---|\n"
    return f"## {title}\n\n{what}\n\n{head}" + "\n".join(rows) if rows else ""


def _episodes(root: Path) -> str:
    rows = []
    for method in (*EPISODES, "simclr"):
        runs = [Run(root / f"episodes-{method}-{shot}") for shot in SHOTS]
        if all(run.finished for run in runs):
            found = [read_json(run / "metrics.json") for run in runs]
            scores = [f"{100 * m['episodes/accuracy']:.1f} ± {100 * m['episodes/interval']:.1f}" for m in found]
            rows.append(f"| {method} | {' | '.join(scores)} |")
    note = (
        "`sslt finetune +target=omniglot +episodes=METHOD from=scratch episodes.shot=K trainer.max_time=00:15:00` (MAML and FOMAML with "
        "`encoder=conv4_stride`), one seed; SimCLR learns without labels and then has nearest centroids: `sslt pretrain +task=simclr "
        "data=omniglot encoder=conv4 trainer.max_time=00:15:00`, `sslt evaluate from=RUN +episodes=centroid episodes.shot=K`. Mean ± 95 % "
        "interval over 600 test episodes. References with more time: ProtoNet 98.8 / 99.7, MAML 98.7 / 99.9. " + SHOTS_OF_ANIL
    )
    head = "| learner | 5-way 1-shot | 5-way 5-shot |\n|---|---|---|\n"
    less = [
        f"{method} {100 * run.metrics['episodes/accuracy']:.1f}"
        for method in SHORT
        if (run := Run(root / f"episodes-{method}-short")).finished
    ]
    after = f"\n\nWith 4 minutes instead of 15, 1-shot: {', '.join(less)}." if less else ""
    return f"## Episodes: Omniglot\n\n{note}\n\n{head}" + "\n".join(rows) + after if rows else ""


def _joint(root: Path) -> str:
    rows = [(name, numbers(root, f"joint-{key}-*")) for name, key in (("joint", "joint"), ("pretrain, then fine-tune", "then"))]
    if not any(values for _, values in rows):
        return ""
    note = (
        "`sslt finetune +target=imdb labels_per_class=1250 encoder=modernbert_tiny val_every_n_epochs=0 from=scratch "
        "+joint=mlm joint.weight=0.7 joint.final_weight=0.1 joint.batch_size=32 trainer.max_time=00:10:00`, against "
        "`sslt pretrain +task=mlm data=imdb encoder=modernbert_tiny trainer.max_time=00:08:00` and fine-tuning from it with "
        "`trainer.max_time=00:02:00`."
    )
    head = "| 10 minutes in all | test accuracy |\n|---|---|\n"
    return (
        f"## The joint loss: IMDB, 2,500 labels\n\n{note}\n\n"
        + head
        + "\n".join(f"| {name} | {percent(values)} |" for name, values in rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of data sets (data.root)")
    parser.add_argument("--root", default="runs/results", help="where the run folders go")
    parser.add_argument("--out", default="docs/results/transfer.md")
    parser.add_argument("--kept", default="docs/results/transfer.jsonl", help="what was measured of modes")
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args()
    cells = Cells(Path(args.root), args.data, Path(args.kept))
    for part in args.only.split(","):
        for _ in PARTS[part](cells):
            write(cells, Path(args.out))


if __name__ == "__main__":
    main()
