"""`resume=`: which folder a command goes on in, and with which settings.

What a run folder says is data, since whoever made the folder would otherwise choose what runs here. So its settings are those of the
saved `config.yaml`, read without aliases or interpolations and checked key by key like any other config; a class stands only where
classes of its kind do, and is one of sslt's own or one that is trusted now. Nothing that is stored is given to Hydra or read as an
override. What is typed beside `resume=` is the user's own and goes on top.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from sslt import config, groups, moved, runs, stored, trusted
from sslt.errors import UserError

# Settings that a folder does not decide: what may run here, that this goes on, and where else is written.
_OURS = ("trust", "resume", "debug", "cache_dir")


@dataclasses.dataclass
class Going:
    """A run to go on with: its settings now, and what was typed for it in all, for the record."""

    run: runs.Run
    cfg: DictConfig
    overrides: list[str]


def find(verb: str, overrides: list[str], config_dir: str | None) -> tuple[Going | None, list[str]]:
    """What `resume=RUN|auto` among `overrides` comes to (None: a new run), and the overrides without it.

    Raises `UserError` where the folder is none that this verb can go on in.
    """
    given = {_key(o): o.partition("=")[2] for o in overrides}
    wanted, folder = given.get("resume", "null"), given.get("hydra.run.dir")
    if wanted in ("null", ""):
        return None, overrides
    typed = [o for o in overrides if _key(o) != "resume"]
    own = [o for o in typed if not _key(o).startswith("hydra")]
    if wanted == "auto":
        run = _same_command(verb, typed, folder)
        if run is None:
            return None, typed
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and str(error := run.info.get("error", "")).startswith("UserError: "):
            raise UserError(str(error).removeprefix("UserError: "))  # starting it again does not mend it
        check_folder(run)
        return Going(run, config.compose(verb, own, config_dir), own), typed
    run = runs.open_run(wanted, "resume")
    check_folder(run)
    info = run.info
    if info.get("verb") != verb:
        if info.get("verb") not in groups.verbs():
            raise UserError(f"resume={wanted}: its {runs.RUN_FILE} names no verb of sslt: it is damaged or was changed")
        raise UserError(f"resume={wanted} is a `sslt {info['verb']}` run: go on with `{groups.command(info['verb'], f'resume={wanted}')}`")
    if info.get("config_dir") and not config_dir:
        raise UserError(f"{run} was started with --config-dir {info['config_dir']}: give it again")
    if odd := [o for o in typed if _key(o).startswith("hydra") and _key(o) != "hydra.run.dir"]:
        raise UserError(f"{odd[0]} does not go with resume=, in which Hydra has no part: leave it out")
    if _whole(verb, own):
        return Going(run, config.compose(verb, own, config_dir), own), typed
    cfg = restored(run / "config.yaml", verb, own, config_dir, run)
    earlier = [o for o in info.get("overrides", []) if isinstance(o, str) and _key(o) not in {_key(t) for t in own} | {"resume"}]
    return Going(run, cfg, [*earlier, *own]), typed


def _same_command(verb: str, typed: list[str], folder: str | None) -> runs.Run | None:
    """The newest unfinished run of the same command, or the one in `hydra.run.dir`."""
    if not folder:
        return runs.find_resumable(verb, typed)
    if "${" in folder:  # a name by the clock, say, which is another one now
        return runs.find_resumable(verb, typed, os.path.dirname(folder.partition("${")[0]) or ".")
    place = stored.located(folder)
    if stored.is_file(place / runs.RUN_FILE):
        return runs.Run(place)
    runs.refuse_overwrite(place)
    return None


def _whole(verb: str, typed: list[str]) -> bool:
    """Whether a command was typed that says everything by itself, so that the folder need not be asked."""
    keys = {_key(o) for o in typed}
    if verb == "run":
        return {"stages.pretrain.choices.task", "stages.finetune.choices.target"} <= keys
    return bool({"task", "target"} & keys) or (verb not in ("pretrain", "finetune") and "from" in keys)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


# -------------------------------------------------------------------- the saved config
def restored(path: Path, verb: str, typed: list[str], config_dir: str | None, run: runs.Run) -> DictConfig:
    """The checked config of a verb: as it was saved in `path`, with what is typed now on top.

    Raises `UserError` where the file was damaged or changed, or names what is not trusted.
    """
    try:
        plain = moved.settings(stored.yaml_object(path))
    except FileNotFoundError:
        raise UserError(f"{runs.display(path)} is missing: repeat the whole command with {groups.quoted(f'resume={run}')}") from None
    if verb != "run":
        return _restored(plain, str(runs.display(path)), verb, typed, config_dir, run)
    from sslt.chain import STAGES, of_stage

    name, stages = runs.display(path), plain.get("stages")
    for stage in STAGES:
        part = stages.get(stage) if isinstance(stages, dict) else None
        if not isinstance(part, dict) or not all(isinstance(part.get(k), dict) for k in ("choices", "values", "added", "config")):
            raise UserError(f"{name} does not hold the settings of {stage}: repeat the whole command with {groups.quoted(f'resume={run}')}")
        saved = moved.settings(part.pop("config"))
        part["config"] = _restored(saved, f"{name}, stages.{stage}.config", stage, of_stage(typed, stage), config_dir, run)
    return _restored(plain, name, verb, [o for o in typed if not _key(o).startswith("stages.")], config_dir, run)


def _restored(plain: dict[str, Any], where: str, verb: str, typed: list[str], config_dir: str | None, run: runs.Run) -> DictConfig:
    defaults = groups.own_defaults(verb)
    ours = {k: v for k, v in defaults.items() if k in _OURS}
    start = {k: ours.get(k, v) for k, v in plain.items() if k in ours or k not in _OURS} | ours  # in their order
    start |= {k: v for k, v in defaults.items() if k not in start}  # settings that there were not when it was made
    for key in _OURS:
        plain.pop(key, None)
    curve = plain.get("curve")
    if isinstance(curve, dict) and curve.get("overrides"):
        raise UserError(
            f"{run} was made with curve.overrides=, which are commands: repeat the whole command with {groups.quoted(f'resume={run}')}"
        )
    cfg = OmegaConf.create(start)
    _no_downloads(cfg, plain)
    touched = _apply(cfg, verb, typed, config_dir)
    saved = {k: v for k, v in plain.items() if k not in touched}
    trusted.check_trusted(saved, list(cfg.get("trust") or []), where, config_dir)
    try:
        config.check(cfg, verb, config_dir)
    except UserError as e:
        raise UserError(f"{e} (settings saved in {where})") from e
    OmegaConf.set_struct(cfg, True)
    return cfg


def _no_downloads(cfg: Any, saved: dict[str, Any]) -> None:
    """A run has its data already: fetching them again is asked for by who types, since it writes where the config says."""
    for path, node in trusted.targets(saved):
        if node.get("download"):
            OmegaConf.update(cfg, f"{path}.download", False)


# -------------------------------------------------------------------- what is typed now
def _apply(cfg: DictConfig, verb: str, typed: list[str], config_dir: str | None) -> set[str]:
    """Change `cfg` as the overrides `typed` say; gives the top-level keys whose whole node is the user's own now."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType

    try:
        parsed = OverridesParser.create().parse_overrides(typed)
    except Exception as e:
        raise config.explain(e, verb, config_dir) from e
    names = set(groups.names(config_dir))
    chosen = [o for o in parsed if o.key_or_group in names and o.type != OverrideType.DEL]
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line}: resume= goes on with one run, so give one value; a list is written [a,b]")
        if o.package is not None:
            raise UserError(f"{o.input_line} does not go with resume=RUN alone: repeat the whole command with resume=")
    if chosen:
        made = config.compose_unchecked(verb, [str(o.input_line) for o in chosen], config_dir)
    with open_dict(cfg):
        for o in chosen:
            cfg[o.key_or_group] = made.get(o.key_or_group)
        for o in parsed:
            if o not in chosen:
                _set(cfg, o, verb, config_dir)
    return {o.key_or_group for o in parsed if o.package is None and "." not in o.key_or_group}


