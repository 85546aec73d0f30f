"""Protects the table of what may stand where: every shipped YAML fits its place, and other kinds, functions and packages do not."""

from __future__ import annotations

import re

import pytest
import yaml

from sslt import groups, signatures, trusted
from sslt.errors import UserError

SHIPPED = [(p.parent.name, p) for p in sorted(groups.CONFIG_DIR.glob("*/*.yaml"))]


@pytest.mark.parametrize(("group", "path"), SHIPPED, ids=[f"{g}/{p.stem}" for g, p in SHIPPED])
def test_everything_shipped_may_stand_where_it_does(group, path):
    """Otherwise a run with it could not be gone on with."""
    node = {k: v for k, v in (yaml.safe_load(path.read_text()) or {}).items() if k != "defaults"}
    node = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", yaml.safe_dump(node)))  # a run stores what they resolve to
    trusted.check_trusted(node if "@package _global_" in path.read_text() else {group: node}, [], "run")


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("data", "sslt.objectives.contrastive.NTXent"),
        ("objective", "sslt.data.sources.docs.Docs"),
        ("encoder", "sslt.data.base.Samples"),
        ("schedule", "sslt.data.cache.digest"),
        ("optimizer", "torch.optim.lr_scheduler.StepLR"),
        ("optimizer", "torch.optim.swa_utils.update_bn"),
        ("callbacks", "sslt.callbacks.curves.Curves"),
        ("logger", "sslt.loggers.log_picture"),
        ("trainer", "pytorch_lightning.LightningModule"),
        ("method", "sslt.data.streams.episodes.Episodes"),
    ],
)
def test_another_kind_is_refused(place, target):
    with pytest.raises(UserError, match="somebody's run"):
        trusted.check_trusted({place: {"_target_": target}}, [], "somebody's run")


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RMSprop", "Adagrad"])
def test_torchs_optimizers_may_stand_at_their_place(name):
    trusted.check_trusted({"optimizer": {"_target_": f"torch.optim.{name}", "lr": 0.1}}, [], "run")


def test_a_trusted_package_still_needs_the_kind(own_code):
    """trust=[mylab] is trust in its callbacks where callbacks stand, not in any function of it; aliases of modules are followed."""
    (own_code / "mylab").mkdir()
    (own_code / "mylab" / "parts.py").write_text(
        "import pytorch_lightning as pl\nfrom sslt.data.sources.docs import Docs\n"
        "class Mine(pl.Callback): ...\nclass Deeper(Mine): ...\nclass Texts(Docs): ...\ndef run(command): ...\n"
    )
    for place, name in (("callbacks", "Mine"), ("callbacks", "Deeper"), ("data", "Texts")):
        trusted.check_trusted({place: [{"_target_": f"mylab.parts.{name}"}]}, ["mylab"], "run")
        with pytest.raises(UserError, match=r"trust=\[mylab\]"):
            trusted.check_trusted({place: [{"_target_": f"mylab.parts.{name}"}]}, [], "run")
    for place, name in (("data", "Mine"), ("callbacks", "Texts"), ("callbacks", "run"), ("data", "Absent")):
        with pytest.raises(UserError, match="stands"):
            trusted.check_trusted({place: [{"_target_": f"mylab.parts.{name}"}]}, ["mylab"], "run")


def test_derives_is_no_guess_by_name():
    assert signatures.derives("sslt.objectives.adversarial.CDAN", "sslt.objectives.base.Objective")
    assert not signatures.derives("sslt.objectives.base.Loss", "sslt.objectives.base.Objective")
    assert not signatures.derives("no.such.Thing", "sslt.objectives.base.Objective")


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "subprocess.run", "ssltx.Thing", "sslt_evil.Thing", "friendsx.Thing", "hydra.utils.get_method"],
)
def test_foreign_targets_are_refused(target):
    """The message says what would be run, where, and how to allow it; deep in another node as well."""
    for node in ({"data": {"_target_": target}}, {"views": {"large": {"x": [{"_target_": target}]}}}):
        with pytest.raises(UserError, match=rf"somebody's run.*{target}.*trust=\["):
            trusted.check_trusted(node, ["friends"], "somebody's run")
    with pytest.raises(UserError, match="no class stands"):
        trusted.check_trusted({"seed": {"_target_": target}}, [target.split(".")[0]], "somebody's run")


@pytest.mark.parametrize(
    "target",
    ["sslt.data.cache.shutil.rmtree", "sslt.data.cache.os.system", "sslt.processes.subprocess.run", "sslt.data.cache.Path"],
)
def test_what_sslt_merely_imports_is_refused(target):
    """A dotted name that walks through a module of sslt to somebody else's function is not part of sslt."""
    with pytest.raises(UserError, match="not part of sslt"):
        trusted.check_trusted({"data": {"_target_": target}}, ["sslt"], "somebody's run")
