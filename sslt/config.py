"""Configs: where they are, what is wrong with one, and the objects they name. Never imports torch.

A node with a `_target_` names a class or function; every other key of it is one of its arguments. A node without is read
by the verbs themselves. `check` is called on every composed config, before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import math
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sslt import groups, moved, signatures
from sslt.errors import UserError, nearest
from sslt.ranges import SETTINGS, is_number
from sslt.trusted import targets, walk

OURS = {  # of trainer=, and no Trainer's, or not as a Trainer has them; with their types
    "address": str, "node": int, "strategy": str, "shard_ranks": int, "lanes": int, "compile": bool, "activation_checkpointing": bool,
}  # fmt: skip
RATE, AUTO = "optimizer.lr", "auto"


def compose(verb: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Compose and check a verb's config, as the command line would; usable while another Hydra job runs."""
    groups.check_choices(verb, overrides, config_dir)
    overrides = groups.completed(verb, overrides, config_dir)
    cfg = compose_unchecked(verb, overrides, config_dir)
    note_own_rate(cfg, verb, overrides, config_dir)
    check(cfg, verb, config_dir)
    return cfg


def compose_unchecked(verb: str, overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """A verb's config as it is composed, values that are missing still missing."""
    import hydra

    with _composing(config_dir, verb) as extra:
        return hydra.compose(verb, overrides=[*overrides, *extra])


def chosen(verb: str, overrides: list[str], group: str, config_dir: str | None = None) -> str:
    """The option of a group that a command line comes to."""
    import hydra

    with _composing(config_dir, verb) as extra:
        cfg = hydra.compose(verb, overrides=[*overrides, *extra], return_hydra_config=True)
    return str(cfg.hydra.runtime.choices[group])


@contextlib.contextmanager
def _composing(config_dir: str | None, verb: str) -> Iterator[list[str]]:
    """Hydra's compose API, usable inside a running Hydra job (a chain composes its stages); gives overrides to add."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(groups.CONFIG_DIR), version_base="1.3", job_name=f"sslt {verb}"):
            yield [f"hydra.searchpath=[{Path(config_dir).absolute().as_uri()}]"] if config_dir else []
    except UserError:
        raise
    except Exception as e:
        raise explain(e, verb, config_dir) from e
    finally:
        GlobalHydra.instance().hydra = running


def note_own_rate(cfg: DictConfig, verb: str, overrides: list[str], config_dir: str | None = None) -> None:
    """Make `auto:R` of `optimizer.lr=auto`, R being the rate that these overrides come to without it."""
    if OmegaConf.select(cfg, RATE) == AUTO:
        others = [o for o in overrides if o.lstrip("+") != f"{RATE}={AUTO}"]
        OmegaConf.update(cfg, RATE, f"{AUTO}:{OmegaConf.select(compose_unchecked(verb, others, config_dir), RATE)}")


def searched_around(rate: Any) -> float | None:
    """R of a learning rate `auto:R`, which is to be searched for around R; None of a number and anything else."""
    head, colon, number = str(rate).partition(":")
    return float(number) if head == AUTO and colon and is_number(number) else None


def check(cfg: DictConfig, verb: str, config_dir: str | None = None) -> None:
    """Raise `UserError` for a key nothing reads, a missing value or a value of the wrong type.

    Groups of which nothing was chosen are there afterwards, as null.
    """
    known = groups.top_level_keys(verb) | (set(groups.names(config_dir)) - set(groups.names()))
    for key in map(str, cfg):
        if key not in known:
            raise UserError(f"nothing reads '{key}' in `sslt {verb}`{nearest(str(key), known | set(groups.names(config_dir)))}")
    with open_dict(cfg):
        for key in groups.top_level_keys(verb) - set(cfg):
            cfg[key] = None
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as e:
        raise UserError(_missing(e)) from e
    assert isinstance(plain, dict)
    for name, value in walk(plain):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value} is no number that anything can be set to: give a finite one")
    _check_alike("", {str(k): v for k, v in plain.items()}, groups.plain_values(verb))
    _check_ranges(plain)
    _settle_rate(plain, verb)
    for path, node in targets(plain):
        _check_node(path, node)
    if not isinstance(changed := plain.get("data_overrides") or {}, dict):
        raise UserError(f"data_overrides={reprlib.repr(changed)} is of the wrong type: it takes settings of the data, {{KEY: VALUE}}")
    for group in sorted(known & set(groups.names(config_dir))):
        if isinstance(groups.plain_values(verb).get(group), dict):  # predict's `objective` are settings of a head that exists
            continue
        _check_group(str(group), plain.get(group), verb, config_dir)
    for i, node in enumerate(plain.get("callbacks") or []):
        _check_names_a_class(f"callbacks[{i}]", node, "; give {_target_: CLASS} of a Lightning callback")


def _check_group(group: str, node: Any, verb: str, config_dir: str | None) -> None:
    """What is chosen of a group is a mapping, names a class where all options do, and has what sslt reads of it."""
    usual = groups.default_options(verb).get(group)
    hint = nearest("", groups.options(group, config_dir)) or f" (`sslt list {group}`)"
    if node is None:
        if usual and groups.own_values(group, usual) and (verb, group) != ("finetune", "objective"):  # null: as the answers want it
            raise UserError(f"{group}=null: `sslt {verb}` needs one{hint}")
        return
    if not isinstance(node, dict):
        raise UserError(f"{group}={reprlib.repr(node)} is none{hint}")
    if group == "logger":
        for name, inner in node.items():
            _check_names_a_class(f"logger.{name}", inner, hint)
        return
    if all("_target_" in groups.own_values(group, option) for option in groups.options(group)):
        _check_names_a_class(group, node, hint)
    elif "_target_" not in node:
        _check_read_by_a_stage(group, node, config_dir)
    target = node.get("_target_")
    needed: frozenset[str] = frozenset()
    if group == "trainer" and usual:  # sslt reads them itself
        needed = frozenset(groups.own_values(group, usual)) - {"_target_", "num_nodes", *OURS}  # runs of before have none
    elif isinstance(target, str) and (found := signatures.signature(target)):
        needed = found.required & groups.keys_of(group, config_dir)
    if lacking := sorted(needed - node.keys()):
        raise UserError(f"'{group}.{lacking[0]}' has no value: give it as {group}.{lacking[0]}=…")


def _check_names_a_class(path: str, node: Any, hint: str) -> None:
    if not isinstance(node, dict) or "_target_" not in node:
        raise UserError(f"{path}={reprlib.repr(node)} names no class{hint}")


def _check_read_by_a_stage(group: str, node: dict[str, Any], config_dir: str | None) -> None:
    """A group's node without a `_target_` holds the keys that its options have in their YAMLs."""
    keys = groups.keys_of(group, config_dir)
    for key in node:
        if key not in keys:
            raise UserError(f"nothing reads '{group}.{key}'{nearest(str(key), keys)}")
    values = [groups.own_values(group, option) for option in groups.options(group)]
    common = set.intersection(*({k for k, v in own.items() if v != {}} for own in values))  # {}: another group's, which may be none
    if lacking := sorted(common - node.keys() - {"_target_"}):
        raise UserError(f"'{group}.{lacking[0]}' has no value: choose one of +{group}={', '.join(groups.options(group))} first")


def _check_alike(path: str, node: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Compare the verbs' own settings, nested ones too, with what their YAMLs say."""
    for key, default in defaults.items():
        name, value = f"{path}{key}", node.get(key)
        if isinstance(default, dict) and default:
            if not isinstance(value, dict):
                raise UserError(f"{name}={value!r} is of the wrong type: it holds {', '.join(default)}")
            for inner in value:
                if inner not in default:
                    raise UserError(f"nothing reads '{name}.{inner}'{nearest(inner, default)}")
            _check_alike(f"{name}.", value, default)
        elif not _alike(value, default):
            kind = "a list, for instance" if isinstance(default, list) else f"{type(default).__name__}, for instance"
            wanted = "a single value" if default in (None, MISSING) else f"{kind} {default}"
            raise UserError(f"{name}={reprlib.repr(value)} is of the wrong type: it takes {wanted}")


def _check_ranges(plain: dict[Any, Any]) -> None:
    """The verbs' own settings are in their ranges."""
    for name, annotation in SETTINGS.items():
        head, _, last = name.rpartition(".")
        node = plain.get(head) if head else plain
        if isinstance(node, dict) and last in node and (wanted := signatures.type_error_of(node[last], annotation)):
            raise UserError(f"{name}={reprlib.repr(node[last])} is out of range: it takes {wanted}")


def _settle_rate(plain: dict[Any, Any], verb: str) -> None:
    """Put a number in the place of a rate that is searched for. Raises `UserError` where it cannot be."""
    node = plain.get("optimizer")
    rate = node.get("lr") if isinstance(node, dict) else None
    if rate == AUTO:
        raise UserError(f"{RATE}={AUTO} belongs on the command line of a new run, whose recipe or optimizer= has a rate to search around")
    if (own := searched_around(rate)) is not None:
        if verb != "finetune":
            raise UserError(
                f"{RATE}={AUTO} chooses by the loss on validation labels, which `sslt {verb}` does not have: give a number "
                f"(in a chain, finetune.{RATE}={AUTO})"
            )
        plain["optimizer"]["lr"] = own


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of the kind that its default is of."""
    if default is None or isinstance(default, str):  # of any kind, but one alone; a text may be typed as a number
        return not isinstance(value, (dict, list)) and (value is not None or default in (None, MISSING))
    if isinstance(value, (int, float)) and not signatures.is_sane(value):
        return False
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)


def _check_node(path: str, node: dict[str, Any]) -> None:
    target = node["_target_"]
    if not isinstance(target, str):
        raise UserError(f"{path}._target_={target!r}: give the dotted name of a class")
    if not signatures.exists(target):
        module, _, name = target.rpartition(".")
        now = moved.present(target)
        hint = f": it is {now} now" if now != target else nearest(name, signatures.names_in(module)) or "; is its package installed?"
        raise UserError(f"{path}._target_={target}: no such class or function can be found{hint}")
    if node.get("processor") is not None and (fit := signatures.processor_signature(target)):
        if not isinstance(node["processor"], dict):
            raise UserError(f"{path}.processor={node['processor']!r} is of the wrong type: it holds {', '.join(fit.parameters)}")
        _check_keys(f"{path}.processor", f"{target}'s processor", node["processor"], fit)
    if found := signatures.signature(target):
        _check_keys(path, target, node, found)


def _check_keys(path: str, target: str, node: dict[str, Any], found: signatures.Signature) -> None:
    for key, value in node.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        if path.rpartition(".")[2] == "trainer" and key in OURS:
            if value is not None and not isinstance(value, OURS[key]):
                raise UserError(f"{path}.{key}={value!r} is of the wrong type: it takes a single {OURS[key].__name__}")
            continue
        if key not in found.parameters:
            if not found.open:
                raise UserError(f"nothing reads '{path}.{key}': {target} does not take it{nearest(key, found.parameters)}")
            continue
        if wanted := signatures.type_error(value, found.parameters[key]):
            raise UserError(f"{path}.{key}={value!r} is of the wrong type: {target} takes {wanted}")


def check_arguments(path: str, target: str, values: dict[str, Any], given: set[str]) -> None:
    """Raise `UserError` unless `values`, at `path`, are what `target` takes beside the arguments `given`."""
    if found := signatures.signature(target):
        _check_keys(path, target, values, found)
        if lacking := sorted(found.required - given - set(values)):
            raise UserError(f"{path}.{lacking[0]} is missing: {target} needs it")


def check_stored(group: str, node: Any, where: str) -> None:
    """Raise `UserError` unless `node`, which the file `where` has for a group, names a class and what that takes."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{where} is damaged: '{group}' is {reprlib.repr(node)}, which names no class")
    for path, inner in targets(node, f"{where}: {group}"):
        _check_node(path, inner)


def _missing(e: OmegaConfBaseException) -> str:
    key = getattr(e, "full_key", None) or "?"
    if "Missing" in type(e).__name__:
        return f"'{key}' has no value: give it as {key}=…"
    return f"config: {str(e).splitlines()[0]}"


def explain(e: Exception, verb: str, config_dir: str | None = None) -> UserError:
    """Hydra's and OmegaConf's composition errors in one line, with the nearest valid name."""
    if isinstance(e, UserError):
        return e
    text = str(e) or str(e.__cause__ or type(e).__name__)
    if m := re.search(r"Could not find '([\w./-]+)'", text):
        group, _, option = m[1].rpartition("/")
        if group:
            return UserError(f"there is no {group} '{option}'{nearest(option, groups.options(group, config_dir))}")
    if m := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", text):
        return UserError(unknown_key(m[1].partition("=")[0], verb, config_dir))
    if "Ambiguous value" in text:
        return UserError(f"{text.splitlines()[0].rstrip('.')}: to run each of several values add -m; a list is written [a,b]")
    if mark := getattr(e, "problem_mark", None):
        return UserError(f"{mark.name}, line {mark.line + 1}: {getattr(e, 'problem', 'not YAML')}")
    if m := re.search(r"Multiple values for ([\w/]+)", text):
        return UserError(f"{m[1]} is given more than once: keep one {m[1]}=…")
    if m := re.search(r"In '([\w/]+)': Could not find '([^']+)'", text):
        return UserError(f"{m[1]}.yaml names '{m[2]}', which is not there")
    if "LexerNoViableAlt" in text and "~" in text:
        return UserError("a ~ cannot stand in a value as it is: write $HOME, or quote it twice: \"key='~/photos'\"")
    if "mismatched input" in text or "no viable alternative" in text or "token recognition" in text or "LexerNoViableAlt" in text:
        how = "quote values with spaces or commas: key='a, b'"
        if not text.splitlines()[0].isascii():
            how = "letters beside A to Z stand in quotes within the shell's: \"data.path='é.csv'\", \"objective.words={good: ['好']}\""
        return UserError(f"cannot read an override: {text.splitlines()[0]}; {how}")
    if isinstance(e, (TypeError, AttributeError, KeyError)):  # what Hydra does not check before it uses it
        return UserError(f"the settings cannot be composed ({text.splitlines()[0]}): a group takes the name of an option, +group=NAME")
    return UserError(f"config: {text.splitlines()[0] if text else type(e).__name__}")


def unknown_key(key: str, verb: str, config_dir: str | None) -> str:
    """What to say of a key that is not there."""
    if key.split("@")[0] in groups.names(config_dir):
        return f"`sslt {verb}` does not choose a {key} by default: write +{key}=…"
    head, _, last = key.rpartition(".")
    if not head and key in groups.top_level_keys(verb):
        return f"'{key}' takes a new entry by a plus: +{key}.NAME=…"
    known = groups.keys_of(head, config_dir) if head else groups.top_level_keys(verb) | set(groups.names(config_dir))
    if head and not known:
        top = head.split(".")[0]
        return f"nothing reads '{key}'{nearest(top, groups.top_level_keys(verb) | set(groups.names(config_dir)))}"
    if head and last in known:
        return f"'{key}' is not there: the {head} that was chosen does not take '{last}'"
    return f"nothing reads '{key}'{nearest(last, known)}"


def build(node: Any, /, *args: Any, **kwargs: Any) -> Any:
    """The object a node names, its own nested nodes built first. Errors keep their type."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, *args, _convert_="all", **kwargs)
    except InstantiationException as e:
        cause = e.__cause__
        if isinstance(cause, UserError):
            raise cause from e
        name = node["_target_"]
        raise UserError(f"cannot build {name}: {cause or e}".splitlines()[0]) from e
