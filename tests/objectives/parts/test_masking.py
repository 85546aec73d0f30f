"""Protects what hides tokens: exact counts, whole rectangles, nothing hidden that may not be, and patches that come back as they were."""

from __future__ import annotations

import pytest
import torch

from sslt.errors import UserError
from sslt.objectives.parts.masking import (
    block_tokens,
    check_share,
    normalise_patches,
    patchify,
    positions_of,
    random_split,
    random_tokens,
    take,
    unpatchify,
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_random_tokens_are_counted_per_row_and_allowed():
    """round(share · n) of the n tokens that a row may hide, at least one, and none that it may not."""
    allowed = torch.zeros(3, 20, dtype=torch.bool)
    allowed[0], allowed[1, :10], allowed[2, 5] = True, True, True
    masked = random_tokens(allowed, 0.3)
    assert masked.sum(1).tolist() == [6, 3, 1]
    assert not (masked & ~allowed).any()


def test_random_tokens_are_drawn_evenly():
    """Over many draws every token is hidden equally often."""
    masked = random_tokens(torch.ones(4000, 10, dtype=torch.bool), 0.4)
    assert torch.allclose(masked.float().mean(0), torch.full((10,), 0.4), atol=0.03)


def test_random_split_is_a_division():
    """Visible and hidden positions together are all, each once, ascending."""
    visible, hidden = random_split(5, 16, 0.75, torch.device("cpu"))
    assert visible.shape == (5, 4) and hidden.shape == (5, 12)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values, torch.arange(16).expand(5, 16))
    assert torch.equal(visible, visible.sort(1).values)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_blocks_have_the_exact_count_and_hang_together(share):
    """Each row hides round(share · T) patches, and a hidden patch has more hidden neighbours than chance would give it."""
    grid = 12
    masked = block_tokens(200, grid, share, (0.3, 3.3), torch.device("cpu"))
    assert (masked.sum(1) == round(share * grid**2)).all()
    maps = masked.view(-1, grid, grid)
    right = (maps[:, :, :-1] & maps[:, :, 1:]).sum() / maps[:, :, :-1].sum()
    assert right > share + 0.12
    assert not torch.equal(masked[0], masked[1])


def test_blocks_lie_anywhere():
    """Over many draws the first row and column are hidden as often as the last ones: none lies outside, and none is kept from the edge."""
    hidden = block_tokens(2000, 8, 0.4, (0.3, 3.3), torch.device("cpu")).view(-1, 8, 8).float().mean(0)
    for share in (hidden.mean(0), hidden.mean(1)):
        assert torch.allclose(share, share.flip(0), atol=0.03)


def test_positions_of_a_mask():
    """Ascending places of the True."""
    masked = torch.tensor([[False, True, True, False], [True, False, False, True]])
    assert positions_of(masked, 2).tolist() == [[1, 2], [0, 3]]


def test_patches_are_the_encoders_and_come_back():
    """Patch t covers row t // grid and column t % grid of squares, and `unpatchify` is the inverse."""
    images = torch.randn(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert patches.shape == (2, 16, 12)
    assert torch.equal(patches[1, 6], images[1, :, 2:4, 4:6].permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(patches, 4, 3), images)
    assert torch.equal(take(patches, torch.tensor([[3], [5]]))[1, 0], patches[1, 5])


def test_normalised_patches_have_no_mean_and_unit_deviation():
    """Also one that is flat, which stays 0."""
    x = torch.randn(2, 5, 12) * 3 + 4
    x[0, 0] = 7
    y = normalise_patches(x)
    assert torch.allclose(y.mean(-1), torch.zeros(2, 5), atol=1e-5)
    assert torch.allclose(y[1].std(-1, correction=0), torch.ones(5), atol=1e-4) and (y[0, 0] == 0).all()


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5])
def test_impossible_shares(share):
    """All or nothing hidden is no task."""
    with pytest.raises(UserError, match=r"objective\.share"):
        check_share("share", share)
