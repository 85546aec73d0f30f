"""Checkpoints in parts: every rank writes what it holds, any number of ranks reads what it needs (torch.distributed.checkpoint).

The checkpoint file holds everything else, and in the place of each sharded tensor one of the same shape without numbers (torch's meta
device). Their numbers are in a folder `shards/NAME` beside it, as safetensors files, which run nothing when they are read; the file has
their sizes and checksums, so that a folder counts only with a file that names it, and only if all of it is there.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslt import distributed

KEY, FOLDER = "shards", "shards"
_READ = 16 << 20  # bytes
Place = tuple[Any, ...]  # keys from the root of a checkpoint to a tensor


def is_sharded(x: Any) -> bool:
    return isinstance(x, Tensor) and hasattr(x, "full_tensor")


def write(checkpoint: dict[str, Any], file: Path, name: str) -> dict[str, Any]:
    """Write the sharded tensors of a checkpoint into `shards/name` beside `file`; returns what the file has to hold. All ranks call it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageWriter

    found: dict[str, Tensor] = {}

    def keep(place: Place, x: Any) -> Any:
        if not is_sharded(x):
            return x
        found[_name(place)] = x.detach()
        return torch.empty(x.shape, dtype=x.dtype, device="meta")

    rest = mapped(checkpoint, keep)
    folder = file.parent / FOLDER / name
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed while it wrote
        folder.mkdir(parents=True)
    distributed.barrier()
    with _quiet():
        dcp.save(
            found, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True), process_group=distributed.patient(),
        )  # fmt: skip
    own = {p.name: _sum(p) for i, p in enumerate(sorted(folder.iterdir())) if i % distributed.world_size() == distributed.rank()}
    sums = {k: v for part in distributed.gather_objects(own) for k, v in part.items()}
    return {**rest, KEY: {"folder": name, "files": sums}}


def damage(file: Path, about: Any) -> str | None:
    """What is wrong with the parts that a checkpoint file names; None if nothing is."""
    name, files = (about.get(k) for k in ("folder", "files")) if isinstance(about, dict) else (None, None)
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or not isinstance(files, dict) or not files:
        return "what it says of its parts makes no sense"
    folder = file.parent / FOLDER / name
    for part, wanted in files.items():
        path = folder / str(part)
        if path.parent != folder or not path.is_file():
            return f"{FOLDER}/{name}/{part} is missing"
        if not isinstance(wanted, (tuple, list)) or _sum(path) != tuple(wanted):
            return f"{FOLDER}/{name}/{part} is not as it was written"
    return None


def fill(tree: Any, file: Path, about: dict[str, Any], place: Place, make: Callable[[Place, Tensor], Tensor]) -> Any:
    """`tree`, which lies at `place` of a checkpoint, with its numbers.

    make(place, empty): the tensor that takes them, whole or a rank's part. Reads only what these need.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    wanted: dict[str, Tensor] = {}

    def take(where: Place, x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_meta):
            return x
        made = make(where, x)
        wanted[_name((*place, *where))] = made.detach()
        return made

    filled = mapped(tree, take)
    with _quiet():
        dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(file.parent / FOLDER / about["folder"])), no_dist=True)
    return filled


def whole(checkpoint: dict[str, Any], file: Path) -> dict[str, Any]:
    """A checkpoint with all its tensors whole, on the CPU."""
    about = checkpoint.pop(KEY, None)
    if about is None:
        return checkpoint
    return fill(checkpoint, file, about, (), lambda place, x: torch.empty(x.shape, dtype=x.dtype))


def sweep(folder: Path, kept: set[str]) -> None:
    """Remove the parts that no checkpoint file in `folder` names."""
    for path in (folder / FOLDER).glob("*"):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def mapped(tree: Any, other: Callable[[Place, Any], Any], place: Place = ()) -> Any:
    """A tree of dictionaries, lists and tuples with `other(place, leaf)` for every leaf."""
    if isinstance(tree, dict):
        return type(tree)((k, mapped(v, other, (*place, k))) for k, v in tree.items())
    if type(tree) in (list, tuple):
        return type(tree)(mapped(v, other, (*place, i)) for i, v in enumerate(tree))
    return other(place, tree)


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def _sum(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32 of a file."""
    crc = 0
    with path.open("rb") as f:
        while chunk := f.read(_READ):
            crc = zlib.crc32(chunk, crc)
    return path.stat().st_size, crc


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says to those who write checkpoints of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
