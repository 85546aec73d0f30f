"""What every format is: written into a folder, and opened from there by the library that it is for."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sslt.encoders.base import Encoder
from sslt.targets.base import Target

Outputs = Callable[[Mapping[str, Any]], dict[str, Tensor]]  # prepared batch → outputs of a target, or `features`


@dataclasses.dataclass
class Model:
    """What is exported. target: None of an encoder without a head; node: the config that it was built from.

    batch: of prepared samples, by which the parts of a sample are known when it is written.
    """

    encoder: Encoder
    target: Target | None
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    node: Any = None

    def outputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the run itself computes: what an exported file is held against."""
        if self.target is None:
            return {"features": self.encoder(self.encoder.inputs(dict(batch))).pooled.float()}
        return self.target.outputs(self.encoder, dict(batch))


class Format(abc.ABC):
    """One format. name: as `format=` has it. words: what it is, in a sentence."""

    name: ClassVar[str]
    words: ClassVar[str]

    @abc.abstractmethod
    def write(self, model: Model, folder: Path, about: dict[str, Any]) -> None:
        """Write it into an empty folder. about: what else to say of it. Raises `UserError` naming what it cannot hold."""

    @abc.abstractmethod
    def open(self, model: Model, folder: Path) -> Outputs:
        """What computes outputs from the files of `folder`; of `model` only the processor and how answers are read may be used."""
