"""Protects inpainting, denoising and the contrastive autoencoder: what is hidden or disturbed, and the errors that are measured."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES
from tiny_encoders import TinyEncoder, tiny_vit, views

from sslt.encoders.base import evaluating
from sslt.errors import UserError
from sslt.objectives.parts.decoders import to_maps
from sslt.objectives.reconstruction import MASKS, NOISES, ContrastiveAutoencoder, Denoising, Inpainting, hidden_region, region_error

CPU = torch.device("cpu")


# -------------------------------------------------------------------- what is hidden
def test_the_centre_is_a_square_in_the_middle():
    """A quarter of the area is half the side."""
    mask = hidden_region("centre", 2, 16, 0.25, CPU)
    assert mask.shape == (2, 1, 16, 16) and mask.sum((1, 2, 3)).tolist() == [64, 64] and mask[:, :, 4:12, 4:12].all()


def test_blocks_are_rectangles_that_vary():
    """At most the share is hidden, something always is, every pixel can be, and masks differ from image to image."""
    torch.manual_seed(0)
    mask = hidden_region("blocks", 300, 16, 0.25, CPU)
    count = mask.sum((1, 2, 3))
    assert int(count.min()) >= 4 and int(count.max()) <= 64 and len(count.unique()) > 10
    assert mask.any(0).all() and not mask.all(0).any()
    rows = [torch.unique(m[0].int(), dim=0) for m in mask[:50]]
    assert max(len(r) for r in rows) <= 9  # four intervals have eight ends: at most nine kinds of rows


def test_irregular_regions_hold_exactly_the_share():
    """As many pixels in each image, in blobs: most hidden pixels have a hidden neighbour to the right, few in independent noise."""
    torch.manual_seed(0)
    mask = hidden_region("irregular", 100, 16, 0.3, CPU)
    assert mask.sum((1, 2, 3)).unique().tolist() == [round(0.3 * 256)]
    beside = (mask[..., 1:] & mask[..., :-1]).sum() / mask[..., :-1].sum()
    assert float(beside) > 0.6 and mask.any(0).all() and len(torch.unique(mask.flatten(1), dim=0)) == 100


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("size", [8, 28, 32])
def test_masks_of_any_size(kind, size):
    """Never nothing, never everything."""
    torch.manual_seed(0)
    count = hidden_region(kind, 50, size, 0.1, CPU).sum((1, 2, 3))
    assert int(count.min()) >= 1 and int(count.max()) <= 0.2 * size * size


# -------------------------------------------------------------------- errors
def test_the_error_of_a_region_against_the_loop():
    """Over the channels and the weighted pixels of an image, then over images: one with a small hole counts as much as others."""
    drawn, truth = torch.randn(3, 2, 5, 5, dtype=torch.float64), torch.randn(3, 2, 5, 5, dtype=torch.float64)
    weight = (torch.rand(3, 1, 5, 5) < 0.4).double() * 2 + (torch.rand(3, 1, 5, 5) < 0.2).double()
    errors = []
    for i in range(3):
        total = sum(float(weight[i, 0, y, x] * (drawn[i, c, y, x] - truth[i, c, y, x]) ** 2 / 2) for c, y, x in np.ndindex(2, 5, 5))
        errors.append(total / float(weight[i].sum()))
    assert float(region_error(drawn, truth, weight)) == pytest.approx(np.mean(errors))
    assert float(region_error(truth, truth, weight)) == 0


@pytest.mark.parametrize("make", [lambda: TinyEncoder(16), lambda: tiny_vit(16)], ids=["cnn", "vit"])
@pytest.mark.parametrize("kind", MASKS)
def test_inpainting_measures_what_is_hidden_alone(kind, make):
    """The encoder sees the mean in the hole and the image around it; only the drawing inside the hole counts."""
    encoder = make().eval()
    torch.manual_seed(0)
    objective = Inpainting(encoder, kind, 0.25, 0, 10.0, 4).eval()
    images = views(3)["views"]["image"][0]
    torch.manual_seed(5)
    hidden, seen, drawn = objective.fill(encoder, images)
    torch.manual_seed(5)
    found = float(objective(encoder, views(3)).value.detach())
    inside = hidden.expand_as(images)
    assert (seen[inside] == 0).all() and torch.equal(seen[~inside], images[~inside])
    error = (drawn - images).square()
    expected = np.mean([float(error[i][inside[i]].mean()) for i in range(3)])
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_overlap_counts_more():
    """Weight 10 on a ring around the hole, 1 inside, 0 beyond."""
    objective = Inpainting(TinyEncoder(16), "centre", 0.25, 2, 10.0, 4)
    weight = objective.weight(hidden_region("centre", 1, 16, 0.25, CPU))[0, 0]
    expected = torch.zeros(16, 16)
    expected[2:14, 2:14] = 10
    expected[4:12, 4:12] = 1
    assert torch.equal(weight, expected)


# -------------------------------------------------------------------- noise
def test_gaussian_noise_has_its_deviation():
    """Nothing but noise is added."""
    objective, x = Denoising(TinyEncoder(), "gaussian", 0.3, 4), torch.randn(50, 3, 16, 16)
    noise = objective.corrupt(x) - x
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02) and float(noise.mean()) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("noise", ["masking", "salt_and_pepper"])
def test_other_noise_makes_some_pixels_black_or_white(noise):
    """The share of pixels, all channels together: black, or black and white in equal parts; the others stay as they are."""
    objective = Denoising(TinyEncoder(), noise, 0.4, 4)
    x = objective.pixels.from_unit(torch.rand(50, 3, 16, 16) * 0.8 + 0.1)
    seen = objective.pixels.to_unit(objective.corrupt(x))
    black, white = (seen < 1e-5).all(1).float().mean(), (seen > 1 - 1e-5).all(1).float().mean()
    untouched = (seen - objective.pixels.to_unit(x)).abs().amax(1).lt(1e-5).float().mean()
    half = 0.2 if noise == "salt_and_pepper" else 0.0
    assert float(black) == pytest.approx(0.4 - half, abs=0.02) and float(white) == pytest.approx(half, abs=0.02)
    assert float(black + white + untouched) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("noise", NOISES)
def test_denoising_draws_the_clean_image(noise):
    """The mean square error against the image before the noise came."""
    encoder = TinyEncoder().eval()
    objective = Denoising(encoder, noise, 0.5, 4).eval()
    torch.manual_seed(2)
    seen = objective.corrupt(views(3)["views"]["image"][0])
    torch.manual_seed(2)
    found = float(objective(encoder, views(3)).value.detach())
    with torch.no_grad():
        drawn = objective.decoder(encoder({"image": seen}).tokens.transpose(1, 2).reshape(3, 8, 4, 4))
    truth = views(3)["views"]["image"][0].double().numpy()
    assert found == pytest.approx(np.mean((drawn.double().numpy() - truth) ** 2), rel=1e-5)


# -------------------------------------------------------------------- autoencoder with contrast
@pytest.mark.parametrize("weight", [0.0, 2.5])
def test_contrast_and_reconstruction_are_added(weight):
    """NT-Xent in loops, and the square error of each view drawn from its own features."""
    encoder = TinyEncoder().eval()
    objective = ContrastiveAutoencoder(encoder, weight, 0.3, 16, 8, 4).eval()
    batch = views(4, v=2)
    found = objective(encoder, batch)
    images = batch["views"]["image"].flatten(0, 1)
    with torch.no_grad():
        pooled = encoder({"image": images}).pooled
        z, drawn = objective.projector(pooled).double().numpy(), objective.decoder(pooled).double().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(8):
        scores = [math.exp(z[i] @ z[j] / 0.3) for j in range(8) if j != i]
        losses.append(math.log(sum(scores)) - z[i] @ z[(i + 4) % 8] / 0.3)
    error = np.mean((drawn - images.double().numpy()) ** 2)
    assert float(found.value.detach()) == pytest.approx(np.mean(losses) + weight * error, rel=1e-4)
    assert float(found.logs["reconstruction"]) == pytest.approx(error, rel=1e-4)


# -------------------------------------------------------------------- all of them
OBJECTIVES = {
    **{f"inpainting-{m}": lambda e, m=m: Inpainting(e, m, 0.25, 1, 2.0, 8) for m in MASKS},
    **{f"denoising-{n}": lambda e, n=n: Denoising(e, n, 0.4, 8) for n in NOISES},
    "contrastive_autoencoder": lambda e: ContrastiveAutoencoder(e, 1.0, 0.2, 16, 8, 8),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_few_steps_lower_the_loss(name):
    """Gradients reach the encoder and all that trains; the loss falls on a fixed batch; the picture has the batch in its rows."""
    encoder, batch = TinyEncoder(dim=16), views(12, v=2)
    torch.manual_seed(0)
    objective = OBJECTIVES[name](encoder)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=0.01)
    losses = []
    for _ in range(40):
        loss = objective(encoder, {"views": batch["views"]}).value
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    with evaluating(encoder), evaluating(objective):
        (picture,) = objective.draw(encoder, batch).values()
    assert all(x.shape == (12, 3, 16, 16) for x in picture.rows.values()) and {"input", "reconstruction"} <= set(picture.rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: Inpainting(e, "center", 0.25, 0, 1.0, 4), "did you mean 'centre'"),
        (lambda e: Inpainting(e, "centre", 1.0, 0, 1.0, 4), "share=1.0"),
        (lambda e: Inpainting(e, "centre", 0.2, -1, 1.0, 4), "overlap=-1"),
        (lambda e: Denoising(e, "salt_and_peper", 0.2, 4), "did you mean 'salt_and_pepper'"),
        (lambda e: Denoising(e, "masking", 1.2, 4), "strength=1.2"),
        (lambda e: Denoising(e, "gaussian", 0.0, 4), "strength=0.0"),
        (lambda e: ContrastiveAutoencoder(e, -1.0, 0.2, 8, 8, 4), "weight=-1"),
    ],
)
def test_values_that_cannot_be(make, message):
    """One line for each."""
    with pytest.raises(UserError, match=message):
        make(TinyEncoder())


@pytest.mark.parametrize("size", [20, 22, 26])
def test_images_of_any_size_are_drawn(size):
    """Also where the encoder's maps, doubled, are not of that size."""
    encoder, objective = TinyEncoder(size), Inpainting(TinyEncoder(size), "centre", 0.25, 0, 1.0, 4)
    drawn = objective.decoder(to_maps(encoder({"image": torch.zeros(2, 3, size, size)}).tokens))
    assert drawn.shape == (2, 3, size, size)


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("inpainting", ["objective.mask=irregular", "objective.overlap=1"]),
        ("denoising", ["objective.noise=salt_and_pepper"]),
        ("contrastive_autoencoder", []),
        ("inpainting", ["encoder=vit_small", "encoder.args.depth=1"]),
    ],
)
def test_tasks_run(task, given, sslt, here: Path):
    """Three steps from the command line, and the picture; also with a ViT."""
    tiny = TINY_IMAGES[2:] if given[:1] == ["encoder=vit_small"] else TINY_IMAGES
    args = [*tiny, "batch_size=32", "trainer.max_steps=3", "online_probe.every_n_epochs=0", "hydra.run.dir=out"]
    sslt("pretrain", f"+task={task}", *given, *args)
    assert (here / "out" / "metrics.json").exists() and (here / "out" / "pictures" / f"{task}.png").exists()
