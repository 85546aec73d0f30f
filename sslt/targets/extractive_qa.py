"""Reading comprehension: the answer to a question as a place in a text, or one of a few words that are no place in it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples, Source
from sslt.data.spans import Spans
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, full_precision, wide
from sslt.ranges import Count, Share
from sslt.targets import baselines, reading_answers, reading_baselines
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.dialogues import Dialogues
from sslt.targets.metrics.reading import answer_scores, check_scorer, reading_metrics
from sslt.targets.passages import Passages, gold, joined, marked, passages, text_of
from sslt.targets.question_matches import Matches, added
from sslt.targets.span_decoding import NEVER, best_spans, over_row, some_windows

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
        self.dropout, self.overlap, self.question_share = nn.Dropout(dropout), overlap, question_share
        self.longest_answer, self.train_windows = longest_answer, train_windows
        self.ends = nn.Linear(encoder.dim, 2)
        self.kind = nn.Linear(encoder.dim, 1 + len(space["words"])) if space["words"] else None
        self.match = Matches(encoder) if match else None
        self.dialogues = Dialogues(history == "predicted")
        self.register_buffer("threshold", torch.zeros(()))

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.match is not None:
            self.match.fit(encoder, samples)

    # ---------------------------------------------------------------- scores
    def windows(self, encoder: Encoder, batch: dict[str, Tensor], pieces: list[tuple[Tensor, Tensor]]) -> tuple[Any, Any, Passages]:
        """What is asked, after what was asked before it; the context; and windows of it beside the question."""
        p = encoder.processor
        asked = joined(pieces, max(1, int(p.max_length * self.question_share)), p)
        context = text_of(batch, "context", p)
        return asked, context, passages(asked, context, p, self.overlap)

    def scores(self, encoder: Encoder, batch: dict, windows: Passages, context: Any, asked: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of beginnings and ends [N, W], and of kinds of answers [B, 1 + words], None where there is one kind."""
        extra = None if self.match is None else self.match(windows, context, asked, batch["characters"])
        row = {"tokens": windows.tokens, "mask": windows.mask, "segments": windows.segments}
        with added(encoder.network.get_input_embeddings(), extra):  # type: ignore[operator, union-attr]
            features = encoder(encoder.of_row(row, 2))  # type: ignore[operator]
        start, end = wide(self.ends(self.dropout(features.tokens.to(self.ends.weight.dtype)))).unbind(-1)
        kinds = None
        if self.kind is not None:
            each = wide(self.kind(self.dropout(features.pooled.to(self.ends.weight.dtype))))
            kinds = each.new_full((len(context.sizes), each.shape[1]), NEVER)
            kinds = kinds.scatter_reduce(0, windows.row[:, None].expand_as(each), each, "amax")
        outside = ~windows.in_context
        return start.masked_fill(outside, NEVER), end.masked_fill(outside, NEVER), kinds

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        asked, context, windows = self.windows(encoder, batch, self.dialogues.pieces(encoder, batch, told=True))
        begins, ends = marked(windows, gold(context, batch["spans"]))
        if self.train_windows is not None:
            kept = some_windows(windows, begins.any(1), self.train_windows)
            windows, begins, ends = windows.take(kept), begins[kept], ends[kept]
        start, end, kinds = self.scores(encoder, batch, windows, context, asked)
        rows, true = len(context.sizes), batch["answer_kind"]
        with full_precision():
            lost = -sum(
                over_row(x.masked_fill(~right, NEVER), windows, rows) - over_row(x, windows, rows)
                for x, right in ((start, begins), (end, ends))
            )
            placed = torch.zeros_like(true, dtype=torch.bool).index_put((windows.row[begins.any(1)],), torch.tensor(True, device=true.device))
            total = torch.where(placed, lost, 0.0).sum()
            if kinds is not None:
                total = total + F.cross_entropy(kinds, true, ignore_index=-1, reduction="sum")
        return Loss(total / self.units(batch), {"placed": placed.float().mean()})

    def units(self, batch: dict) -> Tensor:
        """Questions whose answer is known."""
        return (batch["answer_kind"] >= 0).sum().clamp(min=1)

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Spans:
        asked, context, windows = self.windows(encoder, batch, self.dialogues.pieces(encoder, batch, told=False))
        start, end, kinds = self.scores(encoder, batch, windows, context, asked)
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
