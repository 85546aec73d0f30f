"""Protects the model card: where an encoder comes from, its numbers, and how each kind of weights is used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sslt.encoders.image import ImageEncoder
from sslt.report.cards import _usage, model_card
from sslt.runs import Run, write_json

SOURCE = SimpleNamespace(name="digits", fingerprint=lambda: "abc")


class Encoder(nn.Linear):
    """3·2 + 2 parameters."""

    modality, dim, adapter, origin, quantization = "image", 2, None, None, None

    def __init__(self, **args: Any):
        super().__init__(3, 2)
        self.args = args


class Config(dict):
    seed = 7


def test_a_card(tmp_path):
    """Name, data, start, command, and the numbers that are numbers, those of single classes left out."""
    run = Run(tmp_path)
    write_json(run / "run.json", {"verb": "finetune", "started": "today"})
    (run / "command.txt").write_text("sslt first\nsslt finetune +target=digits\n")
    numbers = {"test/accuracy": 0.51234, "test/class/a/f1": 0.1, "note": "text", "a": 3}
    card = model_card(run, Encoder(name="resnet18"), Config({"from": "pre"}), SOURCE, numbers)
    assert card.startswith("# resnet18, fine-tuned on digits\n") and "image encoder, 2 features, 8 parameters." in card
    assert "- made by: `sslt finetune +target=digits`\n- data: digits (content abc)\n- started from: pre, seed 7\n- date: today\n" in card
    assert "|---|---|\n| a | 3 |\n| test/accuracy | 0.5123 |\n\n" in card and "class/" not in card and "note" not in card
    (run / "command.txt").unlink()
    write_json(run / "run.json", {"verb": "pretrain"})
    card = model_card(run, Encoder(model_type="bert"), Config({"from": None}), SOURCE, {})
    assert card.startswith("# bert, pretrained on digits\n") and "- made by: ``" in card and "started from: random weights, seed 7" in card
    assert model_card(run, Encoder(), Config({"from": None}), SOURCE, {}).startswith("# Encoder, ")


class Image(ImageEncoder):
    """Of one of timm's what a card reads."""

    def __init__(self, **args: Any):
        nn.Module.__init__(self)
        self.args, self.processor = args, SimpleNamespace(channels=1)
        self.adapter = self.quantization = None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"name": "torchvision/resnet18", "stem": "small"}, "in torchvision's names"),
        ({"name": "resnet18", "stem": "standard"}, "timm.create_model"),
        ({"name": "resnet18", "stem": "small", "args": {"layers": [1]}}, "in_chans=1, **{'layers': [1]})"),
        ({"name": "resnet18", "stem": "half", "args": {}}, "out_channels, 4, 2, 1, bias=False)"),
    ],
)
def test_how_weights_are_used(args, said):
    """By the library that they carry the names of; by sslt's own function where it is none, whatever the arguments are called."""
    assert said in _usage(Image(**args))
    encoder = Encoder(**args)
    assert "load_encoder" in _usage(encoder)
    encoder.args["model_type"] = "bert"
    assert "transformers.AutoModel" in _usage(encoder)
    encoder.adapter = {"kind": "lora"}
    assert "An adapter (lora) with the weights it was made over" in _usage(encoder)
    encoder.origin = "bert-base"
    assert "over `bert-base`" in _usage(encoder)
