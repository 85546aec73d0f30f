"""Training a WordPiece tokenizer, and telling which of a tokenizer's entries continue a word."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sslt.data.prepare.reversible import is_reversible
from sslt.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

log = logging.getLogger("sslt")

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
PREFIX = "##"
_SPACES = ("Ġ", "Ċ", "ĉ", "č")  # space, newline, tab and carriage return, as byte-level BPE writes them


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool) -> PreTrainedTokenizerFast:
    """A BERT-style WordPiece tokenizer of at most `vocab_size` entries; the same texts always give the same one.

    [PAD] has id 0, then [UNK], [CLS], [SEP], [MASK]. Three quarters of the vocabulary at most go to single characters,
    the most frequent ones; a word with another becomes [UNK]. Raises `UserError` where nothing can be learned.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def blank(vocab: dict[str, int]) -> Tokenizer:
        model = models.WordPiece(vocab, unk_token=SPECIAL["unk"], continuing_subword_prefix=PREFIX)
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    texts = texts if isinstance(texts, list) else list(texts)
    if vocab_size < 2 * len(SPECIAL):
        raise UserError(f"vocab_size={vocab_size} leaves no room for words; give a few thousand")
    if not any(text.strip() for text in texts):
        raise UserError("there is no text to train a tokenizer on")
    vocab = _train(blank, texts, vocab_size)
    if len(vocab) < vocab_size:
        log.info("the texts give a vocabulary of %d entries only (vocab_size=%d)", len(vocab), vocab_size)
    tokenizer = blank(vocab)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    cls, sep = SPECIAL["cls"], SPECIAL["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in SPECIAL.items()},
    )


def _train(blank: Any, texts: list[str], vocab_size: int) -> dict[str, int]:
    """Token -> id, learned in two passes.

    The trainer numbers the inner characters ("##a") in the order of a hash map and breaks ties between equally
    frequent pairs by these numbers, so that one pass gives another vocabulary every time. Here the first pass finds
    the inner characters, and the second is given them in order, as if they were special tokens.
    """
    characters, inner = _characters(blank, texts)
    limit = (vocab_size - len(SPECIAL)) * 3 // 4
    if len(characters) + len(inner) > limit:
        counts: Counter[str] = Counter()
        normalizer = blank({}).normalizer
        for text in texts:
            counts.update(normalizer.normalize_str(text))
        ranked = sorted(characters, key=lambda c: (-counts[c], c))
        entries = np.cumsum([1 + (PREFIX + c in inner) for c in ranked])  # a character, and its inner form
        characters = sorted(ranked[: np.searchsorted(entries, limit, side="right")])
        inner = {PREFIX + c for c in characters} & inner
    tokenizer = blank({})
    tokenizer.train_from_iterator(
        texts,
        _trainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL.values(), *sorted(inner)],
            initial_alphabet=characters,
            limit_alphabet=len(characters),
        ),
        length=len(texts),
    )
    return tokenizer.get_vocab()


def _characters(blank: Any, texts: list[str]) -> tuple[list[str], set[str]]:
    """(sorted characters, their forms inside words, with the prefix): the vocabulary before anything is merged."""
    tokenizer = blank({})
    tokenizer.train_from_iterator(texts, _trainer(vocab_size=0, special_tokens=[]), length=len(texts))
    vocab = sorted(tokenizer.get_vocab())
    return [token for token in vocab if len(token) == 1], {token for token in vocab if len(token) > 1}


def _trainer(**settings: Any) -> Any:
    from tokenizers import trainers

    return trainers.WordPieceTrainer(min_frequency=2, show_progress=False, continuing_subword_prefix=PREFIX, **settings)


