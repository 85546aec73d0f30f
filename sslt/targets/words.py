"""How probable words are in prompts: of masked encoders where tokens are hidden, of causal ones behind what was read."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.encoders.causal import prompts
from sslt.encoders.inserted import cache_keyword
from sslt.objectives.parts.vocabulary import log_probabilities

ROWS = 512  # prompts that a causal encoder reads at a time: those of a batch for one word at least


def masked_scores(encoder: Encoder, rows: Callable[[list[int]], tuple[dict[str, Tensor], Tensor]], words: Sequence[list[int]]) -> Tensor:
    """Log-probabilities [B, W] of words, each the sum over its tokens, all of which are hidden at once (Schick & Schütze, 2021).

    rows: prompts with given ids in the label's place, and where they begin [B]. Words of equal length share a forward pass, so that its
    cost is that of the lengths and not of the words.
    """
    found: dict[int, Tensor] = {}
    for size, chosen in _by_length(words).items():
        inputs, start = rows([encoder.processor.mask_id] * size)
        states = encoder.word_states(inputs, start[:, None] + torch.arange(size, device=start.device))
        ids = torch.tensor([words[i] for i in chosen], device=states.device).T.repeat(len(states), 1)  # [B · size, K]
        scores = log_probabilities(states.flatten(0, 1), *_layer(encoder, ids)).view(len(states), size, -1).sum(1)
        found |= dict(zip(chosen, scores.unbind(1), strict=True))
    return torch.stack([found[i] for i in range(len(words))], 1)


def causal_scores(encoder: Any, inputs: dict[str, Tensor], words: Sequence[list[int]]) -> Tensor:
    """Log-probabilities [B, W] of words that go on with the prompts `inputs`, each the sum over its tokens given those before.

    Words of one token are read from one forward pass. Of the others every prompt goes on with every word, in chunks of words: without a
    gradient from keys and values of the prompt that are computed once, else from its start.
    """
    cached = not torch.is_grad_enabled() and encoder.virtual_tokens is None and cache_keyword(encoder.network) is not None
    found: dict[int, Tensor] = {}
    for size, chosen in _by_length(words).items():
        ids = torch.tensor([words[i] for i in chosen], device=inputs["tokens"].device)  # [K, size]
        if size == 1:
            n = len(inputs["tokens"])
            scores = _written(encoder, inputs, ids[:1].repeat(n, 1), ids.T.repeat(n, 1))
        else:
            scores = (_from_cache if cached else _from_start)(encoder, inputs, ids)
        found |= dict(zip(chosen, scores.unbind(1), strict=True))
    return torch.stack([found[i] for i in range(len(words))], 1)


def _from_start(encoder: Encoder, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    n, parts = len(inputs["tokens"]), []
    for part in ids.split(max(ROWS // n, 1)):
        outputs = part.repeat(n, 1)
        repeated = {k: x.repeat_interleave(len(part), 0) for k, x in inputs.items()}
        parts.append(_written(encoder, repeated, outputs, outputs.view(-1, 1)).view(n, *part.shape).sum(2))
    return torch.cat(parts, 1)


def _from_cache(encoder: Any, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Prompts of equal length together, so that none is padded."""
    from transformers import DynamicCache

    tokens, sizes = prompts(inputs)
    keyword, network = cache_keyword(encoder.network) or "past_key_values", encoder.network
    found = torch.zeros(len(tokens), len(ids), device=tokens.device)
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero().flatten()
        cache = DynamicCache()
        last = network(input_ids=tokens[rows, :size], use_cache=True, **{keyword: cache}).last_hidden_state[:, -1:]
        for first in range(0, len(ids), step := max(ROWS // len(rows), 1)):
            part = ids[first : first + step]
            again, written = copy.deepcopy(cache), part.repeat(len(rows), 1)
            again.batch_repeat_interleave(len(part))
            states = network(input_ids=written[:, :-1], use_cache=True, **{keyword: again}).last_hidden_state
            states = torch.cat([last.repeat_interleave(len(part), 0), states], 1)
            scores = log_probabilities(states.flatten(0, 1), *_layer(encoder, written.view(-1, 1)))
            found[rows, first : first + len(part)] = scores.view(len(rows), *part.shape).sum(2)
    return found


def _written(encoder: Encoder, inputs: dict[str, Tensor], outputs: Tensor, ids: Tensor) -> Tensor:
    states = encoder.reply_states(inputs, outputs, torch.ones_like(outputs, dtype=torch.bool))
    return log_probabilities(states.flatten(0, 1), *_layer(encoder, ids))


def _layer(encoder: Encoder, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    weight, bias = encoder.output_layer()
    return weight, ids, bias


def _by_length(words: Sequence[list[int]]) -> dict[int, list[int]]:
    """Number of tokens → the words that have so many, by their place."""
    found: dict[int, list[int]] = {}
    for i, ids in enumerate(words):
        found.setdefault(len(ids), []).append(i)
    return found


def one_for_each_class(scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Of log-probabilities [B, W] of words, of which each class has so many in a row: logs [B, C] of their mean probabilities."""
    return torch.stack([own.logsumexp(1) - math.log(own.shape[1]) for own in scores.split(list(counts), 1)], 1)
