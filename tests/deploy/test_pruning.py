"""Protects pruning: what is cut out is what zeros would do, folders say what they hold, and the least important goes first."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from prunable import HALVES, PIXELS, TEXTS, inputs, made

from sslt.deploy import pruning, units
from sslt.encoders.base import fingerprint
from sslt.encoders.load import fresh_like, load_encoder
from sslt.errors import UserError

FAMILIES = [
    *((kind, "channels") for kind in (*PIXELS, "conv4") if kind != "vit"),
    *((kind, what) for kind in ("vit", *TEXTS) for what in ("hidden", "heads")),
]


def groups_of(encoder: Any, what: str) -> list[units.Group]:
    return units.channels(encoder, inputs(encoder, 2), True) if what == "channels" else getattr(units, what)(encoder)


def some(groups: list[units.Group], seed: int = 0) -> list[torch.Tensor]:
    """Units of each group that stay, at random, others in each."""
    torch.manual_seed(seed)
    return [torch.randperm(g.n)[: max(1, int(g.n * (0.4 + 0.1 * (i % 4))))].sort().values for i, g in enumerate(groups)]


@pytest.mark.parametrize(("kind", "what"), FAMILIES, ids=["-".join(f) for f in FAMILIES])
def test_cut_is_masked_and_comes_back(kind, what, tmp_path):
    """Features are those of the encoder with zeros, to 1e-5; an ordinary folder without pickles holds it, and opens bit for bit."""
    encoder, given = made(kind), None
    given = inputs(encoder)
    groups = groups_of(encoder, what)
    assert groups
    kept = some(groups)
    before = sum(p.numel() for p in encoder.parameters())
    masked = copy.deepcopy(encoder)
    theirs = groups_of(masked, what)
    pruning.mask(theirs, kept)
    features = pruning.cut(encoder, groups, kept)
    wanted = masked(given).pooled
    found = encoder(given).pooled
    wanted = wanted if features is None else wanted[:, features]
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()) + 1e-6)
    assert sum(p.numel() for p in encoder.parameters()) < before and found.shape[1] == encoder.dim
    encoder.save(tmp_path / "small")
    assert {p.suffix for p in (tmp_path / "small").iterdir() if p.is_file()} <= {".json", ".safetensors", ".md", ".txt"}
    again = load_encoder(str(tmp_path / "small")).eval()
    assert torch.equal(again(given).pooled, found) and fingerprint(again) == fingerprint(encoder) and again.dim == encoder.dim
    fresh = fresh_like(str(tmp_path / "small"))
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    if kind in HALVES:
        written = [e.word_states(given, outputs=given["tokens"]) for e in (encoder, masked, again)]
        assert torch.allclose(written[0], written[1], atol=1e-5 * float(written[1].abs().max())) and torch.equal(written[0], written[2])
    if not (what == "hidden" and kind in TEXTS):  # whose args say it
        assert encoder.pruned is not None
    twice = groups_of(again, what)
    pruning.cut(again, twice, some(twice, 1))
    again.save(tmp_path / "smaller")
    assert torch.equal(load_encoder(str(tmp_path / "smaller")).eval()(given).pooled, again.eval()(given).pooled)


def test_a_transformer_of_equal_widths_is_its_librarys_own(tmp_path):
    """Hidden units and layers of a BERT go from its config too, so that transformers opens the folder."""
    from transformers import AutoModel

    encoder = made("bert")
    groups = units.hidden(encoder)
    pruning.cut(encoder, groups, [torch.arange(16)] * len(groups))
    pruning.drop_layers(encoder, [1])
    assert encoder.pruned is None
    encoder.save(tmp_path / "small")
    theirs = AutoModel.from_pretrained(tmp_path / "small", add_pooling_layer=False).eval()
    given = inputs(encoder)
    hidden = theirs(input_ids=given["tokens"], attention_mask=given["mask"].long()).last_hidden_state
    assert torch.allclose(hidden, encoder(given).tokens, atol=1e-6)
    assert theirs.config.intermediate_size == 16 and theirs.config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", ["modernbert", "t5", "mt5", "bart"])
def test_newer_families_of_equal_widths_too(kind, tmp_path):
    """Hidden units of ModernBERT (gated, in one matrix), T5 (gated or not) and BART go from their configs, of both halves."""
    import transformers

    encoder = made(kind)
    groups = units.hidden(encoder)
    pruning.cut(encoder, groups, [torch.arange(3, 19)] * len(groups))
    assert encoder.pruned is None and all(g.n == 40 for g in groups) and len(groups) == len(encoder.block_names())
    encoder.save(tmp_path / "small")
    auto = transformers.AutoModelForSeq2SeqLM if kind in HALVES else transformers.AutoModel
    theirs, given = auto.from_pretrained(tmp_path / "small").eval(), inputs(encoder)
    read = theirs.get_encoder() if kind in HALVES else theirs
    hidden = read(input_ids=given["tokens"], attention_mask=given["mask"].long()).last_hidden_state
    assert torch.allclose(hidden[given["mask"]], encoder(given).tokens[given["mask"]], atol=1e-5)


@pytest.mark.parametrize("kind", HALVES)
def test_a_pruned_decoder_writes_what_the_masked_one_does(kind):
    """Word by word, with what it keeps of earlier words; T5's heads go in the same places of all blocks, as they share positions."""
    from sslt.encoders.generation import Limits, generate

    encoder = made(kind)
    limits, given = Limits(6, 0, 1, False, 1.0, 0, 1.0, 1.0, 0), inputs(encoder)
    groups = units.heads(encoder)
    halves = encoder.depth // 2
    if "t5" in kind:
        assert sorted(len(g.attentions) for g in groups) == [*[1] * halves, halves, halves]
    kept, masked = some(groups, 4), copy.deepcopy(encoder)
    pruning.mask(units.heads(masked), kept)
    pruning.cut(encoder, groups, kept)
    with torch.no_grad():
        assert generate(encoder, given, limits) == generate(masked, given, limits)


