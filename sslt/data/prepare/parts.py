"""Samples of several parts (a pair of sentences): each prepared for itself, carried side by side, and read as one row or part by part.

A batch of them has what each part's own batch has, under names with the part before: `a.tokens`, `a.mask`, `b.tokens`, …, in the order
of `Source.parts`, and the answers once. `part` takes one part out, for encoding each by itself; `one_row` joins them for a transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data import cache, copies
from sslt.data.answers import Answers
from sslt.data.base import Raw, Samples, Source


class PartView(Source):
    """One part of the samples of a source, by its number, as a source of its own: the same splits; the answers go with the first part."""

    def __init__(self, of: Source, number: int):
        self.of, self.number = of, number
        self.modality, self.name, self.answer = of.modality, of.name, of.answer
        self.val_fraction, self.test_fraction = of.val_fraction, of.test_fraction

    @property
    def classes(self) -> list[str] | None:
        return self.of.classes

    @property
    def space(self) -> Any:
        return self.of.space

    def own_splits(self) -> tuple[str, ...]:
        return self.of.own_splits()

    def fingerprint(self) -> str:
        return cache.digest(self.of.fingerprint(), self.of.parts, self.number)

    def read(self, split: str) -> Raw:
        return self._view(self.of.read(split))

    def get(self, split: str) -> Raw:
        return self._view(self.of.get(split))  # drawn by whole samples

    def _view(self, raw: Raw) -> Raw:
        items = [row[self.number] for row in raw.items]
        contents = copies.contents_of(raw.items) if raw.contents is None else raw.contents  # whole samples are copies, or are not
        if self.number:  # what there is to say of the rows is said once
            return Raw(items, None, contents=contents)
        return Raw(items, raw.answers, raw.skipped, contents, raw.remarks)


class PartSamples(Samples):
    """Samples made of several: row i of each of `parts`, by name, is one part of sample i. The answers are those of the first part."""

    def __init__(self, parts: Mapping[str, Samples]):
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        self.answers: Answers | None = first.answers
        self.skipped = first.skipped
        self.fingerprint = cache.digest("parts", [(name, part.fingerprint) for name, part in self.parts.items()])

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        """What the parts' batches have, each name after `PART.`; `index` int64 [B] and what there is of the answers."""
        index = np.asarray(index, dtype=np.int64)
        answers = {} if self.answers is None else self.answers.batch(index)
        made = {name: part.batch(index) for name, part in self.parts.items()}
        found = {f"{name}.{k}": x for name, batch in made.items() for k, x in batch.items() if k != "index" and k not in answers}
        return {**found, "index": torch.from_numpy(index), **answers}

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of all parts together."""
        found = [part.lengths for part in self.parts.values()]
        return None if any(n is None for n in found) else np.sum([n for n in found if n is not None], axis=0)

    @property
    def padding(self) -> dict[str, int]:
        return {f"{name}.{k}": fill for name, part in self.parts.items() for k, fill in part.padding.items()}

    def subset(self, index: np.ndarray) -> PartSamples:
        return self._each(lambda part: part.subset(index))

    def uncut(self) -> PartSamples:
        return self._each(lambda part: part.uncut())

    def _each(self, change: Any) -> PartSamples:
        return PartSamples({name: change(part) for name, part in self.parts.items()})


def prepared(processor: Any, source: Source, split: str) -> PartSamples:
    """A split of a source of several parts, each made ready by the processor and kept in the cache by itself."""
    return PartSamples({name: processor.prepare(PartView(source, i), split) for i, name in enumerate(source.parts)})


# -------------------------------------------------------------------- what encoders and targets make of a batch
def part_names(batch: Mapping[str, Any]) -> list[str]:
    """The parts of text in a batch, in their order; [] where samples have one part."""
    return [name.removesuffix(".tokens") for name in batch if name.endswith(".tokens")]


def part(batch: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One part's own batch."""
    return {k.removeprefix(f"{name}."): x for k, x in batch.items() if k.startswith(f"{name}.")}


