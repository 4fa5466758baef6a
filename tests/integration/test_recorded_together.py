"""New instances recorded together: with the rows that `record` makes one by one, or with none at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Table, select, update

from node.domain.errors import TransientError
from node.domain.instance import Instance
from node.domain.lifecycle import SeriesState
from node.store.arrivals import NewInstance, StoredFile
from node.store.records import Records
from node.store.tables import instances, series, studies
from tests.integration.test_store import ASSOCIATION, instance, settle, stored

MOST = 20


def came(*made: Instance, now: float = 100.0) -> list[NewInstance]:
    return [NewInstance(one, stored(), ASSOCIATION, now) for one in made]


def together(records: Records, *made: Instance, most: int = MOST) -> bool:
    records.arrivals.open_association(ASSOCIATION, "host:1", ("CT1", "10.0.0.1"), 100.0)
    return records.arrivals.record_new(came(*made), most)


def rows(records: Records, table: Table, key: str) -> list[dict[str, Any]]:
    with records.engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(table.c[key])).mappings()]


def everything(records: Records) -> list[list[dict[str, Any]]]:
    keys: Sequence[tuple[Table, str]] = (
        (studies, "study_instance_uid"),
        (series, "series_instance_uid"),
        (instances, "sop_instance_uid"),
    )
    return [rows(records, table, key) for table, key in keys]


ODD = {
    "patient_id": "P\0" + "7" * 300,
    "accession_number": "A" * 100,
    "study_description": "head\0",
    "series_description": "5 mm",
    "series_number": 2**40,
}
COMING = {
    "a series": [instance(1), instance(2)],
    "two series of a study": [instance(1), instance(1, of="1.2.11"), instance(2)],
    "two studies": [instance(1), instance(1, of="1.3.10", study="1.3", patient_id="Q")],
    "headers that no column holds": [instance(1, **ODD)],
}


@pytest.mark.parametrize("name", COMING)
def test_the_same_rows_as_one_by_one(name: str, records: Records) -> None:
    assert together(records, *COMING[name])
    at_once = everything(records)
    with records.engine.begin() as connection:
        for table in (instances, series, studies):
            connection.execute(table.delete())
    for one in COMING[name]:
        records.arrivals.record(one, stored(), ASSOCIATION, 100.0)
    assert at_once == everything(records)


def test_a_new_series_of_a_known_study_leaves_its_patient(records: Records) -> None:
    assert together(records, instance(1, patient_id="P"))
    assert together(records, instance(1, of="1.2.11", patient_id="another"))
    (study,) = rows(records, studies, "study_instance_uid")
    assert study["patient_id"] == "P" and len(rows(records, series, "series_instance_uid")) == 2


def test_a_series_that_is_decided_already_takes_the_longer_way(records: Records) -> None:
    assert together(records, instance(1))
    settle(records)
    before = everything(records)
    assert not together(records, instance(1, of="1.2.11"), instance(2))
    assert everything(records) == before, "neither the new series nor the instance"


def test_more_than_a_series_may_hold_are_none(records: Records) -> None:
    assert not together(records, *(instance(number) for number in range(4)), most=3)
    assert everything(records) == [[], [], []]
    assert together(records, *(instance(number) for number in range(3)), most=3)
    assert not together(records, instance(3), most=3)
    (row,) = rows(records, series, "series_instance_uid")
    assert (row["instance_count"], row["state"]) == (3, SeriesState.RECEIVING)


def test_an_instance_that_is_known_takes_its_new_series_with_it(records: Records) -> None:
    assert together(records, instance(1))
    stranger = instance(1, of="1.2.11", sop_instance_uid="1.2.10.1")
    assert not together(records, stranger)
    assert [row["series_instance_uid"] for row in rows(records, series, "series_instance_uid")] == ["1.2.10"]


def test_a_study_whose_files_were_removed_has_some_again(records: Records) -> None:
    assert together(records, instance(1))
    with records.engine.begin() as connection:
        connection.execute(update(studies).values(files_removed_at=50.0))
    assert together(records, instance(1, of="1.2.11"))
    (study,) = rows(records, studies, "study_instance_uid")
    assert study["files_removed_at"] is None


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_series_that_two_archives_send_with_other_headers_makes_neither_wait(records: Records) -> None:
    """One brings new slices of it, the other replaces slices that are there, at the same time."""
    assert together(records, *(instance(number) for number in range(5)), most=10_000)
    troubles: list[Exception] = []

    def tried(work: Callable[[int], object]) -> None:
        try:
            for number in range(150):
                work(number)
        except TransientError as error:
            troubles.append(error)

    def bring(number: int) -> None:
        records.arrivals.record_new(came(instance(100 + number)), 10_000)

    def replace(number: int) -> None:
        other = instance(number % 5, series_description=f"as {number} has it")
        file = StoredFile(f"replaced/{number}", 1, f"{number:064x}")
        records.arrivals.record(other, file, ASSOCIATION, 100.0)

    threads = [threading.Thread(target=tried, args=(work,)) for work in (bring, replace)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
