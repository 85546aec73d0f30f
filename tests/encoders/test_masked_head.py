"""Protects what a masked language model says: the head of its family stays with the encoder, and the folder opens with it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.encoders.load import load_encoder
from sslt.encoders.masked_head import MaskedHead
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError

_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "modernbert": {**_BERT, **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)},
    "electra": {**_BERT, "embedding_size": 8},
    "albert": {**_BERT, "embedding_size": 8},
}
TOKENS = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_familys(family, tied):
    """Taken apart, its states and matrix give the whole model's logits; put together again it is the whole model; also as a copy."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(family, vocab_size=50, tie_word_embeddings=tied, **FAMILIES[family])
    ).eval()  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    with torch.no_grad():
        known = model(input_ids=TOKENS).logits
        network, head = MaskedHead.apart(model)
        for net, h in ((network, head), copy.deepcopy((network, head))):
            states = h(net(input_ids=TOKENS).last_hidden_state)
            torch.testing.assert_close(F.linear(states, *h.layer(net.get_input_embeddings().weight)), known)
            with h.whole(net) as whole:
                torch.testing.assert_close(whole(input_ids=TOKENS).logits, known)
    own = {id(p) for p in network.parameters()}
    assert not own & {id(p) for p in head.parameters()} and (head.weight is None) == tied


def small(tmp_path=None) -> TextEncoder:
    torch.manual_seed(0)
    processor = TextProcessor(train_tokenizer(["the cat sat on the mat"] * 4, 60, True), 16)
    return TextEncoder(processor, "bert", {**_BERT, "max_position_embeddings": 32}, "mean").eval()


def test_a_folder_opens_with_and_without_its_head(tmp_path):
    """AutoModelForMaskedLM says what the encoder would, AutoModel has its features, and ours comes back whole."""
    encoder = small()
    encoder.keep_words()
    for p in encoder.words.parameters():
        torch.nn.init.normal_(p, std=0.5)
    encoder.save(tmp_path)
    tokens, positions = torch.tensor([[2, 6, 7, 3]]), torch.tensor([[1, 2]])
    with torch.no_grad():
        said = F.linear(encoder.word_states({"tokens": tokens}, positions), *encoder.output_layer())
        opened = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(opened(input_ids=tokens).logits[:, 1:3], said)
        features = AutoModel.from_pretrained(tmp_path).eval()(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(features, encoder({"tokens": tokens}).tokens)
        again = load_encoder(str(tmp_path)).eval()
        assert torch.equal(F.linear(again.word_states({"tokens": tokens}, positions), *again.output_layer()), said)


def test_the_head_of_a_published_folder_comes_along(tmp_path):
    """Of a folder whose class has one; a folder without starts a fresh one."""
    encoder = small()
    encoder.keep_words()
    torch.nn.init.normal_(encoder.words.bias)
    with encoder.words.whole(encoder.model) as model:
        model.save_pretrained(tmp_path / "headed")
    encoder.model.save_pretrained(tmp_path / "bare")
    for name in ("headed", "bare"):
        encoder.processor.tokenizer.save_pretrained(str(tmp_path / name))
    headed, bare = (load_encoder(str(tmp_path / name)) for name in ("headed", "bare"))
    assert torch.equal(headed.words.bias, encoder.words.bias) and headed.args["words"] is True
    assert bare.words is None and "words" not in bare.args


def test_features_do_not_go_through_the_head():
    """What it says is left out of what features read, and only then there is something left out."""
    encoder = small()
    assert encoder.unread() == []
    encoder.keep_words()
    encoder({"tokens": torch.tensor([[2, 6, 3]])}).pooled.sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is None} == set(encoder.unread())


def test_a_family_without_such_a_head_is_refused():
    with pytest.raises(UserError, match="t5 reads no masked words out"):
        MaskedHead.fresh(AutoModel.from_config(AutoConfig.for_model("t5", d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)))


def test_files_for_sentence_transformers(tmp_path):
    """What it reads beside the weights names the pooling that we do."""
    import json

    small().save(tmp_path)
    modes = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert modes["pooling_mode_mean_tokens"] is True and modes["pooling_mode_cls_token"] is False
    assert modes["word_embedding_dimension"] == 16
    assert [m["path"] for m in json.loads((tmp_path / "modules.json").read_text())] == ["", "1_Pooling"]
