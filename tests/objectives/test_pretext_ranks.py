"""Protects pretext objectives on several ranks: the gradient is that of one process with the joined batch.

Two real processes each get half of the images and, of everything that is drawn at random for the joined batch, their half.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # a rank knows nothing of pytest's paths
from tiny_encoders import TinyEncoder, views

from sslt import distributed
from sslt.objectives.colorization import Colorization
from sslt.objectives.cpc import CPC
from sslt.objectives.jigsaw import Jigsaw, PatchContext
from sslt.objectives.reconstruction import MASKS, NOISES, ContrastiveAutoencoder, Denoising, Inpainting
from sslt.objectives.rotation import Flip, Rotation

N = 4  # images per rank
OBJECTIVES = {
    "rotation": Rotation, "flip": Flip, "jigsaw": lambda e: Jigsaw(e, 10, 6, None, 0.5, 16),
    "patch_context": lambda e: PatchContext(e, None, None, None, 0.5, 16), "colorization": lambda e: Colorization(e, 20.0, 4, 4, 5.0, 0.5),
    **{f"inpainting-{m}": lambda e, m=m: Inpainting(e, m, 0.25, 1, 2.0, 4) for m in MASKS},
    **{f"denoising-{n}": lambda e, n=n: Denoising(e, n, 0.4, 4) for n in NOISES},
    "cpc": lambda e: CPC(e, 5, None, [1, 3], 8, 2, 6, 0.5),
    "contrastive_autoencoder": lambda e: ContrastiveAutoencoder(e, 1.5, 0.2, 16, 8, 4),
}  # fmt: skip


@contextlib.contextmanager
def drawn_together(rank: int | None) -> Iterator[None]:
    """Random tensors, whose first axis is the batch, are this rank's rows of those drawn for both ranks (None: all of them)."""
    with pytest.MonkeyPatch.context() as patch:
        rand, randn, randint = torch.rand, torch.randn, torch.randint

        def rows(x: torch.Tensor) -> torch.Tensor:
            return x if rank is None else x.chunk(2)[rank]

        ranks = 1 if rank is None else 2

        patch.setattr(torch, "rand", lambda b, *shape, **k: rows(rand(ranks * b, *shape, **k)))
        patch.setattr(torch, "randn", lambda b, *shape, **k: rows(randn(ranks * b, *shape, **k)))
        patch.setattr(torch, "randint", lambda *args, **k: rows(randint(*args[:-1], (ranks * args[-1][0], *args[-1][1:]), **k)))
        patch.setattr(torch, "randn_like", lambda x: rows(randn(ranks * len(x), *x.shape[1:])))
        yield


def gradient(name: str, rank: int | None) -> torch.Tensor:
    """Of the encoder, by one process with all images or by a rank with its half; DDP's mean over ranks."""
    encoder = TinyEncoder(32)
    torch.manual_seed(0)
    objective = OBJECTIVES[name](encoder)
    for module in (encoder, objective):
        distributed.span_batch_norm(module)
    images = views(2 * N, 32, v=2 if name == "contrastive_autoencoder" else 1)["views"]["image"]
    images = images * torch.linspace(0.5, 1.5, 2 * N).view(1, -1, 1, 1, 1)  # statistics of a half are not those of the whole
    part = images if rank is None else images[:, rank * N : (rank + 1) * N]
    torch.manual_seed(1)
    with drawn_together(rank):
        objective(encoder, {"views": {"image": part}}).value.backward()
    found = torch.cat([p.grad.flatten().double() for p in encoder.parameters()])
    return distributed.sum_over_ranks(found) / distributed.world_size()


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init("cpu")
    try:
        torch.save({name: gradient(name, rank) for name in OBJECTIVES}, Path(folder) / f"{rank}.pt")
    finally:
        distributed.close()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(r, port, str(folder))) for r in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(100)
        if p.is_alive():
            p.kill()
    assert [p.exitcode for p in processes] == [0, 0]
    return [torch.load(folder / f"{r}.pt") for r in range(2)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_are_one(ranks, name):
    """Negatives of all ranks, BatchNorm over them, and means over images: the encoder's gradient is that of the joined batch."""
    whole = gradient(name, None)
    for out in ranks:
        assert float(torch.cosine_similarity(out[name], whole, dim=0)) > 0.9999
        assert float(out[name].norm() / whole.norm()) == pytest.approx(1, abs=1e-3)
