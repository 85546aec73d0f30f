"""TF-IDF of texts as scikit-learn has it: what cheap methods for texts stand on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_CHARACTERS = 6_000_000  # of training text in which n-grams of characters are counted in seconds
RARE = 2000  # texts from which on an n-gram has to occur twice: those that occur once say nothing and take most of the room
WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class TfIdf:
    """Texts as sparse rows: n-grams of words, and of characters where texts are few or short; without spaces, of characters alone.

    Fitted to `texts`, whose `rows` [N, D] it has; nothing is counted twice, as counting takes longer than all that is learned from it.
    """

    def __init__(self, texts: Sequence[str]):
        unspaced = _without_spaces(texts)
        words = _fitted("char" if unspaced else "word", (1, 3) if unspaced else (1, 2), texts)
        parts = [words]
        self.name = "TF-IDF of characters" if unspaced else "TF-IDF of words"
        if not unspaced and sum(map(len, texts)) <= MOST_CHARACTERS:
            parts.append(_fitted("char_wb", (2, 5), texts))
            self.name += " and characters"
        self.words, self._width = words[0], words[1].shape[1]
        self._parts = [part for part, _ in parts]
        self.rows = _side_by_side([rows for _, rows in parts])

    def of(self, items: Sequence[str]) -> Any:
        """Rows [M, D] of other texts."""
        return _side_by_side([part.transform(items) for part in self._parts])

    def of_words(self, items: Sequence[str]) -> Any:
        """The first columns of `of`, those of words (of characters in scripts without spaces)."""
        return self.words.transform(items)

    def present(self, rows: Any) -> Any:
        """Which n-grams of words there are in `rows` of texts: 1 or 0."""
        there = rows[:, : self._width].copy()
        there.data = np.ones_like(there.data)
        return there


def _side_by_side(parts: Sequence[Any]) -> Any:
    from scipy.sparse import hstack

    return parts[0] if len(parts) == 1 else hstack(parts).tocsr()


def _without_spaces(texts: Sequence[str]) -> bool:
    """Whether most letters are of scripts that put no spaces between words."""
    some = "".join(texts[:: max(1, len(texts) // 500)])
    return len(WITHOUT_SPACES.findall(some)) > 0.3 * max(1, sum(c.isalpha() for c in some))


def _fitted(analyzer: str, lengths: tuple[int, int], texts: Sequence[str]) -> tuple[Any, Any]:
    """A vectoriser, and the rows of the texts that it was fitted to."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    word = {"token_pattern": r"(?u)\b\w+\b"} if analyzer == "word" else {}
    rare = 1 if len(texts) < RARE else 2
    made = TfidfVectorizer(sublinear_tf=True, analyzer=analyzer, ngram_range=lengths, min_df=rare, dtype=np.float32, **word)
    try:
        return made, made.fit_transform(texts)
    except ValueError:  # nothing occurs often enough, or there is nothing but signs
        made.set_params(min_df=1, analyzer="char").fit([t or " " for t in texts])
        return made, made.transform(texts)
