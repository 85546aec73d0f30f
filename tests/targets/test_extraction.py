"""Protects the linear model that picks sentences: its features against scikit-learn's, what it learns, how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from sslt.targets.extraction import BUCKETS, ENDS, SentencePicker, _Parts
from sslt.targets.metrics import written

pytest.importorskip("rouge_score")
CUES = ("We propose", "We show")
RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(60)]


def sentence(start: str = "The") -> str:
    return f"{start} {' '.join(RNG.choice(WORDS, 6))}."


def documents(n: int, cues: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Texts in which sentences with cues stand anywhere; these are the summary."""
    texts, summaries = [], []
    for _ in range(n):
        rows = [sentence() for _ in range(5)]
        for place, cue in zip(sorted(RNG.permutation(5)[: len(cues)]), cues, strict=True):
            rows[place] = sentence(cue)
        texts.append(" ".join(rows))
        summaries.append([" ".join(s for s in rows if s.startswith("We"))])
    return texts, summaries


@pytest.mark.parametrize("cues", [CUES[:1], CUES])
def test_what_a_sentence_says_tells_that_it_is_a_summary(here, cues):
    """As many of them as summaries have, in the order of the text; without validation, too."""
    train, val, (new, wanted) = documents(150, cues), documents(40, cues), documents(30, cues)
    for held in (val, None):
        picker = SentencePicker.solve(*train, None, held)
        assert int(picker.n) == len(cues) and picker.write(new) == [row[0] for row in wanted]
    assert picker.write(["", "One."]) == ["", "One."]


def test_where_it_stands_tells_it_too(here):
    texts = [" ".join(sentence() for _ in range(6)) for _ in range(120)]
    for place in (1, -1):
        picker = SentencePicker.solve(texts[:80], [[written.sentences(t)[place]] for t in texts[:80]], None, None)
        assert picker.write(texts[80:]) == [written.sentences(t)[place] for t in texts[80:]]


def test_features_are_those_of_scikit_learn():
    """TF-IDF of words and pairs that two sentences have, by products, in which their order plays no part; places, length, centrality."""
    parts = _Parts.of([*documents(12, CUES)[0], "", "alone"])
    picker = SentencePicker()
    picker._weigh_terms(parts)
    ours = picker._features(parts)
    reference = TfidfVectorizer(
        tokenizer=written.tokens, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True, min_df=2
    )
    theirs = reference.fit_transform(parts.flat).toarray()
    terms, rest = ours[:, :BUCKETS].toarray(), ours[:, BUCKETS:].toarray()
    assert np.allclose(terms @ terms.T, theirs @ theirs.T, atol=1e-5)
    row = 0
    for size in parts.sizes:
        mean = theirs[row : row + size].sum(0)
        for i in range(size):
            start, end = [i == k for k in range(ENDS)], [size - 1 - i == k for k in range(ENDS)]
            cosine = theirs[row] @ mean / max(np.linalg.norm(theirs[row - i : row - i + size].sum(0)), 1e-9)
            assert rest[row, : 2 * ENDS].tolist() == [*start, *end]
            assert rest[row, 2 * ENDS] == pytest.approx(i / max(size - 1, 1))
            assert rest[row, 2 * ENDS + 1] == pytest.approx(np.log1p(len(written.tokens(parts.flat[row]))))
            assert rest[row, 2 * ENDS + 2] == pytest.approx(cosine, abs=1e-5)
            row += 1
    assert row == len(parts.flat)


def test_it_is_what_its_state_says(here):
    texts, summaries = documents(60, CUES)
    picker, again = SentencePicker.solve(texts, summaries, None, None), SentencePicker.beside(None, {})
    again.load_state_dict(picker.state_dict())
    assert again.write(texts) == picker.write(texts) and torch.equal(again.n, picker.n)


def test_of_the_same_texts_it_is_solved_once(here, monkeypatch):
    """Of other texts, summaries or validation anew."""
    monkeypatch.setenv("SSLT_CACHE", str(here / "cache"))
    solved = []
    solve = SentencePicker._solved
    monkeypatch.setattr(SentencePicker, "_solved", lambda *args: solved.append(1) or solve(*args))
    (texts, summaries), val = documents(40, CUES), documents(20, CUES)
    first, again = SentencePicker.solve(texts, summaries, None, val), SentencePicker.solve(texts, summaries, None, val)
    assert len(solved) == 1 and all(torch.equal(again.state_dict()[k], v) for k, v in first.state_dict().items())
    SentencePicker.solve(texts[::-1], summaries[::-1], None, val)
    SentencePicker.solve(texts, summaries[::-1], None, val)
    SentencePicker.solve(texts, summaries, "zh", val)
    SentencePicker.solve(texts, summaries, None, None)
    SentencePicker.solve(texts, summaries, None, (val[0], val[1][::-1]))
    assert len(solved) == 6


def test_of_many_sentences_some_are_learned_from(monkeypatch):
    """Of whole texts, at least one, drawn alike every time."""
    seen: list[int] = []
    rouge = written.rouge
    monkeypatch.setattr(written, "rouge", lambda texts, *rest: seen.append(len(texts)) or rouge(texts, *rest))
    texts, summaries = documents(30, CUES)
    for most, taught in ((52, 50), (3, 5)):
        monkeypatch.setattr("sslt.targets.extraction.TAUGHT", most)
        seen.clear()
        SentencePicker._solved(texts, summaries, None, None)
        assert seen[0] == taught
