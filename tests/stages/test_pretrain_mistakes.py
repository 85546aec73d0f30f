"""Protects the start of pretraining: an objective that cannot work with the encoder, the data or the batch says so in one line."""

from __future__ import annotations

import pytest
from conftest import TINY_IMAGES, TINY_TEXT, TINY_VIT
from PIL import Image

from sslt.data.prepare.image_processor import ImageProcessor

MISTAKES = [
    # an encoder without tokens for what hides them
    *(([f"+task={task}", "encoder=resnet_small"], "choose a transformer, such as encoder=vit_small")
      for task in ("mae", "simmim", "beit", "data2vec", "ijepa", "ibot", "msn")),
    # images
    (["+task=mae", "encoder.processor.size=30"], "encoder.processor.size=28 or 32"),
    (["+task=rotation", "data=docs"], "docs holds texts: choose another data="),
    (["+task=vicreg", "data=docs"], "add encoder=bag views=crops, or choose another data="),
    *(([f"+task={task}", "data=docs", "encoder=bert_tiny", "views=plain", "views.n=2", "dropout=0.1"], "learns from images")
      for task in ("mae", "simmim", "beit", "ijepa", "ibot", "msn")),
    (["+task=flip", "views.flip=0.5"], "set views.flip=0"),
    (["+task=ibot", "encoder.args.patch_size=8", "encoder.processor.size=40"], "set views.multiple=8"),
    (["+task=byol", "adaptation=lora"], "has a teacher"),
    (["+task=colorization", "data=digits"], "choose colour data="),
    (["+task=cpc", "encoder.processor.size=4"], "encoder.processor.size"),
    # labels
    (["+task=supcon", "data=image_folder", "data.path=unlabelled"], "has none"),
    # batches
    (["+task=simclr", "batch_size=1"], "at least 2"),
    (["+task=inpainting", "batch_size=1"], "BatchNorm"),
    (["+task=wmse", "batch_size=8"], "at least 128"),
    (["+task=wmse", "objective.hidden=32"], "cannot fill"),
    # views
    *(([f"+task={task}", "views=crop"], "set views.n=2") for task in
      ("simclr", "dcl", "supcon", "byol", "simsiam", "moco_v2", "moco_v3", "nnclr", "barlow_twins", "vicreg", "wmse", "lejepa", "dino",
       "swav")),
    (["+task=msn", "views=crop"], "set views.n=2"),
    (["+task=dino", "views.large.n=1"], "set views.large.n=2"),
    (["+task=vicreg", "data=docs", "encoder=bert_tiny", "views=mask_tokens"], "makes 1: choose views=simclr (images) or plain"),
    # more of something than there are samples
    *(([f"+task={task}", "objective.queue=4000"], "more than the") for task in ("moco_v2", "nnclr", "swav")),
    (["+task=deepcluster_v2", "objective.clusters=[4000]"], "2 to the"),
    (["+task=jigsaw", "objective.permutations=400000"], "362,880 permutations"),
    (["+task=jigsaw", "objective.min_distance=10"], "differ in 2 to 9"),
    (["+task=beit", "objective.words=1000000"], "no fewer patches than words"),
    # numbers out of range
    (["+task=mae", "objective.share=1.5"], "objective.share"),
    (["+task=simmim", "objective.unit=3"], "divisor"),
]  # fmt: skip


NEEDS_DATA = ("queue=", "clusters=", "words=", "batch_size=8", "data=docs")  # what only the samples show, and a tokenizer


@pytest.mark.parametrize(("args", "says"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_what_cannot_be_learned_is_said_at_start(args, says, sslt, here, capsys, monkeypatch):
    """Exit code 2 and one line that names what to do; no step is taken, and no image is read where none has to be."""
    if not any(word in arg for arg in args for word in NEEDS_DATA):
        monkeypatch.setattr(ImageProcessor, "prepare", lambda *_: pytest.fail("the images were read first"))
    (here / "unlabelled").mkdir()
    Image.new("RGB", (16, 16)).save(here / "unlabelled" / "one.png")
    sslt("pretrain", *args, "trainer.max_steps=1", "online_probe.every_n_epochs=0", "hydra.run.dir=out", code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslt: ")]
    assert len(said) == 1 and says in said[0] and "\n" not in said[0]
    assert not (here / "out" / "checkpoints" / "last.ckpt").exists()


TEXT = ["data=docs", "encoder=bert_tiny", *TINY_TEXT]
TWICE = ["views=plain", "views.n=2", "dropout=0.1"]
NEUTRAL = {
    **{task: TWICE for task in ("vicreg", "barlow_twins", "byol", "simsiam", "simclr")},
    "data2vec": ["views=plain"],
}


@pytest.mark.parametrize("task", NEUTRAL)
def test_what_knows_no_modality_learns_from_text_too(task, sslt, here):
    """The same task with text data: the loss falls, its teachers and projectors are those of images."""
    from sslt.report.curves import MetricsCSV

    args = [
        f"+task={task}",
        *TEXT,
        *NEUTRAL[task],
        "batch_size=32",
        "trainer.max_steps=12",
        "trainer.log_every_n_steps=1",
        "optimizer.lr=0.003",
    ]
    sslt("pretrain", *args, "schedule.warmup=0", "online_probe.every_n_epochs=0", "hydra.run.dir=out")
    loss = MetricsCSV.read(here / "out" / "metrics.csv")["loss"][1]
    assert sum(loss[-3:]) < sum(loss[:3])
    assert (here / "out" / "encoder" / "tokenizer.json").exists()


def test_the_tiny_settings_themselves_are_no_mistake(sslt, here):
    """What the mistakes above differ from does run."""
    sslt("pretrain", "+task=mae", *TINY_VIT, "trainer.max_steps=1", "online_probe.every_n_epochs=0")
    sslt("pretrain", "+task=wmse", *TINY_IMAGES, "trainer.max_steps=1", "online_probe.every_n_epochs=0")
