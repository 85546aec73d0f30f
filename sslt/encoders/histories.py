"""Text encoders that read histories: what is a word to them is an item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslt.data.prepare.item_processor import ItemProcessor
from sslt.encoders.base import require
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.text import TextEncoder


class _OfItems(TextEncoder):
    """Over an `ItemProcessor`, which knows no words."""

    modality = "items"
    side_models = ()  # type: ignore[assignment]
    Processor = ItemProcessor  # type: ignore[assignment]

    @classmethod
    def build(cls, source: Any, processor: dict[str, Any], **args: Any) -> Any:
        """An encoder of the items that `source` has in training."""
        require("items", source, "an encoder of histories")
        return cls(ItemProcessor.fit(source, **processor), **args)  # type: ignore[arg-type]

    @classmethod
    def load_processor(cls, folder: Path, config: dict[str, Any]) -> ItemProcessor:  # type: ignore[override]
        return ItemProcessor.load(folder)


class CausalHistories(_OfItems, CausalEncoder):
    """A causal transformer over items, from left to right (SASRec: Kang & McAuley, 2018). Settings as `CausalEncoder`'s."""


class MaskedHistories(_OfItems):
    """A transformer over items that fills in hidden ones (BERT4Rec: Sun et al., 2019). Settings as `TextEncoder`'s."""
