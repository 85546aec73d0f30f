"""The command line: `sslt VERB [Hydra overrides]`. Errors of the user become one line and exit code 2.

Hydra composes, sweeps and makes the run folder; this file only teaches, routes and prints. It imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sslt import deferred, groups, guide, handing, machine, places
from sslt.errors import INTERRUPTED, RankLost, UserError, nearest, printable
from sslt.stored import is_text

_SHORT = {"-m": "--multirun", "-c": "--cfg", "-cd": "--config-dir", "-p": "--package", "-i": "--info", "-r": "--run"}
_VALUES: dict[str, tuple[str, ...]] = {  # of Hydra's flags, those that mean something here; a flag with values takes one of them
    "--multirun": (),
    "--run": (),
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--resolve": (),
    "--hydra-help": (),
    "--package": ("a.key",),
    "--config-dir": ("DIR",),
}
_SHOWS = ("-h", "--help", "--cfg", "-c", "--info", "-i", "--hydra-help")  # flags of commands that run nothing
_ALONE = ("--multirun", "--run", "--cfg", "--info")  # what Hydra does instead of one run


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the user's mistake, 130 interrupted (resumable), 75 the same and a scheduler is to
    start it again, 1 a defect."""
    if argv is None:  # the process is this command's
        machine.collect_rarely()
        deferred.few_metrics()
    args = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _in_place(args), args)


def _in_place(args: list[str]) -> int:
    """Run a command as the only process, as the first of several that somebody has started for it, or as one of the others."""
    runs_something = args and args[0] in guide.VERBS and not any(a.partition("=")[0] in _SHOWS for a in args)
    place = places.found(args[1:]) if runs_something else None
    place = places.reachable(place) if place else None
    if place is not None and place.index:
        from sslt.following import follow

        return follow(place)
    with handing.leading(place) as codes:
        codes.append(_guarded(lambda: _command(args), args))
    return codes[-1]


def _command(args: list[str]) -> int:
    for a in args:
        if "\0" in a or not is_text(a):
            raise UserError(f"{a[:200]!a} is no UTF-8 text: files with such names have to be renamed or linked to first")
    return _dispatch(args)


