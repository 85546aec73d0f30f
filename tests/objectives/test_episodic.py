"""Protects episodic learning: ProtoNet against plain loops, meta-gradients against finite differences, what moves inside and what not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from vector_encoder import VectorEncoder

from sslt.config import compose
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Encoder
from sslt.encoders.conv4 import Conv4
from sslt.errors import UserError
from sslt.lanes import Lanes
from sslt.objectives.episodic import ANIL, MAML, Prototypes
from sslt.objectives.parts.inner import descend, descend_head


class Tiny(VectorEncoder):
    """x [B, 3] → tanh(A x) [B, 4], in float64."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), 4)


def tiny(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny().double()


def batch_of(way: int = 3, shot: int = 2, query: int = 2, episodes: int = 2, x: Tensor | None = None) -> dict:
    """Noise in the layout of `EpisodeStream`."""
    size = shot + query
    n = episodes * way * size
    rows = torch.arange(n).view(episodes, way, size)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if x is None else x
    label = torch.arange(way).repeat_interleave(size).repeat(episodes)
    return {"views": {"x": x.unsqueeze(0)}, "label": label, "support": rows[:, :, :shot], "query": rows[:, :, shot:]}


def maml(encoder: Encoder, kind: type = MAML, way: int = 3, **changed):
    torch.manual_seed(5)
    return kind(encoder, way, **{"inner_steps": 1, "test_steps": 2, "inner_lr": 0.5, "first_order": False, **changed}).double()


# -------------------------------------------------------------------- prototypes
def test_prototypes_are_the_plain_loops():
    """Snell et al. (2017), algorithm 1, query by query in float64."""
    encoder, batch = tiny(), batch_of()
    with torch.no_grad():
        z = encoder({"x": batch["views"]["x"][0]}).pooled.numpy()
    losses, right = [], []
    for support, query in zip(batch["support"].numpy(), batch["query"].numpy(), strict=True):
        prototypes = [sum(z[i] for i in rows) / len(rows) for rows in support]
        for n, rows in enumerate(query):
            for i in rows:
                scores = [math.exp(-float(((z[i] - c) ** 2).sum())) for c in prototypes]
                losses.append(-math.log(scores[n] / sum(scores)))
                right.append(max(range(3), key=lambda k, s=scores: s[k]) == n)
    loss = Prototypes(encoder, 3)(encoder, batch)
    assert loss.value.item() == pytest.approx(np.mean(losses), rel=1e-10)
    assert loss.logs["accuracy"].item() == pytest.approx(np.mean(right))
    assert Prototypes(encoder, 3).units(batch) == 12  # queries of both episodes


def test_far_apart_classes_cost_nothing():
    """Classes far from each other: loss 0, accuracy 1; all features alike: log of the way."""
    objective = Prototypes(tiny(), 2)
    support = torch.tensor([[[[0.0, 0.0]], [[100.0, 0.0]]]])
    assert objective.classify(support, torch.tensor([[[1.0, 0.0], [99.0, 0.0]]])).softmax(-1)[0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert objective.classify(support * 0, torch.ones(1, 2, 2)).softmax(-1)[0, 0].tolist() == [0.5, 0.5]


# -------------------------------------------------------------------- references of the inner loop, by hand
def reference(weights: list[Tensor], batch: dict, steps: int, lr: float, move: slice, order: int) -> Tensor:
    """The outer loss as a function of [A, a, W, b]: of each episode, `steps` of gradient descent on `weights[move]`, then the
    mean query loss. order 1 cuts the inner gradients out of the graph."""
    x = batch["views"]["x"][0]

    def logits(w: list[Tensor], rows: Tensor) -> Tensor:
        return torch.tanh(x[rows] @ w[0].T + w[1]) @ w[2].T + w[3]

    losses = []
    for support, query in zip(batch["support"].flatten(1), batch["query"].flatten(1), strict=True):
        w = list(weights)
        for _ in range(steps):
            inner = F.cross_entropy(logits(w, support), batch["label"][support])
            grads = torch.autograd.grad(inner, w[move], create_graph=order == 2, retain_graph=True)
            w[move] = [v - lr * g for v, g in zip(w[move], grads, strict=True)]
        losses.append(F.cross_entropy(logits(w, query), batch["label"][query]))
    return torch.stack(losses).mean()


def weights_of(encoder: Encoder, objective: nn.Module) -> list[nn.Parameter]:
    return [*encoder.parameters(), *objective.parameters()]


def finite_differences(loss, weights: list[nn.Parameter], h: float = 1e-5) -> list[Tensor]:
    """Central differences, number by number."""
    found = []
    with torch.no_grad():
        for w in weights:
            grad = torch.empty_like(w)
            for i in range(w.numel()):
                old = w.flatten()[i].item()
                values = []
                for step in (h, -h):
                    w.view(-1)[i] = old + step
                    values.append(loss())
                w.view(-1)[i] = old
                grad.view(-1)[i] = (values[0] - values[1]) / (2 * h)
            found.append(grad)
    return found


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_the_meta_gradient_is_that_of_finite_differences(kind, steps):
    """Of the outer loss, through every inner step, for the body and the head, in float64."""
    encoder, batch = tiny(), batch_of()
    objective = maml(encoder, kind, inner_steps=steps)
    weights = weights_of(encoder, objective)
    fresh = lambda: {k: v for k, v in batch.items() if k != "encoded"}  # noqa: E731 - a forward is kept with its batch
    objective(encoder, fresh()).value.backward()

    def loss() -> float:
        with torch.enable_grad():
            return objective(encoder, fresh()).value.item()

    for w, g in zip(weights, finite_differences(loss, weights), strict=True):
        assert w.grad is not None and torch.allclose(w.grad, g, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("kind", "move"), [(MAML, slice(0, 4)), (ANIL, slice(2, 4))])
def test_loss_and_gradient_are_the_definitions(kind, move, steps, first_order):
    """MAML moves all four tensors inside, ANIL the head's two alone; first order takes inner gradients as constants."""
    encoder, batch = tiny(), batch_of(shot=1, query=3)
    objective = maml(encoder, kind, inner_steps=steps, first_order=first_order)
    weights = weights_of(encoder, objective)
    expected = reference(weights, batch, steps, 0.5, move, 1 if first_order else 2)
    gradients = torch.autograd.grad(expected, weights)
    found = objective(encoder, batch)
    found.value.backward()
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-12)
    for w, g in zip(weights, gradients, strict=True):
        assert torch.allclose(w.grad, g, atol=1e-12)
    other = torch.autograd.grad(reference(weights, batch, steps, 0.5, move, 2 if first_order else 1), weights)
    assert not torch.allclose(other[0], gradients[0], atol=1e-4)  # the two orders differ


def test_what_is_frozen_stands_still_inside():
    """With a frozen body MAML's inner loop is ANIL's, and the body gets no gradient."""
    encoder, batch = tiny(), batch_of()
    expected = reference(weights_of(encoder, maml(encoder)), batch, 2, 0.5, slice(2, 4), 2).item()
    encoder.requires_grad_(False)
    objective = maml(encoder, inner_steps=2)
    loss = objective(encoder, batch).value
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12) and encoder.layer[0].weight.grad is None


