"""Protects attention under bfloat16 on a CPU: the numbers of float32 for short rows, torch's own for long ones, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sslt import precision


def attend(tokens: int, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Attention of random rows under autocast, and the gradients of queries, keys and values."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, 2, tokens, 8).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        out = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    out.float().square().sum().backward()
    return out.detach(), [x.grad for x in qkv]


@pytest.mark.parametrize("masked", [False, True])
def test_short_rows_are_attended_in_float32(masked):
    """Outputs are those of float32, rounded once; gradients come back in the inputs' format; the rows' format stays bfloat16."""
    mask = (torch.arange(20) < 15).view(1, 1, 1, 20) if masked else None
    with precision.short_attention_in_float32():
        out, grads = attend(20, mask)
    torch.manual_seed(0)
    exact = [torch.randn(2, 2, 20, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.detach().bfloat16())
    out_grad = 2 * expected.detach().bfloat16().float()
    expected.backward(out_grad)
    for found, x in zip(grads, exact, strict=True):
        assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), x.grad, rtol=0.02, atol=0.02)


def test_long_rows_and_what_comes_after_are_torchs_own():
    """Bit for bit what it is without."""
    own, own_grads = attend(300)
    with precision.short_attention_in_float32():
        out, grads = attend(300)
    assert torch.equal(own, out) and all(torch.equal(a, b) for a, b in zip(own_grads, grads, strict=True))
    with precision.short_attention_in_float32(), torch.autocast("cpu", torch.bfloat16):
        q = torch.randn(1, 2, 5, 8)
        scaled = F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.1)
    assert torch.allclose(scaled.float(), F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.1), atol=0.02)
    before, _ = attend(20)
    with precision.short_attention_in_float32():
        attend(20)
    assert torch.equal(before, attend(20)[0])
