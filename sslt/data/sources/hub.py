"""Data sets of Hugging Face's `datasets`: of the hub, or written by `save_to_disk`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sslt.data.sources.disk import damage
from sslt.data.sources.tables import Row, Table
from sslt.errors import UserError
from sslt.stored import located


class ArrowTable(Table):
    """A split of a data set of Hugging Face's `datasets`, named `path` in messages."""

    def __init__(self, dataset: Any, path: Path):
        self.path, self.dataset = path, dataset
        self.columns = list(dataset.column_names)

    @property
    def files(self) -> list[Path]:
        return [Path(f["filename"]) for f in self.dataset.cache_files]

    def class_names(self, column: str) -> list[str] | None:
        feature = self.dataset.features[column]
        return getattr(getattr(feature, "feature", feature), "names", None)  # of the classes, or of those in its lists

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        chosen = self.dataset.select_columns(list(dict.fromkeys(columns))).with_format("arrow")
        with damage(self.path):
            for batch in chosen.iter(batch_size=4096):
                for values in zip(*(batch.column(c).to_pylist() for c in columns), strict=True):
                    number += 1
                    yield Row(f"row {number}", values)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote `folder` by `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


@functools.cache
def ask_once() -> bool:
    """Whether the Hugging Face hub answers; if not, its libraries are told, and look into their caches at once.

    Left to themselves they would retry every request for a minute in all.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=5)
        return True
    except Exception:  # whatever the client's library raises
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True  # a copy of its own
        return False


def load_datasets(name: str, config: str | None) -> dict[str, Table]:
    """The splits of a saved data set or of one of the hub (downloaded, or from its cache), by their own names."""
    import datasets

    folder = located(name)
    if not folder.is_dir():
        ask_once()
    try:
        loaded = datasets.load_from_disk(str(folder)) if folder.is_dir() else datasets.load_dataset(name, config)
    except Exception as e:  # offline, no such set, no such config: each has its own
        reason = str(e).strip().split("\n")[0][:200] or type(e).__name__
        raise UserError(
            f"cannot load '{name}' by Hugging Face datasets: {reason}\n"
            "Offline, give a folder of Parquet files (train.parquet, test.parquet) or one written by save_to_disk"
        ) from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {split: ArrowTable(dataset, folder / split) for split, dataset in splits.items()}
