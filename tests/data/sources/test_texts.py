"""Reading text: formats, columns, splits, and the messages for what is wrong."""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
import logging
import lzma
import os
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import OmegaConf

from sslt.data import cache
from sslt.data.sources import docs, text_sets, texts
from sslt.data.sources.labels import label_name
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
SHARED = os.environ.get("SSLT_TEST_DATA")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def config_of(name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml")))


def table(path, **settings) -> texts.TextTable:
    config = config_of("text_csv")
    assert config.pop("_target_") == "sslt.data.sources.texts.TextTable"
    return texts.TextTable(**{**config, "path": str(path), **settings})


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "wb") as f:
        f.write(content.encode(encoding))
    return path


def rows(source, split="train"):
    raw = source.read(split)
    return list(raw.items), [source.classes[i] for i in raw.labels]


@pytest.mark.parametrize("name", ["docs", "imdb", "ag_news", "clinc150", "text_csv", "text_files", "hf_text"])
def test_configs_list_every_parameter(name):
    """A config starts with a line that says what it is, and names the source's parameters, all of them."""
    assert (CONFIGS / f"{name}.yaml").read_text().startswith("# ")
    lines = OmegaConf.load(CONFIGS / f"{name}.yaml")
    module, _, kind = lines["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), kind)).parameters
    assert [k for k in lines if k != "_target_"] == list(parameters)


EXPECTED = (['a, "b"', "c d", "é"], ["x", "y", "x"])


@pytest.mark.parametrize("packed", ["", ".xz", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'text,label\n"a, ""b""",x\nc d,y\né,x\n'),
        ("t.csv", '\ufeffReview,id,Category\r\n"a, ""b""",1,x\r\nc d,2,y\r\né,3,x\r\n'),
        ("t.csv", '"a, ""b""",x\nc d,y\né,x\n'),
        ("t.tsv", 'label\ttext\nx\ta, "b"\ny\tc d\nx\té\n'),
        ("t.tsv", 'label\ttext\n"x"\t"a, ""b"""\n"y"\t"c d"\n"x"\t"é"\n'),
        ("t.txt", 'x a, "b"\ny c d\nx é\n'),
        (
            "t.jsonl",
            '{"text": "a, \\"b\\"", "label": "x"}\n{"text": "c d", "label": "y"}\n\n{"label": "x", "text": "é"}',
        ),
        (
            "t.json",
            '[{"text": "a, \\"b\\"", "label": "x"}, {"text": "c d", "label": "y"}, {"label": "x", "text": "é"}]',
        ),
    ],
)
def test_formats_read_alike(tmp_path, name, content, packed):
    """Every format, with and without header, quoting, byte order mark and compression, gives the same rows."""
    assert rows(table(write(tmp_path / (name + packed), content))) == EXPECTED


def test_parquet_with_class_names(tmp_path):
    """Class names that Hugging Face writes into Parquet keep their order, and -1 means no label."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["y", "x"])})
    data = datasets.Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.to_parquet(str(tmp_path / "t.parquet"))
    source = table(tmp_path / "t.parquet", on_error="skip")
    assert rows(source) == (["a", "b"], ["x", "y"])
    assert source.classes == ["y", "x"]
    with pytest.raises(UserError, match=r"t\.parquet, row 3: no label in column 'label'"):
        table(tmp_path / "t.parquet").read("train")


def test_stray_quotes_in_tsv(tmp_path):
    """Quotes at the start of unquoted TSV fields must not swallow the lines after them."""
    lines = ['1\t"Foo" is great', '0\t"unclosed', '1\tends "here"', '0\t"all of it"', "1\t"]
    source = table(write(tmp_path / "t.tsv", "label\ttext\n" + "\n".join(lines) + "\n"), on_error="skip")
    assert source.read("train").items == [line.split("\t")[1] for line in lines[:4]]
    assert source.read("train").skipped == [f"{tmp_path}/t.tsv, line 6: empty text"]


def test_a_quotation_mark_without_an_end_swallows_no_rows(tmp_path):
    """Refused where it would make one text of several lines, or of a file that was cut short; within a line it is as it is."""
    start = "label,text\n0,first\n"
    for content, line in (('0,"good\n1,bad\n1,"worst" ever\n0,nice\n', 3), ('1,fine\n0,"not so go', 4)):
        with pytest.raises(UserError, match=f"begins with a quotation mark in line {line} has no end"):
            table(write(tmp_path / "t.csv", start + content)).read("train")
    good = '1,"two\nlines, ""quoted"""\n0,5" wide\n1,"so" said\n'
    assert table(write(tmp_path / "t.csv", start + good)).read("train").items == ["first", 'two\nlines, "quoted"', '5" wide', "so said"]


