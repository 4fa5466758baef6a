"""Which pipelines there are, in one visible tuple. Loads none of them and imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Entry:
    """One pipeline: `sidecar` is the JSON beside the weights, which names family, digest and thresholds."""

    name: str
    summary: str
    sidecar: Path


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "default",
        "U-Net and unrolled rim, each read along the whole CT, and EfficientNet-Lite0, on two CPU cores.",
        WEIGHTS / "default.json",
    ),
)


def entry(name_or_path: str | Path) -> Entry:
    """The entry of that name, or one made for the path of a sidecar JSON. Raises KeyError otherwise."""
    for known in CATALOGUE:
        if known.name == str(name_or_path):
            return known
    path = Path(name_or_path)
    if path.suffix == ".json":
        return Entry(path.stem, "from a file", path)
    names = ", ".join(known.name for known in CATALOGUE)
    raise KeyError(f"no pipeline {str(name_or_path)!r}: there are {names}, or give a sidecar .json")
