"""What other scanners, doses, kernels and exports do to a head CT, to ask how much a model minds.

A disturbance is applied to the volume in HU, before the head is looked for, so that the whole path meets it.
None moves a slice or adds one: the labels of the slices stay true. Teaches nothing; for that see `augment`
and `scanners`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from node.domain.errors import PermanentError
from node.pixels import AIR_HU
from workers.preprocess import HeadFrame, NetworkInput, Spacing, View, Volume

GRAIN_PX = 0.8
"""Standard deviation of the blur that gives noise its grain."""

Change = Callable[[Volume, Spacing], Volume]


@dataclass(frozen=True)
class Disturbance:
    """`change` a volume (z, y, x) in HU; `alone`: every slice then is a series of its own."""

    name: str
    what: str
    change: Change
    alone: bool = False


@dataclass(frozen=True)
class DisturbedView(View):
    """What the same network sees of a disturbed head."""

    disturbance: Disturbance

    @classmethod
    def of(cls, view: View, disturbance: Disturbance) -> DisturbedView:
        return cls(view.windows, view.size, disturbance)

    def prepare(self, hu: Volume, spacing_mm: Spacing, frame: HeadFrame | None = None) -> NetworkInput:
        changed = self.disturbance.change(hu, spacing_mm).astype(np.float32, copy=False)
        whole = super().prepare(changed, spacing_mm, frame)
        if not self.disturbance.alone:
            return whole
        pictures = np.concatenate([self._single(one, spacing_mm, whole.frame) for one in changed])
        return replace(whole, pictures=pictures, centres=np.arange(len(hu), dtype=np.float32))

    def _single(self, image: Volume, spacing_mm: Spacing, frame: HeadFrame) -> Volume:
        """The picture (1, windows, size, size) of a slice by itself; `frame` is where the head is if the
        slice has too little of it to tell."""
        try:
            return super().prepare(image[None], spacing_mm).pictures
        except PermanentError:
            return super().prepare(image[None], spacing_mm, frame).pictures


def noise(strength_hu: float) -> Change:
    """Grainy noise of that standard deviation, the same whenever the volume is."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(hu[0]).tobytes()))
        return grainy(strength_hu, GRAIN_PX, rng)(hu, spacing_mm)

    return change


def grainy(strength_hu: float, grain_px: float, rng: np.random.Generator) -> Change:
    """Noise of that standard deviation, blurred in the plane to give it its grain."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0, grain_px, grain_px))
        return hu + grain * np.float32(strength_hu / grain.std())

    return change


def smooth(width_mm: float) -> Change:
    """A softer kernel: a Gaussian of that standard deviation in the plane."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        return ndimage.gaussian_filter(hu, (0, width_mm / spacing_mm[1], width_mm / spacing_mm[2]))

    return change


def sharp(amount: float, width_mm: float) -> Change:
    """A harder kernel: what `smooth` takes away is added, so many times."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        return hu + np.float32(amount) * (hu - smooth(width_mm)(hu, spacing_mm))

    return change


def scaled(gain: float, offset_hu: float) -> Change:
    """Another calibration, or a beam harder than the scanner allows for."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        return hu * np.float32(gain) + np.float32(offset_hu)

    return change


def thick(hu: Volume, spacing_mm: Spacing) -> Volume:
    """Each slice as thick as two: its mean with the next one."""
    return ((hu + np.concatenate((hu[1:], hu[-1:]))) / 2).astype(np.float32)


def turned(angle_deg: float) -> Change:
    """The head turned about its long axis."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        return ndimage.rotate(hu, angle_deg, (1, 2), reshape=False, order=1, cval=AIR_HU)

    return change


def tilted(angle_deg: float) -> Change:
    """Slices that slide over one another, as those of a tilted gantry do when nobody corrects them."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        rows = np.tan(np.deg2rad(angle_deg)) * spacing_mm[0] / spacing_mm[1]
        middle = (len(hu) - 1) / 2
        moved = [
            ndimage.shift(one, ((z - middle) * rows, 0), order=1, cval=AIR_HU) for z, one in enumerate(hu)
        ]
        return np.stack(moved)

    return change


def clipped(low_hu: float, high_hu: float) -> Change:
    """Only that window of the head is left, as where a picture was exported in place of the values."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        return np.where(hu > -200, np.clip(hu, low_hu, high_hu), np.float32(AIR_HU))

    return change


def exported(low_hu: float, high_hu: float) -> Change:
    """A picture of that window, which has no air, of a field of view that is half as wide again."""

    def change(hu: Volume, spacing_mm: Spacing) -> Volume:
        rows, columns = hu.shape[1] // 4, hu.shape[2] // 4
        wide = np.pad(hu, ((0, 0), (rows, rows), (columns, columns)), constant_values=AIR_HU)
        return np.clip(wide, low_hu, high_hu)

    return change


def as_it_is(hu: Volume, spacing_mm: Spacing) -> Volume:
    return hu


DISTURBANCES: tuple[Disturbance, ...] = (
    Disturbance("noise-5", "noise of 5 HU is added", noise(5)),
    Disturbance("noise-10", "noise of 10 HU is added", noise(10)),
    Disturbance("smooth", "softer kernel: Gaussian of 1 mm", smooth(1.0)),
    Disturbance("sharp", "harder kernel: unsharp mask, 1 mm, once", sharp(1.0, 1.0)),
    Disturbance("thick", "slices twice as thick", thick),
    Disturbance("higher", "all values 6 HU higher", scaled(1.0, 6.0)),
    Disturbance("lower", "all values 6 HU lower", scaled(1.0, -6.0)),
    Disturbance("steeper", "all values 10 % larger", scaled(1.1, 0.0)),
    Disturbance("turned", "head turned by 20°", turned(20.0)),
    Disturbance("tilted", "gantry tilt of 15°, not corrected", tilted(15.0)),
    Disturbance("narrow", "only 0 to 80 HU are known", clipped(0.0, 80.0)),
    Disturbance("exported", "a wide picture of 0 to 80 HU, air included", exported(0.0, 80.0)),
    Disturbance("alone", "each slice is sent by itself", as_it_is, alone=True),
)


def disturbance(name: str) -> Disturbance:
    """Raises KeyError with the names there are."""
    for known in DISTURBANCES:
        if known.name == name:
            return known
    raise KeyError(f"no disturbance {name!r}: there are {', '.join(known.name for known in DISTURBANCES)}")
