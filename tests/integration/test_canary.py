"""The node's own phantom: through the real clock, store and composer to a verdict, and away again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from node.admin import doctor
from node.admin.roles import spool_of
from node.canary import Canary, accept, own_listener, trouble
from node.compose import Composer
from node.domain.announcing import Audience
from node.domain.canary import Outcome, State, differences
from node.domain.errors import IllegalTransition, PermanentError
from node.domain.findings import Findings, ModelIdentity, Priority
from node.fingerprint import file_fingerprint
from node.headers import read_instance
from node.maps import Maps, pack
from node.settings import Canary as Wanted
from node.settings import Completeness, Destination, Drift, Scp, Settings
from node.settle import Clock
from node.store.arrivals import StoredFile
from node.store.quality import Group
from node.store.records import open_records
from node.store.workitems import Terms
from node.store.worklist import Reading
from node.store.worklist import Wanted as Listed
from tests import factories
from tests.site import browser


class Silent:
    """A doorbell nobody hears."""

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        """A head start is asked for, and nobody has time."""

    def along(self, series_uid: str) -> None:
        """Nobody has time for that either."""

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        pass


def draw(folder: Path) -> Sequence[Path]:
    paths = []
    for number, ds in enumerate(factories.ct_series(22, 32)):
        paths.append(folder / f"{number}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return paths


class Way:
    """A node without listener and worker: what was sent to the front door is stored here by hand."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings, self.records = settings, open_records(settings)
        self.spool = spool_of(settings)
        self.canary = Canary(settings, self.records, self.spool, draw)
        self.calls: list[str] = []
        self.refuse = False
        monkeypatch.setattr("node.canary.Peer", self._peer)

    def _peer(self, destination: Destination, calling_ae: str) -> Any:
        way = self

        class Door:
            def send(self, parcels: Sequence[Any]) -> Iterator[Any]:
                from node.scu import Outcome as Sent

                way.calls.append(calling_ae)
                way.records.arrivals.open_association("a", "listen", (calling_ae, "127.0.0.1"), time.time())
                for parcel in parcels:
                    if way.refuse:
                        yield Sent(parcel.key, False, "0xA700", "out of resources")
                        continue
                    way.store(parcel.file)
                    yield Sent(parcel.key, True, "0x0000")
                way.records.arrivals.close_association("a", "released", time.time())

        return Door()

    def store(self, file: Path) -> None:
        instance = read_instance(file)
        path = self.spool.instance_path(
            instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
        )
        self.spool.write(path, (file.read_bytes(),))
        stored = StoredFile(path, file.stat().st_size, file_fingerprint(file))
        self.records.arrivals.record(instance, stored, "a", time.time())

    def settle(self) -> None:
        clock = Clock(self.settings, self.records, Silent())  # type: ignore[arg-type]
        clock.tick(time.time())

    def analyse(self, probability: float = 0.93, model: str = "1") -> int:
        """As a worker would, with an audience that wants to hear of every alarm."""
        job_id: int = self.records.views.jobs(1)[0]["id"]
        job = self.records.jobs.claim(job_id, "worker", time.time() + 60, time.time())
        assert job and job.is_canary
        found = self.findings(job.series_instance_uid, probability, model)
        path = self.spool.job_path(job_id, job.attempts, "maps.npz")
        nothing = Maps(np.zeros((22, 32, 32), bool), np.zeros((22, 4, 4), np.uint8))
        self.spool.write(path, (pack(nothing),))
        audience = Audience("page", "all")
        assert self.records.jobs.store_analysis(job_id, "worker", found, path, time.time(), (audience,))
        return job_id

    def findings(self, series_uid: str, probability: float, model: str) -> Findings:
        with self.records.engine.begin() as connection:
            uids = [
                row[0]
                for row in connection.execute(
                    text("SELECT sop_instance_uid FROM instances WHERE series_instance_uid = :uid"),
                    {"uid": series_uid},
                )
            ]
        series = factories.ct_series(22, 32)
        found = factories.analysed(series, {"any": probability, "subdural": 0.8})
        slices = tuple(replace(s, sop_instance_uid=u) for s, u in zip(found.slices, uids, strict=True))
        classes = {n: replace(c, key_slice_uid=uids[2]) for n, c in found.classes.items()}
        identity = ModelIdentity("m", model, model * 64)
        segmentation = replace(found.segmentation, slices=tuple(uids[1:3])) if found.segmentation else None
        return replace(
            found,
            model=identity,
            slices=slices,
            classes=classes,
            series_instance_uid=series_uid,
            segmentation=segmentation,
        )

    def once(self, probability: float = 0.93, model: str = "1") -> dict[str, Any]:
        """From being asked for to the verdict."""
        number = self.records.canaries.ask(f"2.25.{time.time_ns()}", "anna", time.time())
        assert number
        self.canary.round(time.time())
        self.settle()
        self.analyse(probability, model)
        Composer(self.settings, self.records, self.spool).round()
        self.canary.round(time.time())
        found = self.records.canaries.latest(1)[0]
        assert found["id"] == number
        return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    return Settings(
        data_dir=tmp_path,
        scp=Scp(calling_ae_titles=("PACS",)),
        completeness=Completeness(quiet_s=0, max_wait_s=0),
        destination=(Destination(name="pacs", ae_title="PACS"),),
        canary=Wanted(every_min=0, keep=2),
        drift=Drift(),
    )


