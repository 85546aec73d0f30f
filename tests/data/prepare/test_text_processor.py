"""Tokenizing, storing and batching text."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from sslt.data import cache
from sslt.data.answers import Tags
from sslt.data.base import Raw, Source
from sslt.data.prepare.text_processor import TextProcessor, some_texts
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.data.prepare.tokenizers import continues_word, train_tokenizer
from sslt.errors import UserError

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "unrunnable",
    "running",
    "foxes",
    "jumping",
    "中",
    "don't",
]


class Toy(Source):
    """Seeded sentences of 0 to 39 words."""

    modality = "text"
    name = "toy"

    def __init__(self, seed: int = 0, rows: int = 60):
        rng = np.random.default_rng(seed)
        self.texts = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(rows)]
        self.labels = rng.integers(0, 2, rows)
        self.reads = 0

    classes = ("no", "yes")  # type: ignore[assignment]

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return cache.digest(self.texts, self.labels)

    def read(self, split):
        self.reads += 1
        return Raw(self.texts, self.as_answers(self.labels), ["toy.csv, line 3: empty text"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(Toy().texts, vocab_size=120, lowercase=True)


@pytest.fixture
def processor(tokenizer):
    return TextProcessor(tokenizer, max_length=19)


def test_trained_tokenizer(tokenizer):
    """The special tokens have BERT's roles and first ids, and a text is wrapped in them."""
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id] == [0, 1, 2]
    assert [tokenizer.sep_token_id, tokenizer.mask_token_id] == [3, 4]
    assert tokenizer("The fox中").input_ids[0] == 2 and tokenizer("The fox中").input_ids[-1] == 3
    assert tokenizer.tokenize("The fox中") == ["the", "fox", "中"]
    assert tokenizer.tokenize("[MASK] the") == ["[MASK]", "the"]
    with pytest.raises(UserError, match="no text"):
        train_tokenizer(["  "], 100, True)


