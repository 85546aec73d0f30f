"""Protects sources of questions about texts: where answers stand, what is refused, and that an article is never on two sides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import toy_reading as toy

from sslt.data.sources.reading import Cmrc2018, Coqa, Reading, Squad
from sslt.data.sources.reading_files import closest
from sslt.errors import UserError

DATA = Path(os.environ.get("SSLT_DATA", "data"))
CONTEXT = "Ada met Ada in Rome."


def reading(path: Path, **more) -> Reading:
    return Reading(str(path), **{"scorer": "squad", "history": 2, "on_error": "fail", "val_fraction": 0.1, "test_fraction": 0.2, **more})


def one(folder: Path, *qas: dict, **more) -> Reading:
    return reading(toy.write(folder / "own.json", [toy.article("a", CONTEXT, *qas)]), **more)


def test_answers_are_places_in_their_context(here):
    """Every admissible text is kept for scoring, each certain place once for training."""
    raw = one(here, toy.qa("1", "Where?", ("in Rome", 12), ("Rome", 15), ("Rome", 15)), toy.qa("2", "Who?", ("Ada", 8))).read("train")
    assert raw.items == [("Where?", CONTEXT), ("Who?", CONTEXT)]
    assert raw.answers.values[0].tolist() == [[15, 19], [12, 19]] and list(raw.answers.texts[0]) == ["in Rome", "Rome", "Rome"]
    assert raw.answers.values[1].tolist() == [[8, 11]] and raw.answers.groups.tolist() == [0, 0]


def test_an_uncertain_place_counts_and_does_not_teach(here):
    """One of several that are alike, and -1; of several places those that begin a word; one that is off by a few characters is found."""
    raw = one(
        here,
        toy.qa("1", "?", ("Ada", 0)) | {"answers": [{"text": "Ada", "answer_start": 0, "ambiguous": True}]},
        toy.qa("2", "?", ("Roman", -1)),
        toy.qa("3", "?", ("ome", 16), ("in Rome", 12)),
        toy.qa("4", "?", ("Rome", 17)),
    ).read("train")
    assert raw.answers.values.sizes.tolist() == [0, 0, 1, 1] and raw.answers.values.flat().tolist() == [[12, 19], [15, 19]]
    assert [list(t) for t in raw.answers.texts] == [["Ada"], ["Roman"], ["ome", "in Rome"], ["Rome"]] and raw.answers.kinds.tolist() == [
        0
    ] * 4
    assert any("1 answers stand a few characters beside" in r for r in raw.remarks) and any("2 of 4 questions" in r for r in raw.remarks)


def test_questions_without_an_answer_and_questions_to_be_answered(here):
    raw = one(here, toy.qa("1", "?", is_impossible=True), {"id": "2", "question": "?"}, toy.qa("3", "?", ("met", 4))).read("train")
    assert raw.answers.kinds.tolist() == [1, -1, 0] and raw.answers.space == {"scorer": "squad", "words": [""]}
    assert raw.answers.known.tolist() == [True, False, True]
    raw = one(here, {"id": "1", "question": "?", "answers": []}, toy.qa("2", "?", ("met", 4))).read("train")
    assert raw.answers.kinds.tolist() == [1, 0]  # as SQuAD's script counts it


def test_an_answer_that_is_not_there_is_named(here):
    """One line with file and question; `skip` leaves the question out."""
    wrong = toy.qa("q7", "Who?", ("Grace", 0)), toy.qa("q8", "Who?", ("met", 4))
    with pytest.raises(UserError, match=r"own.json, question q7: the answer 'Grace' is not in its context at character 0\n"):
        one(here, *wrong).read("train")
    context = "Ada went to see a friend of hers in another town."
    far = toy.write(here / "far.json", [toy.article("a", context, toy.qa("q9", "?", ("Ada", 16)))])
    with pytest.raises(UserError, match=r"'Ada' is not in its context at character 16 \(it is at 0\)"):
        reading(far).read("train")
    skipped = one(here, *wrong, on_error="skip")
    raw = skipped.read("train")
    assert len(raw) == 1 and len(raw.skipped) == 1 and "q7" in raw.skipped[0] and skipped.row_names("train") == ["q8"]


@pytest.mark.parametrize("content", ["{", "[]", '{"data": []}', '{"data": [1]}', "{}"])
def test_another_json_is_refused(here, content):
    (here / "own.json").write_text(content)
    with pytest.raises(UserError, match=r"own.json: (no JSON|not the JSON of SQuAD)"):
        reading(here / "own.json").own_splits()
        reading(here / "own.json").read("train")


def test_rows_that_are_no_questions_are_named(here):
    with pytest.raises(UserError, match="question 1: there is no question"):
        one(here, {"id": "1", "answers": []}).read("train")
    with pytest.raises(UserError, match=r"question 1: answer_start '3' is no number"):
        one(here, {"id": "1", "question": "?", "answers": [{"text": "Ada", "answer_start": "3"}]}).read("train")


def test_an_article_is_on_one_side_and_pretraining_reads_each_text_once(here):
    source = reading(toy.squad(here / "own.json", n=20))
    groups = [set(source.get(s).answers.groups.tolist()) for s in ("train", "val", "test")]
    assert all(groups) and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    texts = source.get("unlabeled").items
    train = source.get("train")
    assert sorted(texts) == sorted({t for row in train.items for t in row}) and source.get("unlabeled").answers is None


def test_questions_keep_their_ids_where_splits_are_drawn(here):
    """Official scripts know answers by their ids: those of drawn rows are theirs, and not those of the file's first rows."""
    articles = [toy.article(f"t{i}", f"{CONTEXT} {i}", toy.qa(f"id{i}", f"Where {i}?", ("Rome", 15))) for i in range(20)]
    source = reading(toy.write(here / "own.json", articles))
    for split in ("train", "val", "test"):
        assert source.row_names(split) == [f"id{text.rpartition(' ')[2]}" for _, text in source.get(split).items]
    assert source.row_names("unlabeled") is None
    twice = one(here, toy.qa("1", "Where?", ("Rome", 15)), toy.qa("1", "Who?", ("Ada", 0)))
    assert any("1 questions have the id of another one" in line for line in twice.read("train").remarks)


