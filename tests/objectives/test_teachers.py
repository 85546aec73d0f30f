"""Protects momentum teachers: what they teach reaches the loss, they follow the student and nothing else, and they drop nothing out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranks import batch_of
from tiny_tasks import TASKS, tiny

import sslt
from sslt.config import build, compose
from sslt.data.prepare.image_processor import ImageSamples
from sslt.encoders.dropout import has_dropout
from sslt.objectives.parts.momentum import Teacher
from sslt.stages.common import starting_encoder


def made(task: str) -> tuple[Any, Any, dict]:
    """Encoder, objective and a batch of a task, tiny, with stochastic depth where the encoder has it."""
    settings = [f"+task={task}", *tiny(task), "data=digits", "encoder.processor.channels=3"]
    depth = ["+encoder.args.drop_path_rate=0.3"] if compose("pretrain", settings).encoder.name.startswith("vit") else []
    cfg = compose("pretrain", [*settings, *depth])
    torch.manual_seed(0)
    encoder = starting_encoder(cfg, build(cfg.data))
    objective = build(cfg.objective, encoder)
    p = encoder.processor
    pixels = torch.randint(0, 255, (102, p.size, p.size, 3), dtype=torch.uint8).numpy()
    objective.prepare(encoder, ImageSamples(pixels, None, "random"), 38)
    objective.progress = 0.5
    return encoder, objective, batch_of(p.size, 3, cfg, None)[0]


def with_teacher() -> list[str]:
    """Tasks whose objective has a momentum, by their files: to compose all would take every collection ten seconds."""
    configs = Path(sslt.__file__).parents[1] / "configs"
    chosen = {task: re.search(r"/objective: (\w+)", (configs / "task" / f"{task}.yaml").read_text()) for task in TASKS}
    files = {task: configs / "objective" / f"{found[1]}.yaml" for task, found in chosen.items() if found}
    return [task for task, file in files.items() if re.search(r"^momentum:", file.read_text(), re.MULTILINE)]


TEACHERS = with_teacher()


def value(encoder: Any, objective: Any, batch: dict) -> float:
    torch.manual_seed(1)
    batch = {k: (dict(x) if isinstance(x, dict) else x) for k, x in batch.items() if k != "encoded"}
    batch = {k: ({n: t.float() for n, t in x.items()} if isinstance(x, dict) else x) for k, x in batch.items()}
    with torch.no_grad():
        return float(objective.eval()(encoder.eval(), batch).value)


@pytest.mark.parametrize("task", TEACHERS)
def test_a_teacher_is_asked_and_follows(task):
    """With another encoder, projector or prototypes of the teacher, each alone, the loss is another; no gradient reaches them; after a
    step they are m·teacher + (1 - m)·student, to the number.
    """
    encoder, objective, batch = made(task)
    (teacher,) = [m for m in objective.modules() if isinstance(m, Teacher)]
    assert not any(p.requires_grad for p in teacher.parameters())
    for name, part in teacher.copies.items():
        before = value(encoder, objective, batch)
        with torch.no_grad():
            for p in part.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        assert value(encoder, objective, batch) != before, name
    students = {name: encoder if name == "encoder" else getattr(objective, name) for name in teacher.copies}
    assert ("projector" in students) == hasattr(objective, "projector")
    old = {n: p.clone() for n, p in teacher.copies.named_parameters()}
    objective.after_step(encoder)
    m = teacher.momentum_at(0.5)
    assert 0 < m < 1
    for name, student in torch.nn.ModuleDict(students).named_parameters():
        now = teacher.copies.get_parameter(name)
        assert torch.allclose(now, m * old[name] + (1 - m) * student, atol=1e-6) and not torch.equal(now, old[name]), name


@pytest.mark.parametrize("task", TEACHERS)
def test_a_teacher_starts_with_what_the_student_begins_with(task):
    """Weights that the student is given once the objective is there, before training."""
    encoder, objective, _ = made(task)
    (teacher,) = [m for m in objective.modules() if isinstance(m, Teacher)]
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(1.0)
    objective.prepare(encoder, ImageSamples(torch.zeros(102, 8, 8, 3, dtype=torch.uint8).numpy(), None, "flat"), 38)
    copies = teacher.copies["encoder"].state_dict()
    assert all(torch.equal(copies[name], x) for name, x in encoder.state_dict().items())


@pytest.mark.parametrize("task", TEACHERS)
def test_a_teacher_drops_nothing(task):
    """Its targets are the same each time, whatever the student drops, though its BatchNorm goes on in train mode."""
    encoder, objective, _ = made(task)
    (teacher,) = [m for m in objective.modules() if isinstance(m, Teacher)]
    assert not has_dropout(teacher) and teacher.training
    if encoder.args["name"].startswith("vit"):
        assert has_dropout(encoder)


def test_dropout_of_a_run_is_none_of_its_teachers():
    """dropout= is set before a teacher is copied; a text encoder's own 0.1 is not kept there."""
    cfg = compose("pretrain", ["+task=data2vec", "data=docs", "encoder=bert_tiny", *tiny("mlm"), "views=plain", "dropout=0.2"])
    encoder = starting_encoder(cfg, build(cfg.data))
    objective = build(cfg.objective, encoder)
    assert has_dropout(encoder) and not has_dropout(objective.teacher)
    assert objective.layers == 1  # the upper half of two blocks
