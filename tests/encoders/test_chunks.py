"""Protects `chunk_size=` (gradient cache): the gradient of the joined batch, in the memory of a part."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY_TEXT, TINY_VIT
from live_memory import Live
from test_recomputing import inputs_of, made
from test_resume import in_two_parts, same
from tiny_tasks import SMALLER
from torch import nn
from vector_encoder import VectorEncoder

from sslt import recomputing
from sslt.config import build, compose
from sslt.encoders import chunks
from sslt.lanes import Lanes
from sslt.objectives.base import encode_views
from sslt.objectives.contrastive import NTXent
from sslt.stages.common import starting_encoder

SIMCLR = ["pretrain", "+task=simclr", "encoder=vit_patches", *TINY_VIT, "batch_size=32", "online_probe.every_n_epochs=0"]
SIMCLR += ["trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "chunk_size=10"]


class Wide(nn.Module):
    """Two layers, of which the first is far wider than what comes out; no two rows know of each other."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 512), nn.Tanh(), nn.Dropout(dropout), nn.Linear(512, 8))

    def forward(self, x):
        return self.net(x)


def simclr_by_hand(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent of rows [2N, D], row i and N + i being a pair: written out, anchor by anchor."""
    z, n = z / z.norm(dim=1, keepdim=True), len(z) // 2
    terms = []
    for i in range(2 * n):
        scores = {j: z[i] @ z[j] / temperature for j in range(2 * n) if j != i}
        terms.append(torch.log(sum(s.exp() for s in scores.values())) - scores[(i + n) % (2 * n)])
    return sum(terms) / len(terms)


@pytest.mark.parametrize("scale", [1.0, 1e3, 0.0])  # embeddings that are far apart, and all the same
@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_the_gradient_is_that_of_the_joined_batch(size, scale):
    """In float64, against the loss written out on the whole batch; parts that do not divide it, of one row, and larger than it."""
    torch.manual_seed(0)
    encoder = VectorEncoder(Wide().double(), 8)
    objective = NTXent(encoder, temperature=0.3, hidden=0, out=8, norm=False)
    x = scale * torch.randn(2, 6, 4, dtype=torch.float64) + torch.arange(6)[:, None] * 1e-3
    expected = torch.autograd.grad(simclr_by_hand(encoder.layer(x.flatten(0, 1)), 0.3), list(encoder.parameters()))
    encoder.chunk_size = size
    objective(encoder, {"views": {"x": x}}).value.backward()
    for p, grad in zip(encoder.parameters(), expected, strict=True):
        assert torch.allclose(p.grad, grad, rtol=1e-9, atol=1e-12)


def test_every_part_drops_out_again_what_it_dropped_out():
    """The gradient is that of the embeddings that were there; and what comes after the step is as random as without it."""
    torch.manual_seed(0)
    encoder = VectorEncoder(Wide(0.5).double().train(), 8)
    x, weight = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 8, dtype=torch.float64)
    torch.manual_seed(1)
    pooled = torch.cat([encoder.layer(part) for part in x.split(4)])  # with a graph of all
    expected = torch.autograd.grad((pooled.tanh() * weight).sum(), list(encoder.parameters()))
    drawn = torch.rand(1)
    encoder.chunk_size = 4
    torch.manual_seed(1)
    found = chunks.encoded(encoder, {"x": x}).pooled
    (found.tanh() * weight).sum().backward()
    assert torch.equal(found, pooled) and torch.equal(torch.rand(1), drawn)
    assert all(torch.allclose(p.grad, grad, rtol=1e-12) for p, grad in zip(encoder.parameters(), expected, strict=True))


@pytest.mark.parametrize("again", [False, True])
def test_memory_does_not_grow_with_the_batch(again):
    """Eight times the batch needs little more; with activation checkpointing within a part, too."""

    def peak(rows: int) -> int:
        encoder = made("ViT")
        encoder.chunk_size = 4
        inputs = inputs_of(encoder, rows)
        with recomputing.recomputed([encoder] if again else []) if again else Live(), Live() as live:
            chunks.encoded(encoder, inputs).pooled.square().sum().backward()
        return live.peak

    small, large = peak(8), peak(32)
    assert large < 1.25 * small


def test_tokens_are_not_there():
    """What reads tokens fails loudly instead of reading others."""
    encoder = VectorEncoder(Wide(), 8)
    encoder.chunk_size = 2
    features = encode_views(encoder, {"views": {"x": torch.randn(1, 3, 4)}})
    assert features.pooled.shape == (3, 8)
    with pytest.raises(TypeError, match="pooled features alone"):
        _ = features.tokens


def test_parts_drop_out_what_those_of_the_lanes_do():
    """One rank that has the rows of two, [V · 6, 4], against each of them by itself, gradient and all."""
    torch.manual_seed(0)
    encoder = VectorEncoder(Wide(0.5).double().train(), 8)
    encoder.chunk_size, x = 2, torch.randn(2, 6, 4, dtype=torch.float64)

    def gradient(held: Lanes, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        held.begin(1, 2)
        with held.drawing(x.shape[1]):
            found = chunks.encoded(encoder, {"x": x.flatten(0, 1)}).pooled
        return found.detach().unflatten(0, (2, -1)), list(torch.autograd.grad(found.tanh().sum(), list(encoder.parameters())))

    pooled, joint = gradient(Lanes(2), x)
    own = [gradient(Lanes(2, r, 2), x[:, r::2]) for r in (0, 1)]
    assert all(torch.equal(pooled[:, r::2], own[r][0]) for r in (0, 1))
    assert all(torch.allclose(a, b + c, rtol=1e-12) for a, b, c in zip(joint, own[0][1], own[1][1], strict=True))


TASKS = ["barlow_twins", "byol", "dcl", "deepcluster_v2", "dino", "lejepa", "moco_v2", "moco_v3", "nnclr", "simsiam", "supcon", "swav"]
TASKS += ["vicreg", "wmse"]
FITTING = {"wmse": ["objective.out=8"]}


@pytest.mark.parametrize("task", TASKS)
def test_objectives_that_say_they_read_pooled_features_alone(task):
    """Each has the gradients that it has without, of encoder and heads, in float64."""
    own = [*SMALLER.get(task, []), *FITTING.get(task, [])]
    cfg = compose("pretrain", [f"+task={task}", *own, "encoder=vit_patches", *TINY_VIT, "data=digits"])
    torch.manual_seed(0)
    source = build(cfg.data)
    encoder = starting_encoder(cfg, source).double().train()
    objective = build(cfg.objective, encoder).train()
    p = encoder.processor
    samples = p.prepare(source, "train")
    objective.prepare(encoder, samples, 16)
    objective.double()
    encoder.register_forward_pre_hook(lambda module, args: ({k: x.double() for k, x in args[0].items()},))
    images = torch.randn(2, 16, p.channels, p.size, p.size, dtype=torch.float64)
    batch = {"views": {"image": images}, "label": torch.arange(16) % 3, "index": torch.arange(16)}
    found = []
    for size in (None, 5):
        network, loss = copy.deepcopy((encoder, objective), {id(p): p, id(samples): samples})
        network.chunk_size = size
        torch.manual_seed(2)
        loss(network, dict(batch)).value.backward()
        found.append({n: q.grad for m in (network, loss) for n, q in m.named_parameters() if q.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert torch.allclose(found[1][name], grad, rtol=1e-4, atol=1e-6 * float(grad.abs().max()) + 1e-12), name


def test_runs_go_on_exactly_and_texts_too(sslt, here, monkeypatch):
    """With accumulated batches and an interruption; SimCSE, whose views differ by dropout alone."""
    sslt(*SIMCLR, "hydra.run.dir=whole")
    in_two_parts(sslt, SIMCLR, 4)
    assert same(here / "whole", here / "part")
    sslt("pretrain", "+task=simcse", *TINY_TEXT, "batch_size=16", "trainer.max_steps=2", "chunk_size=8", "online_probe.every_n_epochs=0")


def test_what_cannot_be_is_said(sslt, here, capsys):
    """BatchNorm, which would take a part for the batch, and losses that read tokens: one line each."""
    cases = [
        (["pretrain", "+task=simclr", "chunk_size=64"], "BatchNorm in the encoder (model.bn1)"),
        (["pretrain", "+task=mae", *TINY_VIT, "chunk_size=64"], "MAE reads more of a batch"),
        (["pretrain", "+task=simclr", "chunk_size=0"], "chunk_size=0 is out of range"),
    ]
    for command, words in cases:
        sslt(*command, "trainer.max_steps=1", "trainer.accelerator=cpu", code=2)
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said
