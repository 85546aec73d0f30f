"""A class for every pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.answers import IGNORE, Map, Space
from sslt.data.base import Samples, Source
from sslt.encoders.base import Encoder
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Picture, wide
from sslt.ranges import Count, Share
from sslt.targets import map_baselines, map_fusion, map_pictures
from sslt.targets.base import Cheap, Rows, Target
from sslt.targets.map_heads import class_weights, head_of, in_own_size, resized
from sslt.targets.metrics.maps import agreement, class_pixels, iou_difference, map_metrics, mean_iou

SHOWN = 8  # images in the picture of the answers


class Segmentation(Target[Map]):
    """Cross-entropy over the pixels that have a class, of scores that a head makes of the encoder's maps (Long et al., 2015).

    Reads `views` [V, B, C, H, W], `map` [B, H, W] and, where views moved it, `frame` [V, B, 4]. head: `fpn` is a small feature pyramid of
    `width` channels, `linear` a linear map of all maps (`map_heads.py`). stride: pixels of the image from place to place that a map has
    at least to be read, or else the coarsest is; finer ones cost most of the work. Scores are enlarged to the size of the views. balance:
    a pixel weighs as its class's share of all pixels to the power of -balance (1 - progress): at 0 all pixels weigh alike, at 1 all classes
    do in the beginning. So that rare classes are found early, where the commonest everywhere is otherwise an answer that training can
    stay at for long; and in the end, where a pixel too many of a rare class counts as much as one too few, all
    pixels are alike. beside: a model of pixels whose scores are added to the encoder's where it answers, and that training does not see
    (late fusion).
    """

    answer = Map
    reads = "maps"
    primary = "miou"
    watched: ClassVar = ("accuracy",)
    called = "this segmentation"
    fuses = True

    def __init__(self, encoder: PixelEncoder, space: Space, head: str, width: Count, stride: Count, balance: Share):
        super().__init__(encoder, space)
        self.check_encoder(encoder)
        shapes, classes = encoder.pyramid_shapes, len(space["classes"])
        self.first = min(sum(s < stride for _, s in shapes), len(shapes) - 1)
        channels = [c for c, _ in shapes[self.first :]]
        self.head = head_of(head, channels, classes, width)
        self.balance, self.weight = balance, torch.nn.Buffer(torch.ones(classes))
        self.beside = torch.nn.ModuleList()

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        inputs = {name: x.flatten(0, 1) for name, x in batch["views"].items()}
        truth = Map.moved(batch)["map"]
        logits = resized(wide(self.scores(encoder, inputs)), truth)
        weight = self.weights().to(logits.dtype)
        loss = F.cross_entropy(logits, truth, weight, ignore_index=IGNORE, reduction="sum") / self.units(batch).clamp(min=1e-6)
        with torch.no_grad():  # no prediction is `IGNORE`
            accuracy = (logits.argmax(1) == truth).sum() / (truth != IGNORE).sum().clamp(min=1)
        return Loss(loss, {"accuracy": accuracy})

    def scores(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        """Scores [B, C, h, w] of inputs of the encoder, at the places of the finest map that is read."""
        return self.head(encoder.pyramid(inputs)[self.first :])

    def units(self, batch: dict) -> Tensor:
        """Pixels that have a class, by their weights."""
        truth = Map.moved(batch)["map"]
        return self.weights()[truth[truth != IGNORE]].sum()

    def weights(self) -> Tensor:
        """Of the classes at this point of the run, [C]."""
        return self.weight ** (1 - self.progress)

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        assert isinstance(samples.answers, Map)
        self.weight.copy_(class_weights(class_pixels(samples.answers), self.balance))

    # ---------------------------------------------------------------- answers
    def outputs(self, encoder: Encoder, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`scores` [B, C, h, w], of what the encoder sees of the images."""
        inputs = encoder.inputs(batch)
        scores = self.scores(encoder, inputs)
        for model in self.beside:
            scores = model.share * resized(scores, inputs["image"]) + model(encoder, inputs)  # type: ignore[operator]
        return {"scores": scores}

    def read(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Map:
        return in_own_size(outputs["scores"], batch, self.space)

    def measure(self, predictions: Map, answers: Map) -> dict[str, float]:
        return map_metrics(predictions, answers)

    def errors(self, predictions: Map, answers: Map) -> np.ndarray:
        """1 - mean IoU of each image; 0 where no pixel has a class."""
        return np.nan_to_num(1 - mean_iou(agreement(predictions, answers)))

    def difference(self, a: Map, b: Map, answers: Map) -> tuple[float, float, float]:
        return iou_difference(agreement(a, answers), agreement(b, answers))

    def rows(self, predictions: Map) -> list[dict[str, Any]]:
        return map_pictures.described(predictions)

    def write(self, folder: Path, answers: Map) -> list[str]:
        return map_pictures.write_maps(folder, answers)

    def show(self, encoder: Encoder, samples: Samples, predictions: Map) -> dict[str, Picture]:
        """Images from the worst to the best, with their true and predicted maps as the encoder sees them."""
        assert isinstance(samples.answers, Map)
        errors = self.errors(predictions, samples.answers)
        index = np.argsort(-errors, kind="stable")[np.linspace(0, len(errors) - 1, min(SHOWN, len(errors))).round().astype(int)]
        rows = map_pictures.beside(samples, predictions, index, encoder.processor)
        return {"segmentation": Picture(rows, [f"{100 * (1 - errors[i]):.0f} %" for i in index])}

    # ---------------------------------------------------------------- before training, and beside it
    @classmethod
    def check(cls, source: Source, answers: Map | None = None) -> None:
        """Raise `UserError` where all pixels are of one class: nothing can be learned, or got wrong."""
        names = source.space["classes"] if source.space else []
        found = range(len(names)) if answers is None else np.flatnonzero(class_pixels(answers))
        if len(found) < 2:
            of = f" of {len(answers)} training images" if answers is not None else ""
            one = "".join(f", '{names[int(c)]}'" for c in found)
            raise UserError(f"all pixels{of} in {source.name} are of one class{one}: there is nothing to tell apart")

    def fuse(self, encoder: Encoder, predictions: Map, train: Samples, val: Samples | None, device: torch.device) -> dict[str, float]:
        if val is None or not isinstance(val.answers, Map):
            return {}
        return map_fusion.add(self, encoder, train, val, device)

    def cheapest(self, modality: str, train: Rows, val: Rows | None, test: Rows) -> Cheap | None:
        return map_baselines.strongest(train, val, test, self.space)

    def trivial(self, train: Map, test: Map) -> dict[str, float]:
        """The commonest class everywhere, in most sets the background."""
        return {"majority/miou": self.measure(map_baselines.commonest(train, test), test)["miou"]}
