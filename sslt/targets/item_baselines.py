"""What a trained recommender has to beat: what is popular, and what others took who took the same (`neighbours.py`)."""

from __future__ import annotations

from typing import Any

from sslt.data.prepare.item_processor import ItemSamples
from sslt.targets import neighbours
from sslt.targets.base import Cheap


def strongest(target: Any, train: ItemSamples, val: ItemSamples | None, test: ItemSamples) -> Cheap:
    """The better one on `val` of both, item-kNN without; beside it the metrics of each."""
    alike, score = neighbours.choose(target, train, val)
    alike.to(target.ids.device)
    methods: dict[str, neighbours.Method] = {"item-knn": alike, "popularity": lambda history: alike.popular.expand(len(history), -1)}
    found = {name: neighbours.answers(target, test, method) for name, method in methods.items()}
    beside = {f"{name}/{k}": v for name, own in found.items() for k, v in target.measure(own, test.answers).items() if k.endswith("@10")}
    if val is not None and (other := neighbours.score(target, val, methods["popularity"])) > score:
        return Cheap("popularity", found["popularity"], other, beside)
    return Cheap(alike.name, found["item-knn"], score, beside)
