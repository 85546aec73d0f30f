"""Protects image views: geometry against Pillow, colour and blur against torchvision, and what a batch of views is."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as tv

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.views.image_views import ImageViews, colour_matrix, to_pixels
from sslt.data.views.resampling import blur_matrices, cut, resample, resize_weights


def photos(n: int, c: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """uint8 noise of some smoothness."""
    noise = torch.rand(n, c, -(-h // 2), -(-w // 2), generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise, size=(h, w), mode="bilinear") * 255).round().to(torch.uint8)


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The blur that `resample` folds into its matrices, alone."""
    blur = blur_matrices(sigma, x.shape[-1], max(1, math.ceil(3 * float(sigma.max())))).unsqueeze(1)
    return blur @ x @ blur.transpose(2, 3)


def span(*bounds: float) -> torch.Tensor:
    return torch.tensor([bounds], dtype=torch.float32)


def pillow(image: torch.Tensor, y: tuple[float, float], x: tuple[float, float], size: int) -> torch.Tensor:
    """Pillow's antialiased bilinear resize of the box, channel by channel in floats."""
    from PIL import Image

    box = (x[0], y[0], x[1], y[1])
    channels = [Image.fromarray(c.numpy().astype(np.float32)) for c in image]
    return torch.stack([torch.from_numpy(np.array(c.resize((size, size), Image.Resampling.BILINEAR, box=box))) for c in channels])


# -------------------------------------------------------------------- geometry
@pytest.mark.parametrize("size", [7, 16, 32, 45])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_whole_image_equals_torch_antialias(size, memory_format):
    """Up or down, in either memory layout: torch's antialiased bilinear interpolation."""
    images = photos(3, 3, 20, 32).to(memory_format=memory_format)
    got = resample(images, span(0, 20).expand(3, 2), span(0, 32).expand(3, 2), size)
    expected = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    assert (got - expected).abs().max() < 0.01


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize(("y", "x"), [((0, 20), (0, 32)), ((3, 15), (5, 29)), ((2.5, 9.25), (11.75, 30.5)), ((0, 1), (31, 32))])
def test_a_box_equals_pillow(y, x, size):
    """A crop at whole or fractional pixels, resized: Pillow's `resize(box=)`, which filters beyond the box's border too."""
    images = photos(1, 3, 20, 32)
    got = resample(images, span(*y), span(*x), size)[0]
    assert (got - pillow(images[0], y, x, size)).abs().max() < 0.05


def test_boxes_of_a_batch_are_their_own():
    """Each sample is cut by its own box."""
    images = photos(2, 1, 16, 16)
    boxes = [((0, 16), (0, 16)), ((4, 12), (2, 9))]
    y, x = (torch.tensor([b[i] for b in boxes], dtype=torch.float32) for i in (0, 1))
    got = resample(images, y, x, 8)
    for image, out, box in zip(images, got, boxes, strict=True):
        assert (out - pillow(image, *box, 8)).abs().max() < 0.05


def test_mirrored_box_is_the_flipped_crop():
    """start > end mirrors exactly that axis."""
    images = photos(2, 3, 20, 20)
    y, x = span(3, 17).expand(2, 2), span(2.5, 18).expand(2, 2)
    straight = resample(images, y, x, 9)
    assert torch.allclose(resample(images, y, x.flip(1), 9), straight.flip(3), atol=1e-3)
    assert torch.allclose(resample(images, y.flip(1), x, 9), straight.flip(2), atol=1e-3)


def test_same_size_is_the_identity():
    """An uncropped image of the right size passes unchanged, bit for bit, and so does a whole-pixel shift's inside."""
    images = photos(2, 3, 12, 12)
    whole = span(0, 12).expand(2, 2)
    assert torch.equal(resample(images, whole, whole, 12), images.float())
    shifted = resample(images, whole, span(3, 15).expand(2, 2), 12)
    assert torch.equal(shifted[..., :9], images.float()[..., 3:])


def test_weights_add_up_to_one():
    """A constant image stays constant, however it is cut."""
    torch.manual_seed(0)
    start = torch.rand(50, 1) * 20
    bounds = torch.cat([start, start + 0.5 + torch.rand(50, 1) * (31.5 - start)], 1)
    assert torch.allclose(resize_weights(bounds, 32, 9).sum(2), torch.ones(50, 9), atol=1e-5)


