"""What is counted of analyses and clicks, on each database; and that nothing of a patient stays behind."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import delete, insert, select, text, update

from node.domain.acquisition import Acquisition
from node.domain.findings import Consistency, ModelIdentity, Priority
from node.domain.opinion import Opinion, Word, Wrong
from node.store import engine as store_engine
from node.store.engine import open_engine
from node.store.quality import Group
from node.store.records import Records
from node.store.tables import analyses, instances, jobs, studies
from tests.site import SUBDURAL, Site, findings

EVER = (0.0, 1e12)


@pytest.fixture
def site(records: Records) -> Site:
    return Site(records)


def rows(records: Records) -> list[dict[str, Any]]:
    with records.engine.begin() as connection:
        return [dict(row._mapping) for row in connection.execute(select(analyses).order_by(analyses.c.id))]


def say(records: Records, job: int, opinion: Opinion, why: Wrong = Wrong.UNSPECIFIED, *actual: str) -> None:
    records.reviews.judge(job, Word(opinion, "anna", time.time() + 1, why, actual))


def again(site: Site, job: int, found: Any) -> None:
    site.records.jobs.reanalyse(job)
    assert site.records.jobs.claim(job, "worker", time.time() + 60, time.time())
    assert site.records.jobs.store_analysis(job, "worker", found, "maps", time.time() + 2)
    stored = site.records.jobs.get(job)
    assert stored and site.records.jobs.store_objects(stored, (), (), time.time())


def test_analyses_and_clicks_are_counted_by_scanner_and_model(site: Site) -> None:
    records = site.records
    for number, scanner in enumerate(("A", "A", "B")):
        job = site.running(f"1.{number}")
        records.jobs.store_analysis(
            job, "worker", SUBDURAL, "m", time.time(), acquired=Acquisition(scanner, "X")
        )
        say(records, job, Opinion.AGREE if number else Opinion.DISAGREE)
    site.composed("1.7", findings({}, 0.6, Consistency.MASK_ONLY, Priority.HIGH))
    site.composed("1.8", findings())
    analysed = records.quality.analysed(Group.SCANNER, *EVER)
    assert {name: a.suspected for name, a in analysed.items()} == {
        "A · X": 2,
        "B · X": 1,
        "unknown scanner": 0,
    }
    assert analysed["unknown scanner"].indeterminate == analysed["unknown scanner"].not_detected == 1
    said = records.quality.said(Group.SCANNER, *EVER)
    assert sum(s.count for s in said["A · X"]) == 2 and "unknown scanner" not in said
    assert records.quality.analysed(Group.MODEL, *EVER)["test 1"].total == 5
    assert records.quality.analysed(Group.ALL, 0, 1) in (
        {},
        {"": records.quality.analysed(Group.ALL, 0, 1)[""]},
    )
    assert [row["why"] for row in records.quality.disagreements(*EVER)] == ["UNSPECIFIED"]


def test_the_last_click_counts_and_can_be_taken_back(site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    say(site.records, job, Opinion.AGREE)
    say(site.records, job, Opinion.DISAGREE, Wrong.SUBTYPE, "epidural")
    (row,) = rows(site.records)
    assert (row["opinion"], row["why"], row["opinion_by"]) == ("DISAGREE", "SUBTYPE", "anna")
    assert site.records.worklist.study("1.1")["review"]["wrong"] == "SUBTYPE"  # type: ignore[index]
    site.records.reviews.withdraw(job)
    assert rows(site.records)[0]["told"] is None
    assert site.records.quality.said(Group.ALL, *EVER) == {}


def test_the_same_word_again_keeps_what_was_said_of_it_and_another_does_not(site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    say(site.records, job, Opinion.AGREE)
    again(site, job, SUBDURAL)
    assert [row["opinion"] for row in rows(site.records)] == ["AGREE"]
    again(site, job, findings())
    assert [row["opinion"] for row in rows(site.records)] == [None]


def test_another_model_gets_a_row_of_its_own(site: Site) -> None:
    job = site.composed("1.1", SUBDURAL)
    say(site.records, job, Opinion.AGREE)
    again(site, job, replace(SUBDURAL, model=ModelIdentity("test", "2", "1" * 64)))
    say(site.records, job, Opinion.DISAGREE, Wrong.NO_HAEMORRHAGE)
    assert [(row["model_version"], row["opinion"]) for row in rows(site.records)] == [
        ("1", "AGREE"),
        ("2", "DISAGREE"),
    ]


def test_the_draw_takes_negatives_once_whose_images_are_there(site: Site) -> None:
    records = site.records
    jobs = [site.composed(f"1.{number}", findings()) for number in range(6)]
    site.composed("2.1", SUBDURAL)
    say(records, jobs[0], Opinion.AGREE)  # drawn all the same: the sample is of all
    with records.engine.begin() as connection:
        gone = update(studies).where(studies.c.study_instance_uid == "1.5")
        connection.execute(gone.values(files_removed_at=time.time()))
    chance = random.Random(1)
    assert records.quality.draw(3, 0, "anna", time.time(), chance) == 3
    assert records.quality.draw(9, 0, "anna", time.time(), chance) == 2
    drawn = {row["study_instance_uid"] for row in rows(records) if row["sampled_at"]}
    assert drawn == {"1.0", "1.1", "1.2", "1.3", "1.4"}
    assert {row["study_instance_uid"] for row in records.quality.sample()} == drawn - {"1.0"}


def test_a_forgotten_study_leaves_figures_and_no_trace(site: Site) -> None:
    site.composed("1.1", SUBDURAL)
    with site.records.engine.begin() as connection:
        connection.execute(delete(instances))
        connection.execute(update(studies).values(files_removed_at=1.0))
    assert site.records.keeping.forget(time.time() + 10) == 1
    (row,) = rows(site.records)
    assert row["study_instance_uid"] is None and row["verdict"] == "STAT"


def test_a_job_after_all_others_are_forgotten_takes_no_figures_away(site: Site) -> None:
    """As after a quiet weekend at a site that keeps little."""
    job = site.composed("1.1", SUBDURAL)
    say(site.records, job, Opinion.AGREE)
    with site.records.engine.begin() as connection:
        connection.execute(delete(instances))
        connection.execute(update(studies).values(files_removed_at=1.0))
    assert site.records.keeping.forget(time.time() + 10) == 1
    assert site.composed("1.2", findings()) > job
    assert [(row["verdict"], row["opinion"]) for row in rows(site.records)] == [
        ("STAT", "AGREE"),
        ("ROUTINE", None),
    ]


def test_what_was_analysed_before_is_carried_over(database_url: str) -> None:
    engine = open_engine(database_url)
    config = Config()
    config.set_main_option("script_location", "node:store/migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0010")
        _as_before(connection)
    store_engine.migrate(engine)
    carried = rows(Records(engine))
    assert [(r["job_id"], r["verdict"], r["present"], r["told"], r["wrong"]) for r in carried] == [
        (1, "STAT", 0b100001, 1, 1),
        (3, "ROUTINE", 0, 63, 0),
    ]
    engine.dispose()


def _as_before(connection: Any) -> None:
    """Three jobs as version 0010 kept them: disagreed with, never analysed, agreed with."""
    columns = "patient_id, patient_name, accession_number, study_date, description"
    connection.execute(
        text(
            f"INSERT INTO studies (study_instance_uid, {columns}, first_received_at, last_received_at)"
            " VALUES ('1', '', '', '', '', '', 1, 1)"
        )
    )
    for number, found in ((1, SUBDURAL), (2, None), (3, findings())):
        connection.execute(
            text(
                "INSERT INTO series (series_instance_uid, study_instance_uid, modality, description, state,"
                " revision, instance_count, first_received_at, last_received_at)"
                " VALUES (:uid, '1', 'CT', '', 'ACCEPTED', 1, 0, 1, 1)"
            ).bindparams(uid=f"1.{number}")
        )
        job = {"id": number, "series_instance_uid": f"1.{number}", "study_instance_uid": "1", "revision": 1}
        job |= {"state": "FAILED", "attempts": 1, "created_at": 1.0}
        if found:
            job |= {"analysed_at": 5.0, "priority": found.priority, "findings": found.to_json()}
        connection.execute(insert(jobs).values(**job))
    for job, opinion in ((1, "DISAGREE"), (3, "AGREE")):
        connection.execute(
            text("INSERT INTO reviews VALUES (:job, 'anna', 6, :opinion, 'anna', 6)").bindparams(
                job=job, opinion=opinion
            )
        )
