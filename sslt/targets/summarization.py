"""Summaries: texts that are written of longer ones, and measured by ROUGE."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np
import torch

from sslt.data.answers import Texts
from sslt.data.base import Samples
from sslt.data.streams.subsets import in_order
from sslt.encoders.base import Encoder
from sslt.targets import written_baselines as cheap
from sslt.targets.base import Cheap, Rows
from sslt.targets.extraction import SentencePicker
from sslt.targets.metrics import written
from sslt.targets.writing import Writing, firsts

log = logging.getLogger("sslt")
BATCH = 64


class Summarization(Writing):
    """Measured by ROUGE; of several references the best of each row.

    Where sentences that a linear model picks (`SentencePicker`) are nearer to the summaries of validation than what the encoder writes,
    they are the answers.
    """

    primary, called = "rougeL", "this summarizer"
    fuses = True

    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Texts:
        if not self.beside:
            return super().predict(encoder, batch)
        picked = cast(SentencePicker, self.beside[0]).write(_texts(encoder, batch))
        return Texts([[text] for text in picked], self.space, scores=self._losses(encoder, batch))

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

    def fuse(self, encoder: Encoder, predictions: Texts, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        if val is None or not isinstance(val.answers, Texts) or not isinstance(train.answers, Texts):
            return {}
        texts, held = ([text for batch in in_order(part, BATCH) for text in _texts(encoder, batch)] for part in (train, val))
        picker = SentencePicker.solve(texts, list(train.answers.values), self.language, (held, list(val.answers.values)))
        picked = Texts([[text] for text in picker.write(held)], self.space)
        own, theirs = self.score(predictions, val.answers), self.score(picked, val.answers)
        if theirs > own:
            self.beside.append(picker.to(device))
        answers = "these are the answers (late_fusion=false: what the encoder writes)" if self.beside else "the encoder answers alone"
        log.info(
            "on validation the encoder has a ROUGE-L of %.1f, sentences that a linear model picks %.1f: %s",
            100 * own,
            100 * theirs,
            answers,
        )
        return {"val/encoder_rougeL": own, "val/sentences_rougeL": theirs}

    def notes(self, answers: Texts) -> dict[str, str]:
        return {"rouge/signature": written.rouge_signature(list(answers.values), self.language)}

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        """The first sentences, or those that a linear model picks; beside them what the best sentence of each text would reach."""
        leads: dict[str, cheap.Method] = {f"the first {n} sentences" if n > 1 else "the first sentence": cheap.lead(n) for n in cheap.LEADS}
        held = None if val is None else (val.one_each, list(val.answers.values))
        picker = SentencePicker.solve(train.one_each, list(train.answers.values), self.language, held)
        found = cheap.strongest({**leads, "sentences that a linear model picks": picker.write}, self.score, val, test)
        best = cheap.oracle(test.one_each, list(test.answers.values), self.language)
        return found._replace(more={f"best_sentence/{self.primary}": self.score(Texts([[t] for t in best], self.space), test.answers)})


def _texts(encoder: Encoder, batch: dict[str, Any]) -> list[str]:
    """The texts of a batch, as far as the encoder reads them."""
    return [encoder.processor.decode_text(row[mask].tolist()) for row, mask in zip(batch["tokens"].cpu(), batch["mask"].cpu(), strict=True)]
