"""What a dictionary of the tagged words of training tags in other texts: the cheap method that stands beside a tagger."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from sslt.data.answers import Tags
from sslt.data.ragged import Ragged
from sslt.targets.base import Cheap, Rows
from sslt.targets.metrics.tags import tag_metrics

PRECISIONS = (0.0, 0.25, 0.5, 0.75, 0.9)  # in training, that an entry must have; one is chosen on validation
WITHOUT_CHOICE = 0.5
METHOD = "dictionary of the training tags"
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class Dictionary:
    """Entries with their most frequent type; the longest that stands at a place is found there, between words.

    precision: by entry, how often what was found in training was tagged there, with that type.
    """

    def __init__(self, texts: Sequence[str], answers: Tags):
        kinds: dict[str, Counter[int]] = defaultdict(Counter)
        for text, spans in zip(texts, answers.values, strict=True):
            for start, end, kind in spans.tolist():
                kinds[text[start:end]][kind] += 1
        self.types = {entry: min(counts, key=lambda k: (-counts[k], k)) for entry, counts in kinds.items()}
        lengths: dict[str, set[int]] = defaultdict(set)
        for entry in self.types:
            lengths[entry[:2]].add(len(entry))
        self.lengths = {start: sorted(sizes, reverse=True) for start, sizes in lengths.items()}
        found, right = Counter[str](), Counter[str]()
        for text, spans in zip(texts, answers.values, strict=True):
            true = {tuple(s) for s in spans.tolist()}
            for start, end in self.places(text, 0.0):
                entry = text[start:end]
                found[entry] += 1
                right[entry] += (start, end, self.types[entry]) in true
        self.precision = {entry: right[entry] / n for entry, n in found.items()}

    def places(self, text: str, least: float) -> list[tuple[int, int]]:
        """(start, end) of what is found, from left to right; entries below a precision of `least` are passed over."""
        found, at = [], 0
        while at < len(text):
            sizes = [*self.lengths.get(text[at : at + 2], ()), *(self.lengths.get(text[at], ()) if at + 1 < len(text) else ())]
            size = next((n for n in sizes if self._stands(text, at, n, least)), 0) if _between_words(text, at) else 0
            if size:
                found.append((at, at + size))
            at += size or 1
        return found

    def _stands(self, text: str, at: int, size: int, least: float) -> bool:
        entry = text[at : at + size]
        if len(entry) < size or entry not in self.types or not _between_words(text, at + size):
            return False
        return not least or self.precision.get(entry, 0.0) >= least

    def tag(self, texts: Sequence[str], least: float) -> Ragged:
        return Ragged.of([[(a, b, self.types[text[a:b]]) for a, b in self.places(text, least)] for text in texts], np.int64, 3)


def _between_words(text: str, at: int) -> bool:
    """Whether a word can begin or end before character `at`."""
    if at in (0, len(text)):
        return True
    a, b = text[at - 1], text[at]
    return not (a.isalnum() and b.isalnum()) or bool(_UNSPACED.match(a) or _UNSPACED.match(b))


def strongest(train: Rows, val: Rows | None, test: Rows) -> Cheap:
    """What the dictionary says of `test`; which entries stay is chosen by F1 on `val`."""
    made = Dictionary(train.items, train.answers)
    scores = {} if val is None else {
        p: tag_metrics(made.tag(val.items, p), val.answers.values, val.answers.types)["f1"] for p in PRECISIONS
    }  # fmt: skip
    least = max(scores, key=lambda p: scores[p], default=WITHOUT_CHOICE)
    return Cheap(METHOD, Tags(made.tag(test.items, least), test.answers.space), scores.get(least, math.nan))
