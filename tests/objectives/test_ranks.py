"""Protects every objective on several ranks: two processes with every other image each make the gradient of one with all of them.

Of everything that a loss draws at random for the joined batch, each rank gets what belongs to its own images. Encoder and heads
are float64; losses that compute in float32 do so here as well.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # a rank knows nothing of pytest's paths
import two_processes
from tiny_tasks import TASKS, tiny
from torch.distributed.device_mesh import init_device_mesh

from sslt import distributed
from sslt.config import build, compose
from sslt.data.prepare.image_processor import ImageSamples
from sslt.sharded.model import full, shard
from sslt.stages.common import starting_encoder

N = 19  # images per rank: no width and no number of anything else is a multiple of it
WORDS = ("crops",)  # learns from bags of words, which float64 can compute
RESTORING = ("t5_spans", "bart", "prefix_lm", "electra", "tsdae")  # tests/objectives/test_restoring.py
ITEMS = ("sasrec", "bert4rec")  # tests/objectives/test_item_objectives.py
# simcse is simclr's loss; batches of words are weighed in tests/test_distributed.py
TEXT = ("mlm", "causal_lm", *RESTORING, *ITEMS, "simcse")
VARIANTS = {
    "inpainting": [["objective.mask=blocks"], ["objective.mask=irregular"]],
    "rbm": [["objective.persistent=true"], ["encoder.visible=binary"]],
    "distill": [["objective.distance=mse"]],
    "denoising": [["objective.noise=masking"], ["objective.noise=salt_and_pepper"]],
}
CASES = {
    " ".join([task, *args]): (task, args) for task in TASKS if task not in TEXT for args in [[], *VARIANTS.get(task, [])]
}  # fmt: skip


@contextlib.contextmanager
def drawn_together(rank: int | None, v: int) -> Iterator[None]:
    """Random tensors for the images of v views, or of one, are this rank's part of those drawn for both ranks (None: all of them)."""
    rand, randn, randint = torch.rand, torch.randn, torch.randint

    def part(draw: Any, *size: Any, **given: Any) -> torch.Tensor:
        first, *rest = size[0] if isinstance(size[0], (tuple, list)) else size
        if rank is None or first % N:  # not one for each image
            return draw((first, *rest), **given)
        views = v if first % (v * N) == 0 else 1
        return draw((2 * first, *rest), **given).unflatten(0, (views, -1, 2))[:, :, rank].flatten(0, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *size, **given: part(rand, *size, **given))
        patch.setattr(torch, "randn", lambda *size, **given: part(randn, *size, **given))
        patch.setattr(torch, "randn_like", lambda x: part(randn, *x.shape, dtype=x.dtype))
        patch.setattr(torch, "rand_like", lambda x: part(rand, *x.shape, dtype=x.dtype))

        def integers(*args: Any, **given: Any) -> torch.Tensor:
            *bounds, size = args
            return part(lambda size, **k: randint(*bounds, size, **k), size, **given)

        patch.setattr(torch, "randint", integers)
        yield


def texts_of(vocab_size: int, v: int, rank: int | None) -> dict[str, torch.Tensor]:
    """Random rows of words of different length, and holes in them."""
    g = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, vocab_size, (v, 2 * N, 30), generator=g)
    read = torch.rand(tokens.shape, generator=g) < torch.linspace(0.2, 1, 2 * N).view(1, -1, 1)
    return {"tokens": (tokens * read)[:, slice(rank, None, 1 if rank is None else 2)]}


