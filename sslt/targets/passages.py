"""Questions and their contexts as rows of a transformer: overlapping windows over a context, each beside its question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt import lanes
from sslt.data.prepare.parts import closed_up, part


class Text(NamedTuple):
    """Tokens [B, T] without marks, of each row the first `sizes` [B]; `places` [B, T, 2] in characters."""

    tokens: Tensor
    sizes: Tensor
    places: Tensor

    @property
    def inside(self) -> Tensor:
        """bool [B, T]."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.sizes[:, None]


def text_of(batch: Mapping[str, Tensor], name: str, processor: Any) -> Text:
    """A part of a batch of samples of several parts."""
    found = part(batch, name)
    tokens, order, sizes = closed_up(found, processor)
    return Text(tokens, sizes, found["places"].gather(1, order[..., None].expand(-1, -1, 2)))


class Passages(NamedTuple):
    """N windows of the contexts of B rows. tokens, segments int64, mask bool [N, W]: [CLS] question [SEP] window [SEP]; `row` [N]: whose
    it is, in order; `at` int64 [N, W]: which token of the question or the context stands there, -1 where none does; `in_context`,
    `in_question` bool [N, W]."""

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    row: Tensor
    at: Tensor
    in_context: Tensor
    in_question: Tensor

    def take(self, index: Tensor) -> Passages:
        """Some of the windows."""
        return Passages(*(x[index] for x in self))

    def gathered(self, of_context: Tensor, of_question: Tensor, fill: float = 0.0) -> Tensor:
        """What is known of every token of contexts [B, T, …] and questions [B, T', …], where it stands in windows, [N, W, …]."""
        index, rows = self.at.clamp(min=0), self.row[:, None]
        shown = of_context[rows, index.clamp(max=of_context.shape[1] - 1)]
        asked = of_question[rows, index.clamp(max=of_question.shape[1] - 1)]
        wide = (..., *[None] * (shown.dim() - 2))
        return torch.where(self.in_context[wide], shown, torch.where(self.in_question[wide], asked, torch.full_like(shown, fill)))


def joined(pieces: Sequence[tuple[Tensor, Tensor]], room: int, processor: Any) -> tuple[Tensor, Tensor]:
    """Tokens [B, ≤ room] of texts one after the other, an end mark between them, and how many they are [B].

    The last piece is cut at its end where it is longer than `room`; of those before it the first tokens go.
    """
    last, sizes = pieces[-1]
    sizes = sizes.clamp(max=room)
    own = [*pieces[:-1], (last, sizes)]
    total = torch.stack([s + (s > 0).long() for _, s in own], 1).sum(1) - (sizes > 0).long()  # no mark after the last
    width = max(int(total.max()), 1)
    place = torch.arange(width, device=last.device)
    out = torch.full((len(last), width), processor.sep_id, device=last.device)
    start = torch.zeros_like(sizes)
    for tokens, size in own:
        at = place - start[:, None]
        here = (at >= 0) & (at < size[:, None])
        out = torch.where(here, F.pad(tokens, (0, 1)).gather(1, at.clamp(0, tokens.shape[1])), out)
        start = start + size + (size > 0).long()
    over = (total - room).clamp(min=0)
    kept = torch.arange(min(width, room), device=last.device)
    return out.gather(1, (kept + over[:, None]).clamp(max=width - 1)), total - over


def passages(question: tuple[Tensor, Tensor], context: Text, processor: Any, overlap: float) -> Passages:
    """Windows of contexts beside questions [B, T], of which the first `sizes` [B] are read.

    A window holds what of a row is left, and shares `overlap` of it with the next; they cover the context from its first token to its
    last. Of a context that fits into one window there is one.
    """
    p, (asked, asked_sizes) = processor, question
    before, between = int(p.cls_id is not None), p.marks_between
    room = p.max_length - before - 1 - between - asked_sizes  # tokens of the context in a window
    step = (room - (room * overlap).long()).clamp(min=1)
    count = 1 + (context.sizes - room).clamp(min=0).add(step - 1).div(step, rounding_mode="floor")
    row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    number = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    first = number * step[row]
    size = torch.minimum(context.sizes[row] - first, room[row])
    start = before + asked_sizes[row] + between  # of the context in its row
    ends = start + size
    width = min(-(-lanes.most(int(ends.max()) + 1) // 8) * 8, p.max_length)
    place = torch.arange(width, device=row.device)
    in_question = (place >= before) & (place < before + asked_sizes[row][:, None])
    in_context = (place >= start[:, None]) & (place < ends[:, None])
    at = torch.where(in_context, place - start[:, None] + first[:, None], torch.where(in_question, place - before, -1))
    mask = place <= ends[:, None]
    made = Passages(mask.long(), mask, (place >= start[:, None]).long() * mask, row, at, in_context, in_question)
    tokens = made.gathered(context.tokens, asked, p.sep_id).masked_fill(~mask, p.pad_id)
    if before:
        tokens[:, 0] = p.cls_id
    return made._replace(tokens=tokens)


def beside(batch: Mapping[str, Tensor], pieces: Sequence[tuple[Tensor, Tensor]], processor: Any, overlap: float, share: float) -> Any:
    """What is asked (`joined` pieces, at most this `share` of a row), the context of each row, and `passages` of both."""
    asked = joined(pieces, max(1, int(processor.max_length * share)), processor)
    context = text_of(batch, "context", processor)
    return asked, context, passages(asked, context, processor, overlap)


def gold(context: Text, spans: Tensor) -> Tensor:
    """First and last token of spans [B, M, 2] in characters, int64 [B, M, 2]; -1 where there is none: of no token, or of one cut away."""
    start, end = context.places[..., 0][:, None], context.places[..., 1][:, None]
    given = spans[..., 0] >= 0
    touched = context.inside[:, None] & (end > spans[..., :1]) & (start < spans[..., 1:]) & given[..., None]  # [B, M, T]
    n = touched.shape[-1]
    first = touched.int().argmax(-1)
    last = n - 1 - touched.flip(-1).int().argmax(-1)
    reached = touched.any(-1) & (context.places[..., 1].gather(1, last) >= _trimmed(spans))
    return torch.stack([first, last], -1).masked_fill(~reached[..., None], -1)


def _trimmed(spans: Tensor) -> Tensor:
    """The end of spans less one character, since what ends with a space has no token there."""
    return spans[..., 1] - 1


def marked(windows: Passages, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the windows spans [B, M, 2] of tokens begin and end, bool [N, W] twice; of those alone that lie in a window as a whole."""
    first, last = tokens[windows.row].unbind(-1)  # [N, M]
    at = windows.at.masked_fill(~windows.in_context, -2)[:, None]
    begins, ends = at == first[..., None], at == last[..., None]
    whole = (begins.any(-1) & ends.any(-1))[..., None]
    return (begins & whole).any(1), (ends & whole).any(1)
