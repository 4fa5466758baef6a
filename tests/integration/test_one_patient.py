"""Nothing is told of one patient that was read from the images of two, whichever way they come together."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from node.domain.findings import Priority
from node.domain.lifecycle import JobState
from tests.integration.test_unusual_series import Node
from tests.scanned import scan

ROUND_S = 60


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def of_two() -> tuple[list[Dataset], Dataset]:
    """A series of one patient, and its lowest slice, which bears the name of another."""
    stranger, *own = scan()
    stranger.PatientID, stranger.PatientName = "SOMEBODY", "ELSE^SOMEBODY"
    return own, stranger


def decided(node: Node) -> list[int]:
    """The clock looks; the jobs that it rings for wait."""
    node.now += ROUND_S
    node.clock.tick(node.now)
    rung, node.bell.rung = node.bell.rung, []
    return rung


def test_a_job_that_waits_reads_no_slice_of_another_patient(node: Node) -> None:
    own, stranger = of_two()
    node.receive(*own)
    node.records.arrivals.close_association("a1", "released", node.now)
    (job_id,) = decided(node)
    node.receive(stranger)
    node.worker.run(job_id)
    node.composer.round()
    job = node.records.jobs.get(job_id)
    assert job and job.state is JobState.FAILED and job.reason and job.reason.code == "PATIENTS_MIXED"
    assert job.priority is None, "nobody was alarmed"
    assert not {"SOMEBODY", "PID123"} & set(job.reason.text.split())
    assert node.built(job) == {}, "a report would be filed under one of the two"
    assert node.records.jobs.to_report() == []
    assert decided(node) == []
    (incident,) = node.records.incidents.latest()
    assert incident["code"] == "PATIENTS_MIXED"


def test_an_admin_who_tries_again_does_not_mix_them_either(node: Node) -> None:
    own, stranger = of_two()
    node.receive(*own, stranger)
    (job,) = node.work(rounds=4)
    assert job.state is JobState.FAILED and node.built(job) == {}
    node.records.jobs.retry(job.id)
    (job,) = node.work()
    assert job.state is JobState.FAILED and job.reason and job.reason.code == "PATIENTS_MIXED"
    assert node.built(job) == {} and node.records.jobs.to_report() == []


def test_what_one_patient_was_found_to_have_is_told_though_another_comes(node: Node) -> None:
    """The analysis rests on the first patient's slices alone, and names that patient."""
    own, stranger = of_two()
    node.receive(*own)
    node.records.arrivals.close_association("a1", "released", node.now)
    (job_id,) = decided(node)
    node.worker.run(job_id)
    node.receive(stranger)
    node.composer.round()
    job = node.records.jobs.get(job_id)
    assert job and job.state is JobState.COMPOSED and job.priority is Priority.STAT
    (report,) = node.built(job)["sr"]
    assert report.PatientID == own[0].PatientID