# -------------------------------------------------------------------- colour
def recolour(images: torch.Tensor, **factors: float) -> torch.Tensor:
    """images [B, 3, H, W] in 0..1 through the matrix."""
    one = torch.ones(len(images))
    given = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "angle": 0.0, "grey": 0.0, **factors}
    matrix, offset = colour_matrix(
        images.mean((2, 3)), *(one * given[k] for k in ("brightness", "contrast", "saturation", "angle", "grey"))
    )
    return (matrix @ images.flatten(2) + offset.unsqueeze(2)).view_as(images)


@pytest.fixture
def pictures() -> torch.Tensor:
    """Colours far enough from black and white that no factor below clips them."""
    return 0.3 + 0.3 * photos(4, 3, 8, 8).float() / 255


def test_no_change_is_the_identity(pictures):
    """Factors of 1, no turn, no grey."""
    assert torch.allclose(recolour(pictures), pictures, atol=1e-5)


@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation"])
def test_one_factor_equals_torchvision(pictures, what, factor):
    """Each of the three alone is torchvision's adjust_* on float images (whose luma is 0.2989, 0.587, 0.114)."""
    expected = getattr(tv, f"adjust_{what}")(pictures, factor)
    assert torch.allclose(recolour(pictures, **{what: factor}), expected, atol=1e-3)


def test_in_order_equals_torchvision_in_order(pictures):
    """Brightness, then contrast, then saturation, multiplied into one matrix, equal the three one after the other."""
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(pictures, 1.2), 0.7), 1.3)
    assert torch.allclose(recolour(pictures, brightness=1.2, contrast=0.7, saturation=1.3), expected, atol=1e-3)


def test_grey_equals_torchvision(pictures):
    """grey=1 gives three equal channels of luma, after the jitter."""
    assert torch.allclose(recolour(pictures, grey=1.0), tv.rgb_to_grayscale(pictures, 3), atol=1e-3)
    jittered = tv.rgb_to_grayscale(tv.adjust_saturation(tv.adjust_brightness(pictures, 0.8), 1.4), 3)
    assert torch.allclose(recolour(pictures, grey=1.0, brightness=0.8, saturation=1.4), jittered, atol=1e-3)


