"""Protects how a model is spread over four ranks: in one row, or as copies; and that any number of them reads what others wrote."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes
from vector_encoder import VectorEncoder

from sslt import distributed
from sslt.errors import UserError
from sslt.sharded import checkpoint as parts
from sslt.sharded.model import Whole, chosen, copies, full, mesh_of, part_of, shard

SHAPES = {"tall": (7, 3), "short": (2, 5), "one": (1,), "empty here": (3,)}  # of fewer rows than ranks, too


def counted() -> dict[str, torch.Tensor]:
    return {name: torch.arange(torch.Size(s).numel(), dtype=torch.float32).view(s) for name, s in SHAPES.items()}


class Settings(dict):
    __getattr__ = dict.__getitem__


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = VectorEncoder(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)), 3)
        self.head = nn.Linear(3, 5)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder({"x": x}).pooled).square().mean()


def rows(rank: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).unflatten(0, (4, 2))[rank]


def spread(rank: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for strategy, within in (("fsdp", None), ("hsdp", 2)):
        mesh = mesh_of(Settings(strategy=strategy, shard_ranks=within), "cpu")
        root = Root()
        shard(root, mesh, "loss")
        root.loss(rows(rank)).backward()
        grads = [full(p.grad) for p in root.parameters()]
        local = [distributed.local(p.grad) for p in root.parameters()]
        norm = distributed.sum_over_ranks(torch.stack(torch._foreach_norm(local)).norm().square()) / copies(root.parameters())
        held = sum(x.numel() for x in local)
        out[strategy] = {"grads": grads, "norm": norm.sqrt(), "held": held, "copies": copies(root.parameters())}
        tensors = {name: part_of(x, root.head.weight) for name, x in counted().items()}
        out[strategy]["parts"] = [full(x) for x in tensors.values()]
        file = Path(f"{strategy}.ckpt")
        kept = parts.write({"batches_seen": 1, "some": [tensors, (torch.ones(2), 3)]}, file, strategy)
        if rank == 0:
            torch.save(kept, file)
        distributed.barrier()
        assert parts.damage(file, kept[parts.KEY]) is None
        again = {k: torch.empty_like(v) for k, v in tensors.items()}
        made = parts.fill(kept["some"], file, kept[parts.KEY], ("some",), lambda place, x, again=again: again[place[1]])
        out[strategy]["again"] = [full(x) for x in made[0].values()]
    return out


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("mesh")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, two_processes.run(spread, folder, 300, world=4)


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_gradients_are_of_all_rows(ranks, strategy):
    """And their norm counts every number once, however many ranks hold it."""
    root = Root()
    root.loss(torch.cat([rows(r) for r in range(4)])).backward()
    expected = [p.grad for p in root.parameters()]
    total = sum(g.numel() for g in expected)
    for found in (out[strategy] for out in ranks[1]):
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found["grads"], expected, strict=True))
        assert float(found["norm"]) == pytest.approx(float(torch.cat([g.flatten() for g in expected]).norm()), rel=1e-5)
        assert found["copies"] == {"fsdp": 1, "hsdp": 2}[strategy] and found["held"] < total
    assert sum(out[strategy]["held"] for out in ranks[1]) == total * {"fsdp": 1, "hsdp": 2}[strategy]


@pytest.mark.parametrize("strategy", ["fsdp", "hsdp"])
def test_parts_are_read_by_four_and_by_one(ranks, strategy):
    """Of tensors with fewer rows than ranks, too; a process that has no shards reads them whole."""
    folder, outs = ranks
    expected = list(counted().values())
    for out in outs:
        for name in ("parts", "again"):
            assert all(torch.equal(a, b) for a, b in zip(out[strategy][name], expected, strict=True)), name
    file = folder / f"{strategy}.ckpt"
    found = parts.whole(torch.load(file, weights_only=True), file)
    assert all(torch.equal(a, b) for a, b in zip(found["some"][0].values(), expected, strict=True))
    assert parts.KEY not in found and torch.equal(found["some"][1][0], torch.ones(2)) and found["some"][1][1] == 3


def test_measured_modules_share_what_the_trained_ones_share():
    """A weight with two names stays one, in the copy and when it comes back."""
    encoder = VectorEncoder(nn.Linear(4, 4), 4)
    head = nn.Linear(4, 4)
    head.weight = encoder.get_parameter(next(n for n, _ in encoder.named_parameters() if n.endswith("weight")))
    whole = Whole(encoder, {"head": head})
    twin, twins = whole.twins()
    assert (
        twins["head"].weight is next(p for n, p in twin.named_parameters() if n.endswith("weight"))
        and twins["head"].weight is not head.weight
    )
    with torch.no_grad():
        twins["head"].weight.fill_(2.0)
        twins["head"].bias.fill_(3.0)
    whole.fill(twin, twins)
    assert bool((head.weight == 2).all() and (head.bias == 3).all()) and head.weight is next(iter(encoder.parameters()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "fdsp"}, r"trainer.strategy=fdsp: give one of ddp, fsdp, hsdp; did you mean 'fsdp'\?"),
        ({"strategy": "fsdp", "shard_ranks": 2}, "shard_ranks= says how many ranks share a copy with trainer.strategy=hsdp"),
        ({"strategy": "fsdp"}, "trainer.precision=16-mixed scales the loss"),
    ],
)
def test_what_cannot_be_is_said(settings, said, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(UserError, match=said):
        chosen(settings, "16-mixed")


@pytest.mark.parametrize("within", [1, 3, 4])
def test_copies_need_a_number_that_divides(within, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *a, **k: SimpleNamespace())
    with pytest.raises(UserError, match=r"trainer\.shard_ranks= to a number from 2 that divides 4"):
        mesh_of(Settings(strategy="hsdp", shard_ranks=within), "cpu")


def test_a_single_number_is_named():
    root = nn.Module()
    root.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="'scale' is a single number"):
        shard(root, None, "forward")
