"""What a cheap method knows beside a fine-tuned encoder: how much each counts is weighed on validation.

With many labels the words alone say most of what a short text says, and a vector that was learned for them can only blur it; gradients
and patches see of a picture what a small network was not trained long enough to see; with few labels it is often the other way round.
So all are asked (late fusion; Kittler et al., 1998): logits = a · encoder's + Σ b_k · scores of the k-th.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.data.streams.subsets import labels_of, some
from sslt.encoders.bag import BagEncoder
from sslt.encoders.base import Encoder
from sslt.encoders.descriptions import Described
from sslt.encoders.lexicon import SPELLED, TRIPLES, Lexicon, Terms
from sslt.encoders.side import SideModel
from sslt.targets.baselines import best_linear, of_classes
from sslt.targets.cheap_scores import OF_LABELS, each_label, precision, strengths
from sslt.targets.described import MOST_IMAGES, DescribedRows, Solver
from sslt.targets.kept import kept
from sslt.targets.linear import accuracy, beyond_chance, standard_error
from sslt.targets.metrics.multilabel import mean_average_precision
from sslt.targets.tf_idf import RARE

log = logging.getLogger("sslt")
BATCH = 256
MOST_WORDS = 1_200_000  # of training text in which parts of words are counted in seconds
LETTERS = 2.0  # a word on average: below, words are characters, and triples of them are words
NEXT_TO_NOTHING = 1e-3  # what the head is scaled by that has no part in the answers; by itself, with nothing beside it, it answers as ever
Counted = tuple[np.ndarray, Terms]  # rows of a batch, and their terms
Held = tuple[Any, Tensor] | None  # features or sparse rows of validation, and their truth


class Kind(NamedTuple):
    """What is told of samples, and how scores [N, C] of it are fitted and judged.

    score: the name of what `measured` gives of scores and truth, the higher the better, a share; `trials`: of how many it is one. loss:
    of both, summed. words: (sparse rows, truth, Held, C) → table [terms, C] and bias [C]. dense: of so many answers, on features.
    """

    score: str
    truth: Callable[[Samples], Tensor]
    measured: Callable[[Tensor, Tensor], float]
    trials: Callable[[Tensor], int]
    loss: Callable[[Tensor, Tensor], Tensor]
    words: Callable[[Any, Tensor, Held, int], tuple[np.ndarray, np.ndarray]]
    dense: Callable[[int], Solver]


def add(
    kind: Kind, encoder: Encoder, head: nn.Linear, beside: nn.ModuleList, own: Tensor, train: Samples, val: Samples | None,
    device: torch.device,
) -> dict[str, float]:  # fmt: skip
    """Solve for side models on `train` and put them `beside` the head, with the weights that are best on `val`.

    own: the head's logits on `val`, or on `train` without. Without `val` all count alike, by the spread of their logits on `train`.
    Where all together are worse by more than chance than one of them, that one answers alone; nothing changes if it is the encoder.
    Returns what was weighed: `val/encoder_accuracy`, and `val/words_accuracy` and the like.
    """
    if not encoder.side_models:
        return {}
    encoder.to("cpu")
    solved = [SOLVERS[name](kind, encoder, train, val, head.out_features) for name in encoder.side_models]
    encoder.to(device)
    names, found = ["encoder", *(model.name for model, _ in solved)], {}
    scores = [own, *(s for _, s in solved)]
    if val is None:
        scales = [1.0, *(float(own.std() / s.std().clamp(min=1e-6)) for s in scores[1:])]
    else:
        truth = kind.truth(val)
        scales = weigh(scores, truth, kind.loss)
        found = {f"val/{name}_{kind.score}": kind.measured(s, truth) for name, s in zip(names, scores, strict=True)}
        together = kind.measured(torch.stack([a * s for a, s in zip(scales, scores, strict=True)]).sum(0), truth)
        others = ", ".join(f"{model.title} {100 * found[f'val/{model.name}_{kind.score}']:.1f} %" for model, _ in solved)
        each = list(found.values())
        best = max(range(len(each)), key=each.__getitem__)
        log.info("on validation the encoder has %.1f %%, %s, all together %.1f %% (late_fusion=false: the encoder alone)",
                 100 * each[0], others, 100 * together)  # fmt: skip
        if together < each[best] - standard_error(each[best], kind.trials(truth)):
            if best == 0:
                return found
            log.info("%s alone is better than all together by more than chance: it answers alone", solved[best - 1][0].title)
            solved, scales = [solved[best - 1]], [NEXT_TO_NOTHING, 1.0]
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(scales[0])
        for (model, _), scale in zip(solved, scales[1:], strict=True):
            model.scale(scale)
            beside.append(model.to(device))
    return found


def _words(kind: Kind, encoder: Encoder, train: Samples, val: Samples | None, n_classes: int) -> tuple[SideModel, Tensor]:
    """A lexicon of the words that the encoder reads, and its scores on `val`, or on `train` without.

    Its terms count by how rare they are, and by what they tell of the answers as well where that is better on `val` by more than chance.
    """
    lexicon = Lexicon.beside(encoder, {"third": third_kind(encoder, train), "outputs": n_classes})
    counted, answers = _learn(lexicon, encoder, train), kind.truth(train)
    held = None if val is None else (_known(lexicon, _counted(lexicon, encoder, val)), kind.truth(val))
    parts = [kind.score, lexicon.settings, lexicon.words, lexicon.terms, lexicon.idf, answers, None if held is None else held[1]]
    parts += [part for index, terms in (*counted, *(held[0] if held else ())) for part in (index, *terms)]
    found = kept("words", parts, lambda: _solved(kind, lexicon, counted, answers, held, n_classes)._asdict())
    lexicon.idf, lexicon.table, lexicon.bias = (found[name] for name in ("idf", "table", "bias"))
    return lexicon, found["scores"]


class _Solved(NamedTuple):
    """Scores [N, C] of a lexicon's table [terms, C] and bias [C] with terms of weights `idf`."""

    scores: Tensor
    table: Tensor
    bias: Tensor
    idf: Tensor


