"""What the scripts that fill docs/results share: cells that are run once and taken up again, and how numbers are written."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sslt.cli import main as sslt
from sslt.evaluation.few_shot import mean_interval
from sslt.runs import Run, read_json

SEEDS = (0, 1, 2)
_KEPT = re.compile(
    r"(test|val|baseline|majority|knn|linear|untrained/knn|untrained/linear)/"
    r"(accuracy|f1|map|miou|spearman|exact_match|rougeL|bleu|chrf|hr@10|ndcg@10|perplexity)|baseline/method"
    r"|(eval|bigrams)/(perplexity|bits_per_byte)|(popularity|item-knn)/\S+|best_sentence/\S+"
    r"|val/\w+_accuracy|train/(labels|steps|seconds|epochs|interpolated|peak_memory_bytes)|model/(moving_parameters|stored_bytes)|error"
)
Argument = str | Callable[[], str]  # what is only made where a cell that needs it has to be run


def folder(cell: str) -> str:
    """The name of a cell's run folder."""
    return re.sub(r"[^\w.-]+", "_", cell)


def parser(about: str | None, out: Path, root: str, kept: str) -> argparse.ArgumentParser:
    """What every script that fills cells can be told: where data, run folders, documents and measurements are, and which cells."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", required=True, help="folder of data sets (data.root)")
    made.add_argument("--root", type=Path, default=Path("runs") / root, help="where the run folders go")
    made.add_argument("--out", type=Path, default=out, help="where what is written goes")
    made.add_argument("--kept", type=Path, default=Path("docs/results") / kept, help="what was measured")
    made.add_argument("--only", default="", help="data sets, with commas; all, if empty")
    made.add_argument("--regimes", default="", help="numbers of labels by name, with commas; all, if empty")
    made.add_argument("--seeds", type=int, default=len(SEEDS))
    return made


class _Heard(io.StringIO):
    """What is said to the terminal, which hears it too."""

    def write(self, text: str) -> int:
        sys.__stderr__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def _here(command: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what it says of mistakes."""
    with contextlib.redirect_stderr(_Heard()) as heard:
        return sslt(command), heard.getvalue()


def _in_a_process(command: list[str]) -> tuple[int, str]:
    """The same of one in a process of its own."""
    with subprocess.Popen([sys.executable, "-m", "sslt", *command], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        heard = _Heard()
        for line in process.stderr:
            heard.write(line)
    return process.returncode, heard.getvalue()


class Cells:
    """Runs `sslt` commands into folders below `root`: a finished one is not run again, an interrupted one goes on.

    kept: a file of JSON lines with what `measure` found, by the name of the cell. What it has is not run again, be the folder gone or
    not: remove the lines of cells whose recipe has changed.
    """

    def __init__(self, root: Path, data: str, kept: Path | None = None):
        self.root, self.data, self.kept = root, data, kept
        lines = kept.read_text().splitlines() if kept is not None and kept.exists() else []
        self.found: dict[str, dict[str, Any]] = {line["cell"]: line for line in map(json.loads, lines)}
        os.environ["SSLT_DATA"] = str(Path(data).resolve())

    def run(self, name: str, verb: str, *args: str, may_fail: bool = False, alone: bool = False) -> Run:
        """One command in the folder `name`. may_fail: a mistake (exit code 2) is a result, kept in `error.txt`.

        alone: in a process of its own, so that its peak memory is its own.
        """
        folder = self.root / name
        run = Run(folder)
        if run.finished or (folder / "error.txt").exists():
            return run
        print("$ sslt", shlex.join([verb, *args]), flush=True)
        command = [verb, *args, f"hydra.run.dir={folder}", "resume=auto"]
        code, heard = _in_a_process(command) if alone else _here(command)
        if code and not (may_fail and code == 2):
            sys.exit(f"{name} ended with code {code}")
        if code:
            folder.mkdir(parents=True, exist_ok=True)  # a file that is refused leaves none
            said = [line.removeprefix("sslt: ") for line in heard.splitlines() if line.startswith("sslt: ")]
            (folder / "error.txt").write_text(str(run.info.get("error") or " ".join(said)))
        return run

    def measure(self, name: str, verb: str, *args: Argument, **how: bool) -> dict[str, Any]:
        """What a command measures; arguments that are functions are called where it has to be run. how: see `run`."""

        def measured() -> dict[str, Any]:
            run = self.run(folder(name), verb, *(a if isinstance(a, str) else a() for a in args), **how)
            refused = run / "error.txt"
            return {"error": refused.read_text()} if refused.exists() else read_json(run / "metrics.json")

        return self.keep(name, measured)

    def keep(self, name: str, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measured` gives, which is only called where the cell `name` is not there yet."""
        if name in self.found:
            return self.found[name]
        metrics = {k: round(v, 5) if isinstance(v, float) else v for k, v in measured().items() if _KEPT.fullmatch(k)}
        self.found[name] = {"cell": name, **metrics}
        if self.kept is not None:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            with self.kept.open("a") as f:
                f.write(json.dumps(self.found[name]) + "\n")
        return self.found[name]

    def values(self, pattern: str, key: str = "test/accuracy") -> list[float]:
        """`key` of every cell of which the whole name matches."""
        return [line[key] for name, line in self.found.items() if re.fullmatch(pattern, name) and key in line]


def fill(
    about: str | None, name: str, parts: Iterable[str], measure: Callable[[Cells, str, int], None], write: Callable[[Cells, Path], None]
) -> None:
    """A script's main: measure parts of a document (`--only`, else all) seed by seed, and write docs/results/NAME.md after each."""
    args = parser(about, Path("docs/results"), name, f"{name}.jsonl").parse_args()
    cells = Cells(args.root, args.data, args.kept)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[: args.seeds]:
        for part in args.only.split(",") if args.only else parts:
            measure(cells, part, seed)
            write(cells, args.out)


def numbers(root: Path, pattern: str, key: str = "test/accuracy") -> list[float]:
    """`key` of every finished run that matches."""
    found = [read_json(p / "metrics.json").get(key) for p in sorted(root.glob(pattern)) if Run(p).finished]
    return [v for v in found if v is not None]


def percent(values: list[float]) -> str:
    """mean ± 95 % interval (Student's t), in percent."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{100 * values[0]:.1f} (1 seed)"
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} ± {100 * half:.1f}" + ("" if len(values) >= len(SEEDS) else f" ({len(values)} seeds)")


def about() -> str:
    """The day, the machine and how much of it a command has, in a line."""
    import time

    import torch

    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores ({cpu_name()}) for each command"
    return f"{time.strftime('%Y-%m-%d')}, {cores}{gpu}, torch {torch.__version__}"


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
