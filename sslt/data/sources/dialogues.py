"""Dialogues: what is said next, given what was said before; own files, the Cornell films' dialogues, and Schema-Guided Dialogue."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Answers, Labels, Space, Texts
from sslt.data.base import SPLITS, Raw, check_on_error
from sslt.data.sources import disk, tables
from sslt.data.sources.text_to_text import ToTexts, Written
from sslt.data.sources.texts import content_digest, find_tables, name_of
from sslt.errors import UserError, nearest

FORMAT = 1
TURNS = ("turns", "dialogue", "dialog", "utterances", "messages", "conversation", "conversations")  # usual keys, of a dialogue's turns,
SAID = ("text", "utterance", "content", "u", "value", "message")  # of what is said in one,
SPEAKERS = ("speaker", "role", "s", "from", "user")  # and of who says it
SEPARATOR = " +++$+++ "  # of the Cornell corpus
LINES, CONVERSATIONS = "movie_lines.txt", "movie_conversations.txt"
_NUMBER = re.compile(r"_\d+$")


class Dialogue(NamedTuple):
    """One dialogue: (speaker, what is said) turn by turn, and what else its line holds."""

    where: str
    turns: list[tuple[str, str]]
    problem: str = ""
    about: Any = None

    @property
    def whole(self) -> str:
        """All that is said, a line a turn."""
        return "\n".join(text for _, text in self.turns if text)


def read_turns(row: Any, where: str, key: str | None) -> Dialogue:
    """A dialogue as a JSON object has it: a list of strings, or of objects with what is said and who says it."""
    if not isinstance(row, dict):
        return Dialogue(where, [], row if isinstance(row, str) else "not a JSON object")
    key = next((k for k in ((key,) if key else TURNS) if k in row), None)
    if key is None:
        return Dialogue(where, [], f"no turns: they are looked for under {', '.join(TURNS)}; name theirs by data.turns=")
    if not isinstance(row[key], list):
        return Dialogue(where, [], f"'{key}' is no list of turns")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(row[key], 1):
        if isinstance(turn, dict):
            text = next((turn[k] for k in SAID if k in turn), None)
            speaker = str(next((turn[k] for k in SPEAKERS if k in turn), ""))
        else:
            text, speaker = turn, ""
        if not isinstance(text, str):
            return Dialogue(where, [], f"turn {number} has no text (under {', '.join(SAID)})")
        if (problem := tables.text_problem(text)) and text.strip():
            return Dialogue(where, [], f"turn {number}: {problem}")
        turns.append((speaker, " ".join(text.split())))
    return Dialogue(where, turns, "" if turns else "a dialogue without turns", row)


def json_dialogues(file: Path, key: str | None) -> Iterator[Dialogue]:
    """The dialogues of a file of JSON lines, or of a JSON array."""
    for where, row in tables.JsonTable(file).objects():
        yield read_turns(row, f"{file}, {where}", key)


def cornell(folder: Path) -> Iterator[Dialogue]:
    """The Cornell Movie-Dialogs Corpus (Danescu-Niculescu-Mizil & Lee, 2011), files in ISO 8859-1 with ` +++$+++ ` between fields."""
    said: dict[str, tuple[str, str]] = {}
    for _, fields in _fields(folder / LINES):
        if len(fields) < 5:  # an empty line of a film ends after its separator, or before it
            fields = [*fields, *[""] * (5 - len(fields))]
        said[fields[0].strip()] = fields[3].strip(), " ".join(fields[4].split())
    for number, fields in _fields(folder / CONVERSATIONS):
        where = f"{folder / CONVERSATIONS}, line {number}"
        try:
            ids = ast.literal_eval(fields[3].strip())
        except (IndexError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            ids = None
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            yield Dialogue(where, [], "expected four fields, the last a list of lines, with ' +++$+++ ' between them")
            continue
        absent = next((i for i in ids if i not in said), None)
        yield Dialogue(where, [said[i] for i in ids if i in said], "" if absent is None else f"line {absent} is not in {LINES}")


def _fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(disk.read_text_or_latin1(file).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r").split(SEPARATOR)


class DialogueSource(ToTexts):
    """Each turn is an answer to the `history` turns before it (None: all), which are its text, a line each; subclasses find dialogues.

    reply_by: whose turns are learned, None: those of all. Dialogues are never divided between splits. `unlabeled` has each of train as a
    whole, since turns stand in several histories.
    """

    history: int | None
    reply_by: str | None

    def dialogues(self, split: str) -> Iterator[Dialogue]:
        raise NotImplementedError

    def rows(self, split: str) -> Iterator[Written]:
        speakers: dict[str, None] = {}
        found = False
        for number, dialogue in enumerate(self.dialogues(split)):
            if dialogue.problem:
                yield Written(dialogue.where, "", [], dialogue.problem)
            turns = [turn for turn in dialogue.turns if turn[1]]
            speakers |= dict.fromkeys(who for who, _ in turns[1:])
            for i in range(1, len(turns)):
                if self.reply_by is None or turns[i][0] == self.reply_by:
                    found = True
                    before = turns[max(0, i - self.history) if self.history else 0 : i]
                    yield Written(dialogue.where, "\n".join(text for _, text in before), [turns[i][1]], group=number, whole=dialogue.whole)
        if not found and self.reply_by is not None and speakers:
            names = [who or "nobody named" for who in list(speakers)[:8]]
            raise UserError(f"{self.name}: '{self.reply_by}' replies to nothing in the {split} data; replies are by {', '.join(names)}"
                            f"{nearest(self.reply_by, names)}")  # fmt: skip

    def get(self, split: str) -> Raw:
        if split != "unlabeled" or self.answer is not Texts or "unlabeled" in self.own_splits():
            return super().get(split)
        raw = super().get("train")
        assert raw.answers is not None and raw.answers.groups is not None
        kept = set(raw.answers.groups.tolist())
        whole = [d.whole for i, d in enumerate(self.dialogues("train")) if i in kept]
        return Raw(list(dict.fromkeys(whole)), None, raw.skipped, remarks=raw.remarks)


def check_history(history: int | None) -> int | None:
    if history is not None and history < 1:
        raise UserError(f"data.history={history}: give at least 1, the turn that is replied to, or null for all turns before")
    return history


class Dialogues(DialogueSource):
    """Your own dialogues: JSON lines (or a JSON array) of turns, a file or a folder (or glob) of files named for their splits; or a folder
    with the Cornell films' dialogues.

    A turn is a string, or an object with what is said and who says it, under their usual names. turns: the key of the list of turns,
    where it is not a usual one. Raises `UserError` naming file and line.
    """

    def __init__(
        self, path: str, turns: str | None, history: int | None, reply_by: str | None, language: str | None, on_error: str,
        val_fraction: float, test_fraction: float,
    ):  # fmt: skip
        self.path, self.turns, self.history, self.language = stored.located(path), turns, check_history(history), language
        self.reply_by = None if reply_by is None else str(reply_by)
        self.on_error, self.val_fraction, self.test_fraction = check_on_error(on_error), val_fraction, test_fraction
        self.name = name_of(self.path)

    @functools.cached_property
    def cornell(self) -> Path | None:
        """The folder of the Cornell corpus."""
        folders = (self.path, *sorted(p for p in self.path.glob("*") if p.is_dir())) if self.path.is_dir() else ()
        found = next((f for f in folders if (f / LINES).is_file() or (f / CONVERSATIONS).is_file()), None)
        if found is not None and (missing := next((n for n in (LINES, CONVERSATIONS) if not (found / n).is_file()), None)):
            raise UserError(f"{found}: {missing} is missing beside the other file of the Cornell corpus")
        return found

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        return {"train": [self.cornell / LINES, self.cornell / CONVERSATIONS]} if self.cornell else find_tables(self.path, None, "json")

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files)

    def dialogues(self, split: str) -> Iterator[Dialogue]:
        if self.cornell:
            yield from cornell(self.cornell)
            return
        for file in self.files[split]:
            yield from json_dialogues(file, self.turns)

    def fingerprint(self) -> str:
        files = [(split, content_digest(fs)) for split, fs in self.files.items()]
        settings = (self.turns, self.history, self.reply_by, self.language, self.on_error)
        return cache.digest("Dialogues", FORMAT, self.cornell is not None, files, settings)


class Sgd(DialogueSource):
    """Schema-Guided Dialogue (Rastogi et al., 2020): dialogues of a user and a system about services.

    answer "texts": what the system says next. "labels": which services a dialogue is about, whose text is all that is said; services:
    "names" as they are (Hotels_2), or "domains", without their numbers. Looked for in `root/sgd-dialogues`, `root/sgd` and `root`: files
    train, dev and test of JSON lines, or the folders of the official release.
    """

    name, language = "sgd", "en"
    KINDS: ClassVar[dict[str, type[Answers]]] = {"texts": Texts, "labels": Labels}
    folders: ClassVar[tuple[str, ...]] = ("sgd-dialogues", "sgd", "dstc8-schema-guided-dialogue")
    reply_by = "S"

    def __init__(self, root: str, answer: str, history: int | None, services: str):
        for key, value, known in (("answer", answer, self.KINDS), ("services", services, ("names", "domains"))):
            if value not in known:
                raise UserError(f"data.{key}={value}: give {' or '.join(known)}{nearest(value, known)}")
        self.root, self.history, self.services = stored.located(root), check_history(history), services
        self.answer = self.KINDS[answer]

    @functools.cached_property
    def files(self) -> dict[str, list[Path]]:
        parts = {"train": "train", "val": "dev", "test": "test"}
        for folder in (*(self.root / name for name in self.folders), self.root):
            found = {split: self._files(folder, part) for split, part in parts.items()}
            if all(found.values()):
                return found
        raise UserError(
            f"no Schema-Guided Dialogue in {self.root}/sgd-dialogues: put train.jsonl, dev.jsonl and test.jsonl there (a dialogue a line; "
            f".xz, .gz too),\nor the folders train, dev, test of https://github.com/google-research-datasets/dstc8-schema-guided-dialogue"
        )

    def _files(self, folder: Path, part: str) -> list[Path]:
        lines = disk.packed_or_not(folder / f"{part}.jsonl")
        return [lines] if lines else sorted((folder / part).glob("dialogues_*.json"))

    def own_splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.files)

    def dialogues(self, split: str) -> Iterator[Dialogue]:
        for file in self.files[split]:
            for dialogue in json_dialogues(file, None):  # the official release writes USER and SYSTEM
                yield dialogue._replace(turns=[(who[:1].upper(), text) for who, text in dialogue.turns])

    @functools.cached_property
    def _services(self) -> dict[str, list[str]]:
        """The services of each split, sorted."""

        def read(_: Path) -> dict[str, list[str]]:
            return {split: sorted({name for names in self._read_services(split) for name in names}) for split in self.own_splits()}

        found = cache.get_or_make("services", self.fingerprint(), read)
        return {split: found.meta[split] for split in self.own_splits()}

    def _read_services(self, split: str) -> Iterator[list[str]]:
        for dialogue in self.dialogues(split):
            if dialogue.problem:
                raise UserError(f"{dialogue.where}: {dialogue.problem}")
            names = [str(name) for name in dialogue.about.get("services") or ()]
            yield [_NUMBER.sub("", name) for name in names] if self.services == "domains" else names

    @property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        if self.answer is Texts:
            return None
        return list(dict.fromkeys([*self._services["train"], *(n for names in self._services.values() for n in names)]))

    @property
    def space(self) -> Space | None:
        return super().space if self.answer is Texts else {"classes": self.classes}

    def read(self, split: str) -> Raw:
        if self.answer is Texts:
            return super().read(split)
        number = {name: i for i, name in enumerate(self.classes or ())}
        texts = [dialogue.whole for dialogue in self.dialogues(split)]
        values = np.zeros((len(texts), len(number)), bool)
        for row, names in zip(values, self._read_services(split), strict=True):
            row[[number[name] for name in names]] = True
        return Raw(texts, Labels(values, {"classes": list(number)}), remarks=self.remarks(split))

    def get(self, split: str) -> Raw:
        return super().get(split) if self.answer is Texts else super(ToTexts, self).get(split)

    def remarks(self, split: str) -> list[str]:
        if self.answer is Texts:
            return []
        new = [n for n in self._services[split] if n not in self._services["train"]]
        named = f"{', '.join(new[:5])}{', …' if len(new) > 5 else ''}"
        found = f"sgd: {len(new)} of the {len(self._services[split])} services in {split} are none of train ({named}): they count as missed"
        bare = {_NUMBER.sub("", n) for n in self._services["train"]}
        known = sum(_NUMBER.sub("", n) in bare for n in new) if self.services == "names" else 0
        return [found + (f"; {known} of them under another number, which data.services=domains leaves out" if known else "")] if new else []

    def fingerprint(self) -> str:
        content = [(s, content_digest(fs)) for s, fs in self.files.items()]
        return cache.digest("Sgd", FORMAT, content, self.answer.kind, self.history, self.services)
