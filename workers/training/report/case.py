"""One patient as a calibrated model read it, beside the truth. Refuses what cannot be judged: NaN, say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES


@dataclass(frozen=True)
class Case:
    """One patient (or study) as a calibrated model read it, unseen in training unless said.

    Classes are in the order of CLASSES. Several cases may be of one patient: intervals draw whole patients.
    """

    patient: str
    labels: NDArray[np.uint8]
    """Slice truth (n, 6), where `told`."""
    slices: NDArray[np.float32]
    """Calibrated slice probabilities (n, 6)."""
    series: NDArray[np.float32]
    """Calibrated series probabilities (6,)."""
    study_labels: NDArray[np.uint8] | None = None
    """Truth of the study (6,) where its slices have none (CQ500); else the study has what its slices have."""
    told: NDArray[np.bool_] | None = None
    """Slice labels (n, 6) that are known (INSTANCE: "any"); None: all, or none with `study_labels`."""
    drawn: NDArray[np.bool_] | None = None
    """The "any" mask (n, y, x) as the model draws it, on the network's grid."""
    truth: NDArray[np.bool_] | None = None
    """The true "any" mask (n, y, x) on the same grid."""
    mask_known: NDArray[np.bool_] | None = None
    """Slices (n,) whose true mask is known; None: all, where `truth` is given."""
    by_hand: NDArray[np.bool_] | None = None
    """Of those, slices (n,) a person drew; the rest are pseudo-masks. None: none of them."""
    cell_mm: tuple[float, float, float] | None = None
    """Size (z, y, x) of a cell of the grid; None: not told, and distances and volumes are in grid pixels."""
    explanation: NDArray[np.float16] | None = None
    """Grad-CAM++ of "any", 0 to 1, (n, h, w), on the grid of the mask or a coarser one."""

    @property
    def slices_told(self) -> NDArray[np.bool_]:
        """Slice labels (n, 6) that are known."""
        if self.told is not None:
            return self.told
        return np.full((len(self.slices), len(CLASSES)), self.study_labels is None)

    @property
    def study_told(self) -> NDArray[np.bool_]:
        """Classes (6,) whose truth is known of the whole study: those that every slice tells."""
        if self.study_labels is not None:
            return np.ones(len(CLASSES), bool)
        return np.asarray(self.slices_told.all(axis=0))

    @property
    def known(self) -> NDArray[np.bool_]:
        """Slices (n,) whose true mask is known."""
        if self.truth is None:
            return np.zeros(len(self.slices), bool)
        return np.ones(len(self.slices), bool) if self.mask_known is None else self.mask_known.astype(bool)

    @property
    def hand(self) -> NDArray[np.bool_]:
        """Slices (n,) whose true mask a person drew."""
        return self.known & (False if self.by_hand is None else self.by_hand.astype(bool))


def study(case: Case) -> NDArray[np.uint8]:
    """Truth (6,) of the whole study, where `study_told`."""
    return np.asarray(case.labels.max(axis=0) if case.study_labels is None else case.study_labels)


def check(cases: Sequence[Case]) -> None:
    """Raises PermanentError (CASE_UNUSABLE) that names the patient when a case cannot be judged."""
    if not cases:
        raise PermanentError("CASE_UNUSABLE", "no cases: an evaluation needs at least one patient")
    for case in cases:
        problem = next(iter(_problems(case)), None)
        if problem:
            raise PermanentError("CASE_UNUSABLE", f"patient {case.patient!r}: {problem}; predict it again")


def _problems(case: Case) -> list[str]:
    count = len(case.slices)
    wanted: dict[str, tuple[int, ...]] = {"slices": (count, len(CLASSES)), "series": (len(CLASSES),)}
    if case.study_labels is None:
        wanted["labels"] = (count, len(CLASSES))
    else:
        wanted["study_labels"] = (len(CLASSES),)
    if case.told is not None:
        wanted |= {"labels": (count, len(CLASSES)), "told": (count, len(CLASSES))}
    wanted |= {name: (count,) for name in ("mask_known", "by_hand") if getattr(case, name) is not None}
    if case.truth is not None:
        wanted["truth"] = (count, *case.truth.shape[1:])
        wanted |= {"drawn": case.truth.shape} if case.drawn is not None else {}
    wanted |= {"explanation": (count, *case.explanation.shape[1:])} if case.explanation is not None else {}
    shapes = {name: np.shape(getattr(case, name)) for name in wanted}
    wrong = [
        f"{name} is {shapes[name]}, not {shape}" for name, shape in wanted.items() if shapes[name] != shape
    ]
    return wrong or (["it has no slice"] if count == 0 else []) or _values(case)


def _values(case: Case) -> list[str]:
    found = []
    for name in ("slices", "series", "explanation"):
        values = getattr(case, name)
        if values is not None and not np.isfinite(values).all():
            found.append(f"{name} holds NaN or infinity")
        elif values is not None and ((values < 0) | (values > 1)).any():
            found.append(f"{name} holds a value outside 0 to 1")
    if (study(case) > 1).any() or (case.study_labels is None and (case.labels > 1).any()):
        found.append("a label is neither 0 nor 1")
    if case.cell_mm is not None and not all(np.isfinite(side) and side > 0 for side in case.cell_mm):
        found.append(f"cell_mm is {case.cell_mm}")
    return found
