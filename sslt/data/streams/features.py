"""Features that were computed already, as samples: what a head on a frozen encoder trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sslt.data.base import Samples


class FeatureSamples(Samples):
    """Pooled features [N, D] in place of the samples they were made of, with their labels."""

    def __init__(self, features: Tensor, of: Samples):
        self.features, self.labels, self.classes, self.fingerprint = features, of.labels, of.classes, of.fingerprint
        self.skipped = of.skipped

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, index: np.ndarray) -> dict[str, Tensor]:
        rows = torch.from_numpy(np.ascontiguousarray(index))
        label = {} if self.labels is None else {"label": torch.as_tensor(np.asarray(self.labels)[index]).long()}
        return {"features": self.features[rows], **label}

    def subset(self, index: np.ndarray) -> FeatureSamples:
        part = FeatureSamples(self.features[torch.from_numpy(np.ascontiguousarray(index))], self)
        part.labels = None if self.labels is None else np.asarray(self.labels)[index]
        return part
