"""The destinations: which objects a PACS gets, and how."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from node.domain.routing import Rule
from node.settings.base import AeTitle, PeerTls, Port, SecretPlace, Section, is_private
from node.settings.routing import Route

Encoding = Literal["explicit", "implicit", "deflated", "rle", "jpegls", "jpeg2000"]
OUTPUT_NAMES = ("sr", "seg", "sc", "pm", "gsps", "kos", "seg-subtypes", "labelmap")
DEFAULT_OUTPUTS = ("sr", "seg", "sc")


class Destination(Section):
    """A PACS that gets results: by C-STORE at `host` and `port`, or by STOW-RS where there is a `url`."""

    name: str = Field(min_length=1, max_length=64)
    ae_title: AeTitle = ""
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    url: str = ""
    """The root of a DICOMweb service, such as https://pacs.example.org/dicom-web (PS3.18)."""
    token: SecretPlace = ""
    """Where the bearer token is: `env:NAME` or `file:PATH`, read anew for each association."""
    username: str = ""
    password: SecretPlace = ""
    tls: PeerTls = PeerTls()
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    rules: tuple[Route, ...] = ()
    """Which studies it gets results of, and of which the images too; none: the results of every study."""
    sr_class: Literal["comprehensive-3d", "comprehensive"] = "comprehensive-3d"
    """The SOP class of the report; the same content goes as Comprehensive SR to a PACS that declines 3D."""
    transfer_syntax: tuple[Encoding, ...] = ("explicit",)
    """Most wanted first; what the destination declines goes in Explicit, else Implicit VR Little Endian."""
    max_pdu_bytes: int = Field(131072, ge=4096, le=2**24)
    sender: Literal["streaming", "pynetdicom"] = "streaming"
    """How objects go by C-STORE: on the node's own upper layer, or by pynetdicom as a plain fall-back."""
    operations: int = Field(1, ge=1, le=64)
    """C-STORE requests that may be outstanding at a time, where the peer agrees (PS3.7 D.3.3.3)."""
    commitment: bool = False
    """Ask for storage commitment, and send again what the destination does not commit to."""
    commitment_wait_s: float = Field(300, gt=0)
    """After this long without an answer the commitment is asked for again."""
    retry_base_s: float = Field(5, gt=0)
    retry_max_s: float = Field(600, gt=0)
    give_up_h: float = Field(72, gt=0)
    """A result that alarms nobody is given up after this long; a positive one never is."""

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects to send, as `node.outputs.catalogue` lists them."""
        report = "csr" if self.sr_class == "comprehensive" else "sr"
        return tuple(report if name == "sr" else name for name in self.outputs)

    @property
    def routing(self) -> tuple[Rule, ...]:
        """The rules as the domain decides by them."""
        return tuple(route.rule for route in self.rules)

    @field_validator("outputs")
    @classmethod
    def _known(cls, outputs: tuple[str, ...]) -> tuple[str, ...]:
        for name in outputs:
            if name not in OUTPUT_NAMES:
                raise ValueError(f"unknown output {name!r}: choose from {', '.join(OUTPUT_NAMES)}")
        return outputs

    @field_validator("transfer_syntax", mode="before")
    @classmethod
    def _one_or_several(cls, wanted: Any) -> Any:
        return (wanted,) if isinstance(wanted, str) else wanted

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise ValueError(f"{url!r} is no root of a DICOMweb service: write https://host:port/path")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_way_to_send(self) -> Destination:
        if not self.url:
            if not self.ae_title:
                raise ValueError("ae_title is missing (or a url, for STOW-RS)")
            if self.token or self.username or self.password:
                raise ValueError("token, username and password go with a url; C-STORE knows tls.cert instead")
            return self
        if self.commitment:
            raise ValueError("storage commitment goes with C-STORE only: leave out url, or commitment")
        if self.token and self.username:
            raise ValueError("give a token, or username and password, not both")
        if bool(self.username) != bool(self.password):
            raise ValueError("username and password go together")
        if (self.token or self.password) and not is_private(self.url):
            raise ValueError("credentials would travel in the open: use a url with https")
        return self
