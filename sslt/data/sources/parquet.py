"""Parquet files: opened and read so that a damaged one ends in a line that names it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslt.data.sources import disk
from sslt.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

ROWS_PER_BYTE = 1000  # run lengths pack rows that are alike, though not that well


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file, of which only the footer is read. Raises `UserError` where it is no Parquet, or says it has more rows than it can."""
    with disk.reading(path):
        import pyarrow.parquet as pq

        if disk.is_packed(path):
            with disk.open_binary(path) as f:
                content: Any = io.BytesIO(f.read())
        else:
            content = path
        found = pq.ParquetFile(content, page_checksum_verification=True)
        rows, size = found.metadata.num_rows, path.stat().st_size
        if not 0 <= rows <= ROWS_PER_BYTE * size:
            raise UserError(f"{path}: damaged: it says it has {rows:,} rows, in {size:,} bytes")
        return found


def features(path: Path, schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` notes of each column: its type, and the names of classes."""
    with disk.damage(path):
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return {name: kind for name, kind in found.items() if isinstance(kind, dict)}


def class_names(column: dict[str, Any] | None) -> list[str] | None:
    """The names of a column's classes, or of those in its lists, where its `features` give them."""
    names = (column or {}).get("names")
    if isinstance(inner := (column or {}).get("feature"), dict):
        return class_names(inner)
    return [str(n) for n in names] if isinstance(names, list) else None
