"""What the machine's arithmetic allows: the operations of a step against the fastest matrix product there is here.

Where a bare loop is near this ceiling, no program is faster at the same precision, whatever it does with its data.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.device import device, number_format
from bench.rounds import Contender, Watch, backends, now

_SIDES = (512, 1024, 2048, 4096)  # of square products; which is fastest depends on caches and cores
_SECONDS = 1.0  # for each


def ceiling(contender: Contender, units: int) -> dict[str, Any]:
    """operations: of a step, for each of its `units`. peak: operations a second. per_second: units a second, were there nothing else.

    Counted are convolutions, matrix products and attention, a multiplication and an addition as two, in the forward and backward pass.
    """
    with FlopCounterMode(display=False) as counter:
        contender.run(Watch(0, 1))
    with backends(contender.tuned):
        peak = fastest_product(number_format(contender.precision))
    each = counter.get_total_flops() / units
    return {"operations": each, "peak": peak, "per_second": peak / each}


def fastest_product(dtype: torch.dtype) -> float:
    """Operations a second of the fastest square matrix product: the best of several sizes and repetitions."""
    best = 0.0
    for side in _SIDES:
        a, b = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))
        torch.mm(a, b)
        end = time.perf_counter() + _SECONDS
        while time.perf_counter() < end:
            start = now()
            torch.mm(a, b)
            best = max(best, 2 * side**3 / (now() - start))
    return best
