"""What `bench/cost.py` is asked of: a machine, and two methods at the sizes that their papers have, with where each figure is from."""

from __future__ import annotations

from bench.cost import NARROW, WIDE, Link, Machine, Work

A100_FLOPS = 312e12  # bf16 with float32 sums, NVIDIA's data sheet
OF_PEAK = 0.8  # of a link's data sheet that collectives get
# NVIDIA DeepLearningExamples, ResNet-50 v1.5 for PyTorch, DGX A100 80GB, 1 GPU, mixed precision
RESNET50_IMAGES = 2470.0
# NVIDIA's NeMo user guide, performance of ViT: g/14 on one DGX A100, samples/s of 8 GPUs
VIT_G_SAMPLES = 693.0


def dgx_a100(inside: float = 300e9 * OF_PEAK, between: float = 8 * 25e9 * OF_PEAK, hop: float = 5e-6, far: float = 15e-6) -> Machine:
    """8 A100 of 80 GB with NVLink (300 GB/s each way) and a 200 Gb/s card each. hop, far: seconds of a message in a node, between nodes."""
    return Machine("DGX A100", 8, Link(inside, hop), Link(between, far), 80e9)


def vit_macs(tokens: int, width: int, depth: int, hidden: int) -> float:
    """Multiplications of a forward pass: four projections, two matrices of the MLP, and tokens with tokens twice."""
    return float(depth * (tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width))


def used_of_peak() -> float:
    """Share of an A100's peak that training a ViT reaches, by NeMo's ViT g/14 (257 tokens, 40 blocks, 1408 wide, MLP 6144)."""
    return VIT_G_SAMPLES / 8 * 3 * 2 * vit_macs(257, 1408, 40, 6144) / A100_FLOPS


def simclr_resnet50(batch: int = 128) -> Work:
    """SimCLR with two views and a projector 2048-2048-128."""
    return Work(
        "SimCLR, ResNet-50",
        parameters=25_557_032 - 2_049_000 + 2048 * 2048 + 2 * 2048 + 2048 * 128,
        rate=RESNET50_IMAGES / 2,
        batch=batch,
        activations=2 * 11.1e6 * 2.5 * NARROW,  # timm: 11.1M outputs of convolutions; BatchNorm and ReLU keep theirs, too
        block=6_039_552,
        channels=26_560 + 2048,
        norms=53 + 1,
        gathered=2 * 128,
        rows=2,
        source="2,470 images/s of an A100 (NVIDIA DeepLearningExamples, ResNet-50 v1.5 for PyTorch, mixed precision), two of them a sample",
    )


def dino_vit_large(batch: int = 48, small: int = 8) -> Work:
    """DINO with ViT-L/16: two views of 224², `small` of 96², a teacher that sees the first two, a head 1024-2048-2048-256-65536."""
    large, little = vit_macs(197, 1024, 24, 4096), vit_macs(37, 1024, 24, 4096)
    flops = 2 * (3 * (2 * large + small * little) + 2 * large)
    head = 1024 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 65536
    return Work(
        "DINO, ViT-L/16",
        parameters=303_301_632 + head,
        held=303_301_632 + head,
        rate=used_of_peak() * A100_FLOPS / flops,
        batch=batch,
        # 34 bytes a token, channel and block (Korthikanti et al., 2022, without attention's pairs of tokens); logits of all views
        activations=24 * 34 * 1024 * (2 * 197 + small * 37) + (4 + small) * 65536 * WIDE,
        block=256 * 65536,
        reduced=65536,
        source=f"{flops / 1e9:,.0f} GFLOP a sample at {used_of_peak():.2f} of an A100's 312 TFLOP/s, as NeMo's ViT g/14 reaches "
        "(user guide: 693 samples/s of 8 A100)",
    )
