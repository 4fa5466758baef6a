"""One synthetic head as frozen numbers drawn from a generator. Draws nothing on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from node.domain.findings import SUBTYPES
from workers.phantom.bleeds import DRAWERS, Bleed

Offset = tuple[int, int, int]

_BLEED_COUNT = (0.62, 0.28, 0.10)
"""How often a drawn head holds one, two or three kinds of bleed."""
_SUBTYPE_FREQUENCY = (0.20, 0.22, 0.17, 0.20, 0.21)


@dataclass(frozen=True)
class Tissue:
    """Radiodensities in HU."""

    grey: float
    white: float
    csf: float
    bone: float
    scalp: float
    falx: float
    sinus: float


@dataclass(frozen=True)
class Scanner:
    """What the scanner does to the picture: lengths in mm, amplitudes in HU."""

    noise_hu: float
    psf_mm: float
    slice_mm: float
    cupping_hu: float
    streak_hu: float
    noise_seed: int


@dataclass(frozen=True)
class Spot:
    """A dense ball (calcification) or, in `Head.infarct`, a dark one: centre and radius in mm, HU."""

    x: float
    y: float
    z: float
    radius: float
    hu: float


@dataclass(frozen=True)
class ScalpSwelling:
    """A scalp haematoma: outside the skull, so never in a mask. Angle in radians, height in mm."""

    theta: float
    z: float


@dataclass(frozen=True)
class Head:
    """Shape (mm, radians), tissue, mimics, scanner and bleeds of one head.

    Head coordinates: origin in the middle of the cranial cavity, x to patient left, y to
    posterior, z to the vertex. `half_axes` are those of the inner table of the skull.
    """

    half_axes: tuple[float, float, float]
    half_height_low: float
    exponent: float
    skull: float
    scalp: float
    atrophy: float
    sulcus: float
    ventricle: float
    roll: float
    tilt: float
    yaw: float
    centre: tuple[float, float]
    scale: float
    midline_shift: float
    falx_width: float
    tissue: Tissue
    scanner: Scanner
    calcifications: tuple[Spot, ...]
    infarct: Spot | None
    swelling: ScalpSwelling | None
    fracture: bool
    fields: tuple[Offset, Offset]
    bleeds: tuple[Bleed, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator, bleeds: Sequence[str] | None = None) -> Head:
        """Draw a head; `bleeds` are subtype names, empty for none, None to let chance decide.

        The anatomy does not depend on `bleeds`: the same generator state with and without a
        bleed gives the same head.
        """
        anatomy_rng, bleed_rng = rng.spawn(2)
        head = _draw_anatomy(anatomy_rng)
        names = _draw_names(bleed_rng) if bleeds is None else tuple(bleeds)
        drawn = tuple(DRAWERS[name](bleed_rng) for name in names)
        return replace(head, bleeds=drawn, midline_shift=float(sum(bleed.shift_mm for bleed in drawn)))


def _draw_names(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.random() < 0.5:
        return ()
    count = int(rng.choice((1, 2, 3), p=_BLEED_COUNT))
    return tuple(str(name) for name in rng.choice(SUBTYPES, count, replace=False, p=_SUBTYPE_FREQUENCY))


def _draw_anatomy(rng: np.random.Generator) -> Head:
    uniform = rng.uniform
    atrophy = uniform(0, 1)
    offsets = rng.integers(0, 160, (2, 3))
    swelling = ScalpSwelling(uniform(0, 2 * np.pi), uniform(-20, 50)) if uniform() < 0.2 else None
    infarct = None
    if uniform() < 0.12:
        infarct = Spot(uniform(-40, 40), uniform(-40, 50), uniform(0, 45), uniform(12, 30), -uniform(5, 13))
    return Head(
        half_axes=(uniform(62, 72), uniform(80, 94), uniform(70, 80)),
        half_height_low=uniform(58, 66),
        exponent=uniform(2.0, 2.35),
        skull=uniform(4.5, 9),
        scalp=uniform(3, 8),
        atrophy=atrophy,
        sulcus=uniform(0.5, 1.6) + 1.6 * atrophy,
        ventricle=uniform(0.75, 1.15) + 0.55 * atrophy * uniform(0.3, 1),
        roll=float(np.deg2rad(rng.normal(0, 8))),
        tilt=float(np.deg2rad(uniform(-18, 18))),
        yaw=float(np.deg2rad(rng.normal(0, 4))),
        centre=(rng.normal(0, 4), rng.normal(4, 4)),
        scale=uniform(0.88, 1.04),
        midline_shift=0.0,
        falx_width=uniform(0.6, 1.6),
        tissue=_draw_tissue(rng),
        scanner=_draw_scanner(rng),
        calcifications=_draw_calcifications(rng),
        infarct=infarct,
        swelling=swelling,
        fracture=bool(uniform() < 0.15),
        fields=(_offset(offsets[0]), _offset(offsets[1])),
        bleeds=(),
    )


def _offset(values: np.ndarray) -> Offset:
    return int(values[0]) % 32, int(values[1]), int(values[2])


def _draw_tissue(rng: np.random.Generator) -> Tissue:
    uniform = rng.uniform
    return Tissue(
        grey=uniform(34, 41),
        white=uniform(25, 31),
        csf=uniform(3, 11),
        bone=uniform(900, 1500),
        scalp=uniform(-60, 30),
        falx=uniform(40, 62),
        sinus=uniform(45, 66),
    )


def _draw_scanner(rng: np.random.Generator) -> Scanner:
    uniform = rng.uniform
    return Scanner(
        noise_hu=uniform(2, 6.5),
        psf_mm=uniform(0.4, 1.1),
        slice_mm=uniform(2.5, 6),
        cupping_hu=uniform(-6, 6),
        streak_hu=uniform(0, 14),
        noise_seed=int(rng.integers(2**31)),
    )


def _draw_calcifications(rng: np.random.Generator) -> tuple[Spot, ...]:
    """Pineal gland, choroid plexus (both sides) and stray ones: dense, and no bleeds."""
    uniform = rng.uniform
    spots = []
    if uniform() < 0.6:
        spots.append(Spot(0, 22, 2, uniform(1.5, 3), uniform(90, 250)))
    if uniform() < 0.5:
        radius, hu = uniform(2, 4), uniform(80, 220)
        spots += [Spot(side * 20, 30, 12, radius, hu) for side in (-1, 1)]
    if uniform() < 0.5:
        for _ in range(rng.integers(0, 4)):
            spots.append(
                Spot(uniform(-25, 25), uniform(-20, 30), uniform(-10, 30), uniform(1.5, 4), uniform(90, 300))
            )
    return tuple(spots)
