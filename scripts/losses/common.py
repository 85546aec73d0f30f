"""What a comparison of losses starts from: our objectives on given features, without heads."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn

from sslt import config, groups
from sslt.encoders.base import Features


@dataclasses.dataclass
class Row:
    """Both losses of one draw, with a graph to what was drawn.

    comparable: theirs brought to our scale (None: it is there already). choice: why the two differ as they are. counted: False where
    the choice is no change of scale, so that the two are shown and nothing is asked of their difference.
    """

    settings: str
    ours: Tensor
    theirs: Tensor
    comparable: Tensor | None = None
    choice: str = ""
    counted: bool = True


class Given(nn.Module):
    """An encoder whose features are its inputs."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        return Features(inputs["z"], inputs["z"].unsqueeze(1))


def build(name: str, encoder: Any, **settings: Any) -> Any:
    """The objective of configs/objective/NAME.yaml with some settings changed and without its heads."""
    node = OmegaConf.merge(OmegaConf.load(groups.CONFIG_DIR / "objective" / f"{name}.yaml"), settings)
    objective = config.build(node, encoder)
    for head in ("projector", "predictor"):
        if hasattr(objective, head):
            setattr(objective, head, nn.Identity())
    if hasattr(objective, "teacher"):  # its projections are others than the student's
        objective.teacher.copies["projector"] = nn.Linear(encoder.dim, encoder.dim)
    return objective


def ours(objective: Any, z: Tensor, **more: Tensor) -> Tensor:
    """The loss of projections z [V, B, D]."""
    return objective(Given(z.shape[-1]), {"views": {"z": z}, **more}).value


def taught(objective: Any, z: Tensor) -> Tensor:
    """What the teacher makes of z [V, B, D]."""
    return objective.teacher["projector"](z).detach()
