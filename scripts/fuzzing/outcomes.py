"""How a case ended, and which of these are defects."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from fuzzing.case import Case, command

GOOD = ("ok", "user error", "interrupted")
# Of these "not made" is a defect of the fuzzer itself.
BAD = ("EXECUTED", "traceback", "exit 1", "hang", "crash", "bad message", "not made")
LINES, LETTERS = 3, 600  # of a message that somebody reads


@dataclasses.dataclass
class Result:
    """One case and how it ended. cause: what cases of the same root have in common, as well as that can be told."""

    name: str
    outcome: str
    cause: str
    code: int | None
    seconds: float
    cpu: float
    argv: list[str]
    typed: str
    made: str
    message: str
    told: list[str]

    @property
    def bad(self) -> bool:
        return self.outcome in BAD


def judge(name: str, case: Case, code: int | None, seconds: float, cpu: float, told: list[str], out: str, err: str, stack: str) -> Result:
    """The outcome of a case.

    code: None where it was killed for its time. seconds, cpu: on the clock, and of processors. told: what the watch and the comparison
    of files say. stack: where one that hangs stood, or the traceback behind an exit code of 1.
    """
    message = said(err)
    outcome, cause = _outcome(case, code, told, out, err, stack, message)
    shown = message if outcome in GOOD or (message and "Traceback" not in err) else err[-4000:]
    shown = f"{shown}\n{stack[-3000:]}" if code in (None, 1) else shown
    return Result(
        name,
        outcome,
        cause,
        code,
        round(seconds, 2),
        round(cpu, 2),
        case.argv,
        shlex.join(command(case)),
        case.made,
        shown[:6000],
        told[:20],
    )


def not_made(name: str, trace: str) -> Result:
    """A case whose files could not be made."""
    return Result(name, "not made", _last_frame(trace), None, 0.0, 0.0, [], "", "", trace[-3000:], [])


def said(err: str) -> str:
    """The message: from the first line that sslt begins with its name to the end."""
    lines = err.rstrip().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("sslt:")), None)
    return "" if first is None else "\n".join(lines[first:])


def _outcome(case: Case, code: int | None, told: list[str], out: str, err: str, stack: str, message: str) -> tuple[str, str]:
    if told:
        return "EXECUTED", told[0]
    asked = any(a.lower() in ("debug=true", "debug=1") for a in case.argv) or "SSLT_DEBUG" in case.env
    if code is None:
        return "hang", _innermost(stack)
    if "Traceback (most recent call last)" in err + out and not asked:
        return "traceback", _last_frame(err if "Traceback" in err else out)
    if code < 0:
        return "crash", f"signal {-code}: {_innermost(stack or err)}"
    if code in (0, 130):
        return ("ok" if code == 0 else "interrupted"), ""
    if code != 2:
        if "Traceback" in stack:
            return "exit 1", _last_frame(stack)
        return "exit 1", f"exit {code}: {_shape(message.splitlines()[0]) if message else 'no message'}"
    if fault := fault_of(message):
        return "bad message", f"{fault}: {_shape(message.splitlines()[0]) if message else _shape(err[-300:])}"
    return "user error", ""


def fault_of(message: str) -> str | None:
    """What is wrong with the message of a mistake, if anything is."""
    if not message.removeprefix("sslt:").strip():
        return "no message"
    if re.search(r"weights_only(?!=True)", message):
        return "advises to load code"
    if len(message.splitlines()) > LINES:
        return f"more than {LINES} lines"
    if len(message) > LETTERS:
        return f"more than {LETTERS} letters"
    if re.search(r"sslt: (?:\w+: )?$", message.splitlines()[0]):
        return "says nothing"
    return None


def _shape(line: str) -> str:
    """A message without what differs from case to case; where it came from, if it says so."""
    if where := re.search(r"sslt: (\w+): .*\((\S+\.\w+:\d+)\)$", line):
        return f"{where[1]} ({where[2]})"
    return re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S+|\d+", "…", line)[:100]


def _innermost(stack: str) -> str:
    """The innermost two places of sslt and of anything in a stack that faulthandler wrote (innermost first)."""
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack)
    ours = [f for f in frames if "/sslt/" in f[0]]
    return " < ".join(f"{path.rpartition('/')[2]}:{line} {name}" for path, line, name in [*frames[:1], *ours[:1]]) or "unknown"


def _last_frame(text: str) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    last = next((line for line in reversed(text.rstrip().splitlines()) if re.match(r"[A-Za-z][\w.]*(:|$)", line)), "")
    ours = [f for f in frames if "/sslt/" in f[0]]
    return f"{last.partition(':')[0]} at " + " < ".join(f"{p.rpartition('/')[2]}:{n} {f}" for p, n, f in [*frames[-1:], *ours[-1:]])


def summary(results: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of a table: how many cases of each kind ended how."""
    kinds = sorted({r["name"].partition("-")[0] for r in results})
    rows = []
    for kind in kinds:
        own = [r["outcome"] for r in results if r["name"].startswith(f"{kind}-")]
        rows.append([kind, str(len(own)), *(str(own.count(o)) for o in (*GOOD, *BAD))])
    return rows


def by_cause(results: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(outcome, cause, cases) of everything bad, worst first, then by how often."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in results:
        if r["outcome"] in BAD:
            groups.setdefault((r["outcome"], r["cause"]), []).append(r)
    order = sorted(groups.items(), key=lambda item: (BAD.index(item[0][0]), -len(item[1])))
    return [(outcome, cause, found) for (outcome, cause), found in order]
