"""Reading safetensors files that somebody may have cut short."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sslt.errors import UserError
from sslt.runs import display


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `UserError` where it is missing, unreadable or not whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{display(path)} is missing: copy the whole folder again") from None
    except (SafetensorError, OSError) as e:
        what = "a pointer of git-lfs" if path.stat().st_size < 1024 else "cut short or damaged"
        raise UserError(f"{display(path)} is no whole safetensors file ({str(e).splitlines()[0]}), perhaps {what}: copy it again") from e
