"""Protects texts and what is to be written of them: columns, aligned files, references, splits, data sets; mistakes name file and row."""

from __future__ import annotations

import gzip
import inspect
import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sslt.data import cache
from sslt.data.answers import Texts
from sslt.data.sources import dialogues, text_to_text, text_to_text_sets
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
KINDS = {k: v for m in (text_to_text, text_to_text_sets, dialogues) for k, v in vars(m).items() if isinstance(v, type)}
DATA = Path(os.environ.get("SSLT_DATA", "nowhere"))
ROWS = [("a long text", "short"), ("another one", "other"), ("the third", "last")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def source(name: str, **settings):
    config = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=False)
    kind = KINDS[config.pop("_target_").rpartition(".")[2]]
    return kind(**{**config, **settings})


def own(path, **settings):
    return source("text_to_text", path=str(path), **settings)


def table(path: Path, header: str, rows=ROWS, sep: str = ",") -> Path:
    path.write_text("".join(f"{line}\n" for line in [*([header] if header else []), *(sep.join(row) for row in rows)]))
    return path


def lines(path: Path, *rows: str, end: str = "\n") -> Path:
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as f:
        f.write(end.join([*rows, ""]).encode())
    return path


def written(raw) -> list[tuple[str, list[str]]]:
    return [(raw.items[i], raw.answers.values[i]) for i in range(len(raw))]


