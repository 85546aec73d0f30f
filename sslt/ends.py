"""How ranks end: each leaves a line in `logs/rankR.json` of the run folder, by which one thing is told of all of them.

A rank that is killed leaves none; who started it has its exit code. Ranks of other machines are known by their files alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sslt import groups, signals
from sslt.errors import INTERRUPTED, MISTAKE, RankLost, UserError
from sslt.runs import Run, display, read_json, write_json

LEFT_ALONE = 3  # exit code of a rank that ended only because another did
_PATIENCE = 5.0  # seconds for a rank to fail by itself, when another has
_STOPS = (signal.SIGTERM, signal.SIGINT)  # what a starter ends the other ranks by


def file_of(run: Run, rank: int) -> Path:
    return run / "logs" / f"rank{rank}.json"


def forget(run: Run) -> None:
    """Remove what ranks of an earlier start, or of this one when it is over, have left."""
    for path in (run / "logs").glob("rank*.json"):
        path.unlink(missing_ok=True)


def note(run: Run, rank: int, **what: Any) -> None:
    """Leave a line, and where this is: a rank's pid while it works, code, said and signal when it ends.

    Where the disk is full, what is known of that has no room in a file beside the one of the start, but mostly in its place.
    """
    if "GROUP_RANK" in os.environ:
        what |= {"node": int(os.environ["GROUP_RANK"]), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        try:
            write_json(file_of(run, rank), what)
        except OSError:
            with file_of(run, rank).open("r+b", buffering=0) as f:
                f.write(json.dumps(what).encode())
                f.truncate()


def records(run: Run, ranks: range) -> dict[int, dict[str, Any]]:
    """What there is of each rank; {} of one that has left nothing."""
    found = {}
    for rank in ranks:
        try:
            found[rank] = read_json(file_of(run, rank))
        except UserError:
            found[rank] = {}
    return found


class Unconnected(RankLost):
    """Ranks have ended because others did not answer, and none of those has said why."""


def verdict(run: Run, world: int, codes: Mapping[int, int], came: int | None = None, node: int = 0) -> BaseException | None:
    """What to say of ranks that have ended; None where all did what they should.

    codes: exit codes by rank, first to end first, of those whose starter tells. came: a signal that ended all. node: who says it.
    """
    left = records(run, range(world))
    ended = {r: int(found["code"]) for r, found in left.items() if "code" in found}
    said = {r: str(found.get("said") or "") for r, found in left.items()}
    ways = {**{r: c for r, c in codes.items() if r not in ended}, **ended}
    if (r := next((r for r, code in ways.items() if code == MISTAKE and said[r]), None)) is not None:
        return UserError(said[r])
    killed = [r for r, code in ways.items() if code < 0 and not (came and -code in (*_STOPS, signal.SIGKILL, came))]
    failed = [r for r, code in ways.items() if code > 0 and code not in (LEFT_ALONE, INTERRUPTED)]
    name = {r: f"rank {r}{_place(left[r], node)}" for r in left}
    first = [r for r in killed if -ways[r] not in _STOPS] or ([] if failed or INTERRUPTED in ways.values() else killed)
    if first:
        return RankLost(f"{name[first[0]]} was {signals.ended_by(-ways[first[0]])}; {_way(run, first[0])}")
    if failed:
        r = failed[0]
        return RankLost(f"{name[r]} ended with code {ways[r]}{f' ({said[r]})' if said[r] else ''}; {_way(run, r)}")
    if stopped := [r for r, code in ways.items() if code == INTERRUPTED]:
        r = next((r for r in stopped if left[r].get("signal")), stopped[0])
        return signals.Ended(said[min(stopped)], came or left[r].get("signal"))
    if came is not None and (any(code != 0 for code in ways.values()) or len(ways) < world):
        return signals.Stopped(came)
    if alone := [r for r, code in ways.items() if code == LEFT_ALONE]:
        if missed := [r for r in alone if "silent" in left[r]]:
            r = next((r for r in missed if not _place(left[r], node)), missed[0])
            return RankLost(said[r])
        gone = [r for r in left if r not in ways]
        if gone:
            which = name[gone[0]] if len(gone) == 1 else f"{name[gone[0]]} and {len(gone) - 1} more"
            said_so = f"the connection to {which} was lost, which was killed, or its machine or network is gone"
            return Unconnected(f"{said_so}; {_way(run, gone[0])}")
        others = sorted({f"node {left[r]['node']} ({left[r].get('host')})" for r in alone if left[r].get("node", node) != node})
        what = f"{', '.join(others)}: the network is gone" if others else "another, whose machine or network may be gone"
        r = next((r for r in alone if not _place(left[r], node)), alone[0])
        return Unconnected(f"{name[r]} lost the connection to {what}; {_way(run, r)}")
    return None


def note_silent(run: Run, node: int, seconds: float) -> str:
    """Leave a line of a rank that ends because a machine has not answered for so long; returns what it says."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    there = {r: found for r, found in records(run, range(world)).items() if found.get("node") == node}
    host = next((f" ({found['host']})" for found in there.values() if "host" in found), "")
    what = f"node {node}{host} has not answered for {seconds:g} s: it is gone, or the network"
    text = f"{what}; {_way(run, min(there, default=rank))}"
    note(run, rank, code=LEFT_ALONE, said=text, silent=node)
    return text


def _place(found: Mapping[str, Any], node: int) -> str:
    """Where a rank is by its line, unless it is on `node`."""
    return f" on node {found['node']} ({found.get('host')})" if found.get("node", node) != node else ""


def _way(run: Run, rank: int) -> str:
    path = run / "logs" / f"rank{rank}.log"
    log = display(path if path.exists() else run / "logs" / "sslt.log")
    return f"see {log}; go on with: {groups.command(str(run.info.get('verb')), f'resume={run}')}"


def settled(
    run: Run, world: int, codes: Mapping[int, int], came: int | None = None, node: int = 0, patience: float = _PATIENCE
) -> BaseException | None:
    """The verdict; where it is that ranks did not answer, files of other machines are waited for, which may be written a little later."""
    until = time.monotonic() + patience
    while isinstance(found := verdict(run, world, codes, came, node), Unconnected) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def watch_others(run: Run, near: range, own: int) -> None:
    """End this rank, whatever it waits for or computes, soon after its starter is gone or another of `near`, those of this machine.

    In a thread of its own.
    """
    parent = os.getppid()

    def watch() -> None:
        while True:
            time.sleep(1.0)
            if os.getppid() != parent:
                os.write(1, b"sslt: who started this rank is gone\n")
                os._exit(LEFT_ALONE)
            if any(_gone(found) for r, found in records(run, near).items() if r != own):
                time.sleep(_PATIENCE)
                note(run, own, code=LEFT_ALONE, said="another rank is gone")
                os._exit(LEFT_ALONE)

    threading.Thread(target=watch, daemon=True).start()


def _gone(found: dict[str, Any]) -> bool:
    """Whether a rank ended otherwise than well."""
    if "code" in found:
        return found["code"] not in (0, INTERRUPTED)
    try:
        os.kill(int(found.get("pid", os.getpid())), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
