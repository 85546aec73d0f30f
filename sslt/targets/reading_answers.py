"""What a reader's scores say in words, and what is written of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.prepare.text_samples import as_text
from sslt.data.ragged import Ragged
from sslt.data.spans import Spans
from sslt.targets.metrics.reading import answer_scores
from sslt.targets.passages import Text
from sslt.targets.span_decoding import Best


def answered(best: Best, sure: Tensor, kinds: Tensor | None, threshold: float, context: Text, batch: Any, space: Any) -> Spans:
    """The best spans as characters of their contexts, or the word that is preferred to them.

    kinds [B, 1 + words]: scores of a place and of each word; "" is preferred where its lead is above `threshold`.
    """
    n = len(best.score)
    first, last = best.tokens.clamp(min=0).unbind(1)
    places = [context.places[..., side].gather(1, at[:, None])[:, 0].tolist() for side, at in ((0, first), (1, last))]
    chosen, lead = np.zeros(n, np.int64), np.zeros(n)
    if kinds is not None:
        lead = (kinds[:, 1] - kinds[:, 0]).double().cpu().numpy()
        chosen = (lead > threshold).astype(np.int64) if space["words"] == [""] else kinds.argmax(1).cpu().numpy()
        which = torch.from_numpy(chosen).to(kinds.device)
        shares = kinds.softmax(1).gather(1, which[:, None])[:, 0]
        sure = torch.where(which == 0, shares * sure, shares)  # that there is a place, and that it is this one
    characters = batch["characters"].cpu().numpy()
    found, texts = [], []
    for i, (start, end) in enumerate(zip(*places, strict=True)):
        lies = bool(best.tokens[i, 0] >= 0)
        found.append([(start, end)] if lies else [])
        cut = as_text(characters[i, start:end]) if lies else ""
        texts.append([space["words"][chosen[i] - 1] if chosen[i] else cut])
    turns = batch["turn"].cpu().numpy() if "turn" in batch else None
    scores = np.stack([sure.double().cpu().numpy(), lead], 1)
    return Spans(Ragged.of(found, np.int64, 2), space, kinds=chosen, texts=texts, scores=scores, turns=turns)


def best_threshold(predictions: Spans, answers: Spans) -> float:
    """Of the lead that "" must have to be answered, the one with the highest F1 (SQuAD 2.0's `find_best_thresh`).

    predictions: with the place that would be answered otherwise in `values`, which is cut from the contexts of `answers`.
    """
    known, lead = answers.known, predictions.scores[:, 1]
    assert answers.contexts is not None
    cut = [
        context[span[0, 0] : span[0, 1]] if len(span) else "" for context, span in zip(answers.contexts, predictions.values, strict=True)
    ]
    some, none = (_f1([[text] for text in texts], predictions, answers)[known] for texts in (cut, [""] * len(cut)))
    order = np.argsort(-lead[known], kind="stable")  # "" to the first k of these
    leads, gained = lead[known][order], np.concatenate([[0.0], np.cumsum((none - some)[order])])
    apart = np.concatenate([[True], leads[1:] != leads[:-1], [True]])  # equal leads are answered alike
    k = int(np.flatnonzero(apart)[gained[apart].argmax()])
    if k in (0, len(leads)):
        return float(leads[0] + 1 if k == 0 else leads[-1] - 1)
    return float((leads[k - 1] + leads[k]) / 2)


def _f1(texts: list[list[str]], predictions: Spans, answers: Spans) -> np.ndarray:
    return answer_scores(Spans(predictions.values, predictions.space, kinds=predictions.kinds, texts=texts), answers)[:, 1]


def rows(spans: Spans) -> list[dict[str, Any]]:
    """Of each row the answer (of the truth all that would do, where these are several), and where it stands."""
    found: list[dict[str, Any]] = []
    for i, (texts, kind) in enumerate(zip(spans.texts, np.asarray(spans.kinds).tolist(), strict=True)):
        several = list(dict.fromkeys(texts)) or [""]
        row: dict[str, Any] = {"prediction": None if kind < 0 else several[0] if len(several) == 1 else several}
        if kind == 0 and len(place := spans.values[i]):
            row |= {"start": int(place[0, 0]), "end": int(place[0, 1])}
        if spans.scores is not None:
            row["score"] = round(float(spans.scores[i, 0]), 4)
        found.append(row)
    return found