def _set(cfg: DictConfig, o: Any, verb: str, config_dir: str | None) -> None:
    from hydra.core.override_parser.types import OverrideType

    head, _, last = o.key_or_group.rpartition(".")
    parent = OmegaConf.select(cfg, head) if head else cfg
    there = OmegaConf.is_dict(parent) and last in parent
    if not there and o.type in (OverrideType.CHANGE, OverrideType.DEL):
        raise UserError(config.unknown_key(o.key_or_group, verb, config_dir))
    if o.type == OverrideType.DEL:
        del parent[last]
    else:
        OmegaConf.update(cfg, o.key_or_group, o.value(), force_add=True)


# -------------------------------------------------------------------- the folder
def check_folder(run: runs.Run) -> None:
    """Raise `UserError` where writing into a run folder would write elsewhere or wait for ever: links that lead out, pipes, devices."""
    root = run.path.resolve()
    for entry in _entries(root):
        name = runs.display(Path(entry.path))
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.is_relative_to(root):
                raise UserError(f"{name} is a link that leads out of the run folder, which resume= writes into: put the file itself there")
        elif not stat.S_ISREG(mode := entry.stat(follow_symlinks=False).st_mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{name} is a pipe, a socket or a device, which no run has: remove it")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, links not followed; what wandb keeps links to its own logs, and sslt writes nothing there."""
    try:
        found = list(os.scandir(folder))
    except OSError as e:
        raise UserError(f"{runs.display(folder)} cannot be read: {e.strerror}") from e
    for entry in found:
        yield entry
        if entry.is_dir(follow_symlinks=False) and entry.name != "wandb":
            yield from _entries(Path(entry.path))
