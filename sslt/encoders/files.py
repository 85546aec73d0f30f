"""Weights in a folder, which somebody may have cut short or made up; safetensors files that know their own digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sslt import stored
from sslt.errors import UserError
from sslt.stored import shown

_DIGEST = "sha256"
STORED_AS = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # what matrices can be rounded to on disk
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MOST = 100_000  # tensors of one network: thousands of layers have tens of thousands
_ROOM = 1 << 30  # bytes beyond four times the weights on disk: those may be of half precision, without heads that are dropped again
_MAKERS = {
    getattr(torch, name)
    for name in ("arange", "empty", "empty_strided", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `UserError` where it is missing, not whole, or not as `write_tensors` wrote it."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    stored.require_there(path)
    try:
        with safe_open(path, "pt") as file:
            wanted = (file.metadata() or {}).get(_DIGEST)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
        what = "a pointer of git-lfs" if path.stat().st_size < 1024 else "cut short or damaged"
        raise UserError(f"{shown(path)} is no whole safetensors file ({stored.first_line(e)}), perhaps {what}: copy it again") from e
    if wanted is not None and wanted != _digest(tensors):
        raise UserError(f"{shown(path)} is damaged: its weights are not as they were written")
    return tensors


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all, which says itself what digest its tensors have."""
    from safetensors.torch import save_file

    tmp = path.with_name(f".{path.name}.tmp")
    kept = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(kept, tmp, metadata={_DIGEST: _digest(kept)})
    os.replace(tmp, path)


def rounded(tensor: Tensor, dtype: str) -> Tensor:
    """A matrix (or more dimensions) of numbers as `dtype` of `STORED_AS`, where all of it fits into its range; anything else as it is."""
    if tensor.dim() < 2 or tensor.dtype != torch.float32:
        return tensor
    made = tensor.to(STORED_AS[dtype])
    return made if made.isfinite().all() else tensor


def round_stored(folder: Path, dtype: str) -> None:
    """Write the matrices of the safetensors files in `folder` anew as `dtype`; `fill` reads them into a network of any format."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata(), {k: rounded(file.get_tensor(k), dtype) for k in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata=about)


def _digest(tensors: dict[str, Tensor]) -> str:
    h = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        h.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        h.update(x.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return h.hexdigest()


def fill(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into `module`. Raises `UserError` where it is not whole or of another network.

    Of names that share a tensor (a matrix that reads words in and out) the file has one.
    """
    tensors = read_tensors(path)
    try:
        found = module.load_state_dict(tensors, strict=False)
    except RuntimeError as e:
        raise UserError(f"{shown(path.parent)}: the weights do not fit the config beside them ({stored.first_line(e)})") from e
    own = module.state_dict()
    filled = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for name in found.missing_keys if own[name].data_ptr() not in filled and own[name].numel()]
    if wrong := [*missing, *found.unexpected_keys]:
        raise UserError(f"{shown(path.parent)}: the weights do not fit the config beside them ({wrong[0]})")


def check_folder(folder: Path) -> None:
    """Raise `UserError` for a library's folder that reading would hang on, that has no weights or pickled ones only."""
    stored.require_plain(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{shown(folder)} is an adapter of peft, not a whole model: fold it into its base first (peft's merge_and_unload)")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = stored.value(stored.json_object(index), "weight_map", dict, index).values()
        for part in {str(p) for p in parts}:
            stored.require_there(folder / part)
    refuse_pickled(folder)


def refuse_pickled(folder: Path) -> None:
    """Raise `UserError` for a folder (or file) whose weights are pickled only."""
    files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    pickled = [p for p in files if p.suffix in PICKLED]
    if pickled and not any(p.suffix == ".safetensors" for p in files):
        name = pickled[0].name
        raise UserError(
            f"{shown(folder)} holds pickled weights only ({name}), which sslt does not load, as loading can run code. If you trust them, "
            f"convert them: safetensors.torch.save_file(torch.load('{name}', weights_only=True), 'model.safetensors', {{'format': 'pt'}})"
        )


@contextlib.contextmanager
def building(folder: Path, file: str) -> Iterator[None]:
    """Around building what `file` in `folder` describes: what goes wrong in there is a fault of that file.

    Raises `UserError` for it, and before memory is filled where the description is out of all proportion to the weights in the folder.
    """
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    says = f"{shown(folder / file)} describes a network much larger than the weights beside it"
    with stored.blaming(folder / file), Bounded(4 * weights + _ROOM, says):
        yield


class Bounded(TorchFunctionMode):
    """Refuses, by a `UserError` that `says` so, to make more tensors, or larger ones, than `largest` bytes hold."""

    def __init__(self, largest: int, says: str):
        super().__init__()
        self.bytes = self.tensors = 0
        self.largest, self.says = largest, says

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS and isinstance(made, Tensor):
            self.bytes += made.nbytes
            self.tensors += made.numel() if func is torch.linspace else 1  # which gives each layer its rate of stochastic depth
            if self.bytes > self.largest or self.tensors > MOST:
                raise UserError(self.says)
        return made
