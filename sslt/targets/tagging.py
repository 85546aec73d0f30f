"""Tagging: spans of a text with a type each, such as names of people and places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Space, Tags
from sslt.data.base import Samples, Source
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, encode_views, n_views, wide
from sslt.ranges import Share
from sslt.targets import bio, dictionary, linear_tagger, tag_fusion
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.metrics.tags import f1_difference, row_counts, tag_metrics

CUT = 0.01  # share of training spans with an end inside a word, above which words may be cut
LOOKED_AT = 2000  # texts in which that is counted


class Tagging(Target[Tags]):
    """Cross-entropy of a linear head on every token, over the tags O, B-x, I-x of each type x (Ramshaw & Marcus, 1995).

    Reads `views` [V, B, ...], `places` [B, L, 2] of tokens in their text and `tags` [B, M, 3]. Answers with the most probable sequence of
    tags that is one of spans. A word of several tokens is in a span or not as a whole, where training spans end between words
    (`cuts_words` 0). Tokens that were not read, of a text cut short, are in no span: what is tagged there counts as missed.
    dropout: on the tokens' features. beside: a linear tagger whose log-probabilities are added where it answers, and that training does
    not see (late fusion).
    """

    answer, reads, primary = Tags, "tokens", "f1"
    watched = ("precision", "recall")
    called = "this tagger"
    fuses = True
    entries: Tensor
    cuts_words: Tensor

    def __init__(self, encoder: Encoder, space: Space, dropout: Share):
        super().__init__(encoder, space)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, 1 + 2 * len(space["types"]))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.check_encoder(encoder)
        self.register_buffer("entries", torch.from_numpy(encoder.processor.inside_words()), persistent=False)  # the tokenizer's own
        self.register_buffer("cuts_words", torch.zeros(()))
        self.beside = nn.ModuleList()

    def check_views(self, views: Views) -> None:
        if not isinstance(views, Plain):
            raise UserError("tags belong to places in a text, which only views=plain leaves as it is")

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        """Find out whether spans of this language, or by this tokenizer, end inside words."""
        super().prepare(encoder, samples, batch_size)
        cut, spans, n = 0, 0, min(len(samples), LOOKED_AT)
        for index in np.array_split(np.arange(n), -(-n // 100)):
            batch = samples.batch(index)
            labels, text = bio.labels(batch["places"], batch["tags"])
            cut += int(bio.cut(labels, text, bio.continuing(batch["places"], batch["tokens"], self.entries)).sum())
            spans += int((labels % 2 == 1).sum())
        self.cuts_words.fill_(float(cut > CUT * spans))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        labels, text = bio.labels(batch["places"], batch["tags"])
        v = n_views(batch["views"])
        labels = torch.where(text, labels, -100).repeat(v, 1).flatten()
        logits = wide(self.head(self.dropout(encode_views(encoder, batch).tokens))).flatten(0, 1)
        n = (labels >= 0).sum().clamp(min=1)
        loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / n
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == labels).sum() / n
        return Loss(loss, {"token_accuracy": accuracy})

    def units(self, batch: dict) -> Tensor:
        """Tokens that stand for text."""
        return bio.stands_for_text(batch["places"]).sum()

    # ---------------------------------------------------------------- answers
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`tags` [B, L, K], the head's log-probabilities; `read` adds what stands beside it."""
        tokens = encoder(encoder.inputs(batch)).tokens
        return {"tags": self.head(tokens.to(self.head.weight.dtype)).float().log_softmax(-1)}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tags:
        scores = outputs["tags"]
        for tagger in self.beside:
            scores = tagger.add(scores, batch)  # type: ignore[operator]
        spans, sure = bio.decode(scores, batch["places"], self.whole(batch))
        return Tags(spans, self.space, scores=sure)

    def whole(self, batch: dict[str, Any]) -> Tensor:
        """Which tokens are in the span of the one before, or in none as it is, bool [B, L]."""
        return bio.continuing(batch["places"], batch["tokens"], self.entries) & (self.cuts_words == 0)

    def scores(self, encoder: Encoder, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The head's log-probabilities of tags [B, L, K], and which tokens are `whole` [B, L]."""
        return self.outputs(encoder, batch)["tags"], self.whole(batch)

    def measure(self, predictions: Tags, answers: Tags) -> dict[str, float]:
        return tag_metrics(predictions.values, answers.values, answers.types)

    def errors(self, predictions: Tags, answers: Tags) -> np.ndarray:
        """Spans that are missed, and spans that are none."""
        right, ours, theirs = row_counts(predictions.values, answers.values).T
        return (ours + theirs - 2 * right).astype(float)

    def difference(self, a: Tags, b: Tags, answers: Tags) -> tuple[float, float, float]:
        return f1_difference(a.values, b.values, answers.values)

    def rows(self, predictions: Tags) -> list[dict[str, Any]]:
        """A list of spans for each text, with how probable each is."""
        names = predictions.types
        found: list[dict[str, Any]] = []
        for i, row in enumerate(predictions.values):
            spans: list[dict[str, Any]] = [{"start": a, "end": b, "type": names[t]} for a, b, t in row.tolist()]
            if predictions.scores is not None:
                spans = [{**s, "score": round(p, 4)} for s, p in zip(spans, predictions.scores[i].ravel().tolist(), strict=True)]
            found.append({"prediction": spans})
        return found

    def quote(self, prediction: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
        return [{**span, "text": text[span["start"] : span["end"]]} for span in prediction]

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Tags | None = None) -> None:
        if answers is not None and not answers.values.sizes.sum():
            raise UserError(f"none of the {len(answers)} training texts of {source.name} has a tag: there is nothing to learn")

    def fuse(self, encoder: Encoder, predictions: Tags, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        tagger, found = tag_fusion.beside(self, encoder, train, val, device)
        self.beside.append(tagger)
        return found

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap:
        """The better one on `val` of a linear tagger and a dictionary; the former without."""
        return max((tagger.strongest(train, val, test) for tagger in (linear_tagger, dictionary)), key=lambda found: found.val_score)

    def trivial(self, train: Tags, test: Tags) -> dict[str, float]:
        return {"untagged/f1": 0.0}
