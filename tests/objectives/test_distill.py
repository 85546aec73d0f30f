"""Protects distillation: a student that is its teacher loses nothing, each part is its paper's formula, and the teacher stands still."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_encoders import TinyEncoder, tiny_vit, views
from torch import nn

from sslt.data.offered import Offered
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.base import Features, fingerprint
from sslt.encoders.files import write_tensors
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import load_encoder
from sslt.encoders.seals import seal
from sslt.errors import UserError
from sslt.objectives.distill import Distill, _pixels, softened_kl

PARTS = ("features", "tokens", "pseudo", "logits")
CLASSES = ["a", "b", "c"]


def resnet(seed: int = 0, size: int = 16, channels: int = 3, last: int = 16) -> ImageEncoder:
    torch.manual_seed(seed)
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, last]}
    return ImageEncoder(ImageProcessor(size, channels, [0.5] * channels, [0.25] * channels), "resnet18", args, "small", False)


def saved(encoder: Any, folder: Path, classes: list[str] | None = None) -> str:
    """The folder of a run that holds `encoder`, and a head for `classes`."""
    (folder / "head").mkdir(parents=True)
    (folder / "run.json").write_text('{"verb": "finetune", "status": "finished"}')
    encoder.save(folder / "encoder")
    if classes:
        torch.manual_seed(5)
        weight, bias = torch.randn(len(classes), encoder.dim), torch.randn(len(classes))
        write_tensors(folder / "head" / "model.safetensors", {"head.weight": weight, "head.bias": bias})
        node = {"_target_": "sslt.targets.classification.Classification", "dropout": 0.0, "label_smoothing": 0.0}
        seal(folder / "head", "head.json", {"objective": node, "answer": "class", "space": {"classes": classes}})
    return str(folder)


def made(encoder: Any, teacher: str | None, **settings: Any) -> Distill:
    usual = {**dict.fromkeys(PARTS, 0.0), "distance": "cosine", "temperature": 0.07, "tau": 4.0, "queue": 32}
    torch.manual_seed(1)
    return Distill(encoder, teacher, [], **{**usual, **settings})


@pytest.mark.parametrize("distance", ["cosine", "mse"])
@pytest.mark.parametrize("part", PARTS)
def test_a_student_that_is_its_teacher_loses_nothing(part, distance, tmp_path):
    """The loss is exactly 0, and so is its gradient; of any other student it is more."""
    teacher = saved(resnet(), tmp_path / "run", CLASSES)
    student = load_encoder(teacher).eval()
    objective = made(student, teacher, **{part: 1.0}, distance=distance)
    found = objective(student, views(6, v=2))
    found.value.backward()
    assert found.value.item() == 0.0
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-6
    other = resnet(1).eval()
    assert made(other, teacher, **{part: 1.0}, distance=distance)(other, views(6, v=2)).value.item() > 1e-3


def test_the_queue_is_seeds(tmp_path):
    """Cross-entropy of the student's softmax with the teacher's over the queue, which has this batch in it, less the teacher's entropy."""
    teacher, student = saved(resnet(), tmp_path / "run"), resnet(1)
    objective = made(student, teacher, pseudo=1.0)
    objective.teacher.eval()
    with torch.no_grad():
        objective.map.weight.add_(0.1 * torch.randn_like(objective.map.weight))
    batch = views(5, v=2)
    before = objective.queue.features.clone()
    value = objective(student, batch).value
    x = batch["views"]["image"].flatten(0, 1)
    with torch.no_grad():
        t, s = objective.teacher({"image": x}).pooled.double(), objective.map(student({"image": x}).pooled).double()
    t, s = t / t.norm(dim=1, keepdim=True), s / s.norm(dim=1, keepdim=True)
    order = [i * 5 + b for b in range(5) for i in range(2)]
    rows = torch.cat([t[order], before[10:].double()])
    assert torch.allclose(objective.queue.features.double(), rows, atol=1e-6)
    expected = []
    for a, b in zip(s, t, strict=True):
        p, q = np.exp((rows @ b).numpy() / 0.07), np.exp((rows @ a).numpy() / 0.07)
        p, q = p / p.sum(), q / q.sum()
        expected.append(-(p * np.log(q)).sum() + (p * np.log(p)).sum())
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_softened_logits_are_hintons():
    """τ² KL by hand, also where probabilities vanish; at a high temperature the gradient is that of half the squared distance of centred
    logits over the number of classes (Hinton et al., 2015, eq. 4).
    """
    theirs, ours = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[0.0, 1.0, -2.0]])
    p, q = (np.exp(x[0].double().numpy() / 3) for x in (theirs, ours))
    p, q = p / p.sum(), q / q.sum()
    assert softened_kl(ours, theirs, 3.0).item() == pytest.approx(9 * float((p * np.log(p / q)).sum()), rel=1e-5)
    assert math.isfinite(softened_kl(torch.tensor([[0.0, 900.0]]), torch.tensor([[900.0, 0.0]]), 1.0).item())
    z = ours.double().requires_grad_()
    softened_kl(z, theirs.double(), 1e4).backward()
    centred = (ours - ours.mean()) - (theirs - theirs.mean())
    assert torch.allclose(z.grad, centred.double() / 3, atol=1e-3)


