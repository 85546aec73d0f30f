"""How alike two texts are by the words that both have: what an encoder of pairs has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sslt.data.prepare.bag_processor import words_of

Pair = tuple[str, str]


def methods(pairs: Sequence[Pair]) -> dict[str, Callable[[Sequence[Pair]], np.ndarray]]:
    """Name in words → what gives float64 [N], 0 to 1, of N pairs. pairs: of training, in which words are counted."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(analyzer=words_of).fit([text for pair in pairs for text in pair])

    def cosine(asked: Sequence[Pair]) -> np.ndarray:
        a, b = (model.transform([pair[i] for pair in asked]) for i in (0, 1))
        return np.asarray(a.multiply(b).sum(1), np.float64).reshape(-1)

    return {"word overlap (TF-IDF)": cosine, "word overlap (Jaccard)": jaccard}


def jaccard(pairs: Sequence[Pair]) -> np.ndarray:
    """The share of the words of both texts that are in both, float64 [N]; 0 where there are no words."""
    sets = [(set(words_of(a)), set(words_of(b))) for a, b in pairs]
    return np.array([len(a & b) / max(len(a | b), 1) for a, b in sets], np.float64)
