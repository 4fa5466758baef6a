"""The labelled sets that can be read, in one visible table, and how one is named on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from node.domain.errors import PermanentError
from workers.preprocess import DEFAULT_VIEW, View
from workers.training.cq500 import cq500_series
from workers.training.datasets import Series, ct_ich
from workers.training.nifti import bhsd, ct_ich_volumes, instance_2022
from workers.training.rsna import rsna


@dataclass(frozen=True)
class Source:
    """One set: `reader` gives its series, prepared for a view. `slices` is False where only whole studies
    are labelled, which is for evaluation alone. `version` counts up when the reader gives other series of
    the same files."""

    kind: str
    name: str
    citation: str
    licence: str
    reader: Callable[[Path, View], Iterator[Series]]
    slices: bool = True
    version: int = 1

    @property
    def cache_name(self) -> str:
        """Under which its prepared series are kept."""
        return self.kind if self.version == 1 else f"{self.kind}-{self.version}"

    def read(self, folder: Path, view: View = DEFAULT_VIEW) -> Iterator[Series]:
        return self.reader(folder, view)


_HSSAYENI = "Hssayeni et al., Data 5(1):14 (2020), doi:10.13026/w8q8-ky94"
SOURCES: tuple[Source, ...] = (
    Source("ct-ich", "CT-ICH v1.0.0", _HSSAYENI, "CC BY 4.0", ct_ich),
    Source(
        "ct-ich-nifti",
        "CT-ICH v1.3.1",
        _HSSAYENI,
        "PhysioNet Restricted Health Data License 1.5.0",
        ct_ich_volumes,
        version=2,
    ),
    Source(
        "rsna",
        "RSNA 2019 haemorrhage challenge",
        "Flanders et al., Radiology: AI 2(3):e190211 (2020), doi:10.1148/ryai.2020190211",
        "terms of the challenge",
        rsna,
        version=3,
    ),
    Source(
        "cq500",
        "CQ500",
        "Chilamkurthy et al., Lancet 392:2388 (2018), doi:10.1016/S0140-6736(18)31645-3",
        "CC BY-NC-SA 4.0",
        cq500_series,
        slices=False,
        version=3,
    ),
    Source(
        "bhsd",
        "BHSD",
        "Wu et al., MLMI 2023, doi:10.48550/arXiv.2308.11298",
        "see the set's page; derived from RSNA 2019",
        bhsd,
        version=2,
    ),
    Source(
        "instance",
        "INSTANCE 2022",
        "Li et al., doi:10.48550/arXiv.2301.03281",
        "terms of the challenge",
        instance_2022,
        version=2,
    ),
)


def source(kind: str) -> Source:
    """The set of that kind. Raises KeyError with the kinds there are."""
    for known in SOURCES:
        if known.kind == kind:
            return known
    raise KeyError(f"no kind {kind!r}; there are {', '.join(known.kind for known in SOURCES)}")


def parse(text: str) -> tuple[Source, Path]:
    """`kind:folder`, or a folder alone, which is taken for CT-ICH's pictures.

    Raises KeyError for an unknown kind, PermanentError FILE_MISSING when the folder is not there.
    """
    kind, colon, folder = text.partition(":")
    chosen, path = (source(kind), Path(folder)) if colon else (SOURCES[0], Path(text))
    if not path.is_dir():
        raise PermanentError("FILE_MISSING", f"{path} is no folder; give --data KIND:FOLDER")
    return chosen, path
