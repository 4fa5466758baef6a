"""Every query about what was received: associations, studies, series, instances. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from operator import itemgetter
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Connection,
    Engine,
    Integer,
    Row,
    String,
    Table,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from node.domain.errors import PermanentError, TransientError
from node.domain.instance import CT_IMAGE, ENHANCED_CT_IMAGES, Instance
from node.domain.lifecycle import SERIES, DeliveryState, SeriesEvent, SeriesState, sources
from node.store.audit_queue import Event, enqueue, is_wanted
from node.store.engine import insert_if_absent, reading, writing
from node.store.incidents import Code, Incident, note
from node.store.jobs import SOURCE, supersede_older
from node.store.swift import Refused, Run, Swift
from node.store.tables import LONGEST_UID, associations, deliveries, instances, objects, series, studies

if TYPE_CHECKING:
    from node.store.pipeline import Pipeline

RACES = 5
"""Attempts at recording an instance that others record, replace or remove at the same moment."""


# Built once: these run for every instance.
_INSTANCE = select(instances).where(instances.c.sop_instance_uid == bindparam("uid"))
_OWN_OBJECT = select(objects.c.job_id).where(
    objects.c.sop_instance_uid == bindparam("uid"), objects.c.output != SOURCE
)
_IS_KNOWN = select(
    or_(
        select(instances.c.sop_instance_uid).where(instances.c.sop_instance_uid == bindparam("uid")).exists(),
        select(objects.c.job_id).where(objects.c.sop_instance_uid == bindparam("uid")).exists(),
    )
)
_INSERT_INSTANCE, _INSERT_SERIES, _INSERT_STUDY = insert(instances), insert(series), insert(studies)
_COUNT_MORE = (
    update(series)
    .where(
        series.c.series_instance_uid == bindparam("uid"),
        series.c.study_instance_uid == bindparam("study"),
        series.c.state == SeriesState.RECEIVING,
        series.c.instance_count + bindparam("more") <= bindparam("most"),
    )
    .values(last_received_at=bindparam("now"), instance_count=series.c.instance_count + bindparam("more"))
)
_SEE_STUDY = (
    update(studies)
    .where(studies.c.study_instance_uid == bindparam("uid"))
    .values(last_received_at=bindparam("now"), files_removed_at=None)
)


class Recorded(StrEnum):
    NEW = "NEW"
    SAME = "SAME"  # the same bytes again: nothing changed
    RECODED = "RECODED"  # the same header in another transfer syntax: the first one stays
    REPLACED = "REPLACED"  # the same SOP Instance UID with other content, which counts from now on


@dataclass(frozen=True)
class StoredFile:
    """Where an instance lies in the spool."""

    path: str
    size_bytes: int
    fingerprint: str
    """Of its data set (node.fingerprint); the column is named after what earlier versions recorded."""
    held_by: str | None = None
    """The disk that alone has it (`Depot.disk`); None: every machine finds it."""


@dataclass(frozen=True)
class Known:
    """What the records hold under a SOP Instance UID, and how large its series is."""

    own: bool
    """The node made the object itself."""
    file: StoredFile | None
    series_instance_uid: str
    header: Instance | None


UNKNOWN = Known(False, None, "", None)


@dataclass(frozen=True)
class NewInstance:
    """An instance that came, where it lies, over which association, and when (UNIX seconds)."""

    instance: Instance
    file: StoredFile
    association_id: str
    received_at: float


class _RacedError(Refused):
    """Somebody else was quicker; the transaction is rolled back and tried once more."""


class Arrivals:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: Swift | None = None
        self._lookups: Pipeline | None = None
        self._making = Lock()

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
        if self._lookups is not None:
            self._lookups.close()

    @property
    def _swift(self) -> Swift:
        """Made when it is first needed: only those who receive do."""
        if self._made is None:
            with self._making:
                if self._made is None:
                    made = Swift(self._engine)
                    self._lookups = made.pipeline(_IS_KNOWN)
                    self._made = made
        return self._made

    def open_association(self, association_id: str, listener: str, peer: tuple[str, str], now: float) -> None:
        """`peer` is (calling AE title, address)."""
        with writing(self._engine) as connection:
            row = {"id": association_id, "listener": listener, "calling_ae": peer[0], "address": peer[1]}
            insert_if_absent(connection, associations, row | {"opened_at": now})

    def close_association(self, association_id: str, outcome: str, now: float) -> None:
        with writing(self._engine) as connection:
            _close(connection, association_id, outcome, now)

    def open_listeners(self) -> set[str]:
        """The listeners that have associations recorded as open."""
        with reading(self._engine) as connection:
            query = select(associations.c.listener).where(associations.c.closed_at.is_(None)).distinct()
            return set(connection.execute(query).scalars())

    def carried_by(self, listener: str) -> list[tuple[str, str, str]]:
        """(association, study, series) of what a listener has open and an instance of which is recorded."""
        query = (
            select(associations.c.id, series.c.study_instance_uid, series.c.series_instance_uid)
            .join(instances, instances.c.association_id == associations.c.id)
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(associations.c.listener == listener, associations.c.closed_at.is_(None))
            .distinct()
        )
        with reading(self._engine) as connection:
            return [(row[0], row[1], row[2]) for row in connection.execute(query)]

    def close_associations_of(self, listener: str, now: float) -> None:
        """A listener died: what it had open is over."""
        open_ones = (associations.c.listener == listener, associations.c.closed_at.is_(None))
        with writing(self._engine) as connection:
            for name in connection.execute(select(associations.c.id).where(*open_ones)).scalars().all():
                _close(connection, name, "aborted", now)

    def known(self, sop_instance_uid: str) -> Known:
        """One look at what is there under a SOP Instance UID: nothing, nearly always."""
        is_known = self._swift.first(_IS_KNOWN, {"uid": sop_instance_uid})
        if is_known is not None and not is_known[0]:
            return UNKNOWN
        with reading(self._engine) as connection:
            row = _instance_row(connection, sop_instance_uid)
            if row is None:
                own = connection.execute(_OWN_OBJECT, {"uid": sop_instance_uid}).first()
                return Known(own is not None, None, "", None)
            file = StoredFile(row.path, row.size_bytes, row.sha256, row.held_by)
            return Known(False, file, row.series_instance_uid, Instance.from_json(row.header))

    def inquire(self, sop_instance_uid: str) -> Callable[[], Known]:
        """As `known`, asked now; whoever wants the answer waits for it, and hears when the database is away.

        Without a server the answer is there at once: this raises TransientError, then.
        """
        swift, lookups = self._swift, self._lookups
        if lookups is None or not sop_instance_uid.isascii() or "\0" in sop_instance_uid:
            known = self.known(sop_instance_uid)
            return lambda: known
        lookup = lookups.ask(sop_instance_uid)

        def answer() -> Known:
            if lookups.answer(lookup) == b"f":
                return UNKNOWN
            if lookup.is_lost:
                swift.drop_idle()
            known = self.known(sop_instance_uid)
            lookups.open()
            return known

        return answer

    def series_size(self, series_uid: str) -> int:
        """How many instances of a series are recorded."""
        with reading(self._engine) as connection:
            query = select(series.c.instance_count).where(series.c.series_instance_uid == series_uid)
            return connection.execute(query).scalar() or 0

    def brought_again(
        self, sop_instance_uid: str, path: str, association_id: str, held_by: str | None = None
    ) -> bool:
        """What is recorded with that file came again. False when it is there no longer.

        `held_by` is the disk on which the file was written anew, if it was.
        """
        with writing(self._engine) as connection:
            return _brought_again(connection, sop_instance_uid, path, association_id, held_by)

    def record(
        self, instance: Instance, file: StoredFile, association_id: str, now: float, other_than: str = ""
    ) -> Recorded:
        """Record one received instance; a change to a decided series opens it again as a new revision.

        `other_than` is the path of a file that was compared and found to differ, whatever fingerprints say.
        Raises PermanentError for one that `check_recordable` refuses, DUPLICATE_SOP for one whose SOP
        Instance UID belongs to another series, and SERIES_IN_OTHER_STUDY.
        """
        check_recordable(instance)
        for _ in range(RACES):
            try:
                return self._record(instance, file, association_id, now, other_than)
            except _RacedError:  # it came, or was removed, at the same moment
                continue
        raise TransientError(f"instance {instance.sop_instance_uid}: others keep changing its record")

    def record_new(self, news: Sequence[NewInstance], most_in_series: int) -> bool:
        """Record instances that nobody has seen, of series that are arriving or begin so, in one transaction.

        False when one of them is not of that kind; then nothing is recorded, and `record` sees to each.
        On SQLite the last of these may be lost with the power, but not the files: the scan at the next
        start records those again.
        """
        rows = [_row_of(new) for new in news]
        now = max(new.received_at for new in news)
        of_series: dict[tuple[str, str], list[Instance]] = {}
        of_study: dict[str, Instance] = {}
        for one in (new.instance for new in news):
            of_series.setdefault((one.series_instance_uid, one.study_instance_uid), []).append(one)
            of_study.setdefault(one.study_instance_uid, one)
        bounds = {"now": now, "most": most_in_series}

        def all_of_them(run: Run) -> bool:
            """Studies before series, as everywhere, and in order, so that no two wait for each other."""
            for uid, first in sorted(of_study.items(), key=itemgetter(0)):
                if not run(_SEE_STUDY, {"uid": uid, "now": now}):
                    run(_INSERT_STUDY, _new_study(first, now))
            beginning = [
                came
                for (uid, study), came in sorted(of_series.items(), key=itemgetter(0))
                if not run(_COUNT_MORE, {"uid": uid, "study": study, "more": len(came), **bounds})
            ]
            for came in beginning:  # what is there already, decided, full or elsewhere, its key refuses
                if len(came) > most_in_series:
                    raise Refused(f"series {came[0].series_instance_uid} is too large")
                run(_INSERT_SERIES, _new_series(came[0], now) | {"instance_count": len(came)})
            run.many(_INSERT_INSTANCE, rows)
            return True

        try:
            return self._swift.transaction(all_of_them)
        except Refused:
            return False

    def _record(
        self, instance: Instance, file: StoredFile, association_id: str, now: float, other_than: str
    ) -> Recorded:
        uid = instance.sop_instance_uid
        with writing(self._engine) as connection:
            row = _instance_row(connection, uid)
            if row is not None:
                require_same_series(uid, row.series_instance_uid, instance.series_instance_uid)
            _require_same_study(connection, instance)
            again = None
            if row is not None:
                is_same = row.sha256 == file.fingerprint and row.path != other_than
                again = repetition(Instance.from_json(row.header), is_same, instance)
            if row is not None and again is not None:
                if not _brought_again(connection, uid, row.path, association_id):
                    raise _RacedError
                return again
            _see_study(connection, instance, now, is_new=row is None)
            _see_series(connection, instance, now, is_new=row is None)
            values = _instance_values(instance, file, association_id, now)
            if row is None:
                if not insert_if_absent(connection, instances, values):
                    raise _RacedError
                return Recorded.NEW
            mine = (instances.c.sop_instance_uid == uid, instances.c.path == row.path)
            if connection.execute(update(instances).where(*mine).values(**values)).rowcount != 1:
                raise _RacedError
            _take_back(connection, instance, association_id, now)
            return Recorded.REPLACED

    def paths(self, series_uid: str) -> list[str]:
        """Spool paths of the instances of a series, in order of arrival."""
        with reading(self._engine) as connection:
            query = select(instances.c.path).where(instances.c.series_instance_uid == series_uid)
            return list(connection.execute(query.order_by(instances.c.received_at)).scalars())


def _close(connection: Connection, association_id: str, outcome: str, now: float) -> None:
    """What it brought is told to the audit repository, one message a study."""
    mine = (associations.c.id == association_id, associations.c.closed_at.is_(None))
    values = {"closed_at": now, "outcome": outcome}
    closed = connection.execute(update(associations).where(*mine).values(**values)).rowcount
    if closed and is_wanted(connection):
        for event in _brought(connection, association_id, outcome, now):
            enqueue(connection, event)


def _brought(connection: Connection, association_id: str, outcome: str, now: float) -> list[Event]:
    """What an association brought, by study."""
    peer = connection.execute(select(associations).where(associations.c.id == association_id)).one()
    query = (
        select(series.c.study_instance_uid, instances.c.header["sop_class_uid"].as_string(), func.count())
        .join(instances, instances.c.series_instance_uid == series.c.series_instance_uid)
        .where(instances.c.association_id == association_id)
        .group_by(series.c.study_instance_uid, instances.c.header["sop_class_uid"].as_string())
    )
    by_study: dict[str, dict[str, int]] = {}
    for study_uid, sop_class, count in connection.execute(query):
        by_study.setdefault(study_uid, {})[sop_class] = count
    return [
        Event("received", now, peer.calling_ae, peer.address, uid, f"association {outcome}", objects)
        for uid, objects in by_study.items()
    ]


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


def require_same_series(sop_uid: str, known: str, came: str) -> None:
    """Raises PermanentError DUPLICATE_SOP: to move an instance would take it from its series in silence."""
    if known != came:
        text = f"instance {sop_uid} belongs to series {known} already, and came again in series {came}"
        raise PermanentError(
            "DUPLICATE_SOP", f"{text}; SOP Instance UIDs are unique (PS3.5 9): new ones help"
        )


def _require_same_study(connection: Connection, instance: Instance) -> None:
    """Raises PermanentError SERIES_IN_OTHER_STUDY: images of two examinations would become one volume."""
    uid, came = instance.series_instance_uid, instance.study_instance_uid
    query = select(series.c.study_instance_uid).where(series.c.series_instance_uid == uid)
    known = connection.execute(query).scalar()
    if known not in (None, came):
        text = f"series {uid} belongs to study {known} already, and came again in study {came}"
        raise PermanentError(
            "SERIES_IN_OTHER_STUDY", f"{text}; Series Instance UIDs are unique (PS3.5 9): new ones help"
        )


def repetition(known: Instance, same_bytes: bool, instance: Instance) -> Recorded | None:
    """SAME or RECODED for what is there already; None for other content under the same UID."""
    if same_bytes:
        return Recorded.SAME
    recoded = known.transfer_syntax_uid != instance.transfer_syntax_uid
    known = replace(
        known,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        station_name=known.station_name or instance.station_name,  # earlier versions did not record it
    )
    if recoded and known == instance:
        return Recorded.RECODED
    return None


def _instance_row(connection: Connection, sop_uid: str) -> Row | None:
    return connection.execute(_INSTANCE, {"uid": sop_uid}).first()


def _row_of(new: NewInstance) -> dict[str, Any]:
    """As the driver takes it."""
    return {
        "sop_instance_uid": new.instance.sop_instance_uid,
        "series_instance_uid": new.instance.series_instance_uid,
        "association_id": new.association_id,
        "path": new.file.path,
        "size_bytes": new.file.size_bytes,
        "sha256": new.file.fingerprint,
        "header": new.instance.to_json_text(),
        "received_at": new.received_at,
        "held_by": new.file.held_by,
    }


def _instance_values(instance: Instance, file: StoredFile, association_id: str, now: float) -> dict[str, Any]:
    return _row_of(NewInstance(instance, file, association_id, now)) | {"header": instance.to_json()}


def _new_study(instance: Instance, now: float) -> dict[str, Any]:
    """As the driver takes it: who the patient is says the first instance."""
    row = {"study_instance_uid": instance.study_instance_uid, "canary": 0, **_person(instance)}
    times = {"first_received_at": now, "last_received_at": now}
    return dict.fromkeys(studies.columns.keys()) | _fitting(studies, row) | times


def _new_series(instance: Instance, now: float) -> dict[str, Any]:
    """As the driver takes it, with no instance yet."""
    row = _fitting(series, _series_values(instance, now))
    return dict.fromkeys(series.columns.keys()) | {"revision": 1} | row


def _brought_again(
    connection: Connection, sop_uid: str, path: str, association_id: str, held_by: str | None = None
) -> bool:
    """The association that brought an instance last is the one whose end counts: a re-send heals an abort."""
    mine = (instances.c.sop_instance_uid == sop_uid, instances.c.path == path)
    values = {"association_id": association_id} | ({"held_by": held_by} if held_by else {})
    return connection.execute(update(instances).where(*mine).values(**values)).rowcount == 1


def _take_back(connection: Connection, instance: Instance, association_id: str, now: float) -> None:
    """Content that an analysis rests on was replaced: its job makes way, so that no report mixes the two."""
    mine = series.c.series_instance_uid == instance.series_instance_uid
    revision = connection.execute(select(series.c.revision).where(mine)).scalar_one()
    supersede_older(connection, instance.series_instance_uid, revision)
    caller = select(associations.c.calling_ae).where(associations.c.id == association_id)
    text = "SOP instances came again with other content; the newer content counts, the older file is kept"
    if holders := _holders(connection, instance.sop_instance_uid):
        text += f". {', '.join(holders)} may hold the older content, and keep it: look there"
    incident = Incident(
        Code.CONTENT_REPLACED,
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.sop_instance_uid,
        connection.execute(caller).scalar() or "",
        text,
    )
    note(connection, incident, now)


def _holders(connection: Connection, sop_uid: str) -> list[str]:
    """The destinations to which an instance was handed on; whoever gave no answer may have it as well."""
    query = (
        select(deliveries.c.destination)
        .where(deliveries.c.sop_instance_uid == sop_uid)
        .where(or_(deliveries.c.state != DeliveryState.PENDING, deliveries.c.attempts > 0))
        .order_by(deliveries.c.destination)
    )
    return list(connection.execute(query).scalars())


def _see_study(connection: Connection, instance: Instance, now: float, is_new: bool) -> None:
    """Who the patient is says the first instance, or the latest one that replaced another."""
    key = studies.c.study_instance_uid == instance.study_instance_uid
    person = _person(instance)
    seen = {"last_received_at": now, "files_removed_at": None} | ({} if is_new else person)
    if connection.execute(update(studies).where(key).values(**_fitting(studies, seen))).rowcount:
        return
    row = {"study_instance_uid": instance.study_instance_uid, "first_received_at": now, **person, **seen}
    insert_if_absent(connection, studies, _fitting(studies, row))


def _modality_of(sop_class_uid: str) -> str:
    """Of a header that leaves it out: what is not known for a CT gets no answer when nothing can be read."""
    return "CT" if sop_class_uid in (CT_IMAGE, *ENHANCED_CT_IMAGES) else ""


def _person(instance: Instance) -> dict[str, Any]:
    return {
        "patient_id": instance.patient_id,
        "patient_name": instance.patient_name,
        "accession_number": instance.accession_number,
        "study_date": instance.study_date,
        "description": instance.study_description,
    }


def _series_values(instance: Instance, now: float) -> dict[str, Any]:
    return {
        "series_instance_uid": instance.series_instance_uid,
        "study_instance_uid": instance.study_instance_uid,
        "modality": instance.modality or _modality_of(instance.sop_class_uid),
        "description": instance.series_description,
        "series_number": instance.series_number,
        "state": SeriesState.RECEIVING,
        "first_received_at": now,
        "last_received_at": now,
        "instance_count": 0,
    }


def _see_series(connection: Connection, instance: Instance, now: float, is_new: bool) -> None:
    """INSTANCE_ARRIVED: every state leads to RECEIVING; leaving another state is a new revision."""
    insert_if_absent(connection, series, _fitting(series, _series_values(instance, now)))
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