def test_hue_turns_in_yiq(pictures):
    """A turn keeps luma and strength of colour, and leaves grey as it is; turning back, or all the way, changes nothing."""
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    turned = recolour(pictures, angle=2.0)
    before, after = (torch.einsum("kc,bchw->bkhw", yiq, x) for x in (pictures, turned))
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-4)
    assert torch.allclose(after[:, 1:].norm(dim=1), before[:, 1:].norm(dim=1), atol=1e-4)
    angle = torch.atan2(after[:, 2], after[:, 1]) - torch.atan2(before[:, 2], before[:, 1])
    assert torch.allclose(angle.cos(), torch.tensor(2.0).cos(), atol=1e-2)
    assert torch.allclose(recolour(turned, angle=-2.0), pictures, atol=1e-4)
    assert torch.allclose(recolour(pictures, angle=2 * math.pi), pictures, atol=1e-4)
    grey = pictures[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(recolour(grey, angle=1.0), grey, atol=1e-3)


# -------------------------------------------------------------------- blur
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_torchvision(sigma):
    """The same kernel width, on an image whose border is repeated (torchvision's own border is mirrored)."""
    x = photos(2, 3, 24, 24).float()
    radius = max(1, math.ceil(3 * sigma))
    wide = F.pad(x, (radius,) * 4, mode="replicate")
    expected = tv.gaussian_blur(wide, [2 * radius + 1] * 2, [sigma] * 2)[..., radius:-radius, radius:-radius]
    assert (gaussian_blur(x, torch.full((2,), sigma)) - expected).abs().max() < 0.01


def test_blur_is_per_sample_and_zero_is_none():
    """sigma=0 leaves a sample as it is, beside another that is blurred."""
    x = photos(2, 1, 16, 16).float()
    out = gaussian_blur(x, torch.tensor([0.0, 1.5]))
    assert torch.allclose(out[0], x[0], atol=1e-4)
    assert (out[1] - x[1]).abs().max() > 1
    assert torch.isfinite(gaussian_blur(x, torch.zeros(2))).all()


def test_blur_of_a_tiny_image():
    """A kernel wider than the image is cut to it."""
    x = photos(1, 3, 4, 4).float()
    out = gaussian_blur(x, torch.tensor([5.0]))
    assert torch.isfinite(out).all() and out.std() < x.std()


def test_blur_folded_into_the_resampling_is_blur_after_it():
    """One product of small matrices instead of two of large ones changes nothing."""
    x = photos(2, 3, 20, 24)
    y, xr, sigma = span(2.5, 15.0).expand(2, 2), span(20.0, 3.0).expand(2, 2), torch.tensor([1.2, 0.4])
    after = gaussian_blur(resample(x, y, xr, 12), sigma)
    assert torch.allclose(resample(x, y, xr, 12, blur_matrices(sigma, 12, 4)), after, atol=1e-3)


def test_cutting_to_the_boxes_changes_nothing():
    """Only pixels that no box reaches are left out, also for mirrored boxes and when shrinking."""
    x = photos(2, 3, 64, 48)
    y, xr = torch.tensor([[10.3, 40.0], [20.0, 30.5]]), torch.tensor([[30.0, 5.5], [8.0, 20.0]])
    small, y_cut, x_cut = cut(x, y, xr, 8)
    assert small.shape[-2] < 64 and small.shape[-1] < 48
    assert torch.allclose(resample(small, y_cut, x_cut, 8), resample(x, y, xr, 8), atol=1e-3)


# -------------------------------------------------------------------- a batch of views
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def make(**changed) -> ImageViews:
    still = {
        "n": 2, "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "flip": 0.0, "jitter": 0.0, "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.4, "hue": 0.1, "grey": 0.0, "blur": 0.0, "blur_sigma": [0.1, 2.0], "padding": 0,
    }  # fmt: skip
    return ImageViews(**{**still, **changed})


STRONG = {"scale": [0.2, 1.0], "ratio": [0.75, 4 / 3], "flip": 0.5, "jitter": 0.8, "grey": 0.2, "blur": 0.5, "padding": 2}


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_layout_and_range(channels):
    """[n, B, C, size, size], floats, channels last in memory; undone normalisation lies in 0..1."""
    torch.manual_seed(0)
    views = make(n=3, **STRONG).augment(photos(5, channels, 20, 20), 16, MEAN[:channels], STD[:channels])
    assert views.shape == (3, 5, channels, 16, 16) and views.dtype == torch.float32
    assert views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(v[:channels]).view(-1, 1, 1) for v in (MEAN, STD))
    pixels = views * std + mean
    assert pixels.min() > -1e-4 and pixels.max() < 1 + 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_without_augmentation_a_view_is_the_encoders_input(channels):
    """Nothing switched on: exactly the processor's normalisation, which `to_pixels` undoes."""
    images = photos(4, channels, 12, 12)
    processor = ImageProcessor(12, channels, MEAN[:channels], STD[:channels])
    encoder = SimpleNamespace(processor=processor)
    batch = {"image": images, "index": torch.arange(4)}
    made = make(n=2)(batch, encoder)
    assert torch.equal(made["index"], batch["index"])
    for view in made["views"]["image"]:
        assert torch.allclose(view, processor.normalize(images), atol=1e-5)
        assert torch.allclose(to_pixels(view, processor.mean, processor.std), images / 255, atol=1e-5)


def test_the_processors_size_is_the_views_size():
    """Views come in the size the encoder takes, whatever the images' own."""
    encoder = SimpleNamespace(processor=ImageProcessor(10, 3, MEAN, STD))
    assert make(n=1)({"image": photos(2, 3, 16, 24)}, encoder)["views"]["image"].shape == (1, 2, 3, 10, 10)


