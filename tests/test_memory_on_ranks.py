"""Protects what saves memory on several ranks: gradients and running statistics of two processes are those of one with all rows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.append(str(Path(__file__).parent))  # a rank knows nothing of pytest's paths
import two_processes
from vector_encoder import VectorEncoder

from sslt import distributed, recomputing
from sslt.objectives.contrastive import NTXent

N = 6  # rows a view on each rank
CASES = [("batch", again, None) for again in (False, True)] + [("layer", again, size) for again in (False, True) for size in (None, 4)]


class Contrast(nn.Module):
    """Encoder and objective as one module, as a trainer wraps them; a weight that no row goes through is among them."""

    def __init__(self, norm: str):
        super().__init__()
        torch.manual_seed(0)
        norms = {"batch": nn.BatchNorm1d(16), "layer": nn.LayerNorm(16)}
        self.encoder = VectorEncoder(nn.Sequential(nn.Linear(4, 16), norms[norm], nn.Tanh(), nn.Linear(16, 8)), 8)
        self.objective = NTXent(self.encoder, temperature=0.2, hidden=16, out=8, norm=True)
        self.unread = nn.Parameter(torch.zeros(3))
        self.double()

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.objective(self.encoder, {"views": {"x": views}}).value


def gradients(case: tuple[str, bool, int | None], rank: int | None) -> dict[str, Any]:
    """By one process with all rows, as torch has it, or by a rank with its own under DDP, twice, as two accumulated batches."""
    norm, again, size = case
    rows = torch.randn(2, 2 * N, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.arange(1, 2 * N + 1).view(
        1, -1, 1
    )
    model: Any = Contrast(norm)
    encoder = model.encoder
    if rank is None:
        for _ in range(2):
            model(rows).backward()
    else:
        distributed.span_batch_norm(model)
        encoder.chunk_size = size
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        with recomputing.recomputed([encoder]) if again else contextlib.nullcontext():
            with wrapped.no_sync():
                wrapped(rows[:, rank * N : (rank + 1) * N]).backward()
            wrapped(rows[:, rank * N : (rank + 1) * N]).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and n != "unread"}
    return grads | {n: b.clone().double() for n, b in encoder.named_buffers()}


def on_rank(rank: int) -> dict[Any, Any]:
    return {case: gradients(case, rank) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[Any, Any]]:
    return two_processes.run(on_rank, tmp_path_factory.mktemp("ranks"), 300)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_are_one(ranks, case):
    """BatchNorm over all ranks is computed again with its messages; parts of a batch send theirs once."""
    whole = gradients(case, None)
    assert len(whole) > 5
    for out in ranks:
        assert out[case].keys() == whole.keys()
        for name, expected in whole.items():
            assert torch.allclose(out[case][name], expected, rtol=1e-6, atol=1e-9), name
