"""What was answered to each sample, as lines to read: with the truth beside it, the worst first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslt.report.end import draw, reported
from sslt.runs import Run


def answer_rows(target: Any, predictions: Any, samples: Any, split: str | None, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """`row`, `split` and `name` where they are given, and what the target says of each prediction."""
    found = []
    for i, said in enumerate(said_of(target, predictions, samples)):
        about = ({} if split is None else {"split": split}) | ({} if names is None else {"name": names[i]})
        found.append({"row": i, **about, **said})
    return found


def said_of(target: Any, answers: Any, samples: Any) -> list[dict[str, Any]]:
    """What the target says of each answer, with the words that it points to, where it is places in texts."""
    rows = target.rows(answers)
    for i, row in enumerate(rows):
        if (text := samples.text(i)) is not None:
            row["prediction"] = target.quote(row["prediction"], text)
    return rows


def row_names(source: Any, split: str, samples: Any) -> list[str] | None:
    """Names of the rows that could be read, where rows have names."""
    there = source.names_drawn or split in source.own_splits()
    names, kept = (source.row_names(split) if there else None), getattr(samples, "numbers", None)
    return [names[i] for i in kept] if names and kept is not None else names


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A line of JSON each."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_files(folder: Path, target: Any, answers: Any, rows: Sequence[dict[str, Any]], column: str, within: str) -> None:
    """What of the answers is no text (maps), as a file each in `folder`/`within`, which `column` of the rows then names."""
    for row, name in zip(rows, target.write(folder / within, answers) or (), strict=False):
        row[column] = f"{within}/{name}"


def write_answers(run: Run, encoder: Any, target: Any, samples: Any, predictions: Any, names: Sequence[str] | None = None) -> None:
    """`predictions.jsonl` of a split whose answers are known: `truth` and `error` beside, the worst first. And some to look at."""
    if not run.is_main or samples.answers is None or len(samples) != len(predictions):
        return
    rows, errors = answer_rows(target, predictions, samples, None, names), target.errors(predictions, samples.answers)
    for row, truth, error in zip(rows, said_of(target, samples.answers, samples), errors.tolist(), strict=True):
        row |= {"truth": truth["prediction"], "error": round(error, 4)}
    write_files(run.path, target, predictions, rows, "prediction", "predictions")
    write_files(run.path, target, samples.answers, rows, "truth", "truths")
    write_shown(run, encoder, target, samples, predictions)
    write_rows(run / "predictions.jsonl", [rows[i] for i in np.argsort(-errors, kind="stable")])


def write_shown(run: Run, encoder: Any, target: Any, samples: Any, predictions: Any) -> None:
    """A few samples with truth and prediction, as pictures/NAME.png."""
    with reported("answers' pictures"):
        for name, picture in target.show(encoder, samples, predictions).items():
            draw(run, encoder.processor, name, picture)
