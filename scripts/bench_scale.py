"""How a run scales: samples/s of one and of two processes, bytes sent a step beside what a formula says, and a model of many GPUs.

    python scripts/bench_scale.py [--rounds 3] [--steps 8] [--only simclr,vit] [--folder .scale] [--doc docs/results/scale.md]

What is timed is the command of a user, in a process of its own; ways take turns, so that a machine that slows down slows all alike. What
has been measured is kept in FOLDER/cells.json, and a second call goes on with the rest. Linux with root counts bytes alone on a loopback
device; elsewhere whatever else goes by it is counted, too. The model's bandwidths, latencies and batch sizes are arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from bench import cost, plans

SCRIPTS = Path(__file__).resolve().parent
BATCH = 64  # samples of all processes together
COMMON = ["trainer.precision=32", "trainer.accelerator=cpu", "online_probe.every_n_epochs=0", "encoder.processor.size=32"]
MODELS = {
    "simclr": ("SimCLR, small ResNet, 32×32", ["+task=simclr", "encoder=resnet_small"]),
    "vit": ("SimCLR, ViT of 6 blocks, 192 wide, 65 tokens", ["+task=simclr", "encoder=vit_patches"]),
}
WAYS = {"one process, 1 thread": (1, 1), "one process, 2 threads": (1, 2), "two ranks, 1 thread each": (2, 1)}  # processes, threads of each
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]  # a network of its own
GPUS = (8, 64, 512)


def run(model: str, way: str, steps: int, folder: Path) -> dict[str, float]:
    """Samples/s of one command, and of two ranks what they send."""
    processes, threads = WAYS[way]
    out, file = folder / "run", folder / "sent.json"
    shutil.rmtree(out, ignore_errors=True)
    file.unlink(missing_ok=True)
    callback = f"callbacks=[{{_target_: bench.sent.Sent, file: {file}}}]"
    command = [sys.executable, "-m", "sslt", "pretrain", *MODELS[model][1], *COMMON, f"trainer.devices={processes}"]
    command += [f"batch_size={BATCH // processes}", f"trainer.max_steps={steps}", f"hydra.run.dir={out}", callback]
    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    done = subprocess.run([*(ALONE if alone() else []), *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"`{shlex.join(command)}` ended with code {done.returncode}:\n{done.stdout[-2000:]}")
    return {**json.loads(file.read_text()), "rate": json.loads((out / "metrics.json").read_text())["throughput/samples_per_second"]}


def alone() -> bool:
    """Whether bytes can be counted where nobody else sends any."""
    with contextlib.suppress(OSError):
        return sys.platform.startswith("linux") and subprocess.run([*ALONE, "true"], stderr=subprocess.DEVNULL).returncode == 0
    return False


def key(model: str, way: str, steps: int, r: int) -> str:
    """What a cell is called by."""
    return f"{model}|{way}|{steps} steps|{r}"


def measure(models: list[str], rounds: int, steps: int, folder: Path) -> dict[str, dict[str, float]]:
    """All cells, by `key`; those that are there already are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cells.json"
    cells: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    for r in range(rounds):
        for model in models:
            for way in WAYS:
                name = key(model, way, steps, r)
                if name not in cells:
                    cells[name] = run(model, way, steps, folder.absolute())
                    path.write_text(json.dumps(cells, indent=1))
                    print(f"{name}: {cells[name]['rate']:.1f} samples/s", file=sys.stderr, flush=True)
    return cells


