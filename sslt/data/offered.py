"""Samples that somebody offers, one by one or a few at a time, as a source in memory: what a server is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sslt.data.answers import Answers, Class
from sslt.data.base import Raw, Source
from sslt.data.cache import digest


class Offered(Source):
    """Items as `Raw.items` has them (uint8 [H, W, C], texts, tuples of texts, histories) as the split `unlabeled`.

    answer: the kind of what they will be answered with; parts: what of the items are several; answers: what is known of them beforehand
    (`Spans` has their contexts).
    """

    name = "what was sent"

    def __init__(
        self, modality: str, items: Sequence[Any], answer: type[Answers] = Class, parts: Sequence[str] = (), answers: Answers | None = None
    ):
        self.modality, self.items, self.answer, self.parts, self.answers = modality, items, answer, tuple(parts), answers

    def own_splits(self) -> tuple[str, ...]:
        return ("unlabeled",)

    def read(self, split: str) -> Raw:
        return Raw(self.items, self.answers)

    def fingerprint(self) -> str:
        return digest("offered", len(self.items))

    @property
    def classes(self) -> None:
        return None
