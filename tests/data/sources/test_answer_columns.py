"""Protects how tables are read whose answers are several labels or a number: what each cell means, and that mistakes name their row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from sslt.config import build
from sslt.data import cache
from sslt.data.answers import Labels, Number
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
TEXTS = [f"text {i}" for i in range(6)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def source(option: str, **settings):
    """The source of a YAML with these settings."""
    return build(OmegaConf.merge(OmegaConf.load(CONFIGS / f"{option}.yaml"), settings))


def csv(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def told(found) -> list[set[str]]:
    """Labels by name."""
    return [{found.classes[i] for i in np.flatnonzero(row)} for row in found.values]


def test_columns_of_zero_and_one(tmp_path):
    """Each column is a label, in the order in which they are named; the text is found among the others."""
    path = csv(tmp_path / "a.csv", "toxic,comment,rude,id", "1,one,0,7", "0,two,0.0,8", "True,three,1.0,9", "false,four,1,7")
    found = source("text_csv", path=path, answer="labels", label=["rude", "toxic"])
    raw = found.read("train")
    assert isinstance(raw.answers, Labels) and found.space == {"classes": ["rude", "toxic"]} == raw.answers.space
    assert told(raw.answers) == [{"toxic"}, set(), {"toxic", "rude"}, {"rude"}] and list(raw.items) == ["one", "two", "three", "four"]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["b;a", "", "a", " a ; c;"], "semicolon"),
        (["b;a", "nan;", "a", "a;c"], ";"),
        (['["b", "a"]', "[]", '["a"]', '["a", "c"]'], None),
        (["['b', 'a']", "", "['a']", "['a', 'c']"], None),
        ([["b", "a"], [], ["a"], ["a", "c"]], None),
        ([["b", "a"], None, ["a", "a"], ["c", "a"]], None),
    ],
)
def test_one_column_of_several_labels(tmp_path, cells, separator):
    """Names with something between them, or lists as JSON and Python write them; nothing there is no label, and no mistake."""
    rows = [json.dumps({"text": t, "tags": c}) for t, c in zip(TEXTS, cells, strict=False)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = source("text_csv", path=str(tmp_path / "a.jsonl"), answer="labels", label="tags", separator=separator)
    if cells[1] == "nan;":
        with pytest.raises(UserError, match=r"a\.jsonl, line 2: 'nan' is no label"):
            found.read("train")
        return
    assert told(found.read("train").answers) == [{"a", "b"}, set(), {"a"}, {"a", "c"}] and found.classes == ["a", "b", "c"]


def test_numbered_labels_are_named_by_what_the_file_says(tmp_path):
    """Lists of classes as Hugging Face's `datasets` writes them, in tables of texts and of images; without names by number."""
    features = {"tags": {"feature": {"names": ["x", "y", "z"], "_type": "ClassLabel"}, "_type": "Sequence"}}
    table = pa.table({"text": TEXTS[:3], "tags": [[2, 0], [], [1]], "image": [b"", b"", b""]})
    pq.write_table(table, tmp_path / "plain.parquet")
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / "named.parquet")
    for option, key in (("text_csv", "path"), ("hf_images", "name")):
        given = {"answer": "labels", "label": "tags"}
        named = source(option, **{key: str(tmp_path / "named.parquet")}, **given)
        assert told(named.read("train").answers) == [{"x", "z"}, set(), {"y"}]
        assert source(option, **{key: str(tmp_path / "plain.parquet")}, **given).classes == ["0", "1", "2"]


def test_numbers(tmp_path):
    """As they are written; of a split that is drawn too, in proportion to their size."""
    path = csv(tmp_path / "a.csv", "text,score", *(f"t{i},{v}" for i, v in enumerate(["1", "-2.5", "1e3", " 4 ", "0", "7"])))
    found = source("text_csv", path=path, answer="number", label="score", test_fraction=0.34, val_fraction=0.0)
    raw = found.read("train")
    assert isinstance(raw.answers, Number) and raw.answers.values.tolist() == [1, -2.5, 1000, 4, 0, 7]
    assert found.space == {} and found.classes is None and not found.has_classes
    assert sorted([*found.get("train").answers.values, *found.get("test").answers.values]) == sorted(raw.answers.values)
    assert source("text_csv", path=path, answer="number", label="").space is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer": "lables", "label": "n"}, r"data.answer=lables: give class, labels, number; did you mean 'labels'"),
        ({"answer": "number", "label": "n"}, r"a.csv, line 3: 'inf' is no finite number"),
        ({"answer": "number", "label": "text"}, r"which column is the text|'one' is no finite number"),
        ({"answer": "labels", "label": ["f", "n"]}, r"a.csv, line 2: '5' in column 'n' is neither 0 nor 1"),
        ({"answer": "labels", "label": ["f", "m"]}, r"no column 'm'"),
        ({"answer": "labels", "label": ["f", "f"]}, r"name each column of labels, once"),
        ({"answer": "labels", "label": []}, r"name each column of labels, once"),
        ({"answer": "class", "label": ["f", "n"]}, r"data.label=\[f,n\] with data.answer=class: several columns are data.answer=labels"),
        ({"answer": "labels", "label": "tags"}, r"line 2: the labels are no list: say what stands between them, data.separator="),
        ({"answer": "labels", "label": ["f"], "separator": ";"}, r"data.separator=; is for data.answer=labels that stand in one column"),
        ({"answer": "number", "label": "n", "separator": ";"}, r"data.separator=; is for data.answer=labels"),
    ],
)
def test_mistakes_name_what_is_wrong(tmp_path, settings, message):
    """A setting, or the file and row; nothing is read as something it is not."""
    path = csv(tmp_path / "a.csv", "text,n,f,tags", "one,5,1,a b", "two,inf,0,b", "three,1,1,a")
    with pytest.raises(UserError, match=message):
        source("text_csv", path=path, **settings).read("train")


