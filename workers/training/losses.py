"""What networks are punished for: wrong classes, wrong masks, heads that disagree. No state.

Labels that are not told and masks that are not known teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from workers.models.network import Output, mask_evidence
from workers.models.sequence import CLASS_WEIGHTS


@dataclass(frozen=True)
class LossWeights:
    """`blood` is the weight of a blood pixel against a bloodless one."""

    classes: float = 1.0
    mask_pixels: float = 5.0
    mask_dice: float = 1.0
    agreement: float = 0.25
    blood: float = 4.0
    picture: float = 1.0


class Truth(NamedTuple):
    """Labels and `told` (n, 6), masks (n, 6, y, x) and `known` (n, 6) channels of them."""

    labels: Tensor
    told: Tensor
    masks: Tensor
    known: Tensor


def class_loss(logits: Tensor, labels: Tensor, told: Tensor) -> Tensor:
    """RSNA 2019's weighted log loss of logits (n, 6), a mean over slices."""
    weight = torch.tensor(CLASS_WEIGHTS, device=logits.device) / sum(CLASS_WEIGHTS)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return (losses * weight * told).sum(dim=1).mean()


def mask_loss(masks: Tensor, truth: Tensor, known: Tensor, weights: LossWeights) -> Tensor:
    """Cross-entropy and soft Dice of mask logits (n, k, y, x), over known channels (n, k)."""
    masks = masks.float()
    pixels = functional.binary_cross_entropy_with_logits(
        masks, truth, reduction="none", pos_weight=torch.tensor(weights.blood, device=masks.device)
    )
    total = weights.mask_pixels * (pixels.mean((2, 3)) * known).sum() / known.sum().clamp(min=1)
    return total + weights.mask_dice * _dice(masks, truth, known)


def cell_loss(cells: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of the logits of cells (n, c, 6) and which hold blood, over known channels (n, 6)."""
    losses = functional.binary_cross_entropy_with_logits(cells.float(), truth, reduction="none")
    return (losses.mean(1) * known).sum() / known.sum().clamp(min=1)


def multitask_loss(output: Output, truth: Truth, middle: Tensor, weights: LossWeights) -> Tensor:
    """Classes, masks, that the two agree, and the `middle` slice (n, 1, y, x) where it is drawn again."""
    total = weights.classes * class_loss(output.classes, truth.labels, truth.told)
    total = total + mask_loss(output.masks, truth.masks, truth.known, weights)
    if output.picture is not None:
        total = total + weights.picture * functional.mse_loss(output.picture.float(), middle)
    return total + weights.agreement * _agreement(output.classes.float(), output.masks.float())


def _dice(masks: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """One minus soft Dice a channel over the batch, over known channels with any blood."""
    probability = torch.sigmoid(masks) * known[:, :, None, None]
    truth = mask * known[:, :, None, None]
    overlap = (probability * truth).sum((0, 2, 3))
    both = probability.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    dice = 1 - (2 * overlap + 1) / (both + 1)
    used = (truth.sum((0, 2, 3)) > 0).float()
    return (dice * used).sum() / used.sum().clamp(min=1)


def _agreement(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean squared difference of class probability and the mask's own evidence."""
    return functional.mse_loss(torch.sigmoid(logits), torch.sigmoid(mask_evidence(masks)))
