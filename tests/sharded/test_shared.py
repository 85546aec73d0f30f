"""Protects weights that the ranks of a machine share: once in memory, what one changes is its own, and what is written comes to all."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes

from sslt import distributed
from sslt.sharded import shared
from sslt.sharded.shared import Shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks share memory on Linux alone")
SIDE = 3072  # 36 MiB in float32


def own_bytes() -> int:
    """Memory of this process that is in no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def sharing(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    big = nn.Linear(SIDE, SIDE)
    others = {
        "half": torch.arange(6).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "map": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "some": torch.randn(4, 6)[:, ::2],
    }
    expected = {k: x.clone() for k, x in others.items()}
    out: dict[str, Any] = {"before": own_bytes()}
    own = Shared([big.weight, big.weight, big.bias, *others.values()])
    out["after"] = own_bytes()
    out["kept"] = [torch.equal(x, expected[k]) and x.stride() == expected[k].stride() for k, x in others.items() if k != "some"]
    out["has"] = {k: own.has(x) for k, x in {**others, "weight": big.weight}.items()}
    out["own storage"] = others["half"].untyped_storage().nbytes()

    total = big.weight.detach().double().sum()
    if rank == 1:
        with torch.no_grad():
            big.weight[0] += 1
    distributed.barrier()
    out["changed"] = round(float(big.weight.detach().double().sum() - total))
    distributed.barrier()
    own.write(big.bias, torch.full_like(big.bias, 5.0))
    own.refresh()
    out["back"] = round(float(big.weight.detach().double().sum() - total))
    out["written"] = bool((big.bias == 5).all())
    own.forget(big.bias)
    big.bias.data = torch.zeros(3)
    own.refresh()
    out["left"] = big.bias.shape == (3,) and not own.has(big.bias)
    return out


def full_disk(rank: int) -> bool:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    os.posix_fallocate = full  # type: ignore[assignment]
    layer = nn.Linear(4, 4)
    before = layer.weight.data.clone()
    own = Shared(layer.parameters())
    own.refresh()
    return not own.has(layer.weight) and torch.equal(layer.weight, before)


def hidden(rank: int) -> bool:
    """The second rank has a disk of its own."""
    if rank:
        shared.open = lambda *args: (_ for _ in ()).throw(FileNotFoundError(*args))  # type: ignore[attr-defined]
    layer = nn.Linear(4, 4)
    found = Shared(layer.parameters())
    found.refresh()
    return not found.has(layer.weight) and not layer.weight.isnan().any()


def test_once_in_memory_and_each_rank_as_if_it_had_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outs = two_processes.run(sharing, tmp_path)
    size = SIDE * SIDE * 4
    for rank, out in enumerate(outs):
        assert out["before"] - out["after"] > 0.9 * size
        assert all(out["kept"]) and out["own storage"] == 12
        assert out["has"] == {"half": True, "flags": True, "count": True, "none": True, "map": True, "some": False, "weight": True}
        assert out["changed"] == (SIDE if rank else 0) and out["back"] == 0
        assert out["written"] and out["left"]
    assert not list(tmp_path.glob("sslt-weights-*"))


def test_without_room_each_rank_keeps_its_own(tmp_path):
    assert two_processes.run(full_disk, tmp_path) == [True, True]


def test_where_ranks_do_not_see_each_others_files_each_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert two_processes.run(hidden, tmp_path) == [True, True]
    assert not list(tmp_path.glob("sslt-weights-*"))
