"""Protects NT-Xent's maths (against loops over pairs), its gradient, and that one class serves images and text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.data.views.base import Plain
from sslt.encoders.image import ImageEncoder
from sslt.encoders.text import TextEncoder
from sslt.objectives.contrastive import NTXent, nt_xent


def reference(z: np.ndarray, temperature: float) -> float:
    """Chen et al. (2020), eq. 1, pair by pair in float64, for z [V, B, D]; a mean over the positives of each anchor."""
    v, b, d = z.shape
    rows = z.reshape(v * b, d).astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    anchors = []
    for i in range(v * b):
        denominator = 0.0
        for k in range(v * b):
            if k != i:
                denominator += math.exp(float(rows[i] @ rows[k]) / temperature)
        pairs = []
        for j in range(v * b):
            if j != i and j % b == i % b:  # another view of the same sample
                pairs.append(-math.log(math.exp(float(rows[i] @ rows[j]) / temperature) / denominator))
        assert len(pairs) == v - 1
        anchors.append(sum(pairs) / len(pairs))
    return sum(anchors) / len(anchors)


def projections(v: int, b: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(v, b, d)))


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("v", "b"), [(2, 2), (2, 7), (3, 5), (4, 3)])
def test_equals_the_double_loop(v, b, temperature):
    """Equation 1 for two views; for more, the mean over the V-1 positives of an anchor."""
    z = projections(v, b, 6)
    loss, _ = nt_xent(z, temperature)
    assert loss.item() == pytest.approx(reference(z.numpy(), temperature), rel=1e-10)


def test_one_sample_has_nothing_to_lose():
    """With one sample its other view is the only row left: probability 1."""
    loss, accuracy = nt_xent(projections(2, 1, 4), 0.2)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert accuracy.item() == 1.0


def test_perfect_alignment_of_orthogonal_samples():
    """Positives at cosine 1 and everything else at 0 gives log(e^(1/t) + 2N - 2) - 1/t, and every anchor is right."""
    n, t = 5, 0.5
    z = torch.eye(n, dtype=torch.float64).expand(2, n, n) * 3
    loss, accuracy = nt_xent(z, t)
    assert loss.item() == pytest.approx(math.log(math.exp(1 / t) + 2 * n - 2) - 1 / t, rel=1e-12)
    assert accuracy.item() == 1.0


@pytest.mark.parametrize("n", [2, 16])
def test_collapsed_embeddings_score_chance(n):
    """If all rows are equal, the positive is one of 2N-1 equals."""
    z = torch.ones(2, n, 4, dtype=torch.float64)
    assert nt_xent(z, 0.1)[0].item() == pytest.approx(math.log(2 * n - 1), rel=1e-12)


def test_accuracy_counts_anchors_whose_nearest_row_is_a_positive():
    """Sample 2's views point apart: its two anchors are wrong, the other four right."""
    e = torch.eye(4, dtype=torch.float64)
    first = torch.stack([e[0], e[1], e[2]])
    second = torch.stack([e[0], e[1], e[0] * 0.5 + e[3]])
    assert nt_xent(torch.stack([first, second]), 0.2)[1].item() == pytest.approx(4 / 6)


def test_invariances():
    """Neither a rotation of the space, nor the order of samples or views, nor the length of a row matters."""
    z = projections(3, 6, 5)
    expected = nt_xent(z, 0.2)[0].item()
    rotation, _ = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(5, 5))))
    lengths = torch.from_numpy(np.random.default_rng(2).uniform(0.1, 10, size=(3, 6, 1)))
    order = torch.from_numpy(np.random.default_rng(3).permutation(6))
    for changed in (z @ rotation, z * lengths, z[:, order], z.flip(0)):
        assert nt_xent(changed, 0.2)[0].item() == pytest.approx(expected, rel=1e-10)


def test_which_row_goes_with_which_matters():
    """Pairing each sample with another one's view changes the loss: the positives are what they should be."""
    z = projections(2, 6, 5)
    z[1] = z[0] + 0.01 * z[1]
    wrong = torch.stack([z[0], z[1].roll(1, 0)])
    assert nt_xent(z, 0.2)[0] < nt_xent(wrong, 0.2)[0] - 1


