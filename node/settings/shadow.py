"""A second model that reads the same series in silence: which, how many, and how far it may lag behind."""

from __future__ import annotations

from pydantic import Field

from node.settings.base import Section


class Shadow(Section):
    """Nothing it says leaves the node: no report, no alert, no priority. See docs/shadow.md."""

    pipeline: str = ""
    """Catalogue name, or the `.json` beside weights; empty: no model reads in the shadow."""
    device: str = "cpu"
    """`cpu` leaves a GPU to the active model alone; `cuda` or `auto` share it."""
    threads: int = Field(1, ge=0)
    """CPU threads of the network; 0: as many as there are cores."""
    nice: int = Field(19, ge=0, le=19)
    """How far its process stands back behind others; 0, not at all, is for a host of its own."""
    share: float = Field(1.0, gt=0, le=1)
    """Of the analysed series; which ones follows from their UIDs, not from chance."""
    max_backlog: int = Field(200, ge=1)
    """While so many wait, further ones are left out for good."""
    max_age_h: float = Field(24, gt=0)
    """What was analysed longer ago is not read any more."""
    max_attempts: int = Field(2, ge=1)
    timeout_s: float = Field(3600, gt=0)
    """A shadow worker that hangs in one series for longer is killed, which counts as an attempt."""
