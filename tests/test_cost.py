"""Protects what is predicted for many GPUs: bytes by the known formulas, and what follows where one part is all there is."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

GB = 1e9


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "scripts"))
    from bench import cost

    return cost


@pytest.fixture
def machine(cost):
    """Links that take a second for 100 GB in a node and for 10 GB between nodes of four."""
    return cost.Machine("m", 4, cost.Link(100 * GB, 0.0), cost.Link(10 * GB, 0.0), 80 * GB)


@pytest.fixture
def work(cost):
    """3 s of computation a step, a gigabyte of gradients, in ten blocks."""
    return cost.Work("w", parameters=GB / 4, rate=2.0, batch=6, activations=1.0, block=GB / 40)


@pytest.mark.parametrize(("n", "share"), [(1, 0), (2, 1), (4, 1.5), (8, 1.75), (512, 2 * 511 / 512)])
def test_bytes_of_a_ring(n, share, cost):
    """2(N−1)/N·S of an all-reduce, which is a reduce-scatter and an all-gather."""
    assert cost.all_reduce(n, 100) == pytest.approx(100 * share)
    assert cost.reduce_scatter(n, 100) + cost.all_gather(n, 100) == pytest.approx(100 * share)


def test_a_ring_as_it_is_walked(cost):
    """Each of N ranks passes a part of N on, first adding to it and then as it is: counted by doing so."""
    n, parts = 5, 20
    values, sent = [[float(r)] * n for r in range(n)], 0
    for turn in range(2 * (n - 1)):
        moved = []
        for r in range(n):
            part = (r - turn + (turn >= n - 1)) % n if turn < n - 1 else (r + 1 - (turn - (n - 1))) % n
            moved.append((r, part, values[r][part]))
        for r, part, value in moved:
            there = values[(r + 1) % n]
            there[part] = there[part] + value if turn < n - 1 else value
        sent += parts // n
    assert all(v == [float(sum(range(n)))] * n for v in values) and sent == cost.all_reduce(n, parts)


def test_one_gpu_sends_nothing(work, machine, cost):
    for strategy in cost.STRATEGIES:
        alone = cost.step(dataclasses.replace(work, channels=4, norms=2, gathered=4, reduced=4), machine, 1, strategy)
        assert alone.sent == {"gradients": 0} if strategy == "ddp" else sum(alone.sent.values()) == 0
        assert alone.waiting == 0 and alone.efficiency == 1 and alone.seconds == 3


def test_gradients_that_fit_beside_the_backward_pass_are_waited_for_in_their_last_part_alone(work, machine, cost):
    """In a node 15 ms, of which the last bucket; with slow cables 175 s less two of the backward pass."""
    near = cost.step(work, machine, 4)
    assert near.sent == {"gradients": 1.5 * GB} and near.waiting == pytest.approx(0.015 * cost.BUCKET / GB)
    slow = dataclasses.replace(machine, between=cost.Link(0.01 * GB, 0.0))
    far = cost.step(work, slow, 8)
    assert far.waiting == pytest.approx(175 - 2) and far.efficiency == pytest.approx(3 / 176)


def test_fsdp_sends_weights_twice_and_gradients_once(work, machine, cost):
    """Weights in bfloat16, gradients in float32: 2·½ + 1 of (N−1)/N; HSDP does so within a node, and reduces shards between them."""
    share = 7 / 8 * GB
    assert cost.step(work, machine, 8, "fsdp").sent == pytest.approx({"weights": share, "gradients": share})
    both = cost.step(work, machine, 8, "hsdp").sent
    assert both == pytest.approx({"weights": 0.75 * GB, "gradients": 0.75 * GB + cost.all_reduce(2, GB / 4)})
    assert cost.step(work, machine, 4, "hsdp") == cost.step(work, machine, 4, "fsdp")


def test_memory_is_divided_by_who_shards(work, machine, cost):
    """16 bytes a parameter: weight, gradient and two moments."""
    name = "weights, gradients, Adam's moments"
    found = {s: cost.step(work, machine, 8, s).memory[name] for s in cost.STRATEGIES}
    assert found == {"ddp": 4 * GB, "fsdp": 0.5 * GB, "hsdp": 1 * GB}


def test_latency_counts_by_messages(work, machine, cost):
    """Two logarithms for a sum; one for each BatchNorm, beside as many as there are others for what all need of all."""
    late = dataclasses.replace(machine, between=cost.Link(1e30, 1.0))
    summed = cost.step(dataclasses.replace(work, parameters=1.0, reduced=5), late, 16)
    assert summed.waiting == pytest.approx(8 + 8)  # the centre, and the one bucket of gradients, which is the last
    normed = cost.step(dataclasses.replace(work, parameters=1.0, channels=7, norms=3), late, 16)
    assert normed.waiting == pytest.approx(3 * (15 + 8) + 15 + 8)


def test_embeddings_grow_with_the_ranks(work, machine, cost):
    """The rows of all to all, and the sum of all rows' gradients: (N−1 + 2(N−1))·s for s bytes of a rank."""
    found = cost.step(dataclasses.replace(work, gathered=256), machine, 8).sent["embeddings"]
    assert found == pytest.approx(3 * 7 * 6 * 256 * 4)


