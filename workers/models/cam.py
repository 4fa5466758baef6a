"""Grad-CAM++ maps from features and gradients (Chattopadhay et al., arXiv:1710.11063). Runs no network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def spread(maps: Tensor, size: int, first_centre: float) -> Tensor:
    """Maps (n, h, w) drawn on the picture (n, size, size) that their features were made from.

    A cell lies where its receptive field is centred: the first at pixel `first_centre`, each next one
    a stride further. Strided convolutions with symmetric padding centre a cell on the first pixel of
    its block, so that drawing it amid the block would shift the whole map by half a stride.
    """
    stride = size / maps.shape[-1]
    cells = (torch.arange(size, device=maps.device, dtype=torch.float32) - first_centre) / stride
    across = cells * 2 / (maps.shape[-1] - 1) - 1
    grid = torch.stack(torch.meshgrid(across, across, indexing="xy"), dim=-1)
    grid = grid.expand(len(maps), -1, -1, -1)
    drawn = functional.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=True)
    return drawn[:, 0]


def grad_cam_pp(features: Tensor, gradients: Tensor) -> Tensor:
    """Maps (n, y, x) >= 0 from features A and dY/dA, both (n, k, y, x), in float32.

    Eq. 19 and 10 of the paper, for the score exp(Y): alpha = g^2 / (2 g^2 + sum(A) g^3) at each
    place, weight = sum(alpha relu(g)), map = relu(sum_k weight A). The common factor exp(Y) is
    left out: it scales a whole map.
    """
    features, gradients = features.float(), gradients.float()
    total = features.sum((2, 3), keepdim=True)
    below = 2 * gradients**2 + total * gradients**3
    alpha = gradients**2 / torch.where(below != 0, below, torch.ones_like(below))
    weight = (alpha * functional.relu(gradients)).sum((2, 3), keepdim=True)
    return functional.relu((weight * features).sum(1))


def grad_cam_pp_pooled(features: Tensor, gradients: Tensor) -> Tensor:
    """The same in closed form, for a score that sees the features (n, k, y, x) by their mean alone.

    `gradients` (n, k) is dY/d(mean). Every place then has g = dY/d(mean) / (y x), alpha is constant
    over the map, and weight = y x relu(g) / (2 + g sum(A)).
    """
    features = features.float()
    places = features.shape[2] * features.shape[3]
    gradient = gradients.float() / places
    below = 2 + gradient * features.sum((2, 3))
    below = torch.where(below.abs() < 1e-6, torch.ones_like(below), below)
    weight = places * functional.relu(gradient) / below
    return functional.relu((weight[:, :, None, None] * features).sum(1))
