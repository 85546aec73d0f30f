"""Protects texts that are kept as shards: the same batches as in one array, read one by one, a preparation that goes on, packed rows."""

from __future__ import annotations

import os
import random
import tracemalloc

import numpy as np
import pytest
import torch

from sslt.data import cache, sharding
from sslt.data.prepare import text_shards
from sslt.data.prepare.bag_processor import BagProcessor
from sslt.data.prepare.text_processor import TextProcessor, some_of_stream
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.sources.docs import iter_documents, split_documents
from sslt.data.sources.running_text import TextFiles, TextLines
from sslt.data.sources.texts import TextTable
from sslt.data.streams.streams import Stream
from sslt.errors import UserError

SHARDS = {"from_bytes": 5000, "shard_bytes": 4 * 15 * 40, "keep_bytes": 1e9}
RNG = random.Random(0)
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "many", "birds", "fly", "over", "old", "houses", "in", "town", "at", "night"]
LINES = [" ".join(RNG.choices(WORDS, k=RNG.randint(2, 25))) for _ in range(500)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(cache, "_checked", set())
    monkeypatch.setattr(sharding, "_limits", None)


@pytest.fixture
def lines(tmp_path) -> TextLines:
    (tmp_path / "some.txt").write_text("\n".join(LINES) + "\n")
    return TextLines(str(tmp_path / "some.txt"))


@pytest.fixture
def processor(lines) -> TextProcessor:
    return TextProcessor.fit(lines, 200, 16, True)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name].numpy(), b[name].numpy())


def test_the_same_batches_as_in_one_array(lines, processor):
    """Any rows, whole and cut, their lengths, part of them, and all in memory; only what has no answers becomes shards."""
    plain = processor.prepare(lines, "unlabeled")
    sharding.set_limits(SHARDS)
    many = processor.prepare(lines, "unlabeled")
    assert isinstance(plain, TextSamples) and isinstance(many, text_shards.ShardedTexts)
    assert len(many) == 500 and len(many.shards) > 6
    index = np.random.default_rng(0).permutation(500)
    for one, other in ((plain, many), (plain.uncut(), many.uncut()), (plain.subset(index[:99]), many.subset(index[:99]))):
        rows = np.random.default_rng(1).integers(0, len(one), 40)
        equal(one.batch(rows), other.batch(rows))
        np.testing.assert_array_equal(one.lengths[rows], other.lengths_of(rows))
    equal(many.subset(index[:9]).held().batch(np.arange(9)), plain.subset(index[:9]).batch(np.arange(9)))
    stream = Stream(many, 20, seed=0, drop_last=False)
    seen = np.concatenate([stream.at(i)["index"].numpy() for i in range(len(stream))])
    assert sorted(seen.tolist()) == list(range(500))


def test_subwords_of_a_bag_are_those_of_one_array(lines):
    """Of rows in any order, of a part of them, and of all; without subwords where nobody has asked for them."""
    bag = BagProcessor.fit(lines, 5, 7, 50)
    sharding.set_limits(SHARDS)
    assert "subwords" not in bag.prepare(lines, "unlabeled").batch(np.arange(9))
    bag.spell()
    many = bag.prepare(lines, "unlabeled")
    sharding.set_limits(None)
    plain, rows = bag.prepare(lines, "unlabeled"), np.random.default_rng(0).permutation(500)
    assert isinstance(many, text_shards.ShardedTexts) and isinstance(plain, TextSamples) and (plain.batch(rows)["subwords"] >= 0).any()
    equal(plain.batch(rows), many.batch(rows))
    equal(plain.subset(rows[:50]).batch(np.arange(50)), many.subset(rows[:50]).held().batch(np.arange(50)))
    many.fetch([0])


@pytest.mark.parametrize("length", [16, 33])
def test_packed_rows_are_those_of_one_array(lines, processor, length):
    """Over borders of shards, the mark of the end after each text."""
    plain = processor.prepare(lines, "unlabeled").packed(length)
    sharding.set_limits(SHARDS)
    many = processor.prepare(lines, "unlabeled").packed(length)
    assert len(many) == len(plain) and many.shards is not None
    rows = np.random.default_rng(0).permutation(len(plain))
    equal(plain.batch(rows), many.batch(rows))
    equal(plain.subset(rows[:9]).batch(np.arange(9)), many.subset(rows[:9]).held().batch(np.arange(9)))


