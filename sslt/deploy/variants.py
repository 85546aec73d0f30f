"""A result in one of its forms: as it was fine-tuned, compressed or exported; all of them are opened, asked and measured alike."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslt import groups, stored
from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.deploy import exported
from sslt.encoders.base import Encoder
from sslt.encoders.load import load_encoder
from sslt.encoders.windows import set_windows
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.targets import heads
from sslt.targets.base import Target


@dataclasses.dataclass
class Variant:
    """What answers, from the folder of a run.

    encoder, target: as every verb has them; of an exported file the encoder prepares samples and the target reads answers.
    answers: prepared batch → answers, where a file computes them (an exported run), whose weights the encoder does not have.
    """

    name: str
    folder: Path
    encoder: Encoder
    target: Target
    answers: Callable[[dict[str, Any]], Answers] | None = None

    def predict(self, batch: dict[str, Any]) -> Answers:
        """Answers to a batch of prepared samples; modules are in the mode that the caller put them in (`encoders.base.evaluating`)."""
        return self.target.predict(self.encoder, batch) if self.answers is None else self.answers(batch)

    def prepare(self, source: Any, split: str) -> Samples:
        """A split as this variant reads it."""
        return self.encoder.processor.prepare(source, split)

    def predictions(self, samples: Samples, device: torch.device, batch_size: int) -> Any:
        """What it answers to a whole split, in the order of the samples; on every rank."""
        how = None if self.answers is None else lambda _encoder, batch: self.predict(batch)
        return predicted(self.encoder, self.target, samples, device, batch_size, how=how)


def load_variant(
    what: str | Path, trust: Sequence[str] = (), *, base: str | None = None, windows: int | str | None = None, name: str | None = None
) -> Variant:
    """Open the folder of a run that answers. name: what it is called in tables, None: as its folder.

    base: where the base of an adapter is now; windows: how many windows of a text are read, None: as in training.
    Raises `UserError` where the folder holds no head.
    """
    folder = stored.located(str(what))
    if exported.is_exported(folder):
        made, target = exported.load(folder, list(trust))
        if target is None:
            raise UserError(f"from={what} has features and no answers to measure: export a fine-tuned run")
        if windows is not None:
            raise UserError(f"windows={windows}: from={what} is an exported file, which reads as many as it was made for: leave it null")
        return Variant(name or folder.name, folder, made, target, functools.partial(target.predict, made))
    encoder = load_encoder(str(what), None, list(trust), base=base)
    set_windows(encoder, windows)
    if not stored.is_file(folder / "head" / "head.json"):
        first = groups.command("finetune", "+target=NAME", groups.starting(what))
        raise UserError(f"from={what} has features and no answers to measure: fine-tune it first, {first}")
    return Variant(name or folder.name, folder, encoder, heads.load(folder / "head", encoder, list(trust)))


def named_apart(folders: Sequence[str]) -> list[str]:
    """A name for each folder: its own, with as many of the folders above it as tell it from the others."""
    paths = [stored.located(folder).absolute().parts for folder in folders]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(parts[-1:])} ({i + 1})" for i, parts in enumerate(paths)]  # the same folder twice: a measure of noise


def refuse_other_answers(variant: Variant, source: Any) -> None:
    """Raise `UserError` where a variant answers something else than the samples of `source` ask."""
    target = variant.target
    if source.answer.kind != target.answer.kind or not target.answer.fits(target.space, source.space):
        raise UserError(
            f"{stored.shown(variant.folder)} answers with {target.answer.words} that the samples of {source.name} do not have: "
            f"measure it on its own data, or choose another data="
        )


def bytes_on_disk(folder: Path) -> int:
    """What a result takes on disk: every file of `encoder/` and `head/`, and what else answers (exported files beside them)."""
    return sum(p.stat().st_size for part in ("encoder", "head", "model") for p in (folder / part).rglob("*") if p.is_file())


def parameters(*modules: torch.nn.Module) -> int:
    """How many numbers the modules have as weights, each matrix once; those that are shared between modules too."""
    once = {id(p): p.numel() for module in modules for p in module.parameters()}
    return int(np.sum(list(once.values()), dtype=np.int64))
