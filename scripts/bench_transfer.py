"""Speed of transfer: LoRA against Hugging Face's Trainer with peft, and probes against training a frozen model.

    python scripts/bench_transfer.py [--rounds 5] [--only lora,probe,curve] [--json FILE]

In one process and one run; contenders take turns (A B A B ...), a ratio is the median over rounds of theirs / ours in the
same round. The peers are an extra: pip install -e '.[peers,peft]'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import hugging_face, ours
from bench.rounds import Comparison, Contender, measure, now
from bench_pretrain import GPU, WARM, machine, show

from sslt import config
from sslt.data import cache
from sslt.data.base import Samples
from sslt.data.streams.subsets import labels_of
from sslt.evaluation import label_curve
from sslt.evaluation.features import encode
from sslt.learner import Term
from sslt.runs import Run
from sslt.stages import common, fitting

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
EPOCHS = 100  # of training a head on a frozen model, as is usual (90 to 100), where it sees every image anew


def main() -> None:
    """Measure what was asked for, print one table each, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="lora,probe,curve")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rounds": args.rounds, "comparisons": [], "probes": []}
    print("  ".join(f"{k}: {v}" for k, v in found["machine"].items()))
    with tempfile.TemporaryDirectory(prefix="sslt-bench-") as name:
        folder = Path(name)
        cache.set_cache_dir(folder / "cache")
        if "lora" in args.only:
            result = measure(lora(folder), args.rounds)
            found["comparisons"].append(result)
            show(result)
        if "probe" in args.only or "curve" in args.only:
            found["probes"] = probes(folder, min(args.rounds, 3), args.only)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def lora(folder: Path) -> Comparison:
    """Classify texts of 16 to 128 tokens with BERT-mini and LoRA of rank 8 on queries and values, batches of 32."""
    job = ours.lora("bert_mini", batch=32 if not GPU else 256, longest=128, steps=WARM + (20 if not GPU else 60), folder=folder)
    contenders = [
        Contender("sslt", job.precision, job.run, tuned=True),
        Contender("Hugging Face Trainer + peft", "32-true", hugging_face.lora(job, False, folder / "hf"), 1.3),
    ]
    if job.precision.startswith("bf16"):
        run = hugging_face.lora(job, True, folder / "hf")
        contenders.append(Contender("Hugging Face Trainer + peft, same precision", job.precision, run, 1.3))
    size = job.stream.batch_size
    return Comparison(f"LoRA, BERT-mini, {size} texts of 16 to 128 tokens", "texts", size, contenders, WARM, 20 if not GPU else 60)


def probes(folder: Path, rounds: int, only: str) -> list[dict[str, Any]]:
    """A linear probe against training a head on the frozen encoder epoch by epoch; a curve of six probes against the pass."""
    file = folder / "probe.npz"
    images = ours.smooth_images(3000, 32)
    labels = (images.astype(np.float32).mean((1, 2)).argmax(1)).astype(np.int64)  # the strongest colour: something to learn
    np.savez(file, x_train=images[:2000], y_train=labels[:2000], x_test=images[2000:], y_test=labels[2000:])
    cfg = config.compose(
        "finetune",
        ["from=scratch", "data=arrays", f"data.path={file}", "encoder=resnet_small", "adaptation=probe", "adaptation.augment=true",
         f"trainer.max_epochs={EPOCHS}", "batch_size=128", "val_every_n_epochs=0"],
    )  # fmt: skip
    source = config.build(cfg.data)
    encoder = common.starting_encoder(cfg, source)
    splits = [common.prepare(encoder, source, s) for s in ("train", "val", "test")]
    device = common.device_of(cfg)
    rows = []
    for r in range(rounds):
        row: dict[str, Any] = {}
        started = now()
        x = [encode(encoder, s, device, 256) for s in splits]
        row["pass"] = now() - started
        pairs = [(f, labels_of(s)) for f, s in zip(x, splits, strict=True)]
        started = now()
        label_curve.linear_curve(*pairs, len(source.classes), [1.0], seed=0)
        row["one probe"] = now() - started
        started = now()
        label_curve.linear_curve(*pairs, len(source.classes), FRACTIONS, seed=0)
        row["six probes"] = now() - started
        if "probe" in only:
            started = now()
            _train_frozen(cfg, encoder, splits[0], len(source.classes), folder / f"frozen{r}")
            row["frozen training"] = now() - started
        rows.append(row)
        print(f"round {r + 1}/{rounds}", {k: round(v, 2) for k, v in row.items()})
    middle = lambda f: statistics.median(map(f, rows))  # noqa: E731
    cost = middle(lambda r: (r["pass"] + r["six probes"]) / r["pass"])
    print(f"\nsix label fractions: {cost:.2f} x one feature pass (aim: 1.2 and seconds)")
    if "probe" in only:
        ratio = middle(lambda r: r["frozen training"] / (r["pass"] + r["one probe"]))
        print(f"a head trained on the frozen model for {EPOCHS} epochs: {ratio:.1f} x a linear probe, feature pass included (aim: 20)")
    return rows


def _train_frozen(cfg: Any, encoder: Any, samples: Samples, n_classes: int, folder: Path) -> None:
    run = Run(folder)
    run.path.mkdir(parents=True)
    objective = config.build(cfg.objective, encoder, space={"classes": [str(i) for i in range(n_classes)]})
    stream = common.stream(cfg, samples, cfg.batch_size, config.build(cfg.views), drop_last=False)
    torch.manual_seed(0)
    fitting.fit(cfg, run, encoder, {"finetune": Term(objective, "finetune")}, {"finetune": stream}, config.build(cfg.adaptation))


if __name__ == "__main__":
    main()
