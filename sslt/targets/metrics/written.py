"""How good written texts are: ROUGE, BLEU and chrF by the libraries that papers are compared with, exact match, variety, perplexity.

All are shares, 0 to 1. Predictions are N texts, references N lists of one or more that would do.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from sslt.errors import UserError

ROUGES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")  # of scripts without spaces each sign is a word
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_SENTENCE = re.compile(r"\n+|(?<=[。！？])|(?<=[.!?])\s+")
_KANA, _HAN = re.compile(r"[\u3040-\u30ff]"), re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
FOREIGN = 0.01  # share of letters that are none of ASCII, above which a text is not taken for English
EXTRA = "is needed to measure written texts: pip install 'sslt[text]'"


def check_numbers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise `UserError` where the references are not one or more for each prediction."""
    n = len(predictions)
    if len(references) != n:
        turned = len(references) and all(not isinstance(r, str) and len(r) == n for r in references)
        how = f": {len(references)} lists of {n} are transposed, give a list of references for each prediction" if turned else ""
        raise UserError(f"{n:,} predictions and references of {len(references):,} texts{how}")
    if n == 0:
        raise UserError("there are no predictions to measure")
    for row, several in enumerate(references):
        if isinstance(several, str) or not len(several):
            what = "are one text: give a list of texts" if isinstance(several, str) else "are none"
            raise UserError(f"the references of row {row} {what}")


def language_of(references: Sequence[Sequence[str]], language: str | None) -> str:
    """The language as it is said, else by the signs that are used: "ja", "zh", "other" (letters that English lacks), "en"."""
    if language:
        return language.lower()
    text = " ".join(several[0] for several in references[:1000])
    letters = [c for c in text if c.isalpha()]
    if len(_HAN.findall(text)) + len(_KANA.findall(text)) > len(letters) / 4:
        return "ja" if len(_KANA.findall(text)) > len(letters) / 20 else "zh"
    return "other" if sum(not c.isascii() for c in letters) > FOREIGN * len(letters) else "en"


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line's end ends one."""
    return [s.strip() for s in _SENTENCE.split(text) if s and s.strip()]


def tokens(text: str) -> list[str]:
    """Words and signs of a text in lower case, its characters in Unicode's compatible form (NFKC)."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


class _Words:
    """What rouge-score takes for words, each text read once. English is stemmed and read as by its own tokenizer (a to z and digits),
    other languages by words of any script."""

    def __init__(self, english: bool):
        from nltk.stem import porter
        from rouge_score import tokenize

        self.stem = functools.cache(porter.PorterStemmer().stem)  # takes most of the time where it is done again
        self.read = (lambda text: tokenize.tokenize(text, self)) if english else _any_words
        self.known: dict[str, list[str]] = {}

    def tokenize(self, text: str) -> list[str]:
        if text not in self.known:
            self.known[text] = self.read(text)
        return self.known[text]


def _any_words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], language: str | None, kinds: Sequence[str] = ROUGES
) -> np.ndarray:
    """F of ROUGE-1, -2, -L and -Lsum (Lin, 2004) of each row, float64 [N, kinds]; of several references the best, each measure for
    itself. English as rouge-score has it, with Porter's stemmer; other languages by words of any script, without a stemmer.

    Lsum takes sentences one by one. A corpus has the mean over its rows.
    """
    check_numbers(predictions, references)
    try:
        from absl.logging import get_absl_handler
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as e:
        raise UserError(f"rouge-score {EXTRA}") from e
    # its log's stream is closed when others set up theirs, be it one that is still written to; this one never is
    get_absl_handler().python_handler.stream = sys.__stderr__
    english = language_of(references, language) == "en"
    scorer = RougeScorer(list(kinds), tokenizer=_Words(english))
    found = np.empty((len(predictions), len(kinds)))
    lined = {text: "\n".join(sentences(text)) for text in {*predictions, *(r for several in references for r in several)}}
    for i, (text, several) in enumerate(zip(predictions, references, strict=True)):
        scores = scorer.score_multi([lined[r] for r in several], lined[text])
        found[i] = [scores[name].fmeasure for name in kinds]
    return found


def rouge_signature(references: Sequence[Sequence[str]], language: str | None) -> str:
    """How `rouge` counts these, in the manner of sacrebleu's signatures."""
    english = language_of(references, language) == "en"
    most = max(map(len, references), default=0)
    how = "tok:rouge-score|stem:porter" if english else "tok:unicode|stem:no"
    return f"nrefs:{'1' if most == 1 else f'up to {most}, best'}|F|mean|{how}|Lsum:by sentences"


