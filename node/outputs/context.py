"""What every build is given, and what it may give back. Holds facts; builds nothing, reads no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from pydicom.dataset import Dataset

from node.domain.findings import Findings
from node.outputs.source import Source
from node.outputs.uids import uid_for


@dataclass(frozen=True)
class Predecessor:
    """The report that this one replaces, of the same study (PS3.3 C.17.2, PredecessorDocumentsSequence)."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True)
class PriorReport:
    """The report on the earlier head CT that the findings are compared with; it lies in another study."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Context:
    """One analysis, ready to be put into objects.

    `masks` is boolean (z, y, x) and `heat` is (z, h, w) over the full image field, float 0…1 or
    uint8 0…255; both in the source's pixel orientation and slice order. `made_at` is the stored time
    of the job and must know its offset from UTC; `built` holds the objects made so far, by output name.
    `subtypes` are parts of the mask by subtype, of its shape. `predecessors` and `prior_reports` are by the
    output name of the report that refers to them. `edition` is that of `uid_for`.
    """

    findings: Findings
    source: Source
    made_at: datetime
    software_version: str
    masks: np.ndarray | None = None
    heat: np.ndarray | None = None
    built: Mapping[str, Sequence[Dataset]] = field(default_factory=dict)
    predecessors: Mapping[str, Predecessor] = field(default_factory=dict)
    subtypes: Mapping[str, np.ndarray] = field(default_factory=dict)
    prior_reports: Mapping[str, PriorReport] = field(default_factory=dict)
    edition: int = 0

    def __post_init__(self) -> None:
        if self.made_at.tzinfo is None:
            raise ValueError("made_at must be timezone-aware, since objects state their offset from UTC")
        count = len(self.source.datasets)
        for name, array in (("masks", self.masks), ("heat", self.heat), *self.subtypes.items()):
            if array is not None and (array.ndim != 3 or len(array) != count):
                raise ValueError(f"{name} of shape {array.shape} do not fit {count} source slices")

    def uid(self, kind: str, index: int = 0) -> str:
        return uid_for(self.findings, kind, index, self.edition)

    @property
    def marked(self) -> bool:
        """There is a mask and it holds something."""
        return self.masks is not None and bool(self.masks.any())


Build = Callable[[Context], list[Dataset]]


@dataclass(frozen=True)
class Output:
    """One kind of object that a destination may ask for by `name`."""

    name: str
    build: Build
