"""Protects tagging: tags of tokens from spans of characters and back, the best allowed sequence, whole words, windows, the loss."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslt.data import cache
from sslt.data.answers import Tags
from sslt.data.base import Raw, Source
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import inside_words
from sslt.data.ragged import Ragged
from sslt.data.views.base import Plain
from sslt.encoders.base import Features
from sslt.errors import UserError
from sslt.targets import bio
from sslt.targets.tagging import Tagging

TYPES = ["per", "loc"]
SPACE = {"types": TYPES}


class Toy(Source):
    """Names in sentences of different length; `spans` of (start, end, type) are found by what stands there."""

    modality, name, answer = "text", "toy", Tags
    val_fraction = test_fraction = 0.0

    def __init__(self, rows=None):
        self.rows = rows or [
            ("anna abcabc met bob in abcville", [("anna abcabc", 0), ("bob", 0), ("abcville", 1)]),
            ("nobody came", []),
            ("abcville", [("abcville", 1)]),
            ("we saw bob , bob and abcabc there in abcville and abcabc in bobville .", [("bob", 0), ("abcabc", 0), ("abcville", 1)]),
        ]

    def own_splits(self):
        return ("train",)

    def fingerprint(self):
        return cache.digest("toy", self.rows)

    @property
    def classes(self):
        return None

    @property
    def space(self):
        return SPACE

    def read(self, split):
        values = [[(t.index(s), t.index(s) + len(s), k) for s, k in found] for t, found in self.rows]
        return Raw([t for t, _ in self.rows], Tags(Ragged.of(values, np.int64, 3), SPACE))


class Known(nn.Module):
    """An encoder whose tokens have the features that it is given, [B, L, D]."""

    chunk_size = None

    modality, offers, args = "text", frozenset({"tokens"}), {}

    def __init__(self, processor, dim: int):
        super().__init__()
        self.processor, self.dim, self.given = processor, dim, None

    def inputs(self, batch):
        return {k: batch[k] for k in ("tokens", "mask")}

    def forward(self, inputs):
        return Features(self.given[:, 0], self.given, inputs["mask"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_root", tmp_path / "cache")


@pytest.fixture
def processor(tmp_path, monkeypatch):
    return TextProcessor.fit(Toy(), vocab_size=52, max_length=64, lowercase=True)


def tagging(processor, dim: int = 5) -> tuple[Tagging, Known]:
    """A tagger whose logits are the features of its tokens."""
    encoder = Known(processor, dim)
    target = Tagging(encoder, SPACE, 0.0)  # type: ignore[arg-type]
    with torch.no_grad():
        target.head.weight.copy_(torch.eye(5, dim))
    return target, encoder


def surely(labels: torch.Tensor) -> torch.Tensor:
    return 20.0 * F.one_hot(labels, 5).float()


def spans_of(answers: Tags) -> list[list[tuple[int, ...]]]:
    return [[tuple(s) for s in row.tolist()] for row in answers.values]


def by_hand(places, tags):
    """Tags of the tokens of one text, by a loop."""
    found, last = [], -1
    for start, end in places:
        own = [i for i, (s, e, _) in enumerate(tags) if start >= 0 and s < end and start < e]
        found.append(0 if not own else 2 + 2 * tags[own[-1]][2] - (own[-1] != last))
        if end > start >= 0:
            last = own[-1] if own else -1
    return found


def random_row(rng, n):
    """Places of n tokens with marks among them, and spans that do not overlap, with ends inside tokens too."""
    edges = np.cumsum(rng.integers(0, 3, 2 * n) + (np.arange(2 * n) % 2))
    places = edges.reshape(n, 2).tolist()
    for i in rng.choice(n, n // 4, replace=False):
        places[i] = [-1, -1]
    ends = np.unique(rng.integers(0, edges[-1] + 1, 2 * (n // 4)))
    ends = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    return places, [[int(a), int(b), int(rng.integers(2))] for a, b in ends]


def test_labels_against_the_loop():
    """A token is in the span it overlaps; the first in it begins it, over marks and holes between; spans in any order."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = [random_row(rng, 16) for _ in range(3)]
        places = torch.tensor([p for p, _ in rows])
        tags = [np.array(t).reshape(-1, 3) for _, t in rows]
        shuffled = torch.from_numpy(Ragged.of([rng.permutation(t) for t in tags], np.int64, 3).padded(np.arange(3), -1))
        labels, text = bio.labels(places, shuffled)
        assert labels.tolist() == [by_hand(p, t) for p, t in rows]
        assert torch.equal(text, (places[..., 0] >= 0) & (places[..., 1] > places[..., 0]))


