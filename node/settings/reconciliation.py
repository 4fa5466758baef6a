"""The archives that are asked what they hold, so that what never came here is noticed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from node.settings.base import AeTitle, PeerTls, Port, Section
from node.settings.destinations import Destination

Kind = Literal["study", "series", "slices", "prior"]


class Archive(Section):
    """A PACS that answers C-FIND, and C-MOVE or C-GET (PS3.4 Annex C, Study Root)."""

    name: str = Field(min_length=1, max_length=64)
    ae_title: AeTitle
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    tls: PeerTls = PeerTls()
    max_pdu_bytes: int = Field(131072, ge=4096, le=2**24)
    every_min: float = Field(0, ge=0)
    """How often what it holds is compared with what came; 0: only when somebody asks."""
    lookback_h: float = Field(48, gt=0, le=24 * 366)
    """How far back such a comparison looks, by StudyDate."""
    grace_min: float = Field(30, ge=0)
    """A study that is younger, by StudyDate and StudyTime, may still be on its way."""
    priors_days: int = Field(0, ge=0, le=36500)
    """Also look for earlier head CTs of the same patients, so far back; 0: do not."""
    retrieve: Literal["move", "get"] = "move"
    """C-MOVE: it sends to `scp.ae_title`, which it must know; C-GET: over the association of the request."""
    fetch: tuple[Kind, ...] = ()
    """What is fetched without being asked for: studies, series, slices that never came, priors."""

    counts: bool = False
    """Ask it how many instances a series has that its AE title sent; fewer are waited for."""

    @property
    def peer(self) -> Destination:
        """As whoever opens associations wants it."""
        return Destination(
            name=self.name,
            ae_title=self.ae_title,
            host=self.host,
            port=self.port,
            tls=self.tls,
            max_pdu_bytes=self.max_pdu_bytes,
        )
