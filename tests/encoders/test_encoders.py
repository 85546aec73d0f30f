"""Encoders are written so that the libraries they come from open them, and are read back to the same numbers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY_IMAGES

from sslt.config import build, compose
from sslt.data.prepare.image_processor import ImageProcessor, ImageSamples
from sslt.data.sources.images import Digits
from sslt.encoders.base import fingerprint
from sslt.encoders.image import ImageEncoder
from sslt.encoders.load import build_encoder, fresh_like, load_encoder
from sslt.encoders.patches import first_filters
from sslt.encoders.resnet import ResNet
from sslt.encoders.text import TextEncoder
from sslt.errors import UserError

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def image_encoder(stem: str = "standard", name: str = "resnet18", args: dict | None = None, fixed: bool = False) -> ImageEncoder:
    processor = ImageProcessor(size=32, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    return ImageEncoder(processor, name, NARROW if args is None else args, stem, fixed).eval()


def images() -> dict[str, torch.Tensor]:
    return {"image": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


@pytest.fixture
def text_encoder(here):
    cfg = compose("pretrain", ["+task=mlm", "encoder.config.hidden_size=32", "encoder.processor.vocab_size=300"])
    return build_encoder(cfg.encoder, build(cfg.data)).eval()


@pytest.mark.parametrize("stem", ["small", "half", "standard"])
def test_an_image_encoder_comes_back(stem, tmp_path):
    before = image_encoder(stem)
    before.save(tmp_path)
    after = load_encoder(str(tmp_path)).eval()
    assert torch.equal(before(images()).pooled, after(images()).pooled)
    assert fingerprint(before) == fingerprint(after) != fingerprint(fresh_like(str(tmp_path)))


@pytest.mark.parametrize(
    ("size", "stem", "first"), [(8, "small", 8), (23, "small", 23), (24, "half", 12), (47, "half", 23), (48, "standard", 12)]
)
def test_a_small_resnet_starts_at_about_16_pixels(size, stem, first):
    """By the size of the images its stem is chosen, and written down with the encoder."""
    source = SimpleNamespace(modality="image", image_shape=(size, 3))
    encoder = build_encoder(compose("pretrain", ["+task=simclr", "encoder.args.channels=[4,4,4,4]"]).encoder, source).eval()
    assert encoder.args["stem"] == stem
    assert encoder.model.maxpool(encoder.model.conv1(torch.zeros(1, 3, size, size))).shape[-1] == first


def test_a_fresh_small_resnet_begins_with_patches(here, sslt):
    """In pretraining and fine-tuning alike, where nothing was learned before; one that goes on, or is asked not to, keeps what it has."""
    still = [*TINY_IMAGES, "trainer.max_steps=1", "optimizer.lr=1e-9", "batch_size=64"]
    quiet = ["online_probe.every_n_epochs=0"]

    def stem(run: str) -> torch.Tensor:
        return load_encoder(str(here / run / "encoder")).model.conv1.weight.detach()

    sslt("pretrain", "+task=simclr", "data=digits", *still, *quiet, "hydra.run.dir=begun")
    encoder = load_encoder(str(here / "begun" / "encoder"))
    samples = encoder.processor.prepare(Digits(), "unlabeled")
    rows = np.sort(np.random.default_rng(0).permutation(len(samples))[:1024])
    wanted = first_filters(encoder.inputs(samples.batch(rows))["image"], 64, 3)
    assert torch.allclose(stem("begun"), wanted, atol=1e-4)
    sslt("pretrain", "+task=byol", "data=digits", *still, *quiet, "encoder.stem_start=random", "hydra.run.dir=random")
    assert not torch.allclose(stem("random"), wanted, atol=0.1)
    sslt("pretrain", "+task=simclr", "data=digits", "from=random", *still[4:], *quiet, "hydra.run.dir=further")
    assert torch.allclose(stem("further"), stem("random"), atol=1e-4)
    tuned = [*still[4:], "baseline=false", "late_fusion=false"]
    sslt("finetune", "+target=digits", "from=scratch:begun", *tuned, "hydra.run.dir=tuned")
    train = load_encoder(str(here / "tuned" / "encoder")).processor.prepare(Digits(), "train")
    rows = np.sort(np.random.default_rng(0).permutation(len(train))[:1024])
    assert torch.allclose(stem("tuned"), first_filters(encoder.inputs(train.batch(rows))["image"], 64, 3), atol=1e-4)


def test_of_images_in_shards_it_begins_with_those_of_one():
    """Each other one would have to be fetched for a few patches."""
    asked = []

    class Sharded(ImageSamples):
        shards = np.array([0, 7, 14])

        def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
            asked.append(index)
            return super().batch(index)

    pixels = np.random.default_rng(0).integers(0, 256, (14, 32, 32, 3), dtype=np.uint8)
    encoder = ResNet(ImageProcessor(32, 3, [0.5] * 3, [0.25] * 3), "resnet18", NARROW, "half", "patches", False)
    encoder.begin(Sharded(pixels, None, "made"))
    assert [rows.tolist() for rows in asked] == [list(range(7))] and encoder.model.conv1.weight.isfinite().all()


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [("resnet18", "patch", "did you mean 'patches'"), ("mobilenetv3_small_050", "patches", "stem_start=patches is for ResNets")],
)
def test_a_beginning_that_cannot_be_is_refused(name, given, says):
    with pytest.raises(UserError, match=says):
        ResNet(ImageProcessor(32, 3, [0.5] * 3, [0.25] * 3), name, {}, "standard", given, False)


def test_a_fresh_small_resnet_looks_at_every_pixel():
    """Its blocks are the identity at first, and shortcuts that leave pixels out would hide them."""
    source = SimpleNamespace(modality="image", image_shape=(8, 3))
    encoder = build_encoder(compose("pretrain", ["+task=simclr"]).encoder, source).eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    encoder({"image": x}).pooled.square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(
    ("name", "args", "fixed"), [("resnet18", None, False), ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}, True)]
)
def test_timm_loads_the_weights(name, args, fixed, tmp_path):
    """`timm.create_model("local-dir:…")` gives the same features."""
    import timm

    ours = image_encoder(name=name, args=args, fixed=fixed)
    ours.save(tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.allclose(ours(images()).pooled, theirs(images()["image"]), atol=1e-5)
    assert torch.allclose(ours(images()).pooled, load_encoder(str(tmp_path)).eval()(images()).pooled)


def test_transformers_opens_a_text_encoder(text_encoder, tmp_path):
    """AutoModel and AutoTokenizer read the folder; ours from theirs gives the same features."""
    from transformers import AutoModel, AutoTokenizer

    text_encoder.save(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    t = tokenizer(["the method returns a string"], return_tensors="pt")
    ours = text_encoder({"tokens": t["input_ids"], "mask": t["attention_mask"].bool()}).tokens
    assert torch.allclose(model(input_ids=t["input_ids"], attention_mask=t["attention_mask"]).last_hidden_state, ours, atol=1e-5)
    (tmp_path / "sslt.json").unlink()  # now it is a plain Hugging Face folder
    again = load_encoder(str(tmp_path), "text").eval()
    assert torch.allclose(again({"tokens": t["input_ids"], "mask": t["attention_mask"].bool()}).tokens, ours, atol=1e-5)


def test_padding_does_not_change_features(text_encoder):
    """A text alone and the same text beside a longer one have the same features."""
    p = text_encoder.processor
    row = torch.tensor([[p.cls_id, 10, 11, 12, p.sep_id]])
    padded = torch.cat([row, torch.full((1, 3), p.pad_id)], 1)
    alone = text_encoder({"tokens": row, "mask": torch.ones_like(row).bool()}).pooled
    beside = text_encoder({"tokens": padded, "mask": padded != p.pad_id}).pooled
    assert torch.allclose(alone, beside, atol=1e-5)


def test_another_pooling_is_refused(text_encoder):
    """With the nearest that there is."""
    with pytest.raises(UserError, match=r"encoder\.pooling=meen: give mean, cls, last; did you mean 'mean'"):
        TextEncoder(text_encoder.processor, "bert", {}, "meen", model=text_encoder.model)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    image_encoder().save(tmp_path)
    about = json.loads((tmp_path / "sslt.json").read_text())
    about["args"]["args"]["channels"] = [16, 16, 16, 16]
    del about["digests"]
    (tmp_path / "sslt.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="do not fit"):
        load_encoder(str(tmp_path))


def test_another_number_of_channels_is_converted_visibly(tmp_path, here, caplog):
    """Grey 8×8 digits for an encoder of 32×32 RGB: converted, and said."""
    encoder = image_encoder()
    with caplog.at_level("INFO", logger="sslt"):
        samples = encoder.processor.prepare(Digits(), "val")
    assert samples.batch(samples.subset([0]).labels[:1] * 0)["image"].shape == (1, 3, 32, 32)
    assert "8x8" in caplog.text.replace("×", "x") and "32x32" in caplog.text.replace("×", "x")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_features_have_tokens_and_pooled(name):
    encoder = image_encoder(name=name, args={} if "vit" in name else None, fixed="vit" in name)
    features = encoder(images())
    assert features.pooled.shape == (4, encoder.dim) and features.tokens.shape[0] == 4 and features.tokens.shape[2] == encoder.dim


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "ghostnet_050", "mobilenetv2_035"])
def test_its_width_is_that_of_pooled_features(name, tmp_path):
    """Families that widen after pooling, or before, say how wide what a head reads is, also once they come back."""
    encoder = ImageEncoder(ImageProcessor(32, 3, [0.5] * 3, [0.25] * 3), name, {}, "standard", False).eval()
    features = encoder({"image": torch.zeros(1, 3, 32, 32)})
    assert features.pooled.shape == (1, encoder.dim) and ("tokens" in encoder.offers) == (features.tokens.shape[2] == encoder.dim)
    encoder.save(tmp_path / "folder")
    assert load_encoder(str(tmp_path / "folder")).dim == encoder.dim


def test_a_wrong_name_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        image_encoder(name="resnett18")


def test_torchvisions_vits_give_their_own_features(tmp_path):
    """The class token's, as torchvision's model has it before its head; saved and read back."""
    import torchvision

    torch.manual_seed(0)
    ours = image_encoder(name="torchvision/vit_b_32", args={}, fixed=True)
    torch.manual_seed(0)
    theirs = torchvision.models.vit_b_32(image_size=32).eval()
    theirs.heads = torch.nn.Identity()
    assert torch.allclose(ours(images()).pooled, theirs(images()["image"]), atol=1e-5)
    assert ours(images()).tokens.shape[1:] == (1, 768) and len(ours.block_names()) == 12
    ours.save(tmp_path)
    assert torch.equal(load_encoder(str(tmp_path)).eval()(images()).pooled, ours(images()).pooled)


@pytest.mark.parametrize("setting", ["args.layers=[]", "args.channels=[0,0,0,0]", f"args.channels=[8,8,8,{10**6}]", "stem=large"])
def test_settings_that_make_no_network_are_one_line(setting, here):
    """Before any data are prepared, and before memory is filled."""
    cfg = compose("pretrain", ["+task=simclr", f"encoder.{setting}"])
    with pytest.raises(UserError, match="encoder"):
        build_encoder(cfg.encoder, build(cfg.data))


def test_trying_an_encoder_leaves_chance_alone(here):
    """What is drawn after it is built is what was drawn before encoders were tried."""
    cfg = compose("pretrain", ["+task=simclr", "encoder.args.channels=[8,8,8,8]", "encoder.args.layers=[1,1,1,1]"])
    torch.manual_seed(0)
    encoder = build_encoder(cfg.encoder, build(cfg.data))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    ResNet.build(build(cfg.data), {}, **{k: v for k, v in cfg.encoder.items() if k not in ("_target_", "processor")})
    assert torch.equal(drawn, torch.rand(3)) and encoder.training


def test_moving_while_it_is_measured_leaves_it_writable():
    """A GPU takes an encoder up within inference mode: its buffers are trained, and mixed with others, afterwards."""
    args = {"layers": [1, 1, 1, 1], "channels": [8] * 4}
    encoder = ImageEncoder(ImageProcessor(8, 3, [0.5] * 3, [0.5] * 3), "resnet18", args, "small", False)
    state = {k: v.double() for k, v in encoder.state_dict().items()}
    with torch.inference_mode():
        encoder.double()
    assert not any(b.is_inference() for b in encoder.buffers())
    encoder.load_state_dict(state)
