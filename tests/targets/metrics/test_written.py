"""Protects metrics of written texts: the libraries' own numbers, values counted by hand, references that do not fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sslt.errors import UserError
from sslt.targets.metrics import written

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

REFERENCES = [
    ["The cat sat on the mat.", "A cat was sitting on a mat."],
    ["There is a dog in the garden. It barks."],
    ["He reads, slowly, a book about trees."],
    ["Two young men are outside near many bushes."],
]
PREDICTIONS = ["The cat sits on a mat.", "It barks. There is a dog in the garden.", "", "Two young men are outside near many bushes."]


def test_rouge_is_the_librarys(monkeypatch):
    """Of several references the best, each measure for itself; sentences by newlines for Lsum; stemmed."""
    from rouge_score import rouge_scorer

    ours = written.rouge(PREDICTIONS, REFERENCES, "en")
    scorer = rouge_scorer.RougeScorer(list(written.ROUGES), use_stemmer=True)
    lined = lambda text: "\n".join(text.replace(". ", ".\n").split("\n"))  # noqa: E731
    for row, (text, several) in enumerate(zip(PREDICTIONS, REFERENCES, strict=True)):
        each = [scorer.score(lined(r), lined(text)) for r in several]
        assert ours[row] == pytest.approx([max(s[k].fmeasure for s in each) for k in written.ROUGES])
    assert ours[1, 3] == 1 > ours[1, 2]  # sentences in another order: each is found again as a whole, but not as one sequence
    assert ours[0, 0] == pytest.approx(10 / 13)  # by hand: cat, sit (stemmed), on, a, mat of 6 and 7 words


def test_rouge_by_hand():
    """ROUGE-1 counts words with repetition, ROUGE-2 pairs, ROUGE-L the longest common sequence."""
    found = written.rouge(["the the cat"], [["the cat the dog"]], "en")[0]
    assert found[:3] == pytest.approx([2 * 3 / 7, 2 * 1 / 5, 2 * 2 / 7])


def test_rouge_reads_other_scripts():
    """Chinese by characters, German with its letters; the library's own tokenizer finds nothing, or halves of words."""
    zh = written.rouge(["我喜欢猫"], [["我不喜欢狗"]], None)[0]
    assert zh[0] == pytest.approx(2 * 3 / 9)
    assert written.rouge(["Übung macht müde"], [["übung schläfert"]], "de")[0, 0] == pytest.approx(2 / 5)
    assert written.rouge(["Größe"], [["Grüße"]], "de")[0, 0] == 0  # by letters a to z both are "gr e"
    assert "tok:unicode" in written.rouge_signature([["我"]], None) and "porter" in written.rouge_signature(REFERENCES, None)
    assert written.rouge_signature(REFERENCES, "en").startswith("nrefs:up to 2, best|")


def test_bleu_is_sacrebleus():
    """Of a corpus, with its signature; from the rows' counts the same; several references of different number."""
    import sacrebleu

    value, signature = written.bleu(PREDICTIONS, REFERENCES, "en")
    columns = [[r[0] for r in REFERENCES], [r[1] if len(r) > 1 else None for r in REFERENCES]]
    assert value == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, columns).score / 100) and 0 < value < 1
    assert "case:mixed" in signature and "tok:13a" in signature and f"version:{sacrebleu.__version__}" in signature
    assert written.bleu_of(written.bleu_counts(PREDICTIONS, REFERENCES, "en")) == pytest.approx(value)
    assert written.bleu_of(written.bleu_counts([""], [["a b c d"]], "en")) == 0.0
    means = np.mean([written.bleu([p], [r], "en")[0] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)])
    assert abs(means - value) > 0.01  # a corpus is no mean of sentences


def test_bleu_by_hand():
    """Matches over numbers of n-grams, and the brevity penalty exp(1 - 8/5)."""
    value, _ = written.bleu(["a b c d e"], [["a b c d e f g h"]], "en")
    assert value == pytest.approx(math.exp(1 - 8 / 5))
    value, _ = written.bleu(["a b c d x"], [["a b c d e"]], "en")
    assert value == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_tokenized_text_is_another_scale():
    """The twin of a text: as it is, it differs from its tokenized form; tokenized and in lower case both are the same."""
    plain, apart = ["The cat, it sat."], ["the cat , it sat ."]
    assert written.bleu(apart, [plain], "en")[0] < 0.8
    assert written.tokenized_bleu(apart, [plain]) == pytest.approx(1) == pytest.approx(written.tokenized_bleu(plain, [apart]))
    assert written.bleu(plain, [plain], "en")[0] == pytest.approx(1)


def test_languages_without_spaces():
    """Chinese has sacrebleu's own tokenizer, said or found; without it a sentence is one word and BLEU next to nothing."""
    texts, references = ["今天天气很好，我们去公园。"], [["今天天气很好，我们去学校。"]]
    value, signature = written.bleu(texts, references, None)
    assert "tok:zh" in signature and value > 0.5 and written.bleu(texts, references, "en")[0] < 0.1
    assert written.language_of([["猫がいる"]], None) == "ja" and written.language_of([["über Öl"]], None) == "other"
    assert written.language_of([["a café"] * 1, ["plain English words"] * 1] * 3, "fr") == "fr"
    assert written.bleu(["猫がいる家"], [["猫がいる家"]], "ja")[0] == pytest.approx(1)


def test_chrf_is_sacrebleus():
    import sacrebleu

    value, signature = written.chrf(PREDICTIONS, [r[:1] for r in REFERENCES])
    assert value == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [[r[0] for r in REFERENCES]]).score / 100) and "nc:6" in signature
    rows = written.chrf_rows(PREDICTIONS, REFERENCES)
    assert rows[3] == pytest.approx(1) and rows[2] == 0


def test_exact_match_distinct_and_perplexity():
    """By hand."""
    assert written.exact_match(["a  b", "c"], [["x", "a b"], ["C"]]) == 0.5
    texts = ["a b a b", "a b"]
    assert [written.distinct(texts, n) for n in (1, 2)] == [pytest.approx(2 / 6), pytest.approx(2 / 4)]
    assert written.distinct(["", "a"], 2) == 0.0
    assert written.perplexity(np.array([[2.0, 1], [4.0, 2]])) == pytest.approx(math.exp(2))  # over tokens, not rows
    assert math.isfinite(written.perplexity(np.array([[1e9, 1]])))


@pytest.mark.parametrize("metric", [written.bleu_counts, written.rouge, written.bleu])
@pytest.mark.parametrize(
    ("references", "words"),
    [
        ([["a"], ["b"]], "3 predictions and references of 2 texts$"),
        ([["a", "b", "c"], ["d", "e", "f"]], "2 lists of 3 are transposed, give a list of references for each prediction"),
        ([["a"], [], ["c"]], "the references of row 1 are none"),
        ([["a"], "b", ["c"]], "the references of row 1 are one text"),
    ],
)
def test_references_that_do_not_fit(metric, references, words):
    """Nothing is dropped in silence."""
    with pytest.raises(UserError, match=words):
        metric(["a", "b", "c"], references, "en")


def test_sentences():
    assert written.sentences("One. Two!  Three\nFour") == ["One.", "Two!", "Three", "Four"]
    assert written.sentences("今天。明天！") == ["今天。", "明天！"] and written.sentences("v. 2.5 ") == ["v.", "2.5"]