def test_the_guard_looks_at_the_decoder():
    """Features are the encoder half's: a decoder that would write something else is refused as well."""
    encoder = made("t5")
    groups = units.hidden(encoder)
    (module, index) = groups[-1].columns[0]
    groups[-1].columns[0] = (module, index.flip(0))
    with pytest.raises(UserError, match="does not compute the same"):
        pruning.without(encoder, groups, some(groups), inputs(encoder))


def test_layers_that_do_not_go_one_by_one():
    """T5's first block has the positions of all, ModernBERT's no first norm, BART's are of two halves: refused by name."""
    from sslt.deploy.prune import Prune

    method = Prune(0.5, "parameters", "layers", "magnitude", 1, 1, 1, True, 0.1, 0.2)
    for kind in ("modernbert", *HALVES):
        with pytest.raises(UserError, match=f"{kind} are not alike, or are those of two halves"):
            method.check(made(kind), torch.nn.Module())
    method.check(made("bert"), torch.nn.Module())


@pytest.mark.parametrize("kind", ["vit", "bert", "distilbert", "gpt2"])
def test_layers_that_are_left_out_are_passed_by(kind, tmp_path):
    """Without a block the encoder is that in which the block gives what it got; the folder opens again."""
    encoder, reference = made(kind), made(kind)
    given = inputs(encoder)
    block = reference.get_submodule(reference.block_names()[1])
    block.forward = lambda x, *a, **k: (x,) if kind == "gpt2x" else x
    pruning.drop_layers(encoder, [1])
    assert torch.allclose(encoder(given).pooled, reference(given).pooled, atol=1e-6)
    encoder.save(tmp_path / "small")
    assert torch.equal(load_encoder(str(tmp_path / "small")).eval()(given).pooled, encoder(given).pooled)


def test_what_goes_is_what_matters_least():
    """Channels and heads whose weights are near zero are those that go; by Taylor those that the loss does not read."""
    encoder = made("resnet")
    conv = encoder.model.layer2[0].conv1
    with torch.no_grad():
        conv.weight[[3, 7]] *= 1e-4
        encoder.model.layer2[0].bn1.weight[[3, 7]] = 0
        encoder.model.layer2[0].bn1.bias[[3, 7]] = 0
    groups = groups_of(encoder, "channels")
    (place,) = [i for i, g in enumerate(groups) if g.rows[0][0] is conv]
    scores = pruning.by_magnitude(groups)
    assert sorted(scores[place].argsort()[:2].tolist()) == [3, 7]
    kept = pruning.choose(encoder, groups, scores, 0.05, "parameters", inputs(encoder), even=False, multiple=1, what="channels")
    assert not {3, 7} & set(kept[place].tolist()) and sum(map(len, kept)) > 0.8 * sum(g.n for g in groups)
    bert = made("bert")
    (group, *_) = heads = units.heads(bert)
    with torch.no_grad():
        group.columns[0][0].weight[:, 8:16] = 0
    assert int(pruning.by_taylor(heads, bert, _Sum(), [_text(bert)])[0].argmin()) == 1


def _text(encoder: Any) -> dict[str, torch.Tensor]:
    return inputs(encoder)


class _Sum(torch.nn.Module):
    """A target whose loss is a fixed function of the features."""

    def forward(self, encoder, batch):
        from sslt.objectives.base import Loss, encode_views

        pooled = encode_views(encoder, batch).pooled
        return Loss((pooled * torch.linspace(-1, 2, pooled.shape[1])).sum(1).square().mean(), {})


def test_taylor_is_the_change_of_the_loss():
    """For small weights the score is the squared change of the loss when the unit is put to zero, also with two batches."""
    encoder = made("vit")
    groups = units.hidden(encoder)
    with torch.no_grad():
        for group in groups:
            group.columns[0][0].weight.mul_(1e-3)
    batch, target = {"image": torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)}, _Sum()
    other = {"image": torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)}
    down = groups[1].columns[0][0].weight

    def loss(b: dict[str, torch.Tensor]) -> torch.Tensor:
        from sslt.data.views.base import Plain

        return target(encoder, Plain(1)(dict(b), encoder)).value.double()

    scores = pruning.by_taylor([units.Group("one", 96, [], groups[1].columns)], encoder, target, [batch, other])[0]
    for unit in (0, 5):
        changes = []
        for b in (batch, other):
            with torch.no_grad():
                before, column = loss(b), down[:, unit].clone()
                down[:, unit] = 0
                changes.append(float(loss(b) - before) ** 2)
                down[:, unit] = column
        assert float(scores[unit]) == pytest.approx(sum(changes) / 2, rel=0.05)


