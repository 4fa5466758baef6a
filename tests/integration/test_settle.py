"""The clock, round by round at given times: what is complete, what is chosen, what is recovered and rung."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from node import settle
from node.domain.errors import IllegalTransition, TransientError
from node.domain.findings import Findings, ModelIdentity, Priority, Reason, Status
from node.domain.instance import Instance
from node.domain.lifecycle import JobState, SeriesState
from node.leases import LONGEST_LEASE_S
from node.liveness import process_name
from node.settings import Completeness, Settings
from node.settle import RING_AGAIN_S, Clock
from node.store.arrivals import StoredFile
from node.store.decisions import Gathered
from node.store.engine import writing
from node.store.jobs import Job
from node.store.records import Records, open_records
from node.store.tables import instances as instances_table
from node.store.tables import jobs as jobs_table

CT_IMAGE, CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"
STUDY = "1.2"
QUIET_S, MAX_WAIT_S = 10.0, 120.0
T0 = 1_000_000.0


def broken(*args: Any) -> Any:
    raise ZeroDivisionError("a header nobody thought of")


class Bell:
    """A doorbell that writes down who rang, or is out of order."""

    def __init__(self) -> None:
        self.rung: list[int] = []
        self.broken = False

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        """A head start is asked for, and nobody has time."""

    def along(self, series_uid: str) -> None:
        """Nobody has time for that either."""

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        if self.broken:
            raise TransientError("broker: gone")
        self.rung.append(job_id)


class Place:
    """A clock with its records and bell, and a modality that sends to them."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self.settings = settings
        self.records = records
        self.bell = Bell()
        self.seconds = 0.0
        self.clock = self.new_clock()
        self._associations = 0

    def new_clock(self) -> Clock:
        """One that measures time that passes by `seconds`, whatever the time of day is."""
        return Clock(self.settings, self.records, self.bell, lambda: self.seconds)  # type: ignore[arg-type]

    def pass_time(self, seconds: float, now: float) -> None:
        """Ticks for that many seconds, the last one at `now`."""
        self.clock.tick(now - seconds)
        while seconds > 0:
            step = min(seconds, 1.0)
            self.seconds, seconds = self.seconds + step, seconds - step
            self.clock.tick(now - seconds)

    def wait(self, seconds: float, now: float) -> None:
        """Two rounds a second, from `now` on."""
        for half in range(round(2 * seconds) + 1):
            self.clock.tick(now + half / 2)
            self.seconds += 0.5

    def unreported(self) -> int:
        """Jobs of which the PACS is still to hear."""
        with self.records.engine.connect() as connection:
            return len(
                connection.execute(select(jobs_table.c.id).where(jobs_table.c.reported_at.is_(None))).all()
            )

    def send(
        self, instances: Sequence[Instance], now: float, *, outcome: str | None = "released", of: str = ""
    ) -> str:
        """All at `now`, over an association of their own (or `of`); `outcome` None leaves it open."""
        name = of or f"assoc{self._associations}"
        self._associations += 1
        self.records.arrivals.open_association(name, process_name(), ("CT1", "10.0.0.1"), now)
        for one in instances:
            file = StoredFile(f"{one.sop_instance_uid}.dcm", 1, one.sop_instance_uid[-64:])
            self.records.arrivals.record(one, file, name, now)
        if outcome:
            self.records.arrivals.close_association(name, outcome, now)
        return name

    def series(self, study: str = STUDY) -> dict[str, SeriesState]:
        return {r.description: r.state for r in self.records.decisions.of_study(study)}

    def reason(self, of: str) -> str | None:
        found = self.records.decisions.reason_of(of)
        return found.code if found else None

    def jobs(self) -> list[Job]:
        ids = sorted(job["id"] for job in self.records.views.jobs())
        return [job for job_id in ids if (job := self.records.jobs.get(job_id))]

    def analyse(self, job_id: int, now: float) -> None:
        """A worker does the job, and its objects are stored."""
        assert self.records.jobs.claim(job_id, "other:1", now + 30, now)
        found = Findings(ModelIdentity("m", "1", "a"), "1.2.2", 1, Status.ANALYSED, priority=Priority.ROUTINE)
        assert self.records.jobs.store_analysis(job_id, "other:1", found, "m", now)
        made = self.records.jobs.get(job_id)
        assert made and self.records.jobs.store_objects(made, [], [], now)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = Settings(data_dir=tmp_path, completeness=Completeness(quiet_s=QUIET_S, max_wait_s=MAX_WAIT_S))
    records = open_records(settings)
    yield Place(settings, records)
    records.close()


def head(
    of: str, description: str, *, step_mm: float = 5.0, count: int = 30, study: str = STUDY, **changes: Any
) -> list[Instance]:
    """A series of axial slices through a head."""
    first = Instance(
        sop_instance_uid="",
        sop_class_uid=CT_IMAGE,
        series_instance_uid=of,
        study_instance_uid=study,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        manufacturer="SIEMENS",
        body_part="HEAD",
        series_description=description,
        kernel="H31s",
        rows=512,
        columns=512,
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=(0.45, 0.45),
        slice_thickness=step_mm,
        rescaled=True,
    )
    return [
        replace(
            first,
            sop_instance_uid=f"{of}.{n + 1}",
            instance_number=n + 1,
            position=(-115.0, -115.0, n * step_mm),
            **changes,
        )
        for n in range(count)
    ]


