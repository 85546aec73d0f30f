"""Writing the prepared images of a split: as one array or, where they are many, shard by shard."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import copies, sharding
from sslt.data.base import Raw, Source
from sslt.data.shards.writing import Writer
from sslt.data.sources.image_files import THREADS
from sslt.errors import UserError

CHUNK = 512  # images that are decoded before they are written
BLOCK = 16  # images that a thread decodes at a time


class Writing:
    """What `ImageProcessor.prepare` keeps of the images of one split: all rows, in order, unreadable ones as zeros.

    fitted: uint8 [N, H, W, C] → [N, *shape], as the encoder takes them.
    """

    def __init__(
        self, source: Source, split: str, raw: Raw, shape: tuple[int, int, int], fitted: Callable[[np.ndarray], np.ndarray]
    ):  # fmt: skip
        self.source, self.split, self.raw, self.shape, self.fitted = source, split, raw, shape, fitted
        self.seen: set[tuple[int, ...]] = set()  # shapes of images as they are
        self.unreadable: dict[int, UserError] = {}

    def whole(self, folder: Path) -> dict[str, Any]:
        """Write one array; returns the entry's meta."""
        count = len(self.raw)
        contents, sizes = np.empty(count, np.uint64), np.ones((count, 2), np.int64)
        starts = _progress(range(0, count, CHUNK), self._title)
        # A plain file, not a memory map: on a full disk a write raises, where a store into a map kills the process.
        with (
            (folder / "images.npy").open("wb") as file,
            ThreadPoolExecutor(THREADS) as pool,
            contextlib.closing(starts),
        ):
            shape = (count, *self.shape)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in starts:
                rows = range(start, min(start + CHUNK, count))
                own = slice(rows.start, rows.stop)
                file.write(self.chunk(rows, pool, contents[own], sizes[own]).data)
        readable = ~np.isin(np.arange(count), list(self.unreadable))
        return self._finish(folder, contents, sizes, readable, [_name(e) for e in self.unreadable.values()])

    def sharded(self, folder: Path) -> dict[str, Any]:
        """Write the shards that are not in `folder` yet, each decoded in all threads; returns the entry's meta."""
        limits = sharding.limits()
        assert limits is not None
        per_shard = limits.rows(int(np.prod(self.shape)))
        writer = Writer(folder, "images", per_shard, self.shape, np.uint8)
        numbers = _progress(range(-(-len(self.raw) // per_shard)), self._title)
        with ThreadPoolExecutor(THREADS) as pool, contextlib.closing(numbers):
            for number in numbers:
                if not writer.has(number):
                    writer.put(number, *self._shard(range(number * per_shard, min((number + 1) * per_shard, len(self.raw))), pool))
        about, kept = writer.finish(len(self.raw))
        self.seen = set(map(tuple, kept["shapes"].tolist()))
        meta = self._finish(folder, kept["contents"], kept["sizes"], kept["readable"], kept["unreadable"].tolist())
        return {**meta, "shards": {"images": about}}

    @property
    def _title(self) -> str:
        return f"preparing {self.source.name} {self.split}"

    def _shard(self, rows: range, pool: ThreadPoolExecutor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The images `rows`, and what is kept of them beside."""
        n = len(rows)
        images, contents, sizes = np.empty((n, *self.shape), np.uint8), np.empty(n, np.uint64), np.ones((n, 2), np.int64)
        self.seen, self.unreadable = set(), {}
        for i in range(0, n, CHUNK):
            own = slice(i, min(i + CHUNK, n))
            images[own] = self.chunk(rows[own], pool, contents[own], sizes[own])
        columns = {
            "contents": contents,
            "sizes": sizes,
            "readable": np.array([row not in self.unreadable for row in rows]),
            "shapes": np.array(sorted(self.seen), np.int64).reshape(-1, 3),
            "unreadable": np.array([_name(e) for e in self.unreadable.values()], np.str_),
        }
        return images, columns

    def chunk(self, rows: range, pool: ThreadPoolExecutor, contents: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The images `rows`, uint8 [n, *shape]; adds to `seen` their shapes, to `unreadable` what failed.

        Fills in `contents` [n] and `sizes` [n, 2], heights and widths.
        """
        items = self.raw.items
        if isinstance(items, np.ndarray):
            images = items[rows.start : rows.stop]
            contents[:] = copies.contents_of(images)
            self.seen.add(images.shape[1:])
            sizes[:] = images.shape[1:3]
            return self.fitted(images)

        def one(i: int) -> tuple[tuple[int, ...], np.ndarray] | UserError:
            contents[i] = copies.unreadable(rows[i])
            try:
                image = items[rows[i]]
            except UserError as error:
                if skips(self.source):
                    return error
                hint = "; data.on_error=skip leaves such images out" if hasattr(self.source, "on_error") else ""
                raise UserError(f"{self.source.name}: {error}{hint}") from error
            contents[i] = copies.content_of(image)
            sizes[i] = image.shape[:2]
            return image.shape, self.fitted(image[None])[0]

        out = np.zeros((len(rows), *self.shape), np.uint8)
        blocks = [range(i, min(i + BLOCK, len(rows))) for i in range(0, len(rows), BLOCK)]
        results = chain.from_iterable(pool.map(lambda block: [one(i) for i in block], blocks))
        for i, result in enumerate(results):
            if isinstance(result, UserError):
                self.unreadable[rows[i]] = result
            else:
                self.seen.add(result[0])
                out[i] = result[1]
        return out

    def _finish(
        self, folder: Path, contents: np.ndarray, sizes: np.ndarray, readable: np.ndarray, unreadable: list[str]
    ) -> dict[str, Any]:  # fmt: skip
        np.save(folder / "contents.npy", contents)
        np.save(folder / "sizes.npy", sizes)
        if not readable.any():
            first = next(iter(self.unreadable.values()), unreadable[0])
            raise UserError(f"none of the {len(self.raw)} images of {self.source.name} ({self.split}) can be read; first: {first}")
        if unreadable:
            np.save(folder / "readable.npy", readable)
        native = {shape[:2] for shape in self.seen}
        return {
            "name": self.source.name,
            "split": self.split,
            "count": len(self.raw),
            "answers": None if self.raw.answers is None else self.raw.answers.save(folder),
            "skipped": self.raw.skipped,
            "unreadable": unreadable,
            "native_size": list(native.pop()) if len(native) == 1 else None,  # (H, W); None where they differ
            "native_channels": sorted({shape[2] for shape in self.seen}),
        }


def skips(source: Source) -> bool:
    """Whether unreadable samples of a source are left out."""
    return getattr(source, "on_error", "fail") == "skip"


def _name(error: UserError) -> str:
    return getattr(error, "file", str(error))


def _progress(numbers: range, title: str) -> Generator[int, None, None]:
    """`numbers`, with a bar on a terminal's stderr once they have taken a second."""
    began, bar = time.monotonic(), None
    with contextlib.ExitStack() as stack:
        for done, number in enumerate(numbers):
            if bar is None and sys.stderr.isatty() and time.monotonic() - began > 1:
                from rich.console import Console
                from rich.progress import Progress

                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
                task = bar.add_task(title, total=len(numbers))
            if bar is not None:
                bar.update(task, completed=done)
            yield number
