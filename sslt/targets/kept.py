"""Linear models that are solved once for the same rows and answers, and kept on disk: by one command for itself and for all later ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sslt.data import cache
from sslt.encoders.files import read_tensors, write_tensors

FORMAT = 1  # raise it when solvers change
FILE = "solved.safetensors"


def kept(kind: str, parts: list[Any], solve: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What `solve` gives, from the cache where it is there. parts: all that it depends on; tensors count by their content."""
    key = cache.digest(FORMAT, *(part.detach().cpu().numpy() if isinstance(part, Tensor) else part for part in parts))

    def write(folder: Path) -> dict[str, Any]:
        write_tensors(folder / FILE, dict(solve()))
        return {}

    return read_tensors(cache.get_or_make(kind, key, write, resumable=True).path / FILE)