def test_rows_of_one_question_each_are_read_too(here):
    """As Hugging Face's examples write them; what shares a title, or a context, stays together."""

    def row(name: str, title: str, texts: list[str], starts: list[int]) -> dict:
        return {"id": name, "title": title, "context": CONTEXT, "question": "?", "answers": {"text": texts, "answer_start": starts}}

    rows = [row("1", "a", ["met"], [4]), row("2", "b", [], []), row("3", "a", ["Rome", "in Rome"], [15, 12])]
    raw = reading(toy.write(here / "flat.json", rows)).read("train")
    assert raw.answers.groups.tolist() == [0, 1, 0] and raw.answers.kinds.tolist() == [0, 1, 0]
    assert raw.answers.values[2].tolist() == [[15, 19], [12, 19]] and raw.answers.space["words"] == [""]
    with pytest.raises(UserError, match=r"question 9: the answers are no .* of equal length"):
        reading(toy.write(here / "flat.json", [row("9", "a", ["met"], [])])).read("train")


def test_a_folder_has_the_splits_of_its_files(here):
    for i, name in enumerate(("train-v2.0.json", "dev-v2.0.json")):
        toy.squad(here / name, n=6 + i, impossible=True)
    source = reading(here)
    assert source.own_splits() == ("train", "val") and len(source.read("val")) == 14 and source.space["words"] == [""]
    own = Squad(str(here), "2.0", "fail", 0.2, 0.2)
    assert own.own_splits() == ("train", "test") and "val" in own.splits() and len(own.read("test")) == 14


