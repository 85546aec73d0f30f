"""Protects DINO, iBOT, MSN and SwAV against their papers' formulas, in loops and float64, and the details that decide their success."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_vit import images, small_vit

from sslt.errors import UserError
from sslt.objectives import dino
from sslt.objectives.clustering import DeepClusterV2, SwAV, sinkhorn
from sslt.objectives.dino import DINO, IBOT
from sslt.objectives.msn import MSN
from sslt.objectives.parts.kmeans import kmeans, nearest_centroid
from sslt.objectives.parts.prototypes import Centre, UnitPrototypes, cross_entropy_of_views, ramp

B, K = 5, 7
DINO_ARGS = {"hidden": 8, "bottleneck": 6, "out": K, "temperature": 0.1, "teacher_temperature_start": 0.04, "teacher_temperature": 0.07}
DINO_ARGS |= {"warmup": 0.3, "freeze": 0.01, "momentum": 0.9, "centre_momentum": 0.8}


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def entropy(p: np.ndarray, log_q: np.ndarray) -> float:
    return float(-(p * log_q).sum())


# -------------------------------------------------------------------- parts
def test_cross_entropy_is_over_pairs_of_different_views():
    """Against the loop: each target with each other view, never with its own; the entropy itself where all agree."""
    p, q = torch.softmax(scores(2, B, K), -1), F.log_softmax(scores(5, B, K, seed=1), -1)
    pairs = [(a, b) for a in range(2) for b in range(5) if a != b]
    expected = np.mean([entropy(p[a, i].numpy(), q[b, i].numpy()) for a, b in pairs for i in range(B)])
    assert float(cross_entropy_of_views(p, q)) == pytest.approx(expected)
    same = p[:1].expand(2, B, K)
    assert float(cross_entropy_of_views(same, same.log())) == pytest.approx(float(-(p[0] * p[0].log()).sum(-1).mean()))
    shuffled = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    assert float(cross_entropy_of_views(p[:, shuffled], q[:, shuffled])) == pytest.approx(expected)


def test_prototypes_are_cosines_and_can_be_frozen():
    """Length does not matter; frozen ones get a gradient of zero while rows get theirs."""
    torch.manual_seed(0)
    part, rows = UnitPrototypes(6, K), torch.randn(4, 6, requires_grad=True)
    out = part(rows)
    w = part.weight.detach().numpy()
    expected = rows.detach().numpy() @ w.T / np.outer(np.linalg.norm(rows.detach().numpy(), axis=1), np.linalg.norm(w, axis=1))
    assert np.allclose(out.detach().numpy(), expected, atol=1e-6) and torch.allclose(out, part(3 * rows), atol=1e-6)
    part(rows, frozen=True).square().sum().backward()
    assert part.weight.grad is not None and not part.weight.grad.any() and rows.grad.any()
    part(rows).square().sum().backward()
    assert part.weight.grad.any()


def test_the_centre_is_a_running_mean():
    """m·centre + (1-m)·mean of the batch, over views and samples."""
    centre = Centre(K, 0.8)
    a, b = scores(2, B, K).float(), scores(2, B, K, seed=1).float()
    centre.update(a)
    assert torch.allclose(centre.mean, 0.2 * a.mean((0, 1)), atol=1e-6)
    centre.update(b)
    assert torch.allclose(centre.mean, 0.16 * a.mean((0, 1)) + 0.2 * b.mean((0, 1)), atol=1e-6)
    assert torch.allclose(centre(a), a - centre.mean)


def test_ramp():
    """A line, then flat; no division by a warm-up of nothing."""
    assert [ramp(0.04, 0.07, 0.3, p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert ramp(0.04, 0.07, 0.0, 0.0) == 0.07


# -------------------------------------------------------------------- DINO, iBOT
def test_dino_loss_and_schedules():
    """Student and teacher scores against the loop; the temperature rises, the centre moves after the loss, in training only."""
    objective = DINO(small_vit("token"), **DINO_ARGS)
    student, teacher = scores(4, B, K).float(), scores(2, B, K, seed=1).float()
    objective.centre.mean.copy_(torch.linspace(-1, 1, K))
    objective.progress = 0.15
    centre = objective.centre.mean.double().numpy()
    s, t = student.double().numpy(), teacher.double().numpy()
    pairs = [(a, b) for a in range(2) for b in range(4) if a != b]
    loss = [entropy(softmax((t[a, i] - centre) / 0.055), np.log(softmax(s[b, i] / 0.1))) for a, b in pairs for i in range(B)]
    objective.eval()
    assert float(objective.compare(student, teacher).value) == pytest.approx(np.mean(loss), rel=1e-4)
    assert np.allclose(objective.centre.mean.double().numpy(), centre)
    objective.train()
    assert float(objective.compare(student, teacher).value) == pytest.approx(np.mean(loss), rel=1e-4)
    assert np.allclose(objective.centre.mean.double().numpy(), 0.8 * centre + 0.2 * t.mean((0, 1)), atol=1e-6)


def test_dino_says_when_its_teacher_prefers_nothing():
    """Flat targets have the largest entropy and are named as trouble, sharp ones are not, and nothing is before the first step."""
    objective = DINO(small_vit("token"), **DINO_ARGS)
    assert objective.trouble() is None
    flat, sharp = torch.zeros(2, B, K), 5 * F.one_hot(torch.arange(B) % K, K).float().expand(2, B, K)
    found = objective.eval().compare(flat, flat)
    assert float(found.logs["target_entropy"]) == pytest.approx(math.log(K), rel=1e-5)
    assert "objective.teacher_temperature" in objective.trouble()
    found = objective.compare(flat, sharp)
    assert float(found.logs["target_entropy"]) == pytest.approx(0, abs=1e-4) and objective.trouble() is None
    # five samples of one prototype each: as a batch they use five of the seven
    assert float(found.logs["prototype_entropy"]) == pytest.approx(math.log(B), rel=1e-4)


def test_dino_freezes_its_prototypes_at_first_and_its_teacher_always():
    """In the first share of the run the last layer gets a gradient of zero; the teacher never gets one, and follows."""
    encoder, batch = small_vit("token"), images(4, 2)
    objective = DINO(encoder, **DINO_ARGS)
    for progress, moves in ((0.0, False), (0.5, True)):
        objective.progress = progress
        objective.zero_grad()
        objective(encoder, dict(batch)).value.backward()
        assert bool(objective.prototypes.weight.grad.any()) == moves
    assert all(p.grad is None for p in objective.teacher.parameters())
    with torch.no_grad():
        objective.prototypes.weight += 1
    before = objective.teacher["prototypes"].weight.clone()
    objective.progress = 0.0
    objective.after_step(encoder)
    assert torch.allclose(objective.teacher["prototypes"].weight, before + 0.1, atol=1e-6)


def test_small_crops_are_one_forward_and_are_no_targets():
    """Two sizes, two forwards of the student and one of the teacher; more crops change the loss."""
    encoder = small_vit("token")
    objective = DINO(encoder, **DINO_ARGS)
    batch = images(3, 2)
    calls: list[tuple[int, ...]] = []
    encoder.register_forward_pre_hook(lambda m, a: calls.append(tuple(a[0]["image"].shape)))
    objective.teacher["encoder"].register_forward_pre_hook(lambda m, a: calls.append(tuple(a[0]["image"].shape)))
    alone = float(objective.eval()(encoder, dict(batch)).value)
    local = torch.randn(3, 3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    calls.clear()
    more = float(objective.eval()(encoder, batch | {"local": {"image": local}}).value)
    assert sorted(calls) == [(6, 3, 16, 16), (6, 3, 16, 16), (9, 3, 8, 8)]
    assert more != pytest.approx(alone)


def test_ibot_adds_the_hidden_patches(monkeypatch):
    """Against the loop: DINO's loss on masked views, and teacher against student at each hidden patch, centred by its own mean."""
    encoder, batch = small_vit("token"), images(2, 2)
    masked = torch.zeros(4, 16, dtype=torch.bool).scatter(
        1, torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [5, 6, 9, 10]]), True
    )
    monkeypatch.setattr(dino, "block_tokens", lambda *_: masked)
    objective = IBOT(encoder, share=0.25, aspect=[0.5, 2.0], **DINO_ARGS).eval()
    with torch.no_grad():
        objective.teacher["prototypes"].weight.copy_(scores(K, 6, seed=3))  # else teacher and student would be one
        objective.centre.mean.copy_(torch.linspace(-1, 1, K))
        objective.patch_centre.mean.copy_(torch.linspace(2, 0, K))
        rows = {"image": batch["views"]["image"].flatten(0, 1)}
        student = encoder(encoder.hide(rows, masked, objective.token))
        teacher = objective.teacher["encoder"](rows)
        score = {
            "pooled": (objective.student_scores(student.pooled), objective.teacher_scores(teacher.pooled)),
            "tokens": (objective.student_scores(student.tokens.flatten(0, 1)), objective.teacher_scores(teacher.tokens.flatten(0, 1))),
        }
    (s, t), (ps, pt) = ([x.double().numpy() for x in score[k]] for k in ("pooled", "tokens"))
    centre, patch_centre = objective.centre.mean.double().numpy(), objective.patch_centre.mean.double().numpy()
    ours = [entropy(softmax((t[2 * v + i] - centre) / 0.04), np.log(softmax(s[2 * (1 - v) + i] / 0.1))) for v in range(2) for i in range(2)]
    hidden = [16 * row + p for row in range(4) for p in range(16) if masked[row, p]]
    patches = [entropy(softmax((pt[p] - patch_centre) / 0.04), np.log(softmax(ps[p] / 0.1))) for p in hidden]
    found = objective(encoder, dict(batch))
    assert float(found.logs["image_loss"]) == pytest.approx(np.mean(ours), rel=1e-4)
    assert float(found.logs["patch_loss"]) == pytest.approx(np.mean(patches), rel=1e-4)
    assert float(found.value) == pytest.approx(np.mean(ours) + np.mean(patches), rel=1e-4)
    objective.train()(encoder, dict(batch))
    moved = 0.8 * patch_centre + 0.2 * np.mean([pt[p] for p in hidden], 0)
    assert np.allclose(objective.patch_centre.mean.double().numpy(), moved, atol=1e-5)


