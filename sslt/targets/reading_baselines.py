"""Answers to questions about a text without learning to read: what stands beside the question's words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sslt.data.ragged import Ragged
from sslt.data.spans import Spans
from sslt.targets.base import Cheap, Rows
from sslt.targets.metrics.reading import answer_scores

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+")  # a Chinese character, or a word
_SENTENCE = re.compile(r"[^.!?。！？；\n]+(?:[.!?](?!\s)[^.!?。！？；\n]*)*[.!?。！？；]*")
LENGTHS = (1, 2, 3, 5, 8, 12, 20)  # words of an answer that are tried


class Overlap:
    """Answers by words in common with the question, each by its rarity in the contexts of training (TF-IDF; Richardson et al., 2013).

    length None: the sentence that has most of them; a number: in that sentence the run of at most so many words beside the question's
    own that are rare.
    """

    def __init__(self, contexts: Iterable[str]):
        texts = list(dict.fromkeys(contexts))
        counts = Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
        self.n, self.counts = len(texts), counts

    def weight(self, word: str) -> float:
        return math.log((1 + self.n) / (0.5 + self.counts[word]))

    def places(self, items: Sequence[Any], length: int | None) -> list[tuple[int, int]]:
        return [self.place(question, context, length) for question, context, *_ in items]

    def place(self, question: str, context: str, length: int | None) -> tuple[int, int]:
        asked = set(_WORD.findall(question.lower()))
        sentences = [m.span() for m in _SENTENCE.finditer(context)] or [(0, len(context))]
        start, end = max(sentences, key=lambda s: sum(map(self.weight, asked & set(_WORD.findall(context[s[0] : s[1]].lower())))))
        if length is None:
            return start + len(context[start:end]) - len(context[start:end].lstrip()), end
        words = [(m.start(), m.end(), m.group().lower()) for m in _WORD.finditer(context, start, end)]
        values = [-self.weight(w) - 1 if w in asked else self.weight(w) - 1 for _, _, w in words]
        runs = ((sum(values[i:j]), -i, i, j) for i in range(len(words)) for j in range(i + 1, min(i + length, len(words)) + 1))
        _, _, i, j = max(runs, default=(0.0, 0, 0, 0))
        return (words[i][0], words[j - 1][1]) if j else (start, end)


def strongest(train: Rows, val: Rows | None, test: Rows) -> Cheap:
    """The sentence, the run of words or the one word for all that has the highest F1 on `val`."""
    made, held = Overlap(row[1] for row in train.items), train if val is None else val
    methods: dict[str, Any] = {"the sentence with most of the question's words": lambda rows: _cut(made.places(rows.items, None), rows)}
    for n in LENGTHS:
        methods[f"{n} rare words of the sentence with most of the question's"] = lambda rows, n=n: _cut(made.places(rows.items, n), rows)
    for kind, word in enumerate(train.answers.space["words"], 1):
        methods[f"always '{word}'" if word else "no answer"] = lambda rows, kind=kind: always(rows.answers, kind)
    scores = {name: _f1(answer(held), held.answers) for name, answer in methods.items()}
    best = max(scores, key=lambda name: scores[name])
    return Cheap(best, methods[best](test), math.nan if val is None else scores[best])


def always(answers: Spans, kind: int) -> Spans:
    """The same word to every question."""
    texts = [[answers.space["words"][kind - 1]]] * len(answers)
    return Spans(Ragged.of([[]] * len(answers), np.int64, 2), answers.space, kinds=np.full(len(answers), kind), texts=texts)


def trivial(test: Spans) -> dict[str, float]:
    """F1 of the whole context and, where questions may have none, of no answer."""
    assert test.contexts is not None
    whole = [(0, len(context)) for context in test.contexts]
    found = {"whole_context/f1": _f1(_placed(whole, list(test.contexts), test), test)}
    if "" in test.space["words"]:
        found["no_answer/f1"] = _f1(always(test, 1 + test.space["words"].index("")), test)
    return found


def _cut(places: list[tuple[int, int]], rows: Rows) -> Spans:
    return _placed(places, [row[1] for row in rows.items], rows.answers)


def _placed(places: list[tuple[int, int]], contexts: Sequence[str], answers: Spans) -> Spans:
    texts = [[context[a:b]] for context, (a, b) in zip(contexts, places, strict=True)]
    return Spans(Ragged.of([[p] for p in places], np.int64, 2), answers.space, kinds=np.zeros(len(places), np.int64), texts=texts)


def _f1(predictions: Spans, answers: Spans) -> float:
    return float(np.nanmean(answer_scores(predictions, answers)[:, 1]))
