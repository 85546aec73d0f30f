"""From a source's images to what an image encoder takes: one size, one number of channels, kept as bytes on disk."""

from __future__ import annotations

import copy
import errno
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sslt.data import cache, copies, frames
from sslt.data.answers import Answers, Space
from sslt.data.base import Raw, Samples, Source, spread
from sslt.data.prepare import image_shards
from sslt.data.prepare.image_writing import Writing, skips
from sslt.data.shards.rows import ShardedRows
from sslt.errors import UserError, nearest
from sslt.ranges import Count

log = logging.getLogger("sslt")

FORMAT = 3  # of the cached entries: raise it when what is written, or how images are resized, changes
COUNTED = 4 << 20  # bytes of images whose values are counted at a time
IN_MEMORY = 1 << 30  # bytes up to which a split is held in memory rather than memory-mapped
NARROWEST = 32  # how many times its shorter side the longer side of an image counts
FITS = ("crop", "pad", "stretch")
NAMED = 5  # unreadable images that a message names


class ImageProcessor:
    """Brings images to `size` x `size` with `channels` (1 or 3), and normalises batches of them.

    `mean` and `std`: per channel, of pixels in 0..1. `fit`: how an image that is no square becomes one; `crop` cuts its longer side
    around the centre, `pad` adds black to its shorter one, `stretch` changes its proportions. Raises `UserError` on values that cannot be.
    """

    modality = "image"

    def __init__(self, size: int, channels: int, mean: Sequence[float], std: Sequence[float], fit: str = "crop"):
        if size < 1 or channels not in (1, 3):
            raise UserError(f"images of size {size} with {channels} channels: give a size above 0, and 1 or 3 channels")
        if fit not in FITS:
            raise UserError(f"encoder.processor.fit={fit}: give crop, pad or stretch{nearest(fit, FITS)}")
        self.size, self.channels, self.fitted_by = int(size), int(channels), fit
        self._set(mean, std)
        self._unmeasured: Source | None = None
        self._moments: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._told: set[str] = set()

    @classmethod
    def fit(cls, source: Source, size: Count | None = None, channels: Count | None = None, fit: str = "crop") -> ImageProcessor:
        """A processor for `source`: its own size and channels unless given; mean and std of its training images.

        Where there is no train split, of `unlabeled`. Reads nothing before mean or std is asked for, which prepares (and so caches) the
        images: what cannot work is said before.
        """
        if size is None or channels is None:
            own_size, own_channels = source.image_shape
            size, channels = own_size if size is None else size, own_channels if channels is None else channels
        fitted = cls(size, channels, [0.0] * channels, [1.0] * channels, fit)
        fitted._unmeasured = source
        return fitted

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageProcessor:
        """With the same source, whose open files cannot be copied."""
        twin = copy.copy(self)
        twin._moments, twin._told = {}, set(self._told)
        return twin

    @property
    def mean(self) -> list[float]:
        self._measure()
        return self._mean

    @property
    def std(self) -> list[float]:
        self._measure()
        return self._std

    def _measure(self) -> None:
        if self._unmeasured is not None:
            source, self._unmeasured = self._unmeasured, None
            samples = self.prepare(source, "train" if "train" in source.own_splits() else "unlabeled")
            moments = _cached("image_stats", samples.fingerprint, lambda _: samples.moments()).meta
            self._set(moments["mean"], moments["std"])

    def _set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != self.channels or len(std) != self.channels or min(std) <= 0:
            raise UserError(f"mean {list(mean)} and std {list(std)}: give {self.channels} numbers each, std above 0")
        self._mean, self._std = [float(m) for m in mean], [float(s) for s in std]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {"size": self.size, "channels": self.channels, "mean": self.mean, "std": self.std, "fit": self.fitted_by}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean) / std of uint8 [B, C, H, W], as float32 on the same device and in the same memory format.

        Floating-point images are taken to be in 0..1 already.
        """
        mean, std = self._moments_on(images.device)
        x = images.to(torch.float32, copy=True)
        if not images.is_floating_point():
            x.div_(255)
        return x.sub_(mean).div_(std)

    def _moments_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std, [C, 1, 1]; kept, as a copy to an accelerator in every step would make it wait."""
        if device not in self._moments:
            mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
            self._moments[device] = mean, std
        return self._moments[device]

    def prepare(self, source: Source, split: str) -> ImageSamples:
        """The split `split` of `source` (one of its own, or one drawn from train), from the cache or into it.

        Raises `UserError` for an unreadable image (unless `source.on_error` is "skip"), a missing split, a full disk.
        """
        rows = _RowSource(source, self._prepare_own)
        raw = rows.get(split)
        entry, index, answers = rows.entry, np.asarray(raw.items), raw.answers
        if "readable" in entry:
            readable = entry["readable"][index]
            index, answers = index[readable], None if answers is None else answers.take(np.flatnonzero(readable))
        self._tell(source, entry.meta)
        copies.tell(raw.remarks)
        copies.tell_shared(source, split, np.asarray(entry["contents"])[index])
        many = image_shards.are_many(len(index), self.row_bytes)
        images = ShardedRows.open(entry, "images") if "shards" in entry.meta else entry["images"]
        fits = self.row_bytes * len(index) < IN_MEMORY and not many
        sizes = np.asarray(entry["sizes"])[index]
        how = sizes, self.size, self.fitted_by, NARROWEST
        return ImageSamples(
            images[index] if fits else images,
            answers,
            cache.digest(entry.path.name, index, answers is None),
            skipped=len(raw) - len(index) + len(raw.skipped),
            rows=None if fits else index,
            seen=image_shards.Seen(*how) if many else frames.fitted(*how),
            sizes=sizes,
            numbers=index,
        )

    def at_once(self, source: Source) -> ImageSamples:
        """The one split of a source that is in memory (`offered.Offered`), made ready as `prepare` does it, and kept nowhere."""
        raw = source.read(source.own_splits()[0])
        images = np.concatenate([resize(image[None], self.size, self.channels, self.fitted_by) for image in raw.items])
        sizes = np.array([image.shape[:2] for image in raw.items], np.int64)
        seen = frames.fitted(sizes, self.size, self.fitted_by, NARROWEST)
        return ImageSamples(images, raw.answers, "", seen=seen, sizes=sizes)

    def _prepare_own(self, source: Source, split: str) -> cache.Entry:
        """The entry of one of the source's own splits: all its rows, in order, unreadable ones as zeros."""
        key = cache.digest(source.fingerprint(), split, self.size, self.channels, self.fitted_by, FORMAT)
        entry = self._kept(key) or self._write(source, split, key)
        if entry.meta["unreadable"] and not skips(source):  # it was made with on_error=skip
            raise UserError(f"{_left_out(entry.meta)} cannot be read: mend or remove them, or set data.on_error=skip")
        return entry

    @property
    def row_bytes(self) -> int:
        """Bytes of a prepared image."""
        return self.size * self.size * self.channels

    def _kept(self, key: str) -> cache.Entry | None:
        """What is in the cache in the way that the present settings keep it: one array under `key`, or shards under another."""
        checked = os.environ.get("LOCAL_RANK", "0") == "0"  # as in `cache.get_or_make`
        entry, sharded = cache.find("images", key, checked), image_shards.key_of(key, self.row_bytes)
        if sharded is not None and (entry is None or image_shards.are_many(entry.meta["count"], self.row_bytes)):
            return cache.find("images", sharded, checked)
        return entry

    def _write(self, source: Source, split: str, key: str) -> cache.Entry:
        raw = source.read(split)
        if not len(raw):
            raise UserError(f"the split {split} of {source.name} is empty")
        shape = (self.size, self.size, self.channels)
        writing = Writing(source, split, raw, shape, lambda images: resize(images, self.size, self.channels, self.fitted_by))
        sharded = image_shards.key_of(key, self.row_bytes)
        if sharded is not None and image_shards.are_many(len(raw), self.row_bytes):
            return _cached("images", sharded, writing.sharded, resumable=True)
        return _cached("images", key, writing.whole)

    def _tell(self, source: Source, meta: dict[str, Any]) -> None:
        """Say once what was done to the images."""
        size, channels = meta["native_size"], meta["native_channels"]
        if source.name not in self._told and (size != [self.size] * 2 or channels != [self.channels]):
            was = f"{size[1]}x{size[0]}" if size else "of several sizes,"
            colours = " and ".join(_COLOURS[c] for c in channels)
            now = f"{self.size}x{self.size} {_COLOURS[self.channels]}"
            square = self.fitted_by == "crop" or (size is not None and size[0] == size[1])
            how = "" if square else ", " + _WHOLE[self.fitted_by] + " so that nothing of them is cut away"
            log.info("images of %s are %s %s: converted to %s, as the encoder takes%s", source.name, was, colours, now, how)
        if meta["unreadable"] and f"{source.name} {meta['split']}" not in self._told:
            log.warning("%s cannot be read and are left out", _left_out(meta))
        self._told |= {source.name, f"{source.name} {meta['split']}"}