def test_a_class_named_like_a_column_is_no_header(tmp_path):
    """What stands in the first line comes again below it; a name that does not is one."""
    path = write(tmp_path / "t.csv", "question,How are you?\nstatement,I am fine.\nquestion,Who is it?\n")
    assert rows(table(path)) == (["How are you?", "I am fine.", "Who is it?"], ["question", "statement", "question"])
    path = write(tmp_path / "t.csv", "question,label\nHow are you?,question\nI am fine.,statement\n")
    assert rows(table(path)) == (["How are you?", "I am fine."], ["question", "statement"])


def test_long_quoted_tsv_fields_may_hold_line_ends(tmp_path):
    """A TSV file written with quoting is read with it, even when the sample ends inside a field."""
    long = "x\n" * 400_000
    source = table(write(tmp_path / "t.tsv", f'label\ttext\n1\t"{long}"\n0\t"a ""b"""\n1\t"{long}"\n'))
    assert source.read("train").items == [long, 'a "b"', long]


def test_long_fields_and_odd_separators(tmp_path):
    """Fields above the csv module's default limit are read; separators may be given by name."""
    path = write(tmp_path / "t.csv", "text;label\n" + "a" * 200_000 + ";x\nb;y\n")
    assert [len(t) for t in table(path, sep="semicolon").read("train").items] == [200_000, 1]


def test_splits_of_a_folder(tmp_path):
    """Files are found by split words in their names; labels are sorted, integers by number."""
    for name, labels in (("my_train.tsv", [10, 9, 2]), ("my_dev.tsv.xz", [9]), ("my_test.tsv.gz", [2, 10])):
        write(tmp_path / name, "label\ttext\n" + "".join(f"{n}\ttext {n}\n" for n in labels))
    write(tmp_path / "my_unsup.tsv", "label\ttext\n-1\tfree\n")
    write(tmp_path / "README.txt", "nothing")
    source = table(tmp_path)
    assert source.own_splits() == ("train", "val", "test", "unlabeled")
    assert source.classes == ["2", "9", "10"]
    assert source.read("train").labels.tolist() == [2, 1, 0]
    assert source.get("val").labels.tolist() == [1]
    assert source.get("unlabeled").items == ["free"]


def test_shards_and_patterns(tmp_path):
    """Numbered shards of a split are joined in order; of several sets in a folder, a pattern chooses one."""
    for i, text in enumerate("ab"):
        write(tmp_path / "s" / f"train-0000{i}-of-00002.csv", f"text,label\n{text},x\n")
    assert table(tmp_path / "s").read("train").items == ["a", "b"]
    for name in ("one.train.txt", "one.test.txt", "two.train.txt"):
        write(tmp_path / "p" / name, f"0 {name}\n1 other\n")
    assert table(tmp_path / "p" / "one.*").read("test").items == ["one.test.txt", "other"]
    with pytest.raises(UserError, match="several files for train"):
        table(tmp_path / "p").read("train")


def test_unlabeled_table(tmp_path):
    """A table without labels is unlabeled data."""
    source = table(write(tmp_path / "t.csv", "id,text\n1,a\n2,b\n"))
    assert source.classes is None and source.own_splits() == ("unlabeled",)
    assert source.splits() == ("unlabeled",)
    assert source.get("unlabeled").items == ["a", "b"] and source.get("unlabeled").labels is None