def test_solving_an_episode():
    """`test_steps` of the inner loop and then logits; in inference mode, without a trace in weights or gradients."""
    encoder, batch = tiny(), batch_of(episodes=1)
    objective = maml(encoder)
    x, labels = batch["views"]["x"][0], batch["label"]
    support, query = batch["support"].flatten(), batch["query"].flatten()
    before = [w.clone() for w in weights_of(encoder, objective)]
    with torch.inference_mode():
        inputs = {"x": x.clone()}  # a tensor of inference mode, which autograd refuses
        logits = objective.solve(encoder, {"x": inputs["x"][support]}, labels[support], {"x": inputs["x"][query]})
    loss = F.cross_entropy(logits, labels[query]).item()
    expected = reference(weights_of(encoder, objective), batch, 2, 0.5, slice(0, 4), 2)
    assert loss == pytest.approx(expected.item(), rel=1e-12) and not logits.requires_grad
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, weights_of(encoder, objective), strict=True))


def test_anil_classifies_by_its_test_steps():
    """On features alone, and the same in inference mode."""
    encoder, batch = tiny(), batch_of(episodes=1)
    objective = maml(encoder, ANIL)
    with torch.inference_mode():
        z = encoder({"x": batch["views"]["x"][0]}).pooled
        logits = objective.classify(z[batch["support"]], z[batch["query"].flatten(1)])[0]
    loss = F.cross_entropy(logits, batch["label"][batch["query"].flatten()]).item()
    expected = reference(weights_of(encoder, objective), batch, 2, 0.5, slice(2, 4), 2)
    assert loss == pytest.approx(expected.item(), rel=1e-12)


