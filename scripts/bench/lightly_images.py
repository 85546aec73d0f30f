"""LightlySSL's methods as its PyTorch examples have them: its heads, losses and transforms, a forward for each view.

Widths are those of our heads, the optimizer is a plain AdamW, the memory format torch's default. At 32 pixels nothing is blurred, as in
its examples on CIFAR-10, and nothing is solarised, as in ours.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bench.device import autocast, device
from bench.ours import Pretraining
from bench.rounds import Watch


class Pictures(Dataset):
    """PIL images made from an array one by one, as torchvision's CIFAR10 does, through a transform."""

    def __init__(self, images: np.ndarray, transform: Callable[[Any], Any]):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> list[Tensor]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i]))


class Example(nn.Module):
    """One method: `forward(views)` is the loss of a step. Raises ImportError where LightlySSL is not installed."""

    def __init__(self, ours: Pretraining):
        super().__init__()
        self.backbone = copy.deepcopy(ours.encoder.model).to(memory_format=torch.contiguous_format)

    @staticmethod
    def transform(ours: Pretraining) -> Callable[[Any], Any]:
        return simclr_transform(ours.encoder.processor.size)


def simclr_transform(size: int) -> Callable[[Any], Any]:
    """SimCLRTransform with its defaults; at 32 pixels without blur."""
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=size, gaussian_blur=0.0) if size <= 32 else SimCLRTransform(input_size=size)


def _widths(head: nn.Module) -> tuple[int, int, int]:
    """Input, hidden and output width of one of our heads."""
    layers = [m for m in head.modules() if isinstance(m, nn.Linear)]
    return layers[0].in_features, layers[0].out_features, layers[-1].out_features


class SimCLR(Example):
    def __init__(self, ours: Pretraining):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead

        super().__init__(ours)
        self.head = SimCLRProjectionHead(*_widths(ours.objective.projector))
        self.criterion = NTXentLoss(temperature=ours.objective.temperature)

    def forward(self, views: list[Tensor]) -> Tensor:
        z0, z1 = (self.head(self.backbone(x).flatten(start_dim=1)) for x in views)
        return self.criterion(z0, z1)


class BarlowTwins(Example):
    def __init__(self, ours: Pretraining):
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules import BarlowTwinsProjectionHead

        super().__init__(ours)
        self.head = BarlowTwinsProjectionHead(*_widths(ours.objective.projector))
        self.criterion = BarlowTwinsLoss()

    def forward(self, views: list[Tensor]) -> Tensor:
        z0, z1 = (self.head(self.backbone(x).flatten(start_dim=1)) for x in views)
        return self.criterion(z0, z1)


class BYOL(Example):
    def __init__(self, ours: Pretraining):
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

        super().__init__(ours)
        self.head = BYOLProjectionHead(*_widths(ours.objective.projector))
        self.predictor = BYOLPredictionHead(*_widths(ours.objective.predictor))
        self.teacher, self.teacher_head = (copy.deepcopy(m).requires_grad_(False) for m in (self.backbone, self.head))
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform(ours: Pretraining) -> Callable[[Any], Any]:
        from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

        size = ours.encoder.processor.size
        blur = {"gaussian_blur": 0.0} if size <= 32 else {}
        first = BYOLView1Transform(input_size=size, **blur)
        return BYOLTransform(first, BYOLView2Transform(input_size=size, solarization_prob=0.0, **blur))

    def forward(self, views: list[Tensor]) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher, m=0.99)
        update_momentum(self.head, self.teacher_head, m=0.99)
        p0, p1 = (self.predictor(self.head(self.backbone(x).flatten(start_dim=1))) for x in views)
        z0, z1 = (self.teacher_head(self.teacher(x).flatten(start_dim=1)).detach() for x in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class DINO(Example):
    def __init__(self, ours: Pretraining):
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        super().__init__(ours)
        *widths, bottleneck = _widths(ours.objective.projector)
        out = ours.objective.prototypes.weight.shape[0]
        self.head, self.teacher_head = (DINOProjectionHead(*widths, bottleneck, out) for _ in range(2))
        self.teacher = copy.deepcopy(self.backbone)
        for module in (self.teacher, self.teacher_head):
            module.requires_grad_(False)
        self.criterion = DINOLoss(output_dim=out, warmup_teacher_temp_epochs=5)

    @staticmethod
    def transform(ours: Pretraining) -> Callable[[Any], Any]:
        from lightly.transforms import DINOTransform

        size, (count, _, _, _, small) = ours.encoder.processor.size, ours.views(0, torch.device("cpu"))["local"]["image"].shape
        blur = {"gaussian_blur": (0.0, 0.0, 0.0)} if size <= 32 else {}
        return DINOTransform(global_crop_size=size, local_crop_size=small, n_local_views=count, solarization_prob=0.0, **blur)

    def forward(self, views: list[Tensor]) -> Tensor:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher, m=0.99)
        update_momentum(self.head, self.teacher_head, m=0.99)
        taught = [self.teacher_head(self.teacher(x).flatten(start_dim=1)) for x in views[:2]]
        return self.criterion(taught, [self.head(self.backbone(x).flatten(start_dim=1)) for x in views], epoch=0)


