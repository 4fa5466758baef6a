"""The plain listener: C-ECHO and C-STORE SCP on pynetdicom, a fall-back for the streaming one.

Decides nothing. Each data set is held in memory until it is whole.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from pydicom.uid import UID
from pynetdicom import AE, Association, _config, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from node import commitment, transport
from node.admission import Doorman
from node.domain.admission import Caller
from node.domain.errors import TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dul.limits import MAXIMUM_PDU_BYTES
from node.intake import OUT_OF_RESOURCES, PROCESSING_FAILURE, Intake
from node.liveness import process_name
from node.offer import STORAGE_COMMITMENT, STORED, TRANSFER_SYNTAXES, VERIFICATION
from node.settings import Scp, Settings
from node.store.records import Records
from node.transport import Server
from node.visits import Visit
from node.wholeness import Announced

log = logging.getLogger(__name__)

STOP_WITHIN_S = 2.0


class Listener:
    """One listener process' share of the SCP."""

    def __init__(
        self, settings: Settings, records: Records, intake: Intake, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings = settings
        self._records = records
        self._intake = intake
        self._tls = tls
        self.name = process_name()
        self._server: ThreadedAssociationServer | None = None
        self._visits: WeakKeyDictionary[Association, Visit] = WeakKeyDictionary()
        self._released: WeakSet[Association] = WeakSet()
        self._admitted: WeakSet[Association] = WeakSet()
        self._door = threading.Lock()
        self._doorman = Doorman(settings.scp.admission, records)

    def start(self, listening: socket.socket) -> None:
        """Serve on `listening` in threads, until `stop`."""
        _config.LOG_HANDLER_LEVEL = "none"
        scp = self._settings.scp
        ae = _application_entity(scp)
        server_class = type("BoundServer", (Server,), {"listening": listening, "admits": self._admits})
        server = ae.make_server(
            (scp.host, scp.port),
            evt_handlers=self._handlers(),
            ssl_context=self._tls,
            server_class=server_class,
        )
        self._server = server
        threading.Thread(target=server.serve_forever, name="scp", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
        self._doorman.close(STOP_WITHIN_S)

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_PDU_RECV, self._on_pdu),
            (evt.EVT_RELEASED, self._on_over),
            (evt.EVT_ABORTED, self._on_over),
            (evt.EVT_CONN_CLOSE, self._on_over),
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
        ]

    def _admits(self, address: str, in_all: int, of_peer: int) -> bool:
        return self._doorman.knows(address) and self._doorman.has_room(in_all, of_peer)

    def _on_request(self, event: evt.Event) -> None:
        """Before pynetdicom negotiates: whoever may not come in is told, and nothing more is done."""
        assoc = event.assoc
        asked = cast(A_ASSOCIATE, assoc.requestor.primitive)
        address = str(assoc.requestor.address)
        caller = Caller(address, asked.calling_ae_title, asked.called_ae_title)
        with self._door:  # one after another, or several would take the last place
            peers = [other.requestor.address for other in self._admitted if other.is_alive()]
            refusal = self._doorman.refuse(caller, len(peers), peers.count(address))
            if refusal is None:
                self._admitted.add(assoc)
                return
        assoc.acse.send_reject(refusal.result, refusal.source, refusal.diagnostic)
        assoc.kill()  # waits until the answer is sent

    def _on_store(self, event: evt.Event) -> int:
        request = cast(C_STORE, event.request)
        try:
            announced = Announced(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae=event.assoc.requestor.ae_title.strip(),
                association_id=self._visit(event.assoc).association_id(),
            )
            return self._intake.receive(announced, cast(BytesIO, request.DataSet).getbuffer())
        except TransientError as error:
            log.error("cannot record an association: %s", error)
            return OUT_OF_RESOURCES
        except Exception:
            log.exception("C-STORE of %s failed", request.AffectedSOPInstanceUID)
            return PROCESSING_FAILURE

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        """A destination answers a request for storage commitment."""
        try:
            answer = event.event_information
            destinations = self._settings.destination
            return commitment.take_in(answer, self._records, destinations, time.time()), None
        except Exception:
            log.exception("N-EVENT-REPORT of %s failed", event.assoc.requestor.ae_title)
            return PROCESSING_FAILURE, None

    def _visit(self, assoc: Association) -> Visit:
        if assoc not in self._visits:
            peer = (assoc.requestor.ae_title.strip(), str(assoc.requestor.address))
            self._visits[assoc] = Visit(self._records, self._intake.recorder, self.name, *peer)
        return self._visits[assoc]

    def _on_pdu(self, event: evt.Event) -> None:
        """The wish to release is seen before the end of the connection; EVT_RELEASED may come after it."""
        if isinstance(event.pdu, A_RELEASE_RQ):
            self._released.add(event.assoc)
        elif isinstance(event.pdu, P_DATA_TF) and self._too_much(event.assoc):
            peer = event.assoc.requestor
            log.error("%s at %s sends an instance that is too large; cut off", peer.ae_title, peer.address)
            cast(AssociationSocket, event.assoc.dul.socket).close()  # abort() would wait for this very thread

    def _too_much(self, assoc: Association) -> bool:
        """Whether the data set that is arriving, which lies in memory, exceeds scp.max_instance_mb."""
        message = assoc.dimse.message
        data = message.data_set if message is not None else None
        return data is not None and data.tell() > self._settings.scp.max_instance_mb * 2**20

    def _on_over(self, event: evt.Event) -> None:
        if event.assoc in self._visits:
            self._visits[event.assoc].close(event.assoc in self._released)


def _application_entity(scp: Scp) -> AE:
    ae = AE(scp.ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
    ae.maximum_associations = scp.max_associations + transport.SPARE_CONNECTIONS  # the door is elsewhere
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = scp.timeout_s
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(STORAGE_COMMITMENT, scu_role=False, scp_role=True)  # it reports to us
    for sop_class in STORED:
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    return ae
