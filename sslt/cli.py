"""The command line: `sslt VERB [Hydra overrides]`. Errors of the user become one line and exit code 2.

Hydra composes, sweeps and makes the run folder; this file only teaches, routes and prints. It imports nothing heavy.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path

from sslt import groups, guide
from sslt.errors import UserError, nearest

INTERRUPTED = 130
_BETWEEN_STAGES = re.compile(r"\$\{stages\.[\w.]+\}")  # a value that stages of a chain share (`chain.rewrite`)
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
_ALONE = ("--multirun", "--run", "--cfg", "--info")  # what Hydra does instead of one run


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 the user's mistake, 130 interrupted (resumable), 1 a defect."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        for a in args:
            if "\0" in a or not _is_text(a):
                raise UserError(f"{a[:200]!a} is no UTF-8 text: files with such names have to be renamed or linked to first")
        return _dispatch(args)
    except UserError as e:
        if _debug(args):
            traceback.print_exc()
        print(f"sslt: {e}", file=sys.stderr)
        return 2
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
    overrides = [*groups.fit_recipe(verb, overrides, config_dir), *overrides]
    overrides, resuming = _resume(verb, overrides, sweep, config_dir)

    import hydra
    from omegaconf import DictConfig

    from sslt import config

    if "--cfg" in flags:
        config.compose(verb, [o for o in overrides if not o.startswith("hydra.")], config_dir)

    codes: list[int] = []
    errors: list[BaseException] = []

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        hydra_cfg = HydraConfig.get()
        try:  # kept and raised below: Hydra would print it too; and a sweep goes on to its next job
            config.check(cfg, verb, config_dir)
            from sslt.execute import execute

            folder = Path(hydra_cfg.runtime.output_dir)
            codes.append(execute(verb, cfg, folder, list(hydra_cfg.overrides.task), config_dir, resuming))
            if sweep and codes[-1] == INTERRUPTED:
                raise KeyboardInterrupt  # of the whole sweep
        except (Exception, KeyboardInterrupt) as e:
            errors.append(e)
            if not sweep or isinstance(e, KeyboardInterrupt):
                raise SystemExit(1) from e
            print(f"sslt: job {hydra_cfg.job.num}: {e}; the sweep goes on", file=sys.stderr)

    old_argv, old_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["sslt", *[word for flag, value in flags.items() for word in (flag, value) if word is not None], *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors out: this file prints them
    try:
        hydra.main(config_path=str(groups.CONFIG_DIR), config_name=verb, version_base="1.3")(task)()
    except SystemExit as e:  # ours, or argparse's, whose message is printed already
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
    if errors:
        raise errors[0]
    return max(codes, default=0)


def _resume(verb: str, overrides: list[str], sweep: bool, config_dir: str | None) -> tuple[list[str], bool]:
    """Turn `resume=RUN|auto` into the folder to go on in, and refuse a folder that is taken."""
    from sslt import runs

    given = {o.partition("=")[0].lstrip("+"): o.partition("=")[2] for o in overrides}
    resume, folder = given.get("resume", "null"), given.get("hydra.run.dir")
    rest = [o for o in overrides if not o.lstrip("+").startswith("resume=")]
    if resume not in ("null", "") and sweep:
        raise UserError(f"resume={resume} does not go with -m: go on with the jobs that did not end one by one, resume=SWEEP_FOLDER/NUMBER")
    if resume in ("null", ""):
        taken = folder
        if sweep:  # jobs that are numbered would meet those that are there
            taken = None if "hydra.sweep.subdir" in given else given.get("hydra.sweep.dir")
        if taken and "${" not in taken:
            runs.refuse_overwrite(Path(taken).expanduser(), "hydra.sweep.dir" if sweep else "hydra.run.dir")
        return overrides, False
    if resume == "auto":
        run = runs.find_resumable(verb, rest)
        if folder:
            place = Path(folder).expanduser()
            run = runs.Run(place) if (place / runs.RUN_FILE).is_file() else None
        if run is None:
            if folder:
                runs.refuse_overwrite(Path(folder).expanduser())
            return rest, False
    else:
        run = runs.open_run(resume, "resume")
    info = run.info
    if info.get("verb") != verb:
        raise UserError(f"resume={resume} is a `sslt {info.get('verb')}` run: go on with `sslt {info.get('verb')} resume={resume}`")
    if info.get("config_dir") and not config_dir:
        raise UserError(f"{run} was started with --config-dir {info['config_dir']}: give it again")
    changed = {o.partition("=")[0].lstrip("+") for o in rest}
    kept = [
        o for o in info.get("overrides", []) if o.partition("=")[0].lstrip("+") not in changed | {"resume"} and not o.startswith("hydra.")
    ]
    for override in kept:  # whoever wrote the folder would choose what runs here
        key = override.partition("=")[0]
        if "_target_" in override or key.rpartition(".")[2].lstrip("+") == "trust" or "${" in _BETWEEN_STAGES.sub("", override):
            raise UserError(f"{run} was started with {override}, which names code: repeat the whole command with resume={run}")
    rest = [o for o in rest if not o.startswith("hydra.run.dir=")]
    return [*kept, *rest, f"hydra.run.dir={_quote(run.path)}", "hydra.output_subdir=null"], True


def _quote(path: Path) -> str:
    text = str(path)
    return text if all(c.isalnum() or c in "/._-" for c in text) else "'" + text.replace("'", "\\'") + "'"


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


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    return type(e).__module__.split(".")[0] in ("hydra", "omegaconf", "antlr4")


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
