"""Analyses made before anybody asked for them, kept in memory until their job comes. Tells nobody.

A prepared analysis is used for one thing only: the very files, in the very order, of the revision it was made
of. A file in the spool is never written over, so the same paths mean the same content, and the same function
has read it. Anything else is analysed anew. A worker that dies loses its head start, and nothing more.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from node.domain.acquisition import Acquisition
from node.domain.findings import Findings
from workers.analyse import Analysis


@dataclass(frozen=True, eq=False)
class Finished:
    """One analysis with all that a job stores of it, and the word that goes out before its pictures."""

    early: Findings
    analysis: Analysis
    acquisition: Acquisition
    load_s: float

    @property
    def size_bytes(self) -> int:
        arrays = (self.analysis.masks, self.analysis.heat, *self.analysis.subtypes.values())
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True)
class Source:
    """What an analysis is made of: a series at a revision, and the spool paths of its instances."""

    series_instance_uid: str
    revision: int
    paths: tuple[str, ...]

    @classmethod
    def of(cls, series_instance_uid: str, revision: int, paths: Sequence[str]) -> Source:
        return cls(series_instance_uid, revision, tuple(paths))


class Shelf:
    """What is prepared. The latest of each series is kept, and no more than `most_bytes` in all."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Source, Finished]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, source: Source, finished: Finished) -> None:
        """The oldest make room; what is larger than all the room is not kept."""
        with self._lock:
            self._kept.pop(source.series_instance_uid, None)
            self._kept[source.series_instance_uid] = source, finished
            while self._kept and sum(one.size_bytes for _, one in self._kept.values()) > self._most_bytes:
                self._kept.popitem(last=False)

    def has(self, source: Source) -> bool:
        known = self._kept.get(source.series_instance_uid)
        return known is not None and known[0] == source

    def take(self, source: Source) -> Finished | None:
        """What was made of exactly this, or None. What was made of the series before is thrown away."""
        with self._lock:
            known = self._kept.pop(source.series_instance_uid, None)
        return known[1] if known is not None and known[0] == source else None
