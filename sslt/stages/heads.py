"""The head that fine-tuning starts from: the converged linear probe of the encoder it starts from."""

from __future__ import annotations

import logging

import torch

from sslt.data.base import Samples
from sslt.evaluation import linear
from sslt.objectives.base import Objective
from sslt.objectives.classification import Classification
from sslt.stages.common import labels_of

log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-2,)  # strength of the probe where nothing can choose it


def solve(objective: Objective, train: tuple[torch.Tensor, Samples], val: tuple[torch.Tensor, Samples] | None) -> bool:
    """Set the head to logistic regression on features [N, D] of `train`, its strength chosen on `val`; False for another kind of head.

    The problem is convex: an optimizer's rate, steps and start play no part in the result (`evaluation/linear.py`).
    """
    if not isinstance(objective, Classification):
        return False
    x, y = train[0], labels_of(train[1])
    held = None if val is None else (val[0], labels_of(val[1]))
    weight, bias, l2 = linear.probe_weights(x, y, held, objective.head.out_features, linear.L2_GRID if held else WITHOUT_VALIDATION)
    with torch.no_grad():
        objective.head.weight.copy_(weight)
        objective.head.bias.copy_(bias)
    log.info("the head starts as the linear probe of the encoder (l2 %g)", l2)
    return True