# -------------------------------------------------------------------- MSN
def test_msn_against_the_loop():
    """Cross-entropy with sharpened targets less the entropy of the mean assignment of all anchors."""
    args = {
        "share": 0.25,
        "hidden": 8,
        "out": 6,
        "prototypes": K,
        "temperature": 0.1,
        "target_temperature": 0.025,
        "spread": 2.0,
        "momentum": 0.9,
    }
    objective = MSN(small_vit("token"), **args)
    anchors, targets = scores(3, B, K), torch.softmax(scores(B, K, seed=1) / 0.5, -1)
    probs = np.array([[softmax(anchors[a, i].numpy() / 0.1) for i in range(B)] for a in range(3)])
    agreement = np.mean([entropy(targets[i].numpy(), np.log(probs[a, i])) for a in range(3) for i in range(B)])
    mean = probs.mean((0, 1))
    found = objective.compare(anchors, targets)
    assert float(found.value) == pytest.approx(agreement - 2.0 * entropy(mean, np.log(mean)), rel=1e-5)
    assert float(found.logs["prototype_entropy"]) <= math.log(K)
    encoder = small_vit("token")
    objective = MSN(encoder, **args)
    objective(encoder, images(3, 2)).value.backward()
    assert objective.prototypes.weight.grad.any() and all(p.grad is None for p in objective.teacher.parameters())