def test_mse_is_the_unexplained_variance(tmp_path):
    """A map that says the batch's mean of every feature leaves all of the teacher's variance: exactly 1."""
    teacher, student = saved(resnet(), tmp_path / "run"), resnet(1).eval()
    objective, batch = made(student, teacher, features=1.0, distance="mse"), views(64)
    with torch.no_grad():
        t = objective.teacher({"image": batch["views"]["image"][0]}).pooled
        objective.map.weight.zero_()
        objective.map.bias.copy_(t.mean(0))
    assert objective(student, batch).value.item() == pytest.approx(1.0, abs=1e-4)


def test_tokens_of_other_numbers_are_resized(tmp_path):
    """A ViT of 8 × 8 patches teaches a map of 4 × 4: what is compared is its map, averaged where it is finer."""
    vit = tiny_vit(32).eval()
    teacher, student = saved(vit, tmp_path / "run"), TinyEncoder(16)
    objective = made(student, teacher, tokens=1.0)
    assert objective(student, views(3)).value.item() > 0
    seen: dict[str, Any] = {}
    objective._apart = lambda a, b, counted: seen.update(theirs=b) or (a - b).square().sum(-1)  # type: ignore[method-assign]
    flat = torch.arange(64.0).view(1, 64, 1).expand(2, 64, vit.dim)
    objective._of_tokens(torch.zeros(2, 16, vit.dim), None, Features(flat[:, 0], flat))
    got = seen["theirs"].view(2, 4, 4, -1)[0, :, :, 0]
    assert torch.all(got[:, 1:] > got[:, :-1]) and torch.all(got[1:] > got[:-1])
    assert got.mean().item() == pytest.approx(31.5, abs=1e-3)


def test_padding_is_no_part_of_the_teachers_variance(tmp_path):
    """The same tokens, filled up further: the same distance in units of the variance of those that there are."""
    objective = made(resnet(), saved(resnet(), tmp_path / "run"), tokens=1.0, distance="mse")
    torch.manual_seed(0)
    a, b, mask = torch.randn(2, 4, 16), torch.randn(2, 4, 16), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)
    found = objective._of_tokens(a, mask, Features(b[:, 0], b, mask))
    whole = torch.ones(2, 3, dtype=torch.bool)
    assert found.item() == pytest.approx(objective._of_tokens(a[:, :3], whole, Features(b[:, 0], b[:, :3], whole)).item(), rel=1e-5)


def test_hidden_words_do_not_count(tmp_path):
    """Padding of a row changes nothing in the loss on tokens, and rows count alike however long they are."""
    objective = made(resnet(), saved(resnet(), tmp_path / "run"), tokens=1.0)
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    rows = [1 - F.cosine_similarity(a[0], b[0]).mean(), 1 - F.cosine_similarity(a[1, :1], b[1, :1]).mean()]
    loss = objective._of_tokens(a, mask, Features(b[:, 0], b, mask))
    assert loss.item() == pytest.approx(float(sum(rows)) / 2, rel=1e-5)