def one_row(parts: Sequence[Mapping[str, Tensor]], processor: Any) -> dict[str, Tensor]:
    """Batches of parts as rows [CLS] a [SEP] b [SEP] (Devlin et al., 2019) of one window of `processor`.

    Where they do not fit, the longest part is cut first. Gives `tokens` int64 [B, L], `mask` bool [B, L], and `segments` int64 [B, L]:
    0 up to the end of the first part, 1 in the second and so on. L is a multiple of 8 or `max_length`.
    """
    p, texts = processor, [_text(batch, processor) for batch in parts]
    sizes = torch.stack([size for _, size in texts], 1)
    before = int(p.cls_id is not None)
    marks = before + 1 + p.marks_between * (len(parts) - 1)
    kept = shares(sizes, p.max_length - marks)
    ends = kept.sum(1) + marks
    width = min(-(-int(ends.max()) // 8) * 8, p.max_length)
    place = torch.arange(width, device=sizes.device)
    tokens = torch.full((len(sizes), width), p.pad_id, device=sizes.device)
    segments = torch.zeros_like(tokens)
    if before:
        tokens[:, 0] = p.cls_id
    start = torch.full_like(ends, before)
    for i, (text, _) in enumerate(texts):
        text, own = F.pad(text, (0, max(width - text.shape[1], 0))), kept[:, i]
        at = place - start[:, None]
        inside = (at >= 0) & (at < own[:, None])
        tokens = torch.where(inside, text.gather(1, at.clamp(0, text.shape[1] - 1)), tokens)
        after = 1 if i == len(parts) - 1 else p.marks_between
        tokens = tokens.masked_fill((at >= own[:, None]) & (at < own[:, None] + after), p.sep_id)
        segments = torch.where((at >= 0) & (at < own[:, None] + after), i, segments)
        start = start + own + after
    return {"tokens": tokens, "mask": place < ends[:, None], "segments": segments}


def shares(sizes: Tensor, room: int) -> Tensor:
    """How many tokens each part keeps, [B, P], of sizes [B, P], so that a row has at most `room`.

    All that are cut keep equally many; what is left over is for the longest, of equally long ones the last, as in transformers' tokenizers.
    """
    level = torch.full_like(sizes[:, 0], room // sizes.shape[1])
    for _ in range(sizes.shape[1]):  # what short parts leave is for the others
        short = sizes <= level[:, None]
        level = torch.maximum(
            level, (room - (sizes * short).sum(1)).div((~short).sum(1).clamp(min=1), rounding_mode="floor") * (~short).any(1)
        )
    kept = torch.minimum(sizes, level[:, None])
    order = (sizes * sizes.shape[1] + torch.arange(sizes.shape[1], device=sizes.device)).argsort(1, descending=True).argsort(1)
    return kept + ((sizes > kept) & (order < (room - kept.sum(1))[:, None])).long()


def _text(batch: Mapping[str, Tensor], processor: Any) -> tuple[Tensor, Tensor]:
    tokens, _, sizes = closed_up(batch, processor)
    return tokens, sizes


def closed_up(batch: Mapping[str, Tensor], processor: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens of texts [B, T] without what starts and ends them and their windows, where each stood [B, T], how many they are [B]."""
    tokens = batch["tokens"]
    mask = batch["mask"]
    place, last = torch.arange(tokens.shape[1], device=tokens.device), mask.sum(1, keepdim=True) - 1
    within = place % processor.max_length  # rows of several windows have marks inside, at places where nothing else ends
    starts = (within == 0) & (tokens == (-1 if processor.cls_id is None else processor.cls_id))
    ends = (within == processor.max_length - 1) & (tokens == processor.sep_id)
    inner = mask & ~starts & ~ends & (place != last)
    order = inner.int().argsort(dim=1, descending=True, stable=True)
    return tokens.gather(1, order), order, inner.sum(1)


def below(parts: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Inputs [B, L_i] of several parts as rows one below the other, [P · B, L]; `pad` fills up the shorter tokens."""
    width = max(x.shape[1] for made in parts for x in made.values())
    return {
        k: torch.cat([F.pad(made[k], (0, width - made[k].shape[1]), value=pad if k == "tokens" else 0) for made in parts]) for k in parts[0]
    }
