"""A real archive against what came: found by C-FIND, listed, fetched by C-MOVE and C-GET, and then here."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from sqlalchemy import select

from node import query
from node.admin.cli import main
from node.admin.roles import spool_of
from node.domain.errors import IllegalTransition, TransientError
from node.domain.lifecycle import GapState
from node.domain.reconciliation import ArchivedStudy, Kind, Missing
from node.intake import Intake
from node.liveness import process_name
from node.query import FIND, MOVE, Archivist
from node.reconcile import LONGEST_COMPARISON_S, MOST_ATTEMPTS, PATIENCE_S, Reconciler
from node.scp import listener_of, open_socket
from node.scu import Parcel, Peer
from node.settings import Archive, Destination, Scp, Settings
from node.store.records import Records
from node.store.tables import objects
from tests.factories import ct_series
from tests.orthanc import plain_orthanc
from tests.peers import eventually
from tests.ports import free_port
from tests.site import Site
from workers.demo import Orthanc

DAYS = ("20261119", "20261121")
LISTENER = free_port()


def study(name: str, **attributes: Any) -> list[Dataset]:
    attributes = {"PatientID": name.upper(), "AccessionNumber": f"ACC-{name}", **attributes}
    return ct_series(4, 16, name=name, **attributes)


LOST, CUT, WHOLE = study("lost"), study("cut"), study("whole")
CHEST = study("chest", StudyDescription="CT Thorax", SeriesDescription="Lunge", BodyPartExamined="CHEST")
PRIOR = study("prior", PatientID="LOST", StudyDate="20250105")
OTHER = study("other", PatientID="LOST2", StudyDate="20250105")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("archive")
    options = {
        "DicomModalities": {"node": ["ICHNODE", "127.0.0.1", LISTENER]},
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
    }
    made = plain_orthanc(folder / "orthanc", **options)
    parcels = []
    for number, ds in enumerate([*LOST, *CUT, *WHOLE, *CHEST, *PRIOR, *OTHER]):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        parcels.append(Parcel(number, folder / f"{number}.dcm", CTImageStorage))
    peer = Peer(Destination(name="orthanc", ae_title="ORTHANC", port=made.port), "MODALITY")
    assert all(outcome.accepted for outcome in peer.send(parcels))
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path: Path, orthanc: Orthanc) -> Settings:
    (tmp_path / "spool").mkdir()
    archive = Archive(name="pacs", ae_title="ORTHANC", port=orthanc.port, priors_days=1000)
    return Settings(data_dir=tmp_path, archive=(archive,), scp=Scp(port=LISTENER, processes=1))


@pytest.fixture
def records(blank_records: Records, settings: Settings) -> Records:
    site = Site(blank_records, settings)
    site.store(WHOLE)
    site.store(CUT[:3])
    for one in (WHOLE, CUT):
        site.decide(str(one[0].StudyInstanceUID), None)
    return blank_records


def reconciler(settings: Settings, records: Records, **changes: Any) -> Reconciler:
    archive = settings.archive[0].model_copy(update=changes)
    return Reconciler(settings.model_copy(update={"archive": (archive,)}), records, spool_of(settings))


def compare(settings: Settings, records: Records, **changes: Any) -> dict[str, dict[str, Any]]:
    """What is missing, by patient."""
    made = reconciler(settings, records, **changes)
    made.compare_now(made._archives["pacs"], DAYS, "anna")
    return {f"{row['patient_id']} {row['kind']}": row for row in records.gaps.rows()}


@contextmanager
def listening(settings: Settings, records: Records) -> Iterator[None]:
    listens_on = open_socket(settings.scp)
    listener = listener_of(settings, records, Intake(spool_of(settings), records, time.time, settings.scp))
    listener.start(listens_on)
    yield
    listener.stop()
    listens_on.close()


def series_of(records: Records, ds: Dataset) -> int:
    return records.arrivals.series_size(str(ds.SeriesInstanceUID))


def test_a_comparison_tells_what_never_came(settings: Settings, records: Records) -> None:
    found = compare(settings, records)
    assert set(found) == {"LOST study", "CUT slices", "LOST prior"}
    cut = found["CUT slices"]
    assert (cut["here"], cut["expected"], cut["state"]) == (3, 4, "OPEN")
    assert cut["series_instance_uid"] == CUT[0].SeriesInstanceUID
    assert (found["LOST study"]["expected"], found["LOST study"]["accession_number"]) == (4, "ACC-lost")
    assert found["LOST prior"]["study_date"] == "20250105"
    last = records.gaps.latest(["pacs"])["pacs"]
    assert (last["studies"], last["missing"], last["error"], last["asked_by"]) == (4, 3, None, "anna")
    again = compare(settings, records)
    assert {name: row["id"] for name, row in again.items()} == {n: row["id"] for n, row in found.items()}


def test_priors_are_looked_for_only_where_wanted(settings: Settings, records: Records) -> None:
    assert set(compare(settings, records, priors_days=0)) == {"LOST study", "CUT slices"}


def test_what_an_archive_has_from_here_is_not_missing(
    settings: Settings, records: Records, orthanc: Orthanc
) -> None:
    """An overlay is a CT series of the study; with `fetch` each was fetched, and never asked for twice."""
    day = "20261001"
    own = study("own", StudyDate=day)
    Site(records, settings).pictured(own)
    with records.engine.connect() as connection:
        rows = connection.execute(select(objects)).all()
    spool = spool_of(settings)
    parcels = [Parcel(n, spool.root / row.path, row.sop_class_uid) for n, row in enumerate(rows)]
    peer = Peer(Destination(name="orthanc", ae_title="ORTHANC", port=orthanc.port), "MODALITY")
    assert len(parcels) > 4 and all(outcome.accepted for outcome in peer.send(parcels))
    made = reconciler(settings, records)
    made.compare_now(made._archives["pacs"], (day, day), "anna")
    assert records.gaps.rows() == []
    assert records.gaps.latest(["pacs"])["pacs"]["studies"] == 1


def test_what_came_meanwhile_is_closed(settings: Settings, records: Records) -> None:
    compare(settings, records)
    Site(records, settings).store(CUT[3:])
    assert set(compare(settings, records)) == {"LOST study", "LOST prior"}
    (closed,) = records.gaps.rows((GapState.CLOSED,))
    assert closed["patient_id"] == "CUT"


def test_slices_of_an_earlier_ct_stay_missing_when_it_is_listed_as_a_prior(
    settings: Settings, records: Records
) -> None:
    """The patient came again: the earlier CT is here in part, and known for that."""
    compare(settings, records, priors_days=0)
    node = reconciler(settings, records)
    archive = node._archives["pacs"]
    today = ArchivedStudy("1.2.3", str(CUT[0].PatientID), study_date="20261201")
    with Archivist(archive.peer, "ICHNODE") as peer:
        assert node._priors(peer, archive, [today], time.time()) == []
    assert "CUT slices" in {f"{row['patient_id']} {row['kind']}" for row in records.gaps.rows()}


def test_a_prior_that_came_meanwhile_is_closed(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST prior"]
    Site(records, settings).store(PRIOR)
    assert "LOST prior" not in compare(settings, records)
    assert (records.gaps.get(gap["id"]) or {})["state"] == "CLOSED"


def test_what_the_archive_holds_again_is_missing_anew(settings: Settings, records: Records) -> None:
    """It left a study out once; nothing of what was said then is true any more."""
    gap = compare(settings, records)["LOST study"]
    records.gaps.want([gap["id"]], "anna", time.time())
    assert records.gaps.forget_missing_there("pacs", DAYS, []) == 2
    assert (records.gaps.get(gap["id"]) or {})["last_error"] == "the archive holds it no longer"
    again = compare(settings, records)["LOST study"]
    assert (again["id"], again["state"]) == (gap["id"], "OPEN")
    assert (again["last_error"], again["asked_by"], again["attempts"]) == (None, None, 0)


def test_a_dismissed_gap_stays_dismissed(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST prior"]
    records.gaps.dismiss(gap["id"])
    assert "LOST prior" not in compare(settings, records)
    with pytest.raises(IllegalTransition, match="DISMISSED"):
        records.gaps.dismiss(gap["id"])


def test_a_dismissed_gap_that_grew_is_shown_again(records: Records) -> None:
    """One slice was not wanted; that says nothing of ten more."""

    def seen(expected: int, here: int) -> list[tuple[str, int | None]]:
        lacks = Missing(Kind.SLICES, ArchivedStudy("1.2"), "1.2.3", "Head", expected, here)
        records.gaps.note("pacs", ["1.2"], [lacks], time.time())
        return [(row["state"], row["expected"]) for row in records.gaps.rows()]

    assert seen(30, 29) == [("OPEN", 30)]
    records.gaps.dismiss(records.gaps.rows()[0]["id"])
    assert seen(30, 29) == seen(40, 39) == []
    assert seen(40, 29) == [("OPEN", 40)]


def test_c_move_brings_it_through_the_listener(settings: Settings, records: Records) -> None:
    found = compare(settings, records)
    node = reconciler(settings, records)
    with listening(settings, records):
        assert records.gaps.want([found["LOST study"]["id"], found["CUT slices"]["id"]], "anna", 1.0) == 2
        node.round(time.time())
        node.round(time.time())
        eventually(lambda: series_of(records, LOST[0]) == 4 and series_of(records, CUT[0]) == 4)
    node.round(time.time())
    assert [row["kind"] for row in records.gaps.rows()] == ["prior"]
    assert set(compare(settings, records)) == {"LOST prior"}


def test_c_get_brings_it_over_the_same_association(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST study"]
    node = reconciler(settings, records, retrieve="get")
    records.gaps.want([gap["id"]], "anna", 1.0)
    node.round(time.time())
    assert series_of(records, LOST[0]) == 4
    node.round(time.time())
    assert (records.gaps.get(gap["id"]) or {})["state"] == "CLOSED"
    origin = records.routes.origin(str(LOST[0].SeriesInstanceUID))
    assert origin.source_aes == {"ORTHANC"}
    (series,) = records.decisions.of_study(str(LOST[0].StudyInstanceUID))
    assert not records.decisions.gather(series.series_instance_uid).associations_open


def test_a_rule_fetches_without_being_asked(settings: Settings, records: Records) -> None:
    found = compare(settings, records, fetch=("study", "slices"))
    states = {name: row["state"] for name, row in found.items()}
    assert states == {"LOST study": "WANTED", "CUT slices": "WANTED", "LOST prior": "OPEN"}
    assert found["LOST study"]["asked_by"] == "(rule)"


def test_nobody_listening_is_told_and_given_up_in_the_end(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST study"]
    node = reconciler(settings, records)
    records.gaps.want([gap["id"]], "anna", 1.0)
    node.round(time.time())
    row = records.gaps.get(gap["id"]) or {}
    assert (row["state"], row["attempts"]) == ("WANTED", 1)
    assert "archive pacs (ORTHANC at 127.0.0.1" in row["last_error"]
    assert row["next_try_at"] > time.time()
    for number in range(1, MOST_ATTEMPTS):
        node.round(time.time() + 1e5 * number)
    row = records.gaps.get(gap["id"]) or {}
    assert (row["state"], row["attempts"]) == ("FAILED", MOST_ATTEMPTS)
    assert records.gaps.want([gap["id"]], "anna", 1.0) == 1


def test_an_archive_that_takes_no_c_get_is_told(settings: Settings, records: Records) -> None:
    """It takes the images that go along with the question, and so the association, but not the question."""
    gap = compare(settings, records)["LOST study"]
    records.gaps.want([gap["id"]], "anna", 1.0)
    ae, port = AE("STORES"), free_port()
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", port), block=False)
    try:
        reconciler(settings, records, retrieve="get", port=port).round(time.time())
    finally:
        server.shutdown()  # type: ignore[union-attr]
    assert "takes no C-GET" in (records.gaps.get(gap["id"]) or {})["last_error"]


def test_a_fetch_that_breaks_is_told_and_given_up_in_the_end(
    settings: Settings, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap = compare(settings, records)["LOST study"]
    records.gaps.want([gap["id"]], "anna", 1.0)

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Archivist, "move", breaks)
    node = reconciler(settings, records)
    for number in range(MOST_ATTEMPTS):
        node.round(time.time() + 1e5 * number)
    row = records.gaps.get(gap["id"]) or {}
    assert row["state"] == "FAILED" and "ZeroDivisionError" in row["last_error"]


def test_an_unknown_ae_title_is_told_with_what_to_do(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST study"]
    stranger = settings.model_copy(update={"scp": Scp(ae_title="STRANGER", port=LISTENER)})
    records.gaps.want([gap["id"]], "anna", 1.0)
    Reconciler(stranger, records, spool_of(settings)).round(time.time())
    assert "does it know AE title STRANGER" in (records.gaps.get(gap["id"]) or {})["last_error"]


def test_the_status_of_a_move_is_told_in_words() -> None:
    def move(event: evt.Event) -> Iterator[Any]:
        yield None, None  # pynetdicom answers 0xA801: move destination unknown

    ae, port = AE("STRICT"), free_port()
    ae.add_supported_context(MOVE)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_MOVE, move)])
    try:
        archive = Archive(name="strict", ae_title="STRICT", port=port)
        came = Archivist(archive.peer, "ICHNODE").move("1.2", "", "ICHNODE")
    finally:
        server.shutdown()  # type: ignore[union-attr]
    assert came.completed == 0 and "0xA801" in came.trouble
    assert "add our AE title there, with this node's host and port" in came.trouble


def test_images_that_came_with_a_warning_are_counted_once() -> None:
    def answer(status: int, completed: int, warned: int) -> tuple[Dataset, None]:
        ds = Dataset()
        ds.Status, ds.NumberOfFailedSuboperations = status, 0
        ds.NumberOfCompletedSuboperations, ds.NumberOfWarningSuboperations = completed, warned
        return ds, None

    archivist = Archivist(Archive(name="a", ae_title="A").peer, "ICHNODE")
    told = [answer(0xFF00, 0, 1), answer(0xFF00, 0, 2), answer(0x0000, 0, 3)]
    assert archivist._outcome(iter(told)).completed == 3


def test_what_was_said_to_be_sent_and_never_came_is_told(settings: Settings, records: Records) -> None:
    gap = compare(settings, records)["LOST study"]
    records.gaps.want([gap["id"]], "anna", 1.0)
    taken = records.gaps.take_wanted(["pacs"], 2.0, 3.0)
    assert taken and records.gaps.take_wanted(["pacs"], 2.0, 3.0) is None
    records.gaps.retrieved(taken, 1000.0)
    node = reconciler(settings, records)
    node.round(1000.0 + PATIENCE_S)
    assert (records.gaps.get(gap["id"]) or {})["state"] == "FETCHED"
    node.round(1001.0 + PATIENCE_S)
    row = records.gaps.get(gap["id"]) or {}
    assert row["state"] == "FAILED" and "did not come" in row["last_error"]


def test_by_the_clock_once_for_all_processes(settings: Settings, records: Records) -> None:
    nodes = [reconciler(settings, records, every_min=60) for _ in range(2)]
    for node in (*nodes, *nodes):
        node.round(1_795_000_000.0)
    assert records.gaps.latest(["pacs"])["pacs"]["id"] == 1
    nodes[0].round(1_795_000_000.0 + 3600)
    assert records.gaps.latest(["pacs"])["pacs"]["id"] == 2


def test_a_comparison_whose_process_is_gone_is_over(settings: Settings, records: Records) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        owner = process_name(child.pid)
        child.kill()
    records.gaps.begin("pacs", DAYS, "anna", owner, time.time())
    records.gaps.begin("pacs", DAYS, "anna", "elsewhere:1", time.time())
    node = reconciler(settings, records)
    node.round(time.time())
    ((left, who, _),) = records.gaps.unfinished()
    assert who == "elsewhere:1" and left.id == 2
    node.round(time.time() + LONGEST_COMPARISON_S + 1)
    assert "ask again" in records.gaps.latest(["pacs"])["pacs"]["error"]


def test_an_archive_that_is_away_is_told(settings: Settings, records: Records) -> None:
    with pytest.raises(TransientError, match="archive pacs"):
        compare(settings, records, port=free_port())
    last = records.gaps.latest(["pacs"])["pacs"]
    assert "cannot be reached" in last["error"] and last["finished_at"]


def test_an_archive_that_breaks_off_leaves_no_false_calm() -> None:
    """Pending answers and then a failure: what was answered so far is not taken for all there is."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        answer = Dataset()
        answer.QueryRetrieveLevel, answer.StudyInstanceUID = "STUDY", "1.2"
        yield 0xFF00, answer
        yield 0xA700, None

    ae, port = AE("HALF"), free_port()
    ae.add_supported_context(FIND)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    archive = Archive(name="half", ae_title="HALF", port=port)
    try:
        with Archivist(archive.peer, "ICHNODE") as peer, pytest.raises(TransientError, match="0xA700"):
            list(peer.studies(StudyDate="20261120"))
    finally:
        server.shutdown()  # type: ignore[union-attr]


