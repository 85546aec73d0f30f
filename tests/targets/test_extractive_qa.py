"""Protects the reader of questions: its loss, what it answers, and whose answers it reads in a dialogue."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import toy_reading as toy

from sslt.data.base import Samples
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.ragged import Ragged
from sslt.data.sources.reading import Reading
from sslt.data.spans import Spans
from sslt.data.views.base import Plain
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.seq2seq import Seq2SeqEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.lanes import Lanes
from sslt.targets import reading_answers, reading_baselines
from sslt.targets.base import Rows
from sslt.targets.extractive_qa import ExtractiveQA
from sslt.targets.metrics.reading import answer_scores, reading_metrics
from sslt.targets.passages import Text, gold
from sslt.targets.question_matches import FEATURES, beside, sentences
from sslt.targets.span_decoding import Best

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
MODELS = {
    "bert": (TextEncoder, SMALL, "mean"),
    "distilbert": (TextEncoder, {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "dropout": 0.0, "attention_dropout": 0}, "mean"),
    "gpt2": (CausalEncoder, {"n_embd": 16, "n_layer": 1, "n_head": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}, "last"),
    "t5": (Seq2SeqEncoder, {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}, "mean"),
    "bart": (Seq2SeqEncoder, {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
                              "encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}, "mean"),
}  # fmt: skip
CPU = torch.device("cpu")


def made(folder, kind: str = "squad", max_length: int = 24, model: str = "bert", match: bool = True, history: str = "predicted", **more):
    """(encoder, target, samples) on a small file; weights drawn by a seed, those that start at 0 too."""
    file = folder / f"{kind}.json"
    toy.coqa(file, n=4, **more) if kind == "coqa" else toy.squad(file, n=6, impossible=kind == "squad2", **more)
    source = Reading(str(file), "squad", 2, "fail", 0, 0)
    processor = TextProcessor.fit(source, vocab_size=120, max_length=max_length, lowercase=True)
    processor.windows = None
    torch.manual_seed(0)
    kind_of, config, pooling = MODELS[model]
    encoder = kind_of(processor, model, config, pooling)
    target = ExtractiveQA(encoder, source.space, 0.0, 0.25, 0.5, 8, None, match, history)
    samples = processor.prepare(source, "train")
    target.prepare(encoder, samples, 4)
    for name, p in target.named_parameters():
        torch.nn.init.normal_(p, std=0.5 if name == "heads.match.weight.weight" else 0.2)
    return encoder.eval(), target.eval(), samples


def batch_of(encoder: TextEncoder, samples: Samples, rows: list[int]) -> dict:
    return Plain(1)(samples.batch(np.array(rows)), encoder)


def answered(encoder: TextEncoder, target: ExtractiveQA, batch: dict) -> Spans:
    with torch.no_grad():
        return target.predict(encoder, batch)


@pytest.mark.parametrize("kind", ["squad", "squad2", "coqa"])
def test_the_loss_is_that_of_a_plain_loop(here, kind):
    """Windows of a row share one softmax; any admissible place is right; a row is of the kind that one of its windows says loudest."""
    encoder, target, samples = made(here, kind)
    batch = batch_of(encoder, samples, list(range(len(samples))))
    asked, context, windows = target.windows(encoder, batch, told=True)
    start, end, kinds = target.heads(encoder, batch, asked, context, windows)
    tokens, total = gold(context, batch["spans"]), 0.0
    assert len(windows.row) > len(samples)
    for row in range(len(samples)):
        own = (windows.row == row).nonzero()[:, 0].tolist()
        for scores, side in ((start, 0), (end, 1)):
            right, every = [], []
            for k in own:
                for t in windows.in_context[k].nonzero()[:, 0].tolist():
                    every.append(float(scores[k, t]))
                    here_ = set(windows.at[k][windows.in_context[k]].tolist())
                    whole = [s for s in tokens[row].tolist() if s[0] >= 0 and {s[0], s[1]} <= here_]
                    if int(windows.at[k, t]) in [s[side] for s in whole]:
                        right.append(float(scores[k, t]))
            if right:
                total += np.logaddexp.reduce(every) - np.logaddexp.reduce(right)
        if kinds is not None:
            logits = kinds[row].tolist()
            total += np.logaddexp.reduce(logits) - logits[int(batch["answer_kind"][row])]
    assert float(target(encoder, batch).value) == pytest.approx(total / len(samples), rel=1e-4)


@pytest.mark.parametrize("most", [None, 2])
def test_windows_of_one_rank_are_drawn_as_those_of_its_lanes(here, most):
    """Which windows are read, and what dropout leaves of them: two ranks' losses are that of one with the rows of both."""
    encoder, target, samples = made(here, max_length=16)
    target.train_windows = most
    encoder.train(), target.train()
    encoder.model.config.hidden_dropout_prob = 0.5
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5

    def of(held: Lanes, rows: list[int]) -> float:
        held.begin(1, 2)
        batch = batch_of(encoder, samples, rows)
        with held.drawing(len(rows)), torch.no_grad():
            return float(target(encoder, batch).value * target.units(batch))

    rows = [i for i in range(len(samples)) if i not in (1, 2)]
    both = of(Lanes(2), rows)
    assert both == pytest.approx(sum(of(Lanes(2, r, 2), rows[r::2]) for r in (0, 1)), rel=1e-5)
    assert both != pytest.approx(of(Lanes(1), rows), rel=1e-3)


