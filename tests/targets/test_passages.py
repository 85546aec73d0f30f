"""Protects windows over contexts: nothing of a context is lost in them, and places go through them and back."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sslt import lanes
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.sources.reading import Cmrc2018, Reading, Squad
from sslt.data.spans import Spans
from sslt.targets.metrics.reading import answer_scores
from sslt.targets.passages import Passages, Text, gold, joined, marked, passages, text_of
from sslt.targets.span_decoding import NEVER, best_spans, over_row, some_windows

DATA = Path(os.environ.get("SSLT_DATA", "data"))


def processor(max_length: int) -> TextProcessor:
    return TextProcessor(train_tokenizer(["a b c"] * 3, 60, True), max_length, windows=None)


def given(p: TextProcessor, asked: list[int], shown: list[int]) -> tuple[tuple, Text]:
    """Questions and contexts of so many tokens, each token a number of its own."""

    def tokens(sizes: list[int], start: int) -> torch.Tensor:
        return torch.arange(start, start + max(sizes)).expand(len(sizes), -1).clone()

    places = torch.stack([torch.arange(max(shown)), torch.arange(1, max(shown) + 1)], 1).expand(len(shown), -1, -1)
    return (tokens(asked, 1000), torch.tensor(asked)), Text(tokens(shown, 5000), torch.tensor(shown), places)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("between, cls", [(1, True), (2, True), (1, False)], ids=["bert", "roberta", "t5"])
def test_windows_are_those_of_a_plain_loop(overlap, between, cls):
    """[CLS] question [SEP] window [SEP]; the next window begins a step later, until the last token was read."""
    p = processor(16)
    p.marks_between = between
    if not cls:
        p.cls_id = None
    first_marks = [p.cls_id] if cls else []
    sizes = [(3, 5), (8, 40), (1, 1), (4, 16 - 2 - between - 4), (4, 16 - 1 - between - 4), (2, 23)]
    asked, context = given(p, [a for a, _ in sizes], [b for _, b in sizes])
    found = passages(asked, context, p, overlap)
    made = []
    for i, (a, b) in enumerate(sizes):
        room, first = 15 - cls - between - a, 0
        while True:
            window = list(range(5000 + first, 5000 + min(first + room, b)))
            made.append((i, [*first_marks, *range(1000, 1000 + a), *[p.sep_id] * between, *window, p.sep_id], a, first))
            if first + room >= b:
                break
            first += max(room - int(room * overlap), 1)
    assert found.row.tolist() == [m[0] for m in made]
    for k, (_, row, a, first) in enumerate(made):
        assert found.tokens[k][found.mask[k]].tolist() == row
        assert (found.tokens[k][~found.mask[k]] == p.pad_id).all() and int(found.mask[k].sum()) <= 16
        assert found.segments[k][: len(row)].tolist() == [0] * (cls + a + between) + [1] * (len(row) - cls - a - between)
        shown = found.in_context[k].nonzero()[:, 0]
        assert found.at[k][shown].tolist() == list(range(first, first + len(shown))) and (found.tokens[k][shown] >= 5000).all()


def test_a_question_keeps_its_beginning_and_loses_its_history():
    """What does not fit goes from the earliest turn on; a context always keeps room of its own."""
    p = processor(16)
    pieces = [(torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([3, 0])), (torch.tensor([[4, 5], [4, 5]]), torch.tensor([2, 1])),
              (torch.arange(10, 20).expand(2, -1), torch.tensor([3, 10]))]  # fmt: skip
    tokens, sizes = joined(pieces, 7, p)
    assert sizes.tolist() == [7, 7] and tokens[0, :7].tolist() == [3, p.sep_id, 4, 5, p.sep_id, 10, 11, 12][1:]
    assert tokens[1, :7].tolist() == list(range(10, 17))
    tokens, sizes = joined(pieces, 20, p)
    assert tokens[0, : sizes[0]].tolist() == [1, 2, 3, p.sep_id, 4, 5, p.sep_id, 10, 11, 12]
    assert tokens[1, : sizes[1]].tolist() == [4, p.sep_id, *range(10, 20)]


def test_places_become_tokens_and_what_was_cut_away_none():
    """Tokens that a place touches; a place after the last token that was read is no place."""
    places = torch.tensor([[[0, 3], [3, 5], [6, 9], [10, 12], [-1, -1]]])
    context = Text(torch.zeros(1, 5, dtype=torch.long), torch.tensor([4]), places)
    spans = torch.tensor([[[0, 3], [4, 8], [6, 10], [10, 12], [11, 15], [5, 6], [-1, -1]]])
    assert gold(context, spans)[0].tolist() == [[0, 0], [1, 2], [2, 2], [3, 3], [-1, -1], [-1, -1], [-1, -1]]


def test_only_windows_that_hold_a_place_as_a_whole_have_it():
    p = processor(16)
    asked, context = given(p, [4], [30])  # windows of 9: 0-8, 7-15, 14-22, 21-29
    windows = passages(asked, context, p, 0.25)
    begins, ends = marked(windows, torch.tensor([[[7, 8], [13, 14], [-1, -1]]]))
    held = [sorted(windows.at[k][begins[k]].tolist() + windows.at[k][ends[k]].tolist()) for k in range(len(windows.row))]
    assert held == [[7, 8], [7, 8, 13, 14], [], []]


def test_windows_are_as_wide_as_those_of_any_rank(monkeypatch):
    p = processor(40)
    own = passages(*given(p, [4], [3]), p, 0.25)
    monkeypatch.setattr(lanes, "most", lambda size: size + 8)
    wide = passages(*given(p, [4], [3]), p, 0.25)
    assert wide.mask.shape[1] == own.mask.shape[1] + 8 and wide.mask.sum() == own.mask.sum() and (wide.at[:, -8:] == -1).all()


def random_windows(draw: random.Random, rows: int) -> tuple[Passages, torch.Tensor, torch.Tensor]:
    p = processor(16)
    asked, context = given(p, [draw.randint(1, 6) for _ in range(rows)], [draw.randint(1, 40) for _ in range(rows)])
    windows = passages(asked, context, p, 0.3)
    scores = torch.randint(-3, 4, (2, *windows.at.shape), generator=torch.Generator().manual_seed(draw.randint(0, 99))).float()
    return windows, *scores.masked_fill(~windows.in_context, NEVER)


def test_the_best_span_is_that_of_all_that_are_legal():
    """Against a search through every pair of tokens of every window, with ties."""
    draw = random.Random(0)
    for longest in (1, 3, 30):
        windows, start, end = random_windows(draw, 12)
        found = best_spans(start, end, windows, 12, longest)
        for row in range(12):
            best = -np.inf
            for k in (windows.row == row).nonzero()[:, 0].tolist():
                inside = windows.in_context[k].nonzero()[:, 0].tolist()
                pairs = [(i, j) for i in inside for j in inside if i <= j < i + longest]
                best = max([best, *(float(start[k, i] + end[k, j]) for i, j in pairs)])
            assert float(found.score[row]) == best
            first, last = found.tokens[row].tolist()
            assert 0 <= first <= last < first + longest
            assert any(float(start[k][windows.at[k] == first].max() + end[k][windows.at[k] == last].max()) == best
                       for k in (windows.row == row).nonzero()[:, 0].tolist()
                       if (windows.at[k] == first).any() and (windows.at[k] == last).any())  # fmt: skip


def test_windows_of_a_row_are_normalised_together():
    windows, start, _ = random_windows(random.Random(3), 9)
    start = start.double().requires_grad_()
    found = over_row(start, windows, 9)
    for row in range(9):
        own = start[windows.row == row][windows.in_context[windows.row == row]]
        assert float(found[row]) == pytest.approx(float(own.logsumexp(0)), abs=1e-6)
    nothing = over_row(start.masked_fill(windows.in_context, NEVER), windows, 9)
    (found.sum() + torch.where(nothing > -1e20, nothing, 0.0).sum()).backward()
    assert (nothing < -1e20).all() and start.grad.isfinite().all()


def test_windows_with_the_answer_are_trained_on_first():
    torch.manual_seed(0)
    windows, _, _ = random_windows(random.Random(4), 9)
    holds = torch.zeros(len(windows.row), dtype=torch.bool)
    last = torch.tensor([(windows.row == row).nonzero().max() for row in range(9)])
    holds[last] = True
    for most in (1, 2, 99):
        kept = some_windows(windows, holds, most)
        assert set(last.tolist()) <= set(kept.tolist()) and kept.tolist() == sorted(set(kept.tolist()))
        assert windows.row[kept].bincount().tolist() == windows.row.bincount().clamp(max=most).tolist()


# -------------------------------------------------------------------- real data
SETS = {
    "squad": lambda: Squad(str(DATA), "1.1", "fail", 0.1, 0.2),
    "zh-cmrc2018": lambda: Cmrc2018(str(DATA), "fail", 0.1, 0.2),
}


@pytest.mark.parametrize("name", SETS)
def test_true_places_go_through_windows_and_back(name, cache, monkeypatch):
    """Exact match is 100 on real questions, but for places that end inside a token, or are longer than windows overlap."""
    if not (DATA / name).is_dir():
        pytest.skip("no such data")
    monkeypatch.setenv("SSLT_CACHE", str(cache))
    source = SETS[name]()
    p = TextProcessor.fit(source, vocab_size=8192, max_length=256, lowercase=True)
    p.windows = None
    samples = p.prepare(source, "test")
    samples = samples.subset(np.flatnonzero(samples.answers.values.sizes > 0)[::3])
    truth, texts, cut = samples.answers, np.empty(len(samples), object), np.zeros(len(samples), bool)
    for index in samples.ordered_batches(64):
        batch = samples.batch(index)
        context, question = text_of(batch, "context", p), text_of(batch, "question", p)
        windows = passages(joined([(question.tokens, question.sizes)], 128, p), context, p, 0.25)
        tokens = gold(context, batch["spans"][:, :1])
        begins, ends = marked(windows, tokens)
        best = best_spans(begins.float(), ends.float(), windows, len(index), 256)
        for i, row in enumerate(index.tolist()):
            a, b = (int(context.places[i, t, side]) for side, t in enumerate(best.tokens[i].tolist()))
            texts[row] = [truth.contexts[row][a:b]]
            held = bool(begins[windows.row == i].any())
            start, end = truth.values[row][0].tolist()
            inside = context.places[i, tokens[i, 0, 0], 0] != start or context.places[i, tokens[i, 0, 1], 1] != end
            cut[row] = inside or not held
    exact = answer_scores(Spans(truth.values, truth.space, kinds=np.zeros(len(truth), np.int64), texts=texts), truth)[:, 0]
    assert exact[~cut].min() == 1.0 and cut.mean() < 0.03 and exact.mean() > 0.97


def test_a_question_about_a_file_of_ones_own_is_read(here, cache):
    """Characters outside the first plane and combining ones count as Python counts them."""
    import toy_reading as toy

    context = "😀 e\u0301te\u0301 was 𝒜da's town, Rome."
    file = toy.write(here / "own.json", [toy.article("a", context, toy.qa("1", "Where?", ("Rome", context.index("Rome"))))] * 3)
    source = Reading(str(file), "squad", 2, "fail", 0, 0)
    p = TextProcessor.fit(source, vocab_size=200, max_length=32, lowercase=True)
    p.windows = None
    batch = p.prepare(source, "train").batch(np.array([0]))
    tokens = gold(text_of(batch, "context", p), batch["spans"])[0, 0].tolist()
    places = text_of(batch, "context", p).places[0]
    start, end = int(places[tokens[0], 0]), int(places[tokens[1], 1])
    assert batch["characters"][0, start:end].numpy().tobytes().decode("utf-32-le") == "Rome" == context[start:end]