def allowed(path, whole):
    for i, tag in enumerate(path):
        before = path[i - 1] if i else 0
        inside = tag > 0 and tag % 2 == 0
        if inside and before not in (tag, tag - 1):
            return False
        if i and whole[i] and tag != before + before % 2:
            return False
    return True


def test_best_path_against_all_paths():
    """Of all sequences that are spans, and cut no word, the one of the highest score."""
    rng = np.random.default_rng(1)
    for trial in range(30):
        scores = torch.from_numpy(rng.normal(size=(2, 4, 5)) * (3 if trial % 2 else 1)).log_softmax(-1)
        whole = torch.from_numpy(rng.random((2, 4)) < (0.4 if trial % 3 else 0.0))
        whole[:, 0] = False
        found = bio.best_path(scores, whole)
        for b in range(2):
            paths = [p for p in itertools.product(range(5), repeat=4) if allowed(p, whole[b].tolist())]
            best = max(paths, key=lambda p: sum(scores[b, i, t].item() for i, t in enumerate(p)))
            assert tuple(found[b].tolist()) == best


def test_there_and_back(processor):
    """What the answers say of tokens, decoded, is the answers; they are the best that there is, and nothing is the worst."""
    samples = processor.prepare(Toy(), "train")
    batch = samples.batch(np.arange(4))
    target, encoder = tagging(processor)
    encoder.given = surely(bio.labels(batch["places"], batch["tags"])[0])
    found = target.predict(encoder, batch)
    assert spans_of(found) == spans_of(samples.answers) and target.measure(found, samples.answers)["f1"] == 1.0
    assert target.errors(found, samples.answers).tolist() == [0, 0, 0, 0]
    encoder.given = surely(torch.zeros_like(batch["tokens"]))
    nothing = target.predict(encoder, batch)
    assert target.measure(nothing, samples.answers)["f1"] == 0.0 and target.errors(nothing, samples.answers).tolist() == [3, 0, 1, 3]
    assert target.measure(samples.answers, samples.answers)["f1"] == 1.0
    assert target.measure(samples.answers.take(np.array([3, 0, 1, 2])), samples.answers)["f1"] < 0.3


def test_a_batch_equals_its_rows(processor):
    """What pads a row has no say, whatever its scores."""
    samples = processor.prepare(Toy(), "train")
    target, encoder = tagging(processor)
    batch = samples.batch(np.arange(4))
    torch.manual_seed(3)
    encoder.given = 3 * torch.randn(*batch["tokens"].shape, 5)
    together = target.predict(encoder, batch)
    for i in range(4):
        one, n = samples.batch(np.array([i])), samples.batch(np.array([i]))["tokens"].shape[1]
        given = encoder.given
        encoder.given = 3 * torch.randn(1, n, 5)
        size = int(one["mask"].sum())
        encoder.given[:, :size] = given[i : i + 1, :size]
        alone = target.predict(encoder, one)
        encoder.given = given
        assert spans_of(alone)[0] == spans_of(together)[i]
        np.testing.assert_allclose(alone.scores[0], together.scores[i], rtol=1e-5)


