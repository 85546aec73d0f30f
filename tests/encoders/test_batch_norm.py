"""Protects statistics of episodes: those of the batch inside, the old ones after it, and new ones made of given batches alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.encoders.batch_norm import batch_statistics, recalibrate


def encoder() -> VectorEncoder:
    torch.manual_seed(0)
    made = VectorEncoder(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)), 4)
    made.train()({"x": torch.randn(20, 3) * 2 + 1})
    return made.eval()


def test_inside_the_batch_normalises_and_leaves_no_trace():
    """In eval mode too; modes and statistics are as they were, also after a mistake."""
    e, x = encoder(), torch.randn(16, 3) * 5 - 4
    before = {n: b.clone() for n, b in e.named_buffers()}
    outside = e({"x": x}).pooled
    with batch_statistics(e):
        inside = e({"x": x}).pooled
    assert torch.allclose(inside.mean(0), torch.zeros(4), atol=1e-5) and not torch.allclose(outside, inside, atol=0.1)
    with pytest.raises(ZeroDivisionError), batch_statistics(e):
        raise ZeroDivisionError
    assert torch.equal(e({"x": x}).pooled, outside) and not e.layer[0].training and e.layer[0].track_running_stats
    assert all(torch.equal(b, before[n]) for n, b in e.named_buffers())


def test_new_statistics_are_the_plain_average_of_the_batches():
    """Each counts the same, what was there before does not; without gradients; modes and momenta are as they were."""
    e = encoder()
    batches = [torch.randn(10, 3) + i for i in range(3)]
    gradients = []
    e.layer[1].register_forward_hook(lambda module, args, out: gradients.append(out.requires_grad))
    e.layer[2].momentum = 0.3
    e.train()
    recalibrate(e, [{"x": x} for x in batches])
    assert torch.allclose(e.layer[0].running_mean, torch.stack([x.mean(0) for x in batches]).mean(0), atol=1e-5)
    assert torch.allclose(e.layer[0].running_var, torch.stack([x.var(0) for x in batches]).mean(0), atol=1e-5)
    assert gradients == [False] * 3 and e.training and e.layer[0].training and e.layer[1].training
    assert (e.layer[0].momentum, e.layer[2].momentum) == (0.1, 0.3)


def test_norms_that_are_frozen_keep_their_statistics():
    """And where all are, nothing is computed."""
    e = encoder()
    e.layer[0].requires_grad_(False)
    kept, other = e.layer[0].running_mean.clone(), e.layer[2].running_mean.clone()
    recalibrate(e, [{"x": torch.randn(10, 3) + 9}])
    assert torch.equal(e.layer[0].running_mean, kept) and not torch.allclose(e.layer[2].running_mean, other)
    e.layer[2].requires_grad_(False)

    def untouched():
        raise AssertionError
        yield

    recalibrate(e, untouched())
