"""Fit one network to series, seeded and resumable. Reads no picture file, writes only checkpoints.

Every batch is a function of (seed, step), so a run that is stopped and resumed sees what an
unbroken run would have seen.
"""

from __future__ import annotations

import hashlib
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.domain.errors import PermanentError
from workers.training import metrics
from workers.training.augment import augment
from workers.training.datasets import Batch, Series, SliceDataset
from workers.training.learners import Learner
from workers.training.losses import Truth
from workers.training.recipes import Recipe, Stage

CHECKPOINT_EVERY = 100
VALIDATION_BATCH = 64
_WARM_UP = 0.05
_RESTARTS = 4

Values = NDArray[np.float64]
Progress = Callable[[int, int, float], None]
"""Called with (step, steps, loss) after each step, and where a run is resumed with the last one done."""


@dataclass(frozen=True)
class Corpus:
    """What one run may learn from (either part may be empty, not both), and what only tells when to stop."""

    real: Sequence[Series]
    phantoms: Sequence[Series]
    validation: Sequence[Series] = ()

    @property
    def slices(self) -> int:
        return sum(len(one.pictures) for one in (self.real or self.phantoms))

    def digest(self) -> str:
        """Of whose series teach and whose stop the training; phantoms are nobody's."""
        told = [
            [(one.patient, one.name, len(one.pictures)) for one in part]
            for part in (self.real, self.validation)
        ]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def labels_digest(self) -> str:
        """Of what is told of their slices."""
        found = hashlib.sha256()
        for one in (*self.real, *self.validation):
            for told in (one.labels, one.told, one.known):
                found.update(np.ascontiguousarray(told).tobytes())
        return found.hexdigest()


