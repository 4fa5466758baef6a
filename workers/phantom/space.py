"""Head coordinates and compartments of one thin plane: where is skull, sulcus, cistern, ventricle. No HU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from workers.phantom.fields import Array, plane, soft

if TYPE_CHECKING:
    from workers.phantom.head import Head


@dataclass(frozen=True)
class Texture:
    """The random fields of one slice; thin planes within the slice share them."""

    coarse: Array
    medium: Array
    fine: Array
    other_coarse: Array
    other_medium: Array
    other_fine: Array

    @classmethod
    def at(cls, head: Head, z_mm: float, size: int) -> Texture:
        fields = (
            plane(scale, z_mm, offset, size)
            for offset in head.fields
            for scale in ("coarse", "medium", "fine")
        )
        return cls(*fields)


class Space:
    """One plane of a head: coordinates in mm (head axes), depth below the inner table, compartments 0..1."""

    def __init__(self, head: Head, texture: Texture, x: Array, y: Array, z: Array) -> None:
        self.head = head
        self.x, self.y, self.z = x, y, z
        self.coarse, self.medium, self.fine = texture.coarse, texture.medium, texture.fine
        self.other_coarse = texture.other_coarse
        self.other_medium, self.other_fine = texture.other_medium, texture.other_fine
        self.theta = np.arctan2(x, -y)
        """Angle in radians: 0 anterior, + towards patient left."""

    @cached_property
    def depth(self) -> Array:
        """mm inside the inner table (negative outside)."""
        width, length, height = self.head.half_axes
        below = np.clip(-self.z / 60, 0, 1)
        y = self.y - 0.42 * np.clip(-self.z - 18, 0, 50)
        half_x = width * (1 - 0.10 * below) * (1 + 0.05 * np.clip(y / length, -1, 1))
        half_y = length * (1 - 0.10 * below)
        half_z = np.where(self.z > 0, height, self.head.half_height_low)
        power = self.head.exponent
        shape = (
            np.abs(self.x / half_x) ** power + np.abs(y / half_y) ** power + np.abs(self.z / half_z) ** power
        )
        shape = shape ** (1 / power) + 1e-6
        radius = np.sqrt(self.x**2 + y**2 + self.z**2) + 1e-3
        return radius * (1 / shape - 1) + 0.7 * self.coarse + 0.2 * self.medium

    @cached_property
    def skin_depth(self) -> Array:
        """mm inside the skin: the scalp above, face and neck below."""
        head = self.head
        half_x, half_y, half_z = (half + head.skull + head.scalp for half in head.half_axes)
        below = np.clip(-self.z / 70, 0, 1.2)
        height = np.where(self.z > 0, np.abs(self.z / half_z) ** 2.2, 0.0)
        taper = 1 - 0.16 * below**2
        y = self.y - 2 * below
        shape = np.abs(self.x / (half_x * taper)) ** 2.2 + np.abs(y / (half_y * (1 - 0.04 * below))) ** 2.2
        shape = (shape + height) ** (1 / 2.2) + 1e-6
        skin = np.sqrt(self.x**2 + y**2 + np.where(self.z > 0, self.z**2, 0)) * (1 / shape - 1)
        nose = 7.0 - np.sqrt((self.x * 0.8) ** 2 + ((y + half_y) * 0.55) ** 2 + ((self.z + 55) * 0.4) ** 2)
        skin = np.maximum(skin, nose)
        return (
            np.maximum(skin, self.depth + head.skull + head.scalp * (1 + 0.25 * self.coarse)) + self.swelling
        )

    @cached_property
    def swelling(self) -> Array:
        """mm of extra scalp where a haematoma lies outside the skull."""
        swelling = self.head.swelling
        if swelling is None:
            return np.zeros_like(self.x)
        away = (self.theta - swelling.theta + np.pi) % (2 * np.pi) - np.pi
        return 9 * np.exp(-((away / 0.35) ** 2) - ((self.z - swelling.z) / 25) ** 2)

    @cached_property
    def x_midline(self) -> Array:
        """x in mm from the midline, which a bleed may have pushed aside."""
        return self.x - self.head.midline_shift * np.exp(-((self.y / 70) ** 2))

    @cached_property
    def sulci(self) -> Array:
        width = self.head.sulcus
        ridge = np.abs(self.other_medium + 0.35 * self.other_fine)
        folds = soft((0.14 * width - ridge) * 11) * soft((13 + 2 * width - self.depth) / 2.2)
        surface = soft((width * 0.8 - self.depth) / 0.6)
        return np.maximum(0.9 * folds, 0.8 * surface)

    @cached_property
    def cisterns(self) -> Array:
        """Sylvian fissures and basal cisterns."""
        return np.maximum(self._sylvian(), self._basal())

    def _sylvian(self) -> Array:
        side = np.abs(self.x)
        course = (self.y + 12 + 0.35 * (side - 45) + 3 * self.medium) / (1.8 + 1.4 * self.head.atrophy)
        height = np.exp(-(((self.z - 2 - 0.25 * (self.y + 10)) / 7) ** 2))
        extent = soft((side - 28) / 2) * soft((self.head.half_axes[0] * 0.95 - side) / 3)
        return height * extent * np.exp(-(course**2))

    def _basal(self) -> Array:
        height = np.exp(-(((self.z + 22) / 7) ** 2))
        star = 13 + 3 * np.cos(5 * np.arctan2(self.x_midline, self.y + 4)) + 2 * self.medium
        outer = soft((star - np.hypot(self.x_midline, self.y + 4)) / 1.3)
        return height * outer * soft((np.hypot(self.x_midline, self.y - 3) - 7) / 1.2)

    @cached_property
    def fissure(self) -> Array:
        """Interhemispheric fissure."""
        width = 1.0 + 0.9 * self.head.atrophy + 0.5 * np.abs(self.medium)
        line = np.exp(-((self.x_midline / width) ** 2)) * soft(self.depth)
        return line * soft((np.abs(self.y) - 22) / 3) * soft((self.z - 2) / 4)

    @cached_property
    def lateral_radius(self) -> Array:
        """Relative squared radius from the lateral ventricles' axes (below 1: inside)."""
        size, side, y, z = self.head.ventricle, np.abs(self.x_midline), self.y, self.z
        frontal = (side - (7 + 0.16 * np.clip(-y - 5, 0, 40))) / (4.6 * size)
        frontal = frontal**2 + ((y + 18) / (20 * size**0.5)) ** 2 + ((z - 13) / (9 * size)) ** 2
        body = (side - (10 + 0.12 * np.clip(y, 0, 40))) / (5 * size)
        body = body**2 + ((y - 10) / 30) ** 2 + ((z - 22) / (8.5 * size)) ** 2
        occipital = (side - (20 + 0.1 * y)) / (5 * size)
        occipital = occipital**2 + ((y - 38) / (18 * size**0.5)) ** 2 + ((z - 8) / (9 * size)) ** 2
        return np.minimum(np.minimum(frontal, body), occipital) + 0.10 * self.medium

    @cached_property
    def middle_radius(self) -> Array:
        """The same for the third and fourth ventricles."""
        size = self.head.ventricle
        third = (self.x_midline / (1.7 * size)) ** 2 + ((self.y - 2) / 13) ** 2 + (self.z / 9) ** 2
        fourth = (self.x_midline / (6 * size)) ** 2 + ((self.y - 38) / (5.5 * size)) ** 2
        return np.minimum(third, fourth + ((self.z + 32) / 9) ** 2)

    @cached_property
    def ventricles(self) -> Array:
        return soft((1 - np.minimum(self.lateral_radius, self.middle_radius)) * 7)
