"""The record of one association: made with its first instance, closed at its end. Knows no protocol."""

from __future__ import annotations

import logging
import threading
import time
import uuid

from node.domain.errors import TransientError
from node.recorder import Recorder
from node.store.records import Records

log = logging.getLogger(__name__)

AGAIN_S = 2.0


class Visit:
    """A peer that is connected to a listener process."""

    def __init__(
        self, records: Records, recorder: Recorder, listener: str, calling_ae: str, address: str
    ) -> None:
        self._records = records
        self._recorder = recorder
        self._listener = listener
        self._peer = (calling_ae, address)
        self._id = ""

    def association_id(self) -> str:
        """Recorded with the first instance: one that only echoes leaves no row. Raises TransientError."""
        if not self._id:
            made = str(uuid.uuid4())
            self._records.arrivals.open_association(made, self._listener, self._peer, time.time())
            self._id = made
        return self._id

    def close(self, released: bool) -> None:
        """Its end counts once, and behind all that came. With the database away it is tried again, or its
        series would wait long.
        """
        if not self._id:
            return
        self._recorder.ended(self._id)
        outcome = "released" if released else "aborted"
        try:
            self._recorder.flush()
            self._records.arrivals.close_association(self._id, outcome, time.time())
        except TransientError as error:
            log.error("association %s stays open in the records for now: %s", self._id, error)
            again = threading.Timer(AGAIN_S, self.close, (released,))
            again.daemon = True
            again.start()
        else:
            self._id = ""
