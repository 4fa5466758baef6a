"""One CT slice with what the AI saw, as RGB. Never covers what it marks: contours run around it.

Brain window 40/80. Activations below a threshold leave the CT as it is, and air and bone are never tinted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from node.outputs import drawing
from node.outputs.drawing import AMBER, CONTOUR, FAINT, TEXT, write

LOWER_HU, UPPER_HU = 0, 80
"""Brain window, centre 40, width 80."""
THRESHOLD = 0.4
"""Activations below this share of full scale are not shown."""
OPACITY = 0.38
"""Of the strongest activation."""
TINTED_HU = (-300, 300)
"""Air and bone keep their grey: a tint there would only hide them."""
WINDOW_WORDS = f"L {(LOWER_HU + UPPER_HU) // 2}  W {UPPER_HU - LOWER_HU}"
BANNER = "AI  ·  RESEARCH USE ONLY  –  NOT FOR DIAGNOSIS"


@dataclass(frozen=True)
class Legend:
    """What is written on a slice; `letters` are its sides, empty where the orientation is unknown."""

    title: str
    result: str
    footer: str
    letters: tuple[str, ...] = ()
    column_spacing_mm: float | None = None
    alarming: bool = False


def render(hu: np.ndarray, mask: np.ndarray | None, heat: np.ndarray | None, legend: Legend) -> np.ndarray:
    """(rows, columns, 3) uint8; `mask` is boolean and `heat` 0…1 or uint8 on any grid over the same field."""
    rgb = _window(hu)
    tinted = heat is not None and _tint(rgb, hu, mask, heat)
    if mask is not None and mask.any():
        _outline(rgb, mask)
    image = Image.fromarray(rgb)
    _annotate(image, legend, tinted, mask is not None and bool(mask.any()))
    return drawing.pixels(image)


def heat_bytes(heat: np.ndarray) -> np.ndarray:
    """uint8 0…255, whatever finite or infinite floats came in."""
    if heat.dtype == np.uint8:
        return heat
    finite = np.nan_to_num(heat, nan=0.0, posinf=1.0, neginf=0.0)
    return np.rint(np.clip(finite, 0, 1) * 255).astype(np.uint8)


def _window(hu: np.ndarray) -> np.ndarray:
    grey = hu.astype(np.float32)
    grey -= LOWER_HU
    grey *= 255 / (UPPER_HU - LOWER_HU)
    rgb = np.empty((*hu.shape, 3), np.uint8)
    rgb[...] = np.clip(grey, 0, 255, out=grey).astype(np.uint8)[..., None]
    return rgb


def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Opacity 0…255 for each of 256 activations, and the colour (orange to yellow) times that opacity."""
    strength = np.clip((np.arange(256) / 255 - THRESHOLD) / (1 - THRESHOLD), 0, 1)
    opacity = np.rint(255 * OPACITY * np.sqrt(strength)).astype(np.uint16)
    colour = np.stack([np.full(256, 255), 96 + 130 * strength, 20 + 30 * strength], axis=1)
    return opacity, np.rint(colour * opacity[:, None]).astype(np.uint16)


_OPACITY, _COLOUR = _palette()


def _tint(rgb: np.ndarray, hu: np.ndarray, mask: np.ndarray | None, heat: np.ndarray) -> bool:
    """Whether any of it is strong enough to be shown."""
    coarse = heat_bytes(heat)
    if coarse.max(initial=0) < THRESHOLD * 255:
        return False
    rows, columns = hu.shape
    fine = np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))
    box = _box(fine >= THRESHOLD * 255)
    rgb, hu, mask, fine = rgb[box], hu[box], mask[box] if mask is not None else None, fine[box]
    shown = (fine >= THRESHOLD * 255) & (hu > TINTED_HU[0]) & (hu < TINTED_HU[1])
    if mask is not None:
        shown &= ~mask
    level, grey = fine[shown], rgb[shown].astype(np.uint16)
    rgb[shown] = (grey * (255 - _OPACITY[level])[:, None] + _COLOUR[level]) // 255
    return bool(shown.any())


def _outline(rgb: np.ndarray, mask: np.ndarray) -> None:
    """A ring of pixels just outside the mask, one wide for each 512 pixels of image."""
    width = max(1, round(min(mask.shape) / 512))
    box = _box(mask, width)
    mask = mask[box]
    grown = ndimage.binary_dilation(mask, structure=np.ones((3, 3), bool), iterations=width)
    rgb[box][grown & ~mask] = CONTOUR


def _box(where: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """The smallest rectangle that holds every true pixel, and `margin` more on each side."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    first, last = max(rows[0] - margin, 0), rows[-1] + 1 + margin
    return slice(first, last), slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin)


def _annotate(image: Image.Image, legend: Legend, has_tint: bool, has_mask: bool) -> None:
    width, height = image.size
    px = drawing.text_px(height, width)
    margin, line = px // 2, round(px * 1.35)
    pen = ImageDraw.Draw(image)
    for row, words in enumerate(legend.title.splitlines()):
        write(pen, (margin, margin + row * line), words, px, TEXT if row else FAINT)
    for row, words in enumerate(legend.result.splitlines()):
        colour = AMBER if legend.alarming and not row else TEXT
        write(pen, (width - margin, margin + row * line), words, px, colour, anchor="ra")
    keys = [("contour: AI segmentation", CONTOUR)] * has_mask + [("tint: AI activation", AMBER)] * has_tint
    base = height - round(2.2 * px)
    for row, (words, colour) in enumerate(reversed(keys)):
        write(pen, (width - margin, base - row * line), words, round(px * 0.9), colour, anchor="rd")
    if legend.letters:
        lengths = [drawing.font(px).getlength(words) for words in legend.result.splitlines()]
        crowded = max(lengths, default=0) > width / 2 - 2 * px
        drawing.edge_letters(pen, image.size, legend.letters, px, margin + (2.2 * line if crowded else 0))
    write(pen, (margin, base - line), WINDOW_WORDS, round(px * 0.9), FAINT, anchor="ld")
    if legend.column_spacing_mm:
        drawing.scale_bar(pen, (margin, base), legend.column_spacing_mm, width / 4, px)
    _banner(pen, image.size, legend.footer, px)


def _banner(pen: ImageDraw.ImageDraw, size: tuple[int, int], footer: str, px: int) -> None:
    width, height = size
    small = max(8, round(px * 0.85))
    write(pen, (px // 2, height - px // 3), BANNER, small, AMBER, anchor="ld")
    room = width - px - drawing.font(small).getlength(BANNER)
    if drawing.font(small).getlength(footer) < room - px:
        write(pen, (width - px // 2, height - px // 3), footer, small, FAINT, anchor="rd")
