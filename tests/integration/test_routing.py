"""Rules of destinations from composing to the PACS: who gets results, who the images, who is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)
from sqlalchemy import delete, text

from node.admin.cli import main
from node.admin.roles import spool_of
from node.compose import Composer
from node.deliver import Courier, carrier_to
from node.domain.findings import Reason
from node.headers import instance_of
from node.scu import Parcel, Peer
from node.settings import Destination, Route, Settings
from node.store.arrivals import Recorded, StoredFile
from node.store.keeping import Keeping
from node.store.records import Records
from node.store.tables import instances
from node.stow import WebPeer
from node.transcode import FALL_BACK
from tests import factories
from tests.delivering import Pacs, pacs_at
from tests.orthanc import WebOrthanc
from tests.site import Site, findings

PACS = Destination(name="pacs", ae_title="PACS")
ON_CALL = Destination(
    name="on-call",
    ae_title="VIEWER",
    outputs=("sr",),
    rules=(Route(finding=("any",), send=("results", "source")),),  # type: ignore[arg-type]
)
DRAFT = '[[destination]]\nname = "pacs"\nrules = [{ priority = "STAT", station = "CT9", send = "source" }]\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "spool").mkdir()
    return Settings(data_dir=tmp_path, destination=(PACS, ON_CALL))


@pytest.fixture
def records(blank_records: Records) -> Records:
    return blank_records


def head(name: str) -> list[Dataset]:
    return factories.ct_series(4, 32, name=name, PatientID=name.upper())


def going(records: Records, job: int) -> dict[str, list[str]]:
    """What each destination gets of a job, in the order in which it is sent."""
    found: dict[str, list[str]] = {}
    for row in records.views.deliveries_of(job):
        found.setdefault(row["destination"], []).append(row["output"])
    return found


def test_a_positive_goes_to_the_viewer_on_call_with_its_images(records: Records, site: Site) -> None:
    positive = site.pictured(head("positive"), {"any": 0.93})
    negative = site.pictured(head("negative"))
    assert going(records, positive)["on-call"] == ["sr", *["source"] * 4]
    assert set(going(records, positive)["pacs"]) == {"sr", "seg", "sc"}
    assert set(going(records, negative)) == {"pacs"}
    urgent = {row["urgent"] for row in records.views.deliveries_of(positive)}
    assert urgent == {1}
    study = records.worklist.study(str(head("negative")[0].StudyInstanceUID))
    assert study and study["current"]["routing"]["on-call"]["why"].startswith("no rule fits: rule 1 wants")


def test_the_courier_brings_report_and_images_in_this_order(records: Records, site: Site) -> None:
    series = head("carried")
    site.pictured(series, {"any": 0.93})
    assert site.settings
    with Pacs(classes=(CTImageStorage, Comprehensive3DSRStorage)) as pacs:
        there = ON_CALL.model_copy(update={"port": pacs.port})
        courier = Courier(there, carrier_to(there, "ICHNODE"), records, spool_of(site.settings))
        assert courier.round(lambda: 4e9)
        kept = pacs.kept
    assert [ds.Modality for ds in kept] == ["SR", "CT", "CT", "CT", "CT"]
    assert {ds.SOPInstanceUID for ds in kept[1:]} == {ds.SOPInstanceUID for ds in series}
    assert {row["state"] for row in records.views.deliveries() if row["destination"] == "on-call"} == {"SENT"}


def test_results_of_another_study_do_not_wait_behind_images(records: Records, site: Site) -> None:
    site.pictured(head("first"), {"any": 0.93})
    site.pictured(head("second"), {"any": 0.93})
    due = records.deliveries.take_due("on-call", 4e9, 4e9 + 1)
    assert [row.sop_class_uid == CTImageStorage for row in due] == [False] * 2 + [True] * 8


def test_without_rules_nothing_is_kept_about_them(records: Records, settings: Settings) -> None:
    plain = settings.model_copy(update={"destination": (PACS,)})
    job = Site(records, plain).pictured(head("plain"), {"any": 0.93})
    row = records.worklist.study(str(head("plain")[0].StudyInstanceUID))
    assert set(going(records, job)) == {"pacs"} and row and row["current"]["routing"] is None


def test_a_correction_follows_the_alarm_wherever_it_went(records: Records, site: Site) -> None:
    job = site.pictured(head("study"), {"any": 0.93})
    records.jobs.reanalyse(job)
    found = factories.analysed(head("study"), model=replace(factories.MODEL, version="2"))
    assert records.jobs.claim(job, "worker", 4e9, 1.0)
    assert records.jobs.store_analysis(job, "worker", found, "", 2.0)
    assert site.settings
    Composer(site.settings, records, spool_of(site.settings)).round()
    reports = [r for r in records.views.deliveries_of(job) if r["output"] == "sr"]
    assert sorted(r["destination"] for r in reports) == ["on-call", "on-call", "pacs", "pacs"]
    row = records.worklist.study(str(head("study")[0].StudyInstanceUID))
    assert row and "before" in row["current"]["routing"]["on-call"]["why"]


def test_a_positive_that_nobody_gets_is_an_incident(records: Records, settings: Settings) -> None:
    never = PACS.model_copy(update={"rules": (Route(finding=("not_analysed",)),)})
    nowhere = settings.model_copy(update={"destination": (never,)})
    site = Site(records, nowhere)
    job = site.pictured(head("lost"), {"any": 0.93})
    assert going(records, job) == {}
    (incident,) = records.incidents.latest()
    assert incident["code"] == "ROUTED_NOWHERE" and f"job {job}" in incident["text"]
    site.pictured(head("negative"))
    assert len(records.incidents.latest()) == 1


def test_what_the_rules_keep_back_may_be_removed_and_what_lacks_a_destination_not(
    records: Records, settings: Settings
) -> None:
    never = PACS.model_copy(update={"rules": (Route(finding=("any",)),)})
    Site(records, settings.model_copy(update={"destination": (never,)})).pictured(head("kept back"))
    Site(records, settings.model_copy(update={"destination": ()})).pictured(head("homeless"))
    removable = Keeping(records.engine).removable(4e9, ())
    assert [r.study_instance_uid for r in removable] == [str(head("kept back")[0].StudyInstanceUID)]


def test_an_image_that_is_handed_on_still_counts_as_received(records: Records, site: Site) -> None:
    """It comes again: that must not look like a result of our own that comes back."""
    series = head("again")
    site.pictured(series, {"any": 0.93})
    known = records.arrivals.known(str(series[0].SOPInstanceUID))
    assert not known.own and known.file
    with records.engine.begin() as connection:  # as retention does
        connection.execute(
            delete(instances).where(instances.c.series_instance_uid == series[0].SeriesInstanceUID)
        )
    assert not records.arrivals.known(str(series[0].SOPInstanceUID)).own
    study = str(series[0].StudyInstanceUID)
    job_ids = [job["id"] for job in (records.worklist.study(study) or {})["jobs"]]
    assert "source" not in {o["output"] for o in records.worklist.objects(job_ids)}
    (forwarded,) = records.worklist.forwarded(job_ids)
    assert (forwarded["destination"], forwarded["count"]) == ("on-call", 4)


@pytest.mark.parametrize("came_of_it", ["sent", "no answer", "not tried"])
def test_who_got_an_image_that_came_again_with_other_content_is_named(
    came_of_it: str, records: Records, site: Site
) -> None:
    """It is not sent again: an archive keeps what it has, or says Duplicate SOP Instance (0x0111)."""
    series = head("changed")
    site.pictured(series, {"any": 0.93})
    for due in records.deliveries.take_due("on-call", 4e9, 4e9 + 1) if came_of_it != "not tried" else ():
        if came_of_it == "sent":
            records.deliveries.sent(due.id, "0x0000", 4e9)
        else:
            records.deliveries.failed(due.id, "no answer", "", 5e9)
    changed = replace(instance_of(series[0], str(ExplicitVRLittleEndian)), study_description="other")
    file = StoredFile("other", 1, "f" * 64)
    records.arrivals.open_association("again", "listen", ("CT1", "127.0.0.1"), 4e9)
    assert records.arrivals.record(changed, file, "again", 4e9) is Recorded.REPLACED
    (incident,) = records.incidents.latest()
    assert ("on-call may hold the older content" in incident["text"]) is (came_of_it != "not tried")
    assert "pacs" not in incident["text"]


def parcel_of(folder: Path, ds: Dataset, key: int = 1) -> Parcel:
    file = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(file, enforce_file_format=True)
    return Parcel(key, file, CTImageStorage)


@pytest.mark.parametrize("accepted", [(JPEGLosslessSV1, *FALL_BACK), FALL_BACK])
def test_a_compressed_image_is_handed_on_as_it_is_or_else_without_loss(
    tmp_path: Path, accepted: tuple[str, ...]
) -> None:
    (ds, *_) = head("jpeg")
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
    ds.PixelData = encapsulate([imagecodecs.ljpeg_encode(pixels, bitspersample=16)])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    with Pacs(syntaxes=accepted) as pacs:
        (outcome,) = Peer(pacs_at(pacs.port), "ICHNODE").send([parcel_of(tmp_path, ds)])
        assert outcome.accepted, outcome.text
        (got,) = pacs.kept
    assert got.file_meta.TransferSyntaxUID == accepted[0]
    assert got.SOPInstanceUID == ds.SOPInstanceUID
    if accepted == FALL_BACK:
        assert np.array_equal(np.frombuffer(got.PixelData, "<u2"), pixels.ravel())
    else:
        assert got.PixelData == ds.PixelData


def test_orthanc_takes_the_images_by_stow(tmp_path: Path) -> None:
    orthanc = WebOrthanc(tmp_path / "orthanc")
    try:
        series = head("stowed")
        series[0].compress(RLELossless, generate_instance_uid=False)
        peer = WebPeer(Destination(name="web", url=orthanc.url))
        parcels = [parcel_of(tmp_path, ds, key) for key, ds in enumerate(series)]
        assert all(outcome.accepted for outcome in peer.send(parcels))
        kept = orthanc.files()
        assert set(kept) == {str(ds.SOPInstanceUID) for ds in series}
    finally:
        orthanc.close()


def token(client: TestClient) -> str:
    found = re.search(r'<meta name="csrf" content="(\w+)">', client.get("/routing").text)
    assert found
    return found[1]


def test_the_page_tries_rules_on_studies_that_were_seen(client: TestClient, site: Site) -> None:
    site.pictured(head("positive"), {"any": 0.93})
    site.failed("1.5", Reason("NO_VOLUME", "no volume"), patient_id="BROKEN")
    site.records.jobs.store_objects(site.records.jobs.to_report()[0], (), (), 1.0)
    page = client.get("/routing").text
    for told in (
        "POSITIVE",
        "BROKEN",
        "not analysed",
        "results + source",
        "rule 1: finding any (is any)",
        "CT1",
    ):
        assert told in page
    assert "10:15" in page and "2026-11-20" in page
    tried = client.post("/routing", data={"csrf": token(client), "draft": DRAFT}).text
    assert "Tried out, not saved" in tried and "no rule fits: rule 1 wants station CT9 (is CT1)" in tried
    assert "now: results" in tried and "on-call</th>" not in tried
    wrong = client.post("/routing", data={"csrf": token(client), "draft": DRAFT.replace("STAT", "NOW")})
    assert wrong.status_code == 400 and "destination.0.rules.0.priority" in wrong.text
    assert "Nothing" not in page and client.get("/routing", params={"q": "nobody"}).text.count("<tbody>") == 0


def test_the_study_page_tells_why_and_how_many_images_went(client: TestClient, site: Site) -> None:
    series = head("positive")
    site.pictured(series, {"any": 0.93})
    page = client.get(f"/study/{series[0].StudyInstanceUID}").text
    assert "4 images" in page and "rule 1: finding any (is any)" in page


def test_api_and_command_line_say_the_same(
    client: TestClient, site: Site, settings: Settings, tmp_path: Path
) -> None:
    site.pictured(head("positive"), {"any": 0.93})
    (row,) = client.get("/api/v1/routing").json()
    assert row["destinations"]["on-call"]["send"] == ["results", "source"]
    headers = {"X-CSRF-Token": token(client)}
    tried: Any = client.post("/api/v1/routing", json={"toml": DRAFT}, headers=headers).json()
    assert tried[0]["destinations"] == {
        "pacs": {"send": [], "rule": None, "why": "no rule fits: rule 1 wants station CT9 (is CT1)"}
    }
    assert client.post("/api/v1/routing", json={"toml": "x"}, headers=headers).status_code == 400
    (tmp_path / "draft.toml").write_text(DRAFT)
    options = ["routing", "--data-dir", str(tmp_path), "--try", str(tmp_path / "draft.toml")]
    told = CliRunner().invoke(main, options)
    assert told.exit_code == 0 and "wants station CT9" in told.output.replace("\n", " ")


def test_findings_of_another_version_stop_no_page(client: TestClient, site: Site) -> None:
    job = site.composed("1.1", findings({"any": 0.9}))
    with site.records.engine.begin() as connection:
        connection.execute(text('UPDATE jobs SET findings = \'{"schema": "x"}\' WHERE id = :id'), {"id": job})
    assert client.get("/routing").status_code == 200


def test_the_stored_image_is_sent_byte_for_byte(tmp_path: Path) -> None:
    (ds, *_) = head("bytes")
    parcel = parcel_of(tmp_path, ds)
    with Pacs() as pacs:
        (outcome,) = Peer(pacs_at(pacs.port), "ICHNODE").send([parcel])
        assert outcome.accepted and pacs.kept[0].PixelData == dcmread(parcel.file).PixelData
