"""Protects layers in fewer bits: what codes stand for, that nothing else is computed with, how strictly a folder is read."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from sslt.data.prepare.image_processor import ImageProcessor
from sslt.deploy.quantization import Quantize, layer_errors
from sslt.encoders import quantized
from sslt.encoders.base import evaluating, fingerprint
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import load_encoder
from sslt.encoders.quantized import Quantization, codes_of, dequantized
from sslt.errors import UserError

pytest.importorskip("torchao")
KINDS = (("int8", None), ("int8_dynamic", None), ("int4", 32))


def vit() -> ImageEncoder:
    torch.manual_seed(0)
    processor = ImageProcessor(16, 1, [0.5], [0.25])
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
    return ImageEncoder(processor, "vit_tiny_patch16_224", args, "standard", True)


def made(kind: str, group: int | None) -> tuple[ImageEncoder, Quantization]:
    encoder = vit()
    codes = {n: codes_of(m.weight, kind, group, False) for n, m in Quantize(kind, group, [], 0).layers(encoder).items()}
    found = Quantization(kind, group, False, codes)
    quantized.put(encoder, found)
    return encoder, found


IMAGES = {"image": torch.randint(0, 256, (5, 1, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)}


@pytest.mark.parametrize(("kind", "group"), KINDS)
def test_codes_stand_for_the_nearest_numbers(kind, group):
    """No weight is further off than half a step, on rows of zeros, of one sign, with an outlier, and tiny ones too."""
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1], weight[2, 5], weight[3], weight[4] = 0, weight[1].abs(), 1e4, -3.25, weight[4] * 1e-7
    parts = codes_of(weight, kind, group, False)
    made = dequantized(parts, group)
    step = parts["scale"].float().repeat_interleave(group, 1) if group else weight.abs().amax(1, keepdim=True).expand_as(weight) / 127.5
    slack = weight.abs().amax(1, keepdim=True) * (2**-7 if group else 1e-6) + 1e-6  # scale and offset of 4 bits are bfloat16
    assert ((made - weight).abs() <= step / 2 + slack).all()
    size = weight.numel() // 2 + 16 * 2 * 4 if group else weight.numel() + 16 * 4
    assert sum(x.nbytes for x in parts.values()) == size


@pytest.mark.parametrize(("kind", "group"), KINDS)
def test_it_computes_with_what_the_codes_stand_for(kind, group):
    """Weights alone: as with the matrices that the codes stand for, to 1e-5; 4 bits to bfloat16's rounding, 8 bits of inputs to theirs."""
    encoder, found = made(kind, group)
    reference = vit()
    with torch.no_grad():
        for name in found.codes:
            reference.get_submodule(name).weight.copy_(found.weight(name))
    allowed = {"int8": 1e-5, "int8_dynamic": 0.1, "int4": 0.1}[kind]
    with evaluating(encoder), evaluating(reference):
        ours, theirs, before = (e(e.inputs(IMAGES)).pooled for e in (encoder, reference, vit().eval()))
        assert (ours - theirs).abs().max() < allowed
        assert (ours - before).abs().max() > 1e-4  # the float weights are gone
        x, name = torch.randn(7, 32), next(iter(found.codes))
        module = encoder.get_submodule(name)
        made_by_hand = F.linear(x.bfloat16().float() if kind == "int4" else x, found.weight(name), module.bias)
        rounding = {"int8": 1e-5, "int8_dynamic": 0.03, "int4": 0.02}[kind]
        assert (module(x) - made_by_hand).abs().max() < rounding * made_by_hand.abs().max()


