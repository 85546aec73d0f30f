"""`method=distill`: a fine-tuned run teaches a smaller encoder, beside the labels."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import open_dict

from sslt.config import build
from sslt.data.base import Samples
from sslt.deploy import training
from sslt.deploy.method import Method
from sslt.encoders.base import Encoder
from sslt.errors import UserError
from sslt.evaluation.features import predicted
from sslt.objectives.distill import Distill
from sslt.ranges import Natural, NonNegative, Positive, Share
from sslt.runs import Run, open_run
from sslt.stored import located
from sslt.targets import heads
from sslt.targets.base import Target


class FromTeacher(Method):
    """alpha · what the teacher says + (1 - alpha) · the loss on labels, for a fresh `encoder=` or the one in the folder `start`.

    The parts of the former are those of `objectives/distill.py`; logits are those of the teacher's head and of the student's own
    (Hinton et al., 2015, section 2.1). Late fusion, where the teacher has it, is solved and weighed anew.
    """

    reads_train = True

    def __init__(
        self, start: str | None, alpha: Share, features: NonNegative, tokens: NonNegative, pseudo: NonNegative, logits: NonNegative,
        distance: str, temperature: Positive, tau: Positive, queue: Natural | None,
    ):  # fmt: skip
        super().__init__()
        self.start, self.alpha = start, alpha
        self.parts: dict[str, Any] = {
            "features": features, "tokens": tokens, "pseudo": pseudo, "logits": logits,
            "distance": distance, "temperature": temperature, "tau": tau, "queue": queue,
        }  # fmt: skip

    def apply(
        self, encoder: Encoder, target: Target, train: Samples | None, val: Samples | None, cfg: Any, run: Run
    ) -> tuple[Encoder, Target]:
        own = training.recipe(cfg, open_run(cfg["from"]), run.info["overrides"])
        if own.encoder is None and self.start is None:
            raise UserError(
                "which student? Give a smaller encoder, encoder=resnet_small (images) or bert_tiny (text), or method.start=FOLDER"
            )
        with open_dict(own):
            own["from"], own.objective = self.start, {"teacher": cfg["from"]}
        torch.manual_seed(int(cfg.seed))
        student = self.fresh(own)
        own["from"] = None
        train, val = self.samples_for(student)
        assert train is not None
        answers = build(heads.node_of(located(str(cfg["from"])) / "head"), student, space=target.space)
        answers.check_encoder(student)
        teaches = Distill(student, str(cfg["from"]), list(cfg.trust), **self.parts)
        if self.parts["logits"]:
            teaches.answer_by(answers.head, target.names)
        run.update(**teaches.made_from())

        def terms(labels: Any) -> dict[str, Any]:
            labels.weight = 1 - self.alpha
            return {"finetune": labels, "distill": self.term(teaches, "finetune", self.alpha)}

        self.found |= training.train(self, own, run, student, answers, train, terms)
        if len(getattr(target, "beside", ())):
            seen = train if val is None else val
            device, batch = next(student.parameters()).device, int(own.batch_size)
            self.found |= answers.fuse(student, predicted(student, answers, seen, device, batch), train, val, device)
        ours, theirs = (sum(p.numel() for p in e.parameters()) for e in (student, encoder))
        self.remarks.append(f"a student of {ours:,} parameters learned from a teacher of {theirs:,}")
        return student, answers
