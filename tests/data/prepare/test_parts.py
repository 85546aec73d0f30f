"""Protects samples of several parts: carried whole, joined to one row as transformers does, read part by part as by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from sslt.data import cache, copies
from sslt.data.answers import Class, Number
from sslt.data.base import Raw, Source
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.parts import PartSamples, below, one_row, part, part_names, prepared, shares
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.streams.joined import Joined
from sslt.data.views.base import Plain
from sslt.data.views.corruptions import DroppedWords
from sslt.encoders import inserted
from sslt.encoders.bag import BagEncoder
from sslt.encoders.lexicon import hashed_pairs
from sslt.encoders.text import TextEncoder

LENGTH = 16
WORDS = [f"w{i}" for i in range(60)]


class Sentences(Source):
    """Pairs of sentences of given numbers of words, in train alone."""

    modality, name, answer, parts = "text", "sentences", Number, ("a", "b")
    val_fraction, test_fraction, classes = 0.25, 0.25, None
    space = None

    def __init__(self, pairs):
        self.pairs, self.space = list(pairs), {"low": 0.0, "high": 5.0}

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return cache.digest("sentences", self.pairs)

    def read(self, split):
        return Raw(self.pairs, Number(np.linspace(0, 5, len(self.pairs)), self.space))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


@pytest.fixture
def tokenizer():
    return train_tokenizer([" ".join(WORDS) for _ in range(3)], vocab_size=200, lowercase=True)


def sentence(n: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def pairs_of(sizes) -> list[tuple[str, str]]:
    return [(sentence(a, 2 * i), sentence(b, 2 * i + 1)) for i, (a, b) in enumerate(sizes)]


def encoder_of(tokenizer, family="bert", windows=1, **more) -> TextEncoder:
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 24}
    config = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 24} if family == "distilbert" else tiny
    torch.manual_seed(0)
    return TextEncoder(TextProcessor(tokenizer, LENGTH, windows), family, config | more, "mean").eval()


SIZES = [(1, 1), (4, 3), (6, 7), (7, 6), (7, 7), (2, 30), (30, 2), (30, 30), (13, 12), (1, 12), (12, 1), (9, 10), (10, 9)]


def samples_of(p, pairs, **answers) -> PartSamples:
    """All of the pairs, whatever would be held out."""
    source = Sentences(pairs)
    source.val_fraction = source.test_fraction = 0.0
    return prepared(p, source, "train")


@pytest.mark.parametrize("marks", [1, 2])
def test_one_row_is_what_the_tokenizer_makes_of_a_pair(tokenizer, marks):
    """Marks, ids, segments and truncation of the longer part are those of transformers; two ends between, where RoBERTa's kind has them."""
    if marks == 2:
        cls, sep = tokenizer.cls_token, tokenizer.sep_token
        names = [(cls, tokenizer.cls_token_id), (sep, tokenizer.sep_token_id)]
        pair = f"{cls} $A {sep} {sep} $B:1 {sep}:1"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=names)
    pairs = pairs_of(SIZES)
    p = TextProcessor(tokenizer, LENGTH)
    batch = samples_of(p, pairs).batch(np.arange(len(pairs)))
    rows = one_row([part(batch, n) for n in part_names(batch)], p)
    assert p.marks_between == marks and rows["tokens"].shape[1] == LENGTH
    for i, pair in enumerate(pairs):
        expected = tokenizer(*pair, truncation="longest_first", max_length=LENGTH, return_token_type_ids=True)
        n = len(expected["input_ids"])
        assert rows["tokens"][i, :n].tolist() == expected["input_ids"], SIZES[i]
        assert rows["mask"][i].sum() == n and (rows["tokens"][i, n:] == p.pad_id).all()
        if marks == 1:
            assert rows["segments"][i, :n].tolist() == expected["token_type_ids"]


def test_shares_are_dealt_token_by_token():
    """Against the loop that deals one token to each part that has more, round by round, the longest first; of two and three parts."""
    rng = np.random.default_rng(0)
    for k in (2, 3):
        sizes = rng.integers(0, 12, (200, k))
        for room in (3, 7, 12, 40):
            expected = []
            for row in sizes.tolist():
                kept, left = [0] * k, room
                while left and kept != row:
                    for i in sorted(range(k), key=lambda i: (-row[i], -i)):
                        if left and kept[i] < row[i]:
                            kept[i], left = kept[i] + 1, left - 1
                expected.append(kept)
            assert shares(torch.from_numpy(sizes), room).tolist() == expected


