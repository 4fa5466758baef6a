"""Things that are no heads, in HU, for the check of what an image shows. Anatomy only where it matters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Hu = NDArray[np.float32]
SIZE = 160
PIXEL_MM = 2.5
STEP_MM = 5.0
SLICES = 36


def _grid() -> tuple[Hu, Hu]:
    """y and x in mm from the middle of the field of 400 mm."""
    steps = ((np.arange(SIZE) - SIZE / 2 + 0.5) * PIXEL_MM).astype(np.float32)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return y, x


def _ellipse(y: float, x: float, half_y: float, half_x: float) -> NDArray[np.bool_]:
    rows, columns = _grid()
    return ((rows - y) / half_y) ** 2 + ((columns - x) / half_x) ** 2 < 1


def _stack(plane: Callable[[float], Hu], slices: int = SLICES) -> Hu:
    """`plane` of the height in mm, with the noise of a scan."""
    rng = np.random.default_rng(7)
    hu = np.stack([plane(STEP_MM * index) for index in range(slices)])
    return (hu + rng.normal(0, 12, hu.shape)).astype(np.float32)


def _air() -> Hu:
    return np.full((SIZE, SIZE), -1000, np.float32)


def _trunk(half_y: float = 110, half_x: float = 165) -> Hu:
    """Skin, fat, muscle and a vertebra with its canal."""
    hu = _air()
    hu[_ellipse(0, 0, half_y, half_x)] = -100
    hu[_ellipse(0, 0, half_y - 18, half_x - 20)] = 50
    hu[_ellipse(half_y - 45, 0, 22, 25)] = 400
    hu[_ellipse(half_y - 45, 0, 16, 18)] = 180
    hu[_ellipse(half_y - 18, 0, 9, 10)] = 20
    return hu


def _ribs(hu: Hu, half_y: float, half_x: float, height_mm: float, every: int = 12) -> None:
    """Pieces of ribs round the chest, another set on each slice as they slope."""
    for index in range(every):
        angle = 2 * np.pi * index / every + height_mm / 40
        spot = _ellipse((half_y - 20) * np.sin(angle), (half_x - 22) * np.cos(angle), 6, 14)
        hu[spot] = 500


def chest() -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _trunk()
        for side in (-1, 1):
            hu[_ellipse(-10, 75 * side, 75, 58)] = -850
        hu[_ellipse(-25, 15, 45, 50)] = 40
        hu[_ellipse(-88, 0, 6, 18)] = 350
        _ribs(hu, 110, 165, z_mm)
        return hu

    return _stack(plane)


def abdomen() -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _trunk()
        hu[_ellipse(-5, 0, 80, 135)] = -90
        hu[_ellipse(-10, -70, 55, 60)] = 60
        hu[_ellipse(0, 85, 35, 30)] = 50
        for side in (-1, 1):
            hu[_ellipse(40, 70 * side, 25, 22)] = 35
        hu[_ellipse(-45, 30, 18, 25)] = -700
        if z_mm < 60:
            _ribs(hu, 110, 165, z_mm, 8)
        return hu

    return _stack(plane)


def pelvis() -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _trunk(105, 175)
        hu[_ellipse(0, 0, 70, 110)] = 20
        for side in (-1, 1):
            hu[_ellipse(10, 105 * side, 60, 14)] = 350
            hu[_ellipse(10, 130 * side, 22, 22)] = 300
        hu[_ellipse(-30, 0, 35, 45)] = 8
        hu[_ellipse(75, 0, 20, 50)] = 300
        return hu

    return _stack(plane)


def neck() -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _air()
        hu[_ellipse(0, 0, 60, 65)] = -90
        hu[_ellipse(0, 0, 54, 58)] = 55
        hu[_ellipse(-25, 0, 9, 9)] = -950
        hu[_ellipse(18, 0, 16, 18)] = 350
        hu[_ellipse(34, 0, 7, 8)] = 25
        if z_mm > 120:  # the jaw
            hu[_ellipse(-20, 0, 38, 50) & ~_ellipse(-14, 0, 34, 44) & (_grid()[0] < -10)] = 900
        return hu

    return _stack(plane)


def neck_up_to_the_skull_base() -> Hu:
    """The lowest 25 mm of the posterior fossa come along."""
    hu = neck()
    hu[-5:] = head(SLICES)[10:15]
    return hu


def head(slices: int = SLICES) -> Hu:
    """What must pass: a plain one, for comparison and for whole-body scans."""

    def plane(z_mm: float) -> Hu:
        top = max(0.3, 1 - (abs(z_mm - 85) / 110) ** 3)
        hu = _air()
        hu[_ellipse(0, 0, 95 * top, 78 * top)] = 0
        hu[_ellipse(0, 0, 88 * top, 71 * top)] = 1100
        hu[_ellipse(0, 0, 82 * top, 65 * top)] = 32
        hu[_ellipse(0, 0, 30 * top, 12 * top)] = 6
        return hu

    return _stack(plane, slices)


def whole_body() -> Hu:
    """Head, neck, chest and abdomen in one series."""
    return np.concatenate([abdomen(), chest(), neck()[:16], head(32)])


def knees() -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _air()
        for side in (-1, 1):
            hu[_ellipse(0, 90 * side, 62, 60)] = -90
            hu[_ellipse(0, 90 * side, 50, 48)] = 55
            hu[_ellipse(0, 90 * side, 33, 38)] = 800
            hu[_ellipse(0, 90 * side, 29, 34)] = 150 if z_mm < 80 else 20
        return hu

    return _stack(plane)


def spine() -> Hu:
    """Reconstructed to a small field around the vertebrae."""
    return abdomen()[:, 70:150, 45:115]


def water(shell_hu: float, shell_mm: float = 6) -> Hu:
    def plane(z_mm: float) -> Hu:
        hu = _air()
        hu[_ellipse(0, 0, 85, 85)] = shell_hu
        hu[_ellipse(0, 0, 85 - shell_mm, 85 - shell_mm)] = 0
        return hu

    return _stack(plane)


def uniform_plastic() -> Hu:
    """A head-sized test object without a shell, as dense as brain."""
    return _stack(lambda z_mm: np.where(_ellipse(0, 0, 85, 85), 35, -1000).astype(np.float32))


def ball() -> Hu:
    """As dense as brain within bone, but of the size of a fist."""
    return _stack(
        lambda z_mm: np.where(
            _ellipse(0, 0, 32, 32), np.where(_ellipse(0, 0, 27, 27), 35, 900), -1000
        ).astype(np.float32)
    )


def chest_raised_by_1024() -> Hu:
    """Stored values taken for HU."""
    return chest() + 1024


def head_raised_by_1024() -> Hu:
    return head() + 1024


NON_HEADS: dict[str, Callable[[], Hu]] = {
    "chest": chest,
    "abdomen": abdomen,
    "pelvis": pelvis,
    "neck": neck,
    "neck up to the skull base": neck_up_to_the_skull_base,
    "whole body": whole_body,
    "knees": knees,
    "spine, small field": spine,
    "water in acrylic": lambda: water(120),
    "water in a shell as dense as bone": lambda: water(990),
    "uniform plastic": uniform_plastic,
    "ball": ball,
    "air": lambda: _stack(lambda z_mm: _air()),
    "noise": lambda: np.random.default_rng(1).normal(0, 800, (SLICES, SIZE, SIZE)).astype(np.float32),
    "nothing": lambda: np.zeros((SLICES, SIZE, SIZE), np.float32),
    "chest, raised by 1024": chest_raised_by_1024,
    "head, raised by 1024": head_raised_by_1024,
}
