"""Histories of items: SASRec by sslt, and as it is written in plain PyTorch, at the same loss and batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.device import device
from bench.ours import Pretraining
from bench.rounds import Watch
from sslt import config
from sslt.data.prepare.item_processor import FIRST, PAD, ItemProcessor, ItemSamples
from sslt.data.streams.streams import Stream
from sslt.encoders.histories import CausalHistories

ITEMS, LONGEST, MEAN = 22_437, 50, 6.6  # of Amazon's video games


def sasrec(batch: int, steps: int, folder: Path) -> Pretraining:
    """The task as it is shipped, on histories of random items whose lengths are those of few purchases and a long tail."""
    cfg = config.compose("pretrain", ["+task=sasrec", f"batch_size={batch}", "online_probe.every_n_epochs=0"])
    node = cfg.encoder
    model = CausalHistories(ItemProcessor([str(i) for i in range(ITEMS)], LONGEST), node.model_type, dict(node.config), node.pooling)
    rng = np.random.default_rng(0)
    sizes = 2 + rng.geometric(1 / (MEAN - 2), batch * steps).astype(np.int64)
    items = rng.integers(FIRST, FIRST + ITEMS, int(sizes.sum()), dtype=np.int32)
    starts = np.cumsum(sizes) - sizes
    samples = ItemSamples(items, starts, sizes, None, "random items", (None, None, PAD), LONGEST, 0, following=None)
    stream = Stream(samples, batch, seed=0, drop_last=True, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model), stream, folder)


class Plain(nn.Module):
    """SASRec as its users write it (pmixer/SASRec.pytorch), with the softmax over all items: rows filled up at the front to 50."""

    def __init__(self, width: int = 64, heads: int = 2, layers: int = 2, dropout: float = 0.2):
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, width, padding_idx=0)
        self.places = nn.Embedding(LONGEST, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, targets: Tensor) -> Tensor:
        x = self.dropout(self.items(rows) + self.places.weight)
        later = torch.ones(LONGEST, LONGEST, dtype=torch.bool, device=rows.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=later)
        counted = targets > 0
        return F.cross_entropy(self.norm(x)[counted] @ self.items.weight.T, targets[counted])


def plain(ours: Pretraining, bf16: bool) -> Callable[[Watch], None]:
    """Adam in a bare loop over the same histories."""
    torch.manual_seed(0)
    model = Plain().to(device()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    samples, size, at = ours.samples, ours.stream.batch_size, 0
    assert isinstance(samples, ItemSamples)

    def step() -> None:
        nonlocal at
        rows = np.zeros((size, LONGEST + 1), np.int64)
        for i in range(size):
            j = (at + i) % len(samples)
            history = samples.tokens[samples.starts[j] : samples.starts[j] + samples.sizes[j]][-LONGEST - 1 :] - (FIRST - 1)
            rows[i, -len(history) :] = history
        at += size
        x = torch.from_numpy(rows).to(device())
        with torch.autocast(device().type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = model(x[:, :-1], x[:, 1:].masked_fill(x[:, :-1] == 0, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda watch: watch.drive(step)
