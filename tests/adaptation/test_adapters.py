"""Protects adapters: the base stands still bit for bit, the adapter moves and does what its paper says, files bring it back."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from test_adaptation import bert, changed, encoder_of, inputs_for, train_mode
from torch import nn

from sslt.adaptation.adapters import IA3, AdaLoRA, Bottleneck, LoRA, Prefix, Prompt
from sslt.encoders import inserted
from sslt.encoders.base import FILE, is_adapter
from sslt.encoders.load import fresh_like, load_encoder
from sslt.errors import UserError

pytest.importorskip("peft")

MAKE = {
    "lora": lambda: LoRA(2, 4, 0.0, None),
    "adalora": lambda: AdaLoRA(4, 2, 4, 0.0, 0.1, 0.6, 1, 0.1, None),
    "ia3": lambda: IA3(None),
    "adapter": lambda: Bottleneck(3),
    "prefix": lambda: Prefix(2),
    "prompt": lambda: Prompt(2),
}
PAIRS = (
    [(m, "bert") for m in MAKE] + [(m, "vit") for m in ("lora", "adalora", "ia3", "adapter")] + [("lora", "resnet"), ("adapter", "resnet")]
)


def trained(method: str, kind: str, n: int = 10):
    """An encoder after `n` steps as the Learner takes them; what it was before, adapter included; the adaptation."""
    encoder, adaptation = encoder_of(kind), MAKE[method]()
    if kind == "bert":
        encoder.processor.max_length = 12  # leaves room for a prompt
    for m in encoder.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)  # a fresh ResNet's blocks end in zeros, behind which nothing gets a gradient
    adaptation.total_steps = n
    torch.manual_seed(1)
    adaptation.prepare(encoder)
    head = nn.Linear(encoder.dim, 3)
    optimizer = torch.optim.AdamW(adaptation.parameter_groups(encoder, head, 0.1), lr=0.05)
    before = copy.deepcopy(encoder.state_dict())
    for step in range(1, n + 1):
        train_mode(encoder, adaptation)
        loss = nn.functional.cross_entropy(head(encoder(inputs_for(encoder, step)).pooled), torch.arange(6) % 3)
        penalty = adaptation.penalty(encoder)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adaptation.after_step(encoder, step)
    return encoder, before, adaptation


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_the_base_stands_still_and_the_adapter_moves(method, kind):
    """Every tensor and buffer of the base is bit for bit what it was; every tensor of the adapter is not."""
    encoder, before, adaptation = trained(method, kind)
    moved = changed(encoder, before)
    mine = {n for n, _ in encoder.named_parameters() if adaptation.moves(n, 0, 0)}
    pruned = {n for n in mine if ".lora_E." in n}  # AdaLoRA may take all of a map's ranks
    assert mine - pruned <= moved <= mine and mine > pruned


@pytest.mark.parametrize(("method", "kind"), PAIRS)
def test_it_starts_where_the_base_is(method, kind):
    """LoRA, IA3 and bottlenecks begin as the identity; a prefix and a prompt are seen at once."""
    encoder = encoder_of(kind).eval()
    inputs = inputs_for(encoder)
    with torch.no_grad():
        plain = encoder(inputs).pooled
        if kind == "bert":
            encoder.processor.max_length = 12
        adaptation = MAKE[method]()
        adaptation.total_steps = 10
        adaptation.prepare(encoder)
        same = torch.allclose(encoder.eval()(inputs).pooled, plain, atol=1e-6)
    assert same is (method not in ("prefix", "prompt", "adalora")) or method == "adalora"  # its singular values start near 0


def test_lora_is_its_formula():
    """W x + (alpha/r)·B A x."""
    encoder, _, _ = trained("lora", "bert")
    layer = encoder.get_submodule("model.encoder.layer.1.attention.self.query")
    base, a, b = (t.detach().double() for t in (layer.base_layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight))
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    expected = x.double() @ (base + 4 / 2 * b @ a).T + layer.base_layer.bias.double()
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)


def test_adalora_takes_ranks_away():
    """At the end the singular values left over are the budget: target_r a map on average, others exactly zero, and they stay so."""
    encoder, _, adaptation = trained("adalora", "bert", n=20)
    values = {n: p for n, p in encoder.named_parameters() if ".lora_E." in n}
    left = sum(int((p != 0).sum()) for p in values.values())
    assert left <= adaptation.spec["target_r"] * len(values) < adaptation.spec["init_r"] * len(values)
    assert len({int((p != 0).sum()) for p in values.values()}) > 1 or left < 2 * len(values)  # allotted, not dealt out evenly


def test_adaloras_penalty_is_that_of_its_paper():
    """Mean over P and Q of the Frobenius distance of their Gram matrix from the identity."""
    encoder, _, adaptation = trained("adalora", "bert", n=4)
    gaps = []
    for name, p in encoder.named_parameters():
        m = p.detach().double().numpy()
        if ".lora_A." in name or ".lora_B." in name:
            gram = m @ m.T if ".lora_A." in name else m.T @ m
            gaps.append(sum((gram[i, j] - (i == j)) ** 2 for i in range(len(gram)) for j in range(len(gram))) ** 0.5)
    assert float(adaptation.penalty(encoder).detach()) == pytest.approx(0.1 * sum(gaps) / len(gaps), rel=1e-5)


def test_a_prefix_is_seen_by_every_token_and_padding_by_none():
    """What stands under the mask changes nothing; a prefix that nobody may see would leave the base's features."""
    encoder, _, _ = trained("prefix", "bert")
    encoder.eval()
    inputs = inputs_for(encoder)
    with torch.no_grad():
        first = encoder(inputs).pooled
        other = {**inputs, "tokens": torch.where(inputs["mask"], inputs["tokens"], 7)}
        assert torch.allclose(encoder(other).pooled, first, atol=1e-6)
        without = encoder.model(input_ids=inputs["tokens"], attention_mask=inputs["mask"].long()).last_hidden_state
        assert not torch.allclose(encoder(inputs).tokens, without, atol=1e-3)
        assert encoder(inputs).tokens.shape == without.shape