def continues_word(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """bool [V]: True where an entry of the vocabulary continues the word before it; special tokens never do.

    V is the largest id + 1. Decided from the tokenizer's own description: a prefix such as "##" (WordPiece) marks an
    entry that continues; byte-level BPE ("Ġ") and SentencePiece ("▁") mark the one that starts a word. With whole
    words as entries, or with marks at the end of a word, nothing is said to continue. Raises `UserError` for a
    tokenizer without a fast backend.
    """
    spec = backend_spec(tokenizer)
    vocab = tokenizer.get_vocab()
    result = np.zeros(max(len(tokenizer), max(vocab.values()) + 1), dtype=bool)
    model, kinds = spec["model"], _kinds(spec)
    starts: tuple[str, ...] | None = None
    if prefix := model.get("continuing_subword_prefix"):
        pass
    elif "ByteLevel" in kinds:
        starts = _SPACES
    elif mark := _metaspace(spec):
        starts = (mark,)
    else:
        if model.get("type") != "WordLevel":
            log.warning("this tokenizer does not mark where words start: every token counts as a word of its own")
        return result
    for token, i in vocab.items():
        result[i] = token.startswith(prefix) and token != prefix if starts is None else not token.startswith(starts)
    result[special_ids(tokenizer)] = False
    return result


def inside_words(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """bool [V, 2]: entries that go on with a word, and those after which one may go on.

    Closer than `continues_word`: where only starts of words are marked, a comma goes on with the word before it, and is none of it. Special
    tokens stand between windows of a text, so that a word may go on after them.
    """
    result = np.zeros((len(continues := continues_word(tokenizer)), 2), dtype=bool)
    for token, i in tokenizer.get_vocab().items():
        bare = token.removeprefix(PREFIX)
        result[i] = continues[i] and bare[:1].isalnum(), bare[-1:].isalnum()
    result[special_ids(tokenizer), 1] = True
    return result


def backend_spec(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The JSON of the fast backend, without the settings of the last call (truncation, padding)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} has no fast (tokenizers) version; choose an encoder that has one")
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}


def reader_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The fast backend as it reads texts: nothing is cut or padded, and what can be undone takes the name of a mark for text.

    Of other tokenizers, BERT's among them, "[SEP]" in a text is the mark: some write the parts of a text so.
    """
    backend = cast(Any, tokenizer).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = is_reversible(tokenizer)
    return backend


def marks_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int, int]:
    """The ids that start a text (None: nothing does), end it, and pad a batch, as the tokenizer itself lays a text out.

    Raises `UserError` where it has nothing to end a text with.
    """
    found = reader_of(tokenizer).encode("a", add_special_tokens=True)
    marks = np.array(found.special_tokens_mask, bool)
    own = np.flatnonzero(~marks)
    before, after = (found.ids[: own[0]], found.ids[own[-1] + 1 :]) if len(own) else ([], [])
    end = after[0] if len(after) == 1 else _first_id(tokenizer, "sep", "eos")
    if end is None:
        raise UserError("the tokenizer has neither a sep nor an eos token; choose an encoder whose has one")
    start = None
    if before or not after:  # a layout of neither leaves it to whoever reads: GPT-2 has a mark of a beginning, and does not use it
        start = before[0] if len(before) == 1 else _first_id(tokenizer, "cls", "bos")
    pad = _first_id(tokenizer, "pad")
    return start, end, end if pad is None else pad


def _first_id(tokenizer: PreTrainedTokenizerBase, *roles: str) -> int | None:
    return next((i for role in roles if (i := getattr(tokenizer, f"{role}_token_id")) is not None), None)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Sorted ids of the tokens that stand for no text."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def _parts(node: Any) -> list[dict[str, Any]]:
    """A pre-tokenizer, normalizer or decoder and everything in its sequences."""
    if not isinstance(node, dict):
        return []
    inner = node.get("pretokenizers") or node.get("normalizers") or node.get("decoders") or []
    return [node, *(part for child in inner for part in _parts(child))]


def _kinds(spec: dict[str, Any]) -> set[str]:
    return {part.get("type", "") for part in _parts(spec.get("pre_tokenizer"))}


def _metaspace(spec: dict[str, Any]) -> str | None:
    """The mark of a word's start in SentencePiece tokenizers, set by a pre-tokenizer or by a normalizer."""
    for part in _parts(spec.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            return part.get("replacement", "▁")
    for part in _parts(spec.get("normalizer")):
        if part.get("type") == "Replace" and part.get("pattern") == {"String": " "}:
            return part.get("content")
        if part.get("type") == "Prepend":
            return part.get("prepend")
    return "▁" if spec["model"].get("type") == "Unigram" else None
