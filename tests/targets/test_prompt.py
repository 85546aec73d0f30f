"""Protects prompting: scores against the whole model one row and one label at a time, what is cut, examples, calibration, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from sslt.data.answers import Class
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.objectives.parts import vocabulary
from sslt.objectives.parts.vocabulary import log_probabilities
from sslt.targets import words
from sslt.targets.calibration import PRIOR, fit_biases
from sslt.targets.prompt import Prompt
from sslt.targets.prompts import balanced

TEXTS = [
    "Unbelievably good acting, but it was a long film.",
    '"Don\'t" watch this: the plot was terrible and dull!',
    "這間酒店環境和服務很好",
    "I laughed.",
    "Great",
]
CORPUS = [*TEXTS, "Review: It was great. wonderful bad terrible film", "很好 很差 房间很好。 differently spelled words"] * 3
SPACE = {"classes": ["negative", "positive"]}
WORDS = {"negative": ["bad", "terrible film"], "positive": ["great", "wonderful", "unbelievably good"]}
YAML: dict[str, Any] = {
    "template": "{text} It was {label}.", "words": WORDS, "shots": 0, "joiner": "\n", "calibrate": "none", "max_length": None, "seed": 0,
}  # fmt: skip
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.5}


def processor(kind: str, max_length: int = 64) -> TextProcessor:
    tokenizer = train_tokenizer(CORPUS, 200, True) if kind == "wordpiece" else train_reversible(kind, CORPUS, 420, False, 0)
    return TextProcessor(tokenizer, max_length)


def encoder(family: str, kind: str, max_length: int = 64) -> TextEncoder:
    torch.manual_seed(0)
    p = processor(kind, max_length)
    if family == "bert":
        return TextEncoder(p, "bert", {**SMALL, "intermediate_size": 16}, "mean", words=True).eval()
    more = {"intermediate_size": 16, "num_key_value_heads": 2} if family == "llama" else {}
    return CausalEncoder(p, family, {**SMALL, **more}, "last").eval()


def samples(p: TextProcessor, texts: list[str], labels: list[int] | None = None) -> TextSamples:
    ids = [row for chunk in p.encode(texts) for row in chunk]
    sizes = np.array([len(row) for row in ids])
    answers = Class(np.array(labels if labels is not None else [0] * len(texts)), SPACE)
    tokens = np.concatenate(ids).astype(np.int32)
    return TextSamples(tokens, np.cumsum(sizes) - sizes, sizes, answers, "x", p.special, p.max_length, 0)


def scored(target: Prompt, e: TextEncoder, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return target.scores(e, e.inputs(samples(e.processor, texts).batch(np.arange(len(texts)))))


def ids_of(p: TextProcessor, text: str) -> list[int]:
    return p.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


# -------------------------------------------------------------------- against the whole model
def masked_by_hand(e: TextEncoder, template: str, text: str, word: str) -> float:
    """Hidden tokens in the place of the word, one prompt, the whole `BertForMaskedLM`."""
    p = e.processor
    spaced = template.split("{label}")[0].endswith(" ") and p.tokenizer.mask_token == "<mask>"  # byte-level: the space is the word's
    own = ids_of(p, " " + word if spaced else word)
    written = (template.replace(" {label}", "{label}") if spaced else template).replace("{text}", text)
    left, right = written.split("{label}")
    prompt = [p.cls_id, *ids_of(p, left), *[p.mask_id] * len(own), *ids_of(p, right), p.sep_id]
    with e.words.whole(e.model) as whole:
        logits = whole(input_ids=torch.tensor([prompt])).logits[0]
    at = [i for i, token in enumerate(prompt) if token == p.mask_id]
    return float(sum(logits[i].log_softmax(0)[token] for i, token in zip(at, own, strict=True)))


def causal_by_hand(e: TextEncoder, template: str, text: str, word: str) -> float:
    """What the tokenizer makes of the whole prompt, one forward of the whole model with its head."""
    p = e.processor
    left = template.split("{label}")[0].replace("{text}", text)
    before, whole = ids_of(p, left.rstrip()), ids_of(p, left + word)
    assert whole[: len(before)] == before
    row = [p.cls_id, *whole]
    scores = e.model(input_ids=torch.tensor([row])).logits[0].log_softmax(1)
    return float(sum(scores[i - 1, row[i]] for i in range(1 + len(before), len(row))))


@pytest.mark.parametrize(
    ("family", "kind", "template"),
    [
        ("bert", "wordpiece", "{text} It was {label}."),
        ("bert", "wordpiece", "{label}: {text}"),
        ("bert", "bpe", "Review: {text} It was {label}!"),
        ("gpt2", "bpe", "{text} It was {label}."),
        ("gpt2", "bpe", "Review: {text} It was {label}"),
        ("llama", "bpe", "Review:\n{text}\n{label}"),
        ("llama", "unigram", "Review: {text} It was {label}."),
        ("gpt2", "characters", "{text}很{label}。"),
        ("gpt2", "characters", "Review: {text} It was {label}."),
    ],
)
def test_scores_are_those_of_the_whole_model(family, kind, template, monkeypatch):
    """Words of one and several tokens, several of a class, rows of different length in one batch, words in chunks."""
    monkeypatch.setattr(words, "ROWS", 10)
    e = encoder(family, kind, max_length=120)
    target = Prompt(e, SPACE, **{**YAML, "template": template})
    by_hand = masked_by_hand if family == "bert" else causal_by_hand
    with torch.no_grad():
        wanted = [[np.log(np.mean([np.exp(by_hand(e, template, t, w)) for w in own])) for own in WORDS.values()] for t in TEXTS]
    assert {len(ids) for own in target.template.words for ids in own} != {1}
    assert torch.allclose(scored(target, e, TEXTS).double(), torch.tensor(wanted), atol=1e-4)


def test_a_row_alone_is_the_same_as_in_a_batch():
    e = encoder("gpt2", "bpe")
    target = Prompt(e, SPACE, **YAML)
    assert torch.allclose(scored(target, e, TEXTS), torch.cat([scored(target, e, [t]) for t in TEXTS]), atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_words_behind_a_prompt_that_is_kept_are_those_from_its_start(family, monkeypatch):
    """With a gradient every prompt is read with every word, without one its keys and values are computed once."""
    monkeypatch.setattr(words, "ROWS", 7)
    e = encoder(family, "bpe")
    target = Prompt(e, SPACE, **YAML)
    batch = samples(e.processor, [*TEXTS, "Great"]).batch(np.arange(6))
    assert torch.allclose(target.scores(e, e.inputs(batch)).detach(), scored(target, e, [*TEXTS, "Great"]), atol=1e-4)


def test_log_probabilities_and_their_gradient():
    """Those of a full log-softmax in float64, whatever the chunks; words may be named twice."""
    torch.manual_seed(0)
    inputs = [torch.randn(7, 5).double(), torch.randn(11, 5).double(), torch.randn(11).double()]
    chosen = torch.randint(0, 11, (7, 3))
    weight = torch.randn(7, 3).double()
    found = []
    for chunk in (1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "_chunks", lambda n, v, c=chunk: [slice(i, i + c) for i in range(0, n, c)])
            leaves = [x.clone().requires_grad_() for x in inputs]
            (log_probabilities(leaves[0], leaves[1], chosen, leaves[2]) * weight).sum().backward()
            found.append([x.grad for x in leaves])
    leaves = [x.clone().requires_grad_() for x in inputs]
    ((leaves[0] @ leaves[1].T + leaves[2]).log_softmax(1).gather(1, chosen) * weight).sum().backward()
    for grads in found:
        assert all(torch.allclose(a, b.grad) for a, b in zip(grads, leaves, strict=True))


@pytest.mark.parametrize(("family", "kind"), [("bert", "wordpiece"), ("gpt2", "bpe")])
def test_tuning_raises_the_score_of_the_true_class(family, kind):
    """The loss is the cross-entropy over the classes, of what is trained; a step along its gradient makes it smaller."""
    e = encoder(family, kind)
    target = Prompt(e, SPACE, **YAML)
    batch = samples(e.processor, TEXTS, [0, 1, 1, 0, 1]).batch(np.arange(5))
    batch["views"] = {k: x[None] for k, x in e.inputs(batch).items()}
    loss = target(e, batch).value
    wanted = torch.nn.functional.cross_entropy(scored(target, e, TEXTS), torch.tensor([0, 1, 1, 0, 1]))
    assert torch.isclose(loss, wanted, atol=1e-5)
    loss.backward()
    parameters = [p for p in e.parameters() if p.grad is not None]
    assert len(parameters) == len(list(e.parameters())) or family == "bert"
    size = sum(float(p.grad.square().sum()) for p in parameters) ** 0.5
    with torch.no_grad():
        for p in parameters:
            p -= 1e-2 / size * p.grad
        assert target(e, batch).value < loss


# -------------------------------------------------------------------- what is cut, and examples
@pytest.mark.parametrize(
    ("family", "kind", "template"), [("bert", "wordpiece", "{text} It was {label}."), ("gpt2", "bpe", "See: {text} It was {label}.")]
)
def test_the_text_is_cut_and_never_the_template(family, kind, template):
    e = encoder(family, kind, max_length=24)
    p, target = e.processor, Prompt(e, SPACE, **{**YAML, "template": template})
    text = "film was long and " * 20
    rows = target.prompts.of(e.inputs(samples(p, [text, "film"]).batch(np.arange(2))), [])
    longest = [p.mask_id] * target.template.longest if family == "bert" else []
    made, at = rows(longest)
    first = made["tokens"][0][made["mask"][0]].tolist()
    assert len(first) + (0 if family == "bert" else target.template.longest + len(target.template.after)) == 24
    before, between = target.template.before, target.template.between
    ending = [*between, *longest, *(target.template.after if family == "bert" else [])] + ([p.sep_id] if family == "bert" else [])
    shown = first[1 + len(before) : len(first) - len(ending)]
    assert first == [p.cls_id, *before, *shown, *ending]
    assert ids_of(p, (" " if target.template.spaced else "") + text)[: len(shown)] == shown and len(shown) > 4
    assert int(at[0]) == 1 + len(before) + len(shown) + len(between)


def test_examples_stand_before_the_text_as_they_would_be_written():
    """Balanced, drawn by the seed, each with its class's first word, and what they leave is the text's."""
    e = encoder("gpt2", "bpe", max_length=200)
    p = e.processor
    texts = [f"film {i} was long." for i in range(20)]
    data = samples(p, texts, [i % 2 for i in range(20)])
    target = Prompt(e, SPACE, **{**YAML, "shots": 3})
    target.prepare(e, data, 4)
    ids = target.examples[target.examples >= 0].tolist()
    lines = p.decode_text(ids).split("\n")
    assert lines[-1] == "" and len(lines) == 4
    chosen = [int(line.split()[1]) for line in lines[:-1]]
    assert len(set(chosen)) == 3 and sorted(np.bincount([i % 2 for i in chosen])) == [1, 2]
    assert all(line == f"{texts[i]} It was {WORDS[SPACE['classes'][i % 2]][0]}." for i, line in zip(chosen, lines, strict=False))
    again, other = (Prompt(e, SPACE, **{**YAML, "shots": 3, "seed": seed}) for seed in (0, 1))
    again.prepare(e, data, 4)
    other.prepare(e, data, 4)
    assert torch.equal(again.examples, target.examples) and not torch.equal(other.examples, target.examples)
    row = target.prompts.of(e.inputs(data.batch(np.array([5]))), ids)([])[0]["tokens"][0].tolist()
    assert row == [p.cls_id, *ids, *ids_of(p, texts[5] + " It was")]


def test_examples_are_balanced_however_rare_a_class_is():
    """Of each class as many or one more, no row twice, the rest from those that have more; the same for a seed."""
    labels = np.array([0] * 90 + [2] * 8 + [5] * 2)
    for count, wanted in ((3, [1, 1, 1]), (6, [2, 2, 2]), (12, [5, 5, 2])):
        rows = balanced(labels, count, 0)
        assert len(set(rows)) == count and [int((labels[rows] == c).sum()) for c in (0, 2, 5)] == wanted
    assert sorted((labels[balanced(labels, 4, 1)] == c).sum() for c in (0, 2, 5)) == [1, 1, 2]
    first, again, other = (balanced(labels, 6, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_examples_are_cut_alike_so_that_all_fit():
    e = encoder("llama", "bpe", max_length=120)
    data = samples(e.processor, ["was long and " * 40, "I laughed. " * 40, *TEXTS], [0, 1, 0, 1, 0, 1, 0])
    target = Prompt(e, SPACE, **{**YAML, "shots": 4})
    target.prepare(e, data, 4)
    shown = int((target.examples >= 0).sum())
    assert shown < 120 and target.prompts.room(shown) >= 4
    assert torch.isfinite(scored(target, e, ["film " * 200])).all()
    with pytest.raises(UserError, match=r"objective.shots=20: of 120 tokens, templates leave 0 for each text"):
        Prompt(e, SPACE, **{**YAML, "shots": 20}).prepare(e, samples(e.processor, TEXTS * 6), 4)
    with pytest.raises(UserError, match=r"objective.shots=8, and there are 5 training samples"):
        Prompt(e, SPACE, **{**YAML, "shots": 8}).prepare(e, samples(e.processor, TEXTS), 4)


# -------------------------------------------------------------------- calibration
def test_biases_are_the_optimum():
    """The scale and the biases of the least cross-entropy, as another optimizer finds them; a class without samples stays finite."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    scores = rng.normal(size=(300, 4)) * 3 + 2 * np.eye(4)[labels] + np.array([0, -20, 7, 0]) + rng.normal(size=(300, 1)) * 50
    scale, biases = fit_biases(torch.from_numpy(scores), torch.from_numpy(labels))

    centre = (scores - scores.mean(1, keepdims=True)).mean(0)

    def loss(x: np.ndarray) -> float:
        logits = x[0] * (scores - scores.mean(1, keepdims=True)) + x[1:]
        logits = logits - logits.max(1, keepdims=True)
        own = np.log(np.exp(logits).sum(1)) - logits[np.arange(300), labels]
        return float(own.mean() + PRIOR * np.square(x[1:] + x[0] * centre).sum() / 2)

    best = minimize(loss, np.array([0.1, 0, 0, 0, 0]), method="BFGS", options={"gtol": 1e-8})
    assert loss(np.array([scale, *biases.tolist()])) == pytest.approx(best.fun, abs=1e-6)
    assert (scale, *biases.tolist()) == pytest.approx(best.x, abs=0.01)