@pytest.mark.parametrize("what", [{"scale": [0.2, 0.8]}, {"jitter": 1.0}, {"blur": 1.0, "blur_sigma": [5.0, 40.0]}])
def test_samples_and_views_draw_their_own(what):
    """The same image eight times over gives sixteen different views."""
    torch.manual_seed(0)
    images = photos(1, 3, 16, 16).expand(8, -1, -1, -1)
    views = make(**what).augment(images, 16, MEAN, STD).flatten(0, 1).flatten(1)
    assert torch.cdist(views, views).add(torch.eye(16) * 9).min() > 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seed_decides(channels):
    """Torch's generator is the only source of chance."""
    images, drawn = photos(4, channels, 16, 16), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(make(**STRONG).augment(images, 16, MEAN[:channels], STD[:channels]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_large_batches_are_cut_in_pieces():
    """Views are worked on in pieces that fit a cache; each image still has its own box, on either side of a cut."""
    images = photos(80, 3, 64, 64)  # 64 fit in one piece
    views = make(n=1, scale=[0.3, 0.9], flip=0.5)
    torch.manual_seed(0)
    y, x = views._boxes(80, 64, 64, images.device)
    torch.manual_seed(0)
    made = views.augment(images, 8, [0.0] * 3, [1 / 255] * 3)[0]
    assert (made - resample(images, y, x, 8)).abs().max() < 0.01


def test_flip_probabilities():
    """flip=1 mirrors every image left to right, flip=0 none, flip=0.5 about half."""
    images = photos(200, 1, 8, 8)
    straight = make(n=1).augment(images, 8, [0.0], [1.0])[0]
    assert torch.allclose(straight, images / 255, atol=1e-5)
    assert torch.allclose(make(n=1, flip=1.0).augment(images, 8, [0.0], [1.0])[0], straight.flip(-1), atol=1e-5)
    torch.manual_seed(0)
    some = make(n=1, flip=0.5).augment(images, 8, [0.0], [1.0])[0]
    unchanged = (some - straight).abs().flatten(1).amax(1) < 1e-4
    assert 70 < int(unchanged.sum()) < 130


def test_crops_have_the_area_and_aspect_that_were_asked_for():
    """Boxes lie in the image; area is uniform in `scale`, and aspect (width by height) in log `ratio`."""
    torch.manual_seed(0)
    y, x = make(scale=[0.2, 0.5], ratio=[0.75, 4 / 3])._boxes(5000, 40, 40, torch.device("cpu"))
    height, width = y[:, 1] - y[:, 0], x[:, 1] - x[:, 0]
    assert min(y.min(), x.min()) >= 0 and max(y.max(), x.max()) <= 40 + 1e-3
    area, aspect = height * width / 1600, width / height
    assert area.min() + 1e-4 >= 0.2 and area.max() <= 0.5 + 1e-4
    assert float(area.mean()) == pytest.approx(0.35, abs=0.01)
    assert aspect.min() + 1e-4 >= 0.75 and aspect.max() <= 4 / 3 + 1e-4
    assert float(aspect.log().mean()) == pytest.approx(0.0, abs=0.01)


def test_padding_shifts_by_whole_pixels():
    """padding=2 moves the image by up to two pixels each way; what comes in is black."""
    torch.manual_seed(0)
    images = photos(1, 1, 8, 8).clamp(min=50).expand(100, -1, -1, -1)
    views = make(n=1, padding=2).augment(images, 8, [0.0], [1 / 255])[0]
    wide = F.pad(images[0, 0].float(), (2, 2, 2, 2))
    shifts = {(dy, dx): wide[dy : dy + 8, dx : dx + 8] for dy in range(5) for dx in range(5)}
    seen = set()
    for view in views:
        found = [s for s, expected in shifts.items() if (view[0] - expected).abs().max() < 0.01]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 15


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_and_grey_probabilities(channels):
    """jitter=0 leaves colours, jitter=1 changes all, grey=1 takes the colour out of all."""
    torch.manual_seed(0)
    images = photos(30, channels, 8, 8)
    run = lambda **kw: make(n=1, **kw).augment(images, 8, [0.0] * channels, [1.0] * channels)[0]  # noqa: E731
    plain = images / 255
    assert ((run(jitter=1.0) - plain).abs().flatten(1).amax(1) > 1e-3).all()
    grey = run(grey=1.0)
    assert torch.allclose(grey, plain if channels == 1 else tv.rgb_to_grayscale(plain, 3), atol=2e-3)


def test_grey_images_jitter_as_torchvision_does():
    """One channel: brightness and contrast around the image's own mean."""
    torch.manual_seed(3)
    images = 90 + photos(1, 1, 8, 8) // 4
    views = make(n=1, jitter=1.0, brightness=0.3, contrast=0.0).augment(images, 8, [0.0], [1.0])[0]
    ratio = views / (images / 255)
    assert ratio.std() < 1e-4 and ratio.mean().item() != pytest.approx(1.0, abs=0.001)
    torch.manual_seed(3)
    views = make(n=1, jitter=1.0, brightness=0.0, contrast=0.3).augment(images, 8, [0.0], [1.0])[0]
    mean = images.float().mean() / 255
    assert views.mean().item() == pytest.approx(mean.item(), abs=1e-4)
    ratio = (views - mean) / (images / 255 - mean)
    assert ratio.std() < 1e-2


def test_input_is_not_written_to():
    """Batches may be memory maps."""
    images = photos(3, 3, 16, 16)
    before = images.clone()
    make(**STRONG).augment(images, 16, MEAN, STD)
    assert torch.equal(images, before)
