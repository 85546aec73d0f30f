"""Fine-tuned runs through export, compression, benchmark and server: docs/results/deploy.md and its figure, made step by step.

    python scripts/deploy.py --data DIR [--only cifar10,bag,imdb] [--root FOLDER]

Every step is one `sslt` command in a folder below --root; what is finished is not run again. The benchmark has all variants of a run side
by side, interleaved; the server is held against a plain FastAPI loop by `scripts/load.py`, and for ten minutes at 80 % of its capacity.
What was measured is kept in --kept, and the document is written from it.
"""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from cells import Cells, about, parser

from sslt.deploy.figure import draw
from sslt.report.plots import figure, save
from sslt.report.tables import markdown_table
from sslt.runs import Run

BASE = "tuned"
LARGE = 32  # samples of the larger calls


class Chain(NamedTuple):
    """steps: to the run that all variants start from, in order; `{NAME}` stands for the folder of another step. load: of the server.

    note: how the rows are to be read.
    """

    title: str
    steps: dict[str, list[str]]
    variants: dict[str, list[str]]
    load: list[str]
    note: str


_LOAD = ["--p99", "0.25", "--seconds", "6", "--start", "16", "--soak", "600"]
_PLAIN = ["late_fusion=false", "baseline=false"]
_HALF = ["encoder.config.hidden_size=64", "encoder.config.intermediate_size=256", "encoder.config.num_hidden_layers=1"]
_QUICK = ["raw=false", "fresh=false", "rounds=20", "max_seconds=5"]  # the benchmark measures them all again, side by side


def _compressed(method: str, *more: str) -> list[str]:
    return ["compress", f"method={method}", f"from={{{BASE}}}", *_QUICK, *more]


def _exported(kind: str) -> list[str]:
    return ["export", f"format={kind}", f"from={{{BASE}}}"]


CHAINS = {
    "cifar10": Chain(
        "CIFAR-10, a small ResNet after SimCLR",
        {
            "simclr": ["pretrain", "+task=simclr", "data=cifar10", "trainer.max_time=00:10:00"],
            BASE: ["finetune", "+target=cifar10", "from={simclr}", *_PLAIN, "trainer.max_time=00:05:00"],
        },
        {
            "onnx": _exported("onnx"),
            "torch": _exported("torch"),
            "safetensors": _exported("safetensors"),
            "timm": _exported("timm"),
            "half": _compressed("half"),
            "int8": _compressed("int8"),
            "onnx_int8_static": _compressed("onnx_int8_static"),
            "pruned": _compressed("prune", "method.share=0.5", "method.rounds=2", "trainer.max_time=00:02:00"),
            "zeros": _compressed("prune_unstructured", "method.share=0.5", "trainer.max_time=00:02:00"),
            "distilled": _compressed("distill", "encoder=conv4", "encoder.width=32", "trainer.max_time=00:03:00"),
        },
        [],
        "Fifteen minutes of a core taught the run, and two or three minutes teach a pruned or a smaller network less, so that none of them "
        "is kept at a tolerance of one point. Other work ran beside: medians hold, p95 and p99 less so. The server was measured on a quiet "
        "machine of two cores, the client beside it.",
    ),
    "bag": Chain(
        "IMDB, a bag of words after crops, as by default",
        {
            "crops": ["pretrain", "+task=crops", "data=imdb", "trainer.max_time=00:10:00"],
            BASE: ["finetune", "+target=imdb", "from={crops}", "baseline=false"],
        },
        {
            "onnx": _exported("onnx"),
            "torch": _exported("torch"),
            "safetensors": _exported("safetensors"),
            "half": _compressed("half"),
            "int8": _compressed("int8"),
            "onnx_int8": _compressed("onnx_int8"),
            "distilled": _compressed("distill", "encoder=bag", "encoder.dim=16", "trainer.max_time=00:03:00"),
        },
        ["--words", "60"],
        "TF-IDF stands beside the bag, in the file or as arrays with it. Both are tables of words, and a call is mostly what surrounds it. "
        "The server was measured on a quiet machine of two cores, the client beside it; the ten minutes by texts of 40 words, at 80 % of "
        "the 1,166 a second that it held of these.",
    ),
    "imdb": Chain(
        "IMDB, BERT of 2 layers from scratch",
        {BASE: ["finetune", "+target=imdb", "from=scratch", "encoder=bert_tiny", *_PLAIN, "trainer.max_time=00:05:00"]},
        {
            "onnx": _exported("onnx"),
            "torch": _exported("torch"),
            "safetensors": _exported("safetensors"),
            "hf": _exported("hf"),
            "half": _compressed("half"),
            "int8": _compressed("int8"),
            "int8_dynamic": _compressed("int8_dynamic"),
            "int4": _compressed("int4"),
            "onnx_int8": _compressed("onnx_int8"),
            "pruned": _compressed("prune", "method.share=0.1", "trainer.max_time=00:02:00"),
            "distilled": _compressed("distill", "encoder=bert_tiny", *_HALF, "trainer.max_time=00:03:00"),
        },
        ["--words", "60"],
        "Late fusion is off, so that what is measured is the transformer; a bag of words has 88 % here (distill.md). Other work ran beside "
        "the benchmark; the server was measured on a quiet machine of two cores, the client beside it. A batch of 32 computes a text of so "
        "small a model only 1.6 times as fast as one alone, so that a queue and batches gain little there.",
    ),
}


