"""Writing: a text as the answer to a text, word by word, by encoders that write (summaries, translations, replies in a dialogue)."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslt.data.answers import Space, Texts
from sslt.data.base import Samples, Source, many
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.encoders.generation import Limits, generate
from sslt.errors import UserError
from sslt.objectives.base import Loss
from sslt.objectives.parts.vocabulary import hits, vocabulary_loss, vocabulary_scores
from sslt.ranges import Count, Fraction, Natural, Positive, Seed, Share
from sslt.targets.base import Target
from sslt.targets.metrics import written
from sslt.targets.metrics.intervals import bootstrap

log = logging.getLogger("sslt")
LONG = 0.02  # share of answers of full length, from which on that is worth a word


class Writing(Target[Texts], abc.ABC):
    """Cross-entropy of each token of the answer, given the text and the tokens before it; it has no weights but the encoder's.

    Reads `views` of one view, and of the answer `outputs` [B, M] and `outputs_mask` [B, M]. Written is what `generate` finds, greedily or
    by beams, or draws where `sample`. Of several references the first is learned and all are measured. Predictions have as `scores`
    [N, 2] the losses of the reference's tokens and how many they are, where there is one. label_smoothing: Szegedy et al. (2016), sec. 7.
    """

    answer, reads, trains, writes = Texts, "words", False, True
    reads_beside = True
    watched = ("perplexity",)
    watched_rows = 200
    called = "this writer"

    def __init__(
        self, encoder: Encoder, space: Space, label_smoothing: Share, max_tokens: Count, min_tokens: Natural, beams: Count,
        length_penalty: float, sample: bool, temperature: Positive, top_k: Natural, top_p: Fraction, seed: Seed,
    ):  # fmt: skip
        super().__init__(encoder, space)
        self.label_smoothing = label_smoothing
        self.beside = nn.ModuleList()  # of those that fuse
        self.limits = Limits(
            max_tokens=max_tokens, min_tokens=min_tokens, beams=beams, length_penalty=float(length_penalty), sample=sample,
            temperature=float(temperature), top_k=top_k, top_p=float(top_p), seed=seed,
        )  # fmt: skip

    @property
    def language(self) -> str | None:
        return self.space.get("language")

    # ---------------------------------------------------------------- learning
    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        """Say so where answers lose their ends, or are longer than what may be written."""
        super().prepare(encoder, samples, batch_size)
        sizes, p = samples.output_lengths, encoder.processor
        if sizes is None:
            return
        for most, setting in (
            (p.max_output or p.max_length, "encoder.processor.max_output"),
            (self.limits.max_tokens, "objective.max_tokens"),
        ):
            if (share := float((sizes >= most).mean())) > LONG:
                log.warning("%.0f %% of the answers come to %s=%d tokens or more: raise it", 100 * share, setting, most)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        states, targets, weight, bias = self._reply(encoder, {k: x[0] for k, x in batch["views"].items()}, batch)
        n = max(len(targets), 1)
        loss = vocabulary_loss(states, weight, targets, bias, self.label_smoothing) / n
        return Loss(loss, {"token_accuracy": hits(states, weight, targets, bias) / n} if self.logs_now else {})

    def units(self, batch: dict) -> Tensor:
        """Tokens of the answers, their ends among them."""
        return batch["outputs_mask"].sum()

    def _reply(
        self, encoder: Encoder, inputs: dict[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """States [N, D] of the N tokens of the answers, which they are [N], and the output layer."""
        outputs, mask = batch["outputs"], batch["outputs_mask"]
        states = encoder.reply_states(inputs, outputs, mask)
        return (states[mask], outputs[mask], *encoder.output_layer())

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Texts:
        rows = generate(encoder, encoder.inputs(batch), self.limits)
        return Texts([[encoder.processor.decode_text(row).strip()] for row in rows], self.space, scores=self._losses(encoder, batch))

    def judge(self, encoder: Encoder, batch: dict[str, Any]) -> Texts:
        return Texts([[""]] * len(batch["tokens"]), self.space, scores=self._losses(encoder, batch))

    def judged(self, judged: Texts) -> dict[str, float]:
        return {} if judged.scores is None else {"perplexity": written.perplexity(judged.scores)}

    def _losses(self, encoder: Encoder, batch: dict[str, Any]) -> np.ndarray | None:
        """[B, 2]: the sum of the losses of a reference's tokens, and how many they are."""
        if "outputs" not in batch:
            return None
        states, targets, weight, bias = self._reply(encoder, encoder.inputs(batch), batch)
        mask = batch["outputs_mask"]
        losses = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
        losses[mask] = -vocabulary_scores(states, weight, targets, bias).double()
        return torch.stack([losses.sum(1), mask.sum(1).double()], 1).cpu().numpy()

    def measure(self, predictions: Texts, answers: Texts) -> dict[str, float]:
        texts, references = firsts(predictions), list(answers.values)
        found = {**self.of(texts, references), "exact_match": written.exact_match(texts, references)}
        return found | ({} if predictions.scores is None else self.judged(predictions))

    @abc.abstractmethod
    def of(self, texts: list[str], references: list[list[str]]) -> dict[str, float]:
        """What is measured of texts, the primary metric first."""

    def score(self, predictions: Texts, answers: Texts) -> float:
        return self.of_counts(self.counts(predictions, answers))

    @abc.abstractmethod
    def counts(self, predictions: Texts, answers: Texts) -> np.ndarray:
        """[N, K] of each row what the primary metric is made of,"""

    @abc.abstractmethod
    def of_counts(self, counts: np.ndarray) -> float:
        """and the metric of rows that have these."""

    def difference(self, a: Texts, b: Texts, answers: Texts) -> tuple[float, float, float]:
        ours, theirs = self.counts(a, answers), self.counts(b, answers)
        return bootstrap(len(answers), lambda index: self.of_counts(ours[index]) - self.of_counts(theirs[index]))

    def loss(self, predictions: Texts, answers: Texts) -> float:
        """The mean loss of the references' tokens."""
        return float(np.log(self.judged(predictions)["perplexity"]))

    def errors(self, predictions: Texts, answers: Texts) -> np.ndarray:
        """1 - chrF of each row."""
        return 1 - written.chrf_rows(firsts(predictions), list(answers.values))

    def rows(self, predictions: Texts) -> list[dict[str, Any]]:
        """The text; where there are several, as of references, all."""
        return [{"prediction": row[0] if len(row) == 1 else list(row)} for row in predictions.values]

    # ---------------------------------------------------------------- before training
    @classmethod
    def check(cls, source: Source, answers: Texts | None = None) -> None:
        if source.modality != "text":
            raise UserError(f"the samples of {source.name} have a text to write of {many(source.modality)}, which no target learns yet")
        if answers is not None and len(answers) > 1 and len({row[0] for row in answers.values}) == 1:
            raise UserError(f"all {len(answers)} training texts of {source.name} have the same answer: there is nothing to learn")

    def check_encoder(self, encoder: Encoder) -> None:
        encoder.require_writing("seq2seq", "causal")
        encoder.processor.decode_text([])  # refuses a tokenizer that cannot be undone
        self.of(["a"], [["a"]])  # and says which library measures what is written, before anything is

    def check_views(self, views: Views) -> None:
        if type(views) is not Plain or views.n > 1:
            raise UserError("a text is written of a text as it is: leave views=plain with views.n=1")


def firsts(answers: Texts) -> list[str]:
    return [row[0] if row else "" for row in answers.values]
