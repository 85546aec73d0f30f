"""The record of a run's scalars over its steps, in a file that survives whatever happens to the run."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from sslt.data.cache import write_atomic
from sslt.ranges import is_number

COLUMNS = ("step", "epoch", "name", "value")


class MetricsCSV:
    """An append-only CSV with one line per value: `step,epoch,name,value`.

    The long format lets new names appear at any step. Each `append` is a single write of whole lines, so a killed
    process leaves at worst one incomplete last line, which reading ignores and the next `append` removes.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def append(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Add `values` (anything `float()` takes, NaN included) at an optimiser step. Creates file and folder."""
        if not values:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(step, f"{epoch:g}", name, repr(float(value))) for name, value in values.items()]
        with self.path.open("ab+") as f:
            _drop_incomplete_line(f)
            f.write(_csv(rows if f.tell() else [COLUMNS, *rows]).encode())

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, size: int) -> bool:
        """Drop what was written after the file had `size` bytes; returns whether it has as many."""
        if self.size > size:
            os.truncate(self.path, size)
        return self.size == size

    def truncate_after(self, step: int) -> None:
        """Drop every line of a later step, atomically: a run that resumes at `step` repeats them."""
        if self.path.exists():
            rows = [row for row in _rows(self.path) if int(row[0]) <= step]
            write_atomic(self.path, _csv([COLUMNS, *rows]))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> dict[str, tuple[list[int], list[float]]]:
        """For each name its steps, ascending, and values; of two values at one step the later line counts.

        Lines that are no record are passed over; a file that does not exist holds nothing.
        """
        found: dict[str, dict[int, float]] = {}
        if Path(path).exists():
            for step, _, name, value in _rows(Path(path)):
                found.setdefault(name, {})[int(step)] = float(value)
        ordered = {name: sorted(by_step.items()) for name, by_step in found.items()}
        return {name: ([s for s, _ in points], [v for _, v in points]) for name, points in ordered.items()}


def _rows(path: Path) -> Iterator[list[str]]:
    """The records of a file, without the header and without lines that are incomplete."""
    with path.open(newline="", encoding="utf-8", errors="replace") as f:
        for line in f:
            row = next(csv.reader([line]), [])
            # A line without its end may have lost digits of its value.
            if line.endswith("\n") and len(row) == len(COLUMNS) and row[0].isdecimal() and is_number(row[3]):
                yield row


def _drop_incomplete_line(f: BinaryIO) -> None:
    """Cut a file after its last line end, and leave the position there."""
    end = size = f.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        f.seek(start)
        newline = f.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        f.truncate(end)
    f.seek(end)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
