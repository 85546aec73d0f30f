"""Protects freezing: what an adaptation says stands still does not move by a bit, and what should move does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sslt.adaptation.base import Adaptation, Full, Probe
from sslt.adaptation.blocks import Partial
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.encoders.base import Encoder
from sslt.encoders.image import ImageEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError

BLOCKS = {"resnet": 4, "vit": 3, "bert": 3}


def resnet(stem: str = "small") -> ImageEncoder:
    # below 8 channels, on a CPU without AVX-512, the backward pass of a 1×1 convolution of stride 2 overruns its memory (torch 2.15)
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "drop_block_rate": 0.1}
    return ImageEncoder(ImageProcessor(16, 3, [0.5] * 3, [0.5] * 3), "resnet18", args, stem, False)


def vit() -> ImageEncoder:
    args = {
        "patch_size": 4, "depth": 3, "embed_dim": 16, "num_heads": 2,
        "pos_drop_rate": 0.3, "proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3,
    }  # fmt: skip
    return ImageEncoder(ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3), "vit_tiny_patch16_224", args, "standard", True)


def bert() -> TextEncoder:
    tokenizer = train_tokenizer(["the cat sat on the mat", "a dog ran in the park"] * 3, 64, True)
    config = {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 16, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3,
    }  # fmt: skip
    return TextEncoder(TextProcessor(tokenizer, 16), "bert", config, "mean")


def encoder_of(kind: str) -> Encoder:
    torch.manual_seed(0)
    return {"resnet": resnet, "vit": vit, "bert": bert}[kind]()


def inputs_for(encoder: Encoder, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    if encoder.modality == "text":
        mask = torch.arange(8) < torch.randint(4, 9, (6, 1), generator=g)
        return {"tokens": torch.randint(5, 20, (6, 8), generator=g), "mask": mask}
    size = encoder.processor.size
    return encoder.inputs({"image": torch.randint(0, 256, (6, 3, size, size), generator=g, dtype=torch.uint8)})


def train_mode(encoder: Encoder, adaptation: Adaptation) -> None:
    """As `Learner.train` does."""
    encoder.train()
    adaptation.set_modes(encoder)


def steps(encoder: Encoder, adaptation: Adaptation, n: int = 3) -> dict[str, torch.Tensor]:
    """`n` steps as the Learner takes them, under AdamW with a strong weight decay; returns the state before them."""
    adaptation.prepare(encoder)
    head = nn.Linear(encoder.dim, 3)
    optimizer = torch.optim.AdamW(adaptation.parameter_groups(encoder, head, 0.5), lr=0.05)
    before = copy.deepcopy(encoder.state_dict())
    for step in range(n):
        train_mode(encoder, adaptation)
        loss = nn.functional.cross_entropy(head(encoder(inputs_for(encoder, step)).pooled), torch.arange(6) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before


def changed(encoder: Encoder, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters and buffers that are not bit for bit what they were."""
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# -------------------------------------------------------------------- the order of layers
@pytest.mark.parametrize("kind", BLOCKS)
def test_groups_are_in_order(kind):
    """Stem and embeddings are group 0, blocks 1 to depth, the final norm goes with the last block; every tensor has one."""
    encoder = encoder_of(kind)
    groups, depth = encoder.group_of(), encoder.depth
    assert depth == BLOCKS[kind]
    expected = {
        "resnet": {"model.conv1.weight": 0, "model.bn1.running_mean": 0, "model.layer1.0.conv1.weight": 1,
                   "model.layer3.0.downsample.0.weight": 3, "model.layer4.0.bn2.num_batches_tracked": 4},
        "vit": {"model.patch_embed.proj.weight": 0, "model.cls_token": 0, "model.pos_embed": 0, "model.pos_drop": 0,
                "model.blocks.0.attn.qkv.weight": 1, "model.blocks.2.mlp.fc2.bias": 3, "model.norm.weight": 3},
        "bert": {"model.embeddings.word_embeddings.weight": 0, "model.embeddings.dropout": 0,
                 "model.encoder.layer.0.attention.self.query.weight": 1, "model.encoder.layer.2.output.LayerNorm.bias": 3},
    }[kind]  # fmt: skip
    assert {name: groups[name] for name in expected} == expected
    assert set(groups.values()) == set(range(depth + 1))
    assert groups.keys() >= {n for n, _ in (*encoder.named_parameters(), *encoder.named_buffers(), *encoder.named_modules())}


