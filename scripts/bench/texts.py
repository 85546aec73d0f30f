"""Language models: training and writing by sslt, and by Hugging Face's Trainer and Seq2SeqTrainer as their users call them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from bench.device import device
from bench.hugging_face import Rows, _training
from bench.ours import Pretraining
from bench.rounds import Watch
from sslt import config
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.data.ragged import Ragged
from sslt.data.streams.streams import Stream
from sslt.encoders.base import evaluating
from sslt.encoders.generation import Limits, generate


def tokenizer(size: int) -> Any:
    """With so many entries; what they spell does not matter here."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    words = [*special.values(), *(f"w{i}" for i in range(size - len(special)))]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def built(encoder: str, size: int, length: int) -> Any:
    """An encoder of sslt's configs over a vocabulary of so many words."""
    from hydra.utils import get_object

    node: Any = OmegaConf.to_container(config.compose("pretrain", ["+task=causal_lm", f"encoder={encoder}"]).encoder)
    args = {k: node[k] for k in ("model_type", "config", "pooling")}
    return get_object(node["_target_"])(TextProcessor(tokenizer(size), length), **args)


def causal(encoder: str, batch: int, length: int, steps: int, folder: Path) -> Pretraining:
    """The next word, on rows of `length` random tokens out of 16,384."""
    cfg = config.compose("pretrain", ["+task=causal_lm", f"encoder={encoder}", f"batch_size={batch}", "online_probe.every_n_epochs=0"])
    model = built(encoder, 16_384, length)
    words = np.random.default_rng(0).integers(5, 16_384, batch * steps * length, dtype=np.int32)
    samples = PackedSamples(words, length, model.processor.cls_id, "random tokens")
    stream = Stream(samples, batch, seed=0, drop_last=True, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model), stream, folder)


def trainer(ours: Pretraining, bf16: bool, folder: Path) -> Callable[[Watch], None]:
    """GPT2LMHeadModel under transformers.Trainer with DataCollatorForLanguageModeling, on the same rows."""
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    rows = Rows(ours.samples.batch(np.arange(len(ours.samples)))["tokens"])
    collator = hf.DataCollatorForLanguageModeling(ours.encoder.processor.tokenizer, mlm=False)
    model = hf.AutoModelForCausalLM.from_config(copy.deepcopy(ours.encoder.model.config))
    return _training(model, collator, rows, ours.stream.batch_size, bf16, folder, weight_decay=0.01)


def seq2seq(encoder: str, batch: int, steps: int, folder: Path) -> Pretraining:
    """Pairs of ragged texts out of 8,192 words, 4 to 60 to read (most of them short) and about as many to write."""
    cfg = config.compose(
        "finetune", ["+target=translate", "from=scratch", f"encoder={encoder}", f"batch_size={batch}", "val_every_n_epochs=0"]
    )
    model = built(encoder, 8192, 128)
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(2.6, 0.6, batch * steps).astype(int), 4, 60)
    outputs = np.clip((sizes * rng.normal(1, 0.2, len(sizes))).astype(int), 4, 60)
    words, written = (rng.integers(5, 8192, n.sum(), dtype=np.int32) for n in (sizes, outputs))
    p = model.processor
    samples = TextSamples(
        words, np.cumsum(sizes) - sizes, sizes, None, "random pairs", (p.cls_id, p.sep_id, p.pad_id), 128, 0,
        outputs=Ragged.from_flat(written, outputs), max_output=128,
    )  # fmt: skip
    stream = Stream(samples, batch, seed=0, drop_last=False, views=config.build(cfg.views))
    return Pretraining(cfg, model, config.build(cfg.objective, model, space={}), stream, folder)


def seq2seq_trainer(ours: Pretraining, bf16: bool, folder: Path) -> Callable[[Watch], None]:
    """The same pairs and network under Seq2SeqTrainer with DataCollatorForSeq2Seq, padded batch by batch."""
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    rows, samples = [], ours.samples
    for i in range(len(samples)):
        one = samples.batch(np.array([i]))
        rows.append({"input_ids": one["tokens"][0][one["mask"][0]].tolist(), "labels": one["outputs"][0][one["outputs_mask"][0]].tolist()})
    model = hf.AutoModelForSeq2SeqLM.from_config(copy.deepcopy(ours.encoder.model.config))
    collator = hf.DataCollatorForSeq2Seq(ours.encoder.processor.tokenizer, model)
    return _training(model, collator, rows, ours.stream.batch_size, bf16, folder, seq2seq=True, weight_decay=0.01)