# -------------------------------------------------------------------- BatchNorm
def convolutional() -> Conv4:
    torch.manual_seed(0)
    return Conv4(ImageProcessor(8, 1, [0.5], [0.25]), 6, 2, "pool", "flatten")


def image_batch(episodes: int, seed: int = 0) -> dict:
    batch = batch_of(2, 2, 2, episodes, x=torch.zeros(episodes * 8, 1))
    image = torch.randn(episodes * 8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {**batch, "views": {"image": image.unsqueeze(0)}}


@pytest.mark.parametrize("first_order", [False, True])
def test_episodes_do_not_leak_into_each_other(first_order):
    """The loss of two episodes is the mean of each alone, in any order; no buffer changes, in training or in a test."""
    encoder = convolutional().train()
    torch.manual_seed(1)
    objective = MAML(encoder, 2, 2, 2, 0.3, first_order)
    buffers = {k: v.clone() for k, v in encoder.named_buffers()}
    whole = image_batch(2)
    halves = []
    for i in (1, 0):
        half = image_batch(1)
        half["views"] = {"image": whole["views"]["image"][:, i * 8 : i * 8 + 8]}
        halves.append(objective(encoder, half).value.item())
    assert objective(encoder, whole).value.item() == pytest.approx(np.mean(halves), rel=1e-5)
    objective.solve(
        encoder.eval(), {"image": whole["views"]["image"][0, :4]}, torch.tensor([0, 0, 1, 1]), {"image": torch.randn(3, 1, 8, 8)}
    )
    assert all(torch.equal(v, buffers[k]) for k, v in encoder.named_buffers())
    assert not encoder.blocks[0].norm.training


def test_the_outer_gradient_reaches_a_batch_normalised_body():
    """Every parameter of body and head, by an ordinary backward; second and first order differ."""
    grads = []
    for first_order in (False, True):
        encoder = convolutional().train()
        torch.manual_seed(1)
        objective = MAML(encoder, 2, 1, 1, 0.3, first_order)
        objective(encoder, image_batch(2)).value.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in weights_of(encoder, objective))
        grads.append(encoder.blocks[0].conv.weight.grad)
    assert not torch.allclose(*grads)


@pytest.mark.parametrize("changed", [{"inner_steps": 0}, {"test_steps": 0}, {"inner_lr": 0.0}])
def test_an_inner_loop_of_nothing_is_the_users_mistake(changed):
    with pytest.raises(UserError, match=next(iter(changed))):
        maml(tiny(), **changed)


