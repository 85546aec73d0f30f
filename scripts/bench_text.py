"""Speed of language models against Hugging Face's Trainer and Seq2SeqTrainer, and of SASRec against plain PyTorch, in one process and run.

    python scripts/bench_text.py [--rounds 5] [--only causal,seq2seq,writing,items] [--memory] [--json FILE]

Contenders take turns (A B C A B C ...); a ratio is the median over rounds of theirs / ours in the same round. Set-up and the first steps
of a round are not counted. The peers are an extra: pip install -e '.[peers]'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import items, memory, texts
from bench.rounds import Comparison, Contender, measure
from bench_pretrain import machine, show, show_memory

from sslt.data import cache

PARTS = ("causal", "seq2seq", "writing", "items")


def main() -> None:
    """Measure what was asked for, print one table each, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--only", default=",".join(PARTS), help="some of: " + ",".join(PARTS))
    parser.add_argument("--json", type=Path, help="file for all numbers, round by round")
    parser.add_argument("--steps", type=int, default=6, help="counted steps a round")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of training, each contender in its own process")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "comparisons": []}
    with tempfile.TemporaryDirectory(prefix="sslt-bench-") as name:
        folder = Path(name)
        cache.set_cache_dir(folder / "cache")
        if args.memory_of is not None:
            return memory.report(causal(args.steps, folder).contenders[args.memory_of])
        print("  ".join(f"{k}: {v}" for k, v in found["machine"].items()))
        makers = {
            "causal": lambda: causal(args.steps, folder),
            "seq2seq": lambda: seq2seq(3 * args.steps, folder),
            "writing": lambda: writing(folder),
            "items": lambda: histories(args.steps, folder),
        }
        for part in args.only.split(","):
            comparison = makers[part]()
            result = measure(comparison, args.rounds)
            show(result)
            found["comparisons"].append(result)
            if args.memory and part == "causal":
                result["memory"] = memory.measure_memory(__file__, ["--only", part], [row["name"] for row in result["rows"]])
                show_memory(result["memory"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def causal(steps: int, folder: Path) -> Comparison:
    """GPT-2 of 4 layers, 256 wide, on rows of 128 tokens."""
    job = texts.causal("gpt_mini", 32, 128, 2 + steps, folder)
    contenders = [
        Contender("sslt", job.precision, job.run, tuned=True),
        Contender("Hugging Face Trainer", "32-true", texts.trainer(job, False, folder / "hf"), 2.5),
    ]
    if job.precision.startswith("bf16"):
        run = texts.trainer(job, True, folder / "hf")
        contenders.append(Contender("Hugging Face Trainer, same precision", job.precision, run, 1.5))
    return Comparison("causal language model, GPT-2 of 4 layers, 32 x 128 tokens", "tokens", 32 * 128, contenders, 2, steps)


def seq2seq(steps: int, folder: Path) -> Comparison:
    """mBART of 2 + 2 layers, 128 wide, on ragged pairs: an epoch a round, so that every batch is counted as often as any other."""
    job = texts.seq2seq("mbart_tiny", 64, steps, folder)
    contenders = [
        Contender("sslt", job.precision, job.run, tuned=True),
        Contender("Seq2SeqTrainer", "32-true", texts.seq2seq_trainer(job, False, folder / "hf"), 1.5),
    ]
    if job.precision.startswith("bf16"):
        contenders.append(Contender("Seq2SeqTrainer, same precision", job.precision, texts.seq2seq_trainer(job, True, folder / "hf")))
    return Comparison("mBART of 2 + 2 layers, 64 pairs of 4 to 60 words", "pairs", 64, contenders, 2, steps - 2)


def writing(folder: Path) -> Comparison:
    """T5 of 2 + 2 layers, greedy, 256 texts of 8 to 99 tokens, replies of 64 at most."""
    ours, theirs = texts.writing("t5_tiny", 64, 256, 64, folder)
    contenders = [
        Contender("sslt", "32-true", ours),
        Contender("Seq2SeqTrainer.predict, its batches of 8", "32-true", theirs(8), 2.0),
        Contender("Seq2SeqTrainer.predict, batches of 64 as well", "32-true", theirs(64), 2.0),
    ]
    return Comparison("writing to 256 texts, T5 of 2 + 2 layers, greedy, at most 64 tokens", "texts", 256, contenders, 1, 1)


def histories(steps: int, folder: Path) -> Comparison:
    """SASRec of 2 layers, 64 wide, on 128 histories of about 7 items out of 22,437, softmax over all of them."""
    job = items.sasrec(128, 2 + steps, folder)
    contenders = [
        Contender("sslt", job.precision, job.run, tuned=True),
        Contender("plain PyTorch", "32-true", items.plain(job, False), 3.0),
    ]
    if job.precision.startswith("bf16"):
        contenders.append(Contender("plain PyTorch, same precision", job.precision, items.plain(job, True)))
    return Comparison("SASRec, softmax over 22,437 items, 128 histories", "histories", 128, contenders, 2, steps)


if __name__ == "__main__":
    try:
        main()
    except ModuleNotFoundError as e:
        if e.name != "accelerate":
            raise
        sys.exit(f"this comparison needs {e.name}: pip install -e '.[peers]'")
