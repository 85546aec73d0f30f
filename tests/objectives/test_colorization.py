"""Protects colorization: the colour space, the bins, their weights, and the loss."""

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
from sslt.objectives.colorization import Colorization, rebalancing
from sslt.objectives.parts.lab import gamut, lab_to_rgb, rgb_to_lab

# Published values for sRGB under D65, 2° observer
KNOWN = {
    (255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.2408, 80.0925, 67.2032), (0, 255, 0): (87.7347, -86.1827, 83.1793),
    (0, 0, 255): (32.2970, 79.1875, -107.8602), (255, 255, 0): (97.1393, -21.5537, 94.4780), (0, 255, 255): (91.1132, -48.0875, -14.1312),
    (255, 0, 255): (60.3242, 98.2343, -60.8249), (119, 119, 119): (50.0344, 0, 0),
}  # fmt: skip


def plain_lab(r: float, g: float, b: float) -> tuple[float, float, float]:
    """CIE's formulas, one colour at a time, with the constants written as exact fractions."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b)]
    matrix = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    x, y, z = (matrix @ linear) / np.array([0.95047, 1.0, 1.08883])
    f = [t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z)]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def data(channels: int = 3, n: int = 40, size: int = 16, grey: bool = False):
    """Samples of uint8 images with `batch`, in colours that are not alike."""

    class Coloured:
        images = torch.randint(0, 256, (n, channels, size // 8, size // 8), generator=torch.Generator().manual_seed(0))
        images = images[:, :1].expand(-1, channels, -1, -1) if grey else images
        images = images.to(torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)

        def __len__(self):
            return n

        def batch(self, index):
            return {"image": self.images[torch.from_numpy(np.asarray(index))]}

    return Coloured()


# -------------------------------------------------------------------- the colour space
@pytest.mark.parametrize("rgb", KNOWN)
def test_lab_of_known_colours(rgb):
    """Published values."""
    found = rgb_to_lab((torch.tensor(rgb, dtype=torch.float64) / 255).view(3, 1, 1)).flatten()
    assert found.tolist() == pytest.approx(KNOWN[rgb], abs=2e-3)


def test_lab_against_the_formulas_and_back():
    """Random colours, one by one; the inverse gives them back, also in float32."""
    rgb = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rgb[0] *= 0.05  # the straight parts of both curves
    lab = rgb_to_lab(rgb)
    for i, y, x in np.ndindex(5, 4, 4):
        assert lab[i, :, y, x].tolist() == pytest.approx(plain_lab(*rgb[i, :, y, x].tolist()), abs=1e-2)
    assert torch.allclose(lab_to_rgb(lab), rgb, atol=1e-5)
    assert torch.allclose(lab_to_rgb(rgb_to_lab(rgb.float())).double(), rgb, atol=1e-4)


def test_bins_are_the_cells_that_hold_a_colour():
    """A grid of ten; every colour of a cube has its bin, and the grey one is among them."""
    centres = gamut(10.0)
    assert len(centres) == 261 and (centres % 10 == 0).all() and [0.0, 0.0] in centres.tolist()
    rgb = torch.rand(3, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ab = rgb_to_lab(rgb)[1:].flatten(1).T
    assert float((ab[:, None] - centres).abs().amax(2).amin(1).max()) <= 5 + 1e-9


def test_a_pixel_gets_the_nearest_bin():
    """The mean colour of a block, and the bin that a search over all of them finds."""
    objective = Colorization(TinyEncoder(), 10.0, 2, 4, 5.0, 0.5)
    lab = rgb_to_lab(torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    found = objective.bins(lab)
    assert found.shape == (3, 8, 8)
    for i, y, x in np.ndindex(3, 8, 8):
        mean = lab[i, 1:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
        distance = (objective.centres - mean).square().sum(1)
        assert float(distance[found[i, y, x]]) <= float(distance.min()) + 1e-3


# -------------------------------------------------------------------- weights
def test_weights_against_equation_4():
    """Smoothed, mixed, inverted and with mean 1 under the smoothed distribution, in loops."""
    centres = torch.tensor([[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [30.0, 20.0]])
    counts = [50, 20, 0, 5]
    smoothed = [0.0] * 4
    for i in range(4):
        kernel = [math.exp(-((a - centres[i]) ** 2).sum().item() / (2 * 5.0**2)) for a in centres]
        for j in range(4):
            smoothed[j] += counts[i] / 75 * kernel[j] / sum(kernel)
    weight = [1 / (0.5 * p + 0.5 / 4) for p in smoothed]
    mean = sum(w * p for w, p in zip(weight, smoothed, strict=True))
    found = rebalancing(torch.tensor(counts), centres, 5.0, 0.5)
    assert found.tolist() == pytest.approx([w / mean for w in weight])
    assert found[3] > found[1] > found[0]  # the rarer, the heavier
    assert rebalancing(torch.tensor(counts), centres, 5.0, 1.0).tolist() == pytest.approx([1.0] * 4)


def test_colours_are_counted_before_training():
    """Bins that occur weigh less than those that do not; the weights are part of the checkpoint."""
    encoder = TinyEncoder()
    objective = Colorization(encoder, 10.0, 2, 4, 1.0, 0.5)
    samples = data()
    objective.prepare(encoder, samples, 8)
    seen = objective.bins(rgb_to_lab(samples.images.float() / 255)).flatten().unique()
    unseen = torch.ones(len(objective.weights), dtype=torch.bool)
    unseen[seen] = False
    assert float(objective.weights[seen].max()) < float(objective.weights[unseen].min())
    assert "weights" in objective.state_dict()


# -------------------------------------------------------------------- the loss
@pytest.mark.parametrize("make", [lambda: TinyEncoder(16), lambda: tiny_vit(16)], ids=["cnn", "vit"])
def test_the_loss_against_the_loop(make):
    """Per pixel: the bin's weight times the log loss; the encoder sees L alone, the same in all channels."""
    encoder = make().eval()
    torch.manual_seed(0)
    objective = Colorization(encoder, 20.0, 4, 4, 5.0, 0.5)
    objective.eval().prepare(encoder, data(), 8)
    batch = views(3)
    found = objective(encoder, batch)
    p = encoder.processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (p.mean, p.std))
    rgb = (batch["views"]["image"][0] * std + mean).clamp(0, 1)
    lab = rgb_to_lab(rgb.double())
    grey = (lab[:, :1] / 100).expand(-1, 3, -1, -1).float()
    with torch.no_grad():
        tokens = encoder({"image": (grey - mean) / std}).tokens
        logits = objective.decoder(tokens.transpose(1, 2).reshape(3, -1, 4, 4)).double().numpy()
    truth, losses, right = objective.bins(lab.float()), [], []
    for i, y, x in np.ndindex(3, 4, 4):
        row, t = logits[i, :, y, x], int(truth[i, y, x])
        losses.append(float(objective.weights[t]) * (math.log(np.exp(row).sum()) - row[t]))
        right.append(row.argmax() == t)
    assert float(found.value.detach()) == pytest.approx(np.mean(losses), rel=1e-4)
    assert float(found.logs["accuracy"]) == pytest.approx(np.mean(right))


