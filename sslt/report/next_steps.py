"""What to type next, as commands that run as they stand: with the settings of the data that the run was made on."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from sslt import groups
from sslt.groups import command, starting
from sslt.runs import Run

# targets for labels of a user's own, and what they are
_GENERAL = {"image": ("image_folder", "FOLDER"), "text": ("text_csv", "FILE"), "items": ("next_item", "FILE")}


def after_pretraining(cfg: Any, source: Any, run: Run) -> list[str]:
    """Commands that measure an encoder on the data it was made of and carry it to their labels; its features, where they have none."""
    own = run.info.get("config_dir")
    option, settings = data_settings(cfg.data, own)
    end = [*_trust(cfg), *(["--config-dir", str(own)] if own else [])]
    start = starting(run)
    if source.space is None:
        split = "unlabeled" if "unlabeled" in source.own_splits() else "train"
        features = ["predict", start, f"data={option}", *settings, f"split={split}", *end]
        return [command("evaluate", start, *end), command(*features)]
    known = option in groups.options("target", own)
    target = [f"+target={option}"] if known else [f"+target={_GENERAL[source.modality][0]}", f"data={option}"]
    if source.new_classes_in_test:
        tune = ["finetune", *target, "+episodes=protonet", *settings, start, *end]
        return [command("evaluate", start, "+episodes=centroid", *end), command(*tune)]
    if min((len(v) for v in source.space.values() if isinstance(v, list)), default=2) < 2 or "test" not in source.splits():
        return [command("predict", start, f"data={option}", *settings, "split=train", *end)]
    if source.modality == "items":  # what is asked of histories has nothing to train
        return [command("evaluate", *target, *settings, start, *end), command("finetune", *target, *settings, start, *end)]
    probes = [command("evaluate", start, *end)] if "val" in source.splits() else []
    return [*probes, command("finetune", *target, *settings, start, *end)]


def with_labels(source: Any, run: Run) -> str:
    """How to go on once there are labels; the word in capitals is the user's to give."""
    target, what = _GENERAL[source.modality]
    return command("finetune", f"+target={target}", f"data.path={what}", starting(run))


def data_settings(node: Any, config_dir: str | None = None) -> tuple[str, list[str]]:
    """The option of `data=` that a composed node was made from, and what was set of it otherwise, as overrides."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    assert isinstance(plain, dict)
    found: tuple[str, list[str]] | None = None
    for option in groups.options("data", config_dir):
        own = groups.own_values("data", option, config_dir)
        if own.get("_target_") != plain["_target_"]:
            continue
        usual = OmegaConf.to_container(OmegaConf.create(own), resolve=True)
        assert isinstance(usual, dict)
        other = [f"data.{key!s}={groups.written(value)}" for key, value in plain.items() if key not in usual or usual[key] != value]
        if found is None or len(other) < len(found[1]):
            found = option, other
    assert found is not None, plain["_target_"]
    return found


def _trust(cfg: Any) -> list[str]:
    """`trust=` for what the run has of others."""
    named = {str(node["_target_"]).partition(".")[0] for node in (cfg.data, cfg.get("encoder")) if node is not None and "_target_" in node}
    packages = sorted({*map(str, cfg.trust), *(named - {"sslt"})})
    return [f"trust=[{','.join(packages)}]"] if packages else []
