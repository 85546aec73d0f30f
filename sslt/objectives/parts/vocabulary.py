"""The loss over a vocabulary, without ever holding the logits of all words of all positions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslt.objectives.base import Loss

IGNORED = -100  # targets that are not counted
# Logits of a chunk: 32 MB in float32 on a CPU, whose caches and allocator like them better than a batch's gigabytes; 512 MB on a GPU, which
# needs longer to start a kernel than to fill one with less.
_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}


def vocabulary_loss(states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Sum over counted positions of the cross-entropy of softmax(states · weightᵀ + bias), in float32.

    states [N, D], weight [V, D], bias [V], targets int64 [N] of which `IGNORED` ones are not counted. smoothing: share of the target's
    probability that is spread over the whole vocabulary (Szegedy et al., 2016, section 7).

    Logits exist for a chunk of positions at a time, and their gradient is taken at once, so that memory is that of [chunk, V] whatever N
    is: the chunked cross-entropy of Liger (Hsu et al., 2024). The gradient is that of the whole, up to the order of summation.
    """
    counted = (targets != IGNORED).nonzero().flatten()
    if len(counted) < len(targets):
        states, targets = states.index_select(0, counted), targets.index_select(0, counted)
    if torch.is_autocast_enabled(states.device.type):
        kind = torch.get_autocast_dtype(states.device.type)
        states, weight = states.to(kind), weight.to(kind)
    elif states.dtype != weight.dtype:
        states = states.to(weight.dtype)
    return _Chunked.apply(states, weight, bias, targets, smoothing)


def mean_loss(states: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, logs_now: bool) -> Loss:
    """The mean of `vocabulary_loss` over counted positions; with `logs_now` also how many of them are right, and the perplexity."""
    n = (targets != IGNORED).sum().clamp(min=1)
    loss = vocabulary_loss(states, weight, targets, bias) / n
    return Loss(loss, {"perplexity": loss.detach().exp(), "accuracy": hits(states, weight, targets, bias) / n} if logs_now else {})


def vocabulary_scores(states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-probabilities [N] of `targets` [N], without gradient and by chunks as in `vocabulary_loss`; 0 where a target is `IGNORED`."""
    found = states.new_zeros(len(targets), dtype=torch.float32)
    with torch.no_grad():
        for part in _chunks(len(targets), weight):
            logits = _logits(states[part].to(weight.dtype), weight, bias)
            found[part] = -F.cross_entropy(logits, targets[part], ignore_index=IGNORED, reduction="none")
    return found


def log_probabilities(states: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-probabilities [N, K] of the entries `words` int64 [N, K] at states [N, D], with gradient.

    By chunks of positions, whose logits the backward pass makes again, so that those of one chunk at a time are held.
    """

    def of(x: Tensor, chosen: Tensor) -> Tensor:
        logits = _logits(x.to(weight.dtype), weight, bias)
        return logits.gather(1, chosen) - logits.logsumexp(1, keepdim=True)

    found = []
    for part in _chunks(len(states), weight):
        kept = torch.is_grad_enabled()
        found.append(checkpoint(of, states[part], words[part], use_reentrant=False) if kept else of(states[part], words[part]))
    return torch.cat(found)


def vocabulary_samples(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """One word for each state [..., D], drawn from its softmax without gradient, by chunks as in `vocabulary_loss`: [...]."""
    share = torch.rand(states.shape[:-1], device=states.device).flatten()  # of the probability that comes before the word
    flat = states.flatten(0, -2)
    drawn = torch.empty(len(flat), dtype=torch.long, device=states.device)
    with torch.no_grad():
        for part in _chunks(len(flat), weight):
            sums = _logits(flat[part].to(weight.dtype), weight, bias).softmax(1).cumsum(1)
            drawn[part] = torch.searchsorted(sums, share[part, None].to(sums.dtype) * sums[:, -1:], right=True)[:, 0]
    return drawn.clamp_(max=len(weight) - 1).view(states.shape[:-1])


def hits(states: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """At how many of the counted positions the target is the most probable word: a number, without gradient."""
    right = torch.zeros((), device=states.device)
    with torch.no_grad():
        counted = targets != IGNORED
        states, targets = states[counted], targets[counted]
        for part in _chunks(len(targets), weight):
            right += (_logits(states[part].to(weight.dtype), weight, bias).argmax(1) == targets[part]).sum()
    return right


def _chunks(n: int, weight: Tensor) -> list[slice]:
    size = max(_LOGITS.get(weight.device.type, _LOGITS["cpu"]) // len(weight), 16)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(states.device.type, enabled=False):
        logits = F.linear(states, weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits if bias is None else logits + bias


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float) -> Tensor:
        wanted = ctx.needs_input_grad
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        total = states.new_zeros((), dtype=wide)
        of_states = torch.empty_like(states) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        rest = smoothing / len(weight)
        with torch.autocast(states.device.type, enabled=False):
            for part in _chunks(len(targets), weight):
                x, y = states[part], targets[part]
                scores = _logits(x, weight, bias).log_softmax(1)
                own = scores.gather(1, y[:, None])
                total += (smoothing - 1) * own.sum() - (rest * scores.sum() if smoothing else 0)
                if not any(wanted[:3]):
                    continue
                error = scores.exp_()  # p - q, in place: q is 1 - smoothing at the target, and the rest spread evenly
                if smoothing:
                    error -= rest
                error.scatter_add_(1, y[:, None], torch.full_like(own, smoothing - 1))
                if of_bias is not None:
                    of_bias += error.sum(0)
                error = error.to(weight.dtype)
                if of_states is not None:
                    torch.mm(error, weight, out=of_states[part])
                if of_weight is not None:
                    if of_weight.dtype == error.dtype:
                        of_weight.addmm_(error.T, x)
                    else:
                        of_weight += error.T @ x
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        of_states, of_weight, of_bias = ctx.saved_tensors
        return (
            None if of_states is None else of_states * grad.to(of_states.dtype),
            None if of_weight is None else (of_weight * grad).to(ctx.weight_dtype),
            None if of_bias is None else of_bias * grad,
            None,
            None,
        )