def test_found_columns_are_said(tmp_path, caplog):
    """Columns that were guessed are named in the log."""
    with caplog.at_level(logging.INFO, logger="sslt"):
        rows(table(write(tmp_path / "t.csv", "Sentence,Intent\na,x\n")))
    assert "text from column 'Sentence', labels from column 'Intent'" in caplog.text


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("text,label\na,x\n", {"text": "txet"}, r"no column 'txet'; did you mean 'text'\?"),
        ("text,label\na,x\n", {"label": "lable"}, r"no column 'lable'; did you mean 'label'\?"),
        ("text,label\na,x\n ,y\n", {}, r"t\.csv, line 3: empty text"),
        ("text,label\na,x\nb,\n", {}, r"t\.csv, line 3: no label"),
        ("text,label\na,x\nb,c,d\n", {}, r"t\.csv, line 3: 3 fields where there should be 2"),
        ("text,label\n", {}, "no rows"),
        ("", {}, "empty file"),
        ("p,q,r\na,b,c\n", {"header": True}, "which column is the text"),
        ("text,label\n" + "".join(f"a,x{i}\n" for i in range(50)), {}, "50 different labels in 50 rows"),
        ("text,label\na,x\n", {"on_error": "ignore"}, "on_error=ignore"),
        ("text,label\na,x\n", {"sep": "||"}, "sep="),
    ],
)
def test_mistakes_are_named(tmp_path, content, settings, message):
    """Each mistake in a table says what is wrong and where."""
    with pytest.raises(UserError, match=message):
        rows(table(write(tmp_path / "t.csv", content), **settings))


def test_unseen_label_undecodable_and_damaged_files(tmp_path):
    """A test label unknown to train, bytes that are not UTF-8, and a cut file are errors that name the file."""
    write(tmp_path / "train.csv", "text,label\na,x\n")
    write(tmp_path / "test.csv", "text,label\na,z\n")
    with pytest.raises(UserError, match=r"test\.csv: label 'z' does not occur in the training data"):
        table(tmp_path).read("test")
    write(tmp_path / "latin.csv", "text,label\né,x\n", "latin-1")
    with pytest.raises(UserError, match=r"latin\.csv: not UTF-8"):
        table(tmp_path / "latin.csv").read("train")
    whole = lzma.compress(b"text,label\n" + os.urandom(4000).hex().encode())
    (tmp_path / "cut.csv.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.csv\.xz: damaged"):
        table(tmp_path / "cut.csv.xz").read("train")
    with pytest.raises(UserError, match="no such file"):
        table(tmp_path / "nothing.csv").own_splits()


def test_fingerprint_is_of_content_and_settings(tmp_path):
    """The same table elsewhere has the same fingerprint; other content, settings or format another."""
    content = "text\tlabel\na\tx\n"
    first = table(write(tmp_path / "a" / "t.tsv", content)).fingerprint()
    assert table(write(tmp_path / "b" / "u.tsv", content)).fingerprint() == first
    others = [
        table(write(tmp_path / "c" / "t.tsv", content + "b\ty\n")),
        table(tmp_path / "a" / "t.tsv", on_error="skip"),
        table(write(tmp_path / "d" / "t.csv", content)),
    ]
    assert len({first, *(s.fingerprint() for s in others)}) == 4


def test_digest_of_many_files(tmp_path):
    """Folders of many files are digested by content, together, and the digest remembered notices a change."""
    files = [write(tmp_path / f"{i:03}.txt", f"text {i}") for i in range(70)]
    for f in files:
        os.utime(f, (1, 1))
    first = texts.content_digest(files)
    assert texts.content_digest(files) == first and list((cache.cache_dir() / "folders").iterdir())
    write(files[3], "changed")
    assert texts.content_digest(files) != first


def test_label_names():
    """Floats that stand for integers, missing values and numbered classes."""
    assert [label_name(v, None) for v in (1.0, 1.5, True, " a ", "", None, float("nan"))] == (["1", "1.5", "True", "a", None, None, None])
    assert [label_name(v, ["n", "p"]) for v in (0, 1, -1, 2)] == ["n", "p", None, None]