def test_gradient():
    """The analytic gradient is finite (the anchor's own -inf leaves no NaN) and is that of finite differences."""
    z = projections(3, 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(nt_xent(z, 0.2)[0], z)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, 0.2)[0], (z,))


def test_gradient_of_collapsed_float32_rows_is_finite():
    """Equal rows at a low temperature neither overflow nor divide by zero."""
    z = torch.ones(2, 8, 4, requires_grad=True)
    loss, _ = nt_xent(z, 0.01)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()


# -------------------------------------------------------------------- the objective, on both modalities
def image_encoder() -> ImageEncoder:
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    return ImageEncoder(ImageProcessor(8, 1, [0.5], [0.5]), "resnet18", args, "small", False)


def text_encoder(dropout: float) -> TextEncoder:
    tokenizer = train_tokenizer(["the cat sat on the mat", "a dog ran in the park"] * 3, 64, True)
    config = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 16, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    return TextEncoder(TextProcessor(tokenizer, 16), "bert", config, "mean")


def text_batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(5, 20, (6, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(8) < torch.tensor([8, 7, 6, 5, 4, 3]).unsqueeze(1)
    return {"tokens": tokens, "mask": mask}


def image_batch() -> dict[str, torch.Tensor]:
    return {"image": torch.randint(0, 256, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)}


def objective(encoder, **changed) -> NTXent:
    return NTXent(encoder, **{"temperature": 0.2, "hidden": 16, "out": 8, "norm": True, **changed})


def test_the_same_class_serves_images_and_text():
    """The objective asks nothing of a modality; encoder and projector both get a gradient."""
    torch.manual_seed(0)
    for encoder, batch in ((image_encoder(), image_batch()), (text_encoder(0.1), text_batch())):
        head = objective(encoder)
        made = Plain(n=2)(batch, encoder)
        loss = head(encoder, made)
        assert head.units(made) == 6 and loss.value.dim() == 0 and torch.isfinite(loss.value)
        assert not loss.logs["contrast_accuracy"].requires_grad
        loss.value.backward()
        for module in (encoder, head):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert gradients and all(torch.isfinite(g).all() for g in gradients)


def test_forward_is_the_loss_of_the_projected_views():
    """`forward` encodes view by view, projects, and hands `nt_xent` rows in the right places."""
    torch.manual_seed(0)
    encoder = image_encoder().eval()
    head = objective(encoder).eval()
    other = {"image": image_batch()["image"].flip(-1)}
    views = torch.stack([encoder.inputs(b)["image"] for b in (image_batch(), other)])
    with torch.no_grad():
        got = head(encoder, {"views": {"image": views}}).value
        z = torch.stack([head.projector(encoder({"image": v}).pooled) for v in views])
    assert got.item() == pytest.approx(reference(z.numpy(), 0.2), rel=1e-4)


def test_two_dropout_passes_of_a_text_differ():
    """SimCSE's two views: with dropout the same tokens give two embeddings, without it one."""
    torch.manual_seed(0)
    for dropout, differ in ((0.1, True), (0.0, False)):
        encoder = text_encoder(dropout).train()
        views = Plain(n=2)(text_batch(), encoder)["views"]
        pooled = encoder({k: v.flatten(0, 1) for k, v in views.items()}).pooled.unflatten(0, (2, -1))
        assert torch.allclose(pooled[0], pooled[1], atol=1e-6) is not differ


def test_hidden_zero_leaves_the_projector_out():
    """hidden=0 compares the encoder's own features; norm=false has no BatchNorm."""
    encoder = text_encoder(0.0)
    assert not list(objective(encoder, hidden=0).parameters())
    kinds = {type(m) for m in objective(encoder, norm=False).modules()}
    assert torch.nn.BatchNorm1d not in kinds
    assert torch.nn.BatchNorm1d in {type(m) for m in objective(encoder).modules()}


def test_keeps_no_reference_to_the_encoder():
    """The projector's state is its own: a reference would save the encoder twice and train it twice."""
    encoder = image_encoder()
    own = {id(p) for p in encoder.parameters()}
    assert not own & {id(p) for p in objective(encoder).parameters()}
