"""How well a language model knows text that it did not learn from: perplexity, and bits a byte, which tokenizers share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array

from sslt import distributed, precision
from sslt.data.base import Samples
from sslt.data.prepare.reversible import is_reversible
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.encoders.base import Encoder, evaluating
from sslt.errors import UserError
from sslt.evaluation.features import MEASURED, HowFar
from sslt.objectives.parts.vocabulary import IGNORED, vocabulary_scores

HELD = 0.05  # of the packed rows of a text without splits, its last ones
_LEAST = 20  # rows, of which one can be spared
_COUNTED = 5_000_000  # tokens that the bigrams are counted in
_DISCOUNT = 0.75


def divided(packed: PackedSamples) -> tuple[Samples, Samples | None]:
    """A text without splits: what is learned from, and the end of it that is held out (None: it is too short for one)."""
    n = len(packed)
    if n < _LEAST:
        return packed, None
    cut = n - max(round(HELD * n), 1)
    return packed.subset(np.arange(cut)), packed.subset(np.arange(cut, n))


def before_end(texts: TextSamples, packed: PackedSamples) -> Samples:
    """Of a text without splits the `texts` that are no part of the end that is held out of it, `packed` (see `divided`)."""
    learned, held = divided(packed)
    ends = np.cumsum(texts.sizes + 1)  # in the stream, where each has a mark behind it
    return texts if held is None else texts.subset(np.flatnonzero(ends <= len(learned) * packed.grid.shape[1]))


def streams(encoder: Encoder, source: Any, split: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(tokens learned from, tokens held out, what the latter are, in words) of a source of texts, each text with the mark of its end.

    Held out is `split` where the source has it, else the end of the text, which pretraining leaves out.
    """
    process = encoder.processor
    if split in source.splits():
        parts = [process.prepare(source, name).packed(process.max_length).stream for name in ("unlabeled", split)]
        return parts[0], parts[1], f"the {split} split"
    train, held = divided(process.prepare(source, "unlabeled").packed(process.max_length))
    if held is None:
        raise UserError(f"{source.name} is too short to hold a part of it out: give it a test split")
    return _tokens(train, _COUNTED), _tokens(held), f"the last {100 * HELD:g} % of the text"


def _tokens(packed: Any, most: int | None = None) -> np.ndarray:
    """The tokens of packed rows one after the other; of so many tokens those of the first rows."""
    rows = packed.rows if most is None else packed.rows[: -(-most // packed.grid.shape[1])]
    return packed.grid[rows].ravel()


def language_metrics(encoder: Encoder, train: np.ndarray, held: np.ndarray, device: torch.device, batch: int) -> dict[str, float]:
    """`eval/perplexity` (a token), `eval/bits_per_byte` where the tokenizer can be undone, and by pairs counted in `train`
    `bigrams/perplexity`.

    The text is read in rows of the encoder's length, each without what came before it.
    """
    nats = _nats(encoder, held, device, batch)
    found = {"eval/perplexity": math.exp(nats / len(held)), "eval/tokens": float(len(held))}
    if is_reversible(encoder.processor.tokenizer):
        written = len(encoder.processor.decode_text(held.tolist()).encode())
        found["eval/bits_per_byte"] = nats / math.log(2) / max(written, 1)
    found["bigrams/perplexity"] = bigram_perplexity(np.asarray(train[:_COUNTED]), held, encoder.processor.vocab_size)
    return found


def _nats(encoder: Encoder, stream: np.ndarray, device: torch.device, batch: int) -> float:
    """Sum of -log p of all tokens of a stream. Ranks share the work; all get the result."""
    p = encoder.processor
    start = p.cls_id if p.cls_id is not None else p.sep_id
    step = p.max_length - 1
    rows = -(-len(stream) // step)
    padded = np.full(rows * step, IGNORED, np.int64)
    padded[: len(stream)] = stream
    grid = torch.from_numpy(padded).view(rows, step)
    total = torch.zeros((), dtype=torch.float64, device=device)
    far = HowFar("perplexity of", rows, "rows")
    encoder.to(device)
    with evaluating(encoder), precision.autocast(device, MEASURED):
        weight, bias = encoder.output_layer()
        for i, targets in enumerate(grid.split(batch)):
            far.tell(i * batch)
            if i % distributed.world_size() != distributed.rank():
                continue
            targets = targets.to(device)
            tokens = torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1].clamp(min=0)], 1)
            states = encoder.word_states({"tokens": tokens})
            total -= vocabulary_scores(states.flatten(0, 1), weight, targets.flatten(), bias).sum(dtype=torch.float64)
    distributed.barrier()  # one may have had other things to do before
    return float(distributed.sum_over_ranks(total))


def bigram_perplexity(train: np.ndarray, held: np.ndarray, vocabulary: int) -> float:
    """Perplexity of `held` by pairs of neighbouring tokens of `train`, with absolute discounting (Ney et al., 1994) towards single ones,
    which are smoothed by one."""
    single = np.bincount(train, minlength=vocabulary).astype(float) + 1
    single /= single.sum()
    ones = np.ones(len(train) - 1)
    pairs = coo_array((ones, (train[:-1], train[1:])), shape=(vocabulary, vocabulary)).tocsr()
    pairs.sum_duplicates()
    before = np.asarray(pairs.sum(1)).ravel()
    kinds = np.diff(pairs.indptr)
    a, b = held[:-1], held[1:]
    counts = np.asarray(pairs[a, b]).ravel()
    known = before[a] > 0
    total = np.where(known, before[a], 1)
    rest = np.where(known, _DISCOUNT * kinds[a] / total, 1)
    probability = np.maximum(counts - _DISCOUNT, 0) / total + rest * single[b]
    return float(np.exp(-(np.log(probability).sum() + np.log(single[held[0]])) / len(held)))
