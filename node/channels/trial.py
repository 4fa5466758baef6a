"""A message made by hand, to see whether a channel works. Marked as a test in everything it says."""

from __future__ import annotations

from dataclasses import replace

from node import __version__
from node.domain.announcing import Announcement, Occasion, Stage, Subject, announcement
from node.domain.findings import CLASSES, ClassFinding, Findings, ModelIdentity, Priority, Status

STUDY_UID = "2.25.1"
SUBJECT = Subject(patient_id="TEST", patient_name="TEST^ICHNODE", accession_number="TEST")


def trial(channel: str, now: float) -> Announcement:
    """As urgent as a real one, of a study that is not there."""
    classes = {name: ClassFinding(0.99 if name == "any" else 0.01, name == "any") for name in CLASSES}
    model = ModelIdentity("ichnode test message", __version__, "")
    found = Findings(model, STUDY_UID, 1, Status.ANALYSED, classes=classes, priority=Priority.STAT)
    made = announcement(Occasion(channel, STUDY_UID, SUBJECT, now, now), Stage.PRELIMINARY, found, None, 1)
    return replace(made, test=True)
