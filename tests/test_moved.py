"""Protects runs of earlier versions: their folders name classes where these were, and are used like any other all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import TINY_IMAGES

from sslt import config, moved, signatures, trusted
from sslt.encoders.load import load_encoder
from sslt.encoders.seals import DIGESTS, seal
from sslt.errors import UserError
from sslt.runs import Run

# What the shipped YAMLs named in the former layout, where it has moved since.
CLASSES = {
    "data.corruptions": ["Blur", "Brightness", "Contrast", "DroppedWords", "GaussianNoise", "ImpulseNoise", "Pixelate"],
    "data.docs": ["Docs"],
    "data.episodes": ["Episodes", "Training"],
    "data.image_tables": ["HuggingFaceImages"],
    "data.image_views": ["ImageViews"],
    "data.images": ["Arrays", "Digits", "ImageFolder", "ImageSet"],
    "data.multi_crop": ["MultiCrop"],
    "data.omniglot": ["Omniglot"],
    "data.sampling": ["Proportional", "RoundRobin", "Together"],
    "data.sources.texts": ["TextFiles", "TextLines"],
    "data.text_sets": ["AgNews", "Imdb"],
    "data.text_views": ["Crops", "MaskTokens"],
    "data.texts": ["HuggingFaceText", "TextFiles", "TextLines", "TextTable"],
    "data.views": ["Plain"],
    "objectives.classification": ["Classification"],
}
FORMER = [f"sslt.{module}.{name}" for module, names in CLASSES.items() for name in names]


@pytest.mark.parametrize("name", FORMER)
def test_every_former_name_leads_to_a_class(name):
    """The former one is gone, the present one is a class of sslt."""
    now = moved.present(name)
    assert now != name and not signatures.exists(name) and signatures.is_own_class(now)


def test_only_names_of_classes_change():
    """Wherever they stand; another key, another package and what goes through a module to something else stay as they are."""
    plain = {
        "stages": [{"views": {"_target_": "sslt.data.views.Plain", "n": 2}}],
        "name": "sslt.data.views.Plain",
        "data": {"_target_": "sslt.data.images.os.system", "x": {"_target_": "mine.sslt.data.images.Arrays"}},
        "odd": {"_target_": 3},
    }
    now = moved.up_to_date(plain)
    assert now.pop("stages") == [{"views": {"_target_": "sslt.data.views.base.Plain", "n": 2}}]
    assert plain["stages"][0]["views"]["_target_"] == "sslt.data.views.Plain"
    assert now == {k: v for k, v in plain.items() if k != "stages"}


def former(run: Path) -> None:
    """Make a run folder what an earlier version wrote."""
    before = {new: old for old, new in moved.MODULES.items()}

    def put_back(node):
        for _, inner in trusted.walk(node):
            if isinstance(inner, dict) and "_target_" in inner:
                module, _, name = inner["_target_"].rpartition(".")
                inner["_target_"] = f"{before.get(module, module)}.{name}"
        return node

    settings = put_back(yaml.safe_load((run / "config.yaml").read_text()))
    assert settings["data"]["_target_"] == "sslt.data.images.Digits"
    (run / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    if (head := run / "head" / "head.json").exists():
        about = put_back(json.loads(head.read_text()))
        assert about["objective"]["_target_"] == "sslt.objectives.classification.Classification"
        seal(head.parent, head.name, {k: v for k, v in about.items() if k != DIGESTS})


def test_who_writes_a_former_name_is_told_the_present_one():
    """On a command line or in a YAML of one's own nothing is replaced silently."""
    with pytest.raises(UserError, match=r"data\._target_=sslt\.data\.images\.Arrays.*it is sslt\.data\.sources\.images\.Arrays now"):
        config.compose("pretrain", ["+task=simclr", "data=arrays", "data.path=x.npz", "data._target_=sslt.data.images.Arrays"])


def test_runs_of_earlier_versions_are_used_like_any_other(sslt, here):
    """A pretraining goes on where it stopped and is fine-tuned; what that gives is measured, head and data included."""
    short = [*TINY_IMAGES, "batch_size=64"]
    sslt("pretrain", "+task=simclr", *short, "trainer.max_steps=2", "online_probe.every_n_epochs=0", "hydra.run.dir=made")
    former(here / "made")
    Run(here / "made").update(status="interrupted")
    sslt("pretrain", "resume=made")
    assert Run(here / "made").finished
    former(here / "made")
    sslt("finetune", "+target=digits", "from=made", *short[2:], "trainer.max_steps=2", "baseline=false", "hydra.run.dir=tuned")
    former(here / "tuned")
    sslt("evaluate", "from=tuned", "trainer.accelerator=cpu", "hydra.run.dir=measured")
    assert Run(here / "measured").metrics["test/accuracy"] == Run(here / "tuned").metrics["test/accuracy"]


def test_settings_that_were_renamed_are_taken_by_their_present_names():
    """At the top of a saved config, with their values; the same word further down is another setting."""
    assert moved.settings({"words": False, "data": {"words": 3}}) == {"late_fusion": False, "data": {"words": 3}}


def test_an_encoder_that_held_its_own_tfidf_is_refused_in_one_line(tmp_path):
    """Its features had scores of words among them, which its head in today's layout would not expect."""
    about = {
        "_target_": "sslt.encoders.bag.BagEncoder",
        "args": {"dim": 8, "lexicon": {"third": "parts"}},
        "processor": {},
        "modality": "text",
    }
    seal(tmp_path, "sslt.json", about)
    with pytest.raises(UserError, match=r"earlier version, which kept TF-IDF inside the encoder.*fine-tune again"):
        load_encoder(str(tmp_path))
