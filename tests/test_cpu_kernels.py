"""Protects what replaces torch's kernels for bfloat16 on a CPU: the same mathematics, only where it is faster, and nothing left behind."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from sslt import cpu_kernels


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
    with cpu_kernels.short_attention_in_float32():
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
    with cpu_kernels.short_attention_in_float32():
        out, grads = attend(300)
    assert torch.equal(own, out) and all(torch.equal(a, b) for a, b in zip(own_grads, grads, strict=True))
    with cpu_kernels.short_attention_in_float32(), torch.autocast("cpu", torch.bfloat16):
        q = torch.randn(1, 2, 5, 8)
        scaled = F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.1)
    assert torch.allclose(scaled.float(), F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.1), atol=0.02)
    before, _ = attend(20)
    with cpu_kernels.short_attention_in_float32():
        attend(20)
    assert torch.equal(before, attend(20)[0])


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (3, 1, 2), (3, 0, 1), (2, 1, 1), (1, 0, 1), (1, 0, 2), (5, 2, 3)])
@pytest.mark.parametrize("size", [1, 4, 7])
def test_convolutions_as_products(kernel, padding, stride, size):
    """Output and both gradients are torch's, in float64."""
    if size + 2 * padding < kernel:
        pytest.skip("no output")
    torch.manual_seed(0)
    x = torch.randn(3, 6, size, size, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(5, 6, kernel, kernel, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    y = F.conv2d(x, w, None, stride, padding)
    g = torch.randn_like(y)
    y.backward(g)
    assert torch.allclose(cpu_kernels.product(x, w, padding, stride), y)
    assert torch.allclose(cpu_kernels.weight_gradient(g, x, kernel, padding, stride), w.grad)
    if stride == 1 or kernel == 1:
        assert torch.allclose(cpu_kernels.input_gradient(g, x.shape, w, padding, stride), x.grad)


def convolve(stride, kernel, channels, out, size, bias=False, groups=1, last=True):
    """A convolution of random maps under bfloat16 autocast, and the gradients of input, weight and bias."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, size, size)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    layer = torch.nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=bias, groups=groups).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    (y.float().square().sum() / 2).backward()
    return [y.detach().float(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(
    "case", [(1, 3, 512, 512, 4), (1, 3, 512, 512, 1), (2, 3, 256, 512, 8), (2, 3, 16, 256, 16), (2, 1, 16, 32, 8), (1, 3, 16, 16, 4, True)]
)
def test_small_convolutions(case, monkeypatch):
    """bfloat16's numbers, near float32's, through products; bias included."""
    calls = []
    for name in ("product", "weight_gradient", "input_gradient"):
        own = getattr(cpu_kernels, name)
        monkeypatch.setattr(cpu_kernels, name, lambda *args, own=own, name=name: calls.append(name) or own(*args))
    expected = convolve(*case)
    assert not calls
    with cpu_kernels.small_convolutions_as_products():
        found = convolve(*case)
    assert "weight_gradient" in calls
    # where the processor has no AVX-512, torch's forward pass in bfloat16 goes another way
    assert ("product" in calls) == (case[3] == 512 and torch.cpu._is_avx512_supported())
    assert ("input_gradient" in calls) == (case[1] == 1 or case[2:4] == (512, 512))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and (a - b).norm() <= 0.01 * b.norm()
    after = convolve(*case)
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


@pytest.mark.parametrize(
    ("case", "as_product"), [((2, 3, 16, 32, 8), True), ((1, 3, 16, 16, 2), True), ((1, 3, 16, 16, 4), False), ((2, 3, 16, 16, 16), False)]
)
def test_small_convolutions_without_amx(case, as_product, monkeypatch):
    """Gradients of weights alone, where a stride ends at 4 × 4 or a map is 2 × 2; the rest is bit for bit."""
    calls = []
    own = cpu_kernels.weight_gradient
    monkeypatch.setattr(cpu_kernels, "weight_gradient", lambda *args: calls.append(args) or own(*args))
    expected = convolve(*case)
    with cpu_kernels.small_convolutions_as_products(cpu_kernels.with_avx512):
        found = convolve(*case)
    assert bool(calls) == as_product
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(a, b)
    assert (found[2] - expected[2]).norm() <= 0.01 * expected[2].norm()
    assert as_product or torch.equal(found[2], expected[2])


@pytest.mark.parametrize(("processor", "rule"), [("amx_tile", "with_amx"), ("avx512_bf16", "with_avx512"), (None, None)])
def test_the_processor_decides(processor, rule, monkeypatch):
    """Which convolutions are replaced goes by what was measured on such processors: none on others."""
    chosen = []
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == processor)
    monkeypatch.setattr(cpu_kernels, "small_convolutions_as_products", lambda r: chosen.append(r) or contextlib.nullcontext())
    with cpu_kernels.replaced("cpu", "bf16-mixed"):
        assert chosen == ([getattr(cpu_kernels, rule)] if rule else [])


@pytest.mark.parametrize("other", [{"groups": 16}, {"last": False}, {"size": 32}])
def test_other_convolutions_are_torchs_own(other):
    """Groups, channels first and large maps: bit for bit what they are without."""
    case = {"stride": 1, "kernel": 3, "channels": 16, "out": 16, "size": 4} | other
    expected = convolve(**case)
    with cpu_kernels.small_convolutions_as_products():
        found = convolve(**case)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_second_derivatives_and_torch_func_pass_through():
    """A gradient of a gradient, as MAML needs it, and per-sample gradients are near float32's."""
    torch.manual_seed(0)
    x, w = torch.randn(4, 8, 4, 4).to(memory_format=torch.channels_last), torch.randn(8, 8, 3, 3).to(memory_format=torch.channels_last)

    def loss(w, x):
        with torch.autocast("cpu", torch.bfloat16):
            return F.conv2d(x, w, padding=1).float().square().mean()

    def twice(w):
        return torch.func.grad(lambda v: torch.func.grad(loss)(v, x).square().sum())(w)

    def each(w):
        return torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x.unsqueeze(1))

    expected = twice(w), each(w)
    with cpu_kernels.small_convolutions_as_products():
        found = twice(w), each(w)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm()


def test_they_can_be_left_out(monkeypatch):
    """`fast_kernels=false`: every operator is torch's own."""
    entered = []
    monkeypatch.setattr(cpu_kernels, "short_attention_in_float32", lambda: entered.append("attention") or contextlib.nullcontext())
    with cpu_kernels.replaced("cpu", "bf16-mixed", wanted=False), cpu_kernels.replaced("gpu", "bf16-mixed"):
        assert not entered
    with cpu_kernels.replaced("cpu", "bf16-mixed"):
        assert entered == ["attention"]


def test_another_torch_trains_without_them(monkeypatch, caplog):
    """Where private parts of torch are gone, a run goes on with torch's own kernels and says so; nothing half-replaced is left behind."""

    def gone(rule: object) -> contextlib.AbstractContextManager[None]:
        raise AttributeError("module 'torch._C' has no attribute 'DispatchKey'")

    own, own_grads = attend(20)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(cpu_kernels, "small_convolutions_as_products", gone)
    with cpu_kernels.replaced("cpu", "bf16-mixed"):
        out, grads = attend(20)
    assert "fast_kernels=false" in caplog.text and torch.equal(out, own) and all(map(torch.equal, grads, own_grads))
