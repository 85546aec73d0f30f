"""Protects what an exported file stands on: answers are read from tensors, wherever these were computed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from vector_encoder import VectorEncoder

from sslt.targets.classification import Classification
from sslt.targets.extractive_qa import ExtractiveQA
from sslt.targets.multilabel import Multilabel
from sslt.targets.pairs import Pairs
from sslt.targets.prompt import Prompt
from sslt.targets.regression import Regression
from sslt.targets.segmentation import Segmentation
from sslt.targets.tagging import Tagging
from sslt.targets.writing import Writing

SPACE = {"classes": ["a", "b", "c"]}


def test_which_targets_are_read_from_outputs():
    """What asks an encoder several times, or writes, has `predict` alone, and nothing else may compute its outputs."""
    for target in (Classification, Multilabel, Regression, Pairs, Tagging, Segmentation):
        assert target.is_read_from_outputs(), target
    for target in (Prompt, ExtractiveQA, Writing):
        assert not target.is_read_from_outputs(), target


def test_answers_are_those_of_the_numbers_by_hand():
    """Of a linear head on known features: the highest logit, those over their thresholds, the mean and deviation of training put back."""
    encoder = VectorEncoder(nn.Identity(), 2)
    batch = {"x": torch.tensor([[1.0, 0.0], [0.0, -2.0]])}
    classes = Classification(encoder, SPACE, 0.0, 0.0)
    labels = Multilabel(encoder, SPACE, 0.0)
    number = Regression(encoder, {"low": 0.0, "high": 1.0}, 0.0, None)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    with torch.no_grad():
        for head in (classes.head, labels.head):
            head.weight.copy_(weight)
        number.head.weight.copy_(weight[:1])
        labels.thresholds.copy_(torch.tensor([0.0, -3.0, 5.0]))
        number.mean.fill_(10.0)
        number.std.fill_(4.0)
        assert np.array_equal(classes.predict(encoder, batch).values, [0, 2])
        assert np.array_equal(labels.predict(encoder, batch).values, [[True, True, False], [False, True, False]])
        assert np.array_equal(number.predict(encoder, batch).values, [14.0, 10.0])
        turned = {"logits": -classes.outputs(encoder, batch)["logits"]}
    assert np.array_equal(classes.read(turned, {}).values, [1, 1]), "answers are of the outputs that are given, not of the encoder's"