def test_a_batch_has_every_part_and_the_answers_once(tokenizer):
    """Names after the part, in its order; each part as it is by itself; rows, lengths and padding go with it through subset and join."""
    pairs, p = pairs_of(SIZES), TextProcessor(tokenizer, LENGTH)
    samples = samples_of(p, pairs)
    batch = samples.batch(np.array([5, 0]))
    assert set(batch) == {"a.tokens", "a.mask", "b.tokens", "b.mask", "index", "number"} and part_names(batch) == ["a", "b"]
    assert batch["index"].tolist() == [5, 0] and batch["number"].tolist() == pytest.approx([5 * 5 / 12, 0])
    for i, name in enumerate("ab"):
        expected = tokenizer(pairs[5][i], truncation=True, max_length=LENGTH)["input_ids"]
        own = part(batch, name)
        assert own["tokens"][0][own["mask"][0]].tolist() == expected
    assert samples.lengths.tolist() == [min(a, 14) + min(b, 14) + 4 for a, b in SIZES]
    few = samples.subset(np.array([5, 0]))
    assert len(few) == 2 and torch.equal(few.batch(np.array([1, 0]))["a.tokens"], samples.batch(np.array([0, 5]))["a.tokens"])
    assert few.fingerprint != samples.fingerprint and few.answers.values.tolist() == pytest.approx(batch["number"].tolist())
    joined = Joined([samples, few]).batch(np.array([14, 1, 13]))
    assert joined["number"].tolist() == [0, pytest.approx(5 / 12), pytest.approx(25 / 12)]
    assert (joined["b.tokens"][~joined["b.mask"]] == p.pad_id).all()
    assert samples.uncut().batch(np.array([5]))["b.mask"].sum() == 32


def test_windows_of_parts_are_closed_up_in_a_row(tokenizer):
    """Parts of several windows have marks inside, which a joined row has not; parts read by themselves keep their windows."""
    pairs = pairs_of([(40, 2), (3, 40)])
    rows = {}
    for windows in (1, None):
        p = TextProcessor(tokenizer, LENGTH, windows)
        batch = samples_of(p, pairs).batch(np.arange(2))
        rows[windows] = one_row([part(batch, n) for n in "ab"], p)["tokens"]
    assert torch.equal(rows[1], rows[None]) and batch["a.tokens"].shape[1] > LENGTH


def test_segments_are_for_models_that_know_them(tokenizer):
    """BERT reads the second sentence as its second segment, DistilBERT takes none, and a model of one kind of segment gets none."""
    pairs = pairs_of(SIZES)
    bert = encoder_of(tokenizer)
    batch = samples_of(bert.processor, pairs).batch(np.arange(len(pairs)))
    inputs = bert.inputs(batch)
    tokens = bert.model(input_ids=inputs["tokens"], attention_mask=inputs["mask"].long(), token_type_ids=inputs["segments"])[0]
    assert torch.allclose(bert(inputs).tokens, tokens, atol=1e-6)
    assert not torch.allclose(bert({k: inputs[k] for k in ("tokens", "mask")}).tokens, tokens, atol=1e-3)
    views = Plain(2)(batch, bert)["views"]
    assert views["segments"].shape == (2, *inputs["segments"].shape)
    for other in (encoder_of(tokenizer, "distilbert"), encoder_of(tokenizer, type_vocab_size=1)):
        found = other.inputs(batch)
        assert set(found) == {"tokens", "mask"} and torch.isfinite(other(found).pooled).all()
        assert torch.equal(found["tokens"], inputs["tokens"])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_come_before_both_segments(tokenizer, kind):
    """A prompt or a prefix leaves segments where they are: they change what is read as without one."""
    encoder = encoder_of(tokenizer)
    batch = samples_of(encoder.processor, pairs_of(SIZES)).batch(np.arange(5))
    inserted.inject(encoder, {"kind": kind, "length": 3})
    inputs = encoder.eval().inputs(batch)
    other = {**inputs, "segments": torch.zeros_like(inputs["segments"])}
    plain = {k: inputs[k] for k in ("tokens", "mask")}
    assert not torch.allclose(encoder(inputs).pooled, encoder(other).pooled, atol=1e-3)
    assert torch.allclose(encoder(plain).pooled, encoder(other).pooled, atol=1e-6)


