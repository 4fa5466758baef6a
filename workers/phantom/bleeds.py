"""The five kinds of intracranial bleed as shapes in a head. Each answers how much blood is at a point.

Shapes follow where each kind lives: epidural a lens outside the dura, subdural a crescent inside
it or along the falx, intraparenchymal a rounded mass with oedema, intraventricular a level or cast
of the ventricles, subarachnoid a film in sulci and cisterns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from workers.phantom.fields import Array, angle_between, soft
from workers.phantom.space import Space


class Bleed(Protocol):
    """A shape: `membership` is 0..1 over the image, before it is kept inside the cavity."""

    subtype: ClassVar[str]

    @property
    def hu(self) -> float: ...

    @property
    def shift_mm(self) -> float:
        """How far it pushes the midline to patient left."""
        ...

    def membership(self, space: Space) -> Array: ...


def _fresh_hu(rng: np.random.Generator) -> float:
    """Acute clot mostly; one in seven isodense."""
    return float(rng.uniform(52, 82) if rng.random() < 0.85 else rng.uniform(38, 52))


def _side(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


@dataclass(frozen=True)
class Epidural:
    """A ball pressed against the inner table: `thickness` and `radius` in mm, `theta` from the side."""

    subtype: ClassVar[str] = "epidural"
    hu: float
    side: int
    theta: float
    z: float
    thickness: float
    radius: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Epidural:
        thickness = rng.uniform(6, 28)
        return cls(
            hu=_fresh_hu(rng),
            side=_side(rng),
            theta=float(np.deg2rad(rng.uniform(-65, 65))),
            z=rng.uniform(-15, 45),
            thickness=thickness,
            radius=max(rng.uniform(24, 50), thickness * 1.15),
        )

    @property
    def shift_mm(self) -> float:
        return -self.side * self.thickness * 0.14

    def membership(self, space: Space) -> Array:
        angle = self.side * (np.pi / 2 + self.theta)
        half_x, half_y, half_z = space.head.half_axes
        shrink = np.sqrt(max(0.05, 1 - (self.z / half_z) ** 2))
        rim = np.array((half_x * shrink * np.sin(angle), -half_y * shrink * np.cos(angle)))
        centre = rim * (1 + (self.radius - self.thickness) / np.hypot(*rim))
        distance = np.sqrt((space.x - centre[0]) ** 2 + (space.y - centre[1]) ** 2 + (space.z - self.z) ** 2)
        return soft((self.radius - distance + 0.7 * space.coarse) / 0.5) * soft(
            (space.x * self.side - 3) / 0.6
        )


@dataclass(frozen=True)
class Subdural:
    """A crescent over one hemisphere, or a sheet along the falx; some are mixed old and new."""

    subtype: ClassVar[str] = "subdural"
    hu: float
    side: int
    along_falx: bool
    mixed: bool
    thickness: float
    theta: float
    half_width: float
    z: float
    half_height: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subdural:
        age = rng.random()
        hu = _fresh_hu(rng) if age < 0.6 else rng.uniform(28, 45) if age < 0.8 else rng.uniform(40, 55)
        return cls(
            hu=float(hu),
            side=_side(rng),
            along_falx=bool(rng.random() < 0.14),
            mixed=bool(rng.random() < 0.25),
            thickness=rng.uniform(3, 16),
            theta=float(np.deg2rad(rng.uniform(-50, 50))),
            half_width=float(np.deg2rad(rng.uniform(45, 95))),
            z=rng.uniform(0, 40),
            half_height=rng.uniform(25, 60),
        )

    @property
    def shift_mm(self) -> float:
        return 0.0 if self.along_falx else -self.side * self.thickness * 0.3

    def membership(self, space: Space) -> Array:
        taper = np.clip(1 - ((space.z - self.z) / self.half_height) ** 2, 0, 1)
        if self.along_falx:
            middle = 25 * np.sign(self.theta)
            thickness = self.thickness * 0.45 * taper * np.clip(1 - ((space.y - middle) / 55) ** 2, 0, 1)
            beside = space.x_midline * self.side
            sheet = soft((thickness - beside) / 0.5) * soft((beside + 0.5) / 0.4) * (thickness > 0.8)
            return sheet * ((space.z > 8) | (np.abs(space.y) > 30))
        away = angle_between(space.theta, self.side * np.pi / 2 + self.theta)
        spread = np.clip(1 - (away / self.half_width) ** 2, 0, 1) ** 0.6
        thickness = self.thickness * spread * np.sqrt(taper)
        crescent = soft((thickness * (1 + 0.12 * space.coarse) - space.depth) / 0.5)
        return crescent * (thickness > 0.8) * soft((space.x * self.side - 2) / 0.6)


@dataclass(frozen=True)
class Intraparenchymal:
    """A rounded, irregular mass with a rim of oedema (drawn by the renderer with `oedema`)."""

    subtype: ClassVar[str] = "intraparenchymal"
    hu: float
    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    rim: float
    rim_hu: float
    irregularity: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Intraparenchymal:
        uniform, side, radius = rng.uniform, _side(rng), rng.uniform(4, 26)
        deep = (side * uniform(18, 32), uniform(-12, 18), uniform(-5, 22))
        lobar = (side * uniform(22, 48), uniform(-55, 55), uniform(-25, 45))
        return cls(
            hu=_fresh_hu(rng),
            centre=deep if rng.random() < 0.5 else lobar,
            half_axes=(radius * uniform(0.7, 1.3), radius * uniform(0.7, 1.3), radius * uniform(0.7, 1.2)),
            rim=uniform(2, 9),
            rim_hu=uniform(16, 25),
            irregularity=uniform(0.05, 0.28),
        )

    @property
    def shift_mm(self) -> float:
        return float(-np.sign(self.centre[0]) * np.mean(self.half_axes) * 0.16)

    def _relative_radius(self, space: Space) -> Array:
        squares = (
            ((value - centre) / half) ** 2
            for value, centre, half in zip(
                (space.x, space.y, space.z), self.centre, self.half_axes, strict=True
            )
        )
        wobble = self.irregularity * (0.6 * space.other_medium + 0.4 * space.other_fine)
        return np.sqrt(sum(squares)) + wobble

    def membership(self, space: Space) -> Array:
        radius = float(np.mean(self.half_axes))
        return soft((1 - self._relative_radius(space)) * radius / 0.9) * (space.depth > 1.5)

    def oedema(self, space: Space) -> Array:
        """How much of the dark rim is here, 0..1; the rim is no blood."""
        radius = float(np.mean(self.half_axes))
        inside = 1 + self.rim / radius - self._relative_radius(space) + 0.1 * space.medium
        return soft(inside * radius / 2) * (space.depth > 2)


@dataclass(frozen=True)
class Intraventricular:
    """Blood in the ventricles: a level in the horns, a cast, one side, or third and fourth."""

    subtype: ClassVar[str] = "intraventricular"
    hu: float
    form: str
    level: float
    side: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Intraventricular:
        return cls(
            hu=min(_fresh_hu(rng), 75.0),
            form=str(rng.choice(("level", "cast", "one side", "third and fourth"))),
            level=rng.uniform(0, 1),
            side=_side(rng),
        )

    @property
    def shift_mm(self) -> float:
        return 0.0

    def membership(self, space: Space) -> Array:
        lateral, middle = space.lateral_radius < 1.2, space.middle_radius < 1.2
        where = {
            "level": (space.y > 34 - 14 * self.level) & lateral,
            "cast": lateral | middle,
            "one side": lateral & (space.x_midline * self.side > 0),
            "third and fourth": middle | ((space.y > 36) & lateral),
        }[self.form]
        return space.ventricles * where


@dataclass(frozen=True)
class Subarachnoid:
    """A film of blood in the sulci of one region, in the cisterns, or in both."""

    subtype: ClassVar[str] = "subarachnoid"
    hu: float
    form: str
    theta: float
    half_width: float
    z: float
    half_height: float
    density: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subarachnoid:
        return cls(
            hu=rng.uniform(42, 68),
            form=str(rng.choice(("cisterns", "sulci", "both"), p=(0.35, 0.45, 0.2))),
            theta=rng.uniform(0, 2 * np.pi),
            half_width=float(np.deg2rad(rng.uniform(25, 80))),
            z=rng.uniform(-10, 50),
            half_height=rng.uniform(12, 35),
            density=rng.uniform(0.5, 1),
        )

    @property
    def shift_mm(self) -> float:
        return 0.0

    def membership(self, space: Space) -> Array:
        film = np.zeros_like(space.depth)
        if self.form != "sulci":
            film = np.maximum(film, space.cisterns)
        if self.form != "cisterns":
            away = np.abs(angle_between(space.theta, self.theta))
            region = soft((self.half_width - away) * 8)
            region *= soft((self.half_height - np.abs(space.z - self.z)) / 2)
            film = np.maximum(film, space.sulci * region)
        patchy = 0.75 + 0.25 * np.tanh(space.other_coarse + 1)
        return np.clip(film, 0, 1) * self.density * patchy * (1 - space.ventricles)


DRAWERS: dict[str, Callable[[np.random.Generator], Bleed]] = {
    kind.subtype: kind.draw for kind in (Epidural, Intraparenchymal, Intraventricular, Subarachnoid, Subdural)
}
"""Subtype name to the function that draws one such bleed."""
