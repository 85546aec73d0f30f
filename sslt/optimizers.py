"""torch's optimizers where it has gaps: AdamW for tables of which a batch reads few rows, SGD for weights that begin to move later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov & Hutter, 2019), which also takes the sparse gradients of embedding tables, at the cost of the rows read.

    A row moves by lr · g / √v in the steps that read it, v the running mean (β2) of the mean square of its gradients: Adam with one
    second moment a row and no momentum, which would move rows that are not read. Its bias is corrected by how often the row was read,
    so that the first step of a rare word is as long as any other. Weight decay is that of the rows read.
    """

    takes_sparse = True

    def __init__(self, params: Any, lr: float, weight_decay: float, betas: tuple[float, float], eps: float, fused: bool):
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; gradients stay where they are."""
        loss = _called(closure)
        by_row: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state.get(p)
                if kept and p.grad.is_sparse != ("row_square" in kept):
                    del self.state[p]  # the run went on where gradients are of the other kind
                if p.grad.is_sparse:
                    self._step_rows(p, group)
                    by_row.append((p, p.grad))
                    p.grad = None
        super().step()
        for p, grad in by_row:
            p.grad = grad
        return loss

    def _step_rows(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        state, beta = self.state[p], group["betas"][1]
        if not state:
            state["step"] = torch.zeros(())
            state["row_square"], state["row_steps"] = p.new_zeros(len(p)), p.new_zeros(len(p))
        state["step"] += 1
        p.grad = p.grad.coalesce()  # type: ignore[union-attr]
        rows, grad = p.grad.indices()[0], p.grad.values()
        steps = state["row_steps"][rows] + 1
        square = state["row_square"][rows].lerp(grad.square().mean(1), 1 - beta)
        state["row_steps"][rows], state["row_square"][rows] = steps, square
        rate = group["lr"] / ((square / (1 - beta**steps)).sqrt() + group["eps"])
        if group["weight_decay"]:
            p[rows] *= 1 - group["lr"] * group["weight_decay"]
        p.index_add_(0, rows, grad * rate.unsqueeze(1), alpha=-1)


class SGD(torch.optim.SGD):
    """torch's SGD, whose fused kernel wants a momentum for all weights or for none, where some of them begin to move later.

    A momentum of zeros gives the same first step as none.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, nesterov: bool, fused: bool):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step."""
        loss = _called(closure)
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else ():
                if p.grad is not None and self.state[p].get("momentum_buffer") is None:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super().step()
        return loss


def _called(closure: Callable[[], Any] | None) -> Any:
    """The loss of a step's closure, which computes the gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def adapt_weights(optimizer: torch.optim.Optimizer) -> None:
    """Have LARS scale the steps of all weights, and of them alone (You et al., 2017): timm's leaves out what is not decayed."""
    for group in optimizer.param_groups:
        if "always_adapt" in group:
            group["always_adapt"] |= all(p.dim() > 1 for p in group["params"])


def values_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The numbers of all gradients, which can be changed in place; of a sparse one those of its rows, each row once."""
    found = []
    for p in parameters:
        if p.grad is not None:
            if p.grad.is_sparse:
                p.grad = p.grad.coalesce()
            found.append(p.grad.values() if p.grad.is_sparse else p.grad)
    return found