def test_a_bag_has_the_words_of_both_and_no_pair_between():
    """One bag of both parts: words add up, and the last word of one and the first of the other are no neighbours."""
    p = BagProcessor({word: 1 for word in WORDS}, 10, 8, 100)
    encoder = BagEncoder(p, 8, 64, 1.0, 0.0)
    batch = samples_of(p, [("w1 w2", "w3 w4 w5"), ("w7 w8 w9 w10 w11 w12 w13 w14", "w8 w9")]).batch(np.arange(2))
    summed = torch.zeros(2, 8)
    for name in "ab":  # each by itself, before it is scaled
        tokens = part(batch, name)["tokens"]
        for row, total in zip(tokens, summed, strict=True):
            ids = row[row > 0]
            total += (encoder.words.weight[ids] * encoder.rarity[ids, None]).sum(0).detach()
            total += encoder.pairs.weight[hashed_pairs(ids[:-1], ids[1:], 64)].sum(0).detach()
    expected = torch.nn.functional.rms_norm(summed, (8,), eps=1e-12)
    assert torch.allclose(encoder(encoder.inputs(batch)).pooled, expected, atol=1e-5)


def test_parts_below_each_other_are_read_as_alone(tokenizer):
    """One forward of both parts, whatever their widths, is the two forwards, in windows too."""
    for windows in (1, None):
        encoder = encoder_of(tokenizer, windows=windows)
        batch = samples_of(encoder.processor, pairs_of([(3, 40), (1, 5), (2, 2)])).batch(np.arange(3))
        made = [encoder.inputs(part(batch, n)) for n in "ab"]
        together = encoder(below(made, encoder.processor.pad_id)).pooled
        assert torch.allclose(together, torch.cat([encoder(m).pooled for m in made]), atol=1e-5)


def test_unlabelled_are_single_sentences_each_once():
    """What pretraining and a tokenizer see: every sentence of train, none of what is held out, none twice."""
    source = Sentences([("a one", "b one"), ("a one", "b two")] + [(f"a {i}", f"b {i}") for i in range(30)])
    train = source.get("train").items
    texts = source.get("unlabeled").items
    assert list(texts) == list(dict.fromkeys(t for pair in train for t in pair)) and len(set(texts)) == len(texts)
    p = BagProcessor({"a": 1, "b": 1}, 10, 8, 100)
    samples = p.prepare(source, "unlabeled")
    assert len(samples) == len(texts) and samples.answers is None and "tokens" in samples.batch(np.arange(2))
    held = {pair for split in ("val", "test") for pair in source.get(split).items}
    assert len(held) + len(set(train)) == 32


def test_copies_are_pairs_that_are_alike_in_both_parts():
    """(a, b) again is a copy, (a, c) is none, and neither is the same text cut elsewhere; copies stay in one split."""
    found = copies.contents_of([("x", "yz"), ("xy", "z"), ("x", "yz"), ("x", "y"), ("yz", "x")])
    assert copies.first_of(found).tolist() == [0, 1, 0, 3, 4]
    source = Sentences([(f"a {i % 20}", f"b {i % 20}") for i in range(60)])
    source.read = lambda split: Raw(source.pairs, Number(np.arange(60.0) // 20, source.space))
    parts = [set(source.get(split).items) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 20 == len(set.union(*parts))


def test_classes_of_pairs_and_corruption_of_every_part():
    """Answers of any kind go with the pair; missing words are missing in each part."""
    source = Sentences([(f"a w{i}", f"b w{i}") for i in range(8)])
    source.answer, source.val_fraction, source.test_fraction = Class, 0.0, 0.0
    source.space = {"classes": ["x", "y"]}
    source.read = lambda split: Raw(source.pairs, Class(np.arange(8) % 2, source.space))
    p = BagProcessor({f"w{i}": 1 for i in range(8)} | {"a": 1, "b": 1}, 10, 8, 100)
    batch = p.prepare(source, "train").batch(np.arange(8))
    assert batch["label"].tolist() == [0, 1] * 4
    worse = DroppedWords(5)(batch, torch.Generator().manual_seed(0))
    for name in ("a.tokens", "b.tokens"):
        assert (worse[name] == 0).sum() > (batch[name] == 0).sum()
