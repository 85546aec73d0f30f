"""Summaries: texts that are written of longer ones, and measured by ROUGE."""

from __future__ import annotations

import numpy as np

from sslt.data.answers import Texts
from sslt.targets import written_baselines as cheap
from sslt.targets.base import Cheap, Rows
from sslt.targets.metrics import written
from sslt.targets.writing import Writing, firsts


class Summarization(Writing):
    """Measured by ROUGE; of several references the best of each row."""

    primary, called = "rougeL", "this summarizer"

    def of(self, texts: list[str], references: list[list[str]]) -> dict[str, float]:
        means = dict(zip(written.ROUGES, written.rouge(texts, references, self.language).mean(0).tolist(), strict=True))
        return {k: means[k] for k in ("rougeL", "rouge1", "rouge2", "rougeLsum")}

    def counts(self, predictions: Texts, answers: Texts) -> np.ndarray:
        return written.rouge(firsts(predictions), list(answers.values), self.language, ("rougeL",))

    def of_counts(self, counts: np.ndarray) -> float:
        return float(counts.mean())

    def errors(self, predictions: Texts, answers: Texts) -> np.ndarray:
        """1 - ROUGE-L of each row."""
        return 1 - self.counts(predictions, answers)[:, 0]

    def notes(self, answers: Texts) -> dict[str, str]:
        return {"rouge/signature": written.rouge_signature(list(answers.values), self.language)}

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        """The first sentences; beside them what the best sentence of each text would reach."""
        leads = {f"the first {n} sentences" if n > 1 else "the first sentence": cheap.lead(n) for n in cheap.LEADS}
        found = cheap.strongest(leads, self.score, val, test)
        best = cheap.oracle(test.one_each, list(test.answers.values), self.language)
        return found._replace(more={f"best_sentence/{self.primary}": self.score(Texts([[t] for t in best], self.space), test.answers)})
