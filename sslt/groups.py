"""What can be named on the command line, read from the config folders as plain files.

Help, lists, completion and error messages use this; it imports neither Hydra nor OmegaConf, so that they cost nothing.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sslt import stored
from sslt.errors import UserError, nearest
from sslt.ranges import is_number

# Groups of which nothing is chosen by default: written with a + on the command line.
ADDED = ("task", "target", "joint", "shift", "episodes", "test_time", "corruption")

_BARE = re.compile(r"[A-Za-z0-9/._:%+@-]+")  # what Hydra's grammar takes without quotes

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def _dirs(config_dir: str | None) -> list[Path]:
    return [CONFIG_DIR, *([Path(config_dir).expanduser()] if config_dir else [])]


def names(config_dir: str | None = None) -> list[str]:
    """The config groups: data, encoder, task, …; what a folder has for Hydra itself is none of sslt's."""
    return sorted(
        {p.name for d in _dirs(config_dir) if d.is_dir() for p in d.iterdir() if p.is_dir() and p.name[0] not in "._"} - {"hydra"}
    )


def options(group: str, config_dir: str | None = None) -> dict[str, str]:
    """option → its one-line description (the first comment of its file); a user's own come last.

    A file whose name begins with "_" is what options of its group have in common, and none itself.
    """
    found: dict[str, str] = {}
    for directory in _dirs(config_dir):
        for path in sorted((directory / group).glob("*.yaml")):
            if not path.stem.startswith("_"):
                found[path.stem] = describe(path)
    return found


def describe(path: Path) -> str:
    """The first comment line of a YAML that is not a `@package` header."""
    stored.require_there(path)
    with path.open(encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("#") and "@package" not in line:
                return line.lstrip("# ").rstrip()
            if line.strip() and not line.startswith("#"):
                break
    return ""


def _load(path: Path) -> dict[str, Any]:
    """What a YAML holds; to be read, since those of sslt itself are kept."""
    return _own(path) if path.is_relative_to(CONFIG_DIR) else _parsed(stored.yaml_text(path, aliases=True))  # others can be anything


@functools.cache
def _own(path: Path) -> dict[str, Any]:
    """Of sslt's own, which a check of a config asks for fifty times."""
    return _parsed(path.read_text(encoding="utf-8"))


def _parsed(text: str) -> dict[str, Any]:
    import yaml

    loaded = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # six times as fast, where PyYAML was built with libyaml
    return loaded if isinstance(loaded, dict) else {}


def verbs() -> set[str]:
    """The verbs that have a config: each its own YAML."""
    return {p.stem for p in CONFIG_DIR.glob("*.yaml")} - {"common", "house"}


def contents(group: str) -> list[dict[str, Any]]:
    """What sslt's own YAMLs of a group hold."""
    return [_load(path) for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]


def logger_keys(target: str) -> set[str]:
    """The keys of a logger's node in its own YAML."""
    return {key for content in contents("logger") for node in content.values() if node.get("_target_") == target for key in node}


def own_files(verb: str) -> Iterator[Path]:
    """A verb's own YAML and those it includes."""
    todo = [verb]
    while todo:
        path = CONFIG_DIR / f"{todo.pop()}.yaml"
        todo += [item for item in _load(path).get("defaults", []) if isinstance(item, str) and item != "_self_"]
        yield path


def top_level_keys(verb: str) -> set[str]:
    """Every key a verb reads: those of its own YAML, of those it includes, and the groups it chooses from."""
    keys: set[str] = set()
    for content in map(_load, own_files(verb)):
        chosen = [item for item in content.get("defaults", []) if isinstance(item, dict)]
        keys |= {str(k).removeprefix("optional ").removeprefix("override ").strip("/") for item in chosen for k in item}
        keys |= set(content)
    return {k for k in keys if not k.startswith("hydra") and k != "defaults"}


def own_defaults(verb: str) -> dict[str, Any]:
    """What a verb's own YAML and those it includes say, keys of their own only."""
    return {k: v for content in map(_load, own_files(verb)) for k, v in content.items() if k not in ("hydra", "defaults")}


def plain_values(verb: str) -> dict[str, Any]:
    """A verb's own settings, nested ones too, with their defaults; free ones ({}) and choices of a group are left out.

    Settings under the name of a group, of which the verb then chooses nothing, are its own: those of a head, in predict.
    """
    grouped = names()
    free = ("hydra", "defaults", "stages", "data_overrides")
    own = ((k, v) for content in map(_load, own_files(verb)) for k, v in content.items())
    return {k: v for k, v in own if v != {} and k not in free and (k not in grouped or isinstance(v, dict))}


def keys_of(path: str, config_dir: str | None = None) -> set[str]:
    """The keys any option of the group at the head of a dotted path has there (`optimizer` → lr, weight_decay, …)."""
    group, *rest = path.split(".")
    keys: set[str] = set()
    for directory in _dirs(config_dir):
        files = [*(directory / group).glob("*.yaml"), *directory.glob("*.yaml")]
        for file in files:
            node: Any = _load(file)
            if file.parent.name == group and not rest:  # other groups that are put below it: /data@target
                chosen = [str(k) for item in node.get("defaults", []) if isinstance(item, dict) for k in item]
                keys |= {k.partition("@")[2] for k in chosen if "@" in k}
            for part in rest if file.parent.name == group else [group, *rest]:
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict):
                keys |= {str(k) for k in node}
    return keys - {"_target_", "defaults"}


