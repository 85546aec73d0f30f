"""Objectives that compare projections of two views: z [2, B, D] → rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightly import loss as peer
from torch import Tensor, nn

from losses.common import Given, Row, build, ours, taught


def simclr(z: Tensor) -> Iterator[Row]:
    for t in (0.1, 0.5):
        yield Row(f"temperature {t}", ours(build("ntxent", Given(z.shape[-1]), temperature=t), z), peer.NTXentLoss(t)(*z))


def dcl(z: Tensor) -> Iterator[Row]:
    for t in (0.1, 0.5):
        yield Row(f"temperature {t}", ours(build("dcl", Given(z.shape[-1]), temperature=t), z), peer.DCLLoss(t)(*z))


def supcon(z: Tensor) -> Iterator[Row]:
    objective = build("supcon", Given(z.shape[-1]))
    each = torch.arange(z.shape[1])
    yield Row("a class for every sample", ours(objective, z, label=each), peer.NTXentLoss(objective.temperature)(*z))


def moco_v2(z: Tensor) -> Iterator[Row]:
    d = z.shape[-1]
    objective = build("moco_v2", Given(d), out=d, queue=4 * d)
    k, bank = taught(objective, z), objective.queue.rows
    value = ours(objective, z)

    def theirs(query: Tensor, key: Tensor) -> Tensor:
        criterion = peer.NTXentLoss(objective.temperature, memory_bank_size=(len(bank), d))
        criterion.memory_bank.bank = bank.clone()
        return criterion(query, key)

    choice = "Each view is once query and once key: the mean of the peer's loss in both directions, where the paper has one."
    yield Row(f"queue of {len(bank)}", value, theirs(z[0], k[1]), (theirs(z[0], k[1]) + theirs(z[1], k[0])) / 2, choice)


def nnclr(z: Tensor) -> Iterator[Row]:
    from lightly.models.modules import NNMemoryBankModule

    d = z.shape[-1]
    objective = build("nnclr", Given(d), out=d, queue=4 * d)
    finder = NNMemoryBankModule(size=(4 * d, d))
    finder.bank = objective.queue.rows
    neighbours = [finder(view.detach(), update=False) for view in z]
    value = ours(objective, z)
    example = peer.NTXentLoss(objective.temperature)
    whole = (example(neighbours[0], z[1]) + example(neighbours[1], z[0])) / 2
    choice = (
        "The paper's equation 3: a neighbour is held against the predictions of the batch. LightlySSL's example puts neighbours and "
        "predictions into SimCLR's loss, where each is also held against its own kind and predictions against neighbours."
    )
    yield Row("as in LightlySSL's example", value, whole, choice=choice, counted=False)

    def alone(i: int, query: Tensor, keys: Tensor) -> Tensor:
        """Equation 3 for one sample: the peer's loss with a memory bank of the other samples' predictions."""
        others = torch.cat([keys[:i], keys[i + 1 :]])
        criterion = peer.NTXentLoss(objective.temperature, memory_bank_size=(len(others), d))
        criterion.memory_bank.forward = lambda key, update: (key, nn.functional.normalize(others, dim=1).T)
        return criterion(query[i : i + 1], keys[i : i + 1])

    pairs = ((neighbours[0], z[1]), (neighbours[1], z[0]))
    paper = torch.stack([alone(i, n, p) for n, p in pairs for i in range(len(n))]).mean()
    yield Row("equation 3 out of the peer's parts", value, whole, paper, choice)


def byol(z: Tensor) -> Iterator[Row]:
    d = z.shape[-1]
    objective = build("byol", Given(d), out=d)
    k, criterion = taught(objective, z), peer.NegativeCosineSimilarity()
    theirs = (criterion(z[0], k[1]) + criterion(z[1], k[0])) / 2
    choice = "2 - 2·cos as in the paper's equation 2; the peer has -cos. Both are the mean of the two directions, which the paper adds."
    yield Row("", ours(objective, z), theirs, 2 + 2 * theirs, choice)


def simsiam(z: Tensor) -> Iterator[Row]:
    d = z.shape[-1]
    criterion = peer.NegativeCosineSimilarity()
    theirs = (criterion(z[0], z[1].detach()) + criterion(z[1], z[0].detach())) / 2
    yield Row("", ours(build("simsiam", Given(d), out=d), z), theirs, 2 + 2 * theirs, "2 - 2·cos, BYOL's scale; the peer has -cos.")


def barlow_twins(z: Tensor) -> Iterator[Row]:
    objective = build("barlow_twins", Given(z.shape[-1]))
    theirs = peer.BarlowTwinsLoss(lambda_param=objective.redundancy)(*z)
    choice = f"The whole loss times {objective.scale}, as in the authors' code; objective.scale=1 is the formula, and the peer's."
    yield Row(f"λ {objective.redundancy}", ours(objective, z), theirs, objective.scale * theirs, choice)


def vicreg(z: Tensor) -> Iterator[Row]:
    choice = (
        "Variance and covariance are means over the views here; the paper's are sums (25, 25, 1 is 25, 50, 2 here), and the peer and the "
        "authors' code halve the sum of the variance alone (25, 25, 1 is 25, 25, 2 here)."
    )
    z = z / 2  # so that the hinge of the variance is at work
    objective = build("vicreg", Given(z.shape[-1]))
    i, v, c = objective.weights
    theirs = peer.VICRegLoss(25, 25, 1)
    same = peer.VICRegLoss(i, v, c / 2)
    yield Row(f"{i:g}, {v:g}, {c:g} here", ours(objective, z), theirs(*z), same(*z), choice)
    paper = build("vicreg", Given(z.shape[-1]), invariance=25.0, variance=25.0, covariance=2.0)
    yield Row("25, 25, 2 here", ours(paper, z), theirs(*z))


def wmse(z: Tensor) -> Iterator[Row]:
    d = z.shape[-1]
    for size in (2 * d, z.shape[1]):
        objective = build("wmse", Given(d), out=d, size=size)
        theirs = peer.WMSELoss(embedding_dim=d, eps=objective.shrink, w_size=size)
        torch.manual_seed(0)
        order = torch.randperm(z.shape[1])  # theirs draws the same when it starts from the same state
        torch.manual_seed(0)
        choice = "Parts of a batch are whitened in its order, which the stream has shuffled; the peer shuffles them once more."
        shown = theirs(z.flatten(0, 1))
        yield Row(f"{size if size < z.shape[1] else 'all'} at a time", ours(objective, z[:, order]), shown, choice=choice)


def lejepa(z: Tensor) -> Iterator[Row]:
    from lightly.loss.lejepa_loss import SIGReg, lejepa_invariance_loss

    d = z.shape[-1]
    objective = build("lejepa", Given(d), out=d)
    sigreg = SIGReg(knots=objective.knots, t_max=objective.reach, num_vectors=objective.directions)
    a = torch.randn(d, objective.directions, generator=torch.Generator().manual_seed(int(objective.steps)))
    sigreg._generate_unit_vectors = lambda *_: a / a.norm(dim=0)  # those that ours draws in this step
    theirs = objective.weight * sigreg(z) + (1 - objective.weight) * lejepa_invariance_loss(all_proj=z, global_proj=z)
    yield Row(f"weight {objective.weight}, the same directions", ours(objective, z), theirs)
