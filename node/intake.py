"""One received instance: check it, make it durable, record it, then answer Success. Decodes no pixels."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from node.domain.eligibility import CT_IMAGE, ENHANCED_CT_IMAGES
from node.domain.errors import PermanentError, TransientError
from node.domain.instance import Instance
from node.headers import read_instance
from node.spool import Spool
from node.store.arrivals import Recorded, StoredFile, check_recordable
from node.store.records import Records

log = logging.getLogger(__name__)

# C-STORE response status, PS3.4 Table B.2-1
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

IMPLEMENTATION_CLASS_UID = UID("2.25.302043790172249692526321623266752743501")
IMPLEMENTATION_VERSION_NAME = "ICHNODE"

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
TRAILING_PADDING = 0xFFFCFFFC
MARK = b"written by ichnode to find the end"


@dataclass(frozen=True)
class Received:
    """A C-STORE request: the data set as it came over the wire, and what the command said of it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    association_id: str
    data: bytes | memoryview


class Intake:
    """Takes instances in. One object serves every association of a listener process."""

    def __init__(self, spool: Spool, records: Records, clock: Callable[[], float]) -> None:
        self._spool = spool
        self._records = records
        self._clock = clock

    def receive(self, received: Received) -> int:
        """The C-STORE status for one instance (PS3.4 B.2.3). Success means: survives a power cut."""
        try:
            return self._receive(received)
        except PermanentError as error:
            log.warning("refused %s from %s: %s", received.sop_instance_uid, received.calling_ae, error)
            return DOES_NOT_MATCH_SOP_CLASS if error.code == "SOP_MISMATCH" else CANNOT_UNDERSTAND
        except TransientError as error:
            log.error("no room for %s from %s: %s", received.sop_instance_uid, received.calling_ae, error)
            return OUT_OF_RESOURCES

    def _receive(self, received: Received) -> int:
        arrivals = self._records.arrivals
        if arrivals.is_own_object(received.sop_instance_uid):
            log.info("%s is a result of this node; not taken in again", received.sop_instance_uid)
            return SUCCESS
        head = _file_head(received)
        instance = _understood(received, head)
        check_recordable(instance)
        path = self._spool.instance_path(
            instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid
        )
        file = StoredFile(path, len(head) + len(received.data), hashlib.sha256(received.data).hexdigest())
        self._spool.check_room(file.size_bytes)
        self._spool.write(path, (head, received.data))
        outcome = arrivals.record(instance, file, received.association_id, self._clock())
        if outcome is Recorded.REPLACED:
            log.warning("%s came again with other content and replaced it", instance.sop_instance_uid)
        return SUCCESS


def _understood(received: Received, head: bytes) -> Instance:
    """The instance, once its data set is whole and is what the command announced."""
    stream = io.BytesIO(b"".join((head, received.data)))
    try:
        instance = read_instance(stream)
    except zlib.error as error:
        raise PermanentError("TRUNCATED", f"deflated data set cannot be inflated: {error}") from error
    if instance.sop_class_uid != received.sop_class_uid:
        raise PermanentError(
            "SOP_MISMATCH", f"announced as {received.sop_class_uid}, is a {instance.sop_class_uid}"
        )
    if instance.sop_instance_uid != received.sop_instance_uid:
        raise PermanentError("SOP_MISMATCH", f"the data set says {instance.sop_instance_uid}")
    if received.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:  # inflating has told already
        _check_whole(stream, UID(received.transfer_syntax_uid), instance)
    return instance


def _check_whole(stream: io.BytesIO, syntax: UID, instance: Instance) -> None:
    """`stream` stands where the header ended. Raises PermanentError TRUNCATED when something is missing."""
    data = stream.getbuffer()[stream.tell() :]
    name = f"instance {instance.sop_instance_uid}"
    order = "<" if syntax.is_little_endian else ">"
    group, element = struct.unpack(order + "HH", data[:4]) if len(data) >= 8 else (0, 0)
    if (tag := group << 16 | element) != PIXEL_DATA and tag not in FLOAT_PIXEL_DATA:
        if instance.sop_class_uid in (CT_IMAGE, *ENHANCED_CT_IMAGES):
            raise PermanentError("TRUNCATED", f"{name}: is an image, but its pixel data is missing")
        if not _ends_well(stream, syntax):
            raise PermanentError("TRUNCATED", f"{name}: its last element is cut short")
        return
    offset = 8 if syntax.is_implicit_VR else 12
    length = struct.unpack(order + "I", data[offset - 4 : offset])[0] if len(data) >= offset else 1 << 32
    if length == UNDEFINED_LENGTH:
        if not _fragments_end(data[offset:]):
            raise PermanentError("TRUNCATED", f"{name}: encapsulated pixel data does not end")
    elif length > len(data) - offset:
        raise PermanentError("TRUNCATED", f"{name}: {len(data) - offset} of {length} pixel bytes arrived")


def _fragments_end(data: memoryview) -> bool:
    """Whether items follow one another up to the Sequence Delimitation Item (PS3.5 A.4)."""
    at = 0
    while len(data) - at >= 8:
        group, element, length = struct.unpack("<HHI", data[at : at + 8])
        if (group, element) != ITEM:
            return bool((group, element) == SEQUENCE_DELIMITER)
        at += 8 + length
    return False


def _ends_well(stream: io.BytesIO, syntax: UID) -> bool:
    """Whether an element written behind the last one is found there: one cut short would swallow it."""
    order, header = (
        ("<" if syntax.is_little_endian else ">"),
        (TRAILING_PADDING >> 16, TRAILING_PADDING & 0xFFFF),
    )
    start = struct.pack(order + "HH", *header) + (b"" if syntax.is_implicit_VR else b"OB\0\0")
    more = start + struct.pack(order + "I", len(MARK)) + MARK
    ds = dcmread(io.BytesIO(stream.getvalue() + more), specific_tags=[TRAILING_PADDING])
    return TRAILING_PADDING in ds and ds[TRAILING_PADDING].value == MARK


def _file_head(received: Received) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) that make the received bytes a DICOM file."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(received.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(received.sop_instance_uid)
    meta.TransferSyntaxUID = UID(received.transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = received.calling_ae[:16]
    stream = DicomBytesIO()
    stream.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(stream, meta, enforce_standard=True)
    return stream.getvalue()
