"""ichnode: a DICOM node that triages head CTs beside a PACS. Research use only."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, looked up when somebody asks: the look-up is slow to import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ichnode")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
