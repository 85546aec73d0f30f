"""Summaries of sentences that a text has: a linear model on words and places says which of them come nearest to its summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.targets.kept import kept
from sslt.targets.metrics import written

BUCKETS = 1 << 18  # that words and pairs of words are hashed into
ENDS = 4  # sentences from the start, and from the end, whose place is a feature of its own
PLACES = 2 * ENDS + 3
SENTENCES = (1, 2, 3)  # of a summary
STRENGTHS = (3.0, 1.0, 10.0, 30.0)  # of the ridge; the first without validation
TAUGHT = 20_000  # sentences that are learned from: more take minutes to measure
CHOSEN_ON = 500  # texts


class _Parts(NamedTuple):
    """Sentences of N texts one after the other, and how many each text has [N]; of an empty text one that is empty."""

    flat: list[str]
    sizes: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Parts:
        parts = [written.sentences(text) or [""] for text in texts]
        return cls([s for some in parts for s in some], np.array([len(some) for some in parts]))

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum(self.sizes) - self.sizes

    def best(self, scores: np.ndarray, n: int) -> list[str]:
        """Of each text the n sentences with the highest scores, in its order; of equal ones the first."""
        found = []
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            chosen = np.sort(np.argsort(-scores[start : start + size], kind="stable")[:n])
            found.append(" ".join(self.flat[start + i] for i in chosen))
        return found


class SentencePicker(nn.Module):
    """Ridge regression of a sentence's ROUGE-L on what it says and where it stands (a linear extractive summarizer).

    Features: TF-IDF of words and pairs (1 + ln c, length 1), whether it is one of the first or last `ENDS` sentences, how far it is from
    the start, its length, and the cosine to the mean of its text (Radev et al., 2004). What is written are its `n` best sentences.
    """

    kind = "sentence_picker"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.idf: Tensor
        self.weight: Tensor
        self.n: Tensor
        self.register_buffer("idf", torch.zeros(BUCKETS))
        self.register_buffer("weight", torch.zeros(BUCKETS + PLACES))
        self.register_buffer("n", torch.ones((), dtype=torch.int64))

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> SentencePicker:
        return cls(**settings)

    @classmethod
    def solve(
        cls, texts: Sequence[str], references: Sequence[Sequence[str]], language: str | None,
        val: tuple[Sequence[str], Sequence[Sequence[str]]] | None,
    ) -> SentencePicker:  # fmt: skip
        """Of texts with one or more summaries each; strength and number of sentences are the best on `val`, or on these texts without."""
        parts = [list(texts), [list(of) for of in references], language, val and [list(val[0]), [list(of) for of in val[1]]]]
        made = cls()
        made.load_state_dict(kept("pickers", parts, lambda: cls._solved(texts, references, language, val).state_dict()))
        return made

    @classmethod
    def _solved(
        cls, texts: Sequence[str], references: Sequence[Sequence[str]], language: str | None,
        val: tuple[Sequence[str], Sequence[Sequence[str]]] | None,
    ) -> SentencePicker:  # fmt: skip
        from sklearn.linear_model import Ridge

        order = np.random.default_rng(0).permutation(len(texts))[:TAUGHT]
        parts = _Parts.of([texts[i] for i in order])
        whole = max(1, int(np.searchsorted(np.cumsum(parts.sizes), TAUGHT, side="right")))
        parts = _Parts(parts.flat[: int(parts.sizes[:whole].sum())], parts.sizes[:whole])
        of = np.repeat(order[:whole], parts.sizes).tolist()
        y = written.rouge(parts.flat, [references[i] for i in of], language, ("rougeL",))[:, 0]
        made = cls()
        made._weigh_terms(parts)
        x = made._features(parts)
        held, summaries = val or ([texts[i] for i in order[:whole]], [references[i] for i in order[:whole]])
        some = np.sort(np.random.default_rng(1).permutation(len(held))[:CHOSEN_ON])
        asked, wanted = _Parts.of([held[i] for i in some]), [summaries[i] for i in some]
        seen, best = made._features(asked), -math.inf
        for strength in STRENGTHS if val else STRENGTHS[:1]:
            weight = Ridge(alpha=strength).fit(x, y).coef_
            for n in SENTENCES:
                score = float(written.rouge(asked.best(seen @ weight, n), wanted, language, ("rougeL",)).mean())
                if score > best:
                    best, made.weight, made.n = score, torch.from_numpy(weight).float(), torch.tensor(n)
        return made

    def write(self, texts: Sequence[str]) -> list[str]:
        parts = _Parts.of(texts)
        return parts.best(self._features(parts) @ self.weight.cpu().numpy(), int(self.n))

    def _weigh_terms(self, parts: _Parts) -> None:
        """Inverse frequencies of terms among the sentences; 0 for those that fewer than two have."""
        having = np.bincount(_counts(parts.flat).indices, minlength=BUCKETS)
        idf = np.log((1 + len(parts.flat)) / (1 + having)) + 1
        self.idf = torch.from_numpy(np.where(having > 1, idf, 0.0)).float()

    def _features(self, parts: _Parts) -> Any:
        """Sparse rows [sentences, BUCKETS + PLACES]."""
        from scipy.sparse import csr_matrix, diags, hstack
        from sklearn.preprocessing import normalize

        counts = _counts(parts.flat)
        counts.data = 1 + np.log(counts.data)
        terms = normalize(counts @ diags(self.idf.cpu().numpy()), copy=False)
        of = np.repeat(np.arange(len(parts.sizes)), parts.sizes)
        of_text = csr_matrix((np.ones(len(of), np.float32), (of, np.arange(len(of)))), (len(parts.sizes), len(of)))
        central = np.asarray(terms.multiply(normalize(of_text @ terms)[of]).sum(1))[:, 0]
        place, size = np.arange(len(of)) - parts.starts[of], parts.sizes[of]
        ends = [place == i for i in range(ENDS)] + [size - 1 - place == i for i in range(ENDS)]
        length = np.log1p([len(written.tokens(s)) for s in parts.flat])
        return hstack([terms, csr_matrix(np.stack([*ends, place / np.maximum(size - 1, 1), length, central], 1), dtype=np.float32)]).tocsr()


def _counts(sentences: Sequence[str]) -> Any:
    """How often each has each word and each pair of neighbours, sparse [N, BUCKETS]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        tokenizer=written.tokens, token_pattern=None, lowercase=False, ngram_range=(1, 2), n_features=BUCKETS, alternate_sign=False,
        norm=None, dtype=np.float32,
    ).transform(sentences)  # fmt: skip
