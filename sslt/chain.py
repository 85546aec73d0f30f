"""`sslt run`: pretrain → finetune → evaluate, each in its own run folder inside one, taken up where it stopped.

Hydra composes and sweeps the chain itself: `rewrite` turns what the user wrote into values of run.yaml, and each stage is composed
from its share of them when all shares have been found to be valid.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sslt import groups
from sslt.errors import UserError

log = logging.getLogger("sslt")

STAGES = ("pretrain", "finetune", "evaluate")
BEFORE = {"finetune": "pretrain", "evaluate": "finetune"}  # which stage one starts from
BELONGS = {"task": "pretrain", "data": "pretrain", "from": "pretrain", "target": "finetune", "adaptation": "finetune",
           "encoder": "pretrain", "word_vectors": "pretrain", "label_fraction": "finetune", "labels_per_class": "finetune"}  # fmt: skip
OWN = ("resume", "cache_dir", "shards", "debug", "hydra")  # of the chain as a whole


def rewrite(overrides: list[str], config_dir: str | None, sweep: bool = False) -> list[str]:
    """Overrides of a chain → values of run.yaml: `stages.STAGE.choices` (groups), `.values` (keys) and `.added` (`+key`).

    What `BELONGS` to a stage goes there (`data=` is which data set to pretrain on), `STAGE.key=value` to that stage, anything else
    to every stage that reads it. In a sweep, of several values for several stages the first gets them and the others what it gets, or
    Hydra would run every pair.
    """
    known = {s: groups.top_level_keys(s) for s in STAGES}
    chosen = set(groups.names(config_dir))
    out = []
    for override in overrides:
        key, equals, value = override.partition("=")
        bare = key.lstrip("+")
        top = bare.split(".")[0]
        if top in OWN or override.startswith("~") or top == "stages":
            out.append(override)
            continue
        if "@" in key:
            raise UserError(f"`sslt run` cannot place {key}=: run `sslt finetune` by itself for it, from the pretraining's folder")
        if top in STAGES:
            stages, bare = [top], bare.partition(".")[2]
        elif bare in BELONGS or top in ("adaptation", "encoder"):
            stages = [BELONGS[top]]
        else:
            stages = [s for s in STAGES if top in known[s] and not (s == "evaluate" and _of_training(bare))]
            if not stages:
                from sslt.errors import nearest

                raise UserError(f"nothing reads '{bare}' in `sslt run`{nearest(top, set().union(*known.values(), {'task', 'target'}))}")
        new = key.startswith("+") and bare not in groups.ADDED
        kind = "choices" if bare in chosen else ("added" if new else "values")
        places = [f"++stages.{stage}.{kind}.{bare}" for stage in stages]
        out.append(f"{places[0]}{equals}{value}")
        shared = f"${{{places[0].lstrip('+')}}}" if sweep and _several(override) else value
        out += [f"{place}{equals}{shared}" for place in places[1:]]
    return out


def _several(override: str) -> bool:
    """Whether an override sweeps over values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException:  # composing says what is wrong with it
        return False


def _of_training(key: str) -> bool:
    """Whether a key that `sslt evaluate` has, too, is said of training."""
    top, _, rest = key.partition(".")
    return top == "data" or (top == "trainer" and rest not in ("accelerator", "devices", "num_nodes", "address", "node"))


def shares(cfg: Any, stage: str) -> list[str]:
    """The command-line overrides of a stage."""
    share = cfg.stages[stage]
    out = [f"{'+' if k in groups.ADDED else ''}{k}={_written(v)}" for k, v in share.choices.items()]
    out += [f"{k}={_written(v)}" for k, v in _flat(share["values"])]
    out += [f"+{k}={_written(v)}" for k, v in _flat(share.added)]
    return out


def _flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    pairs = []
    for key, value in node.items():
        name = f"{prefix}{key}"
        pairs += _flat(value, f"{name}.") if hasattr(value, "items") and len(value) else [(name, value)]
    return pairs


def _written(value: Any) -> str:
    """A value in Hydra's override grammar."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    return groups.written(value)


def of_stage(rewritten: list[str], stage: str) -> list[str]:
    """What of a chain's rewritten overrides belongs to a stage, as it would be typed for that alone."""
    out = []
    for override in rewritten:
        key, equals, value = override.partition("=")
        if m := re.fullmatch(rf"\+*stages\.{stage}\.(choices|values|added)\.(.+)", key):
            out.append(f"{'+' if m[1] == 'added' or m[2] in groups.ADDED else ''}{m[2]}{equals}{value}")
    return out


def compose_stages(cfg: Any, folder: Path, config_dir: str | None) -> None:
    """Put the config of every stage into `stages.STAGE.config`: all of a chain is valid, and saved, before any of it runs."""
    from omegaconf import open_dict

    from sslt import config
    from sslt.processes import settle
    from sslt.runs import Run

    if "task" not in cfg.stages.pretrain.choices or "target" not in cfg.stages.finetune.choices:
        raise UserError("a chain needs both: sslt run +task=simclr +target=digits")
    overrides = {s: shares(cfg, s) for s in STAGES}
    if "data" not in cfg.stages.pretrain.choices:
        tuned = [f"from={_written(str(folder / 'pretrain'))}", *overrides["finetune"]]
        overrides["pretrain"].insert(0, f"data={config.chosen('finetune', tuned, 'data', config_dir)}")
    for stage in STAGES:
        start = [f"from={_written(str(folder / BEFORE[stage]))}"] if stage in BEFORE else []
        own = [f"cache_dir={_written(str(cfg.cache_dir))}", *(f"shards.{k}={v}" for k, v in cfg.shards.items())]
        with open_dict(cfg):
            cfg.stages[stage].config = config.compose(stage, [*own, *start, *overrides[stage]], config_dir)
        settle(cfg.stages[stage].config, Run(folder / stage))


def run_chain(cfg: Any, run: Any, config_dir: str | None, execute: Callable[..., int]) -> int:
    """Run by `execute` the stages that are not finished yet, each from the one before; returns the exit code."""
    from sslt.runs import Run

    folders = {s: run.path / s for s in STAGES}
    if "data" not in cfg.stages.pretrain.choices:
        log.info("pretraining on the target's own images or text, without its labels (data=… takes others)")
    for stage in STAGES:
        folder, settings = Run(folders[stage]), cfg.stages[stage].config
        if stage in BEFORE:
            settings["from"] = str(folders[BEFORE[stage]])  # where it is now
        if folder.finished:
            if _settings(folder.config) != _settings(settings):
                raise UserError(
                    f"the settings of {stage} are not those it has finished with: start a new chain, or go on with this stage alone, "
                    f"{groups.command(stage, f'resume={folder}')}"
                )
            log.info("%s: finished before", folder)
            continue
        print(f"── {stage} → {folder}")
        code = execute(stage, settings, folders[stage], shares(cfg, stage), config_dir, bool(folder.info))
        if code:
            print(f"sslt: the chain stopped at {stage}; go on with: {groups.command('run', f'resume={run}')}")
            return code
    measured = Run(folders["evaluate"]).metrics
    run.add_metrics({f"{s}/{k}": v for s in STAGES for k, v in Run(folders[s]).metrics.items() if s != "evaluate"} | measured)
    run.update(stages={s: str(Path(s)) for s in STAGES})
    return 0


def _settings(config: Any) -> dict[str, Any]:
    """What of a stage's config its result depends on."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in ("from", "resume", "debug", "cache_dir", "trust")}