@pytest.mark.parametrize("make", [lambda e: Prototypes(e, 3), lambda e: maml(e, ANIL).float()])
def test_features_of_a_narrow_format_are_widened_first(make):
    """Under bfloat16, similarities and inner steps are float32's of the features that there are."""
    encoder, batch = tiny(), batch_of()

    class Narrow(VectorEncoder):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__(nn.Identity(), 4)
            self.dtype = dtype

        def forward(self, inputs):
            found = encoder(inputs)
            return found._replace(pooled=found.pooled.detach().bfloat16().to(self.dtype))

    losses = [make(Narrow(dtype))(Narrow(dtype), dict(batch)).value for dtype in (torch.bfloat16, torch.float32)]
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)


@pytest.mark.parametrize("shots", [1, 5])
def test_the_shipped_inner_steps_of_anil_descend(shots):
    """On features as Conv4 has them (no number below 0, length about 14), each step lowers the loss on the support: none overshoots."""
    cfg = compose("finetune", ["+target=omniglot", "+episodes=anil", "from=scratch"]).episodes.method
    g = torch.Generator().manual_seed(0)
    x = torch.relu(1 + torch.randn(20, 5, 1, 64, generator=g) + torch.randn(20, 5, shots, 64, generator=g))
    x = x * (14.4 / x.norm(dim=-1).mean())
    head = torch.nn.Linear(64, 5)
    labels = torch.arange(5).repeat_interleave(shots).expand(20, -1)
    losses = []
    for steps in range(cfg.test_steps + 1):
        weight, bias = descend_head(x, head.weight, head.bias, steps, cfg.inner_lr, False)
        logits = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight.transpose(1, 2))
        losses.append(float(F.cross_entropy(logits.flatten(0, 1), labels.flatten())))
    assert all(b < a for a, b in itertools.pairwise(losses)), losses


class Attending(nn.Module):
    """Scores [B, 3] of x [B, 5, 8] by one layer of attention: torch's operator, or its definition."""

    def __init__(self, by_definition: bool):
        super().__init__()
        self.qkv, self.head, self.by_definition = nn.Linear(8, 24, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64), by_definition

    def forward(self, inputs):
        q, k, v = self.qkv(inputs["x"]).unsqueeze(1).chunk(3, -1)
        attention = _by_definition if self.by_definition else F.scaled_dot_product_attention
        return self.head(attention(q, k, v).mean((1, 2)))


def _by_definition(q, k, v):
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def test_second_derivatives_pass_attention():
    """The fast kernels of attention have none: without dropout torch would take one of them."""
    torch.manual_seed(0)
    x, labels = torch.randn(4, 5, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    fast, slow = Attending(False), Attending(True)
    slow.load_state_dict(fast.state_dict())
    found = []
    for model in (fast, slow):
        weights = dict(model.named_parameters())
        moved = descend(model, weights, {"x": x}, labels, 2, 0.5, True)
        loss = F.cross_entropy(functional_call(model, moved, ({"x": x.flip(0)},)), labels)
        found.append(torch.autograd.grad(loss, list(weights.values())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [MAML, ANIL])
def test_episodes_of_one_rank_drop_out_what_those_of_its_lanes_do(kind):
    """Two ranks with an episode each, and one that has both: in the inner steps, too."""
    torch.manual_seed(0)
    encoder = VectorEncoder(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh()), 4).double().train()
    method, whole = maml(encoder, kind), batch_of(episodes=3)
    size = whole["support"][0].numel() + whole["query"][0].numel()

    def of(held: Lanes, own: list[int]) -> float:
        first = batch_of(episodes=len(own), x=whole["views"]["x"].view(3, size, 3)[own].flatten(0, 1))
        held.begin(1, 2)
        with held.drawing(len(own) * size, together=size):
            return float(method(encoder, first).value.detach()) * len(own)

    both = of(Lanes(2), [0, 1, 2])
    assert both == pytest.approx(of(Lanes(2, 0, 2), [0, 2]) + of(Lanes(2, 1, 2), [1]), rel=1e-10)
    assert both != pytest.approx(of(Lanes(1), [0, 1, 2]), rel=1e-4)
