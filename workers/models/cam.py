"""Grad-CAM++ maps from features and gradients (Chattopadhay et al., arXiv:1710.11063). Runs no network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
