"""ichnode: a DICOM node that triages head CTs beside a PACS. Research use only."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ichnode")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