def test_a_teacher_sees_the_same_pixels():
    """What one processor normalised comes out as the other normalises it, grey as three equal colours, resized where sizes differ."""
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    ours, theirs = ImageProcessor(8, 1, [0.3], [0.2]), ImageProcessor(8, 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    read = _pixels(ours, theirs, "run")({"image": ours.normalize(pixels)})["image"]
    assert torch.allclose(read, theirs.normalize(pixels.expand(-1, 3, -1, -1)), atol=1e-5)
    larger = ImageProcessor(16, 3, [0.5] * 3, [0.25] * 3)
    assert _pixels(ours, larger, "run")({"image": ours.normalize(pixels)})["image"].shape == (3, 3, 16, 16)
    with pytest.raises(UserError, match=r"encoder\.processor\.channels=1"):
        _pixels(theirs, ours, "run")


def test_the_teacher_stands_still_and_stays_outside(tmp_path):
    """No weight of it moves, trains, drops out or is saved; it goes where the objective goes, and is known by its fingerprint."""
    teacher = saved(tiny_vit(16), tmp_path / "run")
    student = TinyEncoder(16)
    objective = made(student, teacher, features=1.0, pseudo=1.0).train()
    assert not any(m.training for m in objective.teacher.modules())
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    ours = sum(p.numel() for p in objective.parameters())
    assert ours == objective.map.weight.numel() + objective.map.bias.numel()
    assert set(objective.state_dict()) == {"map.weight", "map.bias", "queue.features", "queue.place", "taught_by"}
    assert next(objective.double().teacher.parameters()).dtype == torch.float64
    assert objective.made_from() == {"teacher": {"from": teacher, "fingerprint": fingerprint(load_encoder(teacher))}}
    objective.float()(student, views()).value.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    other = saved(resnet(2, last=24), tmp_path / "other")
    with pytest.raises(UserError, match="is another than before"):
        made(student, other, features=1.0, pseudo=1.0).load_state_dict(objective.state_dict())


def test_answers_of_a_students_own_head(tmp_path):
    """With a head of its own the student is compared by that, which the objective neither trains nor saves a second time."""
    teacher, student = saved(resnet(), tmp_path / "run", CLASSES), resnet(1).eval()
    objective = made(student, teacher, logits=1.0)
    head = nn.Linear(student.dim, 3)
    objective.answer_by(head, CLASSES)
    batch = views(4)
    x = {"image": batch["views"]["image"][0]}
    own, theirs = head(student(x).pooled), objective._frozen[1](objective.teacher(x).pooled)
    assert objective(student, batch).value.item() == pytest.approx(softened_kl(own, theirs, 4.0).item(), rel=1e-5)
    assert set(objective.state_dict()) == {"taught_by"}
    with pytest.raises(UserError, match="3 classes"):
        objective.answer_by(head, ["x", "y", "z"])


def test_mistakes_are_one_line(tmp_path):
    """No teacher, nothing to distil, a distance there is none of, no head for logits, images of another kind."""
    student, teacher = resnet(), saved(resnet(), tmp_path / "run")
    for wrong, says in (
        ({"teacher": None, "features": 1.0}, "objective.teacher=RUN"),
        ({}, "nothing is distilled"),
        ({"features": 1.0, "distance": "cosin"}, "did you mean"),
        ({"logits": 1.0}, "has none: give a fine-tuned run"),
        ({"teacher": "nowhere_at_all", "features": 1.0}, "nowhere_at_all"),
    ):
        with pytest.raises(UserError, match=says) as e:
            made(student, wrong.pop("teacher", teacher), **wrong)
        assert "\n" not in str(e.value)


def test_the_map_starts_as_the_best_one(tmp_path):
    """Of widths that differ: what is left of the teacher's variance is far less than a random map leaves, and close to what least squares
    on the same features do; the student, its statistics and the random numbers that follow stay as they are. Equal widths: the identity.
    """
    torch.manual_seed(3)
    teacher, student = saved(resnet(last=16), tmp_path / "run"), resnet(1, last=24)
    x = (torch.rand(200, 1, 1, 3) * torch.linspace(0, 1, 16).view(1, 1, 16, 1) * 255).expand(200, 16, 16, 3).to(torch.uint8).numpy()
    samples = student.processor.at_once(Offered("image", x))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    objective = made(student, teacher, features=1.0, distance="mse")
    batch = samples.batch(np.arange(200))
    read = {"views": {"image": student.inputs(batch)["image"][None]}}
    student.train()
    left = objective(student, read).value.item()
    student.load_state_dict(before)
    state = torch.get_rng_state()
    objective.prepare(student, samples, 64)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    found = objective(student, read).value.item()
    assert found < 0.5 and found < 0.5 * left, (left, found)

    alike = resnet(1, last=16)
    objective = made(alike, teacher, features=1.0)
    objective.prepare(alike, samples, 64)
    assert torch.equal(objective.map.weight, torch.eye(16))
