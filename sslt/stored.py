"""Reading small files that somebody else may have written: run folders, encoder folders, heads, YAMLs.

They are data. What is no regular file (a pipe, a device) is refused before it is opened, since reading one may never end; what
is too large, too deep or built of YAML aliases is refused before it is built. Every refusal names the file.
"""

from __future__ import annotations

import contextlib
import json
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sslt.errors import UserError

LARGEST = 64 << 20  # bytes of a JSON or text file; a tokenizer of 250,000 words has 17 MB
LARGEST_YAML = 1 << 20
LARGEST_EXPANDED = 100_000  # values
DEEPEST = 100  # levels of nesting
T = TypeVar("T")


def shown(path: Path) -> str:
    """A path as a user would type it: relative when it is below the working folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError, RuntimeError):
        return str(path)


def is_file(path: Path) -> bool:
    """Whether there is a regular file; a path that cannot be one (too long, links in a circle, no permission) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def require_regular(path: Path) -> None:
    """Raise `UserError` unless `path` is a regular file, and `FileNotFoundError` where nothing is."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RuntimeError) as e:
        raise UserError(f"{shown(path)} cannot be read: {_reason(e)}") from e
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{shown(path)} is {kind}, where a file is expected")


def is_folder(path: Path) -> bool:
    """Whether there is a folder; a path that cannot be one is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def located(typed: str | Path) -> Path:
    """The path that a user typed, ~ written out. Raises `UserError` for what cannot be looked at: too long, a circle of links, locked."""
    try:
        found = Path(typed).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.stat()
        return found
    except (OSError, ValueError, RuntimeError) as e:
        text = str(typed)
        named = text if len(text) <= 100 else f"{text[:60]}… ({len(text):,} characters)"
        raise UserError(f"{named}: cannot be read ({_reason(e)})") from e


def require_small(path: Path, largest: int = LARGEST) -> None:
    """Raise `UserError` unless `path` is a regular file of at most `largest` bytes."""
    require_regular(path)
    if (size := path.stat().st_size) > largest:
        raise UserError(f"{shown(path)} is damaged or not what its name says: it has {size:,} bytes, more than {largest:,}")


def require_plain(folder: Path) -> None:
    """Raise `UserError` unless a library can read any file of a folder: all are regular, and those of text are small."""
    for path in sorted(folder.iterdir()):
        if not is_folder(path):
            require_there(path)
        if path.suffix in (".json", ".txt", ".jinja"):
            require_small(path)


def require_there(path: Path) -> None:
    """Raise `UserError` unless there is a regular file."""
    try:
        require_regular(path)
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing: copy the whole folder again") from None


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Around what a library makes of the file `path`: an error in there is a fault of that file, and becomes a `UserError`."""
    try:
        yield
    except (UserError, ModuleNotFoundError):  # the latter says which package is lacking
        raise
    except Exception as e:
        raise UserError(f"{shown(path)} describes nothing that can be built: {type(e).__name__}: {first_line(e)}") from e
    except BaseException as e:
        if type(e).__name__ != "PanicException":  # of libraries in Rust
            raise
        raise UserError(f"{shown(path)} cannot be read: {first_line(e)}") from e


def text(path: Path, largest: int = LARGEST) -> str:
    """The UTF-8 text of a file. Raises `UserError` where it is no readable text, `FileNotFoundError` where nothing is."""
    require_small(path, largest)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{shown(path)} is damaged: it is not UTF-8 text ({e.reason} at byte {e.start})") from e
    except OSError as e:
        raise UserError(f"{shown(path)} cannot be read: {_reason(e)}") from e


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` where it is none, `FileNotFoundError` where nothing is."""
    try:
        found = json.loads(text(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{shown(path)} is damaged ({first_line(e)}): copy it again, or move its folder away") from e
    if not isinstance(found, dict):
        raise UserError(f"{shown(path)} is damaged (it holds {type(found).__name__}, not an object): copy it again")
    return found


_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


def value(found: dict[str, Any], key: str, kind: type[T], path: Path) -> T:
    """What the object read from `path` has under `key`. Raises `UserError` where that is missing or of another kind."""
    got = found.get(key)
    if not isinstance(got, kind) or (isinstance(got, bool) and kind is not bool):
        is_ = f"is {reprlib.repr(got)}" if key in found else "is missing"
        raise UserError(f"{shown(path)} is damaged: '{key}' {is_}, where {_NAMES.get(kind, kind.__name__)} is expected")
    return got


def yaml_object(path: Path, aliases: bool = False) -> dict[str, Any]:
    """The mapping in a YAML file as plain data, numbers as OmegaConf reads them; {} of an empty one.

    aliases: whether it may have some, as long as they stand for no more than `LARGEST_EXPANDED` values. sslt never writes any.
    Raises `UserError` for one that is none or nests deeper than `DEEPEST`; `FileNotFoundError` where nothing is.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    content = yaml_text(path, aliases)
    try:
        found = OmegaConf.to_container(OmegaConf.create(content)) if content.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AttributeError, TypeError, AssertionError, RecursionError) as e:
        raise UserError(f"{shown(path)} is damaged ({first_line(e)})") from e
    if not isinstance(found, dict):
        raise UserError(f"{shown(path)} is damaged (it holds {type(found).__name__}, not a mapping)")
    return {str(k): v for k, v in found.items()}


def yaml_text(path: Path, aliases: bool = False) -> str:
    """The text of a YAML file that can be built: one of bounded size and depth, without aliases or with few. Raises as `yaml_object`."""
    import yaml

    content = text(path, LARGEST_YAML)
    depth = 0
    try:
        for event in yaml.parse(content, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) and not aliases:
                raise UserError(f"{shown(path)} has a YAML alias (*{event.anchor}), which sslt never writes: the file was changed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError(f"{shown(path)} is nested more than {DEEPEST} deep: the file was changed")
        if aliases and _expanded(yaml.compose(content, Loader=yaml.SafeLoader), {}) > LARGEST_EXPANDED:
            raise UserError(f"{shown(path)}: its YAML aliases stand for more than {LARGEST_EXPANDED:,} values")
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as e:
        raise UserError(f"{shown(path)} is damaged ({first_line(e)})") from e
    return content


def _expanded(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node stands for, aliases written out."""
    if id(node) not in known:
        inner = getattr(node, "value", None)
        parts = [x for item in inner for x in (item if isinstance(item, tuple) else (item,))] if isinstance(inner, list) else []
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def _reason(e: BaseException) -> str:
    return getattr(e, "strerror", None) or first_line(e)


def first_line(e: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters; its name where it says nothing."""
    lines = [line for line in str(e).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else type(e).__name__


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: JSON can escape half a character (a lone surrogate), which no file and no tokenizer takes."""
    if text.isascii():
        return True
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
