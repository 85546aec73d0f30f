"""Views of text that an encoder with a decoder restores: spans behind sentinels, infilling, the rest of a text, deleted words."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.prepare.tokenizers import continues_word
from sslt.data.views.base import Views
from sslt.errors import UserError
from sslt.ranges import Fraction, Positive, Share

STOPS = (".", "!", "?", "。", "！", "？")
_CLOSING = "\"'”’»)]】」』"  # what may stand between a full stop and the next sentence


class Corruption(Views):
    """What is read, `inputs` (tokens [B, T], mask [B, T]) or `views` [1, B, ...], and what is to be written after it: `outputs` int64
    [B, M], the mark of its end among them where there is one, and `outputs_mask` bool [B, M], False on padding and where there is nothing
    to learn. Padding is known by the length of a row, so that a mark of an end that also pads is learned."""

    modality = "text"
    written_by: tuple[str, ...] = ("seq2seq",)

    def check(self, encoder: Any) -> None:
        encoder.require_writing(*self.written_by)
        if encoder.processor.windows != 1:
            raise UserError(f"windows={encoder.processor.windows or 'all'}: what is written is read in one window, so leave windows= out")


class T5Spans(Corruption):
    """Span corruption (Raffel et al., 2020, section 3.1.4; `random_spans_noise_mask` of their code).

    Of a text of n tokens round(rate · n) are hidden, in round(that / mean_span) spans, both at least 1: fixed by the length, while the
    places are random. A text begins with what is shown and ends with what is hidden, and spans never touch. What is read has a sentinel in
    the place of each span, what is written has each sentinel before its span, so that the two together are the text.
    """

    def __init__(self, rate: Fraction, mean_span: Positive):
        super().__init__()
        if not 0 < rate < 1:
            raise UserError(f"views.rate={rate}: give the share of the tokens, more than 0 and less than 1")
        self.rate, self.mean_span = rate, mean_span
        self._ids: tuple[Any, Tensor] | None = None

    def check(self, encoder: Any) -> None:
        super().check(encoder)
        found, longest = len(sentinels(encoder.processor.tokenizer)), encoder.processor.max_length
        needed = int(self._counts(torch.tensor([longest]))[1])
        if not found:
            raise UserError(
                "this tokenizer has no sentinels (<extra_id_0> …) to stand for what is hidden: train one with encoder=t5_tiny or "
                "encoder.processor.sentinels=100 encoder.processor.tokenizer=unigram, or choose +task=bart"
            )
        if needed > found:
            raise UserError(
                f"a text of {longest} tokens has {needed} hidden spans by views.rate={self.rate} and views.mean_span={self.mean_span}, and "
                f"the tokenizer has {found} sentinels: lower the rate or raise the mean"
            )

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        p = encoder.processor
        tokens, size, _ = body_of(batch, p)
        text = torch.arange(tokens.shape[1], device=tokens.device) < size[:, None]
        number, hidden = self.hidden(size, tokens.shape[1])
        first = hidden & ~F.pad(hidden[:, :-1], (1, 0))
        ids = self._of(p, tokens.device)
        sentinel = ids[number.clamp(max=len(ids) - 1)]
        read, mask = rows_of(torch.where(first, sentinel, tokens), text & (first | ~hidden), p, start=True)
        written = torch.stack([sentinel, tokens], 2).flatten(1), torch.stack([first, hidden], 2).flatten(1)
        outputs, outputs_mask = rows_of(*written, p, start=False, cut=False)  # a span of one token is two here
        learned = hidden.any(1, keepdim=True)  # a text of one token has nothing hidden
        return {**batch, "inputs": {"tokens": read, "mask": mask}, "outputs": outputs, "outputs_mask": outputs_mask & learned}

    def _of(self, processor: Any, device: torch.device) -> Tensor:
        """The ids of the sentinels, looked up in the vocabulary once."""
        if self._ids is None or self._ids[0] is not processor or self._ids[1].device != device:
            self._ids = processor, torch.as_tensor(sentinels(processor.tokenizer), device=device)
        return self._ids[1]

    def _counts(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """Of texts of so many tokens [B]: how many are hidden, and in how many spans."""
        size = size.clamp(min=2)
        hidden = (size.double() * self.rate).round().long().clamp(min=1).minimum(size - 1)
        spans = (hidden.double() / self.mean_span).round().long().clamp(min=1)
        return hidden, spans.minimum(hidden).minimum(size - hidden)

    def hidden(self, size: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """For texts of `size` tokens [B]: the number of the span that each token is in or before, and whether it is hidden: [B, width]."""
        hidden, spans = self._counts(size)
        most = int(spans.max())
        lengths = [_parts(n, spans, width, most) for n in (size.clamp(min=2) - hidden, hidden)]
        ends = torch.stack(lengths, 2).flatten(1).cumsum(1)  # shown, hidden, shown, hidden, …
        place = torch.arange(width, device=size.device)
        part = torch.searchsorted(ends, place.expand(len(size), -1).contiguous(), right=True)
        return part // 2, (part % 2 == 1) & (place < size[:, None])


class Infill(Corruption):
    """BART's corruption (Lewis et al., 2020, section 2.2): infilling, and sentences in another order. The whole text is to be written.

    Spans with lengths from Poisson(mean_span) are drawn until they cover round(rate · n) of a text's n tokens; the last is cut to that.
    Each becomes one mask; one of no length is a mask that stands for nothing. Spans do not overlap, and may stand side by side.
    random_share: of these masks are random words instead (fairseq's code: 0.1). permute: sentences are dealt out in a random order before;
    one ends at a full stop (`full_stops`) that no other follows, and at the end of a text.
    """

    def __init__(self, rate: Fraction, mean_span: Positive, random_share: Share, permute: bool):
        super().__init__()
        self.rate, self.mean_span, self.random_share, self.permute = rate, mean_span, random_share, permute
        self._tables: tuple[Any, Tensor, Tensor] | None = None

    def check(self, encoder: Any) -> None:
        super().check(encoder)
        if encoder.processor.mask_id is None:
            raise UserError("this tokenizer has no mask token to stand for what is hidden: choose +task=t5_spans or +task=prefix_lm")

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        p = encoder.processor
        tokens, size, _ = body_of(batch, p)
        stops, ordinary = self._of(p, tokens.device)
        outputs, outputs_mask = rows_of(tokens, torch.arange(tokens.shape[1], device=tokens.device) < size[:, None], p, start=False)
        shown = permuted(tokens, size, stops) if self.permute else tokens
        infilled, kept = self.infilled(shown, size, p.mask_id, ordinary)
        read, mask = rows_of(infilled, kept, p, start=True)
        return {
            **batch,
            "inputs": {"tokens": read, "mask": mask},
            "outputs": outputs,
            "outputs_mask": outputs_mask & (size > 0)[:, None],
        }

    def infilled(self, tokens: Tensor, size: Tensor, mask_id: int, ordinary: Tensor) -> tuple[Tensor, Tensor]:
        """Of texts [B, T] of `size` tokens [B], in rows of another width: what is read, and the places where something is."""
        wanted = (size.double() * self.rate).round().long().clamp(min=1).minimum(size)
        most = max(1, math.ceil(self.rate * tokens.shape[1]))  # of any text so wide; how much is drawn is to depend on nothing else
        draws = math.ceil(2 * most / self.mean_span) + 16  # that these do not cover it has no probability to speak of
        drawn = torch.poisson(torch.full((len(size), draws), float(self.mean_span), device=size.device)).long()
        before = drawn.cumsum(1) - drawn
        used = before < wanted[:, None]
        lengths = drawn.minimum(wanted[:, None] - before) * used
        spans, covered = used.sum(1), lengths.sum(1)
        slots = spans + size - covered  # a slot is a span or a token that stays
        width, drawable = int(slots.max()), (len(size), tokens.shape[1] + draws)
        place = torch.arange(width, device=size.device)
        kept = place < slots[:, None]
        order = torch.rand(drawable, device=size.device)[:, :width].masked_fill(~kept, 2.0).argsort(1).argsort(1)
        span = order < spans[:, None]
        advance = torch.where(span, lengths.gather(1, order.clamp(max=draws - 1)), 1)
        source = (advance.cumsum(1) - advance).clamp(max=tokens.shape[1] - 1)
        word = ordinary[torch.randint(0, len(ordinary), drawable, device=size.device)[:, :width]]
        random = torch.rand(drawable, device=size.device)[:, :width] < self.random_share
        return torch.where(span, torch.where(random, word, mask_id), tokens.gather(1, source)), kept

    def _of(self, processor: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which of a vocabulary [V] end a sentence, and the ids of those that stand for text."""
        if self._tables is None or self._tables[0] is not processor or self._tables[1].device != device:
            special = torch.zeros(processor.vocab_size, dtype=torch.bool)
            special[torch.as_tensor(processor.special_ids)] = True
            stops = torch.zeros(processor.vocab_size, dtype=torch.bool)
            stops[torch.as_tensor([*full_stops(processor.tokenizer), processor.sep_id])] = True
            self._tables = processor, stops.to(device), (~special).nonzero().flatten().to(device)
        return self._tables[1:]


class Prefix(Corruption):
    """The first part of a text is read, and the rest is to be written (prefix language model: Raffel et al., 2020, section 3.2.3).

    Where it is cut is drawn evenly, with at least a token on both sides. What is written ends with the mark of an end where the text does.
    An encoder without a decoder beside it reads the first part as it reads any text, each token with those before it.
    """

    written_by = ("seq2seq", "causal")

    def __init__(self) -> None:
        super().__init__()

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        p = encoder.processor
        tokens, size, ended = body_of(batch, p)
        cut = 1 + (torch.rand(len(size), device=size.device) * (size - 1).clamp(min=0)).long().minimum((size - 2).clamp(min=0))
        place = torch.arange(tokens.shape[1], device=tokens.device)
        first, rest = place < cut.minimum(size)[:, None], (place >= cut[:, None]) & (place < size[:, None])
        read, mask = rows_of(tokens, first, p, start=True, ended=None if encoder.writes == "seq2seq" else torch.zeros_like(ended))
        outputs, outputs_mask = rows_of(tokens, rest, p, start=False, ended=ended)
        learned = (size > 1)[:, None]
        return {**batch, "inputs": {"tokens": read, "mask": mask}, "outputs": outputs, "outputs_mask": outputs_mask & learned}


class DeleteWords(Corruption):
    """Words deleted, each with the probability `rate`, but for one at least (TSDAE: Wang et al., 2021, section 3.1); the whole text is to
    be written. whole_word: the tokens of a word go together; a word is a token and those that continue it."""

    written_by = ("masked", "causal", "seq2seq")

    def __init__(self, rate: Share, whole_word: bool):
        super().__init__()
        self.rate, self.whole_word = rate, whole_word
        self._continues: tuple[Any, Tensor] | None = None

    def forward(self, batch: dict[str, Tensor], encoder: Any) -> dict[str, Any]:
        p = encoder.processor
        inputs = encoder.inputs(batch)
        words = encoder.hideable(inputs)
        score = torch.rand(words.shape, device=words.device)
        if self.whole_word:
            starts = ~self._table(p, words.device)[inputs["tokens"]]
            starts[:, 0] = True  # whatever its tokenizer says of a text's first token
            score = score.gather(1, starts.cumsum(1) - 1)  # all tokens of a word share a draw
        score = score.masked_fill(~words, -1.0)
        kept = (score > self.rate) | (score == score.amax(1, keepdim=True))
        tokens, size, _ = body_of(batch, p)
        outputs, outputs_mask = rows_of(tokens, torch.arange(tokens.shape[1], device=tokens.device) < size[:, None], p, start=False)
        learned = words.any(1, keepdim=True)
        views = encoder.pick(inputs, (kept & words)[None])
        return {**batch, "views": views, "outputs": outputs, "outputs_mask": outputs_mask & learned}

    def _table(self, processor: Any, device: torch.device) -> Tensor:
        if self._continues is None or self._continues[0] is not processor or self._continues[1].device != device:
            self._continues = processor, torch.from_numpy(continues_word(processor.tokenizer)).to(device)
        return self._continues[1]


def sentinels(tokenizer: Any) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, …, as the tokenizer has them (T5's go down from the last id); none where there are none."""
    found: list[int] = []
    vocab = tokenizer.get_vocab()
    while (i := vocab.get(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    return found


def full_stops(tokenizer: Any) -> list[int]:
    """The ids of entries that end a sentence: whose text ends in one of `STOPS`, with what closes a quotation or a bracket after it."""
    decoder, special = cast(Any, tokenizer).backend_tokenizer.decoder, set(tokenizer.all_special_ids)
    found = []
    for token, i in tokenizer.get_vocab().items():
        text = token if decoder is None else decoder.decode([token])
        if i not in special and text.strip().rstrip(_CLOSING).endswith(STOPS):
            found.append(i)
    return sorted(found)


def body_of(batch: dict[str, Tensor], processor: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What stands between the marks around a row: tokens [B, T], how many [B], and whether the mark of an end came after them, bool [B].

    The marks between the texts of a packed row are tokens like others.
    """
    tokens = batch["tokens"]
    size = batch["mask"].sum(1) if "mask" in batch else torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
    before = int(processor.cls_id is not None)
    last = tokens.gather(1, (size - 1).clamp(min=0)[:, None])[:, 0]
    ended = (last == processor.sep_id) & (size > before)
    return tokens[:, before:], (size - before - ended.long()).clamp(min=0), ended


def rows_of(
    values: Tensor, kept: Tensor, processor: Any, *, start: bool, ended: Tensor | None = None, cut: bool = True
) -> tuple[Tensor, Tensor]:
    """`values` [B, T] at the True places of `kept` [B, T], closed up: tokens [B, W] and their mask [B, W].

    Behind them stands the mark of an end, where `ended` bool [B] says so (None: everywhere), and before them that of a start, if `start`
    and there is one. cut: a row of more than the processor's `max_length` is cut to it. W is a multiple of 8, or `max_length`.
    """
    p = processor
    before = int(start and p.cls_id is not None)
    ending = torch.ones(len(values), dtype=torch.long, device=values.device) if ended is None else ended.long()
    count = kept.sum(1)
    count = count.minimum(p.max_length - before - ending) if cut else count
    size = before + count + ending
    longest = int(size.max())
    width = min(-(-longest // 8) * 8, max(p.max_length, longest))
    place = kept.cumsum(1) - 1
    place = torch.where(kept & (place < count[:, None]), place + before, width)  # what is left out comes into a column behind all
    tokens = torch.full((len(values), width + 1), p.pad_id, device=values.device).scatter(1, place, values)[:, :width]
    if before:
        tokens[:, 0] = p.cls_id
    at = torch.arange(width, device=values.device)
    mask = at < size[:, None]
    return torch.where(mask & (at >= before + count[:, None]), p.sep_id, tokens), mask


def _parts(items: Tensor, parts: Tensor, width: int, most: int) -> Tensor:
    """Lengths [B, most] of a random division of `items` [B] into `parts` [B], each of at least one; 0 beyond them."""
    place = torch.arange(width, device=items.device)
    score = torch.rand(len(items), width, device=items.device).masked_fill(place >= items[:, None] - 1, 2.0)
    ends = score.argsort(1).argsort(1) < parts[:, None] - 1
    part = F.pad(ends[:, :-1], (1, 0)).cumsum(1)
    return torch.zeros(len(items), most, dtype=torch.long, device=items.device).scatter_add(
        1, part.clamp(max=most - 1), (place < items[:, None]).long()
    )


def permuted(tokens: Tensor, size: Tensor, stops: Tensor) -> Tensor:
    """Texts [B, T] of `size` tokens [B] with their sentences in a random order. stops: bool [V], entries that end a sentence."""
    text = torch.arange(tokens.shape[1], device=tokens.device) < size[:, None]
    stop = stops[tokens] & text
    ends = stop & ~F.pad(stop[:, 1:], (0, 1))
    sentence = F.pad(ends[:, :-1], (1, 0)).cumsum(1)
    key = torch.rand(tokens.shape, device=tokens.device).gather(1, sentence)
    return tokens.gather(1, key.masked_fill(~text, 2.0).argsort(dim=1, stable=True))
