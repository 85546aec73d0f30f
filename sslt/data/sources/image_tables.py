"""Images in tables: parquet files and Hugging Face sets, with a column of images and perhaps one of labels."""

from __future__ import annotations

import bisect
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Class, Labels, Number, Space
from sslt.data.base import SPLITS, Raw, check_on_error
from sslt.data.sources import disk, image_files, parquet
from sslt.data.sources.answer_columns import AnswerColumns
from sslt.data.sources.hub import ask_once
from sslt.data.sources.image_files import SPLIT_NAMES, ImageSource, Unreadable, decode, encoder_shape
from sslt.data.sources.tables import refuse
from sslt.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

log = logging.getLogger("sslt")

PROBED = 64


class Table(Protocol):
    """Rows of one split: `kinds` says of each column whether it is "image", "label", "values" or "other"."""

    kinds: dict[str, str]

    def __len__(self) -> int: ...
    def names(self, column: str) -> list[str] | None: ...
    def values(self, column: str) -> np.ndarray: ...
    def images(self, column: str) -> Sequence[np.ndarray]: ...
    def digest(self) -> str: ...


class ParquetTable:
    """Parquet files of one split, in order, with images as Hugging Face writes them (or plain bytes)."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self.parts = [parquet.open_parquet(file) for file in files]
        schema = self.parts[0].schema_arrow
        for file, part in zip(self.files, self.parts, strict=True):
            if part.schema_arrow.names != schema.names:
                raise UserError(f"{file} has other columns than {self.files[0].name}: {', '.join(part.schema_arrow.names)}")
        features = [parquet.features(file, part.schema_arrow) for file, part in zip(self.files, self.parts, strict=True)]
        self._features = features[0]
        for file, other in zip(self.files, features, strict=True):
            if other != self._features:
                raise UserError(
                    f"{file} and {self.files[0].name} describe their columns differently (other classes, perhaps), "
                    "so they are not parts of one split: give the file itself, or name files train, val, test"
                )
        self.kinds = {name: self._kind(name, schema.field(name).type) for name in schema.names}

    def _kind(self, name: str, type_: pa.DataType) -> str:
        import pyarrow.types as is_

        declared = self._features.get(name, {}).get("_type")
        if declared == "Image" or is_.is_binary(type_) or is_.is_large_binary(type_):
            return "image"
        if is_.is_struct(type_) and "bytes" in {type_.field(i).name for i in range(type_.num_fields)}:
            return "image"
        if declared == "ClassLabel":
            return "label"
        if is_.is_dictionary(type_):  # categories, as pandas writes them
            type_ = type_.value_type
        kinds = (is_.is_integer, is_.is_boolean, is_.is_string, is_.is_large_string)
        return "values" if any(kind(type_) for kind in kinds) else "other"

    def __len__(self) -> int:
        return sum(part.metadata.num_rows for part in self.parts)

    def names(self, column: str) -> list[str] | None:
        """Class names of a label column, where the file gives them."""
        return parquet.class_names(self._features.get(column))

    def values(self, column: str) -> np.ndarray:
        """A label column, [N]."""
        found = []
        for file, part in zip(self.files, self.parts, strict=True):
            with disk.reading(file):
                found.append(part.read([column])[column].to_numpy())
        return np.concatenate(found)

    def images(self, column: str) -> Sequence[np.ndarray]:
        return ParquetImages(self, column)

    def digest(self) -> str:
        return cache.digest([cache.file_digest(file) for file in self.files])


class ParquetImages(Sequence[np.ndarray]):
    """The images of a table, decoded when asked for; only the last few row groups are held in memory."""

    HELD = 4

    def __init__(self, table: ParquetTable, column: str):
        self.table, self.column = table, column
        self.groups = [(p, g) for p, part in enumerate(table.parts) for g in range(part.num_row_groups)]
        rows = [table.parts[p].metadata.row_group(g).num_rows for p, g in self.groups]
        self.starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).tolist()
        self._held: OrderedDict[int, list[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i):  # type: ignore[override]
        if not 0 <= i < len(self):
            raise IndexError(i)
        group = bisect.bisect_right(self.starts, i) - 1
        value = self._group(group)[i - self.starts[group]]
        file = self.table.files[self.groups[group][0]]
        return decode_cell(value, f"of {file.name}, row {i}", file.parent)

    def _group(self, group: int) -> list[Any]:
        with self._lock:
            if group not in self._held:
                part, number = self.groups[group]
                with disk.reading(self.table.files[part]):
                    column = self.table.parts[part].read_row_group(number, [self.column])[self.column]
                    self._held[group] = column.to_pylist()  # at once: a cell at a time costs as much as decoding it
                while len(self._held) > self.HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group]


def decode_cell(value: Any, name: str, folder: Path) -> np.ndarray:
    """Decode a table's image cell: bytes, a path (below `folder`), or a struct of both. Raises `Unreadable`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return decode(folder / value, f"{name} ({value})")
    if not isinstance(value, bytes):
        raise Unreadable(name, "the cell is empty")
    return decode(value, name)


