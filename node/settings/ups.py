"""Workitems for readers: whether they are served, where, which, and who may be told of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from node.domain.findings import Priority
from node.settings.base import AeTitle, NetworkText, PeerTls, Port, Section, Tls


class Watcher(Section):
    """An AE that may subscribe to workitems, and where its events go (UPS Watch and Event)."""

    ae_title: AeTitle
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    tls: PeerTls = PeerTls()


class Ups(Section):
    """The SCP of UPS Pull and Watch (PS3.4 Annex CC); off without a port. It answers to `scp.ae_title`."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    calling_ae_titles: tuple[AeTitle, ...] = ()
    """Who may ask and take; empty: anybody who reaches the port."""
    addresses: tuple[NetworkText, ...] = ()
    """…and from where; empty: from anywhere."""
    tls: Tls = Tls()
    items: Literal["positive", "all"] = "positive"
    """`positive`: STAT and HIGH; `all`: every study that was analysed."""
    worklist_label: str = Field("AI triage", min_length=1, max_length=64)
    retrieve_ae_title: AeTitle | Literal[""] = ""
    """Where readers fetch the study from; empty: the first destination with an AE title."""
    claim_h: float = Field(12.0, ge=0)
    """A workitem that a reader took and of which nothing was heard for so long is offered again; 0: never."""
    watcher: tuple[Watcher, ...] = ()
    """Who may be named as the receiver of events; empty: nobody can subscribe."""

    @property
    def priorities(self) -> tuple[Priority, ...]:
        return tuple(Priority) if self.items == "all" else (Priority.STAT, Priority.HIGH)

    @model_validator(mode="after")
    def _somebody_is_named(self) -> Ups:
        local = self.host in ("127.0.0.1", "::1", "localhost")
        if self.port and not local and not (self.calling_ae_titles and self.addresses):
            raise ValueError(
                f"host {self.host} is reachable from other machines, and workitems name patients: "
                "give ups.calling_ae_titles and ups.addresses"
            )
        return self
