"""Protects dialogues: histories and replies, whose turns, whole dialogues in one split, own and official files; mistakes name the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_text_to_text import own_cache, source, written  # noqa: F401

from sslt.data.answers import Labels, Texts
from sslt.data.sources.to_reply import ToReply
from sslt.errors import UserError

DATA = Path(os.environ.get("SSLT_DATA", "nowhere"))


def own(path, **settings):
    return source("dialogues", path=str(path), **settings)


def jsonl(path: Path, *rows) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    "turns",
    [
        {"turns": ["hi", "hello  you", "bye"]},
        {"dialog": [{"text": "hi"}, {"text": "hello you"}, {"text": "bye"}]},
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello\nyou"},
                {"role": "user", "content": "bye"},
            ]
        },
        {"turns": [{"speaker": "USER", "utterance": "hi"}, {"speaker": "SYSTEM", "utterance": "hello you"}, {"s": "U", "u": "bye"}]},
    ],
)
def test_turns_are_found_by_their_usual_names(turns, tmp_path):
    """Each turn answers those before it, a line each."""
    found = own(jsonl(tmp_path / "d.jsonl", turns)).read("train")
    assert written(found) == [("hi", ["hello you"]), ("hi\nhello you", ["bye"])]


def test_history_and_who_replies(tmp_path):
    """The last turns alone are read; only replies of the one who is asked for are learned, and a name that nobody has is refused."""
    turns = [{"speaker": "ab"[i % 2], "text": str(i)} for i in range(6)]
    file = jsonl(tmp_path / "d.json", json.dumps([{"talk": turns}]))
    found = own(file, turns="talk", history=2, reply_by="b").read("train")
    assert written(found) == [("0", ["1"]), ("1\n2", ["3"]), ("3\n4", ["5"])]
    assert written(own(file, turns="talk", history=None).read("train"))[-1] == ("0\n1\n2\n3\n4", ["5"])
    with pytest.raises(UserError, match="'c' replies to nothing in the train data; replies are by b, a"):
        own(file, turns="talk", reply_by="c").read("train")
    with pytest.raises(UserError, match=r"data\.history=0: give at least 1"):
        own(file, history=0)


def test_a_dialogue_is_in_one_split(tmp_path):
    """Also where its turns are alike those of others; `unlabeled` has those of train whole, and none of the others."""
    rows = [{"turns": [f"{i} {k}" for k in range(5)]} for i in range(50)]
    rows += [{"turns": ["hi", "hello", f"{i} 2"]} for i in range(50, 90)]  # all begin alike, and are no copies of one another for that
    found = own(jsonl(tmp_path / "d.jsonl", *rows))
    raw = {s: found.get(s) for s in found.splits()}
    groups = {s: set(r.answers.groups.tolist()) for s, r in raw.items()}
    assert set(groups) == {"train", "val", "test"} and sum(map(len, groups.values())) == len(set().union(*groups.values())) == 90
    assert [len(r) for r in raw.values()] == [sum(4 if g < 50 else 2 for g in some) for some in groups.values()]
    assert 40 < len(raw["test"]) < 60 and 10 < len(raw["val"]) < 30
    whole = list(found.get("unlabeled").items)
    assert len(whole) == len(groups["train"]) and whole[0].count("\n") == 4


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, r"d\.jsonl, line 2: no turns: they are looked for under turns, dialogue"),
        ({"turns": "x"}, r"line 2: 'turns' is no list of turns"),
        ({"turns": []}, "line 2: a dialogue without turns"),
        ({"turns": ["a", {"who": "x"}]}, "line 2: turn 2 has no text"),
        ("{", "line 2: not JSON"),
    ],
)
def test_mistakes(row, words, tmp_path):
    file = jsonl(tmp_path / "d.jsonl", {"turns": ["a", "b"]}, row)
    with pytest.raises(UserError, match=words):
        own(file).read("train")
    raw = own(file, on_error="skip").read("train")
    assert len(raw) == 1 and len(raw.skipped) == 1


def cornell(folder: Path, conversations: str) -> Path:
    """Files as the corpus has them: ISO 8859-1 with quotes of Windows, five and four fields, a line without text."""
    said = [("L1", "They do not!"), ("L2", "They \x93do\x94 to, Ren\xe9!"), ("L3", ""), ("L4", "Let's  go.")]
    lines = [f"{i} +++$+++ u{n % 2} +++$+++ m0 +++$+++ NAME{n % 2} +++$+++ {text}" for n, (i, text) in enumerate(said)]
    folder.mkdir(exist_ok=True)
    (folder / "movie_lines.txt").write_bytes("\n".join(lines).encode("iso-8859-1"))
    (folder / "movie_conversations.txt").write_text(conversations)
    return folder


def test_the_cornell_corpus(tmp_path):
    """Found in the folder or one below it; lines without text are passed over."""
    cornell(tmp_path / "cornell movie-dialogs corpus", "u0 +++$+++ u1 +++$+++ m0 +++$+++ ['L1', 'L2', 'L3', 'L4']\n")
    found = own(tmp_path, val_fraction=0.0, test_fraction=0.0)
    assert written(found.read("train")) == [("They do not!", ["They “do” to, René!"]), ("They do not!\nThey “do” to, René!", ["Let's go."])]
    assert found.own_splits() == ("train",) and list(found.get("unlabeled").items) == ["They do not!\nThey “do” to, René!\nLet's go."]


@pytest.mark.parametrize(
    ("conversations", "words"),
    [
        ("u0 +++$+++ u1 +++$+++ m0 +++$+++ ['L1', 'L9']", r"movie_conversations\.txt, line 1: line L9 is not in movie_lines\.txt"),
        ("u0 +++$+++ u1", "line 1: expected four fields"),
        ("u0 +++$+++ u1 +++$+++ m0 +++$+++ 12", "line 1: expected four fields, the last a list of lines"),
        ("u0 +++$+++ u1 +++$+++ m0 +++$+++ {[]: 1}", "line 1: expected four fields, the last a list of lines"),
    ],
)
def test_a_damaged_cornell_corpus(conversations, words, tmp_path):
    with pytest.raises(UserError, match=words):
        own(cornell(tmp_path / "c", conversations)).read("train")
    (tmp_path / "c" / "movie_lines.txt").unlink()
    with pytest.raises(UserError, match=r"movie_lines\.txt is missing beside"):
        own(tmp_path / "c").read("train")


def sgd(root: Path, official: bool) -> None:
    names = {"train": ["Hotels_1", "Events_1"], "dev": ["Hotels_1"], "test": ["Hotels_2", "Trains_1"]}
    for split, services in names.items():
        speakers, keys = (("USER", "SYSTEM"), ("speaker", "utterance")) if official else (("U", "S"), ("s", "u"))
        rows = [
            {"id": str(i), "services": services[: 1 + i % 2], "turns": [dict(zip(keys, (speakers[k % 2], f"{split} {i} {k}"), strict=True))
                                                                         for k in range(4)]} for i in range(4)
        ]  # fmt: skip
        if official:
            (root / split).mkdir()
            (root / split / "dialogues_001.json").write_text(json.dumps(rows))
            (root / split / "schema.json").write_text("[]")
        else:
            jsonl(root / f"{split}.jsonl", *rows)


@pytest.mark.parametrize("official", [False, True])
def test_schema_guided_dialogue(official, tmp_path):
    """What the system says; or the services, of which some are in test alone."""
    sgd(tmp_path, official)
    found = source("sgd", root=str(tmp_path))
    raw = found.read("train")
    assert found.answer is Texts and written(raw)[:2] == [("train 0 0", ["train 0 1"]), ("train 0 0\ntrain 0 1\ntrain 0 2", ["train 0 3"])]
    assert raw.answers.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    labels = source("sgd", root=str(tmp_path), answer="labels")
    assert labels.answer is Labels and labels.classes == ["Events_1", "Hotels_1", "Hotels_2", "Trains_1"]
    test = labels.read("test")
    assert test.answers.values.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]] * 2 and test.items[0].startswith("test 0 0\ntest 0 1\n")
    told = "sgd: 2 of the 2 services in test are none of train (Hotels_2, Trains_1): they count as missed"
    assert test.remarks == [f"{told}; 1 of them under another number, which data.services=domains leaves out"]
    domains = source("sgd", root=str(tmp_path), answer="labels", services="domains")
    assert domains.classes == ["Events", "Hotels", "Trains"] and len(domains.get("unlabeled")) == 4
    with pytest.raises(UserError, match=r"data\.answer=label: give texts or labels; did you mean 'labels'"):
        source("sgd", root=str(tmp_path), answer="label")


@pytest.mark.skipif(not (DATA / "sgd-dialogues").is_dir(), reason="needs the folder of SSLT_DATA")
def test_real_dialogues_and_their_services():
    found = source("sgd", root=str(DATA), answer="labels", services="names")
    counts = np.bincount(found.get("train").answers.values.sum(1))
    assert counts.tolist() == [0, 5275, 6107, 747, 45] and [len(found.get(s)) for s in ("val", "test")] == [2098, 2921]


def test_dialogues_that_go_on_end_with_what_is_replied_to(here):
    """The last turns alone, of lists and of objects, and of every dialogue, however short."""
    said = [{"dialog": ["a", "b", "", "c"]}, {"messages": [{"role": "user", "content": "d"}]}]
    (here / "new.jsonl").write_text("\n".join(map(json.dumps, said)))
    (here / "other.jsonl").write_text('{"text": "a", "summary": "b"}')
    source = ToReply(str(here / "new.jsonl"), None, 2)
    assert source.are_there and list(source.get("unlabeled").items) == ["b\nc", "d"] and source.get("unlabeled").answers is None
    assert list(ToReply(str(here / "new.jsonl"), None, None).get("unlabeled").items) == ["a\nb\nc", "d"]
    assert not ToReply(str(here / "other.jsonl"), None, 2).are_there
