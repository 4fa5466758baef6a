"""Every query about incidents: conflicts between what came and what was there. Decides and repairs nothing.

One row a code and series: a series of 3,000 slices sent again is one line that says so, not 3,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import incidents


class Code(StrEnum):
    CONTENT_REPLACED = (
        "CONTENT_REPLACED"  # a SOP Instance UID came again with other content, which counts now
    )
    SOP_IN_OTHER_SERIES = "SOP_IN_OTHER_SERIES"  # refused: the UID belongs to another series already
    SERIES_IN_OTHER_STUDY = "SERIES_IN_OTHER_STUDY"  # refused: the series belongs to another study already
    SERIES_TOO_LARGE = "SERIES_TOO_LARGE"  # refused: scp.max_series_instances
    PATIENTS_MIXED = "PATIENTS_MIXED"  # one Study Instance UID, several patients
    NOT_JUDGED = "NOT_JUDGED"  # a study that the clock broke on again and again: not analysed
    ROUTED_NOWHERE = "ROUTED_NOWHERE"  # a positive result that the rules give to no destination
    OBJECTS_NOT_BUILT = "OBJECTS_NOT_BUILT"  # a result that went out without its pictures
    WORKITEM_STUCK = "WORKITEM_STUCK"  # a reader's workitem that cannot be made or ended: a fault of the node
    FILE_MISSING = "FILE_MISSING"  # a record without its file
    FILE_UNKNOWN = "FILE_UNKNOWN"  # a file that cannot be recorded; left where it is


@dataclass(frozen=True)
class Incident:
    """What was noticed, about which objects, and what became of it in words for a person."""

    code: Code
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    calling_ae: str
    text: str


class Incidents:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def note(self, incident: Incident, now: float) -> bool:
        """True for the first of its code and series; the others are counted."""
        with writing(self._engine) as connection:
            return note(connection, incident, now)

    def latest(self, limit: int = 100) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            query = select(incidents).order_by(incidents.c.last_at.desc()).limit(limit)
            return [dict(row._mapping) for row in connection.execute(query)]

    def since(self, then: float) -> list[dict[str, Any]]:
        with reading(self._engine) as connection:
            query = select(incidents).where(incidents.c.last_at >= then).order_by(incidents.c.last_at.desc())
            return [dict(row._mapping) for row in connection.execute(query)]


def note(connection: Connection, incident: Incident, now: float) -> bool:
    """As `Incidents.note`, in a transaction that is open already."""
    row = {**vars(incident), "times": 1, "first_at": now, "last_at": now}
    if insert_if_absent(connection, incidents, row):
        return True
    key = (
        incidents.c.code == incident.code,
        incidents.c.series_instance_uid == incident.series_instance_uid,
    )
    connection.execute(
        update(incidents)
        .where(*key)
        .values(
            times=incidents.c.times + 1,
            last_at=now,
            text=incident.text,
            sop_instance_uid=incident.sop_instance_uid,
            calling_ae=incident.calling_ae,
        )
    )
    return False
