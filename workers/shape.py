"""Lengths of a region as a reader with a ruler takes them: longest diameter, ABC/2. Knows no patient.

Lengths run between the outer edges of pixels, in mm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from node.domain.findings import Abc2

Mask = NDArray[np.bool_]
Spacing = tuple[float, float]
FULL_SHARE, HALF_SHARE = 0.75, 0.25
"""Of the largest area: a slice above the first counts fully towards C, from the second on by half."""
TOUCHING = np.ones((3, 3, 3), bool)
"""Voxels that share a face, an edge or a corner belong together."""


def abc2(part: Mask, thickness_mm: NDArray[np.float64], spacing_mm: Spacing) -> Abc2:
    """ABC/2 of one connected part (z, y, x) whose slices are so thick (z,); see `Abc2`."""
    areas = np.count_nonzero(part, axis=(1, 2))
    largest = int(areas.argmax())
    a_mm, b_mm = max(axes_mm(region, spacing_mm) for region in regions(part[largest : largest + 1]))
    share = areas / areas[largest]
    weights = np.where(share > FULL_SHARE, 1.0, np.where(share >= HALF_SHARE, 0.5, 0.0))
    c_mm = float(weights @ thickness_mm)
    return Abc2(a_mm * b_mm * c_mm / 2000, a_mm, b_mm, c_mm)


def axes_mm(region: Mask, spacing_mm: Spacing) -> tuple[float, float]:
    """The longest diameter of a region (y, x) of a slice, and its longest one at right angles to that."""
    points = _edges_mm(region, spacing_mm)
    hull = points[ConvexHull(points).vertices]
    apart = squareform(pdist(hull))
    one, other = np.unravel_index(apart.argmax(), apart.shape)
    longest = float(apart[one, other])
    along = (hull[other] - hull[one]) / longest
    across = points @ np.array([-along[1], along[0]])
    band = np.floor(points @ along / max(spacing_mm)).astype(int)
    band -= band.min()
    lowest, highest = np.full(band.max() + 1, np.inf), np.full(band.max() + 1, -np.inf)
    np.minimum.at(lowest, band, across)
    np.maximum.at(highest, band, across)
    return longest, float((highest - lowest).max())


def regions(mask: Mask) -> Iterator[Mask]:
    """The connected regions of each slice of a mask (z, y, x), cut out."""
    for picture in mask[mask.any(axis=(1, 2))]:
        labels, _ = ndimage.label(picture, TOUCHING[0])
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            yield labels[box] == number


def box_of(mask: Mask) -> tuple[slice, slice, slice]:
    """The smallest box that holds all of a mask (z, y, x) that is not empty."""
    z = np.flatnonzero(mask.any(axis=(1, 2)))
    flat: Mask = np.any(mask[z[0] : z[-1] + 1], axis=0)
    y, x = np.flatnonzero(flat.any(axis=1)), np.flatnonzero(flat.any(axis=0))
    return slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def _edges_mm(region: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """(n, 2) middles of the pixel edges of a region's rim, row and column in mm."""
    inner = ndimage.binary_erosion(region, ndimage.generate_binary_structure(2, 1))
    rim = np.argwhere(region & ~inner).astype(float)
    middles = [rim + step for step in ((-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5))]
    return np.asarray(np.concatenate(middles) * spacing_mm)