def test_ten_blocks_are_not_taken_for_one():
    """Block 1 is not the head of block 10's name."""
    args = {"patch_size": 4, "depth": 12, "embed_dim": 8, "num_heads": 2}
    encoder = ImageEncoder(ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3), "vit_tiny_patch16_224", args, "standard", True)
    groups = encoder.group_of()
    assert [groups[f"model.blocks.{i}.norm1.weight"] for i in range(12)] == list(range(1, 13))


def test_torchvision_resnets_have_the_same_blocks():
    """Behind the wrapper, too: stem 0, the last stage last."""
    encoder = ImageEncoder(ImageProcessor(32, 3, [0.5] * 3, [0.5] * 3), "torchvision/resnet18", {}, "small", False)
    groups = encoder.group_of()
    assert encoder.depth == 8
    assert (groups["model.conv1.weight"], groups["model.layer1.0.conv1.weight"], groups["model.layer4.1.bn2.running_var"]) == (0, 1, 8)


# -------------------------------------------------------------------- what moves
@pytest.mark.parametrize("kind", BLOCKS)
def test_probe_moves_nothing(kind):
    """After real steps every parameter and buffer of the encoder is bit for bit what it was."""
    encoder = encoder_of(kind)
    before = steps(encoder, Probe(True))
    assert changed(encoder, before) == set()
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("kind", BLOCKS)
def test_probe_sees_the_same_features_in_training(kind):
    """No dropout, no batch statistics: two passes in training mode equal each other and the pass in eval mode."""
    encoder, adaptation = encoder_of(kind), Probe(True)
    adaptation.prepare(encoder)
    train_mode(encoder, adaptation)
    inputs = inputs_for(encoder)
    first, second = encoder(inputs).pooled, encoder(inputs).pooled
    assert torch.equal(first, second)
    encoder.eval()
    assert torch.equal(first, encoder(inputs).pooled)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", BLOCKS)
def test_partial_moves_the_last_blocks_only(kind, blocks):
    """All of the last blocks moves, statistics of their norms included; nothing before them does."""
    encoder, adaptation = encoder_of(kind), Partial(blocks, [], 1.0)
    before = steps(encoder, adaptation)
    groups, depth = encoder.group_of(), encoder.depth
    moving = {n for n in before if groups[n] > depth - blocks}
    fixed_buffers = {n for n, _ in encoder.named_buffers() if "running" not in n and "num_batches" not in n}
    assert changed(encoder, before) == moving - fixed_buffers
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == moving & {n for n, _ in encoder.named_parameters()}


@pytest.mark.parametrize("kind", BLOCKS)
def test_partial_drops_out_only_where_it_learns(kind):
    """In training mode what enters the first moving block is the same twice; modes follow the groups."""
    encoder, adaptation = encoder_of(kind), Partial(1, [], 1.0)
    adaptation.prepare(encoder)
    train_mode(encoder, adaptation)
    entering: list[torch.Tensor] = []
    block = encoder.get_submodule(encoder.block_names()[-1])
    block.register_forward_pre_hook(lambda m, args: entering.append(args[0].detach().clone()))
    inputs = inputs_for(encoder)
    with torch.no_grad():
        out = [encoder(inputs).pooled for _ in range(2)]
    assert torch.equal(entering[0], entering[1])
    if kind != "resnet":  # the last block has dropout, which is on
        assert not torch.equal(out[0], out[1])
    groups = encoder.group_of()
    for name, module in encoder.named_modules():
        if name and not list(module.children()):
            assert module.training == (groups[name] == encoder.depth), name


