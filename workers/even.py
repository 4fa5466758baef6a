"""Even slices of a series that was scanned in thin and in thick ones, as networks see it. Decides nothing.

Networks know one step. Thin slices among thick ones are put together here until they are about as thick, and
what is said of such a slice is said of each that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.preprocess import STEP_MM
from workers.volume import LONGER, Volume

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class EvenSlices:
    """`hu` float32 (n, y, x), canonical; `starts` (n,) the first of the `count` source slices in each."""

    hu: NDArray[np.float32]
    starts: NDArray[np.int_]
    count: int

    def spread(self, values: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Values (n, …) of these slices as values (count, …) of the source's."""
        if len(self.starts) == self.count:
            return values
        return np.repeat(values, np.diff(self.starts, append=self.count), axis=0)


def even_slices(volume: Volume) -> EvenSlices:
    """The canonical volume in steps as even as its slices allow; as it is where none is thin among thick."""
    hu = volume.canonical()
    thickness_mm = volume.slices_from_canonical(volume.thickness_mm)  # a flip is its own inverse
    starts = np.fromiter(_starts(thickness_mm, min(volume.spacing_mm[0], STEP_MM)), int)
    if len(starts) == len(hu):
        return EvenSlices(np.ascontiguousarray(hu), starts, len(hu))
    stops = np.append(starts[1:], len(hu))
    means = [hu[start:stop].mean(axis=0) for start, stop in zip(starts, stops, strict=True)]
    return EvenSlices(np.stack(means), starts, len(hu))


def _starts(thickness_mm: NDArray[Any], step_mm: float) -> Iterator[int]:
    """Where the next slice begins: thin ones go to the one before while that brings it nearer to the step."""
    thin = thickness_mm < step_mm / LONGER
    filled = 0.0
    for index, own_mm in enumerate(thickness_mm):
        joins = index and thin[index - 1] and thin[index]
        if joins and abs(filled + own_mm - step_mm) < abs(filled - step_mm):
            filled += own_mm
        else:
            yield index
            filled = own_mm
