"""From which size on prepared data are kept as shards, and how large those are: the `shards` setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sslt.errors import UserError

MOST_ROWS = 1 << 16  # of a shard, however short: an order of rows within a window of shards is held in memory


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes, all three.

    from_bytes: of the prepared samples of a split, from which on they are shards rather than one array. shard_bytes: of one shard at most
    (a single row may be larger). keep_bytes: of the shards of an object store that a machine keeps on its own disk.
    """

    from_bytes: int
    shard_bytes: int
    keep_bytes: int

    def rows(self, row_bytes: int) -> int:
        """Rows of a shard, for rows of so many bytes; at most `MOST_ROWS`."""
        return min(max(self.shard_bytes // row_bytes, 1), MOST_ROWS)


_limits: Limits | None = None


def set_limits(node: Mapping[str, Any] | None) -> None:
    """Take the `shards` setting of a config; None: nothing is kept as shards. Raises `UserError` for what is no number of bytes."""
    global _limits
    if node is None:
        _limits = None
        return
    found = {}
    for name in (field.name for field in dataclasses.fields(Limits)):
        value = node[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value < float("inf"):
            raise UserError(f"shards.{name}={value}: give a number of bytes, 1 or more (1e9 is a gigabyte)")
        found[name] = int(value)
    _limits = Limits(**found)


def limits() -> Limits | None:
    """What `set_limits` was given last."""
    return _limits
