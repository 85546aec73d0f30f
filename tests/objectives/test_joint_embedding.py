"""Protects the joint-embedding losses: each against its paper's formula, written with loops in float64, and at known points."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_objectives import OBJECTIVES, bare
from torch import nn
from vector_encoder import VectorEncoder

from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.objectives.byol import SimSiam, cosine_to_others
from sslt.objectives.decorrelation import WMSE, BarlowTwins, VICReg
from sslt.objectives.lejepa import LeJEPA, epps_pulley
from sslt.objectives.moco import NNCLR, MoCoV2, MoCoV3, info_nce
from sslt.objectives.parts.momentum import Queue, Teacher
from sslt.objectives.supervised_contrast import decoupled, supervised

V, B, D = 2, 6, 4


class Line(VectorEncoder):
    """Features are a linear map of the inputs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(5, D), D)


def projections(seed: int = 0, v: int = V, b: int = B, d: int = D) -> torch.Tensor:
    return torch.randn(v, b, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(v: int = V, b: int = B, seed: int = 1) -> dict:
    x = torch.randn(v, b, 5, generator=torch.Generator().manual_seed(seed))
    return {"views": {"x": x}, "label": torch.arange(b) % 2}


def features(encoder: Encoder, batch: dict) -> np.ndarray:
    with torch.no_grad():
        return encoder.layer(batch["views"]["x"]).double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# -------------------------------------------------------------------- against the papers' formulas
@pytest.mark.parametrize("v", [2, 3])
def test_byol_is_the_mean_of_two_minus_two_cosines(v):
    """Every ordered pair of views once; 0 when they agree, 4 when opposed, the same under a rotation of all."""
    p, z = projections(0, v), projections(1, v)
    pairs = [(a, b) for a in range(v) for b in range(v) if a != b]
    u, w = unit(p.numpy()), unit(z.numpy())
    expected = np.mean([2 - 2 * u[a, i] @ w[b, i] for a, b in pairs for i in range(B)])
    assert float(cosine_to_others(p, z)) == pytest.approx(expected, rel=1e-5)
    same = p[:1].expand(v, B, D)
    assert float(cosine_to_others(same, same)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_to_others(same, -same)) == pytest.approx(4, abs=1e-5)
    q, _ = torch.linalg.qr(projections(5)[0, :4])
    assert float(cosine_to_others(p @ q, z @ q)) == pytest.approx(expected, rel=1e-5)


def test_simsiam_is_byol_with_itself_as_the_target():
    """2 - 2·cos of predictions and of projections without gradient."""
    encoder, batch = Line(), views()
    found = bare(SimSiam(encoder, 8, D, 3))(encoder, batch).value
    z = unit(features(encoder, batch))
    assert float(found.detach()) == pytest.approx(np.mean([2 - 2 * z[0, i] @ z[1, i] for i in range(B)]), rel=1e-5)
    found.backward()
    moved = encoder.layer.weight.grad.clone()
    encoder.layer.weight.grad = None
    both = cosine_to_others(encoder(views()["views"]).pooled, encoder(views()["views"]).pooled)
    both.backward()
    assert torch.allclose(moved, encoder.layer.weight.grad / 2, atol=1e-6)  # half the gradient is stopped


def nce(query: np.ndarray, keys: np.ndarray, i: int, temperature: float) -> float:
    scores = [query @ k / temperature for k in keys]
    return math.log(sum(math.exp(s) for s in scores)) - scores[i]


def test_info_nce_against_the_loop():
    """The key of the same row against all keys."""
    q, k = unit(projections(0)[0].numpy()), unit(projections(1)[0].numpy())
    expected = np.mean([nce(q[i], k, i, 0.3) for i in range(B)])
    assert float(info_nce(torch.tensor(q), torch.tensor(k), 0.3)[0]) == pytest.approx(expected)


def test_moco_v2_against_the_loop_and_its_queue():
    """One positive against the queue; keys join it afterwards, in evaluation not; the queue is a ring."""
    encoder, batch = Line(), views()
    objective = bare(MoCoV2(encoder, 8, D, 0.2, 0.9, queue=20))
    negatives = objective.queue.rows.double().numpy()
    z = unit(features(encoder, batch))
    expected = np.mean([nce(z[a, i], np.concatenate([z[b, i : i + 1], negatives]), 0, 0.2) for a, b in ((0, 1), (1, 0)) for i in range(B)])
    assert float(objective.eval()(encoder, views()).value) == pytest.approx(expected, rel=1e-4)
    assert np.array_equal(objective.queue.rows.double().numpy(), negatives)
    assert float(objective.train()(encoder, views()).value) == pytest.approx(expected, rel=1e-4)
    rows = objective.queue.rows.double().numpy()
    assert np.allclose(rows[:12], z.transpose(1, 0, 2).reshape(12, D), atol=1e-6) and np.array_equal(rows[12:], negatives[12:])
    objective(encoder, views(seed=2))
    assert int(objective.queue.place) == 4


def test_moco_v3_against_the_loop():
    """Symmetric InfoNCE of the batch, times 2·temperature."""
    encoder, batch = Line(), views()
    z = unit(features(encoder, batch))
    expected = 2 * 0.2 * np.mean([nce(z[a, i], z[b], i, 0.2) for a, b in ((0, 1), (1, 0)) for i in range(B)])
    assert float(bare(MoCoV3(encoder, 8, D, 0.2, 0.9))(encoder, batch).value) == pytest.approx(expected, rel=1e-4)


def test_nnclr_against_the_loop():
    """The past projection nearest to the other view's stands in for it."""
    encoder, batch = Line(), views()
    objective = bare(NNCLR(encoder, 8, D, 0.2, queue=30))
    rows, z = objective.queue.rows.double().numpy(), unit(features(encoder, batch))
    losses = []
    for a, b in ((0, 1), (1, 0)):
        near = np.stack([rows[np.argmax([z[b, i] @ r for r in rows])] for i in range(B)])
        losses += [nce(near[i], z[a], i, 0.2) for i in range(B)]
    assert float(objective(encoder, batch).value) == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("v", [2, 3])
def test_dcl_leaves_the_positive_out_of_the_sum(v):
    """Negatives are all views of the other samples."""
    z = projections(3, v)
    u = unit(z.numpy())
    losses = []
    for a in range(v):
        for i in range(B):
            others = [math.exp(u[a, i] @ u[b, j] / 0.3) for b in range(v) for j in range(B) if j != i]
            positive = np.mean([u[a, i] @ u[b, i] / 0.3 for b in range(v) if b != a])
            losses.append(math.log(sum(others)) - positive)
    assert float(decoupled(z, 0.3)) == pytest.approx(np.mean(losses))


def test_supcon_against_the_loop():
    """L_out: the mean over an anchor's positives stands outside the logarithm. With distinct labels it is NT-Xent."""
    z, labels = projections(4), torch.tensor([0, 1, 0, 2, 1, 0])
    u, y = unit(z.numpy()).reshape(-1, D), np.tile(labels.numpy(), V)
    losses = []
    for i in range(V * B):
        total = sum(math.exp(u[i] @ u[j] / 0.2) for j in range(V * B) if j != i)
        own = [math.log(math.exp(u[i] @ u[j] / 0.2) / total) for j in range(V * B) if j != i and y[j] == y[i]]
        losses.append(-np.mean(own))
    assert float(supervised(z, labels, 0.2)) == pytest.approx(np.mean(losses))
    from sslt.objectives.contrastive import nt_xent

    assert float(supervised(z, torch.arange(B), 0.2)) == pytest.approx(float(nt_xent(z, 0.2)[0]))


def test_barlow_twins_against_the_loop():
    """Correlations over the batch; identical views leave only the redundancy."""
    encoder, batch = Line(), views()
    objective = bare(BarlowTwins(encoder, 8, D, 0.3, 0.5))
    z = features(encoder, batch)
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in z)
    c = [[sum(a[n, i] * b[n, j] for n in range(B)) / B for j in range(D)] for i in range(D)]
    on = sum((1 - c[i][i]) ** 2 for i in range(D))
    off = sum(c[i][j] ** 2 for i in range(D) for j in range(D) if i != j)
    assert float(objective(encoder, batch).value) == pytest.approx(0.5 * (on + 0.3 * off), rel=1e-4)
    same = {"views": {"x": batch["views"]["x"][:1].expand(2, -1, -1)}}
    assert float(objective(encoder, same).logs["invariance"]) == pytest.approx(0, abs=1e-6)