def test_imdb_folder_and_tables(tmp_path):
    """Both layouts of IMDB give the same samples, with line breaks for <br />."""
    for split, where in (("train", "aclImdb"), ("test", "aclImdb")):
        write(tmp_path / "1" / where / split / "pos" / "0_9.txt", f"Good<br /><br />{split} film")
        write(tmp_path / "1" / where / split / "neg" / "0_1.txt", f'A "bad" {split} film')
        body = f'0\t1\t0\tA "bad" {split} film\n1\t9\t0\tGood<br /><br />{split} film\n'
        write(tmp_path / "2" / f"imdb_{split}.tsv.xz", "label\trating\tid\ttext\n" + body)
    write(tmp_path / "1" / "aclImdb" / "train" / "unsup" / "0_0.txt", '"Unknown')
    write(tmp_path / "2" / "imdb_unsup.tsv.gz", 'label\trating\tid\ttext\n-1\t0\t0\t"Unknown\n')
    one, two = (text_sets.Imdb(str(tmp_path / i), "fail", 0.1) for i in "12")
    for split in ("train", "test"):
        assert rows(one, split) == rows(two, split)
    assert rows(one) == (['A "bad" train film', "Good\ntrain film"], ["negative", "positive"])
    for source in (one, two):
        assert source.own_splits() == ("train", "test", "unlabeled")
        assert source.get("unlabeled").items == ['"Unknown']
    with pytest.raises(UserError, match="aclImdb_v1"):
        text_sets.Imdb(str(tmp_path / "3"), "fail", 0.1).own_splits()


@pytest.mark.parametrize("header", ["", "Class Index,Title,Description\n"])
def test_ag_news(tmp_path, header):
    """AG News with and without header: classes 1 to 4, title and description joined."""
    for split in ("train", "test"):
        write(tmp_path / "ag_news" / f"{split}.csv", header + '"3","Title, one","Some\\""news"""\n4,T,D\n')
    source = text_sets.AgNews(str(tmp_path), 0.1)
    assert rows(source, "test") == (['Title, one Some "news"', "T D"], ["Business", "Sci/Tech"])
    write(tmp_path / "ag_news" / "train.csv", "5,T,D\n")
    with pytest.raises(UserError, match=r"train\.csv, line 1"):
        source.read("train")
    with pytest.raises(UserError, match=r"put train\.csv and test\.csv there"):
        text_sets.AgNews(str(tmp_path / "no"), 0.1).own_splits()
    write(tmp_path / "half" / "ag_news" / "train.csv", "4,T,D\n")
    with pytest.raises(UserError, match=r"put train\.csv and test\.csv there"):  # one of them is not enough
        text_sets.AgNews(str(tmp_path / "half"), 0.1).own_splits()


def hugging_face(name, **settings) -> texts.HuggingFaceText:
    config = config_of("hf_text")
    assert config.pop("_target_") == "sslt.data.sources.texts.HuggingFaceText"
    return texts.HuggingFaceText(**{**config, "name": str(name), **settings})