def formula(cell: dict[str, float]) -> dict[str, float]:
    """Bytes that two ranks together send a step, by purpose."""
    norm = {"channels": int(cell["channels"]), "norms": int(cell["norms"]), "moment": 8}  # CrossRankBatchNorm's are float64
    work = cost.Work("measured", cell["parameters"], 1.0, BATCH // 2, 0.0, 1.0, gathered=2 * 128, **norm)
    return {name: 2 * sent for name, sent in cost.step(work, plans.dgx_a100(), 2).sent.items()}


def measured_table(cells: dict[str, dict[str, float]], models: list[str], steps: int, rounds: int) -> list[str]:
    lines = ["| method | way | samples/s | over one thread (range) | over two threads (range) |", "|---|---|---|---|---|"]
    for model in models:
        rates = {way: [cells[key(model, way, steps, r)]["rate"] for r in range(rounds)] for way in WAYS}
        one, two, _ = rates.values()
        for way, found in rates.items():
            over = [ratio(found, base) for base in (one, two)]
            lines.append(f"| {MODELS[model][0]} | {way} | {statistics.median(found):,.1f} | {' | '.join(over)} |")
    return lines


def ratio(found: list[float], base: list[float]) -> str:
    """The median over rounds of what was measured side by side."""
    ratios = [a / b for a, b in zip(found, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def sent_table(cells: dict[str, dict[str, float]], models: list[str], steps: int, rounds: int) -> list[str]:
    lines = [
        "| method | sent a step, measured | formula | of it gradients | embeddings | BatchNorm and its buffers |",
        "|---|---|---|---|---|---|",
    ]
    for model in models:
        of = [cells[key(model, list(WAYS)[2], steps, r)] for r in range(rounds)]
        said = formula(of[0])
        parts = [said["gradients"], said["embeddings"], said.get("BatchNorm", 0) + said.get("buffers", 0)]
        numbers = [statistics.median(cell["bytes"] for cell in of), sum(said.values()), *parts]
        lines.append(f"| {MODELS[model][0]} | {' | '.join(f'{x / 1e6:,.2f} MB' for x in numbers)} |")
    return lines


def predicted_table(machine: cost.Machine, works: list[cost.Work]) -> list[str]:
    lines = [
        "| method | strategy | GPUs | samples/s | efficiency | sent a step by a GPU | memory of a GPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in works:
        for strategy in cost.STRATEGIES:
            for n in GPUS:
                step = cost.step(work, machine, n, strategy)
                sent, memory = sum(step.sent.values()) / 1e6, sum(step.memory.values()) / 1e9
                rate = n * work.batch / step.seconds
                row = [work.name, strategy, str(n), f"{rate:,.0f}", f"{100 * step.efficiency:.0f} %", f"{sent:,.0f} MB", f"{memory:.1f} GB"]
                lines.append(f"| {' | '.join(row)} |")
    return lines


def assumptions(machine: cost.Machine, works: list[cost.Work]) -> list[str]:
    links = ((machine.inside, "within a node"), (machine.between, "between nodes, all cards of a node together"))
    return [
        *(f"- {work.name}: {work.batch} samples a GPU, {work.rate:,.0f} samples/s of one alone: {work.source}." for work in works),
        *(f"- {link.bandwidth / 1e9:,.0f} GB/s and {link.latency * 1e6:g} µs a message {where}." for link, where in links),
        f"- Bandwidths are {plans.OF_PEAK} of the data sheet's; the share and the latencies are assumed, not measured.",
        "- Data arrive in time; views, the optimizer and the rounding of kernels are in the published rate of one GPU.",
        "- Gradients are float32 and sent beside the backward pass, two thirds of a step; FSDP and HSDP gather weights in bfloat16, twice "
        "(sslt gathers them in float32 so far: twice these bytes).",
        "- BatchNorm and the exchange of embeddings wait for every rank; an all-gather has N−1 messages one after the other.",
        "- Nobody is late: a rank that computes for longer than others holds all of them, which the model does not have.",
    ]


def document(cells: dict[str, dict[str, float]], models: list[str], args: argparse.Namespace) -> str:
    machine = plans.dgx_a100(args.inside * 1e9, args.between * 1e9, args.hop * 1e-6, args.far * 1e-6)
    works = [plans.simclr_resnet50(args.simclr_batch), plans.dino_vit_large(args.dino_batch)]
    at = f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, no GPU"
    command = shlex.join(["python", "scripts/bench_scale.py", *sys.argv[1:]])
    return "\n".join(
        [
            f"# How a run scales\n\nWritten by the command\n\n    {command}\n",
            f"## One and two processes, measured\n\nOn {at}; {BATCH} samples a step of all processes together, "
            f"{args.steps} steps, DDP with gloo.\nWays take turns; a figure is the median of {args.rounds} rounds, a ratio the median over "
            "rounds of the same round, with its range.\nTwo ranks on two cores have what one process with two threads has.\n",
            *measured_table(cells, models, args.steps, args.rounds),
            "\nBytes are those of both ranks on the loopback device, with headers and acknowledgements; the formula is that of\n"
            "`scripts/bench/cost.py`.\n",
            *sent_table(cells, models, args.steps, args.rounds),
            f"\n## Many GPUs, predicted\n\nNothing here is measured: `scripts/bench/cost.py` computes it for nodes of {machine.gpus} A100 "
            f"({machine.name}), with these assumptions:\n",
            *assumptions(machine, works),
            "",
            *predicted_table(machine, works),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of each run")
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--folder", type=Path, default=Path(".scale"))
    parser.add_argument("--doc", type=Path, help="the page to write; otherwise it is printed")
    machine = plans.dgx_a100()
    parser.add_argument("--inside", type=float, default=machine.inside.bandwidth / 1e9, help="GB/s of a GPU within a node")
    parser.add_argument("--between", type=float, default=machine.between.bandwidth / 1e9, help="GB/s of a node")
    parser.add_argument("--hop", type=float, default=machine.inside.latency * 1e6, help="µs of a message within a node")
    parser.add_argument("--far", type=float, default=machine.between.latency * 1e6, help="µs of a message between nodes")
    parser.add_argument("--simclr-batch", type=int, default=plans.simclr_resnet50().batch, help="samples a GPU")
    parser.add_argument("--dino-batch", type=int, default=plans.dino_vit_large().batch, help="samples a GPU")
    args = parser.parse_args()
    models = args.only.split(",")
    page = document(measure(models, args.rounds, args.steps, args.folder), models, args)
    print(page)
    if args.doc:
        args.doc.write_text(page)


if __name__ == "__main__":
    main()