@pytest.mark.parametrize(("n", "strategy", "words"), [(8, "zero", "one of ddp, fsdp, hsdp"), (6, "ddp", "not whole nodes of 4")])
def test_what_cannot_be_is_refused(n, strategy, words, work, machine, cost):
    with pytest.raises(ValueError, match=words):
        cost.step(work, machine, n, strategy)


def test_plans_are_the_published_sizes(cost):
    """ViT-L/16: 61.6 GFLOP, where a multiplication and a sum are one; ViT g trains at less than the peak; both fit in memory."""
    from bench import plans

    assert plans.vit_macs(197, 1024, 24, 4096) / 1e9 == pytest.approx(61.6, rel=0.01)
    assert 0.3 < plans.used_of_peak() < 0.6
    for work in (plans.simclr_resnet50(), plans.dino_vit_large()):
        found = [cost.step(work, plans.dgx_a100(), n) for n in (1, 8, 64, 512)]
        assert all(sum(x.memory.values()) < 80 * GB for x in found)
        assert [x.efficiency for x in found] == sorted((x.efficiency for x in found), reverse=True)


def test_a_measurement_goes_on_where_it_was_left_and_is_told_in_one_page(cost, tmp_path, monkeypatch, capsys):
    """Ratios are of the same round, bytes stand beside the formula's for what was counted, and no cell is measured twice."""
    import bench_scale

    done = []

    def run(model, way, steps, folder):
        done.append((model, way))
        if len(done) == 4:
            raise KeyboardInterrupt
        rate = {"one process, 1 thread": 10.0, "one process, 2 threads": 16.0, "two ranks, 1 thread each": 18.0}[way]
        return {"bytes": 9e6, "parameters": 1e6, "channels": 100, "norms": 2, "rate": rate * (1 + len(done) // 4)}

    monkeypatch.setattr(bench_scale, "run", run)
    args = ["--rounds", "2", "--only", "vit", "--folder", str(tmp_path), "--doc", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["bench_scale.py", *args])
    with pytest.raises(KeyboardInterrupt):
        bench_scale.main()
    assert len(json.loads((tmp_path / "cells.json").read_text())) == 3
    bench_scale.main()
    assert len(done) == 7
    page = (tmp_path / "page.md").read_text()
    assert "python scripts/bench_scale.py --rounds 2 --only vit" in page and page in capsys.readouterr().out
    assert "| two ranks, 1 thread each | 27.0 | 1.80 (1.80 to 1.80) | 1.12 (1.12 to 1.12) |" in page
    rows, norm = 2 * 32 * 2 * 128 * 4, 2 * (2 * 100 + 2) * 8 / 2 + 2 * 100 * 4 + (2 * 100 * 4 + 2 * 8) / 2  # of two ranks; of one
    whole = 8e6 + 2 * (rows / 2 + rows) + 2 * norm
    assert f"| 9.00 MB | {whole / 1e6:.2f} MB | 8.00 MB |" in page
    assert page.count("| DINO, ViT-L/16 | fsdp |") == 3
