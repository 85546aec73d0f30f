"""Protects the part of an encoder that sees words themselves: its numbers against scikit-learn's TF-IDF, and another of its shape."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer

from sslt.data.prepare.bag_processor import BagProcessor, subwords_of
from sslt.encoders.bag import BagEncoder
from sslt.encoders.lexicon import BUCKETS, NONE, PARTS, SPELLED, TRIPLES, Lexicon, parts_of
from sslt.encoders.text import TextEncoder

WORDS = ["", *(f"w{i}" for i in range(1, 12)), "", ""]  # by id; the last two are shared by unknown words
TEXTS = [[3, 7, 7, 1, 3], [12, 4], [5, 5, 5, 2, 1, 9], [3, 7, 2], [13, 13, 1]]
NEW = [[7, 7, 7, 3], [11, 10], [], [1, 9, 6, 3, 7]]


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows])


def learned(third: str, rows: list[list[int]]) -> Lexicon:
    """A lexicon of all terms of `rows`, with the identity as its table: its scores are the vectors."""
    made = Lexicon(len(WORDS), third, 1, parts_of(WORDS) if third == SPELLED else None)
    terms, documents = made.counts(padded(rows)).term.unique(return_counts=True)
    made.learn(terms, ((1 + len(rows)) / (1 + documents)).log() + 1)
    made.outputs, made.table, made.bias = len(terms), torch.eye(len(terms)), torch.zeros(len(terms))
    return made


def scores(made: Lexicon, tokens: torch.Tensor) -> torch.Tensor:
    return made(SimpleNamespace(word_ids=lambda inputs: inputs["tokens"]), {"tokens": tokens})


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
    both = torch.cat([scores(made, padded(TEXTS)), scores(made, padded(NEW))])
    assert np.allclose(dots(both.numpy()), dots(other.transform([*TEXTS, *NEW])), atol=1e-5)
    assert not both[len(TEXTS) + 2].any()  # a text without words


def test_parts_of_words_are_a_family_of_their_own():
    """Counted once for every time that a word stands there; ids that unknown words share have none."""

    def parts(row: list[int]) -> list[str]:
        found = []
        for word in (WORDS[i] for i in row if WORDS[i]):
            found += sorted({f"<{word}>"[i : i + n] for n in (3, 4) for i in range(len(word) + 3 - n)})
        return found

    made = learned(SPELLED, TEXTS)
    words = reference((1, 2)).fit(TEXTS)
    spelled = TfidfVectorizer(sublinear_tf=True, analyzer=parts).fit(TEXTS)
    expected = hstack([v.transform([*TEXTS, *NEW]) for v in (words, spelled)])
    assert np.allclose(dots(torch.cat([scores(made, padded(TEXTS)), scores(made, padded(NEW))]).numpy()), dots(expected), atol=1e-5)
    found, starts = parts_of(["", "ab"])
    assert starts.tolist() == [0, 0, 3] and sorted(found.tolist()) == sorted(zlib.crc32(p) % BUCKETS for p in (b"<ab", b"ab>", b"<ab>"))


def test_unknown_words_count_by_their_parts():
    """As those of known words do: a text that says w1 in subwords has what one with the word w1 has, but for the word itself."""
    made = learned(SPELLED, TEXTS)
    known = made.counts(torch.tensor([[1, 3, 1]]))
    unknown = made.counts(torch.tensor([[12, 3, 12]]), torch.tensor([[*subwords_of("w1") * 2, -1, -1]]))
    both = [dict(zip(found.term.tolist(), found.weight.tolist(), strict=True)) for found in (known, unknown)]
    parts = [{term: n for term, n in found.items() if term >= made.words + BUCKETS} for found in both]
    assert parts[0] == parts[1] and max(parts[0].values()) >= 2
    rows = made.counts(torch.tensor([[12], [3]]), torch.tensor([[-1] * 3, subwords_of("w2")]))
    assert made.words + BUCKETS + subwords_of("w2")[0] in rows.term[rows.text == 1]  # of its own text
    assert not (rows.term[rows.text == 0] >= made.words + BUCKETS).any()


def test_heads_of_before_give_unknown_words_no_parts():
    made, given = learned(SPELLED, TEXTS), (torch.tensor([[12]]), torch.tensor([subwords_of("w1")]))
    made.third = PARTS
    assert made.counts(*given).term.tolist() == [12]


def test_padding_and_neighbours_in_the_batch_do_not_matter():
    made = learned(TRIPLES, TEXTS)
    together = scores(made, padded(NEW))
    for i, row in enumerate(NEW):
        assert torch.allclose(scores(made, torch.tensor([row or [0]]))[0], together[i], atol=1e-6)


def test_scores_are_scaled_with_their_bias():
    made = learned(NONE, TEXTS)
    made.bias = torch.randn(made.outputs)
    before = scores(made, padded(NEW))
    made.scale(3.0)
    assert torch.allclose(scores(made, padded(NEW)), 3 * before, atol=1e-6)


def test_the_same_shape_comes_of_its_settings_and_an_encoder():
    """With the parts of this encoder's words, which are not kept."""
    encoder = BagEncoder(BagProcessor({w: 1 for w in WORDS[1:12]}, 5, 2, 100), dim=4, pairs=16, pair_weight=1.0, dropout=0.0)
    made = Lexicon.beside(encoder, {"third": SPELLED, "outputs": 3})
    terms = made.counts(padded(TEXTS)).term.unique()
    made.learn(terms, torch.rand(len(terms)) + 1)
    made.table, made.bias = torch.randn(len(terms), 3), torch.randn(3)
    again = Lexicon.beside(encoder, made.settings)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(encoder, {"tokens": padded(NEW)}), made(encoder, {"tokens": padded(NEW)}))
    assert made(encoder, {"tokens": padded(NEW)}).shape == (4, 3) and len(again.parts) > 0


def test_a_transformers_words_are_its_pieces_without_marks_and_padding():
    class Reader(TextEncoder):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.processor = SimpleNamespace(special_ids=[0, 2, 3], vocab_size=9)

    found = Reader().word_ids({"tokens": torch.tensor([[2, 5, 8, 3, 0]]), "mask": torch.tensor([[1, 1, 1, 1, 0]]).bool()})
    assert found.tolist() == [[0, 6, 9, 0, 0]] and len(Reader().word_list()) == 10