def test_msns_anchors_are_the_other_views():
    """The first view, whole, is the teacher's; the others, less the patches left out, the student's; small crops are seen whole."""
    encoder, batch = small_vit("token"), images(3, 3) | {"local": images(3, 2, seed=5)["views"]}
    objective = MSN(encoder, 0.25, 8, 6, K, 0.1, 0.025, 2.0, 0.9)
    seen: dict[str, list[dict]] = {"student": [], "teacher": []}
    encoder.register_forward_pre_hook(lambda module, args: seen["student"].append(args[0]))
    objective.teacher["encoder"].register_forward_pre_hook(lambda module, args: seen["teacher"].append(args[0]))
    objective(encoder, batch)
    views = batch["views"]["image"]
    (target,), (anchors, small) = seen["teacher"], seen["student"]
    assert torch.equal(target["image"], views[0]) and "visible" not in target
    assert torch.equal(anchors["image"], views[1:].flatten(0, 1)) and anchors["visible"].shape == (6, 12)
    assert torch.equal(small["image"], batch["local"]["image"].flatten(0, 1)) and "visible" not in small
    assert not objective.targets(views[0]).requires_grad  # the prototypes they are found by move with the anchors alone


# -------------------------------------------------------------------- SwAV, DeepCluster
def test_sinkhorn_gives_each_prototype_its_share():
    """Rows sum to 1, columns to N/K; against the plain iteration in numpy; equal scores give equal shares."""
    s = scores(12, 4)
    q = sinkhorn(s, 0.5, 50)
    assert torch.allclose(q.sum(1), torch.ones(12, dtype=torch.float64)) and torch.allclose(
        q.sum(0), torch.full((4,), 3.0).double(), atol=1e-6
    )
    plain = np.exp(s.numpy() / 0.5)
    for _ in range(3):
        plain = plain / plain.sum(0, keepdims=True)
        plain = plain / plain.sum(1, keepdims=True)
    assert np.allclose(sinkhorn(s, 0.5, 3).numpy(), plain)
    assert torch.allclose(sinkhorn(torch.zeros(6, 3), 0.05, 3), torch.full((6, 3), 1 / 3))
    assert torch.isfinite(sinkhorn(1e4 * s, 0.05, 3)).all()


