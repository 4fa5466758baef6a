"""Train the sequence model on what trained CNNs say of whole CTs. Trains no CNN.

After the winner of RSNA 2019 (Wang et al., NeuroImage: Clinical 32, 2021): crops of 24 slices, every other
slice at times, reversed at times, both outputs in the loss. The CNNs have seen the training CTs, so their
answers there are better than they will be; each CT is therefore read in several augmented views, or as
other scanners would show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workers.models.sequence import SequenceModel, SequenceOutput, sequence_loss
from workers.training.augment import augment
from workers.training.datasets import Series
from workers.training.fit import Fitted, History, Progress, schedule
from workers.training.predict import as_input
from workers.training.recipes import Recipe, Stage
from workers.training.sequenced import SequencedPipeline

LENGTH = 24
VIEWS = 4
"""Augmented readings of each CT, beside the plain one."""
VIEWS_OF_SCANNERS = 1
"""The same where other scanners show each CT as well."""


@dataclass(frozen=True)
class Read:
    """A CT as read: features (n, M, k), CNN probabilities (n, M, 6), steps (n,), labels (n, 6).

    `valid` (n, 6) tells which of the labels count.
    """

    features: Tensor
    probabilities: Tensor
    steps_mm: Tensor
    labels: Tensor
    valid: Tensor


def fit_sequence(
    pipeline: SequencedPipeline,
    series: Sequence[Series],
    recipe: Recipe,
    stage: Stage,
    seed: int,
    progress: Progress | None = None,
) -> Fitted:
    """Train the pipeline's own sequence model on readings of `series`; its CNNs stay as they are."""
    views = range(1 + (VIEWS_OF_SCANNERS if recipe.scanners else VIEWS))
    readings = [[read(pipeline, one, recipe, seed, view) for view in views] for one in series]
    torch.manual_seed(seed)
    untaught = pipeline.reader.model
    model = SequenceModel(untaught.cnns, untaught.width)
    model.to(pipeline.device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay)
    history = History()
    for step in range(stage.length(len(series))):
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(seed * 1_000_003 + step)
        crops = [crop(_draw(readings, rng), rng) for _ in range(stage.batch)]
        batch = stack(crops)
        for group in optimiser.param_groups:
            group["lr"] = stage.learning_rate * schedule(stage.schedule, step / stage.length(len(series)))
        output: SequenceOutput = model(batch.features, batch.probabilities, batch.steps_mm)
        value = sequence_loss(output, batch.labels, batch.valid)
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        history.training.append(float(value.detach()))
        if progress:
            progress(step + 1, stage.length(len(series)), history.training[-1])
    return Fitted({name: value.detach().cpu() for name, value in model.state_dict().items()}, history)


def _draw(readings: Sequence[Sequence[Read]], rng: np.random.Generator) -> Read:
    views = readings[int(rng.integers(len(readings)))]
    return views[int(rng.integers(len(views)))]


@torch.no_grad()
def read(pipeline: SequencedPipeline, series: Series, recipe: Recipe, seed: int, view: int) -> Read:
    """What the CNNs say of one CT; view 0 is the CT as it is, any other one random change of all slices."""
    source = as_input(series)
    if view:
        rng = np.random.default_rng((seed, view, len(series.pictures)))
        pictures = torch.from_numpy(source.pictures)
        changed, _ = augment(
            pictures,
            torch.zeros(len(pictures), 1, *pictures.shape[2:]),
            rng,
            recipe.augmentation,
            slices=False,
        )
        source = replace(source, pictures=changed.numpy())
    pooled, probabilities = pipeline.spoken(source)
    count = len(series.labels)
    device = pipeline.device
    return Read(
        pooled,
        probabilities,
        torch.full((count,), series.step_mm, device=device),
        torch.from_numpy(np.asarray(series.labels, np.float32)).to(device),
        torch.from_numpy(np.asarray(series.told, np.float32)).to(device),
    )


def crop(one: Read, rng: np.random.Generator, length: int = LENGTH) -> Read:
    """At most `length` neighbouring slices; at times only every other one, at times upside down."""
    places = np.arange(len(one.labels))
    factor = 1.0
    if rng.random() < 0.5 and len(places) >= 4:
        places, factor = places[int(rng.integers(2)) :: 2], 2.0
    start = int(rng.integers(0, max(1, len(places) - length + 1)))
    places = places[start : start + length]
    if rng.random() < 0.5:
        places = places[::-1]
    chosen = torch.from_numpy(places.copy()).to(one.labels.device)
    return Read(
        one.features[chosen],
        one.probabilities[chosen],
        one.steps_mm[chosen] * factor,
        one.labels[chosen],
        one.valid[chosen],
    )


def stack(crops: Sequence[Read], length: int = LENGTH) -> Read:
    """A batch of crops, the short ones padded with slices that count nothing."""

    def padded(name: str) -> Tensor:
        values = [getattr(one, name) for one in crops]
        whole = [
            torch.cat((value, value.new_zeros(length - len(value), *value.shape[1:]))) for value in values
        ]
        return torch.stack(whole)

    return Read(*(padded(name) for name in Read.__dataclass_fields__))