@pytest.mark.parametrize("bounds", [{"MOST_ANSWERS": 50}, {"FIND_WITHIN_S": 0.5}])
def test_an_archive_whose_answers_never_end_is_left(
    bounds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever level it is asked; and it is left at once, not at the end of its answers."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        for number in range(100_000):
            if event.is_cancelled:
                return
            answer = Dataset()
            answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
            answer.StudyInstanceUID, answer.SeriesInstanceUID, answer.Modality = "1", f"1.{number}", "CT"
            time.sleep(0.005)
            yield 0xFF00, answer

    for name, value in bounds.items():
        monkeypatch.setattr(query, name, value)
    ae, port = AE("DRIP"), free_port()
    ae.add_supported_context(FIND)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    archive = Archive(name="drip", ae_title="DRIP", port=port)
    began = time.monotonic()
    try:
        for question in (lambda p: p.with_series(ArchivedStudy("1")), lambda p: list(p.studies())):
            with Archivist(archive.peer, "ICHNODE") as peer, pytest.raises(TransientError, match="no end"):
                question(peer)
    finally:
        server.shutdown()  # type: ignore[union-attr]
    assert time.monotonic() - began < 60, "500 s each, if it waited for the end"


def test_an_archive_that_counts_nothing_is_counted() -> None:
    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        for number in range({"SERIES": 1, "IMAGE": 7}[level]):
            answer = Dataset()
            answer.QueryRetrieveLevel, answer.StudyInstanceUID = level, "1"
            answer.SeriesInstanceUID, answer.Modality = "1.1", "CT"
            answer.SOPInstanceUID = f"1.1.{number}"
            yield 0xFF00, answer

    ae, port = AE("PLAIN"), free_port()
    ae.add_supported_context(FIND)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    archive = Archive(name="plain", ae_title="PLAIN", port=port)
    try:
        with Archivist(archive.peer, "ICHNODE") as peer:
            (series,) = peer.with_series(ArchivedStudy("1")).series
        assert series.instances == 7
    finally:
        server.shutdown()  # type: ignore[union-attr]


def test_an_archive_is_asked_for_a_patient_id_in_any_script() -> None:
    asked = []

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier.PatientID)
        yield 0x0000, None

    ae, port = AE("PLAIN"), free_port()
    ae.add_supported_context(FIND)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        with Archivist(Archive(name="plain", ae_title="PLAIN", port=port).peer, "ICHNODE") as peer:
            for patient in ("П123", "王1", "P1"):
                assert not list(peer.studies(PatientID=patient))
    finally:
        server.shutdown()  # type: ignore[union-attr]
    assert asked == ["П123", "王1", "P1"]


