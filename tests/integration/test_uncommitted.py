"""A storage commitment that never comes is seen: on the queue's page, and by what watches the metrics."""

from __future__ import annotations

import time
from pathlib import Path

from node.settings import Destination, Settings
from node.store.records import open_records
from tests.site import SUBDURAL, Site, browser

PROMISING = Destination(name="pacs", ae_title="PACS", commitment=True, commitment_wait_s=60)


def seen(settings: Settings, sent_ago_s: float, folder: Path) -> tuple[str, str]:
    """The queue's page and the metrics, with one object sent so long ago."""
    folder.mkdir()
    (folder / "spool").mkdir()
    own = settings.model_copy(update={"data_dir": folder})
    records = open_records(own)
    site = Site(records, own)
    delivery = site.delivery_of(site.composed("1.2.3", SUBDURAL, patient_id="P-7"))
    assert records.deliveries.sent(delivery, "0x0000", time.time() - sent_ago_s)
    records.commitments.wait([delivery], time.time(), 60, "storage commitment is asked for, no answer yet")
    client = browser(own, records)
    pages = client.get("/queue").text, client.get("/metrics").text
    records.close()
    return pages


def test_what_was_never_committed_to_is_listed_and_counted(tmp_path: Path) -> None:
    page, metrics = seen(Settings(destination=(PROMISING,)), 150, tmp_path / "late")
    assert "No storage commitment" in page and "P-7" in page and "no answer yet" in page
    assert 'ichnode_deliveries_uncommitted{destination="pacs"} 1' in metrics


def test_one_that_may_still_come_is_no_news(tmp_path: Path) -> None:
    page, metrics = seen(Settings(destination=(PROMISING,)), 90, tmp_path / "soon")
    assert "No storage commitment" not in page
    assert 'ichnode_deliveries_uncommitted{destination="pacs"} 0' in metrics


def test_a_destination_that_is_not_asked_misses_none(tmp_path: Path) -> None:
    silent = PROMISING.model_copy(update={"commitment": False})
    page, metrics = seen(Settings(destination=(silent,)), 9999, tmp_path / "silent")
    assert "No storage commitment" not in page and "uncommitted{" not in metrics