@pytest.fixture
def way(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    made = Way(settings, monkeypatch)
    yield made
    made.records.close()


def test_the_first_one_is_recorded_and_later_ones_must_equal_it(way: Way) -> None:
    assert way.once()["state"] == State.RECORDED
    good = way.once(0.94)
    assert (good["state"], good["text"]) == (State.OK, "")
    assert set(good["steps_s"]) == {"received", "analysed", "composed"}
    wrong = way.once(0.6)
    assert wrong["state"] == State.WRONG and "any is 0.600, expected 0.930" in wrong["text"]
    assert way.once(0.6, model="2")["state"] == State.RECORDED  # another model has values of its own
    assert accept(way.records, "anna", time.time())["model_sha256"] == "2" * 64
    assert way.calls == ["PACS"] * 4


def test_it_is_no_patient(way: Way) -> None:
    """STAT, and yet: no line of the worklist, no alarm, no alert, no workitem, no delivery, no statistics."""
    way.once()
    records = way.records
    assert records.worklist.page(Listed(reading=Reading.BOTH), 10)[0] == []
    assert records.worklist.page(Listed(search="CANARY"), 10)[0] == []
    assert records.worklist.unread_alarms(0) == 0 and records.views.alarms(0) == []
    assert records.views.deliveries() == [] and records.views.studies() == []
    assert records.quality.analysed(Group.ALL, 0, 1e12)[""].total == 0
    assert records.console.times(0) == [] and records.routes.seen(10) == []
    assert records.alerts.latest() == []
    terms = Terms(tuple(Priority), 0, lambda *job: "2.25.9", lambda *keys: True)
    assert records.workitems.make(terms, time.time()).new == 0
    study = records.canaries.latest(1)[0]["study_instance_uid"]
    row = records.worklist.study(study)
    assert row and row["patient_name"] == "" and row["jobs"][0]["priority"] == "STAT"


def test_no_header_makes_a_canary_of_a_patient(way: Way, tmp_path: Path) -> None:
    way.records.arrivals.open_association("a", "listen", ("PACS", ""), time.time())
    for ds in factories.ct_series(22, 32, PatientID="CANARY-1", AccessionNumber="CANARY1"):
        file = tmp_path / "one.dcm"
        ds.save_as(file, enforce_file_format=True)
        way.store(file)
    way.records.arrivals.close_association("a", "released", time.time())
    way.settle()
    (job,) = way.records.views.jobs()
    assert job["canary"] == 0
    assert len(way.records.worklist.page(Listed(), 10)[0]) == 1


def test_results_go_where_the_settings_say_and_must_arrive(settings: Settings, monkeypatch: Any) -> None:
    named = settings.model_copy(update={"canary": Wanted(destination="pacs", max_s=60)})
    way = Way(named, monkeypatch)
    assert way.once()["state"] == State.UNDER_WAY
    waiting = way.records.views.deliveries()
    assert waiting and not any(d["urgent"] for d in waiting)
    for delivery in waiting:
        way.records.deliveries.sent(delivery["id"], "0x0000", time.time())
    way.canary.round(time.time())
    done = way.records.canaries.latest(1)[0]
    assert done["state"] == State.RECORDED and "delivered" in done["steps_s"]
    way.records.close()


def test_what_is_not_taken_late_or_not_analysed_is_told(way: Way, settings: Settings) -> None:
    records = way.records
    on = settings.model_copy(update={"canary": Wanted(every_min=10, max_s=60)})
    assert trouble(on, records, time.time()) == ""
    way.refuse = True
    records.canaries.ask("2.25.1", "anna", time.time())
    way.canary.round(time.time())
    assert records.canaries.latest(1)[0]["state"] == State.LOST
    assert "out of resources" in trouble(on, records, time.time())
    way.refuse = False
    records.canaries.ask("2.25.2", "anna", time.time())
    way.canary.round(time.time())
    way.canary.round(time.time() + 301)
    late = records.canaries.latest(1)[0]
    assert late["state"] == State.LATE and "not chosen" in late["text"]
    records.canaries.ask("2.25.3", "anna", time.time())
    way.canary.round(time.time())
    way.settle()
    job = records.views.jobs(1)[0]["id"]
    records.jobs.cancel(job)
    way.canary.round(time.time())
    assert records.canaries.latest(1)[0]["state"] == State.WRONG
    with pytest.raises(PermanentError, match="canary"):
        doctor._canary(on)
    with pytest.raises(IllegalTransition, match="ichnode canary run"):
        accept(records, "anna", time.time())


def test_each_turn_is_taken_once_and_none_while_the_queue_is_paused(way: Way, settings: Settings) -> None:
    on = settings.model_copy(update={"canary": Wanted(every_min=10)})
    birds = [Canary(on, way.records, way.spool, draw) for _ in range(2)]
    way.records.pauses.pause("queue", "anna", 0)
    birds[0].round(6000.0)
    assert way.records.canaries.latest() == []
    way.records.pauses.resume("queue")
    for at in (6000.0, 6001.0, 6590.0, 6600.0):
        for bird in birds:
            bird.round(at)
    assert [row["slot"] for row in way.records.canaries.latest()] == [11, 10]


def test_the_overdue_canary_is_told(way: Way, settings: Settings) -> None:
    way.once()
    on = settings.model_copy(update={"canary": Wanted(every_min=10)})
    assert trouble(on, way.records, time.time() + 600) == ""
    assert "No canary came through" in trouble(on, way.records, time.time() + 3600)


def test_the_oldest_leave_nothing_behind(way: Way) -> None:
    for _ in range(4):
        way.once()
    rows = way.records.canaries.latest()
    assert len(rows) == 2
    with way.records.engine.begin() as connection:
        for table, kept in (("studies", 2), ("jobs", 2), ("series", 2), ("instances", 44), ("removals", 0)):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar() == kept, table
    left = list((way.settings.data_dir / "spool" / "incoming").rglob("*.dcm"))
    assert len(left) == 44


def test_differences_are_told_in_words() -> None:
    before = Outcome({"any": 0.9, "subdural": 0.5}, "STAT", 20.0, 32)
    assert differences(before, before, 0.02) == []
    assert differences(before, Outcome({"any": 0.91, "subdural": 0.49}, "STAT", 20.9, 32), 0.02) == []
    told = differences(before, Outcome({"any": 0.8}, "HIGH", 10.0, 31), 0.02)
    assert told == [
        "any is 0.800, expected 0.900",
        "subdural is no longer evaluated",
        "priority is HIGH, expected STAT",
        "volume is 10.0 mL, expected 20.0 mL",
        "31 slices were read, expected 32",
    ]
    assert differences(before, replace(before, volume_ml=None), 0.02) == ["a volume is missing"]


def test_a_destination_must_be_known() -> None:
    with pytest.raises(ValueError, match="is no \\[\\[destination\\]\\]"):
        Settings(canary=Wanted(destination="nowhere"))


def test_the_own_listener_is_reached_on_this_machine() -> None:
    assert own_listener(Settings(scp=Scp(host="0.0.0.0"))).host == "127.0.0.1"
    assert own_listener(Settings(scp=Scp(host="10.0.0.7"))).host == "10.0.0.7"
    assert own_listener(Settings(canary=Wanted(host="listener"))).host == "listener"


def test_pages_and_metrics_show_it(way: Way, settings: Settings) -> None:
    on = settings.model_copy(update={"canary": Wanted(every_min=10, max_s=600)})
    way.once()
    way.once(0.2)
    client = browser(on, way.records)
    for path in ("/", "/queue", "/quality"):
        assert "came out WRONG: any is 0.200, expected 0.930" in client.get(path).text
    assert "ichnode_canary_ok 0.0" in client.get("/metrics").text
    page = client.get("/quality").text
    token = page.split('name="csrf" content="')[1].split('"')[0]
    assert client.post("/canary/accept", data={"csrf": token}, follow_redirects=False).status_code == 303
    assert client.post("/canary/run", data={"csrf": token}, follow_redirects=False).status_code == 303
    assert way.records.canaries.latest(1)[0]["state"] == State.WANTED
    assert client.get("/api/v1/canaries").json()[0]["asked_by"] == "local"
