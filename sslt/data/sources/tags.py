"""Sources of texts with tagged spans: own files, and data sets in the layouts they are distributed in."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Space, Tags
from sslt.data.base import Raw, check_on_error
from sslt.data.ragged import Ragged
from sslt.data.sources import disk, tables
from sslt.data.sources.split_files import SplitFiles
from sslt.data.sources.tag_files import Layout, Tagged, has_tags, is_json, read_tagged
from sslt.data.sources.texts import content_digest, find_tables, name_of
from sslt.errors import UserError

FORMAT = 1


class TagSource(SplitFiles):
    """Splits that are files of texts with tagged spans. Subclasses find the files.

    types: names that come first among those that are found, in this order.
    """

    modality = "text"
    answer = Tags

    def __init__(self, layout: Layout, on_error: str, types: list[str] | None = None):
        layout.check()
        self.layout, self.on_error, self.first_types = layout, check_on_error(on_error), [str(t) for t in types or []]

    @functools.cached_property
    def tagged(self) -> bool:
        """Whether the files have tags: those to predict need none."""
        return has_tags(next(iter(self.files.values())), self.layout)

    def own_splits(self) -> tuple[str, ...]:
        return super().own_splits() if self.tagged else ("unlabeled",)

    @functools.cached_property
    def types(self) -> dict[str, list[str]]:
        """The types that occur in each split, sorted. Finding them means reading all files: once for all."""
        found = cache.get_or_make("types", self.fingerprint(), lambda _: {split: self._found(split) for split in self.own_splits()})
        return {split: found.meta[split] for split in self.own_splits()}

    def _found(self, split: str) -> list[str]:
        return sorted({kind for row in self._rows(split)[0] for _, _, kind in row.spans or []})

    @property
    def space(self) -> Space | None:
        if not self.tagged:
            return None
        names = dict.fromkeys([*self.first_types, *self.types.get("train", []), *(t for split in self.types.values() for t in split)])
        if not names:
            raise UserError(f"{next(iter(self.files.values()))}: nothing is tagged in it; is data.tags= the right key?")
        return {"types": list(names)}

    def fingerprint(self) -> str:
        content = [(split, is_json(file), content_digest([file])) for split, file in self.files.items()]
        return cache.digest("TagSource", FORMAT, content, dataclasses.astuple(self.layout), self.on_error, self.first_types)

    def read(self, split: str) -> Raw:
        rows, skipped = self._rows(split)
        texts, space = [row.text for row in rows], None if split == "unlabeled" else self.space
        if space is None:
            return Raw(texts, None, skipped)
        number = {name: i for i, name in enumerate(space["types"])}
        values = Ragged.of([[(start, end, number[kind]) for start, end, kind in row.spans or []] for row in rows], np.int64, 3)
        documents = [row.group for row in rows]
        groups = None if None in documents else np.array(documents, np.int64)
        return Raw(texts, Tags(values, space, groups=groups), skipped, remarks=self._remarks(split, rows))

    def _remarks(self, split: str, rows: list[Tagged]) -> list[str]:
        found = []
        if dropped := sum(row.dropped for row in rows):
            found.append(f"{self.files[split]}: {dropped} tags lie within longer ones and are left out")
        new = [t for t in self.types[split] if t not in self.types.get("train", self.types[split])]
        if new:
            names = ", ".join(f"'{t}'" for t in new[:5])
            found.append(f"{self.files[split]}: {names} is tagged there and never in the training data: it counts as missed")
        return found

    def _rows(self, split: str) -> tuple[list[Tagged], list[str]]:
        rows: list[Tagged] = []
        skipped: list[str] = []
        file = self.files.get(split) or next(iter(self.files.values()))
        for row in read_tagged(file, self.layout):
            if row.problem:
                tables.refuse(f"{file}, {row.where}: {row.problem}", self.on_error, skipped)
            else:
                rows.append(row)
        if not rows:
            raise UserError(f"{file}: there is no text in it")
        return rows, skipped


class TextTags(TagSource):
    """Your own texts with tags: a file, or a folder (or glob) of files named for their splits; JSON lines or columns (CoNLL).

    A single file is the training data. Without tags it is unlabeled data. Raises `UserError` naming file and line.
    """

    def __init__(
        self,
        path: str,
        text: str | None,
        tags: str | None,
        ends: Literal["exclusive", "inclusive"],
        overlaps: Literal["fail", "longest"],
        token_column: int,
        tag_column: int,
        join: str,
        types: list[str] | None,
        on_error: str,
        val_fraction: float,
        test_fraction: float,
    ):
        super().__init__(Layout(text, tags, ends, overlaps, token_column, tag_column, join), on_error, types)
        self.path, self.val_fraction, self.test_fraction = stored.located(path), val_fraction, test_fraction
        self.name = name_of(self.path)

    def find(self) -> dict[str, Path]:
        found = find_tables(self.path / "*" if self.path.is_dir() else self.path, "")
        for split, files in found.items():
            if len(files) > 1:
                raise UserError(f"{self.path}: {len(files)} files for {split}, where tags are read of one")
        return {split: files[0] for split, files in found.items()}


class _Distributed(TagSource):
    """A data set of files with known names, in `root` or one of `folders` in it, packed or not."""

    folders: ClassVar[tuple[str, ...]]
    names: ClassVar[dict[str, str]]
    needs: str

    def __init__(self, root: str, layout: Layout, on_error: str):
        super().__init__(layout, on_error)
        self.root = stored.located(root)

    def find(self) -> dict[str, Path]:
        for folder in (*(self.root / name for name in self.folders), self.root):
            there: dict[str, Any] = {split: disk.packed_or_not(folder / name) for split, name in self.names.items()}
            if all(there.values()):
                return there
        raise UserError(f"no {self.name} data in {self.root / self.folders[0]}: put {', '.join(self.names.values())} there ({self.needs})")


class Cluener(_Distributed):
    """CLUENER2020 (Xu et al., 2020): Chinese news, ten types. Ends in its files are inclusive.

    Its test tags were never published, so its dev split is the test split here. Of tags within each other (one text) the longest stay.
    """

    name = "cluener"
    folders: ClassVar[tuple[str, ...]] = ("zh-cluener", "cluener")
    names: ClassVar[dict[str, str]] = {"train": "train.json", "test": "dev.json"}
    needs = "https://github.com/CLUEbenchmark/CLUENER2020; .xz, .gz too"

    def __init__(self, root: str, on_error: str, val_fraction: float):
        super().__init__(root, Layout("text", "label", ends="inclusive", overlaps="longest"), on_error)
        self.val_fraction = val_fraction


class Wnut17(_Distributed):
    """WNUT 2017 (Derczynski et al., 2017): new and rare entities in posts, six types, with dev and test of their own."""

    name = "wnut17"
    folders: ClassVar[tuple[str, ...]] = ("wnut17",)
    names: ClassVar[dict[str, str]] = {"train": "wnut17train.conll", "val": "emerging.dev.conll", "test": "emerging.test.annotated"}
    needs = "https://github.com/leondz/emerging_entities_17; .xz, .gz too"

    def __init__(self, root: str, on_error: str):
        super().__init__(root, Layout(), on_error)
