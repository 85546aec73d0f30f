"""Protects what restores texts (T5, BART, prefixes), TSDAE and ELECTRA: losses against the library's and plain loops, two ranks as one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

sys.path += [str(Path(__file__).parents[1] / "encoders"), str(Path(__file__).parents[1])]  # a rank knows nothing of pytest's paths
import two_processes
import writers

from sslt import distributed
from sslt.data.prepare.reversible import train_reversible
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.views.base import Plain
from sslt.data.views.text_corruption import DeleteWords, Infill, Prefix, T5Spans
from sslt.data.views.text_views import MaskTokens
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.objectives import electra as module
from sslt.objectives.electra import Electra
from sslt.objectives.parts.vocabulary import vocabulary_samples
from sslt.objectives.restore import Restore
from sslt.objectives.tsdae import TSDAE

SIZES = [24, 9, 17, 3]
VIEWS = {
    "t5_spans": ("t5", T5Spans(0.3, 2.0)),
    "bart": ("bart", Infill(0.3, 3.0, 0.1, True)),
    "prefix_lm": ("gpt2", Prefix()),
    "electra": ("bert", MaskTokens(0.3, 0.85, 0.0, False)),
    "tsdae": ("bert", DeleteWords(0.5, False)),
    "tsdae by its own decoder": ("t5", DeleteWords(0.5, False)),
}


def writer(kind: str) -> Any:
    """As `writers.writer`, and a BERT."""
    if kind != "bert":
        return writers.writer(kind)
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    torch.manual_seed(0)
    return TextEncoder(TextProcessor(train_reversible("bpe", writers.TEXTS, 400, False, 0), 32), kind, config, "mean").eval()


def rows(encoder: Any, sizes: list[int]) -> dict[str, torch.Tensor]:
    """Random texts, each between the marks of its tokenizer and as long as this with them."""
    p = encoder.processor
    ordinary = torch.tensor([i for i in range(p.vocab_size) if i not in p.special_ids])
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    tokens = ordinary[torch.randint(0, len(ordinary), mask.shape, generator=torch.Generator().manual_seed(0))]
    if p.cls_id is not None:
        tokens[:, 0] = p.cls_id
    tokens[torch.arange(len(sizes)), torch.tensor(sizes) - 1] = p.sep_id
    return {"tokens": tokens.masked_fill(~mask, p.pad_id), "mask": mask}


def setting(case: str, sizes: list[int] = SIZES) -> tuple[Any, Any, dict]:
    """Encoder, objective and the views of a batch of unequal texts."""
    kind, views = VIEWS[case]
    encoder = writer(kind)
    torch.manual_seed(1)
    task = case.split()[0]
    objective = Electra(encoder, 0.5, 50.0) if task == "electra" else TSDAE(encoder, 1, 2) if task == "tsdae" else Restore(encoder)
    views.check(encoder)
    objective.check_views(views)
    torch.manual_seed(2)
    return encoder, objective.eval(), views(rows(encoder, sizes), encoder)


# -------------------------------------------------------------------- T5, BART, prefixes
@pytest.mark.parametrize("case", ["t5_spans", "bart"])
def test_restoring_is_the_librarys_loss(case):
    """What transformers computes of labels; units are what is written, its ends among them."""
    encoder, objective, made = setting(case)
    labels = made["outputs"].masked_fill(~made["outputs_mask"], -100)
    known = encoder.model(
        input_ids=made["inputs"]["tokens"], attention_mask=made["inputs"]["mask"].long(), labels=labels,
        decoder_input_ids=torch.cat([torch.full((len(labels), 1), encoder.start_id), made["outputs"][:, :-1]], 1),
    )  # fmt: skip
    found = objective(encoder, made)
    torch.testing.assert_close(found.value, known.loss)
    torch.testing.assert_close(found.logs["perplexity"], known.loss.exp())
    assert objective.units(made) == (labels != -100).sum()


def test_the_rest_is_learned_after_its_prefix_row_by_row():
    """By one row of both parts: the loss of the rest alone, each text as if no other were beside it."""
    encoder, objective, made = setting("prefix_lm")
    total = n = 0
    for i in range(len(SIZES)):
        read = made["inputs"]["tokens"][i][made["inputs"]["mask"][i]]
        written = made["outputs"][i][made["outputs_mask"][i]]
        logits = encoder.model(input_ids=torch.cat([read, written])[None]).logits[0]
        total += F.cross_entropy(logits[len(read) - 1 : -1], written, reduction="sum")
        n += len(written)
    torch.testing.assert_close(objective(encoder, made).value, total / n)


# -------------------------------------------------------------------- TSDAE
@pytest.mark.parametrize("case", ["tsdae", "tsdae by its own decoder"])
def test_tsdae_knows_the_text_by_one_vector(case):
    """Nothing but the pooled feature reaches the decoder, and both halves learn, the embeddings of all words too."""
    encoder, objective, made = setting(case)
    loss = objective(encoder, made).value
    known = encoder({k: x[0] for k, x in made["views"].items()})
    other = {**made, "encoded": {encoder: known._replace(tokens=torch.randn_like(known.tokens), mask=None)}}
    torch.testing.assert_close(objective(encoder, other).value, loss)
    changed = {**made, "encoded": {encoder: known._replace(pooled=known.pooled.flip(0))}}
    assert (objective(encoder, changed).value - loss).abs() > 1e-6
    loss.backward()
    assert encoder.token_embeddings.weight.grad.abs().sum(1).all()
    assert [n for n, p in encoder.named_parameters() if p.grad is None and n not in encoder.unread()] == []
    assert all(p.grad is not None for p in objective.parameters())


def test_tsdaes_decoder_is_causal_and_right_row_by_row():
    """Words after a place change nothing at it; the loss is that of all words and ends, each row alone."""
    encoder, objective, made = setting("tsdae")
    table, pooled = encoder.token_embeddings.weight, torch.randn(len(SIZES), encoder.dim)
    states = objective.decoder(table, pooled, made["outputs"])
    later = made["outputs"].clone()
    later[:, 2:] = later[:, 2:].flip(1)
    again = objective.decoder(table, pooled, later)
    torch.testing.assert_close(again[:, :3], states[:, :3])
    assert not torch.allclose(again[:, 3], states[:, 3])
    total = n = 0
    for i in range(len(SIZES)):
        views = {k: x[:, i : i + 1] for k, x in made["views"].items()}
        views = {k: x[0][:, : int(views["mask"].sum())] for k, x in views.items()}
        written = made["outputs"][i, : int(made["outputs_mask"][i].sum())]
        logits = objective.decoder(table, encoder(views).pooled, written[None])[0] @ table.T + objective.decoder.bias
        total += F.cross_entropy(logits, written, reduction="sum")
        n += len(written)
    torch.testing.assert_close(objective(encoder, made).value, total / n)
    assert objective.units(made) == n == sum(SIZES) - len(SIZES)  # the mark of a start is not written


# -------------------------------------------------------------------- ELECTRA
def test_electra_is_the_papers_loss(monkeypatch):
    """By plain loops: a right draw counts as original, marks count nowhere, chosen words that are kept are learned."""
    encoder, objective, made = setting("electra")
    batch, p = rows(encoder, SIZES), encoder.processor
    targets = made["targets"]
    drawn = targets.clone().clamp(min=0)
    drawn[:, ::2] = (drawn[:, ::2] + 1) % p.vocab_size  # every other draw is wrong
    monkeypatch.setattr(module, "vocabulary_samples", lambda *given: drawn.flatten())
    states = objective.generator(encoder.token_embeddings(made["inputs"]["tokens"]), made["inputs"]["mask"], made["positions"])
    logits = states @ encoder.token_embeddings.weight.T + objective.generator.bias
    shown, replaced = batch["tokens"].clone(), set()
    masked = learned = right = 0.0
    for i in range(len(SIZES)):
        for j, place in enumerate(made["positions"][i].tolist()):
            if targets[i, j] == -100:
                continue
            masked -= logits[i, j].log_softmax(0)[batch["tokens"][i, place]]
            learned += 1
            right += int(logits[i, j].argmax() == targets[i, j])
            shown[i, place] = drawn[i, j]
            if drawn[i, j] != batch["tokens"][i, place]:
                replaced.add((i, place))
    said = objective.told(encoder({"tokens": shown, "mask": batch["mask"]}).tokens)[..., 0]
    told = n = 0.0
    for i in range(len(SIZES)):
        for t in range(SIZES[i]):
            if int(batch["tokens"][i, t]) in p.special_ids:
                continue
            told -= F.logsigmoid(said[i, t] if (i, t) in replaced else -said[i, t])
            n += 1
    found = objective(encoder, made)
    assert 0 < len(replaced) < learned
    torch.testing.assert_close(found.value, masked / learned + 50 * told / n)
    torch.testing.assert_close(found.logs["generator_loss"], masked.detach() / learned)
    assert float(found.logs["generator_accuracy"]) == pytest.approx(right / learned)
    assert float(found.logs["replaced"]) == pytest.approx(len(replaced) / n)
    assert objective.units(made) == n == sum(SIZES) - 2 * len(SIZES)


def test_electras_draws_have_no_gradient():
    """The discriminator teaches the generator nothing but what both share, the embeddings; these are taught by both."""
    grads = {}
    for weight in (0.0, 50.0):
        encoder, objective, made = setting("electra")
        objective.weight = weight
        torch.manual_seed(0)
        objective(encoder, made).value.backward()
        grads[weight] = {n: p.grad for n, p in objective.generator.named_parameters()}, encoder.token_embeddings.weight.grad
    own, embeddings = zip(*grads.values(), strict=True)
    assert own[0].keys() == own[1].keys() and all(torch.equal(own[0][k], own[1][k]) and own[0][k].any() for k in own[0])
    assert embeddings[0].any() and not torch.allclose(*embeddings)


def test_the_generator_is_narrower_and_as_deep():
    """Of the same family, with no word embeddings of its own."""
    encoder = writer("bert")
    small, c = Electra(encoder, 0.5, 50.0).generator, encoder.model.config
    assert small.model.config.num_hidden_layers == c.num_hidden_layers
    assert small.model.config.hidden_size == c.hidden_size // 2 and small.model.config.intermediate_size == c.intermediate_size // 2
    assert [n for n, p in small.named_parameters() if p.dim() == 2 and encoder.processor.vocab_size in p.shape] == []
    assert not {id(p) for p in small.parameters()} & {id(p) for p in encoder.parameters()}


def test_words_are_drawn_as_often_as_they_are_probable():
    """From the softmax of states, matrix and bias; the last word too."""
    torch.manual_seed(0)
    weight, bias, state = torch.randn(7, 5), torch.randn(7), torch.randn(5)
    drawn = vocabulary_samples(state.expand(30000, 5), weight, bias)
    found = torch.bincount(drawn, minlength=7) / 30000
    torch.testing.assert_close(found, (weight @ state + bias).softmax(0), atol=0.012, rtol=0)
    assert (vocabulary_samples(torch.zeros(9, 2), torch.zeros(3, 2), torch.tensor([-50.0, -50.0, 50.0])) == 2).all()


# -------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (Restore, "bert", "bert has no decoder to write with: choose encoder=t5_tiny or encoder=gpt_tiny"),
        (lambda e: Electra(e, 0.25, 50.0), "t5", "t5 reads no hidden words out: choose encoder=bert_tiny"),
        (lambda e: Restore(e).check_views(Plain(1)), "t5", "choose views=t5_spans, infill or prefix"),
        (lambda e: Electra(e, 0.25, 50.0).check_views(Plain(1)), "bert", "choose views=mask_tokens"),
        (lambda e: TSDAE(e, 1, 2).check_views(Plain(1)), "bert", "choose views=delete_words"),
        (lambda e: TSDAE(e, 1, 3), "bert", "objective.heads=3"),
    ],
)
def test_what_cannot_be_is_one_line(make, kind, says):
    with pytest.raises(UserError, match=says):
        make(writer(kind))


# -------------------------------------------------------------------- ranks
HALF = len(SIZES) // 2


def gradients(case: str, rank: int | None) -> torch.Tensor:
    """Of encoder and objective; by a rank with half of the rows, weighed by its units as the learner does, and averaged as DDP does."""
    encoder, objective, made = setting(case)
    encoder.double(), objective.double()
    if case == "electra":  # draws of a row are the same wherever it is
        k = made["positions"].shape[1]
        share = torch.rand(len(SIZES), k, generator=torch.Generator().manual_seed(3))
    if rank is not None:
        of = slice(rank * HALF, (rank + 1) * HALF)
        cut = lambda x, dim=0: x.narrow(dim, rank * HALF, HALF)  # noqa: E731
        made = {
            k: {n: cut(x, int(k == "views")) for n, x in v.items()} if isinstance(v, dict) else cut(v) if v.dim() else v
            for k, v in made.items()
        }
    with pytest.MonkeyPatch.context() as patch:
        if case == "electra":
            own = share if rank is None else share[of]
            patch.setattr(torch, "rand", lambda size, device=None: own.view(size))
        loss = objective(encoder, made).value
    units = torch.as_tensor(objective.units(made), dtype=torch.float64)
    loss = loss * units * distributed.world_size() / distributed.sum_over_ranks(units)
    loss.backward()
    found = [p.grad.flatten() for part in (encoder, objective) for p in part.parameters() if p.grad is not None]
    return distributed.sum_over_ranks(torch.cat(found)) / distributed.world_size()


def on_rank(rank: int) -> dict[str, torch.Tensor]:
    return {case: gradients(case, rank) for case in VIEWS}


def test_two_ranks_are_one(tmp_path):
    """Rows of unequal length, unequally spread: the averaged gradient is that of all rows in one process."""
    ranks = two_processes.run(on_rank, tmp_path)
    for case in VIEWS:
        whole = gradients(case, None)
        for found in ranks:
            torch.testing.assert_close(found[case], whole, rtol=1e-5, atol=1e-7, msg=lambda m, case=case: f"{case}: {m}")


# -------------------------------------------------------------------- through the console
@pytest.mark.parametrize(
    ("task", "kind"), [("t5_spans", "t5"), ("bart", "bart"), ("prefix_lm", "gpt2"), ("electra", "bert"), ("tsdae", "bert"), ("tsdae", "t5")]
)
def test_tasks_go_on_from_a_folder(task, kind, sslt, here):
    """From an own encoder and from one of transformers, which is the same folder without what sslt wrote beside it."""
    writer(kind).save(here / "own")
    shutil.copytree(here / "own", here / "theirs")
    (here / "theirs" / "sslt.json").unlink()
    quick = ["trainer.max_steps=1", "batch_size=4", "online_probe.every_n_epochs=0", "trainer.accelerator=cpu", "trainer.precision=32"]
    for name in ("own", "theirs"):
        sslt("pretrain", f"+task={task}", f"from={name}", "pack=false", *quick, f"hydra.run.dir=from_{name}")
        assert (here / f"from_{name}" / "encoder" / "model.safetensors").is_file()
