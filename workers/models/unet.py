"""The small U-Net that decides by its mask: haemorrhage is the mean mask probability. It knows no subtype.

The system of the Bristol study: 256 px, one brain-window channel, no batch normalisation, nearest
up-sampling, 1,962,337 parameters. That number is met exactly by the plain U-Net (Ronneberger et al.,
MICCAI 2015) of widths 16 to 256 whose up-sampled maps are joined to the skipped ones without a
convolution of their own; with such a convolution it would have 1,940,817.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.models.engine import in_float32

WIDTHS = (16, 32, 64, 128, 256)
SIZE = 256
BLOOD_PRIOR = -4.0
"""Logit the mask starts from: blood is rare."""


class MaskOutput(NamedTuple):
    """Mask logits (n, y, x) and the last maps (n, 16, y, x) they are a weighted sum of."""

    mask: Tensor
    features: Tensor


class UNet(nn.Module):
    """Input (n, 1, y, x) 0..1, sides divisible by 16."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(narrow, wide) for narrow, wide in pairwise((1, *widths)))
        self.up = nn.ModuleList(
            _double(wide + narrow, narrow) for narrow, wide in reversed(list(pairwise(widths)))
        )
        self.head = nn.Conv2d(widths[0], 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # without normalisation the start must keep the variance
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.get_parameter("bias"))
        nn.init.constant_(self.head.get_parameter("bias"), BLOOD_PRIOR)

    def forward(self, x: Tensor) -> MaskOutput:
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(functional.max_pool2d(skips[-1], 2) if skips else x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = stage(torch.cat((x, skips.pop()), dim=1))
        return MaskOutput(self.draw(x) if self.training else in_float32(self.draw, x), x)

    def draw(self, features: Tensor) -> Tensor:
        """Mask logits (n, y, x) of the last maps."""
        return self.head(features)[:, 0]


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def decision(mask: Tensor) -> Tensor:
    """The logit (n,) of the mean mask probability: what the picture is judged by."""
    probability = torch.sigmoid(mask.float()).mean((1, 2))
    return torch.logit(probability, eps=1e-7)
