"""The compact multi-task network: slice classes and blood masks from three neighbouring slices. No I/O.

An encoder-decoder after U-Net (Ronneberger et al., MICCAI 2015) with a classification head on its
deepest features; that both heads learn together and must agree follows SMART-Net (Cho et al.,
Sci Rep 2022).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.domain.findings import CLASSES
from workers.models.engine import in_float32

BLOCK = 2
FIRST_CENTRE = (BLOCK - 1) / 2
"""Input pixel on which the receptive field of the first deepest feature is centred."""
PICTURE_HEAD = "picture_head."
MASK_PRIOR, CLASS_PRIOR = -4.0, -1.5
"""Logits the heads start from: blood is rare, so the first steps need not be spent on learning that."""
TOP_FRACTION = 0.001
"""Share of the mask's pixels whose mean logit is the mask's own evidence for a class."""


class Output(NamedTuple):
    """Class logits (n, 6), mask logits (n, 6, y, x), deepest features (n, channels, y/16, x/16), and the
    middle slice drawn from those alone (n, 1, y, x), where the network has a head for it."""

    classes: Tensor
    masks: Tensor
    features: Tensor
    picture: Tensor | None = None


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class MultiTaskNet(nn.Module):
    """Input (n, 3, y, x) 0..1, sides divisible by 16; see `Output` for what comes out.

    Two by two pixels go in and come out as channels (sub-pixel convolution, Shi et al., CVPR
    2016), so no convolution runs at full resolution: that halves the time on a CPU. `reconstruct`
    adds a head for training only, whose weights begin with PICTURE_HEAD.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 192),
        dropout: float = 0.3,
        reconstruct: bool = False,
    ) -> None:
        super().__init__()
        patch = BLOCK * 2 ** (len(widths) - 1)
        self.picture_head = nn.Conv2d(widths[-1], patch**2, 1) if reconstruct else None
        self.patch = patch
        self.stem = _conv(3 * BLOCK**2, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(_conv(narrow, wide, 2), Residual(wide)) for narrow, wide in pairwise(widths)
        )
        self.up = nn.ModuleList(
            _conv(wide + narrow, narrow) for narrow, wide in reversed(list(pairwise(widths)))
        )
        self.mask_head = nn.Conv2d(widths[0], len(CLASSES) * BLOCK**2, 1)
        self.dropout = nn.Dropout(dropout)
        self.class_head = nn.Linear(2 * widths[-1], len(CLASSES))
        nn.init.constant_(self.mask_head.get_parameter("bias"), MASK_PRIOR)
        nn.init.constant_(self.class_head.get_parameter("bias"), CLASS_PRIOR)

    def forward(self, x: Tensor) -> Output:
        skips = [self.stem(functional.pixel_unshuffle((x - 0.4) / 0.35, BLOCK))]
        for stage in self.down:
            skips.append(stage(skips[-1]))
        features = skips.pop()
        picture = features
        for stage in self.up:
            picture = functional.interpolate(picture, scale_factor=2.0, mode="nearest")
            picture = stage(torch.cat((picture, skips.pop()), dim=1))
        classify = self.classify if self.training else partial(in_float32, self.classify)
        draw = self.mask_head if self.training else partial(in_float32, self.mask_head)
        masks = functional.pixel_shuffle(draw(picture), BLOCK)
        drawn = None
        if self.picture_head is not None:
            drawn = functional.pixel_shuffle(self.picture_head(features), self.patch)
        return Output(classify(features), masks, features, drawn)

    def classify(self, features: Tensor) -> Tensor:
        """Class logits (n, 6) from the deepest features."""
        return self.score(self.pooled(features))

    @property
    def pooled_features(self) -> int:
        return self.class_head.in_features

    def pooled(self, features: Tensor) -> Tensor:
        """What the class head sees of features (n, k, y, x): their mean and their maximum, (n, 2 k)."""
        return torch.cat((features.mean((2, 3)), features.amax((2, 3))), dim=1)

    def score(self, pooled: Tensor) -> Tensor:
        """Class logits (..., 6) from pooled features (..., 2 k)."""
        return self.class_head(self.dropout(pooled))


def mask_evidence(masks: Tensor) -> Tensor:
    """What the mask says about each class: mean of its highest logits, (n, 6)."""
    flat = masks.float().flatten(2)
    count = max(1, int(flat.shape[2] * TOP_FRACTION))
    return flat.topk(count, dim=2).values.mean(dim=2)
