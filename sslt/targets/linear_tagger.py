"""A linear-chain conditional random field on the words of texts: a tagger that is trained in seconds, alone or beside an encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Tags
from sslt.data.prepare.text_samples import as_text
from sslt.data.ragged import Ragged
from sslt.encoders.base import Encoder
from sslt.targets import bio
from sslt.targets.base import Cheap, Rows
from sslt.targets.kept import kept
from sslt.targets.metrics.tags import tag_metrics
from sslt.targets.tag_features import Entries, Words, context, find, words_of

log = logging.getLogger("sslt")
METHOD = "linear tagger"
BATCH = 32  # texts a step
ALIKE = 16  # batches among which texts are ordered by length
RATE = 0.1
LEFT_OUT = 0.3  # share of a word's features that a step does not see
STEPS, EPOCHS = 900, (3, 30)  # at least so many steps, within so many epochs
MOST_WORDS = 600_000  # that are learned from
CHAIN = 200  # words of a longer text that are tagged together
COMMON = 2  # words that have a feature, of which others are forgotten
INSIDE = 0.1  # share of training spans that begin or end inside words, above which each character is one
LEAST = 1e-9  # probability
DEMANDS = (0.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0)  # by which the log-probability of being in no span may be lowered; validation chooses
GROUP = 256  # texts tagged at a time


class LinearTagger(nn.Module):
    """p(tags | text) ∝ exp Σ_t (Σ_f table[f, y_t] + follows[y_t-1, y_t]) over the features f of word t (Lafferty et al., 2001).

    Tags are those of `bio`. Beside the words themselves it has read what was tagged in training (`tag_features.Entries`).
    characters: each is a word. Shapes: `rows` features and `entries`; it starts empty and `solve` fills it. `mix` [3]: the weights of an
    encoder's and of its own log-probabilities where they are added up, and by how much that of being in no span is lowered.
    """

    kind = "linear_tagger"
    terms: Tensor
    table: Tensor
    follows: Tensor
    hashes: Tensor
    tagged: Tensor
    found: Tensor
    mix: Tensor

    def __init__(self, types: int, characters: bool, rows: int, entries: int):
        super().__init__()
        self.types, self.characters, k = types, characters, 1 + 2 * types
        long = torch.int64
        self.register_buffer("terms", torch.zeros(rows, dtype=long))  # sorted
        self.register_buffer("table", torch.zeros(rows + 1, k))  # the first row is of features that training did not have
        self.register_buffer("follows", torch.zeros(k + 1, k))  # the last row: at a text's start
        self.register_buffer("hashes", torch.zeros(entries, dtype=long))
        self.register_buffer("tagged", torch.zeros(entries, types, dtype=long))
        self.register_buffer("found", torch.zeros(entries, dtype=long))
        self.register_buffer("mix", torch.tensor([0.0, 1.0, 0.0]))

    @property
    def settings(self) -> dict[str, Any]:
        return {"types": self.types, "characters": self.characters, "rows": len(self.terms), "entries": len(self.hashes)}

    @classmethod
    def beside(cls, encoder: Encoder, settings: dict[str, Any]) -> LinearTagger:
        return cls(**settings)

    # ---------------------------------------------------------------- training
    @classmethod
    def solve(cls, texts: Sequence[str], answers: Tags) -> LinearTagger:
        """Train on texts by Adagrad (Duchi et al., 2011), each step without a part of the features. From the cache where it is there."""
        parts = [list(texts), answers.values.flat(), np.asarray(answers.values.sizes), answers.types]
        found = kept("taggers", parts, lambda: cls._solved(texts, answers))
        made = cls(len(answers.types), bool(found.pop("characters")), len(found["terms"]), len(found["hashes"]))
        made.load_state_dict(found)
        return made

    @classmethod
    def _solved(cls, texts: Sequence[str], answers: Tags) -> dict[str, Tensor]:
        """Its state, and whether characters are words."""
        log.info("training a linear tagger on %d texts", len(texts))
        words, characters = words_of(texts, False), False
        if words.sizes.sum() > MOST_WORDS:
            some = np.random.default_rng(0).permutation(len(texts))
            some = some[np.cumsum(words.sizes[some]) <= MOST_WORDS]
            texts, answers = [texts[i] for i in some], answers.take(some)
            words = words_of(texts, False)
        inside = len(words.of_spans(answers.values)) < (1 - INSIDE) * answers.values.sizes.sum()
        if inside:
            words, characters = words_of(texts, True), True
        entries = Entries.learn(words, answers.values, len(answers.types))
        found = np.concatenate([context(words), entries.marks(words, answers.values)], 1)
        terms, counts = np.unique(found, return_counts=True)
        terms = terms[(counts >= COMMON) & (terms > 0)]
        tagger = cls(len(answers.types), characters, len(terms), 0)
        tagger.terms = torch.from_numpy(terms.view(np.int64).copy())
        _train(tagger, _places(terms, found), _labels(words, answers.values), pieces(words.sizes))
        arrays = {name: torch.from_numpy(array.view(np.int64)) for name, array in entries._asdict().items()}
        return {**tagger.state_dict(), **arrays, "characters": torch.tensor(characters)}

    # ---------------------------------------------------------------- answers
    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tags [B, W, K] of each word, over all taggings of the others, and the words' places [B, W, 2]."""
        words, device = words_of(texts, self.characters), self.table.device
        entries = Entries(self.hashes.cpu().numpy().view(np.uint64), self.tagged.cpu().numpy(), self.found.cpu().numpy())
        found = np.concatenate([context(words), entries.marks(words, None)], 1)
        known = torch.from_numpy(_places(self.terms.cpu().numpy().view(np.uint64), found)).to(device)
        sizes = torch.from_numpy(pieces(words.sizes)).to(device)
        p, there = chances(*padded(_summed(self.table, known), sizes), self.follows).tags, _there(sizes)
        scores, _ = padded(p[there].clamp(min=LEAST).log(), torch.from_numpy(words.sizes).to(device))
        places = Ragged.from_flat(words.places, words.sizes).padded(np.arange(len(texts)), -1)
        return scores, torch.from_numpy(places).to(device)

    def tag(self, texts: Sequence[str], demand: float) -> tuple[Ragged, Ragged]:
        """Spans and their probabilities, as `bio.decode` gives them. demand: by how much the log-probability of no span is lowered."""
        return self.tag_by(texts, (demand,))[0]

    def tag_by(self, texts: Sequence[str], demands: Sequence[float]) -> list[tuple[Ragged, Ragged]]:
        """`tag` by each of several demands, of texts that are read once."""
        spans: list[list[np.ndarray]] = [[] for _ in demands]
        sure: list[list[np.ndarray]] = [[] for _ in demands]
        for i in range(0, len(texts), GROUP):
            scores, places = self.read(texts[i : i + GROUP])
            nowhere = torch.zeros(places.shape[:2], dtype=torch.bool, device=places.device)
            for j, demand in enumerate(demands):
                lowered = torch.cat([scores[..., :1] - demand, scores[..., 1:]], -1)
                found = bio.decode(lowered.log_softmax(-1), places, nowhere)
                spans[j] += found[0]
                sure[j] += found[1]
        return [(Ragged.of(a, np.int64, 3), Ragged.of(b, np.float64, 1)) for a, b in zip(spans, sure, strict=True)]

    def of_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of tags [B, L, K] of the tokens of a batch with `text`, 0 at those that stand for none.

        A token has what the word has that it is of, but begins no span where the word began before it.
        """
        scores, places = self.read([as_text(row) for row in batch["text"].cpu().numpy()])
        return of_tokens(scores, places, batch["places"])

    def add(self, own: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities with those of an encoder, `own` [B, L, K], weighed by `mix`."""
        return mixed(self.mix, own, self.of_tokens(batch).to(own.dtype))


