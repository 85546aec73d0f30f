"""Protects the shipped optimizers: what decays, what LARS adapts, which rows of a table move; each takes a step by the command line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_IMAGES
from torch import nn

from sslt import groups
from sslt.adaptation.base import Full
from sslt.config import build, compose
from sslt.learner import Learner
from sslt.optimizers import SGD, AdamW, adapt_weights


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


# -------------------------------------------------------------------- rows of tables
def tables(sparse: bool) -> tuple[nn.Embedding, nn.Linear]:
    torch.manual_seed(0)
    return nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 2)


USUAL: dict = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
READ = [[1, 2, 1], [2, 5], [2, 8, 8], [1], [5, 2, 2]]


def gradients(table: nn.Embedding, head: nn.Linear, rows: list[int]) -> None:
    table.zero_grad()
    head.zero_grad()
    head(table(torch.tensor(rows))).square().sum().backward()


def test_rows_that_were_read_move_by_their_own_clock():
    """Against loops over rows in Python: each has one second moment, corrected by how often it was read; others stay where they are."""
    table, head = tables(sparse=True)
    rate, beta, decay = 0.1, 0.9, 0.2
    parts = [{"params": table.parameters(), "weight_decay": decay}, {"params": head.parameters()}]
    optimizer = AdamW(parts, lr=rate, weight_decay=0.0, betas=(0.5, beta), eps=1e-8, fused=True)
    rows = {i: table.weight[i].tolist() for i in range(9)}
    square, steps = dict.fromkeys(range(9), 0.0), dict.fromkeys(range(9), 0)
    for read in READ:
        gradients(table, head, read)
        grad = table.weight.grad.to_dense()
        optimizer.step()
        assert table.weight.grad.is_sparse and head.weight.grad is not None  # they stay, for whoever looks after the step
        for i in set(read):
            g = grad[i].tolist()
            steps[i] += 1
            square[i] = beta * square[i] + (1 - beta) * sum(x * x for x in g) / len(g)
            size = (square[i] / (1 - beta ** steps[i])) ** 0.5 + 1e-8
            rows[i] = [w * (1 - rate * decay) - rate * x / size for w, x in zip(rows[i], g, strict=True)]
    for i, row in rows.items():
        assert torch.allclose(table.weight[i], torch.tensor(row), atol=1e-5), i


def test_dense_gradients_are_torchs_own():
    """Where nothing is sparse the steps are those of torch's AdamW, to the bit."""
    found = []
    for kind in (torch.optim.AdamW, AdamW):
        table, head = tables(sparse=False)
        optimizer = kind([*table.parameters(), *head.parameters()], **USUAL)
        for read in READ:
            gradients(table, head, read)
            optimizer.step()
        found.append([table.weight, head.weight])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_rows_go_on_from_a_checkpoint():
    """Clocks and moments are in the state; where gradients are then of the other kind, the table starts anew instead of failing."""
    whole, part = [], []
    for stop in (False, True):
        table, head = tables(sparse=True)
        make = lambda table=table, head=head: AdamW([*table.parameters(), *head.parameters()], **USUAL)  # noqa: E731
        optimizer = make()
        for i, read in enumerate(READ):
            if stop and i == 3:
                state = optimizer.state_dict()
                optimizer = make()
                optimizer.load_state_dict(state)
            gradients(table, head, read)
            optimizer.step()
        (part if stop else whole).append(table.weight)
    assert torch.equal(whole[0], part[0])
    table.sparse = False
    gradients(table, head, READ[0])
    optimizer.step()
    assert torch.isfinite(table.weight).all() and "exp_avg" in optimizer.state[table.weight]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_sparse_gradients_are_clipped_like_dense_ones(algorithm):
    """A row that occurs twice in a batch counts once, with its sum."""
    found = []
    for sparse in (False, True):
        table, head = tables(sparse)
        gradients(table, head, READ[0])
        parameters = [*table.parameters(), *head.parameters()]
        learner = SimpleNamespace(last={}, whole=None)
        Learner.configure_gradient_clipping(learner, torch.optim.SGD(parameters, 0.1), 0.3, algorithm)
        grad = table.weight.grad
        found.append([grad.to_dense() if sparse else grad, head.weight.grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
    if algorithm == "norm":
        assert torch.cat([g.flatten() for g in [found[1][0], head.weight.grad, head.bias.grad]]).norm() == pytest.approx(0.3, abs=1e-4)
    else:
        assert max(g.abs().max() for g in found[1]) == pytest.approx(0.3)


def test_weights_that_begin_to_move_later_have_a_momentum_of_their_own():
    """As torch's SGD of each alone, fused as well; its own fused one fails where only some have a momentum."""
    torch.manual_seed(0)
    start, grads = torch.randn(2, 3), torch.randn(4, 2, 3)
    expected = []
    for late in (0, 2):
        p = torch.nn.Parameter(start.clone())
        alone = torch.optim.SGD([p], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        for g in grads[late:]:
            p.grad = g.clone()
            alone.step()
        expected.append(p.detach())
    early, later = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    both = SGD([early, later], 0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True)
    for i, g in enumerate(grads):
        early.grad, later.grad = g.clone(), g.clone() if i >= 2 else None
        both.step()
    assert torch.allclose(early, expected[0], atol=1e-6) and torch.allclose(later, expected[1], atol=1e-6)
