"""How image files are read: pictures, idx files, arrays and folders, each to uint8 [H, W, C].

C is 1 or 3 in all that is returned here; transparency is laid on white.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.base import Source
from sslt.data.sources import disk
from sslt.data.sources.labels import label_name
from sslt.errors import UserError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("sslt")

T = TypeVar("T")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "unlabeled": "unlabeled", "unlabelled": "unlabeled", "unsupervised": "unlabeled",
}  # fmt: skip
_told_dark: list[str] = []  # a picture; many of a set are alike
THREADS = min(16, os.cpu_count() or 1)
PROBED = 64  # files whose sizes say how large an encoder reads them


class Unreadable(UserError):
    """An image that cannot be decoded; `file` is its name."""

    def __init__(self, file: str, reason: str):
        super().__init__(f"cannot read the image {file}: {reason}")
        self.file = file


# Pictures -------------------------------------------------------------------------------------------------------------


def decode(file: Path | bytes, name: str) -> np.ndarray:
    """Decode a picture to uint8 [H, W, C], turned upright by its EXIF tag. Raises `Unreadable`."""
    from PIL import Image, ImageOps

    try:
        if not isinstance(file, bytes):
            stored.require_regular(file)
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            turned = "exif" in image.info or image.format in ("TIFF", "PNG")  # others have no place for the tag
            return _pixels(ImageOps.exif_transpose(image) if turned else image, name)
    except Image.UnidentifiedImageError:
        raise Unreadable(name, "not an image, or damaged from its first bytes on") from None
    except FileNotFoundError:
        raise Unreadable(name, "no such file, perhaps a link to nothing") from None
    except MemoryError as error:
        raise Unreadable(name, "it does not fit into memory") from error
    except Exception as error:  # decoders meet damaged files with nearly every exception there is
        raise Unreadable(name, disk.reason(error)) from error


def _pixels(image: Image, name: str) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which some readers open as 32
        deep = np.asarray(image).astype(np.int64)[..., None]
        if 255 < deep.max() < 1 << 12 and not _told_dark:
            _told_dark.append(name)
            log.warning("%s has 16 bits a pixel and none above %d, so that it is all but black: multiply what has 10 or 12 bits to fill 16",
                        name, deep.max())  # fmt: skip
        return (deep if deep.max() <= 255 else np.clip(deep, 0, 65535) // 257).astype(np.uint8)
    if image.mode == "F":
        return to_uint8(np.asarray(image)[..., None], "the image")
    if image.has_transparency_data:
        flat = on_white(np.asarray(image.convert("RGBA")))
        return flat[..., :1] if image.mode in ("L", "LA", "La") else flat
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[..., None]
    return np.array(image.convert("RGB"))


def header(file: Path) -> tuple[int, int, int]:
    """(H, W, C) of a picture, from its header alone. Raises `Unreadable`."""
    from PIL import Image

    try:
        stored.require_regular(file)
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")
            return image.height, image.width, 1 if grey else 3
    except Exception as error:  # as in decode
        raise Unreadable(str(file), disk.reason(error)) from error


def on_white(images: np.ndarray) -> np.ndarray:
    """Lay uint8 RGBA [..., 4] on white: uint8 RGB [..., 3]."""
    alpha = images[..., 3:].astype(np.uint16)
    return ((images[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


# Arrays ---------------------------------------------------------------------------------------------------------------


def to_nhwc(images: np.ndarray, where: str) -> np.ndarray:
    """View [N, H, W], [N, H, W, C] or [N, C, H, W] as [N, H, W, C] (C of 1, 3 or 4). Raises `UserError`."""
    if images.ndim == 3:
        return images[..., None]
    if images.ndim == 4 and images.shape[3] in (1, 3, 4):
        return images
    if images.ndim == 4 and images.shape[1] in (1, 3, 4):
        return images.transpose(0, 2, 3, 1)
    raise UserError(f"{where} has shape {list(images.shape)}: give [N,H,W], [N,H,W,C] or [N,C,H,W], of 1, 3 or 4 channels")


def to_uint8(images: np.ndarray, where: str) -> np.ndarray:
    """Bool, integers in 0..255, or floats in 0..1 or 0..255, as uint8 (rounded). Raises `UserError` on others."""
    if images.dtype == np.uint8 or not images.size:
        return images.astype(np.uint8, copy=False)
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if not np.issubdtype(images.dtype, np.number) or np.iscomplexobj(images):
        raise UserError(f"{where} holds {images.dtype}, not numbers: images must be uint8, or floats in 0..1 or 0..255")
    low, high = float(images.min()), float(images.max())
    if not np.isfinite([low, high]).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
        raise UserError(f"{where} holds values that are not finite, first in row {bad[0]} ({len(bad)} rows)")
    if low < 0 or high > 255:
        raise UserError(f"{where} has values from {low:g} to {high:g}: images must be in 0..255, or floats in 0..1")
    scale = 255.0 if np.issubdtype(images.dtype, np.floating) and high <= 1 else 1.0
    out = np.empty(images.shape, np.uint8)
    for i in range(0, len(images), 4096):  # in parts: a float copy of all would be eight times as large
        out[i : i + 4096] = np.rint(images[i : i + 4096] * scale)
    return out


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes, gzipped or not (the format of MNIST: http://yann.lecun.com/exdb/mnist).

    Raises `UserError` where the file is damaged.
    """
    with disk.reading(path):
        with disk.open_binary(path) as file:
            data = file.read()
        if data[:3] != b"\x00\x00\x08":
            raise ValueError("it does not begin as an idx file of bytes")
        shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


