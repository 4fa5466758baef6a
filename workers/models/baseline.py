"""The floor: a CNN of two convolutions, which every other system must beat. Not meant for use on patients.

Two variants differ in one line. `small-cnn` gives six independent sigmoids. `small-cnn-softmax` is a
warning: a softmax with categorical loss, as published for this task (Lussier), makes the classes
compete. "any" and its subtype are both true on every slice with blood, yet share one probability of 1,
so the best answer for each is 1/2 or less; and a slice without blood has no class to go to. The
published network did not learn; this one shows why.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.domain.findings import CLASSES
from workers.models.backbones import MEAN, STD, BackboneSpec, SliceNetwork
from workers.preprocess import BRAIN

SIGMOID = BackboneSpec("small-cnn", "small", windows=(BRAIN,), size=128)
SOFTMAX = BackboneSpec("small-cnn-softmax", "small-softmax", windows=(BRAIN,), size=128)


class SmallCNN(SliceNetwork):
    """Two rounds of 3x3 convolution, ReLU and 2x2 pooling; their mean; one Linear."""

    def __init__(self, spec: BackboneSpec = SIGMOID, widths: tuple[int, int] = (32, 64)) -> None:
        super().__init__()
        self.spec = spec
        self.width = widths[1]
        self.first_centre = 1.5  # two poolings of two put a cell amid its four pixels
        self.body = nn.Sequential(
            nn.Conv2d(spec.channels, widths[0], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(widths[0], widths[1], 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(widths[1], len(CLASSES))

    @property
    def exclusive(self) -> bool:
        """Whether the classes compete."""
        return self.spec.network == SOFTMAX.network

    def features(self, x: Tensor) -> Tensor:
        return self.body((x - MEAN) / STD)

    def score(self, pooled: Tensor) -> Tensor:
        """Logits whose sigmoid is the probability: of a softmax, log p - log(1 - p)."""
        logits = self.head(pooled)
        return competing_logits(logits) if self.exclusive else logits


def competing_logits(logits: Tensor) -> Tensor:
    """Softmax probabilities (…, 6) as log odds: each class against the sum of all others."""
    own = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    others = logits[..., None, :].masked_fill(own, -torch.inf)
    return logits - torch.logsumexp(others, dim=-1)


def categorical_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The wrong loss for this task, kept to show it: cross-entropy against labels that do not sum to 1.

    Slices without blood add nothing at all, so nothing ever teaches the network that a head is healthy.
    """
    log_probability = functional.logsigmoid(scores)
    return -(labels * log_probability).sum(-1).mean()
