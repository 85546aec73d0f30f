"""Protects the part of an encoder that sees words themselves: its numbers against scikit-learn's TF-IDF, and its way through a folder."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from sslt.data.bag_processor import BagProcessor
from sslt.encoders.bag import BagEncoder
from sslt.encoders.lexicon import BUCKETS, NONE, PARTS, TRIPLES, Lexicon, parts_of
from sslt.encoders.load import load_encoder

WORDS = ["", *(f"w{i}" for i in range(1, 12)), "", ""]  # by id; the last two are shared by unknown words
TEXTS = [[3, 7, 7, 1, 3], [12, 4], [5, 5, 5, 2, 1, 9], [3, 7, 2], [13, 13, 1]]
NEW = [[7, 7, 7, 3], [11, 10], [], [1, 9, 6, 3, 7]]


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows])


def learned(third: str, rows: list[list[int]]) -> Lexicon:
    """A lexicon of all terms of `rows`, with the identity as its table: its scores are the vectors."""
    made = Lexicon(len(WORDS), third, 1, parts_of(WORDS) if third == PARTS else None)
    terms, documents = made.counts(padded(rows)).term.unique(return_counts=True)
    made.learn(terms, ((1 + len(rows)) / (1 + documents)).log() + 1)
    made.outputs, made.table = len(terms), torch.eye(len(terms))
    return made


def reference(lengths: tuple[int, int]) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, tokenizer=lambda row: [str(i) for i in row], token_pattern=None, lowercase=False,
                           ngram_range=lengths)  # fmt: skip


def dots(x) -> np.ndarray:
    """What does not depend on the order of terms: products of all texts with all texts."""
    x = csr_matrix(x)
    return np.asarray((x @ x.T).todense())


@pytest.mark.parametrize(("third", "longest"), [(NONE, 2), (TRIPLES, 3)])
def test_vectors_are_those_of_scikit_learn(third, longest):
    made, other = learned(third, TEXTS), reference((1, longest)).fit(TEXTS)
    both = torch.cat([made(padded(TEXTS)), made(padded(NEW))])
    assert np.allclose(dots(both.numpy()), dots(other.transform([*TEXTS, *NEW])), atol=1e-5)
    assert not both[len(TEXTS) + 2].any()  # a text without words


def test_parts_of_words_are_a_family_of_their_own():
    """Counted once for every time that a word stands there; unknown words have none."""

    def parts(row: list[int]) -> list[str]:
        found = []
        for word in (WORDS[i] for i in row if WORDS[i]):
            found += sorted({f"<{word}>"[i : i + n] for n in (3, 4) for i in range(len(word) + 3 - n)})
        return found

    made = learned(PARTS, TEXTS)
    words = reference((1, 2)).fit(TEXTS)
    spelled = TfidfVectorizer(sublinear_tf=True, analyzer=parts).fit(TEXTS)
    expected = hstack([v.transform([*TEXTS, *NEW]) for v in (words, spelled)])
    assert np.allclose(dots(torch.cat([made(padded(TEXTS)), made(padded(NEW))]).numpy()), dots(expected), atol=1e-5)
    found, starts = parts_of(["", "ab"])
    assert starts.tolist() == [0, 0, 3] and sorted(found.tolist()) == sorted(zlib.crc32(p) % BUCKETS for p in (b"<ab", b"ab>", b"<ab>"))


def test_padding_and_neighbours_in_the_batch_do_not_matter():
    made = learned(TRIPLES, TEXTS)
    together = made(padded(NEW))
    for i, row in enumerate(NEW):
        assert torch.allclose(made(torch.tensor([row or [0]]))[0], together[i], atol=1e-6)


def test_an_encoder_keeps_its_lexicon_in_its_folder_and_forgets_it_for_another_task(tmp_path):
    torch.manual_seed(0)
    processor = BagProcessor({w: 1 for w in WORDS[1:12]}, 5, 2, 100)
    encoder = BagEncoder(processor, dim=4, pairs=16, pair_weight=1.0, dropout=0.0)
    plain = encoder({"tokens": padded(NEW)}).pooled
    lexicon = encoder.add_lexicon(PARTS, 3)
    terms = lexicon.counts(padded(TEXTS)).term.unique()
    lexicon.learn(terms, torch.rand(len(terms)) + 1)
    lexicon.table = torch.randn(len(terms), 3)
    with torch.no_grad():
        seen = encoder({"tokens": padded(NEW)}).pooled
        assert encoder.dim == 7 and seen.shape == (4, 7) and torch.equal(seen[:, :4], plain)
        encoder.save(tmp_path / "e")
        again = load_encoder(str(tmp_path / "e"))
        assert again.dim == 7 and torch.equal(again({"tokens": padded(NEW)}).pooled, seen)
        again.forget()
        assert again.dim == 4 and torch.equal(again({"tokens": padded(NEW)}).pooled, plain)
        again.save(tmp_path / "f")
        assert load_encoder(str(tmp_path / "f")).dim == 4
