"""Every figure of an evaluation as plain JSON types. Draws no picture and writes no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import PermanentError
from node.domain.findings import CLASSES
from workers.training.metrics import Array, Draws, Index, Interval
from workers.training.report import explanation, masks
from workers.training.report.case import Case, check, study
from workers.training.report.classes import Scores, describe, predictive_values, rsna_log_loss

SCHEMA = "ichnode-evaluation/1"
ANY = CLASSES.index("any")
LEVELS = ("slice", "study")


@dataclass(frozen=True)
class Level:
    """Truth, whether it is told, and probability (n, 6) of slices or studies; `owners` (n,) is the case."""

    owners: Index
    truth: Array
    told: NDArray[np.bool_]
    score: Array

    def scores(self, name: str) -> Scores:
        """One class of it, where that is told."""
        place = CLASSES.index(name)
        told = self.told[:, place]
        return Scores(self.owners[told], self.truth[told, place], self.score[told, place])

    def log_loss(self, draws: Draws) -> Interval | None:
        """RSNA 2019's, where every class is told; None where it is so nowhere."""
        whole = self.told.all(axis=1)
        if not whole.any():
            return None
        return rsna_log_loss(draws, self.owners[whole], self.truth[whole], self.score[whole])


def level(cases: Sequence[Case], which: str) -> Level:
    """All slices of which anything is told, or all studies."""
    if which == "study":
        return Level(
            np.arange(len(cases)),
            np.stack([study(case) for case in cases]).astype(float),
            np.stack([case.study_told for case in cases]),
            np.stack([case.series for case in cases]).astype(float),
        )
    some = [(place, case) for place, case in enumerate(cases) if case.slices_told.any()]
    none = np.zeros((0, len(CLASSES)))
    return Level(
        np.asarray([place for place, case in some for _ in case.slices], np.intp),
        np.concatenate([none, *(case.labels for _, case in some)]).astype(float),
        np.concatenate([none.astype(bool), *(case.slices_told for _, case in some)]),
        np.concatenate([none, *(case.slices for _, case in some)]).astype(float),
    )


def summarise(
    cases: Sequence[Case],
    thresholds: Mapping[str, float],
    *,
    slice_thresholds: Mapping[str, float] | None = None,
    classes: Sequence[str] = CLASSES,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of the cases, each [value, low, high] where it can have an interval, None where undefined.

    `thresholds` are of series probabilities; slices are judged at `slice_thresholds`, or at the same ones.
    A class without a threshold has no figure that needs one; `classes` are those the model tells, others
    are left out. Intervals: 95 % percentiles over `draws` of whole patients. Raises PermanentError
    (CASE_UNUSABLE) naming the patient, or for an unknown class.
    """
    check(cases)
    unknown = sorted({*classes, *thresholds, *(slice_thresholds or {})} - set(CLASSES))
    if unknown:
        raise PermanentError(
            "CASE_UNUSABLE", f"no class {', '.join(unknown)}; there are {', '.join(CLASSES)}"
        )
    at = {"study": thresholds, "slice": thresholds if slice_thresholds is None else slice_thresholds}
    drawn = Draws.of([case.patient for case in cases], draws, seed)
    levels = {which: level(cases, which) for which in LEVELS}
    whole = len(classes) == len(CLASSES)
    by_threshold = thresholds.get("any") if "any" in classes else None
    return {
        "schema": SCHEMA,
        "bootstrap": {"draws": draws, "seed": seed, "unit": "patient", "percentiles": [2.5, 97.5]},
        "classes": list(classes),
        "cases": _counts(cases),
        **{
            which: {
                name: describe(drawn, one.scores(name), at[which].get(name), band=name == "any")
                for name in classes
            }
            for which, one in levels.items()
        },
        "rsna_log_loss": {
            which: loss for which, one in levels.items() if whole and (loss := one.log_loss(drawn))
        },
        "predictive_values": None
        if by_threshold is None
        else predictive_values(drawn, levels["study"].scores("any"), by_threshold),
        "masks": masks.describe(drawn, cases),
        "explanation": explanation.describe(drawn, cases, at["slice"].get("any")),
    }


def _counts(cases: Sequence[Case]) -> dict[str, Any]:
    """What the cases hold, for the reader to know who was looked at and what is not told."""
    bloody = [case.known & _any(case.truth) for case in cases]
    return {
        "patients": len({case.patient for case in cases}),
        "studies": len(cases),
        "slices": sum(len(case.slices) for case in cases),
        "slices_with_truth": sum(int(case.slices_told.any(axis=1).sum()) for case in cases),
        "studies_without_slice_truth": sum(not case.slices_told.any() for case in cases),
        "studies_with_untold_classes": sum(not case.study_told.all() for case in cases),
        "slices_mask_known": sum(int(case.known.sum()) for case in cases),
        "slices_mask_with_blood": sum(int(one.sum()) for one in bloody),
        "slices_mask_with_blood_by_hand": sum(
            int((one & case.hand).sum()) for one, case in zip(bloody, cases, strict=True)
        ),
        "slices_with_blood_without_mask": sum(
            int(((case.labels[:, ANY] > 0) & case.slices_told[:, ANY] & ~case.known).sum())
            for case in cases
            if case.slices_told.any()
        ),
        "studies_without_cell_size": sum(case.cell_mm is None for case in cases),
        "studies_with_drawn_mask": sum(case.drawn is not None for case in cases),
        "studies_with_explanation": sum(case.explanation is not None for case in cases),
    }


def _any(mask: Any) -> Any:
    return False if mask is None else mask.astype(bool).any(axis=(1, 2))
