"""Which classes a config that came with somebody's files may name: by place, and only what this user has chosen to run.

A class stands where classes of its kind do: a data set at `data`, an objective at `objective`. It is one of sslt's own, one that sslt's
own YAMLs name at that place (`torch.optim.AdamW`), or of a package or a `--config-dir` that the user names now.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sslt import groups, signatures, stored
from sslt.errors import UserError

# What a class must be to stand somewhere, by the last of these names in its path: `shift.target`, `joint.views`, `views.large`.
# `callbacks` and `logger` write where their arguments say, so that of sslt's own classes none can stand there.
_METHODS = (
    "sslt.objectives.episodic.FeatureClassifier",
    "sslt.objectives.episodic.AdaptingClassifier",
    "sslt.deploy.method.Method",
)
PLACES: dict[str, tuple[str, ...]] = {
    "data": ("sslt.data.base.Source",),
    "target": ("sslt.data.base.Source",),
    "sources": ("sslt.data.base.Source",),
    "encoder": ("sslt.encoders.base.Encoder",),
    "objective": ("sslt.objectives.base.Objective",),
    "adaptation": ("sslt.adaptation.base.Adaptation",),
    "views": ("sslt.data.views.base.Views",),
    "schedule": ("sslt.schedules.Schedule",),
    "sampling": ("sslt.data.streams.sampling.Sampling",),
    "episodes": ("sslt.data.streams.episodes.Episodes",),
    "method": _METHODS,
    "training": ("sslt.data.streams.episodes.Training",),
    "corruption": ("sslt.data.views.corruptions.Corruption",),
    "test_time": ("sslt.evaluation.test_time.TestTime",),
    "optimizer": ("torch.optim.Optimizer",),
    "trainer": ("pytorch_lightning.Trainer",),
    "callbacks": ("pytorch_lightning.callbacks.callback.Callback",),
    "logger": ("pytorch_lightning.loggers.logger.Logger",),
}
_WRITES = ("callbacks", "logger")


def check_trusted(plain: Any, trust: list[str], where: str, config_dir: str | None = None) -> None:
    """Raise `UserError` where a plain config that came with somebody's files names what may not stand there.

    trust: packages whose classes the user trusts. config_dir: a folder of YAMLs that the user names now; what they name is trusted.
    Interpolations are refused too: resolving one can make a node that was not there to be looked at.
    """
    for text in _strings(plain):
        if "${" in text:
            raise UserError(f"{where} holds an interpolation ({text[:60]}), which sslt never writes there: the file was changed")
    for path, node in targets(plain):
        _check_node(path, node, trust, where, _named_in(config_dir) if config_dir else frozenset())


def _check_node(path: str, node: dict[str, Any], trust: list[str], where: str, named: frozenset[str]) -> None:
    target = str(node["_target_"])
    if odd := [k for k in node if k != "_target_" and re.fullmatch(r"_\w+_", str(k))]:
        raise UserError(f"{where} holds {path}.{odd[0]}, which sslt never writes there: the file was changed")
    place = next((part for part in reversed(re.split(r"[.\[\]]+", path)) if part in PLACES), None)
    if place is None:
        raise UserError(f"{where} asks for {target} (at {path}), where no class stands: the file was changed")
    if target in _of_own_yamls(place):
        if place == "logger":
            _check_logger(path, node, where)
        return
    package = target.split(".")[0]
    ours = package == "sslt" and signatures.is_own_class(target) and place not in _WRITES
    torchs = place == "optimizer" and target.startswith("torch.optim.")
    if not (ours or torchs or target in named or (package in trust and package != "sslt")):
        raise UserError(
            f"{where} asks to run {target} (at {path}), which is not part of sslt. "
            f"If you know and trust it, say trust=[{package}], or repeat the whole command with resume="
        )
    if not any(signatures.derives(target, base) for base in PLACES[place]):
        kinds = " or ".join(base.rpartition(".")[2] for base in PLACES[place])
        raise UserError(f"{where} asks for {target} (at {path}), where a class of kind {kinds} stands: the file was changed")


def _check_logger(path: str, node: dict[str, Any], where: str) -> None:
    """A logger writes below the run folder, whatever name it is given, and takes what its YAML holds."""
    own = groups.logger_keys(str(node["_target_"]))
    for key, value in node.items():
        if key not in own:
            raise UserError(f"{where} holds {path}.{key}, which may say where the logger writes: say it again, logger.…={value!r}")
        if key != "_target_" and isinstance(value, str) and ("/" in value or "\\" in value or value.startswith(".")):
            raise UserError(f"{where} holds {path}.{key}={value!r}, which would write elsewhere than into the run: the file was changed")


@functools.cache
def _of_own_yamls(place: str) -> frozenset[str]:
    """The targets outside sslt, and functions of it, that sslt's own YAMLs name in a group."""
    found = {node["_target_"] for content in groups.contents(place) for _, node in targets(content)}
    return frozenset(t for t in found if not (t.startswith("sslt.") and signatures.is_own_class(t)))


def _named_in(config_dir: str) -> frozenset[str]:
    """Every target that the YAMLs of a user's own folder name."""
    files = sorted(Path(config_dir).expanduser().rglob("*.yaml"))
    return frozenset(node["_target_"] for file in files for _, node in targets(stored.yaml_object(file)))


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a plain config, outermost first; the whole itself has the path ""."""
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from walk(value, f"{path}[{i}]")


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted path, node) of every node with a `_target_`, outermost first."""
    return ((where, dict(inner)) for where, inner in walk(node, path) if isinstance(inner, Mapping) and "_target_" in inner)


def _strings(node: Any) -> Iterator[str]:
    """Every text in a config, keys included."""
    for _, inner in walk(node):
        yield from (text for text in (inner if isinstance(inner, Mapping) else [inner]) if isinstance(text, str))