@pytest.mark.parametrize("method", MAKE)
def test_an_adapter_is_saved_alone_and_loads_over_its_base(method, tmp_path):
    """Small files; identical features; another base and a base that is gone are named; a fresh one is the base's architecture."""
    bert().save(tmp_path / "base")
    encoder = load_encoder(str(tmp_path / "base"))
    encoder.processor.max_length = 12
    adaptation = MAKE[method]()
    adaptation.total_steps = 10
    adaptation.prepare(encoder)
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if is_adapter(name) and p.requires_grad:
                p.add_(0.1)
    encoder.save(tmp_path / "tuned")
    inputs = inputs_for(encoder)
    expected = encoder.eval()(inputs).pooled.detach()
    assert sorted(p.name for p in (tmp_path / "tuned").iterdir()) == ["README.md", "adapter.safetensors", FILE]
    again = load_encoder(str(tmp_path / "tuned")).eval()
    assert torch.equal(again(inputs).pooled, expected) and again.processor.max_length == 12
    assert fresh_like(str(tmp_path / "tuned")).adapter is None

    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="say base=FOLDER"):
        load_encoder(str(tmp_path / "tuned"))
    assert torch.equal(load_encoder(str(tmp_path / "tuned"), base=str(tmp_path / "moved")).eval()(inputs).pooled, expected)
    torch.manual_seed(5)
    bert().save(tmp_path / "stranger")
    with pytest.raises(UserError, match="another base"):
        load_encoder(str(tmp_path / "tuned"), base=str(tmp_path / "stranger"))


def test_without_a_base_on_disk_everything_is_saved(tmp_path):
    """From scratch there is no base to name."""
    encoder, _, _ = trained("lora", "vit")
    encoder.save(tmp_path / "tuned")
    assert "base" not in json.loads((tmp_path / "tuned" / FILE).read_text())
    inputs = inputs_for(encoder)
    assert torch.equal(load_encoder(str(tmp_path / "tuned")).eval()(inputs).pooled, encoder.eval()(inputs).pooled)


@pytest.mark.parametrize(("method", "kind"), [p for p in PAIRS if p[0] in inserted.MERGEABLE])
def test_merged_is_the_same_within_1e_5(method, kind):
    """After merging nothing of the adapter is left, and features are what they were."""
    encoder, _, _ = trained(method, kind)
    inputs = inputs_for(encoder)
    expected = encoder.eval()(inputs).pooled.detach()
    names = {n for n, _ in encoder_of(kind).named_parameters()}
    inserted.merge(encoder)
    assert {n for n, _ in encoder.named_parameters()} == names
    assert torch.allclose(encoder.eval()(inputs).pooled, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Prefix(2), "vit", "adaptation=prefix"),
        (lambda: Prompt(2), "resnet", "adaptation=prompt"),
        (lambda: IA3(None), "resnet", "adaptation=ia3"),
        (lambda: MAKE["adalora"](), "resnet", "adaptation=adalora"),
        (lambda: LoRA(2, 4, 0.0, ["qeury"]), "bert", "'qeury' matches no layer"),
        (lambda: Prompt(10), "bert", "more than the model's 16 positions"),
    ],
)
def test_pairs_that_make_no_sense(make, kind, words):
    """One line that names the mode and what to do."""
    adaptation = make()
    adaptation.total_steps = 10
    with pytest.raises(UserError, match=words):
        adaptation.prepare(encoder_of(kind))


def test_values_out_of_range():
    """Before anything is read; and AdaLoRA needs to know how long the run is."""
    for make, words in (
        (lambda: LoRA(0, 4, 0.0, None), "adaptation.r=0"),
        (lambda: AdaLoRA(2, 2, 4, 0.0, 0.1, 0.6, 1, 0.1, None), "init_r"),
        (lambda: AdaLoRA(4, 2, 4, 0.0, 0.7, 0.6, 1, 0.1, None), "adaptation.start"),
        (lambda: MAKE["adalora"]().prepare(encoder_of("bert")), "max_steps"),
    ):
        with pytest.raises(UserError, match=words):
            make()
