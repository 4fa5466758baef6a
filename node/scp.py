"""The listener: C-ECHO and C-STORE SCP on pynetdicom. Hands instances to intake; decides nothing itself."""

from __future__ import annotations

import logging
import math
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from io import BytesIO
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakSet

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, Association, _config, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu import A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from node import commitment, transport
from node.admission import Doorman
from node.domain.admission import Caller
from node.domain.errors import SettingsError, TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.intake import (
    OUT_OF_RESOURCES,
    Intake,
    Received,
)
from node.liveness import is_gone, process_name
from node.settings import Scp, Settings
from node.spool import Spool
from node.store.records import Records, open_records
from node.transport import MAXIMUM_PDU_BYTES, Server

log = logging.getLogger(__name__)

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS = (
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
)
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
TRANSFER_SYNTAXES: tuple[UID, ...] = (*NATIVE, *LOSSLESS, *LOSSY)

PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.11


def open_socket(scp: Scp, section: str = "scp") -> socket.socket:
    """A listening socket. Raises SettingsError when the address is taken or is not ours."""
    try:
        family = socket.getaddrinfo(scp.host, scp.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((scp.host, scp.port), family=family, backlog=256)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {scp.host}:{scp.port} ({section}.host, {section}.port): {error.strerror}; "
            "stop what uses the port, or choose another"
        ) from error
    listening.setblocking(False)
    return listening


class Listener:
    """One listener process' share of the SCP."""

    def __init__(self, settings: Settings, records: Records, intake: Intake) -> None:
        self._settings = settings
        self._records = records
        self._intake = intake
        self.name = process_name()
        self._server: ThreadedAssociationServer | None = None
        self._associations: WeakKeyDictionary[Association, str] = WeakKeyDictionary()
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
            ssl_context=tls_context(scp),
            server_class=server_class,
        )
        self._server = server
        threading.Thread(target=server.serve_forever, name="scp", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()

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
        """Some connections more than associations are let in, so that one too many is told why."""
        rules = self._settings.scp.admission
        room = in_all < rules.max_associations + transport.SPARE_CONNECTIONS
        fair = of_peer < rules.of_one_peer + math.ceil(transport.SPARE_CONNECTIONS / 2)
        return self._doorman.knows(address) and room and fair

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
            received = Received(
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                calling_ae=event.assoc.requestor.ae_title.strip(),
                association_id=self._association_id(event.assoc),
                data=cast(BytesIO, request.DataSet).getbuffer(),
            )
            return self._intake.receive(received)
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

    def _association_id(self, assoc: Association) -> str:
        """Recorded with the first instance: an association that only echoes leaves no row."""
        if assoc not in self._associations:
            name = str(uuid.uuid4())
            peer = (assoc.requestor.ae_title.strip(), str(assoc.requestor.address))
            self._records.arrivals.open_association(name, self.name, peer, time.time())
            self._associations[assoc] = name
        return self._associations[assoc]

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
        name = self._associations.get(event.assoc)
        if name is None:
            return
        outcome = "released" if event.assoc in self._released else "aborted"
        try:
            self._records.arrivals.close_association(name, outcome, time.time())
        except TransientError as error:
            log.error("association %s stays open in the records: %s", name, error)
        else:
            self._associations.pop(event.assoc, None)


def tls_context(scp: Scp) -> ssl.SSLContext | None:
    """None without a certificate. Raises SettingsError when the files cannot be used."""
    if not scp.tls.cert:
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=scp.tls.ca or None)
        context.load_cert_chain(scp.tls.cert, scp.tls.key or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"scp.tls: {error}; give PEM files that can be read") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if scp.tls.ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _application_entity(scp: Scp) -> AE:
    ae = AE(scp.ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
    ae.maximum_associations = scp.max_associations + transport.SPARE_CONNECTIONS  # the door is elsewhere
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = scp.timeout_s
    ae.add_supported_context(Verification)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)  # it reports to us
    for sop_class in (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage):
        ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
    analysed = {context.abstract_syntax for context in ae.supported_contexts}
    for context in AllStoragePresentationContexts:
        if context.abstract_syntax and context.abstract_syntax not in analysed:
            ae.add_supported_context(context.abstract_syntax, list(TRANSFER_SYNTAXES))
    return ae


def close_dead_associations(records: Records) -> None:
    """What a killed listener of this host left open in the records is over."""
    for listener in records.arrivals.open_listeners():
        if is_gone(listener):
            records.arrivals.close_associations_of(listener, time.time())


def serve(settings: Settings, listening: socket.socket, until: Callable[[Records], None]) -> None:
    """Serve on `listening` in this process while `until` runs."""
    records = open_records(settings)
    spool = Spool(settings.data_dir.resolve() / "spool", settings.spool.reserve_mb * 2**20)
    spool.root.mkdir(parents=True, exist_ok=True)
    close_dead_associations(records)
    listener = Listener(settings, records, Intake(spool, records, time.time, settings.scp))
    listener.start(listening)
    try:
        until(records)
    finally:
        listener.stop()
        records.close()
