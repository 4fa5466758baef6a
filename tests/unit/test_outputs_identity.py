"""Whose an object is, who made it and when: the same for every kind of object."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.domain.errors import PermanentError
from node.domain.findings import ClassFinding, Findings, Priority, Reason
from node.outputs.catalogue import NAMES, build_all
from node.outputs.context import Context
from node.outputs.source import Source
from node.outputs.uids import uid_for
from node.outputs.wording import plain
from tests.factories import (
    GROWN,
    MADE_AT,
    MEASURED,
    analysed,
    bleed,
    ct_series,
    hu_of,
    make_uid,
    not_analysed,
)

MASKS = bleed(6, 64)
NAMES_OF_PATIENTS = {
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "cyrillic": ("ISO_IR 144", "Иванов^Пётр"),
    "greek": ("ISO_IR 126", "Διονυσίου^Άννα"),
    "utf-8": ("ISO_IR 192", "Ünal^Ömer=王"),
    "none declared": (None, "Plain^Name"),
}


def context_for(series: Sequence[Dataset], findings: Findings | None = None, **changes: Any) -> Context:
    found = findings or analysed(series, {"any": 0.97, "subdural": 0.8}, masks=MASKS)
    masks = MASKS if found.classes else None
    context = Context(found, Source.ordered(series, found, hu_of), MADE_AT, "0.1.0", masks)
    return replace(context, **changes)


def written(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def as_received(series: Sequence[Dataset]) -> list[Dataset]:
    """The series as it comes out of files, with elements not yet decoded."""
    return [pydicom.dcmread(io.BytesIO(written(ds))) for ds in series]


def as_received_implicit(series: Sequence[Dataset], first: bytes) -> list[Dataset]:
    """The same in Implicit VR Little Endian; `first` is what stands before the patient's elements."""
    found = []
    for ds in series:
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, ds, implicit_vr=True, little_endian=True, enforce_file_format=True)
        before, tag, after = stream.getvalue().partition(b"\x10\x00\x10\x00")  # PatientName
        found.append(pydicom.dcmread(io.BytesIO(before + first + tag + after)))
    return found


def everything(context: Context) -> list[Dataset]:
    return [ds for made in build_all(context).values() for ds in made]


@pytest.mark.parametrize("script", NAMES_OF_PATIENTS)
@pytest.mark.parametrize("from_files", [True, False])
def test_the_patient_stays_as_in_the_source(script: str, from_files: bool) -> None:
    charset, name = NAMES_OF_PATIENTS[script]
    texts: dict[str, Any] = {"InstitutionName": None, "Manufacturer": "Scanner"}
    series = ct_series(SpecificCharacterSet=charset, PatientName=name, **texts)
    raw = as_received(series)[0].get_item("PatientName").value
    for ds in everything(context_for(as_received(series) if from_files else series)):
        read = pydicom.dcmread(io.BytesIO(written(ds)))
        assert read.get_item("PatientName").value == raw
        assert read.get("SpecificCharacterSet") == as_received(series)[0].get("SpecificCharacterSet")
        assert str(read.PatientName) == name


@pytest.mark.parametrize(
    "first",
    [struct.pack("<HHII", 0x10, 0, 4, 100), struct.pack("<HHI2s", 0x10, 0x0B, 2, b"ab")],
    ids=["group length", "element that no dictionary knows"],
)
def test_elements_of_the_patient_that_tell_no_vr_are_survived(first: bytes) -> None:
    series = as_received_implicit(ct_series(), first)
    assert series[0].keys() & {0x00100000, 0x0010000B}
    for ds in everything(context_for(series)):
        read = pydicom.dcmread(io.BytesIO(written(ds)))
        assert read.PatientID == series[0].PatientID
        assert 0x00100000 not in read


@pytest.mark.parametrize("keyword", ["PatientID", "PatientAge", "StudyDescription", "AccessionNumber"])
def test_patient_and_study_elements_are_copied(keyword: str) -> None:
    series = ct_series()
    for ds in everything(context_for(series)):
        assert ds[keyword].value == series[0][keyword].value


@pytest.mark.parametrize(
    "changes",
    [
        {"PatientID": None, "StudyDate": None, "StudyID": None, "AccessionNumber": None},
        {"PatientName": None, "PatientBirthDate": None, "PatientSex": None, "StudyTime": None},
        {"PatientID": "", "PatientName": "", "ReferringPhysicianName": None},
        {"SliceThickness": None, "Manufacturer": None, "PositionReferenceIndicator": None},
    ],
)
def test_absent_and_empty_headers_are_survived(changes: dict[str, Any]) -> None:
    for ds in everything(context_for(as_received(ct_series(**changes)))):
        read = pydicom.dcmread(io.BytesIO(written(ds)))
        for keyword in ("PatientID", "PatientName", "StudyDate", "StudyID", "AccessionNumber"):
            assert keyword in read, f"{keyword} is type 2"