def test_the_page_lists_fetches_dismisses_and_asks(
    client: TestClient, settings: Settings, records: Records
) -> None:
    page = client.get("/missing").text
    found = re.search(r'<meta name="csrf" content="(\w+)">', page)
    assert found and "never" in page
    token = {"csrf": found[1]}
    gaps = compare(settings, records)
    page = client.get("/missing").text
    for told in ("whole study", "earlier head CT", "3 / 4", "ACC-lost", "2025-01-05"):
        assert told in page
    ids = [gaps["LOST study"]["id"], gaps["CUT slices"]["id"]]
    client.post("/gaps/fetch", data={**token, "ids": [str(i) for i in ids]})
    assert [row["state"] for row in records.gaps.rows((GapState.WANTED,))] == ["WANTED"] * 2
    client.post("/gaps/dismiss", data={**token, "ids": str(gaps["LOST prior"]["id"])})
    assert "earlier head CT" in client.get("/missing?show=dismissed").text
    days = {"archive": "pacs", "since": "2026-11-20", "until": "2026-11-20"}
    assert client.post("/comparisons", data={**token, **days}).status_code == 303
    waiting = records.gaps.take("me", 1.0, ["pacs"])
    assert waiting and (waiting.since, waiting.until, waiting.asked_by) == ("20261120", "20261120", "local")
    assert client.post("/comparisons", data={**token, **days, "until": "x"}).status_code == 400
    assert client.post("/comparisons", data={**token, **days, "archive": "x"}).status_code == 404
    told = client.get("/metrics").text
    assert 'ichnode_missing{archive="pacs",kind="study"} 1' in told
    assert client.get("/api/v1/missing").json()["missing"][0]["archive"] == "pacs"


def test_the_command_lists_and_ends_with_1(settings: Settings, records: Records, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(
        f'data_dir = "{tmp_path}"\n[[archive]]\nname = "pacs"\nae_title = "ORTHANC"\n'
        f"port = {settings.archive[0].port}\n"
    )
    options = ["reconcile", "--config", str(tmp_path / "node.toml"), "--since", "2026-11-20"]
    told = CliRunner().invoke(main, [*options, "--until", "2026-11-20", "--fetch", "--json"])
    assert told.exit_code == 1, told.output
    assert {(row["patient_id"], row["state"]) for row in json.loads(told.output)} == {
        ("LOST", "WANTED"),
        ("CUT", "WANTED"),
    }
    calm = CliRunner().invoke(main, [*options[:-1], "2026-01-01", "--until", "2026-01-02"])
    assert calm.exit_code == 0
