"""The classifier on an encoder: where fine-tuning starts it, and how it is kept in `head/` with what stands beside the encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from sslt import moved, stored
from sslt.config import build, check_stored
from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.encoders.descriptions import Described
from sslt.encoders.files import building, fill, write_tensors
from sslt.encoders.lexicon import Lexicon
from sslt.encoders.seals import check_seal, seal
from sslt.encoders.side import SideModel
from sslt.errors import UserError
from sslt.objectives.base import Objective
from sslt.runs import Run
from sslt.stages.common import labels_of
from sslt.targets import linear
from sslt.targets.classification import Classification
from sslt.trusted import check_trusted

SIDE_MODELS: dict[str, type[SideModel]] = {kind.kind: kind for kind in (Lexicon, Described)}
log = logging.getLogger("sslt")
WITHOUT_VALIDATION = (1e-2,)  # strength of the probe where nothing can choose it


def solve(objective: Objective, train: tuple[torch.Tensor, Samples], val: tuple[torch.Tensor, Samples] | None) -> bool:
    """Set the head to logistic regression on features [N, D] of `train`, its strength chosen on `val`; False for another kind of head.

    The problem is convex: an optimizer's rate, steps and start play no part in the result (`targets/linear.py`).
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


def save(run: Run, objective: Any, node: Any, classes: list[str]) -> None:
    """Write `head/`: the classifier that belongs to the encoder."""
    if not run.is_main:
        return
    (run / "head").mkdir(exist_ok=True)
    write_tensors(run / "head" / "model.safetensors", objective.state_dict())
    about = {"objective": OmegaConf.to_container(node, resolve=True), "classes": classes}
    beside = [{"kind": model.kind, **model.settings} for model in getattr(objective, "beside", [])]
    seal(run / "head", "head.json", {**about, "beside": beside} if beside else about)


def load(folder: Path, encoder: Encoder, trust: list[str]) -> tuple[Any, list[str]]:
    """The classifier in `folder` (a run's `head/`) and its class names."""
    file = folder / "head.json"
    about = stored.json_object(file)
    node, classes = moved.up_to_date(stored.value(about, "objective", dict, file)), stored.value(about, "classes", list, file)
    if not classes or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{stored.shown(file)} is damaged: 'classes' are not the names of classes")
    check_trusted({"objective": node}, trust, stored.shown(folder))
    check_seal(folder, file.name, about)
    check_stored("objective", node, stored.shown(file))
    with building(folder, file.name):
        objective = build(OmegaConf.create(node), encoder, n_classes=len(classes))
        if not isinstance(objective, Objective):
            raise UserError(f"{stored.shown(file)} is damaged: 'objective' is a {type(objective).__name__}, which is no objective")
        for settings in about.get("beside", []):
            kind = SIDE_MODELS[settings.pop("kind")]
            cast(Classification, objective).beside.append(kind.beside(encoder, settings))
        fill(objective, folder / "model.safetensors")
    return objective, classes