def test_words_are_whole_unless_training_cuts_them(processor):
    """However the pieces of a word are scored, no span ends inside it; where the truth does so, spans may."""
    samples = processor.prepare(Toy(), "train")
    target, encoder = tagging(processor)
    target.prepare(encoder, samples, 4)  # type: ignore[arg-type]
    assert target.cuts_words == 0
    batch = samples.batch(np.arange(4))
    torch.manual_seed(0)
    cut = 0
    for _ in range(20):
        encoder.given = 4 * torch.randn(*batch["tokens"].shape, 5)
        for text, row in zip(Toy().read("train").items, spans_of(target.predict(encoder, batch)), strict=True):
            for start, end, _ in row:
                cut += text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()
    assert cut == 0
    inside = Toy([("annabob and abcabc", [("anna", 0)])] * 3 + [("met bob", [("bob", 0)])])
    cutting = processor.prepare(inside, "train")
    target.prepare(encoder, cutting, 4)  # type: ignore[arg-type]
    batch = cutting.batch(np.arange(4))
    places = batch["places"][0]
    assert places[1].tolist()[1] < 7, "the tokenizer has to cut the word for this test to say something"
    assert target.cuts_words == 1
    labels = torch.zeros_like(batch["tokens"])
    labels[0, 1] = 1
    encoder.given = surely(labels)
    assert spans_of(target.predict(encoder, batch))[0] == [(0, places[1, 1].item(), 0)]


@pytest.mark.parametrize("windows", [None, 2, 1])
def test_windows_and_texts_cut_short(processor, windows):
    """Read in windows, places and tags agree over their ends, also in the middle of a span; what is not read is missed, not forgotten."""
    source = Toy()
    whole = processor.prepare(source, "train").batch(np.arange(4))
    expected = [row[t].tolist() for row, t in zip(*bio.labels(whole["places"], whole["tags"]), strict=True)]
    processor.max_length, processor.windows = 7, windows
    samples = processor.prepare(source, "train")
    target, encoder = tagging(processor)
    batch = samples.batch(np.arange(4))
    labels, text = bio.labels(batch["places"], batch["tags"])
    read = 10**6 if windows is None else windows * 5
    assert [row[t].tolist() for row, t in zip(labels, text, strict=True)] == [row[:read] for row in expected]
    encoder.given = surely(labels)
    found = target.predict(encoder, batch)
    metrics = target.measure(found, samples.answers)
    if windows is None:
        assert metrics["f1"] == 1.0 and spans_of(found) == spans_of(samples.answers)
        target.prepare(encoder, samples, 4)  # type: ignore[arg-type]
        assert target.cuts_words == 0
    else:
        assert metrics["recall"] < 1.0 and sum(metrics[f"type/{t}/support"] for t in TYPES) == 7


def test_loss_against_the_loop(processor):
    """The mean of -log p over tokens of text alone, every view against the same tags; gradients of accumulated batches add up by units."""
    samples = processor.prepare(Toy(), "train")
    target, encoder = tagging(processor)
    target.double()
    batch = Plain(1)(samples.batch(np.arange(4)), encoder)
    batch["views"] = {k: x.expand(2, *x.shape[1:]) for k, x in batch["views"].items()}
    torch.manual_seed(1)
    given = torch.randn(8, *batch["tokens"].shape[1:], 5, dtype=torch.float64)
    encoder.given = given
    loss = target(encoder, dict(batch))
    labels, text = bio.labels(batch["places"], batch["tags"])
    where = [(v * 4 + b, b, i) for v in (0, 1) for b in range(4) for i in range(len(text[b])) if text[b, i]]
    parts = [-given[row, i].log_softmax(0)[labels[b, i]].item() for row, b, i in where]
    assert loss.value.item() == pytest.approx(sum(parts) / len(parts))
    assert target.units(batch) == len(parts) // 2 == text.sum()
    right = [given[row, i].argmax() == labels[b, i] for row, b, i in where]
    assert loss.logs["token_accuracy"].item() == pytest.approx(np.mean(right))

    def grad(rows):
        target.zero_grad()
        part = Plain(1)(samples.batch(rows), encoder)
        encoder.given = given[rows, : part["tokens"].shape[1]]
        target(encoder, part).value.backward()
        return target.head.weight.grad.clone(), int(target.units(part))

    (all_of, n), (a, i), (b, j) = grad(np.arange(4)), grad(np.array([0, 1])), grad(np.array([2, 3]))
    assert n == i + j
    torch.testing.assert_close((a * i + b * j) / n, all_of)


