"""Protects training on several ranks: gathers, BatchNorm and gradients are those of one process with the joined batch.

Two real processes, joined by gloo, are each given their half of the data; what they compute is compared here with what
one process makes of all of it.
"""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import two_processes
from torch import nn
from vector_encoder import VectorEncoder

from sslt import distributed, lanes
from sslt.callbacks.agreement import MOST, Agreement
from sslt.data.base import Samples
from sslt.encoders.base import Features
from sslt.errors import UserError
from sslt.lanes import Lanes
from sslt.objectives.adversarial import CDAN, DANN
from sslt.objectives.alignment import CORAL, MMD
from sslt.objectives.base import Loss, Objective
from sslt.objectives.contrastive import NTXent, nt_xent
from sslt.objectives.parts.momentum import Queue
from sslt.targets.classification import Classification

N = 6  # samples per rank of what is split evenly
ROWS = (5, 3)  # rows per rank of what is not


class Toy(nn.Module):
    """A convolution, BatchNorm and a mean: an encoder small enough to check."""

    chunk_size, dim = None, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 8)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        pooled = self.out(self.norm(self.conv(inputs["image"])).relu().mean((2, 3)))
        return Features(pooled, pooled.unsqueeze(1))


class Contrast(nn.Module):
    """Encoder and objective as one module, as a trainer wraps them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Toy()
        self.objective = NTXent(self.encoder, temperature=0.2, hidden=16, out=8, norm=True)  # type: ignore[arg-type]

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.objective(self.encoder, {"views": {"image": views}}).value


class Vectors(nn.Module):
    """One linear map: an encoder without statistics of its own."""

    chunk_size = None

    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 5)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        pooled = self.map(inputs["x"])
        return Features(pooled, pooled.unsqueeze(1))


class Aligned(nn.Module):
    """An encoder and what brings two domains together."""

    KINDS = ("mmd", "coral", "dann", "cdan")

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Vectors()
        self.task = (Classification(self.encoder, {"classes": ["a", "b", "c"]}, 0.0, 0.0),)  # type: ignore[arg-type]
        given: Any = {"encoder": self.encoder, "width": 5, "task": self.task[0], "layer": None}
        nn.init.normal_(self.task[0].head.weight)
        critic: Any = {"hidden": 6, "dropout": 0.0, "gamma": 10.0, "ceiling": 1.0}
        make = {
            "mmd": lambda: MMD(**given, factors=[0.5, 2.0], unbiased=True),
            "coral": lambda: CORAL(**given),
            "dann": lambda: DANN(**given, **critic),
            "cdan": lambda: CDAN(**given, **critic, entropy=True),
        }
        self.objective = make[kind]()
        self.objective.progress = 0.2

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        parts = {"finetune": {"views": {"x": source.unsqueeze(0)}}, "target": {"views": {"x": target.unsqueeze(0)}}}
        return self.objective(self.encoder, parts).value


def domains() -> tuple[torch.Tensor, torch.Tensor]:
    """[2N, 4] of source and target; each half, a rank's share, lies elsewhere."""
    g = torch.Generator().manual_seed(4)
    source, target = torch.randn(2 * N, 4, generator=g), torch.randn(2 * N, 4, generator=g) * 1.5 + 1
    source[N:] -= 2
    target[N:] *= 3
    return source, target


