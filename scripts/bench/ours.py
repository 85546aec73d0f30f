"""sslt as a user runs it: its configs, its data path, its Learner, Trainer and callbacks."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from bench.rounds import Watch
from sslt import config, precision
from sslt.data.answers import Class
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.data.streams.streams import Stream
from sslt.data.views.image_views import ImageViews
from sslt.encoders import inserted
from sslt.encoders.dropout import set_dropout
from sslt.encoders.text import TextEncoder
from sslt.learner import Term
from sslt.runs import Run
from sslt.stages import common, fitting

VOCABULARY = 30_522  # BERT's
# probabilities of LightlySSL's transforms
BLUR = {
    "simclr": ["views.blur=0.5"],
    "barlow_twins": ["views.blur=0.5"],
    "byol": ["views.blur=0.55"],
    "dino": ["views.large.blur=0.55", "views.small.blur=0.5"],
}
_rounds = itertools.count()


@dataclasses.dataclass
class Pretraining:
    """All that `sslt pretrain` builds before it fits."""

    cfg: Any
    encoder: Any
    objective: Any
    stream: Stream
    folder: Path

    @property
    def samples(self) -> Any:
        return self.stream.samples

    @property
    def precision(self) -> str:
        """Lightning's name of the format that `trainer.precision=auto` chooses here."""
        return precision.resolve(self.cfg.trainer.precision, accelerator())

    def compiled(self) -> Pretraining:
        """The same with `trainer.compile=true`."""
        cfg = copy.deepcopy(self.cfg)
        cfg.trainer.compile = True
        return dataclasses.replace(self, cfg=cfg)

    def run(self, watch: Watch) -> None:
        """One fit of `watch.total` steps in a folder of its own; the encoder goes on from where it is."""
        self.cfg.trainer.max_steps = watch.total
        run = Run(self.folder / f"round{next(_rounds)}")
        run.path.mkdir(parents=True)
        term = Term(self.objective, "pretrain")
        if self.encoder.adapter is not None:  # of the round before
            inserted.merge(self.encoder)
        moves = config.build(self.cfg.adaptation)
        fitting.fit(self.cfg, run, self.encoder, {"pretrain": term}, {"pretrain": self.stream}, moves, lambda _: [_Lap(watch)])
        shutil.rmtree(run.path)

    def views(self, step: int, device: torch.device) -> dict[str, Any]:
        """Batch `step` after its views are made, on `device`: what a loop without data path starts from."""
        batch = {k: v.to(device) for k, v in self.stream.at(step).items()}
        with torch.no_grad():
            return self.stream.views(batch, self.encoder)  # type: ignore[misc]


class _Lap(pl.Callback):
    def __init__(self, watch: Watch):
        self.watch = watch

    def on_train_batch_end(self, *_: Any) -> None:
        self.watch.step()


def accelerator() -> str:
    """ "gpu" or "cpu", as `trainer.accelerator=auto` resolves it."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def images(task: str, encoder: list[str], size: int, batch: int, steps: int, folder: Path, data: str | None) -> Pretraining:
    """A task on generated images of `size` pixels, or (with data=, 32 pixels) on the CIFAR-10 in that folder.

    encoder: overrides that choose it. Above 32 pixels views are blurred as often as the peers'.
    """
    if data:
        source = ["data=cifar10", f"data.root={data}"]
    else:
        file = folder / f"images{size}.npz"
        np.savez(file, images=smooth_images(batch * steps, size))
        source = ["data=arrays", f"data.path={file}"]
    blur = BLUR.get(task, []) if size > 32 else []
    overrides = [f"+task={task}", *source, *encoder, *blur, f"batch_size={batch}", "online_probe.every_n_epochs=0"]
    cfg = config.compose("pretrain", overrides)
    read = config.build(cfg.data)
    model = common.starting_encoder(cfg, read)
    samples = common.prepare(model, read, "unlabeled")
    stream = Stream(samples, batch, seed=0, drop_last=True, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model), stream, folder)


def mlm(encoder: str, batch: int, length: int, steps: int, folder: Path, dropout: bool) -> Pretraining:
    """Masked language modelling on rows of `length` random tokens out of BERT's 30,522, with the encoder's own dropout or none."""
    settings = [f"encoder={encoder}", f"batch_size={batch}", "online_probe.every_n_epochs=0", *([] if dropout else ["dropout=0.0"])]
    cfg = config.compose("pretrain", ["+task=mlm", *settings])
    processor = TextProcessor(tokenizer(), length)
    node = OmegaConf.masked_copy(cfg.encoder, ["model_type", "config", "pooling"])
    args: Any = OmegaConf.to_container(node)
    model = TextEncoder(processor, **args)
    set_dropout(model, cfg.dropout)
    words = np.random.default_rng(0).integers(len(processor.special_ids), VOCABULARY, batch * steps * length, dtype=np.int32)
    samples = PackedSamples(words, length, processor.cls_id, "random tokens")
    stream = Stream(samples, batch, seed=0, drop_last=True, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model), stream, folder)


def lora(encoder: str, batch: int, longest: int, steps: int, folder: Path) -> Pretraining:
    """Classification with LoRA, on texts of 16 to `longest` random tokens out of BERT's 30,522, with two classes."""
    settings = ["from=scratch", f"encoder={encoder}", f"batch_size={batch}", "data=docs", "adaptation=lora", "optimizer.lr=0.001"]
    cfg = config.compose("finetune", [*settings, "val_every_n_epochs=0", "adaptation.target_modules=[query,value]", "adaptation.r=8"])
    processor = TextProcessor(tokenizer(), longest)
    args: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg.encoder, ["model_type", "config", "pooling"]))
    model = TextEncoder(processor, **args)
    rng = np.random.default_rng(0)
    sizes = rng.integers(14, longest - 1, batch * steps)
    words = rng.integers(len(processor.special_ids), VOCABULARY, int(sizes.sum()), dtype=np.int32)
    special = (processor.cls_id, processor.sep_id, processor.pad_id)
    labels = rng.integers(0, 2, len(sizes))
    samples = TextSamples(
        words, np.cumsum(sizes) - sizes, sizes, Class(labels, {"classes": ["a", "b"]}), "random texts", special, longest, 0
    )
    stream = Stream(samples, batch, seed=0, drop_last=False, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model, space={"classes": ["0", "1"]}), stream, folder)


def tokenizer() -> Any:
    """A WordPiece tokenizer with as many entries as BERT's; what they spell does not matter here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    words = [*special.values(), *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def smooth_images(n: int, size: int) -> np.ndarray:
    """uint8 [n, size, size, 3]: random colours on a 4×4 grid, blended between. The time of no operation depends on content."""
    g = torch.Generator().manual_seed(0)
    out = np.empty((n, size, size, 3), np.uint8)
    for i in range(0, n, 256):
        grid = torch.rand(min(256, n - i), 3, 4, 4, generator=g) * 255
        smooth = torch.nn.functional.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)
        out[i : i + 256] = smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return out


def augmenter(blur: float) -> ImageViews:
    """ImageViews with the settings of LightlySSL's SimCLRTransform."""
    return ImageViews(
        n=2, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], flip=0.5, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2,
        grey=0.2, blur=blur, blur_sigma=[0.1, 2.0], padding=0,
    )  # fmt: skip
