"""Tissue of one thin plane of a head in HU, bleeds left out. Adds no noise and no blur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.phantom.fields import Array, angle_between, soft
from workers.phantom.space import Space

AIR_HU = -1000.0
CELL_HU = -850.0
MUSCLE_HU = 52.0
FAT_HU = -85.0


@dataclass(frozen=True)
class Tissue:
    """`hu` of the plane and where blood may be: inside the cavity, off bone and air."""

    hu: Array
    fluid: Array
    brain: NDArray[np.bool_]


def tissue(space: Space) -> Tissue:
    """Everything but bleeds: air, soft tissue, skull, brain, fluid spaces, calcifications, face."""
    inside = space.depth > 0
    brain_hu, fluid = _brain(space)
    hu = np.where(space.skin_depth > 0, _soft_tissue(space), np.float32(AIR_HU))
    hu = _neck_and_face(space, hu)
    hu = _skull(space, hu)
    hu = np.where(inside, brain_hu, hu)
    hu, bony = _skull_base(space, hu)
    return Tissue(hu.astype(np.float32), fluid, inside & ~bony)


def _soft_tissue(space: Space) -> Array:
    """Scalp fat and muscle; below the ears muscle in sheets of fat."""
    tone = space.head.tissue.scalp * 0.5 - 25 + 8 * space.fine
    hu = np.where(space.medium > 0, tone + 20, tone)
    sheets = np.where(
        np.abs(space.medium + 0.5 * space.other_fine) < 0.28, FAT_HU, MUSCLE_HU + 3 * space.fine
    )
    hu = np.where((space.z < -12) & (space.skin_depth > space.head.scalp * 0.6 + 2), sheets, hu)
    hu = np.where((space.swelling > 1.5) & (space.skin_depth > 1.5), 55 + 3 * space.fine, hu)
    return np.where(space.skin_depth < 1.8, 30, hu)


def _skull(space: Space, hu: Array) -> Array:
    head, depth = space.head, space.depth
    thickness = head.skull * (1 + 0.12 * space.other_coarse)
    shell = (depth <= 0) & (depth > -thickness)
    diploe = np.abs(depth + thickness * 0.5) < thickness * 0.22
    bone = np.where(diploe, head.tissue.bone * 0.55, head.tissue.bone) + 60 * space.fine
    hu = np.where(shell, bone, hu)
    if head.fracture:
        gap = np.abs(angle_between(space.theta, head.fields[0][1] / 25.0)) * np.hypot(space.x, space.y)
        hu = np.where(shell & (gap < 0.8), 60, hu)
    return hu


def _neck_and_face(space: Space, hu: Array) -> Array:
    """Orbits, nasal cavity, air sinuses, jaw and first vertebra, below the level of the brow."""
    lowest = float(space.z.min())
    if lowest > -15:
        return hu
    x, y, z, side = space.x, space.y + 4.0, space.z, np.abs(space.x)
    bone = space.head.tissue.bone * 0.8 + 80 * space.fine
    front = -space.head.half_axes[1] - 4
    frontal_sinus = (side < 16) & (np.abs(y - front - 6) < 4) & (z > -34) & (z < -12)
    hu = np.where(frontal_sinus & (space.skin_depth > 6), CELL_HU, hu)
    cone = np.sqrt(((side - 31) / 20) ** 2 + ((y - front - 20) / 28) ** 2 + ((z + 38) / 19) ** 2)
    hu = np.where((cone < 1.16) & (space.skin_depth > 3), bone, hu)
    hu = np.where(cone < 1.0, FAT_HU, hu)
    globe = np.sqrt((side - 31) ** 2 + (y - front - 6) ** 2 + (z + 38) ** 2)
    hu = np.where(
        (np.abs(side - 25 + 0.15 * (y - front)) < 2.2) & (cone < 1.0) & (np.abs(z + 38) < 4), 42, hu
    )
    hu = np.where(globe < 12.5, np.where(globe > 11, 48, 12), hu)
    hu = np.where(((side - 31) ** 2 + ((y - front + 3) * 1.8) ** 2 < 22) & (np.abs(z + 38) < 4), 90, hu)
    cells = (side < 12) & (y > front) & (y < front + 42) & (z < -26)
    septa = (np.abs(space.other_fine + 0.4 * space.fine) < 0.16) | (side < 0.9) | (side > 10.8)
    hu = np.where(cells, np.where(septa, bone * 0.5, CELL_HU), hu)
    maxillary = np.sqrt(((side - 28) / 16) ** 2 + ((y - front - 22) / 20) ** 2 + ((z + 66) / 15) ** 2)
    hu = np.where((maxillary < 1.12) & (space.skin_depth > 3), bone, hu)
    hu = np.where(maxillary < 1.0, CELL_HU, hu)
    hu = np.where(np.hypot(x / 11, (y - front - 58) / 8) + np.clip((z + 52) / 6, 0, 9) < 1, CELL_HU, hu)
    return _jaw_and_spine(space, hu, bone)


def _jaw_and_spine(space: Space, hu: Array, bone: Array) -> Array:
    side, y, z = np.abs(space.x), space.y, space.z
    zygoma = (np.abs(side - 62 + 0.006 * (y + 40) ** 2) < 2.5) & (y > -72) & (y < -8) & (np.abs(z + 50) < 7)
    ramus = (np.abs(side - 50) < 3.5) & (np.abs(y + 12) < 13) & (z < -54)
    ring = np.hypot(space.x, (y - 28) * 1.1)
    atlas = (ring > 15) & (ring < 24) & (z < -62)
    hu = np.where((zygoma | ramus | atlas) & (space.skin_depth > 3), bone, hu)
    canal = (ring <= 15) & (z < -54)
    return np.where(canal, np.where(ring < 7, 34, 8), hu)


def _skull_base(space: Space, hu: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Petrous pyramids, sphenoid wings, mastoid and sphenoid air inside the cavity; and where they are."""
    none = np.zeros(hu.shape, bool)
    if float(space.z.min()) > -25:
        return hu, none
    x, y, z, side = space.x, space.y, space.z, np.abs(space.x)
    along = (side - 38) * 0.75 + (y - 14) * 0.62
    across = -(side - 38) * 0.62 + (y - 14) * 0.75
    petrous = (np.abs(along) < 25) & (np.abs(across) < 6 + 2 * space.medium) & (z < -30)
    wing = (z < -32) & (y < 8) & (np.abs(side * 0.3 + y + 26 + 4 * space.medium) < 3.5) & (space.depth > -4)
    clivus = (z < -40) & (side < 13) & (np.abs(y + 2 - 0.35 * (z + 40)) < 6)
    bone = (petrous | wing | clivus) & (space.skin_depth > 8)
    hu = np.where(bone, space.head.tissue.bone * 0.85 + 90 * space.fine, hu)
    mastoid = (np.hypot(side - 50, y - 24) < 10) & (z < -34) & (space.fine + 0.6 * space.other_fine > -0.1)
    sphenoid = (side < 12) & (np.abs(y + 26) < 10) & (z < -38) & (side > 0.8)
    air = (mastoid | sphenoid) & (space.skin_depth > 8)
    hu = np.where(air, CELL_HU, hu)
    ear = np.hypot((z + 42) / 5, (y - 4) / 4) < 1
    hu = np.where(ear & (side > 52) & (x != 0), AIR_HU, hu)
    front = (z < -34) & (y < -46)
    return hu, bone | air | front


