"""What a pipeline's networks say about prepared series, kept for judging. Calibrates and judges nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from node.domain.findings import CLASSES
from workers.models.ensemble import EnsemblePipeline, Overlay, overlaid, weighted
from workers.models.picture import PicturePipeline, ReadingPipeline, require_finite
from workers.preprocess import HeadFrame, NetworkInput, Spacing, View
from workers.training.datasets import Series

HEAT_SIZE = 64
"""Side at which explanations are kept, at most."""


@dataclass(frozen=True)
class Prediction:
    """One series as the networks saw it.

    Truth as in `Series`: `labels` and `told` (n, 6), `truth` (6,) of the whole, `mask` (n, y, x) of "any",
    `mask_known` and `by_hand` (n,). Of the networks: `class_logits` and `mask_logits` (n, 6), `blood`
    (n, y, x) uint8, the probability of "any" times 255, or None, Grad-CAM++ `heat` (n, h, w) float16 of
    "any"; `knows` are the classes they can tell, `sees` (n, y, x) where they can draw, None for everywhere.
    """

    patient: str
    name: str
    labels: NDArray[np.uint8]
    told: NDArray[np.bool_]
    truth: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    mask_known: NDArray[np.bool_]
    by_hand: NDArray[np.bool_]
    class_logits: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    blood: NDArray[np.uint8] | None
    heat: NDArray[np.float16]
    knows: frozenset[str] = frozenset(CLASSES)
    cell_mm: Spacing | None = None
    sees: NDArray[np.bool_] | None = None

    @property
    def study_told(self) -> NDArray[np.bool_]:
        """Classes (6,) of `truth` that are known: those every slice tells; all where none tells any."""
        return np.asarray(self.told.all(axis=0) | ~self.told.any())


def drawn(prediction: Prediction, threshold: float) -> NDArray[np.bool_] | None:
    """The mask (n, y, x) at this probability, None where the networks draw none."""
    return None if prediction.blood is None else prediction.blood >= threshold * 255


def as_input(series: Series) -> NetworkInput:
    """Prepared pictures as a pipeline takes them."""
    count, size = len(series.pictures), series.pictures.shape[-1]
    pictures = series.pictures.astype(np.float32) / np.float32(255)
    frame = HeadFrame(0, 0, size, size)
    return NetworkInput(pictures, np.arange(count, dtype=np.float32), frame, (count, size, size))


def predict(pipeline: PicturePipeline, series: Series, explain: bool = True) -> Prediction:
    """What the pipeline's networks say about one prepared series; masks on its own grid.

    Maps take longer than all the rest: without `explain` they are one dark cell a slice.
    """
    spacing_mm = (series.step_mm, 1.0, 1.0)
    reading = require_finite(pipeline.read(as_input(series), spacing_mm))
    blood = None if reading.masks is None else np.rint(reading.masks[:, 0] * 255).astype(np.uint8)
    return Prediction(
        patient=series.patient,
        name=series.name,
        labels=np.asarray(series.labels),
        told=np.asarray(series.told),
        truth=series.truth,
        mask=(np.asarray(series.masks) & 1) > 0,
        mask_known=np.asarray(series.known[:, 0]),
        by_hand=np.asarray(series.by_hand),
        class_logits=reading.class_logits,
        mask_logits=reading.mask_logits,
        blood=blood,
        heat=_smaller(pipeline.heat(reading, spacing_mm, "any")) if explain else _dark(len(series.pictures)),
        knows=pipeline.knows,
        cell_mm=series.cell_mm,
        sees=reading.sees,
    )


def predict_all(pipeline: PicturePipeline, series: Iterable[Series]) -> list[Prediction]:
    return [predict(pipeline, one) for one in series]


def predict_through(pipeline: ReadingPipeline, seen: Callable[[View], Sequence[Series]]) -> list[Prediction]:
    """What a pipeline of any kind says about the series that `seen` prepares for a view."""
    if isinstance(pipeline, EnsemblePipeline):
        parts = [predict_through(part, seen) for part in pipeline.parts]
        return [joined(same, pipeline.weights) for same in zip(*parts, strict=True)]
    assert isinstance(pipeline, PicturePipeline)
    return predict_all(pipeline, seen(pipeline.view))


def joined(same: Sequence[Prediction], weights: Sequence[float]) -> Prediction:
    """Predictions of one series by the parts of an ensemble as one, on the finest grid of those that draw.

    Raises ValueError for predictions of different series.
    """
    if len({(one.patient, one.name, len(one.labels)) for one in same}) > 1:
        told = ", ".join(f"{one.patient} {one.name} ({len(one.labels)} slices)" for one in same)
        raise ValueError(f"the parts of an ensemble were asked about different series: {told}")
    drawing = [one for one in same if one.blood is not None]
    finest = max(drawing or same, key=lambda one: one.mask.shape[-1])
    heat = [one.heat.astype(np.float32) for one in same]
    size = min(one.shape[-1] for one in heat)
    return replace(
        finest,
        blood=_overlaid(same, weights),
        sees=None,
        class_logits=weighted([one.class_logits for one in same], weights),
        mask_logits=weighted([one.mask_logits for one in same], weights),
        heat=weighted([_pooled(one, size) for one in heat], weights).astype(np.float16),
    )


def _overlaid(same: Sequence[Prediction], weights: Sequence[float]) -> NDArray[np.uint8] | None:
    joint = overlaid(
        [
            Overlay(one.blood[:, None].astype(np.float32), one.sees, weight)
            for one, weight in zip(same, weights, strict=True)
            if one.blood is not None
        ]
    )
    return None if joint is None else np.rint(joint[:, 0]).astype(np.uint8)


def _dark(count: int) -> NDArray[np.float16]:
    return np.zeros((count, 1, 1), np.float16)


def _smaller(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    if maps.shape[-1] <= HEAT_SIZE:
        return maps.astype(np.float16)
    return _pooled(maps, HEAT_SIZE).astype(np.float16)


def _pooled(maps: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    pooled = functional.adaptive_avg_pool2d(torch.from_numpy(maps), size)
    return np.asarray(pooled.numpy(), np.float32)


_SLICEWISE = ("labels", "told", "mask", "mask_known", "by_hand", "class_logits", "mask_logits", "heat")
_DRAWN = ("blood", "sees")


def save(path: Path, predictions: Sequence[Prediction]) -> None:
    """Keep predictions of one model in one .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in predictions]) for name in _SLICEWISE
    }
    arrays["truth"] = np.stack([one.truth for one in predictions])
    for name in _DRAWN:
        told = [value for one in predictions if (value := getattr(one, name)) is not None]
        if told:
            arrays[name] = np.concatenate(told)
    facts = [
        {"patient": one.patient, "name": one.name, "slices": len(one.labels), "cell_mm": one.cell_mm,
         "knows": sorted(one.knows)}
        for one in predictions
    ]  # fmt: skip
    temporary = path.with_suffix(".part.npz")
    np.savez_compressed(temporary, facts=np.asarray(json.dumps(facts)), **arrays)
    temporary.replace(path)


def load(path: Path) -> list[Prediction]:
    """Read back what `save` wrote."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    facts = json.loads(str(arrays.pop("facts")))
    truth, blood, sees = arrays.pop("truth"), arrays.pop("blood", None), arrays.pop("sees", None)
    found: list[Prediction] = []
    start = 0
    for index, one in enumerate(facts):
        own = slice(start, start + one["slices"])
        start = own.stop
        found.append(
            Prediction(
                patient=one["patient"],
                name=one["name"],
                truth=truth[index],
                blood=None if blood is None else blood[own],
                sees=None if sees is None else sees[own],
                knows=frozenset(one["knows"]),
                cell_mm=None if one["cell_mm"] is None else tuple(one["cell_mm"]),
                **{name: values[own] for name, values in arrays.items()},
            )
        )
    return found
