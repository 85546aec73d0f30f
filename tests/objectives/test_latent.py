"""Protects data2vec and I-JEPA: targets of the teacher's layers, hidden tokens only, no answer left in the question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_vit import images, small_vit

from sslt.errors import UserError
from sslt.objectives import latent
from sslt.objectives.latent import IJEPA, Data2Vec

MASKED = torch.zeros(3, 16, dtype=torch.bool)
MASKED[0, [1, 2]], MASKED[1, [0, 7, 8]], MASKED[2, 15] = True, True, True


def normal(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("pooled", ["avg", "token"])
@pytest.mark.parametrize(("beta", "last"), [(0.0, 2), (0.5, 1)])
def test_data2vec_against_the_loop(monkeypatch, beta, last, pooled):
    """Mean of the last blocks' normalised outputs, of both or of one of two; smooth L1 at hidden tokens, averaged over each sample, then
    over samples.
    """
    monkeypatch.setattr(latent, "block_tokens", lambda *_: MASKED)
    encoder, batch = small_vit(pooled), images()
    objective = Data2Vec(encoder, 0.2, True, [0.5, 2.0], last, beta, 0.99)
    value = float(objective(encoder, batch).value.detach())
    x = batch["views"]["image"][0]
    with torch.no_grad():
        model = encoder.model
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        layers = []
        for block in model.blocks:
            tokens = block(tokens)
            layers.append(normal(tokens[:, -16:].double().numpy()))
        guess = objective.predict(encoder(encoder.hide({"image": x}, MASKED, objective.token)).tokens).double().numpy()
    target, rows = np.mean(layers[-last:], 0), []
    for b in range(3):
        gaps = np.abs(guess[b] - target[b])[MASKED[b].numpy()]
        each = gaps**2 if not beta else np.where(gaps < beta, gaps**2 / (2 * beta), gaps - beta / 2)
        rows.append(each.mean())
    assert value == pytest.approx(np.mean(rows), rel=1e-4)


def test_data2vec_takes_no_more_layers_than_there_are():
    """And no share of nothing."""
    with pytest.raises(UserError, match="give 1 to 2"):
        Data2Vec(small_vit(), 0.2, True, [0.5, 2.0], 3, 0.0, 0.99)


IJEPA_ARGS = {
    "targets": 4,
    "context_scale": [0.85, 1.0],
    "target_scale": [0.15, 0.2],
    "aspect": [0.75, 1.5],
    "width": 8,
    "depth": 1,
    "heads": 2,
}


def test_blocks_are_rectangles_and_contexts_leave_them_out():
    """Every target block is a full rectangle, and no patch of it is in the context."""
    torch.manual_seed(0)
    objective = IJEPA(small_vit(size=32), **IJEPA_ARGS, momentum=0.9)
    for _ in range(5):
        context, blocks = objective.draw_blocks(6)
        assert context.shape[0] == 6 and blocks.shape[:2] == (4, 6)
        for b in range(6):
            targets = set(blocks[:, b].flatten().tolist())
            assert not targets & set(context[b].tolist()) and len(set(context[b].tolist())) == context.shape[1]
            for block in blocks[:, b].tolist():
                rows, columns = {t // 8 for t in block}, {t % 8 for t in block}
                assert len(rows) * len(columns) == len(block) and 6 <= len(block) <= 16


def test_ijepa_predicts_the_normalised_features_of_the_teacher(monkeypatch):
    """Smooth L1 against the loop over blocks; the teacher gets no gradient. Its last norm has a scale of its own, the targets have not."""
    torch.manual_seed(0)
    encoder, batch = small_vit(), images()
    with torch.no_grad():
        encoder.model.norm.weight.copy_(torch.linspace(0.5, 3, 16))
        encoder.model.norm.bias.copy_(torch.linspace(-1, 2, 16))
    objective = IJEPA(encoder, **IJEPA_ARGS, momentum=0.9)
    context, blocks = objective.draw_blocks(3)
    monkeypatch.setattr(objective, "draw_blocks", lambda b: (context, blocks))
    loss = objective(encoder, batch).value
    x = batch["views"]["image"][0]
    with torch.no_grad():
        target = normal(encoder({"image": x}).tokens.double().numpy())
        guess = objective.predicted(encoder({"image": x, "visible": context}).tokens, context, blocks).double().numpy()
    gaps = [guess[m, b, i] - target[b, t] for m in range(4) for b in range(3) for i, t in enumerate(blocks[m, b].tolist())]
    gaps = np.abs(np.array(gaps))
    assert float(loss) == pytest.approx(np.where(gaps < 1, gaps**2 / 2, gaps - 0.5).mean(), rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters()) and encoder.model.patch_embed.proj.weight.grad.any()


def test_predictions_are_one_blocks_own():
    """A block is predicted from the context alone: other blocks beside it change nothing."""
    torch.manual_seed(0)
    encoder = small_vit()
    objective = IJEPA(encoder, **IJEPA_ARGS, momentum=0.9)
    context, blocks = objective.draw_blocks(3)
    known = encoder({"image": images()["views"]["image"][0], "visible": context}).tokens
    alone = objective.predicted(known, context, blocks[2:3])[0]
    assert torch.allclose(alone, objective.predicted(known, context, blocks)[2], atol=1e-5)


@pytest.mark.parametrize("size", [20, 24, 32])
def test_no_target_is_shown(size):
    """Contexts hold no patch of the image's targets, even where targets cover the whole context block of some image."""
    objective = IJEPA(small_vit(size=size), **IJEPA_ARGS, momentum=0.9)
    torch.manual_seed(0)
    for _ in range(20):
        context, blocks = objective.draw_blocks(64)
        for seen, hidden in zip(context, blocks.transpose(0, 1), strict=True):
            assert not set(seen.tolist()) & set(hidden.flatten().tolist())
