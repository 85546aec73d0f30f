"""What a process takes of the machine it is on."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def most_resident() -> int:
    """The most bytes that this process has had resident.

    Of Linux by its own status: what `getrusage` says there counts the process that started this one, too.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) << 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