def test_colours_cannot_leak_into_the_input():
    """Two images of the same lightness and other colours look the same to the encoder."""
    encoder = TinyEncoder()
    objective = Colorization(encoder, 10.0, 2, 4, 5.0, 0.5)
    light = torch.full((1, 1, 16, 16), 60.0)
    for a, b in ((20.0, 10.0), (-15.0, 5.0)):
        rgb = lab_to_rgb(torch.cat([light, torch.full_like(light, a), torch.full_like(light, b)], 1))
        objective(encoder, {"views": {"image": objective.pixels.from_unit(rgb).unsqueeze(0)}})
    assert torch.allclose(encoder.seen[-1], encoder.seen[-2], atol=1e-3)


def test_the_colours_of_a_few_images_are_learned():
    """The loss falls, and the picture of the prediction comes nearer to the truth than grey is."""
    encoder = TinyEncoder(dim=16)
    torch.manual_seed(0)
    objective = Colorization(encoder, 20.0, 2, 16, 5.0, 0.5)
    rgb = data(n=6).images.float() / 255
    batch = {"views": {"image": objective.pixels.from_unit(rgb).unsqueeze(0)}}
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=0.01)
    losses = []
    for _ in range(80):
        loss = objective(encoder, batch).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    with evaluating(encoder), evaluating(objective):
        rows = objective.draw(encoder, batch)["colorization"].rows
    assert list(rows) == ["input", "prediction", "truth"]
    assert torch.allclose(rows["truth"], batch["views"]["image"][0], atol=1e-2)
    error = {name: float((rows[name] - rows["truth"]).abs().mean()) for name in rows}
    assert error["prediction"] < 0.7 * error["input"]


# -------------------------------------------------------------------- mistakes and the command line
def test_grey_images_are_refused():
    """An encoder of grey images at once; colour images without colour before the first step."""
    with pytest.raises(UserError, match="needs colours"):
        Colorization(TinyEncoder(channels=1), 10.0, 2, 4, 5.0, 0.5)
    encoder = TinyEncoder()
    with pytest.raises(UserError, match="these images are grey"):
        Colorization(encoder, 10.0, 2, 4, 5.0, 0.5).prepare(encoder, data(grey=True), 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [((0.0, 2, 4, 5.0, 0.5), "step=0"), ((10.0, 3, 4, 5.0, 0.5), "shrink=3"), ((10.0, 8, 4, 5.0, 0.5), "shrink=8.*4×4"),
     ((10.0, 2, 4, 0.0, 0.5), "smooth=0"), ((10.0, 2, 4, 5.0, 0.0), "uniform=0")],
)  # fmt: skip
def test_values_that_cannot_be(given, message):
    """One line for each."""
    with pytest.raises(UserError, match=message):
        Colorization(TinyEncoder(), *given)


def test_the_task_runs(sslt, here: Path):
    """On images in colour; grey ones end with one line."""
    images = torch.randint(0, 256, (80, 4, 4, 3), generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint8)
    np.savez(here / "colours.npz", x_train=images.repeat(4, 1).repeat(4, 2), y_train=np.arange(80) % 2)
    args = ["pretrain", "+task=colorization", *TINY_IMAGES, "batch_size=32", "trainer.max_steps=3", "online_probe.every_n_epochs=0"]
    sslt(*args, "data=arrays", "data.path=colours.npz", "hydra.run.dir=out")
    assert (here / "out" / "metrics.json").exists() and (here / "out" / "pictures" / "colorization.png").exists()
    sslt(*args, "data=digits", "hydra.run.dir=grey", code=2)
    sslt(*args, "data=digits", "encoder.processor.channels=3", "hydra.run.dir=grey3", code=2)