@pytest.mark.parametrize(("kind", "group"), KINDS)
def test_a_folder_gives_it_back_bit_for_bit(kind, group, tmp_path):
    """No pickle, a quarter of the bytes, the same answers; and a copy on a device is still it."""
    encoder, found = made(kind, group)
    encoder.save(tmp_path / "e")
    again = load_encoder(str(tmp_path / "e"))
    assert again.quantization.entry == found.entry and fingerprint(again) == fingerprint(encoder) != fingerprint(vit())
    with evaluating(encoder), evaluating(again.to("cpu")):
        assert torch.equal(encoder(encoder.inputs(IMAGES)).pooled, again(again.inputs(IMAGES)).pooled)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in vit().parameters())
    vit().save(tmp_path / "float")
    saved = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("float", "e")]
    weights = sum(found.weight(name).numel() for name in found.codes)
    assert saved[0] - saved[1] == pytest.approx(weights * (2.7 if group is None else 3.3), rel=0.15)
    assert {p.suffix for p in (tmp_path / "e").iterdir()} <= {".json", ".safetensors", ".md"}


def test_what_was_changed_in_a_folder_is_refused(tmp_path):
    """An unknown kind, another group, a layer that is none, a key nobody reads, codes of another shape: one line each."""
    encoder, _ = made("int4", 32)
    encoder.save(tmp_path / "e")
    file = tmp_path / "e" / "sslt.json"
    about = {k: v for k, v in json.loads(file.read_text()).items() if k != "digests"}
    entry = about["quantization"]
    for change, says in (
        ({"kind": "int2"}, "int2"),
        ({"group": 7}, "group=7"),
        ({"group": 64}, "do not fit"),
        ({"kind": "int8", "group": None}, "do not fit"),
        ({"layers": ["model.norm"]}, "linear maps"),
        ({"layers": [*entry["layers"], entry["layers"][0]]}, "linear maps"),
        ({"layers": entry["layers"][1:]}, "do not fit"),
        ({"layers": []}, "linear maps"),
        ({"layers": "model"}, "layers"),
        ({"code": "x"}, "nothing reads quantization.code"),
    ):
        file.write_text(json.dumps({**about, "quantization": {**entry, **change}}))
        with pytest.raises(UserError, match=says):
            load_encoder(str(tmp_path / "e"))


def test_the_error_of_a_layer_is_that_of_its_output():
    """Relative to the output that it had, on its own inputs; the worst comes first."""
    encoder = vit()
    layers = Quantize("int8", None, [], 0).layers(encoder)
    found = Quantization("int8", None, False, {n: codes_of(m.weight, "int8", None, False) for n, m in layers.items()})
    seen = {}
    for name in layers:
        encoder.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: (args[0], out)}))
    errors = layer_errors(encoder, found, IMAGES)
    assert [e.layer for e in errors] == [e.layer for e in sorted(errors, key=lambda e: -e.error)] and len(errors) == len(layers)
    for e in errors:
        x, y = seen[e.layer]
        off = x @ (found.weight(e.layer) - layers[e.layer].weight.detach()).T
        assert e.error == pytest.approx(float(off.norm() / y.norm()), rel=1e-3) and 0 < e.error < 0.05


def test_which_layers_stay_in_float():
    """By pattern and by block; a pattern that names none, and an encoder that has none, are refused by name."""
    every = set(Quantize("int8", None, [], 0).layers(vit()))
    assert every == {f"model.blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert set(Quantize("int8", None, ["*.mlp.*"], 0).layers(vit())) == {n for n in every if ".mlp." not in n}
    assert set(Quantize("int8", None, [], 1).layers(vit())) == {n for n in every if ".blocks.1." in n}
    for method, says in ((Quantize("int8", None, ["*.fc9"], 0), "names no linear layer"), (Quantize("int8", None, ["*"], 0), "keeps all")):
        with pytest.raises(UserError, match=says):
            method.layers(vit())
    resnet = ImageEncoder(ImageProcessor(16, 1, [0.5], [0.25]), "resnet10t", {}, "standard", False)
    with pytest.raises(UserError, match="resnet10t has no linear layers"):
        Quantize("int8", None, [], 0).check(resnet, None)
    with pytest.raises(UserError, match=r"method\.group=32"):
        Quantize("int8", 32, [], 0)
