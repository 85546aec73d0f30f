"""Protects learning from histories: every loss by its formula, nothing of later items in an earlier state, halves that are one whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslt.data.prepare.item_processor import FIRST, ItemProcessor
from sslt.data.views.base import Plain
from sslt.data.views.item_views import NONE, Histories
from sslt.encoders.histories import CausalHistories, MaskedHistories
from sslt.errors import UserError
from sslt.lanes import Lanes
from sslt.objectives.bert4rec import Bert4Rec
from sslt.objectives.parts.item_losses import drawn_loss, item_loss
from sslt.objectives.sasrec import Sasrec

ITEMS = [f"item {i}" for i in range(30)]
GPT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
BERT = {**GPT, "intermediate_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {k: v for k, v in BERT.items() if not k.endswith("pdrop")}


def encoder(kind: str, longest: int = 6):
    torch.manual_seed(0)
    processor = ItemProcessor(ITEMS, longest)
    if kind == "causal":
        return CausalHistories(processor, "gpt2", {**GPT, "max_position_embeddings": 16}, "last").double().eval()
    return MaskedHistories(processor, "bert", {**BERT, "max_position_embeddings": 16}, "mean").double().eval()


def objective(kind: str, on, loss: str = "full", negatives: int = 5):
    made = (Sasrec if kind == "causal" else Bert4Rec)(on, loss, negatives, 0.75)
    on.double()
    return made


def histories(sizes: list[int], seed: int = 1) -> dict[str, torch.Tensor]:
    rows = torch.randint(FIRST, FIRST + len(ITEMS), (len(sizes), max(sizes)), generator=torch.Generator().manual_seed(seed))
    return {"history": rows.masked_fill(torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None], 0)}


def test_the_full_loss_is_a_softmax_over_items_alone():
    """Of SASRec, by hand: each state times every item's embedding; neither padding nor the mask is a candidate."""
    e = encoder("causal")
    made = Histories(0.0, 0.2, 0.0)(histories([1, 3, 6, 9]), e)
    found = objective("causal", e)(e, made).value
    total, n = 0.0, 0
    for tokens, mask, targets in zip(*made["inputs"].values(), made["targets"], strict=True):
        states = e.model.base_model(input_ids=tokens[mask][None]).last_hidden_state[0]  # each row alone, without padding
        logits = states @ e.token_embeddings.weight[FIRST:].T
        for i, item in enumerate(targets[mask].tolist()):
            if item != NONE:
                total, n = total - float(logits[i].log_softmax(0)[item - FIRST]), n + 1
    assert n == 0 + 2 + 5 + 6 and float(found) == pytest.approx(total / n)


def test_hidden_items_are_told_by_the_head():
    e = encoder("masked")
    torch.manual_seed(3)
    made = Histories(0.0, 0.5, 1.0)(histories([2, 6]), e)
    o = objective("masked", e)
    with e.words.whole(e.model) as model:
        logits = model(input_ids=made["inputs"]["tokens"], attention_mask=made["inputs"]["mask"].long()).logits[:, :, FIRST:]
    chosen = logits.gather(1, made["positions"][..., None].expand(-1, -1, len(ITEMS)))
    wanted = F.cross_entropy(chosen.flatten(0, 1), (made["targets"] - FIRST).flatten().masked_fill(made["targets"].flatten() == NONE, NONE))
    assert float(o(e, made).value.detach()) == pytest.approx(float(wanted.detach()))


@pytest.mark.parametrize("kind", ["sampled", "bce", "gbce"])
@pytest.mark.parametrize("biased", [False, True])
def test_losses_over_drawn_items_are_their_formulas(kind, biased):
    """Written with probabilities, one state at a time; what is drawn by mischance does not count."""
    g = torch.Generator().manual_seed(0)
    n, v, d, k = 7, 12, 4, 5
    states, weight = torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(v, d, generator=g, dtype=torch.float64)
    bias = torch.randn(v, generator=g, dtype=torch.float64) if biased else None
    targets, own = torch.randint(v, (n,), generator=g), torch.randint(v, (n, 3), generator=g)
    drawn = torch.randint(v, (k,) if kind == "sampled" else (n, k), generator=g)
    total = 0.0
    for i in range(n):
        score = (states[i] @ weight.T + (0 if bias is None else bias)).numpy()
        mine = drawn if kind == "sampled" else drawn[i]
        true = int(targets[i])
        left = [int(j) for j in mine if int(j) != true and not (kind == "bce" and int(j) in own[i].tolist())]
        p = 1 / (1 + np.exp(-score))
        if kind == "sampled":
            total -= np.log(np.exp(score[true]) / (np.exp(score[true]) + sum(np.exp(score[j]) for j in left)))
        elif kind == "bce":
            total -= np.log(p[true]) + (np.mean([np.log(1 - p[j]) for j in left]) if left else 0)
        else:
            alpha = k / (v - 1)
            beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
            total -= (np.log(p[true] ** beta) + sum(np.log(1 - p[j]) for j in left)) / (k + 1)
    assert float(drawn_loss(kind, states, weight, targets, bias, own, drawn, 0.75)) == pytest.approx(total)


