"""What every section of the settings is made of: frozen, and no key but the known ones."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from node.domain.admission import networks

Port = int
AeTitle = Annotated[str, Field(pattern=r"^ *[!-\[\]-~][ -\[\]-~]*$", min_length=1, max_length=16)]
"""PS3.5 6.2: ASCII without backslash and control characters, and not blanks alone."""
SecretPlace = Annotated[str, Field(pattern=r"^$|^(env|file):.+")]
"""Never the secret itself: the settings are printed, copied and kept in repositories."""


def _network(text: str) -> str:
    try:
        networks([text])
    except ValueError as error:
        raise ValueError(f"{error}; write an address or a network, as 10.0.0.5 or 10.0.0.0/24") from None
    return text


NetworkText = Annotated[str, AfterValidator(_network)]
"""An IP address, or a network in CIDR notation."""


def is_private(url: str) -> bool:
    """Nobody between us and that web service can read along."""
    return re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$)", url) is not None


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(Section):
    """PEM files; all empty: no TLS. With `ca`, a peer must show a certificate that it signed."""

    cert: str = ""
    key: str = ""
    ca: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.key or self.ca) and not self.cert:
            raise ValueError("tls.cert is empty: give the certificate, or leave key and ca empty too")
        return self


class PeerTls(Section):
    """TLS to a destination (PS3.15 B.1); all empty: the default of the protocol, which for DICOM is none.

    `ca`: the PEM file of the authority that signed the peer's certificate, or `system` for those of the
    operating system. `cert` and `key`: what the node shows in its turn.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    check_hostname: bool = True
    """False for a PACS whose certificate names no host; the chain is checked all the same."""

    @property
    def wanted(self) -> bool:
        return bool(self.ca or self.cert)

    @model_validator(mode="after")
    def _whole(self) -> PeerTls:
        if self.key and not self.cert:
            raise ValueError("tls.key without tls.cert: give the certificate too")
        return self
