"""Makes Hydra know our sweepers.

Hydra takes sweepers from the package `hydra_plugins` alone, all of which it imports whenever it starts. Ours are registered under
such a name when a sweep begins, and no other command pays for them.
"""

from __future__ import annotations

from hydra.core.plugins import Plugins

from sslt.sweeps.search import Search
from sslt.sweeps.sweeper import Command, Grid, current


def register(command: Command) -> None:
    """The next sweep of this process is that of `command`."""
    current[:] = [command]
    for kind in (Grid, Search):
        Plugins.instance().class_name_to_class[f"hydra_plugins.sslt.{kind.__name__}"] = kind
