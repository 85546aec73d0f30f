"""Protects adapting at test time: whose statistics count, what moves, and that reset forgets."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sslt.errors import UserError
from sslt.evaluation.test_time import BatchNormStatistics, Tent


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    with torch.no_grad():
        for _ in range(20):
            net.train()(torch.randn(32, 1, 8, 8))
    return net.eval()


def batch(seed: int, n: int = 16) -> torch.Tensor:
    return 3 * torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) + 2


def started(adapter, net):
    adapter.start(net, lambda m, x: m(x))
    return adapter


def reference(net: nn.Module, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    """The network with these statistics, by torch's own BatchNorm."""
    twin = copy.deepcopy(net)
    twin[1].running_mean, twin[1].running_var = mean, var
    with torch.no_grad():
        return twin(x)


def moments(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        y = net[0](x)
    return y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)


@pytest.mark.parametrize("prior", [0.0, 16.0, 48.0])
def test_statistics_are_mixed_by_how_many_samples_each_stands_for(prior):
    """16 samples against a prior of 48 weigh a quarter."""
    net, x = model(), batch(0)
    adapter = started(BatchNormStatistics(prior, reset=True), net)
    w = 16 / (16 + prior)
    mean, var = moments(net, x)
    mixed = w * mean + (1 - w) * net[1].running_mean, w * var + (1 - w) * net[1].running_var
    for _ in range(2):  # nothing is kept
        assert torch.allclose(adapter.predict(x), reference(net, x, *mixed), atol=1e-5)


def test_without_reset_statistics_follow_the_stream():
    """The mix after one batch is the source of the next."""
    net, x, y = model(), batch(0), batch(1)
    adapter = started(BatchNormStatistics(16.0, reset=False), net)
    adapter.predict(x)
    mean, var = moments(net, x)
    mean, var = (mean + net[1].running_mean) / 2, (var + net[1].running_var) / 2
    m, v = moments(net, y)
    assert torch.allclose(adapter.predict(y), reference(net, y, (mean + m) / 2, (var + v) / 2), atol=1e-5)


def test_tent_lowers_entropy_by_norms_alone():
    """Scales and shifts move, all else and the user's own model stand still; entropy on the batch falls."""
    net, x = model(), batch(2)
    before = copy.deepcopy(net.state_dict())
    adapter = started(Tent(lr=0.01, steps=1, reset=False), net)
    entropies = [float(torch.distributions.Categorical(logits=adapter.predict(x)).entropy().mean()) for _ in range(15)]
    assert entropies[-1] < entropies[0]
    moved = {k for k, v in adapter.encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"1.weight", "1.bias"}
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_tents_first_answer_is_that_of_batch_statistics():
    """Batches are classified by the pass that their update comes from."""
    net, x = model(), batch(3)
    assert torch.allclose(started(Tent(0.01, 1, False), net).predict(x), started(BatchNormStatistics(0.0, True), net).predict(x), atol=1e-6)


def test_reset_forgets():
    """With reset a batch's answer does not depend on what came before it; without, it does."""
    net, x, y = model(), batch(0), batch(1)
    for reset in (True, False):
        adapter = started(Tent(0.05, 2, reset), net)
        first = adapter.predict(y)
        adapter = started(Tent(0.05, 2, reset), net)
        adapter.predict(x)
        assert torch.equal(adapter.predict(y), first) is reset


def test_an_encoder_without_norms_is_one_line():
    """Before anything is classified."""
    with pytest.raises(UserError, match="BatchNorm statistics"):
        started(BatchNormStatistics(0.0, True), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(UserError, match="norm layers"):
        started(Tent(0.1, 1, True), nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"test_time\.lr"):
        Tent(0.0, 1, True)


def test_timms_norm_keeps_its_activation():
    """BatchNorm and activation in one layer: the batch's statistics, then what follows them."""
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    layer = BatchNormAct2d(4).eval()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    x = batch(0)
    y = net[0](x).detach()
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
    expected = net[3](((y - mean) / (var + layer.eps).sqrt()).relu().flatten(1))
    assert torch.allclose(started(BatchNormStatistics(0.0, reset=True), net).predict(x), expected, atol=1e-5)


def test_a_stream_that_is_forgotten_at_once_is_refused():
    with pytest.raises(UserError, match="prior"):
        BatchNormStatistics(0.0, reset=False)
