"""MAE, SimMIM and BEiT: hidden patches are predicted from visible ones, as pixels or as visual words."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslt.data.base import Samples
from sslt.encoders.base import Encoder
from sslt.encoders.pixels import PixelEncoder
from sslt.errors import UserError
from sslt.objectives.base import Loss, Objective, Picture, wide
from sslt.objectives.parts.kmeans import kmeans, nearest_centroid
from sslt.objectives.parts.masking import (
    block_tokens,
    check_share,
    normalise_patches,
    patchify,
    positions_of,
    random_split,
    random_tokens,
    take,
    unpatchify,
)
from sslt.objectives.parts.transformer import Transformer, grid_positions, mask_token
from sslt.ranges import Count, Positive, Share, interval


class _MaskedImages(Objective):
    """What the three share: patches of an encoder whose tokens can be hidden.

    Only tokens are trained, so that the encoder's pooled features should be their mean (`global_pool: avg`).
    """

    advice = "train for longer: hidden patches teach late what kNN and linear probes see, and fine-tuning may gain before they do"
    modality = "image"

    def __init__(self, encoder: PixelEncoder, share: float):
        super().__init__()
        encoder.require_tokens(pooled=False)
        check_share("share", share)
        self.share, self.grid = share, encoder.grid
        self.channels = encoder.processor.channels
        self.numbers = (encoder.processor.size // self.grid) ** 2 * self.channels  # in a patch

    def images(self, batch: dict) -> Tensor:
        return batch["views"]["image"].flatten(0, 1)

    def drawn(self, images: Tensor, patches: Tensor, hidden: Tensor) -> dict[str, Picture]:
        """What was seen, what was made of it, and the truth; `patches` [B, K, N] at positions `hidden` [B, K]."""
        seen, whole = patchify(images, self.grid), patchify(images, self.grid)
        index = hidden.unsqueeze(-1).expand(-1, -1, self.numbers)
        rows = {"seen": seen.scatter(1, index, 0.0), "predicted": whole.scatter(1, index, patches.to(whole.dtype))}
        return {"reconstruction": Picture({k: unpatchify(x, self.grid, self.channels) for k, x in rows.items()} | {"truth": images})}


class MAE(_MaskedImages):
    """Masked autoencoder (He et al., 2022): the encoder sees the visible patches alone, a small decoder draws the hidden ones.

    Reads `views` [V, B, C, H, W]. The loss is the mean squared error over hidden pixels. share: of the patches that are hidden.
    normalise: pixels less their patch's mean, over its deviation (section 4.2; its square is a mean over the patch's numbers, where the
    authors' code and LightlySSL divide by one less). width, depth, heads: of the decoder.
    """

    def __init__(self, encoder: PixelEncoder, share: Share, normalise: bool, width: Count, depth: Count, heads: Count):
        super().__init__(encoder, share)
        self.normalise = normalise
        self.embed = nn.Linear(encoder.dim, width)
        self.token = mask_token(width)
        self.register_buffer("positions", grid_positions(self.grid, width), persistent=False)
        self.decoder = Transformer(width, depth, heads)
        self.predict = nn.Linear(width, self.numbers)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = self.images(batch)
        visible, hidden = random_split(len(images), self.grid**2, self.share, images.device)
        predicted = self.decode(encoder({"image": images, "visible": visible}).tokens, visible, hidden)
        return Loss(F.mse_loss(wide(predicted), wide(self.targets(images, hidden))), {})

    def targets(self, images: Tensor, hidden: Tensor) -> Tensor:
        patches = take(patchify(images, self.grid), hidden)
        return normalise_patches(patches) if self.normalise else patches

    def decode(self, tokens: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Pixels [B, K, N] of the hidden patches; the order of tokens is nothing to attention, so visible ones stand first."""
        known = self.embed(tokens)
        x = torch.cat([known, self.token.to(known.dtype).expand(*hidden.shape, -1)], 1)
        x = x + cast(Tensor, self.positions)[torch.cat([visible, hidden], 1)].to(x.dtype)
        return self.predict(self.decoder(x)[:, visible.shape[1] :])

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = batch["views"]["image"][0]
        visible, hidden = random_split(len(images), self.grid**2, self.share, images.device)
        patches = self.decode(encoder({"image": images, "visible": visible}).tokens, visible, hidden)
        if self.normalise:  # with the true patch's own mean and deviation, as the paper's figures are drawn
            std, mean = torch.std_mean(take(patchify(images, self.grid), hidden), dim=-1, keepdim=True, correction=0)
            patches = patches * std + mean
        return self.drawn(images, patches, hidden)


