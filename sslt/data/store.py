"""Where files are that other machines see too: a folder at a URL that fsspec knows (s3://bucket/prefix, gs://, memory://, …).

What fails for a moment (a connection that is cut, an answer of 503) is tried again, ever later; what does not is one `UserError`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sslt.errors import UserError

log = logging.getLogger("sslt")

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 16.0  # seconds; each wait is twice the one before
T = TypeVar("T")


def is_url(path: object) -> bool:
    """Whether a path is a place that fsspec opens rather than a folder of this machine."""
    return "://" in str(path)


class Store:
    """Files below `url`, by name. Credentials and endpoints are the library's own: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.config/fsspec.

    Raises `UserError` where a file cannot be read or written after `TRIES`, or where no library for the URL is installed.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    @functools.cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the place of `url` in it."""
        protocol = self.url.split("://")[0]
        try:
            import fsspec

            for name in ("botocore", "aiobotocore"):  # they tell where they found credentials
                logging.getLogger(name).setLevel(logging.WARNING)
            fs, root = fsspec.core.url_to_fs(self.url, **_OPTIONS.get(protocol, {}))
            fs.retries = 1  # of s3fs; others do not read it
            return fs, root
        except ImportError as e:
            raise UserError(f"{self.url} cannot be opened ({_first_line(e)}): pip install 'sslt[store]'") from e
        except Exception as e:
            raise UserError(f"{self.url} cannot be opened ({_first_line(e)}): give a URL such as s3://bucket/folder") from e

    def where(self, name: str) -> str:
        """The URL of a file."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """A small file's bytes; None where there is none."""
        try:
            return self._tried("read", name, lambda fs, path: fs.cat_file(path))
        except FileNotFoundError:
            return None

    def read_part(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a file from `start` on. Raises `FileNotFoundError` where there is none."""

        def part(fs: Any, path: str) -> bytes:
            found = fs.cat_file(path, start=start, end=start + size)
            if len(found) != size:
                raise OSError(f"{len(found)} of {size} bytes came")
            return found

        return self._tried("read", name, part)

    def get(self, name: str, file: Path) -> None:
        """Copy a file to this machine. Raises `FileNotFoundError` where there is none."""
        self._tried("read", name, lambda fs, path: fs.get_file(path, str(file)))

    def put(self, file: Path, name: str) -> None:
        """Copy a file of this machine there. Raises `UserError` where there is no bucket or folder to write into."""
        self._tried("write", name, lambda fs, path: fs.put_file(str(file), path))

    def about(self, name: str) -> dict[str, Any]:
        """What the store tells of a file, its `size` among it. Raises `FileNotFoundError` where there is none."""
        return dict(self._tried("read", name, lambda fs, path: fs.info(path)))

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; none where it is not there."""
        try:
            found = self._tried("list", folder, lambda fs, path: fs.ls(path.rstrip("/"), detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def _tried(self, what: str, name: str, do: Callable[[Any, str], T]) -> T:
        """`do(file system, path)`, tried again where it fails for another reason than that nothing is there or nobody may."""
        fs, root = self._opened
        wait = FIRST_WAIT
        for attempt in range(1, TRIES + 1):
            try:
                return do(fs, f"{root}/{name}")
            except FileNotFoundError as e:
                if what == "write":  # there is no bucket to write into
                    raise UserError(f"{self.where(name)} cannot be written: {_first_line(e)}") from e
                raise
            except Exception as e:  # libraries for object stores have errors of their own, of which only some are OSError
                if isinstance(e, (PermissionError, ImportError)) or type(e).__name__ in _LASTING:
                    raise UserError(f"{self.where(name)} cannot be {_DONE[what]}: {_first_line(e)}") from e
                if attempt == TRIES:
                    raise UserError(f"{self.where(name)} cannot be {_DONE[what]}, tried {TRIES} times: {_first_line(e)}") from e
                if attempt == 1:
                    log.warning("%s: %s; trying again", self.where(name), _first_line(e))
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        raise AssertionError("the last attempt returns or raises")


# Retries are ours, counted and told: botocore would multiply them by its own, silently.
_OPTIONS: dict[str, dict[str, Any]] = {
    "file": {"auto_mkdir": True},
    "s3": {"use_listings_cache": False, "config_kwargs": {"retries": {"total_max_attempts": 1}}},
}
_DONE = {"read": "read", "write": "written", "list": "listed"}
_LASTING = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [""])[0][:200] or type(e).__name__