@dataclass
class History:
    """The course of a run: losses of training by step, of validation by (step, loss, AUC of "any")."""

    training: list[float] = field(default_factory=list)
    validation: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Place of the lowest validation loss, -1 before there is any."""
        losses = [loss for _, loss, _ in self.validation]
        return int(np.argmin(losses)) if losses else -1


@dataclass(frozen=True)
class Fitted:
    """The weights to go on with, and how they came about."""

    weights: dict[str, Tensor]
    history: History


class Sampler:
    """Draws batches: phantoms and real slices by share, positives more often than they occur."""

    def __init__(self, corpus: Corpus, stage: Stage, neighbours: tuple[int, ...] = ()) -> None:
        self.stage = stage
        self.parts = [
            (SliceDataset(series, neighbours), phantom)
            for series, phantom in ((corpus.phantoms, True), (corpus.real, False))
            if series
        ]
        if not self.parts:
            raise ValueError("nothing to learn from: give real series, phantoms, or both")
        self.weights = [_weights(dataset, stage) for dataset, _ in self.parts]

    def batch(self, rng: np.random.Generator) -> Batch:
        share = self.stage.phantom_share if len(self.parts) == 2 else float(self.parts[0][1])
        phantoms = round(self.stage.batch * share)
        drawn: list[Batch] = []
        for (dataset, phantom), weights in zip(self.parts, self.weights, strict=True):
            count = phantoms if phantom else self.stage.batch - phantoms
            if count:
                drawn.append(dataset.batch(rng.choice(len(dataset), count, p=weights)))
        return Batch(
            *(np.concatenate([getattr(one, name) for one in drawn]) for name in Batch.__dataclass_fields__)
        )


def _weights(dataset: SliceDataset, stage: Stage) -> NDArray[np.float64]:
    """Probability of each slice: positives take `positive_share`, rarer subtypes more (inverse root)."""
    weight = np.ones(len(dataset))
    if stage.mid_volume:
        place = np.asarray([(i + 0.5) / len(dataset.series[s].pictures) for s, i in dataset.index])
        weight *= 1 - np.abs(2 * place - 1) / 2
    positive = dataset.labels[:, 0] > 0
    if stage.positive_share is not None and positive.any() and not positive.all():
        rarity = 1 / np.sqrt(np.maximum(dataset.labels[:, 1:].sum(axis=0), 1))
        weight *= np.where(
            positive, np.maximum((dataset.labels[:, 1:] * rarity).max(axis=1), rarity.min()), 1
        )
        weight[positive] *= stage.positive_share / weight[positive].sum()
        weight[~positive] *= (1 - stage.positive_share) / weight[~positive].sum()
    normalised: NDArray[np.float64] = weight / weight.sum()
    return normalised


class Run:
    """One stage of one recipe: the network, its running average, and how far it has come."""

    def __init__(
        self, recipe: Recipe, stage: Stage, learner: Learner, seed: int, device: torch.device | None = None
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.stage, self.learner, self.seed, self.step = recipe, stage, learner, seed, 0
        self.device = device or torch.device("cpu")
        network = learner.network().to(self.device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = self._copy()
        self.best: dict[str, Tensor] | None = None
        self.history = History()
        kind = torch.optim.AdamW if stage.decoupled else torch.optim.Adam
        self.optimiser = kind(
            self.network.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay
        )

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Begin with the weights of an earlier stage."""
        self.network.load_state_dict(dict(weights))
        self.average = self._copy()

    def fit(self, corpus: Corpus, checkpoint: Path | None = None, progress: Progress | None = None) -> Fitted:
        """Train to the last step or until patience ends, resuming `checkpoint` if it is there.

        Raises PermanentError CHECKPOINT_FOREIGN when that was made by other settings, or of others.
        """
        if checkpoint and checkpoint.exists():
            self._load(checkpoint, corpus)
        sampler = Sampler(corpus, self.stage, self.learner.neighbours)
        steps = self.stage.length(corpus.slices)
        epoch = max(1, min(steps, corpus.slices // self.stage.batch))
        if progress and self.step:
            progress(self.step, steps, self.history.training[-1])
        while self.step < steps and not self._stalled():
            value = self._step(sampler, steps)
            self.history.training.append(value)
            if progress:
                progress(self.step, steps, value)
            if corpus.validation and (self.step % epoch == 0 or self.step == steps):
                self._validate(corpus.validation)
            over = self.step == steps or self._stalled()
            if checkpoint and (self.step % CHECKPOINT_EVERY == 0 or over):
                self._save(checkpoint, corpus, over)
        return Fitted(self._weights(), self.history)

    def _stalled(self) -> bool:
        """Whether the last `patience` epochs brought no better validation loss."""
        told = len(self.history.validation)
        return self.stage.patience > 0 and told - 1 - self.history.best >= self.stage.patience

    def _weights(self) -> dict[str, Tensor]:
        """What the run ends with: the best of early stopping, the average, or the last; on the CPU."""
        if self.stage.patience and self.best is not None:
            chosen = self.best
        else:
            chosen = self.average if self.stage.ema else self._copy()
        return {name: value.cpu() for name, value in chosen.items()}

    def _step(self, sampler: Sampler, steps: int) -> float:
        rng = np.random.default_rng((self.seed, self.step))
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        pictures, truth = self._tensors(sampler.batch(rng))
        pictures, masks = augment(
            pictures, truth.masks, rng, self.recipe.augmentation, slices=bool(self.learner.neighbours)
        )
        rate = self.stage.learning_rate * schedule(self.stage.schedule, self.step / steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16):
            seen = pictures.contiguous(memory_format=torch.channels_last)
            value = self.learner.loss(self.network, seen, truth._replace(masks=masks))
        self.optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        if self.stage.ema:
            self._average()
        return float(value.detach())

    def _validate(self, series: Sequence[Series]) -> None:
        """Loss and AUC of "any" over every slice, with the weights that would be kept."""
        own = self._copy()
        if self.stage.ema:
            self.network.load_state_dict(self.average)
        loss, logits, labels, told = self._judge(SliceDataset(series, self.learner.neighbours))
        auc = metrics.auc(labels[told], logits[told])
        self.history.validation.append((self.step, loss, auc))
        if self.history.best == len(self.history.validation) - 1:
            self.best = self._copy()
        self.network.load_state_dict(own)

    @torch.no_grad()
    def _judge(self, dataset: SliceDataset) -> tuple[float, Values, Values, NDArray[np.bool_]]:
        """The learner's own loss, a mean over slices, and of "any" logits, labels, and which are told."""
        self.network.eval()
        losses, found = [], []
        for start in range(0, len(dataset), VALIDATION_BATCH):
            batch = dataset.batch(range(start, min(start + VALIDATION_BATCH, len(dataset))))
            pictures, truth = self._tensors(batch)
            seen = pictures.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16):
                losses.append(len(batch.labels) * float(self.learner.loss(self.network, seen, truth)))
                logits = self.learner.logits(self.network, seen)[:, 0]
            found.append((logits.double().cpu().numpy(), batch.labels[:, 0], batch.told[:, 0] > 0))
        logits_any, labels, told = (np.concatenate(part) for part in zip(*found, strict=True))
        return sum(losses) / len(dataset), logits_any, labels.astype(np.float64), told

    def _tensors(self, batch: Batch) -> tuple[Tensor, Truth]:
        pictures, labels, told, masks, known = (
            torch.from_numpy(getattr(batch, name)).to(self.device) for name in Batch.__dataclass_fields__
        )
        return pictures, Truth(labels, told, masks, known)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _average(self) -> None:
        """Exponential moving average; short at first, so that the start is forgotten."""
        decay = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - decay)
                else:  # batch normalisation counts its batches
                    self.average[name].copy_(value)

    def _digest(self) -> str:
        """Of everything that decides the course of this run."""
        decides = {**self.recipe.told, "summary": "", "rules": {}}
        facts = repr((decides, asdict(self.stage), self.seed)) + self.learner.origin
        return hashlib.sha256(facts.encode()).hexdigest()

    def _save(self, path: Path, corpus: Corpus, over: bool) -> None:
        """What it takes to go on, which is less once the run is over."""
        state = {
            "settings": self._digest(),
            "patients": corpus.digest(),
            "labels": corpus.labels_digest(),
            "phantoms": len(corpus.phantoms),
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average if self.stage.ema else None,
            "best": self.best if self.stage.patience else None,
            "optimiser": None if over else self.optimiser.state_dict(),
            "history": asdict(self.history),
        }
        write_checkpoint(path, state)

    def _load(self, path: Path, corpus: Corpus) -> None:
        state = read_checkpoint(path, self.device)
        drawn, wanted = state.get("phantoms"), len(corpus.phantoms)
        same = {
            "by other settings": state.get("settings") == self._digest(),
            **same_corpus(state, corpus),
            f"of {drawn} phantoms, not of {wanted}": drawn in (None, wanted),
        }
        require_own(path, same)
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average, self.best = state["average"] or self._copy(), state["best"]
        if state["optimiser"] is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        told = [(int(step), float(loss), float(auc)) for step, loss, auc in state["history"]["validation"]]
        self.history = History(list(state["history"]["training"]), told)