def views() -> torch.Tensor:
    """[2, 2N, 3, 6, 6]; the second half (rank 1's) has other colours, so that statistics of a half are not the whole's."""
    x = torch.randn(2, 2 * N, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    x[:, N:] = 2 * x[:, N:] + 1
    return x


def projections() -> torch.Tensor:
    """float64 [2, 2N, 5]"""
    return torch.randn(2, 2 * N, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def unequal(*shape: int) -> torch.Tensor:
    """[sum(ROWS), *shape]: ROWS[0] for rank 0, the rest, of another scale, for rank 1."""
    x = torch.randn(sum(ROWS), *shape, generator=torch.Generator().manual_seed(3)) + 10
    x[ROWS[0] :] *= 3
    return x


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: b.clone() for n, b in model.named_buffers()}


# -------------------------------------------------------------------- what one rank does
def _checks(rank: int) -> dict[str, Any]:
    checks = (_helpers, _rows, _ntxent, _contrast, _norm, _exact, _alignment, _sent, _learned, _agreement)
    return {check.__name__: check(rank) for check in checks}


def _helpers(rank: int) -> dict[str, Any]:
    distributed.barrier()
    kept = torch.tensor([rank + 1.0])
    return {
        "place": (distributed.active(), distributed.rank(), distributed.world_size()),
        "any": tuple(distributed.any_rank([rank == 1, False])),
        "sizes": _sizes(rank),
        "object": distributed.broadcast_object({"from": rank}),
        "sum": distributed.sum_over_ranks(kept),
        "kept": kept,
    }


def _sizes(rank: int) -> tuple[int, int, int]:
    """The largest and the smallest of two ranks' sizes in a step, and a rank's own outside of one."""
    held = Lanes(2, rank, 2)
    with held.drawing(4):
        agreed = lanes.most(5 + rank), lanes.least(5 + rank)
    return *agreed, lanes.most(5 + rank)


def _rows(rank: int) -> dict[str, Any]:
    whole = torch.arange(sum(ROWS) * 2).view(-1, 2)
    own = whole[: ROWS[0]] if rank == 0 else whole[ROWS[0] :]
    none = whole[:4] if rank == 1 else whole[:0]
    (queue := Queue(4, 2)).push(own[:3].float())
    return {
        "unequal": distributed.gather_rows(own),
        "queue": queue.rows,
        "by turns": distributed.gather_rows(own, by_turns=True),
        "empty": distributed.gather_rows(none),
        "flags": distributed.gather_rows(own[:, 0] > 4),
        "strided": distributed.gather_rows(own.T.contiguous().T),
    }


def _ntxent(rank: int) -> dict[str, Any]:
    z = projections()[:, rank * N : (rank + 1) * N].clone().requires_grad_()
    loss, accuracy = nt_xent(z, 0.2)
    loss.backward()
    return {"loss": loss.detach(), "accuracy": accuracy, "grad": z.grad}


def _contrast(rank: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in ("spanning", "local"):
        model = Contrast()
        if name == "spanning":
            distributed.span_batch_norm(model)
        wrapped = nn.parallel.DistributedDataParallel(model)  # averages gradients, as in training
        loss = wrapped(views()[:, rank * N : (rank + 1) * N])
        loss.backward()
        out[name] = {"loss": loss.detach(), "grads": gradients(model), "buffers": buffers(model)}
    return out


def _norm(rank: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, module, shape in _norms():
        x = unequal(*shape)
        x = (x[: ROWS[0]] if rank == 0 else x[ROWS[0] :]).requires_grad_()
        y = distributed.span_batch_norm(module)(x)
        (y * _weights(y.shape[1:])).sum().backward()
        evaluated = module.eval()(x)
        out[name] = {"y": y.detach(), "x_grad": x.grad, "grads": gradients(module), "buffers": buffers(module), "eval": evaluated.detach()}
    return out


def _exact(rank: int) -> dict[str, Any]:
    """In float64 and in bfloat16, maps in torch's two orders, far from zero; the last rank may have no rows at all."""
    out: dict[str, Any] = {}
    for name, (dtype, order, rows) in EXACT.items():
        x = unequal(4, 3, 2).to(dtype)
        x = (x[: rows[0]] if rank == 0 else x[rows[0] :]).contiguous(memory_format=order).requires_grad_()
        norm = distributed.span_batch_norm(nn.BatchNorm2d(4, dtype=torch.float64 if dtype == torch.float64 else None))
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 4))
        y = norm(x)
        (y * _weights(y.shape[1:]).to(dtype)).sum().backward()
        kept = y.is_contiguous(memory_format=order) and x.grad.is_contiguous(memory_format=order)
        out[name] = {"y": y.detach(), "x_grad": x.grad, "grads": gradients(norm), "kept": kept}
    return out


EXACT = {
    "float64": (torch.float64, torch.contiguous_format, ROWS),
    "float64 channels last": (torch.float64, torch.channels_last, ROWS),
    "bfloat16": (torch.bfloat16, torch.channels_last, ROWS),
    "no rows": (torch.float64, torch.contiguous_format, (sum(ROWS), 0)),
}


def _alignment(rank: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in Aligned.KINDS:
        model = Aligned(name)
        wrapped = nn.parallel.DistributedDataParallel(model)
        loss = wrapped(*(x[rank * N : (rank + 1) * N] for x in domains()))
        loss.backward()
        out[name] = {"loss": loss.detach(), "grads": gradients(model)}
    return out


def _agreement(rank: int) -> dict[str, Any]:
    """What a rank hears after each of 300 steps, and what time it reckons; rank 1 wants something from step 100 on."""
    agreement, step = Agreement(), 0
    agreement.asked = lambda: [rank == 1 and step >= 100, False]
    agreement.start(50.0 if rank == 0 else 7.0)
    heard, times = [], []
    for step in range(300):
        times.append(agreement.elapsed(-1.0))
        agreement.meet(60.0 + step if rank == 0 else 1e6, due=step == 250)
        heard.append(agreement.told)
    return {"heard": heard, "times": times}


class Remembers(nn.Module):
    """A queue, which says that all ranks have the same, and a buffer that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.queue = nn.Linear(4, 4), Queue(3, 4)
        self.register_buffer("other", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sum()


def _sent(rank: int) -> dict[str, Any]:
    """Buffers after DDP's forward, where each rank had filled them with its own number."""
    model = Remembers()
    model._ddp_params_and_buffers_to_ignore = distributed.alike_buffers(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for buffer in model.buffers():
        buffer.fill_(rank + 1)
    wrapped(torch.ones(2, 4)).backward()
    return {name: float(buffer.flatten()[0]) for name, buffer in model.named_buffers()}


def _norms() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    return [
        ("1d", nn.BatchNorm1d(4), (4,)),
        ("tokens", nn.BatchNorm1d(4), (4, 3)),
        ("2d", nn.BatchNorm2d(4, momentum=0.3), (4, 3, 2)),
        ("cumulative", nn.BatchNorm2d(4, momentum=None), (4, 3, 2)),
        ("plain", nn.BatchNorm2d(4, affine=False), (4, 3, 2)),
    ]


def _weights(shape: torch.Size) -> torch.Tensor:
    """Of the outputs in the loss: not constant, or BatchNorm's gradient would be zero."""
    return torch.linspace(-1, 2, shape.numel()).view(shape) ** 2


# -------------------------------------------------------------------- the comparison
@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """The results of two processes that ran every check, each on its own data."""
    return two_processes.run(_checks, tmp_path_factory.mktemp("ranks"))


def flat(grads: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([grads[n].flatten().double() for n in sorted(grads)])


def assert_same_direction_and_length(got: torch.Tensor, expected: torch.Tensor, length: float = 1e-3) -> None:
    assert torch.cosine_similarity(got, expected, dim=0) >= 0.9999
    assert float(got.norm() / expected.norm()) == pytest.approx(1, abs=length)


def test_each_rank_knows_its_place(ranks):
    """Joined by the environment; flags, objects and sums reach every rank; the summand stays as it was."""
    for r, out in enumerate(ranks):
        got = out["_helpers"]
        assert got["place"] == (True, r, 2)
        assert got["any"] == (True, False)
        assert got["sizes"] == (6, 5, 5 + r)
        assert got["object"] == {"from": 0}
        assert got["sum"].item() == 3 and got["kept"].item() == r + 1


def test_gather_rows_of_unequal_numbers(ranks):
    """Rows of all ranks in rank order on every rank; a rank may have none; flags and strided rows too."""
    whole = torch.arange(sum(ROWS) * 2).view(-1, 2)
    for out in ranks:
        got = out["_rows"]
        assert torch.equal(got["unequal"], whole) and torch.equal(got["strided"], whole)
        assert torch.equal(got["queue"], whole[[1, 6, 2, 7]].float())  # the last of the joint batch
        assert torch.equal(got["by turns"], whole[[0, 5, 1, 6, 2, 7, 3, 4]])
        assert torch.equal(got["empty"], whole[:4])
        assert torch.equal(got["flags"], whole[:, 0] > 4)


def test_ntxent_is_that_of_the_joined_batch(ranks):
    """In float64: the mean of the ranks' losses is the joint loss, the averaged gradient its gradient."""
    z = projections().requires_grad_()
    loss, accuracy = nt_xent(z, 0.2)
    loss.backward()
    halves = [out["_ntxent"] for out in ranks]
    assert torch.allclose((halves[0]["loss"] + halves[1]["loss"]) / 2, loss, rtol=1e-12)
    assert torch.allclose((halves[0]["accuracy"] + halves[1]["accuracy"]) / 2, accuracy)
    # each rank holds the gradient of the ranks' sum; DDP divides by their number
    assert torch.allclose(torch.cat([h["grad"] for h in halves], 1) / 2, z.grad, rtol=1e-10, atol=1e-14)


def test_encoder_projector_and_norm_under_ddp(ranks):
    """SimCLR's whole chain: DDP's gradient with BatchNorm over ranks is one process's with twice the batch."""
    model = Contrast()
    loss = model(views())
    loss.backward()
    results = [out["_contrast"]["spanning"] for out in ranks]
    assert float((results[0]["loss"] + results[1]["loss"]) / 2) == pytest.approx(loss.item(), rel=1e-5)
    for got in results:
        assert got["grads"].keys() == gradients(model).keys()
        assert_same_direction_and_length(flat(got["grads"]), flat(gradients(model)))
        # the weight before a BatchNorm and the like, one by one: none is hidden behind larger ones
        for name, expected in gradients(model).items():
            if expected.norm() > 1e-4 * flat(gradients(model)).norm():
                assert_same_direction_and_length(got["grads"][name].flatten(), expected.flatten(), 1e-2)
        for name, expected in buffers(model).items():
            assert torch.allclose(got["buffers"][name], expected, rtol=1e-4, atol=1e-5), name
    assert torch.equal(flat(results[0]["grads"]), flat(results[1]["grads"]))


def test_norms_of_each_rank_alone_are_something_else(ranks):
    """The data are such that BatchNorm per rank would be noticed: the test above is worth something."""
    model = Contrast()
    model(views()).backward()
    got = ranks[0]["_contrast"]["local"]
    assert torch.cosine_similarity(flat(got["grads"]), flat(gradients(model)), dim=0) < 0.999


@pytest.mark.parametrize("kind", [name for name, _, _ in _norms()])
def test_batch_norm_over_unequal_rows(ranks, kind):
    """Outputs, gradients and running statistics are those of a plain BatchNorm on all rows."""
    module, shape = next((m, s) for n, m, s in _norms() if n == kind)
    x = unequal(*shape).requires_grad_()
    y = module(x)
    (y * _weights(y.shape[1:])).sum().backward()
    halves = [out["_norm"][kind] for out in ranks]
    assert torch.allclose(torch.cat([h["y"] for h in halves]), y, atol=1e-5)
    assert torch.allclose(torch.cat([h["x_grad"] for h in halves]), x.grad, atol=1e-5)
    for name, expected in gradients(module).items():
        assert torch.allclose(halves[0]["grads"][name] + halves[1]["grads"][name], expected, rtol=1e-4, atol=1e-4), name
    for half in halves:
        for name, expected in buffers(module).items():
            assert torch.allclose(half["buffers"][name], expected, rtol=1e-5), name
    evaluated = module.eval()(x)
    assert torch.allclose(torch.cat([h["eval"] for h in halves]), evaluated, atol=1e-5)


@pytest.mark.parametrize("kind", EXACT)
def test_batch_norm_is_exact(ranks, kind):
    """To the last digits in float64, and in bfloat16 to those of the maps: sums are wider. The order of the maps is kept."""
    dtype = EXACT[kind][0]
    x = unequal(4, 3, 2).to(dtype).double().requires_grad_()
    norm = nn.BatchNorm2d(4, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 4))
    y = norm(x)
    (y * _weights(y.shape[1:]).to(dtype).double()).sum().backward()
    halves = [out["_exact"][kind] for out in ranks]
    near: Any = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    assert torch.allclose(torch.cat([h["y"] for h in halves]).double(), y, **near)
    assert torch.allclose(torch.cat([h["x_grad"] for h in halves]).double(), x.grad, **near)
    for name, expected in gradients(norm).items():
        assert torch.allclose((halves[0]["grads"][name] + halves[1]["grads"][name]).double(), expected, rtol=near["rtol"], atol=1e-8), name
    assert all(h["kept"] for h in halves) and halves[0]["y"].dtype == halves[0]["x_grad"].dtype == dtype


def test_ranks_agree_every_few_steps(ranks):
    """All hear the same after the same steps, soon after one wants it and whenever it is due, and reckon one time, rank 0's."""
    first, second = (out["_agreement"] for out in ranks)
    assert first == second
    met = [step for step, told in enumerate(first["heard"]) if told]
    assert 250 in met and len(met) < 300 and max(b - a for a, b in itertools.pairwise(met)) <= MOST
    assert [first["heard"][step] for step in met] == [[step >= 100, False] for step in met]
    assert first["times"][0] == 50 and all(first["times"][step + 1] == 60 + step for step in met if step < 299)


# -------------------------------------------------------------------- one process
def test_what_ranks_have_alike_is_not_sent(ranks):
    """DDP sends rank 0's buffers before each step, but not those of parts that are alike on all ranks."""
    for r, out in enumerate(ranks):
        assert out["_sent"] == {"other": 1, "queue.features": r + 1, "queue.place": r + 1}


def test_the_learner_names_what_is_alike():
    """To DDP, by the attribute that Lightning and torch read: the queue of an objective, not its running statistics."""
    assert make_learner(objective=Remembers())[0]._ddp_params_and_buffers_to_ignore == [
        "objectives.main.queue.features",
        "objectives.main.queue.place",
    ]
    assert make_learner()[0]._ddp_params_and_buffers_to_ignore == []


def test_alone_everything_is_the_identity():
    """Callers need no branch: without other ranks nothing happens, and no copy is made."""
    x = torch.randn(3, 2)
    for f in (distributed.gather, distributed.gather_rows, distributed.sum_over_ranks, distributed.all_sum):
        assert f(x) is x
    assert (distributed.active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    assert distributed.broadcast_object("x") == "x" and distributed.any_rank([True]) == [True]
    distributed.barrier()
    distributed.close()


def test_span_batch_norm_keeps_what_a_norm_has_learned():
    """Parameters and buffers stay the very same tensors, so that an optimizer made before still moves them."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)))
    module[1](torch.randn(2, 4, 5, 5))
    tensors = {n: t for n, t in (*module.named_parameters(), *module.named_buffers())}
    x = torch.randn(6, 4, 5, 5)
    expected = copy.deepcopy(module[1])(x)
    assert distributed.span_batch_norm(module) is module
    assert all(t is tensors[n] for n, t in (*module.named_parameters(), *module.named_buffers()))
    assert sum(isinstance(m, distributed.CrossRankBatchNorm) for m in module.modules()) == 2
    assert torch.equal(module[1](x), expected)


def test_a_norm_that_cannot_span_ranks_is_named():
    """A subclass with more to it than normalisation (timm's fused norms) is not replaced silently: one line, with the way out."""

    class Fused(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(UserError, match=r"Fused.*trainer\.sync_batchnorm=false"):
        distributed.span_batch_norm(nn.Sequential(Fused(4)))


@pytest.mark.parametrize("kind", Aligned.KINDS)
def test_domains_are_compared_as_one_batch(ranks, kind):
    """Statistics, the bandwidth and CDAN's weights are those of both ranks' rows; the averaged gradient is the joint one."""
    model = Aligned(kind)
    loss = model(*domains())
    loss.backward()
    got = [r["_alignment"][kind] for r in ranks]
    assert float(sum(g["loss"] for g in got) / 2) == pytest.approx(float(loss), rel=1e-4)
    assert_same_direction_and_length(flat(got[0]["grads"]), flat(gradients(model)))
    if kind != "dann":  # whose loss is a mean over rows
        half = Aligned(kind)
        half(*(x[:N] for x in domains())).backward()
        assert torch.cosine_similarity(flat(gradients(half)), flat(gradients(model)), dim=0) < 0.999, "a half would be noticed"


# -------------------------------------------------------------------- the learner's weighing of unequal batches
class Line(VectorEncoder):
    """One linear map of vectors: all that a gradient needs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 4), 4)

    def forward(self, inputs):
        tokens = self.layer(inputs["x"])
        return Features(tokens.mean(1), tokens)


class Units(Objective):
    """Mean square of the tokens that count, of which each sample has its own number."""

    def forward(self, encoder, batch):
        tokens = encoder(batch).tokens[batch["mask"]]
        return Loss(tokens.square().sum(-1).mean(), {"first": tokens[:, 0].detach().mean()})

    def units(self, batch):
        return batch["mask"].sum()


class PerSample(Objective):
    """Mean over samples, beside one over tokens."""

    def forward(self, encoder, batch):
        pooled = encoder(batch).pooled
        return Loss(pooled.abs().sum(1).mean(), {"largest": pooled.detach().amax(1).mean()})

    def units(self, batch):
        return len(batch["x"])


class Ragged(Samples):
    """11 samples of 1 to 6 tokens, of growing size: to weigh batches alike would be to err."""

    labels = classes = None
    fingerprint = "ragged"

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.x = torch.randn(11, 6, 4, generator=g) * torch.arange(1, 12).view(-1, 1, 1) / 4
        self.mask = torch.arange(6) < torch.randint(1, 7, (11, 1), generator=g)

    def __len__(self) -> int:
        return 11

    def batch(self, index):
        return {"x": self.x[index], "mask": self.mask[index]}

    def subset(self, index):
        raise NotImplementedError


def make_learner(weight: float = 0.0, objective: Any = None, side: str = "main"):
    """A learner on batches of 8 and 3 samples, under SGD of rate 0.1; and the gradient of all 11 at once.

    weight: of a second term, a mean over samples, which reads the stream `side`.
    objective: another one in place of the first, which is not in the gradient.
    """
    from sslt.adaptation.base import Full
    from sslt.data.streams.sampling import Together
    from sslt.data.streams.streams import Stream
    from sslt.learner import Learner, Term  # brings Lightning, which the other processes need not import
    from sslt.schedules import Constant

    samples = Ragged()
    terms = {"main": Term(objective or Units(), "main")} | ({"side": Term(PerSample(), side, weight)} if weight else {})
    learner = Learner(
        Line(),
        terms,
        {name: Stream(samples, 8, seed=0, drop_last=False) for name in sorted({"main", side})},
        Full(1.0),
        lambda groups: torch.optim.SGD(groups, lr=0.1),
        Constant(0.0),
        sampling=Together(),
        weight_decay=0.0,
        progress=lambda _: 0.5,
        seed=0,
        log_every=1,
    )
    reference, whole = Line(), samples.batch(list(range(11)))
    (Units()(reference, whole).value + weight * PerSample()(reference, whole).value).backward()
    return learner, flat(gradients(reference))


def train_one_step(learner, steps: int = 1, **settings) -> torch.Tensor:
    """The change of the weights by one optimizer step (or several) of a real Trainer."""
    import pytorch_lightning as pl

    before = {n: p.detach().clone() for n, p in learner.encoder.named_parameters()}
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(learner)
    assert trainer.global_step == steps
    return flat({n: p.detach() - before[n] for n, p in learner.encoder.named_parameters()})


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_accumulated_batches_of_unequal_size_are_the_joined_batch(weight):
    """Two batches, of 8 and 3 samples with 1 to 6 tokens each, accumulated: the step is that of the mean over all tokens,
    and over all samples for a term that counts these.
    """
    learner, gradient = make_learner(weight)
    change = train_one_step(learner, accumulate_grad_batches=2)
    assert learner.batches_seen == 2
    assert torch.allclose(change, -0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_the_mean_of_the_batches_means_is_something_else():
    """The data are such that weighing batches alike would be noticed."""
    learner, gradient = make_learner()
    parts = []
    for step in range(2):
        learner.encoder.zero_grad()
        learner.objectives["main"](learner.encoder, learner.streams["main"].at(step)).value.backward()
        parts.append(flat(gradients(learner.encoder)))
    assert not torch.allclose((parts[0] + parts[1]) / 2, gradient, rtol=0.05)


def test_clipping_sees_the_weighed_gradient():
    """The norm that is recorded and clipped is the joint gradient's, not that of a sum before it is weighed."""
    learner, gradient = make_learner()
    limit = float(gradient.norm()) / 3
    change = train_one_step(learner, accumulate_grad_batches=2, gradient_clip_val=limit)
    assert float(learner.last["grad_norm"]) == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert torch.allclose(change, -0.1 * gradient / 3, rtol=1e-3, atol=1e-6)


def test_old_gradients_are_gone_before_the_forward_pass():
    """They would lie beside its activations; those of batches that are accumulated stay."""
    for accumulate, expected in ((1, [False] * 3), (2, [False, True] * 2)):
        learner, held = make_learner()[0], []
        learner.encoder.register_forward_pre_hook(lambda module, _, held=held: held.append(module.layer.weight.grad is not None))
        train_one_step(learner, steps=len(expected) // accumulate, accumulate_grad_batches=accumulate)
        assert held == expected


def test_one_batch_is_not_weighed():
    """Without accumulation and other ranks the gradient is the batch's own."""
    learner, _ = make_learner()
    batch = learner.streams["main"].at(0)
    twin = copy.deepcopy(learner.encoder)
    learner.objectives["main"](twin, batch).value.backward()
    assert torch.allclose(train_one_step(learner), -0.1 * flat(gradients(twin)), rtol=1e-4, atol=1e-6)


# rows of each batch that is accumulated, by rank
SHARES = {1: [[range(0, 8)], [range(8, 11)]], 2: [[range(0, 5), range(5, 6)], [range(6, 10), range(10, 11)]]}


def one_step(weight: float, windows: list[list[int]], side: str = "main") -> dict[str, Any]:
    """The gradient that an optimizer step on these batches leaves, and what is shown after each.

    side: the stream of the second term and, where it is not the first's, of the second batch.
    """
    learner, whole = make_learner(weight, side=side)
    learner.trainer = SimpleNamespace(optimizers=[], accumulate_grad_batches=len(windows))
    window, shown = [{name: learner.streams[name].samples.batch(rows)} for name, rows in zip(("main", side), windows, strict=False)], []
    for i in range(len(windows)):  # as Lightning does: the loss divided by the number of batches
        batch = learner.on_after_batch_transfer([] if i else window, 0)
        (learner.training_step(batch, i) / len(windows)).backward()
        shown.append(learner.scalars())
    return {"gradient": flat(gradients(learner.encoder)), "whole": whole, "shown": shown}


def _learned(rank: int) -> dict[Any, Any]:
    cases = [(accumulate, weight) for accumulate in SHARES for weight in (0.0, 0.7)]
    found: dict[Any, Any] = {(a, weight): one_step(weight, [list(rows) for rows in SHARES[a][rank]]) for a, weight in cases}
    return {**found, "turns": one_step(0.7, [list(rows) for rows in SHARES[2][rank]], "other")}


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_with_unequal_batches_are_the_joined_batch(ranks, accumulate, weight):
    """DDP's mean of the gradients of two processes is that of all rows, and both show what one process shows of all rows:
    losses and other scalars, each over the units of its term."""
    got = [out["_learned"][accumulate, weight] for out in ranks]
    assert torch.allclose((got[0]["gradient"] + got[1]["gradient"]) / 2, got[0]["whole"], rtol=1e-4, atol=1e-6)
    joined = one_step(weight, [[*a, *b] for a, b in zip(*SHARES[accumulate], strict=True)])
    assert set(joined["shown"][0]) == ({"loss", "main/loss", "main/first", "side/loss", "side/largest"} if weight else {"loss", "first"})
    for out in got:
        for shown, expected in zip(out["shown"], joined["shown"], strict=True):
            assert shown == pytest.approx(expected, rel=1e-5)


def test_terms_that_take_turns_on_ranks_are_the_joined_batch(ranks):
    """Each batch of the step is of one term alone; the share of a rank is that of its own units."""
    got = [out["_learned"]["turns"] for out in ranks]
    joined = one_step(0.7, [[*a, *b] for a, b in zip(*SHARES[2], strict=True)], "other")
    assert torch.allclose((got[0]["gradient"] + got[1]["gradient"]) / 2, joined["gradient"], rtol=1e-4, atol=1e-6)
    for out in got:
        for shown, expected in zip(out["shown"], joined["shown"], strict=True):
            assert shown == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("given", "rank"), [({"LOCAL_RANK": "1"}, "1"), ({"RANK": "3", "LOCAL_RANK": "1"}, "3"), ({}, "0")])
def test_a_rank_is_the_launchers(given, rank, monkeypatch):
    """The place among all processes where it is said, or that on this machine; one group for steps, and one for long waits."""
    joined = []
    monkeypatch.setattr(distributed.os, "environ", environment := {"WORLD_SIZE": "4", **given})
    monkeypatch.setattr(distributed, "meeting", dist.HashStore)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, rank, **_: joined.append((backend, str(rank))))
    monkeypatch.setattr(distributed.dist, "new_group", lambda backend, timeout: joined.append((backend, timeout)))
    assert distributed.init("cpu")
    assert environment["RANK"] == rank and joined == [("gloo", rank), ("gloo", distributed.LONG)]


@pytest.mark.parametrize(
    ("said", "seconds"), [(None, 600), ("", 600), ("30", 30), ("0", None), ("soon", None), ("nan", None), ("1e9", None)]
)
def test_how_long_a_step_is_waited_for_can_be_said(said, seconds, monkeypatch):
    monkeypatch.setenv("SSLT_PATIENCE", said) if said is not None else monkeypatch.delenv("SSLT_PATIENCE", raising=False)
    if seconds is None:
        with pytest.raises(UserError, match="SSLT_PATIENCE="):
            distributed.patience()
    else:
        assert distributed.patience().total_seconds() == seconds
