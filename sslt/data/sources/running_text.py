"""Sources of running text: files of documents, and files with a text a line."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from sslt import stored
from sslt.data import cache
from sslt.data.base import Raw, Source, check_on_error
from sslt.data.sources import disk, tables
from sslt.data.sources.docs import iter_documents, split_documents
from sslt.data.sources.texts import content_digest, name_of, unpacked_bytes
from sslt.errors import UserError

FORMAT, LINES_FORMAT = 1, 2  # of files cut into documents, and of lines


class RunningText(Source):
    """Texts of a path, without labels."""

    modality = "text"

    def __init__(self, path: str):
        self.path = stored.located(path)
        self.name = name_of(self.path)

    @property
    def classes(self) -> None:
        return None

    def own_splits(self) -> tuple[str, ...]:
        return ("unlabeled",)


class TextFiles(RunningText):
    """Running text without labels: a file, all .txt and .md files under a folder, or a glob; .xz and .gz too.

    Cut at blank lines into documents of about 1,000 characters. Raises `UserError` where there is no file.
    """

    def __init__(self, path: str, on_error: str):
        super().__init__(path)
        self.on_error = check_on_error(on_error)

    @functools.cached_property
    def files(self) -> list[Path]:
        if self.path.is_dir():
            found = [f for f in disk.walk(self.path) if disk.suffix(f) in (".txt", ".md")]
        else:
            found = [self.path] if self.path.exists() else disk.matching(self.path)
        if not found:
            raise UserError(f"{self.path}: no such file, or no .txt or .md files (.xz and .gz too) in it")
        return sorted(found, key=lambda f: f.as_posix())

    def fingerprint(self) -> str:
        return cache.digest("TextFiles", FORMAT, content_digest(self.files), self.on_error)

    def read(self, split: str) -> Raw:
        documents: list[str] = []
        skipped: list[str] = []
        for file in self.files:
            if (text := read_or_refuse(file, self.on_error, skipped)) is not None:
                documents += split_documents(text)
        if not documents:
            raise UserError(f"{self.path}: the files hold no text")
        return Raw(documents, None, skipped)

    def text_bytes(self, split: str) -> int:
        return unpacked_bytes(self.files)

    def stream(self, split: str, skipped: list[str]) -> Iterator[str]:
        for file in self.files:
            try:
                empty = True
                with disk.reading(file), disk.open_text(file) as f:
                    for document in iter_documents(disk.lines(f, file)):
                        empty = False
                        yield document
            except UserError as e:
                tables.refuse(str(e), self.on_error, skipped)
                continue
            if empty:
                tables.refuse(f"{file}: empty file", self.on_error, skipped)


def read_or_refuse(file: Path, on_error: str, skipped: list[str]) -> str | None:
    """A file's text, or None (and a note in `skipped`) where it is unreadable or empty and `on_error` is "skip"."""
    try:
        text = disk.read_text(file)
    except UserError as e:
        tables.refuse(str(e), on_error, skipped)
        return None
    if text.strip():
        return text
    tables.refuse(f"{file}: empty file", on_error, skipped)
    return None


class TextLines(RunningText):
    """One text a line, without labels, in a text file (.xz and .gz too): what `sslt predict` reads. Empty lines are kept."""

    def fingerprint(self) -> str:
        return cache.digest("TextLines", LINES_FORMAT, content_digest([self.path]))

    def read(self, split: str) -> Raw:
        rows = list(disk.text_lines(self.path))
        if not rows:
            raise UserError(f"{self.path}: the file is empty")
        return Raw(rows)

    def text_bytes(self, split: str) -> int:
        return unpacked_bytes([self.path])

    def stream(self, split: str, skipped: list[str]) -> Iterator[str]:
        return disk.text_lines(self.path)
