"""What the multi-task network is punished for: wrong classes, wrong masks, heads that disagree. No state."""

from __future__ import annotations

from dataclasses import dataclass

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


def loss(output: Output, labels: Tensor, mask: Tensor, known: Tensor, weights: LossWeights) -> Tensor:
    """Scalar loss; `known` (n, 6) switches mask channels off where blood is unlabelled."""
    logits, masks = output.classes.float(), output.masks.float()
    weight = torch.tensor(CLASS_WEIGHTS) / sum(CLASS_WEIGHTS)
    classes = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    total = weights.classes * (classes * weight.to(logits)).sum(dim=1).mean()
    pixels = functional.binary_cross_entropy_with_logits(
        masks, mask, reduction="none", pos_weight=torch.tensor(weights.blood)
    )
    share = known.sum().clamp(min=1)
    total = total + weights.mask_pixels * (pixels.mean((2, 3)) * known).sum() / share
    total = total + weights.mask_dice * _dice(masks, mask, known)
    return total + weights.agreement * _agreement(logits, masks)


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
