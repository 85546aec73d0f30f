"""Protects the objectives on bags of words: every loss that compares views learns from parts of documents."""

from __future__ import annotations

import pytest
import torch

from sslt.config import build, compose
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.views.text_views import Crops
from sslt.encoders.bag import BagEncoder

TASKS = [
    "simclr", "moco_v2", "moco_v3", "nnclr", "dcl", "byol", "simsiam", "barlow_twins", "vicreg", "lejepa", "swav", "supcon",
]  # fmt: skip
SMALLER = {"moco_v2": ["objective.queue=64"], "nnclr": ["objective.queue=64"], "swav": ["objective.queue=64"]}
N = 32


class Words:
    """Stands for the samples an objective is sized by."""

    labels = None

    def __len__(self) -> int:
        return 4 * N


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_moves_words_and_pairs(task):
    """Two steps of it give finite losses and gradients of both tables, through teachers and queues as well."""
    torch.manual_seed(0)
    encoder = BagEncoder(BagProcessor({f"w{i}": 1 for i in range(200)}, 300, 5, 100), dim=16, pairs=300, pair_weight=1.0, dropout=0.0)
    cfg = compose("pretrain", [f"+task={task}", "data=docs", "encoder=bag", "views=crops", *SMALLER.get(task, [])])
    objective = build(cfg.objective, encoder)
    objective.prepare(encoder, Words(), N)
    for step in range(2):
        tokens = torch.randint(1, 200, (N, 40)) * (torch.arange(40) < torch.randint(2, 40, (N, 1)))
        batch = {"tokens": tokens, "label": torch.arange(N) % 4, "index": torch.arange(N)}
        encoder.zero_grad()
        objective.progress = step / 2
        loss = objective(encoder, Crops(n=2, piece=4)(batch, encoder)).value
        loss.backward()
        objective.after_step(encoder)
        assert torch.isfinite(loss) and all(table.weight.grad.norm() > 0 for table in encoder.tables())