def test_the_share_is_kept_to():
    """At least the share of parameters (counted anew) or operations (by torch's counter) goes, and little more."""
    from torch.utils.flop_counter import FlopCounterMode

    for of in ("parameters", "operations"):
        encoder = made("resnet")
        given = inputs(encoder, 2)

        def size(e: Any, of: str = of, given: Any = given) -> float:
            if of == "parameters":
                return sum(p.numel() for p in e.parameters())
            with FlopCounterMode(display=False) as counter:
                e(given)
            return counter.get_total_flops()

        before, groups = size(encoder), groups_of(encoder, "channels")
        kept = pruning.choose(
            encoder, groups, pruning.by_magnitude(groups), 0.5, of, given, even=False, multiple=1, what="channels"
        )  # fmt: skip
        pruning.without(encoder, groups, kept, given)
        assert 0.5 <= 1 - size(encoder) / before <= 0.56


def test_even_widths_and_multiples():
    """Transformers keep as many hidden units in each block, channels stay in multiples, and each group keeps some."""
    bert = made("bert")
    groups = units.hidden(bert)
    kept = pruning.choose(
        bert, groups, pruning.by_magnitude(groups), 0.1, "parameters", inputs(bert), even=True, multiple=8, what="channels"
    )
    assert len({len(k) for k in kept}) == 1 and len(kept[0]) % 8 == 0
    with pytest.raises(UserError, match=r"at most \d+% of its parameters can go"):
        pruning.choose(bert, groups, pruning.by_magnitude(groups), 0.9, "parameters", inputs(bert), even=True, multiple=1, what="channels")


def test_influence_of_a_block_that_does_nothing():
    """A block whose branches give zeros turns nothing, and is the first that goes."""
    vit = made("vit")
    with torch.no_grad():
        for p in (*vit.model.blocks[2].attn.proj.parameters(), *vit.model.blocks[2].mlp.fc2.parameters()):
            p.zero_()
    found = pruning.influence(vit, [inputs(vit)])
    assert found[2] == pytest.approx(0, abs=1e-6) and min(found[:2]) > 1e-4
    assert pruning.layers_to_drop(vit, found, 0.2) == [2]
    with pytest.raises(UserError, match="none would stay"):
        pruning.layers_to_drop(vit, found, 0.99)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p["shapes"].update({"model.nowhere.weight": [1, 1]}), "no tensor of this architecture"),
        (lambda p: p["shapes"].update({"model.conv1.weight": [800, 3, 3, 3]}), "no tensor of this architecture"),
        (lambda p: p["shapes"].update({"model.conv1.weight": [0, 3, 3, 3]}), "whole numbers from 1"),
        (lambda p: p.update(more=1), "shapes, heads and dim"),
        (lambda p: p.update(dim=3), "wide, not 3"),
        (lambda p: p["shapes"].pop(next(iter(p["shapes"]))), "do not fit"),
        (lambda p: p["heads"].update({"model.layer1": 2}), "has no 2 heads"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(change, says, tmp_path):
    """Shapes of no layer, larger than the parent's, that do not fit each other: one line that names the file."""
    encoder = made("resnet")
    groups = groups_of(encoder, "channels")
    pruning.cut(encoder, groups, some(groups))
    encoder.save(tmp_path / "small")
    file = tmp_path / "small" / "sslt.json"
    about = json.loads(file.read_text())
    about.pop("digests")
    change(about["pruned"])
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match=says) as e:
        load_encoder(str(tmp_path / "small"))
    assert "sslt.json" in str(e.value) and "\n" not in str(e.value)


def test_the_guard_refuses_what_is_not_the_same():
    """Where what stays would compute something else (here: rows of another layer), nothing is passed off as pruned."""
    encoder = made("resnet")
    groups = groups_of(encoder, "channels")
    wrong = [units.Group(g.name, g.n, g.rows, [(m, i.flip(0)) for m, i in g.columns], (), g.features) for g in groups]
    with pytest.raises(UserError, match="does not compute the same"):
        pruning.without(encoder, wrong, some(wrong), inputs(encoder))


@pytest.mark.parametrize(("kind", "form"), [("vit", "Timm"), ("bert", "HuggingFace")])
def test_other_libraries_folders_cannot_say_it(kind, form, tmp_path):
    """Heads that went are in no config of timm or transformers: these formats are refused in one line."""
    from sslt.deploy.formats import base, folders

    encoder = made(kind)
    groups = units.heads(encoder)
    pruning.cut(encoder, groups, [torch.tensor([0, 2])] * len(groups))
    with pytest.raises(UserError, match="were pruned to widths"):
        getattr(folders, form)().write(base.Model(encoder, None), tmp_path, {})
