"""Training tokenizers that can be undone: what they make of a text gives the text again, so that texts can be written with them.

But for "unigram": a blank before the text is lost, letters that were not in the texts it learned from are unknown, and ▁ is a blank.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from sslt.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

log = logging.getLogger("sslt")

KINDS = ("bpe", "unigram", "characters")
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "mask": "<mask>"}


def train_reversible(kind: str, texts: list[str], vocab_size: int, lowercase: bool, sentinels: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries; the same texts always give the same one.

    kind: "bpe", byte-level byte pair encoding (Sennrich et al., 2016; Radford et al., 2019), which knows every text; "unigram"
    (Kudo, 2018) over words that begin with ▁; "characters", one by one, for Chinese and its like, the rarer ones as their bytes.

    Ids: <pad> 0, <unk>, <s>, </s>, <mask>; a text is <s> … </s>. With `sentinels`, T5's <extra_id_0> … are the last ids, counted down, and
    a text is … </s>, as T5 has it. Raises `UserError` where nothing can be learned.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if kind not in KINDS:
        names = ("wordpiece", *KINDS)
        raise UserError(f"encoder.processor.tokenizer={kind}: give {', '.join(names)}{nearest(kind, names)}")
    room = vocab_size - sentinels
    if room < 300:
        raise UserError(f"vocab_size={vocab_size} leaves no room for words beside bytes and {sentinels} sentinels; give a few thousand")
    if not any(text.strip() for text in texts):
        raise UserError("there is no text to train a tokenizer on")
    tokenizer = {"bpe": _bpe, "unigram": _unigram, "characters": _characters}[kind](texts, room, lowercase)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    last = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    tokenizer.add_special_tokens(last)
    if tokenizer.get_vocab_size() < vocab_size:
        log.info("the texts give a vocabulary of %d entries only (vocab_size=%d)", tokenizer.get_vocab_size(), vocab_size)
    bos, eos = SPECIAL["bos"], SPECIAL["eos"]
    before = "" if sentinels else f"{bos} "
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before}$A {eos}",
        pair=f"{before}$A {eos} $B {eos}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in SPECIAL.items()},
        **({"extra_special_tokens": last[::-1]} if last else {}),
    )


def _bpe(texts: list[str], size: int, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = _lower(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False,
        special_tokens=list(SPECIAL.values()), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


def _unigram(texts: list[str], size: int, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def blank(model: Any) -> Any:
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = _lower(lowercase)
        # "<" by itself, or the name of a mark in a text would be the entry that is called so
        parts = [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Split("<", "isolated")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
        return tokenizer

    tokenizer = blank(models.Unigram())
    # One step of EM between two prunings, not two: texts that were left out are as likely, in two thirds of the time (5,609 docstrings).
    trainer = trainers.UnigramTrainer(
        vocab_size=size, show_progress=False, special_tokens=list(SPECIAL.values()), unk_token=SPECIAL["unk"], n_sub_iterations=1
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    entries = _settled(json.loads(tokenizer.to_str())["model"]["vocab"][len(SPECIAL) :])
    return blank(models.Unigram([*((token, 0.0) for token in SPECIAL.values()), *entries], unk_id=1))


def _settled(entries: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Entries and scores as every process finds them: the trainer sums in the order of a hash map, and in that order gives the characters
    that it would not have kept ever lower scores below the lowest."""
    lowest = min((score for token, score in entries if len(token) > 1), default=0.0)
    rare = sorted(token for token, score in entries if len(token) == 1 and score < lowest + 1e-3)
    scores = {token: round(score, 6) for token, score in entries}
    scores |= {token: round(lowest, 6) - 1e-3 - 1e-6 * i for i, token in enumerate(rare)}
    return sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))


def _characters(texts: list[str], size: int, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.lower() if lowercase else text)
    entries = [*SPECIAL.values(), *(f"<0x{i:02X}>" for i in range(256))]
    entries += sorted(counts, key=lambda c: (-counts[c], c))[: size - len(entries)]
    model = models.BPE({entry: i for i, entry in enumerate(entries)}, [], unk_token=SPECIAL["unk"], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _lower(lowercase)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _lower(lowercase: bool) -> Any:
    from tokenizers import normalizers

    return normalizers.Lowercase() if lowercase else None


def is_reversible(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether spaces are kept, as BERT's WordPiece does not."""
    return type(cast(Any, tokenizer).backend_tokenizer.model).__name__ not in ("WordPiece", "WordLevel")


def require_reversible(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `UserError` for a tokenizer that no text can be written with."""
    if not is_reversible(tokenizer):
        kind = type(cast(Any, tokenizer).backend_tokenizer.model).__name__
        raise UserError(
            f"the tokenizer of this encoder ({kind}) loses spaces, so that no text can be written with it: train one with "
            f"encoder.processor.tokenizer=bpe, unigram or characters"
        )