def same_corpus(state: Mapping[str, Any], corpus: Corpus) -> dict[str, bool]:
    """For `require_own`; a checkpoint of a version that did not note this is taken at its name."""
    return {
        "of other patients": state.get("patients") in (None, corpus.digest()),
        "of other labels": state.get("labels") in (None, corpus.labels_digest()),
    }


def require_own(path: Path, same: Mapping[str, bool]) -> None:
    """Raise PermanentError CHECKPOINT_FOREIGN with the first way in which a checkpoint is another run's."""
    for how, holds in same.items():
        if not holds:
            text = f"{path} was made {how}; remove it, or give another --out"
            raise PermanentError("CHECKPOINT_FOREIGN", text)


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """The whole state or, when it is killed, what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What `torch.save` wrote, tensors and numbers only. Raises PermanentError CHECKPOINT_UNREADABLE."""
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except (EOFError, LookupError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        text = f"{path} cannot be read ({type(error).__name__}); remove it, and its run begins anew"
        raise PermanentError("CHECKPOINT_UNREADABLE", text) from error
    return state


def schedule(kind: str, done: float) -> float:
    """Factor of the learning rate when `done` (0..1) of the run is over. Raises KeyError for another kind."""
    if kind == "constant":
        return 1.0
    if kind == "halving":  # 0.5 to the power of the epoch, as six equal epochs
        return 0.5 ** int(6 * done)
    if kind == "restarts":
        done = done * _RESTARTS % 1.0
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
    if kind == "cosine":  # a linear warm-up, then half a cosine down to 2 %
        if done < _WARM_UP:
            return (done + 1e-3) / _WARM_UP
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
    raise KeyError(f"no schedule {kind!r}: there are constant, halving, restarts, cosine")
