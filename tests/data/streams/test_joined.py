"""Protects the union of data sets: every row is the one its number says, whatever part it is from and however long it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sslt.data.answers import Class
from sslt.data.base import Raw, Source
from sslt.data.prepare.image_processor import ImageSamples
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.streams.joined import Corpus, Joined

CLS, SEP, PAD = 1, 2, 9


def images(n: int, first: int, labelled: bool = True, classes: tuple[str, ...] = ("a", "b")) -> ImageSamples:
    """n images whose pixels are first, first + 1, …"""
    pixels = np.repeat(np.arange(first, first + n, dtype=np.uint8), 4).reshape(n, 2, 2, 1)
    labels = np.arange(n) % 2 if labelled else None
    return ImageSamples(pixels, Class(labels, {"classes": list(classes)}) if labelled else None, f"images{first}")


def texts(sizes: list[int], first: int) -> TextSamples:
    """Rows of the token first, then first + 1, …, of these sizes without start and end."""
    tokens = np.concatenate([np.full(n, first + i) for i, n in enumerate(sizes)]).astype(np.int32)
    starts = np.cumsum([0, *sizes[:-1]])
    return TextSamples(tokens, starts, np.array(sizes), None, f"texts{first}", (CLS, SEP, PAD), 64, 1)


def test_rows_come_in_the_order_asked_for():
    """From both parts, mixed, repeated; labels and index with them."""
    joined = Joined([images(3, 10), images(4, 20)])
    index = np.array([5, 0, 6, 2, 0, 3])
    batch = joined.batch(index)
    assert len(joined) == 7 and batch["image"].shape == (6, 1, 2, 2)
    assert batch["image"][:, 0, 0, 0].tolist() == [22, 10, 23, 12, 10, 20]
    assert batch["label"].tolist() == [0, 0, 1, 0, 0, 0] == joined.labels[index].tolist()
    assert batch["index"].tolist() == index.tolist() and joined.classes == ["a", "b"]


def test_a_batch_of_one_part_is_that_parts_own():
    part = images(4, 20)
    got, own = Joined([images(3, 10), part]).batch(np.array([6, 3])), part.batch(np.array([3, 0]))
    assert torch.equal(got["image"], own["image"]) and torch.equal(got["label"], own["label"])


def test_labels_are_those_of_all_parts_or_none():
    joined = Joined([images(3, 10), images(2, 20, labelled=False)])
    assert joined.labels is None and joined.classes is None and "label" not in joined.batch(np.array([0, 4, 1]))
    with pytest.raises(ValueError, match="different kinds or spaces"):
        Joined([images(3, 10), images(2, 20, classes=("a", "c"))])


def test_texts_are_padded_to_the_longest():
    """Parts pad their own batches to different widths; in the joined batch padding is padding and masked."""
    joined = Joined([texts([3, 4], 100), texts([20, 1], 200)])
    batch = joined.batch(np.array([2, 0, 3]))
    assert batch["tokens"].shape == batch["mask"].shape == (3, 24)
    assert batch["tokens"][1, :6].tolist() == [CLS, 100, 100, 100, SEP, PAD]
    assert (batch["tokens"][~batch["mask"]] == PAD).all() and batch["mask"].sum(1).tolist() == [22, 5, 3]
    assert joined.lengths.tolist() == [5, 6, 22, 3] and joined.skipped == 2


def test_a_subset_of_a_subset():
    joined = Joined([images(3, 10), images(4, 20)])
    part = joined.subset(np.array([6, 2, 4, 1])).subset(np.array([2, 0]))
    assert part.batch(np.arange(2))["image"][:, 0, 0, 0].tolist() == [21, 23]
    assert part.labels.tolist() == [1, 1] and len({joined.fingerprint, part.fingerprint}) == 2


def test_packing_keeps_every_parts_tokens(tmp_path, monkeypatch):
    """Rows without padding out of both parts; of a subset, only its texts."""
    from sslt.data import cache

    monkeypatch.setattr(cache, "_root", tmp_path)
    joined = Joined([texts([8, 8], 100), texts([20, 9], 200)])
    packed = joined.packed(5)
    batch = packed.batch(np.arange(len(packed)))
    assert set(batch) == {"tokens", "index"} and {100, 101, 200, 201} <= set(batch["tokens"].flatten().tolist())
    assert len(packed) == 18 // 4 + 31 // 4
    some = joined.subset(np.array([2, 0])).packed(5)
    assert not {101, 201} & set(some.batch(np.arange(len(some)))["tokens"].flatten().tolist())


class Lines(Source):
    modality, classes = "text", None

    def __init__(self, name: str, lines: list[str]):
        self.name, self.lines = name, lines

    def own_splits(self):
        return ("unlabeled",)

    def read(self, split):
        return Raw(self.lines)

    def fingerprint(self):
        return self.name


def test_a_corpus_is_all_texts():
    """And another one when a source is another."""
    corpus = Corpus([Lines("a", ["x", "y"]), Lines("b", ["z"])])
    assert list(corpus.get("unlabeled").items) == ["x", "y", "z"] and corpus.modality == "text"
    assert corpus.fingerprint() != Corpus([Lines("a", ["x"]), Lines("c", ["z"])]).fingerprint()
