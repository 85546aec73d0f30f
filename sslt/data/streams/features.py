"""Features that were computed already, as samples: what a head on a frozen encoder trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples


class FeatureSamples(Samples):
    """Pooled features [N, D] in place of the samples they were made of, with their answers."""

    def __init__(self, features: Tensor, of: Samples):
        self.features, self.answers, self.fingerprint = features, of.answers, of.fingerprint
        self.skipped = of.skipped

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(index))
        return {"features": self.features[rows], **({} if self.answers is None else self.answers.batch(np.asarray(index)))}

    def subset(self, index: np.ndarray) -> FeatureSamples:
        part = FeatureSamples(self.features[torch.from_numpy(np.ascontiguousarray(index))], self)
        part.answers = None if self.answers is None else self.answers.take(np.asarray(index))
        return part