def _brain(space: Space) -> tuple[Array, Array]:
    """Grey and white matter with fluid mixed in; second, the fluid fraction."""
    tone = space.head.tissue
    ribbon = 4.5 + 1.3 * space.medium + space.head.sulcus * 1.2
    white = soft((space.depth - ribbon) / 1.2) * soft((space.medium * 0.6 + 0.9) * 2)
    hu = tone.grey * (1 - white) + tone.white * white + 1.1 * space.fine
    nuclei = ((np.abs(space.x) - 20) / 9) ** 2 + ((space.y + 2) / 16) ** 2 + ((space.z - 5) / 14) ** 2
    hu += (tone.grey - hu) * np.clip(1.3 * np.exp(-1.2 * nuclei), 0, 1) * 0.8
    infarct = space.head.infarct
    if infarct is not None:
        distance = (space.x - infarct.x) ** 2 + (space.y - infarct.y) ** 2 + (space.z - infarct.z) ** 2
        hu = np.where(distance / infarct.radius**2 + 0.4 * space.other_medium < 1, hu + infarct.hu, hu)
    outer = np.maximum.reduce((space.sulci, space.cisterns, 0.8 * space.fissure))
    fluid = np.clip(np.maximum(outer, space.ventricles), 0, 1)
    hu = hu * (1 - fluid) + tone.csf * fluid
    return _dense_mimics(space, hu), fluid


def _dense_mimics(space: Space, hu: Array) -> Array:
    """Falx, tentorium, sagittal sinus and calcifications: bright, and no bleed."""
    head, x, y, z = space.head, space.x, space.y, space.z
    line = np.abs(space.x_midline + 0.5 * space.coarse) < head.falx_width
    falx = line & ((z > 22) | ((y < -24) & (z > -5)) | ((y > 30) & (z > -2)))
    hu = np.where(falx, head.tissue.falx, hu)
    tent = np.abs(z + 14 + 0.45 * np.abs(x) - 0.35 * (y - 30)) < 1.0
    hu = np.where(tent & (y > 12) & (np.abs(x) > 8), head.tissue.falx - 4, hu)
    sinus = (np.hypot(x, space.depth - 2.5) < 3.2) & (y > 20)
    hu = np.where(sinus, head.tissue.sinus, hu)
    for spot in head.calcifications:
        if abs(float(z.mean()) - spot.z) < spot.radius + 40:
            ball = (x - spot.x) ** 2 + (y - spot.y) ** 2 + (z - spot.z) ** 2 < spot.radius**2
            hu = np.where(ball, spot.hu, hu)
    return hu
