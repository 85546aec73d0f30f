"""What can be named on the command line, read from the config folders as plain files.

Help, lists, completion and error messages use this; it imports neither Hydra nor OmegaConf, so that they cost nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def _dirs(config_dir: str | None) -> list[Path]:
    return [CONFIG_DIR, *([Path(config_dir).expanduser()] if config_dir else [])]


def names(config_dir: str | None = None) -> list[str]:
    """The config groups: data, encoder, task, …"""
    return sorted({p.name for d in _dirs(config_dir) if d.is_dir() for p in d.iterdir() if p.is_dir() and p.name[0] not in "._"})


def options(group: str, config_dir: str | None = None) -> dict[str, str]:
    """option → its one-line description (the first comment of its file); a user's own come last."""
    found: dict[str, str] = {}
    for directory in _dirs(config_dir):
        for path in sorted((directory / group).glob("*.yaml")):
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


def top_level_keys(verb: str) -> set[str]:
    """Every key a verb reads: those of its own YAML, of those it includes, and the groups it chooses from."""
    keys: set[str] = set()
    todo = [CONFIG_DIR / f"{verb}.yaml"]
    while todo:
        content = _load(todo.pop())
        for item in content.pop("defaults", []):
            if isinstance(item, str) and item != "_self_":
                todo.append(CONFIG_DIR / f"{item}.yaml")
            elif isinstance(item, dict):
                keys |= {str(k).removeprefix("optional ").removeprefix("override ").strip("/") for k in item}
        keys |= set(content)
    return keys - {"hydra"}


def plain_values(verb: str) -> dict[str, bool | int | float]:
    """A verb's own numbers and switches with their defaults."""
    found = {}
    for name in (verb, "common"):
        path = CONFIG_DIR / f"{name}.yaml"
        if path.exists():
            found.update({k: v for k, v in _load(path).items() if isinstance(v, (bool, int, float))})
    return found


def keys_of(path: str, config_dir: str | None = None) -> set[str]:
    """The keys any option of the group at the head of a dotted path has there (`optimizer` → lr, weight_decay, …)."""
    group, *rest = path.split(".")
    keys: set[str] = set()
    for directory in _dirs(config_dir):
        files = [*(directory / group).glob("*.yaml"), *directory.glob("*.yaml")]
        for file in files:
            node: Any = _load(file)
            for part in rest if file.parent.name == group else [group, *rest]:
                node = node.get(part) if isinstance(node, dict) else None
            if isinstance(node, dict):
                keys |= {str(k) for k in node}
    return keys - {"_target_", "defaults"}
