"""Texts longer than a transformer reads at once: how rows of several windows are taken apart and put together again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.errors import UserError


def set_windows(encoder: Any, windows: int | str | None) -> None:
    """How many windows of a text an encoder reads from now on: a number, "all", or None, as many as it did.

    Raises `UserError` for anything else, and for an encoder that has no windows; a bag of words reads all of a text as it is.
    """
    if windows is None or (windows == "all" and isinstance(encoder.processor, BagProcessor)):
        return
    number = None if windows == "all" else windows
    if isinstance(number, str) or (number is not None and number < 1):
        raise UserError(f"windows={windows}: give how many windows of a text are read, 1 or more, or all; null leaves it to the encoder")
    if not isinstance(encoder.processor, TextProcessor):
        reads = "whole texts" if encoder.modality == "text" else f"{encoder.modality}s"
        raise UserError(f"windows={windows} is for transformers that read text, and this encoder reads {reads}: leave it null")
    encoder.processor.windows = number


class Windows:
    """Rows [B, T] of texts as the windows they are made of: every `span` tokens one, as `TextSamples.batch` lays them out.

    Windows that no token is in, behind the end of the shorter texts, are left out: `kept` [N] are the places of the others among the
    B · ⌈T / span⌉ there are. mask: bool [B, T], True where a token is.
    """

    def __init__(self, mask: Tensor, span: int):
        self.rows, self.width = mask.shape
        self.span, self.count = span, -(-self.width // span)
        cut = self._cut(mask, False)
        self.sizes = cut.sum(1)
        self.kept = self.sizes.nonzero().flatten()
        self.mask = cut[self.kept]

    def fold(self, x: Tensor, fill: int) -> Tensor:
        """Rows [B, T] → windows [N, span]; `fill` stands behind a row's end."""
        return self._cut(x, fill)[self.kept]

    def unfold(self, y: Tensor) -> Tensor:
        """What is known of every window's tokens, [N, ≥ span, D] with virtual tokens before them → rows [B, T, D], 0 where no window is."""
        out = y.new_zeros(self.rows * self.count, self.span, y.shape[2]).index_copy(0, self.kept, y[:, -self.span :])
        return out.view(self.rows, -1, y.shape[2])[:, : self.width]

    def pool_one(self, tokens: Tensor, last: bool) -> Tensor:
        """Mean of the windows' first (or last) tokens, each weighted by the tokens in its window: tokens [B, T, D] → [B, D]."""
        weight = self.sizes.view(self.rows, self.count, 1).to(tokens.dtype)
        place = torch.arange(self.count, device=tokens.device) * self.span
        if last:
            place = place + self.sizes.view(self.rows, self.count).clamp(min=1) - 1
        chosen = tokens.gather(1, place.expand(self.rows, -1).unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        return (chosen * weight).sum(1) / weight.sum(1).clamp(min=1)

    def _cut(self, x: Tensor, fill: int) -> Tensor:
        return F.pad(x, (0, self.count * self.span - self.width), value=fill).view(-1, self.span)
