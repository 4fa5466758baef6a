"""One received instance: stream it to disk, check it, make it durable, record it, answer Success.

Decodes no pixels.

`Intake.begin` is called when a C-STORE command has come, `Arrival.write` for its data set as it comes, and
`Arrival.end` gives the status. Nothing of a data set is held in memory but its first bytes.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO

from node.alike import HeadersAlike
from node.domain.errors import PermanentError, TransientError
from node.domain.instance import Instance
from node.filemeta import file_head
from node.fingerprint import fingerprint, is_repeated, recorded
from node.recorder import Recorder
from node.settings import Scp
from node.spool import Part, Spool, SpoolFull
from node.store.arrivals import (
    UNKNOWN,
    Known,
    NewInstance,
    Recorded,
    StoredFile,
    check_recordable,
    repetition,
    require_same_series,
)
from node.store.incidents import Code, Incident
from node.store.records import Records
from node.wholeness import (
    MEGABYTE,
    UNDEFINED_LENGTH,
    Announced,
    require_announced,
    require_pixels,
    too_large,
    understood,
)

log = logging.getLogger(__name__)

# C-STORE response status, PS3.4 Table B.2-1
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111  # PS3.7 Annex C
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.11
STATUS = {
    "SOP_MISMATCH": DOES_NOT_MATCH_SOP_CLASS,
    "DUPLICATE_SOP": DUPLICATE_SOP_INSTANCE,
    "SERIES_TOO_LARGE": OUT_OF_RESOURCES,
}
"""What is answered for a PermanentError of that code; CANNOT_UNDERSTAND for every other."""
CONFLICTS = {
    "DUPLICATE_SOP": Code.SOP_IN_OTHER_SERIES,
    "SERIES_IN_OTHER_STUDY": Code.SERIES_IN_OTHER_STUDY,
}
"""What is noted of a UID that others have already."""
ROOM_CHECKED_EVERY = 16 * MEGABYTE
FIRST_BYTES = 16 * 1024
"""Held of a data set: the header of a CT image, up to its pixels."""


class Intake:
    """Takes instances in. One object serves every association of a listener process."""

    def __init__(
        self,
        spool: Spool,
        records: Records,
        clock: Callable[[], float],
        limits: Scp | None = None,
        later_s: float = 0.0,
    ) -> None:
        """`later_s`: how long after Success a record may follow (`node.recorder`); 0: each comes before."""
        self.spool = spool
        self.records = records
        self.clock = clock
        self.limits = limits or Scp()
        self.headers = HeadersAlike()
        self.recorder = Recorder(records.arrivals, self.limits.max_series_instances, later_s)

    def begin(self, announced: Announced) -> Arrival:
        """A data set is about to come. What is wrong is told at its end: the sender listens no earlier."""
        return Arrival(self, announced)

    def receive(self, announced: Announced, data: bytes | memoryview) -> int:
        """The status of a data set that is in memory already."""
        arrival = self.begin(announced)
        arrival.write((data,))
        return arrival.end()


class Arrival:
    """One data set on its way in. Ends with `end`, or with `abandon` when the rest never comes."""

    def __init__(self, intake: Intake, announced: Announced) -> None:
        self.announced = announced
        self._intake, self._spool, self._arrivals = intake, intake.spool, intake.records.arrivals
        self._recorder = intake.recorder
        self._most_bytes = intake.limits.max_instance_mb * MEGABYTE
        self._head = file_head(announced)
        self._ahead: tuple[bytes, ...] = (self._head,)
        self._fingerprint = fingerprint()
        self._digest: hashlib._Hash | None = None
        """Where there is no file to read it from."""
        self.size_bytes = 0
        self._first = bytearray()
        self._part: Part | None = None
        self._known = UNKNOWN
        self._inquiry: Callable[[], Known] = lambda: UNKNOWN
        self._trouble: PermanentError | TransientError | None = None
        try:
            self._inquiry = self._recorder.inquire(announced.sop_instance_uid)
            self._spool.check_room()
            self._part = self._spool.part()
        except TransientError as error:
            self._digest = hashlib.sha256()
            self._give_up(error)
        except OSError as error:
            self._give_up(self._of_the_volume(error))

    @property
    def is_too_large(self) -> bool:
        return self.size_bytes > self._most_bytes

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """The next bytes of the data set. Raises nothing: the answer waits for the end."""
        before = self.size_bytes
        for piece in pieces:
            self._fingerprint.update(piece)
            if self._digest is not None:
                self._digest.update(piece)
            self.size_bytes += len(piece)
            if len(self._first) < FIRST_BYTES:
                self._first += piece[:FIRST_BYTES]
        if self._part is None:
            return
        try:
            if before // ROOM_CHECKED_EVERY != self.size_bytes // ROOM_CHECKED_EVERY:
                self._spool.check_room()
            if self.size_bytes > self._most_bytes:
                raise too_large(self.announced, self._most_bytes)
            ahead, self._ahead = self._ahead, ()
            self._part.write((*ahead, *pieces))
        except SpoolFull as error:
            self._digest = self._digest_of(self._part, before)
            for piece in pieces:
                self._digest.update(piece)
            self._give_up(error)
        except (PermanentError, TransientError) as error:
            self._give_up(error)
        except OSError as error:
            self._give_up(self._of_the_volume(error))

    def abandon(self) -> None:
        """The rest will not come; nothing is kept."""
        if self._part is not None:
            self._part.drop()
            self._part = None

    def end(self) -> int:
        """The C-STORE status of the whole data set (PS3.4 B.2.3). Success means: survives a power cut."""
        uid, caller = self.announced.sop_instance_uid, self.announced.calling_ae
        try:
            self._take_or_wait()
        except PermanentError as error:
            log.warning("refused %s from %s: %s", uid, caller, error)
            return STATUS.get(error.code, CANNOT_UNDERSTAND)
        except TransientError as error:
            log.error("%s from %s is not taken now: %s", uid, caller, error)
            return OUT_OF_RESOURCES
        finally:
            self.abandon()
        return SUCCESS

    def _give_up(self, error: PermanentError | TransientError) -> None:
        """Go on reading, since the sender goes on sending, and keep nothing."""
        self._trouble = error
        self.abandon()

    def _of_the_volume(self, error: OSError) -> TransientError:
        return TransientError(
            f"{self._spool.root}: {error.strerror or error}; look at the volume of data_dir"
        )

    def _take_or_wait(self) -> None:
        """Raises TransientError where the volume takes or gives no file."""
        try:
            self._take()
        except OSError as error:
            if error.errno in (None, errno.EINVAL):  # no disk is to blame for that
                raise
            raise self._of_the_volume(error) from error

    def _take(self) -> None:
        self._known = self._inquiry()
        if self._known.own:
            log.info("%s is a result of this node; not taken in again", self.announced.sop_instance_uid)
            return
        if self._part is None:
            if isinstance(self._trouble, SpoolFull) and self._is_held():
                return
            raise self._trouble or TransientError(f"{self.announced.sop_instance_uid} was not written")
        if self._ahead:  # nothing came
            self._part.write(self._ahead)
        instance = self._understood(self._part)
        check_recordable(instance)
        file = self._file(instance, self._part)
        if self._here_already(instance, file, self._part):
            return
        self._part.keep(file.path)
        self._part = None
        try:
            if self._known.file is None and self._is_recorded_as_new(instance, file):
                return
            self._require_room_in_series(instance)
            self._record(instance, file)
            self._recorder.carries(self.announced.association_id, instance)
        except PermanentError as error:
            self._spool.discard(file.path)
            if error.code in CONFLICTS:
                self._note(CONFLICTS[error.code], instance, f"refused: {error}")
            raise
        except TransientError:
            self._drop_unless_recorded(instance, file)
            raise

    def _understood(self, part: Part) -> Instance:
        """By its first bytes where they suffice, as they do for nearly every image; else by all of it."""
        syntax = self.announced.transfer_syntax_uid
        header = None
        if not self.is_too_large:
            data = bytes(self._first)
            header = self._intake.headers.read(self.announced.association_id, data, syntax)
        if header is None:
            with part.stream() as stream:
                return understood(self.announced, stream, len(self._head), self._most_bytes)
        instance = header.instance
        require_announced(self.announced, instance)
        with part.stream() if header.pixels_length == UNDEFINED_LENGTH else BytesIO() as stream:
            at, size = len(self._head) + header.pixels_at, len(self._head) + self.size_bytes
            require_pixels(stream, at, header.pixels_length, size, f"instance {instance.sop_instance_uid}")
        return instance

    def _file(self, instance: Instance, part: Part) -> StoredFile:
        """Where the instance will lie: a name that was never used before."""
        uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
        path = self._spool.instance_path(*uids, tag=part.tag)
        size = len(self._head) + self.size_bytes
        return StoredFile(path, size, recorded(self._fingerprint), self._spool.depot.disk)

    def _is_held(self) -> bool:
        """Whether the very same bytes lie here already, so that no room is needed for them."""
        file, uid = self._known.file, self.announced.sop_instance_uid
        if file is None or not self._is_repeated(file) or self._spool.size_here(file.path) is None:
            return False
        return self._arrivals.brought_again(uid, file.path, self.announced.association_id)

    def _is_repeated(self, file: StoredFile) -> bool:
        """Whether what came is, byte for byte, what is recorded with `file`."""
        there, came = self._spool.absolute(file.path), recorded(self._fingerprint)
        return is_repeated(file.fingerprint, there, came, self._sha256)

    def _sha256(self) -> str:
        """Of what came: read from where it lies, since it is seldom asked for."""
        digest = self._digest
        if digest is None:
            assert self._part is not None
            digest = self._digest_of(self._part, self.size_bytes)
        return digest.hexdigest()

    def _digest_of(self, part: Part, size_bytes: int) -> hashlib._Hash:
        """SHA-256 of so much of the data set as was written."""
        digest = hashlib.sha256()
        with part.stream() as stream:
            stream.seek(len(self._head))
            while size_bytes and (piece := stream.read(min(size_bytes, MEGABYTE))):
                digest.update(piece)
                size_bytes -= len(piece)
        return digest

    def _here_already(self, instance: Instance, file: StoredFile, part: Part) -> bool:
        """Whether the instance is recorded and its file is there. Raises PermanentError for a conflict."""
        known = self._known
        if known.file is None or known.header is None:
            return False
        self._require_same_series(instance)
        again = repetition(known.header, self._is_repeated(known.file), instance)
        if again is None:
            return False
        disk = self._spool.depot.disk
        if self._spool.size_here(known.file.path) is not None:
            disk = None
        elif disk is None:
            log.error("the file of %s was lost; it is written anew", instance.sop_instance_uid)
            part.keep(known.file.path)
            self._part = None
        elif again is Recorded.SAME:  # in the bucket, on a disk elsewhere, or lost: whichever, it is healed
            part.keep(known.file.path)
            self._part = None
        else:
            disk = None
        held = self._arrivals.brought_again(
            instance.sop_instance_uid, known.file.path, self.announced.association_id, disk
        )
        if not held and self._part is None:
            raise TransientError(f"instance {instance.sop_instance_uid} was removed while it came again")
        return held

    def _is_recorded_as_new(self, instance: Instance, file: StoredFile) -> bool:
        """The usual case, together with what comes over other associations; or soon will be."""
        new = NewInstance(instance, file, self.announced.association_id, self._intake.clock())
        if self._recorder.later(new, lambda: self._record_after_all(instance, file)):
            return True
        is_recorded = self._recorder.record_new(new)
        if is_recorded:
            self._recorder.carries(new.association_id, instance)
        return is_recorded

    def _record_after_all(self, instance: Instance, file: StoredFile) -> None:
        """Success was answered, and then the records held something else already: nothing is thrown away."""
        try:
            self._record(instance, file)
        except PermanentError as error:
            log.error(
                "%s is not recorded: %s; its file stays at %s", instance.sop_instance_uid, error, file.path
            )
            code = CONFLICTS.get(error.code, Code.SOP_IN_OTHER_SERIES)
            self._note(code, instance, f"not recorded: {error}; its file is {file.path}")

    def _record(self, instance: Instance, file: StoredFile) -> None:
        now = self._intake.clock()
        other_than = self._known.file.path if self._known.file else ""
        outcome = self._arrivals.record(instance, file, self.announced.association_id, now, other_than)
        if outcome in (Recorded.SAME, Recorded.RECODED):  # it came over another association just now
            self._drop_if_recorded_elsewhere(instance, file)
        if outcome is Recorded.REPLACED:
            log.error(
                "%s of series %s came again from %s with other content, which counts from now on",
                *(instance.sop_instance_uid, instance.series_instance_uid, self.announced.calling_ae),
            )

    def _require_same_series(self, instance: Instance) -> None:
        try:
            came = instance.series_instance_uid
            require_same_series(instance.sop_instance_uid, self._known.series_instance_uid, came)
        except PermanentError as error:
            self._note(Code.SOP_IN_OTHER_SERIES, instance, f"refused: {error}")
            raise

    def _require_room_in_series(self, instance: Instance) -> None:
        if self._known.file is not None:
            return
        limit = self._intake.limits.max_series_instances
        if self._arrivals.series_size(instance.series_instance_uid) >= limit:
            text = f"series {instance.series_instance_uid} holds {limit} instances already"
            error = PermanentError("SERIES_TOO_LARGE", f"{text}; raise scp.max_series_instances to take more")
            self._note(Code.SERIES_TOO_LARGE, instance, f"refused: {error}")
            raise error

    def _note(self, code: Code, instance: Instance, text: str) -> None:
        uids = (instance.study_instance_uid, instance.series_instance_uid, instance.sop_instance_uid)
        incident = Incident(code, *uids, self.announced.calling_ae, text)
        self._intake.records.incidents.note(incident, self._intake.clock())

    def _drop_unless_recorded(self, instance: Instance, file: StoredFile) -> None:
        """The sender will try again, and must not fill the disk. If nobody can tell now, the scan will."""
        with suppress(TransientError):
            known = self._arrivals.known(instance.sop_instance_uid).file
            if known is None or known.path != file.path:
                self._spool.discard(file.path)

    def _drop_if_recorded_elsewhere(self, instance: Instance, file: StoredFile) -> None:
        known = self._arrivals.known(instance.sop_instance_uid).file
        if known is not None and known.path != file.path:
            self._spool.discard(file.path)
