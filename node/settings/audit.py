"""The audit record repository: where DICOM Audit Messages go (PS3.15 A.5 to A.7)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from node.settings.base import PeerTls, Port, Section

Transport = Literal["tls", "tcp", "udp"]


class AuditRepository(Section):
    """A syslog receiver of the site's own. Nothing is kept for it while `host` is empty."""

    host: str = ""
    port: Port = Field(6514, ge=1, le=65535)
    transport: Transport = "tls"
    """tls: RFC 5425, as PS3.15 A.6 wants it; tcp: RFC 6587, octet counts; udp: RFC 5426, may lose some."""
    tls: PeerTls = PeerTls()
    """Empty: the repository's certificate is checked against the operating system's authorities."""
    site: str = ""
    """AuditEnterpriseSiteID: which hospital."""
    source: str = ""
    """AuditSourceID; empty: the name of the machine."""

    @model_validator(mode="after")
    def _whole(self) -> AuditRepository:
        if self.tls.wanted and self.transport != "tls":
            raise ValueError(f'tls is set, and transport is "{self.transport}": give transport = "tls"')
        return self
