"""Protects MAE, SimMIM and BEiT: the loss against loops over patches, hidden pixels only, and words of the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_vit import images, small_vit

from sslt.data.prepare.image_processor import ImageSamples
from sslt.errors import UserError
from sslt.objectives import masked_images
from sslt.objectives.masked_images import MAE, BEiT, SimMIM

HIDDEN = torch.tensor([[1, 4, 9, 12], [0, 2, 3, 15], [5, 6, 7, 8]])
VISIBLE = torch.tensor([[t for t in range(16) if t not in row] for row in HIDDEN.tolist()])


def patch(image: np.ndarray, t: int) -> np.ndarray:
    """[4·4·3], channels last, of patch t of a 4×4 grid."""
    r, c = divmod(t, 4)
    return image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].transpose(1, 2, 0).reshape(-1)


@pytest.fixture
def fixed(monkeypatch):
    """The same patches hidden in every call."""
    monkeypatch.setattr(masked_images, "random_split", lambda *_: (VISIBLE, HIDDEN))
    rows = torch.zeros(3, 16, dtype=torch.bool).scatter(1, HIDDEN, True)
    monkeypatch.setattr(masked_images, "random_tokens", lambda *_: rows)
    monkeypatch.setattr(masked_images, "block_tokens", lambda *_: rows)


@pytest.mark.parametrize("normalise", [True, False])
def test_mae_is_the_mean_square_of_hidden_pixels(fixed, normalise):
    """Against a loop; with the targets normalised patch by patch, or as they are."""
    encoder, batch = small_vit(), images()
    objective = MAE(encoder, 0.25, normalise, 8, 1, 2)
    value = float(objective(encoder, batch).value.detach())
    with torch.no_grad():
        tokens = encoder({"image": batch["views"]["image"][0], "visible": VISIBLE}).tokens
        guesses = objective.decode(tokens, VISIBLE, HIDDEN).double().numpy()
    found = []
    for b, image in enumerate(batch["views"]["image"][0].double().numpy()):
        for i, t in enumerate(HIDDEN[b].tolist()):
            target = patch(image, t)
            target = (target - target.mean()) / np.sqrt(target.var() + 1e-6) if normalise else target
            found.append(((guesses[b, i] - target) ** 2).mean())
    assert value == pytest.approx(np.mean(found), rel=1e-5)


def test_mae_knows_which_patch_it_draws():
    """Predictions for a hidden patch depend on its position, not on its place in the list."""
    encoder, batch = small_vit(), images()
    objective = MAE(encoder, 0.25, True, 8, 1, 2)
    with torch.no_grad():
        tokens = encoder({"image": batch["views"]["image"][0], "visible": VISIBLE}).tokens
        a = objective.decode(tokens, VISIBLE, HIDDEN)
        b = objective.decode(tokens, VISIBLE, HIDDEN.flip(1))
    assert torch.allclose(a, b.flip(1), atol=1e-5) and not torch.allclose(a[:, 0], a[:, 1])


def test_mae_encodes_the_visible_quarter_only():
    """With the usual share, four of sixteen tokens pass the blocks."""
    encoder = small_vit()
    widths = []
    encoder.model.blocks[0].register_forward_hook(lambda m, i, o: widths.append(o.shape[1]))
    MAE(encoder, 0.75, True, 8, 1, 2)(encoder, images())
    assert widths[-1] == 4


def test_simmim_is_the_mean_difference_of_hidden_pixels(fixed):
    """Against a loop."""
    encoder, batch = small_vit(), images()
    objective = SimMIM(encoder, 0.25, 1)
    value = float(objective(encoder, batch).value.detach())
    with torch.no_grad():
        guesses, hidden = objective.guess(encoder, batch["views"]["image"][0])
    assert torch.equal(hidden, HIDDEN)
    x = batch["views"]["image"][0].double().numpy()
    found = [np.abs(guesses[b, i].double().numpy() - patch(x[b], t)).mean() for b in range(3) for i, t in enumerate(HIDDEN[b].tolist())]
    assert value == pytest.approx(np.mean(found), rel=1e-5)


def test_simmim_hides_whole_squares():
    """unit=2: two by two patches are hidden together."""
    torch.manual_seed(0)
    encoder = small_vit()
    _, hidden = SimMIM(encoder, 0.5, 2).guess(encoder, images()["views"]["image"][0])
    maps = torch.zeros(3, 16).scatter(1, hidden, 1.0).view(3, 4, 4)
    squares = maps.unfold(1, 2, 2).unfold(2, 2, 2).sum((-1, -2))
    assert set(squares.flatten().tolist()) == {0.0, 4.0}
    with pytest.raises(UserError, match="divisor"):
        SimMIM(encoder, 0.5, 3)


def samples(n: int = 40) -> ImageSamples:
    g = np.random.default_rng(0)
    return ImageSamples(g.integers(0, 255, (n, 16, 16, 3), dtype=np.uint8), None, "random")


def test_beit_names_the_nearest_word(fixed):
    """The loss is the cross-entropy of the index of the nearest word; words are centres of the samples' patches."""
    encoder, batch = small_vit(), images()
    objective = BEiT(encoder, 0.25, [0.3, 3.3], 6, 100)
    objective.prepare(encoder, samples(), 8)
    words = objective.words.double().numpy()
    assert np.isfinite(words).all() and len(np.unique(words, axis=0)) == 6
    value = float(objective(encoder, batch).value.detach())
    with torch.no_grad():
        logits, _ = objective.guess(encoder, batch["views"]["image"][0])
    x, found = batch["views"]["image"][0].double().numpy(), []
    for b in range(3):
        for i, t in enumerate(HIDDEN[b].tolist()):
            answer = np.argmin(((words - patch(x[b], t)) ** 2).sum(1))
            scores = logits[b, i].double().numpy()
            found.append(np.log(np.exp(scores).sum()) - scores[answer])
    assert value == pytest.approx(np.mean(found), rel=1e-4)


def test_beit_needs_enough_patches():
    """Fewer images than words can be made of; fewer patches than words."""
    encoder = small_vit()
    objective = BEiT(encoder, 0.25, [0.3, 3.3], 50, 60)
    with pytest.raises(UserError, match="at most 20"):
        objective.prepare(encoder, samples(5), 4)
    with pytest.raises(UserError, match="no fewer patches"):
        BEiT(encoder, 0.25, [0.3, 3.3], 50, 40)


@pytest.mark.parametrize("make", [lambda e: MAE(e, 0.75, True, 8, 1, 2), lambda e: SimMIM(e, 0.5, 2)], ids=["mae", "simmim"])
def test_pictures_show_what_was_hidden(make):
    """Three rows; visible pixels are the true ones in each."""
    torch.manual_seed(0)
    encoder = small_vit()
    with torch.no_grad():
        rows = make(encoder).draw(encoder, images())["reconstruction"].rows
    assert list(rows) == ["seen", "predicted", "truth"]
    visible = rows["seen"] != 0
    assert 0.2 < visible.float().mean() < 0.6
    assert torch.equal(rows["seen"][visible], rows["truth"][visible]) and torch.equal(rows["predicted"][visible], rows["truth"][visible])
    assert not torch.equal(rows["predicted"], rows["truth"])
