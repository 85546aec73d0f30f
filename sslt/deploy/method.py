"""What `sslt compress` does to a run: one class a method, chosen by `method=`."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.runs import Run
from sslt.targets.base import Target


class Method(abc.ABC):
    """Makes a smaller or faster encoder (and target) of one that answers.

    The constructor takes settings from the method's YAML. An adapter is merged before, and what stands beside the encoder (late fusion)
    stays in `target.beside`.

    fit: `stages.fitting.fit`, which the stage hands over, since it stands on a floor above; for methods that train. So are `term`, the
    class of its terms; `fresh`, config → the encoder that it names; `samples_for`, train and val as another encoder reads them.
    found: numbers to keep in metrics.json, by full name. remarks: sentences for the end of the run. Both are filled by `apply`.
    """

    reads_train: ClassVar[bool] = False  # whether it looks at training samples; others get none prepared
    saves: ClassVar[bool] = True  # False: `apply` writes what it makes into the run folder itself, and no encoder/ is written
    fit: Callable[..., Any]
    term: Callable[..., Any]
    fresh: Callable[[Any], Encoder]
    samples_for: Callable[[Encoder], tuple[Samples | None, Samples | None]]

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.remarks: list[str] = []

    def check(self, encoder: Encoder, target: Target) -> None:
        """Raise `UserError` where this encoder or target cannot be had in this form: asked before any data are prepared."""

    @abc.abstractmethod
    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        """The smaller encoder and its target; those given may be changed in place, or be the result.

        train: the samples that the run learned from, None where the method has no `reads_train`; val: None where there are none.
        cfg: the config of the stage. Called on every rank.
        """
