"""The texts that teach: overview, help of a verb, lists, shell completion. Reads config folders, imports nothing heavy."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from sslt import groups, stored
from sslt.errors import UserError, nearest

VERBS = {
    "pretrain": ("learn an encoder from unlabelled data", "sslt pretrain +task=simclr data=digits"),
    "finetune": ("carry an encoder to a labelled task", "sslt finetune +target=digits from=RUN"),
    "evaluate": ("measure a run or an encoder", "sslt evaluate from=RUN"),
    "predict": ("labels (or features) for new files", "sslt predict from=RUN input=photos/"),
    "run": ("pretrain, finetune and evaluate in one go", "sslt run +task=simclr +target=digits"),
    "merge": ("fold an adapter into its base", "sslt merge from=RUN"),
    "bench": ("measure runs side by side: score, latency, memory, size", "sslt bench from=RUN,RUN2"),
    "compress": ("make a run smaller or faster, and measure what it costs", "sslt compress from=RUN method=half"),
    "export": ("write a run in a format that other programs open", "sslt export from=RUN format=onnx"),
    "serve": ("answer requests over HTTP", "sslt serve from=RUN port=8000"),
}
CHOICES = {
    "pretrain": ("task", "data", "encoder"),
    "finetune": ("target", "data", "adaptation", "encoder", "joint", "shift", "episodes", "sampling"),
    "evaluate": ("data", "episodes", "test_time", "corruption"),
    "predict": ("data",),
    "run": ("task", "target"),
    "merge": (),
    "bench": ("data",),
    "compress": ("method", "encoder"),
    "export": ("data",),
    "serve": (),
}
# What a user calls a list → the folder it is.
KINDS = {
    "tasks": "task", "targets": "target", "data": "data", "encoders": "encoder", "objectives": "objective",
    "adaptations": "adaptation", "views": "views", "optimizers": "optimizer", "schedules": "schedule",
    "trainers": "trainer", "loggers": "logger", "samplings": "sampling", "joint": "joint", "shifts": "shift",
    "episodes": "episodes", "test_time": "test_time", "corruptions": "corruption", "methods": "method",
}  # fmt: skip


def _rows(rows: dict[str, str], indent: int = 2) -> str:
    width = max((len(k) for k in rows), default=0) + 2
    return "\n".join(f"{' ' * indent}{k:<{width}}{v}".rstrip() for k, v in rows.items())


def overview() -> str:
    """What `sslt` alone prints."""
    return "\n".join([
        "sslt: self-supervised pretraining → transfer → evaluation, for images and text",
        "",
        _rows({f"sslt {v}": what for v, (what, _) in VERBS.items()}
              | {"sslt list": "what can be named: tasks, targets, data, encoders, …", "sslt completion": "tab completion for your shell"}),
        "",
        "Try, with no data and no network:",
        "  sslt run +task=simclr +target=digits      images: pretrain, finetune, evaluate",
        "  sslt run +task=mlm +target=docs           the same for text",
        "",
        "Settings are Hydra's: key=value, +group=name, -m to sweep, --cfg job to look before you run.",
        "  sslt pretrain +task=simclr data=fashion_mnist data.root=DIR trainer.max_time=00:10:00",
        "  sslt pretrain -m +task=simclr optimizer.lr=0.01,0.1 seed=0,1,2",
        "",
        f"tasks:    {', '.join(groups.options('task'))}",
        f"targets:  {', '.join(groups.options('target'))}",
        f"data:     {', '.join(groups.options('data'))}",
        "`sslt VERB --help` says more.",
    ])  # fmt: skip


def verb_help(verb: str, config_dir: str | None = None) -> str:
    """What `sslt VERB --help` prints."""
    if config_dir is not None:
        check_config_dir(config_dir)
    what, example = VERBS[verb]
    lines = [f"sslt {verb}: {what}", "", f"  {example}", ""]
    for group in CHOICES[verb]:
        written = f"+{group}=" if group in groups.ADDED else f"{group}="
        lines += [f"{written}", _rows(groups.options(group, config_dir), 4), ""]
    lines += ["settings (the rest: --cfg job)", _rows(_settings(verb), 4), ""]
    lines += ["-m sweeps over commas, --cfg job shows the whole config, --config-dir DIR adds your own YAMLs, resume=RUN|auto goes on."]
    return "\n".join(lines)


def _settings(verb: str) -> dict[str, str]:
    """The commented keys of a verb's own YAML: the comment is the help."""
    found: dict[str, str] = {}
    for path in groups.own_files(verb):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, colon, rest = line.partition(":")
            if colon and key and key[0].isalpha() and "  # " in rest:
                value, _, comment = rest.partition("  # ")
                found[f"{key}={value.strip()}"] = comment
    return found