def test_vicreg_against_the_loop():
    """Mean square distance, hinge on the deviation, off-diagonal covariance; collapsed features cost the full hinge."""
    encoder, batch = Line(), views()
    objective = bare(VICReg(encoder, 8, D, 25.0, 50.0, 2.0))
    z = features(encoder, batch)
    same = np.mean([(z[0, i, j] - z[1, i, j]) ** 2 for i in range(B) for j in range(D)])
    hinge, mixed = 0.0, 0.0
    for x in z:
        hinge += np.mean([max(0, 1 - math.sqrt(x[:, j].var(ddof=1) + 1e-4)) for j in range(D)]) / V
        cov = (x - x.mean(0)).T @ (x - x.mean(0)) / (B - 1)
        mixed += sum(cov[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D / V
    assert float(objective(encoder, batch).value) == pytest.approx(25 * same + 50 * hinge + 2 * mixed, rel=1e-4)
    with torch.no_grad():
        encoder.layer.weight.zero_()
    assert float(objective(encoder, views()).logs["variance"]) == pytest.approx(0.99, abs=1e-4)


def test_wmse_whitens():
    """Whitened projections have mean 0 and covariance 1; the loss is 2 - 2·cos of them; too few samples are a mistake."""
    encoder = Line()
    objective = bare(WMSE(encoder, 8, D, None, 0.0))
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.randn(D, D, dtype=torch.float64) + 3
    white = objective.whiten(x)
    assert torch.allclose(white.mean(0), torch.zeros(D, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(torch.cov(white.T), torch.eye(D, dtype=torch.float64), atol=1e-9)
    batch = views(b=32)
    z = features(encoder, batch)
    whitened = []
    for x in z:
        lower = np.linalg.cholesky(np.cov(x.T))
        whitened.append(unit(np.stack([np.linalg.solve(lower, row - x.mean(0)) for row in x])))
    expected = np.mean([2 - 2 * whitened[0][i] @ whitened[1][i] for i in range(32)])
    assert float(objective(encoder, batch).value) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="at least 8 samples"):
        objective.prepare(encoder, None, 6)
    with pytest.raises(UserError, match=r"objective\.size=6"):
        WMSE(encoder, 8, D, 6, 0.0)


def test_epps_pulley_against_numerical_integration():
    """N ∫ |φ_n(t) - exp(-t²/2)|² exp(-t²/2) dt; small for normal samples, large for collapsed ones."""
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = np.linspace(-3, 3, 4001)
    ecf = np.mean([np.exp(1j * t * v) for v in x[:, 0].tolist()], axis=0)
    exact = 50 * np.trapezoid(np.abs(ecf - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t)
    assert float(epps_pulley(x, 400, 3.0)[0]) == pytest.approx(exact, rel=1e-3)
    assert float(epps_pulley(torch.zeros_like(x), 400, 3.0)[0]) > 20 * exact


def test_lejepa_is_prediction_and_sigreg():
    """(1-λ)·‖z - mean of views‖² + λ·SIGReg; new directions every step, the same on a run taken up again."""
    encoder, batch = Line(), views(b=40)
    objective = bare(LeJEPA(encoder, 8, D, 0.1, 16, 17, 3.0))
    z = features(encoder, batch)
    prediction = np.mean((z - z.mean(0)) ** 2)
    first, second = objective(encoder, views(b=40)), objective(encoder, views(b=40))
    assert float(first.logs["prediction"]) == pytest.approx(prediction, rel=1e-4)
    assert float(first.value) == pytest.approx(0.9 * prediction + 0.1 * float(first.logs["sigreg"]), rel=1e-4)
    assert float(first.logs["sigreg"]) != float(second.logs["sigreg"])
    twin = bare(LeJEPA(encoder, 8, D, 0.1, 16, 17, 3.0))
    twin.load_state_dict(objective.state_dict())
    assert float(twin(encoder, views(b=40)).value) == float(objective(encoder, views(b=40)).value)


# -------------------------------------------------------------------- teacher and queue
def test_the_teacher_follows_on_its_schedule():
    """m·teacher + (1-m)·student, m from its start to 1, or to what is given, on half a cosine; no gradient reaches it."""
    encoder = Line()
    teacher = Teacher(0.9, encoder=encoder)
    start = teacher["encoder"].layer.weight.clone()
    with torch.no_grad():
        encoder.layer.weight.add_(1.0)
    assert torch.equal(teacher["encoder"].layer.weight, start)
    teacher.follow(0.0, encoder=encoder)
    assert torch.allclose(teacher["encoder"].layer.weight, 0.9 * start + 0.1 * (start + 1))
    assert [teacher.momentum_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert [Teacher([0.5, 0.9], encoder=encoder).momentum_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.7, 0.9])
    assert {Teacher([0.99, 0.99], encoder=encoder).momentum_at(p) for p in (0.0, 0.3, 1.0)} == {0.99}


@pytest.mark.parametrize("momentum", [1.5, -0.1, [0.9, 1.1], [0.9], [0.9, 0.95, 1.0], [0.9, "high"], []])
def test_a_momentum_is_one_share_or_two(momentum):
    with pytest.raises(UserError, match=rf"objective\.momentum={re.escape(str(momentum))}: give a number from 0"):
        Teacher(momentum, encoder=Line())


def test_a_queue_keeps_the_newest():
    """Oldest first out; more rows than it holds leave the last of them."""
    queue = Queue(4, 2)
    queue.push(torch.tensor([[1.0, 0], [2, 0], [3, 0]]))
    queue.push(torch.tensor([[4.0, 0], [5, 0]]))
    assert sorted(queue.rows[:, 0].tolist()) == [2, 3, 4, 5]
    queue.push(torch.arange(12.0).view(6, 2))
    assert sorted(queue.rows[:, 0].tolist()) == [4, 6, 8, 10]
    queue.push(torch.arange(20, 32.0).view(3, 2, 2))  # two views of three samples: the last two samples stay
    assert sorted(queue.rows[:, 0].tolist()) == [24, 26, 28, 30]


def test_a_queue_is_no_longer_than_there_are_samples():
    """As long as there are, where no size is given; one that is given stands, or is refused."""
    free, given = Queue(None, 2), Queue(4, 2)
    free.fit(3)
    assert free.rows.shape == (3, 2)
    given.fit(4)
    assert given.rows.shape == (4, 2)
    with pytest.raises(UserError, match="more than the 3 samples"):
        given.fit(3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_of_the_batch_does_not_matter(name):
    """The same samples in another order give the same loss."""
    encoder, batch = Line(), views(b=16)
    torch.manual_seed(0)
    objective = OBJECTIVES[name](encoder).eval()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = {"views": {"x": batch["views"]["x"][:, order]}, "label": batch["label"][order]}
    assert float(objective(encoder, batch).value) == pytest.approx(float(objective(encoder, shuffled).value), rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_few_steps_lower_the_loss(name):
    """Gradients reach the encoder and all that trains; with the teacher following, the loss falls on a fixed batch."""
    encoder, batch = Line(), views(b=16)
    torch.manual_seed(0)
    objective = OBJECTIVES[name](encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *(p for p in objective.parameters() if p.requires_grad)], lr=0.01)
    losses = []
    for _ in range(40):
        loss = objective(encoder, {"views": batch["views"], "label": batch["label"]}).value
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()] if p.requires_grad)
        optimizer.step()
        objective.after_step(encoder)
        losses.append(float(loss))
    assert F.relu(torch.tensor(losses)).isfinite().all() and np.mean(losses[-5:]) < np.mean(losses[:3])
