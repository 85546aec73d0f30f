"""Protects classes from what is none: missing labels in every spelling, bytes, half characters, a set of one class."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sslt.data import cache
from sslt.data.sources.image_files import class_names, label_indices
from sslt.data.sources.image_tables import HuggingFaceImages
from sslt.data.sources.images import Arrays
from sslt.data.sources.labels import label_name
from sslt.data.sources.texts import TextTable
from sslt.errors import UserError

SPELLINGS = ["NaN", "nan", "", " ", "null", "NULL", "<NA>", "N/A", "#N/A", "NA"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def table(path, on_error="fail", **settings):
    given = {"text": None, "label": None, "sep": None, "header": None, "answer": "class", "separator": None, **settings}
    return TextTable(str(path), **given, on_error=on_error, val_fraction=0.1, test_fraction=0.2)


def test_what_is_a_label():
    """Words that look like nothing, but are classes, stay; numbers are named as integers where they are."""
    assert all(label_name(s, None) is None for s in [*SPELLINGS, float("nan"), float("inf"), None, b"\xff", "\ud800"])
    assert [label_name(v, None) for v in ("None", "none", "na", "nano", b"caf\xc3\xa9", 1.0, 2, 1.5)] == [
        "None", "none", "na", "nano", "café", "1", "2", "1.5",
    ]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_a_missing_label_is_no_class(tmp_path, name, spelling):
    """One line that says where; on_error=skip leaves such rows out and counts them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = ["a", "b", spelling, "a", "b", "a"]
    texts = [f"text {i}" for i in range(6)]
    path, sep = tmp_path / name, "\t" if name == "t.tsv" else ","
    if name == "t.parquet":
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    elif name == "t.jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": y}) for t, y in zip(texts, labels, strict=True)))
    else:
        path.write_text("\n".join(f"{t}{sep}{y}" for t, y in [("text", "label"), *zip(texts, labels, strict=True)]))
    with pytest.raises(UserError, match=rf"{name}, (line|row) \d: no label in column 'label'"):
        _ = table(path).classes
    source = table(path, "skip")
    assert source.classes == ["a", "b"] and len(source.read("train").skipped) == 1


def test_arrays_and_parquet_images(tmp_path):
    """Names and numbers alike; a table of images can skip them, and keeps images and labels together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = np.random.default_rng(0).integers(0, 255, (4, 4, 4), dtype=np.uint8)
    for labels in (np.array(["a", "nan", "b", "a"]), np.array([0, np.nan, 1, 0]), np.array([b"a", b"", b"b", b"a"])):
        np.savez(tmp_path / "a.npz", x=images, y=labels)
        source = Arrays(str(tmp_path / "a.npz"), "class")
        assert source.classes in (["a", "b"], ["0", "1"])
        with pytest.raises(UserError, match="row 1: no label"):
            source.read("train")
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    cells = [(tmp_path / f"{i}.png").read_bytes() for i in range(4)]
    pq.write_table(pa.table({"image": cells, "label": ["b", None, "NaN", "a"]}), tmp_path / "i.parquet")
    of = lambda on_error: HuggingFaceImages(str(tmp_path / "i.parquet"), None, "label", "class", None, "none", None, None, on_error)  # noqa: E731
    assert of("fail").classes == ["a", "b"]
    with pytest.raises(UserError, match="row 1: no label"):
        of("fail").read("train")
    raw = of("skip").read("train")
    assert raw.labels.tolist() == [1, 0] and len(raw.skipped) == 2
    assert np.array_equal(raw.items[1][..., 0], images[3])


def test_numbers_that_are_no_classes():
    """A label of a billion would make a billion classes."""
    with pytest.raises(UserError, match="the label 1000000000"):
        class_names([np.array([0, 10**9])], None, "here")
    assert class_names([np.array([1.0, 2.0])], None, "here") == ["0", "1", "2"]
    assert label_indices(np.array([1.0, 2.0]), ["0", "1", "2"], "here").tolist() == [1, 2]


def test_bytes_in_parquet(tmp_path):
    """Text stored as bytes is text; bytes that are none are refused with the row, not named b'...'."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = ["é 1".encode(), b"two", b"three \xff", b"four"]
    pq.write_table(pa.table({"text": rows, "label": [b"x", b"y", b"x", b"y"]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 3: the text is bytes that are not UTF-8"):
        table(tmp_path / "t.parquet").read("train")
    raw = table(tmp_path / "t.parquet", "skip").read("train")
    assert list(raw.items) == ["é 1", "two", "four"] and table(tmp_path / "t.parquet", "skip").classes == ["x", "y"]
    pq.write_table(pa.table({"text": ["a", "b"], "label": [b"x", b"\xff"]}), tmp_path / "u.parquet")
    with pytest.raises(UserError, match="row 2: the label in column 'label' is not UTF-8"):
        table(tmp_path / "u.parquet").read("train")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (r'{"text": "half \ud800", "label": "a"}', "lone surrogate"),
        (r'{"text": "t", "label": "\ud800"}', "not UTF-8"),
        ('{"text": ' + "7" * 5000 + ', "label": "a"}', "not JSON"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + ', "label": "a"}', "not JSON"),
    ],
)
def test_lines_of_json_that_python_cannot_hold(tmp_path, line, says):
    """Named by file and line, or skipped; the same within an array names the file."""
    good = '{"text": "good", "label": "b"}'
    (tmp_path / "t.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match=rf"t\.jsonl, line 2: .*{says}"):
        table(tmp_path / "t.jsonl").read("train")
    assert len(table(tmp_path / "t.jsonl", "skip").read("train").items) == 2
    (tmp_path / "t.json").write_text(f"[{good},\n{line}]")
    with pytest.raises(UserError, match=r"t\.json"):
        table(tmp_path / "t.json").read("train")


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ("text;label\na, b;x\nc;y\n", "semicolon"),
        ("one;x\ntwo;y\nthree, or so;x\n", "semicolon"),
        ("text\tlabel\na, b\tx\n", "tab"),
        ("text|label\na, b|x\n", "pipe"),
    ],
)
def test_another_separator_is_guessed_at(tmp_path, content, setting):
    """A CSV of one column is told which setting reads it, and can be told that it is one."""
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=rf"set data\.sep={setting} \(or data\.sep=comma"):
        table(tmp_path / "t.csv").own_splits()
    assert set(table(tmp_path / "t.csv", sep=setting).classes) == {"x", "y"} if len(content.splitlines()) > 2 else True


def test_one_column_stays_one(tmp_path):
    """Texts with a semicolon here and there are no table of two."""
    (tmp_path / "t.csv").write_text("text\nfirst; second\nthird\nfourth\n")
    assert table(tmp_path / "t.csv").own_splits() == ("unlabeled",)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_damaged_parquet(tmp_path, on_error):
    """A flipped bit anywhere ends in a line or in the rows, never in an error of the library."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"text {i}" for i in range(50)], "label": [i % 2 for i in range(50)]}), tmp_path / "ok.parquet")
    whole = (tmp_path / "ok.parquet").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for i in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        (tmp_path / f"{i}.parquet").write_bytes(data)
        try:
            table(tmp_path / f"{i}.parquet", on_error).read("train")
        except UserError as e:
            refused += 1
            assert f"{i}.parquet" in str(e) or "label" in str(e)
    assert refused > 10
