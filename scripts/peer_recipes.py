"""What other libraries recommend for fine-tuning, each run by that library's own optimizer, schedule and, where it has one, loop.

A recipe takes a `Model`, rows, a batch size, a number of steps and a seed, trains, and leaves the trained weights in the `Model`; it
returns the steps it took. Settings come from:

- fastai 2.8: `Learner.fine_tune` (fastai/callback/schedule.py) at its defaults, one frozen epoch and then all layers, with fastai's Adam
  and momenta (fastai/learner.py, fastai/optimizer.py) and three groups of layers, as `vision_learner` makes of a ResNet
  (fastai/vision/learner.py).
- timm 1.0: the one command of its documentation that fine-tunes (`--pretrained --batch-size 32 --opt adamw --lr 1e-4 --weight-decay 0.01`,
  hfdocs/source/training_script.mdx), and, for SGD, a tenth of the training script's rate, which its author recommends for a new
  classifier (issue 25 of huggingface/pytorch-image-models). The rest is the training script's: cosine, warm-up from 1e-5 over 5 epochs
  (defaults of timm/scheduler/scheduler_factory.py), rates scaled with the batch (by the root for Adam), label smoothing 0.1. Its average
  of weights (timm/utils/model_ema.py) warms up: at its decay of 0.9998 a few hundred steps would otherwise leave the start.
- transformers 5: `Trainer` at its defaults (transformers/training_args.py: AdamW at 5e-5, linear to 0, 3 epochs, gradients clipped at 1)
  and as its guide to text classification sets it (docs/source/en/tasks/sequence_classification.md: 2e-5, 2 epochs, weight decay 0.01).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt import precision
from sslt.data.base import Samples
from sslt.encoders.bag import BagEncoder
from sslt.encoders.base import Encoder, Features
from sslt.encoders.lexicon import hashed_pairs
from sslt.objectives.base import encode_views

CPU = torch.device("cpu")


class Model(nn.Module):
    """An encoder and a linear head, as a module that any library can train: batch of samples → logits [B, C].

    objective: the classifier, whose head is fresh. views: applied while it trains, the same that `sslt finetune` has. It computes in the
    number format that `sslt` trains in. Where the encoder is a bag, the rows of its tables that `train` reads move, and no others.
    """

    def __init__(self, encoder: Encoder, objective: nn.Module, views: nn.Module, train: Samples):
        super().__init__()
        self.body = RowsRead(encoder, train) if isinstance(encoder, BagEncoder) else encoder
        self.objective, self.views = objective, views

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        if not self.training:
            return self.objective.logits(self.body(self.body.inputs(batch)).pooled).float()
        with precision.autocast(CPU):
            pooled = encode_views(self.body, self.views(batch, self.body)).pooled
            return self.objective.logits(self.objective.dropout(pooled)).float()

    def give_back(self) -> None:
        """Put what was trained into the encoder, where that does not hold it already."""
        if isinstance(self.body, RowsRead):
            self.body.give_back()

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters of the lower half of the blocks, of the upper half, and of the head."""
        halves: list[list[nn.Parameter]] = [[], []]
        place = self.body.group_of() if isinstance(self.body, Encoder) else {}
        for name, p in self.body.named_parameters():
            halves[place.get(name, 1) > getattr(self.body, "depth", 0) // 2].append(p)
        return [*filter(None, halves), list(self.objective.parameters())]


class RowsRead(nn.Module):
    """A bag encoder with only those rows of its tables that some samples read.

    Other rows have no gradient, so that a dense optimizer, which moves whole tables, would leave them where they are but for weight
    decay; without them a step costs a hundredth.
    """

    chunk_size = None  # all texts of a batch at a time, as `Encoder` has it

    def __init__(self, bag: BagEncoder, samples: Samples):
        super().__init__()
        self.bag = [bag]  # not a module of this one, whose parameters are the rows
        tables = bag.tables()
        read = [torch.zeros(len(table.weight), dtype=torch.bool) for table in tables]
        for i in range(0, len(samples), 256):
            tokens = samples.batch(np.arange(i, min(i + 256, len(samples))))["tokens"]
            for seen, (ids, _, _) in zip(read, self._readings(tokens), strict=True):
                seen[ids] = True
        self.rows = [seen.nonzero()[:, 0] for seen in read]
        self.place = [seen.cumsum(0) - 1 for seen in read]
        self.tables = nn.ParameterList(table.weight.detach()[rows].clone() for table, rows in zip(tables, self.rows, strict=True))

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.bag[0].inputs(batch)

    def _readings(self, tokens: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each table: the ids [N] that texts [B, T] read, one text after the other, their weights [N], and how many a text has [B]."""
        bag = self.bag[0]
        seen = tokens > 0
        found = [(tokens[seen], bag.rarity[tokens[seen]], seen.sum(1))]
        if bag.pairs is not None:
            both = seen[:, 1:] & seen[:, :-1]
            ids = hashed_pairs(tokens[:, :-1][both], tokens[:, 1:][both], bag.pairs.num_embeddings)
            found.append((ids, torch.full(ids.shape, bag.pair_weight), both.sum(1)))
        return found

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        total: Any = 0
        for (ids, weights, counts), rows, place in zip(self._readings(inputs["tokens"]), self.tables, self.place, strict=True):
            offsets = counts.cumsum(0) - counts
            total = total + F.embedding_bag(place[ids], rows, offsets, mode="sum", per_sample_weights=weights.to(rows.dtype))
        pooled = self.bag[0].dropout(F.rms_norm(total, (self.bag[0].dim,), eps=1e-12))
        return Features(pooled, pooled.unsqueeze(1))

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the rows into the bag's tables."""
        for table, rows, values in zip(self.bag[0].tables(), self.rows, self.tables, strict=True):
            table.weight[rows] = values


class _Rows(torch.utils.data.Dataset):
    """Numbers of rows: `_loader` reads a batch at once."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


def _collate(samples: Samples) -> Callable[[list[int]], tuple[dict[str, Tensor], Tensor]]:
    def collate(rows: list[int]) -> tuple[dict[str, Tensor], Tensor]:
        batch = samples.batch(np.array(rows))
        return {k: v for k, v in batch.items() if k != "label"}, batch["label"].long()

    return collate


def _loader(samples: Samples, batch_size: int, drop_last: bool) -> Any:
    rows = _Rows(len(samples))
    return torch.utils.data.DataLoader(rows, batch_size, shuffle=True, drop_last=drop_last, collate_fn=_collate(samples))


def fastai(model: Model, train: Samples, batch_size: int, steps: int, seed: int) -> int:
    """`Learner.fine_tune` at its defaults. The frozen epoch is one of those that make `steps`."""
    from fastai.callback import schedule  # noqa: F401 - gives Learner its fine_tune
    from fastai.callback.core import Callback, CancelValidException
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner

    class Steps(Callback):
        """Counts them; nothing is validated in between, as the last weights are measured."""

        taken = 0

        def after_step(self) -> None:
            self.taken += 1

        def before_validate(self) -> None:
            raise CancelValidException

    loader, counted = _loader(train, batch_size, drop_last=True), Steps()  # fastai leaves out the last batch, too
    epochs = max(2, round(steps / len(loader)))
    loaders = DataLoaders(loader, loader, device=CPU)
    learner = Learner(loaders, model, loss_func=nn.CrossEntropyLoss(), splitter=Model.groups, cbs=counted)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs - 1)
    return counted.taken


def timm_adamw(model: Model, train: Samples, batch_size: int, steps: int, seed: int) -> int:
    """The documentation's fine-tuning command."""
    return _timm(model, train, batch_size, steps, opt="adamw", lr=1e-4 * math.sqrt(batch_size / 32), weight_decay=0.01)


def timm_sgd(model: Model, train: Samples, batch_size: int, steps: int, seed: int) -> int:
    """The author's advice for SGD."""
    return _timm(model, train, batch_size, steps, opt="sgd", lr=0.1 * 0.1 * batch_size / 256, weight_decay=2e-5, momentum=0.9)


def _timm(model: Model, train: Samples, batch_size: int, steps: int, **optimizer: Any) -> int:
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3

    loader = _loader(train, batch_size, drop_last=True)  # timm leaves out the last batch
    epochs = max(1, round(steps / len(loader)))
    optim = create_optimizer_v2(model, **optimizer)
    warm = min(5, epochs // 5)  # 5 by default, where the run has as many
    schedule, _ = create_scheduler_v2(optim, "cosine", epochs, warmup_epochs=warm, warmup_lr=1e-5, min_lr=0.0)
    average = ModelEmaV3(model, decay=0.9998, use_warmup=True)
    smoothed = LabelSmoothingCrossEntropy(0.1)
    done = 0
    model.train()
    for epoch in range(epochs):
        for batch, labels in loader:
            optim.zero_grad()
            smoothed(model(batch), labels).backward()
            optim.step()
            done += 1
            average.update(model, step=done)
        schedule.step(epoch + 1)
    model.load_state_dict(average.module.state_dict())
    return done


def _transformers(rate: float | None, epochs: int | None, weight_decay: float = 0.0) -> Callable[..., int]:
    """rate: None, the default. epochs: None, as many as make `steps`."""

    def train_by(model: Model, train: Samples, batch_size: int, steps: int, seed: int) -> int:
        from transformers import Trainer, TrainingArguments

        class WithLoss(nn.Module):
            """What Trainer calls: its loss is the first of the outputs."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, batch: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
                logits = self.model(batch)
                return {"loss": F.cross_entropy(logits, labels), "logits": logits}

        collate = _collate(train)

        def named(rows: list[int]) -> dict[str, Any]:
            return dict(zip(("batch", "labels"), collate(rows), strict=True))

        chosen = {} if rate is None else {"learning_rate": rate}
        bound = {"max_steps": steps} if epochs is None else {"num_train_epochs": epochs}
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, per_device_train_batch_size=batch_size, weight_decay=weight_decay, seed=seed, use_cpu=True, report_to=[],
                save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
                **chosen, **bound,
            )  # fmt: skip
            trainer = Trainer(WithLoss(), args, train_dataset=_Rows(len(train)), data_collator=named)
            trainer.train()
        return trainer.state.global_step

    return train_by


RECIPES: dict[str, Callable[..., int]] = {
    "fastai": fastai,
    "timm AdamW": timm_adamw,
    "timm SGD": timm_sgd,
    "Trainer 5e-5, 3 epochs": _transformers(None, 3),
    "Trainer 2e-5, 2 epochs": _transformers(2e-5, 2, 0.01),
    "Trainer 5e-5, as long": _transformers(None, None),
    "Trainer 2e-5, as long": _transformers(2e-5, None, 0.01),
}
IMAGES_ONLY = ("timm AdamW", "timm SGD")
