"""Protects reading texts with tags: shapes of JSON, schemes of columns, splits, and what is said of mistakes."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from sslt.data import cache
from sslt.data.sources import tags
from sslt.data.sources.tag_files import spans_of_tags
from sslt.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
DATA = Path(os.environ.get("SSLT_DATA", "data"))
TEXT = "Ada met Bob in Rome"
FOUND = {(0, 3, "per"), (8, 11, "per"), (15, 19, "loc")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def source(path: Path, **settings: Any) -> tags.TextTags:
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "text_tags.yaml"))
    assert config.pop("_target_") == "sslt.data.sources.tags.TextTags"
    return tags.TextTags(**{**config, "path": str(path), "val_fraction": 0.0, "test_fraction": 0.0, **settings})


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows), encoding="utf-8")
    return path


def found(made: tags.TagSource, row: int = 0, split: str = "train") -> set[tuple[int, int, str]]:
    raw = made.get(split)
    assert raw.answers is not None
    return {(a, b, made.space["types"][t]) for a, b, t in raw.answers.values[row].tolist()}  # type: ignore[index]


SHAPES = {
    "lists": {"text": TEXT, "entities": [[15, 19, "loc"], [0, 3, "per"], [8, 11, "per"]]},
    "doccano": {"text": TEXT, "label": [[0, 3, "per"], [8, 11, "per"], [15, 19, "loc"]]},
    "named": {"sentence": TEXT, "spans": [{"start": s, "end": e, "label": t} for s, e, t in FOUND]},
    "offsets": {"text": TEXT, "entities": [{"start_offset": s, "end_offset": e, "type": t} for s, e, t in FOUND]},
    "surfaces": {"text": TEXT, "label": {"per": {"Ada": [[0, 3]], "Bob": [[8, 11]]}, "loc": {"Rome": [[15, 19]]}}},
    "with spaces": {"text": TEXT, "tags": [[0, 4, "per"], [7, 11, "per"], [14, 19, "loc"]]},
    "twice": {"text": TEXT, "tags": [[0, 3, "per"], [0, 3, "per"], [8, 11, "per"], [15, 19, "loc"]]},
    "tokens": {"tokens": TEXT.split(), "ner_tags": ["B-per", "O", "B-per", "O", "B-loc"]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_json(tmp_path, shape):
    """The usual shapes give the same spans: sorted, once each, without the space around them."""
    made = source(written(tmp_path / "a.jsonl", SHAPES[shape]))
    assert found(made) == FOUND and made.space == {"types": ["loc", "per"]}
    raw = made.get("train")
    assert list(raw.items) == [TEXT] and raw.answers.values[0][:, 0].tolist() == [0, 8, 15]
    assert made.get("unlabeled").answers is None


def test_inclusive_ends(tmp_path):
    """An end that is the last character; where the surface says that the setting is wrong, so does the message."""
    row = {"text": TEXT, "label": {"per": {"Ada": [[0, 2]], "Bob": [[8, 10]]}, "loc": {"Rome": [[15, 18]]}}}
    path = written(tmp_path / "a.json", row)
    assert found(source(path, ends="inclusive")) == FOUND
    with pytest.raises(UserError, match=r"a\.json, line 1: the tag \[0, 2, per\] is on 'Ad', not on 'Ada': set data\.ends=inclusive"):
        source(path).get("train")
    with pytest.raises(UserError, match=r"set data\.ends=exclusive"):
        source(written(tmp_path / "b.json", SHAPES["surfaces"] | {"text": f"{TEXT}."}), ends="inclusive").get("train")


SCHEMES = {
    "IOB2": ("B-per", "I-per", "O", "B-per", "B-per", "I-loc", "O"),
    "IOB1": ("I-per", "I-per", "O", "I-per", "B-per", "I-loc", "O"),
    "BIOES": ("B-per", "E-per", "O", "S-per", "S-per", "S-loc", "O"),
    "BILOU": ("B-per", "L-per", "O", "U-per", "U-per", "U-loc", "O"),
    "BMES": ("B-per", "E-per", "O", "S-per", "S-per", "S-loc", "O"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(scheme):
    """One reading of all prefixes: neighbours stay apart, an I- of another type begins a span."""
    assert spans_of_tags(SCHEMES[scheme]) == [(0, 2, "per"), (3, 4, "per"), (4, 5, "per"), (5, 6, "loc")]


def test_longer_spans_and_the_end():
    """M inside of BMES, a span at the end, one that goes on after its end, types with dashes."""
    assert spans_of_tags(["B-a", "M-a", "E-a", "I-a", "I-a"]) == [(0, 3, "a"), (3, 5, "a")]
    assert spans_of_tags(["O", "B-creative-work", "I-creative-work"]) == [(1, 3, "creative-work")]
    assert spans_of_tags([]) == []


def test_columns(tmp_path):
    """Sentences of lines; tab or spaces; columns by number; documents and remarks; what stands between tokens."""
    lines = ["-DOCSTART- -X- O", "", "Ada NNP B-per", "met V O", "Bob N B-per", "in P O", "Rome N B-loc", "", "Hm UH O", ""]
    made = source(written(tmp_path / "a.conll", *lines, "-DOCSTART- -X- O", "", "# id 7", "Oslo N B-loc"))
    raw = made.get("train")
    assert list(raw.items) == [TEXT, "Hm", "Oslo"] and found(made) == FOUND and found(made, 2) == {(0, 4, "loc")}
    assert raw.answers.groups.tolist() == [0, 0, 1]
    tagged_first = written(tmp_path / "b.bio", "B-per\t王", "I-per\t 芳", "O\t来", "\n", "O\t了")
    made = source(tagged_first, token_column=1, tag_column=0, join="")
    assert list(made.get("train").items) == ["王 芳来", "了"] and found(made) == {(0, 3, "per")}
    hashes = written(tmp_path / "c.txt", "#\tO", "# \tO", "Ada\tB-per")
    assert list(source(hashes).get("train").items) == ["# #  Ada"]


def test_splits_of_a_folder(tmp_path):
    """Files by their names, packed or not; without a test file it is drawn from train; a type of test alone is kept, and said."""
    rows = [{"text": f"{TEXT} {i}", "tags": [[0, 3, "per"], [15, 19, "loc"]]} for i in range(20)]
    written(tmp_path / "train.jsonl", *rows)
    other = json.dumps({"text": "Ada bought a Lada", "tags": [[0, 3, "per"], [13, 17, "car"]]})
    (tmp_path / "dev.jsonl.xz").write_bytes(lzma.compress(other.encode()))
    made = source(tmp_path, test_fraction=0.2)
    assert made.splits() == ("train", "val", "test") and len(made.get("test")) == 4 and len(made.get("train")) == 16
    assert made.space == {"types": ["loc", "per", "car"]} and found(made, split="val") == {(0, 3, "per"), (13, 17, "car")}
    assert "'car' is tagged there and never in the training data" in made.get("val").remarks[0]
    assert source(tmp_path, types=["car", "per"]).space == {"types": ["car", "per", "loc"]}
    assert made.fingerprint() == source(tmp_path).fingerprint() != source(tmp_path, ends="inclusive").fingerprint()


def test_without_tags(tmp_path):
    """Texts to predict have none: JSON without the key, and one column."""
    for path in (written(tmp_path / "a.jsonl", {"text": TEXT}), written(tmp_path / "b.conll", *TEXT.split(), "", "Hm")):
        made = source(path)
        assert made.own_splits() == ("unlabeled",) and made.space is None
        assert made.get("unlabeled").items[0] == TEXT and made.get("unlabeled").answers is None


MISTAKES = {
    "not JSON": (["{'text'"], r"line 2: not JSON"),
    "no object": (["[1]"], r"line 2: not a JSON object"),
    "no text": ([{"text": " ", "tags": []}], "line 2: empty text"),
    "outside": ([{"text": "Ada", "tags": [[0, 4, "per"]]}], r"line 2: the tag \[0, 4, per\] lies outside its text of 3 characters"),
    "negative": ([{"text": "Ada", "tags": [[-1, 2, "per"]]}], "line 2: .* lies outside"),
    "backwards": ([{"text": "Ada", "tags": [[2, 1, "per"]]}], "line 2: .* lies outside"),
    "empty": ([{"text": "Ada", "tags": [[1, 1, "per"]]}], "line 2: .* holds no text"),
    "overlap": ([{"text": "Ada B", "tags": [[0, 5, "per"], [4, 5, "org"]]}], r"line 2: the tags \[0, 5, per\] and \[4, 5, org\] overlap"),
    "no number": ([{"text": "Ada", "tags": [["0", 3, "per"]]}], "line 2: .* no start and end"),
    "no type": ([{"text": "Ada", "tags": [[0, 3, None]]}], "line 2: .* has no type"),
    "two numbers": ([{"text": "Ada", "tags": [[0, 3]]}], r"line 2: a tag is \[0, 3\]: expected"),
    "a word": ([{"text": "Ada", "tags": "per"}], "line 2: the tags are 'per'"),
    "nested": ([{"text": "Ada", "tags": {"per": {"Ada": [0, 3]}}}], "line 2: 'per' holds 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_json(tmp_path, case):
    """One line with file and line; with on_error=skip the text is left out, and counted."""
    rows, message = MISTAKES[case]
    path = written(tmp_path / "a.jsonl", {"text": TEXT, "tags": [[0, 3, "per"]]}, *rows)
    with pytest.raises(UserError, match=message) as e:
        source(path).get("train")
    assert str(e.value).startswith(f"{path}, line 2") and str(e.value).count("\n") == 1
    raw = source(path, on_error="skip").get("train")
    assert len(raw) == 1 and len(raw.skipped) == 1


COLUMN_MISTAKES = {
    "prefix": (["Bob X-per"], "line 4: 'X-per' is no tag: expected O, or B- or I-"),
    "bare": (["Bob per"], "line 4: 'per' is no tag"),
    "alone": (["Bob B-per", "ran"], "line 5: 'ran' stands alone"),
    "no token": ([" \tB-per"], "line 4: a tag without a token"),
}


@pytest.mark.parametrize("case", COLUMN_MISTAKES)
def test_mistakes_in_columns(tmp_path, case):
    """The line that is wrong, not the sentence's first; a sentence with one is left out as a whole."""
    lines, message = COLUMN_MISTAKES[case]
    path = written(tmp_path / "a.conll", "Ada B-per", "ran O", "", *lines)
    with pytest.raises(UserError, match=message):
        source(path).get("train")
    raw = source(path, on_error="skip").get("train")
    assert list(raw.items) == ["Ada ran"] and len(raw.skipped) == 1


