"""Hugging Face's Trainer as its users call it: masked language modelling, and LoRA by peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from bench.device import device
from bench.ours import Pretraining
from bench.rounds import Watch
from sslt.encoders.dropout import set_dropout


class Rows(Dataset):
    """Rows of token ids as Hugging Face's collators take them."""

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[i].tolist()}


def mlm(ours: Pretraining, bf16: bool, folder: Path) -> Callable[[Watch], None]:
    """BertForMaskedLM under transformers.Trainer with DataCollatorForLanguageModeling, on the same rows and with the same dropout."""
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    rows = Rows(ours.samples.batch(np.arange(len(ours.samples)))["tokens"])
    collator = hf.DataCollatorForLanguageModeling(ours.encoder.processor.tokenizer, mlm_probability=0.15)
    model = hf.BertForMaskedLM(copy.deepcopy(ours.encoder.model.config))
    set_dropout(model, ours.cfg.dropout)
    return _training(model, collator, rows, ours.stream.batch_size, bf16, folder, weight_decay=0.01)


def lora(ours: Pretraining, bf16: bool, folder: Path) -> Callable[[Watch], None]:
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
    return _training(model, collator, rows, ours.stream.batch_size, bf16, folder)


def _training(
    model: Any, collator: Any, rows: Any, batch_size: int, bf16: bool, folder: Path, seq2seq: bool = False, **more: Any
) -> Callable[[Watch], None]:
    """transformers.Trainer (or Seq2SeqTrainer) as its users call it, watched step by step; `more` are further training arguments."""
    import transformers as hf

    trainers, settings = (hf.Seq2SeqTrainer, hf.Seq2SeqTrainingArguments) if seq2seq else (hf.Trainer, hf.TrainingArguments)

    class Lap(hf.TrainerCallback):
        def __init__(self, watch: Watch):
            self.watch = watch

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.watch.step()

    def run(watch: Watch) -> None:
        args = settings(
            output_dir=str(folder), per_device_train_batch_size=batch_size, max_steps=watch.total, learning_rate=1e-3,
            bf16=bf16, use_cpu=device().type == "cpu", save_strategy="no", report_to="none", disable_tqdm=True, **more,
        )  # fmt: skip
        trainer = trainers(model=model, args=args, data_collator=collator, train_dataset=rows, callbacks=[Lap(watch)])
        trainer.remove_callback(hf.PrinterCallback)
        trainer.train()

    return run