def _sacrebleu() -> Any:
    """Its metrics. Raises `UserError` where it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError as e:
        raise UserError(f"sacrebleu {EXTRA}") from e
    return metrics


def bleu_metric(language: str) -> Any:
    """sacrebleu's BLEU (Post, 2018) with the tokenizer of a language; of Japanese by characters where MeCab is not installed."""
    if language == "ja":
        return _sacrebleu().BLEU(tokenize="ja-mecab" if importlib.util.find_spec("MeCab") else "char")
    return _sacrebleu().BLEU(tokenize="zh" if language.startswith("zh") else "13a")


def _columns(references: Sequence[Sequence[str]]) -> Any:
    """References as sacrebleu takes them: a list of N for each number of a reference, None where a row has no such."""
    return [[several[k] if k < len(several) else None for several in references] for k in range(max(map(len, references)))]


def _share(score: float) -> float:
    """Of 0 to 100, which sacrebleu passes by a rounding error."""
    return min(score / 100, 1.0)


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], language: str | None) -> tuple[float, str]:
    """BLEU of a corpus (Papineni et al., 2002) as sacrebleu counts it on texts as they are, and its signature."""
    check_numbers(predictions, references)
    metric = bleu_metric(language_of(references, language))
    found = metric.corpus_score(list(predictions), _columns(references)).score
    return _share(found), str(metric.get_signature())


def tokenized_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of lower-cased words and signs, as papers report it of tokenized text: on another scale than `bleu`."""
    check_numbers(predictions, references)
    twin = [[" ".join(tokens(r)) for r in several] for several in references]
    metric = _sacrebleu().BLEU(tokenize="none", force=True)  # force: no warning that these are tokenized
    return _share(metric.corpus_score([" ".join(tokens(text)) for text in predictions], _columns(twin)).score)


def bleu_counts(predictions: Sequence[str], references: Sequence[Sequence[str]], language: str | None) -> np.ndarray:
    """What `bleu_of` needs of each row, int64 [N, 10]: matches and numbers of 1- to 4-grams, lengths of prediction and reference."""
    check_numbers(predictions, references)
    metric = bleu_metric(language_of(references, language))
    metric.effective_order = True
    rows = [metric.sentence_score(text, list(several)) for text, several in zip(predictions, references, strict=True)]
    return np.array([[*row.counts, *row.totals, row.sys_len, row.ref_len] for row in rows], np.int64)


def bleu_of(counts: np.ndarray) -> float:
    """BLEU of the rows that have these counts [N, 10]; the same number as that of their texts."""
    total = counts.sum(0).tolist()
    return _share(_sacrebleu().BLEU.compute_bleu(total[:4], total[4:8], total[8], total[9], smooth_method="exp").score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """chrF2 of a corpus (Popović, 2015) as sacrebleu counts it, and its signature."""
    check_numbers(predictions, references)
    metric = _sacrebleu().CHRF()
    found = metric.corpus_score(list(predictions), _columns(references)).score
    return _share(found), str(metric.get_signature())


def chrf_rows(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """chrF2 of each row, float64 [N]: how near a text is, where a row has no 4-gram in common with its reference."""
    check_numbers(predictions, references)
    metric = _sacrebleu().CHRF()
    return np.array([metric.sentence_score(p, list(r)).score / 100 for p, r in zip(predictions, references, strict=True)])


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of the texts that are one of their references, whatever spaces they have."""
    check_numbers(predictions, references)
    right = [" ".join(p.split()) in {" ".join(r.split()) for r in several} for p, several in zip(predictions, references, strict=True)]
    return sum(right) / len(right)


def distinct(predictions: Sequence[str], n: int) -> float:
    """Distinct n-grams of words per n-gram, over all texts (Li et al., 2016); 0 where there are none."""
    grams = [g for text in predictions for words in [tokens(text)] for g in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def perplexity(scores: np.ndarray) -> float:
    """exp of the mean loss of tokens, of scores [N, 2]: the sum of a row's losses and how many they are; infinite beyond 1e300."""
    loss, number = scores.sum(0)
    return math.exp(min(loss / max(number, 1), 690.0))
