"""A linear model on the words themselves beside a fine-tuned encoder of texts: what each is worth is weighed on validation.

With many labels words alone say most of what a short text says, and a vector that was learned for them can only blur it; with few labels
it is the other way round. So both are asked (late fusion; Kittler et al., 1998): logits = a · encoder's + b · words'.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.encoders.bag import BagEncoder
from sslt.encoders.base import Encoder
from sslt.encoders.lexicon import PARTS, TRIPLES, Lexicon, Terms
from sslt.evaluation.baselines import best_linear
from sslt.evaluation.features import logits_of
from sslt.evaluation.linear import accuracy
from sslt.objectives.base import Objective
from sslt.objectives.classification import Classification
from sslt.stages.common import labels_of

log = logging.getLogger("sslt")
BATCH = 256
MOST_WORDS = 1_200_000  # of training text in which parts of words are counted in seconds
RARE = 2000  # texts from which on a term has to occur twice
LETTERS = 2.0  # a word on average: below, words are characters, and triples of them are words


def add(
    encoder: Encoder, objective: Objective, train: Samples, val: Samples | None, device: torch.device, batch: int, number_format: str
) -> dict[str, float]:
    """Solve for a lexicon of `train`, and put it beside the encoder and into the head with the weights that are best on `val`.

    Without `val` both count alike, by the spread of their logits on `train`. Nothing changes for encoders that have no room for one.
    Returns what was weighed: `val/encoder_accuracy` and `val/words_accuracy`.
    """
    if not isinstance(objective, Classification) or not isinstance(encoder, BagEncoder):
        return {}
    n_classes = objective.head.out_features
    own = logits_of(encoder, objective, train if val is None else val, device, batch, number_format)
    encoder.to("cpu")
    lexicon = encoder.add_lexicon(third_kind(encoder, train), n_classes)
    x = _learn(lexicon, encoder, train)
    held = None if val is None else (_matrix(lexicon, encoder, val), labels_of(val))
    table, bias = _solve(x, labels_of(train), held, n_classes)
    lexicon.table = torch.from_numpy(table).float()
    of_words = torch.from_numpy(bias).float()
    if held is None:
        scales, found = (1.0, float(own.std() / (x @ table).std())), {}
    else:
        theirs, labels = torch.from_numpy(held[0] @ table).float() + of_words, held[1]
        scales = weigh(own, theirs, labels)
        found = {"val/encoder_accuracy": accuracy(own, labels), "val/words_accuracy": accuracy(theirs, labels)}
        log.info(
            "on validation the encoder has %.1f %%, TF-IDF %.1f %%, both together %.1f %% (words=false leaves TF-IDF out)",
            100 * found["val/encoder_accuracy"], 100 * found["val/words_accuracy"],
            100 * accuracy(scales[0] * own + scales[1] * theirs, labels),
        )  # fmt: skip
    objective.head = _widened(objective.head, of_words, scales)
    encoder.to(device)
    return found


def third_kind(encoder: BagEncoder, train: Samples) -> str:
    """Which terms there are beside words and pairs: parts of words of short texts; triples of long ones, and where words are characters."""
    words = [w for w in encoder.processor.vocabulary if w]
    counts = list(encoder.processor.documents.values())
    if np.average([len(w) for w in words], weights=counts) < LETTERS:
        return TRIPLES
    lengths = train.lengths
    return PARTS if lengths is not None and int(np.sum(lengths)) <= MOST_WORDS else TRIPLES


def _learn(lexicon: Lexicon, encoder: Encoder, train: Samples) -> Any:
    """Let the lexicon know the terms of `train`; returns their matrix [N, terms]."""
    counted = list(_counted(lexicon, encoder, train))
    terms, documents = torch.cat([found.term for _, found in counted]).unique(return_counts=True)
    if len(train) >= RARE:
        terms, documents = terms[documents > 1], documents[documents > 1]
    lexicon.learn(terms, ((1 + len(train)) / (1 + documents)).log().float() + 1)
    return _rows(lexicon, counted, len(train))


def _matrix(lexicon: Lexicon, encoder: Encoder, samples: Samples) -> Any:
    """The vectors of all texts as rows of a sparse matrix, in their order."""
    return _rows(lexicon, _counted(lexicon, encoder, samples), len(samples))


def _counted(lexicon: Lexicon, encoder: Encoder, samples: Samples) -> Iterator[tuple[np.ndarray, Terms]]:
    """The rows of a batch, and their terms."""
    for index in samples.ordered_batches(BATCH):
        yield np.asarray(index), lexicon.counts(encoder.inputs(samples.batch(index))["tokens"])


def _rows(lexicon: Lexicon, counted: Iterable[tuple[np.ndarray, Terms]], n: int) -> Any:
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for index, terms in counted:
        found = lexicon.weighed(terms, len(index))
        rows.append(index[found.text.numpy()])
        columns.append(found.term.numpy())
        values.append(found.weight.numpy())
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return csr_matrix(parts, shape=(n, len(lexicon.terms)), dtype=np.float32)


def _solve(x: Any, y: Tensor, held: tuple[Any, Tensor] | None, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Table [terms, C] and bias [C] of the linear model whose strength is best on `held`; a class without labels scores low."""
    _, model = best_linear(x, y.numpy(), None if held is None else (held[0], held[1].numpy()), n_classes)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row, of the second class against the first
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.array([-intercepts[0], intercepts[0]]) / 2
    table, bias = np.zeros((x.shape[1], n_classes), np.float32), np.full(n_classes, intercepts.min() - 1.0)
    table[:, model.classes_], bias[model.classes_] = coefficients.T, intercepts
    return table, bias


def weigh(ours: Tensor, theirs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Weights a, b > 0 under which softmax(a · ours + b · theirs), logits [N, C] both, gives the labels [N] the highest likelihood.

    Their logarithms have a normal prior of deviation 1 around 0, for validation splits of a few rows.
    """
    with torch.inference_mode(False):
        ours, theirs, scales = ours.clone(), theirs.clone(), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.LBFGS([scales], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            a, b = scales.exp()
            value = F.cross_entropy(a * ours + b * theirs, labels, reduction="sum") + scales.square().sum() / 2
            value.backward()
            return value

        optimizer.step(loss)  # type: ignore[arg-type]
        a, b = scales.exp().tolist()
    return a, b


def _widened(head: nn.Linear, bias: Tensor, scales: tuple[float, float]) -> nn.Linear:
    """`head` on features that have scores of classes behind them: scales[0] · head's + scales[1] · (scores + bias)."""
    n = head.out_features
    made = nn.Linear(head.in_features + n, n, device=head.weight.device, dtype=head.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(torch.cat([scales[0] * head.weight, scales[1] * torch.eye(n, device=head.weight.device)], 1))
        made.bias.copy_(scales[0] * head.bias + scales[1] * bias.to(head.bias))
    return made
