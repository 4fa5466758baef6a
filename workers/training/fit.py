"""Fit the multi-task network to series, seeded and resumable. Reads no picture file, writes only checkpoints.

Every batch is a function of (seed, step), so a run that is stopped and resumed sees what an
unbroken run would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.models.network import MultiTaskNet
from workers.training.augment import Augmentation, augment
from workers.training.datasets import Series, SliceDataset
from workers.training.losses import loss
from workers.training.recipes import Recipe, Stage

CHECKPOINT_EVERY = 100
_WARM_UP = 0.05

Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss) after each step."""


@dataclass(frozen=True)
class Corpus:
    """What one run may learn from; either part may be empty, not both."""

    real: Sequence[Series]
    phantoms: Sequence[Series]


class Sampler:
    """Draws batches: phantoms and real slices by share, positives more often than they occur."""

    def __init__(self, corpus: Corpus, stage: Stage) -> None:
        self.stage = stage
        self.real = SliceDataset(corpus.real) if corpus.real else None
        self.phantoms = SliceDataset(corpus.phantoms) if corpus.phantoms else None
        if self.real is None and self.phantoms is None:
            raise ValueError("nothing to learn from: give real series, phantoms, or both")

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures (n, 3, y, x), labels (n, 6), masks (n, 6, y, x), known (n, 6)."""
        share = 0.0 if self.phantoms is None else 1.0 if self.real is None else self.stage.phantom_share
        count = round(self.stage.batch * share)
        samples = []
        for dataset, wanted in ((self.phantoms, count), (self.real, self.stage.batch - count)):
            if dataset is not None and wanted:
                weights = _weights(dataset.labels, self.stage.positive_share)
                samples += [dataset[int(item)] for item in rng.choice(len(dataset), wanted, p=weights)]
        parts = zip(*((one.picture, one.labels, one.mask, one.known) for one in samples), strict=True)
        pictures, labels, masks, known = (torch.from_numpy(np.stack(part)) for part in parts)
        return pictures, labels, masks, known


def _weights(labels: NDArray[np.uint8], positive_share: float) -> NDArray[np.float64]:
    """Probability of each slice: positives take `positive_share`, rarer subtypes more (inverse root)."""
    positive = labels[:, 0] > 0
    if positive.all() or not positive.any():
        return np.full(len(labels), 1 / len(labels))
    rarity = 1 / np.sqrt(np.maximum(labels[:, 1:].sum(axis=0), 1))
    weight = np.where(positive, np.maximum((labels[:, 1:] * rarity).max(axis=1), rarity.min()), 1.0)
    weight[positive] *= positive_share / weight[positive].sum()
    weight[~positive] *= (1 - positive_share) / weight[~positive].sum()
    return weight


class Run:
    """One stage of one recipe on one corpus: the network, its running average, and how far it has come."""

    def __init__(self, recipe: Recipe, stage: Stage, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe, self.stage, self.seed, self.step = recipe, stage, seed, 0
        network = MultiTaskNet(recipe.widths, recipe.dropout)
        self.network: MultiTaskNet = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay
        )

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Begin with the weights of an earlier stage."""
        self.network.load_state_dict(weights)
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}

    def fit(
        self, corpus: Corpus, checkpoint: Path | None = None, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Train to the stage's last step, resuming `checkpoint` if it is there; the averaged weights."""
        if checkpoint and checkpoint.exists():
            self._load(checkpoint)
        sampler = Sampler(corpus, self.stage)
        self.network.train()
        while self.step < self.stage.steps:
            value = self._step(sampler, self.recipe.augmentation)
            if progress:
                progress(self.step, self.stage.steps, value)
            if checkpoint and (self.step % CHECKPOINT_EVERY == 0 or self.step == self.stage.steps):
                self._save(checkpoint)
        return self.average

    def _step(self, sampler: Sampler, augmentation: Augmentation) -> float:
        rng = np.random.default_rng((self.seed, self.step))
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        pictures, labels, masks, known = sampler.batch(rng)
        pictures, masks = augment(pictures, masks, rng, augmentation)
        for group in self.optimiser.param_groups:
            group["lr"] = self.stage.learning_rate * _schedule(self.step / self.stage.steps)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network(pictures.contiguous(memory_format=torch.channels_last))
        value = loss(output, labels, masks, known, self.recipe.loss)
        self.optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        self._average()
        return float(value.detach())

    def _average(self) -> None:
        """Exponential moving average; short at first, so that the start is forgotten."""
        decay = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:  # batch normalisation counts its batches
                    self.average[name].copy_(value)

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])


def _schedule(done: float) -> float:
    """Linear warm-up, then half a cosine down to 2 %."""
    if done < _WARM_UP:
        return (done + 1e-3) / _WARM_UP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
