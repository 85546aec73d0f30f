"""What sslt is held against: bare PyTorch loops (the limit), LightlySSL and Hugging Face as their documentation shows them."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.ours import Pretraining
from bench.rounds import Watch
from sslt.encoders.dropout import set_dropout

_READY = 4  # batches a bare loop goes round in
_CLIP = 1.0  # gradient norm, as in sslt's MLM recipe and by default in Hugging Face's Trainer


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> Any:
    """Lightning's precision names as a context."""
    if precision.startswith("32"):
        return contextlib.nullcontext()
    return torch.autocast(device().type, dtype=torch.bfloat16 if precision.startswith("bf16") else torch.float16)


# ---------------------------------------------------------------- bare loops
def bare_simclr(ours: Pretraining) -> Callable[[Watch], None]:
    """Encoder, projector, NT-Xent, AdamW on views that lie ready: one forward, channels last, ours' precision."""
    model = copy.deepcopy(ours.encoder.model).to(device())
    projector = copy.deepcopy(ours.objective.projector).to(device())
    optimizer = torch.optim.AdamW([*model.parameters(), *projector.parameters()], lr=1e-3, fused=True)
    ready = [ours.views(i, device())["views"]["image"].flatten(0, 1) for i in range(_READY)]
    targets = (torch.arange(len(ready[0]), device=device()) + len(ready[0]) // 2) % len(ready[0])
    temperature, precision, batches = ours.objective.temperature, ours.precision, _cycle(ready)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision):
            z = projector(model(next(batches)))
        z = F.normalize(z.float(), dim=1)
        loss = F.cross_entropy((z @ z.T / temperature).fill_diagonal_(float("-inf")), targets)
        loss.backward()
        optimizer.step()

    return lambda watch: _training(model, watch, step)


def bare_mlm(ours: Pretraining) -> Callable[[Watch], None]:
    """BERT on tokens that are masked already, logits at the masked positions only, AdamW, clipped gradients."""
    model = copy.deepcopy(ours.encoder.model).to(device())
    head = copy.deepcopy(ours.objective.transform).to(device())
    bias = nn.Parameter(torch.zeros(model.config.vocab_size, device=device()))
    parameters = [*model.parameters(), *head.parameters(), bias]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    batches, precision = _cycle([_flat_mlm(ours.views(i, device())) for i in range(_READY)]), ours.precision

    def step() -> None:
        tokens, index, targets = next(batches)
        optimizer.zero_grad()
        with autocast(precision):
            hidden = model(input_ids=tokens).last_hidden_state.flatten(0, 1)[index]
            logits = F.linear(head(hidden), model.get_input_embeddings().weight, bias)
        F.cross_entropy(logits.float(), targets).backward()
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()

    return lambda watch: _training(model, watch, step)


def _flat_mlm(batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(masked tokens [B, L], their chosen positions in the flattened batch [B·K], true ids [B·K])."""
    rows = torch.arange(len(batch["positions"]), device=device()).unsqueeze(1) * batch["tokens"].shape[1]
    return batch["inputs"]["tokens"], (rows + batch["positions"]).flatten(), batch["targets"].flatten()


def _training(model: nn.Module, watch: Watch, step: Callable[[], None]) -> None:
    model.train()
    watch.drive(step)


def _cycle(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items


# ---------------------------------------------------------------- LightlySSL
class Pictures(Dataset):
    """PIL images made from an array one by one, as torchvision's CIFAR10 does, through a transform."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i]))


def lightly_transform(size: int) -> Callable[[Any], Any]:
    """SimCLRTransform with its defaults; at 32 pixels without blur, as LightlySSL's CIFAR examples have it."""
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=size, gaussian_blur=0.0) if size <= 32 else SimCLRTransform(input_size=size)