def test_swav_predicts_the_other_views_assignment():
    """Against the loop, without and with a queue, whose rows share the prototypes once it is full."""
    encoder, batch = small_vit("token"), images(4, 2)
    objective = SwAV(encoder, 8, 6, K, 0.1, 0.05, 3, 4, 0.0)
    for step in range(2):
        queue = objective.queue.rows
        found = float(objective(encoder, dict(batch)).value)
        with torch.no_grad():
            z = F.normalize(objective.projector(encoder({"image": batch["views"]["image"].flatten(0, 1)}).pooled), dim=1)
            s = objective.prototypes(z).unflatten(0, (2, 4)).double()
            past = objective.prototypes(queue).double() if step else s[0][:0]
        codes = [sinkhorn(torch.cat([view, past]), 0.05, 3)[:4].numpy() for view in s]
        expected = np.mean([entropy(codes[a][i], np.log(softmax(s[b, i].numpy() / 0.1))) for a, b in ((0, 1), (1, 0)) for i in range(4)])
        assert found == pytest.approx(expected, rel=1e-4), step
        assert torch.allclose(objective.queue.rows, z[:4], atol=1e-6)


class Numbered:
    """Samples whose image says their number."""

    def __init__(self, n: int):
        g = np.random.default_rng(0)
        self.images = (g.standard_normal((n, 3, 16, 16)) + np.arange(n)[:, None, None, None] % 2 * 3).astype(np.float32)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index):
        return {"image": torch.from_numpy(self.images[index]), "index": torch.as_tensor(index)}


def test_deepcluster_assigns_from_its_memory_and_only_at_epochs_ends():
    """At first the memory is one pass over the samples; the targets are its clusters; they change after an epoch of steps."""
    encoder, samples = small_vit("token"), Numbered(12)
    objective = DeepClusterV2(encoder, 8, 6, [2, 3], 0.1, 5)
    objective.prepare(encoder, samples, 4)
    index = torch.arange(4)
    batch = {"views": {"image": torch.from_numpy(samples.images[:4]).expand(2, -1, -1, -1, -1)}, "index": index}
    found = objective(encoder, dict(batch))
    first = objective.assigned.clone()
    with torch.no_grad():
        z = F.normalize(objective.projector(encoder({"image": batch["views"]["image"].flatten(0, 1)}).pooled), dim=1).double().numpy()
    expected = []
    for i in range(2):
        logits = z @ objective.centres(i).double().numpy().T / 0.1
        expected += [-np.log(softmax(row))[int(first[i, j % 4])] for j, row in enumerate(logits)]
    assert float(found.value) == pytest.approx(np.mean(expected), rel=1e-4)
    assert torch.allclose(objective.memory[:4], torch.from_numpy(z[:4]).float(), atol=1e-5)
    assert all(c.norm(dim=1).allclose(torch.ones(len(c)), atol=1e-5) for c in (objective.centres(0), objective.centres(1)))
    objective.memory[:6] = -objective.memory[:6]
    for _ in range(2):
        objective(encoder, dict(batch))
    assert torch.equal(objective.assigned, first)  # three steps are an epoch
    objective(encoder, dict(batch))
    assert not torch.equal(objective.assigned, first)


def test_too_few_samples_are_refused():
    """More clusters, or a longer queue, than samples."""
    encoder = small_vit("token")
    with pytest.raises(UserError, match=r"objective\.clusters"):
        DeepClusterV2(encoder, 8, 6, [20], 0.1, 5).prepare(encoder, Numbered(12), 4)
    with pytest.raises(UserError, match=r"objective\.queue"):
        SwAV(encoder, 8, 6, K, 0.1, 0.05, 3, 50, 0.0).prepare(encoder, Numbered(12), 4)
    with pytest.raises(UserError, match="at least 2"):
        SwAV(encoder, 8, 6, K, 0.1, 0.05, 3, 0, 0.0).prepare(encoder, Numbered(12), 1)


def test_under_bfloat16_losses_and_clusters_are_float32s():
    """Autocast would round scores of a loss near 7 to steps of 0.03, and send near rows to one centre."""
    torch.manual_seed(0)
    targets, guesses = torch.randn(2, 5, 64).softmax(-1), torch.randn(4, 5, 64).log_softmax(-1)
    x = F.normalize(torch.randn(200, 16), dim=1)
    plain = cross_entropy_of_views(targets, guesses), kmeans(x, 12, steps=3, seed=0), nearest_centroid(x, x[:50])
    with torch.autocast("cpu", torch.bfloat16):
        cast = cross_entropy_of_views(targets, guesses), kmeans(x, 12, steps=3, seed=0), nearest_centroid(x, x[:50])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
