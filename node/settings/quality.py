"""How the node and its model are watched: drift against a reference, and a canary."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from node.settings.base import AeTitle, Section


class Drift(Section):
    """Recent analyses of each scanner against its first ones."""

    reference_studies: int = Field(300, ge=100, le=5000)
    """The first analyses of a scanner (for the scores: by the model in use) are the reference…"""
    recent_studies: int = Field(100, ge=50, le=2000)
    """…and its latest ones are held against it."""
    reference_from: date | None = None
    """What was analysed before that day counts for nothing: set it after a change that was wanted."""


class Canary(Section):
    """A phantom study that goes the whole way now and then, and must come out as it always does."""

    every_min: float = Field(0, ge=0)
    """0: never."""
    max_s: float = Field(300, gt=0)
    """From the first slice sent to the report made (and delivered, where a destination is named)."""
    tolerance: float = Field(0.02, gt=0, le=1)
    """By which a probability may differ from the expected one; a volume by 5 % or 1 mL."""
    destination: str = ""
    """Its results go there too, marked as those of a phantom; empty: nowhere."""
    keep: int = Field(20, ge=2)
    """So many are kept; what is older is removed with files and records."""
    host: str = ""
    """Where the listener is; empty: this machine."""
    ae_title: AeTitle | None = None
    """It calls under this title; else under the first of scp.calling_ae_titles, else under the node's own."""
