"""Protects what objectives share: how many samples a batch has, one forward for all views, and how projectors are built."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, encode_views, full_precision, mlp, n_samples, n_views, wide


def test_how_many_views_and_samples():
    """Of views [V, B], of inputs [B], of the first of several streams."""
    views, inputs = {"views": {"x": torch.zeros(3, 5, 2)}}, {"inputs": {"x": torch.zeros(7, 2)}}
    assert n_views(views["views"]) == 3 and n_samples(views) == 5 and n_samples(inputs) == 7
    assert n_samples({"source": inputs, "target": views}) == 7 and n_samples({"source": views, "target": inputs}) == 5
    assert n_samples({**inputs, **views}) == 5


def test_views_are_encoded_once():
    """All of them in one forward, view by view; objectives on one stream share it."""
    encoder, seen = VectorEncoder(nn.Identity(), 2), []
    encoder.layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    batch = {"views": {"x": torch.arange(12.0).view(2, 3, 2)}}
    first = encode_views(encoder, batch)
    assert encode_views(encoder, batch) is first and seen == [(6, 2)]
    assert torch.equal(first.pooled, torch.arange(12.0).view(6, 2))


def shape(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"{module.in_features}-{module.out_features}" + ("" if module.bias is None else "+")
    if isinstance(module, nn.BatchNorm1d):
        return f"norm {module.num_features}" + ("+" if module.affine else "")
    return type(module).__name__


def test_projectors():
    """Layers, widths, norms, and biases where no norm would take them away again."""
    assert [shape(m) for m in mlp(5, 8, 3)] == ["5-8", "norm 8+", "ReLU", "8-3+"]
    assert [shape(m) for m in mlp(5, 8, 3, norm=False)] == ["5-8+", "ReLU", "8-3+"]
    assert [shape(m) for m in mlp(5, 8, 3, layers=3, last_norm=True)] == [
        "5-8",
        "norm 8+",
        "ReLU",
        "8-8",
        "norm 8+",
        "ReLU",
        "8-3",
        "norm 3",
    ]
    assert [shape(m) for m in mlp(5, 8, 3, layers=1)] == ["5-3+"]


def test_precision_of_losses():
    """float32 at least, float64 stays; autocast does not reach in."""
    assert wide(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32 and wide(torch.zeros(1).double()).dtype == torch.float64
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision():
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_comparing_needs_something_to_compare_with():
    """Two samples in a step at least, where samples are compared."""

    class Comparing(Objective):
        needs_full_batches = True

        def forward(self, encoder, batch):
            return Loss(torch.zeros(()), {})

    Comparing().prepare(None, None, 2)
    with pytest.raises(UserError, match="at least 2"):
        Comparing().prepare(None, None, 1)
    alone = Comparing()
    alone.needs_full_batches = False
    alone.prepare(None, None, 1)
    assert alone.units({"inputs": {"x": torch.zeros(4)}}) == 4 and (alone.progress, alone.logs_now) == (0.0, True)
