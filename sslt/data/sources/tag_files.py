"""Files of texts with tagged spans: JSON lines in the usual shapes, and columns (CoNLL), each plain or as .xz/.gz.

What is wrong with a single text travels with it, so that the caller decides whether to stop or to leave it out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sslt.data.sources import disk, tables
from sslt.errors import UserError, nearest
from sslt.stored import is_text

TAG_NAMES = ("tags", "entities", "label", "labels", "spans", "ner", "ner_tags", "annotations")
STARTS, ENDS = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")
TYPES = ("label", "type", "entity", "entity_group", "tag")
BEGIN, INSIDE, LAST, ALONE = "B", "IM", "EL", "SU"  # of BIO, BIOES, BILOU and BMES
Span = tuple[int, int, str]  # start, end (exclusive), type


class Wrong(ValueError):
    """What is wrong with a text, in words."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the files are to be read: the settings of `data=text_tags`."""

    text: str | None = None
    tags: str | None = None
    ends: str = "exclusive"
    overlaps: str = "fail"
    token_column: int = 0
    tag_column: int = -1
    join: str = " "

    def check(self) -> None:
        """Raise `UserError` for a value that is none of its setting."""
        for name, allowed in (("ends", ("exclusive", "inclusive")), ("overlaps", ("fail", "longest"))):
            if (value := getattr(self, name)) not in allowed:
                raise UserError(f"data.{name}={value}: give {' or '.join(allowed)}{nearest(str(value), allowed)}")


class Tagged(NamedTuple):
    """A text and its spans, in their order (None: the file has none); `where` it stands, and what is wrong with it.

    group: number of its document, where the file divides texts into such. dropped: spans that lay within longer ones.
    """

    where: str
    text: str = ""
    spans: list[Span] | None = None
    problem: str = ""
    group: int | None = None
    dropped: int = 0


def read_tagged(path: Path, layout: Layout) -> Iterator[Tagged]:
    """The texts of a file, by its suffix or its first character JSON or columns. Raises `UserError` for what is no such file."""
    return _json(path, layout) if is_json(path) else _columns(path, layout)


def is_json(path: Path) -> bool:
    if tables.KINDS.get(disk.suffix(path)) == "json":
        return True
    with disk.reading(path), disk.open_text(path) as f:
        first = next((line for line in disk.lines(f, path) if line.strip()), "")
    return first.lstrip().startswith(('{"', "[{"))


def has_tags(path: Path, layout: Layout) -> bool:
    """Whether the first texts of a file come with tags."""
    return any(row.spans is not None or row.problem for row in itertools.islice(read_tagged(path, layout), 20))


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json(path: Path, layout: Layout) -> Iterator[Tagged]:
    table = tables.JsonTable(path)
    for given in (layout.text, layout.tags):
        if given is not None and given not in table.columns:
            raise UserError(f"{path}: no key '{given}'{nearest(given, table.columns)}")
    text = layout.text or next((n for n in (*tables.TEXT_NAMES, "tokens", "words") if n in table.columns and n != layout.tags), None)
    if text is None:
        raise UserError(f"{path}: which key is the text? Give data.text=; there is: {', '.join(table.columns)}")
    tags = layout.tags or next((n for n in TAG_NAMES if n in table.columns and n != text), None)
    for row in table.rows([text, tags] if tags else [text]):
        try:
            if row.problem:
                raise Wrong(row.problem)
            if isinstance(row.values[0], list):
                yield _of_tokens(row.where, row.values[0], row.values[1] if tags else None, layout)
                continue
            if problem := tables.text_problem(row.values[0]):
                raise Wrong(problem)
            found = str(row.values[0])
            spans = spans_of(row.values[1], found, layout.ends == "inclusive") if tags else None
            yield _settled(row.where, found, spans, layout)
        except Wrong as e:
            yield Tagged(row.where, problem=str(e))


def spans_of(value: Any, text: str, inclusive: bool) -> list[Span]:
    """Spans of `[[start, end, type], …]`, `[{"start": …, "end": …, "label": …}, …]` or CLUENER's `{type: {surface: [[start, end], …]}}`.

    Nothing (null) is a text without spans. Raises `Wrong`.
    """
    found = [_checked(start, end, kind, surface, text, inclusive) for start, end, kind, surface in _entries(value)]
    return sorted(set(found))


