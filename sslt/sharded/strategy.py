"""Lightning's strategy for a learner that is sharded already: nothing is wrapped, checkpoints are in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from sslt.sharded import checkpoint as parts
from sslt.sharded.model import part_of


class Sharded(DDPStrategy):
    """Gradients are reduced, and the parameters of blocks gathered, by the hooks that `model.shard` has put in."""

    _file: Path | None = None  # the checkpoint that was loaded, and what it says of its parts
    _about: dict[str, Any] | None = None

    def configure_ddp(self) -> None:
        pass

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(filepath)
        name = f"{path.name.lstrip('.').removesuffix('.tmp').removesuffix('.ckpt')}-{checkpoint['batches_seen']}"
        super().save_checkpoint(parts.write(checkpoint, path, name), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        self._file, self._about = Path(checkpoint_path), found.pop(parts.KEY, None)
        return found

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        live = self.lightning_module.state_dict()
        state = self._filled(checkpoint["state_dict"], ("state_dict",), lambda place, x: live.get(place[0], x))
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for i, (optimizer, saved) in enumerate(zip(self.optimizers, checkpoint["optimizer_states"], strict=True)):
            owners = [p for group in optimizer.param_groups for p in group["params"]]

            def like(place: parts.Place, x: Tensor, owners: list[Tensor] = owners) -> Tensor:
                owner = owners[place[1]] if place[0] == "state" and place[1] < len(owners) else x
                return owner if owner.shape == x.shape else x  # a moment lies as its weights do; a count of steps has no place

            optimizer.load_state_dict(self._filled(saved, ("optimizer_states", i), like))

    def _filled(self, tree: Any, place: parts.Place, like: Any) -> Any:
        """A part of the loaded checkpoint with its numbers: of what is sharded now this rank's own, of the rest all."""

        def make(where: parts.Place, x: Tensor) -> Tensor:
            model = like(where, x)
            if not parts.is_sharded(model) or model.shape != x.shape:
                return torch.empty(x.shape, dtype=x.dtype)
            return torch.empty_like(model, dtype=x.dtype)

        if self._about is not None:
            assert self._file is not None
            tree = parts.fill(tree, self._file, self._about, place, make)
        return parts.mapped(tree, lambda where, x: part_of(x, like(where, x)) if isinstance(x, Tensor) else x)