def _solved(
    kind: Kind, lexicon: Lexicon, counted: list[Counted], answers: Tensor, held: tuple[list[Counted], Tensor] | None, n_classes: int
) -> _Solved:
    """Those of the weights that are better on `held`; `lexicon` has others afterwards."""

    def solved(x: Any) -> _Solved:
        of = None if held is None else (_rows(lexicon, held[0], len(held[1])), held[1])
        table, bias = kind.words(x, answers, of, n_classes)
        scores = (x if of is None else of[0]) @ table + bias
        return _Solved(_float32(scores), _float32(table), _float32(bias), lexicon.idf)

    x = _rows(lexicon, counted, len(answers))
    best = solved(x)
    if held is not None:
        lexicon.idf = lexicon.idf * torch.from_numpy(telling(x, answers, n_classes)).float().sqrt()
        other = solved(_rows(lexicon, counted, len(answers)))
        if kind.measured(other.scores, held[1]) > beyond_chance(kind.measured(best.scores, held[1]), kind.trials(held[1])):
            best = other
    return best


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float()


def telling(x: Any, answers: Tensor, n_classes: int) -> np.ndarray:
    """How much each term of sparse rows `x` tells of classes [N], or of labels [N, C]: |log| of how much likelier one of a class has it.

    The largest of all classes, and never nothing: a text of terms that tell nothing has a length. Shares begin at one text with the term
    and one without (delta TF-IDF: Martineau & Finin, 2009).
    """
    of_class = (F.one_hot(answers.long(), n_classes) if answers.dim() == 1 else answers).bool().numpy()
    n, having = len(of_class), np.bincount(x.indices, minlength=x.shape[1])
    found = np.full(x.shape[1], 0.01)
    for inside in of_class.T[of_class.any(0) & ~of_class.all(0)]:
        own, size = np.bincount(x[inside].indices, minlength=x.shape[1]), inside.sum()
        odds = np.log((own + 1) / (size + 2)) - np.log((having - own + 1) / (n - size + 2))
        found = np.maximum(found, np.abs(odds))
    return found


def _described(name: str, kind: Kind, encoder: Encoder, train: Samples, val: Samples | None, n_classes: int) -> tuple[SideModel, Tensor]:
    """A linear model on a description of at most `MOST_IMAGES` images, and its scores on `val`, or on `train` without."""
    train, model = some(train, MOST_IMAGES, 0), Described(encoder.processor, n_classes, name)
    rows = DescribedRows(model.describe, train, val)
    model.weight, model.bias = rows.linear(kind.dense(n_classes), (kind.truth(train), None if val is None else kind.truth(val)))
    return model, F.linear(rows.train if rows.val is None else rows.val, model.weight, model.bias)


# by the names that encoders give in `side_models`
SOLVERS: dict[str, Callable[[Kind, Encoder, Samples, Samples | None, int], tuple[SideModel, Tensor]]] = {
    "words": _words,
    "gradients": partial(_described, "gradients"),
    "patches": partial(_described, "patches"),
}


