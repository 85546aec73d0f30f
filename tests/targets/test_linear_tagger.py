"""Protects the linear tagger: its probabilities and gradients, what it learns, pieces of words, and how it stands beside an encoder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_tagging import SPACE, Toy, surely, tagging

from sslt.data import cache
from sslt.data.answers import Tags
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.text_samples import as_text
from sslt.data.ragged import Ragged
from sslt.targets import bio, linear_tagger, tag_fusion
from sslt.targets.base import Rows
from sslt.targets.linear_tagger import LinearTagger, allowed, chances, mixed, of_tokens
from sslt.targets.metrics.tags import tag_metrics
from sslt.targets.tag_features import words_of

FIRST, LAST = ("anna", "bob", "cleo", "dora"), ("ville", "burg", "ton")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")
    monkeypatch.setattr(linear_tagger, "STEPS", 60)


def sentences(n: int, seed: int, glue: str = "") -> Rows:
    """Sentences with a person and a place, most places of a name of their own; `glue` is put behind each name without a space."""
    rng = np.random.default_rng(seed)
    texts, tags = [], []
    for _ in range(n):
        person = str(rng.choice(FIRST))
        place = "".join(rng.choice(list("abdeglmor"), 4)) + str(rng.choice(LAST))
        text = f"yesterday {person}{glue} went to {place}{glue} again"
        a, b = text.index(person), text.index(place)
        texts.append(text)
        tags.append([(a, a + len(person), 0), (b, b + len(place), 1)])
    return Rows(texts, Tags(Ragged.of(tags, np.int64, 3), SPACE))


def f1(tagger: LinearTagger, rows: Rows, demand: float = 0.0) -> dict[str, float]:
    return tag_metrics(tagger.tag(rows.items, demand)[0], rows.answers.values, rows.answers.types)


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_probabilities_against_all_taggings(size):
    """Of tags and of one behind another: the gradient of log Z over every allowed tagging; rows of other lengths, wild scores."""
    torch.manual_seed(0)
    k, sizes = 5, torch.tensor([4, 1, 3])
    scores = (size * torch.randn(3, 4, k)).double().requires_grad_()
    follows = torch.randn(k + 1, k).double().requires_grad_()
    may, total = allowed(k), torch.zeros((), dtype=torch.float64)
    for row, n in enumerate(sizes.tolist()):
        ways = [way for way in itertools.product(range(k), repeat=n) if all(may[a, b] for a, b in zip((k, *way), way, strict=False))]
        each = [
            sum(scores[row, t, tag] + follows[before, tag] for t, (before, tag) in enumerate(zip((k, *way), way, strict=False)))
            for way in ways
        ]
        total = total + torch.stack(each).logsumexp(0)
    expected = torch.autograd.grad(total, (scores, follows))
    there = torch.arange(4) < sizes[:, None]
    found = chances(scores.detach(), there, follows.detach())
    torch.testing.assert_close(found.tags, expected[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.follows, expected[1], atol=1e-6, rtol=1e-5)
    assert torch.isfinite(chances(1e4 * scores.detach().float(), there, follows.detach().float()).tags).all()


def test_which_tags_follow():
    """I-x stands behind B-x and I-x alone, never first."""
    may = allowed(5)
    assert [may[:, 2].tolist(), may[:, 4].tolist()] == [[False, True, True, False, False, False], [False, False, False, True, True, False]]
    assert may[:, [0, 1, 3]].all()


def test_learns_and_is_known_again():
    """Names that training did not have are found by their ends and neighbours; the cache and a folder's settings give the same tagger."""
    train, test = sentences(150, 0), sentences(60, 1)
    tagger = LinearTagger.solve(*train)
    assert f1(tagger, test)["f1"] > 0.95 and not tagger.characters
    assert tagger.follows[1, 0] > max(0, float(tagger.follows[1, 1:].max()))  # names have one word, and none stand together
    again, copy = LinearTagger.solve(*train), LinearTagger.beside(None, tagger.settings)  # type: ignore[arg-type]
    copy.load_state_dict(tagger.state_dict())
    for other in (again, copy):
        assert [r.tolist() for r in other.tag(test.items, 0.0)[0]] == [r.tolist() for r in tagger.tag(test.items, 0.0)[0]]
    together, _ = tagger.read(test.items)
    alone, _ = tagger.read(test.items[7:8])
    torch.testing.assert_close(alone[0], together[7, : alone.shape[1]])
    assert [len(row) for row in tagger.tag(["", "  "], 0.0)[0]] == [0, 0] and len(tagger.tag([], 0.0)[0]) == 0
    few = LinearTagger.solve(train.items[:3], train.answers.take(np.arange(3)))
    assert f1(few, test, 5.0)["recall"] > f1(few, test, -9.0)["recall"]  # what is demanded of being in no span


