"""Where the members of a tar file lie, so that each is read by itself: the file stays as it is, here or on an object store."""

from __future__ import annotations

import collections
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored
from sslt.data import cache
from sslt.data.ragged import Ragged
from sslt.data.sources import disk
from sslt.data.sources.image_files import SUFFIXES
from sslt.data.sources.labels import label_name
from sslt.data.store import Store, is_url
from sslt.errors import UserError

FORMAT = 1
BLOCK = 8 << 20  # bytes that are read of an object store at a time
BLOCKS = 4  # that are held of each tar
LARGEST_LABEL = 1 << 20  # bytes of a member that holds a label


class Tar:
    """One tar file, of this machine or at a URL: `read` gives any part of it. Nothing stays open."""

    def __init__(self, where: str):
        self.where = where
        self.name = where.rsplit("/", 1)[-1]
        self.store = Store(where.rsplit("/", 1)[0]) if is_url(where) else None
        self._blocks: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._lock = threading.Lock()

    def identity(self) -> str:
        """A digest of its content or, of one on an object store, of its URL, its size and what else the store tells of its version."""
        if self.store is None:
            with disk.reading(Path(self.where)):
                return cache.file_digest(Path(self.where))
        about = self._about()
        return cache.digest(self.where, about["size"], [str(about.get(k)) for k in ("ETag", "etag", "LastModified", "mtime", "created")])

    @property
    def size(self) -> int:
        return Path(self.where).stat().st_size if self.store is None else int(self._about()["size"])

    def _about(self) -> dict[str, Any]:
        assert self.store is not None
        try:
            return self.store.about(self.name)
        except FileNotFoundError:
            raise UserError(f"{self.where}: no such file") from None

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start` on, fewer at its end. Raises `UserError`."""
        if self.store is None:
            with disk.damage(Path(self.where)):
                fd = os.open(self.where, os.O_RDONLY)
                try:
                    return os.pread(fd, size, start)
                finally:
                    os.close(fd)
        found = bytearray()
        while len(found) < size:
            number, inside = divmod(start + len(found), BLOCK)
            part = self._block(number)[inside : inside + size - len(found)]
            if not part:
                break
            found += part
        return bytes(found)

    def _block(self, number: int) -> bytes:
        """A block of one on an object store: neighbours are mostly read one after the other, and a request costs more than its bytes."""
        with self._lock:
            if number not in self._blocks:
                assert self.store is not None
                start = number * BLOCK
                size = max(min(BLOCK, self._length - start), 0)
                self._blocks[number] = self.store.read_part(self.name, start, size) if size else b""
                while len(self._blocks) > BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
            return self._blocks[number]

    @property
    def _length(self) -> int:
        if not hasattr(self, "_known"):
            self._known = int(self._about()["size"])
        return self._known


class _Reader(io.RawIOBase):
    """A `Tar` as a file that tarfile reads headers of, and skips what lies between."""

    def __init__(self, tar: Tar):
        self.tar, self.size, self.place = tar, tar.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        found = self.tar.read(self.place, self.size - self.place if size < 0 else size)
        self.place += len(found)
        return found


def members(tar: Tar) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every file in a tar. Raises `UserError` for one that is damaged, cut short or packed."""
    with disk.damage(Path(tar.where)):
        try:
            with tarfile.open(fileobj=_Reader(tar), mode="r:") as file:  # type: ignore[arg-type]
                while (member := file.next()) is not None:
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member of {member.size} bytes")
                    if member.isreg() and not member.issparse():
                        yield member.name, member.offset_data, member.size
                    file.members = []  # type: ignore[attr-defined]  # it keeps them all
                # tarfile takes a header that it cannot read for the end
                if tar.read(file.offset, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"no member and no end at byte {file.offset:,}")
        except tarfile.ReadError as e:
            packed = "; unpack it" if tar.where.endswith(("gz", "xz", "bz2", "zst")) else ""
            raise UserError(f"{tar.where}: damaged, cut short or no tar file ({disk.reason(e)}){packed}") from e


def grouped(tar: Tar) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(key, extension → (offset, size)) of every sample: members in succession whose names are alike up to the first dot."""
    key, parts = None, dict[str, tuple[int, int]]()
    for name, offset, size in members(tar):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        if base.startswith(("__", "._")) or not extension:  # what belongs to the file as a whole, or to the system that wrote it
            continue
        if (found := f"{folder}/{stem}" if folder else stem) != key:
            if key is not None:
                yield key, parts
            key, parts = found, {}
        parts[extension.lower()] = offset, size
    if key is not None:
        yield key, parts


class Index:
    """The samples of a tar: `offsets` and `sizes` int64 [N] of their pictures (size -1: there is none), `names` and `labels` as read.

    label: the member with the class, `cls`, `txt` or `json:KEY`; None: none is read. Made once and kept in the cache.
    """

    def __init__(self, tar: Tar, label: str | None):
        self.tar = tar
        key = cache.digest("tar", FORMAT, tar.identity(), label)
        self.entry = cache.get_or_make("tars", key, lambda folder: _write(tar, label, folder))
        self.offsets, self.sizes = np.array(self.entry["offsets"]), np.array(self.entry["sizes"])

    def __len__(self) -> int:
        return len(self.offsets)

    def names(self) -> list[str]:
        return self._texts("names")

    def name(self, i: int) -> str:
        """The name of one sample, without the others."""
        sizes = np.asarray(self.entry["names_sizes"])
        start = int(sizes[:i].sum())
        return bytes(self.entry["names"][start : start + int(sizes[i])]).decode("utf-8", "surrogatepass")

    def labels(self) -> list[str]:
        """The classes by name; "" where there is none."""
        return self._texts("labels")

    def _texts(self, name: str) -> list[str]:
        return Ragged.from_flat(np.array(self.entry[name]), np.array(self.entry[f"{name}_sizes"])).texts()


def _write(tar: Tar, label: str | None, folder: Path) -> dict[str, Any]:
    offsets, sizes, names, labels = list[int](), list[int](), list[str](), list[str]()
    for key, parts in grouped(tar):
        extension = next((e for e in parts if f".{e}" in SUFFIXES), None)
        offset, size = parts[extension] if extension else (0, -1)
        offsets.append(offset)
        sizes.append(size)
        names.append(disk.printable(f"{key}.{extension}" if extension else key))
        labels.append("" if label is None else _label(tar, parts, label))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    np.save(folder / "sizes.npy", np.array(sizes, np.int64))
    for name, texts in (("names", names), ("labels", labels)):
        ragged = Ragged.of_texts(texts)
        np.save(folder / f"{name}.npy", ragged.values)
        np.save(folder / f"{name}_sizes.npy", ragged.sizes.astype(np.int32))
    return {"name": tar.name, "count": len(names)}


def _label(tar: Tar, parts: dict[str, tuple[int, int]], label: str) -> str:
    """The class of a sample by name; "" where it has none."""
    extension, _, key = label.partition(":")
    if extension not in parts or parts[extension][1] > LARGEST_LABEL:
        return ""
    content: Any = tar.read(*parts[extension])
    if extension == "json":
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return ""
        content = content.get(key) if isinstance(content, dict) else None
    name = label_name(content, None)
    return name if name is not None and stored.is_text(name) else ""
