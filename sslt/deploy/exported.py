"""The folder of an exported run: what the file in it computes answers to every verb that a run answers to.

model/    the file, and what stands beside it: what is passed on          head/    how answers are read (none of an encoder alone)
reader/   the encoder's config and processor, without weights
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslt import stored
from sslt.deploy.description import ABOUT
from sslt.deploy.formats import FORMATS
from sslt.deploy.formats.base import Model, Outputs
from sslt.deploy.graph import without
from sslt.encoders import base
from sslt.encoders.base import Encoder, Features
from sslt.encoders.load import fresh_like
from sslt.encoders.seals import check_seal, seal
from sslt.errors import UserError
from sslt.runs import RUN_FILE, Run
from sslt.targets import heads
from sslt.targets.base import Target

MODEL = "model"
RUNS_CODE = ("torch",)  # formats whose files can hold pickled parts, so that to open one is to trust it


def is_exported(folder: Path) -> bool:
    """Whether a folder is a run whose answers a file computes."""
    return stored.is_file(folder / "reader" / base.FILE) and stored.is_file(folder / RUN_FILE)


def save_reader(run: Run, encoder: Encoder, target: Target | None, node: Any) -> None:
    """Write `reader/` and `head/`: what prepares samples and reads answers, without the weights that the file has."""
    folder, cls = run / "reader", type(encoder)
    folder.mkdir()
    about = {"format": base.FORMAT, "_target_": f"{cls.__module__}.{cls.__qualname__}", "args": encoder.args, "modality": encoder.modality}
    seal(folder, base.FILE, {**about, "dim": encoder.dim, "processor": encoder.processor_config(folder)})
    if target is not None:
        heads.save(run, without(target) if hasattr(target, "beside") else target, node)


def load(folder: Path, trust: list[str]) -> tuple[Encoder, Target | None]:
    """An encoder that prepares samples, and a target whose `outputs` the file computes; without a head the features are the file's.

    Raises `UserError` for a folder that is damaged, and for a file that can run code and is not trusted.
    """
    name = stored.value(Run(folder).info, "format", str, folder / RUN_FILE)
    if name not in FORMATS:
        raise UserError(f"{stored.shown(folder / RUN_FILE)} names the format '{name}', which sslt does not know: the file was changed")
    if name in RUNS_CODE and "torch" not in trust:
        raise UserError(
            f"{stored.shown(folder)} is a program of torch.export, and to open one can run code that is in it: if you trust it, say "
            f"trust=[torch]"
        )
    encoder = fresh_like(str(folder / "reader"), trust)
    target = heads.load(folder / "head", encoder, trust) if stored.is_file(folder / "head" / "head.json") else None
    about = stored.json_object(folder / MODEL / ABOUT)
    check_seal(folder / MODEL, ABOUT, about)
    with stored.blaming(folder / MODEL):
        if about["samples"].get("spelled"):
            encoder.processor.spell()
        outputs = FORMATS[name]().open(Model(encoder, target), folder / MODEL)
    answer_by(outputs, encoder, target)
    return encoder, target


def answer_by(outputs: Outputs, encoder: Encoder, target: Target | None) -> None:
    """Let `outputs` compute what the target reads, or the features of the encoder, from now on."""
    if target is not None:
        vars(target)["outputs"] = lambda _encoder, batch: outputs(batch)
        return

    def features(batch: Any) -> Features:
        pooled = outputs(batch)["features"]
        return Features(pooled, pooled.unsqueeze(1))

    vars(encoder)["inputs"] = lambda batch: batch
    vars(encoder)["forward"] = features
