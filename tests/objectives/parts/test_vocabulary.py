"""Protects the chunked loss over a vocabulary: value and gradients of the whole, in little memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sslt.objectives.parts import vocabulary
from sslt.objectives.parts.vocabulary import IGNORED, hits, vocabulary_loss, vocabulary_scores


def problem(n: int = 37, d: int = 8, v: int = 53, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    targets = torch.randint(0, v, (n,))
    targets[::5] = IGNORED
    return torch.randn(n, d, dtype=dtype), torch.randn(v, d, dtype=dtype), torch.randn(v, dtype=dtype), targets


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last one smaller."""
    monkeypatch.setattr(vocabulary, "_LOGITS", {"cpu": 16 * 53})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [True, False])
def test_value_and_gradients_are_those_of_all_logits(smoothing, biased):
    """Against torch's cross-entropy on [N, V] logits, a scaled upstream gradient included."""
    states, weight, bias, targets = problem()
    found = [x.clone().requires_grad_() for x in (states, weight, bias)]
    known = [x.clone().requires_grad_() for x in (states, weight, bias)]
    loss = vocabulary_loss(found[0], found[1], targets, found[2] if biased else None, smoothing)
    logits = F.linear(known[0], known[1], known[2] if biased else None)
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    for ours, theirs in zip(found[: 2 + biased], known[: 2 + biased], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_no_position_counts():
    """A batch without any target: 0, and gradients of 0."""
    states, weight, bias, targets = problem()
    weight.requires_grad_()
    loss = vocabulary_loss(states.requires_grad_(), weight, torch.full_like(targets, IGNORED), bias)
    loss.backward()
    assert loss == 0 and not weight.grad.any() and not states.grad.any()


def test_frozen_parts_get_no_gradient():
    """A matrix that stands still, as under LoRA: the states' gradient alone."""
    states, weight, bias, targets = problem()
    vocabulary_loss(states.requires_grad_(), weight, targets, bias).backward()
    assert weight.grad is None and states.grad is not None


def test_logits_of_the_whole_never_exist(monkeypatch):
    """No tensor of more than a chunk's logits is made, forward or backward."""
    sizes = []
    inner = vocabulary._logits
    monkeypatch.setattr(vocabulary, "_logits", lambda *args: sizes.append((out := inner(*args)).numel()) or out)
    states, weight, bias, targets = problem(n=400)
    vocabulary_loss(states.requires_grad_(), weight.requires_grad_(), targets, bias).backward()
    assert len(sizes) > 10 and max(sizes) <= 16 * 53


def test_half_precision_sums_in_full():
    """Under autocast logits are products of bfloat16, and everything after them float32."""
    states, weight, bias, targets = problem(dtype=torch.float32)
    full = vocabulary_loss(states, weight, targets, bias)
    with torch.autocast("cpu", torch.bfloat16):
        half = vocabulary_loss(states.requires_grad_(), weight.requires_grad_(), targets, bias)
    half.backward()
    assert half.dtype == torch.float32 and weight.grad.dtype == torch.float32
    assert float(half) == pytest.approx(float(full), rel=0.02)


def test_scores_and_hits():
    """Log-probabilities of each target, 0 where none counts; how many are the best."""
    states, weight, bias, targets = problem()
    logits = F.linear(states, weight, bias)
    known = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1) * (targets != IGNORED)
    torch.testing.assert_close(vocabulary_scores(states, weight, targets, bias), known.float())
    targets[:7] = logits[:7].argmax(1)
    assert hits(states, weight, targets, bias) == (logits.argmax(1) == targets).sum() >= 7