def _guarded(command: Callable[[], int], args: list[str]) -> int:
    """The exit code of a command, of which an error becomes a line."""
    try:
        return command()
    except (UserError, RankLost) as e:
        if _debug(args):
            traceback.print_exc()
        print(f"sslt: {printable(str(e))}", file=sys.stderr)
        return 2 if isinstance(e, UserError) else 1
    except KeyboardInterrupt:
        print("sslt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:
        return _defect(e, args)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(guide.overview())
        return 0
    if args[0] in ("-V", "--version"):
        from sslt import __version__

        print(f"sslt {__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb == "list":
        print(guide.listing(rest))
        return 0
    if verb == "completion":
        print(guide.completion_script(rest))
        return 0
    if verb == "__complete":
        print("\n".join(guide.complete(rest)))
        return 0
    if verb not in guide.VERBS:
        raise UserError(f"there is no verb '{verb}'{nearest(verb, [*guide.VERBS, 'list', 'completion'])}")
    if any(a in ("-h", "--help") for a in rest):
        print(guide.verb_help(verb, _config_dir(rest)))
        return 0
    return _hydra(verb, rest)


def _hydra(verb: str, args: list[str]) -> int:
    """Hand a verb over to Hydra."""
    overrides, flags = _split(args)
    config_dir = flags.get("--config-dir")
    if config_dir is not None:
        guide.check_config_dir(config_dir)
    sweep = "--multirun" in flags
    groups.check_choices(verb, overrides, config_dir)
    if verb == "run":
        from sslt.chain import rewrite

        overrides = rewrite(overrides, config_dir, sweep)
    overrides = groups.completed(verb, overrides, config_dir)
    if sweep:
        from sslt.sweeps import folder as sweeps

        typed = [o for o in overrides if not o.startswith("resume=")]
        overrides, known = sweeps.place(verb, overrides, config_dir)
        if not known:
            _refuse_taken(overrides, sweep)
        return _sweep(verb, overrides, typed, flags, config_dir)
    if places.restarted() and "resume" in groups.top_level_keys(verb) and not any(o.lstrip("+").startswith("resume=") for o in overrides):
        overrides = [*overrides, "resume=auto"]
    if any(o.lstrip("+").startswith("resume=") for o in overrides):
        from sslt import resume

        going, overrides = resume.find(verb, overrides, config_dir)
        if going is not None:
            return _go_on(verb, going, flags, config_dir)
    _refuse_taken(overrides, sweep)

    from omegaconf import DictConfig

    from sslt import config

    if "--cfg" in flags:
        config.compose(verb, [o for o in overrides if not o.startswith("hydra.")], config_dir)

    made_by = _made_by(overrides)
    codes: list[int] = []
    errors: list[BaseException] = []

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra_cfg = HydraConfig.get()
        try:  # kept and raised below: Hydra would print it too
            config.note_own_rate(cfg, verb, list(hydra_cfg.overrides.task), config_dir)
            config.check(cfg, verb, config_dir)
            from sslt.execute import execute

            folder = Path(hydra_cfg.runtime.output_dir)
            codes.append(execute(verb, cfg, folder, list(hydra_cfg.overrides.task), config_dir))
        except (Exception, KeyboardInterrupt) as e:
            errors.append(e)
            if isinstance(e, UserError):
                from sslt import runs

                folder = Path(hydra_cfg.runtime.output_dir)
                if runs.display(folder) not in str(e):  # a message that sends the user there
                    runs.remove_refused(folder, made_by(folder))
            raise SystemExit(1) from e

    if ended := _handed(task, verb, overrides, flags, config_dir, errors):
        return ended
    if errors:
        raise errors[0]
    return max(codes, default=0)


def _sweep(verb: str, overrides: list[str], typed: list[str], flags: dict[str, str | None], config_dir: str | None) -> int:
    """Run a command over several values; what it is known by are the overrides `typed`."""
    from omegaconf import DictConfig

    from sslt.sweeps import plugins
    from sslt.sweeps.job import Job
    from sslt.sweeps.sweeper import Command

    plugins.check_installed(overrides)
    job = Job(verb, config_dir)
    plugins.register(command := Command(verb, typed, config_dir, job))

    def task(cfg: DictConfig) -> dict[str, Any]:
        return job(cfg)  # nothing else, since launchers send it to their processes

    return _handed(task, verb, overrides, flags, config_dir) or command.code


def _handed(
    task: Callable[..., Any],
    verb: str,
    overrides: list[str],
    flags: dict[str, str | None],
    config_dir: str | None,
    errors: Sequence[BaseException] = (),
) -> int:
    """Have Hydra call `task` with what it composes. errors: of ours, which it adds to. Gives the exit code of what Hydra itself ended."""
    import hydra

    from sslt import config

    old_argv, old_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["sslt", *[word for flag, value in flags.items() for word in (flag, value) if word is not None], *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors out: this file prints them
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told) if "--cfg" in flags else contextlib.nullcontext():
            hydra.main(config_path=str(groups.CONFIG_DIR), config_name=verb, version_base="1.3")(task)()
    except SystemExit as e:  # ours, argparse's, whose message is printed already, or of what cannot be shown
        if e.code and told.getvalue():
            raise UserError(f"{told.getvalue().strip()} of `sslt {verb}`") from e
        if not errors:
            return 2 if e.code else 0
    except Exception as e:
        if _from_composition(e):
            raise config.explain(e, verb, config_dir) from e
        if isinstance(e, OSError):
            what, why = str(e.filename or "the run folder"), e.strerror or e
            raise UserError(f"the run folder cannot be made: {what[:200]}: {why}; choose another by hydra.run.dir=") from e
        if isinstance(e, ValueError):  # of Hydra's functions in overrides: range(0,3,0)
            raise UserError(f"cannot read the overrides: {e}") from e
        raise
    finally:
        sys.argv = old_argv
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if old_full is not None:
            os.environ["HYDRA_FULL_ERROR"] = old_full
    return 0


def _go_on(verb: str, going: Any, flags: dict[str, str | None], config_dir: str | None) -> int:
    """Take up a run; Hydra has no part in it."""
    if odd := flags.keys() - {"--cfg", "--config-dir"}:
        raise UserError(f"{' '.join(sorted(odd))} does not go with resume=: leave it out (--cfg job shows the settings)")
    if "--cfg" in flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(going.cfg), end="")
        return 0
    from sslt.execute import execute

    return execute(verb, going.cfg, going.run.path, going.overrides, config_dir, resuming=True)


def _made_by(overrides: list[str]) -> Callable[[Path], list[Path]]:
    """Asked before a run: which folders, its own and those above it, a run folder has brought with it that were not there."""
    given = next((o.partition("=")[2] for o in overrides if o.startswith("hydra.run.dir=")), "")
    if "${" in given:
        return lambda folder: []
    place = (Path(given).expanduser() if given else Path("runs")).absolute()
    before = {p for p in (place, *place.parents, *(place.glob("*") if not given else ())) if os.path.lexists(p)}
    return lambda folder: [p for p in (folder, *folder.parents) if p.is_relative_to(place) or place.is_relative_to(p) if p not in before]


def _refuse_taken(overrides: list[str], sweep: bool) -> None:
    """Raise `UserError` for a run folder, or in a sweep a folder of numbered ones, that holds something."""
    from sslt import runs, stored

    given = {o.partition("=")[0].lstrip("+"): o.partition("=")[2] for o in overrides}
    taken = given.get("hydra.run.dir")
    if sweep:  # jobs that are numbered would meet those that are there
        taken = None if "hydra.sweep.subdir" in given else given.get("hydra.sweep.dir")
    if taken and "${" not in taken:
        runs.refuse_overwrite(stored.located(taken), "hydra.sweep.dir" if sweep else "hydra.run.dir")


def _split(args: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """(overrides, Hydra's flags by their long names, with their values)."""
    overrides: list[str] = []
    flags: dict[str, str | None] = {}
    rest = iter(args)
    for a in rest:
        if not a.startswith("-"):
            if "=" not in a and not a.startswith("~"):
                raise UserError(f"cannot read '{a[:200]}': settings are written key=value, for instance trainer.max_epochs=5")
            overrides.append(a)
            continue
        name, equals, value = a.partition("=")
        flag = _SHORT.get(name, name)
        if flag not in _VALUES:
            raise UserError(f"there is no option '{name[:200]}'{nearest(flag, _VALUES)}")
        allowed = _VALUES[flag]
        given = value if equals else next(rest, None) if allowed else None
        if (given is None or given == "") and allowed and flag != "--info":
            raise UserError(f"{name} takes a value: {' or '.join(f'{name} {v}' for v in allowed)}")
        if flag == "--info" and given not in allowed:  # without a value it is of everything
            rest, given = iter([*([] if given is None else [given]), *rest]), "all"
        if flag == "--cfg" and given not in allowed:
            raise UserError(f"{name} {given}{nearest(str(given), allowed)}")
        flags[flag] = given
    if len(alone := [flag for flag in _ALONE if flag in flags]) > 1:
        raise UserError(f"{' and '.join(alone)} cannot be joined: give one of them")
    return overrides, flags


def _config_dir(args: list[str]) -> str | None:
    for i, a in enumerate(args):
        if a in ("--config-dir", "-cd") and i + 1 < len(args):
            return args[i + 1]
        if a.startswith("--config-dir="):
            return a.partition("=")[2]
    return None


def _debug(args: list[str]) -> bool:
    return os.environ.get("SSLT_DEBUG", "0") not in ("", "0") or any(a.lower() in ("debug=true", "debug=1") for a in args)


def _from_composition(e: Exception) -> bool:
    """Whether an error is of the libraries that compose, or was raised in them: Hydra meets some values with Python's own errors."""
    libraries = ("hydra", "omegaconf", "antlr4")
    frames = traceback.extract_tb(e.__traceback__)
    raised_in = Path(frames[-1].filename).parts if frames else ()
    return type(e).__module__.split(".")[0] in libraries or any(part in libraries for part in raised_in)


def _defect(e: Exception, args: list[str]) -> int:
    """An error nobody foresaw: say so, keep the traceback for who asks."""
    if _debug(args):
        traceback.print_exc()
    else:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        print(f"sslt: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''} ({where})", file=sys.stderr)
        print("sslt: this may be a defect of sslt; SSLT_DEBUG=1 shows the whole traceback", file=sys.stderr)
    return 1
