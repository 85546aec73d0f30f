"""Answers in tables that are not one class: several labels, or a number. `data.answer=labels|number`."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sslt.data.answers import Answers, Class, Labels, Number
from sslt.data.sources.labels import decoded, is_missing, label_name
from sslt.errors import UserError, nearest

KINDS: dict[str, type[Answers]] = {"class": Class, "labels": Labels, "number": Number}
SEPARATORS = {"comma": ",", "tab": "\t", "space": " ", "semicolon": ";", "pipe": "|"}
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


class AnswerColumns:
    """How the columns of a table are read for a kind of answer.

    answer: a key of `KINDS`. label: a column; of labels also a list of them, one a label, with 0 or 1 in each row. separator: what stands
    between the labels of one column; None: a cell is a list, or a text that is one as JSON or Python write it.
    """

    def __init__(self, answer: str, label: str | Sequence[str] | None, separator: str | None):
        if answer not in KINDS:
            raise UserError(f"data.answer={answer}: give {', '.join(KINDS)}{nearest(answer, KINDS)}")
        self.kind = KINDS[answer]
        self.several = None if label is None or isinstance(label, str) else [str(c) for c in label]
        if self.several is not None and self.kind is not Labels:
            raise UserError(f"data.label=[{','.join(self.several)}] with data.answer={answer}: several columns are data.answer=labels")
        if self.several is not None and (not self.several or len(set(self.several)) < len(self.several)):
            raise UserError(f"data.label=[{','.join(self.several)}]: name each column of labels, once")
        if separator is not None and (self.kind is not Labels or self.several is not None):
            raise UserError(f"data.separator={separator} is for data.answer=labels that stand in one column, data.label=COLUMN")
        self.separator = None if separator is None else SEPARATORS.get(separator, separator)
        self.settings = (
            None if self.kind is Class else (answer, self.several, self.separator)
        )  # beside the columns, what tells contents apart

    def cell(self, values: Sequence[Any], names: Sequence[str] | None) -> tuple[Any, str]:
        """The answer of one row, a number or names of labels, or None; and what is wrong with it. names: of numbered classes."""
        if self.kind is Number:
            found = _number(values[0])
            return found, "" if found is not None else f"{_shown(values[0])} is no finite number"
        if self.several is None:
            return self._names(_plain(values[0]), names)
        flags = [_FLAGS.get(str(_plain(v)).strip().lower()) for v in values]
        wrong = next((i for i, flag in enumerate(flags) if flag is None), None)
        if wrong is not None:
            return None, f"{_shown(values[wrong])} in column '{self.several[wrong]}' is neither 0 nor 1"
        return [name for name, flag in zip(self.several, flags, strict=True) if flag], ""

    def _names(self, value: Any, names: Sequence[str] | None) -> tuple[list[str] | None, str]:
        if isinstance(value, str) and self.separator is not None:
            value = [part for part in value.split(self.separator) if part.strip()]
        elif isinstance(value, str) and is_missing(value.strip()):
            value = []
        elif isinstance(value, str):
            value = _list_in(value)
            if value is None:
                return None, "the labels are no list: say what stands between them, data.separator=comma, semicolon, …"
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            value = []
        if not isinstance(value, list):
            return None, f"{_shown(value)} is no list of labels"
        found = [label_name(v, names) for v in value]
        if None in found:
            return None, f"{_shown(value[found.index(None)])} is no label"
        return [name for name in found if name is not None], ""

    def classes(self, found: Iterable[list[str]], where: str) -> list[str]:
        """The labels, in order, of all that the training rows have. Raises `UserError` where they are too many to be labels."""
        if self.several is not None:
            return self.several
        rows = list(found)
        names = {name for row in rows for name in row}
        if len(names) > max(20, len(rows) // 2):
            raise UserError(f"{where}: {len(names)} different labels in {len(rows)} rows, too many: is data.separator what divides them?")
        if not names:
            raise UserError(f"{where}: no row has a label")
        return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))

    def answers(self, found: Sequence[Any], classes: Sequence[str] | None, where: str) -> Answers:
        """The rows that `cell` read. Raises `UserError` for a label that is none of `classes`."""
        if self.kind is Number:
            return Number(np.array(found, np.float64), {})
        index = {name: i for i, name in enumerate(classes or ())}
        values = np.zeros((len(found), len(index)), bool)
        for row, names in zip(values, found, strict=True):
            for name in names:
                if name not in index:
                    raise UserError(f"{where}: label '{name}' does not occur in the training data ({len(index)} labels)")
                row[index[name]] = True
        return Labels(values, {"classes": list(index)})


def of_array(y: np.ndarray, kind: type[Answers], classes: Sequence[str] | None, where: str) -> Answers:
    """An array as answers: [N, C] of 0 and 1, or numbers [N]. Raises `UserError` naming the first row that is neither."""
    if y.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {y.dtype} values: give numbers")
    if kind is Number:
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1:
            raise UserError(f"{where} has shape {list(y.shape)}: give one number per image, [N]")
        if len(wrong := np.flatnonzero(~np.isfinite(y))):
            raise UserError(f"{where}, row {wrong[0]}: {y[wrong[0]]} is no finite number")
        return Number(y.astype(np.float64), {})
    if y.ndim != 2 or (classes is not None and len(classes) != y.shape[1]):
        columns = "a column a label" if classes is None else f"{len(classes)} columns, one a label"
        raise UserError(f"{where} has shape {list(y.shape)}: labels need [N, C], {columns}")
    if len(others := np.argwhere((y != 0) & (y != 1))):
        row, column = others[0].tolist()
        raise UserError(f"{where}, row {row}: {y[row, column]} in column {column} is neither 0 nor 1")
    return Labels(y.astype(bool), {"classes": list(classes) if classes is not None else [str(i) for i in range(y.shape[1])]})


def _plain(value: Any) -> Any:
    """A cell as Python has it."""
    value = decoded(value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _number(value: Any) -> float | None:
    value = _plain(value)
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _list_in(text: str) -> list[Any] | None:
    """The list that a text is, as JSON or Python write one; None where it is none."""
    if len(text) > 100_000 or not text.strip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return found if isinstance(found, list) else None
    return None


def _shown(value: Any) -> str:
    text = repr(_plain(value))
    return text if len(text) <= 40 else f"{text[:40]}…"
