"""What stands on an encoder and answers, kept in a run's `head/`: the target, and what cheap methods stand beside the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sslt import moved, stored
from sslt.config import build, check_arguments, check_stored
from sslt.data.answers import KINDS
from sslt.encoders.base import Encoder
from sslt.encoders.descriptions import Described
from sslt.encoders.files import building, fill, write_tensors
from sslt.encoders.lexicon import Lexicon
from sslt.encoders.pixel_numbers import PixelNumbers
from sslt.encoders.seals import check_seal, seal
from sslt.encoders.side import SideModel
from sslt.errors import UserError
from sslt.runs import Run
from sslt.targets.base import Target
from sslt.targets.extraction import SentencePicker
from sslt.targets.linear_tagger import LinearTagger
from sslt.targets.neighbours import Neighbours
from sslt.trusted import check_trusted

SIDE_MODELS: dict[str, type[SideModel | LinearTagger | Neighbours | SentencePicker]] = {
    kind.kind: kind for kind in (Lexicon, Described, PixelNumbers, LinearTagger, Neighbours, SentencePicker)
}


def save(run: Run, target: Target, node: Any) -> None:
    """Write `head/`: the target that belongs to the encoder. node: the config it was built from."""
    if not run.is_main:
        return
    (run / "head").mkdir(exist_ok=True)
    write_tensors(run / "head" / "model.safetensors", target.state_dict())
    about = {"objective": OmegaConf.to_container(OmegaConf.create(node), resolve=True), "answer": target.answer.kind, "space": target.space}
    beside = [{"kind": model.kind, **model.settings} for model in getattr(target, "beside", [])]
    seal(run / "head", "head.json", {**about, "beside": beside} if beside else about)


def load(folder: Path, encoder: Encoder, trust: list[str], changed: Mapping[str, Any] | None = None) -> Target:
    """The target in `folder` (a run's `head/`), on its encoder; changed: settings in place of its own."""
    file = folder / "head.json"
    about = moved.head(stored.json_object(file))
    node, space = moved.up_to_date(stored.value(about, "objective", dict, file)), stored.value(about, "space", dict, file)
    for key, value in space.items():
        if isinstance(value, list) and not (any(space.values()) and all(isinstance(name, str) for name in value)):
            raise UserError(f"{stored.shown(file)} is damaged: '{key}' are not names")
    check_trusted({"objective": node}, trust, stored.shown(folder))
    check_seal(folder, file.name, stored.json_object(file))
    check_stored("objective", node, stored.shown(file))
    if other := next((k for k in changed or () if k not in node), None):
        raise UserError(f"objective.{other}={(changed or {})[other]}: the head in {stored.shown(folder)} has no such setting")
    check_arguments("objective", node["_target_"], dict(changed or {}), set(node) | {"encoder", "space"})  # numbers in their ranges
    node = {**node, **(changed or {})}
    with building(folder, file.name):
        target = build(OmegaConf.create(node), encoder, space=space)
        if not isinstance(target, Target):
            raise UserError(f"{stored.shown(file)} is damaged: 'objective' is a {type(target).__name__}, which is no target")
        if KINDS.get(stored.value(about, "answer", str, file)) is not target.answer:
            raise UserError(f"{stored.shown(file)} is damaged: it answers with {target.answer.words}, not {about['answer']}")
        for settings in about.get("beside", []):
            kind = SIDE_MODELS[settings.pop("kind")]
            target.beside.append(kind.beside(encoder, settings))  # type: ignore[operator, union-attr]
        fill(target, folder / "model.safetensors")
    return target


def node_of(folder: Path) -> Any:
    """The config that the target in `folder` was built from."""
    return OmegaConf.create(moved.up_to_date(stored.json_object(folder / "head.json")["objective"]))
