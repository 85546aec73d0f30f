"""What is learned beside an encoder to find answers: maps to beginnings, ends and kinds of answers, and what tokens are told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslt.encoders.base import Encoder
from sslt.objectives.base import wide
from sslt.ranges import Share
from sslt.targets.passages import Passages, Text
from sslt.targets.question_matches import Matches, added
from sslt.targets.span_decoding import NEVER, over_row


class SpanHeads(nn.Module):
    """Scores of tokens and rows. words: how many answers there are that are no place in a context; match: see `Matches`."""

    def __init__(self, encoder: Encoder, words: int, dropout: Share, match: bool):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.ends = nn.Linear(encoder.dim, 2)
        self.kind = nn.Linear(encoder.dim, 1 + words) if words else None
        self.match = Matches(encoder) if match else None

    def forward(
        self, encoder: Any, batch: dict[str, Tensor], asked: tuple[Tensor, Tensor], context: Text, windows: Passages
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of beginnings and ends [N, W], `NEVER` outside the context; of kinds [B, 1 + words], the greatest over a row's windows."""
        extra = None if self.match is None else self.match(windows, context, asked, batch["characters"])
        row = {"tokens": windows.tokens, "mask": windows.mask, "segments": windows.segments}
        with added(encoder.network.get_input_embeddings(), extra):
            features = encoder(encoder.of_row(row, 2))
        tokens, pooled = (self.dropout(x.to(self.ends.weight.dtype)) for x in (features.tokens, features.pooled))
        start, end = wide(self.ends(tokens)).masked_fill(~windows.in_context[..., None], NEVER).unbind(-1)
        if self.kind is None:
            return start, end, None
        each = wide(self.kind(pooled))
        kinds = each.new_full((len(context.sizes), each.shape[1]), NEVER)
        return start, end, kinds.scatter_reduce(0, windows.row[:, None].expand_as(each), each, "amax")


def not_found(start: Tensor, end: Tensor, begins: Tensor, ends: Tensor, windows: Passages, rows: int) -> tuple[Tensor, Tensor]:
    """-log p of a true beginning plus that of a true end [B], of rows without a place 0, and which rows have one.

    The windows of a row share one softmax, and any of several places is right (Clark & Gardner, 2018, section 3.2).
    """
    pairs = ((start, begins), (end, ends))
    lost = sum(over_row(x, windows, rows) - over_row(x.masked_fill(~right, NEVER), windows, rows) for x, right in pairs)
    placed = torch.zeros(rows, dtype=torch.bool, device=start.device)
    placed[windows.row[begins.any(1)]] = True
    return torch.where(placed, torch.as_tensor(lost), 0.0), placed
