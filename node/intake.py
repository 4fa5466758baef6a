"""One received instance: check it, make it durable, record it, then answer Success. Decodes no pixels."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from node.domain.eligibility import CT_IMAGE, ENHANCED_CT_IMAGES
from node.domain.errors import PermanentError, TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.domain.instance import Instance
from node.headers import read_instance
from node.settings import Scp
from node.spool import Spool
from node.store.arrivals import Known, Recorded, StoredFile, check_recordable, repetition, require_same_series
from node.store.incidents import Code, Incident
from node.store.records import Records

log = logging.getLogger(__name__)

# C-STORE response status, PS3.4 Table B.2-1
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 Annex C
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

PIXEL_DATA = 0x7FE00010
FLOAT_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
TRAILING_PADDING = 0xFFFCFFFC
MARK = b"written by ichnode to find the end"
MEGABYTE = 2**20
META_LENGTH_AT = 128 + 4 + 8
"""Where the length of the file meta information stands: behind preamble, prefix and its tag (PS3.10 7.1)."""
STATUS = {
    "SOP_MISMATCH": DOES_NOT_MATCH_SOP_CLASS,
    "DUPLICATE_SOP": DUPLICATE_SOP_INSTANCE,
    "SERIES_TOO_LARGE": OUT_OF_RESOURCES,
}
"""What is answered for a PermanentError of that code; CANNOT_UNDERSTAND for every other."""


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

    def __init__(
        self, spool: Spool, records: Records, clock: Callable[[], float], limits: Scp | None = None
    ) -> None:
        self._spool = spool
        self._records = records
        self._clock = clock
        self._limits = limits or Scp()

    def receive(self, received: Received) -> int:
        """The C-STORE status for one instance (PS3.4 B.2.3). Success means: survives a power cut."""
        try:
            return self._receive(received)
        except PermanentError as error:
            log.warning("refused %s from %s: %s", received.sop_instance_uid, received.calling_ae, error)
            return STATUS.get(error.code, CANNOT_UNDERSTAND)
        except TransientError as error:
            log.error("no room for %s from %s: %s", received.sop_instance_uid, received.calling_ae, error)
            return OUT_OF_RESOURCES

    def _receive(self, received: Received) -> int:
        arrivals = self._records.arrivals
        known = arrivals.known(received.sop_instance_uid)
        if known.own:
            log.info("%s is a result of this node; not taken in again", received.sop_instance_uid)
            return SUCCESS
        head = _file_head(received)
        instance = _understood(received, head, self._limits.max_instance_mb * MEGABYTE)
        check_recordable(instance)
        file = self._file(instance, head, received.data)
        if self._here_already(known, instance, file, received):
            return SUCCESS
        self._spool.check_room(file.size_bytes)
        self._spool.write(file.path, (head, received.data))
        try:
            outcome = arrivals.record(instance, file, received.association_id, self._clock())
        except PermanentError:
            self._spool.remove(file.path)
            raise
        except TransientError:
            self._drop_unless_recorded(instance, file)
            raise
        if outcome in (Recorded.SAME, Recorded.RECODED):  # it came over another association just now
            self._drop_if_recorded_elsewhere(instance, file)
        if outcome is Recorded.REPLACED:
            log.error(
                "%s of series %s came again from %s with other content, which counts from now on",
                *(instance.sop_instance_uid, instance.series_instance_uid, received.calling_ae),
            )
        return SUCCESS

    def _file(self, instance: Instance, head: bytes, data: bytes | memoryview) -> StoredFile:
        """Where the instance will lie: a name that was never used before."""
        uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
        path = self._spool.instance_path(*uids, tag=os.urandom(4).hex())
        return StoredFile(path, len(head) + len(data), hashlib.sha256(data).hexdigest())

    def _here_already(self, known: Known, instance: Instance, file: StoredFile, received: Received) -> bool:
        """Whether the instance is recorded and its file is there. Raises PermanentError for a conflict."""
        if known.file is None or known.header is None:
            self._require_room_in_series(instance, received)
            return False
        self._require_same_series(known, instance, received)
        if repetition(known.header, known.file.sha256, instance, file) is None:
            return False
        if self._spool.size(known.file.path) is None:
            log.error("the file of %s was lost; it is written anew", instance.sop_instance_uid)
            self._spool.write(known.file.path, (_file_head(received), received.data))
        return self._records.arrivals.brought_again(
            instance.sop_instance_uid, known.file.path, received.association_id
        )

    def _require_same_series(self, known: Known, instance: Instance, received: Received) -> None:
        try:
            came = instance.series_instance_uid
            require_same_series(instance.sop_instance_uid, known.series_instance_uid, came)
        except PermanentError as error:
            self._note(Code.SOP_IN_OTHER_SERIES, instance, received, f"refused: {error}")
            raise

    def _require_room_in_series(self, instance: Instance, received: Received) -> None:
        limit = self._limits.max_series_instances
        if self._records.arrivals.series_size(instance.series_instance_uid) >= limit:
            text = f"series {instance.series_instance_uid} holds {limit} instances already"
            error = PermanentError("SERIES_TOO_LARGE", f"{text}; raise scp.max_series_instances to take more")
            self._note(Code.SERIES_TOO_LARGE, instance, received, f"refused: {error}")
            raise error

    def _note(self, code: Code, instance: Instance, received: Received, text: str) -> None:
        uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
        incident = Incident(code, *uids, received.calling_ae, text)
        self._records.incidents.note(incident, self._clock())

    def _drop_unless_recorded(self, instance: Instance, file: StoredFile) -> None:
        """The sender will try again, and must not fill the disk. If nobody can tell now, the scan will."""
        with suppress(TransientError):
            known = self._records.arrivals.known(instance.sop_instance_uid).file
            if known is None or known.path != file.path:
                self._spool.remove(file.path)

    def _drop_if_recorded_elsewhere(self, instance: Instance, file: StoredFile) -> None:
        known = self._records.arrivals.known(instance.sop_instance_uid).file
        if known is not None and known.path != file.path:
            self._spool.remove(file.path)


def _understood(received: Received, head: bytes, most_bytes: int = 4096 * MEGABYTE) -> Instance:
    """The instance, once its data set is whole, not too large and what the command announced."""
    if len(received.data) > most_bytes:
        raise _too_large(received, most_bytes)
    if received.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        _check_inflation(received, most_bytes)
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


def _check_inflation(received: Received, most_bytes: int) -> None:
    """Inflates bit by bit and keeps nothing: a few bytes may stand for more than the memory holds."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    count, rest = 0, bytes(received.data)
    try:
        while rest and not inflater.eof:
            count += len(inflater.decompress(rest, MEGABYTE))
            rest = inflater.unconsumed_tail
            if count > most_bytes:
                raise _too_large(received, most_bytes)
    except zlib.error as error:
        raise PermanentError("TRUNCATED", f"deflated data set cannot be inflated: {error}") from error


def _too_large(received: Received, most_bytes: int) -> PermanentError:
    text = f"instance {received.sop_instance_uid} is larger than {most_bytes // MEGABYTE} MiB"
    return PermanentError("INSTANCE_TOO_LARGE", f"{text}; raise scp.max_instance_mb to take it")


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


def file_digest(file: Path) -> str:
    """SHA-256 of the data set in a file that `Intake` wrote, as it is recorded."""
    data = file.read_bytes()
    (length,) = struct.unpack("<I", data[META_LENGTH_AT : META_LENGTH_AT + 4])
    return hashlib.sha256(memoryview(data)[META_LENGTH_AT + 4 + length :]).hexdigest()


def _file_head(received: Received) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) that make the received bytes a DICOM file."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(received.sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(received.sop_instance_uid)
    meta.TransferSyntaxUID = UID(received.transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    meta.SourceApplicationEntityTitle = received.calling_ae[:16]
    stream = DicomBytesIO()
    stream.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(stream, meta, enforce_standard=True)
    return stream.getvalue()
