"""How instances come in and when a series is complete."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from node.domain.admission import Rules, networks
from node.settings.base import AeTitle, NetworkText, Port, Section, Tls
from node.settings.bucket import Bucket


class Scp(Section):
    """The C-STORE and C-ECHO SCP."""

    ae_title: AeTitle = "ICHNODE"
    host: str = "127.0.0.1"
    port: Port = Field(11112, ge=1, le=65535)
    processes: int = Field(2, ge=1, le=64)
    receiver: Literal["streaming", "pynetdicom"] = "streaming"
    """Who takes associations: the node's own upper layer, or pynetdicom as a plain fall-back."""
    calling_ae_titles: tuple[AeTitle, ...] = ()
    """Empty: any peer may call; else only these AE titles."""
    addresses: tuple[NetworkText, ...] = ()
    """Empty: from anywhere; else only from these addresses and networks (10.0.0.0/24)."""
    check_called_ae: bool = False
    """Refuse an association that calls another AE title than `ae_title`."""
    tls: Tls = Tls()
    max_associations: int = Field(64, ge=1)
    """Per process."""
    max_associations_per_peer: int = Field(0, ge=0)
    """Of one address at a time, per process; 0: three quarters of max_associations."""
    timeout_s: float = Field(60, gt=0)
    """A peer silent for this long in an open association is aborted; a single PDU may take no longer."""
    max_instance_mb: int = Field(4096, ge=1)
    """A larger SOP instance, inflated where it came deflated, is not taken."""
    max_series_instances: int = Field(20_000, ge=1)
    """What comes beyond this in one series is refused with 0xA700."""

    @property
    def admission(self) -> Rules:
        return Rules(
            ae_title=self.ae_title,
            calling_ae_titles=frozenset(title.strip() for title in self.calling_ae_titles),
            networks=networks(self.addresses),
            check_called_ae=self.check_called_ae,
            max_associations=self.max_associations,
            max_per_peer=self.max_associations_per_peer,
        )


class Spool(Section):
    """The files in data_dir."""

    reserve_mb: int = Field(512, ge=0)
    """Below this much free space a C-STORE is refused with 0xA700."""
    keep_days: float = Field(0, ge=0)
    """Files of a delivered study are removed this long after it came; 0: only when room is needed."""
    keep_records_days: float = Field(0, ge=0)
    """The records of a study whose files are removed go this long after it came; 0: never."""
    high_watermark: float = Field(0.9, gt=0, le=1)
    """When this part of the volume is used, the files of the oldest delivered studies are removed…"""
    low_watermark: float = Field(0.8, gt=0, le=1)
    """…until no more than this part is."""
    s3: Bucket = Bucket()
    """In place of a volume that all machines share: only what is not there yet lies in data_dir alone."""

    @model_validator(mode="after")
    def _in_order(self) -> Spool:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark lies above high_watermark: give the smaller one to low_watermark")
        return self


class Completeness(Section):
    quiet_s: float = Field(10, ge=0)
    """No instance for this long, all associations released, no gap: the series is complete."""
    max_wait_s: float = Field(120, ge=0)
    """…and after this long it is complete whatever is missing."""


class Eligibility(Section):
    allow_derived: bool = False
    r"""Also analyse ImageType DERIVED\SECONDARY series."""
    allow_contrast: bool = False
    """Also analyse contrast-enhanced series when nothing else is there."""
