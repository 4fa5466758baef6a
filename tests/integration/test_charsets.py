"""Patients of every script, and headers of every kind of wrong, from C-STORE in to C-STORE out.

Each case goes through the real listener, is composed and delivered to a real SCP; there the patient module
of every object is compared with the source's, element by element and byte by byte.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import BaseTag, Tag
from pynetdicom import AE, AllStoragePresentationContexts, evt

from node.compose import Composer
from node.deliver import Courier
from node.intake import Intake
from node.maps import Maps, pack
from node.outputs.source import TYPE_2
from node.scp import listener_of, open_socket
from node.scu import Parcel, Peer
from node.settings import Destination, Scp, Settings
from node.spool import Spool
from node.store.records import Records, open_records
from tests.factories import analysed, bleed, ct_series
from tests.peers import requires
from tests.ports import free_port

SLICES, ROWS = 2, 32
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
SCRIPTS: dict[str, tuple[Any, str]] = {
    "japanese, kanji": (["", "ISO 2022 IR 87"], JAPANESE),
    "japanese, katakana first": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "japanese, supplementary kanji": (
        ["", "ISO 2022 IR 87", "ISO 2022 IR 159"],
        "Maruo^Ken=丸尾^丂=まるお^けん",
    ),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "chinese, GB18030": ("GB18030", "Wang^XiaoDong=王^小东"),
    "chinese, GBK": ("GBK", "Wang^XiaoDong=王^小东"),
    "cyrillic": ("ISO_IR 144", "Иванов^Пётр"),
    "greek": ("ISO_IR 126", "Διονυσίου^Άννα"),
    "arabic": ("ISO_IR 127", "قباني^لنزار"),
    "hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "thai": ("ISO_IR 166", "นามสกุล^ชื่อ"),
    "turkish": ("ISO_IR 148", "Çavuşoğlu^İbrahim"),
    "latin-1": ("ISO_IR 100", "Äneas^Rüdiger^Buc^Dr."),
    "latin-2": ("ISO_IR 101", "Wałęsa^Świętosława"),
    "utf-8": ("ISO_IR 192", "Ünal^Ömer=王^😀"),
    "several, with escapes": (["ISO 2022 IR 100", "ISO 2022 IR 126"], "Dionysiou^Äß=Διονυσίου"),
    "none": (None, "Plain^Name"),
}
RAW: dict[str, dict[str, bytes]] = {  # values by keyword, as they stand in the file
    "katakana alone": {"SpecificCharacterSet": b"ISO_IR 13", "PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ".encode("shift_jis")},
    "chinese, ISO 2022": {
        "SpecificCharacterSet": b"\\ISO 2022 IR 58",
        "PatientName": b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",
    },
    "latin-9": {"SpecificCharacterSet": b"ISO_IR 203", "PatientName": "Lœuf^Š€".encode("iso8859-15")},
    "bytes undeclared": {"SpecificCharacterSet": b"", "PatientName": "Müller^Jörg".encode("latin-1")},
    "utf-8 undeclared": {"SpecificCharacterSet": b"", "PatientName": "山田^太郎".encode()},
    "utf-8 declared as latin-1": {"PatientName": "Иванов^Пётр".encode()},
    "latin-1 declared as utf-8": {"SpecificCharacterSet": b"ISO_IR 192", "PatientName": b"M\xfcller^J\xf6rg"},
    "a character set nobody knows": {"SpecificCharacterSet": b"ISO_IR 999", "PatientName": b"M\xfcller^J"},
    "a character set misspelt": {
        "SpecificCharacterSet": b"ISO-IR-100",
        "PatientName": b"M\xfcl^J",
    },
    "an escape that never ends": {"PatientName": b"Yamada=\x1b$B;3"},
    "several names": {"PatientName": b"One^A\\Two^B"},
    "a backslash in the ID": {"PatientID": b"12\\34"},
    "null bytes": {"PatientName": b"Null^\0\0Byte\0", "PatientID": b"1\0" + b"2\0"},
    "control characters": {"PatientName": b"Tab\t^New\r\nLine", "StudyDescription": b"bell\x07"},
    "nothing but blanks": {"PatientName": b"    ", "PatientID": b"  "},
    "very long values": {"PatientName": b"L" * 3000, "PatientID": b"9" * 500, "AccessionNumber": b"A" * 200},
    "an illegal sex": {"PatientSex": b"W "},
    "a sex in lower case": {"PatientSex": b"f "},
    "dates of other places": {"PatientBirthDate": b"01.02.1960", "StudyDate": b"2026-11-20"},
    "a date range": {"PatientBirthDate": b"19600101-19601231 "},
    "no dates": {"PatientBirthDate": b"", "StudyDate": b"", "StudyTime": b""},
    "a time that is none": {"StudyTime": b"25:61 "},
    "an age in words": {"PatientAge": b"sixty-six "},
    "a weight in words": {"PatientWeight": b"heavy "},
    "numbers with a comma": {"PatientSize": b"1,82"},
}
ABSENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


@dataclass
class World:
    """A listener, a composer, a courier and the PACS at the other end."""

    settings: Settings
    records: Records
    spool: Spool
    received: dict[str, bytes]

    def through(self, files: list[bytes]) -> list[FileDataset]:
        """Send these files in; what the PACS got of them."""
        self.received.clear()
        ours = Destination(name="node", ae_title=self.settings.scp.ae_title, port=self.settings.scp.port)
        parcels = []
        for number, content in enumerate(files):
            path = self.spool.root / f"sent-{number}"
            path.write_bytes(content)
            parcels.append(Parcel(number, path, str(dcmread(path).SOPClassUID)))
        outcomes = list(Peer(ours, "CT1").send(parcels))
        assert [outcome.status for outcome in outcomes] == ["0x0000"] * len(files), outcomes
        self._analyse([dcmread(BytesIO(content)) for content in files])
        (pacs,) = self.settings.destination
        assert Composer(self.settings, self.records, self.spool).round() == 1
        courier = Courier(pacs, Peer(pacs, "ICHNODE"), self.records, self.spool)
        while self.records.deliveries.take_due(pacs.name, time.time(), 0.0, 1):
            assert courier.round()
        return [dcmread(BytesIO(content)) for content in self.received.values()]

    def _analyse(self, series: list[FileDataset]) -> None:
        """As settle and worker would: the same findings every time."""
        (row,) = self.records.decisions.of_study(str(series[0].StudyInstanceUID))
        assert self.records.decisions.settle(row, time.time())
        job_id = self.records.decisions.decide(row, [], time.time())
        assert job_id and self.records.jobs.claim(job_id, "w:1", 1e12, time.time())
        masks = bleed(SLICES, ROWS)
        path = self.spool.job_path(job_id, 1, "maps.npz")
        self.spool.write(path, (pack(Maps(masks, np.zeros((SLICES, 8, 8), np.uint8))),))
        found = analysed(series, {"any": 0.97}, masks=masks)
        assert self.records.jobs.store_analysis(job_id, "w:1", found, path, 1_790_000_000.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data_dir = tmp_path_factory.mktemp("node")
    received: dict[str, bytes] = {}

    def store(event: evt.Event) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset()
        return 0x0000

    ae, port = AE("PACS"), free_port()
    ae.supported_contexts = AllStoragePresentationContexts
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    pacs = Destination(name="pacs", ae_title="PACS", port=port)
    scp = Scp(port=free_port(), processes=1)
    settings = Settings(data_dir=data_dir, scp=scp, destination=(pacs,))
    (data_dir / "spool").mkdir()
    records, spool = open_records(settings), Spool(data_dir / "spool")
    listening = open_socket(scp)
    listener = listener_of(settings, records, Intake(spool, records, time.time, scp))
    listener.start(listening)
    yield World(settings, records, spool, received)
    listener.stop()
    listening.close()
    server.shutdown()
    records.close()


def series_of(name: str, raw: dict[str, bytes] | None = None, **attributes: Any) -> list[bytes]:
    """Files of a short series; `raw` values stand in them as they are, whatever the standard says."""
    with disable_value_validation():
        series = ct_series(SLICES, rows=ROWS, name=name, **attributes)
        return [_file(ds, raw or {}) for ds in series]


def _file(ds: Dataset, raw: dict[str, bytes]) -> bytes:
    for keyword, value in raw.items():
        tag = Tag(keyword)
        ds.add_new(tag, _vr(tag), None)
        padded = value + b" " * (len(value) % 2)
        ds[tag] = RawDataElement(tag, _vr(tag), len(padded), padded, 0, False, True)
    stream = BytesIO()
    dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def _vr(tag: BaseTag) -> str:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag)


STUDY = ("SpecificCharacterSet", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription",
         "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


def same_patient_and_study(source: bytes, ours: FileDataset) -> None:
    """Element by element and, for all but sequences, byte by byte; type 2 ones are there at least empty.

    SpecificCharacterSet is of type 1C: an empty one is none (PS3.5 7.4.2).
    """
    theirs = dcmread(BytesIO(source))
    if not theirs.get("SpecificCharacterSet"):
        theirs.pop("SpecificCharacterSet", None)
    of_patient = [tag for tag in theirs.keys() if tag.group in (0x0010, 0x0012)]  # noqa: SIM118
    assert len(of_patient) >= 1
    for tag in [*of_patient, *(Tag(keyword) for keyword in STUDY)]:
        if tag not in theirs:
            continue
        there, here = theirs.get_item(tag), ours.get_item(tag)
        assert here is not None, tag
        if there.VR == "SQ":
            assert ours[tag] == theirs[tag]
        else:
            assert (here.VR, here.value or b"") == (there.VR, there.value or b""), tag
    more = {t for t in ours.keys() if t.group in (0x0010, 0x0012)} - set(of_patient)  # noqa: SIM118
    assert more <= {Tag(keyword) for keyword in TYPE_2}
    assert not any(ours[tag].value for tag in more)
    assert all(keyword in ours for keyword in TYPE_2)
    assert ("SpecificCharacterSet" in ours) == ("SpecificCharacterSet" in theirs)


def errors(content: bytes, folder: Path) -> set[str]:
    """What dciodvfy finds wrong."""
    file = folder / "object.dcm"
    file.write_bytes(content)
    done = subprocess.run(["dciodvfy", "-new", file], capture_output=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).decode("latin-1").splitlines()
    return {line for line in lines if "Error" in line}


def check(world: World, files: list[bytes], folder: Path) -> list[FileDataset]:
    made = world.through(files)
    assert {ds.Modality for ds in made} == {"SR", "SEG", "CT"}
    for ds in made:
        same_patient_and_study(files[0], ds)
    requires("dciodvfy")
    excused = errors(files[0], folder)  # what the source does wrong is carried on as it is
    for ds in made:
        if ds.Modality != "CT" or ds.InstanceNumber == 2:  # the captures differ in nothing but their pixels
            uid = str(ds.SOPInstanceUID)
            assert errors(world.received[uid], folder) <= excused, uid
    return made


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_in_any_script(script: str, world: World, tmp_path: Path) -> None:
    charset, name = SCRIPTS[script]
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "OTHER-1", "TEXT"
    attributes = {
        "SpecificCharacterSet": charset,
        "PatientName": name,
        "OtherPatientIDsSequence": [other],
        "PatientComments": name.split("=")[-1],
        "InstitutionName": None,
        "Manufacturer": "Scanner",
    }
    files = series_of(f"script {script}", **attributes)
    assert str(dcmread(BytesIO(files[0])).PatientName) == name, "the case itself is sound"
    for ds in check(world, files, tmp_path):
        assert str(ds.PatientName) == name
        assert ds.PatientComments == name.split("=")[-1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", RAW)
def test_a_header_as_it_stands(what: str, world: World, tmp_path: Path) -> None:
    charset = {"InstitutionName": None, "Manufacturer": "Scanner"}
    check(world, series_of(f"raw {what}", RAW[what], **charset), tmp_path)


def test_type_2_elements_that_are_empty(world: World, tmp_path: Path) -> None:
    check(world, series_of("empty", **dict.fromkeys(ABSENT, "")), tmp_path)


def test_a_patient_without_anything(world: World, tmp_path: Path) -> None:
    bare = dict.fromkeys((*ABSENT, "PatientAge", "IssuerOfPatientID", "SpecificCharacterSet"))
    files = series_of("bare", **bare, InstitutionName=None, Manufacturer="Scanner", PatientComments="left")
    check(world, files, tmp_path)


def test_the_console_lists_them_all(world: World) -> None:
    """Whatever the names are made of, what was recorded can be read back and written as JSON."""
    import json

    studies = world.records.views.studies(limit=500)
    assert studies
    json.dumps(studies, ensure_ascii=False).encode("utf-8")
