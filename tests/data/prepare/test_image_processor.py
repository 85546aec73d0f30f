"""Preparing images: what the pixels become, what is cached, what is skipped, and what a batch looks like."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslt.data import cache
from sslt.data.prepare import image_processor
from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples, resize
from sslt.data.sources.images import Arrays, Digits, ImageFolder
from sslt.errors import UserError

RNG = np.random.default_rng(0)
PLAIN = {"mean": [0.0], "std": [1.0]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


def arrays(folder: Path, **content: np.ndarray) -> Arrays:
    np.savez(folder / "set.npz", **content)  # type: ignore[arg-type]
    return Arrays(str(folder / "set.npz"), "class")


def pictures(folder: Path, n: int = 20, broken: tuple[int, ...] = (), on_error: str = "fail") -> ImageFolder:
    """Two classes of n one-colour pictures whose grey tells their number; those in `broken` are cut short."""
    for i in range(n):
        for name in ("a", "b"):
            path = folder / name / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8 + i % 3, 3), i, np.uint8)).save(path)
            if i in broken:
                path.write_bytes(path.read_bytes()[:40])
    return ImageFolder(str(folder), on_error, None, 0.2, 0.2)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, 16), (60, 40, 16), (8, 8, 20), (33, 50, 33), (7, 90, 5)])
def test_resize_is_pils(height: int, width: int, size: int) -> None:
    """The batched resize and crop agree with PIL's bilinear filter, image by image, to one step of 255."""
    images = RNG.integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    scale = size / min(height, width)
    new = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    for out, image in zip(resize(images, size, 3), images, strict=True):
        known = Image.fromarray(image).resize(new, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
        assert np.abs(out.astype(int) - np.asarray(known)).max() <= 1


def test_channel_conversions() -> None:
    """Colour to grey is PIL's luma; grey to colour repeats."""
    colour = RNG.integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    known = [np.asarray(Image.fromarray(image).convert("L")) for image in colour]
    np.testing.assert_array_equal(resize(colour, 9, 1)[..., 0], known)
    grey = colour[..., :1]
    np.testing.assert_array_equal(resize(grey, 9, 3), np.repeat(grey, 3, axis=3))


def test_fit_measures_the_training_images() -> None:
    """mean and std are numpy's over the training split, and the config restores the processor."""
    source = Digits()
    processor = ImageProcessor.fit(source)
    pixels = np.asarray(source.get("train").items) / 255
    assert processor.mean == pytest.approx([pixels.mean()]) and processor.std == pytest.approx([pixels.std()])
    config = json.loads(json.dumps(processor.config()))
    assert ImageProcessor(**config).config() == config == ImageProcessor.fit(source).config()


def test_fit_of_unlabelled_and_constant_images(tmp_path: Path) -> None:
    """Without a train split the unlabelled images are measured; constant ones give no zero to divide by."""
    processor = ImageProcessor.fit(arrays(tmp_path, x=np.full((5, 4, 4, 3), 51, np.uint8)))
    assert processor.mean == pytest.approx([0.2] * 3) and min(processor.std) > 0


def test_normalize() -> None:
    """normalize is (x / 255 - mean) / std in float32, and keeps channels-last memory; its input stays as it was."""
    processor = ImageProcessor(6, 3, [0.1, 0.5, 0.9], [0.2, 0.3, 0.4])
    x = torch.randint(0, 256, (2, 6, 6, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    out = processor.normalize(x)
    known = (x.double() / 255 - torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(out.double(), known, atol=1e-5, rtol=1e-5)
    assert out.dtype == torch.float32 and out.is_contiguous(memory_format=torch.channels_last)
    unit = x.float() / 255
    torch.testing.assert_close(processor.normalize(unit), out)
    assert float(unit.max()) <= 1 and float(unit.min()) >= 0


def test_wrong_processor_arguments() -> None:
    """Sizes, channels and moments that cannot be are refused."""
    for wrong in ({"size": 0}, {"channels": 2}, {"mean": [0.0, 0.0]}, {"std": [0.0]}):
        with pytest.raises(UserError):
            ImageProcessor(**{"size": 8, "channels": 1, **PLAIN} | wrong)  # type: ignore[arg-type]


def test_prepared_splits_are_the_sources() -> None:
    """Carved splits hold the very images and labels that the source gives, in its order."""
    source, processor = Digits(), ImageProcessor(8, 1, **PLAIN)
    for split in ("train", "val", "test", "unlabeled"):
        raw, samples = source.get(split), processor.prepare(source, split)
        np.testing.assert_array_equal(samples.images, raw.items)
        assert (samples.labels is None) == (raw.labels is None) == (samples.classes is None)
        if raw.labels is not None:
            np.testing.assert_array_equal(samples.labels, raw.labels)


def test_second_prepare_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other splits and later runs come from the one cached entry, without reading the source again."""
    processor = ImageProcessor(8, 1, **PLAIN)
    first = processor.prepare(Digits(), "train")
    monkeypatch.setattr(Digits, "read", None)
    again = processor.prepare(Digits(), "train")
    np.testing.assert_array_equal(first.images, again.images)
    assert again.fingerprint == first.fingerprint and again.classes == first.classes
    assert len(processor.prepare(Digits(), "val")) == 144


def test_fingerprints_tell_content_and_preparation(tmp_path: Path) -> None:
    """Another split, size, subset or content has another fingerprint."""
    source = Digits()
    small, large = ImageProcessor(8, 1, **PLAIN), ImageProcessor(9, 1, **PLAIN)
    train = small.prepare(source, "train")
    other = small.prepare(arrays(tmp_path, x_train=train.images, y_train=train.labels), "train")  # type: ignore[arg-type]
    prints = [train.fingerprint, small.prepare(source, "val").fingerprint, large.prepare(source, "train").fingerprint]
    prints += [train.subset(np.arange(5)).fingerprint, train.subset(np.arange(6)).fingerprint, other.fingerprint]
    assert len(set(prints)) == len(prints)


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has uint8 channels-last images, labels and indices; in memory or memory-mapped, whole or a subset."""
    source, processor = Digits(), ImageProcessor(8, 3, [0.0] * 3, [1.0] * 3)
    memory = processor.prepare(source, "val")
    monkeypatch.setattr(image_processor, "IN_MEMORY", 0)
    mapped = processor.prepare(source, "val")
    assert memory.rows is None and mapped.rows is not None and len(mapped) == len(memory)
    index = np.array([5, 3, 100])
    for samples in (memory, mapped):
        batch = samples.batch(index)
        np.testing.assert_array_equal(batch["image"].permute(0, 2, 3, 1), memory.images[index])
        assert batch["image"].dtype == torch.uint8 and batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert batch["label"].tolist() == memory.labels[index].tolist() and batch["index"].tolist() == [5, 3, 100]  # type: ignore[index]
        part = samples.subset(np.array([100, 5, 7])).subset(np.array([1, 0]))
        assert len(part) == 2 and torch.equal(part.batch(np.array([1]))["image"], batch["image"][2:])
        assert part.labels.tolist() == memory.labels[[5, 100]].tolist()  # type: ignore[union-attr, index]
        assert part.moments() == ImageSamples(memory.images[[5, 100]], None, "").moments()
    assert "label" not in processor.prepare(source, "unlabeled").batch(index)


def test_unreadable_images_are_skipped_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """skip leaves unreadable images out of the split they belong to, and counts them; fail names the first."""
    processor = ImageProcessor(8, 3, [0.0] * 3, [1.0] * 3)
    with pytest.raises(UserError, match=r"a/004\.png.*on_error=skip"):
        processor.prepare(pictures(tmp_path / "set", broken=(4, 9)), "train")
    source = ImageFolder(str(tmp_path / "set"), "skip", None, 0.2, 0.2)
    parts = {split: processor.prepare(source, split) for split in ("train", "val", "test")}
    assert sum(len(p) for p in parts.values()) == 36 and sum(p.skipped for p in parts.values()) == 4
    assert "4 of 40 images of set (train: a/004.png, a/009.png, b/004.png, b/009.png) cannot be read" in caplog.text
    for split, samples in parts.items():
        raw = source.get(split)
        kept = [i for i in range(len(raw)) if not any(f"{n:03}.png" in str(_file(raw.items, i)) for n in (4, 9))]
        np.testing.assert_array_equal(samples.labels, raw.labels[kept])  # type: ignore[index]
        np.testing.assert_array_equal(samples.images[:, 0, 0, 0], [raw.items[i][0, 0, 0] for i in kept])
    with pytest.raises(UserError, match="4 of 40 images"):  # the entry made with skip does not hide them from fail
        processor.prepare(ImageFolder(str(tmp_path / "set"), "fail", None, 0.2, 0.2), "val")


def _file(items: object, i: int) -> Path:
    return items.items.files[items.rows[i]]  # type: ignore[attr-defined]


def test_nothing_readable(tmp_path: Path) -> None:
    """Where every image is unreadable, skip is no way out."""
    source = pictures(tmp_path / "set", 3, broken=(0, 1, 2), on_error="skip")
    with pytest.raises(UserError, match="none of the 6 images"):
        ImageProcessor(8, 1, **PLAIN).prepare(source, "train")


def test_conversion_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A user sees that images are converted, once, and not where they are not."""
    caplog.set_level("INFO", "sslt")
    ImageProcessor.fit(Digits())
    assert "converted" not in caplog.text
    processor = ImageProcessor.fit(Digits(), size=32, channels=3)
    processor.prepare(Digits(), "val")
    told = "images of digits are 8x8 grey: converted to 32x32 RGB, as the encoder takes"
    assert [record.message for record in caplog.records] == [told]
    processor.prepare(pictures(tmp_path / "mix"), "train")
    assert "images of mix are of several sizes, RGB: converted to 32x32 RGB" in caplog.text


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk says which folder is full and which setting moves it; nothing half-written stays."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_processor.np, "save", full)
    with pytest.raises(UserError, match=r"(?s)no space left.*cache_dir="):
        ImageProcessor(8, 1, **PLAIN).prepare(Digits(), "train")
    assert not list((cache.cache_dir() / "images").iterdir())


def test_missing_split() -> None:
    """A split that does not exist is refused with those that do."""
    with pytest.raises(UserError, match="no 'valid' split"):
        ImageProcessor(8, 1, **PLAIN).prepare(Digits(), "valid")


def test_a_copy_measures_for_itself(here):
    """A teacher copies its encoder before anything is measured, whatever files the source holds open."""
    import copy
    import threading

    source = Digits()
    source.held = threading.Lock()  # cannot be copied, as a handle of a file cannot
    fitted = ImageProcessor.fit(source)
    twin = copy.deepcopy(fitted)
    assert twin.mean == fitted.mean != [0.0] and twin is not fitted
