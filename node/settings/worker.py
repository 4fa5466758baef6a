"""How far a worker reads ahead of its networks while jobs wait."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt

from node.settings.base import Section


class Worker(Section):
    """Under backlog: what is claimed, read and prepared while the networks are at work."""

    look_ahead: Literal["auto"] | NonNegativeInt = "auto"
    """Series that a worker has in hand at most; 0: one after the other; auto: 12 on a GPU, else 0."""
    look_ahead_mb: int = Field(4096, ge=256)
    """Memory for them, by 16 bytes a voxel; a larger series is read alone."""
    together: int = Field(4, ge=1)
    """Series whose slices go through the networks at once; what was ordered STAT waits for no routine."""
    readers: int = Field(4, ge=1)
    """Threads that read and prepare, and as many that finish."""
