"""Every query about what was received: associations, studies, series, instances. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    String,
    Table,
    case,
    select,
    update,
)

from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.domain.lifecycle import SERIES, SeriesEvent, SeriesState, sources
from node.store.engine import insert_if_absent, reading, writing
from node.store.tables import LONGEST_UID, associations, instances, objects, series, studies


class Recorded(StrEnum):
    NEW = "NEW"
    SAME = "SAME"  # the same bytes again: nothing changed
    REPLACED = "REPLACED"  # the same SOP Instance UID with other bytes


@dataclass(frozen=True)
class StoredFile:
    """Where an instance lies in the spool."""

    path: str
    size_bytes: int
    sha256: str


class _RacedError(Exception):
    """Somebody else was quicker; the transaction is rolled back and tried once more."""


class Arrivals:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def open_association(self, association_id: str, listener: str, peer: tuple[str, str], now: float) -> None:
        """`peer` is (calling AE title, address)."""
        with writing(self._engine) as connection:
            row = {"id": association_id, "listener": listener, "calling_ae": peer[0], "address": peer[1]}
            insert_if_absent(connection, associations, row | {"opened_at": now})

    def close_association(self, association_id: str, outcome: str, now: float) -> None:
        with writing(self._engine) as connection:
            connection.execute(
                update(associations)
                .where(associations.c.id == association_id, associations.c.closed_at.is_(None))
                .values(closed_at=now, outcome=outcome)
            )

    def open_listeners(self) -> set[str]:
        """The listeners that have associations recorded as open."""
        with reading(self._engine) as connection:
            query = select(associations.c.listener).where(associations.c.closed_at.is_(None)).distinct()
            return set(connection.execute(query).scalars())

    def close_associations_of(self, listener: str, now: float) -> None:
        """A listener died: what it had open is over."""
        with writing(self._engine) as connection:
            connection.execute(
                update(associations)
                .where(associations.c.listener == listener, associations.c.closed_at.is_(None))
                .values(closed_at=now, outcome="aborted")
            )

    def is_own_object(self, sop_instance_uid: str) -> bool:
        """Whether this node made the object itself."""
        with reading(self._engine) as connection:
            query = select(objects.c.sop_instance_uid).where(objects.c.sop_instance_uid == sop_instance_uid)
            return connection.execute(query).first() is not None

    def record(self, instance: Instance, file: StoredFile, association_id: str, now: float) -> Recorded:
        """Record one received instance; a change to a decided series opens it again as a new revision.

        Raises PermanentError for one that `check_recordable` refuses.
        """
        check_recordable(instance)
        try:
            return self._record(instance, file, association_id, now)
        except _RacedError:  # the same instance came at the same moment over another association
            return self._record(instance, file, association_id, now)

    def _record(self, instance: Instance, file: StoredFile, association_id: str, now: float) -> Recorded:
        with writing(self._engine) as connection:
            known = connection.execute(
                select(instances.c.sha256).where(instances.c.sop_instance_uid == instance.sop_instance_uid)
            ).scalar()
            if known == file.sha256:
                _brought_again(connection, instance, association_id)
                return Recorded.SAME
            _see_study(connection, instance, now)
            _see_series(connection, instance, now, is_new=known is None)
            row = {
                "series_instance_uid": instance.series_instance_uid,
                "association_id": association_id,
                "path": file.path,
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "header": instance.to_json(),
                "received_at": now,
            }
            if known is None:
                key = {"sop_instance_uid": instance.sop_instance_uid}
                if not insert_if_absent(connection, instances, row | key):
                    raise _RacedError
                return Recorded.NEW
            of_it = instances.c.sop_instance_uid == instance.sop_instance_uid
            connection.execute(update(instances).where(of_it).values(**row))
            return Recorded.REPLACED

    def paths(self, series_uid: str) -> list[str]:
        """Spool paths of the instances of a series, in order of arrival."""
        with reading(self._engine) as connection:
            query = select(instances.c.path).where(instances.c.series_instance_uid == series_uid)
            return list(connection.execute(query.order_by(instances.c.received_at)).scalars())


def check_recordable(instance: Instance) -> None:
    """Raises PermanentError for UIDs that no column holds: they are keys, and cannot be cut short."""
    for uid in (
        instance.sop_instance_uid,
        instance.sop_class_uid,
        instance.series_instance_uid,
        instance.study_instance_uid,
    ):
        if len(uid) > LONGEST_UID or "\0" in uid:
            raise PermanentError("UID_ILLEGAL", f"{uid[:80]!r}… of {len(uid)} characters is no UID")


def _fitting(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """The row as its columns can hold it: headers overstep what DICOM allows, PostgreSQL allows no more.

    The header itself is kept whole beside it (instances.header).
    """
    fitting = dict(row)
    for name, value in row.items():
        kind = table.c[name].type
        if isinstance(kind, String) and isinstance(value, str):
            fitting[name] = value.replace("\0", "")[: kind.length]
        elif isinstance(kind, Integer) and isinstance(value, int) and abs(value) >= 2**31:
            fitting[name] = None
    return fitting


def _brought_again(connection: Connection, instance: Instance, association_id: str) -> None:
    """The association that brought an instance last is the one whose end counts: a re-send heals an abort."""
    connection.execute(
        update(instances)
        .where(instances.c.sop_instance_uid == instance.sop_instance_uid)
        .values(association_id=association_id)
    )


def _see_study(connection: Connection, instance: Instance, now: float) -> None:
    key = studies.c.study_instance_uid == instance.study_instance_uid
    if connection.execute(update(studies).where(key).values(last_received_at=now)).rowcount:
        return
    row = {
        "study_instance_uid": instance.study_instance_uid,
        "patient_id": instance.patient_id,
        "patient_name": instance.patient_name,
        "accession_number": instance.accession_number,
        "study_date": instance.study_date,
        "description": instance.study_description,
        "first_received_at": now,
        "last_received_at": now,
    }
    insert_if_absent(connection, studies, _fitting(studies, row))


def _see_series(connection: Connection, instance: Instance, now: float, is_new: bool) -> None:
    """INSTANCE_ARRIVED: every state leads to RECEIVING; leaving another state is a new revision."""
    row = {
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality,
        "description": instance.series_description,
        "series_number": instance.series_number,
        "state": SeriesState.RECEIVING,
        "first_received_at": now,
        "last_received_at": now,
        "instance_count": 0,
    }
    insert_if_absent(connection, series, _fitting(series, row))
    connection.execute(
        update(series)
        .where(
            series.c.series_instance_uid == instance.series_instance_uid,
            series.c.state.in_(sources(SERIES, SeriesEvent.INSTANCE_ARRIVED)),
        )
        .values(
            revision=series.c.revision + case((series.c.state == SeriesState.RECEIVING, 0), else_=1),
            state=SeriesState.RECEIVING,
            reason_code=None,
            reason_text=None,
            notes=None,
            last_received_at=now,
            instance_count=series.c.instance_count + (1 if is_new else 0),
        )
    )
