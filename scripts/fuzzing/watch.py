"""What a process does that hostile content could have asked for, by Python's audit events: code run, programs started, files written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from fuzzing.case import Place, inside

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,),
            "os.truncate": (0,),
            "os.chmod": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1)}  # fmt: skip
_FOLLOWS = ("open", "os.truncate", "os.chmod")  # a link to what it leads to; others change the link itself
_PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}
_OURS = ("uname", "ldconfig", "gcc", "/sbin/ldconfig")  # what platform and ctypes ask when they are asked who they are
_OF_WANDB = ("git", "wandb-core")  # what it asks about the working folder, and its own service
_PUBLISHED = "https://download.pytorch.org/models/"  # torchvision's weights, asked for by the name of a model
_PICKLED = {"os", "posix", "nt", "subprocess", "pty", "runpy", "webbrowser", "code", "timeit"}


def watch(place: Place, tell: Callable[[str], None]) -> Callable[[], None]:
    """Report, from now on, what reaches out of the case's folder; gives what ends that. Reports are single lines."""
    free = (place.work, place.cache, place.home, place.tmp, place.root / "defect")  # the last is the runner's
    devices = ("/dev/null", "/dev/tty", "/proc/self", f"/proc/{os.getpid()}")
    on = [True]

    def written(path: Any, event: str) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return
        whole = os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))
        if event in _FOLLOWS and os.path.islink(whole):
            whole = os.path.realpath(whole)
        if not any(inside(whole, folder) for folder in free) and not whole.startswith(devices):
            tell(f"wrote {whole}")

    def opened(args: tuple) -> None:
        if isinstance(args[2], int) and args[2] & _WRITES:
            written(args[0], "open")

    def ran(args: tuple) -> None:
        name = getattr(args[0], "co_filename", "")
        if isinstance(name, str) and inside(os.path.realpath(name) if os.sep in name else name, place.root):
            tell(f"ran {name}")

    def hook(event: str, args: tuple) -> None:
        if not on[0]:
            return
        on[0] = False  # what a report does itself is nobody else's
        try:
            if event == "open":
                opened(args)
            elif event == "exec":
                ran(args)
            elif event in _CHANGES:
                if not any(isinstance(a, int) and a != -1 for a in args[1:]):  # relative to an open folder, of which there was an event
                    for i in _CHANGES[event]:
                        written(args[i], event)
            elif event in _PROGRAMS:
                ours = _OURS + (_OF_WANDB if "wandb" in sys.modules else ())
                if not (words := str(args)[:200]).count("sslt.worker") and not str(args[0]).endswith(ours):
                    tell(f"started a program: {event} {words}")
            elif event == "pickle.find_class":
                if args[0] in _PICKLED or (args[0] == "builtins" and args[1] in ("eval", "exec", "open", "getattr", "__import__")):
                    tell(f"unpickled {args[0]}.{args[1]}")
            elif event == "urllib.Request":
                if not str(args[0]).startswith(_PUBLISHED):
                    tell(f"{event} {str(args[0])[:200]}")
            elif event == "ctypes.dlopen" and inside(str(args[0]), place.root):
                tell(f"{event} {str(args[0])[:200]}")
        except (OSError, ValueError, IndexError):
            pass  # what cannot be resolved will fail for the command as well
        finally:
            on[0] = True

    sys.addaudithook(hook)

    def end() -> None:
        on[0] = False

    return end
