"""What every pipeline shares that looks at pictures of the head cut-out. Knows no network, trains nothing.

A subclass says how its networks `read` pictures and what their maps are; all the way from HU and back to the
source slices is here. None hides what it cannot do: `knows` are the classes a pipeline can tell (the others
get probability 0, which says nothing of the patient) and `draws` is whether it has a mask at all. Refuses
outputs that are not finite: they never become a negative result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES, SUBTYPES, ModelIdentity
from workers.models.aggregate import Aggregation
from workers.models.cam import spread
from workers.models.contract import MAP_SIZE, Classification, Mask, Spacing, Volume, require_classification
from workers.models.engine import CPU, Compiler, Engine, Forward, Shape
from workers.models.scan import Scan
from workers.preprocess import HeadFrame, NetworkInput, View

DIM = 0.1
"""Probability of a class below which a slice needs no map of it: an overlay would not show it."""
SMALLEST_ML = 0.1
"""Pieces of the mask below this volume are noise."""


@dataclass(frozen=True)
class Operating:
    """How probabilities become statements: series thresholds a class, mask threshold, aggregation."""

    thresholds: Mapping[str, float]
    mask_threshold: float
    aggregation: Aggregation

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Operating:
        """That of a sidecar; a family without a mask needs no mask threshold."""
        return cls(
            thresholds={name: float(facts["thresholds"][name]) for name in CLASSES},
            mask_threshold=float(facts.get("mask_threshold", 0.5)),
            aggregation=Aggregation.from_json(facts["aggregation"]),
        )

    @classmethod
    def plain(cls, class_weight: float = 0.5, mask_weight: float = 0.5) -> Operating:
        """Before any calibration."""
        return cls(dict.fromkeys(CLASSES, 0.5), 0.5, Aggregation.plain(class_weight, mask_weight))


@dataclass(frozen=True)
class Reading:
    """What one model said about every picture (n).

    Class logits (n, 6) and the mask's own evidence (n, 6), the same where there is one voice only;
    network by network its last maps (n, k, h, w); masks 0..1 (n, channels, size, size) with "any"
    first, None where it draws none; the places (n, size, size) it `sees` to draw on, None for all.
    """

    reader: ModelIdentity
    source: NetworkInput
    class_logits: NDArray[np.float32]
    mask_logits: NDArray[np.float32]
    features: tuple[Tensor, ...]
    masks: NDArray[np.float32] | None = None
    sees: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Prepared:
    """One head as the networks of a pipeline will see it: a source for each of its views, in their order."""

    spacing_mm: Spacing
    sources: tuple[NetworkInput, ...]

    @property
    def size_bytes(self) -> int:
        return sum(int(one.pictures.nbytes) for one in self.sources)


class ReadingPipeline:
    """See `workers.models.contract.Pipeline`. Turns a `Reading` into answers."""

    knows: frozenset[str] = frozenset(CLASSES)
    draws = False

    def __init__(self, identity: ModelIdentity, operating: Operating) -> None:
        self.identity = identity
        self.operating = operating

    @property
    def thresholds(self) -> Mapping[str, float]:
        return self.operating.thresholds

    @property
    def views(self) -> int:
        """How many sources a head is prepared as."""
        return 1

    def view_of(self, scan: Scan) -> Prepared:
        """What the networks see of a head. Raises PermanentError without one."""
        raise NotImplementedError

    def look_all(self, prepared: Sequence[Prepared]) -> list[Reading]:
        """Run every network over the heads, all of them at once."""
        raise NotImplementedError

    def look(self, hu: Volume, spacing_mm: Spacing, frame: HeadFrame | None = None) -> Reading:
        """Run every network over the head. `frame` is where it lies, when that is known already."""
        return self.look_all([self.view_of(Scan(hu, spacing_mm, frame))])[0]

    def run_on(self, engine: Engine) -> None:
        """Let this engine run the networks from now on; they are on its device already."""
        raise NotImplementedError

    def engines(self) -> list[Engine]:
        """Those that run the networks."""
        raise NotImplementedError

    def prepare(self, hu: Volume, spacing_mm: Spacing) -> Prepared:
        """See `workers.models.several.TakesSeveral`."""
        scan = Scan(hu, spacing_mm)
        prepared = self.view_of(scan)
        scan.release()
        return prepared

    def classify_all(self, prepared: Sequence[Prepared]) -> list[Classification]:
        """See `workers.models.several.TakesSeveral`."""
        return [self._answer(require_finite(reading)) for reading in self.look_all(prepared)]

    def heat(
        self, reading: Reading, spacing_mm: Spacing, class_name: str, lit: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Grad-CAM++ maps (n, size, size) of a class on the pictures, the brightest place of each 1.

        Where `lit` (n,) is given, pictures outside it get none, and cost nothing.
        """
        raise NotImplementedError

    def classify(self, hu: Volume, spacing_mm: Spacing) -> Classification:
        return self._answer(self._reading(hu, spacing_mm, None))

    def _answer(self, reading: Reading) -> Classification:
        aggregation = self.operating.aggregation
        evidence = aggregation.evidence(reading.class_logits, reading.mask_logits)
        known = np.asarray([name in self.knows for name in CLASSES])
        answer = Classification(
            slices=reading.source.to_slices(aggregation.slice_probabilities(evidence) * known),
            series=aggregation.series_probabilities(evidence) * known,
            state=reading,
        )
        return require_classification(answer, reading.source.shape[0])

    def segment(self, hu: Volume, spacing_mm: Spacing, classification: Classification) -> Mask:
        """The "any" mask; all False where the pipeline draws none, which is no statement."""
        reading = self._reading(hu, spacing_mm, classification)
        mask = np.zeros(hu.shape, bool)
        if reading.masks is None:
            return mask
        threshold = self.operating.mask_threshold
        for z, picture in enumerate(reading.source.to_slices(reading.masks[:, 0])):
            if picture.max() >= threshold:
                mask[z] = reading.source.to_source(picture) >= threshold
        return without_specks(mask, spacing_mm)

    def segment_subtypes(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification
    ) -> Mapping[str, Mask]:
        """The "any" mask divided among the subtypes: each place goes to the likeliest one.

        Empty where the masks of a reading have no channel for each class.
        """
        reading = self._reading(hu, spacing_mm, classification)
        if reading.masks is None or reading.masks.shape[1] < len(CLASSES):
            return {}
        blood = self.segment(hu, spacing_mm, classification)
        return divided(blood, reading.masks[:, 1:].argmax(axis=1), reading.source)

    def explain(
        self, hu: Volume, spacing_mm: Spacing, classification: Classification, class_name: str
    ) -> NDArray[np.float32]:
        """`heat`, each map scaled to its slice's probability of the class.

        So slices without the finding stay dark, and the whole series shares one scale. Slices below DIM have
        no map at all, unless none is above: then the likeliest has.
        """
        reading = self._reading(hu, spacing_mm, classification)
        strength = classification.slices[:, CLASSES.index(class_name)]
        lit = strength >= min(DIM, strength.max())
        shown = np.zeros((len(strength), MAP_SIZE, MAP_SIZE), np.float32)
        pictures = self.heat(reading, spacing_mm, class_name, reading.source.behind(lit))
        for z, picture in enumerate(reading.source.to_slices(pictures)):
            if lit[z]:
                shown[z] = reading.source.to_source(picture, (MAP_SIZE, MAP_SIZE)) * strength[z]
        return np.clip(shown, 0, 1)

    def _reading(self, hu: Volume, spacing_mm: Spacing, classification: Classification | None) -> Reading:
        """What this very model kept when it classified, or a new run."""
        state = classification.state if classification is not None else None
        if isinstance(state, Reading) and state.reader == self.identity and state.source.shape == hu.shape:
            return state
        return require_finite(self.look(hu, spacing_mm))


