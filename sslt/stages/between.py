"""Weights between the start and the end of fine-tuning (WiSE-FT: Wortsman et al., 2022), as far along as validation prefers.

With few labels training fits them and loses some of what the encoder knew; the way from start to end is mostly without bumps, and its
best point is seldom at either end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

log = logging.getLogger("sslt")
START, END = 0.0, 1.0
State = dict[str, Tensor]


class Between:
    """Remembers modules as they are, and later sets them to the best mixture of that and what they are then.

    sign: 1 where a higher score is better, -1 where a lower one is.
    """

    def __init__(self, modules: Mapping[str, nn.Module], sign: float = 1.0):
        self.modules, self.sign = modules, sign
        self.start = {name: _copied(module) for name, module in modules.items()}

    def choose(self, shares: Sequence[float], score: Callable[[], float]) -> float:
        """Set the modules to (1 - a) · start + a · end with the a of `shares`, or of the end, that scores best; returns it.

        Of equal ones the one nearer to the end is taken. Numbers that count, such as BatchNorm's of its batches, are those of the end.
        """
        end = {name: _copied(module) for name, module in self.modules.items()}
        found = {END: score()}
        for share in sorted(set(shares) - {END}, reverse=True):
            self._set(end, share)
            found[share] = score()
        best = max(found, key=lambda share: (self.sign * found[share], share))
        self._set(end, best)
        if best != END:
            log.info(
                "weights %.0f %% of the way from the start are the best on validation: %.1f %%, at the end %.1f %% (interpolate=[])",
                100 * best, 100 * found[best], 100 * found[END],
            )  # fmt: skip
        return best

    def _set(self, end: Mapping[str, State], share: float) -> None:
        for name, module in self.modules.items():
            mixed = {k: _mixed(self.start[name][k], v, share) for k, v in end[name].items()}
            module.load_state_dict(mixed)


def _mixed(start: Tensor, end: Tensor, share: float) -> Tensor:
    if share in (START, END):
        return end if share == END or not end.is_floating_point() else start.to(end.device)
    return torch.lerp(start.to(end.device), end, share) if end.is_floating_point() else end


def _copied(module: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}