def test_training_is_deterministic(tokenizer):
    """Another process, with the texts in another order, learns the same tokenizer to the id."""
    code = (
        "import sys; sys.path[:0] = eval(sys.argv[1]); from test_text_processor import *; "
        "print(train_tokenizer(Toy().texts[::-1], 120, True).backend_tokenizer.to_str())"
    )
    path = repr([str(__file__).rsplit("/", 1)[0], *sys.path])
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_rare_characters_are_left_out():
    """With more characters than the vocabulary can hold, the frequent ones stay, deterministically."""
    texts = ["".join(chr(0x4E00 + i) * (1 + i // 100) for i in range(300))]
    vocab = train_tokenizer(texts, 100, True).get_vocab()
    assert len(vocab) <= 100 and chr(0x4E00 + 200) in vocab and chr(0x4E00) not in vocab


def test_batch_against_plain_loop(processor):
    """A batch holds what transformers' own truncation and padding give, row by row."""
    source = Toy()
    samples = processor.prepare(source, "train")
    texts = source.get("train").items
    index = np.array([5, 0, 7, 7, 11])
    batch = samples.batch(index)
    width = batch["tokens"].shape[1]
    assert width % 8 == 0 or width == 19
    for row, i in enumerate(index):
        ids = processor.tokenizer(texts[i], truncation=True, max_length=19).input_ids
        assert batch["tokens"][row].tolist() == ids + [0] * (width - len(ids))
        assert batch["mask"][row].tolist() == [True] * len(ids) + [False] * (width - len(ids))
        assert samples.lengths[i] == len(ids)
    assert batch["label"].tolist() == source.get("train").labels[index].tolist()
    assert batch["index"].tolist() == index.tolist()
    assert {k: v.dtype for k, v in batch.items()} == {
        "tokens": torch.int64, "mask": torch.bool, "label": torch.int64, "index": torch.int64,
    }  # fmt: skip


def test_each_tokenizer_has_tokens_of_its_own(processor):
    """The same texts by another tokenizer, or with another share held out, are another entry of the cache; by the same one, the same."""
    source = Toy()
    samples = processor.prepare(source, "train")
    other = TextProcessor(train_tokenizer(source.texts, vocab_size=60, lowercase=True), max_length=19)
    found, ids = other.prepare(source, "train"), other.tokenizer(source.get("train").items[0], add_special_tokens=False).input_ids
    assert found.fingerprint != samples.fingerprint and found.tokens[: found.sizes[0]].tolist() == ids
    assert samples.tokens[: samples.sizes[0]].tolist() != ids
    source.val_fraction = 0.5
    assert len(processor.prepare(source, "train")) < len(samples)
    reads = source.reads
    assert processor.prepare(Toy(), "train").fingerprint == samples.fingerprint and source.reads == reads


def test_widths(processor):
    """The width is the longest row rounded up to 8, never above max_length."""
    samples = processor.prepare(Toy(), "train")
    for i in range(len(samples)):
        length = int(samples.lengths[i])
        assert samples.batch(np.array([i]))["tokens"].shape[1] == min(-(-length // 8) * 8, 19)


@pytest.mark.parametrize("windows", [2, 3, None])
def test_windows_against_plain_loop(processor, windows):
    """A row is what transformers makes of each piece of a text as a text of its own, one after the other; short rows are as ever."""
    samples = processor.prepare(Toy(), "train")
    processor.windows = windows
    several = processor.prepare(Toy(), "train").subset(np.arange(len(samples)))
    texts = [processor.tokenizer(t, add_special_tokens=False).input_ids for t in Toy().get("train").items]
    rows = [[t for i in range(0, len(ids), 17) for t in (2, *ids[i : i + 17], 3)][: windows and 19 * windows] for ids in texts]
    batch = several.batch(np.arange(len(rows)))
    longest, whole = max(map(len, rows)), -(-max(map(len, rows)) // 19) * 19
    assert longest > 37 and several.lengths.tolist() == list(map(len, rows))
    assert batch["tokens"].shape[1] == min(-(-longest // 8) * 8, whole)
    for row, tokens, mask in zip(rows, batch["tokens"].tolist(), batch["mask"].tolist(), strict=True):
        assert tokens == row + [0] * (len(tokens) - len(row)) and mask == [i < len(row) for i in range(len(mask))]
    short = np.flatnonzero(several.lengths <= 19)
    assert len(short) > 5 and all(torch.equal(x, samples.batch(short)[k]) for k, x in several.batch(short).items())
    assert torch.equal(several.uncut().batch(short[:1])["tokens"], samples.uncut().batch(short[:1])["tokens"])


def test_texts_that_nothing_marks_are_cut_into_windows():
    """Without ids that start and end a text, windows are its tokens alone; an empty one has none."""
    samples = TextSamples(np.arange(1, 10, dtype=np.int32), np.array([0, 0]), np.array([9, 0]), None, "bare", (None, None, 0), 4, 0, 2)
    assert samples.lengths.tolist() == [8, 0]
    assert samples.batch(np.arange(2))["tokens"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [0] * 8]


def test_subset(processor):
    """A subset has the rows and labels chosen, and a fingerprint of its own."""
    samples = processor.prepare(Toy(), "train")
    part = samples.subset(np.array([9, 2, 4]))
    whole, some = samples.batch(np.array([2, 9])), part.batch(np.array([1, 0]))
    assert len(part) == 3 and torch.equal(whole["tokens"], some["tokens"]) and torch.equal(whole["label"], some["label"])
    assert part.fingerprint != samples.fingerprint


def reference_stream(processor: TextProcessor, texts) -> list[int]:
    stream: list[int] = []
    for text in texts:
        stream += [*processor.tokenizer(text, add_special_tokens=False).input_ids, processor.sep_id]
    return stream


def test_packed_against_plain_loop(processor):
    """Packed rows are the start token and consecutive pieces of all texts joined by the end token."""
    source = Toy()
    samples = processor.prepare(source, "unlabeled")
    assert samples.labels is None and samples.classes is None
    order = np.array([8, 1, 30, 2, 2, 17])
    for some, texts in ((samples, source.get("unlabeled").items), (samples.subset(order), None)):
        texts = texts or [source.get("unlabeled").items[i] for i in order]
        stream, packed = reference_stream(processor, texts), some.packed(12)
        assert len(packed) == len(stream) // 11
        tokens = packed.batch(np.arange(len(packed)))["tokens"]
        assert tokens.tolist() == [[2, *stream[11 * i : 11 * i + 11]] for i in range(len(packed))]
        part = packed.subset(np.array([3, 1]))
        assert torch.equal(part.batch(np.array([0, 1]))["tokens"], tokens[[3, 1]]) and len(part) == 2


def test_packed_of_many_texts(processor):
    """More texts than are written at a time, empty ones among them, give the same stream."""
    sizes = np.array([0, 3, 0, 2] * 600)
    starts = np.cumsum(sizes) - sizes
    tokens = np.arange(sizes.sum(), dtype=np.int32) + 10
    samples = TextSamples(tokens, starts, sizes, None, "many", (2, 3, 0), 19, 0)
    stream = [t for a, n in zip(starts, sizes, strict=True) for t in [*tokens[a : a + n].tolist(), 3]]
    packed = samples.packed(8)
    assert np.asarray(packed.stream).tolist() == stream
    assert samples.batch(np.array([0]))["tokens"].tolist() == [[2, 3, 0, 0, 0, 0, 0, 0]]


def test_corpus_shorter_than_a_row(processor):
    """Too little text for one row is an error that says how much there is."""
    samples = processor.prepare(Toy(rows=3), "unlabeled")
    with pytest.raises(UserError, match="less than one row of length 500"):
        samples.packed(500)
    with pytest.raises(UserError, match="length 1"):
        PackedSamples(np.arange(9), 1, 2, "x")


def test_cache(processor, caplog):
    """The second time nothing is read, and what was skipped is still said; another split is another entry."""
    source = Toy()
    first = processor.prepare(source, "train")
    reads = source.reads
    again = processor.prepare(Toy(), "train")
    assert source.reads == reads and again.fingerprint == first.fingerprint
    assert again.classes == ["no", "yes"] and again.skipped == 1
    assert "toy.csv, line 3" in caplog.text
    assert processor.prepare(source, "val").fingerprint != first.fingerprint
    other = Toy()
    other.val_fraction = 0.3
    assert len(processor.prepare(other, "train")) < len(first)


def test_fit_save_load(tmp_path):
    """A tokenizer is trained once per content and settings, and a saved processor comes back the same."""
    source = Toy()
    fitted = TextProcessor.fit(source, 120, 32, True)
    reads = source.reads
    assert TextProcessor.fit(source, 120, 16, True).digest == fitted.digest and source.reads == reads
    assert (fitted.cls_id, fitted.sep_id, fitted.pad_id, fitted.mask_id) == (2, 3, 0, 4)
    assert fitted.special_ids == [0, 1, 2, 3, 4] and fitted.vocab_size == len(fitted.tokenizer)
    fitted.save(tmp_path / "p")
    loaded = TextProcessor.load(tmp_path / "p")
    assert (loaded.max_length, loaded.windows) == (32, 1) and loaded.digest == fitted.digest
    assert loaded.special_ids == fitted.special_ids and loaded.mask_id == 4
    with pytest.raises(UserError, match="no text processor saved"):
        TextProcessor.load(tmp_path / "q")


def test_sample_of_much_text():
    """Of too much text, a seeded choice of about the size wanted, in order."""
    texts = [f"{i:010}" for i in range(1000)]
    some = some_texts(texts, 2000)
    assert 190 <= len(some) <= 200 and some == sorted(some) and some == some_texts(texts, 2000)
    assert some[-1] > texts[900]


def wrap(tokenizer, **special):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_continues_word_of_wordpiece(tokenizer):
    """Entries with ## continue a word."""
    vocab, result = tokenizer.get_vocab(), continues_word(tokenizer)
    assert len(result) == len(tokenizer)
    assert all(result[i] == token.startswith("##") for token, i in vocab.items())
    assert result.any() and not result[:5].any()


def test_continues_word_of_byte_level_bpe():
    """As in RoBERTa: entries without the mark of a space continue a word, special tokens do not."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<s>": 0, "</s>": 1, "<mask>": 2, "Ġthe": 3, "Ġfo": 4, "x": 5, "Ċ": 6}
    backend = Tokenizer(models.BPE(vocab, []))
    split = pre_tokenizers.Split(" ", "isolated")
    for pre in (pre_tokenizers.ByteLevel(), pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])):
        backend.pre_tokenizer = pre
        tokenizer = wrap(backend, bos_token="<s>", eos_token="</s>", mask_token="<mask>")
        assert np.flatnonzero(continues_word(tokenizer)).tolist() == [5]
        processor = TextProcessor(tokenizer, 8)
        assert (processor.cls_id, processor.sep_id, processor.pad_id, processor.mask_id) == (0, 1, 1, 2)


def test_continues_word_of_sentencepiece():
    """As in XLM-RoBERTa and Llama: entries without ▁ continue a word, set by either of two ways."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    entries = ["<unk>", "▁the", "▁fo", "x", "▁"]
    unigram = Tokenizer(models.Unigram([(t, -1.0) for t in entries], unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    assert np.flatnonzero(continues_word(wrap(unigram, unk_token="<unk>"))).tolist() == [3]
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(entries)}, [], unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    assert np.flatnonzero(continues_word(wrap(bpe, unk_token="<unk>"))).tolist() == [3]


def test_tokenizer_without_ends_is_refused():
    """A tokenizer with no token to end a text cannot serve an encoder."""
    from tokenizers import Tokenizer, models

    with pytest.raises(UserError, match="neither a sep nor an eos token"):
        TextProcessor(wrap(Tokenizer(models.WordLevel({"a": 0, "u": 1}, unk_token="u")), unk_token="u"), 8)


def test_imports_are_light():
    """The modules load without the libraries only some of their functions need."""
    code = (
        "import sys, sslt.data.sources.texts, sslt.data.sources.docs, sslt.data.prepare.text_processor; "
        "print([m for m in ('transformers', 'tokenizers', 'pyarrow', 'datasets', 'pandas') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


class Unanswered(Toy):
    """Texts in which places are to be found."""

    answer, classes = Tags, None  # type: ignore[assignment]

    def read(self, split):
        return Raw(self.texts)


@pytest.mark.parametrize(
    "word", ["cafe\u0301", "\u092e\u0947\u0902", "\u2764\ufe0f", "vie\u0323\u0302t", "\u05e9\u05c1\u05b8", "caf\u00e9"]
)
def test_a_place_has_the_marks_on_its_letters(word):
    """Accents, vowel signs and what makes a sign an emoji belong to the word, also where the tokenizer leaves them out."""
    source = Unanswered()
    source.texts = [f"{word} and {word}, {word}", ""]
    samples = TextProcessor(train_tokenizer(source.texts, 200, lowercase=True), 32).prepare(source, "train")
    assert "".join(source.texts[0][start:end] for start, end in samples.places.tolist()) == f"{word}and{word},{word}"