def test_rows_and_scores(processor):
    """A list of spans, each with the geometric mean of its tokens' probabilities; truth has no scores."""
    samples = processor.prepare(Toy(), "train")
    target, encoder = tagging(processor)
    batch = samples.batch(np.array([2]))
    labels, text = bio.labels(batch["places"], batch["tags"])
    encoder.given = torch.where(text.unsqueeze(2), 2.0, 9.0) * F.one_hot(labels, 5)
    (row,) = target.rows(target.predict(encoder, batch))
    share = math.exp(2) / (math.exp(2) + 4)
    assert row == {"prediction": [{"start": 0, "end": 8, "type": "loc", "score": pytest.approx(share, abs=1e-3)}]}
    assert target.rows(samples.answers)[2] == {"prediction": [{"start": 0, "end": 8, "type": "loc"}]}


def test_places_leave_out_the_space_before_a_word():
    """Of tokenizers that count it as the word's: spans begin at the first letter. A comma is not of the word before it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<unk>", "<s>", "</s>", "▁met", "▁an", "na", ",", "▁"]
    backend = Tokenizer(models.Unigram([(t, -1.0) for t in entries], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<s>")
    processor = TextProcessor(tokenizer, 16)
    source = Toy([("met anna, met", [("anna", 0)]), (" anna", [("anna", 0)])])
    samples = processor.prepare(source, "train")
    batch = samples.batch(np.arange(2))
    assert batch["places"][0, :7].tolist() == [[-1, -1], [0, 3], [4, 6], [6, 8], [8, 9], [10, 13], [-1, -1]]
    words = bio.continuing(batch["places"], batch["tokens"], torch.from_numpy(inside_words(tokenizer)))
    assert words[0].nonzero().flatten().tolist() == [3]
    target, encoder = tagging(processor)
    encoder.given = surely(bio.labels(batch["places"], batch["tags"])[0])
    assert spans_of(target.predict(encoder, batch)) == spans_of(samples.answers)


def test_tokens_of_one_character():
    """As byte-level tokenizers cut what is rare: they are in one span or in none, so that no two spans share a character."""
    places = torch.tensor([[[-1, -1], [0, 1], [0, 1], [0, 1], [1, 3], [-1, -1]]])
    labels, _ = bio.labels(places, torch.tensor([[[0, 1, 1], [1, 3, 0]]]))
    assert labels.tolist() == [[0, 3, 4, 4, 1, 0]]
    scores = surely(torch.tensor([[0, 1, 1, 3, 1, 0]])).log_softmax(-1)
    spans, sure = bio.decode(scores, places, torch.zeros(1, 6, dtype=torch.bool))
    assert spans[0].tolist() == [[0, 1, 0], [1, 3, 0]] and sure.sizes.tolist() == [2]


def test_what_cannot_be_tagged(processor):
    """Views that move tokens, an encoder without tokens, texts without a tag."""
    target, _ = tagging(processor)
    with pytest.raises(UserError, match="views=plain"):
        target.check_views(SimpleNamespace(n=2))  # type: ignore[arg-type]
    bag = Known(processor, 5)
    bag.offers = frozenset({"pooled"})
    with pytest.raises(UserError, match="choose a transformer, encoder=bert_tiny"):
        Tagging(bag, SPACE, 0.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of the 1 training texts of toy has a tag"):
        Tagging.check(Toy(), Toy([("nothing", [])]).read("train").answers)
