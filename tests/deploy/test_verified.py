"""Protects the gate of exported files: one that answers otherwise than its run, in a batch of any size, is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.data.answers import Class
from sslt.deploy.formats.base import Model
from sslt.deploy.verified import verify
from sslt.errors import UserError
from sslt.targets.classification import Classification

SPACE = {"classes": ["a", "b"]}


class Points:
    """20 points in the plane."""

    answers = Class(np.arange(20) % 2, SPACE)

    def __len__(self):
        return 20

    def ordered_batches(self, size, longest=None):
        return iter(np.array_split(np.arange(20), 20 // size))

    def batch(self, index):
        x = torch.from_numpy(np.stack([np.where(index % 2, 1.0, -1.0), index / 10], 1)).float()
        return {"x": x, "index": torch.from_numpy(np.asarray(index))}


@pytest.fixture
def model(monkeypatch) -> Model:
    monkeypatch.setattr(VectorEncoder, "reading", {})
    encoder = VectorEncoder(nn.Identity(), 2)
    target = Classification(encoder, SPACE, 0.0, 0.0)
    with torch.no_grad():
        target.head.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.1]]))
    return Model(encoder, target)


def found(model: Model, change):
    return verify(model, lambda batch: change(model.outputs(batch)), Points(), 5, 0)


def test_the_run_itself_passes(model):
    passed = found(model, lambda outputs: outputs)
    assert passed.errors == {"all": 0.0, "1": 0.0, "3": 0.0, "8": 0.0} and passed.score == passed.run_score == 1.0
    passed.require("it", 1e-9, 0.0, "accuracy")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda o: {"logits": o["logits"] * 1.01}, ""),
        (lambda o: {"logits": o["logits"].flip(0)}, ""),
        (lambda o: {"logits": o["logits"] if len(o["logits"]) == 5 else o["logits"] * (1 + (len(o["logits"]) == 1))}, "batches of 1"),
        (lambda o: {"logits": o["logits"] if len(o["logits"]) < 8 else o["logits"][:1].expand_as(o["logits"])}, "batches of 8"),
        (lambda o: {"logits": o["logits"].index_fill(0, torch.tensor([0]), torch.nan)}, ""),
        (lambda o: {"logits": o["logits"][:, :1]}, ""),
        (lambda o: {"scores": o["logits"]}, ""),
    ],
)
def test_a_wrong_file_is_named(model, change, where):
    """Scaled, rows in another order, wrong in batches of one size alone, no number, other shapes or names."""
    try:
        wrong = found(model, change)
    except KeyError:
        pytest.fail("another output is a difference, not a defect")
    with pytest.raises(UserError, match=f"other numbers than the run.*{where}.*not kept"):
        wrong.require("it", 1e-4, 0.0, "accuracy")


def test_another_score_is_named(model):
    """Where a small difference of outputs turns answers."""
    near = found(model, lambda o: {"logits": o["logits"] + torch.tensor([2.5, 0.0])})
    assert near.score < near.run_score
    with pytest.raises(UserError, match="has accuracy"):
        near.require("it", 10.0, 0.01, "accuracy")
    near.require("it", 10.0, 1.0, "accuracy")