@pytest.mark.parametrize("kind", ["sampled", "bce", "gbce"])
def test_items_drawn_by_one_rank_are_those_of_its_lanes(kind):
    """Two ranks' losses by their shares are that of one rank with the histories of both."""
    e = encoder("causal")
    made, o = Histories(0.0, 0.2, 0.0)(histories([3, 6, 2, 6]), e), objective("causal", e, kind)

    def of(held: Lanes, rows: slice) -> float:
        part = {k: v[rows] if torch.is_tensor(v) and v.dim() else v for k, v in made.items()}
        part |= {"inputs": {k: v[rows] for k, v in made["inputs"].items()}, "n_targets": (part["targets"] != NONE).sum()}
        held.begin(1, 2)
        with held.drawing(len(part["targets"])), torch.no_grad():
            return float(o(e, part).value * part["n_targets"])

    assert of(Lanes(2), slice(None)) == pytest.approx(sum(of(Lanes(2, r, 2), slice(r, None, 2)) for r in (0, 1)))


def test_all_items_drawn_are_the_full_softmax():
    """ "sampled" over every item is "full", and "gbce" with t = 0 is the mean of plain binary cross-entropies."""
    g = torch.Generator().manual_seed(0)
    states, weight, targets = torch.randn(4, 3, generator=g), torch.randn(9, 3, generator=g), torch.tensor([0, 8, 3, 3])
    full = item_loss("full", states, weight, targets, None, targets[:, None], 1, 0.0)
    assert float(drawn_loss("sampled", states, weight, targets, None, targets[:, None], torch.arange(9), 0.0)) == pytest.approx(float(full))
    drawn = torch.tensor([[1, 2], [1, 2], [1, 2], [1, 2]])
    plain = F.binary_cross_entropy_with_logits(
        (states[:, None] @ weight[torch.cat([targets[:, None], drawn], 1)].mT)[:, 0],
        torch.tensor([1.0, 0, 0]).expand(4, 3), reduction="none",
    ).mean(1).sum()  # fmt: skip
    assert float(drawn_loss("gbce", states, weight, targets, None, targets[:, None], drawn, 0.0)) == pytest.approx(float(plain))


def test_a_state_sees_no_later_item():
    """Another item at t changes the states from t on and none before."""
    e = encoder("causal")
    rows = histories([6, 6])["history"]
    for t in range(6):
        other = rows.clone()
        other[:, t] = FIRST + (other[:, t] - FIRST + 1) % len(ITEMS)
        a, b = (e.word_states({"tokens": x, "mask": x > 0}) for x in (rows, other))
        same = (a == b).all(2).all(0)
        assert same.tolist() == [True] * t + [False] * (6 - t)


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_two_halves_weighed_by_their_units_are_the_whole(kind):
    """Of batches of different numbers of targets, as accumulation and several ranks have them."""
    e = encoder(kind)
    o = objective(kind, e)
    torch.manual_seed(0)
    whole = Histories(0.0, 0.5, 0.5)(histories([6, 5, 4, 1, 2, 6]), e)

    def part(rows: slice) -> dict:
        cut = {k: x[rows] for k, x in whole.items() if isinstance(x, torch.Tensor) and x.dim()}
        cut["inputs"] = {k: x[rows] for k, x in whole["inputs"].items()}
        return {**cut, "n_targets": (cut["targets"] != NONE).sum()}

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [p for p in e.parameters()], allow_unused=True) if g is not None])

    halves = [part(slice(0, 1)), part(slice(1, 6))]
    units = [float(o.units(h)) for h in halves]
    assert sum(units) == float(o.units(whole)) and units[0] != units[1]
    summed = sum(u * gradient(o(e, h).value) for u, h in zip(units, halves, strict=True)) / sum(units)
    assert torch.allclose(summed, gradient(o(e, whole).value), atol=1e-10)


@pytest.mark.parametrize(("kind", "loss"), [*(("causal", x) for x in ("full", "sampled", "bce", "gbce")), ("masked", "full")])
def test_every_loss_learns_an_order(kind, loss):
    """Items that follow one another in a circle, from a few steps."""
    e = encoder(kind).float().train()
    o = (Sasrec if kind == "causal" else Bert4Rec)(e, loss, 8, 0.75)
    views, optimizer = Histories(0.0, 0.2, 1.0), torch.optim.Adam(e.parameters(), lr=0.02)
    rows = {"history": FIRST + (torch.arange(30)[:, None] + torch.arange(6)) % 30}
    torch.manual_seed(0)
    losses = []
    for _ in range(60 if kind == "causal" else 200):
        value = o(e, views(rows, e)).value
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_mistakes_are_named():
    e = encoder("causal")
    with pytest.raises(UserError, match=r"objective\.loss=ful: give full, sampled, bce, gbce; did you mean"):
        Sasrec(e, "ful", 1, 0.5)
    with pytest.raises(UserError, match=r"reads no hidden words out"):
        Bert4Rec(e, "full", 1, 0.5)
    with pytest.raises(UserError, match=r"leave views=histories"):
        objective("causal", e).check_views(Plain(1))
