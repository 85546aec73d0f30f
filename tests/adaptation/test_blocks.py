"""Protects what moves over a run: unfreezing by schedule, biases alone, penalties and layer-wise rates are what they say."""

from __future__ import annotations

import copy

import pytest
import torch
from test_adaptation import BLOCKS, changed, encoder_of, inputs_for, steps, train_mode
from torch import nn

from sslt.adaptation.adapters import IA3
from sslt.adaptation.base import Adaptation, Full
from sslt.adaptation.blocks import Bias, Gradual, Partial, ProbeThenFull
from sslt.adaptation.regularised import L2SP
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.encoders.image import ImageEncoder
from sslt.errors import UserError


@pytest.mark.parametrize("kind", BLOCKS)
def test_biases_alone(kind):
    """Every bias moves, and nothing else by a bit: BatchNorm statistics stand still with their weights."""
    encoder = encoder_of(kind)
    before = steps(encoder, Bias())
    moved = changed(encoder, before)
    biases = {n for n, p in encoder.named_parameters() if n.rpartition(".")[2] == "bias"}
    # an attention's key bias cancels in the softmax; a fresh ResNet's blocks end in BatchNorm weights of 0, which here stand still
    mute = {n for n in biases if ".key." in n or (".layer" in n and ".bn1." in n)}
    assert biases - mute <= moved <= biases


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradual_frees_one_group_after_another(kind):
    """At each level exactly the groups from the top move, and at the end all; statistics included."""
    encoder, adaptation = encoder_of(kind), Gradual("epoch", 1.0, 1.0)
    adaptation.prepare(encoder)
    head = nn.Linear(encoder.dim, 3)
    groups, depth = encoder.group_of(), encoder.depth
    optimizer = torch.optim.AdamW(adaptation.parameter_groups(encoder, head, 0.5), lr=0.05)
    train_mode(encoder, adaptation)
    for epoch in range(depth + 2):
        adaptation.advance(encoder, float(epoch), 0.0)
        before = copy.deepcopy(encoder.state_dict())
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(encoder(inputs_for(encoder, epoch)).pooled), torch.arange(6) % 3).backward()
        optimizer.step()
        moved = changed(encoder, before)
        lowest = depth - epoch  # the last block with the first epoch
        assert {groups[n] for n in moved} == set(range(max(lowest, 0), depth + 1))


def test_gradual_by_progress_is_done_after_its_share():
    """Nothing but the head at 0, every group from `over` on, evenly between."""
    encoder, adaptation = encoder_of("bert"), Gradual("progress", 0.5, 1.0)
    adaptation.prepare(encoder)
    levels = []
    for progress in (0.0, 0.124, 0.125, 0.26, 0.4, 0.5, 1.0):
        adaptation.advance(encoder, 0.0, progress)
        levels.append(adaptation.level)
    assert levels == [0, 0, 1, 2, 3, 4, 4]


def test_lpft_moves_the_head_then_everything():
    """Before its share of the run the encoder stands still, after it all of it moves."""
    encoder, adaptation = encoder_of("resnet"), ProbeThenFull(0.3, 1.0)
    adaptation.prepare(encoder)
    train_mode(encoder, adaptation)
    adaptation.advance(encoder, 0.0, 0.29)
    assert not any(p.requires_grad for p in encoder.parameters()) and not any(m.training for m in encoder.model.modules())
    adaptation.advance(encoder, 0.0, 0.3)
    assert all(p.requires_grad for p in encoder.parameters()) and all(m.training for m in encoder.model.modules())


def test_patterns_move_what_they_name():
    """Shell patterns of parameter names, beside no block at all."""
    encoder = encoder_of("vit")
    before = steps(encoder, Partial(0, ["*.norm1.*"], 1.0))
    assert changed(encoder, before) == {f"model.blocks.{i}.norm1.{w}" for i in range(3) for w in ("weight", "bias")}
    with pytest.raises(UserError, match=r"'\*\.nrm1\.\*' matches no parameter"):
        Partial(0, ["*.nrm1.*"], 1.0).prepare(encoder)


@pytest.mark.parametrize("kind", BLOCKS)
def test_layer_wise_rates_are_in_the_optimizer(kind):
    """Group i of depth L has the rate decay^(L+1-i), the head all of it; every moving parameter is in one group."""
    encoder, adaptation, head = encoder_of(kind), Full(0.5), nn.Linear(4, 3)
    adaptation.prepare(encoder)
    made = adaptation.parameter_groups(encoder, head, 0.1)
    scale = {id(p): g["lr_scale"] for g in made for p in g["params"]}
    assert len(scale) == sum(len(g["params"]) for g in made) == len(list(encoder.parameters())) + 2
    groups = encoder.group_of()
    for name, p in encoder.named_parameters():
        assert scale[id(p)] == 0.5 ** (encoder.depth + 1 - groups[name]), name
    assert {scale[id(p)] for p in head.parameters()} == {1.0}