def test_a_model_that_says_the_opposite_is_not_turned_around():
    labels = torch.arange(100) % 2
    scores = torch.eye(2)[1 - labels] + 0.1 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    scale, biases = fit_biases(scores, labels)
    assert scale > 0 and biases.abs().max() < 0.1


def test_calibration_on_validation_makes_up_for_a_preference():
    """A model that always says one class is right on both once its bias is known; a folder keeps what was set."""
    e = encoder("gpt2", "bpe")
    target, other = (Prompt(e, SPACE, **{**YAML, "calibrate": "val"}) for _ in range(2))
    batch = samples(e.processor, TEXTS, [0, 1, 1, 0, 1]).batch(np.arange(5))
    with torch.no_grad():
        raw = target.predict(e, batch)
        order = torch.from_numpy(raw.scores[:, 1] - raw.scores[:, 0]).argsort()
        truth = Class(np.zeros(5, np.int64), SPACE)
        truth.values[order[3:].numpy()] = 1
        target.calibrate(raw, truth)
        assert (target.predict(e, batch).values == truth.values).all()
        other.load_state_dict(target.state_dict())
        assert np.array_equal(other.predict(e, batch).scores, target.predict(e, batch).scores)


def test_an_empty_text_says_what_is_preferred_without_one():
    """Contextual calibration: the scores less those of the template alone, and equal ones for an empty text."""
    e = encoder("bert", "wordpiece")
    plain, calibrated = (Prompt(e, SPACE, **{**YAML, "calibrate": how}) for how in ("none", "empty"))
    batch = samples(e.processor, TEXTS).batch(np.arange(len(TEXTS)))
    with torch.no_grad():
        empty = plain.scores(e, plain.prompts.empty(torch.device("cpu")))
        alone = [masked_by_hand(e, " It was {label}.", "", w) for w in WORDS["negative"]]
        assert float(empty[0, 0]) == pytest.approx(np.log(np.mean(np.exp(alone))), abs=1e-4)
        assert np.allclose(calibrated.predict(e, batch).scores, plain.predict(e, batch).scores - empty.numpy(), atol=1e-5)


