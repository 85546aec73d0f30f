"""Spans of characters as tags of tokens and back: O is 0, B-x of type x is 1 + 2x, I-x is 2 + 2x."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslt.data.ragged import Ragged

FAR = 1 << 40  # behind any text


def stands_for_text(places: Tensor) -> Tensor:
    """bool [B, L] of places [B, L, 2]: neither padding nor a mark of the model's own, nor empty."""
    return (places[..., 0] >= 0) & (places[..., 1] > places[..., 0])


def before(places: Tensor) -> Tensor:
    """How far the text before each token was read, int64 [B, L]: the end of the last token that stands for text, over windows' ends."""
    ends = places[..., 1].cummax(1).values
    return torch.cat([torch.full_like(ends[:, :1], -1), ends[:, :-1]], 1)


def continuing(places: Tensor, tokens: Tensor, entries: Tensor) -> Tensor:
    """bool [B, L]: tokens that go on with the word of the one before. entries [V, 2] as `inside_words` gives them."""
    goes_on, open_ended = entries[tokens].unbind(2)
    adjoins = stands_for_text(places) & (places[..., 0] <= before(places)) & (before(places) > 0)
    return adjoins & goes_on & torch.cat([torch.ones_like(open_ended[:, :1]), open_ended[:, :-1]], 1)


def labels(places: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Tags of tokens, int64 [B, L], and which tokens stand for text, bool [B, L].

    places [B, L, 2], tags [B, M, 3] as `Tags.batch` gives them. A token is in a span that it overlaps, in the later one of two; the first
    in it begins it.
    """
    text = stands_for_text(places)
    order = tags[..., 0].masked_fill(tags[..., 0] < 0, FAR).argsort(1)
    starts, ends, types = tags.gather(1, order.unsqueeze(2).expand_as(tags)).unbind(2)
    starts = starts.masked_fill(starts < 0, FAR).contiguous()
    nearest = torch.searchsorted(starts, places[..., 1].contiguous()) - 1  # the last span that begins before the token ends
    span = nearest.clamp(min=0)
    inside = text & (nearest >= 0) & (ends.gather(1, span) > places[..., 0])
    begins = before(places) <= starts.gather(1, span)
    return torch.where(inside, 2 + 2 * types.gather(1, span) - begins.long(), 0), text


def cut(found: Tensor, text: Tensor, goes_on: Tensor) -> Tensor:
    """bool [B, W] of tokens of text: those that go on with a word, and whose tag does not with that of the token before."""
    order, valid = _packed(text)
    found, goes_on = found.gather(1, order), goes_on.gather(1, order) & valid
    previous = torch.cat([torch.zeros_like(found[:, :1]), found[:, :-1]], 1)
    return goes_on & (found != previous + previous % 2)


def _packed(text: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tokens of text stand, in their order and before all others, int64 [B, W], and which of these are such."""
    width = max(int(text.sum(1).max()), 1)
    order = text.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order, text.gather(1, order)


def decode(scores: Tensor, places: Tensor, whole: Tensor) -> tuple[Ragged, Ragged]:
    """The most probable spans: rows of (start, end, type) in characters, int64 [n, 3], and of their probabilities, float64 [n, 1].

    scores [B, L, K]: log-probabilities of tags. whole [B, L]: tokens that are in the span of the one before, or in none as it is.
    Viterbi's algorithm, where I-x stands behind B-x or I-x alone: so the best way to it comes from these two, and that to O or B-x from
    whatever is best. The probability of a span is the geometric mean of its tokens'.
    """
    order, valid = _packed(stands_for_text(places))
    wide = order.unsqueeze(2)
    scores, whole = scores.detach().gather(1, wide.expand(-1, -1, scores.shape[2])), whole.gather(1, order)
    places = places.gather(1, wide.expand(-1, -1, 2))
    whole = whole | (places[..., 0] < before(places))  # two tokens of one character
    nothing = torch.full_like(scores[0, 0], -torch.inf).index_fill(0, torch.zeros(1, dtype=torch.long, device=scores.device), 0.0)
    scores = torch.where(valid.unsqueeze(2), scores, nothing)  # behind a row's end every way is as good
    path = best_path(scores, whole & valid)
    sure = scores.gather(2, path.unsqueeze(2)).squeeze(2)
    return _spans(path.cpu().numpy(), places.cpu().numpy(), sure.double().cpu().numpy())


def best_path(scores: Tensor, whole: Tensor) -> Tensor:
    """The best allowed tags, int64 [B, L], of scores [B, L, K]; of those `whole` [B, L] the tag goes on with the one before."""
    b, n, k = scores.shape
    tags = torch.arange(k, device=scores.device)
    begins, inside = tags % 2 == 1, (tags > 0) & (tags % 2 == 0)
    same = tags.expand(b, k)
    lowest = torch.full((), -torch.inf, device=scores.device, dtype=scores.dtype)
    total = torch.where(inside, lowest, scores[:, 0])
    ways = []
    for t in range(1, n):
        best, arg = total.max(1, keepdim=True)
        of_begin = torch.roll(total, 1, 1)  # what B-x has, at I-x
        continued = torch.where(of_begin > total, same - 1, same)
        way = torch.where(inside, continued, torch.where(whole[:, t : t + 1], same, arg))
        come = torch.where(inside, torch.maximum(of_begin, total), torch.where(whole[:, t : t + 1], total, best))
        come = torch.where(whole[:, t : t + 1] & begins, lowest, come)
        total = come + scores[:, t]
        ways.append(way)
    path = [total.argmax(1)]
    for way in reversed(ways):
        path.append(way.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(path[::-1], 1)


def _spans(path: np.ndarray, places: np.ndarray, sure: np.ndarray) -> tuple[Ragged, Ragged]:
    b, n = path.shape
    path = np.pad(path, ((0, 0), (0, 1)))  # a row's end ends a span
    flat = path.ravel()
    first = np.flatnonzero(flat % 2 == 1)
    others = np.flatnonzero((flat == 0) | (flat % 2 == 1))
    last = others[np.searchsorted(others, first + 1)] - 1
    row, at, to = first // (n + 1), first % (n + 1), last % (n + 1)
    spans = np.stack([places[row, at, 0], places[row, to, 1], (flat[first] - 1) // 2], 1).astype(np.int64).reshape(-1, 3)
    summed = np.cumsum(np.pad(sure, ((0, 0), (1, 0))), 1)
    mean = (summed[row, to + 1] - summed[row, at]) / (to + 1 - at)
    sizes = np.bincount(row, minlength=b).astype(np.int64)
    return Ragged.from_flat(spans, sizes), Ragged.from_flat(np.exp(mean).reshape(-1, 1), sizes)
