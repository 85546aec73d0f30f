"""Result folders: safetensors files that somebody may have cut short, and the digests by which damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslt.errors import UserError
from sslt.runs import display

DIGESTS = "digests"
_DIGEST = "sha256"
_FREE = ("README.md",)  # whoever passes a folder on may change these


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `UserError` where it is missing, not whole, or not as `write_tensors` wrote it."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            wanted = (file.metadata() or {}).get(_DIGEST)
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{display(path)} is missing: copy the whole folder again") from None
    except (SafetensorError, OSError) as e:
        what = "a pointer of git-lfs" if path.stat().st_size < 1024 else "cut short or damaged"
        raise UserError(f"{display(path)} is no whole safetensors file ({str(e).splitlines()[0]}), perhaps {what}: copy it again") from e
    if wanted is not None and wanted != _digest(tensors):
        raise UserError(f"{display(path)} is damaged: its weights are not as they were written")
    return tensors


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all, which says itself what digest its tensors have."""
    from safetensors.torch import save_file

    tmp = path.with_name(f".{path.name}.tmp")
    kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(kept, tmp, metadata={_DIGEST: _digest(kept)})
    os.replace(tmp, path)


def _digest(tensors: dict[str, Tensor]) -> str:
    h = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        h.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        h.update(x.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return h.hexdigest()


def seal(folder: Path, name: str, about: dict[str, Any]) -> None:
    """Write `about` as the JSON file `name`, with the SHA-256 of every other file of the folder, and of itself without them."""
    about = json.loads(json.dumps(about))  # as it will be read
    others = sorted(p for p in folder.iterdir() if p.is_file() and p.name not in (name, *_FREE))
    digests = {name: _of_json(about), **{p.name: _of_file(p) for p in others}}
    (folder / name).write_text(json.dumps({**about, DIGESTS: digests}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_seal(folder: Path, name: str, about: dict[str, Any], weights: bool = True) -> None:
    """Raise `UserError` where a file of the folder is not as `seal` found it. A folder without digests is taken as it is.

    weights: the safetensors files, too.
    """
    digests = about.get(DIGESTS)
    if not isinstance(digests, dict):
        return
    own = {k: v for k, v in about.items() if k != DIGESTS}
    for file, wanted in digests.items():
        path = folder / Path(str(file)).name
        if path.suffix == ".safetensors" and not weights:
            continue
        if not path.is_file():
            raise UserError(f"{display(path)} is missing: copy the whole folder again")
        if (_of_json(own) if path.name == name else _of_file(path)) != wanted:
            if path.suffix == ".safetensors":
                read_tensors(path)  # which can say more of a file that is no whole one
            raise UserError(
                f"{display(path)} is damaged: it is not as it was written. Copy the folder again; if you changed it on purpose, "
                f'delete "{DIGESTS}" from {display(folder / name)}'
            )


def _of_json(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _of_file(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()
