"""Skimming a header gives what reading it gives, or nothing."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from node import alike
from node.alike import MOST_REMEMBERED, HeadersAlike
from node.domain.errors import PermanentError
from node.domain.instance import Instance
from node.filemeta import file_head
from node.fingerprint import file_digest
from node.frames import UNREADABLE
from node.headers import instance_of
from node.skim import skim
from node.wholeness import Announced, understood
from tests.factories import ct_series, enhanced
from tests.raw_peer import stored

FIRST = 16 * 1024


def encoded(ds: Dataset, syntax: UID, folder: Path) -> bytes:
    """The data set as it would come over the wire."""
    ds.file_meta.TransferSyntaxUID = syntax
    dcmwrite(folder / "a.dcm", ds, enforce_file_format=True)
    return stored(folder / "a.dcm").data


def read(data: bytes, syntax: str) -> Instance | None:
    """What pydicom makes of it; None where that is refused."""
    try:
        ds = dcmread(
            BytesIO(file_head(Announced("1", "2", syntax, "A", "a")) + data), stop_before_pixels=True
        )
        return instance_of(ds, syntax)
    except (PermanentError, OSError, *UNREADABLE):
        return None


def skimmed(data: bytes, syntax: str, headers: HeadersAlike | None = None) -> Instance | None:
    try:
        found = (headers or HeadersAlike()).read("1", data[:FIRST], syntax)
    except PermanentError:
        return None
    return found.instance if found else None


def one() -> Dataset:
    """With sequences of both lengths, nested, and private elements before and between."""
    (ds,) = ct_series(1, rows=16, name="skim")
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-D1100", "Head"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    ds.ReferencedImageSequence = Sequence([outer, outer])
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ReferencedStudySequence = Sequence([inner])
    ds.private_block(0x0009, "MAKER", create=True).add_new(1, "UN", b"\0\1\2\3")
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_ct_image_is_skimmed_to_the_same_instance(syntax: UID, tmp_path: Path) -> None:
    data = encoded(one(), syntax, tmp_path)
    found = skim(data[:FIRST], syntax)
    assert found and skimmed(data, syntax) == read(data, syntax)
    assert (found.pixels_length, len(data) - found.pixels_at) == (16 * 16 * 2,) * 2


def test_encapsulated_pixels_are_found(tmp_path: Path) -> None:
    ds = one()
    ds.compress(RLELossless, generate_instance_uid=False)
    found = skim(encoded(ds, RLELossless, tmp_path)[:FIRST], RLELossless)
    assert found and found.pixels_length == 0xFFFFFFFF


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_left_alone(syntax: UID, tmp_path: Path) -> None:
    (ds,) = ct_series(1, rows=16, name="skim")
    assert skim(encoded(ds, syntax, tmp_path), syntax) is None


def test_multi_frame_objects_and_filled_sequences_are_left_alone(tmp_path: Path) -> None:
    ds = one()
    ds.AnatomicRegionSequence = ds.ReferencedStudySequence
    assert skim(encoded(ds, ExplicitVRLittleEndian, tmp_path), ExplicitVRLittleEndian) is None
    many = enhanced(ct_series(2, rows=16, name="skim"))
    assert skim(encoded(many, ExplicitVRLittleEndian, tmp_path), ExplicitVRLittleEndian) is None


def test_a_header_that_is_longer_than_what_is_held_is_left_alone(tmp_path: Path) -> None:
    ds = one()
    ds.private_block(0x0009, "MAKER").add_new(2, "OB", bytes(FIRST))
    assert skim(encoded(ds, ExplicitVRLittleEndian, tmp_path)[:FIRST], ExplicitVRLittleEndian) is None


@seed(20261121)
@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_noise_is_never_read_otherwise_than_by_pydicom(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    noisy = bytearray(_PLAIN[syntax])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(noisy) - 1))
        noisy[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    headers = HeadersAlike()
    plain = skimmed(_PLAIN[syntax], syntax, headers)
    for found in (skimmed(bytes(noisy), syntax), skimmed(bytes(noisy), syntax, headers)):
        assert found is None or found == read(bytes(noisy), syntax)
    assert skimmed(_PLAIN[syntax], syntax, headers) == plain, "what came between changes nothing"


def test_slices_of_a_series_are_what_each_is_alone(tmp_path: Path) -> None:
    """Some say the same but for what differs in every slice, one does not, and one lacks it."""
    slices = ct_series(6, rows=16, name="slices")
    slices[2].SliceThickness = 1.25
    del slices[3].ImagePositionPatient
    slices[4].InstanceNumber, slices[4].AcquisitionNumber = None, 7
    slices[5].SpecificCharacterSet = "ISO_IR 192"
    headers, syntax = HeadersAlike(), ExplicitVRLittleEndian
    data = [encoded(ds, syntax, tmp_path) for ds in slices]
    found = [skimmed(one, syntax, headers) for one in (*data, *reversed(data))]
    assert found == [read(one, syntax) for one in (*data, *reversed(data))]
    assert len({one.sop_instance_uid for one in found if one}) == 6


def test_a_slice_without_its_uid_is_refused_though_the_one_before_had_one(tmp_path: Path) -> None:
    first, second = ct_series(2, rows=16, name="slices")
    headers, syntax = HeadersAlike(), ExplicitVRLittleEndian
    assert skimmed(encoded(first, syntax, tmp_path), syntax, headers)
    data = encoded(second, syntax, tmp_path)
    uid = str(second.SOPInstanceUID).encode()
    assert skimmed(data.replace(uid, b" " * len(uid)), syntax, headers) is None


def headers_of(slices: list[Dataset], syntax: UID, folder: Path) -> list[bytes]:
    """With elements that nobody wants, of which some differ from slice to slice, in length too."""
    for index, ds in enumerate(slices):
        item = Dataset()
        item.ReferencedSOPInstanceUID = f"1.2.{10**index}"
        ds.SourceImageSequence = Sequence([item] * (index % 3))
        ds["SourceImageSequence"].is_undefined_length = index % 2 == 0
        ds.ContentTime, ds.XRayTubeCurrent = f"1010{index:02}.{'1' * (index % 5 + 1)}", 100 + 90 * index
        ds.SliceLocation, ds.PatientComments = -1.5 * index, "the same"
    return [encoded(ds, syntax, folder)[:FIRST] for ds in slices]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_differs_from_slice_to_slice_is_learned(
    syntax: UID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = headers_of(ct_series(12, rows=16, name="learned"), syntax, tmp_path)
    headers, whole = HeadersAlike(), []
    monkeypatch.setattr(alike, "skim", lambda *given: whole.append(given) or skim(*given))
    assert [skimmed(one, syntax, headers) for one in data] == [read(one, syntax) for one in data]
    assert len(whole) <= 4
    whole.clear()
    assert skimmed(data[3].replace(b"the same", b"another!"), syntax, headers) == read(data[3], syntax)
    assert skimmed(data[4].replace(b"H31s", b"H45s"), syntax, headers) != read(data[4], syntax)
    assert len(whole) >= 1


@pytest.mark.parametrize(
    "value",
    ["+7", " 7 ", "7.0", "7.5", "", "7\\8", "0x7", "1_0", "1e3", "99999999999", "7\0", "\u0665"],
)
def test_numbers_however_they_are_written(value: str, tmp_path: Path) -> None:
    first, second = ct_series(2, rows=16, name="numbers")
    headers, syntax = HeadersAlike(), ExplicitVRLittleEndian
    assert skimmed(encoded(first, syntax, tmp_path), syntax, headers)
    text = value.encode()
    text += b" " * (len(text) % 2)
    for ds, tag, new in (
        (second, b"\x20\0\x13\0IS", text),
        (second, b"\x20\0\x32\0DS", b"1\\" + text + b"\\3"),
        (second, b"\x20\0\x32\0DS", text),
    ):
        plain = encoded(ds, syntax, tmp_path)
        at = plain.index(tag) + 6
        new += b" " * (len(new) % 2)
        length = int.from_bytes(plain[at : at + 2], "little")
        changed = plain[:at] + len(new).to_bytes(2, "little") + new + plain[at + 2 + length :]
        assert skimmed(changed, syntax, headers) == read(changed, syntax)


@seed(20261122)
@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_noise_in_a_header_like_the_ones_before(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian]))
    headers = HeadersAlike()
    for one in _LEARNED[syntax]:
        assert skimmed(one, syntax, headers)
    noisy = bytearray(_LEARNED[syntax][-1])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(noisy) - 1))
        noisy[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    found = skimmed(bytes(noisy), syntax, headers)
    assert found is None or found == read(bytes(noisy), syntax)


def test_few_series_are_remembered(tmp_path: Path) -> None:
    headers, syntax = HeadersAlike(), ExplicitVRLittleEndian
    (ds,) = ct_series(1, rows=16, name="many")
    data, uid = encoded(ds, syntax, tmp_path), str(ds.SeriesInstanceUID).encode()
    for number in range(MOST_REMEMBERED + 10):
        other = f"1.2.{number}".ljust(len(uid), "0").encode()
        found = headers.read(str(number), data.replace(uid, other)[:FIRST], syntax)
        assert found and found.instance.series_instance_uid == other.decode().strip("\0")
    assert len(headers._forms) <= MOST_REMEMBERED


def test_real_headers_are_skimmed_to_the_same_instances() -> None:
    folder = os.environ.get("ICHNODE_TEST_DATA")
    if not folder:
        pytest.skip("ICHNODE_TEST_DATA names no folder with real head CTs")
    paths = sorted(Path(folder).rglob("*.dcm"))[::97][:60]
    same, headers = 0, HeadersAlike()
    for path in [path for first in paths for path in sorted(first.parent.glob("*.dcm"))[:4]]:
        what = stored(path)
        for found in (
            skimmed(what.data, what.transfer_syntax_uid),
            skimmed(what.data, what.transfer_syntax_uid, headers),
        ):
            same += found is not None
            assert found is None or found == read(what.data, what.transfer_syntax_uid), path
    assert same > len(paths) // 2


def test_the_head_of_a_file_is_what_pydicom_writes(tmp_path: Path) -> None:
    (ds,) = ct_series(1, rows=16, name="head")
    announced = Announced(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian, "CT1", "a")
    data = encoded(ds, ExplicitVRLittleEndian, tmp_path)
    path = tmp_path / "ours.dcm"
    path.write_bytes(file_head(announced) + data)
    meta = dcmread(path).file_meta
    assert (meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID) == (
        ds.SOPInstanceUID,
        ExplicitVRLittleEndian,
    )
    assert (meta.SourceApplicationEntityTitle, meta.FileMetaInformationVersion) == ("CT1", b"\0\1")
    again = BytesIO()
    dcmwrite(again, dcmread(path), enforce_file_format=True)
    assert again.getvalue()[: len(file_head(announced))] == file_head(announced)
    with path.open("rb") as stream:
        assert understood(announced, stream, len(file_head(announced))).sop_instance_uid == ds.SOPInstanceUID
    assert len(file_digest(path)) == 64


def _plain(syntax: UID) -> bytes:
    stream, ds = BytesIO(), one()
    ds.file_meta.TransferSyntaxUID = syntax
    dcmwrite(stream, ds, enforce_file_format=True)
    whole = stream.getvalue()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


_PLAIN = {syntax: _plain(syntax) for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)}


def _learned(syntax: UID) -> list[bytes]:
    with TemporaryDirectory() as folder:
        return headers_of(ct_series(4, rows=16, name="learned"), syntax, Path(folder))


_LEARNED = {syntax: _learned(syntax) for syntax in _PLAIN}
