"""Who may say that a study is urgent, and how long routine may wait."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from node.domain.orders import OrderPriority, Rules
from node.settings.base import AeTitle, NetworkText, PeerTls, Port, Section, Tls


class WorklistPeer(Section):
    """A modality worklist (PS3.4 Annex K) that is asked how urgent each study is; off without a title."""

    ae_title: AeTitle | Literal[""] = ""
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    tls: PeerTls = PeerTls()
    timeout_s: float = Field(10, gt=0, le=60)
    """For each answer; no study waits for it."""


class Hl7Orders(Section):
    """Where HL7 orders are taken by MLLP; off without a port."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    addresses: tuple[NetworkText, ...] = ()
    """Who may connect, as in 10.0.0.0/8; empty: this machine alone."""
    tls: Tls = Tls()
    accession: tuple[str, ...] = ("IPC-1", "OBR-18", "ORC-3", "OBR-3")
    """Where the accession number stands: the first of these fields that is not empty."""

    @field_validator("accession")
    @classmethod
    def _are_fields(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        for field in fields:
            if not re.fullmatch(r"[A-Z][A-Z0-9]{2}-[1-9][0-9]?", field):
                raise ValueError(f"{field!r} is no HL7 field: write one as in OBR-18")
        return fields

    @model_validator(mode="after")
    def _somebody_may_connect(self) -> Hl7Orders:
        if self.port and self.host not in ("127.0.0.1", "::1", "localhost") and not self.addresses:
            raise ValueError(
                f"host {self.host} is reachable from other machines, and nobody there may connect: "
                "name the order system in orders.hl7.addresses"
            )
        return self


class Orders(Section):
    """Which studies go first."""

    stat_calling_ae_titles: tuple[AeTitle, ...] = ()
    """What these AE titles send is STAT, such as the emergency scanner."""
    stat_from: Literal["STAT", "HIGH"] = "STAT"
    """HIGH: what is ordered HIGH (in HL7: as soon as possible, preoperative, call back) goes first too."""
    age_min: float = Field(30, gt=0)
    """A routine study that has waited this long counts as STAT."""
    only_stat: bool = False
    """A worker started with this takes no routine: kept free for what goes first."""
    worklist: WorklistPeer = WorklistPeer()
    hl7: Hl7Orders = Hl7Orders()

    @property
    def rules(self) -> Rules:
        both = (OrderPriority.STAT, OrderPriority.HIGH)
        return Rules(both if self.stat_from == "HIGH" else both[:1], self.age_min * 60)

    @property
    def has_peers(self) -> bool:
        """Somebody is asked or listened to."""
        return bool(self.worklist.ae_title or self.hl7.port)
