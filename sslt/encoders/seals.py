"""Digests of a result folder (encoder/, head/): flipped bytes and files that were exchanged are noticed when it is read.

They find damage; they are no signature, and say nothing of who wrote the folder.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sslt.encoders.files import read_tensors
from sslt.errors import UserError
from sslt.stored import shown

DIGESTS = "digests"
_FREE = ("README.md",)  # whoever passes a folder on may change these


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
            raise UserError(f"{shown(path)} is missing: copy the whole folder again")
        if (_of_json(own) if path.name == name else _of_file(path)) != wanted:
            if path.suffix == ".safetensors":
                read_tensors(path)  # which can say more of a file that is no whole one
            raise UserError(
                f"{shown(path)} is damaged: it is not as it was written. Copy the folder again; if you changed it on purpose, "
                f'delete "{DIGESTS}" from {shown(folder / name)}'
            )


def _of_json(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _of_file(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()