def test_questions_without_a_certain_place_cost_nothing_and_are_answered(here):
    encoder, target, samples = made(here, answers=False)
    assert not samples.answers.known.any()
    loss = target(encoder, batch_of(encoder, samples, [0, 1]))
    loss.value.backward()
    assert float(loss.value) == 0 and all(p.grad is None or p.grad.isfinite().all() for p in target.parameters())
    answers = answered(encoder, target, samples.batch(np.arange(len(samples))))
    assert len(answers) == len(samples) and all(answers.first)


@pytest.mark.parametrize("kind", ["squad2", "coqa"])
@pytest.mark.parametrize("model", MODELS)
def test_a_row_alone_is_answered_as_in_a_batch(here, kind, model):
    """By every family of encoders, with segments and without; windows of different rows do not meet; what matches is read."""
    encoder, target, samples = made(here, kind, model=model)
    whole = answered(encoder, target, samples.batch(np.arange(12)))
    for i in range(12):
        alone = answered(encoder, target, samples.batch(np.array([i])))
        assert alone.first == whole.first[i : i + 1] and alone.values[0].tolist() == whole.values[i].tolist()
        assert np.allclose(alone.scores, whole.scores[i : i + 1], atol=1e-4)
    with torch.no_grad():
        target.heads.match.weight.weight.zero_()
    assert not np.allclose(answered(encoder, target, samples.batch(np.arange(12))).scores, whole.scores, atol=1e-4)


def test_answers_are_cut_from_the_original_characters(here):
    encoder, target, samples = made(here)
    found = answered(encoder, target, samples.batch(np.arange(12)))
    for text, place, context in zip(found.first, found.values, samples.answers.contexts[:12], strict=True):
        assert text == context[place[0, 0] : place[0, 1]] and text.strip() == text != ""
        assert len(text.split()) <= 8


def test_what_is_cut_away_is_a_miss_and_no_question_is_lost(here):
    """With `windows=1` a place after what was read teaches nothing, and the question is answered all the same."""
    encoder, target, samples = made(here)
    first, whole = samples.parts["context"].subset(np.arange(12)), samples.batch(np.arange(12))
    first.windows, first.max_length = 1, 12
    cut = {**whole, **{f"context.{k}": x for k, x in first.batch(np.arange(12)).items()}}
    found = [gold(target.windows(encoder, batch, True)[1], batch["spans"])[..., 0] >= 0 for batch in (whole, cut)]
    assert found[0].all() and 0 < found[1].sum() < 12
    assert len(answered(encoder, target, cut)) == 12 and target(encoder, cut).value.isfinite()


def test_matches_tell_tokens_of_the_question(here):
    """Without them a token embedding is the encoder's own; with them only tokens of the pair have more, and padding has none."""
    encoder, target, samples = made(here)
    batch = batch_of(encoder, samples, [0])
    asked, context, windows = target.windows(encoder, batch, told=True)
    features = target.heads.match.of_context(context, asked, batch["characters"])[0]
    words = [encoder.processor.decode([t]) for t in context.tokens[0].tolist()]
    question = {encoder.processor.decode([t]) for t in asked[0][0].tolist()}
    for word, f, inside, place in zip(words, features, context.inside[0], context.places[0], strict=True):
        assert float(f[0]) == float(
            inside and word in question and target.heads.match.idf[encoder.processor.tokenizer.convert_tokens_to_ids(word)] > 0
        )
        letter = samples.answers.contexts[0][place[0]] if inside else "x"
        assert float(f[FEATURES - 7]) == float(letter.isupper())
    extra = target.heads.match(windows, context, asked, batch["characters"])
    assert (extra[~(windows.in_context | windows.in_question)] == 0).all()
    with torch.no_grad():
        target.heads.match.weight.weight.zero_()
        plain = ExtractiveQA(encoder, target.space, 0.0, 0.25, 0.5, 8, None, False, "gold")
        plain.heads.ends.load_state_dict(target.heads.ends.state_dict())
        assert torch.allclose(target(encoder, batch).value, plain(encoder, batch).value, atol=1e-6)