def check_config_dir(config_dir: str) -> None:
    """Raise `UserError` unless there is such a folder, and what it adds to sslt's groups can be read."""
    folder = stored.located(config_dir)
    if not config_dir or not stored.is_folder(folder):
        raise UserError(f"--config-dir {config_dir[:200]}: there is no such folder")
    for group in groups.names():
        for path in (folder / group).glob("*.yaml"):
            stored.require_there(path)
            stored.yaml_object(path, aliases=True)


def listing(args: list[str]) -> str:
    """What `sslt list [KIND]` prints."""
    config_dir = None
    rest = []
    it = iter(args)
    for a in it:
        if a in ("--config-dir", "-cd"):
            config_dir = next(it, None)
        elif a.startswith("--config-dir="):
            config_dir = a.partition("=")[2]
        else:
            rest.append(a)
    if config_dir is not None:
        check_config_dir(config_dir)
    if not rest or rest[0] in ("-h", "--help"):
        named = {kind: list(groups.options(g, config_dir)) for kind, g in KINDS.items()}
        counts = {f"sslt list {kind}": ", ".join(found[:6]) + (", …" if len(found) > 6 else "") for kind, found in named.items()}
        return _rows(counts | {"sslt list runs": "the runs below ./runs"}, 0)
    kind = rest[0]
    if kind == "runs":
        return _runs(rest[1] if len(rest) > 1 else "runs")
    group = KINDS.get(kind) or KINDS.get(f"{kind}s") or (kind if kind in groups.names(config_dir) else None)
    if group is None:
        raise UserError(f"there is no list of '{kind}'{nearest(kind, [*KINDS, 'runs'])}")
    return _rows(groups.options(group, config_dir), 0)


def _runs(root: str) -> str:
    from sslt import runs

    rows = {}
    for run in runs.all_runs(root):
        try:
            info, metrics = run.info, run.metrics
        except UserError as e:
            rows[str(run)] = str(e)
            continue
        numbers = {k: v for k, v in metrics.items() if k in ("test/accuracy", "knn/accuracy", "linear/accuracy") and isinstance(v, float)}
        scores = "  ".join(f"{k} {v:.3f}" for k, v in numbers.items())
        rows[str(run)] = f"{info.get('verb', '?')!s:<9} {info.get('status', '?')!s:<12} {str(info.get('started', ''))[:16]}  {scores}"
    return _rows(rows, 0) if rows else f"no runs below {root}"


_BASH = """\
# tab completion of sslt: eval "$(sslt completion bash)" in your ~/.bashrc
_sslt() {
    local IFS=$'\\n' line="${COMP_LINE:0:$COMP_POINT}"
    COMPREPLY=($(sslt __complete "$line"))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    local word="${line##* }"
    [[ $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
}
complete -F _sslt sslt"""
_ZSH = """\
# tab completion of sslt: eval "$(sslt completion zsh)" in your ~/.zshrc
_sslt() { local -a c; c=(${(f)"$(sslt __complete "$BUFFER")"}); compadd -Q -S '' -- $c }
compdef _sslt sslt"""
_FISH = """\
# tab completion of sslt: sslt completion fish | source, in your config.fish
complete -c sslt -f -a '(sslt __complete (commandline -cp))'"""


def completion_script(args: list[str]) -> str:
    """The script a shell evaluates to complete `sslt`."""
    shell = args[0] if args else Path(os.environ.get("SHELL", "bash")).name
    scripts = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
    if shell not in scripts:
        raise UserError(f"no completion for '{shell}': there is bash, zsh, fish")
    return scripts[shell]


def complete(args: list[str]) -> list[str]:
    """Candidates for the last word of a command line."""
    words = (args[0] if args else "").split(" ")
    word, before = words[-1], [w for w in words[1:-1] if w]
    config_dir = next((b for a, b in itertools.pairwise(before) if a == "--config-dir"), None)
    config_dir = next((w.partition("=")[2] for w in before if w.startswith("--config-dir=")), config_dir)
    if config_dir is not None:
        try:
            check_config_dir(config_dir)
        except UserError:
            return []
    if not before:
        return [v for v in [*VERBS, "list", "completion"] if v.startswith(word)]
    if before[0] == "list":
        return [k for k in [*KINDS, "runs"] if k.startswith(word)]
    if before[0] not in VERBS:
        return []
    plus = "+" if word.startswith("+") else ""
    key, equals, value = word.removeprefix("+").partition("=")
    if equals and key in groups.names(config_dir):
        done, _, last = value.rpartition(",")
        return [f"{plus}{key}={done + ',' if done else ''}{o}" for o in groups.options(key, config_dir) if o.startswith(last)]
    if equals:
        return []
    if "." in key:
        head, _, last = key.rpartition(".")
        return [f"{plus}{head}.{k}=" for k in sorted(groups.keys_of(head, config_dir)) if k.startswith(last)]
    return [f"{plus}{k}=" for k in sorted(groups.top_level_keys(before[0]) | {"task", "target"}) if k.startswith(key)]