@pytest.mark.parametrize(
    ("keyword", "vr", "content"),
    [
        ("LossyImageCompressionRatio", "DS", b"10:1"),
        ("PregnancyStatus", "US", b"\x01"),
        ("OtherPatientIDsSequence", "SQ", b"\x00"),
        ("Rows", "US", b"\x00\x01\x00\x01"),
        ("Rows", "US", b"\x01"),
    ],
)
def test_broken_headers_cost_no_report(keyword: str, vr: str, content: bytes) -> None:
    series = as_received(ct_series(LossyImageCompression="01"))
    tag = Tag(keyword)
    for ds in series:
        ds[tag] = RawDataElement(tag, vr, len(content), content, 0, False, True)
    made = everything(context_for(series, not_analysed(series)))
    assert {pydicom.dcmread(io.BytesIO(written(ds))).Modality for ds in made} == {"SR", "CT"}


def test_an_empty_character_set_is_left_out() -> None:
    """It is type 1C: there with a value, or not at all."""
    ascii_only = {"PatientName": "Plain^Name", "Manufacturer": "M", "InstitutionName": "I"}
    series = as_received(ct_series(SpecificCharacterSet="", **ascii_only))
    for ds in everything(context_for(series)):
        assert "SpecificCharacterSet" not in pydicom.dcmread(io.BytesIO(written(ds)))


@pytest.mark.parametrize("stated", [None, "00"])
def test_a_transfer_syntax_that_always_loses_something_is_told(stated: str | None) -> None:
    series = ct_series(**({"LossyImageCompression": stated} if stated else {}))
    for ds in series:
        ds.file_meta.TransferSyntaxUID = pydicom.uid.JPEGExtended12Bit
    made = [ds for ds in everything(context_for(series)) if ds.Modality != "SR"]
    assert {ds.LossyImageCompression for ds in made} == {"01"}


def test_a_ratio_of_compression_that_is_no_number_costs_no_object() -> None:
    tag, ratio = Tag("LossyImageCompressionRatio"), b"10:1"
    series = as_received(ct_series(LossyImageCompression="01"))
    for ds in series:
        ds[tag] = RawDataElement(tag, "DS", len(ratio), ratio, 0, False, True)
    made = everything(context_for(series))
    assert {ds.Modality for ds in made} == {"SEG", "SR", "CT"}
    assert all(ratio in written(ds) for ds in made if ds.Modality == "CT")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_illegal_headers_are_survived_and_carried_on() -> None:
    series = ct_series()
    with pydicom.config.disable_value_validation():
        for ds in series:
            ds.PatientSex, ds.PatientBirthDate, ds.StudyDate = "W", "1960.01.01", "20.11.2026"
            ds.StudyInstanceUID = "1.2.03.4"
        received = as_received(series)
    for ds in everything(context_for(received)):
        read = pydicom.dcmread(io.BytesIO(written(ds)))
        assert read.get_item("PatientBirthDate").value == b"1960.01.01"
        assert read.PatientSex == "W"
        assert read.StudyInstanceUID == "1.2.03.4"


def test_a_source_is_never_changed() -> None:
    series = ct_series()
    before = [written(ds) for ds in series]
    everything(context_for(series))
    assert [written(ds) for ds in series] == before


def test_jittered_orientations_are_one_stack() -> None:
    series = ct_series()
    series[2].ImageOrientationPatient = [0.9999998, 0.0000213, 0, 0, 1, 0]
    assert len(build_all(context_for(series))["seg"]) == 1


def test_mixed_orientations_still_get_a_report() -> None:
    series = ct_series()
    series[2].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    made = build_all(context_for(series, not_analysed(series)))
    assert [len(made[name]) for name in NAMES] == [0, 1, 1]


@pytest.mark.parametrize("refused", [False, True])
def test_a_second_build_is_identical_to_the_byte(refused: bool) -> None:
    def build() -> list[bytes]:
        series = ct_series()
        findings = not_analysed(series) if refused else None
        return [written(ds) for ds in everything(context_for(series, findings))]

    assert build() == build()


def test_another_process_builds_the_same_bytes() -> None:
    """Whatever order its sets and hashes have."""
    program = (
        "import hashlib, tests.unit.test_outputs_identity as t\n"
        "made = t.everything(t.context_for(t.ct_series()))\n"
        "print(hashlib.sha256(b''.join(map(t.written, made))).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            check=True,
            timeout=200,
        ).stdout
        for seed in ("1", "2")
    }
    own = hashlib.sha256(b"".join(map(written, everything(context_for(ct_series()))))).hexdigest()
    assert {text.decode().strip() for text in said} == {own}