def lightly_simclr(ours: Pretraining, precision: str, workers: int) -> Callable[[Watch], None]:
    """LightlySSL's SimCLR example on the same images and architecture: two forwards, default memory format, plain AdamW."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    backbone = copy.deepcopy(ours.encoder.model).to(device(), memory_format=torch.contiguous_format)
    first, last = ours.objective.projector[0], ours.objective.projector[-1]
    head = SimCLRProjectionHead(first.in_features, first.out_features, last.out_features).to(device())
    criterion = NTXentLoss(temperature=ours.objective.temperature)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-3)
    pictures = Pictures(ours.samples.images, lightly_transform(ours.encoder.processor.size))
    loader = DataLoader(pictures, batch_size=ours.stream.batch_size, shuffle=True, drop_last=True, num_workers=workers)

    def run(watch: Watch) -> None:
        backbone.train()
        batches = iter(_epochs(loader))

        def step() -> None:
            x0, x1 = (x.to(device()) for x in next(batches))
            with autocast(precision):
                loss = criterion(head(backbone(x0).flatten(1)), head(backbone(x1).flatten(1)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        watch.drive(step)

    return run


def _epochs(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def best_workers(ours: Pretraining, precision: str) -> int:
    """How many loader processes serve LightlySSL best here: none, two, or one for every core."""
    found = {}
    for workers in sorted({0, 2, os.cpu_count() or 2}):
        watch = Watch(2, 3)
        lightly_simclr(ours, precision, workers)(watch)
        found[workers] = watch.seconds
    return min(found, key=found.__getitem__)


# ---------------------------------------------------------------- Hugging Face
class Rows(Dataset):
    """Rows of token ids as Hugging Face's collators take them."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[i].tolist()}


def hf_mlm(ours: Pretraining, bf16: bool, dropout: bool, folder: Path) -> Callable[[Watch], None]:
    """BertForMaskedLM under transformers.Trainer with DataCollatorForLanguageModeling, on the same rows of tokens.

    dropout: BERT's own 0.1, as its users have it, or none, as in sslt's recipe.
    """
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    rows = Rows(ours.samples.batch(np.arange(len(ours.samples)))["tokens"])
    collator = hf.DataCollatorForLanguageModeling(ours.encoder.processor.tokenizer, mlm_probability=0.15)
    model = hf.BertForMaskedLM(copy.deepcopy(ours.encoder.model.config))
    if not dropout:
        set_dropout(model, 0.0)

    return _hf_training(model, collator, rows, ours.stream.batch_size, bf16, folder, weight_decay=0.01)


def hf_lora(ours: Pretraining, bf16: bool, folder: Path) -> Callable[[Watch], None]:
    """BertForSequenceClassification with peft's LoRA under transformers.Trainer, padded batch by batch, on the same texts."""
    import peft
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    samples = ours.samples
    rows = []
    for i in range(len(samples)):
        one = samples.batch(np.array([i]))
        rows.append({"input_ids": one["tokens"][0][one["mask"][0]].tolist(), "labels": int(one["label"][0])})
    config = copy.deepcopy(ours.encoder.model.config)
    config.num_labels = 2
    wanted = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(hf.BertForSequenceClassification(config), wanted)

    collator = hf.DataCollatorWithPadding(ours.encoder.processor.tokenizer)
    return _hf_training(model, collator, rows, ours.stream.batch_size, bf16, folder)


def _hf_training(model: Any, collator: Any, rows: Any, batch_size: int, bf16: bool, folder: Path, **more: Any) -> Callable[[Watch], None]:
    """transformers.Trainer as its users call it, watched step by step; `more` are further training arguments."""
    import transformers as hf

    class Lap(hf.TrainerCallback):
        def __init__(self, watch: Watch):
            self.watch = watch

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.watch.step()

    def run(watch: Watch) -> None:
        args = hf.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=batch_size, max_steps=watch.total, learning_rate=1e-3,
            bf16=bf16, use_cpu=device().type == "cpu", save_strategy="no", report_to="none", disable_tqdm=True, **more,
        )  # fmt: skip
        trainer = hf.Trainer(model=model, args=args, data_collator=collator, train_dataset=rows, callbacks=[Lap(watch)])
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()

    return run


# ---------------------------------------------------------------- augmentation
def lightly_augment(images: np.ndarray, size: int) -> Callable[[Watch], None]:
    """One step is the two views of every image, from PIL, one image after the other; collating them is not counted."""
    from PIL import Image

    transform = lightly_transform(size)
    pictures = [Image.fromarray(image) for image in images]
    return lambda watch: watch.drive(lambda: [transform(picture) for picture in pictures])