def test_l2sp_is_its_formula():
    """λ Σ (w - w₀)² of the encoder alone, its gradient 2λ(w - w₀), and no other decay on the encoder."""
    encoder, adaptation = encoder_of("bert"), L2SP(0.3, 1.0)
    adaptation.prepare(encoder)
    assert float(adaptation.penalty(encoder)) == 0.0
    adaptation.penalty(encoder).backward()
    start = copy.deepcopy(dict(encoder.named_parameters()))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in encoder.parameters())
    with torch.no_grad():
        for i, p in enumerate(encoder.parameters()):
            p.add_(0.01 * (i + 1))
    encoder.zero_grad()
    value = adaptation.penalty(encoder)
    value.backward()
    by_hand = 0.0
    for name, p in encoder.named_parameters():
        for w, w0 in zip(p.detach().double().flatten().tolist(), start[name].detach().double().flatten().tolist(), strict=True):
            by_hand += 0.3 * (w - w0) ** 2
        assert torch.allclose(p.grad, 0.6 * (p - start[name]).detach(), atol=1e-6)
    assert float(value) == pytest.approx(by_hand, rel=1e-4)
    head = nn.Linear(4, 3)
    decays = {id(p): g["weight_decay"] for g in adaptation.parameter_groups(encoder, head, 0.1) for p in g["params"]}
    assert {decays[id(p)] for p in encoder.parameters()} == {0.0} and decays[id(head.weight)] == 0.1


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_backward_below_the_lowest_moving_block(kind):
    """Autograd stops where nothing moves: the frozen blocks' backward is not called at all."""
    encoder, adaptation = encoder_of(kind), Partial(1, [], 1.0)
    adaptation.prepare(encoder)
    train_mode(encoder, adaptation)
    called = []
    for i, name in enumerate(encoder.block_names()):
        encoder.get_submodule(name).register_full_backward_hook(lambda *_, i=i: called.append(i))
    encoder(inputs_for(encoder)).pooled.sum().backward()
    assert called in ([], [encoder.depth - 1])  # a hook on the lowest block waits for an input gradient that nobody asks for
    assert [n for n, p in encoder.named_parameters() if p.grad is not None and encoder.group_of()[n] < encoder.depth] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Full(0.0), "layer_decay=0.0"),
        (lambda: Gradual("hour", 0.5, 1.0), "adaptation.every=hour"),
        (lambda: Gradual("epoch", 0.0, 1.0), "adaptation.over=0.0"),
        (lambda: ProbeThenFull(1.0, 1.0), "adaptation.probe=1.0"),
        (lambda: L2SP(-1.0, 1.0), "adaptation.strength=-1.0"),
    ],
)
def test_values_out_of_range_are_one_line(make, words):
    """Refused before anything is read."""
    with pytest.raises(UserError, match=words):
        make()


def test_the_interface_is_what_users_extend():
    """An adaptation of one's own needs `moves` alone."""

    class Norms(Adaptation):
        def moves(self, name: str, group: int, depth: int) -> bool:
            return "norm" in name.lower()

    encoder = encoder_of("vit")
    assert all("norm" in n for n in changed(encoder, steps(encoder, Norms(1.0))))


def test_what_stands_between_blocks_moves_with_the_second():
    """A ConvNeXt's downsampling belongs to the stage it leads to, not to the last block."""
    encoder = ImageEncoder(
        ImageProcessor(32, 3, [0.5] * 3, [0.5] * 3), "convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, "standard", False
    )
    groups = encoder.group_of()
    assert encoder.depth == 4
    assert [groups[f"model.stages.{i}.downsample.0.weight"] for i in (1, 2, 3)] == [2, 3, 4]
    assert groups["model.stem.0.weight"] == 0 and groups["model.stages.3.blocks.0.conv_dw.weight"] == 4


def test_a_module_that_was_put_in_anothers_place_is_frozen_too():
    """Lightning swaps every BatchNorm for one over all GPUs when it takes the model: its statistics stand still as the old one's did."""
    encoder, adaptation = encoder_of("resnet"), Partial(1, [], 1.0)
    adaptation.prepare(encoder)
    first = encoder.model.bn1
    encoder.model.bn1 = nn.SyncBatchNorm(first.num_features)
    train_mode(encoder, adaptation)
    assert encoder.training and not encoder.model.bn1.training and encoder.model.layer4[0].bn1.training


def test_ia3s_factors_are_not_drawn_to_zero():
    """They start at 1, so decay would scale what they multiply away."""
    encoder, adaptation = encoder_of("bert"), IA3(None)
    adaptation.prepare(encoder)
    (factors, head) = adaptation.parameter_groups(encoder, nn.Linear(encoder.dim, 3), 0.1)[:2]
    assert factors["weight_decay"] == 0.0 and head["weight_decay"] == 0.1


def test_patterns_alone_can_be_asked_for():
    """With no block at all, which a command line may say."""
    from sslt import config

    args = ["+target=digits", "from=x", "adaptation=partial", "adaptation.blocks=0", "adaptation.patterns=['*bn*']"]
    made = config.build(config.compose("finetune", args).adaptation)
    assert made.moves("model.bn1.weight", 9, 9) and not made.moves("model.conv1.weight", 9, 9)
