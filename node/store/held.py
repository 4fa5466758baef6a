"""Every query about files that lie on the disk of one machine alone: received there, not in the bucket yet.

Where all machines share a volume no file is held, and nothing here finds any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, distinct, exists, func, select, update

from node.domain.errors import OutOfReach
from node.store.engine import reading, writing
from node.store.tables import instances, series


@dataclass(frozen=True)
class HeldFile:
    sop_instance_uid: str
    path: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True)
class Disk:
    """What one disk alone holds."""

    name: str
    instances: int
    studies: int
    size_bytes: int
    oldest_at: float
    """When the first of them came."""


def is_held(series_uid: ColumnElement[str], by_others_than: str | None = None) -> ColumnElement[bool]:
    """Of a series: some file of it is on one disk alone; on another one than that, where one is named."""
    held: list[ColumnElement[bool]] = [instances.c.held_by.is_not(None)]  # there is an index of these alone
    if by_others_than is not None:
        held.append(instances.c.held_by != by_others_than)
    return exists().where(instances.c.series_instance_uid == series_uid, *held).correlate_except(instances)


class HeldFiles:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def of(self, disk: str, limit: int = 500) -> list[HeldFile]:
        """What only this disk has, in the order in which it came."""
        query = (
            select(
                instances.c.sop_instance_uid,
                instances.c.path,
                series.c.series_instance_uid,
                series.c.study_instance_uid,
            )
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(instances.c.held_by == disk)
            .order_by(instances.c.received_at)
            .limit(limit)
        )
        with reading(self._engine) as connection:
            return [HeldFile(*row) for row in connection.execute(query)]

    def let_go(self, disk: str, files: Iterable[HeldFile]) -> None:
        """Every machine finds them now. What was recorded with another file meanwhile is left alone."""
        with writing(self._engine) as connection:
            for file in files:
                connection.execute(
                    update(instances)
                    .where(
                        instances.c.sop_instance_uid == file.sop_instance_uid,
                        instances.c.path == file.path,
                        instances.c.held_by == disk,
                    )
                    .values(held_by=None)
                )

    def let_all_go(self) -> None:
        """Every machine finds every file now: all were brought to where they see them."""
        with writing(self._engine) as connection:
            connection.execute(update(instances).where(instances.c.held_by.is_not(None)).values(held_by=None))

    def take_over(self, disk: str, sop_uid: str, path: str) -> bool:
        """The file is on this disk, and nowhere else. False when its record changed meanwhile."""
        mine = (instances.c.sop_instance_uid == sop_uid, instances.c.path == path)
        with writing(self._engine) as connection:
            return connection.execute(update(instances).where(*mine).values(held_by=disk)).rowcount == 1

    def holders(self, sop_uids: Collection[str]) -> dict[str, tuple[str, str | None]]:
        """Path and disk of each of these instances that is recorded; None for the disk: everywhere."""
        query = select(instances.c.sop_instance_uid, instances.c.path, instances.c.held_by)
        with reading(self._engine) as connection:
            rows = connection.execute(query.where(instances.c.sop_instance_uid.in_(sop_uids)))
            return {row.sop_instance_uid: (row.path, row.held_by) for row in rows}

    def disk_of(self, path: str) -> str | None:
        """The disk that alone has this file; None where it is everywhere, or nowhere."""
        query = select(instances.c.held_by).where(instances.c.held_by.is_not(None), instances.c.path == path)
        with reading(self._engine) as connection:
            return connection.execute(query).scalar()

    def disks(self) -> list[Disk]:
        """Every disk that alone holds something, the one that holds the oldest first."""
        oldest = func.min(instances.c.received_at)
        query = (
            select(
                instances.c.held_by,
                func.count(),
                func.count(distinct(series.c.study_instance_uid)),
                func.sum(instances.c.size_bytes),
                oldest,
            )
            .join(series, series.c.series_instance_uid == instances.c.series_instance_uid)
            .where(instances.c.held_by.is_not(None))
            .group_by(instances.c.held_by)
            .order_by(oldest)
        )
        with reading(self._engine) as connection:
            return [Disk(r[0], r[1], r[2], int(r[3]), r[4]) for r in connection.execute(query)]

    def require_reach(self, series_uid: str, disk: str | None) -> None:
        """Raises OutOfReach while a file of the series is on another disk alone. Without a `disk` none is."""
        if disk is None:
            return
        others = (instances.c.series_instance_uid == series_uid, instances.c.held_by != disk)
        query = select(instances.c.held_by, func.count()).where(*others).group_by(instances.c.held_by)
        with reading(self._engine) as connection:
            found = connection.execute(query).first()
        if found is not None:
            text = f"{found[1]} images of series {series_uid} are on the disk {found[0]} alone"
            raise OutOfReach(f"{text}; they wait for its machine to put them into the bucket")

    def is_held(self, study_uid: str) -> bool:
        """Whether some file of the study is on one disk alone."""
        of_study = select(series.c.series_instance_uid).where(series.c.study_instance_uid == study_uid)
        held = (instances.c.series_instance_uid.in_(of_study), instances.c.held_by.is_not(None))
        with reading(self._engine) as connection:
            return connection.execute(select(instances.c.path).where(*held).limit(1)).first() is not None
