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
from sslt.data.prepare.text_samples import PackedSamples
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


def writing(family: str, batch: int, texts: int, most: int, folder: Path) -> tuple[Callable[[Watch], None], Callable[[Watch], None]]:
    """(ours, Seq2SeqTrainer.predict) writing to the same ragged test set with the same weights, greedily; each writes it whole in a step.

    The mark of an end is a word that replies have at many different places, so that they are of different length.
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

    args = hf.Seq2SeqTrainingArguments(
        output_dir=str(folder / "predict"), per_device_eval_batch_size=batch, predict_with_generate=True,
        use_cpu=device().type == "cpu", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    model = encoder.model
    start = encoder.start_id if encoder.writes == "seq2seq" else None
    settings = hf.GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, eos_token_id=ends, pad_token_id=encoder.processor.pad_id,
        decoder_start_token_id=start,
    )  # fmt: skip
    theirs = hf.Seq2SeqTrainer(
        model=model, args=args,
        data_collator=hf.DataCollatorForSeq2Seq(encoder.processor.tokenizer, model, label_pad_token_id=encoder.processor.pad_id),
    )  # fmt: skip
    test = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row[:4]} for row in rows]

    def predict(watch: Watch) -> None:
        watch.drive(lambda: theirs.predict(test, generation_config=settings))

    found = theirs.predict(test, generation_config=settings).predictions[:, 1:]
    known = _write(encoder, rows, batch, Limits(most, 0, 1, False, 1.0, 0, 1.0, 0.0, 0))
    trimmed = [list(row[: list(row).index(ends)]) if ends in row else [int(i) for i in row if i >= 0][:most] for row in found]
    same = np.mean([list(map(int, a)) == b[: len(a)] for a, b in zip(trimmed, known, strict=True)])
    print(f"the same greedy output in {same:.1%} of the rows; {np.mean([len(r) for r in known]):.1f} tokens a reply of at most {most}")
    return ours, predict


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
    """A word at which replies end at many different places, after a third of the most on average."""
    encoder.processor.sep_id = encoder.processor.unknown_id  # which is hardly ever the likeliest word
    written = _write(encoder, rows[:32], 32, Limits(most, 0, 1, False, 1.0, 0, 1.0, 0.0, 0))
    sizes = {w: [row.index(w) if w in row else most for row in written] for w in sorted({i for row in written for i in row})}
    return min((w for w in sizes if len(set(sizes[w])) > 4), key=lambda w: abs(np.mean(sizes[w]) - most / 3))
