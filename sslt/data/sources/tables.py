"""Tables of text in files: CSV, TSV, `LABEL text` lines, JSON lines and Parquet, each plain or as .xz/.gz.

`open_table` looks at a file's name and first lines and gives a `Table`: its column names, and its rows one at a time.
What is wrong with a single row travels with the row, so that the caller decides whether to stop or to skip it.
"""

from __future__ import annotations

import abc
import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sslt.data.sources import parquet
from sslt.data.sources.disk import LONGEST_LINE, lines, open_text, reading, suffix, text_lines
from sslt.data.sources.labels import decoded, is_missing, label_name
from sslt.errors import UserError, nearest
from sslt.stored import is_text

TEXT_NAMES = (
    "text", "text_a", "sentence", "sentence1", "review", "review_text", "body", "content", "document", "comment",
    "utterance", "message", "tweet", "query", "question", "description", "title",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "category", "class", "target", "intent", "sentiment", "polarity", "topic", "coarse_label",
    "label-coarse", "stars", "rating",
)  # fmt: skip
SEPARATORS = {"comma": ",", "tab": "\t", "\\t": "\t", "space": " ", "semicolon": ";", "pipe": "|"}
KINDS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".txt": "txt",
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet",
}  # fmt: skip
_HEAD = 4096  # characters looked at to tell a JSON array from JSON lines
_PEEKED = 100  # rows that say whether the first is a header
_SAMPLE = 1 << 20  # characters looked at to decide how a TSV file is quoted
_FIELD = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t\r\n]*)'
_QUOTED_RECORD = re.compile(rf"{_FIELD}(?:\t{_FIELD})*(?:\r?\n|\Z)")
_CUT_RECORD = re.compile(rf'(?:{_FIELD}\t)*"[^"]*(?:""[^"]*)*"?\Z')


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """Chosen values of one row. `where` is its place ("line 12"); `problem` says why there are no values."""

    where: str
    values: Sequence[Any]
    problem: str = ""