def batch_of(size: int, channels: int, cfg: Any, rank: int | None) -> tuple[dict, int]:
    """Random images as the task's views come, and how many there are of each; a rank's are every other one."""
    multi = "MultiCrop" in cfg.views["_target_"]
    v = cfg.views.large.n if multi else cfg.views.n
    g = torch.Generator().manual_seed(7)
    rows = slice(rank, None, 1 if rank is None else 2)
    light = torch.linspace(0.5, 2, 2 * N).view(1, -1, 1, 1, 1)  # statistics of a half are not those of the whole
    images = lambda n, s: (torch.randn(n, 2 * N, channels, s, s, generator=g, dtype=torch.float64) * light)[:, rows]  # noqa: E731
    batch: dict = {"views": {"image": images(v, size)}, "label": (torch.arange(2 * N) % 3)[rows], "index": torch.arange(2 * N)[rows]}
    if multi:
        batch["local"] = {"image": images(2, size // 2)}
    return batch, v


class Both(torch.nn.Module):
    """An encoder and its objective as one module, as a learner is."""

    def __init__(self, encoder: torch.nn.Module, objective: torch.nn.Module):
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def loss(self, batch: dict) -> Any:
        return self.objective(self.encoder, batch)


@functools.cache
def config_of(case: str) -> Any:
    """Of the task with a small encoder and loss; ranks are handed it, since composing takes longer than the gradient."""
    task, args = CASES[case]
    images = [] if task in WORDS else ["data=digits", "encoder.processor.channels=3"]
    return compose("pretrain", [f"+task={task}", *tiny(task), *images, *args])


def gradients(case: str, cfg: Any, rank: int | None, mesh: Any = None) -> dict[str, Any]:
    """Of the encoder and of the heads, by one process with all images or by a rank with its half (DDP's mean over ranks); what it keeps.

    mesh: of the ranks that both are sharded over.
    """
    task, _ = CASES[case]
    images = task not in WORDS
    torch.manual_seed(0)
    encoder = starting_encoder(cfg, build(cfg.data))
    objective = build(cfg.objective, encoder)
    p = encoder.processor
    if images:
        pixels = np.random.default_rng(0).integers(0, 255, (2 * N + 64, p.size, p.size, 3), dtype=np.uint8)
        objective.prepare(encoder, ImageSamples(pixels, None, "random"), 2 * N)
    if task == "patch_kmeans":
        objective.patches = 5  # so that those for idle filters are of several images
    if task == "swav":
        objective.filled += 1000  # its queue counts as full
    for module in (encoder.double(), objective.double()):
        distributed.span_batch_norm(module)
    encoder.register_forward_pre_hook(lambda module, args: ({k: x.double() if x.is_floating_point() else x for k, x in args[0].items()},))
    objective.progress = 0.5  # past every warm-up and freeze
    if images:
        batch, v = batch_of(p.size, 3, cfg, rank)
    else:
        v = cfg.views.n
        batch = {"views": texts_of(p.vocab_size, v, rank)}
    torch.manual_seed(1)
    both = Both(encoder, objective)
    if mesh is not None:
        shard(both, mesh, "loss")
    with drawn_together(rank, v):
        found = both.loss(batch)
        found.value.backward()
    assert not any(log.requires_grad for log in found.logs.values()), "what is logged would keep the graph"
    out: dict[str, Any] = {}
    for name, module in (("encoder", encoder), ("heads", objective)):
        found = [full(q.grad).flatten() for q in module.parameters() if q.grad is not None]
        whole = torch.cat(found) if found else torch.zeros(1, dtype=torch.float64)
        out[name] = distributed.sum_over_ranks(whole) / distributed.world_size()  # of sharded ones each rank has the mean already
    out["kept"] = {k: b.clone() for k, b in objective.named_buffers()}
    if task == "patch_kmeans":
        out["kept"]["spare"] = objective.spare[: len(encoder.bank.filters)]
    return out


def on_rank(configs: dict[str, Any], rank: int) -> dict[str, dict[str, Any]]:
    mesh = init_device_mesh("cpu", (2,))
    return {s: {case: gradients(case, cfg, rank, m) for case, cfg in configs.items()} for s, m in (("ddp", None), ("fsdp", mesh))}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    return two_processes.run(functools.partial(on_rank, {case: config_of(case) for case in CASES}), tmp_path_factory.mktemp("ranks"), 300)


@functools.cache
def alone(case: str) -> dict[str, Any]:
    return gradients(case, config_of(case), None)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one(ranks, case, strategy):
    """BatchNorm, negatives, queues, centres, whitening, assignments: the gradient is that of the joined batch, and so is what is kept."""
    whole = alone(case)
    assert whole["encoder"].any()
    for out in ranks:
        part = out[strategy][case]
        for name in ("encoder", "heads"):
            if whole[name].any():
                assert float(torch.cosine_similarity(part[name], whole[name], dim=0)) >= 0.9999, name
                assert float(part[name].norm() / whole[name].norm()) == pytest.approx(1, abs=1e-3), name
        for name, kept in whole["kept"].items():
            assert torch.allclose(part["kept"][name], kept, rtol=1e-4, atol=1e-5), name