def own_values(group: str, option: str, config_dir: str | None = None) -> dict[str, Any]:
    """What the YAML of an option holds, with those of its group that it is made from."""
    found: dict[str, Any] = {}
    for directory in _dirs(config_dir):
        path = directory / group / f"{option}.yaml"
        if path.is_file():
            node = _load(path)
            for item in node.get("defaults", []):
                if isinstance(item, str) and item != "_self_" and "/" not in item:
                    found |= own_values(group, item, config_dir)
                elif isinstance(item, dict):  # another group's option, below a key of this one
                    found |= {str(k).partition("@")[2]: {} for k in item if "@" in str(k)}
            found |= {k: v for k, v in node.items() if k != "defaults"}
    return found


def option_of(group: str, target: str, config_dir: str | None = None) -> str:
    """The option of a group whose `_target_` is this class, or the class itself."""
    return next((o for o in options(group, config_dir) if own_values(group, o, config_dir).get("_target_") == target), target)


def default_options(verb: str) -> dict[str, str]:
    """group → the option a verb takes where nothing else is said."""
    chosen = [item for path in own_files(verb) for item in _load(path).get("defaults", []) if isinstance(item, dict)]
    return {str(k).removeprefix("optional ").strip("/"): str(v) for item in chosen for k, v in item.items() if v}


def check_choices(verb: str, overrides: list[str], config_dir: str | None = None) -> None:
    """Raise `UserError` for a `GROUP=value` whose value names no option where one is needed: Hydra's own words do not say which.

    And for one whose YAML in `config_dir`, or one that this is made from, cannot be built: Hydra would try without end.
    """
    usual, there = default_options(verb), names(config_dir)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in there and (value.lower() in ("true", "false") or is_number(value) or (value == "null" and usual.get(key))):
            raise UserError(f"{key}={value}: give the name of one{nearest(value, options(key, config_dir)) or f' (`sslt list {key}`)'}")
        if config_dir:
            for option in value.strip("[]").split(","):
                _check_files(Path(config_dir).expanduser(), key.partition("@")[0], option.strip(), set())


def _check_files(folder: Path, group: str, option: str, seen: set[str]) -> None:
    """Raise `UserError` where the YAML of an option in a user's folder, or one that its defaults name, cannot be built."""
    name = f"{group.strip('/')}/{option.removesuffix('.yaml')}"
    path = folder / f"{name}.yaml"
    if name in seen or "\0" in name or len(name) > 200 or not os.path.lexists(path):
        return
    seen.add(name)
    for item in stored.yaml_object(path, aliases=True).get("defaults") or ():
        if isinstance(item, str):
            inner, _, chosen = item.partition("@")[0].rpartition("/")
            _check_files(folder, inner if item.startswith("/") else f"{group}/{inner}", chosen, seen)
        for key, value in item.items() if isinstance(item, dict) else ():
            inner = str(key).split()[-1].partition("@")[0]
            for chosen in value if isinstance(value, list) else [value]:
                _check_files(folder, inner if inner.startswith("/") else f"{group}/{inner}", str(chosen), seen)