def test_mistakes_in_settings_and_files(tmp_path):
    """A key or a column that is not there, a setting misspelt, files without text, without tags and for one split twice."""
    path = written(tmp_path / "a.jsonl", {"text": TEXT, "tags": [[0, 3, "per"]]})
    for settings, message in (
        ({"tags": "tag"}, "no key 'tag'.*tags"),
        ({"text": "txt"}, "no key 'txt'.*text"),
        ({"ends": "inclusiv"}, "data.ends=inclusiv.*inclusive"),
        ({"overlaps": "skip"}, "data.overlaps=skip: give fail or longest"),
    ):
        with pytest.raises(UserError, match=message):
            source(path, **settings).get("train")
    with pytest.raises(UserError, match=r"2 columns, where data\.token_column=0 and data\.tag_column=3 were to be read"):
        source(written(tmp_path / "b.conll", "Ada B-per"), tag_column=3).get("train")
    with pytest.raises(UserError, match="nothing is tagged in it"):
        _ = source(written(tmp_path / "c.jsonl", {"text": TEXT, "tags": []})).space
    with pytest.raises(UserError, match="which key is the text"):
        source(written(tmp_path / "d.jsonl", {"a": TEXT, "b": 1, "tags": []})).get("train")
    with pytest.raises(UserError, match="no text in it"):
        source(written(tmp_path / "e.conll", "", "")).get("unlabeled")
    (tmp_path / "both").mkdir()
    for name in ("train.conll", "train.jsonl"):
        written(tmp_path / "both" / name, "Ada B-per")
    with pytest.raises(UserError, match="several files for train"):
        source(tmp_path / "both").get("train")


