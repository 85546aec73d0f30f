"""Translations, and replies in dialogues: texts that are measured by BLEU."""

from __future__ import annotations

import numpy as np

from sslt.data.answers import Texts
from sslt.targets import written_baselines as cheap
from sslt.targets.base import Cheap, Rows
from sslt.targets.metrics import written
from sslt.targets.writing import Writing, firsts


class _ByBleu(Writing):
    primary = "bleu"

    def counts(self, predictions: Texts, answers: Texts) -> np.ndarray:
        return written.bleu_counts(firsts(predictions), list(answers.values), self.language)

    def of_counts(self, counts: np.ndarray) -> float:
        return written.bleu_of(counts)

    def notes(self, answers: Texts) -> dict[str, str]:
        return {"bleu/signature": written.bleu([""] * len(answers), list(answers.values), self.language)[1]}

    def _methods(self, train: Rows) -> dict[str, cheap.Method]:
        """By the name that is told."""
        return {"the answer to the nearest training text (TF-IDF)": cheap.nearest(train.one_each, firsts(train.answers))}

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        return cheap.strongest(self._methods(train), self.score, val, test)


class Response(_ByBleu):
    """What is said next in a dialogue, measured by BLEU; distinct n-grams say how varied the texts are."""

    called = "this speaker"

    def of(self, texts: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"bleu": written.bleu(texts, references, self.language)[0], **{f"distinct{n}": written.distinct(texts, n) for n in (1, 2)}}

    def _methods(self, train: Rows) -> dict[str, cheap.Method]:
        last = cheap.nearest_last(train.one_each, firsts(train.answers))
        return super()._methods(train) | {"the answer to the nearest last turn of training (TF-IDF)": last}

    def trivial(self, train: Texts, test: Texts) -> dict[str, float]:
        """The most frequent answer to everything."""
        texts, counts = np.unique(firsts(train), return_counts=True)
        most = str(texts[counts.argmax()])
        return {f"most_frequent/{self.primary}": self.score(Texts([[most]] * len(test), self.space), test)}


class Translation(_ByBleu):
    """Measured by BLEU of texts as they are, chrF, and BLEU of lower-cased tokens, which is another scale."""

    called = "this translator"

    def of(self, texts: list[str], references: list[list[str]]) -> dict[str, float]:
        return {
            "bleu": written.bleu(texts, references, self.language)[0],
            "chrf": written.chrf(texts, references)[0],
            "bleu_tokenized": written.tokenized_bleu(texts, references),
        }

    def notes(self, answers: Texts) -> dict[str, str]:
        return super().notes(answers) | {"chrf/signature": written.chrf([""] * len(answers), list(answers.values))[1]}

    def _methods(self, train: Rows) -> dict[str, cheap.Method]:
        texts, answers = train.one_each, firsts(train.answers)
        words = {"a dictionary word by word (IBM model 1)": cheap.dictionary(texts, answers)}
        return words | super()._methods(train) | {"the text as it is": cheap.copied}