def test_neighbours_that_the_question_has_as_neighbours_are_told(here):
    """Both of two tokens that follow one another in either text, against a loop; what is padding in either is nothing."""
    encoder, target, _ = made(here)
    ids = next(iter(encoder.processor.encode(["ada lived in rome"])))[0][:3]
    draw = torch.Generator().manual_seed(0)
    shown, told = (torch.tensor(ids)[torch.randint(0, 3, (3, n), generator=draw)] for n in (20, 4))
    sizes, asked = torch.tensor([20, 13, 20]), torch.tensor([4, 3, 0])
    places = torch.stack([torch.arange(20), torch.arange(1, 21)], 1).expand(3, -1, -1)
    target.heads.match.idf.fill_(1.0)
    found = target.heads.match.of_context(Text(shown, sizes, places), (told, asked), torch.full((3, 21), 97))[..., 2]
    for row in range(3):
        words, question = shown[row, : sizes[row]].tolist(), told[row, : asked[row]].tolist()
        pairs = {*itertools.pairwise(question)}
        follows = [pair in pairs for pair in itertools.pairwise(words)]
        wanted = [float(any(follows[max(0, i - 1) : i + 1])) for i in range(len(words))]
        assert found[row].tolist() == wanted + [0.0] * (20 - len(words)) and (row or 0 < sum(wanted) < len(words))


def test_words_are_counted_beside_a_token_and_in_its_sentence():
    """Against plain loops; "3.5" and "U.S" are no ends of sentences."""
    x = torch.rand(2, 13)
    for n, left in ((1, True), (4, False), (8, True), (8, False)):
        for i in range(13):
            wanted = x[:, max(0, i - n) : i] if left else x[:, i + 1 : i + 1 + n]
            assert torch.allclose(beside(x, n, left)[:, i], wanted.sum(1), atol=1e-5)
    text = "a . b 3 .5 c ! d 。e f"
    places = [(i, i + 1) for i, c in enumerate(text) if c != " "]
    letters = torch.tensor([[ord(text[a]) for a, _ in places]])
    context = Text(letters, torch.tensor([len(places)]), torch.tensor([places]))
    counts = sentences(torch.ones(1, len(places)), letters, context)[0].tolist()
    assert counts == [2.0] * 2 + [6.0] * 6 + [2.0] * 2 + [2.0] * 2


def test_later_turns_are_read_with_answers_given_before(here):
    """By default its own, with `history=gold` the true ones; the first turn has none either way."""
    encoder, target, samples = made(here, "coqa", max_length=48)
    rounds = target.rounds(samples)
    assert [r.tolist() for r in rounds] == [[t, 6 + t, 12 + t, 18 + t] for t in range(6)]
    told = encoder.processor.decode
    seen: dict[int, str] = {}
    target.rounds(samples)
    for rows in rounds:
        batch = samples.subset(rows).batch(np.arange(len(rows)))
        pieces = target.dialogues.pieces(encoder, batch, told=False)
        if rows[0] > 0:
            answer, size = pieces[-2]
            ids = next(iter(encoder.processor.encode([seen[int(rows[0]) - 1]])))[0]
            assert answer[0, : size[0]].tolist() == ids
        found = answered(encoder, target, batch)
        seen.update(zip(rows.tolist(), found.first, strict=True))
        target.hear(found)
    whole = predicted(encoder, target, samples, CPU, 3)
    assert whole.first == [seen[i] for i in range(len(samples))]
    target.dialogues.heard = {(0, 1): "ada", (0, 2): "rome"}
    pieces = target.dialogues.pieces(encoder, samples.batch(np.array([2])), told=False)
    assert [told(t[0, : n[0]].tolist()) for t, n in pieces][1::2] == ["ada", "rome"]  # the last turn stands last
    _, gold_target, _ = made(here, "coqa", max_length=48, history="gold")
    assert gold_target.rounds(samples) is None
    pieces = gold_target.dialogues.pieces(encoder, samples.batch(np.array([2])), told=False)
    assert [told(t[0, : n[0]].tolist()) for t, n in pieces][1::2] == [told(next(iter(encoder.processor.encode([a])))[0])
                                                                     for a in (samples.answers.texts[0][0], "Yes")]  # fmt: skip