# -------------------------------------------------------------------- dialogues
def test_a_dialogue_is_read_with_its_history(here):
    """The last turn comes first; the answers that later questions refer to are the first annotator's."""
    toy.coqa(here / "own.json", n=2, additional=True)
    source = reading(here / "own.json")
    raw = source.read("train")
    assert source.parts == ("question", "context", "question_1", "answer_1", "question_2", "answer_2")
    assert raw.items[0][2:] == ("", "", "", "")
    assert raw.items[2][2:] == ("Was it by a river?", "Yes", raw.items[0][0], raw.answers.texts[0][0])
    assert raw.answers.kinds.tolist() == [0, 1, 3] * 4 and raw.answers.turns.tolist() == [[d, t] for d in (0, 1) for t in range(1, 7)]
    assert [len(t) for t in raw.answers.texts] == [3] * 12 and raw.answers.space["domains"] == ["cnn", "mctest"]
    assert "" not in source.get("unlabeled").items


def test_a_free_answer_stands_where_its_words_are():
    """The words of the rationale that come closest to it, without the signs around them."""
    story = "Ada, who was ill, lived in (Rome) for years. Rome is old."
    assert story[slice(*closest(story, "in rome", 0, 44))] == "in (Rome"
    assert story[slice(*closest(story, "she was ill", 0, 44))] == "was ill"
    assert story[slice(*closest(story, "ROME", 45, 57))] == "Rome"
    assert story[slice(*closest(story, "nothing alike", 45, 57))] == "Rome is old"


def test_coqa_of_its_own_files_and_mistakes_in_them(here):
    toy.coqa(here / "coqa-dev-v1.0.json", n=10)
    source = Coqa(str(here), 1, "fail", 0.2, 0.2)
    assert source.own_splits() == ("train",) and source.parts[2:] == ("question_1", "answer_1")
    found = json.loads((here / "coqa-dev-v1.0.json").read_text())
    found["data"][0]["answers"][0]["span_end"] = 10_000
    (here / "coqa-dev-v1.0.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"question s0, turn 1: span_start 0 and span_end 10000 are no place in a story of \d+ characters"):
        Coqa(str(here), 1, "fail", 0.2, 0.2).read("train")
    found["data"][0]["answers"][0]["turn_id"] = 2  # in an order of their own
    (here / "coqa-dev-v1.0.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"question s0, turn 1: answers of other turns stand in its place \(turn_id 1, 2\)"):
        Coqa(str(here), 1, "fail", 0.2, 0.2).read("train")
    with pytest.raises(UserError, match=r"data.history=-1: give how many earlier turns"):
        Coqa(str(here), -1, "fail", 0.2, 0.2)


# -------------------------------------------------------------------- real data
@pytest.mark.skipif(not (DATA / "squad").is_dir(), reason="no SQuAD")
@pytest.mark.parametrize("version, rows, impossible, uncertain", [("1.1", 10570, 0, 871), ("2.0", 11873, 5945, 528)])
def test_squad_as_it_is_here(version, rows, impossible, uncertain, cache):
    """Questions with ambiguous places alone stay in the splits."""
    source = Squad(str(DATA), version, "fail", 0.1, 0.2)
    raw = source.read("train")
    assert len(raw) == rows and (raw.answers.kinds == 1).sum() == impossible
    nowhere = (raw.answers.values.sizes == 0) & (raw.answers.kinds == 0)
    assert nowhere.sum() == uncertain
    for i in range(0, rows, 97):
        cut = {raw.answers.contexts[i][a:b] for a, b in raw.answers.values[i].tolist()}
        assert cut <= set(raw.answers.texts[i])
    parts = [set(source.get(s).answers.groups.tolist()) for s in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(np.unique(raw.answers.groups))


@pytest.mark.skipif(not (DATA / "zh-cmrc2018").is_dir(), reason="no CMRC 2018")
def test_cmrc_as_it_is_here(cache):
    """The dev questions teach, the trial questions test; every question keeps a place."""
    source = Cmrc2018(str(DATA), "fail", 0.1, 0.2)
    train, test = source.read("train"), source.read("test")
    assert (len(train), len(test)) == (3219, 1002) and source.space == {"scorer": "cmrc", "words": []}
    assert (train.answers.values.sizes > 0).all() and (test.answers.values.sizes > 0).all()
    assert "3 answers stand a few characters beside" in train.remarks[0]
