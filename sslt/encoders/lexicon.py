"""Scores of classes from the words of a text themselves: what a linear model on TF-IDF knows, beside an encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslt.data.prepare.bag_processor import BUCKETS, subwords_of
from sslt.encoders.base import Encoder
from sslt.encoders.side import SideModel

NONE, TRIPLES, SPELLED = "none", "triples", "spelled"
PARTS = "parts"  # what SPELLED was in heads saved before 2026-11-28: unknown words had no parts
BY_PARTS = (SPELLED, PARTS)


class Terms(NamedTuple):
    """Terms of texts, one row each and in order: int64 `text` and `term`, float32 `weight`."""

    text: Tensor
    term: Tensor
    weight: Tensor


class Lexicon(SideModel):
    """TF-IDF of words, pairs of neighbours and a third kind of term, times a table: words of texts [B, T] → [B, outputs].

    A term that a text has c times weighs (1 + ln c) · idf, and a text's terms have length 1 (Salton & Buckley, 1988, as scikit-learn's
    `sublinear_tf` has it). third: "triples" of neighbours; "spelled", parts of words of 3 and 4 letters, which have length 1 by
    themselves; or "none". Terms are hashed into `BUCKETS` of each kind; those that training did not have count for nothing.

    words: how many ids `Encoder.word_ids` gives. parts: the terms of every id, one after the other, and where each id's begin [V + 1]. It
    starts without terms (`learn`), or with room for `rows` of them that a folder holds.
    """

    kind, name, title = "lexicon", "words", "TF-IDF"

    def __init__(self, words: int, third: str, outputs: int, parts: tuple[Tensor, Tensor] | None = None, rows: int = 0):
        super().__init__()
        self.words, self.third, self.outputs = words, third, outputs
        self.terms: Tensor
        self.idf: Tensor
        self.table: Tensor
        self.bias: Tensor
        self.register_buffer("terms", torch.zeros(rows, dtype=torch.int64))  # sorted
        self.register_buffer("idf", torch.zeros(rows))
        self.register_buffer("table", torch.zeros(rows, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        parts = (torch.zeros(0, dtype=torch.int64), torch.zeros(words + 1, dtype=torch.int64)) if parts is None else parts
        self.parts: Tensor
        self.starts: Tensor
        self.register_buffer("parts", parts[0], persistent=False)
        self.register_buffer("starts", parts[1], persistent=False)

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> Lexicon:
        listed = encoder.word_list()
        if settings["third"] == SPELLED:
            encoder.processor.spell()
        return cls(len(listed), **settings, parts=parts_of(listed) if settings["third"] in BY_PARTS else None)

    def forward(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        tokens = encoder.word_ids(inputs)
        found = self.weighed(self.known(self.counts(tokens, inputs.get("subwords"))), len(tokens))
        return self.bias.repeat(len(tokens), 1).index_add_(0, found.text, self.table[found.term] * found.weight.unsqueeze(1))

    def scale(self, factor: float) -> None:
        self.table, self.bias = factor * self.table, factor * self.bias

    @property
    def settings(self) -> dict[str, Any]:  # type: ignore[override]
        return {"third": self.third, "outputs": self.outputs, "rows": len(self.terms)}

    def learn(self, terms: Tensor, idf: Tensor) -> None:
        """Know these terms (int64, sorted) with their inverse document frequencies."""
        self.terms, self.idf = terms, idf
        self.table = torch.zeros(len(terms), self.outputs, device=terms.device)

    def known(self, found: Terms) -> Terms:
        """Of `counts` the terms that are known, `term` being their places among these."""
        place = torch.searchsorted(self.terms, found.term).clamp(max=max(len(self.terms) - 1, 0))
        known = self.terms[place] == found.term if len(self.terms) else torch.zeros_like(found.term, dtype=torch.bool)
        return Terms(found.text[known], place[known], found.weight[known])

    def weighed(self, known: Terms, texts: int) -> Terms:
        """What is `known` of so many texts, with weights in place of counts."""
        text, term, count = known
        weight = (1 + count.log()) * self.idf[term]
        kind = text * 2 + ((self.terms[term] >= self.words + BUCKETS) & (self.third in BY_PARTS))
        squares = torch.zeros(2 * texts, device=weight.device).index_add_(0, kind, weight.square())
        return Terms(text, term, weight / squares.sqrt()[kind])

    def counts(self, tokens: Tensor, subwords: Tensor | None = None) -> Terms:
        """All terms of texts [B, T] (0: no word), and how often each text has them.

        subwords [B, S]: of words whose ids do not tell how they are spelled (-1: none).
        """
        tokens = tokens.long()
        seen = tokens > 0
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
        ids, texts = [tokens[seen]], [rows[seen]]
        both = seen[:, 1:] & seen[:, :-1]
        pairs = hashed_pairs(tokens[:, :-1][both], tokens[:, 1:][both], BUCKETS)
        ids.append(self.words + pairs)
        texts.append(rows[:, 1:][both])
        if self.third == TRIPLES:
            three = both[:, 1:] & both[:, :-1]
            first = hashed_pairs(tokens[:, :-2][three], tokens[:, 1:-1][three], 1 << 31)
            ids.append(self.words + BUCKETS + hashed_pairs(first, tokens[:, 2:][three], BUCKETS))
            texts.append(rows[:, 2:][three])
        elif self.third in BY_PARTS:
            starts, sizes = self.starts[ids[0]], self.starts[ids[0] + 1] - self.starts[ids[0]]
            begins = sizes.cumsum(0) - sizes
            within = torch.arange(int(sizes.sum()), device=tokens.device) - begins.repeat_interleave(sizes)
            ids.append(self.words + BUCKETS + self.parts[starts.repeat_interleave(sizes) + within])
            texts.append(texts[0].repeat_interleave(sizes))
            if subwords is not None and self.third == SPELLED:
                there = subwords >= 0
                ids.append(self.words + BUCKETS + subwords[there].long())
                texts.append(rows[:, :1].expand_as(there)[there])
        room = self.words + 2 * BUCKETS
        key, count = (torch.cat(texts) * room + torch.cat(ids)).unique(return_counts=True)
        return Terms(key // room, key % room, count.float())


def hashed_pairs(first: Tensor, second: Tensor, rows: int) -> Tensor:
    """For pairs of word ids (int64, below 2^31) a row 0 … rows - 1 each, the same everywhere: 32-bit multiplicative hashing, then mixed."""
    h = (first * 0x9E3779B1 + second * 0x85EBCA77) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (h ^ (h >> 15)) % rows


def parts_of(words: list[str]) -> tuple[Tensor, Tensor]:
    """For every id the `subwords_of` its word, and where each id's begin; "" has none."""
    found: list[int] = []
    starts = [0]
    for word in words:
        if word:
            found += subwords_of(word)
        starts.append(len(found))
    return torch.tensor(found, dtype=torch.int64), torch.tensor(starts, dtype=torch.int64)
