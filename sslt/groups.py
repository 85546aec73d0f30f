"""What can be named on the command line, read from the config folders as plain files.

Help, lists, completion and error messages use this; it imports neither Hydra nor OmegaConf, so that they cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Groups of which nothing is chosen by default: written with a + on the command line.
ADDED = ("task", "target", "joint", "shift", "episodes", "test_time", "corruption")

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def _dirs(config_dir: str | None) -> list[Path]:
    return [CONFIG_DIR, *([Path(config_dir).expanduser()] if config_dir else [])]


def names(config_dir: str | None = None) -> list[str]:
    """The config groups: data, encoder, task, …"""
    return sorted({p.name for d in _dirs(config_dir) if d.is_dir() for p in d.iterdir() if p.is_dir() and p.name[0] not in "._"})


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
    with path.open(encoding="utf-8") as f:
        for line in f:
            if line.startswith("#") and "@package" not in line:
                return line.lstrip("# ").rstrip()
            if line.strip() and not line.startswith("#"):
                break
    return ""


def _load(path: Path) -> dict[str, Any]:
    import yaml

    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


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


def plain_values(verb: str) -> dict[str, Any]:
    """A verb's own numbers, switches, lists and nested settings with their defaults; free ones ({}) are left out."""
    free = ("hydra", "defaults", "stages")
    return {
        k: v
        for content in map(_load, own_files(verb))
        for k, v in content.items()
        if isinstance(v, (bool, int, float, list, dict)) and v != {} and k not in free
    }


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
