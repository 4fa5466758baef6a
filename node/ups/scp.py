"""The SCP of UPS Pull and Watch on a port of its own: hands requests to the service, answers its statuses.

It runs apart from the C-STORE listener, so that no question of a reader ever delays an image.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any, cast

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.dimse_primitives import N_ACTION, N_GET, N_SET
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepPull,
    UnifiedProcedureStepWatch,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from node.domain.admission import is_inside, networks
from node.domain.errors import TransientError
from node.domain.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dul.limits import MAXIMUM_PDU_BYTES
from node.scp import open_socket, tls_context
from node.settings import Scp, Settings
from node.store.audit import Actor
from node.transport import Server
from node.ups.service import Service

log = logging.getLogger(__name__)

OUT_OF_RESOURCES = 0xA700  # PS3.4 Table CC.2.8-2: the database is away
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.11
CANCELLED = 0xFE00
MOST_ASSOCIATIONS = 16
READER = "reader"
"""The role under which readers stand in the audit trail."""
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class UpsScp:
    """One UPS port."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._ups = settings.ups
        self._service = service
        self._networks = networks(settings.ups.addresses)
        self._own = Scp(
            ae_title=settings.scp.ae_title,
            host=self._ups.host,
            port=self._ups.port,
            tls=self._ups.tls,
            timeout_s=settings.scp.timeout_s,
        )
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> None:
        """Serve in threads, until `stop`. Raises SettingsError when the port cannot be had."""
        _config.LOG_HANDLER_LEVEL = "none"
        self._listening = open_socket(self._own, "ups")
        attributes = {"listening": self._listening, "admits": self._admits}
        server = application_entity(self._own, self._ups.calling_ae_titles).make_server(
            (self._own.host, self._own.port),
            evt_handlers=self._handlers(),
            ssl_context=tls_context(self._own, "ups"),
            server_class=type("UpsServer", (Server,), attributes),
        )
        self._server = server
        threading.Thread(target=server.serve_forever, name="ups", daemon=True).start()
        log.info("workitems are served on %s:%d", self._own.host, self._own.port)

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
            self._listening.close()

    def _admits(self, address: str, in_all: int, of_peer: int) -> bool:
        if is_inside(address, self._networks):
            return in_all < 2 * MOST_ASSOCIATIONS
        log.warning("%s is not in ups.addresses; it is disconnected", address)
        return False

    def _handlers(self) -> list[Any]:
        return [
            (evt.EVT_C_ECHO, lambda event: 0x0000),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_N_GET, self._on_get),
            (evt.EVT_N_SET, self._on_set),
            (evt.EVT_N_ACTION, self._on_action),
        ]

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        try:
            for status, found in self._service.find(event.identifier):
                if event.is_cancelled:
                    yield CANCELLED, None
                    return
                yield status, found
        except TransientError as error:
            log.error("a C-FIND of %s fails: %s", event.assoc.requestor.ae_title, error)
            yield OUT_OF_RESOURCES, None
        except Exception:
            log.exception("a C-FIND of %s fails", event.assoc.requestor.ae_title)
            yield PROCESSING_FAILURE, None

    def _on_get(self, event: evt.Event) -> tuple[int, Dataset | None]:
        request = cast(N_GET, event.request)
        return self._answered(
            event,
            lambda: self._service.get(str(request.RequestedSOPInstanceUID), event.attribute_identifiers),
        )

    def _on_set(self, event: evt.Event) -> tuple[int, Dataset | None]:
        request = cast(N_SET, event.request)
        return self._answered(
            event, lambda: self._service.set(str(request.RequestedSOPInstanceUID), event.modification_list)
        )

    def _on_action(self, event: evt.Event) -> tuple[int, Dataset | None]:
        request = cast(N_ACTION, event.request)
        who = event.assoc.requestor
        reader = Actor(who.ae_title.strip(), READER, str(who.address))

        def act() -> tuple[int, Dataset | None]:
            uid, kind = str(request.RequestedSOPInstanceUID), int(event.action_type or 0)
            return self._service.act(uid, kind, event.action_information, reader), None

        return self._answered(event, act)

    def _answered(self, event: evt.Event, handle: Any) -> tuple[int, Dataset | None]:
        try:
            status, ds = handle()
        except TransientError as error:
            log.error("a request of %s fails: %s", event.assoc.requestor.ae_title, error)
            return PROCESSING_FAILURE, None
        except Exception:
            log.exception("a request of %s fails", event.assoc.requestor.ae_title)
            return PROCESSING_FAILURE, None
        return status, ds


def application_entity(own: Scp, calling: tuple[str, ...]) -> AE:
    ae = AE(own.ae_title)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = MAXIMUM_PDU_BYTES
    ae.maximum_associations = MOST_ASSOCIATIONS
    ae.network_timeout = ae.acse_timeout = ae.dimse_timeout = own.timeout_s
    ae.require_calling_aet = list(calling)
    for sop_class in (Verification, UnifiedProcedureStepPull, UnifiedProcedureStepWatch):
        ae.add_supported_context(sop_class, list(SYNTAXES))
    return ae