def whole_study(study: str = STUDY) -> dict[str, list[Instance]]:
    localizer = head(
        f"{study}.1", "Topogram", count=1, study=study, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
    )
    dose = [
        replace(
            head(f"{study}.5", "Patient Protocol", count=1, study=study)[0],
            sop_class_uid=CAPTURE,
            image_type=("DERIVED", "SECONDARY"),
            position=None,
            orientation=None,
        )
    ]
    return {
        "localizer": localizer,
        "5 mm": head(f"{study}.2", "Head 5.0 H31s", study=study),
        "1 mm": head(f"{study}.3", "Head 1.0 H31s", step_mm=1.0, count=150, study=study),
        "bone": head(f"{study}.4", "Head 1.0 H60s", step_mm=1.0, count=150, study=study, kernel="H60s"),
        "dose": dose,
    }


class TestComplete:
    def test_a_series_is_complete_once_it_is_quiet(self, place: Place) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + QUIET_S - 0.1)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        (job,) = place.jobs()
        assert (job.series_instance_uid, job.state) == ("1.2.2", JobState.QUEUED)
        assert place.bell.rung == [job.id]

    def test_an_instance_that_comes_meanwhile_begins_the_quiet_time_anew(self, place: Place) -> None:
        slices = head("1.2.2", "Head")
        place.send(slices[:20], T0)
        place.send(slices[20:], T0 + 9)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.clock.tick(T0 + 9 + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_an_open_association_is_waited_for_up_to_max_wait(self, place: Place) -> None:
        name = place.send(head("1.2.2", "Head"), T0, outcome=None)
        place.clock.tick(T0 + MAX_WAIT_S - 1)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.records.arrivals.close_association(name, "released", T0 + MAX_WAIT_S - 1)
        place.clock.tick(T0 + MAX_WAIT_S - 0.5)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_an_association_that_stays_open_is_not_waited_for_longer(self, place: Place) -> None:
        place.send(head("1.2.2", "Head"), T0, outcome=None)
        place.clock.tick(T0 + MAX_WAIT_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_an_open_association_that_moved_on_holds_nothing_up(self, place: Place) -> None:
        name = place.send(head("1.2.2", "Head"), T0, outcome=None)
        place.send(head("9.9.2", "Other", study="9.9"), T0 + 1, outcome=None, of=name)
        place.clock.tick(T0 + 1 + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        assert place.series("9.9") == {"Other": SeriesState.RECEIVING}

    @pytest.mark.parametrize("trouble", ["aborted", "gap"])
    def test_what_broke_off_or_has_gaps_is_waited_for_up_to_max_wait(
        self, trouble: str, place: Place
    ) -> None:
        slices = head("1.2.2", "Head")
        if trouble == "gap":
            del slices[14]
        place.send(slices, T0, outcome="aborted" if trouble == "aborted" else "released")
        place.clock.tick(T0 + MAX_WAIT_S - 1)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.clock.tick(T0 + MAX_WAIT_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_the_missing_slice_that_comes_after_all_ends_the_wait(self, place: Place) -> None:
        slices = head("1.2.2", "Head")
        place.send([*slices[:14], *slices[15:]], T0, outcome="aborted")
        place.clock.tick(T0 + 50)
        place.send([slices[14]], T0 + 50)
        place.clock.tick(T0 + 50 + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        assert place.records.decisions.of_study(STUDY)[0].revision == 1


class TestDecide:
    def test_a_whole_study_gets_one_job_and_every_other_series_its_reason(self, place: Place) -> None:
        for moment, slices in enumerate(whole_study().values()):
            place.send(slices, T0 + moment)
        place.clock.tick(T0 + 4 + QUIET_S)
        (job,) = place.jobs()
        assert job.series_instance_uid == "1.2.2"
        assert {uid: place.reason(f"1.2.{uid}") for uid in (1, 2, 3, 4, 5)} == {
            1: "LOCALIZER",
            2: None,
            3: "OTHER_SERIES_CHOSEN",
            4: "BONE_KERNEL",
            5: "NOT_CT",
        }
        place.clock.tick(T0 + 1000)
        assert len(place.jobs()) == 1

    def test_nothing_is_decided_while_a_series_of_the_study_still_arrives(self, place: Place) -> None:
        place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0)
        place.send(head("1.2.2", "thick"), T0 + 8)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"thin": SeriesState.COMPLETE, "thick": SeriesState.RECEIVING}
        place.clock.tick(T0 + 8 + QUIET_S)
        assert place.series() == {"thin": SeriesState.SKIPPED, "thick": SeriesState.ACCEPTED}

    def test_a_study_that_changed_since_it_was_looked_for_is_left_for_the_next_round(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """More of it came, or another clock decided it."""
        place.send(head("1.2.2", "Head"), T0)
        monkeypatch.setattr(place.records.decisions, "undecided_studies", lambda: [STUDY])
        place.clock.tick(T0 + 1)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + QUIET_S + 1)
        assert place.series() == {"Head": SeriesState.ACCEPTED} and len(place.jobs()) == 1
        assert "cannot be judged" not in caplog.text

    def test_a_late_slice_is_a_new_revision_that_supersedes_the_waiting_job(self, place: Place) -> None:
        slices = head("1.2.2", "Head")
        place.send(slices[:-1], T0)
        place.clock.tick(T0 + QUIET_S)
        (old,) = place.jobs()
        place.send(slices[-1:], T0 + 60)
        place.clock.tick(T0 + 60)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        assert [j.state for j in place.jobs()] == [JobState.QUEUED]
        place.clock.tick(T0 + 60 + QUIET_S)
        first, second = place.jobs()
        assert (first.id, first.state) == (old.id, JobState.SUPERSEDED)
        assert (second.series_instance_uid, second.revision, second.state) == ("1.2.2", 2, JobState.QUEUED)
        assert place.bell.rung[-1] == second.id

    def test_a_late_slice_of_a_reported_series_is_analysed_anew_and_the_report_stands(
        self, place: Place
    ) -> None:
        slices = head("1.2.2", "Head")
        place.send(slices[:-1], T0)
        place.clock.tick(T0 + QUIET_S)
        place.analyse(place.jobs()[0].id, T0 + 20)
        place.send(slices[-1:], T0 + 60)
        place.clock.tick(T0 + 60 + QUIET_S)
        assert [(j.revision, j.state) for j in place.jobs()] == [
            (1, JobState.COMPOSED),
            (2, JobState.QUEUED),
        ]

    def test_what_is_outdated_is_not_analysed_again(self, place: Place) -> None:
        """It would read the newer images, and tell of them under the UIDs of the older report."""
        slices = head("1.2.2", "Head")
        place.send(slices[:-1], T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        place.analyse(first.id, T0 + 20)
        place.send(slices[-1:], T0 + 30)
        place.clock.tick(T0 + 30 + QUIET_S)
        second = place.jobs()[1]
        place.analyse(second.id, T0 + 60)
        with pytest.raises(IllegalTransition, match="revision 2 came since"):
            place.records.jobs.reanalyse(first.id)
        place.records.jobs.reanalyse(second.id)
        assert [job.state for job in place.jobs()] == [JobState.COMPOSED, JobState.QUEUED]

    @pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
    def test_what_images_came_for_since_is_not_tried_again(self, state: JobState, place: Place) -> None:
        """It would read the images of now, and report them as those of the earlier revision."""
        slices = head("1.2.2", "Head")
        place.send(slices[:-1], T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        if state is JobState.CANCELLED:
            place.records.jobs.cancel(first.id)
        else:
            assert place.records.jobs.claim(first.id, "w:1", T0 + 1e6, T0 + 20)
            assert place.records.jobs.fail(first.id, Reason("BROKEN", "broken"), "w:1")
        place.send(slices[-1:], T0 + 30)
        with pytest.raises(IllegalTransition, match="revision 2 came since"):
            place.records.jobs.retry(first.id)
        assert [job.state for job in place.jobs()] == [state]

    def test_late_slices_keep_the_series_that_was_analysed_even_where_another_looks_better(
        self, place: Place
    ) -> None:
        thin = head("1.2.3", "thin", step_mm=1.0, count=150)
        place.send(thin[:-1], T0)
        place.clock.tick(T0 + QUIET_S)
        place.send(thin[-1:], T0 + 60)
        place.send(head("1.2.2", "thick"), T0 + 60)
        place.clock.tick(T0 + 60 + QUIET_S)
        assert [(j.series_instance_uid, j.revision) for j in place.jobs()] == [("1.2.3", 1), ("1.2.3", 2)]
        assert place.reason("1.2.2") == "OTHER_SERIES_CHOSEN"

    def test_a_series_that_comes_after_the_analysis_does_not_displace_it(self, place: Place) -> None:
        place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0)
        place.clock.tick(T0 + QUIET_S)
        place.analyse(place.jobs()[0].id, T0 + 20)
        place.send(head("1.2.2", "thick"), T0 + 60)
        place.clock.tick(T0 + 60 + QUIET_S)
        assert len(place.jobs()) == 1
        assert place.reason("1.2.2") == "OTHER_SERIES_CHOSEN"
        assert place.series()["thin"] is SeriesState.ACCEPTED

    def test_a_series_that_comes_after_a_failed_one_is_analysed(self, place: Place) -> None:
        place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0)
        place.clock.tick(T0 + QUIET_S)
        (old,) = place.jobs()
        place.records.jobs.claim(old.id, "other:1", T0 + 99, T0 + 11)
        place.records.jobs.fail(old.id, Reason("BROKEN", "b"), "other:1")
        place.send(head("1.2.2", "thick"), T0 + 60)
        place.clock.tick(T0 + 60 + QUIET_S)
        assert [(j.series_instance_uid, j.state) for j in place.jobs()] == [
            ("1.2.3", JobState.FAILED),
            ("1.2.2", JobState.QUEUED),
        ]

    def test_studies_do_not_touch_one_another(self, place: Place) -> None:
        for study in ("1.2", "1.3"):
            for slices in whole_study(study).values():
                place.send(slices, T0)
        place.clock.tick(T0 + QUIET_S)
        assert sorted(j.series_instance_uid for j in place.jobs()) == ["1.2.2", "1.3.2"]

    def test_a_study_that_cannot_be_decided_does_not_stop_the_others(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = settle.choose

        def choose(series: Any, rules: Any) -> Any:
            if any(uid.startswith("1.2.") for uid in series):
                raise ZeroDivisionError("a header nobody thought of")
            return real(series, rules)

        monkeypatch.setattr(settle, "choose", choose)
        place.send(head("1.2.2", "bad"), T0)
        place.send(head("1.3.2", "good", study="1.3"), T0 + 1)
        place.clock.tick(T0 + 1 + QUIET_S)
        assert [j.series_instance_uid for j in place.jobs()] == ["1.3.2"]
        assert place.bell.rung == [place.jobs()[0].id]
        assert place.series() == {"bad": SeriesState.COMPLETE}

    def test_a_series_that_cannot_be_judged_does_not_stop_the_others(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = settle.completeness

        def completeness(evidence: Any, *args: Any) -> Any:
            if evidence.instances[0].study_instance_uid == STUDY:
                raise ZeroDivisionError("a header nobody thought of")
            return real(evidence, *args)

        monkeypatch.setattr(settle, "completeness", completeness)
        place.send(head("1.2.2", "bad"), T0)
        place.send(head("1.3.2", "good", study="1.3"), T0 + 1)
        place.clock.tick(T0 + 1 + QUIET_S)
        assert [j.series_instance_uid for j in place.jobs()] == ["1.3.2"]

    def test_a_study_that_breaks_the_clock_for_good_is_answered_as_not_analysed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(settle, "choose", broken)
        place.send(head("1.2.2", "bad"), T0)
        place.wait(13, T0 + QUIET_S)
        assert place.series() == {"bad": SeriesState.COMPLETE}, "may still be a fluke"
        assert caplog.text.count("study 1.2 cannot be judged") == 4, "not in every round"
        place.wait(5, T0 + QUIET_S + 13)
        assert place.series() == {"bad": SeriesState.SKIPPED} and place.reason("1.2.2") == "NOT_JUDGED"
        assert [row["code"] for row in place.records.incidents.latest()] == ["NOT_JUDGED"]
        place.clock.tick(T0 + MAX_WAIT_S + 1)
        assert [(j.state, j.series_instance_uid) for j in place.jobs()] == [(JobState.FAILED, "1.2.2")]
        assert place.unreported() == 1

    def test_a_study_that_broke_the_clock_by_a_fluke_is_analysed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.send(head("1.2.2", "good"), T0)
        with monkeypatch.context() as patch:
            patch.setattr(settle, "choose", broken)
            place.wait(13, T0 + QUIET_S)
        place.wait(5, T0 + QUIET_S + 13)
        assert place.series() == {"good": SeriesState.ACCEPTED} and place.records.incidents.latest() == []

    def test_a_study_whose_answer_breaks_the_clock_is_closed_in_silence(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing goes to the PACS of a study of which not even the patient can be judged."""
        monkeypatch.setattr(settle, "choose", broken)
        place.send(head("1.2.2", "bad"), T0)
        place.wait(18, T0 + QUIET_S)
        monkeypatch.setattr(settle, "best_refused", broken)
        place.wait(18, T0 + MAX_WAIT_S + 1)
        assert [j.state for j in place.jobs()] == [JobState.FAILED] and place.unreported() == 0
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["times"]) == ("NOT_JUDGED", 2)

    def test_a_series_whose_completeness_breaks_the_clock_is_taken_after_max_wait(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settle, "completeness", broken)
        place.send(head("1.2.2", "Head"), T0)
        place.wait(MAX_WAIT_S - QUIET_S - 1, T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.RECEIVING}
        place.wait(62, T0 + MAX_WAIT_S - 1)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        assert place.records.decisions.notes("1.2.2") == ("whether all of it came could not be judged",)

    def test_a_head_start_that_breaks_keeps_nothing_from_completing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settle.HeadStart, "look", broken)
        place.send(head("1.2.2", "Head"), T0)
        place.wait(QUIET_S, T0)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_a_series_that_keeps_arriving_holds_the_others_up_for_max_wait_at_most(
        self, place: Place
    ) -> None:
        study = whole_study()
        slow = study.pop("bone")
        for instances in study.values():
            place.send(instances, T0)
        place.send(slow[:1], T0 + 1)
        place.clock.tick(T0 + QUIET_S)
        now = T0 + 1
        for one in slow[1:]:
            now += QUIET_S - 1
            place.send([one], now)
            place.clock.tick(now)
            if now < T0 + QUIET_S + MAX_WAIT_S:
                assert place.jobs() == []
            else:
                break
        assert [job.state for job in place.jobs()] == [JobState.QUEUED]

    def test_the_next_best_series_is_taken_when_the_chosen_one_cannot_be_analysed(self, place: Place) -> None:
        for instances in whole_study().values():
            place.send(instances, T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        assert place.records.jobs.claim(first.id, "other:1", T0 + 60, T0 + 20)
        place.records.jobs.fail(first.id, Reason("PIXELS_UNDECODABLE", "broken"), "other:1")
        place.clock.tick(T0 + 30)
        place.clock.tick(T0 + 31)
        failed, second = place.jobs()
        assert (failed.state, second.state) == (JobState.FAILED, JobState.QUEUED)
        assert second.series_instance_uid != first.series_instance_uid
        place.records.jobs.claim(second.id, "other:1", T0 + 90, T0 + 40)
        place.records.jobs.fail(second.id, Reason("PIXELS_UNDECODABLE", "broken"), "other:1")
        for later in range(50, 60):
            place.clock.tick(T0 + later)
        assert len(place.jobs()) == 2  # nothing else is readable, and nothing is tried again

    def test_the_next_best_series_is_taken_when_the_chosen_one_was_replaced_by_something_else(
        self, place: Place
    ) -> None:
        for instances in whole_study().values():
            place.send(instances, T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        for one in head(first.series_instance_uid, "Foot", body_part="FOOT"):
            file = StoredFile(f"new-{one.sop_instance_uid}", 1, "f" * 64)
            place.records.arrivals.record(one, file, "assoc0", T0 + 5 * MAX_WAIT_S)
        place.clock.tick(T0 + 5 * MAX_WAIT_S + 1)
        assert [job.state for job in place.jobs()] == [JobState.SUPERSEDED], "what it became comes first"
        for later_s in (QUIET_S, QUIET_S + 1, QUIET_S + 2):
            place.clock.tick(T0 + 5 * MAX_WAIT_S + later_s)
        before, second = place.jobs()
        assert (before.state, second.state) == (JobState.SUPERSEDED, JobState.QUEUED)
        assert second.series_instance_uid != first.series_instance_uid

    def test_an_admin_who_cancels_gets_no_second_choice(self, place: Place) -> None:
        for instances in whole_study().values():
            place.send(instances, T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        place.records.jobs.cancel(first.id)
        place.clock.tick(T0 + 30)
        assert len(place.jobs()) == 1

    def test_a_resend_heals_an_association_that_broke_off(self, place: Place) -> None:
        slices = head("1.2.2", "Head 5.0 soft")
        place.send(slices, T0, outcome="aborted")
        place.send(slices, T0 + 5)
        place.clock.tick(T0 + QUIET_S + 5)
        assert place.series() == {"Head 5.0 soft": SeriesState.ACCEPTED}


class TestNotAnalysed:
    def test_a_study_with_nothing_readable_is_answered_once_after_max_wait(self, place: Place) -> None:
        study = whole_study()
        place.send(study["localizer"], T0)
        place.send(study["bone"], T0)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == dict.fromkeys(("Topogram", "Head 1.0 H60s"), SeriesState.SKIPPED)
        place.clock.tick(T0 + MAX_WAIT_S - 0.1)
        assert place.jobs() == []
        for _ in range(3):
            place.clock.tick(T0 + MAX_WAIT_S)
        (job,) = place.jobs()
        assert (job.state, job.series_instance_uid) == (JobState.FAILED, "1.2.4")
        assert job.reason and job.reason.code == "BONE_KERNEL"
        assert [j.id for j in place.records.jobs.to_report()] == [job.id]
        assert place.bell.rung == []

    def test_a_readable_series_that_comes_after_the_answer_is_analysed(self, place: Place) -> None:
        place.send(whole_study()["bone"], T0)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + MAX_WAIT_S)
        place.send(head("1.2.2", "soft"), T0 + 200)
        place.clock.tick(T0 + 200 + QUIET_S)
        assert [(j.series_instance_uid, j.state) for j in place.jobs()] == [
            ("1.2.4", JobState.FAILED),
            ("1.2.2", JobState.QUEUED),
        ]

    def test_a_ct_whose_header_leaves_its_modality_out_is_answered_too(self, place: Place) -> None:
        place.send([replace(one, modality="") for one in whole_study()["bone"]], T0)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + MAX_WAIT_S)
        (job,) = place.jobs()
        assert job.reason and job.reason.code == "BONE_KERNEL"

    def test_a_study_without_any_ct_gets_no_job(self, place: Place) -> None:
        mr = [
            replace(i, modality="MR", sop_class_uid="1.2.840.10008.5.1.4.1.1.4") for i in head("1.2.2", "T1")
        ]
        place.send(mr, T0)
        for later in (QUIET_S, MAX_WAIT_S, 10 * MAX_WAIT_S):
            place.clock.tick(T0 + later)
        assert place.series() == {"T1": SeriesState.SKIPPED}
        assert place.reason("1.2.2") == "NOT_CT"
        assert place.jobs() == []


def test_a_series_of_three_thousand_slices_is_judged_like_any_other(place: Place) -> None:
    series = head("1.2.2", "Head 0.05", step_mm=0.05, count=3000)
    place.send(series[:1], T0)
    with writing(place.records.engine) as connection:
        (first,) = connection.execute(select(instances_table)).mappings()
        rows = [{**first, "sop_instance_uid": i.sop_instance_uid, "header": i.to_json()} for i in series]
        connection.execute(insert(instances_table), rows[1:])
    place.clock.tick(T0 + QUIET_S)
    assert place.series() == {"Head 0.05": SeriesState.ACCEPTED}


def test_a_series_that_is_slow_to_judge_is_looked_at_less_often(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send(head("1.2.2", "Head")[::5], T0, outcome=None)
    looks, real = [], place.records.decisions.gather

    def gather(uid: str) -> Gathered:
        looks.append(place.seconds)
        place.seconds += 1.0  # it takes so long
        return real(uid)

    monkeypatch.setattr(place.records.decisions, "gather", gather)
    for _ in range(25):
        place.clock.tick(T0 + QUIET_S)
        place.seconds += 0.5
    assert len(looks) == 2, "one second in ten"


class TestPatients:
    def persons(self, *names: str) -> list[Instance]:
        """A series that names each of them in turn."""
        series = head("1.2.2", "Head")
        return [replace(one, patient_id=names[n % len(names)]) for n, one in enumerate(series)]

    def test_two_patients_under_one_study_uid_are_never_analysed_and_said_so(self, place: Place) -> None:
        place.send([replace(one, patient_id="A") for one in head("1.2.2", "Head")], T0)
        place.send([replace(one, patient_id="B") for one in head("1.2.3", "Head too")], T0)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.SKIPPED, "Head too": SeriesState.SKIPPED}
        assert place.reason("1.2.2") == place.reason("1.2.3") == "PATIENTS_MIXED"
        assert place.jobs() == []
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == "PATIENTS_MIXED"
        place.clock.tick(T0 + MAX_WAIT_S)
        (job,) = place.jobs()
        assert job.state is JobState.FAILED and job.reason and job.reason.code == "PATIENTS_MIXED"
        assert not {"A", "B"} & set(job.reason.text.split()), "the words name no other patient"
        assert [j.id for j in place.records.jobs.to_report()] == [job.id]

    def test_a_series_of_two_patients_gets_no_report_which_would_be_filed_under_one(
        self, place: Place
    ) -> None:
        place.send(self.persons("A", "B"), T0)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + MAX_WAIT_S)
        (job,) = place.jobs()
        assert job.state is JobState.FAILED and place.records.jobs.to_report() == []
        place.clock.tick(T0 + 2 * MAX_WAIT_S)
        assert len(place.jobs()) == 1

    def test_the_study_is_analysed_once_every_slice_came_again_with_the_right_patient(
        self, place: Place
    ) -> None:
        place.send(self.persons("A", "B"), T0)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + MAX_WAIT_S)
        for one in self.persons("A")[1::2]:
            file = StoredFile(f"new-{one.sop_instance_uid}", 1, "f" * 64)
            place.records.arrivals.record(one, file, "assoc0", T0 + MAX_WAIT_S)
        place.clock.tick(T0 + MAX_WAIT_S + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}
        assert [job.state for job in place.jobs()] == [JobState.SUPERSEDED, JobState.QUEUED]

    @pytest.mark.parametrize("same_series", [True, False])
    def test_slices_of_another_patient_that_come_after_the_analysis_are_an_incident(
        self, same_series: bool, place: Place
    ) -> None:
        """The report that stands rests on one patient alone; nothing of the newcomer is analysed."""
        *most, last = head("1.2.2", "Head", patient_id="A")
        place.send(most, T0)
        place.clock.tick(T0 + QUIET_S)
        assert [job.state for job in place.jobs()] == [JobState.QUEUED]
        late = [last] if same_series else head("1.2.3", "Head too")
        place.send([replace(one, patient_id="B") for one in late], T0 + MAX_WAIT_S)
        for _ in range(3):
            place.clock.tick(T0 + 2 * MAX_WAIT_S)
        (incident,) = place.records.incidents.latest()
        assert incident["code"] == "PATIENTS_MIXED"
        assert incident["series_instance_uid"] == ("1.2.2" if same_series else "1.2.3")
        assert len(place.jobs()) == 1, "no job for the mixture"

    def test_slices_that_come_after_the_refusal_of_a_mixed_study_are_an_incident_again(
        self, place: Place
    ) -> None:
        first, *others = self.persons("A", "B")
        place.send(others, T0)
        place.clock.tick(T0 + QUIET_S)
        place.clock.tick(T0 + MAX_WAIT_S)
        place.send([first], T0 + 2 * MAX_WAIT_S)
        place.clock.tick(T0 + 2 * MAX_WAIT_S + QUIET_S)
        (incident,) = place.records.incidents.latest()
        assert (incident["code"], incident["times"]) == ("PATIENTS_MIXED", 2)
        assert place.records.jobs.to_report() == []

    def test_another_spelling_of_the_name_is_no_other_patient(self, place: Place) -> None:
        first, *others = head("1.2.2", "Head", patient_id="A", patient_name="Mueller^Jorg")
        place.send([replace(first, patient_name="Müller^Jörg"), *others], T0)
        place.clock.tick(T0 + QUIET_S)
        assert place.series() == {"Head": SeriesState.ACCEPTED}

    def test_a_patient_without_an_id_is_told_by_name(self, place: Place) -> None:
        place.send([replace(one, patient_name="A^A") for one in head("1.2.2", "Head")], T0)
        place.send([replace(one, patient_name="B^B") for one in head("1.2.3", "Head too")], T0)
        place.clock.tick(T0 + QUIET_S)
        assert place.reason("1.2.2") == "PATIENTS_MIXED"

    def test_a_replaced_study_that_is_refused_now_is_answered_though_it_had_a_job(self, place: Place) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + QUIET_S)
        for one in head("1.2.2", "Foot", body_part="FOOT"):
            file = StoredFile(f"new-{one.sop_instance_uid}", 1, "f" * 64)
            place.records.arrivals.record(one, file, "assoc0", T0 + QUIET_S)
        place.clock.tick(T0 + 2 * QUIET_S)
        place.clock.tick(T0 + QUIET_S + MAX_WAIT_S)
        assert [job.state for job in place.jobs()] == [JobState.SUPERSEDED, JobState.FAILED]


def replaced(place: Place, instances: Sequence[Instance], now: float) -> None:
    """Other content under the same UIDs."""
    for one in instances:
        file = StoredFile(f"new-{one.sop_instance_uid}", 1, "f" * 64)
        place.records.arrivals.record(one, file, "assoc0", now)


class TestLongAgo:
    def test_a_job_that_fails_days_later_gets_its_second_choice_within_a_minute(self, place: Place) -> None:
        for instances in whole_study().values():
            place.send(instances, T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        later = T0 + 3 * 86400.0
        assert place.records.jobs.claim(first.id, "other:1", later + 60, later)
        place.records.jobs.fail(first.id, Reason("PIXELS_UNDECODABLE", "broken"), "other:1")
        place.pass_time(60.0, later + 60)
        failed, second = place.jobs()
        assert (failed.state, second.state) == (JobState.FAILED, JobState.QUEUED)


class TestOutdated:
    """A report stands in the PACS, and the images it speaks of are others now."""

    def test_what_was_reported_and_is_refused_now_is_answered(self, place: Place) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + QUIET_S)
        place.analyse(place.jobs()[0].id, T0 + 20)
        replaced(place, head("1.2.2", "Foot", body_part="FOOT"), T0 + 60)
        for later_s in (QUIET_S, MAX_WAIT_S, MAX_WAIT_S + 1):
            place.clock.tick(T0 + 60 + later_s)
        before, after = place.jobs()
        assert (before.state, after.state) == (JobState.COMPOSED, JobState.FAILED)
        assert (after.revision, after.reason and after.reason.code) == (2, "NOT_HEAD")

    def test_the_next_best_series_is_taken_then(self, place: Place) -> None:
        place.send(head("1.2.2", "Head"), T0)
        place.send(head("1.2.3", "thin", step_mm=1.0, count=150), T0)
        place.clock.tick(T0 + QUIET_S)
        (first,) = place.jobs()
        place.analyse(first.id, T0 + 20)
        replaced(place, head(first.series_instance_uid, "Foot", body_part="FOOT"), T0 + 60)
        for later_s in (QUIET_S, QUIET_S + 1, QUIET_S + 2):
            place.clock.tick(T0 + 60 + later_s)
        before, second = place.jobs()
        assert (before.state, second.state) == (JobState.COMPOSED, JobState.QUEUED)
        assert second.series_instance_uid == "1.2.3"

    def test_a_slice_that_comes_again_after_retention_takes_no_report_back(self, place: Place) -> None:
        slices = head("1.2.2", "Head")
        place.send(slices, T0)
        place.clock.tick(T0 + QUIET_S)
        place.analyse(place.jobs()[0].id, T0 + 20)
        with writing(place.records.engine) as connection:
            connection.execute(update(jobs_table).values(routing={}))  # nobody is to get it
        (study,) = place.records.keeping.removable(T0 + 1e6, ())
        removal = place.records.keeping.begin(study, (), "age", (), T0 + 1e6)
        assert removal and removal.paths
        place.send(slices[:1], T0 + 2e6)
        for later_s in (QUIET_S, MAX_WAIT_S, MAX_WAIT_S + 1):
            place.clock.tick(T0 + 2e6 + later_s)
        assert place.reason("1.2.2") == "TOO_FEW_SLICES"
        assert [job.state for job in place.jobs()] == [JobState.COMPOSED]


def dead_process() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process_name(process.pid)


class TestRecover:
    def running(self, place: Place, owner: str, lease_s: float = 30.0) -> int:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + QUIET_S)
        (job,) = place.jobs()
        assert place.records.jobs.claim(job.id, owner, T0 + QUIET_S + lease_s, T0 + QUIET_S)
        place.bell.rung.clear()
        return job.id

    def state(self, place: Place, job_id: int) -> JobState:
        job = place.records.jobs.get(job_id)
        assert job
        return job.state

    def test_a_job_under_a_living_lease_is_left_alone(self, place: Place) -> None:
        job_id = self.running(place, "other-host:1")
        place.pass_time(30, T0 + QUIET_S + 30)
        assert self.state(place, job_id) is JobState.RUNNING

    def test_an_expired_lease_puts_the_job_back_and_rings_at_once(self, place: Place) -> None:
        job_id = self.running(place, "other-host:1")
        place.pass_time(30.1, T0 + QUIET_S + 30.1)
        assert self.state(place, job_id) is JobState.QUEUED
        assert place.bell.rung == [job_id]

    def test_a_clock_that_jumps_forward_takes_no_job_from_a_worker_that_renews(self, place: Place) -> None:
        job_id = self.running(place, "other-host:1")
        for minute in range(5):
            place.clock.tick(T0 + 3600 + 60 * minute)
            place.seconds += 5
            place.records.jobs.renew(job_id, "other-host:1", T0 + QUIET_S + 30 + 5 * minute)
        assert self.state(place, job_id) is JobState.RUNNING

    def test_a_database_that_was_away_takes_no_job_from_a_worker_that_could_not_renew(
        self, place: Place
    ) -> None:
        """Nor does a virtual machine that stood still, with the clock and the worker in it."""
        job_id = self.running(place, "other-host:1")
        place.clock.tick(T0 + QUIET_S)
        place.seconds += 300  # in which nobody could look, either
        place.clock.tick(T0 + QUIET_S + 300)
        assert self.state(place, job_id) is JobState.RUNNING
        assert place.records.jobs.renew(job_id, "other-host:1", T0 + QUIET_S + 330)
        place.pass_time(20, T0 + QUIET_S + 320)
        assert self.state(place, job_id) is JobState.RUNNING
        place.pass_time(20, T0 + QUIET_S + 340)
        assert self.state(place, job_id) is JobState.QUEUED, "it did not renew again"

    def test_a_clock_that_is_set_back_keeps_no_job_of_a_dead_worker(self, place: Place) -> None:
        job_id = self.running(place, "other-host:1")
        place.pass_time(LONGEST_LEASE_S - 1, T0 - 3600)
        assert self.state(place, job_id) is JobState.RUNNING
        place.pass_time(2, T0 - 3600)
        assert self.state(place, job_id) is JobState.QUEUED

    def test_a_worker_of_this_host_that_died_loses_its_job_at_once(self, place: Place) -> None:
        job_id = self.running(place, dead_process())
        place.clock.tick(T0 + QUIET_S + 0.1)
        assert self.state(place, job_id) is JobState.QUEUED
        assert place.bell.rung == [job_id]

    def test_a_worker_of_this_host_that_lives_keeps_it(self, place: Place) -> None:
        job_id = self.running(place, process_name())
        place.clock.tick(T0 + QUIET_S + 0.1)
        assert self.state(place, job_id) is JobState.RUNNING

    def test_a_dead_pid_of_another_host_says_nothing(self, place: Place) -> None:
        pid = dead_process().rpartition(":")[2]
        job_id = self.running(place, f"not-{socket.gethostname()}:{pid}")
        place.clock.tick(T0 + QUIET_S + 0.1)
        assert self.state(place, job_id) is JobState.RUNNING

    def test_a_job_that_keeps_killing_its_worker_is_given_up_after_max_attempts(self, place: Place) -> None:
        job_id = self.running(place, dead_process())
        now = T0 + QUIET_S
        for _ in range(place.settings.model.max_attempts - 1):
            place.clock.tick(now := now + 1)
            assert self.state(place, job_id) is JobState.QUEUED
            assert place.records.jobs.claim(job_id, dead_process(), now + 30, now)
        place.clock.tick(now + 1)
        job = place.records.jobs.get(job_id)
        assert job and job.state is JobState.FAILED
        assert job.reason and job.reason.code == "WORKER_LOST"
        assert [j.id for j in place.records.jobs.to_report()] == [job_id]

    def test_a_job_whose_lease_was_renewed_meanwhile_is_not_given_up(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker that was held up for a moment renews between the clock's look and its verdict."""
        place.settings = place.settings.model_copy(
            update={"model": place.settings.model.model_copy(update={"max_attempts": 1})}
        )
        place.clock = place.new_clock()
        job_id = self.running(place, "other-host:1")
        real = place.records.jobs.running

        def look_then_renew() -> list[Job]:
            seen = real()
            place.records.jobs.renew(job_id, "other-host:1", T0 + 1000)
            return seen

        monkeypatch.setattr(place.records.jobs, "running", look_then_renew)
        place.pass_time(31, T0 + QUIET_S + 31)
        assert self.state(place, job_id) is JobState.RUNNING


class TestRing:
    def queued(self, place: Place) -> int:
        place.send(head("1.2.2", "Head"), T0)
        place.clock.tick(T0 + QUIET_S)
        return place.jobs()[0].id

    def test_a_broker_that_is_down_loses_nothing(self, place: Place) -> None:
        place.bell.broken = True
        job_id = self.queued(place)
        place.clock.tick(T0 + QUIET_S + 0.5)
        assert [j.state for j in place.jobs()] == [JobState.QUEUED]
        place.bell.broken = False
        place.clock.tick(T0 + QUIET_S + 1)
        assert place.bell.rung == [job_id]

    def test_a_job_that_nobody_takes_is_rung_again_after_a_while_and_not_before(self, place: Place) -> None:
        job_id = self.queued(place)
        place.clock.tick(T0 + QUIET_S + RING_AGAIN_S)
        assert place.bell.rung == [job_id]
        place.clock.tick(T0 + QUIET_S + RING_AGAIN_S + 0.1)
        assert place.bell.rung == [job_id, job_id]

    def test_a_job_that_was_taken_is_not_rung_again(self, place: Place) -> None:
        job_id = self.queued(place)
        place.records.jobs.claim(job_id, "other:1", T0 + 9999, T0 + 11)
        place.clock.tick(T0 + 500)
        assert place.bell.rung == [job_id]


def test_the_clock_goes_on_when_the_database_is_away_for_a_round(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[float] = []

    def tick(now: float) -> None:
        rounds.append(now)
        if len(rounds) == 1:
            raise TransientError("database: gone")

    monkeypatch.setattr(place.clock, "tick", tick)
    settle.run(place.clock, lambda seconds: len(rounds) >= 3)
    assert len(rounds) == 3


def test_a_tick_that_meets_a_database_that_is_away_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise TransientError("database: gone")

    place.send(head("1.2.2", "Head"), T0)
    monkeypatch.setattr(place.records.decisions, "gather", away)
    with pytest.raises(TransientError):
        place.clock.tick(T0 + QUIET_S)
