"""Samples that are copies of one another: found by their content, told of, never on both sides of a drawn split."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sslt.errors import UserError

log = logging.getLogger("sslt")

_told: set[str] = set()
_prepared: weakref.WeakKeyDictionary[Any, dict[str, np.ndarray]] = weakref.WeakKeyDictionary()  # source → split → contents


def content_of(item: Any) -> int:
    """A number of 64 bits that samples share if they are copies: of a text, of the shape and the bytes of an image, of all parts."""
    if isinstance(item, tuple):
        item = np.array([content_of(part) for part in item], np.uint64)
    text = isinstance(item, str)
    data: Any = item.encode("utf-8", "surrogatepass") if text else np.ascontiguousarray(item)
    shape = b"" if text else repr(item.shape).encode()[:16]
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=shape).digest(), "little")


def contents_of(items: Sequence[Any] | np.ndarray) -> np.ndarray:
    """`content_of` of every row, uint64 [N]; a row that cannot be read is a copy of nothing."""
    found = np.empty(len(items), np.uint64)
    for i in range(len(items)):
        try:
            found[i] = content_of(items[i])
        except UserError:
            found[i] = unreadable(i)
    return found


def contents_of_inputs(inputs: Mapping[str, Any]) -> np.ndarray:
    """int64 [B], equal where what an encoder reads of samples is: of texts without their padding."""
    mask, found = inputs.get("mask"), []
    for i in range(len(next(iter(inputs.values())))):
        rows = []
        for x in inputs.values():
            row = x[i] if mask is None or x.shape != mask.shape else x[i][mask[i]]
            if mask is None and not row.is_floating_point() and row.any():  # words of a bag, which zeros fill up
                row = row[: int(row.nonzero().max()) + 1]
            rows.append((row.float() if row.is_floating_point() else row).cpu().numpy())
        found.append(content_of(tuple(rows)))
    return np.array(found, np.uint64).view(np.int64)


def unreadable(row: int) -> int:
    """A content for a row that has none."""
    return content_of(f"unreadable row {row}")


def first_of(contents: np.ndarray) -> np.ndarray:
    """For each row the first one of the same content, int64 [N]."""
    _, first, inverse = np.unique(contents, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def remarks(name: str, first: np.ndarray, labels: np.ndarray | None) -> list[str]:
    """A line about the copies among the samples of `name`, whose `first_of` is given; none where there are none."""
    copies = np.flatnonzero(first != np.arange(len(first)))
    if not len(copies):
        return []
    other = copies[:0] if labels is None else copies[labels[copies] != labels[first[copies]]]
    differ = f"; {len(other)} have another label than their first, as row {other[0]} than row {first[other[0]]}" if len(other) else ""
    return [f"{len(copies)} of the {len(first)} samples of {name} are copies of others; copies are kept in one split{differ}"]


def tell(lines: Sequence[str]) -> None:
    """Log lines, each once in this process."""
    for line in lines:
        if line not in _told:
            _told.add(line)
            log.info("%s", line)


def tell_shared(source: Any, split: str, contents: np.ndarray) -> None:
    """Say how many rows of a source's own val or test split are in its train split too, once both were prepared."""
    seen = _prepared.setdefault(source, {})
    seen[split] = contents
    for held in ("val", "test"):
        if split in (held, "train") and held in seen and "train" in seen and (n := int(np.isin(seen[held], seen["train"]).sum())):
            tell([f"{n} of the {len(seen[held])} samples of {source.name}'s '{held}' split are in its train split too"])
