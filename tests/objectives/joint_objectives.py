"""The joint-embedding objectives, small, and what makes them bare: so that their loss is that of given features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sslt.objectives.byol import BYOL, SimSiam
from sslt.objectives.decorrelation import WMSE, BarlowTwins, VICReg
from sslt.objectives.lejepa import LeJEPA
from sslt.objectives.moco import NNCLR, MoCoV2, MoCoV3
from sslt.objectives.supervised_contrast import DCL, SupCon

OBJECTIVES: dict[str, Callable[[Any], Any]] = {
    "byol": lambda e: BYOL(e, 8, 6, 0.9), "simsiam": lambda e: SimSiam(e, 8, 6, 4), "moco_v2": lambda e: MoCoV2(e, 8, 6, 0.2, 0.9, 16),
    "moco_v3": lambda e: MoCoV3(e, 8, 6, 0.2, 0.9), "nnclr": lambda e: NNCLR(e, 8, 6, 0.2, 16), "dcl": lambda e: DCL(e, 0.2, 8, 6),
    "supcon": lambda e: SupCon(e, 0.2, 8, 6), "barlow_twins": lambda e: BarlowTwins(e, 8, 6, 0.01, 1.0),
    "vicreg": lambda e: VICReg(e, 8, 6, 25.0, 50.0, 2.0), "wmse": lambda e: WMSE(e, 8, 6, None, 0.0),
    "lejepa": lambda e: LeJEPA(e, 8, 6, 0.05, 16, 17, 3.0),
}  # fmt: skip


def bare(objective: Any) -> Any:
    """The objective with identities for projector and predictor, the teacher's too; in float64 as far as it goes."""
    for name in ("projector", "predictor"):
        if hasattr(objective, name):
            setattr(objective, name, nn.Identity())
    if hasattr(objective, "teacher"):
        objective.teacher.copies["projector"] = nn.Identity()
    return objective
