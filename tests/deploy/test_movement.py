"""Protects movement pruning: scores, masks and weights are those of a loop by hand, and what is closed is what would be cut out."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from prunable import inputs, made
from torch import Tensor, nn

from sslt.deploy import pruning, units
from sslt.deploy.movement import Gate, Movement, gates_of

STEPS, RATE = 12, 0.05


def loss_of(encoder: Any, head: nn.Module, step: int) -> Tensor:
    """Another batch and another question in each step, so that scores change their order."""
    given = inputs(encoder)
    tokens = {k: v.roll(step, 0) if k == "tokens" else v for k, v in given.items()}
    if "image" in tokens:
        tokens["image"] = tokens["image"] * (1 + 0.3 * torch.sin(torch.tensor(float(step))))
    return (head(encoder(tokens).pooled) - torch.tensor([1.0, -1, 0.5])[step % 3]).square().mean()


def most(scores: list[Tensor], share: float) -> list[Tensor]:
    """The units of each group with the highest scores."""
    return [s.argsort(descending=True, stable=True)[: len(s) - round(share * len(s))].sort().values for s in scores]


def by_hand(encoder: Any, head: nn.Module, groups: list[units.Group]) -> tuple[list[Tensor], list[list[bool]]]:
    """Scores and what is open, when columns are put to zero in the weights themselves and put back before each step."""
    scores, ever = [torch.zeros(g.n) for g in groups], []
    open_ = [torch.ones(g.n, dtype=torch.bool) for g in groups]
    readers = [[*g.columns, *([(head, g.features)] if g.features is not None else [])] for g in groups]
    own = {id(m): m for places in readers for m, _ in places}
    for step in range(STEPS):
        whole = {key: m.weight.detach().clone() for key, m in own.items()}
        masks = {key: torch.ones(units.width_of(m, False)) for key, m in own.items()}
        for places, keep in zip(readers, open_, strict=True):
            for m, index in places:
                masks[id(m)][index[~keep].flatten()] = 0
        shape = {key: (-1, 1) if type(m).__name__ == "Conv1D" else (1, -1, *[1] * (m.weight.dim() - 2)) for key, m in own.items()}
        for key, m in own.items():
            m.weight.data = whole[key] * masks[key].view(shape[key])
        encoder.zero_grad(), head.zero_grad()
        loss_of(encoder, head, step).backward()
        for score, places in zip(scores, readers, strict=True):
            for m, index in places:
                each = (whole[id(m)] * m.weight.grad).movedim(0 if type(m).__name__ == "Conv1D" else 1, 0).flatten(1).sum(1)
                score -= each[index].sum(1)
        for key, m in own.items():
            m.weight.data = whole[key]
            m.weight.grad *= masks[key].view(shape[key])
        with torch.no_grad():
            for p in [*encoder.parameters(), *head.parameters()]:
                p -= RATE * (0 if p.grad is None else p.grad)
        share = 0.5 * (1 - (1 - min(max((step / STEPS - 0.25) / 0.5, 0), 1)) ** 3)  # Zhu & Gupta (2018), from a quarter to three
        if step / STEPS < 0.75 + 1 / STEPS - 1e-9:
            for keep, stay in zip(open_, most(scores, share), strict=True):
                keep[:] = False
                keep[stay] = True
        ever.append([bool(x) for keep in open_ for x in keep])
    return scores, ever


@pytest.mark.parametrize(("kind", "what"), [("resnet", "channels"), ("vit", "hidden"), ("bert", "heads"), ("gpt2", "hidden")])
def test_scores_are_those_of_a_loop_by_hand(kind, what):
    """S = -Σ weight · ∂L/∂weight with the straight-through gradient; weights that are masked stand still; what went can come back."""
    encoder, torch_head = made(kind), nn.Linear(made(kind).dim, 3)
    other, other_head = copy.deepcopy(encoder), copy.deepcopy(torch_head)

    def groups_of(e: Any) -> list[units.Group]:
        return units.channels(e, inputs(e, 2), True) if what == "channels" else getattr(units, what)(e)

    wanted, open_ = by_hand(other, other_head, groups_of(other))
    moving = Movement(gates_of(groups_of(encoder), torch_head), most, 0.5, 0.25, 0.25)
    for step in range(STEPS):
        encoder.zero_grad(), torch_head.zero_grad()
        loss_of(encoder, torch_head, step).backward()
        moving.step(step / STEPS)
        with torch.no_grad():
            for p in [*encoder.parameters(), *torch_head.parameters()]:
                p -= RATE * (0 if p.grad is None else p.grad)
        assert [bool(x) for gate in moving.gates for x in gate.open] == open_[step]
    for score, other_score in zip(moving.scores, wanted, strict=True):
        assert torch.allclose(score, other_score, rtol=1e-3, atol=1e-5 * float(other_score.abs().max()))
    for p, q in zip([*encoder.parameters(), *torch_head.parameters()], [*other.parameters(), *other_head.parameters()], strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    assert not all(open_[-1]) and all(open_[2])
    back = [now and not before for a, b in itertools.pairwise(open_) for before, now in zip(a, b, strict=True)]
    assert any(back) or what == "heads"


@pytest.mark.parametrize(
    ("kind", "what"), [("resnet", "channels"), ("mobilenet", "channels"), ("bert", "heads"), ("vit", "hidden")], ids=" ".join
)
def test_closed_is_cut(kind, what):
    """The encoder with closed gates computes what it computes once these units are out, its head included."""
    encoder, head = made(kind), nn.Linear(made(kind).dim, 3)
    groups = units.channels(encoder, inputs(encoder, 2), True) if what == "channels" else getattr(units, what)(encoder)
    gates = gates_of(groups, head)
    torch.manual_seed(3)
    kept = [torch.randperm(g.n)[: max(1, g.n // 2)].sort().values for g in groups]
    for gate, stay in zip(gates, kept, strict=True):
        gate.keep(stay)
    gated = head(encoder(inputs(encoder)).pooled)
    for gate in gates:
        gate.remove()
    features = pruning.without(encoder, groups, kept, inputs(encoder))
    if features is not None:
        head.weight = nn.Parameter(head.weight[:, features])
    assert torch.allclose(head(encoder(inputs(encoder)).pooled), gated, atol=1e-4 * float(gated.abs().max()))


@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2"])
def test_a_closed_block_passes_its_tokens_on(kind):
    """A gate around a block is the block, or none; its gradient is what leaving it out does to the loss, in the first order."""
    encoder, without = made(kind), made(kind)
    whole = encoder(inputs(encoder)).pooled
    gate = Gate.around(encoder.get_submodule(encoder.block_names()[1]))
    assert torch.allclose(encoder(inputs(encoder)).pooled, whole, atol=1e-6)

    def loss() -> Tensor:
        pooled = encoder(inputs(encoder)).pooled
        return (pooled * torch.linspace(-1, 2, pooled.shape[1])).sum()

    loss().backward()
    (grad,) = gate.open.grad
    with torch.no_grad():
        gate.open -= 1e-2
        less = loss()
        gate.open += 2e-2
        assert float(loss() - less) / 2e-2 == pytest.approx(float(grad), rel=1e-2)
    gate.keep(torch.arange(0))
    pruning.drop_layers(without, [1])
    assert torch.allclose(encoder(inputs(encoder)).pooled, without(inputs(without)).pooled, atol=1e-6)


def test_the_schedule_and_a_run_that_was_interrupted():
    """Nothing goes in the warm-up, all that is asked for before the cool-down; what is taken up again ends as what was never stopped."""

    def moving() -> Movement:
        return Movement([Gate(8), Gate(4)], most, 0.5, 0.1, 0.2)

    assert [round(moving().share_at(p), 4) for p in (0, 0.1, 0.45, 0.8, 1)] == [0, 0, 0.4375, 0.5, 0.5]
    grads = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))

    def go(it: Movement, steps: range) -> None:
        for i in steps:
            for gate, g in zip(it.gates, grads[i].split([8, 4]), strict=True):
                gate.open.grad = g.clone()
            it.step(i / 60)

    whole, first, second = moving(), moving(), moving()
    go(whole, range(60))
    go(first, range(30))
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    assert [g.open.tolist() for g in second.gates] == [g.open.tolist() for g in first.gates]
    go(second, range(30, 60))
    assert [k.tolist() for k in second.end()] == [k.tolist() for k in whole.end()]
    assert torch.allclose(torch.cat(whole.scores), -grads.sum(0), atol=1e-5)
    short = moving()
    go(short, range(1))
    assert [len(k) for k in short.end()] == [4, 2]


def test_gradients_that_are_no_numbers_and_scaled_ones():
    """A step that float16 skips is not counted, and its scale is taken out."""
    moving = Movement([Gate(3)], most, 0.3, 0.0, 0.0)
    moving.gates[0].open.grad = torch.tensor([1.0, float("inf"), 2.0])
    moving.step(0.0)
    assert moving.scores[0].tolist() == [0, 0, 0] and moving.gates[0].open.grad is None
    moving.gates[0].open.grad = torch.tensor([8.0, -4.0, 16.0])
    moving.step(0.0, scale=8.0)
    assert moving.scores[0].tolist() == [-1, 0.5, -2]
