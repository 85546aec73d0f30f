"""Protects pieces of histories: each item is followed by the next one, exactly one place later, and as many are hidden as is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sslt.data.prepare.item_processor import FIRST, MASK, UNKNOWN
from sslt.data.views.item_views import NONE, Histories

LONGEST = 6


def encoder(writes: str) -> SimpleNamespace:
    return SimpleNamespace(writes=writes, processor=SimpleNamespace(max_length=LONGEST))


def batch(sizes: list[int], answered: bool = False) -> dict[str, torch.Tensor]:
    """Histories of ascending ids, whose answer is the id that comes next."""
    place = torch.arange(max(sizes))
    history = (FIRST + place).repeat(len(sizes), 1).masked_fill(place >= torch.tensor(sizes)[:, None], 0)
    return {"history": history} | ({"item": torch.tensor(sizes) + FIRST} if answered else {})


@pytest.mark.parametrize("answered", [False, True])
def test_each_item_is_followed_by_the_next(answered):
    """The last piece where no other is wanted; the answer is the last target; padding is none."""
    made = Histories(0.0, 0.2, 0.0)(batch([1, 2, 5, 9], answered), encoder("causal"))
    tokens, mask, targets = made["inputs"]["tokens"], made["inputs"]["mask"], made["targets"]
    sizes = [n + answered for n in (1, 2, 5, 9)]
    assert (targets != NONE).sum(1).tolist() == [min(n, LONGEST + 1) - 1 for n in sizes] and made["n_targets"] == (targets != NONE).sum()
    counted = targets != NONE
    assert (targets[counted] == tokens[counted] + 1).all() and mask[counted].all()
    assert [int(row[row != NONE][-1]) - FIRST for row in targets[1:]] == [n - 1 for n in sizes[1:]]
    assert mask.sum(1).tolist() == [max(min(n, LONGEST + 1) - 1, 1) for n in sizes] and not tokens[~mask].any()


def test_pieces_come_from_anywhere():
    """Every start is as likely as another, and no piece goes beyond its history."""
    torch.manual_seed(0)
    made = Histories(1.0, 0.2, 0.0)(batch([9] * 4000 + [2]), encoder("causal"))
    first = made["inputs"]["tokens"][:-1, 0] - FIRST
    assert torch.allclose(torch.bincount(first).double() / 4000, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.03)
    assert (made["targets"][:-1] == made["inputs"]["tokens"][:-1] + 1).all()


def test_as_many_are_hidden_as_is_said():
    """max(1, round(rate · n)) of each piece, none twice; what is hidden is told at its place and nowhere else."""
    torch.manual_seed(0)
    made = Histories(0.0, 0.4, 0.0)(batch([1, 2, 5, 9]), encoder("masked"))
    tokens, positions, targets = made["inputs"]["tokens"], made["positions"], made["targets"]
    assert (targets != NONE).sum(1).tolist() == [1, 1, 2, 2] and (tokens == MASK).sum(1).tolist() == [1, 1, 2, 2]
    for row, at, items, start in zip(tokens, positions, targets, (0, 0, 0, 3), strict=True):
        at, items = at[items != NONE], items[items != NONE]
        assert (row[at] == MASK).all() and (items == at + start + FIRST).all() and len(at.unique()) == len(at)
        left = (row != MASK) & (row != 0)
        assert (row[left] == torch.arange(len(row))[left] + start + FIRST).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_last_item_is_hidden_as_often_as_is_said(share):
    torch.manual_seed(0)
    made = Histories(0.0, 0.2, share)(batch([5] * 2000), encoder("masked"))
    assert float((made["inputs"]["tokens"][:, 4] == MASK).float().mean()) == pytest.approx(share + (1 - share) / 5, abs=0.03)


@pytest.mark.parametrize("writes", ["causal", "masked"])
def test_an_unknown_item_is_read_and_never_a_target(writes):
    rows = batch([4, 4])
    rows["history"][0, 2] = rows["history"][1, :] = UNKNOWN
    made = Histories(0.0, 1.0, 1.0)(rows, encoder(writes))
    assert UNKNOWN in made["inputs"]["tokens"] and not (made["targets"] == UNKNOWN).any()
    assert (made["targets"][1] == NONE).all() and made["n_targets"] == (2 if writes == "causal" else 3)
