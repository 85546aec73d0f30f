"""Protects the rate of dropout while training: every place of every library is set, and equal views are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslt.data.views.base import Plain
from sslt.encoders.dropout import has_dropout, set_dropout
from sslt.errors import UserError


def model(family: str) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    more = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2} if family == "modernbert" else {}
    if family in ("t5", "bart"):
        more = {"d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
        more |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "attention_dropout": 0.1, "activation_dropout": 0.1}
        sizes = {}
    return AutoModel.from_config(AutoConfig.for_model(family, **sizes, **more)).train()


@pytest.mark.parametrize("family", ["bert", "modernbert", "electra", "gpt2", "t5", "bart"])
def test_the_rate_decides_whether_two_passes_differ(family):
    """0: equal passes, more: different ones, for families that keep their rates in modules and in numbers."""
    net, tokens = model(family), torch.arange(3, 11).unsqueeze(0)
    more = {"decoder_input_ids": tokens} if net.config.is_encoder_decoder else {}
    twice = lambda: [net(tokens, **more).last_hidden_state for _ in range(2)]  # noqa: E731
    set_dropout(net, 0.0)
    assert torch.equal(*twice()) and not has_dropout(net)
    set_dropout(net, 0.3)
    assert not torch.equal(*twice()) and has_dropout(net)
    rates = {m.p for m in net.modules() if isinstance(m, nn.Dropout)}
    set_dropout(net, None)
    assert rates == {m.p for m in net.modules() if isinstance(m, nn.Dropout)} <= {0.3}


def test_impossible_rates_are_refused():
    """A rate that is no probability, and one for a network without dropout."""
    with pytest.raises(UserError, match="from 0 to less than 1"):
        set_dropout(nn.Dropout(0.5), 1.0)
    with pytest.raises(UserError, match="no dropout to set"):
        set_dropout(nn.Linear(2, 2), 0.1)
    set_dropout(nn.Linear(2, 2), 0.0)


def test_equal_views_are_refused():
    """Two plain views of an encoder without dropout would be the same."""

    class Fixed:
        varies = False

    with pytest.raises(UserError, match="no dropout to tell them apart"):
        Plain(2).check(Fixed())
    Plain(1).check(Fixed())
