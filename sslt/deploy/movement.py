"""Movement pruning (Sanh et al., 2020; of units: Lagunas et al., 2021): those go that training moves towards zero, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sslt import distributed
from sslt.deploy.units import Group, Place, width_of

TIMES = 100  # in a run units are chosen anew


class Gate:
    """A factor 0 or 1 for each of n units, before what reads them.

    Its gradient at a unit is Σ weight · ∂L/∂weight over the unit's columns, as they are used now, also where the factor is 0: the
    straight-through estimator of Sanh et al. (2020, section 4), by which a unit that went can come back. open: float32 [n].
    """

    def __init__(self, n: int):
        self.open = torch.ones(n, requires_grad=True)
        self._handles: list[RemovableHandle] = []

    @classmethod
    def before(cls, n: int, readers: Iterable[Place]) -> Gate:
        """Of units that are columns of linear maps and convolutions."""
        gate = cls(n)
        for module, index in readers:
            if not isinstance(module, nn.Embedding):
                gate._handles.append(module.register_forward_pre_hook(gate._reading(width_of(module, rows=False), index)))
        return gate

    @classmethod
    def around(cls, block: nn.Module) -> Gate:
        """Of a whole block of a transformer, one unit: closed, it gives the tokens that it got."""
        gate = cls(1)
        gate._handles.append(block.register_forward_hook(gate._passing, with_kwargs=True))
        return gate

    def _reading(self, width: int, index: Tensor) -> Callable[[Any, Any], Any]:
        def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *more = given
            factor = torch.ones(width).index_put((index.flatten(),), self.open.repeat_interleave(index.shape[1])).to(x.device)
            if isinstance(module, nn.Conv2d):
                factor = factor.view(-1, 1, 1)
            return ((x.float() * factor).to(x.dtype), *more)

        return hook

    def _passing(self, module: Any, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> Any:
        before = given[0] if given else next(iter(named.values()))
        after = made[0] if isinstance(made, tuple) else made
        passed = before + self.open.to(after.device) * (after.float() - before.float())
        return (passed.to(after.dtype), *made[1:]) if isinstance(made, tuple) else passed.to(after.dtype)

    def keep(self, stay: Tensor) -> None:
        """Close it for all units but those at `stay` int64 [k]."""
        with torch.no_grad():
            self.open.zero_()
            self.open[stay] = 1

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def gates_of(groups: list[Group], head: nn.Module | None) -> list[Gate]:
    """A gate for each group. head: a target's linear head, where features are among the units."""
    return [Gate.before(g.n, [*g.columns, *([(head, g.features)] if head is not None and g.features is not None else [])]) for g in groups]


class Movement(pl.Callback):
    """Closes gates while a model trains, by the scores S = -Σ over steps of the gates' gradients (Sanh et al., 2020, section 4).

    choose: (scores [n] of each gate, share) → which units stay, int64 [k] of each. By the paper's cubic schedule (Zhu & Gupta, 2018, eq. 1)
    nothing goes in the first `warm_up` of the training, then ever more until `share` is reached; for the last `cool_down` what stays is
    the same, and is left to learn. Raises `UserError` where so much cannot go.
    """

    def __init__(
        self, gates: list[Gate], choose: Callable[[list[Tensor], float], list[Tensor]], share: float, warm_up: float, cool_down: float
    ):  # fmt: skip
        self.gates, self.choose, self.share, self.warm_up, self.cool_down = gates, choose, share, warm_up, cool_down
        self.scores = [torch.zeros(len(gate.open)) for gate in gates]
        choose(self.scores, share)  # asked before anything is trained
        self.kept: list[Tensor] = []  # what stays, from the first choice on
        self._part = 0  # of `TIMES`, when it was made
        self._settled = False  # the whole share went

    def share_at(self, progress: float) -> float:
        """Which share goes when `progress` 0..1 of the training is done."""
        ramp = max(1 - self.warm_up - self.cool_down, 1e-9)
        return self.share * (1 - (1 - min(max((progress - self.warm_up) / ramp, 0.0), 1.0)) ** 3)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of float16: the gates are none of the optimizer's parameters
        self.step(pl_module.progress_now, 1.0 if scaler is None else float(scaler.get_scale()), pl_module.device)

    def step(self, progress: float, scale: float = 1.0, device: Any = "cpu") -> None:
        """Count the gradients of a step, which are `scale` times the loss's, and close gates."""
        grads = torch.cat([torch.zeros_like(gate.open) if gate.open.grad is None else gate.open.grad for gate in self.gates])
        grads = distributed.sum_over_ranks(grads.to(device)).cpu() / (scale * distributed.world_size())
        for gate in self.gates:
            gate.open.grad = None
        if not grads.isfinite().all():  # a step that float16 leaves out
            return
        for score, grad in zip(self.scores, grads.split([len(s) for s in self.scores]), strict=True):
            score -= grad
        part, share = int(progress * TIMES), self.share_at(progress)
        if share > 0 and not self._settled and (part != self._part or not self.kept):
            self._part = part
            self._close(share)

    def _close(self, share: float) -> None:
        self.kept, self._settled = self.choose(self.scores, share), share >= self.share
        for gate, stay in zip(self.gates, self.kept, strict=True):
            gate.keep(stay)

    def end(self) -> list[Tensor]:
        """What stays, int64 [k] of each gate; the gates are taken out."""
        if not self._settled:  # it was too short
            self._close(self.share)
        for gate in self.gates:
            gate.remove()
        return self.kept

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.scores, "kept": self.kept, "part": self._part, "settled": self._settled}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = [score.clone() for score in state_dict["scores"]]
        self.kept, self._part, self._settled = list(state_dict["kept"]), int(state_dict["part"]), bool(state_dict["settled"])
        for gate, stay in zip(self.gates, self.kept, strict=False):
            gate.keep(stay)
