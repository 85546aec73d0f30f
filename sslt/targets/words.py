"""How probable words are in prompts: of masked encoders where tokens are hidden, of causal ones behind what was read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sslt.encoders.base import Encoder
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


def causal_scores(encoder: Encoder, inputs: dict[str, Tensor], words: Sequence[list[int]]) -> Tensor:
    """Log-probabilities [B, W] of words that go on with the prompts `inputs`, each the sum over its tokens given those before.

    Words of one token are read from one forward pass; of the others every prompt is read with every word, in chunks of words.
    """
    n = len(inputs["tokens"])
    found: dict[int, Tensor] = {}
    for size, chosen in _by_length(words).items():
        step = len(chosen) if size == 1 else max(ROWS // n, 1)
        for part in (chosen[i : i + step] for i in range(0, len(chosen), step)):
            ids = torch.tensor([words[i] for i in part], device=inputs["tokens"].device)  # [K, size]
            if size == 1:
                scores = _written(encoder, inputs, ids[:1].repeat(n, 1), ids.T.repeat(n, 1))
            else:
                repeated = {k: x.repeat_interleave(len(part), 0) for k, x in inputs.items()}
                outputs = ids.repeat(n, 1)
                scores = _written(encoder, repeated, outputs, outputs.view(-1, 1)).view(n, len(part), size).sum(2)
            found |= dict(zip(part, scores.unbind(1), strict=True))
    return torch.stack([found[i] for i in range(len(words))], 1)


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
