"""The channels that raise the reading priority of a study: one class a type, and what they have in common.

A new type is a class here, named in AnyAlert, and a channel in node.channels.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from node.domain.announcing import Audience, When
from node.settings.base import AeTitle, PeerTls, Port, SecretPlace, Section, is_private

MailAddress = Annotated[str, Field(pattern=r"^[^@\s<>,]+@[^@\s<>,]+$")]


class Alert(Section):
    """What every channel has."""

    type: str
    name: str = Field("", max_length=56)
    """Empty: the type. Two channels of one type need names."""
    when: When = "positive"
    """`positive`: STAT and HIGH; `stat`; `all`: every result, and what was not analysed."""
    follow_up: bool = True
    """Tell what was told once more, in full, when the analysis is complete."""
    timeout_s: float = Field(10, gt=0, le=300)
    """One attempt, from connecting to the answer."""
    retry_base_s: float = Field(2, gt=0)
    retry_max_s: float = Field(300, gt=0)
    give_up_h: float = Field(24, gt=0)
    """An alert that alarms nobody is given up after this long; a positive one never is."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_name(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            return {**values, "name": values.get("type") or cls.model_fields["type"].default}
        return values

    @property
    def audience(self) -> Audience:
        return Audience(self.name, self.when, self.follow_up)


class Webhook(Alert):
    """A JSON document by HTTP POST, signed."""

    type: Literal["webhook"] = "webhook"
    url: str
    secret: SecretPlace = ""
    """Where the key of the signature stands; empty: not signed."""
    patient_data: bool = False
    """Also send Patient ID, name, birth date and accession number."""
    tls: PeerTls = PeerTls()

    @field_validator("url")
    @classmethod
    def _is_private(cls, url: str) -> str:
        return web_address(url)


class Hl7(Alert):
    """ORU^R01 over MLLP."""

    type: Literal["hl7"] = "hl7"
    host: str = "127.0.0.1"
    port: Port = Field(2575, ge=1, le=65535)
    """2575 is what IANA registered for HL7 over MLLP."""
    tls: PeerTls = PeerTls()
    """With `ca` or `cert` MLLP goes over TLS."""
    template: str = ""
    """A file that says which field gets which value; empty: node/channels/oru_r01.txt."""
    sending_application: str = "ICHNODE"
    sending_facility: str = ""
    receiving_application: str = ""
    receiving_facility: str = ""
    version: Literal["2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8"] = "2.5.1"
    charset: Literal[
        "ASCII", "8859/1", "8859/2", "8859/5", "8859/7", "8859/9", "8859/15", "UNICODE UTF-8"
    ] = "UNICODE UTF-8"
    """MSH-18 (HL7 table 0211); characters that it lacks are sent as question marks."""
    processing_id: Literal["P", "T", "D"] = "P"
    """MSH-11: production, training, debugging."""

    @property
    def codec(self) -> str:
        """Python's name of the character set."""
        return {"ASCII": "ascii", "UNICODE UTF-8": "utf-8"}.get(
            self.charset, f"iso{self.charset}".replace("/", "-")
        )


class Email(Alert):
    """A plain message by SMTP."""

    type: Literal["email"] = "email"
    follow_up: bool = False
    host: str = "127.0.0.1"
    port: Port = Field(25, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    """`none` goes without user name and patient data, unless the server is on this machine."""
    username: str = ""
    password: SecretPlace = ""
    sender: MailAddress
    recipients: tuple[MailAddress, ...] = Field(min_length=1)
    patient_data: bool = False
    """Also say Patient ID and accession number; never the name."""
    tls: PeerTls = PeerTls()

    @model_validator(mode="after")
    def _keeps_secrets(self) -> Email:
        if bool(self.username) != bool(self.password):
            raise ValueError("username and password go together")
        at_home = self.host in ("127.0.0.1", "localhost", "::1")
        if self.security == "none" and not at_home and (self.username or self.patient_data):
            raise ValueError("credentials or patient data would travel in the open: set security to starttls")
        return self


class Fhir(Alert):
    """DiagnosticReport, Observations and a Task, FHIR R4."""

    type: Literal["fhir"] = "fhir"
    url: str
    """The root of the service, such as https://fhir.example.org/r4."""
    token: SecretPlace = ""
    transaction: bool = True
    """One transaction Bundle; false: one request a resource, for servers without transactions."""
    patient_system: str = ""
    """The URI under which the server keeps Patient IDs; empty: a Patient ID without a system."""
    accession_system: str = ""
    tls: PeerTls = PeerTls()

    @field_validator("url")
    @classmethod
    def _is_private(cls, url: str) -> str:
        return web_address(url).rstrip("/")


class UpsPush(Alert):
    """A Unified Procedure Step at a worklist that takes UPS Push."""

    type: Literal["ups"] = "ups"
    follow_up: bool = False
    """A workitem cannot be changed: with this, the final word replaces the first one's workitem."""
    ae_title: AeTitle
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    tls: PeerTls = PeerTls()
    worklist_label: str = Field("AI triage", min_length=1, max_length=64)
    retrieve_ae_title: AeTitle | Literal[""] = ""
    """Where readers fetch the study from; empty: the first destination with an AE title."""


def web_address(url: str) -> str:
    """Raises ValueError unless it is a URL at which nobody can read along."""
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^#\s]*)?", url):
        raise ValueError(f"{url!r} is no address: write https://host:port/path")
    if not is_private(url):
        raise ValueError(f"{url} would be read by others on the way: use https (http on this machine only)")
    return url


AnyAlert = Annotated[Webhook | Hl7 | Email | Fhir | UpsPush, Field(discriminator="type")]