class Table(abc.ABC):
    """A file of rows. `named` is False where the columns have only numbers ("0", "1", ...)."""

    path: Path
    columns: list[str]
    named = True

    @abc.abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The values of `columns`, row by row, read as they are asked for."""

    @property
    def files(self) -> list[Path]:
        """The files that hold the content."""
        return [self.path]

    def class_names(self, column: str) -> list[str] | None:
        """Names of the numbers in `column`, where the file holds them."""
        return None


def open_table(path: Path, sep: str | None, header: bool | None, wanted: Sequence[str] = ()) -> Table:
    """The table in `path`; only its first lines are read.

    `sep` None: by the suffix, and for .txt a tab where the first line has one, else `LABEL text` lines. `header` None:
    the first line is one where it holds a usual column name or one of the `wanted`. Raises `UserError`.
    """
    kind = KINDS.get(suffix(path))
    if kind == "parquet":
        return ParquetTable(path)
    if kind == "json":
        return JsonTable(path)
    given = sep
    if sep is None:
        if kind is None:
            raise UserError(f"{path}: give sep= for this file; known suffixes: {', '.join(KINDS)}, with .xz or .gz")
        sep = {"csv": ",", "tsv": "\t"}.get(kind) or _separator_of_txt(path)
    sep = SEPARATORS.get(sep, sep)
    if len(sep) != 1:
        raise UserError(f"sep='{sep}': give one character or one of {', '.join(SEPARATORS)}")
    table = DelimitedTable(path, sep, header, wanted)
    if given is None and len(table.columns) == 1 and (other := _other_separator(path, {*TEXT_NAMES, *LABEL_NAMES, *wanted})):
        own = next(name for name, char in SEPARATORS.items() if char == sep)
        raise UserError(f"{path}: its lines look separated by {other}: set data.sep={other} (or data.sep={own}, if they are one column)")
    return table


def _other_separator(path: Path, known: set[str]) -> str | None:
    """The separator that the first lines of a file of one column speak for: by the names it gives, or as often in each of them."""
    with reading(path), open_text(path) as f:
        head = [line for line in itertools.islice(lines(f, path), 20) if line.strip()]
    for name in ("semicolon", "tab", "pipe", "comma"):
        counts = [line.count(SEPARATORS[name]) for line in head]
        names = {n.strip(' "\n').lower() for n in head[0].split(SEPARATORS[name])}
        if counts[0] and (names & known or (len(head) > 2 and len(set(counts)) == 1)):
            return name
    return None


def _separator_of_txt(path: Path) -> str:
    with reading(path), open_text(path) as f:
        return "\t" if "\t" in next(lines(f, path), "") else " "


class DelimitedTable(Table):
    """Fields between separators. With a space, a line is a label, a space and a text that may hold more of them.

    texts: whether there are some; where not, a line's fields are what stands between blanks.
    """

    def __init__(self, path: Path, sep: str, header: bool | None, wanted: Sequence[str], texts: bool = True):
        self.path, self.sep, self.texts = path, sep, texts
        self.quoted = len(sep) == 1 and (sep not in "\t " or (sep == "\t" and _consistently_quoted(path)))
        peeked = [fields for _, fields in itertools.islice(self._records(), _PEEKED)]
        if not peeked:
            raise UserError(f"{path}: empty file")
        first, *others = peeked
        names = [name.strip() for name in first]
        if header is None:
            known = {*TEXT_NAMES, *LABEL_NAMES}
            # A class may be called "question" or "description": that of the first line comes again.
            columns = [{row[i].strip() for row in others if i < len(row)} for i in range(len(names))]
            named = any(n.lower() in known and n not in values for n, values in zip(names, columns, strict=True))
            header = (named or any(not w.isdecimal() for w in wanted)) and sep != " "
        self.named = header
        self.columns = names if header else [str(i) for i in range(len(first))]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        at = [self.columns.index(c) for c in columns]
        width = len(self.columns)
        for number, fields in itertools.islice(self._records(), int(self.named), None):
            if len(fields) == width:
                yield Row(f"line {number}", [fields[i] for i in at])
            else:
                yield Row(f"line {number}", (), f"{len(fields)} fields where there should be {width}")

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """(line number, fields) of every line that is not blank."""
        if self.quoted:
            csv.field_size_limit(LONGEST_LINE)
            with reading(self.path), open_text(self.path, newline="") as f:
                for number, fields in _quoted_records(lines(f, self.path), self.sep, self.path):
                    if fields:
                        yield number, fields
        else:
            for number, line in enumerate(text_lines(self.path), 1):
                if line:
                    yield number, self._fields(line)

    def _fields(self, line: str) -> list[str]:
        if self.sep != " ":
            return line.split(self.sep)
        return line.split(" ", 1) if self.texts else line.split()


def _quoted_records(source: Iterator[str], sep: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each record as CSV has it.

    Quotation marks that nothing explains are taken as they are within a line. Raises `UserError` where they would make one record of
    several lines, or of the rest of a file that was cut short.
    """
    last = ""

    def seen() -> Iterator[str]:
        nonlocal last
        while last := next(source, ""):
            yield last

    reader = csv.reader(seen(), delimiter=sep, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if reader.line_num > first or "end of data" in str(e):
                raise UserError(
                    f"{path}: what begins with a quotation mark in line {first} has no end, or one in line {reader.line_num} that is none: "
                    f"a quotation mark within quoted text is written twice"
                ) from None
            (fields,) = csv.reader([last], delimiter=sep)
        yield reader.line_num, fields


def _consistently_quoted(path: Path) -> bool:
    """Whether a TSV file quotes as CSV does: has quotes, and none that the rules of RFC 4180 do not explain.

    Most TSV files are written without quoting and hold stray quotes, which a CSV reader would take for the start of a
    field that ends many lines later.
    """
    with reading(path), open_text(path, newline="") as f:
        sample = f.read(_SAMPLE)
    if '"' not in sample:
        return False
    cut = len(sample) == _SAMPLE
    at = 0
    while at < len(sample):
        match = _QUOTED_RECORD.match(sample, at)
        if match is None:
            # The end of the sample may cut a record short, inside its quotes.
            return cut and at > _SAMPLE // 2 and bool(_CUT_RECORD.match(sample, at))
        at = match.end()
    return True


class JsonTable(Table):
    """JSON lines (an object per line), or one JSON array of objects."""

    def __init__(self, path: Path):
        self.path = path
        self.columns = []
        for _, row in itertools.islice(self.objects(), 100):
            if isinstance(row, dict):
                self.columns.extend(key for key in row if key not in self.columns)
        if not self.columns:
            raise UserError(f'{path}: expected a JSON object per line, such as {{"text": "...", "label": "..."}}')

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for where, row in self.objects():
            if isinstance(row, dict):
                yield Row(where, [row.get(c) for c in columns])
            else:
                yield Row(where, (), row if isinstance(row, str) else "not a JSON object")

    def objects(self) -> Iterator[tuple[str, Any]]:
        """(place, object), or (place, what is wrong) where a line is not JSON."""
        with reading(self.path), open_text(self.path) as f:
            array = f.read(_HEAD).lstrip().startswith("[")
        with reading(self.path), open_text(self.path, newline="\n") as f:
            if array:
                yield from self._array(f.read())
                return
            for number, line in enumerate(lines(f, self.path), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:  # an integer of 5,000 digits, a nesting of 100,000
                    row = f"not JSON ({getattr(e, 'msg', e)})"
                yield f"line {number}", row

    def _array(self, text: str) -> Iterator[tuple[str, Any]]:
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError(f"{self.path}: not JSON (line {e.lineno}: {e.msg})") from None
        for number, row in enumerate(rows, 1):
            yield f"row {number}", row


class ParquetTable(Table):
    """A Parquet file; class names are taken from the features that Hugging Face's `datasets` writes into it."""

    def __init__(self, path: Path):
        self.path = path
        schema = parquet.open_parquet(path).schema_arrow
        self.columns = list(schema.names)
        self._names = {c: parquet.class_names(f) for c, f in parquet.features(path, schema).items()}

    def class_names(self, column: str) -> list[str] | None:
        return self._names.get(column)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        with reading(self.path):
            for batch in parquet.open_parquet(self.path).iter_batches(batch_size=4096, columns=list(dict.fromkeys(columns))):
                for values in zip(*(batch.column(c).to_pylist() for c in columns), strict=True):
                    number += 1
                    yield Row(f"row {number}", values)


# --- columns and rows -------------------------------------------------------------------------------------------------


def choose_columns(table: Table, text: str | None, label: str | None, also: Sequence[str] = ()) -> tuple[str, str | None]:
    """The columns of the text and of the label (None: there is none), found by their usual names where not given.

    Without names, the text is the column with the longest fields, and of two columns the other one is the label. label "": whatever is
    there, none is read (what is to be predicted needs none). also: further columns of labels, none of which is the text.
    Raises `UserError` for a column that is not there, with the nearest name, or where the text cannot be told.
    """
    unread, label = label == "", label or None
    by_lower = {c.lower(): c for c in reversed(table.columns)}
    for given in (text, label, *also):
        if given is not None and given not in table.columns:
            raise UserError(f"{table.path}: no column '{given}'{nearest(given, table.columns)}")
    if label is None:
        label = next((by_lower[n] for n in LABEL_NAMES if n in by_lower and by_lower[n] != text), None)
    rest = [c for c in table.columns if c != label and c not in also]
    if text is None and not table.named:
        text = rest[_longest(table, rest)]
    if text is None:
        usual = [by_lower[n] for n in TEXT_NAMES if by_lower.get(n) in rest]
        if not usual and len(rest) != 1:
            raise UserError(f"{table.path}: which column is the text? Give text=; there is: {', '.join(table.columns)}")
        text = usual[0] if usual else rest[0]
    if label is None and not table.named and len(table.columns) == 2:
        label = next(c for c in table.columns if c != text)
    return text, None if unread else label


def _longest(table: Table, columns: list[str]) -> int:
    totals = [0] * len(columns)
    for row in itertools.islice(table.rows(columns), 100):
        for i, value in enumerate(row.values):
            totals[i] += len(str(value))
    return totals.index(max(totals))


def read_rows(table: Table, text: str, label: str | None, on_error: str) -> tuple[list[str], list[str] | None, list[str]]:
    """All (texts, labels as strings or None, what was skipped).

    A row without text or, where `label` names a column, without label is an error (`UserError` naming file and row),
    or is left out with `on_error` "skip".
    """
    texts, labels, skipped = read_labels(table, text, label, on_error, every=True)
    return texts, [str(name) for name in labels] if label else None, skipped


def read_labels(table: Table, text: str, label: str | None, on_error: str, *, every: bool) -> tuple[list[str], list[str | None], list[str]]:
    """As `read_rows`; every: whether a row must have a label. Otherwise that of one without is None."""

    def parse(values: Sequence[Any], names: list[str] | None) -> tuple[str | None, str]:
        if not label:
            return None, ""
        name = label_name(values[0], names)
        return name, "" if name is not None or not every else label_problem(values[0], label)

    return read_answers(table, text, [label] if label else [], parse, on_error)


def read_answers(
    table: Table, text: str, columns: Sequence[str], parse: Callable[..., tuple[Any, str]], on_error: str
) -> tuple[list[str], list[Any], list[str]]:
    """All (texts, answers, what was skipped); parse: values of `columns` and names of their classes → answer, what is wrong with it."""
    names = table.class_names(columns[0]) if columns else None
    texts, answers, skipped = list[str](), list[Any](), list[str]()
    for row in table.rows([text, *columns]):
        problem, answer, values = row.problem, None, [decoded(v) for v in row.values]
        if not problem and not (problem := text_problem(values[0])):
            answer, problem = parse(values[1:], names)
        if problem:
            refuse(f"{table.path}, {row.where}: {problem}", on_error, skipped)
            continue
        texts.append(str(values[0]))
        answers.append(answer)
    return texts, answers, skipped


def iter_texts(table: Table, text: str, on_error: str, skipped: list[str]) -> Iterator[str]:
    """The texts that `read_rows` gives without labels, row by row."""
    for row in table.rows([text]):
        value = decoded(row.values[0]) if row.values else None
        if problem := row.problem or text_problem(value):
            refuse(f"{table.path}, {row.where}: {problem}", on_error, skipped)
        else:
            yield str(value)


def refuse(message: str, on_error: str, skipped: list[str]) -> None:
    """Stop with `message`, or note it in `skipped` with `on_error` "skip"."""
    if on_error != "skip":
        raise UserError(f"{message}\n(data.on_error=skip leaves it out)")
    skipped.append(message)


def text_problem(value: Any) -> str:
    """Why a value is no text to learn from; "" where it is one."""
    if isinstance(value, (list, dict)):
        return f"the text is a {type(value).__name__}"
    if isinstance(value, bytes):
        return "the text is bytes that are not UTF-8"
    if value is None or not str(value).strip():
        return "empty text"
    return "" if is_text(str(value)) else "the text holds half a character (a lone surrogate), which is no Unicode"


def label_problem(value: Any, label: str) -> str:
    """Why a value in column `label` is no label."""
    if isinstance(value, (list, dict)):
        return f"the label in column '{label}' is a {type(value).__name__}, not one class"
    if isinstance(value, bytes) or not is_text(str(value)):
        return f"the label in column '{label}' is not UTF-8"
    return f"no label in column '{label}'" + (f" ({value!r})" if value is not None and is_missing(str(value).strip()) else "")