@pytest.mark.parametrize("words", [[""], ["yes", "no"]])
def test_a_score_is_of_the_answer_that_is_given(words):
    """How probable a place is says nothing of a word; an answer at a place is there and nowhere else."""
    kinds = torch.tensor([[0.0, 6.0, *[-9.0] * (len(words) - 1)]] * 2 + [[6.0, 0.0, *[-9.0] * (len(words) - 1)]] * 2)
    sure, tokens = torch.tensor([0.03, 0.97, 0.03, 0.97]), torch.tensor([[0, 0]] * 4)
    context = Text(torch.zeros(4, 1).long(), torch.ones(4).long(), torch.tensor([[[0, 1]]] * 4))
    batch = {"characters": torch.full((4, 3), 97)}
    found = reading_answers.answered(Best(torch.zeros(4), tokens), sure, kinds, 0.0, context, batch, {"words": words})
    assert [texts[0] for texts in found.texts] == [words[0]] * 2 + ["a"] * 2
    p = kinds.softmax(1).max(1).values
    assert found.scores[:, 0].tolist() == pytest.approx((p * torch.tensor([1, 1, 0.03, 0.97])).tolist())


def test_the_threshold_is_the_best_there_is():
    """Against a search through all of them, with equal leads."""
    space, rng = {"scorer": "squad", "words": [""]}, np.random.default_rng(0)
    n = 60
    kinds = rng.integers(0, 2, n)
    truth = Spans(Ragged.of([[(0, 1)] if k == 0 else [] for k in kinds], np.int64, 2), space, kinds=kinds,
                  texts=[["x"] if k == 0 else [] for k in kinds], contexts=["x y"] * n)  # fmt: skip
    places = rng.integers(0, 2, n) * 2
    lead = rng.integers(-3, 4, n) + 1.5 * kinds

    def answers(threshold: float) -> Spans:
        chosen = (lead > threshold).astype(int)
        texts = [[""] if c else ["x y"[p : p + 1]] for c, p in zip(chosen, places, strict=True)]
        values = Ragged.of([[(p, p + 1)] for p in places], np.int64, 2)
        return Spans(values, space, kinds=chosen, texts=texts, scores=np.stack([np.ones(n), lead], 1))

    found = reading_answers.best_threshold(answers(0.0), truth)
    best = max(reading_metrics(answers(t), truth)["f1"] for t in np.arange(-8, 8, 0.25))
    assert reading_metrics(answers(found), truth)["f1"] == pytest.approx(best) and best > reading_metrics(answers(-99), truth)["f1"]


def test_a_cheap_method_finds_what_stands_beside_the_words_of_the_question(here):
    """Better than the whole context, and chosen on validation; where most questions have no answer, that there is none."""
    source = Reading(str(toy.squad(here / "own.json", n=40)), "squad", 2, "fail", 0.2, 0.2)
    train, val, test = (Rows(raw.items, raw.answers) for raw in map(source.get, ("train", "val", "test")))
    found = reading_baselines.strongest(train, val, test)
    score = answer_scores(found.predictions, test.answers)[:, 1].mean()
    assert (
        "rare words" in found.method
        and found.val_score > 0.4
        and score > 0.4 > 0.3 > reading_baselines.trivial(test.answers)["whole_context/f1"]
    )
    space = {"scorer": "squad", "words": [""]}
    nothing = Spans(Ragged.of([[]] * len(val.answers), np.int64, 2), space, kinds=np.ones(len(val.answers), int),
                    texts=[[]] * len(val.answers), contexts=val.answers.contexts)  # fmt: skip
    assert reading_baselines.strongest(*[Rows(val.items, nothing)] * 3).method == "no answer"
    assert reading_baselines.trivial(nothing)["no_answer/f1"] == 1.0


def test_mistakes_are_told(here):
    encoder, target, _ = made(here)
    with pytest.raises(UserError, match=r"objective.history=mine: give predicted or gold"):
        ExtractiveQA(encoder, target.space, 0.0, 0.25, 0.5, 8, None, False, "mine")
    with pytest.raises(UserError, match="places in a text, which only views=plain"):
        target.check_views(Plain(2))
    with pytest.raises(UserError, match="has an answer with a place in its context"):
        source = Reading(str(toy.squad(here / "open.json", n=3, answers=False)), "squad", 2, "fail", 0, 0)
        ExtractiveQA.check(source, source.read("train").answers)