# Labels ---------------------------------------------------------------------------------------------------------------


def class_names(values: Iterable[np.ndarray], names: Sequence[str] | None, where: str) -> list[str]:
    """Class names over the label columns of all splits: those given, else the strings, else the numbers there are.

    Raises `UserError` where the numbers are too large to be those of classes.
    """
    if names is not None:
        return list(names)
    columns = [np.asarray(v) for v in values]
    if columns and columns[0].dtype.kind in "OUS":
        found = {label_name(v, None) for column in columns for v in column}
        return sorted(name for name in found if name is not None)
    largest = max((int(c[np.isfinite(c)].max(initial=-1)) for c in columns), default=-1)
    if largest >= max(1000, sum(map(len, columns))):
        raise UserError(f"{where} holds the label {largest}, more than there are images: labels must be class numbers from 0, or names")
    return [str(i) for i in range(1 + largest)]


def label_indices(
    values: np.ndarray, classes: Sequence[str], where: str, on_error: str = "fail", skipped: list[str] | None = None
) -> np.ndarray | None:
    """int64 [N] into `classes` from class numbers or names; None where all are -1 (as unlabelled sets have it).

    Raises `UserError` naming the first row that has no valid label; with `on_error` "skip" such rows get -1 and are named in `skipped`.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        several = "; several of 0 and 1 per image are data.answer=labels" if values.ndim == 2 else ""
        raise UserError(f"{where} has shape {list(values.shape)}: labels must be one class per image, [N]{several}")
    if values.dtype.kind in "OUS":
        index = {name: i for i, name in enumerate(classes)}
        labels = np.array([index.get(label_name(v, None) or "", -1) for v in values], np.int64)
    elif values.dtype.kind in "biuf":
        whole = np.isfinite(values) & (values == np.floor(values)) & (values < len(classes))
        labels = np.where(whole, values, -1).astype(np.int64)
        if labels.size and (values == -1).all():
            return None
    else:
        raise UserError(f"{where} holds {values.dtype} values: labels must be class numbers or names")
    for row in np.flatnonzero(labels < 0):
        value = values[row].item() if isinstance(values[row], np.generic) else values[row]
        missing = value == -1 or label_name(value, None) is None
        problem = f"no label ({value!r})" if missing else f"the label {value!r} is not one of the {len(classes)} classes"
        if on_error != "skip" or skipped is None:
            raise UserError(f"{where}, row {row}: {problem}")
        skipped.append(f"{where}, row {row}: {problem}")
    return np.maximum(labels, -1)


# Folders --------------------------------------------------------------------------------------------------------------


class FolderImages(Sequence[np.ndarray]):
    """Picture files, decoded when asked for and named by their path below `root`."""

    def __init__(self, files: Sequence[Path], root: Path):
        self.files, self.root = files, root

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i):  # type: ignore[override]
        return decode(self.files[i], disk.printable(str(self.files[i].relative_to(self.root))))


def by_split(named: Mapping[str, T], where: str) -> dict[str, T]:
    """What is named after a split, by `SPLIT_NAMES`. Raises `UserError` where two names are of one."""
    found: dict[str, T] = {}
    names: dict[str, str] = {}
    for name, value in named.items():
        if split := SPLIT_NAMES.get(name.lower()):
            if split in found:
                both = f"{names[split]} and {name}"
                raise UserError(f"{where} has {both}, which both name the split {split}: put them together, or rename one")
            found[split], names[split] = value, name
    return found


def subfolders(folder: Path) -> list[Path]:
    """Visible folders directly in `folder`, sorted. Raises `UserError` where it is no folder."""
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{folder} is no folder of pictures")
        with disk.damage(folder.parent):
            beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no folder {folder}{nearest(folder.name, beside)}")
    with disk.damage(folder):
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def pictures(folder: Path) -> list[Path]:
    """Visible picture files at any depth below `folder`, sorted."""
    return sorted(f for f in disk.walk(folder) if f.suffix.lower() in SUFFIXES)


def by_class(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """The class folder of each file, or None where the folders do not look like classes.

    They do where there are at least two, each with pictures directly in it, and no picture lies beside them.
    """
    parts = [file.relative_to(folder).parts for file in files]
    names = {part[0] for part in parts if len(part) > 1}
    direct = {part[0] for part in parts if len(part) == 2}
    if len(names) < 2 or direct != names or any(len(part) == 1 for part in parts):
        return None
    return [disk.printable(part[0]) for part in parts]


def folder_digest(root: Path, files: Sequence[Path]) -> str:
    """Digest of many files by relative path and content; remembered by their sizes and times, in one file for all."""
    names = [str(file.relative_to(root)) for file in files]
    with ThreadPoolExecutor(THREADS) as pool:
        stats = list(pool.map(_size_and_time, files))
        listing = [names, stats]
        memo = cache.cache_dir() / "files" / cache.digest("folder", str(root.resolve()), listing)
        with contextlib.suppress(OSError):
            if text := memo.read_text():
                return text
        contents = list(pool.map(_content, files))
    result = cache.digest(names, contents)
    settled = time.time_ns() - max((mtime for _, mtime in stats), default=0) > 2_000_000_000
    if settled and None not in contents:  # what is still being written, or locked, may change unnoticed
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            cache.write_atomic(memo, result)
    return result


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        stored.require_regular(file)
        stat = file.stat()
    except (OSError, UserError):  # a dangling link, a pipe: decoding will name it
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _content(file: Path) -> str | None:
    try:
        stored.require_regular(file)
        return cache.digest(file.read_bytes())
    except (OSError, UserError):
        return None


# What image sources share ---------------------------------------------------------------------------------------------


class ImageSource(Source):
    """A source of images."""

    modality = "image"

    def _check(self, split: str) -> None:
        if split not in self.own_splits():
            raise UserError(f"{self.name} has no '{split}' split; it has: {', '.join(self.own_splits())}")


def some_shapes(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """(H, W, C) of at most `PROBED` of the files, from first to last; what cannot be read is left out, as preparation names it."""
    shapes = []
    for i in np.unique(np.linspace(0, len(files) - 1, PROBED).astype(int)):
        with contextlib.suppress(Unreadable):
            shapes.append(header(files[i]))
    return shapes


def encoder_shape(name: str, shapes: Sequence[tuple[int, ...]], size: int | None) -> tuple[int, int]:
    """(size, channels) of an encoder for images of these shapes (H, W, C): the size asked for, else their own, at most 224.

    Where they differ it is the middle one of their shorter sides, as a multiple of 8.
    """
    if not shapes:
        raise UserError(f"none of the first images of {name} can be read")
    channels = 1 if all(shape[2] == 1 for shape in shapes) else 3
    if size is not None:
        return size, channels
    sides = sorted(min(shape[:2]) for shape in shapes)
    middle = sides[len(sides) // 2]
    own = middle if sides[0] == sides[-1] else max(middle // 8 * 8, 8)
    return min(own, 224), channels