class MAE(Example):
    """With our encoder, which has no class token: any token may be hidden, and none stands before the patches."""

    def __init__(self, ours: Pretraining):
        import timm
        from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
        from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM

        super().__init__(ours)
        args, size = ours.encoder.args, ours.encoder.processor.size
        vit = timm.create_model(args["name"], num_classes=0, img_size=size, **args["args"])
        self.patch_size, self.share = vit.patch_embed.patch_size[0], ours.objective.share
        width, blocks = ours.objective.embed.out_features, ours.objective.decoder.blocks
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.embed = nn.Linear(vit.embed_dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, width, len(blocks), blocks[0].attn.num_heads, num_prefix_tokens=0
        )
        self.predict = nn.Linear(width, self.patch_size**2 * 3)
        self.criterion = nn.MSELoss()

    @staticmethod
    def transform(ours: Pretraining) -> Callable[[Any], Any]:
        from lightly.transforms import MAETransform

        return MAETransform(input_size=ours.encoder.processor.size)

    def forward(self, views: list[Tensor]) -> Tensor:
        from lightly.models import utils

        images, length = views[0], self.backbone.sequence_length
        keep, masked = utils.random_token_mask((len(images), length), self.share, mask_class_token=True, device=images.device)
        known = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, keep, known.type_as(tokens))
        drawn = self.predict(utils.get_at_index(self.decoder(tokens), masked))
        return self.criterion(drawn, utils.get_at_index(utils.patchify(images, self.patch_size), masked))


def training(ours: Pretraining, method: type[Example], precision: str, workers: int) -> Callable[[Watch], None]:
    """The example's loop on the same images."""
    model = method(ours).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pictures = Pictures(ours.samples.images, method.transform(ours))
    loader = DataLoader(pictures, batch_size=ours.stream.batch_size, shuffle=True, drop_last=True, num_workers=workers)

    def run(watch: Watch) -> None:
        model.train()
        batches = iter(_epochs(loader))

        def step() -> None:
            views = [x.to(device()) for x in next(batches)]
            with autocast(precision):
                loss = model(views)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        watch.drive(step)

    return run


def _epochs(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def best_workers(ours: Pretraining, method: type[Example], precision: str) -> int:
    """How many loader processes serve LightlySSL best here: none, two, or one for every core."""
    found = {}
    for workers in sorted({0, 2, os.cpu_count() or 2}):
        watch = Watch(2, 3)
        training(ours, method, precision, workers)(watch)
        found[workers] = watch.seconds
    return min(found, key=found.__getitem__)


def augment(images: np.ndarray, size: int) -> Callable[[Watch], None]:
    """One step is the two views of every image, from PIL, one image after the other; collating them is not counted."""
    from PIL import Image

    transform = simclr_transform(size)
    pictures = [Image.fromarray(image) for image in images]
    return lambda watch: watch.drive(lambda: [transform(picture) for picture in pictures])
