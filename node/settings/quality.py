"""How the model is watched: drift against a reference."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from node.settings.base import Section


class Drift(Section):
    """Recent analyses of each scanner against its first ones."""

    reference_studies: int = Field(300, ge=100, le=5000)
    """The first analyses of a scanner (for the scores: by the model in use) are the reference…"""
    recent_studies: int = Field(100, ge=50, le=2000)
    """…and its latest ones are held against it."""
    reference_from: date | None = None
    """What was analysed before that day counts for nothing: set it after a change that was wanted."""