@pytest.mark.parametrize("name", ["text_to_text", "scitldr", "dialogsum", "multi30k", "dialogues", "sgd"])
def test_configs_list_every_parameter(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    assert list(config)[1:] == list(inspect.signature(KINDS[str(config["_target_"]).rpartition(".")[2]]).parameters)


@pytest.mark.parametrize(
    ("name", "header", "sep", "settings"),
    [
        ("t.csv", "source,target", ",", {}),
        ("t.csv", "Document,Summary", ",", {}),
        ("t.tsv", "article\thighlights", "\t", {}),
        ("t.csv", "left,right", ",", {"source": "left", "target": "right"}),
        ("t.csv", "left,summary", ",", {"source": "left"}),
        ("t.csv", "left,right", ",", {"target": "right"}),
        ("t.csv", "", ",", {}),
        ("t.txt", "input;output", ";", {"sep": "semicolon"}),
    ],
)
def test_columns_are_found_or_named(name, header, sep, settings, tmp_path):
    """By usual names, by those that are given, or by their places where there is no header."""
    raw = own(table(tmp_path / name, header, sep=sep), **settings).read("train")
    assert written(raw) == [(a, [b]) for a, b in ROWS] and isinstance(raw.answers, Texts)


def test_several_references(tmp_path):
    """A list in a column, or several columns; a list of sentences as text is its lines."""
    rows = [{"source": ["One.", "Two."], "target": ["a", " b "], "other": "c"}, {"source": "Three.", "target": "d", "other": "e"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    found = own(tmp_path / "t.jsonl").read("train")
    assert written(found) == [("One.\nTwo.", ["a", "b"]), ("Three.", ["d"])]
    both = own(tmp_path / "t.jsonl", source="source", target=["target", "other"]).read("train")
    assert [r for _, r in written(both)] == [["a", "b", "c"], ["d", "e"]]
    (tmp_path / "t.csv").write_text('source,target\nx,"[""a"", ""b""]"\ny,[a]\n')
    assert [r for _, r in written(own(tmp_path / "t.csv").read("train"))] == [["a", "b"], ["[a]"]]


def test_aligned_files_end_lines_at_newlines_alone(tmp_path):
    """Packed or not, with \\r\\n; signs that Python takes for an end of line stand inside texts."""
    a = lines(tmp_path / "a.en.gz", "one\u2028still one", "two\x0c", "three", end="\r\n")
    b = lines(tmp_path / "b.de", "eins", "zwei\x85", "drei")
    found = own(a, target_path=str(b), language="de")
    assert [t for t, _ in written(found.read("train"))] == ["one\u2028still one", "two", "three"]
    assert found.space == {"language": "de"} and found.read("train").answers.space == found.space
    b.write_text("eins\nzwei")
    with pytest.raises(UserError, match=r"a\.en\.gz has 3 lines and .*b\.de has 2: line by line"):
        found.read("train")


def test_a_folder_of_aligned_files(tmp_path):
    """Named for splits and languages; one side alone is refused."""
    for split in ("train", "dev", "test.2016"):
        lines(tmp_path / f"{split}.en", f"{split} one", "two")
        lines(tmp_path / f"{split}.de.gz", f"{split} eins", "zwei")
    found = own(tmp_path, source="de", target="en")
    assert found.own_splits() == ("train", "val", "test") and written(found.read("val"))[0] == ("dev eins", ["dev one"])
    lines(tmp_path / "test_2017.en", "x")
    with pytest.raises(UserError, match=r"several test files of 'en'"):
        own(tmp_path, source="de", target="en").read("test")
    (tmp_path / "test_2017.en").unlink()
    (tmp_path / "dev.en").unlink()
    with pytest.raises(UserError, match="there is a val file of 'de' and none of 'en'"):
        own(tmp_path, source="de", target="en").read("train")


def test_drawn_splits_and_both_sides_unlabelled(tmp_path):
    """Samples with the same text stay together; `unlabeled` has both sides of train, each text once, nothing of what is held out."""
    rows = [(f"text {i // 2}", f"answer {i}") for i in range(100)]
    found = own(table(tmp_path / "t.csv", "source,target", rows))
    parts = {s: written(found.get(s)) for s in found.splits()}
    assert [len(p) for p in parts.values()] == [72, 8, 20]
    texts = {s: {t for t, _ in p} for s, p in parts.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["val"]
    both = list(found.get("unlabeled").items)
    assert sorted(both) == sorted(texts["train"] | {a for _, (a,) in parts["train"]}) and len(both) == len(set(both)) == 36 + 72


def test_texts_to_predict_need_no_answers(tmp_path):
    """target "" reads the texts alone, in their order, whether or not there is a column."""
    found = own(table(tmp_path / "t.csv", "source,target", [*ROWS, ROWS[0]]), target="")
    assert found.space is None and found.own_splits() == ("unlabeled",)
    raw = found.get("unlabeled")
    assert raw.answers is None and list(raw.items) == [a for a, _ in [*ROWS, ROWS[0]]]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([("a", "")], {}, r"t\.csv, line 3: empty text in what is to be written"),
        ([(" ", "b")], {}, r"t\.csv, line 3: empty text"),
        ([("a",)], {}, r"t\.csv, line 3: 1 fields where there should be 2"),
        ([], {"source": "sorce"}, r"no column 'sorce' \(data.source\); did you mean 'source'"),
        ([], {"target": ["target", "x"]}, r"no column 'x' \(data.target\)"),
        ([], {"source": "target", "target": "target"}, "which columns are the text and what is to be written of it"),
    ],
)
def test_mistakes(rows, settings, words, tmp_path):
    file = table(tmp_path / "t.csv", "source,target", [("x", "y"), *rows])
    with pytest.raises(UserError, match=words):
        own(file, **settings).read("train")
    if rows:
        raw = own(file, on_error="skip", **settings).read("train")
        assert len(raw) == 1 and len(raw.skipped) == 1


def test_empty_lines_of_aligned_files_are_named(tmp_path):
    a, b = lines(tmp_path / "a.txt", "x", "y"), lines(tmp_path / "b.txt", "x", " ")
    with pytest.raises(UserError, match=r"b\.txt, line 2: empty text"):
        own(a, target_path=str(b)).read("train")
    with pytest.raises(UserError, match=r"nothing\.txt: no such file; data\.target_path= is for two files"):
        own(a, target_path=str(tmp_path / "nothing.txt")).read("train")
    assert len(own(a, target_path=str(b), on_error="skip").read("train")) == 1


def test_dialogsum_without_train_learns_from_dev(tmp_path):
    """And says so; with a train file, dev is validation."""
    for name, summaries in (("dev", ["summary"]), ("test", ["summary1", "summary2", "summary3"])):
        rows = [{"dialogue": f"#Person1#: {i}", **{k: f"{name} {k} {i}" for k in summaries}} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    found = source("dialogsum", root=str(tmp_path))
    assert found.splits() == ("train", "val", "test") and found.own_splits() == ("train", "test")
    assert "dev.jsonl is learned from" in found.get("train").remarks[0] and [len(found.get(s)) for s in found.splits()] == [18, 2, 20]
    assert found.get("test").answers.values[3] == [f"test summary{k} 3" for k in (1, 2, 3)]
    (tmp_path / "dialogsum.train.jsonl").write_text((tmp_path / "dev.jsonl").read_text())
    with_train = source("dialogsum", root=str(tmp_path))
    assert with_train.own_splits() == ("train", "val", "test") and not with_train.get("train").remarks


def test_multi30k_takes_either_direction(tmp_path):
    folder = tmp_path / "multi30k"
    folder.mkdir()
    for part in ("train", "val", "test_2016_flickr"):
        for side in ("en", "de"):
            lines(folder / f"{part}.{side}.gz", f"{part} {side}", "two")
    found = source("multi30k", root=str(tmp_path), pair="de-en")
    assert written(found.read("test"))[0] == ("test_2016_flickr de", ["test_2016_flickr en"]) and found.space == {"language": "en"}
    assert found.fingerprint() != source("multi30k", root=str(tmp_path), pair="en-de").fingerprint()
    with pytest.raises(UserError, match=r"no multi30k data in .*multi30k: put train\.en, train\.fr"):
        source("multi30k", root=str(tmp_path), pair="en-fr").read("train")
    with pytest.raises(UserError, match=r"data\.pair=en: give two of en, de, fr, cs"):
        source("multi30k", root=str(tmp_path), pair="en")


@pytest.mark.skipif(not (DATA / "scitldr").is_dir(), reason="needs the folder of SSLT_DATA")
@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("scitldr", {}, (1992, 619, 618)),
        ("dialogsum", {}, (450, 50, 500)),
        ("multi30k", {"pair": "en-de"}, (29000, 1014, 1000)),
        ("multi30k", {"pair": "fr-en"}, (29000, 1014, 1000)),
    ],
)
def test_real_data_are_read_whole(name, settings, sizes):
    """The sizes that the sets are published with, no reference empty."""
    found = source(name, root=str(DATA), **settings)
    parts = [found.get(s) for s in ("train", "val", "test")]
    assert tuple(map(len, parts)) == sizes
    assert all(row and all(t.strip() for t in row) for part in parts for row in part.answers.values)
