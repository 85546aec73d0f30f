"""Protects which sizes W-MSE takes: as many samples as whitening needs, and not one fewer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.errors import UserError
from sslt.objectives.decorrelation import WMSE


def wmse(size: int | None, hidden: int = 8) -> WMSE:
    return WMSE(VectorEncoder(nn.Identity(), 4), hidden, 4, size, 0.0)


def test_whitening_needs_twice_as_many_samples_as_numbers():
    """At a time, and in a step; all of a step where no size is given."""
    wmse(8, hidden=4)
    for make in (lambda: wmse(7), lambda: wmse(8, hidden=3)):
        with pytest.raises(UserError, match="numbers"):
            make()
    for size, least in ((None, 8), (8, 8), (12, 12)):
        wmse(size).prepare(None, None, least)
        with pytest.raises(UserError, match=f"at least {least} samples a step"):
            wmse(size).prepare(None, None, least - 1)


def test_parts_are_of_the_joint_batch(monkeypatch):
    """Two ranks hold its rows by turns: what they gather, one after the other, is whitened in the parts that one process has."""
    torch.manual_seed(0)
    objective, views = wmse(8), torch.randn(2, 16, 4)
    encoder = VectorEncoder(nn.Identity(), 4)
    alone = objective(encoder, {"views": {"x": views}}).value
    monkeypatch.setattr("sslt.distributed.world_size", lambda: 2)
    monkeypatch.setattr("sslt.distributed.gather", lambda z: torch.cat([z[0::2], z[1::2]]))
    assert torch.allclose(objective(encoder, {"views": {"x": views}}).value, alone, rtol=1e-5)