def parquet_splits(folder: Path) -> dict[str, list[Path]]:
    """Parquet files below `folder` by the split their name (or folder) tells; all are `train` where none tells any."""
    files = sorted(f for f in disk.walk(folder) if f.suffix == ".parquet")
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(folder).with_suffix("")).lower())
        if split := next((SPLIT_NAMES[w] for w in reversed(words) if w in SPLIT_NAMES), None):
            splits.setdefault(split, []).append(file)
    return splits or ({"train": files} if files else {})


class DatasetTable:
    """Rows of a `datasets.Dataset`."""

    def __init__(self, rows: datasets.Dataset, folder: Path):
        import datasets

        self.rows, self.folder = rows, folder
        declared = {datasets.Image: "image", datasets.ClassLabel: "label", datasets.Value: "values"}
        self.kinds = {name: declared.get(type(feature), "other") for name, feature in rows.features.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def names(self, column: str) -> list[str] | None:
        return getattr(self.rows.features[column], "names", None)

    def values(self, column: str) -> np.ndarray:
        return np.asarray(self.rows.with_format("numpy")[column][:])

    def images(self, column: str) -> Sequence[np.ndarray]:
        return DatasetImages(self, column)

    def digest(self) -> str:
        files = [Path(file["filename"]) for file in self.rows.cache_files]
        return cache.digest([cache.file_digest(file) for file in files] or self.rows._fingerprint)


class DatasetImages(Sequence[np.ndarray]):
    """The images of a `datasets.Dataset`, decoded when asked for."""

    def __init__(self, table: DatasetTable, column: str):
        import datasets

        self.rows = table.rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.folder = column, table.folder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i):  # type: ignore[override]
        return decode_cell(self.rows[int(i)][self.column], f"in row {i}", self.folder)


USUAL = ("label", "labels", "fine_label", "class", "target")  # names of columns of answers


class TableSource(ImageSource):
    """A source whose splits are tables with a column of images and, perhaps, some of answers."""

    image: str | None = None
    label: str | None = None
    told = AnswerColumns("class", None, None)
    _tables: dict[str, Table]

    def own_splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self._tables)

    @cached_property
    def _columns(self) -> tuple[str, str | None]:
        kinds = self._tables[self.own_splits()[0]].kinds
        image = self._column(self.image, kinds, ("image", "img", "images", "picture"), ("image",))
        if image is None:
            raise UserError(f"{self.name} has no column of images: set data.image to one of {', '.join(kinds)}")
        taken = ("label", "values") if self.answer is Class else ("label", "values", "other")  # lists, and numbers that are not whole
        for column in self.told.several or ():
            self._column(column, kinds, (), ())
        label = self._column(self.label, kinds, USUAL, taken)
        if label is None and (passed := [column for column in USUAL if column in kinds]):
            log.warning("the column '%s' of %s is not taken for classes: data.label=%s takes it, data.answer= says what it holds",
                        passed[0], self.name, passed[0])  # fmt: skip
        if (image, label) != (self.image, self.label):
            log.info("columns of %s: images '%s', labels %s", self.name, image, f"'{label}'" if label else "none")
        return image, label

    def _column(self, wanted: str | None, kinds: dict[str, str], usual: Sequence[str], taken: Sequence[str]) -> str | None:
        """The wanted column, else one of a usual name, else the first that is declared to be of that kind."""
        if wanted is not None:
            if wanted not in kinds:
                raise UserError(f"{self.name} has no column '{wanted}'{nearest(wanted, kinds)}")
            return wanted
        named = [column for column in usual if kinds.get(column) in taken]
        return next(iter(named or [column for column, kind in kinds.items() if kind == taken[0]]), None)

    @cached_property
    def classes(self) -> list[str] | None:  # type: ignore[override]
        label = self._columns[1]
        if label is None or self.answer is Number:
            return None
        if self.answer is Labels:
            return self.told.classes(self._told("train", [])[0], f"{self.name}, column '{label}'")
        tables = [table for split, table in self._tables.items() if label in table.kinds and split != "unlabeled"]
        given = None
        for names in filter(None, (table.names(label) for table in tables)):
            if given not in (None, names):
                raise UserError(f"the splits of {self.name} name the classes of '{label}' differently")
            given = names
        columns = [] if given else [table.values(label) for table in tables]
        return image_files.class_names(columns, given, f"{self.name}, column '{label}'")

    @property
    def space(self) -> Space | None:
        return super().space if self.answer is not Number else None if self._columns[1] is None else {}

    def _told(self, split: str, skipped: list[str]) -> tuple[list[Any], np.ndarray]:
        """The answers of a split as `AnswerColumns` reads them, and the rows that have one; `skipped` names the others."""
        table, label = self._tables[split], self._columns[1]
        assert label is not None
        columns, names = self.told.several or [label], table.names(label)
        found, kept = list[Any](), list[int]()
        for row, values in enumerate(zip(*(table.values(column) for column in columns), strict=True)):
            answer, problem = self.told.cell(values, names)
            if problem:
                refuse(f"{self.name}, split {split}, row {row}: {problem}", getattr(self, "on_error", "fail"), skipped)
                continue
            found.append(answer)
            kept.append(row)
        return found, np.array(kept, np.int64)

    def read(self, split: str) -> Raw:
        self._check(split)
        image, label = self._columns
        table = self._tables[split]
        if image not in table.kinds:
            raise UserError(f"{self.name}: the split {split} has no column '{image}'{nearest(image, table.kinds)}")
        if self.answer is not Class and split != "unlabeled" and {*(self.told.several or ()), label} <= table.kinds.keys():
            told, rows = self._told(split, skipped := list[str]())
            images, where = Raw(table.images(image)), f"{self.name}, split {split}"
            return Raw(images.take(rows).items if skipped else images.items, self.told.answers(told, self.classes, where), skipped)
        labels, skipped = None, list[str]()
        if label in table.kinds and split != "unlabeled":
            assert label is not None
            where = f"{self.name}, split {split}, column '{label}'"
            on_error = getattr(self, "on_error", "fail")
            labels = image_files.label_indices(table.values(label), self.classes or [], where, on_error, skipped)
        raw = Raw(table.images(image), self.as_answers(labels), skipped)
        return raw.take(np.flatnonzero(raw.labels >= 0)) if skipped and raw.labels is not None else raw

    def fingerprint(self) -> str:
        told = [] if self.told.settings is None else [self.told.settings]
        skips = ["skip"] if getattr(self, "on_error", "fail") == "skip" else []  # rows without a label are left out
        return cache.digest("table", self._columns, *told, *skips, [[split, self._tables[split].digest()] for split in self.own_splits()])

    @cached_property
    def image_shape(self) -> tuple[int, int]:  # type: ignore[override]
        items = self.read(self.own_splits()[0]).items
        shapes: list[tuple[int, ...]] = []
        for i in range(min(PROBED, len(items))):
            try:
                shapes.append(items[i].shape)
            except Unreadable:
                continue  # preparation names it, or leaves it out
        return encoder_shape(self.name, shapes, None)


