"""Protects drawn splits from copies: those of one content stay together and are counted, and nothing changes where there are none."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache, copies
from sslt.data.base import Raw, Source, stratified
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.sources.images import Arrays, ImageFolder
from sslt.data.sources.texts import TextTable

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(copies, "_told", set())


class Texts(Source):
    """Given texts and labels, of which val and test are drawn."""

    modality, name, classes = "text", "texts", ("a", "b")

    def __init__(self, items, labels):
        self.items, self.labels = items, np.asarray(labels)

    def own_splits(self):
        return ("train",)

    def read(self, split):
        return Raw(self.items, self.as_answers(self.labels))

    def fingerprint(self):
        return "texts"


def test_without_copies_every_split_is_what_it_was():
    """A reference of its own: rows in the order of one seeded permutation, the first of each class, largest remainders first."""
    labels = np.random.default_rng(3).integers(0, 3, 211)
    rest, parts = np.arange(211), {}
    for split, fraction in (("test", 0.2), ("val", 0.1)):
        order = np.random.default_rng([0, 0x5B5E7]).permutation(len(rest))
        counts = np.bincount(labels[rest], minlength=3) * fraction
        want = np.floor(counts).astype(int)
        for c in sorted(range(3), key=lambda c: want[c] - counts[c])[: round(counts.sum()) - want.sum()]:
            want[c] += 1
        held = sorted(i for c in range(3) for i in [i for i in order if labels[rest[i]] == c][: want[c]])
        parts[split], rest = rest[held], np.delete(rest, held)
    source = Texts([f"text {i}" for i in range(211)], labels)
    for split, rows in {**parts, "train": rest}.items():
        assert list(source.get(split).items) == [f"text {i}" for i in rows]
    assert source.get("val").remarks == []


def test_copies_are_kept_in_one_split_and_the_classes_in_proportion():
    """A third of the rows are copies: no content is in two splits, every row is in one, sizes and classes are near what was asked for."""
    rng = np.random.default_rng(0)
    content = np.concatenate([np.arange(200), rng.integers(0, 200, 100)])
    source = Texts([f"text {c}" for c in content], content % 2)
    parts = {s: source.get(s) for s in SPLITS}
    found = {s: set(part.items) for s, part in parts.items()}
    assert not found["train"] & found["val"] and not found["train"] & found["test"] and not found["val"] & found["test"]
    assert sum(map(len, parts.values())) == 300
    assert abs(len(parts["test"]) - 60) <= 2 and abs(len(parts["val"]) - 24) <= 2
    assert all(abs(part.labels.mean() - (content % 2).mean()) < 0.1 for part in parts.values())
    assert parts["val"].remarks == ["100 of the 300 samples of texts are copies of others; copies are kept in one split"]


def test_copies_under_different_labels_stay_together_and_are_named():
    """One text that is both classes is on one side, and the line gives two of its rows."""
    source = Texts([f"text {i % 40}" for i in range(80)], np.repeat([0, 1], 40))
    parts = {s: set(source.get(s).items) for s in SPLITS}
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["val"] and not parts["val"] & parts["test"]
    assert parts["test"] and parts["val"]
    assert "40 have another label than their first, as row 40 than row 0" in source.get("train").remarks[0]


def test_a_group_that_is_larger_than_a_share_is_left():
    """Half of all rows are one text: it is trained on, and what is held out is of the rest."""
    index = stratified(np.zeros(40, int), fraction=0.2, together=np.concatenate([np.zeros(20, int), np.arange(1, 21)]))
    assert len(index) == 8 and index.min() >= 20


def test_pictures_of_a_folder(tmp_path, caplog):
    """By their pixels, whatever they are called and saved as; the line comes with prepared data too, once."""
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        for name in "ab"[i % 2], "ab"[i % 2] + "/again":
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i:02}.{'png' if len(name) == 1 else 'bmp'}")
    source = ImageFolder(str(tmp_path / "set"), "fail", None, 0.1, 0.2)
    processor = ImageProcessor(6, 3, [0.0] * 3, [1.0] * 3)
    with caplog.at_level(logging.INFO, "sslt"):
        rows = {s: {image.tobytes() for image in processor.prepare(source, s).images} for s in SPLITS}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["val"] and len(rows["test"]) == 8
    assert caplog.text.count("40 of the 80 samples of set are copies of others; copies are kept in one split") == 1
    for split in SPLITS:  # a source by itself draws as its prepared samples do
        assert {image.tobytes() for image in source.get(split).items} == rows[split]


def test_unreadable_pictures_are_no_copies(tmp_path):
    """Two broken files have nothing in common."""
    for i in range(10):
        for name in "ab":
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            path = tmp_path / "set" / name / f"{i}.png"
            Image.fromarray(np.full((4, 4), 20 * i + (name == "a"), np.uint8)).save(path)
            if i < 3:
                path.write_bytes(b"")
    source = ImageFolder(str(tmp_path / "set"), "skip", 4, 0.1, 0.2)
    assert source.get("train").remarks == []
    assert sum(len(ImageProcessor(4, 1, [0.0], [1.0]).prepare(source, s)) for s in SPLITS) == 14


def test_an_own_test_split_that_shares_rows_is_told(tmp_path, caplog):
    """Nothing is moved, but nobody is left to find out; said when both splits were prepared, in whichever order."""
    images = np.random.default_rng(0).integers(0, 255, (30, 4, 4), dtype=np.uint8)
    labels = np.arange(30) % 2
    np.savez(tmp_path / "set.npz", x_train=images[:25], y_train=labels[:25], x_test=images[20:], y_test=labels[20:])
    processor, source = ImageProcessor(4, 1, [0.0], [1.0]), Arrays(str(tmp_path / "set.npz"), "class")
    source.val_fraction = 0.0
    with caplog.at_level(logging.INFO, "sslt"):
        for split in ("test", "train"):
            assert len(processor.prepare(source, split)) == (10 if split == "test" else 25)
    assert "5 of the 10 samples of set's 'test' split are in its train split too" in caplog.text


def test_texts(tmp_path, caplog):
    """Tables: copies of a text are together, and the line is told from the cache as well."""
    rows = [f"the text of number {i % 60},{'ab'[i % 2]}" for i in range(90)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    def prepared():
        source = TextTable(str(tmp_path / "t.csv"), None, None, None, None, "class", None, "fail", 0.1, 0.2)
        processor = TextProcessor.fit(source, 200, 16, True)
        return {s: {tuple(row) for row in processor.prepare(source, s).batch(np.arange(5))["tokens"].tolist()} for s in SPLITS}

    first = prepared()
    assert not first["train"] & first["test"] and not first["val"] & first["test"]
    copies._told.clear()
    with caplog.at_level(logging.INFO, "sslt"):
        assert prepared() == first
    assert "30 of the 90 samples of t are copies of others; copies are kept in one split" in caplog.text
