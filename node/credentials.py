"""What the node shows to a peer and whom it trusts: secrets read where the settings say, and TLS of a client.

Secrets are read anew at each use, never kept, and never shown in an error or a log.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from node.domain.errors import SettingsError
from node.settings.base import PeerTls


def secret(place: str) -> str:
    """What stands at `env:NAME` or `file:PATH`. Raises SettingsError, which never shows it."""
    kind, _, where = place.partition(":")
    if kind == "env":
        found = os.environ.get(where, "")
    else:
        try:
            found = Path(where).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{place} cannot be read: {type(error).__name__}") from None
    if not found:
        raise SettingsError(f"{place} is empty: put the secret there")
    return found


def client_tls(tls: PeerTls, owner: str) -> ssl.SSLContext:
    """TLS 1.2 or newer towards a peer; without `ca`, the authorities of the system are trusted.

    Raises SettingsError, which names the `owner` of these settings, for files that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca if tls.ca not in ("", "system") else None)
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"tls of {owner}: {error}; give PEM files that can be read") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_hostname
    return context