# -------------------------------------------------------------------- many classes, and mistakes
def test_names_of_many_classes_are_their_words():
    """77 classes, underscores as spaces, words of several tokens, in bounded chunks."""
    space = {"classes": [f"card_film_{i}" for i in range(77)]}
    e = encoder("gpt2", "bpe")
    target = Prompt(e, space, **{**YAML, "words": None})
    assert target.prompts.processor.decode_text(target.template.words[7][0]) == " card film 7"
    scores = scored(target, e, TEXTS[:2])
    assert scores.shape == (2, 77)
    assert float(scores[1, 70]) == pytest.approx(causal_by_hand(e, YAML["template"], TEXTS[1], "card film 70"), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "It was {label}."}, "it needs one {text}"),
        ({"template": "{text} {label} {label}"}, "it needs one {label}"),
        ({"words": {"negative": ["bad"], "positive": ["☃☃"]}}, "'☃☃', a word for the class 'positive', is no word"),
        ({"words": {"negative": [" "], "positive": ["good"]}}, "' ', a word for the class 'negative', is no word"),
        ({"words": {"negative": ["Good"], "positive": ["good"]}}, "'negative' and 'positive' have a word in common, 'good'"),
        ({"words": {"negativ": ["bad"]}}, "there is no class 'negativ'; did you mean 'negative'"),
        ({"words": {"negative": []}}, "objective.words: 'negative' has none"),
        ({"template": "{text} It was long and a film and good and bad and dull {label}.", "max_length": 14}, "are read: shorten"),
        ({"max_length": 300}, "objective.max_length=300 is more than the model's 256 positions"),
        ({"calibrate": "vall"}, "objective.calibrate=vall: give none, empty, val; did you mean 'val'"),
        ({"shots": 4}, "only a causal encoder reads examples"),
    ],
)  # fmt: skip
def test_mistakes(settings, message):
    """One line each that names what is wrong."""
    with pytest.raises(UserError) as caught:
        Prompt(encoder("bert", "wordpiece"), SPACE, **{**YAML, **settings})
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_encoders_that_cannot_be_asked():
    """A masked one without its head, a causal one whose label stands first."""
    e = encoder("bert", "wordpiece")
    e.words = None
    with pytest.raises(UserError, match=r"pretrain it by \+task=mlm, or take a Hugging Face folder that has one"):
        Prompt(e, SPACE, **YAML)
    with pytest.raises(UserError, match=r"a causal encoder goes on with \{label\}, which has to stand behind \{text\}"):
        Prompt(encoder("gpt2", "bpe"), SPACE, **{**YAML, "template": "{label}: {text}"})