def test_long_texts_are_cut(monkeypatch):
    """Into pieces of one text each: names are found in all of them, whatever stands between; texts without words have none."""
    rows = sentences(90, 0)
    text, tags = "", []
    for sentence, spans in zip(rows.items, rows.answers.values, strict=True):
        tags += [(a + len(text), b + len(text), k) for a, b, k in spans.tolist()]
        text += sentence + " "
    joined = Rows(["", text, "nobody"], Tags(Ragged.of([[], tags, []], np.int64, 3), SPACE))
    assert linear_tagger.pieces(np.array([0, 450, 1])).tolist() == [200, 200, 50, 1]
    monkeypatch.setattr(linear_tagger, "CHAIN", 9)  # a sentence has six words
    assert linear_tagger.pieces(np.array([0, 18, 1])).tolist() == [9, 9, 1]
    assert f1(LinearTagger.solve(*joined), joined)["f1"] > 0.95
    monkeypatch.setattr(linear_tagger, "CHAIN", 2)
    tags = Ragged.of([[], [(2, 9, 1)]], np.int64, 3)  # over the cut, behind which it begins anew, as nothing may start inside
    assert linear_tagger._labels(words_of(["a", "b c d e f"], False), tags).tolist() == [0, 0, 3, 3, 4, 3]


def test_names_that_end_inside_words():
    """Where training has many, characters are words."""
    train, test = sentences(150, 0, "에서"), sentences(40, 1, "에서")
    tagger = LinearTagger.solve(*train)
    assert tagger.characters and f1(tagger, test)["f1"] > 0.8


def test_cheapest_is_chosen_on_validation():
    """A dictionary knows no new place; without validation it is the linear tagger."""
    train, val, test = sentences(150, 0), sentences(40, 1), sentences(40, 2)
    target = tagging(TextProcessor.fit(Toy(), vocab_size=52, max_length=64, lowercase=True))[0]
    found = target.cheapest("text", train, val, test)
    assert found.method == linear_tagger.METHOD and found.val_score > 0.9
    assert target.measure(found.predictions, test.answers)["f1"] > 0.9
    assert target.cheapest("text", train, None, test).method == linear_tagger.METHOD


def test_pieces_of_words():
    """The first piece of a word begins what the word begins; the others are inside it; what stands for no text has nothing."""
    p = torch.tensor([[[0.1, 0.6, 0.1, 0.1, 0.1], [0.2, 0.1, 0.5, 0.1, 0.1]]])
    words, tokens = torch.tensor([[[0, 6], [7, 9]]]), torch.tensor([[[-1, -1], [0, 2], [2, 6], [7, 9], [-1, -1]]])
    found = of_tokens(p.log(), words, tokens)
    assert (found[0, [0, 4]] == 0).all()
    torch.testing.assert_close(found[0, [1, 3]].exp(), p[0])
    torch.testing.assert_close(found[0, 2].exp(), torch.tensor([0.1, 0.0, 0.7, 0.0, 0.2]), atol=1e-6, rtol=1e-5)


