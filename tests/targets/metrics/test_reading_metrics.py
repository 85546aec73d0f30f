"""Protects the numbers of reading comprehension: those of the official scripts, written here a second time from what they publish."""

from __future__ import annotations

import itertools
import random
import re
import string

import numpy as np
import pytest

from sslt.data.ragged import Ragged
from sslt.data.spans import Spans
from sslt.errors import UserError
from sslt.targets.metrics import reading

STRINGS = [
    "", " ", "the", "The  cat", "a cat", "an", "the the", "cat.", "(cat)", "“cat”", "U.S.", "US", "re-enter", "reenter", "a-b", "ab",
    "1,000", "1000", "$12", "cat cat dog", "cat dog dog", "dog cat", "Été", "e\u0301te\u0301", "İstanbul", "naïve the café", "tab\tcat\n",
    "theatre", "cannot", "yes", "Yes.", "no", "unknown",
    "\u00a0cat\u00a0", "???", "…", "the……end", "ａｂｃ", "王·小明", "《三国志》", "三国志",
    "光荣和ω-force", "光荣与Omega Force", "2018年9月", "2018 年", "NBA 总决赛", "don't 走", "「乌石」", "一二三四", "二三", "四三二一",
]  # fmt: skip


# -------------------------------------------------------------------- written a second time, word by word and plainly
def plain(text: str) -> str:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(w for w in re.sub(r"\b(?:a|an|the)\b", " ", kept).split())


def bag_f1(a: str, b: str, both_empty: bool) -> float:
    ours, theirs = plain(a).split(), plain(b).split()
    if both_empty and (not ours or not theirs):
        return float(ours == theirs)
    rest, same = list(theirs), 0
    for word in ours:
        if word in rest:
            rest.remove(word)
            same += 1
    return 0.0 if same == 0 else 2 * same / (len(ours) + len(theirs))


def squad11(text: str, golds: list[str]) -> tuple[float, float]:
    return max(float(plain(text) == plain(g)) for g in golds), max(bag_f1(text, g, False) for g in golds)


def squad20(text: str, golds: list[str]) -> tuple[float, float]:
    usable = [g for g in golds if plain(g)] or [""]
    return max(float(plain(text) == plain(g)) for g in usable), max(bag_f1(text, g, True) for g in usable)


def coqa(text: str, golds: list[str]) -> tuple[float, float]:
    exact = f1 = 0.0
    for i in range(len(golds)):
        others = [g for j, g in enumerate(golds) if j != i] or golds
        exact += max(float(plain(text) == plain(g)) for g in others) / len(golds)
        f1 += max(bag_f1(text, g, True) for g in others) / len(golds)
    return exact, f1


LEFT_OUT = [
    *"-:_*^/\\~`+=",
    "，",
    "。",
    "：",
    "？",
    "！",
    "“",
    "”",
    "；",
    "’",
    "《",
    "》",
    "……",
    "·",
    "、",
    "「",
    "」",
    "（",
    "）",
    "－",
    "～",
    "『",
    "』",
]


def cmrc(text: str, golds: list[str]) -> tuple[float, float]:
    tokenize = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer().tokenize

    def pieces(s: str) -> list[str]:
        found: list[str] = []
        for chinese, run in itertools.groupby((c for c in s.lower().strip() if c not in LEFT_OUT), lambda c: "\u4e00" <= c <= "\u9fa5"):
            characters = list(run)
            found += characters if chinese else tokenize("".join(characters))
        return found

    def f1(a: list[str], b: list[str]) -> float:
        runs = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        longest = max((j - i for i in range(len(b)) for j in range(i + 1, len(b) + 1) if tuple(b[i:j]) in runs), default=0)
        return 0.0 if not longest else 2 * longest / (len(a) + len(b))

    bare = lambda s: "".join(c for c in s.lower().strip() if c not in LEFT_OUT)  # noqa: E731
    return float(any(bare(text) == bare(g) for g in golds)), max(f1(pieces(g), pieces(text)) for g in golds)


OURS = {"squad": (reading.squad, squad11), "squad2": (reading.squad2, squad20), "coqa": (reading.coqa, coqa), "cmrc": (reading.cmrc, cmrc)}


@pytest.mark.parametrize("name", OURS)
def test_numbers_are_those_of_the_official_rules(name):
    """On strings made to be got wrong: articles, punctuation, accents, empty ones, two scripts; one and several answers."""
    ours, theirs = OURS[name]
    draw = random.Random(0)
    for text in STRINGS:
        for golds in (*[[g] for g in STRINGS], *[draw.sample(STRINGS, draw.randint(2, 4)) for _ in range(10)]):
            assert ours(text, golds) == pytest.approx(theirs(text, golds), abs=1e-12), (text, golds)


def test_rules_differ_where_the_scripts_differ():
    """Two empty answers: F1 0 in 1.1 and 1 in 2.0. CoQA leaves one reference out; CMRC counts a run, not a bag."""
    assert reading.squad("the", ["a"]) == (1.0, 0.0) and reading.squad2("the", ["a"]) == (1.0, 1.0)
    assert reading.squad2("", ["a", "the"]) == (1.0, 1.0) and reading.squad2("cat", []) == (0.0, 0.0)
    assert reading.coqa("cat", ["cat", "dog"]) == (0.5, 0.5) and reading.coqa("cat", ["cat", "cat", "dog"]) == (1.0, 1.0)
    assert reading.cmrc("四三二一", ["一二三四"])[1] == 0.25 and reading.squad("d c b", ["b c d"])[1] == 1.0


def spans(texts: list[list[str]], kinds: list[int], space: dict, **more) -> Spans:
    return Spans(Ragged.of([[]] * len(texts), np.int64, 2), space, kinds=np.array(kinds), texts=texts, **more)


def test_a_split_is_measured_as_a_whole_and_by_its_parts():
    """SQuAD 2.0's HasAns and NoAns; a question whose answer is not known is left out."""
    space = {"scorer": "squad", "words": [""]}
    truth = spans([["Rome", "in Rome"], [], [], ["x"]], [0, 1, 1, -1], space)
    found = reading.reading_metrics(spans([["rome"], [""], ["Oslo"], ["y"]], [0, 1, 0, 0], space), truth)
    assert found["exact_match"] == pytest.approx(2 / 3) and found["f1"] == pytest.approx(2 / 3)
    assert found["part/has_answer/f1"] == 1.0 and found["part/no_answer/exact_match"] == 0.5
    with pytest.raises(UserError, match="none of the questions has an answer"):
        reading.reading_metrics(spans([["x"]], [0], space), spans([[]], [-1], space))


def test_dialogues_are_measured_by_turn_and_domain():
    """Every turn counts once, whatever dialogue it is in."""
    space = {"scorer": "coqa", "words": ["yes", "no", "unknown"], "domains": ["cnn", "mctest"]}
    truth = spans([["yes"], ["no"], ["Rome"]], [1, 2, 0], space, domains=np.array([0, 1, 1]))
    found = reading.reading_metrics(spans([["Yes."], ["yes"], ["rome"]], [1, 1, 0], space), truth)
    assert found["f1"] == pytest.approx(2 / 3) and found["domain/cnn/f1"] == 1.0 and found["domain/mctest/f1"] == 0.5
