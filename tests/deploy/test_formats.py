"""Protects exported files of every family: numbers as the run's in batches of all sizes, whatever was traced; and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sslt.data.prepare.bag_processor import BagProcessor, subwords_of
from sslt.data.prepare.image_processor import ImageProcessor
from sslt.data.prepare.text_processor import TextProcessor
from sslt.data.prepare.tokenizers import train_tokenizer
from sslt.deploy.formats import FORMATS
from sslt.deploy.formats.base import Format, Model
from sslt.deploy.graph import Given, GivenBag, graph_of, without
from sslt.deploy.verified import _apart
from sslt.encoders import inserted
from sslt.encoders.bag import BagEncoder
from sslt.encoders.causal import CausalEncoder
from sslt.encoders.conv4 import Conv4
from sslt.encoders.descriptions import Described
from sslt.encoders.image import ImageEncoder
from sslt.encoders.lexicon import SPELLED, TRIPLES, Lexicon
from sslt.encoders.patches import PatchEncoder
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError
from sslt.targets.classification import Classification
from sslt.targets.multilabel import Multilabel
from sslt.targets.pairs import Pairs
from sslt.targets.prompt import Prompt
from sslt.targets.regression import Regression
from sslt.targets.segmentation import Segmentation
from sslt.targets.tagging import Tagging

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SPACE = {"classes": ["a", "b", "c"]}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SIDE = 16


def images(n: int) -> dict[str, torch.Tensor]:
    pixels = torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    pixels[0] = 255  # flat: no gradient, one colour
    return {"image": pixels.contiguous(memory_format=torch.channels_last)}


def texts(n: int, before: str = "", bag: bool = False) -> dict[str, torch.Tensor]:
    """Rows of a width that depends on n; the last has no words. Of a bag, with the parts of unknown words."""
    rng, width = torch.Generator().manual_seed(n), min(3 + 2 * n, 16)
    mask = torch.arange(width) < torch.randint(2, width + 1, (n, 1), generator=rng)
    mask[-1] = torch.arange(width) < (0 if bag else 2)
    mask[0] = True
    ids = torch.randint(1, 20, (n, width), generator=rng)
    if not bag:
        return {f"{before}tokens": ids * mask, f"{before}mask": mask}
    parts = torch.tensor([subwords_of("w3")[0], subwords_of("w17")[-1], -1])[torch.randint(0, 3, (n, n), generator=rng)]
    return {f"{before}tokens": ids * mask, f"{before}subwords": parts.int()}


def pixel_processor() -> ImageProcessor:
    return ImageProcessor(SIDE, 3, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def text_processor() -> TextProcessor:
    return TextProcessor(train_tokenizer(["ada went to rome and saw the lake"] * 5, 60, True), 16)


def conv() -> Conv4:
    return Conv4(pixel_processor(), 8, 2, "pool", "mean")


def vit() -> ImageEncoder:
    return ImageEncoder(
        pixel_processor(), "vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}, "standard", True
    )


def bert(pooling: str = "mean") -> TextEncoder:
    return TextEncoder(text_processor(), "bert", SMALL, pooling)


def gpt() -> CausalEncoder:
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    return CausalEncoder(text_processor(), "gpt2", config, "last")


def bag() -> BagEncoder:
    return BagEncoder(BagProcessor({f"w{i}": 1 + i for i in range(15)}, 40, 5, 16), dim=8, pairs=64, pair_weight=0.5, dropout=0.0)


def classes(encoder, beside: tuple[str, ...] = ()) -> Classification:
    """A head of known size, with models beside the encoder that say something."""
    target = Classification(encoder, SPACE, 0.0, 0.0)
    torch.nn.init.normal_(target.head.weight)
    torch.nn.init.normal_(target.head.bias)
    for name in beside:
        made = Described(encoder.processor, 3, name)
        made.weight, made.bias = torch.randn_like(made.weight), torch.randn(3)
        if name == "patches":
            made.describe.encoder.bank.mean.normal_()
        target.beside.append(made)
    return target


def with_words(encoder) -> Classification:
    target = classes(encoder)
    bag = isinstance(encoder, BagEncoder)
    lexicon, inputs = Lexicon.beside(encoder, {"third": SPELLED if bag else TRIPLES, "outputs": 3}), encoder.inputs(texts(9, bag=bag))
    counted = lexicon.counts(encoder.word_ids(inputs), inputs.get("subwords")).term.unique()
    lexicon.learn(counted, torch.rand(len(counted)) + 1)
    lexicon.table, lexicon.bias = torch.randn(len(counted), 3), torch.randn(3)
    target.beside.append(lexicon)
    return target


def parted(encoder) -> Pairs:
    return Pairs(encoder, {"low": 0.0, "high": 5.0}, "mse", 20.0)


def lora() -> TextEncoder:
    """Tuned, then merged, as `sslt export` does it."""
    pytest.importorskip("peft")
    encoder = bert("cls")
    inserted.inject(encoder, {"kind": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": None})
    for name, p in encoder.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    inserted.merge(encoder)
    return encoder


def both(n: int) -> dict[str, torch.Tensor]:
    return {**texts(n, "a."), **{k: x[:n] for k, x in texts(n + 1, "b.").items()}}


def made(make, head, batches) -> tuple[Model, list]:
    torch.manual_seed(0)
    encoder = make().eval()
    target = None if head is None else head(encoder).eval()
    return Model(encoder, target, batches(2)), [batches(n) for n in (1, 2, 3, 8, 5)]


CASES = {
    "convolutions, gradients, colours and patches": (conv, lambda e: classes(e, ("gradients", "patches")), images),
    "a ViT, labels": (vit, lambda e: Multilabel(e, SPACE, 0.0), images),
    "a ViT, maps": (vit, lambda e: Segmentation(e, SPACE, "linear", 8, 4, 0.0), images),
    "patches, a number": (
        lambda: PatchEncoder(pixel_processor(), 8, 6, 1, cells=3, contrast=0.01, mirror=None, width=4),
        lambda e: Regression(e, {"low": 0.0, "high": 1.0}, 0.0, None), images,
    ),
    "BERT, TF-IDF": (bert, with_words, texts),
    "BERT with LoRA": (lora, classes, texts),
    "BERT, tags": (bert, lambda e: Tagging(e, {"types": ["x"]}, 0.0), texts),
    "BERT, two parts": (bert, parted, both),
    "GPT": (gpt, classes, texts),
    "a bag, TF-IDF": (bag, with_words, lambda n: texts(n, bag=True)),
    "features": (bert, None, texts),
}  # fmt: skip


def exported(model: Model, kind: Format, folder, batches: list) -> float:
    """The largest difference of outputs over the largest output, of a file that is written and opened again."""
    about = {"node": {"_target_": "x"}}
    with torch.no_grad():
        kind.write(model, folder, about)
        outputs = kind.open(model, folder)
        wanted = [model.outputs(batch) for batch in batches]
        scale = max(float(x.abs().max()) for found in wanted for x in found.values())
        return float(np.max([_apart(a, outputs(batch)) for a, batch in zip(wanted, batches, strict=True)])) / scale  # NaN stays


@pytest.mark.parametrize("name", CASES)
def test_a_graph_gives_the_numbers_of_the_run(name, tmp_path):
    """Rows alone and together, of several lengths, of a flat picture and an empty text, by ONNX Runtime."""
    model, batches = made(*CASES[name])
    assert exported(model, FORMATS["onnx"](), tmp_path, batches) < 1e-5
    import onnx

    about, file = json.loads((tmp_path / "export.json").read_text()), onnx.load(tmp_path / "model.onnx")
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in file.graph.input}
    assert shapes == {i["name"]: i["shape"] for i in about["inputs"]} and all("batch" in shape for shape in shapes.values())
    told = {p.key: json.loads(p.value) for p in file.metadata_props if p.key.startswith("sslt.")}
    assert told["sslt.answers"] == about["answers"] and told["sslt.samples"] == about["samples"] and "torch" in told["sslt.versions"]


@pytest.mark.parametrize("name", ["convolutions, gradients, colours and patches", "a bag, TF-IDF"])
def test_a_program_of_torch_does_too(name, tmp_path):
    model, batches = made(*CASES[name])
    assert exported(model, FORMATS["torch"](), tmp_path, batches) < 1e-5


def test_a_folder_of_timm_has_the_classifier(tmp_path):
    """As timm itself opens it, by its file of weights."""
    import timm

    model, batches = made(vit, classes, images)
    assert exported(model, FORMATS["timm"](), tmp_path, batches) < 1e-5
    about = json.loads((tmp_path / "config.json").read_text())
    opened = timm.create_model(
        "vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "model.safetensors"), num_classes=3, **about["model_args"]
    )
    with torch.no_grad():
        logits = opened.eval()(model.encoder.processor.normalize(batches[2]["image"]))
        assert torch.allclose(logits, model.outputs(batches[2])["logits"], atol=1e-5)


def test_folders_of_transformers(tmp_path):
    """GPT-2's classifier holds the head, its bias in the norm before; BERT's does not, and the head lies beside the encoder."""
    import transformers

    for name, make, head in (("gpt", gpt, classes), ("bert", bert, classes), ("features", bert, None)):
        (tmp_path / name).mkdir()
        model, batches = made(make, head, texts)
        assert exported(model, FORMATS["hf"](), tmp_path / name, batches) < 1e-4, name
    opened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "gpt")
    assert opened.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert not (tmp_path / "gpt" / "head.safetensors").exists() and (tmp_path / "bert" / "head.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "make", "head", "batches", "says"),
    [
        ("timm", conv, classes, images, "no model of timm"),
        ("timm", bert, classes, texts, "no model of timm"),
        ("timm", vit, lambda e: classes(e, ("gradients",)), images, "late_fusion=false"),
        ("hf", vit, classes, images, "no model of transformers"),
        ("hf", bert, lambda e: Tagging(e, {"types": ["x"]}, 0.0), texts, "Tagging is another"),
        ("onnx", bert, lambda e: SimpleNamespace(is_read_from_outputs=lambda: False, beside=()), texts, "more than one pass"),
    ],
)
def test_what_a_format_cannot_hold_is_named(kind, make, head, batches, says, tmp_path):
    encoder = make()
    with pytest.raises(UserError, match=says):
        FORMATS[kind]().write(Model(encoder, head(encoder), batches(2)), tmp_path, {})


def test_several_windows_are_no_graph():
    encoder = bert()
    encoder.processor.windows = None
    with pytest.raises(UserError, match="windows=1"):
        graph_of(encoder, None, texts(2))
    assert not Prompt.is_read_from_outputs()


def test_a_bag_of_equal_rows_is_the_bag():
    """Holes, padding and an empty text count for nothing; long rows too."""
    encoder = bag().eval()
    tokens = torch.tensor([[3, 0, 4, 4, 0, 0], [1, 2, 3, 19, 20, 1], [0, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        ours, wanted = GivenBag(encoder)({"tokens": tokens}).pooled, encoder({"tokens": tokens}).pooled
    assert torch.allclose(ours, wanted, atol=1e-6) and not ours[2].any()
    assert Given(encoder).dim == encoder.dim and Given(encoder).processor is encoder.processor


def test_leaving_out_changes_no_run():
    target = classes(conv(), ("gradients",))
    assert len(without(target).beside) == 0 and len(target.beside) == 1
    assert without(target).head is target.head
    assert np.array_equal(sorted(without(target).state_dict()), ["head.bias", "head.weight"])
