"""Protects tokenizers that can be undone: the text comes back, the same texts give the same one, T5's sentinels."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from sslt.data.prepare.reversible import KINDS, train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.errors import UserError

TEXTS = [
    "The cat sat on the mat.  Two  spaces, a line\nand (brackets)!",
    "A dog ran quickly in the Park; 北京是一座城市。",
    "unhappiness, happiness and happy unhappy people ran and sat",
] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_can_be_written(kind):
    """Case, spaces, lines and Chinese come back, and no mark of the model's own with them."""
    p = TextProcessor(train_reversible(kind, TEXTS, 700, False, 0), 64)
    for text, ids in zip(TEXTS, next(iter(p.encode(TEXTS))), strict=True):
        assert p.decode_text([p.cls_id, *ids, p.sep_id]) == text
        assert p.unknown_id not in ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_mark_is_text(kind):
    """A text that has one in it comes back, and nobody can end it from within; WordPiece reads the mark, as BERT's users have it."""
    p = TextProcessor(train_reversible(kind, TEXTS, 700, False, 2), 64)
    (ids,) = next(iter(p.encode(["press </s> or <mask> to stop"])))
    assert not set(ids) & (set(p.special_ids) - {p.unknown_id})
    assert kind == "unigram" or p.decode_text(ids) == "press </s> or <mask> to stop"  # which has never seen "<"
    wordpiece = TextProcessor(train_tokenizer(TEXTS, 200, True), 32)
    (ids,) = next(iter(wordpiece.encode(["cat [SEP] dog"])))
    assert wordpiece.sep_id in ids


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_unseen_letters_are_their_bytes(kind):
    """What training never saw is written with bytes, and comes back."""
    p = TextProcessor(train_reversible(kind, TEXTS, 700, False, 0), 64)
    (ids,) = next(iter(p.encode(["Zoë — 東京 🙂"])))
    assert p.decode_text(ids) == "Zoë — 東京 🙂"


@pytest.mark.parametrize("kind", KINDS)
def test_sentinels_as_t5_has_them(kind, tmp_path):
    """<extra_id_0> is the highest id and they count down; a text has an end and no start; all of it survives saving."""
    tokenizer = train_reversible(kind, TEXTS, 700, False, 100)
    tokenizer.save_pretrained(str(tmp_path))
    again = AutoTokenizer.from_pretrained(str(tmp_path))
    for t in (tokenizer, again):
        ids = t.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(100)])
        assert ids == list(range(len(t) - 1, len(t) - 101, -1))
        assert t("cat")["input_ids"][-1] == t.eos_token_id and t("cat")["input_ids"][0] != t.bos_token_id
    assert TextProcessor(tokenizer, 64).special[:2] == (None, tokenizer.eos_token_id)
    assert set(ids) <= set(TextProcessor(tokenizer, 64).special_ids)


def test_the_same_texts_give_the_same_tokenizer():
    """In another process, with other hashes of strings."""
    code = f"from sslt.data.prepare.reversible import *; TEXTS = {TEXTS!r}; "
    code += "print([train_reversible(kind, TEXTS, 600, False, 3).backend_tokenizer.to_str() for kind in KINDS])"
    seen = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(seen) == 1


def test_wordpiece_writes_nothing():
    """Its spaces are lost: refused by name."""
    with pytest.raises(UserError, match=r"\(WordPiece\) loses spaces.*encoder.processor.tokenizer=bpe"):
        TextProcessor(train_tokenizer(TEXTS, 200, True), 32).decode_text([5, 6])


@pytest.mark.parametrize(
    ("kind", "texts", "size", "says"),
    [
        ("bqe", TEXTS, 700, "tokenizer=bqe: give wordpiece, bpe, unigram, characters; did you mean 'bpe'"),
        ("bpe", TEXTS, 200, "vocab_size=200 leaves no room"),
        ("bpe", ["", "  "], 700, "no text to train"),
    ],
)
def test_mistakes(kind, texts, size, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        train_reversible(kind, texts, size, False, 0)
