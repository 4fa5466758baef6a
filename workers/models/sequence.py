"""The sequence model of the RSNA 2019 winner: what CNNs said of single slices, read as one CT. No images.

It merges outputs *and* features of M slice CNNs over any number of slices: a first stage reads the
features, a second the probabilities, the first stage's answer and the distance to the next slice
(Wang et al., NeuroImage: Clinical 32, 2021). Slices run feet to head. It refuses nothing; who calls
checks that its answer is finite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.preprocess import STEP_MM

COPIES = 32
"""Slices that are followed back through the sequence model at once."""
_CUDNN = threading.Lock()
"""Held by who has switched cuDNN off: its switch is one for the whole process."""
CLASS_WEIGHTS = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""Weights of the RSNA 2019 challenge's log loss, "any" first; their sum divides."""


class SequenceOutput(NamedTuple):
    """Logits (b, slices, 6): the answer, and the first stage's own, which is only trained on."""

    final: Tensor
    first: Tensor


class SequenceModel(nn.Module):
    """Features (b, slices, M, k), probabilities (b, slices, M, 6) and steps (b, slices) in mm go in.

    3,398,418 parameters for two CNNs of 2048 features.
    """

    def __init__(self, cnns: int = 2, width: int = 2048, hidden: int = 96, dropout: float = 0.5) -> None:
        super().__init__()
        self.cnns, self.width = cnns, width
        self.squeeze = nn.Sequential(
            nn.Dropout2d(dropout), *_conv(width, 512, 1), nn.Dropout2d(dropout), *_conv(512, 128, 1)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.first_linear = nn.Linear(128 * cnns, len(CLASSES))
        self.first_gru = _gru(128 * cnns, hidden)
        self.first_head = nn.Linear(2 * hidden, len(CLASSES))
        self.along = nn.Sequential(
            *_conv(cnns + 2, 512, 5),
            *_conv(512, 256, 3, 2),
            *_conv(256, 256, 3, 4),
            *_conv(256, 256, 3, 2),
        )
        self.second_conv = nn.Conv2d(256, 1, (3, 1), padding=(1, 0), bias=False)
        self.second_gru = _gru(256 * len(CLASSES), hidden)
        self.second_head = nn.Linear(2 * hidden, len(CLASSES))

    def forward(self, features: Tensor, probabilities: Tensor, steps_mm: Tensor) -> SequenceOutput:
        first = self._first(features)
        step = steps_mm[:, None, :, None].expand(-1, 1, -1, len(CLASSES))
        stack = torch.cat(
            (probabilities.transpose(1, 2), step, torch.sigmoid(first)[:, None]), dim=1
        )  # (b, M + 2, slices, 6)
        read = self.along(stack)
        run, _ = self.second_gru(read.permute(0, 2, 1, 3).flatten(2))
        return SequenceOutput(self.second_conv(read)[:, 0] + self.second_head(run), first)

    def _first(self, features: Tensor) -> Tensor:
        """Logits (b, slices, 6) from the features alone; each CNN is squeezed by the same weights."""
        squeezed = self.dropout(self.squeeze(features.permute(0, 3, 1, 2)))
        merged = squeezed.permute(0, 2, 3, 1).flatten(2)
        run, _ = self.first_gru(merged)
        return self.first_linear(merged) + self.first_head(run)


def _conv(inputs: int, outputs: int, along: int, dilation: int = 1) -> tuple[nn.Module, ...]:
    """A convolution along the slices that keeps their number, normalised and rectified."""
    padding = dilation * (along // 2)
    return (
        nn.Conv2d(inputs, outputs, (along, 1), padding=(padding, 0), dilation=(dilation, 1), bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _gru(inputs: int, hidden: int) -> nn.GRU:
    return nn.GRU(inputs, hidden, num_layers=2, batch_first=True, bidirectional=True)


def both_ways(model: SequenceModel, features: Tensor, probabilities: Tensor, steps_mm: Tensor) -> Tensor:
    """Mean final logits of the CT read upwards and downwards (the winner's reversal at test time)."""
    up = model(features, probabilities, steps_mm).final
    down = model(features.flip(1), probabilities.flip(1), steps_mm.flip(1)).final
    return (up + down.flip(1)) / 2


class SequenceReader(nn.Module):
    """A trained sequence model behind the networks that it listens to. Trains nothing.

    `heads` make of the mean features (..., k) of one network its logits (..., 6). Raises PermanentError
    MODEL_INVALID where there are not as many as the model reads.
    """

    def __init__(self, model: SequenceModel, heads: Sequence[Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        if len(heads) != model.cnns:
            raise PermanentError(
                "MODEL_INVALID", f"the sequence model reads {model.cnns} CNNs, there are {len(heads)}"
            )
        self.model = model.eval().requires_grad_(False)
        self.heads = list(heads)

    def steps(self, centres: NDArray[np.float32], spacing_mm: float) -> Tensor:
        """Those of `steps_mm`, where the model is."""
        where = self.model.first_linear.weight.device
        return torch.from_numpy(steps_mm(centres, spacing_mm, STEP_MM)).to(where)

    def said(self, pooled: Tensor) -> Tensor:
        """Probabilities (b, n, M, 6) from mean features (b, n, M, k)."""
        return torch.sigmoid(
            torch.stack([head(pooled[:, :, at]) for at, head in enumerate(self.heads)], dim=2)
        )

    def forward(self, pooled: Tensor, steps: Tensor) -> Tensor:
        """Logits (b, n, 6) from mean features (b, n, M, k): the networks' own answers follow from these."""
        return both_ways(self.model, pooled, self.said(pooled), steps.expand(len(pooled), -1))

    def gradients(self, pooled: Tensor, steps: Tensor, place: int, wanted: Tensor) -> Tensor:
        """How the answer of each wanted slice hangs on its own mean features, (w, M, k) of (n, M, k).

        `wanted` (w,) are slice numbers. Copies of the CT go through side by side, one a slice.
        """
        found = [pooled[:0]]
        for slices in wanted.split(COPIES):
            copy = torch.arange(len(slices), device=pooled.device)
            # a GRU of cuDNN refuses backward in eval mode
            with _CUDNN, torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                leaf = pooled.expand(len(slices), -1, -1, -1).clone().requires_grad_(True)
                score = self(leaf, steps)[copy, slices, place].sum()
                (gradient,) = torch.autograd.grad(score, leaf)
            found.append(gradient[copy, slices])
        return torch.cat(found)


def steps_mm(centres: NDArray[np.float32], spacing_mm: float, nominal_mm: float) -> NDArray[np.float32]:
    """Distance of each picture to the next above it, the last repeating the one before.

    `centres` are slice numbers, `spacing_mm` the slice step. Where there is no second picture, or the
    step is unknown (0), the nominal one stands in.
    """
    if len(centres) < 2 or spacing_mm <= 0:
        return np.full(len(centres), nominal_mm, np.float32)
    steps = np.diff(centres) * spacing_mm
    return np.append(steps, steps[-1]).astype(np.float32)


def sequence_loss(output: SequenceOutput, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Weighted log loss of both outputs, added up, a mean over slices.

    `valid` (b, slices, 6) leaves out padding and what is not told, if any.
    """
    weight = labels.new_tensor(CLASS_WEIGHTS) / sum(CLASS_WEIGHTS)
    share = torch.ones_like(labels) if valid is None else valid.to(labels)
    slices = share.amax(-1).sum().clamp(min=1)
    total = labels.new_zeros(())
    for logits in output:
        loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        total = total + (loss * weight * share).sum() / slices
    return total
