"""Protects tables of pairs: columns, numbers and classes, splits; what is wrong is said with file and row."""

from __future__ import annotations

import inspect
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from sslt.data import cache
from sslt.data.answers import Class, Number
from sslt.data.sources import pairs
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
ROWS = [("a cat sleeps", "a cat naps", "4.5"), ("a dog runs", "rain falls", "0"), ("he sings", "he is singing", "5")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def source(path, **settings) -> pairs.TextPairs:
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / "text_pairs.yaml"))
    assert config.pop("_target_") == "sslt.data.sources.pairs.TextPairs"
    return pairs.TextPairs(**{**config, "path": str(path), **settings})


def csv(path: Path, header: str | None, rows=ROWS, sep: str = ",") -> Path:
    path.write_text("".join(f"{line}\n" for line in [*([header] if header else []), *(sep.join(row) for row in rows)]))
    return path


@pytest.mark.parametrize("name", ["stsb", "text_pairs"])
def test_configs_list_every_parameter(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    kind = getattr(pairs, str(config["_target_"]).rpartition(".")[2])
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")
    assert list(config)[1:] == list(inspect.signature(kind).parameters)


@pytest.mark.parametrize(
    ("name", "header", "sep", "settings"),
    [
        ("p.csv", "sentence1,sentence2,score", ",", {}),
        ("p.csv", "A,B,similarity", ",", {}),  # usual names that no other table has, in capitals
        ("p.csv", "left,right,grade", ",", {"a": "left", "b": "right", "label": "grade"}),
        ("p.tsv", "premise\thypothesis\tlabel", "\t", {}),
        ("p.csv", None, ",", {}),
        ("p.txt", "text_a;text_b;score", ";", {"sep": "semicolon"}),
    ],
)
def test_columns_are_found_or_named(name, header, sep, settings, tmp_path):
    """By usual names, by those that are given, or by their places where there is no header."""
    found = source(csv(tmp_path / name, header, sep=sep), **settings)
    raw = found.read("train")
    assert list(raw.items) == [(a, b) for a, b, _ in ROWS] and found.parts == ("a", "b")
    assert isinstance(raw.answers, Number) and raw.answers.values.tolist() == [4.5, 0, 5]
    assert found.space == raw.answers.space == {"low": 0.0, "high": 5.0}


def test_json_lines_and_parquet(tmp_path):
    """The same pairs from either; numbers as numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"a": [a for a, _, _ in ROWS], "b": [b for _, b, _ in ROWS], "score": [float(s) for _, _, s in ROWS]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    lines = [json.dumps({k: v[i] for k, v in columns.items()}) for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    for name in ("p.parquet", "p.jsonl"):
        raw = source(tmp_path / name).read("train")
        assert raw.items == [(a, b) for a, b, _ in ROWS] and raw.answers.values.tolist() == [4.5, 0, 5]


def test_classes_and_splits(tmp_path):
    """A folder of splits; names of classes are those of train, and another one in test is refused."""
    rows = [("a", "b", "yes"), ("c", "d", "no"), ("e", "f", "yes")]
    for split in ("train", "dev", "test"):
        csv(tmp_path / f"{split}.csv", "premise,hypothesis,label", rows)
    found = source(tmp_path, answer="class")
    assert found.own_splits() == ("train", "val", "test") and found.classes == ["no", "yes"]
    answers = found.get("val").answers
    assert isinstance(answers, Class) and answers.values.tolist() == [1, 0, 1] and found.has_classes
    csv(tmp_path / "test.csv", "premise,hypothesis,label", [("a", "b", "perhaps")])
    with pytest.raises(UserError, match=r"test\.csv: label 'perhaps' does not occur"):
        source(tmp_path, answer="class").read("test")


def test_drawn_splits_are_whole_pairs_of_train(tmp_path):
    """Without files of their own val and test are drawn; every pair is in one of the three."""
    rows = [(f"a {i}", f"b {i}", str(i % 5)) for i in range(100)]
    found = source(csv(tmp_path / "p.csv", "a,b,score", rows))
    parts = {split: list(found.get(split).items) for split in ("train", "val", "test")}
    assert [len(p) for p in parts.values()] == [72, 8, 20]
    assert sorted(pair for p in parts.values() for pair in p) == sorted((a, b) for a, b, _ in rows)


def test_pairs_without_labels(tmp_path):
    """What is to be predicted: label "" or no such column; the pairs are there, and no answers."""
    file = csv(tmp_path / "p.csv", "a,b", [(a, b) for a, b, _ in ROWS])
    for found in (source(file), source(csv(tmp_path / "q.csv", "a,b,score"), label="")):
        assert found.space is None and found.own_splits() == ("train",)
        raw = found.get("train")
        assert raw.answers is None and len(raw) == 3
        assert len(found.get("unlabeled")) == 6


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([("a", "", "1")], {}, r"p\.csv, line 3: empty text in column 'b', and a pair has two sides"),
        ([(" ", "b", "1")], {}, r"p\.csv, line 3: empty text in column 'a'"),
        ([("a", "b", "much")], {}, r"p\.csv, line 3: 'much' in column 'score' is no finite number"),
        ([("a", "b", "nan")], {}, r"p\.csv, line 3: 'nan' in column 'score' is no finite number"),
        ([("a", "b", "inf")], {}, r"p\.csv, line 3: 'inf' in column 'score' is no finite number"),
        ([("a", "b", "")], {}, r"p\.csv, line 3: '' in column 'score' is no finite number"),
        ([("a", "b", "")], {"answer": "class"}, r"p\.csv, line 3: no label in column 'score'"),
        ([("a", "b")], {}, r"p\.csv, line 3: 2 fields where there should be 3"),
        ([], {"answer": "klass"}, "data.answer=klass: give number or class"),
        ([], {"b": "bb"}, r"no column 'bb' \(data.b\)"),
        ([], {"a": "a", "b": "a"}, "which two columns are the pair"),
        ([], {"label": "socre"}, r"no column 'socre' \(data.label\); did you mean 'score'"),
    ],
)
def test_mistakes(rows, settings, words, tmp_path):
    """One line, with the row that is wrong; `on_error=skip` leaves it out and counts it."""
    file = csv(tmp_path / "p.csv", "a,b,score", [("x", "y", "1"), *rows])
    with pytest.raises(UserError, match=words):
        source(file, **settings).read("train")
    if rows:
        raw = source(file, on_error="skip", **settings).read("train")
        assert len(raw) == 1 and len(raw.skipped) == 1


def test_columns_that_cannot_be_told(tmp_path):
    with pytest.raises(UserError, match=r"which two columns are the pair\? Give data\.a= and data\.b=; there is: one, two, label"):
        source(csv(tmp_path / "p.csv", "one,two,label")).read("train")


def test_many_different_labels_are_no_classes(tmp_path):
    rows = [(f"a {i}", f"b {i}", f"{i / 7:.3f}") for i in range(50)]
    with pytest.raises(UserError, match=r"50 different labels in 50 rows, too many for classes: give data\.label=, or data\.answer=number"):
        source(csv(tmp_path / "p.csv", "a,b,score", rows), answer="class").read("train")


def test_a_digest_is_of_content_and_of_what_is_read(tmp_path):
    """The same file elsewhere has the same one; other rows, columns or answers have another."""
    one = source(csv(tmp_path / "p.csv", "a,b,score")).fingerprint()
    (tmp_path / "other").mkdir()
    assert source(csv(tmp_path / "other" / "q.csv", "a,b,score")).fingerprint() == one
    assert source(tmp_path / "p.csv", answer="class").fingerprint() != one
    assert source(csv(tmp_path / "r.csv", "a,b,score", ROWS[:2])).fingerprint() != one


def stsb(folder: Path) -> Path:
    for part in ("train", "dev", "test"):
        (folder / f"stsb-de-{part}.csv.xz").write_bytes(lzma.compress(b'"Ein Satz, kurz","Ein Satz",3.8\nZwei,Drei,0.000\n'))
    return folder


def test_stsb_in_its_layout(tmp_path):
    """Quoted commas, scores, packed files, in the folder or the one above; a language that is not there is named with the files."""
    for root in (stsb(tmp_path), tmp_path):
        found = pairs.StsBenchmark(str(root), "de")
        assert found.own_splits() == ("train", "val", "test") and found.splits() == ("train", "val", "test")
        assert list(found.get("val").items) == [("Ein Satz, kurz", "Ein Satz"), ("Zwei", "Drei")]
        assert found.get("test").answers.values.tolist() == [3.8, 0] and found.space == {"low": 0.0, "high": 5.0}
    with pytest.raises(UserError, match=r"put stsb-en-train\.csv, -dev\.csv and -test\.csv there"):
        pairs.StsBenchmark(str(tmp_path), "en").get("train")
    with pytest.raises(UserError, match=r"data\.language=fr: give en, de, zh"):
        pairs.StsBenchmark(str(tmp_path), "fr")


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_stsb_as_it_is_distributed(language):
    """Sizes and scores of the real files, where they are at hand."""
    root = os.environ.get("SSLT_DATA")
    if not root or not (Path(root) / "stsb-multi").is_dir():
        pytest.skip("no STS benchmark in $SSLT_DATA")
    found = pairs.StsBenchmark(root, language)
    sizes = {split: found.get(split) for split in ("train", "val", "test")}
    assert [len(raw) for raw in sizes.values()] == [5749, 1500, 1379]
    scores = np.concatenate([raw.answers.values for raw in sizes.values()])
    assert scores.min() == 0 and scores.max() == 5
