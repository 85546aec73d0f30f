"""Dialogues that are to go on: what was said, without what is said next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sslt.data.sources.dialogues import Dialogues, json_dialogues
from sslt.data.sources.text_to_text import Written


class ToReply(Dialogues):
    """The last `history` turns of each dialogue of a file or folder that `Dialogues` reads; nothing is known of the reply to them."""

    def __init__(self, path: str, turns: str | None, history: int | None):
        super().__init__(path, turns, history, None, None, "fail", 0.0, 0.0)

    @property
    def space(self) -> None:
        return None

    @property
    def are_there(self) -> bool:
        """Whether the path is of dialogues, by the first one of a file."""
        if self.path.is_dir():
            return self.cornell is not None
        if Path(self.path.name.removesuffix(".xz").removesuffix(".gz")).suffix.lower() not in (".json", ".jsonl", ".ndjson"):
            return False
        first = next(json_dialogues(self.path, self.turns), None)
        return first is not None and (not first.problem or bool(first.turns) or not first.problem.startswith("no turns"))

    def own_splits(self) -> tuple[str, ...]:
        return ("unlabeled",)

    def rows(self, split: str) -> Iterator[Written]:
        for files_split in self.files:
            for dialogue in self.dialogues(files_split):
                said = [text for _, text in dialogue.turns if text]
                problem = dialogue.problem or ("" if said else "a dialogue in which nothing is said")
                yield Written(dialogue.where, "\n".join(said[-self.history if self.history else 0 :]), [], problem)

    def fingerprint(self) -> str:
        return "to-reply-" + super().fingerprint()