def mixed(mix: Tensor, own: Tensor, others: Tensor) -> Tensor:
    lowered = F.one_hot(torch.zeros((), dtype=torch.long, device=own.device), own.shape[-1]) * mix[2]
    return (mix[0] * own + mix[1] * others - lowered).log_softmax(-1)


def of_tokens(scores: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Words' log-probabilities [B, W, K] as those of tokens [B, L, K] at the places `tokens` [B, L, 2]."""
    starts = places[..., 0].masked_fill(places[..., 0] < 0, bio.FAR).contiguous()
    word = (torch.searchsorted(starts, tokens[..., 1].contiguous()) - 1).clamp(min=0)
    first = tokens[..., 0] <= starts.gather(1, word)
    found = scores.gather(1, word.unsqueeze(2).expand(-1, -1, scores.shape[2]))
    begins, inside = found[..., 1::2], found[..., 2::2]
    later = torch.stack([torch.full_like(begins, float(np.log(LEAST))), torch.logaddexp(begins, inside)], -1).flatten(-2)
    found = torch.where(first.unsqueeze(2), found, torch.cat([found[..., :1], later], -1))
    return found * bio.stands_for_text(tokens).unsqueeze(2)


def strongest(train: Rows, val: Rows | None, test: Rows) -> Cheap:
    """What the linear tagger says of `test`; how much it demands of being in no span is chosen by F1 on `val`."""
    tagger = LinearTagger.solve(train.items, train.answers)
    held = {} if val is None else dict(zip(DEMANDS, tagger.tag_by(val.items, DEMANDS), strict=True))
    scores = {d: tag_metrics(spans, val.answers.values, val.answers.types)["f1"] for d, (spans, _) in held.items()}  # type: ignore[union-attr]
    demand = max(scores, key=lambda d: scores[d], default=0.0)
    spans, sure = tagger.tag(test.items, demand)
    return Cheap(METHOD, Tags(spans, test.answers.space, scores=sure), scores.get(demand, float("nan")))


# -------------------------------------------------------------------- likelihood
class Chances(NamedTuple):
    """Of taggings of texts: of each tag at each word [B, W, K], and how often one is expected to follow another [K + 1, K]."""

    tags: Tensor
    follows: Tensor


def chances(scores: Tensor, there: Tensor, follows: Tensor) -> Chances:
    """By the forward-backward algorithm (Rabiner, 1989), each step normalised. scores [B, W, K], follows [K + 1, K].

    I-x stands behind B-x or I-x alone. there [B, W]: words; behind a text's end probabilities are 0.
    """
    n, k = scores.shape[1:]
    step = (follows.clamp(max=30.0).exp() * allowed(k).to(scores)).clamp(max=1e12)
    emit = (scores - scores.amax(2, keepdim=True)).clamp(min=-50.0).exp()
    there = there.unsqueeze(2)
    forward, backward = [_to_one(emit[:, 0] * step[-1])], [torch.ones_like(emit[:, 0])]
    for t in range(1, n):
        forward.append(_to_one((forward[-1] @ step[:-1]) * emit[:, t]))
    for t in range(n - 1, 0, -1):
        come = _to_one((emit[:, t] * backward[-1]) @ step[:-1].T)
        backward.append(torch.where(there[:, t], come, torch.ones_like(come)))
    a, z = torch.stack(forward, 1), torch.stack(backward[::-1], 1)
    tags = _to_one(a * z) * there
    ahead = emit[:, 1:] * z[:, 1:]
    both = ((a[:, :-1] @ step[:-1]) * ahead).sum(2, keepdim=True).clamp(min=1e-30)
    pairs = torch.einsum("bti,btj->ij", a[:, :-1], ahead / both * there[:, 1:]) * step[:-1]
    return Chances(tags, torch.cat([pairs, tags[:, 0].sum(0, keepdim=True)]))


def allowed(k: int) -> Tensor:
    """bool [K + 1, K]: which of K tags may follow which; the last row is a text's start."""
    tags, before = torch.arange(k), torch.arange(k + 1).unsqueeze(1)
    inside = (tags > 0) & (tags % 2 == 0)
    return ~inside | (((before == tags) | (before == tags - 1)) & (before < k))


def _to_one(x: Tensor) -> Tensor:
    return x / x.sum(-1, keepdim=True).clamp(min=1e-30)


def pieces(sizes: np.ndarray) -> np.ndarray:
    """Sizes [N] of texts as those of what is tagged together, at most `CHAIN` words each and of one text; texts without words are none."""
    numbers = -(-sizes // CHAIN)
    cut = np.full(int(numbers.sum()), CHAIN, np.int64)
    cut[np.cumsum(numbers)[numbers > 0] - 1] = (sizes - CHAIN * (numbers - 1))[numbers > 0]
    return cut


def padded(flat: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of words one after the other [n, K] as [B, W, K], W at least 1, and where there is a word, bool [B, W]."""
    there = _there(sizes)
    made = flat.new_zeros(*there.shape, flat.shape[1])
    made[there] = flat
    return made, there


def _there(sizes: Tensor) -> Tensor:
    longest = max(int(sizes.max()), 1) if len(sizes) else 1
    return torch.arange(longest, device=sizes.device) < sizes[:, None]


def _labels(words: Words, spans: Ragged) -> np.ndarray:
    """Tags of all words, int64 [n]; at the start of a piece a span begins."""
    places, made = Ragged.from_flat(words.places, words.sizes), []
    for i in range(0, len(places), GROUP):
        rows = np.arange(i, min(i + GROUP, len(places)))
        labels, text = bio.labels(torch.from_numpy(places.padded(rows, -1)), torch.from_numpy(spans.padded(rows, -1)))
        made.append(labels[text].numpy())
    found, sizes = np.concatenate(made), pieces(words.sizes)
    first = np.cumsum(sizes) - sizes
    found[first] -= (found[first] > 0) & (found[first] % 2 == 0)
    return found


def _train(tagger: LinearTagger, features: np.ndarray, tags: np.ndarray, sizes: np.ndarray) -> None:
    """features int32 [n, F] and tags [n] of words, `sizes` of them together."""
    rng, k, done = np.random.default_rng(0), tagger.table.shape[1], 0
    x, y = Ragged.from_flat(features, sizes), Ragged.from_flat(tags, sizes)
    a_pass = -(-len(sizes) // BATCH)
    total = a_pass * int(np.clip(-(-STEPS // a_pass), *EPOCHS))
    squares, follow_squares = torch.full_like(tagger.table, 1e-2), torch.full_like(tagger.follows, 1e-2)
    may = allowed(k)
    while done < total:
        for index in _batches(rng.permutation(len(sizes)), sizes, rng):
            rate = RATE * (1 - done / total)
            done += 1
            found = x.take(index).flat()
            known = torch.from_numpy(np.where(rng.random(found.shape, np.float32) < LEFT_OUT, 0, found))
            true = torch.from_numpy(y.take(index).flat())
            scores, there = padded(_summed(tagger.table, known), torch.from_numpy(sizes[index]))
            p = chances(scores, there, tagger.follows)
            wrong = p.tags[there] - F.one_hot(true, k)
            labels = torch.full(there.shape, k).masked_scatter(there, true)
            before = torch.cat([torch.full_like(labels[:, :1], k), labels[:, :-1]], 1)[there]
            seen = torch.zeros_like(p.follows).index_put_((before, true), torch.ones(()), accumulate=True)
            terms, place = known.flatten().unique(return_inverse=True)
            gradient = torch.zeros(len(terms), k).index_add_(0, place, wrong.repeat_interleave(known.shape[1], 0))
            squares[terms] += gradient.square()
            tagger.table[terms] -= rate * gradient / squares[terms].sqrt()
            tagger.table[0] = 0.0
            step = (p.follows - seen) * may
            follow_squares += step.square()
            tagger.follows -= rate * step / follow_squares.sqrt()


def _batches(order: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of texts of about equal length."""
    made = []
    for i in range(0, len(order), ALIKE * BATCH):
        chunk = order[i : i + ALIKE * BATCH]
        chunk = chunk[np.argsort(sizes[chunk], kind="stable")]
        made += [chunk[j : j + BATCH] for j in range(0, len(chunk), BATCH)]
    return [made[i] for i in rng.permutation(len(made))]


def _summed(table: Tensor, known: Tensor) -> Tensor:
    """Scores [n, K] of words by their features `known` [n, F]."""
    return F.embedding_bag(known.long(), table, mode="sum", padding_idx=0)


def _places(terms: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Rows of the table, int32, of features; 0 of those that are not known."""
    place, known = find(terms, found)
    return np.where(known, place + 1, 0).astype(np.int32)