class HuggingFaceImages(TableSource):
    """Images in Hugging Face's formats: parquet (a folder or a file), a `save_to_disk` folder, or a set of the hub.

    `name` is a path (as it stands, or below `root`), else a name on the hub, with its `subset` and `revision`.
    `image` and `label` are columns; None finds them; `answer` and `separator` as `AnswerColumns` has them. `on_error`: what an unreadable
    image does, "fail" or "skip".
    """

    def __init__(
        self,
        name: str,
        image: str | None,
        label: str | list[str] | None,
        answer: str,
        separator: str | None,
        root: str,
        subset: str | None,
        revision: str | None,
        on_error: str,
    ):
        self.name, self.root = name, stored.located(root)
        self.told = AnswerColumns(answer, label, separator)
        self.answer = self.told.kind
        self.image, self.label = image, self.told.several[0] if self.told.several is not None else None if label is None else str(label)
        self.subset, self.revision = subset, revision
        self.on_error = check_on_error(on_error)

    @cached_property
    def _tables(self) -> dict[str, Table]:  # type: ignore[override]
        for folder in (stored.located(self.name), self.root / self.name):
            if folder.exists() and not folder.is_dir():
                return {"train": ParquetTable([folder])}
            if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                import datasets

                return self._splits_of(datasets.load_from_disk(str(folder)), folder)
            if folder.is_dir() and (splits := parquet_splits(folder)):
                return {split: ParquetTable(files) for split, files in splits.items()}
        return self._splits_of(self._from_hub(), Path())

    def _from_hub(self) -> Any:
        import datasets
        from huggingface_hub.constants import HF_HOME

        ask_once()
        try:
            return datasets.load_dataset(self.name, self.subset, revision=self.revision)
        except Exception as error:  # the hub's client fails with errors of four libraries
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"'{self.name}' is no path (nor below {self.root}), and the Hugging Face hub fails: {reason}\n"
                f"Offline, put its parquet files into {self.root / self.name}, or use a set that was downloaded before "
                f"into HF_HOME ({HF_HOME})"
            ) from error

    def _splits_of(self, loaded: Any, folder: Path) -> dict[str, Table]:
        parts = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
        found = image_files.by_split(parts, self.name)
        if not found:
            raise UserError(f"{self.name} has the splits {', '.join(parts)}: none is one of {', '.join(SPLIT_NAMES)}")
        return {split: DatasetTable(rows, folder) for split, rows in found.items()}
