"""Makes Hydra know our sweepers.

Hydra takes sweepers from the package `hydra_plugins` alone, all of which it imports whenever it starts. Ours are registered under
such a name when a sweep begins, and no other command pays for them.
"""

from __future__ import annotations

import importlib.util

from hydra.core.plugins import Plugins

from sslt.errors import UserError
from sslt.sweeps.search import Search
from sslt.sweeps.sweeper import Command, Grid, current


def register(command: Command) -> None:
    """The next sweep of this process is that of `command`."""
    current[:] = [command]
    for kind in (Grid, Search):
        Plugins.instance().class_name_to_class[f"hydra_plugins.sslt.{kind.__name__}"] = kind


def check_installed(overrides: list[str]) -> None:
    """Raise `UserError` for a launcher that comes in a package that is not there."""
    for override in overrides:
        key, _, name = override.partition("=")
        package = f"hydra_{name.partition('_')[0]}_launcher"
        if key != "hydra/launcher" or name not in ("joblib", "submitit_local", "submitit_slurm"):
            continue
        if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            raise UserError(f"{override} needs the package {package.replace('_', '-')}: pip install 'sslt[sweep]'")