def test_uids_follow_series_revision_model_outcome_and_kind() -> None:
    series = ct_series()
    findings = analysed(series)
    variants = [
        findings,
        replace(findings, revision=2),
        replace(findings, series_instance_uid=make_uid("other")),
        replace(findings, model=replace(findings.model, sha256="cd" * 32)),
        replace(findings, classes={**findings.classes, "epidural": ClassFinding(0.6, True)}),
        replace(findings, segmentation=MEASURED),
        replace(findings, priority=Priority.HIGH),
        replace(findings, comparison=GROWN),
        replace(findings, comparison=replace(GROWN, before_ml=2.0)),  # the earlier CT was analysed again
        not_analysed(series),
        not_analysed(series, "ANOTHER_REASON"),
        replace(not_analysed(series), reason=Reason("NOT_A_HEAD", "\udcff words")),
    ]
    uids = {uid_for(f, kind, i) for f in variants for kind in ("sr", "sc") for i in (0, 1)}
    assert len(uids) == 4 * len(variants)
    assert all(len(uid) <= 64 for uid in uids)


def test_sop_instance_uids_are_unique_and_series_are_shared_by_kind() -> None:
    made = build_all(context_for(ct_series()))
    uids = [str(ds.SOPInstanceUID) for objects in made.values() for ds in objects]
    assert len(set(uids)) == len(uids)
    assert [{int(ds.SeriesNumber) for ds in made[name]} for name in NAMES] == [{901}, {903}, {900}]
    assert all(len({ds.SeriesInstanceUID for ds in made[name]}) == 1 for name in NAMES)


def test_times_are_those_of_the_job() -> None:
    for ds in everything(context_for(ct_series())):
        assert (ds.ContentDate, ds.ContentTime, ds.SeriesTime) == ("20261120", "102030", "102030")
        assert ds.TimezoneOffsetFromUTC == "+0000"
        assert ds.ContributingEquipmentSequence[-1].ContributionDateTime == "20261120102030+0000"
        assert f"{datetime.now():%Y%m%d}" not in (ds.InstanceCreationDate, ds.ContentDate)


def test_times_follow_the_offset_that_the_source_states() -> None:
    for ds in everything(context_for(ct_series(TimezoneOffsetFromUTC="+0530"))):
        assert (ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("155030", "+0530")


def test_times_keep_the_offset_of_the_job_otherwise() -> None:
    local = MADE_AT.astimezone(timezone(timedelta(hours=-5)))
    for ds in everything(context_for(ct_series(), made_at=local)):
        assert (ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("052030", "-0500")


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        context_for(ct_series(), made_at=datetime(2026, 1, 1))


def test_maps_must_fit_the_source() -> None:
    with pytest.raises(ValueError, match="do not fit 6 source slices"):
        context_for(ct_series(), heat=np.zeros((5, 4, 4)))


def test_equipment_names_the_scanner_and_us() -> None:
    for ds in everything(context_for(ct_series())):
        scanner, ours = ds.ContributingEquipmentSequence
        assert scanner.Manufacturer == "Scanner & Söhne"
        assert (ds.Manufacturer, ours.Manufacturer) == ("ichnode", "ichnode")
        assert list(ds.SoftwareVersions) == ["ichnode 0.1.0", "test-model 1.2.3", "ab" * 32]
        assert "research use only" in ds.SeriesDescription


def test_findings_choose_and_order_the_slices() -> None:
    series = ct_series()
    findings = analysed(series[1:5])
    source = Source.ordered(reversed(series), findings, hu_of)
    assert [ds.SOPInstanceUID for ds in source.datasets] == [ds.SOPInstanceUID for ds in series[1:5]]
    assert (source.hu(0) == hu_of(series[1])).all()


def test_a_slice_that_is_missing_from_the_source_is_named() -> None:
    series = ct_series()
    with pytest.raises(PermanentError, match=str(series[0].SOPInstanceUID)):
        Source.ordered(series[1:], analysed(series), hu_of)


def test_only_the_outputs_asked_for_are_built() -> None:
    context = context_for(ct_series())
    assert list(build_all(context, ("sr", "seg"))) == ["seg", "sr"]
    with pytest.raises(ValueError, match="unknown output 'pdf'"):
        build_all(context, ("pdf",))


def test_our_words_are_ascii() -> None:
    assert plain("Schädel – “ok”\\ 山\n next") == 'Schadel - "ok"/ ? next'
    series = ct_series()
    findings = replace(not_analysed(series), reason=Reason("X", "räumlich – 山"))
    for ds in everything(context_for(series, findings)):
        ds.SpecificCharacterSet = "ISO_IR 100"
        written(ds)
