"""Questions that follow one another: each is read with what was asked and answered before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.prepare.parts import closed_up, part
from sslt.data.spans import Spans
from sslt.encoders.base import Encoder

Piece = tuple[Tensor, Tensor]  # tokens [B, T] of texts, and how many of each there are [B]


class Dialogues:
    """Answers to earlier turns. own: whether later questions are read with what was answered to them, and not with what is true."""

    def __init__(self, own: bool):
        self.own, self.heard = own, dict[tuple[int, int], str]()

    def rounds(self, answers: Any) -> list[np.ndarray] | None:
        """Rows by the number of their turn, the first turns first; None where nothing follows on anything."""
        self.heard.clear()
        if not self.own or answers is None or getattr(answers, "turns", None) is None:
            return None
        turn = np.asarray(answers.turns)[:, 1]
        return [np.flatnonzero(turn == t) for t in np.unique(turn)]

    def hear(self, predictions: Spans) -> None:
        assert predictions.turns is not None
        for (dialogue, turn), text in zip(predictions.turns.tolist(), predictions.first, strict=True):
            self.heard[dialogue, turn] = text

    def pieces(self, encoder: Encoder, batch: dict[str, Tensor], told: bool) -> list[Piece]:
        """Earlier questions and answers, from the earliest on, and the question itself; `told`: with the true answers."""
        before: list[Piece] = []
        k = 1
        while f"question_{k}.tokens" in batch:
            answer = _piece(batch, f"answer_{k}", encoder)
            before = [_piece(batch, f"question_{k}", encoder), answer if told else self._own(answer, batch, k, encoder), *before]
            k += 1
        return [*before, _piece(batch, "question", encoder)]

    def _own(self, true: Piece, batch: dict[str, Tensor], back: int, encoder: Encoder) -> Piece:
        """The answers of `back` turns before as they were given here; as they stand in the data where that turn was not asked."""
        if not self.heard or "turn" not in batch:
            return true
        turns = batch["turn"].tolist()
        texts = [self.heard.get((dialogue, turn - back)) for dialogue, turn in turns]
        encoded = [ids for chunk in encoder.processor.encode([text or "" for text in texts]) for ids in chunk]
        rows = [t[:n].tolist() if text is None else ids for text, ids, t, n in zip(texts, encoded, *true, strict=True)]
        sizes = torch.tensor([len(ids) for ids in rows])
        tokens = torch.zeros(len(rows), max(int(sizes.max()), 1), dtype=torch.long)
        for i, ids in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return tokens.to(true[0].device), sizes.to(true[0].device)


def _piece(batch: dict[str, Tensor], name: str, encoder: Encoder) -> Piece:
    tokens, _, sizes = closed_up(part(batch, name), encoder.processor)
    return tokens, sizes
