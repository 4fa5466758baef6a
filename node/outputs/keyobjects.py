"""The images and results worth opening first, as a Key Object Selection (TID 2010). Never flags a negative.

It points at the key slices, the report, the segmentation and the overlays of the key slices, as far as
they were built; it holds no finding of its own.
"""

from __future__ import annotations

import highdicom as hd
from pydicom.dataset import Dataset

from node.domain.instance import SliceRef
from node.outputs import codes
from node.outputs.context import Context
from node.outputs.identity import MANUFACTURER, stamp
from node.outputs.report import observer
from node.outputs.source import source_refs
from node.outputs.wording import EXPLANATIONS, RESEARCH_USE, Verdict, key_slices, plain, verdict

SERIES_NUMBER = 905


def build(context: Context) -> list[Dataset]:
    """One selection; none without a suspicion or without a key slice among the source."""
    outcome = verdict(context.findings)
    source = context.source
    known = [ref for ref in key_slices(context.findings) if source.holds(ref)]
    if outcome not in (Verdict.SUSPECTED, Verdict.INDETERMINATE) or not known:
        return []
    chosen = [*(source.headers[source.index(ref)] for ref in known), *_results(context, known)]
    document = hd.ko.KeyObjectSelectionDocument(
        evidence=chosen,
        content=hd.ko.KeyObjectSelection(
            document_title=codes.OF_INTEREST,
            referenced_objects=chosen,
            observer_device_context=observer(context),
            description=plain(f"{EXPLANATIONS[outcome]} {RESEARCH_USE}."),
        ),
        series_instance_uid=context.uid("kos-series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=context.uid("kos"),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    _unname_images(document)
    return [stamp(document, context, f"AI ICH key images: {outcome}")]


def _results(context: Context, keys: list[SliceRef]) -> list[Dataset]:
    """Report, segmentation, and those overlays that show a key slice."""
    built = context.built
    overlays = [ds for ds in built.get("sc", ()) if not source_refs(ds).isdisjoint(keys)]
    return [*(built.get("sr") or built.get("csr") or ()), *built.get("seg", ()), *overlays]


def _unname_images(document: Dataset) -> None:
    """TID 2010 gives IMAGE items no concept name; highdicom writes one."""
    for item in document.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):
            item.pop("ConceptNameCodeSequence", None)