def _entries(value: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """(start, end, type, what should stand there or None) of each."""
    if isinstance(value, dict):
        for kind, surfaces in value.items():
            for surface, places in surfaces.items() if isinstance(surfaces, dict) else [(None, surfaces)]:
                for place in places if isinstance(places, list) else [places]:
                    if not isinstance(place, list) or len(place) != 2:
                        raise Wrong(f"'{kind}' holds {_short(place)} where there should be [start, end]")
                    yield place[0], place[1], kind, surface
        return
    if value is not None and not isinstance(value, list):
        raise Wrong(f"the tags are {_short(value)}: expected a list of [start, end, type]")
    for entry in value or []:
        if isinstance(entry, dict):
            start, end, kind = (next((entry[n] for n in names if n in entry), None) for names in (STARTS, ENDS, TYPES))
            yield start, end, kind, entry.get("text")
        elif isinstance(entry, list) and len(entry) == 3:
            yield entry[0], entry[1], entry[2], None
        else:
            raise Wrong(f"a tag is {_short(entry)}: expected [start, end, type], or start, end and label by name")


def _checked(start: Any, end: Any, kind: Any, surface: Any, text: str, inclusive: bool) -> Span:
    shown = f"[{start}, {end}, {kind}]"
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (start, end)):
        raise Wrong(f"the tag {shown} has no start and end in characters")
    if not isinstance(kind, str) or not kind.strip() or not is_text(kind):
        raise Wrong(f"the tag {shown} has no type")
    end += inclusive
    if not 0 <= start <= end <= len(text):
        raise Wrong(f"the tag {shown} lies outside its text of {len(text)} characters")
    inside = text[start:end]
    if isinstance(surface, str) and inside.strip() != surface.strip():
        other = text[start : end + 1 - 2 * inclusive].strip() == surface.strip()
        advice = f": set data.ends={'exclusive' if inclusive else 'inclusive'}" if other else ""
        raise Wrong(f"the tag {shown} is on '{inside[:40]}', not on '{surface[:40]}'{advice}")
    if not inside.strip():
        raise Wrong(f"the tag {shown} holds no text")
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()), kind.strip()


def _settled(where: str, text: str, spans: list[Span] | None, layout: Layout, group: int | None = None) -> Tagged:
    """The text with spans of which none overlap. Raises `Wrong` where they do, unless the longest are to be kept."""
    kept: list[Span] = []
    by_length = spans or []
    if layout.overlaps == "longest":
        by_length = sorted(by_length, key=lambda s: (s[0] - s[1], s))
    for span in by_length:
        other = next((k for k in kept if span[0] < k[1] and k[0] < span[1]), None)
        if other is None:
            kept.append(span)
        elif layout.overlaps == "fail":
            both = " and ".join(f"[{s}, {e}, {t}]" for s, e, t in (other, span))
            raise Wrong(f"the tags {both} overlap; data.overlaps=longest keeps the longer one")
    return Tagged(where, text, None if spans is None else sorted(kept), "", group, len(by_length) - len(kept))


def _short(value: Any) -> str:
    return repr(value)[:60]


# --- columns ----------------------------------------------------------------------------------------------------------


def _columns(path: Path, layout: Layout) -> Iterator[Tagged]:
    """Sentences of lines `token … tag`, apart by blank lines; a line of -DOCSTART- begins a document, one of `# …` is a remark."""
    document: int | None = None
    for start, rows in _sentences(path):
        if rows[0][1][0] == "-DOCSTART-":
            document, rows = (0 if document is None else document + 1), rows[1:]
        if rows and rows[0][2].startswith("# ") and not _is_tag(rows[0][1][-1]):
            rows = rows[1:]
        if rows:
            try:
                yield _sentence(f"line {start}", rows, layout, document)
            except Wrong as e:
                yield Tagged(getattr(e, "where", f"line {start}"), problem=str(e))


