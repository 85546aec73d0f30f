"""Data files as anybody may have made them: what is no file, is damaged, unpacks without end or leads in a circle is refused by name."""

from __future__ import annotations

import contextlib
import csv
import fnmatch
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from sslt import stored
from sslt.errors import UserError

LONGEST_LINE = 1 << 26  # characters
UNPACKED = 1 << 28  # bytes that any packed file may come to,
RATIO = 200  # and how many times its own size a larger one may; text and pictures pack to a tenth
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def printable(name: str) -> str:
    """A file's name as UTF-8 can hold it: bytes of another encoding as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong in reading `path`, a regular file, into a `UserError` that names it; anything else is refused unopened."""
    with damage(path):
        stored.require_regular(path)
        yield


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn whatever a library raises over the content of `path` into a `UserError` that names it. For calls of libraries only."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as e:
        found = f"byte 0x{e.object[e.start]:02x}"
        raise UserError(f"{path}: not UTF-8 ({found}); convert it, for instance with iconv -t UTF-8") from None
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{path}: damaged or cut short ({reason(e)})") from None
    except (csv.Error, OSError) as e:
        raise UserError(f"{path}: cannot be read ({reason(e)})") from None
    except MemoryError as e:
        raise UserError(f"{path}: damaged, or too large for this machine's memory") from e
    except Exception as e:  # parsers meet damaged files with nearly every exception there is
        raise UserError(f"{path}: damaged, or not what its name says ({reason(e)})") from e


def reason(e: BaseException) -> str:
    """What an exception says, in one line without the path, which the message has already."""
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    return str(text).strip().splitlines()[0][:200]


# Packed files and lines -----------------------------------------------------------------------------------------------


def suffix(path: Path) -> str:
    """The suffix that tells the format: that of `a.tsv.xz` is `.tsv`."""
    return (path.with_suffix("") if is_packed(path) else path).suffix.lower()


def is_packed(path: Path) -> bool:
    """Whether `open_binary` unpacks it."""
    return path.suffix.lower() in _OPENERS


def packed_or_not(file: Path) -> Path | None:
    """`file` or, where it is not there, what it was packed to; None where neither is."""
    return next((f for end in ("", *_OPENERS) if (f := file.with_name(file.name + end)).is_file()), None)


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is .xz or .gz, which ends in a `UserError` where that takes no end."""
    if not is_packed(path):
        return open(path, "rb")
    return io.BufferedReader(_Unpacked(path), 1 << 16)


def open_text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    """The file as UTF-8 text, with or without a byte order mark."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)  # type: ignore[arg-type]


def read_text(path: Path) -> str:
    """A whole file, line ends as newlines. Raises `UserError` where it is missing, damaged or not UTF-8."""
    with reading(path), open_text(path) as f:
        return f.read()


_WINDOWS = {i: found for i in range(0x80, 0xA0) if (found := bytes([i]).decode("cp1252", "ignore"))}


def read_text_or_latin1(path: Path) -> str:
    """A whole file as it is, in UTF-8 or, where it is not, in Latin-1, which takes all bytes; of Windows' quotes and dashes, which Latin-1
    has no signs for, the signs."""
    with reading(path), open_binary(path) as f:
        content = f.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1").translate(_WINDOWS)


def lines(f: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """The lines of `f`. Raises `UserError` for one that is longer than any text, before it fills the memory."""
    number = 0
    while line := f.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and line[-1] != "\n":
            raise UserError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters; is this a file of text?")
        yield line


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file of texts, which newlines alone end: other signs for an end of line stand inside texts."""
    with reading(path), open_text(path, newline="\n") as f:
        for line in lines(f, path):
            yield line.rstrip("\r\n")


def check_unpacked(path: Path, packed: int, unpacked: int) -> None:
    """Raise `UserError` where `packed` bytes of `path` come to more `unpacked` ones than those of real data do."""
    if unpacked > max(UNPACKED, RATIO * packed):
        most = max(UNPACKED, RATIO * packed)
        raise UserError(f"{path}: its {packed:,} bytes unpack to more than {most:,}, as those of no data do; unpack it yourself to use it")


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, counted."""

    def __init__(self, path: Path):
        self.path, self.packed, self.count = path, path.stat().st_size, 0
        self.inner: IO[bytes] = _OPENERS[path.suffix.lower()](path, "rb")  # type: ignore[operator]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[override]
        n = self.inner.readinto(buffer)  # type: ignore[attr-defined]
        self.count += n
        check_unpacked(self.path, self.packed, self.count)
        return n

    def close(self) -> None:
        self.inner.close()
        super().close()


# Many files -----------------------------------------------------------------------------------------------------------


def walk(folder: Path) -> Iterator[Path]:
    """Visible files (whatever is no folder) at any depth below `folder`, through links to folders elsewhere.

    Raises `UserError` for a folder that cannot be listed, and for a link back to a folder that is being walked already: every file
    would be found again below it, under other names.
    """
    chains: dict[str, tuple[str, ...]] = {str(folder): (os.path.realpath(folder),)}  # the real folders on the way to each place
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        chain = chains.pop(place)
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in folders:
            inner = os.path.join(place, name)
            real = os.path.realpath(inner)
            if os.path.islink(inner) and any(os.path.join(above, "").startswith(os.path.join(real, "")) for above in chain):
                raise UserError(f"{inner} is a link back to {real}, which it lies in: remove it, or every file counts many times")
            chains[inner] = (*chain, real)
        yield from (Path(place, f) for f in files if not f.startswith("."))


def _refuse_folder(e: OSError) -> None:
    raise UserError(f"{e.filename}: the folder cannot be read ({reason(e)})") from e


def is_pattern(path: Path) -> bool:
    """Whether it stands for any number of files."""
    return glob.has_magic(str(path))


def matching(pattern: Path) -> list[Path]:
    """The files of a glob, sorted; `**` stands for any depth, as in `walk`."""
    parts = pattern.parts
    first = next((i for i, part in enumerate(parts) if part == "**"), None)
    if first is None:
        found = [Path(f) for f in glob.glob(str(pattern))]
    else:
        roots = [Path(p) for p in glob.glob(str(Path(*parts[:first])))] if first else [Path()]
        found = [f for root in roots if root.is_dir() for f in walk(root) if _matches(f.relative_to(root).parts, parts[first:])]
    return sorted(f for f in found if not f.is_dir())


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all(p == "**" for p in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
