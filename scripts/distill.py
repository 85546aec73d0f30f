"""A student with a teacher against the same student alone, equal minutes: the table of distillation in docs/results/deploy.md.

    python scripts/distill.py --data DIR [--only digits,usps,fashion_mnist,imdb] [--minutes 2] [--teacher-minutes 6] [--seeds 6]
    python scripts/distill.py --only digits --minutes 0.2 --teacher-minutes 0.5      (needs no data)

Each row is a student and a set; each column has the same minutes of training, in which the teacher's passes count but not its own
training. `alone` is fine-tuned from fresh weights; `beside labels` is `sslt compress method=distill`; `then labels` learns for half of the
time from the teacher without labels, `sslt pretrain +task=distill`, and is fine-tuned for the other half. All see the labels that the
teacher saw, `--labels` of each class. Late fusion is off, as it would hide what the students know. The difference is paired over seeds.
What is finished is not run again, what was interrupted goes on, and the table is printed after every seed. The document is filled by

    python scripts/distill.py --data DIR --seeds 6 --out docs/results/distill.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from cells import Cells, about, percent

from sslt.report.tables import markdown_table
from sslt.runs import Run


class Case(NamedTuple):
    """A data set: its recipe, and the settings of a teacher and of a student."""

    target: str
    teacher: list[str]
    student: list[str]
    views: list[str]


_CONV = ["encoder=conv4", "encoder.width=16"]
_WORDS = ["encoder=bag", "encoder.dim=16"]
CASES = {
    "digits": Case("digits", ["encoder=resnet_small"], _CONV, ["views=light", "views.flip=0"]),
    "usps": Case("usps", ["encoder=resnet_small"], _CONV, ["views=light", "views.flip=0"]),
    "fashion_mnist": Case("fashion_mnist", ["encoder=resnet_small"], _CONV, ["views=light"]),
    "imdb": Case("imdb", ["encoder=bag"], _WORDS, ["views=plain"]),
}
WAYS = {"alone": "alone", "beside": "beside labels", "then": "then labels"}
SCORE = "test/accuracy"


def time(minutes: float) -> str:
    seconds = round(60 * minutes)
    return f"trainer.max_time={seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def measure(cells: Cells, name: str, seed: int, args: argparse.Namespace) -> None:
    """One seed of a set: a teacher, and a student in each way."""
    case, labels = CASES[name], [] if args.labels is None else [f"labels_per_class={args.labels}"]
    tune = ["finetune", f"+target={case.target}", "late_fusion=false", "baseline=false", *labels, f"seed={seed}"]
    base = f"{name}-{args.minutes:g}min-{args.labels or 'all'}-seed{seed}"

    def teacher() -> Run:
        return cells.run(f"{base}-teacher", *tune, "from=scratch", *case.teacher, time(args.teacher_minutes))

    cells.keep(f"{base}-teacher", lambda: teacher().metrics)
    cells.keep(
        f"{base}-alone", lambda: cells.run(f"{base}-alone", *tune, "from=scratch", *case.student, time(args.minutes)).metrics
    )  # fmt: skip
    beside = ["compress", "method=distill", *case.student, "raw=false", "fresh=false", "rounds=1", f"seed={seed}", time(args.minutes)]
    cells.keep(f"{base}-beside", lambda: cells.run(f"{base}-beside", *beside, f"from={teacher().path}").metrics)

    def taught() -> Run:
        first = ["pretrain", "+task=distill", f"data={case.target}", *case.student, *case.views, f"seed={seed}", time(args.minutes / 2)]
        return cells.run(f"{base}-taught", *first, f"objective.teacher={teacher().path}", "online_probe.every_n_epochs=0")

    cells.keep(f"{base}-then", lambda: cells.run(f"{base}-then", *tune, f"from={taught().path}", time(args.minutes / 2)).metrics)


def table(cells: Cells, names: list[str], args: argparse.Namespace) -> str:
    """Mean and 95 % interval over seeds, and what a teacher adds, paired."""
    rows = []
    for name in names:
        base = f"{name}-{args.minutes:g}min-{args.labels or 'all'}-seed"
        found = {way: {s: v for s in range(args.seeds) for v in cells.values(f"{base}{s}-{way}", SCORE)} for way in ("teacher", *WAYS)}
        row: dict[str, Any] = {"set": name, "student": " ".join(CASES[name].student), "teacher": percent([*found["teacher"].values()])}
        for way, said in WAYS.items():
            row[said] = percent([*found[way].values()])
            both = found[way].keys() & found["alone"].keys()
            if way != "alone":
                row[f"{said} − alone"] = percent([found[way][s] - found["alone"][s] for s in sorted(both)])
        rows.append(row)
    return markdown_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of data sets (data.root); digits needs none")
    parser.add_argument("--root", type=Path, default=Path("runs/distill"), help="where the run folders go")
    parser.add_argument("--kept", type=Path, default=Path("docs/results/distill.jsonl"), help="what was measured")
    parser.add_argument("--out", type=Path, help="a file for the table, too")
    parser.add_argument("--only", default="", help="data sets, with commas; all, if empty")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training of each student")
    parser.add_argument("--teacher-minutes", type=float, default=6.0)
    parser.add_argument("--labels", type=int, help="of each class; all, if not given")
    parser.add_argument("--seeds", type=int, default=6)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(CASES)
    if args.data is None and names != ["digits"]:
        parser.error("--data DIR is needed for anything but --only digits")
    cells = Cells(args.root, args.data or ".", args.kept)
    for seed in range(args.seeds):
        for name in names:
            measure(cells, name, seed, args)
        made = table(cells, names, args)
        print(made, flush=True)
        if args.out is not None:
            args.out.write_text(f"{made}\n\n{about()}, {args.minutes:g} minutes a student, {seed + 1} seeds\n")


if __name__ == "__main__":
    main()
