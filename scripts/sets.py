"""The data sets of docs/results: how each is named to sslt, and files in a layout it reads for those that come in another.

Text and image sets stand in the folder of --data as they are distributed; what is made of them (a table of each split) goes below --root.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import lzma
import random
from collections.abc import Callable, Iterable
from pathlib import Path

Rows = list[tuple[str, str]]  # (text, label); "" for none
AMAZON = ("books", "dvd", "electronics", "kitchen", "video")


@dataclasses.dataclass(frozen=True)
class Set:
    """corpus and target: settings of the data to pretrain and to fine-tune on; minutes: of pretraining; classes: how many it has."""

    modality: str
    classes: int
    corpus: list[str]
    target: list[str]
    minutes: float


def find(name: str, data: Path, made: Path) -> Set:
    """The set `name`; files that have to be made of `data` are in `made` afterwards."""
    if name not in SETS:
        raise SystemExit(f"no set {name}: there are {', '.join(SETS)}")
    modality, classes, minutes, tables = SETS[name]
    if tables is None:
        return Set(modality, classes, [f"data={name}"], [f"+target={name}"], minutes)
    folder = made / name
    if not folder.exists():
        draft = folder.with_name(f"{name}.draft")
        for split, rows in tables(data).items():
            _write(draft / ("corpus" if split == "corpus" else "splits") / f"{split}.csv", rows)
        draft.rename(folder)
    corpus = folder / "corpus" if (folder / "corpus").exists() else folder / "splits"
    return Set(modality, classes, ["data=text_csv", f"data.path={corpus}"], ["+target=text_csv", f"data.path={folder / 'splits'}"], minutes)


def _kitchen(data: Path) -> dict[str, Rows]:
    """Kitchen reviews in splits; the corpus has all five domains but for what is validated and tested on, without labels."""
    domains = {d: _table(data / "amazon-multidomain-sentiment" / f"{d}.tsv.xz", "\t", "text", "label") for d in AMAZON}
    rows = domains.pop("kitchen")
    random.Random(0).shuffle(rows)
    splits = {"test": rows[:1200], "val": rows[1200:1800], "train": rows[1800:]}
    others = [row for domain in domains.values() for row in domain]
    held = {text for part in ("test", "val") for text, _ in splits[part]}
    return {**splits, "corpus": [(text, "") for text, _ in [*others, *splits["train"]] if text not in held]}


def _chnsenticorp(data: Path) -> dict[str, Rows]:
    files = {"train": "train", "val": "dev", "test": "test"}
    return {split: _table(data / "zh-chnsenticorp" / f"{file}.tsv.xz", "\t", "text_a", "label") for split, file in files.items()}


def _banking77(data: Path) -> dict[str, Rows]:
    return {split: _table(data / "banking77" / f"{split}.csv.xz", ",", "text", "category") for split in ("train", "test")}


def _clinc150(data: Path) -> dict[str, Rows]:
    """With what is out of scope as one more class."""
    with lzma.open(data / "clinc150" / "data_full.json.xz", "rt") as f:
        found = json.load(f)
    return {split: [(text, label) for part in (split, f"oos_{split}") for text, label in found[part]] for split in ("train", "val", "test")}


def _trec(data: Path) -> dict[str, Rows]:
    def rows(split: str) -> Rows:
        with lzma.open(data / "sentence-classification" / f"TREC.{split}.all.txt.xz", "rt", encoding="latin-1") as f:
            return [(text.strip(), label) for label, _, text in (line.partition(" ") for line in f)]

    return {split: rows(split) for split in ("train", "test")}


# name → modality, classes, minutes of pretraining, what makes its tables (None: sslt knows the set by its name)
SETS: dict[str, tuple[str, int, float, Callable[[Path], dict[str, Rows]] | None]] = {
    "imdb": ("text", 2, 10, None),
    "kitchen": ("text", 2, 5, _kitchen),
    "chnsenticorp": ("text", 2, 3, _chnsenticorp),
    "banking77": ("text", 77, 2, _banking77),
    "clinc150": ("text", 151, 2, _clinc150),
    "trec": ("text", 6, 2, _trec),
    "cifar10": ("image", 10, 10, None),
    "fashion_mnist": ("image", 10, 10, None),
    "usps": ("image", 10, 3, None),
    "mnist": ("image", 10, 5, None),
}


def _table(file: Path, sep: str, text: str, label: str) -> Rows:
    with lzma.open(file, "rt", encoding="utf-8", newline="") as f:
        quoting = csv.QUOTE_NONE if sep == "\t" else csv.QUOTE_MINIMAL
        return [(row[text], row[label]) for row in csv.DictReader(f, delimiter=sep, quoting=quoting)]


def _write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    labelled = any(label for _, label in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerows([("text", "label"), *rows] if labelled else [("text",), *((text,) for text, _ in rows)])
