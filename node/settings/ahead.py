"""How much is done before a series is known to be complete."""

from __future__ import annotations

from pydantic import Field

from node.settings.base import Section


class Ahead(Section):
    """Work while a series arrives. Nothing of it is told to anybody before the series is complete."""

    head_start: bool = True
    """An idle worker analyses a series that looks whole, and throws that away if more of it comes."""
    sure_quiet_s: float = Field(2, ge=0)
    """In place of `completeness.quiet_s`, where the sender is known to send a series whole; 0: never."""
    keep_mb: int = Field(512, ge=0)
    """Memory of a worker for analyses that wait for their series; the oldest is thrown away first."""
    decode: bool = True
    """With `head_start`: an idle worker decodes the slices of a series as they come."""
    decode_mb: int = Field(1024, ge=0)
    """Memory of a worker for decoded slices, half a megabyte for one of 512 x 512; 0: none is decoded."""

    @property
    def decodes(self) -> bool:
        return self.head_start and self.decode and self.decode_mb > 0
