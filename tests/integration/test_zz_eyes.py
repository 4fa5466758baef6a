from __future__ import annotations
from dataclasses import replace
from pathlib import Path
import pytest
from node.domain.lifecycle import JobState, SeriesState
from node.domain.errors import IllegalTransition, PermanentError
from node.store.arrivals import StoredFile
from tests.integration.test_settle import *
from tests.integration.test_settle import place
import tests.integration.test_priors as tp


def test_second_choice_when_first_was_replaced(place):
    for instances in whole_study().values():
        place.send(instances, T0)
    place.clock.tick(T0 + QUIET_S)
    (first,) = place.jobs()
    uid = first.series_instance_uid
    for one in head(uid, "Foot", body_part="FOOT"):
        file = StoredFile(f"new-{one.sop_instance_uid}", 1, "f" * 64)
        place.records.arrivals.record(one, file, "assoc0", T0 + QUIET_S)
    for t in range(2, 60):
        place.clock.tick(T0 + QUIET_S * t)
    print(place.series(), [(j.series_instance_uid, j.state, j.reason) for j in place.jobs()])
    assert any(j.state is JobState.QUEUED for j in place.jobs())

def test_ct_without_modality_is_answered(place):
    place.send([replace(i, modality="") for i in whole_study()["bone"]], T0)
    place.clock.tick(T0 + QUIET_S)
    place.clock.tick(T0 + MAX_WAIT_S)
    assert len(place.jobs()) == 1

def test_reanalyse_old(place):
    slices = head("1.2.2", "Head")
    place.send(slices[:-1], T0)
    place.clock.tick(T0 + QUIET_S)
    (job,) = place.jobs()
    place.analyse(job.id, T0 + 20)
    place.send(slices[-1:], T0 + 30)
    place.clock.tick(T0 + 30 + QUIET_S)
    first, second = place.jobs()
    place.analyse(second.id, T0 + 60)
    with pytest.raises(IllegalTransition):
        place.records.jobs.reanalyse(first.id)

def test_series_in_two_studies(place):
    place.send(head("1.2.2", "Head"), T0)
    others = [replace(i, sop_instance_uid="9" + i.sop_instance_uid[1:], study_instance_uid="1.3") for i in head("1.2.2", "Head")]
    with pytest.raises(PermanentError):
        place.send(others, T0 + 1)

def test_prior_after_retention(tmp_path):
    from node.settings import Settings, Spool as SpoolSettings
    from node.retention import Retention
    from node.spool import Spool
    from node.store.records import open_records
    records = open_records(Settings(data_dir=tmp_path))
    p = tp.Place(records, Spool(tmp_path / "spool", 0))
    old, _ = p.analyse("old", 8.0, **tp.OLD)
    p.composer.round()
    with records.engine.begin() as c:
        from sqlalchemy import update
        from node.store.tables import deliveries
        c.execute(update(deliveries).values(state="SENT"))
    removed = Retention(Settings(spool=SpoolSettings(keep_days=1)), records, p.spool).round(1e9, lambda: 0.0)
    assert removed
    _, prior = p.analyse("new", 12.0)
    assert prior.found