def test_a_killed_preparation_tokenizes_only_what_is_missing(lines, processor):
    """Killed at the fourth shard: what is tokenized then is the first texts, which say how large a shard is, and the rest."""
    sharding.set_limits(SHARDS)
    encode, tokenized = processor.encode, []

    def counted(texts):
        tokenized.append(len(texts))
        if len(tokenized) == 5:
            raise KeyboardInterrupt
        return encode(texts)

    processor.encode = counted
    with pytest.raises(KeyboardInterrupt):
        processor.prepare(lines, "unlabeled")
    first, rows = tokenized[0], tokenized[1]
    tokenized.clear()
    tokenized += [0] * 5
    many = processor.prepare(lines, "unlabeled")
    assert first == 500 and tokenized[5:] == [500, *[rows] * ((500 - 3 * rows) // rows), (500 - 3 * rows) % rows]
    assert len(many) == 500


def test_sources_give_their_texts_one_by_one(tmp_path):
    """Lines, tables and running text: what `stream` gives is what `read` gives, left-out rows among it."""
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(f'"{line}, so"' for line in LINES) + '\n""\n')
    (tmp_path / "t.jsonl").write_text('{"text": "one"}\nbroken\n{"text": ""}\n{"text": "two\u2028three"}\n')
    (tmp_path / "odd.txt").write_text("a\x0bb\u2028c\n\nd\r\ne")
    told = {"text": None, "label": None, "sep": None, "header": None, "answer": "class", "separator": None, "on_error": "skip"}
    fractions = {"val_fraction": 0.1, "test_fraction": 0.2}
    for source in (
        TextTable(str(tmp_path / "t.csv"), **told, **fractions),
        TextTable(str(tmp_path / "t.jsonl"), **told, **fractions),
        TextLines(str(tmp_path / "odd.txt")),
        TextFiles(str(tmp_path / "*.txt"), "skip"),
    ):
        skipped: list[str] = []
        raw = source.read("unlabeled")
        assert list(source.stream("unlabeled", skipped)) == list(raw.items) and skipped == raw.skipped
        assert source.text_bytes("unlabeled") > 0
    with pytest.raises(UserError, match="line 2"):
        list(TextTable(str(tmp_path / "t.jsonl"), **{**told, "on_error": "fail"}, **fractions).stream("unlabeled", []))


def test_documents_one_by_one_are_those_of_the_whole_text():
    """Paragraphs, long ones, spaces around blank lines, short rests: `iter_documents` cuts as `split_documents` does."""
    rng = random.Random(0)
    for _ in range(300):
        parts = []
        for _ in range(rng.randint(0, 12)):
            parts.append(rng.choice(["", " ", "  x ", "word " * rng.randint(1, 60), "\t", "line\n" * rng.randint(1, 50), "y" * 300]))
        text = rng.choice(["\n", "\n\n", "\n \n\n"]).join(parts)
        lines = [line + "\n" for line in text.split("\n")]
        lines[-1] = lines[-1][:-1]
        assert list(iter_documents(lines, 100)) == split_documents(text, 100), repr(text)


def test_a_tokenizer_of_a_sample(lines):
    """Of a stream about as many characters as asked for are taken, over all of it, the same each time; never twice as many."""
    texts = [f"{i:06} some text" for i in range(20_000)]
    taken = some_of_stream(iter(texts), 16 * 20_000, 30_000)
    assert 25_000 < sum(map(len, taken)) < 35_000 and taken == some_of_stream(iter(texts), 16 * 20_000, 30_000)
    assert int(taken[0][:6]) < 200 and int(taken[-1][:6]) > 19_800
    assert sum(map(len, some_of_stream(iter(texts), 1, 30_000))) <= 60_000
    assert some_of_stream(iter(texts), 16 * 20_000, 10**7) == texts


def test_preparation_holds_a_shard_and_not_the_set(tmp_path, processor):
    """Counted: 60,000 texts take as much of Python's and NumPy's memory while they are tokenized as 15,000 do."""
    peaks = []
    for repeats in (10, 30, 120):  # the first is for what is allocated once
        path = tmp_path / f"{repeats}.txt"
        with path.open("w") as file:
            for _ in range(repeats):
                file.writelines(f"{line}\n" for line in LINES)
        os.utime(path, (0, 1e9))  # what is new is read again whenever its digest is asked for
        source = TextLines(str(path))
        source.fingerprint()
        sharding.set_limits({"from_bytes": 1e5, "shard_bytes": 60_000, "keep_bytes": 1e9})
        tracemalloc.start()
        assert len(processor.prepare(source, "unlabeled")) == 500 * repeats
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1]