def test_rows_that_cannot_be_used_are_left_out_where_that_is_asked_for(tmp_path):
    """And named, of texts and of images."""
    path = csv(tmp_path / "a.csv", "text,n", "one,5", "two,nan", ",1", "four,")
    raw = source("text_csv", path=path, answer="number", label="n", on_error="skip").read("train")
    assert raw.answers.values.tolist() == [5] and list(raw.items) == ["one"]
    assert [s.partition(", ")[2] for s in raw.skipped] == [
        "line 3: 'nan' is no finite number", "line 4: empty text", "line 5: '' is no finite number"]  # fmt: skip
    pq.write_table(pa.table({"image": [b"", b"", b""], "n": [1.5, float("nan"), 2.5]}), tmp_path / "a.parquet")
    images = {"name": str(tmp_path / "a.parquet"), "answer": "number", "label": "n"}
    raw = source("hf_images", **images, on_error="skip").read("train")
    assert raw.answers.values.tolist() == [1.5, 2.5] and len(raw) == 2 and "row 1" in raw.skipped[0]
    with pytest.raises(UserError, match="row 1: nan is no finite number"):
        source("hf_images", **images).read("train")


def test_another_split_has_no_labels_of_its_own(tmp_path):
    """A label of test that training does not know is a mistake that names it; a column that is missing there is one."""
    (tmp_path / "d").mkdir()
    csv(tmp_path / "d" / "train.csv", "text,tags", "one,a;b", "two,b")
    csv(tmp_path / "d" / "test.csv", "text,tags", "three,a;z")
    found = source("text_csv", path=str(tmp_path / "d"), answer="labels", label="tags", separator=";")
    with pytest.raises(UserError, match=r"test.csv: label 'z' does not occur in the training data \(2 labels\)"):
        found.read("test")


def test_too_many_labels_are_no_labels(tmp_path):
    """What divides a column wrongly makes about one label a row."""
    path = csv(tmp_path / "a.csv", "text,tags", *(f"t,w{i};v{i}" for i in range(30)))
    with pytest.raises(UserError, match=r"60 different labels in 30 rows, too many: is data\.separator what divides them"):
        source("text_csv", path=path, answer="labels", label="tags", separator=";").read("train")


def test_images_of_arrays(tmp_path):
    """[N, C] of 0 and 1 with or without names, numbers [N]; what is neither names array and row."""
    x = np.zeros((3, 4, 4), np.uint8)

    def arrays(answer: str, y, **more):
        np.savez(tmp_path / "a.npz", x=x, y=np.array(y), **more)
        return source("arrays", path=str(tmp_path / "a.npz"), answer=answer)

    several = arrays("labels", [[1, 0], [0, 0], [1, 1]], classes=np.array(["p", "q"]))
    assert told(several.read("train").answers) == [{"p"}, set(), {"p", "q"}] and several.space == {"classes": ["p", "q"]}
    assert arrays("labels", [[True, False], [False, False], [True, True]]).space == {"classes": ["0", "1"]}
    numbers = arrays("number", [[1.5], [2], [-1]])
    assert numbers.read("train").answers.values.tolist() == [1.5, 2, -1] and numbers.space == {}
    for answer, y, message in (
        ("labels", [[1, 0], [0, 2], [1, 1]], "array 'y', row 1: 2 in column 1 is neither 0 nor 1"),
        ("labels", [1, 0, 1], r"shape \[3\]: labels need \[N, C\], a column a label"),
        ("number", [1, np.nan, 2], "row 1: nan is no finite number"),
        ("number", [[1, 2], [1, 2], [1, 2]], r"shape \[3, 2\]: give one number per image"),
        ("number", ["a", "b", "c"], "give numbers"),
        ("class", [[1, 0], [0, 0], [1, 1]], "several of 0 and 1 per image are data.answer=labels"),
        ("number", [1, 2], "'x' has 3 images, 'y' 2"),
    ):
        with pytest.raises(UserError, match=message):
            arrays(answer, y).read("train")


def test_the_same_file_with_other_answers_is_other_data(tmp_path):
    """What is kept of it under its fingerprint would otherwise be taken for the other's."""
    path = csv(tmp_path / "a.csv", "text,label", "one,1", "two,0", "three,1")
    made = [source("text_csv", path=path), source("text_csv", path=path, answer="number"),
            source("text_csv", path=path, answer="labels", label=["label"]), source("text_csv", path=path, answer="labels"),
            source("text_csv", path=path, answer="labels", separator=";")]  # fmt: skip
    assert len({s.fingerprint() for s in made}) == len(made)
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 4, 4), np.uint8), y=np.array([1, 0, 1]))
    of = [source("arrays", path=str(tmp_path / "a.npz"), answer=a).fingerprint() for a in ("class", "number")]
    assert of[0] != of[1]
