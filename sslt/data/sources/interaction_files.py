"""Files that say who took what: tables with a header, lines of a user and an item, lines that are sequences of items."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslt.data.sources import tables
from sslt.data.sources.disk import lines, open_text, reading, suffix
from sslt.errors import UserError, nearest

USERS = ("user_id", "user", "userid", "uid", "reviewerid", "reviewer_id", "customer_id", "session_id", "sessionid", "visitorid")
ITEMS = (
    "item_id", "item", "itemid", "iid", "movie_id", "movieid", "product_id", "productid", "asin", "parent_asin", "video_id", "book_id",
    "track_id", "article_id", "sku",
)  # fmt: skip
TIMES = ("timestamp", "time", "ts", "date", "datetime", "unixreviewtime", "created_at", "event_time")
LAYOUTS = ("auto", "table", "pairs", "sequences", "user_sequences")
TOLD = 20  # lines that tell a table from sequences
ATOMIC = ".inter"  # RecBole's files: tab separated, each name of the header with its type, `user_id:token`


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file is read. user, item, time: columns of a table by name (or number, where it has no header); None: by their usual names."""

    kind: str
    user: str | None
    item: str | None
    time: str | None

    def check(self) -> None:
        if self.kind not in LAYOUTS:
            raise UserError(f"data.layout={self.kind}: give {', '.join(LAYOUTS)}{nearest(self.kind, LAYOUTS)}")
        given = next((what for what in ("user", "item", "time") if getattr(self, what) is not None), None)
        if given is not None and self.kind not in ("auto", "table"):
            raise UserError(f"data.{given}= is a column of a table, and data.layout={self.kind} has none: leave one of them out")


class Event(NamedTuple):
    """A user took an item. `where` is its place ("line 12"); `problem` says why there is none. time: NaN where lines are in time order."""

    where: str
    user: str
    item: str
    time: float
    problem: str = ""


def events(path: Path, layout: Layout) -> Iterator[Event]:
    """What a file says, in its order. Raises `UserError` where its layout cannot be told."""
    columns = (layout.user, layout.item, layout.time) != (None, None, None)
    kind = layout.kind if layout.kind != "auto" else "table" if columns else _kind_of(path)
    if kind == "table":
        return _of_table(path, layout)
    return _of_pairs(path) if kind == "pairs" else _of_sequences(path, named=kind == "user_sequences")


def in_order(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Indices [N] that put each user's events together, in time order; equal times stay in the order of the file."""
    return np.lexsort((np.arange(len(users)), times, users)) if not np.isnan(times).any() else np.argsort(users, kind="stable")


def _kind_of(path: Path) -> str:
    if suffix(path) == ATOMIC or (suffix(path) in tables.KINDS and tables.KINDS[suffix(path)] in ("csv", "json", "parquet")):
        return "table"
    widths, number, fields = set(), 0, [""]
    for number, fields in _fields(path):
        if number == 1 and {_bare(f) for f in fields} & set(ITEMS):
            return "table"
        widths.add(len(fields))
    if not widths:
        raise UserError(f"{path}: empty file")
    if number >= TOLD and len(widths) == 1 and widths != {2}:  # histories are hardly ever of one length, and tables without a header are
        raise UserError(
            f"{path}: all lines have {len(fields)} fields: give the columns of a table, data.user=0 data.item=1 data.time=2, or "
            f"data.layout=sequences"
        )
    return "pairs" if widths == {2} else "sequences"


def _bare(name: str) -> str:
    """A column's name without the type that RecBole's files put behind it."""
    return name.strip().partition(":")[0].lower()


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, what stands between blanks or commas) of every line that is not blank."""
    with reading(path), open_text(path) as f:
        for number, line in enumerate(lines(f, path), 1):
            if fields := line.replace(",", " ").split():
                yield number, fields


def _of_table(path: Path, layout: Layout) -> Iterator[Event]:
    numbered = all(c is None or c.isdecimal() for c in (layout.user, layout.item, layout.time)) and layout.user is not None
    table = _table(path, not numbered)
    user, item = _column(table, "user", layout.user, USERS), _column(table, "item", layout.item, ITEMS)
    if user is None or item is None:
        lacks = "user" if user is None else "item"
        bare = (
            "; a file without a header is read by numbers, data.user=0 data.item=1" if layout.user is None and layout.item is None else ""
        )
        raise UserError(f"{path}: which column is the {lacks}? Give data.{lacks}=; there is: {', '.join(table.columns)[:200]}{bare}")
    time = _column(table, "time", layout.time, TIMES)
    for row in table.rows([user, item] if time is None else [user, item, time]):
        if row.problem:
            yield Event(row.where, "", "", math.nan, row.problem)
            continue
        names = ["" if v is None else str(v).strip() for v in row.values[:2]]
        if not all(names):
            yield Event(row.where, "", "", math.nan, f"no {'item' if names[0] else 'user'}")
            continue
        when = math.nan if time is None else _seconds(row.values[2])
        problem = "" if when is not None else f"'{row.values[2]}' is no time"
        yield Event(row.where, names[0], names[1], math.nan if when is None else when, problem)


def _table(path: Path, header: bool) -> tables.Table:
    if suffix(path) in tables.KINDS and suffix(path) != ".txt":
        return tables.open_table(path, None, header)
    with reading(path), open_text(path) as f:  # RecBole's, MovieLens's u.data and ratings.dat, and others
        first = next(lines(f, path), "")
    return tables.DelimitedTable(path, next((s for s in ("\t", ",", ";", "::") if s in first), " "), header, (), texts=False)


def _column(table: tables.Table, what: str, given: str | None, usual: tuple[str, ...]) -> str | None:
    by_name = {_bare(c): c for c in reversed(table.columns)}
    if given is None:
        return next((by_name[n] for n in usual if n in by_name), None)
    if given in table.columns or given.lower() in by_name:
        return given if given in table.columns else by_name[given.lower()]
    raise UserError(f"{table.path}: no column '{given}' (data.{what}=){nearest(given, table.columns)}")


def _seconds(value: Any) -> float | None:
    """Of a number, or of a date as ISO 8601 writes it; None for anything else."""
    if isinstance(value, datetime.datetime):
        return _of_date(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            return _of_date(datetime.datetime.fromisoformat(str(value).strip().replace("Z", "+00:00")))
        except ValueError:
            return None
    return number if math.isfinite(number) else None


def _of_date(when: datetime.datetime) -> float:
    """A date without a zone is one of UTC, so that its hours follow one another and are the same on every machine."""
    return (when if when.tzinfo else when.replace(tzinfo=datetime.timezone.utc)).timestamp()


def _of_pairs(path: Path) -> Iterator[Event]:
    for number, fields in _fields(path):
        problem = "" if len(fields) == 2 else f"{len(fields)} fields where there should be 2, a user and an item"
        yield Event(f"line {number}", fields[0], fields[-1], math.nan, problem)


def _of_sequences(path: Path, named: bool) -> Iterator[Event]:
    for number, fields in _fields(path):
        user = fields[0] if named else f"line {number}"
        for item in fields[1:] if named else fields:
            yield Event(f"line {number}", user, item, math.nan)
