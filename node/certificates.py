"""The certificates that the node shows to who connects: can they be used, and how long. Serves nobody."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from node.domain.errors import SettingsError
from node.settings.base import Tls

SOON_DAYS = 14
DAY_S = 86400.0


def server_tls(tls: Tls, section: str) -> ssl.SSLContext | None:
    """None without a certificate. Raises SettingsError that names the file which cannot be used."""
    if not tls.cert:
        return None
    for name, path in (("cert", tls.cert), ("key", tls.key), ("ca", tls.ca)):
        _require_readable(f"{section}.{name}", path)
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.ca or None)
        context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ssl.SSLError) as error:
        files = " and ".join(path for path in (tls.cert, tls.key, tls.ca) if path)
        text = f"{section}: {files} cannot be used: {getattr(error, 'reason', None) or error}"
        raise SettingsError(f"{text}; give PEM files, and the key that belongs to the certificate") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def days_left(tls: Tls, section: str, now: float) -> float:
    """Until the certificate ends. Raises SettingsError for one that ended, or that nobody may rely on."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls(tls, section)  # in words, should it not be usable
    server.load_cert_chain(tls.cert, tls.key or None)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(tls.cert)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is looked at, whoever signed it
    try:
        shown = _shown(server, client)
    except ssl.SSLCertVerificationError as error:
        text = f"{section}.cert = {tls.cert}: {error.verify_message}"
        raise SettingsError(f"{text}; renew it, and start the node anew") from error
    return (ssl.cert_time_to_seconds(str(shown["notAfter"])) - now) / DAY_S


def _shown(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, object]:
    """What a client sees of the server's certificate, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (theirs, ours) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return dict(theirs.getpeercert() or {})


def _require_readable(name: str, path: str) -> None:
    if not path:
        return
    try:
        Path(path).open("rb").close()
    except OSError as error:
        text = f"{name} = {path} cannot be read: {error.strerror}"
        raise SettingsError(f"{text}; give a PEM file that the node's user may read") from error