def fit_recipe(verb: str, overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Overrides that fit a recipe's values to what was chosen in place of its own parts, before those that were given.

    A recipe (`+task=`, `+target=`) sets values of its parts: a rate of its optimizer, a crop of its views. Where another option of the
    group is chosen, values that this one does not take are left out, and an optimizer has its own, since a rate of AdamW is none of LARS.
    """
    given = {o.partition("=")[0]: o.partition("=")[2] for o in overrides}
    usual = default_options(verb)
    out = []
    for kind in ("task", "target"):
        for directory in _dirs(config_dir):
            path = directory / kind / f"{given.get(f'+{kind}')}.yaml"
            if not path.is_file():
                continue
            recipe = _load(path)
            named = {str(k): v for item in recipe.get("defaults", []) if isinstance(item, dict) for k, v in item.items()}
            parts = usual | {k.removeprefix("override /"): v for k, v in named.items()}
            for group, values in recipe.items():
                option = given.get(group, "")
                if not isinstance(values, dict) or not option or parts.get(group) == option:
                    continue
                if "," in option:
                    if group == "optimizer" and "optimizer.lr" not in given:
                        raise UserError(
                            f"{group}={option}: {path.stem} sets a rate for one of them only, so run each with a rate of its own"
                        )
                    continue
                own = own_values(group, option, config_dir)
                if not own:  # there is no such option, which composing says
                    continue
                for key in values:
                    if key not in own:
                        out.append(f"~{group}.{key}")
                    elif group == "optimizer":
                        out.append(f"{group}.{key}={written(own[key])}")
    return [o for o in dict.fromkeys(out) if o not in overrides]


def completed(verb: str, overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Overrides as Hydra is to have them: what a recipe's values come to with what was chosen, then those that were given."""
    overrides = to_measure(verb, overrides, config_dir)
    overrides = [_of_several(o) for o in overrides] if verb == "bench" else overrides
    return [*fit_recipe(verb, overrides, config_dir), *overrides]


def _of_several(override: str) -> str:
    """`from=RUN,RUN2` or `from=[RUN,RUN2]` as one text, which is no sweep: runs side by side are what it is for."""
    value = override.removeprefix("from=")
    if value == override or "," not in value or value[0] in "'\"":
        return override
    return f"from={written(value[1:-1] if value[0] == '[' and value[-1] == ']' else value)}"


def to_measure(verb: str, overrides: list[str], config_dir: str | None = None) -> list[str]:
    """Overrides of `sslt evaluate` in which `+target=` stands for the data and the objective that the recipe names: nothing is trained."""
    if verb != "evaluate":
        return overrides
    overrides = [o.removeprefix("+") if o.startswith("+objective=") else o for o in overrides]  # as +target= is written
    given = {o.partition("=")[0]: o.partition("=")[2] for o in overrides}
    wanted = given.get("+target")
    if wanted is None:
        return overrides
    if wanted not in options("target", config_dir):
        raise UserError(f"+target={wanted}: there is no such target{nearest(wanted, options('target', config_dir))}")
    recipe = next(_load(p) for d in reversed(_dirs(config_dir)) if (p := d / "target" / f"{wanted}.yaml").is_file())
    named = {str(k): v for item in recipe.get("defaults", []) if isinstance(item, dict) for k, v in item.items()}
    parts = {group: named[f"override /{group}"] for group in ("data", "objective") if named.get(f"override /{group}")}
    made = [f"{group}={option}" for group, option in parts.items() if group not in given]
    made += [f"{group}.{k}={written(v)}" for group in ("data", "objective") for k, v in (recipe.get(group) or {}).items() if group in parts]
    return [*made, *(o for o in overrides if not o.startswith("+target="))]


def written(value: Any) -> str:
    """A plain value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return "[" + ",".join(written(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{written(v)}" for k, v in value.items()) + "}"
    text = str(value)
    if _BARE.fullmatch(text) and not is_number(text) and text.lower() not in ("null", "true", "false"):
        return text
    return "'" + re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'") + "'"  # a backslash stands for itself elsewhere


# -------------------------------------------------------------------- commands to type
def command(*words: str) -> str:
    """`sslt` with these arguments, as a shell reads it."""
    return " ".join(["sslt", *(quoted(word) for word in words)])


def quoted(word: str) -> str:
    """One argument, as a shell reads it."""
    plain = shlex.quote(word)
    return f'"{word}"' if plain != word and "'" in word and not set(word) & set('"$`\\!') else plain


def starting(*folders: Any) -> str:
    """`from=` these runs, in Hydra's override grammar: one argument of `command`."""
    bare = all(written(str(folder)) == str(folder) for folder in folders)
    text = ",".join(map(str, folders))
    return f"from={text if bare else written(text)}"
