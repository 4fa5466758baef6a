"""Self-signed certificates for tests of TLS, made by openssl. They last two days."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.peers import requires


@dataclass(frozen=True)
class Certificate:
    """PEM files; `both` holds key and certificate, as some servers want them."""

    cert: str
    key: str
    both: str


def make_certificate(folder: Path, name: str, host: str = "localhost") -> Certificate:
    """For `host` and, where that is localhost, 127.0.0.1."""
    requires("openssl")
    cert, key, both = (folder / f"{name}.{kind}" for kind in ("pem", "key", "both.pem"))
    address = ",IP:127.0.0.1" if host == "localhost" else ""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}",
         "-addext", f"subjectAltName=DNS:{host}{address}", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return Certificate(str(cert), str(key), str(both))


def ended_certificate(folder: Path, name: str) -> Certificate:
    """One that was good until yesterday."""
    made, request = make_certificate(folder, name), folder / f"{name}.csr"
    for command in (
        ["req", "-new", "-key", made.key, "-subj", "/CN=localhost", "-out", str(request)],
        ["x509", "-req", "-in", str(request), "-signkey", made.key, "-days", "-1", "-out", made.cert],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=60)
    return made


def server_context(own: Certificate, client_authority: str = "") -> ssl.SSLContext:
    """For a server that shows `own` and, where an authority is named, wants a certificate in return."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_authority or None)
    context.load_cert_chain(own.cert, own.key)
    if client_authority:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
