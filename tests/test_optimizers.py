"""Protects the shipped optimizers: what decays, what LARS adapts, and that each takes a step through the command line."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY_IMAGES
from torch import nn

from sslt import groups
from sslt.adaptation.base import Full
from sslt.config import build, compose
from sslt.learner import Learner, adapt_weights


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_lars_adapts_weights_and_leaves_biases_and_norms_alone(decay):
    """A weight's step, decayed or not, is lr · trust · |w| / (|g| + λ|w|) · (g + λw) (You et al., 2017, eq. 6); a bias's is lr · g."""
    cfg = compose("pretrain", ["+task=barlow_twins", "optimizer=lars", "optimizer.lr=0.3", f"optimizer.weight_decay={decay}"])
    trust, rate = cfg.optimizer.trust_coeff, 0.3
    net = model()

    class Nothing(nn.Module):
        """An encoder without a parameter."""

        depth = 0

        def group_of(self) -> dict[str, int]:
            return {}

    make = build(cfg.optimizer, _partial_=True)
    optimizer = make(Full(1.0).parameter_groups(Nothing(), net, decay))  # type: ignore[arg-type]
    adapt_weights(optimizer)
    before = {n: p.detach().double().clone() for n, p in net.named_parameters()}
    net(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    for name, p in net.named_parameters():
        w, g = before[name], p.grad.double()
        if p.dim() > 1:
            ratio = trust * w.norm() / (g.norm() + decay * w.norm())
            expected = w - rate * ratio * (g + decay * w)
        else:
            expected = w - rate * g
        assert torch.allclose(p.detach().double(), expected, rtol=1e-5, atol=1e-7), name


def test_a_run_with_lars_adapts_its_weights(sslt, monkeypatch):
    """Through the command line, without weight decay."""
    made = []
    usual = Learner.configure_optimizers
    monkeypatch.setattr(Learner, "configure_optimizers", lambda self: made.append(usual(self)) or made[-1])
    args = ["optimizer=lars", "optimizer.weight_decay=0.0", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0"]
    sslt("pretrain", "+task=simclr", *args, "batch_size=32")
    adapted = [(group["always_adapt"], {p.dim() > 1 for p in group["params"]}) for group in made[0].param_groups]
    assert sorted(adapted, key=str) == [(False, {False}), (True, {True})]


@pytest.mark.parametrize("name", groups.options("optimizer"))
def test_every_optimizer_takes_a_step(name, sslt, here):
    """With its own defaults, from the command line."""
    args = [f"optimizer={name}", *TINY_IMAGES, "trainer.max_steps=2", "online_probe.every_n_epochs=0", "batch_size=32"]
    sslt("pretrain", "+task=simclr", *args)
