"""How right an answer to a question is: exact match and F1 by the rules of SQuAD, of CMRC 2018 and of CoQA."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sslt.data.spans import Spans
from sslt.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE = re.compile("[\u4e00-\u9fa5]")
_SIGNS = frozenset(
    "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
)  # what CMRC's script leaves out; it names "……", which is no character

Score = tuple[float, float]  # exact match and F1


def answer_scores(predictions: Spans, answers: Spans) -> np.ndarray:
    """Exact match and F1 of each row, float [N, 2], NaN where the answer is not known; by the rules that the answers' space names."""
    score = SCORERS[answers.space["scorer"]]
    second = "" in answers.space["words"]  # SQuAD 2.0 has rules of its own for an empty answer
    score = squad2 if score is squad and second else score
    rows = zip(predictions.first, answers.texts, answers.known, strict=True)
    return np.array([score(text, true) if known else (np.nan, np.nan) for text, true, known in rows]).reshape(-1, 2)


def reading_metrics(predictions: Spans, answers: Spans) -> dict[str, float]:
    """`f1` and `exact_match` over all rows whose answer is known, and over parts of them: questions with and without an answer, domains.

    Raises `UserError` where no answer is known.
    """
    scores, known = answer_scores(predictions, answers), answers.known
    if not known.any():
        raise UserError("there is nothing to evaluate: none of the questions has an answer")
    parts: dict[str, np.ndarray] = {}
    kinds = np.asarray(answers.kinds)
    if "" in answers.space["words"]:
        parts = {"part/has_answer": kinds == 0, "part/no_answer": kinds == 1}
    for i, name in enumerate(answers.space.get("domains", ())):
        parts[f"domain/{name}"] = np.asarray(answers.domains) == i
    found = _means(scores[known], "")
    for name, rows in parts.items():
        if (rows & known).any():
            found |= _means(scores[rows & known], f"{name}/")
    return found


def _means(scores: np.ndarray, prefix: str) -> dict[str, float]:
    exact, f1 = scores.mean(0).tolist()
    return {f"{prefix}f1": f1, f"{prefix}exact_match": exact}


# -------------------------------------------------------------------- SQuAD
def squad(prediction: str, answers: Sequence[str]) -> Score:
    """SQuAD 1.1's evaluate-v1.1.py: the best over all answers. Without a word in common F1 is 0, even of two empty answers."""
    return _best(prediction, answers, lambda a, b: _overlap(a, b, 0.0))


def squad2(prediction: str, answers: Sequence[str]) -> Score:
    """SQuAD 2.0's evaluate-v2.0.py: answers of which nothing is left when normalised are none, and "" is right where there is none."""
    return _best(prediction, [a for a in answers if normalised(a)] or [""], lambda a, b: _overlap(a, b, float(a == b)))


def coqa(prediction: str, answers: Sequence[str]) -> Score:
    """CoQA's evaluate-v1.0.py: each answer in turn is left out, the best of the others counts, and the mean over these is the score.

    So a model is held against as many answers as a person is, who has written one of them.
    """
    both = [_best(prediction, [a], lambda a, b: _overlap(a, b, float(a == b))) for a in answers]
    left = [both[:i] + both[i + 1 :] for i in range(len(both))] if len(both) > 1 else [both]
    found = np.array([[max(column) for column in zip(*rows, strict=True)] for rows in left])
    exact, f1 = found.mean(0).tolist()
    return exact, f1


@functools.lru_cache(100_000)
def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, words apart by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def _best(prediction: str, answers: Sequence[str], f1: Callable[[list[str], list[str]], float]) -> Score:
    ours = normalised(prediction)
    theirs = [normalised(a) for a in answers]
    return float(ours in theirs), max((f1(ours.split(), a.split()) for a in theirs), default=0.0)


def _overlap(ours: list[str], theirs: list[str], empty: float) -> float:
    """F1 of two bags of words; `empty` where one has none."""
    if not ours or not theirs:
        return empty
    same = sum((Counter(ours) & Counter(theirs)).values())
    return _f1(same / len(ours), same / len(theirs))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# -------------------------------------------------------------------- CMRC 2018
def cmrc(prediction: str, answers: Sequence[str]) -> Score:
    """CMRC 2018's cmrc2018_evaluate.py, version 5: Chinese character by character, other words by NLTK, without the signs it lists.

    F1 is of the longest run that both have in common. Between words of Latin script, sentences are not told apart.
    """
    bare = [_without_signs(a) for a in answers]
    ours = segments(prediction)
    scores = [0.0]
    for answer in answers:
        theirs = segments(answer)
        same = longest_common(ours, theirs)
        scores.append(_f1(same / len(ours), same / len(theirs)) if same else 0.0)
    return float(_without_signs(prediction) in bare), max(scores)


def segments(text: str) -> list[str]:
    """Chinese characters and words of other scripts, lower case."""
    found: list[str] = []
    other = ""
    for char in text.lower().strip():
        if char in _SIGNS:
            continue
        if _CHINESE.match(char):
            found += [*_words(other), char]
            other = ""
        else:
            other += char
    return found + _words(other)


def _without_signs(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in _SIGNS)


def _words(text: str) -> list[str]:
    if not text.strip() or text.strip().isdigit():
        return text.split()
    return list(_tokenizer().tokenize(text))


@functools.lru_cache(1)
def _tokenizer():  # type: ignore[no-untyped-def]
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError:
        raise UserError("CMRC 2018 counts words of Latin script as NLTK divides them: pip install 'sslt[text]'") from None
    return NLTKWordTokenizer()


def check_scorer(name: str) -> None:
    """Raise `UserError` where something that the scorer needs is not installed."""
    if name == "cmrc":
        _tokenizer()


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest run of neighbours that both have."""
    best, above = 0, [0] * (len(b) + 1)
    for x in a:
        row = [0] * (len(b) + 1)
        for j, y in enumerate(b):
            if x == y:
                row[j + 1] = above[j] + 1
                best = max(best, row[j + 1])
        above = row
    return best


SCORERS: dict[str, Callable[[str, Sequence[str]], Score]] = {"squad": squad, "cmrc": cmrc, "coqa": coqa}
