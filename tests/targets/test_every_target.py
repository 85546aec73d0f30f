"""Protects what every target promises, whatever its answers: true ones are the best, shuffled ones are worse, empty ones count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.data.answers import Answers, Class, Item, Labels, Map, Number, Tags, Texts
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.item_processor import ItemProcessor
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.ragged import Ragged
from sslt.data.spans import Spans
from sslt.encoders.conv4 import Conv4
from sslt.encoders.histories import CausalHistories
from sslt.encoders.seq2seq import Seq2SeqEncoder
from sslt.encoders.text import TextEncoder
from sslt.targets.base import Target
from sslt.targets.classification import Classification
from sslt.targets.extractive_qa import ExtractiveQA
from sslt.targets.multilabel import Multilabel
from sslt.targets.next_item import NextItem
from sslt.targets.pairs import Pairs
from sslt.targets.prompt import Prompt
from sslt.targets.regression import Regression
from sslt.targets.retrieval import Retrieval
from sslt.targets.segmentation import Segmentation
from sslt.targets.summarization import Summarization
from sslt.targets.tagging import Tagging
from sslt.targets.translation import Response, Translation

N = 60
RNG = np.random.default_rng(0)


def encoder() -> VectorEncoder:
    return VectorEncoder(nn.Linear(4, 4), 4)


def transformer() -> TextEncoder:
    """A tiny one, for targets that read tokens."""
    processor = TextProcessor(train_tokenizer(["ada went to rome"] * 5, 50, True), 16)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return TextEncoder(processor, "bert", small, "mean")


# target → (the target, true answers of N rows, answers that say nothing)
CASES: dict[str, Callable[[], tuple[Target, Answers, Answers]]] = {}


def case(name: str) -> Callable:
    return lambda made: CASES.setdefault(name, made)


@case("classification")
def classification() -> tuple[Target, Answers, Answers]:
    space = {"classes": ["a", "b", "c"]}
    return Classification(encoder(), space, 0.0, 0.0), Class(RNG.integers(0, 3, N), space), Class(np.zeros(N, np.int64), space)


@case("multilabel")
def multilabel() -> tuple[Target, Answers, Answers]:
    space = {"classes": ["a", "b", "c"]}
    return Multilabel(encoder(), space, 0.0), Labels(RNG.random((N, 3)) < 0.4, space), Labels(np.zeros((N, 3), bool), space)


@case("regression")
def regression() -> tuple[Target, Answers, Answers]:
    return Regression(encoder(), {}, 0.0, None), Number(RNG.normal(size=N), {}), Number(np.zeros(N), {})


@case("pairs")
def pairs() -> tuple[Target, Answers, Answers]:
    space = {"low": 0.0, "high": 5.0}
    return Pairs(encoder(), space, "mse", 20.0), Number(RNG.uniform(0, 5, N), space), Number(np.zeros(N), space)


@case("retrieval")
def retrieval() -> tuple[Target, Answers, Answers]:
    space = {"classes": ["a", "b", "c"]}
    answers = Class(RNG.integers(0, 3, N), space)
    return Retrieval(encoder(), space), answers, Class(np.zeros(N, np.int64), space)


@case("tagging")
def tagging() -> tuple[Target, Answers, Answers]:
    space = {"types": ["LOC", "PER"]}
    spans = [[(start, start + 3, int(RNG.integers(0, 2))) for start in range(0, 10 * int(RNG.integers(1, 4)), 10)] for _ in range(N)]
    return Tagging(transformer(), space, 0.0), Tags(Ragged.of(spans, np.int64, 3), space), Tags(Ragged.of([[]] * N, np.int64, 3), space)


@case("segmentation")
def segmentation() -> tuple[Target, Answers, Answers]:
    space = {"classes": ["ground", "thing", "other"]}
    maps = [RNG.integers(0, 3, (6, 5)).astype(np.uint8) for _ in range(N)]
    image = Conv4(ImageProcessor(16, 1, [0.5], [0.25]), width=4, blocks=2, downsample="pool", pooling="mean")
    return Segmentation(image, space, "linear", 8, 1, 0.0), Map.of(maps, space), Map.of([np.zeros((6, 5), np.uint8)] * N, space)


@case("extractive_qa")
def extractive_qa() -> tuple[Target, Answers, Answers]:
    space, context = {"scorer": "squad", "words": [""]}, "ada went to rome with some friends of hers"
    words = [(context.index(w), context.index(w) + len(w)) for w in context.split()]
    places = [[words[int(RNG.integers(0, len(words)))]] if RNG.random() < 0.7 else [] for _ in range(N)]
    kinds = np.array([0 if p else 1 for p in places])
    texts = [[context[a:b] for a, b in p] for p in places]
    answers = Spans(Ragged.of(places, np.int64, 2), space, kinds=kinds, texts=texts, contexts=[context] * N)
    nothing = Spans(Ragged.of([[]] * N, np.int64, 2), space, kinds=np.zeros(N, np.int64), texts=[["x"]] * N, contexts=[context] * N)
    return ExtractiveQA(transformer(), space, 0.0, 0.25, 0.5, 8, None, True, "predicted"), answers, nothing


@case("next_item")
def next_item() -> tuple[Target, Answers, Answers]:
    space = {"items": ["a", "b", "c", "d"]}
    small = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    reads = CausalHistories(ItemProcessor(space["items"], 5), "gpt2", small, "last")
    return NextItem(reads, space, "full", 1, 0.5, "exclude", 2, 0), Item(RNG.integers(0, 4, N), space), Item(np.full(N, -1), space)


@case("prompt")
def prompt() -> tuple[Target, Answers, Answers]:
    processor = TextProcessor(train_tokenizer(["ada went to rome", "it was a . b . c ."] * 5, 60, True), 24)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    masked = TextEncoder(processor, "bert", small, "mean", words=True)
    space = {"classes": ["a", "b", "c"]}
    target = Prompt(masked, space, "{text} it was {label}.", None, 0, "", "val", None, 0)
    return target, Class(RNG.integers(0, 3, N), space), Class(np.zeros(N, np.int64), space)


def written(kind: type) -> tuple[Target, Answers, Answers]:
    """A tiny T5; texts of a few of some words, two references each."""
    words = ["ada", "went", "to", "rome", "and", "bob", "stayed", "home", "all", "day"]
    processor = TextProcessor(train_reversible("bpe", [" ".join(words)] * 5, 400, False, 0), 16)
    encoder = Seq2SeqEncoder(processor, "t5", {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}, "mean")
    target = kind(encoder, {"language": "en"}, 0.1, 8, 0, 1, 1.0, False, 1.0, 0, 1.0, 0)
    rows = [[" ".join(RNG.permutation(words)[:6]) for _ in range(2)] for _ in range(N)]
    return target, Texts(rows, target.space), Texts([[""]] * N, target.space)


CASES |= {k.__name__.lower(): lambda k=k: written(k) for k in (Summarization, Response, Translation)}


@pytest.fixture(params=CASES)
def made(request) -> tuple[Target, Any, Any]:
    return CASES[request.param]()


def test_true_answers_are_the_best_ones(made):
    """The primary metric is 1 (0 where less is better), nothing is an error, and all metrics are finite numbers."""
    target, answers, _ = made
    found = target.measure(answers, answers)
    assert next(iter(found)) == target.primary and found[target.primary] == pytest.approx(1.0 if target.higher_is_better else 0.0)
    assert all(isinstance(v, float) and np.isfinite(v) for v in found.values())
    assert np.allclose(target.errors(answers, answers), 0, atol=1e-4)


def test_shuffled_answers_are_clearly_worse(made):
    target, answers, _ = made
    shuffled = answers.take(np.random.default_rng(1).permutation(N))
    ahead = target.measure(answers, answers)[target.primary] - target.measure(shuffled, answers)[target.primary]
    assert target.sign * ahead > 0.2 and target.errors(shuffled, answers).mean() > 0.1
    mean, low, high = target.difference(answers, shuffled, answers)
    assert mean == pytest.approx(target.sign * ahead) and low > 0 and low <= mean <= high


def test_an_empty_answer_counts(made):
    """It is measured over all rows, and no better than what is right."""
    target, answers, nothing = made
    found = target.measure(nothing, answers)[target.primary]
    assert np.isfinite(found) and target.sign * (target.measure(answers, answers)[target.primary] - found) > 0.2
    assert len(target.errors(nothing, answers)) == N


def test_every_row_is_written_and_a_folder_gives_the_same_answers(made, tmp_path):
    target, answers, _ = made
    rows = target.rows(answers)
    assert len(rows) == N and all("prediction" in row for row in rows)
    about = answers.save(tmp_path)
    kept = {p.stem: np.load(p, allow_pickle=False) for p in tmp_path.glob("*.npy")}
    again = Answers.load(kept, about)
    assert type(again) is type(answers) and again.space == answers.space and target.rows(again) == rows


def test_the_state_of_a_target_is_all_there_is_of_it(made):
    """Another one of the same space, given its state, has the same numbers: what `head/` keeps."""
    target, _, _ = made
    other = CASES[next(k for k, v in CASES.items() if type(v()[0]) is type(target))]()[0]
    other.load_state_dict(target.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), other.state_dict().values(), strict=True))