class _RowSource(Source):
    """A source's splits as row numbers of their prepared entries, so that `get` divides those and decodes nothing."""

    modality = "image"
    entry: cache.Entry

    def __init__(self, source: Source, prepare: Callable[[Source, str], cache.Entry]):
        self.source, self.prepare, self.name, self.answer = source, prepare, source.name, source.answer
        self.val_fraction, self.test_fraction = source.val_fraction, source.test_fraction

    def own_splits(self) -> tuple[str, ...]:
        return self.source.own_splits()

    def read(self, split: str) -> Raw:
        self.entry = self.prepare(self.source, split)
        about = self.entry.meta["answers"]
        answers = None if about is None else Answers.load(self.entry, about)
        return Raw(np.arange(self.entry.meta["count"]), answers, self.entry.meta["skipped"], np.array(self.entry["contents"]))

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def classes(self) -> list[str] | None:
        return self.source.classes

    @property
    def space(self) -> Space | None:
        return self.source.space


class ImageSamples(Samples):
    """Images of one split as bytes.

    `images`: uint8 [N, H, W, C], in memory, memory-mapped or as shards; `rows`: int64, those of `images` that are samples (None:
    all, in order); `seen` [N, 4]: which part of each image as it was is seen (`frames`), and `sizes` [N, 2] its height and width then.
    `skipped` counts the images that could not be read; `numbers` int64 [N]: which each is of all of its split, those among them.
    """

    def __init__(
        self,
        images: np.ndarray | ShardedRows,
        answers: Answers | None,
        fingerprint: str,
        skipped: int = 0,
        rows: np.ndarray | None = None,
        seen: np.ndarray | image_shards.Seen | None = None,
        sizes: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
    ):
        self.numbers = numbers
        self.images, self.answers, self.seen, self.sizes = images, answers, seen, sizes
        self.fingerprint, self.skipped, self.rows = fingerprint, skipped, rows

    def __len__(self) -> int:
        return len(self.images) if self.rows is None else len(self.rows)

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """`image` uint8 [B, C, H, W] in channels-last memory, `index` int64 [B], and what there is of the answers.

        Where they are known, `seen` [B, 4] and `size` int64 [B, 2] too: the way back to the image as it was.
        """
        index = np.asarray(index, np.int64)
        batch = {"image": torch.from_numpy(self._take(index)).permute(0, 3, 1, 2), "index": torch.from_numpy(index)}
        if self.seen is not None and self.sizes is not None:
            batch |= {"seen": torch.from_numpy(self.seen[index]), "size": torch.from_numpy(self.sizes[index])}
        if self.answers is not None:
            batch |= self.answers.batch(index, None if self.seen is None else self.seen[index], self.images.shape[1])
        return batch

    @property
    def shards(self) -> np.ndarray | None:
        return image_shards.bounds_of(self.images, self.rows)

    def fetch(self, shards: Sequence[int]) -> None:
        if isinstance(self.images, ShardedRows):
            self.images.fetch(shards)

    def held(self) -> ImageSamples:
        if not isinstance(self.images, ShardedRows):
            return self
        twin = copy.copy(self)
        twin.images, twin.rows = self._take(np.arange(len(self))), None
        return twin

    def _take(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.images[index if self.rows is None else self.rows[index]])

    def subset(self, index: np.ndarray) -> ImageSamples:
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return ImageSamples(
            self.images,
            None if self.answers is None else self.answers.take(index),
            cache.digest(self.fingerprint, index),
            self.skipped,
            index if self.rows is None else self.rows[index],
            self.seen.take(index) if isinstance(self.seen, image_shards.Seen) else None if self.seen is None else self.seen[index],
            None if self.sizes is None else self.sizes[index],
            None if self.numbers is None else self.numbers[index],
        )

    def moments(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel, of pixels in 0..1; exact, from counts of the 256 values.

        Of sharded images, those of `image_shards.MEASURED` shards, spread evenly, so that it does not take a pass over all.
        """
        counts = np.zeros((self.images.shape[3], 256), np.int64)
        rows = np.arange(len(self)) if self.shards is None else spread(self.shards, image_shards.MEASURED)
        few = max(COUNTED // int(np.prod(self.images.shape[1:])), 1)  # to count bytes takes eight times as many
        for i in range(0, len(rows), few):
            images = self._take(rows[i : i + few])
            for channel, row in enumerate(counts):
                row += np.bincount(images[..., channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        mean = counts @ values / counts.sum(1)
        variance = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
        # A constant channel has no spread to divide by: one step of 255 keeps it finite.
        return {"mean": mean.tolist(), "std": np.maximum(np.sqrt(variance), 1 / 255).tolist()}


def resize(images: np.ndarray, size: int, channels: int, fit: str = "crop") -> np.ndarray:
    """Bring uint8 [N, H, W, C] to [N, size, size, channels], C and channels 1 or 3.

    By `crop` the shorter side becomes `size` (bilinear with antialiasing, on bytes the same as PIL's), the longer one is cropped
    around its centre; by `pad` the longer one does, and black is added to the shorter; by `stretch` both do. Colour becomes grey by
    ITU-R 601 luma, as in PIL; grey becomes colour by repetition.
    """
    if images.shape[3] == 3 and channels == 1:
        weighted = images.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)  # of 65536: 0.299, 0.587, 0.114
        images = ((weighted + 32768) >> 16).astype(np.uint8)[..., None]
    # A strip is cut before it is enlarged: to enlarge the whole of it, and cut most of it away, may take all memory.
    by = frames.laid(np.array([images.shape[1:3]]), size, fit, NARROWEST)
    (top, left), (height, width) = by.first[0], by.kept[0]
    images = _scaled(images[:, top : top + height, left : left + width], *by.scaled[0].tolist())
    (top, left), (below, right) = by.start[0], size - by.scaled[0] + by.start[0]
    if min(top, left) < 0 or max(below, right) > 0:
        images = np.pad(images, ((0, 0), (-top, below), (-left, right), (0, 0)))
    else:
        images = images[:, top : top + size, left : left + size]
    return np.ascontiguousarray(np.repeat(images, channels // images.shape[3], axis=3))


def _scaled(images: np.ndarray, height: int, width: int) -> np.ndarray:
    if images.shape[1:3] == (height, width):
        return images
    pixels = torch.from_numpy(np.array(images, order="C")).permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return pixels.permute(0, 2, 3, 1).numpy()


_WHOLE = {"pad": "with black beside them", "stretch": "stretched"}
_COLOURS = {1: "grey", 3: "RGB"}


def _left_out(meta: dict[str, Any]) -> str:
    files = meta["unreadable"]
    named = ", ".join(files[:NAMED]) + (", ..." if len(files) > NAMED else "")
    return f"{len(files)} of {meta['count']} images of {meta['name']} ({meta['split']}: {named})"


def _cached(kind: str, key: str, make: Callable[[Path], dict[str, Any]], resumable: bool = False) -> cache.Entry:
    try:
        return cache.get_or_make(kind, key, make, resumable)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left for prepared images in {cache.cache_dir()}: free some, or set cache_dir= to another folder"
        ) from error
