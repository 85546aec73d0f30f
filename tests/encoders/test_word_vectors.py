"""Protects fresh transformers that start from another encoder's word vectors: what they begin to see in texts is what that one sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import working_in
from torch.nn import functional as F

from sslt.config import build, compose
from sslt.data.offered import Offered
from sslt.encoders.base import Encoder, evaluating
from sslt.encoders.load import build_encoder
from sslt.encoders.word_vectors import COMMON, start_words
from sslt.errors import UserError
from sslt.evaluation.features import encode

NARROW = ["encoder.config.hidden_size=64", "encoder.processor.vocab_size=3000"]
FAMILIES: dict[str, tuple[list[str], float]] = {  # settings, and how far likenesses are the bag's
    "bert_tiny": ([*NARROW, "encoder.config.intermediate_size=64"], 0.6),
    "modernbert_tiny": ([*NARROW, "encoder.config.intermediate_size=64"], 0.6),
    "gpt_tiny": ([*NARROW, "encoder.pooling=mean"], 0.4),  # of byte-level words, which bear case
    "t5_tiny": (["encoder.config.d_model=64", "encoder.processor.vocab_size=3000"], 0.35),
}


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory, cache):
    """A cache that is not the user's, for the fixtures below, too."""
    with working_in(tmp_path_factory.mktemp("words"), cache):
        yield


@pytest.fixture(scope="module")
def docs():
    return build(compose("pretrain", ["+task=crops"]).data)


@pytest.fixture(scope="module")
def bag(docs):
    """A bag that knows words of many dimensions, none of which means anything."""
    torch.manual_seed(0)
    return build_encoder(compose("pretrain", ["+task=crops", "encoder.pairs=0", "encoder.dim=32"]).encoder, docs).eval()


def fresh(name: str, docs) -> Encoder:
    torch.manual_seed(1)
    encoder = build_encoder(compose("pretrain", ["+task=crops", f"encoder={name}", *FAMILIES[name][0]]).encoder, docs).eval()
    encoder.processor.max_length, encoder.processor.windows = 128, 1
    return encoder


def features_by(bag: Encoder) -> Callable[[list[str]], torch.Tensor]:
    return lambda words: encode(bag, bag.processor.at_once(Offered("text", words)), torch.device("cpu"), 1000)


def likeness(encoder: Encoder, texts: list[str]) -> torch.Tensor:
    """Cosines of the centred features of each pair of texts."""
    batch = encoder.processor.at_once(Offered("text", texts)).batch(np.arange(len(texts)))
    with torch.inference_mode(), evaluating(encoder):
        x = encoder(encoder.inputs(batch)).pooled
    x = F.normalize(x - x.mean(0), dim=1)
    return (x @ x.T)[~torch.eye(len(texts), dtype=torch.bool)]


def agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.fixture(scope="module")
def texts(docs):
    """Openings that every encoder reads whole."""
    return [" ".join(text.split()[:40]) for text in islice(docs.get("train").items, 60)]


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_alike_as_the_bag_has_it(name, docs, bag, texts):
    """Which texts are near each other hardly hangs on the bag before, and mostly does after: through layers, norms and positions."""
    encoder = fresh(name, docs)
    theirs = likeness(bag, texts)
    before = agreement(likeness(encoder, texts), theirs)
    size = encoder.token_embeddings.weight.std().item()
    share = start_words(encoder, docs, features_by(bag))
    after = agreement(likeness(encoder, texts), theirs)
    assert share > 0.7
    assert before < 0.25 and after > FAMILIES[name][1], (before, after)
    assert encoder.token_embeddings.weight.std().item() == pytest.approx(size, rel=0.1)


def test_vectors_are_the_bags(tmp_path):
    """Each word a token: inner products of their vectors are those of the bag's unit vectors, each as long as the word's smooth inverse
    frequency over the 99th percentile of these, and what is left to length 1 in one direction that all share; reckoned word by word.
    """
    rng = np.random.default_rng(0)
    words = [a + b + c for a, b, c in zip("bcdfghjklmnp", "aeiouaeiouae", "zyxwvutsrqzy", strict=True)]
    shares = 0.7 ** np.arange(len(words))
    lines = [" ".join(rng.choice(words, 8, p=shares / shares.sum())) for _ in range(600)]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    of = [f"data.path={tmp_path / 'lines.txt'}", "data=text_lines"]
    source = build(compose("pretrain", ["+task=crops", *of]).data)
    cfg = compose("pretrain", ["+task=crops", *of, "encoder.dim=8", "encoder.pairs=0"])
    bag = build_encoder(cfg.encoder, source).eval()
    encoder = build_encoder(compose("pretrain", ["+task=mlm", *of, "encoder.config.hidden_size=32"]).encoder, source)
    tokens = [next(encoder.processor.encode([word]))[0] for word in words]
    assert all(len(ids) == 1 for ids in tokens)
    start_words(encoder, source, features_by(bag))

    counts = Counter(word for text in source.get("unlabeled").items for word in text.split())
    total = sum(counts.values())
    lengths = np.array([COMMON / (COMMON + counts[word] / total) for word in words])
    lengths = np.minimum(lengths / np.quantile(lengths, 0.99), 1)
    units = F.normalize(bag.words.weight.detach().double()[[bag.processor._ids[word] for word in words]], dim=1).numpy()
    rest = np.sqrt(1 - lengths**2)
    expected = (lengths[:, None] * units) @ (lengths[:, None] * units).T + np.outer(rest, rest)
    table = encoder.token_embeddings.weight.detach().double()
    found = F.normalize(table, dim=1)[[ids[0] for ids in tokens]].numpy()
    assert np.allclose(found @ found.T, expected, atol=1e-5)
    assert torch.allclose(table.sum(1), torch.zeros(len(table), dtype=torch.float64), atol=1e-5)


def test_unknown_tokens_differ(docs, bag):
    """Tokens of no word (marks, signs) have vectors of their own, and padding keeps the one it had."""
    encoder = fresh("bert_tiny", docs)
    padding = encoder.token_embeddings.weight[encoder.processor.pad_id].clone()
    start_words(encoder, docs, features_by(bag))
    table = F.normalize(encoder.token_embeddings.weight.detach(), dim=1)
    signs = [row[0] for row in next(encoder.processor.encode([".", ",", "(", ")"]))]
    cosines = table[signs] @ table[signs].T
    assert cosines.fill_diagonal_(0).max() < 0.9999
    assert torch.equal(encoder.token_embeddings.weight[encoder.processor.pad_id], padding)


def test_a_source_without_words(bag, docs, tmp_path):
    """Nothing to begin from is said, not guessed."""
    (tmp_path / "signs.txt").write_text("".join(f"{'-' * (i % 9 + 1)} . {'+' * (i % 7 + 1)}\n" for i in range(400)))
    source = build(compose("pretrain", ["+task=mlm", "data=text_lines", f"data.path={tmp_path / 'signs.txt'}"]).data)
    with pytest.raises(UserError, match="no word in its texts"):
        start_words(fresh("bert_tiny", docs), source, features_by(bag))