def test_longest_of_overlapping(tmp_path):
    """The longer one stays, of equal ones the first; how many went is said."""
    row = {"text": TEXT, "tags": [[0, 3, "per"], [0, 11, "meeting"], [8, 11, "per"], [15, 19, "loc"]]}
    made = source(written(tmp_path / "a.jsonl", row), overlaps="longest")
    assert found(made) == {(0, 11, "meeting"), (15, 19, "loc")}
    assert "2 tags lie within longer ones" in made.get("train").remarks[0]


@pytest.mark.skipif(not (DATA / "zh-cluener").is_dir(), reason="no CLUENER")
def test_cluener():
    """Sizes as published but for the one nested tag; ends, which are inclusive there, are right wherever the surface is known."""
    made = tags.Cluener(str(DATA), "fail", 0.1)
    assert made.splits() == ("train", "val", "test") and len(made.space["types"]) == 10
    assert [len(made.read(s)) for s in ("train", "test")] == [10748, 1343]
    assert int(made.read("test").answers.values.sizes.sum()) == 3072


@pytest.mark.skipif(not (DATA / "wnut17").is_dir(), reason="no WNUT17")
def test_wnut17():
    """Texts and entities as published (Derczynski et al., 2017)."""
    made = tags.Wnut17(str(DATA), "fail")
    raws = {s: made.read(s) for s in made.splits()}
    assert {s: len(r) for s, r in raws.items()} == {"train": 3394, "val": 1009, "test": 1287}
    assert {s: int(r.answers.values.sizes.sum()) for s, r in raws.items()} == {"train": 1975, "val": 836, "test": 1079}
    assert made.space == {"types": ["corporation", "creative-work", "group", "location", "person", "product"]}


def test_sets_that_are_not_there(tmp_path):
    """What to put where."""
    with pytest.raises(UserError, match=r"no cluener data in .*zh-cluener: put train\.json, dev\.json there"):
        tags.Cluener(str(tmp_path), "fail", 0.1).get("train")