@pytest.mark.parametrize("kind", BLOCKS)
def test_full_moves_everything(kind):
    """Every parameter gets a gradient and moves; nothing is left out of the optimizer."""
    encoder = encoder_of(kind)
    before = steps(encoder, Full(1.0))
    parameters = {n for n, _ in encoder.named_parameters()}
    assert parameters <= changed(encoder, before)


def test_freezing_survives_the_switches_between_training_and_validation():
    """`eval()` and `train()` around a validation leave frozen modules frozen, and moving ones training."""
    encoder, adaptation = encoder_of("resnet"), Partial(1, [], 1.0)
    adaptation.prepare(encoder)
    for _ in range(2):
        encoder.eval()
        assert not any(m.training for m in encoder.modules())
        train_mode(encoder, adaptation)
    assert encoder.get_submodule("model.layer4.0.bn1").training
    assert not encoder.get_submodule("model.layer3.0.bn1").training


# -------------------------------------------------------------------- what the optimizer gets
def test_biases_and_norms_are_not_decayed():
    """Matrices decay, vectors do not; each moving parameter is in exactly one group, heads included."""
    encoder, adaptation, head = encoder_of("vit"), Partial(1, [], 1.0), nn.Linear(16, 3)
    adaptation.prepare(encoder)
    decayed, plain = sorted(adaptation.parameter_groups(encoder, head, 0.1), key=lambda g: -g["weight_decay"])
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0.0
    names = {id(p): n for n, p in (*encoder.named_parameters(), *head.named_parameters())}
    in_decayed, in_plain = ([names[id(p)] for p in g["params"]] for g in (decayed, plain))
    assert "model.blocks.2.attn.qkv.weight" in in_decayed and "weight" in in_decayed
    assert {"model.norm.weight", "model.blocks.2.norm1.bias", "bias"} <= set(in_plain)
    assert len(in_decayed) + len(in_plain) == len(set(in_decayed) | set(in_plain))
    moving = {n for n, p in (*encoder.named_parameters(), *head.named_parameters()) if p.requires_grad}
    assert set(in_decayed) | set(in_plain) == moving


def test_empty_groups_are_left_out():
    """A probe with a head of matrices only makes one group: optimizers refuse empty ones."""
    encoder = encoder_of("resnet")
    Probe(True).prepare(encoder)
    groups = Probe(True).parameter_groups(encoder, nn.Linear(8, 2, bias=False), 0.1)
    assert len(groups) == 1 and len(groups[0]["params"]) == 1


# -------------------------------------------------------------------- mistakes
def test_partial_deeper_than_the_encoder():
    """Says how many blocks there are."""
    with pytest.raises(UserError, match="has 3 blocks"):
        Partial(4, [], 1.0).prepare(encoder_of("vit"))


@pytest.mark.parametrize("blocks", [0, -1])
def test_partial_of_no_blocks(blocks):
    """That is a probe, and the message says so."""
    with pytest.raises(UserError, match="probe"):
        Partial(blocks, [], 1.0)


def test_partial_of_all_blocks_keeps_the_stem():
    """As many blocks as there are: the stem stands still, everything else moves."""
    encoder = encoder_of("resnet")
    before = steps(encoder, Partial(4, [], 1.0))
    groups = encoder.group_of()
    assert {groups[n] for n in changed(encoder, before)} == {1, 2, 3, 4}


def test_a_frozen_stem_of_the_standard_kind():
    """The 7×7 stem's BatchNorm keeps its statistics as well."""
    torch.manual_seed(0)
    encoder = resnet("standard")
    before = steps(encoder, Partial(1, [], 1.0))
    assert not any(encoder.group_of()[n] < 4 for n in changed(encoder, before))