def writing(family: str, batch: int, texts: int, most: int, folder: Path) -> tuple[Callable[[Watch], None], Callable[[int], Any]]:
    """(ours, a maker of Seq2SeqTrainer.predict by its batch size): writing to one ragged test set with the same weights, greedily.

    Each writes it whole in a step. Replies end at many different places, after a third of the most on average.
    """
    import transformers as hf

    hf.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    encoder = built(family, 8192, 128).to(device()).eval()
    for p in encoder.parameters():
        if p.dim() > 1:  # so that replies differ, and end at different places
            torch.nn.init.normal_(p, std=0.3)
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 8192, n).tolist() for n in rng.integers(8, 100, texts)]
    ends = _ends(encoder, rows, most)
    encoder.processor.sep_id = ends

    def ours(watch: Watch) -> None:
        limits = Limits(most, 0, 1, False, 1.0, 0, 1.0, 0.0, 0)
        watch.drive(lambda: _write(encoder, rows, batch, limits))

    model = encoder.model
    settings = hf.GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, eos_token_id=ends, pad_token_id=encoder.processor.pad_id,
        decoder_start_token_id=encoder.start_id,
    )  # fmt: skip
    test = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row[:4]} for row in rows]
    known = _write(encoder, rows, batch, Limits(most, 0, 1, False, 1.0, 0, 1.0, 0.0, 0))
    lengths = [len(row) for row in known]
    print(f"replies of {np.mean(lengths):.1f} tokens, {np.percentile(lengths, 10):.0f} to {np.percentile(lengths, 90):.0f} for most")

    def theirs(size: int) -> Callable[[Watch], None]:
        args = hf.Seq2SeqTrainingArguments(
            output_dir=str(folder / "predict"), per_device_eval_batch_size=size, predict_with_generate=True,
            use_cpu=device().type == "cpu", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        collator = hf.DataCollatorForSeq2Seq(encoder.processor.tokenizer, model, label_pad_token_id=encoder.processor.pad_id)
        trainer = hf.Seq2SeqTrainer(model=model, args=args, data_collator=collator)
        found = trainer.predict(test, generation_config=settings).predictions[:, 1:].tolist()
        trimmed = [row[: row.index(ends)] if ends in row else [i for i in row if i >= 0][:most] for row in found]
        print(f"the same greedy output in {np.mean([a == b for a, b in zip(trimmed, known, strict=True)]):.1%} of the rows")
        return lambda watch: watch.drive(lambda: trainer.predict(test, generation_config=settings))

    return ours, theirs


def _write(encoder: Any, rows: list[list[int]], batch: int, limits: Limits) -> list[list[int]]:
    """As a target does: longest first, what is written put back into its place."""
    order = np.argsort([-len(row) for row in rows], kind="stable")
    found: list[list[int]] = [[] for _ in rows]
    with evaluating(encoder):
        for i in range(0, len(rows), batch):
            part = order[i : i + batch]
            sizes = torch.tensor([len(rows[j]) for j in part])
            mask = torch.arange(int(sizes.max())) < sizes[:, None]
            tokens = torch.zeros(mask.shape, dtype=torch.long)
            tokens[mask] = torch.tensor([t for j in part for t in rows[j]])
            made = generate(encoder, {"tokens": tokens.to(device()), "mask": mask.to(device())}, limits)
            for j, ids in zip(part, made, strict=True):
                found[j] = ids
    return found


def _ends(encoder: Any, rows: list[list[int]], most: int) -> int:
    """Make a word that hardly is the likeliest one so likely that replies end after a third of the most on average; which word."""
    word, limits = encoder.processor.sep_id, Limits(most, 0, 1, False, 1.0, 0, 1.0, 0.0, 0)
    weight, own = encoder.output_layer()[0], encoder.output_layer()[0][word].clone()
    low, high = 0.0, 16.0
    with torch.no_grad():
        for _ in range(8):
            factor = (low + high) / 2
            weight[word] = factor * own
            early = np.mean([len(row) for row in _write(encoder, rows[:64], 64, limits)]) < most / 3
            low, high = (low, factor) if early else (factor, high)
    return int(word)
