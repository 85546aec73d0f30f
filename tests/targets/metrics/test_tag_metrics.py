"""Protects entity F1: equal to seqeval's strict IOB2 on any tags, spans counted once, and empty answers counted as missed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sslt.data.ragged import Ragged
from sslt.errors import UserError
from sslt.targets.metrics.tags import f1_difference, row_counts, tag_metrics

TYPES = ["loc", "org", "per"]


def strict(tags: list[str]) -> list[tuple[int, int, int]]:
    """Spans that begin with B-: an I- that follows no span of its type is of none."""
    found: list[list[int]] = []
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "B":
            found.append([i, i + 1, TYPES.index(kind)])
        elif prefix == "I" and found and found[-1][1] == i and TYPES[found[-1][2]] == kind:
            found[-1][1] = i + 1
    return [tuple(f) for f in found]  # type: ignore[misc]


def spans(rows) -> Ragged:
    return Ragged.of([strict(row) for row in rows], np.int64, 3)


def random_tags(rng, texts: int, inside: float) -> list[list[str]]:
    names = [f"{p}-{t}" for p in "BI" for t in TYPES]
    return [[names[rng.integers(6)] if rng.random() < inside else "O" for _ in range(rng.integers(1, 12))] for _ in range(texts)]


def worse(rng, rows, share: float) -> list[list[str]]:
    other = random_tags(rng, 1, 0.6)[0] * 12
    return [[other[i] if rng.random() < share else tag for i, tag in enumerate(row)] for row in rows]


def cases():
    rng = np.random.default_rng(0)
    for inside in (0.1, 0.5, 0.9):
        true = random_tags(rng, 30, inside)
        for share in (0.0, 0.2, 1.0):
            yield true, worse(rng, true, share)
        yield true, [["O"] * len(row) for row in true]  # nothing answered
        yield [["O"] * len(row) for row in true], true  # nothing there
    one = [["B-per", "I-per", "O", "B-per"]]
    yield one, [["B-loc", "I-loc", "O", "B-loc"]]  # right ends, wrong types
    yield one, [["B-per", "B-per", "O", "B-per"]]  # cut in two
    yield one, [["I-per", "I-per", "O", "I-per"]]  # begins with I-
    yield one, [["B-per", "I-loc", "O", "B-per"]]  # changes its type
    yield [["B-per", "B-per"], ["B-org"]], [["B-per", "I-per"], ["B-org"]]  # neighbours joined


@pytest.mark.parametrize("true, predicted", cases())
def test_equals_seqeval(true, predicted):
    """Micro averages and every type's, as seqeval has them with mode="strict" and scheme=IOB2."""
    pytest.importorskip("seqeval")
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    found = tag_metrics(spans(predicted), spans(true), TYPES)
    if not any(strict(row) for row in itertools.chain(true, predicted)):
        return  # seqeval has no report of nothing
    report = classification_report(true, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    assert found["f1"] == pytest.approx(report["micro avg"]["f1-score"])
    assert found["precision"] == pytest.approx(report["micro avg"]["precision"])
    assert found["recall"] == pytest.approx(report["micro avg"]["recall"])
    for name in TYPES:
        for ours, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall"), ("support", "support")):
            assert found[f"type/{name}/{ours}"] == pytest.approx(report.get(name, {}).get(theirs, 0))


@pytest.mark.parametrize("true, predicted", cases())
def test_equals_sets(true, predicted):
    """The same numbers from sets of (text, start, end, type), where seqeval is not there."""
    ours, theirs = ({(i, *s) for i, row in enumerate(rows) for s in strict(row)} for rows in (predicted, true))
    found = tag_metrics(spans(predicted), spans(true), TYPES)
    assert found["f1"] == pytest.approx(2 * len(ours & theirs) / max(len(ours) + len(theirs), 1))
    assert found["precision"] == pytest.approx(len(ours & theirs) / max(len(ours), 1))
    assert found["recall"] == pytest.approx(len(ours & theirs) / max(len(theirs), 1))
    counts = row_counts(spans(predicted), spans(true))
    for i in range(len(true)):
        a, b = ({s for s in some if s[0] == i} for some in (ours, theirs))
        assert counts[i].tolist() == [len(a & b), len(a), len(b)]


def test_a_span_counts_once():
    """Given twice it is right once, and no mistake."""
    twice = Ragged.of([[(0, 3, 1), (0, 3, 1)], []], np.int64, 3)
    once = Ragged.of([[(0, 3, 1)], []], np.int64, 3)
    assert tag_metrics(twice, once, TYPES)["f1"] == 1.0


def test_the_same_span_in_another_text_is_wrong():
    """Texts are told apart."""
    a, b = Ragged.of([[(0, 3, 1)], []], np.int64, 3), Ragged.of([[], [(0, 3, 1)]], np.int64, 3)
    assert tag_metrics(a, b, TYPES)["f1"] == 0.0


def test_nothing():
    """Texts without spans have 0 by convention, and no texts are refused."""
    none = Ragged.of([[], []], np.int64, 3)
    assert tag_metrics(none, none, TYPES)["f1"] == 0.0
    with pytest.raises(UserError, match="nothing to evaluate"):
        tag_metrics(Ragged.of([], np.int64, 3), Ragged.of([], np.int64, 3), TYPES)


def test_difference():
    """Its middle is the difference of F1, signed; its bounds hold it, and are equal where both answer alike."""
    rng = np.random.default_rng(1)
    true = random_tags(rng, 80, 0.5)
    good, bad = spans(worse(rng, true, 0.1)), spans(worse(rng, true, 0.6))
    mean, low, high = f1_difference(good, bad, spans(true))
    expected = tag_metrics(good, spans(true), TYPES)["f1"] - tag_metrics(bad, spans(true), TYPES)["f1"]
    assert mean == pytest.approx(expected) and 0 < low < mean < high
    assert f1_difference(bad, good, spans(true))[0] == pytest.approx(-expected)
    assert f1_difference(good, good, spans(true)) == (0, 0, 0)