def test_mixed_by_hand():
    """Weights times log-probabilities, less what is demanded of being in no span; probabilities again."""
    own, others = torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([0.6, 0.3, 0.1]).log()
    raw = np.array([0.2**2 * 0.6**0.5 / np.e, 0.3**2 * 0.3**0.5, 0.5**2 * 0.1**0.5])
    np.testing.assert_allclose(mixed(torch.tensor([2.0, 0.5, 1.0]), own, others).exp(), raw / raw.sum(), rtol=1e-5)


def test_beside_an_encoder():
    """An encoder that knows nothing is passed over, one that knows all is believed; each is measured, and they answer together."""
    processor = TextProcessor.fit(Toy(), vocab_size=52, max_length=64, lowercase=True)
    made = sentences(90, 0)
    source = Toy([(text, [(text[a:b], k) for a, b, k in row.tolist()]) for text, row in zip(made.items, made.answers.values, strict=True)])
    samples = processor.prepare(source, "train")
    assert [samples.text(i) for i in range(3)] == [text for text, _ in source.rows[:3]]
    train, val = samples.subset(np.arange(60)), samples.subset(np.arange(60, 90))
    assert val.text(0) == made.items[60] == as_text(val.batch(np.array([0]))["text"][0].numpy())
    for knows in (False, True):
        target, encoder = tagging(processor)

        def read(inputs, knows=knows, encoder=encoder):
            index = next(i for i in val.ordered_batches(tag_fusion.BATCH) if len(i) == len(inputs["tokens"]))
            batch = val.batch(index)
            labels = bio.labels(batch["places"], batch["tags"])[0]
            torch.manual_seed(0)
            encoder.given = surely(labels) if knows else 3 * torch.randn(*labels.shape, 5)
            return type(encoder).forward(encoder, inputs)

        encoder.forward = read
        found = target.fuse(encoder, None, train, val, torch.device("cpu"))  # type: ignore[arg-type]
        (tagger,) = target.beside
        assert found["val/linear_tagger_f1"] > 0.8 and (found["val/encoder_f1"] == 1.0) == knows
        assert knows or tagger.mix[1] > 2 * tagger.mix[0]
        alone, target.beside = target.beside, torch.nn.ModuleList()
        (rows,) = val.ordered_batches(tag_fusion.BATCH)
        assert target.measure(target.predict(encoder, val.batch(rows)), val.answers.take(rows))["f1"] == found["val/encoder_f1"]
        target.beside = alone
        (index,) = val.ordered_batches(tag_fusion.BATCH)
        answers = val.answers.take(index)
        assert target.measure(target.predict(encoder, val.batch(index)), answers)["f1"] >= max(found.values()) - 1e-9
    target.beside = torch.nn.ModuleList()
    assert target.fuse(encoder, None, train, None, torch.device("cpu")) == {}  # type: ignore[arg-type]
    assert target.beside[0].mix.tolist() == list(tag_fusion.EQUAL)


def test_of_much_text_some_is_learned_from(monkeypatch):
    """Whole texts, and no more words than are allowed."""
    rows, seen = sentences(40, 0), []
    monkeypatch.setattr(linear_tagger, "MOST_WORDS", 50)
    monkeypatch.setattr(linear_tagger, "_train", lambda tagger, features, tags, sizes: seen.append(sizes.tolist()))
    LinearTagger.solve(*rows)
    assert seen == [[6] * 8]


def test_training_follows_the_likelihood(monkeypatch):
    """The rate of nothing moves nothing; some steps make the true tags more likely."""
    rows = sentences(40, 0)

    def nll() -> float:
        tagger = LinearTagger.solve(*rows)
        scores, places = tagger.read(rows.items)
        labels, text = bio.labels(places, torch.from_numpy(rows.answers.values.padded(np.arange(40), -1)))
        return float(F.nll_loss(scores[text], labels[text]))

    monkeypatch.setattr(linear_tagger, "EPOCHS", (1, 1))
    found = []
    for i, rate in enumerate((1e-9, 0.02, 0.1)):
        monkeypatch.setattr(linear_tagger, "RATE", rate)
        monkeypatch.setattr("sslt.targets.kept.FORMAT", 100 + i)
        found.append(nll())
    assert found[0] > found[1] > found[2]
