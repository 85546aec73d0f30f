"""Loss values of sslt beside LightlySSL's on the same random tensors, and the largest difference between them.

    python scripts/check_against_peers.py [--only simclr,vicreg] [--seeds 5] [--json FILE]

Each objective runs as in training, with its YAML's settings; only its heads are left out, so that both sides start from the same
projections. Where a difference is a choice, the peer's value is brought to our scale before it is compared, and the choice is told in
a sentence. The exit code is 1 if values differ by more than 1e-4 of themselves, or gradients by more than 1e-3, unexplained.
LightlySSL is an extra: pip install -e '.[peers]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from losses import tokens, views
from losses.common import Row
from torch import Tensor

from sslt import groups

VALUES, GRADIENTS = 1e-4, 1e-3  # largest relative difference that is let pass
SHAPES = ((16, 8), (64, 16), (256, 64))  # samples, width of a projection

# +task= → (its comparison, the peer's class)
COMPARISONS: dict[str, tuple[Callable[[Tensor], Iterator[Row]], str]] = {
    "simclr": (views.simclr, "NTXentLoss"),
    "moco_v2": (views.moco_v2, "NTXentLoss with memory bank"),
    "nnclr": (views.nnclr, "NNMemoryBankModule, NTXentLoss"),
    "dcl": (views.dcl, "DCLLoss"),
    "supcon": (views.supcon, "NTXentLoss"),
    "byol": (views.byol, "NegativeCosineSimilarity"),
    "simsiam": (views.simsiam, "NegativeCosineSimilarity"),
    "barlow_twins": (views.barlow_twins, "BarlowTwinsLoss"),
    "vicreg": (views.vicreg, "VICRegLoss"),
    "wmse": (views.wmse, "WMSELoss"),
    "lejepa": (views.lejepa, "SIGReg, lejepa_invariance_loss"),
    "dino": (tokens.dino, "DINOLoss"),
    "ibot": (tokens.ibot, "DINOLoss, IBOTPatchLoss"),
    "msn": (tokens.msn, "MSNLoss"),
    "swav": (tokens.swav, "SwaVLoss"),
    "mae": (tokens.mae, "patchify, normalize_mean_var"),
    "simmim": (tokens.simmim, "patchify"),
    "ijepa": (tokens.ijepa, "apply_masks"),
}


# ---------------------------------------------------------------- the whole
def draw(b: int, d: int, seed: int) -> Tensor:
    """Two views [2, B, D] that resemble each other."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(1, b, d, generator=g) + 0.5 * torch.randn(2, b, d, generator=g)
    return z.requires_grad_()


def difference(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ over ‖a‖."""
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def compare(name: str, seeds: int) -> list[dict[str, Any]]:
    """Every setting of an objective, with the largest differences over seeds and shapes; values are of the last draw."""
    function, theirs = COMPARISONS[name]
    found: dict[int, dict[str, Any]] = {}
    for b, d in SHAPES:
        for seed in range(seeds):
            torch.manual_seed(seed)
            z = draw(b, d, seed)
            for i, row in enumerate(function(z)):
                same = row.theirs if row.comparable is None else row.comparable
                entry = found.setdefault(i, {"objective": name, "peer": theirs, "value": 0.0, "gradient": 0.0})
                entry |= {"settings": row.settings, "ours": row.ours.item(), "theirs": row.theirs.item(), "comparable": same.item()}
                entry |= {"choice": row.choice, "counted": row.counted}
                entry["value"] = max(entry["value"], difference(row.ours.detach(), same.detach()))
                if row.ours.requires_grad:
                    slopes = (torch.autograd.grad(x, z, retain_graph=True)[0] for x in (row.ours, same))
                    entry["gradient"] = max(entry["gradient"], difference(*slopes))
    for entry in found.values():
        entry["agrees"] = entry["value"] <= VALUES and entry["gradient"] <= GRADIENTS
    return list(found.values())


def show(rows: list[dict[str, Any]]) -> None:
    """A Markdown table, and the choices below it."""
    head = ["objective", "settings", "LightlySSL", "ours", "theirs", "theirs, our scale", "values differ", "gradients", ""]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    notes: list[str] = []
    for r in rows:
        if r["choice"] and r["choice"] not in notes:
            notes.append(r["choice"])
        mark = f" [{notes.index(r['choice']) + 1}]" if r["choice"] else ""
        verdict = "" if not r["counted"] else "agrees" if r["agrees"] else "DIFFERS"
        cells = [r["objective"], r["settings"], r["peer"], f"{r['ours']:.6g}", f"{r['theirs']:.6g}", f"{r['comparable']:.6g}"]
        cells += [f"{r['value']:.1e}", f"{r['gradient']:.1e}", verdict + mark]
        print("| " + " | ".join(cells) + " |")
    print()
    for i, note in enumerate(notes):
        print(f"[{i + 1}] {note}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(COMPARISONS), help="some of: " + ",".join(COMPARISONS))
    parser.add_argument("--seeds", type=int, default=5, help="draws of each shape")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(COMPARISONS):
        parser.error(f"--only {','.join(sorted(unknown))}: there is {', '.join(COMPARISONS)}")
    rows = [row for name in names for row in compare(name, args.seeds)]
    from importlib.metadata import version

    print(f"lightly {version('lightly')}, torch {torch.__version__}; shapes {SHAPES}, {args.seeds} seeds each; values of the last draw.\n")
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [f"{r['objective']} ({r['settings']})" for r in rows if r["counted"] and not r["agrees"]]
    print(f"\nTasks for which LightlySSL has no loss: {', '.join(sorted(set(groups.options('task')) - set(COMPARISONS)))}")
    print(f"{len(rows)} comparisons" + (f", unexplained: {', '.join(failed)}" if failed else ", no unexplained difference"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
