"""What the store counts for the figures. Light to import, since every process of the node opens the store."""

from __future__ import annotations

from dataclasses import dataclass

from node.domain.findings import Priority


@dataclass(frozen=True)
class Said:
    """So many analyses with this verdict, these classes present, and this said about them (bits)."""

    verdict: Priority
    present: int
    told: int
    wrong: int
    sampled: bool
    count: int


@dataclass(frozen=True)
class Analysed:
    """How many analyses there are, by verdict."""

    suspected: int = 0
    indeterminate: int = 0
    not_detected: int = 0

    @property
    def total(self) -> int:
        return self.suspected + self.indeterminate + self.not_detected


SCORE = "any_probability"
NUMBERS = {
    SCORE: "probability of any haemorrhage",
    "slice_thickness_mm": "slice thickness (mm)",
    "pixel_mm": "pixel spacing (mm)",
    "slices": "number of slices",
    "kvp": "tube voltage (kV)",
    "head_hu": "median HU inside the skull",
    "head_share": "share of the scan that is head",
}
NAMES = {"kernel": "convolution kernel"}
FEATURES = NUMBERS | NAMES
"""What is watched, in words. The score depends on the model, everything else on the scanner alone."""

LIKELY = 1e-3
"""A difference more likely than this by chance is none."""
DISTANCE = 0.25
"""Between the distributions at the widest (numbers), or half the sum of differences of shares (names)."""


@dataclass(frozen=True)
class Shift:
    """One feature, reference against recent. `before` and `after` say in words what is usual."""

    feature: str
    reference: int
    recent: int
    distance: float
    p_value: float
    psi: float
    before: str
    after: str

    @property
    def drifted(self) -> bool:
        return self.distance >= DISTANCE and self.p_value < LIKELY


@dataclass(frozen=True)
class Paired:
    """So many series that two models read: classes present and evaluated (bits), and what a reader said.

    `told` and `wrong` speak of the active model's word, None where nobody judged it; `sampled`: 1 where it
    was drawn by chance.
    """

    active_present: int
    active_evaluated: int
    shadow_present: int
    shadow_evaluated: int
    told: int | None
    wrong: int | None
    sampled: int
    count: int