def _sentences(path: Path) -> Iterator[tuple[int, list[tuple[int, list[str], str]]]]:
    """(number of the first line, [(number, fields, line), …]) of each."""
    with disk.reading(path), disk.open_text(path) as f:
        rows: list[tuple[int, list[str], str]] = []
        for number, line in enumerate(disk.lines(f, path), 1):
            if line.strip():
                line = line.rstrip("\n")
                rows.append((number, line.split("\t") if "\t" in line else line.split(), line))
            elif rows:
                yield rows[0][0], rows
                rows = []
        if rows:
            yield rows[0][0], rows


def _sentence(where: str, rows: Sequence[tuple[int, list[str], str]], layout: Layout, document: int | None) -> Tagged:
    tokens: list[str] = []
    tags: list[str] = []
    untagged = all(len(fields) == 1 for _, fields, _ in rows)
    for number, fields, _ in rows:
        try:
            if not untagged and len(fields) == 1:
                raise Wrong(f"'{fields[0][:40]}' stands alone: expected a token and its tag")
            tokens.append(fields[layout.token_column])
            if not tokens[-1].strip():
                raise Wrong("a tag without a token")
            if not untagged:
                tags.append(fields[layout.tag_column])
                named(tags[-1])
        except (IndexError, Wrong) as e:
            asked = f"token_column={layout.token_column} and data.tag_column={layout.tag_column}"
            wrong = e if isinstance(e, Wrong) else Wrong(f"{len(fields)} columns, where data.{asked} were to be read")
            wrong.where = f"line {number}"  # type: ignore[attr-defined]
            raise wrong from None
    return _of_tokens(where, tokens, None if untagged else tags, layout, document)


def _of_tokens(where: str, tokens: list[Any], tags: Any, layout: Layout, document: int | None = None) -> Tagged:
    """A text of its tokens, whose tags become spans."""
    if not all(isinstance(t, str) for t in tokens) or not "".join(tokens).strip():
        raise Wrong("empty text" if not tokens else "the tokens are not all text")
    text, ends = layout.join.join(tokens), list(itertools.accumulate(len(t) + len(layout.join) for t in tokens))
    if not is_text(text):
        raise Wrong("the text holds half a character (a lone surrogate), which is no Unicode")
    if tags is None:
        return Tagged(where, text, None, "", document)
    if not isinstance(tags, list) or len(tags) != len(tokens) or not all(isinstance(t, str) for t in tags):
        raise Wrong(f"{len(tokens)} tokens, and tags {_short(tags)}: expected a list of as many tags such as B-person")
    places = [(end - len(t) - len(layout.join), end - len(layout.join)) for t, end in zip(tokens, ends, strict=True)]
    found = [(places[a][0], places[b - 1][1], kind) for a, b, kind in spans_of_tags(tags)]
    spans = [_checked(a, b, kind, None, text, False) for a, b, kind in found]
    return Tagged(where, text, spans, "", document)


def spans_of_tags(tags: Sequence[str]) -> list[Span]:
    """Spans of tokens, end exclusive, of tags in BIO (IOB1 and IOB2), BIOES, BILOU or BMES. Raises `Wrong` for what is no tag.

    As `conlleval` reads them (Tjong Kim Sang & Buchholz, 2000): an I- after O or after another type begins a span.
    """
    found: list[Span] = []
    start, kind = -1, ""
    for i, tag in enumerate((*tags, "O")):
        prefix, name = named(tag)
        if start >= 0 and (prefix not in INSIDE + LAST or name != kind):
            found.append((start, i, kind))
            start = -1
        if prefix != "O" and start < 0:
            start, kind = i, name
        if prefix in LAST + ALONE:
            found.append((start, i + 1, kind))
            start = -1
    return found


def named(tag: str) -> tuple[str, str]:
    """A tag's prefix, O where there is none, and its type. Raises `Wrong`."""
    if tag == "O":
        return "O", ""
    prefix, dash, name = tag.partition("-")
    if len(prefix) != 1 or prefix not in BEGIN + INSIDE + LAST + ALONE or not dash or not name:
        raise Wrong(f"'{tag[:40]}' is no tag: expected O, or B- or I- (E-, S-) and a type, as in B-person")
    return prefix, name


def _is_tag(tag: str) -> bool:
    try:
        return bool(named(tag))
    except Wrong:
        return False
