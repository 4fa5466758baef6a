"""Pens for burned-in pictures: letters, sides of the image, scale. Decides nothing, knows no patient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
BLACK: RGB = (0, 0, 0)
TEXT: RGB = (232, 232, 226)
FAINT: RGB = (158, 162, 168)
CONTOUR: RGB = (255, 48, 48)
AMBER: RGB = (255, 190, 60)
_AXES = (("L", "R"), ("P", "A"), ("H", "F"))  # patient LPS: PS3.3 C.7.6.1.1.1
MOST_TEXTS = 256
"""Drawn texts kept for each font."""
_OBLIQUE = 0.1
"""Direction cosines below this are left out of PatientOrientation."""


class RememberingFont(ImageFont.FreeTypeFont):
    """Draws the same words once: most of what stands on a slice stands on its neighbours too."""

    def __init__(self, file: str, size_px: int) -> None:
        super().__init__(file, size_px)
        self._drawn: dict[object, Any] = {}

    def getmask2(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        """The mask of a text and where it belongs, as Pillow asks for it."""
        key = (text, args, tuple(sorted(kwargs.items())))
        if key not in self._drawn:
            if len(self._drawn) >= MOST_TEXTS:
                self._drawn.clear()
            self._drawn[key] = super().getmask2(text, *args, **kwargs)
        return self._drawn[key]


@lru_cache(maxsize=32)
def font(size_px: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek and Cyrillic letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return RememberingFont(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size_px)


def text_px(rows: int, columns: int) -> int:
    """Letter height that reads the same on 256, 512 and 768 pixel images."""
    return max(9, round(min(rows, columns) / 40))


def direction(cosines: Sequence[float]) -> str:
    """Where a direction in patient LPS points to, main axis first: "L", "PH", … (PS3.3 C.7.6.1.1.1)."""
    order = sorted(range(3), key=lambda axis: -abs(cosines[axis]))
    kept = [axis for axis in order if abs(cosines[axis]) > _OBLIQUE]
    return "".join(_AXES[axis][0 if cosines[axis] > 0 else 1] for axis in kept)


def patient_orientation(orientation: Sequence[float]) -> list[str]:
    """PatientOrientation (0020,0020) from ImageOrientationPatient: to the right, then down."""
    return [direction(orientation[:3]), direction(orientation[3:])]


def sides(orientation: Sequence[float]) -> tuple[str, str, str, str]:
    """Letters for the left, right, top and bottom edge: on an axial slice as read, R L A P."""
    right, down = orientation[:3], orientation[3:]
    left, up = [-c for c in right], [-c for c in down]
    names = [direction(cosines)[:1] for cosines in (left, right, up, down)]
    return names[0], names[1], names[2], names[3]


def write(
    pen: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    words: str,
    size_px: int,
    colour: RGB = TEXT,
    anchor: str = "la",
    bold: bool = False,
) -> None:
    """Text with a black rim, so that it reads on bone and on air."""
    rim = max(1, round(size_px / 8))
    kind = font(size_px, bold)
    pen.text(xy, words, fill=colour, font=kind, anchor=anchor, stroke_width=rim, stroke_fill=BLACK)


def edge_letters(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], letters: Sequence[str], px: int, top_px: float
) -> None:
    """The side letters (left, right, top, bottom) in the middle of their edges, L and R the loudest.

    `size` is (columns, rows); the top letter hangs `top_px` below the upper edge.
    """
    width, height = size
    margin = px // 2
    places = (
        ((margin, height / 2), "lm"),
        ((width - margin, height / 2), "rm"),
        ((width / 2, top_px), "ma"),
        ((width / 2, height - round(2.2 * px)), "md"),
    )
    for letter, (xy, anchor) in zip(letters, places, strict=True):
        loud = letter in ("L", "R")
        write(pen, xy, letter, round(px * 1.35) if loud else px, TEXT if loud else FAINT, anchor, loud)


def scale_bar(
    pen: ImageDraw.ImageDraw, xy: tuple[float, float], spacing_mm: float, longest_px: float, px: int
) -> None:
    """A bar of whole centimetres from `xy` to the right, with a tick each centimetre."""
    centimetres = next((cm for cm in (10, 5, 2, 1) if cm * 10 / spacing_mm <= longest_px), 0)
    if not centimetres:
        return
    x, y = xy
    step, tick = 10 / spacing_mm, max(3, px // 3)
    end = x + centimetres * step
    for colour, width in ((BLACK, 3), (TEXT, 1)):
        pen.line([(x, y), (end, y)], fill=colour, width=width)
        for i in range(centimetres + 1):
            reach = tick * (2 if i in (0, centimetres) else 1)
            pen.line([(x + i * step, y - reach), (x + i * step, y)], fill=colour, width=width)
    write(pen, (end + px // 2, y), f"{centimetres} cm", px, anchor="ls")


def pixels(image: Image.Image) -> np.ndarray:
    """(rows, columns, 3) uint8."""
    return np.asarray(image, dtype=np.uint8)
