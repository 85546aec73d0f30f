"""Prompting: a language model answers with words, before it has learned any label, from a few examples, or tuned on them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.answers import Class, Space
from sslt.data.base import Samples, Source
from sslt.data.views.base import Plain, Views
from sslt.encoders.base import Encoder
from sslt.errors import UserError, nearest
from sslt.objectives.base import Loss
from sslt.ranges import Count, Natural, Seed
from sslt.targets.calibration import CALIBRATIONS, fit_biases
from sslt.targets.classes import OfClasses, logits_of
from sslt.targets.prompts import Prompts
from sslt.targets.templates import label_words, read_joiner, read_template
from sslt.targets.words import causal_scores, masked_scores, one_for_each_class

log = logging.getLogger("sslt")


class Prompt(OfClasses):
    """How probable the words of each class are in a template around the text (PET: Schick & Schütze, 2021; LM-BFF: Gao et al., 2021).

    It has no weights, so that an encoder is measured by it as it is (zero-shot); fine-tuning learns by cross-entropy over the classes'
    scores. A masked encoder fills {label}: as many hidden tokens as a word has, all at once, their log-probabilities summed. A causal one
    goes on with the word behind what stands before {label}. Of several words of a class the mean probability counts. The text is cut to
    what the template leaves of `max_length` tokens (null: those that the encoder reads), from its start.

    words: class → its words; a class that is not named has its own name, underscores as spaces. shots: examples from the training split
    that a causal encoder reads first, balanced and drawn by `seed`, joined by `joiner` (Brown et al., 2020). calibrate: "empty", scores
    less those of an empty text (Zhao et al., 2021); "val", a bias for each class and a temperature by the validation split, where there is
    one. Reads `views` [1, B, ...] and `label` [B]. Raises `UserError` where an encoder cannot be asked so.
    """

    reads, trains, writes = "words", False, True
    reads_beside = True
    called = "this prompt"
    scale: Tensor
    biases: Tensor
    examples: Tensor

    def __init__(
        self, encoder: Encoder, space: Space, template: str, words: dict[str, Any] | None, shots: Natural, joiner: str,
        calibrate: str, max_length: Count | None, seed: Seed,
    ):  # fmt: skip
        super().__init__(encoder, space)
        encoder.require_writing("masked", "causal")
        if calibrate not in CALIBRATIONS:
            raise UserError(f"objective.calibrate={calibrate}: give {', '.join(CALIBRATIONS)}{nearest(calibrate, CALIBRATIONS)}")
        self.how, self.calibrates, self.shows, self.seed = calibrate, calibrate == "val", shots, seed
        self.template = read_template(template, label_words(space["classes"], words), encoder.processor)
        self.prompts = Prompts(encoder, self.template, max_length)
        if shots and self.prompts.masked:
            raise UserError(f"objective.shots={shots}: only a causal encoder reads examples, encoder=gpt_tiny; tune this one on them")
        self.joiner = read_joiner(joiner, encoder.processor)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("biases", torch.zeros(len(space["classes"])))
        self.register_buffer("examples", torch.full((self.prompts.limit if shots else 0,), -1))

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        if self.shows:
            ids = self.prompts.examples(samples, self.shows, self.seed, self.joiner)
            self.examples.fill_(-1)[: len(ids)] = torch.tensor(ids, device=self.examples.device)

    def scores(self, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probabilities [B, C] of the classes' words in prompts of texts, not calibrated, which do not add up to one."""
        rows = self.prompts.of(inputs, self.examples[self.examples >= 0].tolist())
        words = [ids for own in self.template.words for ids in own]
        found = masked_scores(encoder, rows, words) if self.prompts.masked else causal_scores(encoder, rows([])[0], words)
        return one_for_each_class(found, [len(own) for own in self.template.words])

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        labels = Class.moved(batch)["label"]
        scores = self.scores(encoder, {k: x.flatten(0, 1) for k, x in batch["views"].items()})
        with torch.no_grad():
            accuracy = (scores.argmax(-1) == labels).float().mean()
        return Loss(F.cross_entropy(scores, labels), {"accuracy": accuracy})

    # ---------------------------------------------------------------- answers
    def predict(self, encoder: Encoder, batch: dict[str, Any]) -> Class:
        scores = self.scores(encoder, encoder.inputs(batch))
        if self.how == "empty":
            scores = scores - self.scores(encoder, self.prompts.empty(scores.device))
        logits = (self.scale * scores + self.biases).float().cpu()
        return Class(logits.argmax(1).numpy(), self.space, scores=logits.numpy())

    def calibrate(self, predictions: Class, answers: Class) -> None:
        scale, biases = fit_biases(logits_of(predictions), torch.from_numpy(np.asarray(answers.values)).long())
        self.biases.copy_(scale * self.biases + biases.to(self.biases.device))
        self.scale.mul_(scale)
        log.info("biases of the classes and a temperature are set by %d validation samples (objective.calibrate=val)", len(answers))

    # ---------------------------------------------------------------- before training
    @classmethod
    def check(cls, source: Source, answers: Class | None = None) -> None:
        super().check(source, answers)
        if source.parts or source.modality != "text":
            raise UserError(f"objective=prompt asks about one text, and the samples of {source.name} are others: choose another objective=")

    def check_encoder(self, encoder: Encoder) -> None:
        """Asked when it is built."""

    def check_views(self, views: Views) -> None:
        if type(views) is not Plain or views.n > 1:
            raise UserError("objective=prompt reads each text as it is: leave views=plain with views.n=1")