def third_kind(encoder: Encoder, train: Samples) -> str:
    """Which terms there are beside words and pairs: parts of words of short texts; triples of long ones, and where words are characters.

    Of an encoder that reads pieces of words triples as well.
    """
    if not isinstance(encoder, BagEncoder):
        return TRIPLES
    words = [w for w in encoder.processor.vocabulary if w]
    counts = list(encoder.processor.documents.values())
    if np.average([len(w) for w in words], weights=counts) < LETTERS:
        return TRIPLES
    lengths = train.lengths
    return SPELLED if lengths is not None and int(np.sum(lengths)) <= MOST_WORDS else TRIPLES


def _learn(lexicon: Lexicon, encoder: Encoder, train: Samples) -> list[Counted]:
    """Let the lexicon know the terms of `train`; returns what of them is known in each batch."""
    counted = list(_counted(lexicon, encoder, train))
    terms, documents = torch.cat([found.term for _, found in counted]).unique(return_counts=True)
    if len(train) >= RARE:
        terms, documents = terms[documents > 1], documents[documents > 1]
    lexicon.learn(terms, ((1 + len(train)) / (1 + documents)).log().float() + 1)
    return _known(lexicon, counted)


def _counted(lexicon: Lexicon, encoder: Encoder, samples: Samples) -> Iterator[Counted]:
    """What is counted of each batch."""
    for index in samples.ordered_batches(BATCH):
        inputs = encoder.inputs(samples.batch(index))
        yield np.asarray(index), lexicon.counts(encoder.word_ids(inputs), inputs.get("subwords"))


def _known(lexicon: Lexicon, counted: Iterable[Counted]) -> list[Counted]:
    return [(index, lexicon.known(found)) for index, found in counted]


def _rows(lexicon: Lexicon, counted: Iterable[Counted], n: int) -> Any:
    """The vectors of all texts, of whose terms all are known, as rows of a sparse matrix, in their order."""
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for index, terms in counted:
        found = lexicon.weighed(terms, len(index))
        rows.append(index[found.text.numpy()])
        columns.append(found.term.numpy())
        values.append(found.weight.numpy())
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(parts, shape=(n, len(lexicon.terms)), dtype=np.float32)


def _solve(x: Any, y: Tensor, held: Held, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Table [terms, C] and bias [C] of the linear model whose strength is best on `held`; a class without labels scores low."""
    _, model = best_linear(x, y.numpy(), None if held is None else (held[0], held[1].numpy()), n_classes)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row, of the second class against the first
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-intercepts[0], intercepts[0]]) / 2
    table, bias = np.zeros((x.shape[1], n_classes), np.float32), np.full(n_classes, intercepts.min() - 1.0)
    table[:, model.classes_], bias[model.classes_] = coefficients.T, intercepts
    return table, bias


def _solve_each(x: Any, y: Tensor, held: Held, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Table and bias of logistic regression of each label, of the strength that is best on `held`."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for strength in strengths(n_classes, held is not None):
        table, bias = each_label(x, y.numpy(), strength)
        score = math.nan if held is None else mean_average_precision(held[0] @ table + bias, held[1].numpy())
        if best is None or score > best[0]:
            best = score, table, bias
    assert best is not None
    return best[1], best[2]


def weigh(scores: Sequence[Tensor], truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """Weights a_k > 0 under which Σ a_k · scores_k, logits [N, C] each, has the least loss of the truth: the highest likelihood.

    Their logarithms have a normal prior of deviation 1 around 0, for validation splits of a few rows.
    """
    with torch.inference_mode(False):
        x, truth = torch.stack(list(scores)).clone(), truth.clone()
        logs = torch.zeros(len(scores), device=x.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([logs], max_iter=50, line_search_fn="strong_wolfe")

        def value() -> Tensor:
            optimizer.zero_grad()
            found = loss(torch.tensordot(logs.exp(), x, 1), truth) + logs.square().sum() / 2
            found.backward()
            return found

        optimizer.step(value)  # type: ignore[arg-type]
    return logs.exp().tolist()


def _labels(samples: Samples) -> Tensor:
    """Which labels there are, float [N, C]."""
    assert samples.answers is not None
    return torch.from_numpy(np.asarray(samples.answers.values)).float()


CLASSES = Kind("accuracy", labels_of, accuracy, len, partial(F.cross_entropy, reduction="sum"), _solve, of_classes)
LABELS = Kind(
    "map", _labels, precision, lambda truth: int(truth.sum()),
    partial(F.binary_cross_entropy_with_logits, reduction="sum"), _solve_each, lambda _: OF_LABELS,
)  # fmt: skip
