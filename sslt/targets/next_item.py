"""Which item comes next, ranked among all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.answers import Item, Space
from sslt.data.base import Samples, Source
from sslt.data.prepare.item_processor import MASK, UNKNOWN, ItemSamples
from sslt.data.views.base import Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss, wide
from sslt.objectives.bert4rec import Bert4Rec
from sslt.objectives.sasrec import Sasrec
from sslt.ranges import Count, Natural, Share
from sslt.targets import baselines, item_baselines
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.metrics.ranking import gain, ndcg, ranking_metrics, ranks
from sslt.targets.neighbours import stand_beside

SEEN = ("exclude", "keep")
AT_ONCE = 1 << 24  # scores in memory
ASKED = 10_000  # users that the protocol of drawn items is measured on, at most
_SEED = 0x17E3


class NextItem(Target[Item]):
    """The encoder's own scores of all items of `space` that it knows; it has no weights, and is trained by what trains the encoder:
    SASRec's loss, or BERT4Rec's for an encoder that fills in (`loss`, `negatives`, `calibration` are theirs).

    seen: "exclude" leaves out items that a user has had, of all their history, though never the true one; "keep" ranks them too.
    top: how many items are written for each user. sampled: also rank among so many items drawn uniformly from those that the user has
    not had, for 10,000 users at most, as older papers do (`sampled/…`; it orders methods otherwise: Krichene & Rendle, 2020); 0: not.
    Reads `tokens`, `mask`, `history`, and `item` where it is known, which says the rank of the truth beside the answer.
    """

    answer = Item
    reads = "items"
    writes = True
    primary = "ndcg@10"
    watched = ("hr@10", "mrr")
    trains = False
    fuses = True
    called = "this encoder"

    def __init__(
        self, encoder: Encoder, space: Space, loss: str, negatives: Count, calibration: Share, seen: str, top: Count, sampled: Natural
    ):
        super().__init__(encoder, space)
        self.check_encoder(encoder)
        if seen not in SEEN:
            raise UserError(f"objective.seen={seen}: give exclude or keep{nearest(seen, SEEN)}")
        kind = Bert4Rec if encoder.writes == "masked" else Sasrec
        self.learned = kind(encoder, loss, negatives, calibration)
        self.seen, self.top, self.drawn = seen, top, sampled
        self.beside = nn.ModuleList()  # item-kNN, once it is fused
        ids = torch.from_numpy(encoder.processor.ids(space["items"]))
        known = (ids != UNKNOWN).nonzero().flatten()
        if len(known) < 2:
            raise UserError(f"the encoder knows {len(known)} of the {len(ids)} items to rank: pretrain it on these data, or from=scratch")
        columns = torch.full((encoder.processor.vocab_size,), -1)
        columns[ids[known]] = torch.arange(len(known))
        self.ids: Tensor
        self.items: Tensor
        self.columns_of: Tensor
        for name, table in (("ids", ids[known]), ("items", known), ("columns_of", columns)):  # all follow from space and vocabulary
            self.register_buffer(name, table, persistent=False)

    def check_encoder(self, encoder: Encoder) -> None:
        if encoder.modality != "items":
            raise UserError(f"objective=next_item reads histories of items, and the encoder {encoder.modality}s: choose encoder=sasrec")

    def check_views(self, views: Views) -> None:
        self.learned.check_views(views)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        return self.learned(encoder, batch)

    def units(self, batch: dict) -> int | Tensor:
        return self.learned.units(batch)

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Item:
        parts = []
        for rows in torch.arange(len(batch["tokens"]), device=batch["tokens"].device).split(max(AT_ONCE // len(self.ids), 1)):
            some: dict[str, Any] = {k: batch[k][rows] for k in ("tokens", "mask", "history", "item", "index") if k in batch}
            scores = self.scores(encoder, some)
            for neighbours in self.beside:
                scores = neighbours.add(scores, self.columns_of[some["history"]])  # type: ignore[operator]
            parts.append(self.ranked(scores, some))
        return Item.join(parts)

    def scores(self, encoder: Encoder, batch: dict[str, Any]) -> Tensor:
        """Those of the encoder for the items that it knows, [B, C]."""
        weight, bias = encoder.output_layer()
        return wide(F.linear(self.states(encoder, batch), weight[self.ids], None if bias is None else bias[self.ids]))

    def states(self, encoder: Encoder, batch: dict[str, Any]) -> Tensor:
        """What tells the item after the last, [B, D]."""
        tokens, mask = batch["tokens"], batch["mask"]
        sizes, rows = mask.sum(1), torch.arange(len(tokens), device=tokens.device)
        if encoder.writes == "causal":
            return encoder.word_states({"tokens": tokens, "mask": mask})[rows, sizes - 1]
        longest = encoder.processor.max_length
        cut = (sizes + 1 - longest).clamp(min=0)  # so that the hidden item has a place
        place = torch.arange(min(tokens.shape[1] + 1, longest), device=tokens.device)
        at = (sizes - cut)[:, None]
        found = tokens.gather(1, (place + cut[:, None]).clamp(max=tokens.shape[1] - 1)).masked_fill(place > at, 0).scatter(1, at, MASK)
        return encoder.word_states({"tokens": found, "mask": place <= at}, at)[:, 0]

    def ranked(self, scores: Tensor, batch: dict[str, Any]) -> Item:
        """What scores [B, C] of the known items say: the top ones, and the rank of `item` where the batch has it."""
        n = scores.shape[1]
        history = self.columns_of[batch["history"]]
        had = torch.zeros(len(scores), n + 1, dtype=torch.bool, device=scores.device)
        had = had.scatter_(1, history.masked_fill(history < 0, n), True)[:, :n]
        left = scores.masked_fill(had, float("-inf")) if self.seen == "exclude" else scores
        best, columns = left.nan_to_num(float("-inf"), posinf=float("inf"), neginf=float("-inf")).topk(min(self.top, n), dim=1)
        top = self.items[columns].masked_fill(best == float("-inf"), -1).cpu().numpy()
        more: dict[str, Any] = {"top": top}
        if "item" in batch:
            truth = self.columns_of[batch["item"]]
            true = scores.gather(1, truth.clamp(min=0)[:, None])
            candidates = left.scatter(1, truth.clamp(min=0)[:, None], true)  # never excluded, nor anything of a row without a truth
            more["rank"] = ranks(candidates, truth).cpu().numpy()
            if self.drawn:
                more["sampled"] = self._among_drawn(scores, had, truth, batch["index"])
        return Item(top[:, 0], self.space, scores=best.cpu().numpy(), **more)

    def _among_drawn(self, scores: Tensor, had: Tensor, truth: Tensor, index: Tensor) -> np.ndarray:
        """Ranks among `drawn` items that a row has not had, int64 [B]; which they are hangs on the row's number alone."""
        n, found = scores.shape[1], []
        for score, not_drawn, true, row in zip(scores.cpu(), had.cpu(), truth.tolist(), index.tolist(), strict=True):
            few = n < 8 * self.drawn or int(not_drawn.sum()) > n // 2
            order = torch.from_numpy(np.random.default_rng([_SEED, row]).permutation(n) if few else _some(row, n, self.drawn))
            others = order[~not_drawn[order] & (order != true)][: self.drawn]
            own = torch.tensor([max(true, 0)])
            found.append(ranks(score[torch.cat([own, others])][None], own * 0 - int(true < 0)))
        return torch.cat(found).numpy()

    def measure(self, predictions: Item, answers: Item) -> dict[str, float]:
        found = ranking_metrics(_ranks(predictions, answers))
        if predictions.sampled is None:
            return found
        some = np.random.default_rng(_SEED).permutation(len(answers))[:ASKED]
        return found | {f"sampled/{k}": v for k, v in ranking_metrics(np.asarray(predictions.sampled)[some]).items()}

    def errors(self, predictions: Item, answers: Item) -> np.ndarray:
        """1 less what a rank gains, 1 / log2(rank + 1)."""
        return 1 - gain(_ranks(predictions, answers))

    def difference(self, a: Item, b: Item, answers: Item) -> tuple[float, float, float]:
        """By the normal approximation of the paired differences of users."""
        return baselines.difference(*(ndcg(_ranks(p, answers), 10) for p in (a, b)))

    def rows(self, predictions: Item) -> list[dict[str, Any]]:
        names = [*self.space["items"], None]
        found: list[dict[str, Any]] = [{"prediction": names[i]} for i in np.asarray(predictions.values).tolist()]
        if predictions.top is not None and predictions.scores is not None:
            for row, top, scores in zip(found, predictions.top.tolist(), predictions.scores.tolist(), strict=True):
                row |= {"score": round(scores[0], 4), "items": [names[i] for i in top if i >= 0]}
        return found

    def columns(self, predictions: Item) -> dict[str, list[str]]:
        rows = self.rows(predictions)
        return {"prediction": [str(row["prediction"] or "") for row in rows], "items": ["; ".join(row.get("items", [])) for row in rows]}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Item | None = None) -> None:
        if len((source.space or {}).get("items", [0, 1])) < 2:
            raise UserError(f"the histories of {source.name} are all of one item: there is nothing to rank")

    def fuse(self, encoder: Encoder, predictions: Item, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        if not (isinstance(train, ItemSamples) and isinstance(val, ItemSamples)):
            return {}
        neighbours, found = stand_beside(self, encoder, train, val)
        self.beside.append(neighbours)
        return found

    @property
    def cheap_settings(self) -> list[Any]:
        return [self.seen, self.top, self.drawn, len(self.ids)]

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        return item_baselines.strongest(self, train.items, None if val is None else val.items, test.items)


def _some(row: int, n: int, wanted: int) -> np.ndarray:
    """Different numbers below `n`, in a random order; four times as many as are wanted, since some are left out."""
    drawn = np.random.default_rng([_SEED, row]).integers(0, n, 4 * wanted)
    return drawn[np.sort(np.unique(drawn, return_index=True)[1])]


def _ranks(predictions: Item, answers: Item) -> np.ndarray:
    """Ranks int64 [N]: those that predictions have, else the true item's place among their top ones, 0 where it is not there."""
    if predictions.rank is not None:
        return np.asarray(predictions.rank)
    top = np.asarray(predictions.values)[:, None] if predictions.top is None else predictions.top
    same = top == np.asarray(answers.values)[:, None]
    return np.where(same.any(1), same.argmax(1) + 1, 0)
