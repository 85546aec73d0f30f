"""Every shipped task, with an encoder and a loss small enough for a test."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from conftest import TINY_IMAGES, TINY_ITEMS, TINY_TEXT, TINY_VIT
from omegaconf import DictConfig

from sslt import groups
from sslt.config import compose_unchecked

TASKS = sorted(groups.options("task"))
TINY_WORDS = ["encoder.processor.vocab_size=1000", "encoder.processor.max_length=32", "trainer.precision=32", "trainer.accelerator=cpu"]
TINY = {
    "TextEncoder": TINY_TEXT,
    "CausalEncoder": [*TINY_WORDS, "encoder.config.hidden_size=32"],
    "Seq2SeqEncoder": [*TINY_WORDS, "encoder.config.d_model=32"],
    "BagEncoder": [
        "encoder.dim=16",
        "encoder.pairs=500",
        "encoder.processor.vocab_size=500",
        "trainer.precision=32",
        "trainer.accelerator=cpu",
    ],
    "CausalHistories": [*TINY_ITEMS, "data.count=300"],
    "MaskedHistories": [*TINY_ITEMS, "data.count=300"],
    "UNetEncoder": ["encoder.channels=[8,16]", "encoder.processor.size=16", "trainer.precision=32", "trainer.accelerator=cpu"],
    "PatchEncoder": ["encoder.filters=16", "trainer.precision=32", "trainer.accelerator=cpu"],
    "RBMEncoder": ["encoder.hidden=16", "trainer.precision=32", "trainer.accelerator=cpu"],
}
SMALLER = {
    "beit": ["objective.words=16", "objective.patches=400"],
    "colorization": ["encoder.processor.channels=3"],
    "data2vec": ["objective.layers=1"],
    "distill": ["objective.queue=64", "objective.tokens=1"],
    "deepcluster_v2": ["objective.clusters=[10,20]"],
    "moco_v2": ["objective.queue=64"],
    "nnclr": ["objective.queue=64"],
    "swav": ["objective.queue=32"],
    "wmse": ["objective.out=16"],
}


_FOLDERS = tempfile.TemporaryDirectory(prefix="sslt-teacher-")  # gone with the process


@functools.cache
def teacher() -> str:
    """The folder of a small encoder of colours, the same in every process."""
    from sslt.data.prepare.image_processor import ImageProcessor
    from sslt.encoders.image import ImageEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 24]}
        made = ImageEncoder(ImageProcessor(16, 3, [0.5] * 3, [0.25] * 3), "resnet18", args, "small", False)
    made.save(Path(_FOLDERS.name) / "encoder")
    return str(Path(_FOLDERS.name) / "encoder")


@functools.cache
def _encoder(task: str) -> DictConfig:
    return compose_unchecked("pretrain", [f"+task={task}"]).encoder


def tiny(task: str) -> list[str]:
    """Overrides that make a task's own encoder and loss small."""
    encoder = _encoder(task)
    kind = encoder["_target_"].rpartition(".")[2]
    vit = kind == "ImageEncoder" and encoder.name.startswith("vit")
    taught = [f"objective.teacher={teacher()}"] if task == "distill" else []
    return [*(TINY_VIT if vit else TINY.get(kind, TINY_IMAGES)), *SMALLER.get(task, []), *taught]