def measure(cells: Cells, name: str) -> dict[str, Any]:
    """Everything of a chain; steps and variants that are refused are named with why."""
    chain, made, refused, kept, commands = CHAINS[name], {}, {}, {}, []

    def step(part: str, command: list[str]) -> Run:
        words = [word.format(**made) for word in command]
        commands.append("sslt " + shlex.join(word.replace("{", "").replace("}", "") for word in command))
        run = cells.run(f"{name}/{part}", *words, may_fail=part not in chain.steps)
        made[part] = str(run.path)
        return run

    for part, command in chain.steps.items():
        step(part, command)
    for part, command in chain.variants.items():
        run = step(part, command)
        if (run / "error.txt").exists():
            refused[part] = (run / "error.txt").read_text()
        elif "kept" in run.metrics:
            kept[part] = bool(run.metrics["kept"])
    folders = [made[BASE], *(made[part] for part in chain.variants if part not in refused)]
    bench = cells.run(f"{name}/bench", "bench", f"from={','.join(folders)}", "trust=[torch]", "max_seconds=10")
    with (bench / "bench.csv").open(newline="", encoding="utf-8") as f:
        rows = [{k: _number(v) for k, v in row.items() if v != ""} for row in csv.DictReader(f)]
    found = {"rows": rows, "refused": refused, "kept": kept, "primary": bench.info["primary"], "commands": commands, "machine": about()}
    return found | {"served": served(cells, name, Path(made[BASE]))}


def served(cells: Cells, name: str, run: Path) -> dict[str, Any]:
    """What its server holds."""
    file = cells.root / name / "load.json"
    if not file.exists():
        command = ["load.py", f"from={run}", *_LOAD, "--json", str(file), "--log", str(file.with_suffix(".log"))]
        subprocess.run([sys.executable, str(Path(__file__).with_name(command[0])), *command[1:], *CHAINS[name].load], check=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def table(found: dict[str, Any]) -> str:
    """A row for each variant."""
    primary, rows = found["primary"], []
    for row in found["rows"]:
        low, high = (row.get(f"difference_{end}") for end in ("low", "high"))
        kept = found["kept"].get(row["variant"])
        rows.append({
            "variant": row["variant"],
            f"test {primary}": f"{100 * row[primary]:.2f}",
            "difference (95 %)": "" if low is None else f"{100 * row['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
            "kept": "" if kept is None else "yes" if kept else "no",
            "MB": f"{row['bytes'] / 1e6:.1f}",
            "parameters, millions": f"{row['parameters'] / 1e6:.2f}" if row.get("parameters") else "",
            "operations, millions": f"{row['operations'] / 1e6:,.0f}" if row.get("operations") else "",
            "ms a call of 1: p50 / p95 / p99": " / ".join(f"{row[f'latency/1/{p}_ms']:.1f}" for p in ("p50", "p95", "p99")),
            f"ms of {LARGE}": " / ".join(f"{row[f'latency/{LARGE}/{p}_ms']:.0f}" for p in ("p50", "p95", "p99")),
            f"a second, by {LARGE}": f"{row[f'latency/{LARGE}/per_second']:,.0f}",
            "load s": f"{row['load_seconds']:.2f}" if "load_seconds" in row else "",
            "memory, MB": f"{(row['memory_bytes'] - row['libraries_bytes']) / 1e6:.0f}" if "memory_bytes" in row else "",
        })  # fmt: skip
    return markdown_table(rows)


def document(found: dict[str, dict[str, Any]]) -> str:
    """docs/results/deploy.md."""
    parts = [
        "# What becomes of a result\n",
        "Fine-tuned runs through every verb of [deploy.md](../deploy.md), by `python scripts/deploy.py --data DIR`; one seed.",
        "Differences are paired over the test rows, with their 95 % intervals. `kept`: whether the whole interval that `sslt compress`",
        "found stays inside its tolerance of one point. Times are of interleaved calls on prepared samples; memory is what opening and",
        "answering add to the libraries.\n",
        "![score against latency](deploy.png)",
    ]
    for name, chain in CHAINS.items():
        if name not in found:
            continue
        one = found[name]
        parts += [f"\n## {chain.title}\n", one["machine"] + ".\n", *(f"    {command}" for command in one["commands"]), "", table(one)]
        parts += [chain.note, "", *(f"- `{part}` is refused: {why}" for part, why in one["refused"].items())]
        load = one["served"]
        parts.append(
            f"\nServed (`sslt serve`), open-loop arrivals, a p99 of at most {1000 * load['p99']:.0f} ms: {load['ours']:.1f} requests a "
            f"second; a plain FastAPI loop around the same model holds {load['plain']:.1f}."
        )
        if soak := load["soak"]:
            parts.append(
                f"{soak['seconds'] / 60:.0f} minutes at {soak['rate']:.1f} a second: {100 * soak['errors']:.2f} % errors, a p99 of "
                f"{1000 * soak['p99']:.0f} ms in the worst half minute, {soak['growth_mib']:+.1f} MiB in the second half, of "
                f"{soak['resident_mib']:.0f} MiB."
            )
    return "\n".join(parts) + "\n"


def draw_all(found: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each run."""
    fig = figure(6.4 * len(found), 4.6)
    for i, (name, one) in enumerate(found.items()):
        draw(fig.add_subplot(1, len(found), i + 1), one["rows"], one["primary"], 1, CHAINS[name].title)
    save(fig, path)


def main() -> None:
    args = parser(__doc__, Path("docs/results"), "deploy", "deploy.json").parse_args()
    cells = Cells(args.root, args.data)
    found: dict[str, dict[str, Any]] = json.loads(args.kept.read_text()) if args.kept.exists() else {}
    for name in args.only.split(",") if args.only else CHAINS:
        found[name] = measure(cells, name)
        args.kept.write_text(json.dumps(found, indent=1) + "\n")
        (args.out / "deploy.md").write_text(document(found), encoding="utf-8")
        draw_all(found, args.out / "deploy.png")


if __name__ == "__main__":
    main()