def test_hugging_face_folders(tmp_path):
    """A folder of save_to_disk and one of Parquet files give the same samples, with class names and all splits."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["y", "x"])})
    parts = {"train": (["a", "b"], [0, 1]), "validation": (["c"], [1]), "unsupervised": (["d"], [-1])}
    made = {k: datasets.Dataset.from_dict({"text": t, "label": n}, features=features) for k, (t, n) in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for split, data in made.items():
        data.to_parquet(str(tmp_path / "parquet" / "data" / f"{split}-00000-of-00001.parquet"))
    for folder in ("saved", "parquet"):
        source = hugging_face(tmp_path / folder)
        assert source.own_splits() == ("train", "val", "unlabeled")
        assert rows(source) == (["a", "b"], ["y", "x"]) and rows(source, "val") == (["c"], ["x"])
        assert source.get("unlabeled").items == ["d"]
        assert source.fingerprint() == hugging_face(tmp_path / folder).fingerprint()


def test_hugging_face_failure_is_plain(monkeypatch):
    """What the hub cannot give is one clear error, not a traceback of the network."""
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="cannot load 'some/set' by Hugging Face datasets: Couldn't reach the hub"):
        hugging_face("some/set").own_splits()


def test_docs():
    """The embedded set: enough labelled rows in every class, distinct, long enough, and no class rare."""
    config = OmegaConf.load(CONFIGS / "docs.yaml")
    source = docs.Docs(config.val_fraction, config.test_fraction)
    raw = source.read("train")
    assert len(raw) >= 2000 and len(set(raw.items)) == len(raw)
    assert min(map(len, raw.items)) >= 40
    counts = np.bincount(raw.labels, minlength=len(source.classes))
    assert counts.min() >= 100 and counts.max() < 5 * counts.min()
    assert 1_000_000 < sum(map(len, source.get("unlabeled").items)) < 4_000_000
    assert sum(len(source.get(s)) for s in ("train", "val", "test")) == len(raw)


@pytest.mark.skipif(not SHARED, reason="SSLT_TEST_DATA is not set")
def test_real_tables():
    """Real files of other people: sizes and classes as published."""
    root = Path(str(SHARED))
    banking = table(root / "banking77")
    assert len(banking.classes) == 77 and len(banking.read("test")) == 3080
    assert len(table(root / "zh-chnsenticorp").read("train")) == 9600
    assert np.bincount(table(root / "sentence-classification" / "stsa.binary.*").read("test").labels).tolist() == [
        912,
        909,
    ]


def names_of(found: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [f.name for f in files] for split, files in found.items()}


def test_which_tables_of_a_folder_are_which_split(tmp_path):
    """By their names; shards of one together; a single table without a name of a split is train; tables may lie in `data`."""
    for name in ("train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev.csv", "notes.md"):
        write(tmp_path / "named" / name, "text,label\na,b\n")
    found = texts.find_tables(tmp_path / "named", None)
    assert names_of(found) == {"train": ["train-00000-of-00002.csv", "train-00001-of-00002.csv"], "val": ["dev.csv"]}
    write(tmp_path / "one" / "data" / "books.csv", "text\na\n")
    write(tmp_path / "one" / "readme.txt", "about\n")
    assert names_of(texts.find_tables(tmp_path / "one" / "data", None)) == {"train": ["books.csv"]}
    assert names_of(texts.find_tables(tmp_path / "named" / "dev.csv", None)) == {"train": ["dev.csv"]}
    assert names_of(texts.find_tables(tmp_path / "named" / "train*", None)) == {"train": names_of(found)["train"]}
    write(tmp_path / "parquet" / "data" / "train.parquet", "")
    write(tmp_path / "parquet" / "data" / "test.csv", "")
    assert names_of(texts.find_tables(tmp_path / "parquet", None, "parquet")) == {"train": ["train.parquet"]}
    assert names_of(texts.find_tables(tmp_path / "parquet", None)) == {"train": ["train.parquet"], "test": ["test.csv"]}


def test_tables_of_which_none_or_several_could_be_train(tmp_path):
    """No table, two without a split's name, two of one split that are no shards: what is there, and what to give."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no train file .*\(none\)"):
        texts.find_tables(tmp_path / "empty", None)
    for name in ("a.csv", "b.csv"):
        write(tmp_path / "two" / name, "text\na\n")
    with pytest.raises(UserError, match=r"\(a\.csv, b\.csv\); give a file"):
        texts.find_tables(tmp_path / "two", None)
    write(tmp_path / "notes" / "notes.txt", "a\tb\n")
    with pytest.raises(UserError, match=r"\(none\)"):
        texts.find_tables(tmp_path / "notes", None)
    assert names_of(texts.find_tables(tmp_path / "notes", "\t")) == {"train": ["notes.txt"]}
    for folder, names in (("several", ("train_a.csv", "train_b.csv")), ("shard", ("train-00000-of-00001.csv", "train.csv"))):
        for name in names:
            write(tmp_path / folder / name, "text\na\n")
        with pytest.raises(UserError, match=re.escape(f"several files for train ({', '.join(names)})")):
            texts.find_tables(tmp_path / folder, None)
    with pytest.raises(UserError, match="no such file"):
        texts.find_tables(tmp_path / "nowhere", None)


def test_clinc150_has_out_of_scope(tmp_path):
    """As one more class, in every split; what is not in its layout is refused by name."""
    rows = {"train": [["pay it", "pay"], ["book it", "book"]], "val": [["pay", "pay"]], "test": [["book", "book"]]}
    rows |= {f"oos_{split}": [["why", "oos"]] for split in ("train", "val", "test")}
    file = tmp_path / "data_full.json"
    file.write_text(json.dumps(rows))
    found = text_sets.Clinc150(str(tmp_path))
    assert found.classes == ["book", "oos", "pay"] and found.splits() == ("train", "val", "test")
    raw = found.read("test")
    assert list(raw.items) == ["book", "why"] and raw.labels.tolist() == [0, 1]
    file.write_text('{"train": []}')
    with pytest.raises(UserError, match=r"data_full\.json: not CLINC150"):
        text_sets.Clinc150(str(tmp_path)).read("train")
    with pytest.raises(UserError, match="no CLINC150 in"):
        text_sets.Clinc150(str(tmp_path / "nowhere")).read("train")
