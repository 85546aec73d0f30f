"""Protects descriptions of images: gradients and colours against slow references, patches on textures, and a linear model on each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pictures import Pictures

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders import descriptions
from sslt.encoders.conv4 import Conv4
from sslt.encoders.descriptions import FILTERS, Described, Gradients, Pixels, WhitenedPatches


def learned(samples: Pictures) -> WhitenedPatches:
    found = WhitenedPatches(samples.images.shape[1], samples.images.shape[-1])
    found.learn(samples)
    return found


def slow_gradients(image: np.ndarray, bins: int = 9) -> np.ndarray:
    """Histograms of oriented gradients of one image [C, H, W], pixel by pixel."""
    c, h, w = image.shape
    at = lambda k, i, j: image[k, min(max(i, 0), h - 1), min(max(j, 0), w - 1)]  # noqa: E731
    cell = max(2, -(-min(h, w) // 8))
    rows, columns = -(-h // cell), -(-w // cell)
    sums, counts = np.zeros((rows, columns, bins)), np.zeros((rows, columns))
    for i in range(h):
        for j in range(w):
            found = [(at(k, i, j + 1) - at(k, i, j - 1), at(k, i + 1, j) - at(k, i - 1, j)) for k in range(c)]
            dx, dy = max(found, key=lambda g: g[0] ** 2 + g[1] ** 2)
            place = (math.atan2(dy, dx) % math.pi) * bins / math.pi - 0.5
            low = math.floor(place)
            size = math.hypot(dx, dy)
            sums[i // cell, j // cell, low % bins] += size * (1 - (place - low))
            sums[i // cell, j // cell, (low + 1) % bins] += size * (place - low)
            counts[i // cell, j // cell] += 1
    cells = sums / counts[..., None]
    blocks = []
    for i in range(rows - 1):
        for j in range(columns - 1):
            block = cells[i : i + 2, j : j + 2].reshape(-1)
            block = np.minimum(block / max(np.linalg.norm(block), 1e-12), 0.2)
            blocks.append(block / max(np.linalg.norm(block), 1e-12))
    return np.sort(np.concatenate(blocks))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 20, 27)], ids=str)
def test_oriented_gradients_equal_a_pixel_by_pixel_reference(shape):
    """Up to the order of the numbers, which no classifier here looks at."""
    images = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    ours = descriptions.oriented_gradients(torch.from_numpy(images)).numpy()
    for image, row in zip(images, ours, strict=True):
        np.testing.assert_allclose(np.sort(row), slow_gradients(image.astype(float)), atol=1e-5)


def test_colours_are_counted_by_quarter_wherever_they_are_in_it():
    """A plain image has one colour in each quarter; grey images have none; moved pixels of a quarter count alike."""
    plain = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    plain[:, 0] = 255
    found = descriptions.colours(plain.float() / 255)[0]
    assert found.tolist() == [1.0 if i % 64 == 3 * 16 else 0.0 for i in range(256)]
    image = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 255
    moved = image.clone()
    moved[:, :, :4, :4] = image[:, :, :4, :4].flip(2)
    assert torch.equal(descriptions.colours(image), descriptions.colours(moved))
    many = torch.rand(4, 3, 7, 6, generator=torch.Generator().manual_seed(1))
    codes = ((many.numpy() * 4).astype(int) * np.array([16, 4, 1]).reshape(1, 3, 1, 1)).sum(1)
    parts = [codes[:, :3, :3], codes[:, :3, 3:], codes[:, 3:, :3], codes[:, 3:, 3:]]
    shares = [[np.bincount(part[i].ravel(), minlength=64) / part[i].size for part in parts] for i in range(4)]
    np.testing.assert_allclose(descriptions.colours(many).numpy(), np.sqrt(np.array(shares).reshape(4, -1)), atol=1e-6)
    assert Gradients(3, 8)(plain.float()).shape[1] > Gradients(1, 8)(plain[:, :1].float()).shape[1]


def test_whitened_patches_tell_textures_apart_wherever_they_lie():
    """Stripes across and along, at any place, under noise. Nothing random is taken from the run."""
    rng = np.random.default_rng(0)
    stripes = np.stack([np.roll(np.tile([0, 60, 255, 60], 4), rng.integers(4))[:, None] * np.ones(16) for _ in range(60)])
    y = np.arange(60) % 2
    stripes[y == 1] = stripes[y == 1].swapaxes(1, 2)
    x = torch.from_numpy((stripes + rng.integers(0, 80, stripes.shape)).clip(0, 255).astype(np.uint8)).unsqueeze(1)
    train, test = Pictures(x[:20]), Pictures(x[20:])
    before = torch.get_rng_state()
    describe = learned(train)
    assert torch.equal(before, torch.get_rng_state())
    seen, asked = describe.of(train), describe.of(test)
    assert seen.shape == (20, 4 * FILTERS) and torch.equal(seen, learned(train).of(train))
    nearest = lambda a, b: y[:20][torch.cdist(b, a).argmin(1).numpy()]  # noqa: E731
    assert (nearest(seen, asked) == y[20:]).all()


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 40, 40), (1, 9, 9)], ids=str)
def test_patches_of_images_of_any_size_and_channels(shape):
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    found = learned(Pictures(images)).of(Pictures(images))
    assert len(found) == 12 and found.isfinite().all()


def test_large_images_are_made_smaller_first():
    """What patches and pixels cost does not grow with the images."""
    images = torch.rand(2, 1, 96, 96)
    assert Pixels(1, 96)(images).shape == (2, 32 * 32) and WhitenedPatches(1, 96)(images).shape == (2, 4 * FILTERS)
    small = torch.nn.functional.avg_pool2d(images, 3)
    assert torch.allclose(WhitenedPatches(1, 96)(images), WhitenedPatches(1, 32)(small), atol=1e-5)


@pytest.mark.parametrize("description", ["gradients", "patches"])
def test_a_model_beside_sees_images_as_they_are(description):
    """However the encoder normalises them: its scores are the linear model on the description of the pixels."""
    images = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8)
    processor = ImageProcessor(12, 3, [0.4, 0.5, 0.6], [0.2, 0.3, 0.1])
    torch.manual_seed(0)
    encoder = Conv4(processor, width=4, blocks=2, downsample="pool", pooling="mean")
    model = Described(processor, 5, description)
    model.describe.learn(Pictures(images))
    model.weight, model.bias = torch.randn(model.weight.shape), torch.randn(5)
    inputs = encoder.inputs({"image": images})
    expected = model.describe.of(Pictures(images)) @ model.weight.T + model.bias
    assert torch.allclose(model(encoder, inputs), expected, atol=1e-3)
    again = Described.beside(encoder, model.settings)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(encoder, inputs), model(encoder, inputs))
    model.scale(-2.0)
    assert torch.allclose(model(encoder, inputs), -2 * expected, atol=2e-3)
