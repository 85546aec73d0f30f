"""Reading comprehension: the answer to a question as a place in a text, or one of a few words that are no place in it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import lanes
from sslt.data.base import Samples, Source
from sslt.data.spans import Spans
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, full_precision
from sslt.ranges import Count, Share
from sslt.targets import baselines, reading_answers, reading_baselines
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.dialogues import Dialogues
from sslt.targets.metrics.reading import answer_scores, check_scorer, reading_metrics
from sslt.targets.passages import beside, gold, marked
from sslt.targets.span_decoding import best_spans, over_row, some_windows
from sslt.targets.span_heads import SpanHeads, not_found

HISTORIES = ("predicted", "gold")


class ExtractiveQA(Target[Spans]):
    """Beginning and end of an answer by a linear map of each token (Devlin et al., 2019, section 4.2), over rows [CLS] question [SEP]
    window of the context [SEP]; the windows of a context are normalised together (Clark & Gardner, 2018, section 3.2), and any of
    several places is right. What kind of answer there is, a place or one of space["words"] ("" where there is none, yes, no), is told
    by a linear map of the pooled features, of a row the greatest over its windows.

    overlap: share of a window that the next one has too. question_share: of a row, that a question may take. longest_answer: tokens.
    train_windows: of a context in a training step, those with the answer first; None: all. match: whether tokens are told what of the
    question they are (`Matches`). history: whose answers earlier turns of a dialogue are read with when it answers; in training the true.
    Reads `question.…`, `context.…`, in dialogues `question_1.…`, `answer_1.…` and so on, and what `Spans.batch` gives.
    """

    answer, reads, primary = Spans, "tokens", "f1"
    reads_beside = True
    watched = ("exact_match",)
    called, calibrates = "this reader", True
    threshold: Tensor

    def __init__(
        self, encoder: Encoder, space: dict[str, Any], dropout: Share, overlap: Share, question_share: Share, longest_answer: Count,
        train_windows: Count | None, match: bool, history: Literal["predicted", "gold"],
    ):  # fmt: skip
        super().__init__(encoder, space)
        if history not in HISTORIES:
            raise UserError(f"objective.history={history}: give predicted or gold{nearest(history, HISTORIES)}")
        self.check_encoder(encoder)
        self.overlap, self.question_share, self.longest_answer = overlap, question_share, longest_answer
        self.train_windows, self.dialogues = train_windows, Dialogues(history == "predicted")
        self.heads = SpanHeads(encoder, len(space["words"]), dropout, match)
        self.register_buffer("threshold", torch.zeros(()))

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.heads.match is not None:
            self.heads.match.fit(encoder, samples)

    def windows(self, encoder: Encoder, batch: dict[str, Tensor], told: bool) -> Any:
        """What is asked, the contexts, and windows of them; `told`: read with true answers to earlier turns."""
        pieces = self.dialogues.pieces(encoder, batch, told)
        return beside(batch, pieces, encoder.processor, self.overlap, self.question_share)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        asked, context, windows = self.windows(encoder, batch, told=True)
        begins, ends = marked(windows, gold(context, batch["spans"]))
        if self.train_windows is not None:
            with lanes.rows(windows.row):
                kept = some_windows(windows, begins.any(1), self.train_windows)
            windows, begins, ends = windows.take(kept), begins[kept], ends[kept]
        with lanes.rows(windows.row):
            start, end, kinds = self.heads(encoder, batch, asked, context, windows)
        with full_precision():
            lost, placed = not_found(start, end, begins, ends, windows, len(context.sizes))
            total = lost.sum()
            if kinds is not None:
                total = total + F.cross_entropy(kinds, batch["answer_kind"], ignore_index=-1, reduction="sum")
        return Loss(total / self.units(batch), {"placed": placed.float().mean()})

    def units(self, batch: dict) -> Tensor:
        """Questions whose answer is known."""
        return (batch["answer_kind"] >= 0).sum().clamp(min=1)

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Spans:
        asked, context, windows = self.windows(encoder, batch, told=False)
        start, end, kinds = self.heads(encoder, batch, asked, context, windows)
        best = best_spans(start, end, windows, len(context.sizes), self.longest_answer)
        sure = (best.score - over_row(start, windows, len(best.score)) - over_row(end, windows, len(best.score))).exp()
        return reading_answers.answered(best, sure, kinds, float(self.threshold), context, batch, self.space)

    def rounds(self, samples: Samples) -> list[np.ndarray] | None:
        return self.dialogues.rounds(samples.answers)

    def hear(self, predictions: Spans) -> None:
        self.dialogues.hear(predictions)

    def calibrate(self, predictions: Spans, answers: Spans) -> None:
        """The threshold of "no answer" that gives the highest F1."""
        if self.space["words"] == [""]:
            self.threshold.fill_(reading_answers.best_threshold(predictions, answers))

    def measure(self, predictions: Spans, answers: Spans) -> dict[str, float]:
        return reading_metrics(predictions, answers)

    def errors(self, predictions: Spans, answers: Spans) -> np.ndarray:
        """What is missing to an F1 of 1; 0 where the answer is not known."""
        return np.nan_to_num(1 - answer_scores(predictions, answers)[:, 1])

    def difference(self, a: Spans, b: Spans, answers: Spans) -> tuple[float, float, float]:
        ours, theirs = (answer_scores(p, answers)[answers.known, 1] for p in (a, b))
        return baselines.difference(ours, theirs)

    def rows(self, predictions: Spans) -> list[dict[str, Any]]:
        return reading_answers.rows(predictions)

    def columns(self, predictions: Spans) -> dict[str, list[str]]:
        sure = np.ones((len(predictions), 2)) if predictions.scores is None else predictions.scores
        return {"answer": predictions.first, "probability": [f"{p:.4f}" for p in sure[:, 0].tolist()]}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Spans | None = None) -> None:
        check_scorer((source.space or {"scorer": ""})["scorer"])
        if answers is not None and not answers.values.sizes.sum():
            raise UserError(f"none of the {len(answers)} training questions of {source.name} has an answer with a place in its context")

    def check_views(self, views: Views) -> None:
        if type(views) is not Plain or views.n > 1:
            raise UserError("answers are places in a text, which only views=plain with views.n=1 leaves as it is")

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        return reading_baselines.strongest(train, val, test)

    def trivial(self, train: Spans, test: Spans) -> dict[str, float]:
        return reading_baselines.trivial(test)
