"""What is learned from histories of items: pieces of them, in which each item, or some hidden ones, is to be told from the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.prepare.item_processor import FIRST, MASK, PAD
from sslt.data.views.base import Views
from sslt.ranges import Share

NONE = -100  # a target that does not count


class Histories(Views):
    """A piece of each history, the answer at its end where there is one, as long as the encoder reads: `inputs`, `targets`, `n_targets`.

    For an encoder that writes from left to right `targets` [B, T] are the items that follow (SASRec: Kang & McAuley, 2018). For one that
    fills in, max(1, round(rate · length)) items of a piece are hidden, at `positions` [B, K], which `targets` [B, K] tells (BERT4Rec: Sun
    et al., 2019); in the share `last` of rows the last item is one of them, as it will be where the next item is asked for.

    anywhere: of histories that are longer the share of which a piece from a random place is shown instead of the last one.
    An item that the vocabulary lacks is nobody's target.
    """

    modality = "items"

    def __init__(self, anywhere: Share, rate: Share, last: Share):
        super().__init__()
        self.anywhere, self.rate, self.last = anywhere, rate, last

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        masked, longest = encoder.writes == "masked", encoder.processor.max_length
        piece, sizes = self._piece(*_whole(batch), longest if masked else longest + 1)
        made = self._hidden(piece, sizes) if masked else _followed(piece, sizes)
        return {**batch, **made, "n_targets": (made["targets"] != NONE).sum()}

    def _piece(self, items: Tensor, sizes: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """`longest` items of each row [B, M], and how many that is, [B]."""
        taken = sizes.clamp(max=longest)
        spare = sizes - taken
        drawn = (torch.rand(len(items), device=items.device) * (spare + 1)).long().minimum(spare)
        start = torch.where(torch.rand(len(items), device=items.device) < self.anywhere, drawn, spare)
        place = torch.arange(max(int(taken.max()), 2), device=items.device)
        found = items.gather(1, (start[:, None] + place).clamp(max=items.shape[1] - 1))
        return found.masked_fill(place >= taken[:, None], PAD), taken

    def _hidden(self, piece: Tensor, sizes: Tensor) -> dict[str, Any]:
        place = torch.arange(piece.shape[1], device=piece.device)
        want = (self.rate * sizes).round().clamp(min=1)
        draw = torch.rand(piece.shape, device=piece.device)
        at_end = (torch.rand(len(piece), 1, device=piece.device) < self.last) & (place == sizes[:, None] - 1)
        order = draw.masked_fill(at_end, -1.0).masked_fill(piece < FIRST, 2.0)
        drawn, positions = order.topk(int(want.max()), largest=False, sorted=True)
        counted = (drawn < 1.5) & (torch.arange(positions.shape[1], device=piece.device) < want[:, None])
        items = piece.gather(1, positions)
        tokens = piece.scatter(1, positions, torch.where(counted, MASK, items))
        inputs = {"tokens": tokens, "mask": place < sizes.clamp(min=1)[:, None]}
        return {"inputs": inputs, "positions": positions, "targets": items.masked_fill(~counted, NONE)}


def _whole(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Histories [B, M] with the answers at their ends, and their lengths [B]."""
    items = batch["history"]
    sizes = (items != PAD).sum(1)
    if "item" not in batch:
        return items, sizes
    return F.pad(items, (0, 1), value=PAD).scatter(1, sizes[:, None], batch["item"][:, None]), sizes + 1


def _followed(piece: Tensor, sizes: Tensor) -> dict[str, Any]:
    before, after = piece[:, :-1], piece[:, 1:]
    seen = torch.arange(before.shape[1], device=piece.device) < (sizes - 1).clamp(min=1)[:, None]
    return {"inputs": {"tokens": before.masked_fill(~seen, PAD), "mask": seen}, "targets": after.masked_fill(after < FIRST, NONE)}
