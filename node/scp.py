"""The SCP of the node: one socket, and the receiver that the settings choose for it. Speaks no DICOM."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from node.certificates import server_tls
from node.domain.errors import SettingsError
from node.intake import Intake
from node.listener import Listener
from node.liveness import is_gone
from node.receiver import Receiver
from node.recorder import LATER_S
from node.scan import close_associations_of
from node.settings import Scp, Settings, Web
from node.spool import Spool, spool_of
from node.store.records import Records, open_records


def open_socket(scp: Scp | Web, section: str = "scp") -> socket.socket:
    """A listening socket. Raises SettingsError when the address is taken or is not ours."""
    try:
        family = socket.getaddrinfo(scp.host, scp.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((scp.host, scp.port), family=family, backlog=256)
    except (OSError, UnicodeError) as error:  # the latter of what cannot be the name of a host
        why = getattr(error, "strerror", error)
        raise SettingsError(
            f"cannot listen on {scp.host}:{scp.port} ({section}.host, {section}.port): {why}; "
            "stop what uses the port, or choose another"
        ) from error
    listening.setblocking(False)
    return listening


def tls_context(scp: Scp, section: str = "scp") -> ssl.SSLContext | None:
    """None without a certificate. Raises SettingsError when the files cannot be used."""
    return server_tls(scp.tls, f"{section}.tls")


def listener_of(settings: Settings, records: Records, intake: Intake) -> Receiver | Listener:
    """What `scp.receiver` names. Raises SettingsError for TLS files that cannot be used."""
    tls = tls_context(settings.scp)
    if settings.scp.receiver == "pynetdicom":
        return Listener(settings, records, intake, tls)
    return Receiver(settings, records, intake, tls)


def close_dead_associations(records: Records, spool: Spool) -> None:
    """What a killed listener of this host left open in the records is over."""
    for listener in records.arrivals.open_listeners():
        if is_gone(listener):
            close_associations_of(listener, records, spool)


def later_s(spool: Spool) -> float:
    """How long after Success a record may follow: not at all where nobody else sees the files."""
    return LATER_S if spool.depot.disk is None else 0.0


def serve(settings: Settings, listening: socket.socket, until: Callable[[Records], None]) -> None:
    """Serve on `listening` in this process while `until` runs."""
    records = open_records(settings)
    spool = spool_of(settings)
    spool.root.mkdir(parents=True, exist_ok=True)
    close_dead_associations(records, spool)
    intake = Intake(spool, records, time.time, settings.scp, later_s(spool))
    listener = listener_of(settings, records, intake)
    listener.start(listening)
    try:
        until(records)
    finally:
        listener.stop()
        intake.recorder.close()
        records.close()
