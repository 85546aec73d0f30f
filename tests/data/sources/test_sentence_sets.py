"""Protects the sets of single sentences: names of classes, splits, an encoding of before UTF-8, and what is wrong in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sslt.data.sources.sentence_sets import FOLDER, SETS, Sentences
from sslt.errors import UserError


def test_lines_are_read_as_they_are_distributed(tmp_path):
    """A number, a space and the sentence; Latin-1 where it is no UTF-8; one without a sentence is left out; val and test are drawn."""
    lines = ["1 a clich\xe9 , and good", "0 bad", "0", "", *[f"{i % 2} film {i}" for i in range(40)]]
    (tmp_path / "rt-polarity.all.txt").write_bytes("\n".join(lines).encode("latin-1"))
    source = Sentences(str(tmp_path), "mr", 0.1, 0.2)
    raw = source.read("train")
    assert list(raw.items[:2]) == ["a clich\xe9 , and good", "bad"] and raw.labels[:2].tolist() == [1, 0] and len(raw) == 42
    assert raw.skipped == [f"{tmp_path / 'rt-polarity.all.txt'}, line 3: no sentence"]
    assert source.splits() == ("train", "val", "test") and source.classes == ["negative", "positive"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("2 good\n", "mr", "rt-polarity.all.txt, line 1: expected a class, 0 to 1, and a sentence"),
        ("good\n", "mr", "line 1: expected a class"),
        ("0 good\n", "sst2", "put stsa.binary.train.txt, stsa.binary.dev.txt, stsa.binary.test.txt there"),
        ("0 good\n", "sst", "data.name=sst: give mr, sst2, sst5, trec, subj, mpqa, cr; did you mean"),
    ],
)
def test_mistakes(content, name, message, tmp_path):
    (tmp_path / "rt-polarity.all.txt").write_text(content)
    with pytest.raises(UserError) as caught:
        Sentences(str(tmp_path), name, 0.1, 0.2).read("train")
    assert message in str(caught.value)


def test_a_file_that_is_missing_beside_others_is_named(tmp_path):
    (tmp_path / "TREC.train.all.txt").write_text("0 what\n")
    with pytest.raises(UserError, match=r"TREC.test.all.txt is missing beside TREC.train.all.txt"):
        Sentences(str(tmp_path), "trec", 0.1, 0.2).own_splits()


@pytest.mark.skipif(not (Path(os.environ.get("SSLT_DATA", "data")) / FOLDER).is_dir(), reason="needs the sets")
def test_sizes_are_those_that_are_published():
    """Train, validation and test of SST-2 and of questions, and the sets without a test split."""
    root = os.environ.get("SSLT_DATA", "data")
    sizes = {name: [len(Sentences(root, name, 0.1, 0.2).read(s)) for s in SETS[name].files] for name in SETS}
    assert sizes["sst2"] == [6920, 872, 1821] and sizes["sst5"] == [8544, 1101, 2210] and sizes["trec"] == [5452, 500]
    assert sizes["mr"] == [10662] and sizes["subj"] == [10000]