class PicturePipeline(ReadingPipeline):
    """A pipeline whose networks all see the same pictures, those of its `view`."""

    def __init__(
        self, identity: ModelIdentity, operating: Operating, view: View, device: torch.device | None = None
    ) -> None:
        super().__init__(identity, operating)
        self.view = view
        self.engine = Engine(device or CPU)

    @property
    def device(self) -> torch.device:
        return self.engine.device

    def run_on(self, engine: Engine) -> None:
        self.engine = engine
        self.use(engine.compiler or _as_it_is)
        if engine.is_fixed:
            self.warm_up()

    def engines(self) -> list[Engine]:
        return [self.engine]

    def use(self, compiler: Compiler) -> None:
        """Let the networks run as this makes them."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Let every network meet every shape of a batch."""
        raise NotImplementedError

    def read(self, source: NetworkInput, spacing_mm: Spacing) -> Reading:
        """Run every network over all pictures, which are of this pipeline's `view`."""
        return self.read_all([source], [spacing_mm])[0]

    def read_all(self, sources: Sequence[NetworkInput], spacings_mm: Sequence[Spacing]) -> list[Reading]:
        """The same for several heads at once."""
        raise NotImplementedError

    def coarse(
        self, reading: Reading, spacing_mm: Spacing, place: int, lit: Tensor
    ) -> Iterator[tuple[Tensor, float]]:
        """Network by network, Grad-CAM++ maps (k, h, w) of a class and where their first cell looks.

        `lit` (k,) are the numbers of the pictures that they are wanted of.
        """
        raise NotImplementedError

    def drawing(self, reading: Reading, lit: Tensor) -> Callable[[Tensor, float], Tensor]:
        """How such maps are laid on those pictures: (k, h, w) becomes (k, size, size)."""
        return lambda maps, first_centre: spread(maps, self.view.size, first_centre)

    def view_of(self, scan: Scan) -> Prepared:
        return Prepared(scan.spacing_mm, (scan.pictures(self.view, self.device),))

    def look_all(self, prepared: Sequence[Prepared]) -> list[Reading]:
        return self.read_all([one.sources[0] for one in prepared], [one.spacing_mm for one in prepared])

    def heat(
        self, reading: Reading, spacing_mm: Spacing, class_name: str, lit: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """One map a network, each scaled to its peak, averaged."""
        count = len(reading.source.centres)
        numbers = np.arange(count) if lit is None else np.flatnonzero(lit)
        drawn = np.zeros((count, self.view.size, self.view.size), np.float32)
        if len(numbers):
            wanted = torch.from_numpy(numbers).to(self.device)
            lay, place = self.drawing(reading, wanted), CLASSES.index(class_name)
            maps = [peak_is_one(lay(*coarse)) for coarse in self.coarse(reading, spacing_mm, place, wanted)]
            drawn[numbers] = peak_is_one(torch.stack(maps).mean(0)).cpu().numpy()
        return drawn


def _as_it_is(network: nn.Module, function: Forward, shape: Shape) -> Forward:
    """Of a compiler: none."""
    return function


def require_finite(reading: Reading) -> Reading:
    """The same reading. Raises PermanentError when it holds anything but numbers."""
    values = {"class": reading.class_logits, "mask": reading.mask_logits, "picture of blood": reading.masks}
    for what, numbers in values.items():
        if numbers is not None and not np.isfinite(numbers).all():
            raise PermanentError(
                "MODEL_OUTPUT_INVALID",
                f"the {what} output of the network holds NaN or infinity; check the weights and the input",
            )
    return reading


def divided(blood: Mask, owner: NDArray[np.int_], source: NetworkInput) -> dict[str, Mask]:
    """The mask (z, y, x) by subtype; each place goes to the one that has most of the pictures around it.

    `owner` (n, y, x) tells for each pixel of the pictures which of SUBTYPES has it.
    """
    counts = np.count_nonzero(blood, axis=(1, 2))
    found = {
        z: (np.zeros(counts[z], np.uint8), np.zeros(counts[z], np.float32)) for z in np.flatnonzero(counts)
    }
    for number in range(len(SUBTYPES)):
        shares = source.to_slices((owner == number).astype(np.float32))
        for z, (kinds, most) in found.items():
            share = source.to_source(shares[z])[blood[z]]
            kinds[share > most] = number
            np.maximum(most, share, out=most)
    parts = {}
    for number, name in enumerate(SUBTYPES):
        mask = np.zeros(blood.shape, bool)
        for z, (kinds, _) in found.items():
            mask[z][blood[z]] = kinds == number
        if mask.any():
            parts[name] = mask
    return parts


def without_specks(mask: Mask, spacing_mm: Spacing) -> Mask:
    """The mask without connected pieces smaller than SMALLEST_ML."""
    kept = np.zeros(mask.shape, bool)
    if mask.any():
        box = _box(mask)  # labels of a whole series of thin slices would take a gigabyte, and seconds
        labels, _ = ndimage.label(mask[box])
        sizes_ml = np.bincount(labels.ravel()) * float(np.prod(spacing_mm)) / 1000
        keep = sizes_ml >= SMALLEST_ML
        keep[0] = False
        kept[box] = keep[labels]
    return kept


def _box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box (z, y, x) that holds a mask with anything in it."""
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    plane = np.any(mask[slices[0] : slices[-1] + 1], axis=0)
    places = (slices, np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0)))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)


def peak_is_one(maps: Tensor) -> Tensor:
    """Maps (n, y, x), each divided by its largest value; dark ones stay dark."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-8)
