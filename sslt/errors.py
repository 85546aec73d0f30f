"""The one exception for what a user can mend, and the one way to propose a nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

# exit codes: the user's mistake; saved, and resume= goes on; the same, where a scheduler is to start it again
MISTAKE, INTERRUPTED, AGAIN = 2, 130, 75


class UserError(Exception):
    """A mistake in what the user asked for: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


_LONGEST = 550  # characters of a message


def printable(text: str) -> str:
    """`text` as a message that is read: without control characters, which would write to the terminal by themselves, and not too long.

    What makes one long is a value or a name out of somebody's command or file, so that the middle is left out.
    """
    text = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 250]} … {text[-240:]}"


class RankLost(Exception):
    """A process of a run on several devices ended, by no known mistake of the user's: one line, exit code 1."""


def cause(e: BaseException | None, wanted: Callable[[BaseException], bool]) -> BaseException | None:
    """The first of an error and those that it came from that is `wanted`."""
    seen: set[int] = set()  # a chain may lead back to itself
    while e is not None and id(e) not in seen:
        if wanted(e):
            return e
        seen.add(id(e))
        e = e.__cause__ or e.__context__
    return None


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the valid name closest to `name`, or the list of valid names, or nothing."""
    names = sorted({str(n) for n in names})
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there is: {', '.join(names)}" if 0 < len(names) <= 30 else ""
