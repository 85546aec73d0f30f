"""What writes texts without an encoder: the first sentences, copies, a dictionary of words, the answer to the nearest training text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from sslt.data.answers import Texts
from sslt.targets.base import Cheap, Rows
from sslt.targets.metrics import written

Method = Callable[[Sequence[str]], list[str]]
LEADS = (1, 2, 3)  # sentences
TAUGHT = 30_000  # training texts among which the nearest is looked for,
CHOSEN_ON = 1_000  # and validation rows that choose: more take minutes
COMMON = 0.1  # share of texts that a word is in, above which it says nothing about which is near
PAIRS, LONGEST = 6_000_000, 100  # pairs of words that a dictionary learns from, in texts of at most so many words
ROUNDS = 5  # of expectation and maximisation
_BEFORE = re.compile(r"\s+([,.;:!?%)\]}»…])")
_AFTER = re.compile(r"([(\[{«])\s+")
_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W]+)*|[^\w\s]")


def lead(n: int) -> Method:
    """The first n sentences."""
    return lambda texts: [" ".join(written.sentences(text)[:n]) for text in texts]


def copied(texts: Sequence[str]) -> list[str]:
    """The texts as they are."""
    return list(texts)


def nearest(texts: Sequence[str], answers: Sequence[str]) -> Method:
    """The answer to the training text with the highest cosine of TF-IDF (of words), the first of equally near ones."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len(texts) > TAUGHT:
        kept = np.sort(np.random.default_rng(0).permutation(len(texts))[:TAUGHT])
        texts, answers = [texts[i] for i in kept], [answers[i] for i in kept]
    most = COMMON if len(texts) >= 1000 else 1.0
    try:
        model = TfidfVectorizer(
            tokenizer=written.tokens, token_pattern=None, lowercase=False, max_df=most, sublinear_tf=True, dtype=np.float32
        )
        known = model.fit_transform(texts).T.tocsr()
    except ValueError:  # no words in any of them
        return lambda asked: [answers[0]] * len(asked)

    def write(asked: Sequence[str]) -> list[str]:
        found: list[str] = []
        for i in range(0, len(asked), 200):
            near = (model.transform(list(asked[i : i + 200])) @ known).toarray()
            found += [answers[j] for j in near.argmax(1).tolist()]
        return found

    return write


def nearest_last(texts: Sequence[str], answers: Sequence[str]) -> Method:
    """`nearest` by the last lines alone: what is replied to, without what was said before."""
    write = nearest(_last(texts), answers)
    return lambda asked: write(_last(asked))


def _last(texts: Sequence[str]) -> list[str]:
    return [text.rsplit("\n", 1)[-1] for text in texts]


def pieces(text: str) -> list[str]:
    """Words as they are written, and signs."""
    return _PIECE.findall(text)


def joined(parts: Sequence[str]) -> str:
    """Words and signs as a text: signs stand at their words."""
    return _AFTER.sub(r"\1", _BEFORE.sub(r"\1", " ".join(parts)))


def dictionary(texts: Sequence[str], answers: Sequence[str]) -> Method:
    """Each word replaced by the most probable one of IBM model 1 (Brown et al., 1993), in the same order; unknown ones stay.

    t(target | source) by expectation and maximisation, a source word "" for what nothing stands for.
    """
    sides: list[tuple[list[int], list[int]]] = []
    known: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})
    total = 0
    for text, answer in zip(texts, answers, strict=True):
        a, b = pieces(text), pieces(answer)
        if not a or not b or max(len(a), len(b)) > LONGEST:
            continue
        total += (len(a) + 1) * len(b)
        if total > PAIRS:
            break
        sides.append(([0, *(known[0].setdefault(w, len(known[0])) for w in a)], [known[1].setdefault(w, len(known[1])) for w in b]))
    if not sides:
        return copied
    n = len(known[1])
    codes = np.concatenate([(np.array(a)[None] * n + np.array(b)[:, None]).ravel() for a, b in sides])  # target by target, all sources
    sizes = np.concatenate([np.full(len(b), len(a)) for a, b in sides])
    starts = np.cumsum(sizes) - sizes
    entries, at = np.unique(codes, return_inverse=True)
    source = entries // n
    table: np.ndarray = np.ones(len(entries))
    for _ in range(ROUNDS):
        share = table[at]
        share = share / np.repeat(np.add.reduceat(share, starts), sizes)
        table = np.bincount(at, share, len(entries))
        table = table / np.bincount(source, table, len(known[0]))[source]
    words = list(known[1])
    letters = [np.array([w[:1].isalnum() for w in side]) for side in (list(known[0]), words)]
    alike = np.flatnonzero(letters[0][source] == letters[1][entries % n])  # a word does not become a sign
    order = alike[np.lexsort((table[alike], source[alike]))]
    last = np.flatnonzero(np.append(np.diff(source[order]), 1))  # of each source word the most probable entry
    best = {int(source[order[i]]): words[int(entries[order[i]] % n)] for i in last}
    said = {word: best[i] for word, i in known[0].items() if word and i in best}
    return lambda asked: [joined([said.get(w) or said.get(w.lower(), w) for w in pieces(text)]) for text in asked]


def strongest(methods: dict[str, Method], score: Callable[[Texts, Texts], float], val: Rows | None, test: Rows) -> Cheap:
    """What the method that is best on `val` (the first one, where there is none) writes for `test`."""
    scores: dict[str, float] = {}
    if val is not None:
        index = np.sort(np.random.default_rng(0).permutation(len(val.items))[:CHOSEN_ON])
        texts, answers = [val.items[i] for i in index], val.answers.take(index)
        scores = {name: score(_answers(how(texts), answers), answers) for name, how in methods.items()}
    best = max(methods, key=lambda name: scores.get(name, 0.0))
    return Cheap(best, _answers(methods[best](test.items), test.answers), scores.get(best, math.nan))


def _answers(texts: Sequence[str], like: Texts) -> Texts:
    return Texts([[text] for text in texts], like.space)


def oracle(texts: Sequence[str], references: Sequence[Sequence[str]], language: str | None) -> list[str]:
    """Of each text the sentence with the highest ROUGE-L: what choosing one sentence could reach, knowing the answer. No method."""
    parts = [written.sentences(text) or [""] for text in texts]
    of = [i for i, some in enumerate(parts) for _ in some]
    flat = [s for some in parts for s in some]
    scores = written.rouge(flat, [references[i] for i in of], language, ("rougeL",))[:, 0]
    found, start = [], 0
    for some in parts:
        found.append(some[int(scores[start : start + len(some)].argmax())])
        start += len(some)
    return found
