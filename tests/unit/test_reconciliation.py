"""What an archive holds against what came here: heads, parts of them, and what is none of our business."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from node.domain.errors import SettingsError
from node.domain.reconciliation import (
    ArchivedSeries,
    ArchivedStudy,
    Here,
    Kind,
    is_head,
    is_settled,
    is_whole,
    missing,
)
from node.reconcile import check_days, default_days
from node.settings import Archive

NATIVE = ArchivedSeries("1.1", "CT", "Schädel nativ 5.0", "HEAD", instances=30)
SCOUT = ArchivedSeries("1.2", "CT", "Topogramm", "HEAD", instances=1)
NECK = ArchivedSeries("1.3", "CT", "Hals KM", instances=90)
REPORT = ArchivedSeries("1.4", "SR", "Report", instances=1)
STUDY = ArchivedStudy("1", "P1", "A1", "20261120", "101500", "CT", (NATIVE, SCOUT, NECK, REPORT))


def test_a_head_of_which_nothing_came_is_missing_as_a_whole() -> None:
    (one,) = missing(STUDY, None)
    assert (one.kind, one.series_instance_uid, one.expected, one.here) == (Kind.STUDY, "", 121, 0)
    (prior,) = missing(STUDY, None, prior=True)
    assert prior.kind is Kind.PRIOR


def test_what_is_here_in_full_is_not_missing() -> None:
    assert missing(STUDY, Here({"1.1": 30})) == []
    assert missing(STUDY, Here({"1.1": 31})) == []
    assert missing(STUDY, Here({}), prior=True) == []


def test_slices_and_series_are_told_apart() -> None:
    (slices,) = missing(STUDY, Here({"1.1": 28}))
    assert (slices.kind, slices.series_instance_uid) == (Kind.SLICES, "1.1")
    assert (slices.expected, slices.here) == (30, 28)
    (series,) = missing(STUDY, Here({"1.2": 1}))
    assert (series.kind, series.series_instance_uid) == (Kind.SERIES, "1.1")


def test_what_still_arrives_or_was_removed_is_not_missing() -> None:
    assert missing(STUDY, Here({"1.1": 5}, frozenset({"1.1"}))) == []
    assert missing(STUDY, Here({"1.1": 0}, files_removed=True)) == []


def test_what_was_made_here_of_a_study_never_has_to_come_back() -> None:
    """The overlays that an archive got from this node are CT series of the study, too."""
    overlay = ArchivedSeries("1.9", "CT", "AI ICH overlay: SUSPECTED", "HEAD", instances=33)
    held = replace(STUDY, series=(*STUDY.series, overlay))
    assert [one.series_instance_uid for one in missing(held, Here({"1.1": 30}))] == ["1.9"]
    assert missing(held, Here({"1.1": 30}, made=frozenset({"1.9"}))) == []


def test_an_archive_that_does_not_count_is_asked_for_the_whole() -> None:
    uncounted = replace(STUDY, series=(replace(NATIVE, instances=None),))
    assert missing(uncounted, None)[0].expected is None
    assert missing(uncounted, Here({"1.1": 1})) == []
    assert is_whole(None, 1) and not is_whole(None, 0) and is_whole(3, 3) and not is_whole(3, 2)


@pytest.mark.parametrize(
    ("study", "series", "body_part", "head"),
    [
        ("CT Kopf", "Abl. 1", "", True),
        ("", "5.0 H31s", "HEAD", True),
        ("CT Thorax", "Lunge", "CHEST", False),
        ("CT Polytrauma", "Cranium", "", True),
        ("CT", "5.0", "", None),
        ("CT Head first", "Abdomen", "", False),
    ],
)
def test_words_say_what_is_a_head(study: str, series: str, body_part: str, head: bool | None) -> None:
    one = ArchivedSeries("1.1", "CT", series, body_part, instances=30)
    found = ArchivedStudy("1", description=study, series=(one,))
    assert is_head(found) is head
    listed = missing(found, None)
    assert bool(listed) is (head is not False)
    assert not listed or bool(listed[0].note) is (head is None)


def test_a_study_without_ct_images_is_none_of_ours() -> None:
    assert missing(replace(STUDY, description="CT Kopf", series=(REPORT,)), None) == []
    assert missing(replace(STUDY, series=(replace(NATIVE, instances=0),)), None) == []


def test_a_young_study_may_still_be_on_its_way() -> None:
    half_past = datetime(2026, 11, 20, 10, 30)
    assert not is_settled(STUDY, half_past, timedelta(minutes=30))
    assert is_settled(STUDY, half_past, timedelta(minutes=15))
    assert is_settled(replace(STUDY, study_time=""), half_past, timedelta(days=9))


def test_days_are_checked_and_end_today() -> None:
    archive = Archive(name="pacs", ae_title="PACS", lookback_h=48)
    assert default_days(archive, 1_795_000_000, "Europe/Berlin") == ("20261116", "20261118")
    check_days(("20261116", "20261118"))
    for wrong in (("20261118", "20261116"), ("x", "20261116"), ("20200101", "20261116")):
        with pytest.raises(SettingsError, match="no span"):
            check_days(wrong)