class SimMIM(_MaskedImages):
    """Masked image modelling by regression (Xie et al., 2022): a linear layer gives the pixels of hidden patches.

    Reads `views` [V, B, C, H, W]. All patches go through the encoder, hidden ones as a learned token. The loss is the mean
    absolute error over hidden pixels (section 3.4). share: of the image that is hidden, in squares of unit × unit patches.
    """

    def __init__(self, encoder: PixelEncoder, share: Share, unit: Count):
        super().__init__(encoder, share)
        if unit < 1 or self.grid % unit:
            raise UserError(f"objective.unit={unit}: give a divisor of the {self.grid} patches along a side")
        self.unit = unit
        self.token = mask_token(encoder.dim)
        self.predict = nn.Linear(encoder.dim, self.numbers)

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = self.images(batch)
        predicted, hidden = self.guess(encoder, images)
        target = take(patchify(images, self.grid), hidden)
        return Loss(F.l1_loss(wide(predicted), wide(target)), {})

    def guess(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, K, N] of hidden patches and their positions [B, K]."""
        side = self.grid // self.unit
        squares = random_tokens(torch.ones(len(images), side * side, dtype=torch.bool, device=images.device), self.share)
        masked = squares.view(-1, side, side).repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)
        hidden = positions_of(masked, max(1, round(self.share * side * side)) * self.unit**2)
        tokens = encoder(encoder.hide({"image": images}, masked, self.token)).tokens
        return self.predict(take(tokens, hidden)), hidden

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = batch["views"]["image"][0]
        patches, hidden = self.guess(encoder, images)
        return self.drawn(images, patches, hidden)


class BEiT(_MaskedImages):
    """Masked image modelling with discrete words (Bao et al., 2022): which visual word stands at each hidden patch.

    Reads `views` [V, B, C, H, W]. The paper's words are those of a discrete VAE trained on 250 million images; here they are the
    `words` centres of a k-means over `patches` patches of the samples themselves, found before training. Patches are hidden in
    blocks (algorithm 1). share: of the patches that are hidden. aspect: range of the blocks'.
    """

    def __init__(self, encoder: PixelEncoder, share: Share, aspect: list[Positive], words: Count, patches: Count):
        super().__init__(encoder, share)
        self.aspect, self.patches = interval(aspect, "objective.aspect"), patches
        if words < 2 or patches < words:
            raise UserError(f"objective.words={words}, objective.patches={patches}: give at least 2 words, and no fewer patches than words")
        self.register_buffer("words", torch.zeros(words, self.numbers))
        self.token = mask_token(encoder.dim)
        self.predict = nn.Linear(encoder.dim, words)

    def prepare(self, encoder: Encoder, samples: Samples, batch_size: int) -> None:
        super().prepare(encoder, samples, batch_size)
        words = cast(Tensor, self.words)
        rng = np.random.default_rng(0)
        each = 4  # patches of an image
        rows = np.sort(rng.permutation(len(samples))[: -(-self.patches // each)])
        found = []
        for part in np.array_split(rows, -(-len(rows) // 512)):
            all_of = patchify(encoder.inputs(samples.batch(part))["image"], self.grid)
            some = torch.from_numpy(rng.integers(self.grid**2, size=(len(part), each)))
            found.append(take(all_of, some).flatten(0, 1))
        patches = torch.cat(found)
        if len(patches) < len(words):
            raise UserError(f"objective.words={len(words)}: {len(samples)} images are too few to find so many; give at most {len(patches)}")
        words.copy_(kmeans(patches, len(words), steps=20, seed=0))

    def forward(self, encoder: Encoder, batch: dict) -> Loss:
        images = self.images(batch)
        logits, hidden = self.guess(encoder, images)
        target = nearest_centroid(wide(take(patchify(images, self.grid), hidden).flatten(0, 1)), cast(Tensor, self.words))
        loss = F.cross_entropy(wide(logits.flatten(0, 1)), target)
        logs = {"masked_accuracy": (logits.detach().flatten(0, 1).argmax(1) == target).float().mean()} if self.logs_now else {}
        return Loss(loss, logs)

    def guess(self, encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K, words] of hidden patches and their positions [B, K]."""
        masked = block_tokens(len(images), self.grid, self.share, self.aspect, images.device)
        hidden = positions_of(masked, max(1, round(self.share * self.grid**2)))
        tokens = encoder(encoder.hide({"image": images}, masked, self.token)).tokens
        return self.predict(take(tokens, hidden)), hidden

    def draw(self, encoder: Encoder, batch: dict) -> dict[str, Picture]:
        images = batch["views"]["image"][0]
        logits, hidden = self.guess(encoder, images)
        return self.drawn(images, cast(Tensor, self.words)[logits.argmax(-1)], hidden)
