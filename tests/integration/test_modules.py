"""Our objects against the standard's own module tables, in machine-readable form as highdicom carries them.

dciodvfy knows the conditions of types 1C and 2C, and not the younger SOP classes; here no condition is
judged, and every SOP class is: what its mandatory modules require is there, and nothing that none of its
modules has (PS3.3 A and C, PS3.5 7.4). What depends on a value type or on where a macro is used (content
items, functional groups) the tables do not tell, and is left to dciodvfy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from tests.integration.test_validators import CASES, files_of

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage (PS3.3 A.51), younger than the tables: judged as Segmentation Storage."""
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
UNTOLD = ("sr-document-content", "multi-frame-functional-groups")


@cache
def table(name: str) -> Any:
    return json.loads((resources.files("highdicom") / "_standard" / f"{name}.json").read_text("utf-8"))


def modules(dataset: Dataset) -> list[dict[str, str]]:
    """Modules of the object's IOD: `key` and `usage`, M where it is mandatory."""
    sop_class = str(dataset.SOPClassUID)
    iod = table("sop_class_iod_map")[SEGMENTATION if sop_class == LABEL_MAP else sop_class]
    return list(table("iod_module_map")[iod])


def attributes(module: dict[str, str]) -> list[dict[str, Any]]:
    return list(table("module_attribute_map")[module["key"]])


def places(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    """Every item at the end of a path of sequences; none where a sequence is absent or empty."""
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or ():
        yield from places(item, path[1:])


def lacking(dataset: Dataset) -> list[str]:
    """What mandatory modules require and the object has not."""
    found = set()
    for module in modules(dataset):
        if module["usage"] != "M" or module["key"].endswith(UNTOLD):
            continue
        for one in attributes(module):
            if one["type"] not in ("1", "2"):
                continue
            for item in places(dataset, one["path"]):
                value = item.get(one["keyword"])
                empty = value is None or value == "" or (isinstance(value, Sequence) and len(value) == 0)
                if one["keyword"] not in item or (one["type"] == "1" and empty):
                    found.add(f"{module['key']}: {'/'.join([*one['path'], one['keyword']])}")
    return sorted(found)


def foreign(dataset: Dataset) -> list[str]:
    """Attributes of the object's top level that none of its modules has."""
    known = {one["keyword"] for module in modules(dataset) for one in attributes(module) if not one["path"]}
    return [name for name in map(keyword_for_tag, dataset.keys()) if name not in known]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("source", ["as usual", "anonymous", "no frame of reference"])
def test_every_object_has_what_its_modules_require_and_nothing_else(
    tmp_path: Path, source: str, case: str
) -> None:
    _, ours = files_of(tmp_path, source, case)
    told = {path.stem: pydicom.dcmread(path) for path in ours}
    assert {name: lacking(one) for name, one in told.items() if lacking(one)} == {}
    assert {name: foreign(one) for name, one in told.items() if foreign(one)} == {}


def test_what_is_missing_empty_or_foreign_is_found(tmp_path: Path) -> None:
    _, ours = files_of(tmp_path, "as usual", "positive", ["seg"])
    (path,) = ours
    seg = pydicom.dcmread(path)
    del seg.PatientBirthDate
    del seg.SegmentSequence[0].SegmentLabel
    seg.ContentLabel = ""
    seg.ExposureTime = 3
    assert [one.rpartition(": ")[2] for one in lacking(seg)] == [
        "PatientBirthDate", "ContentLabel", "SegmentSequence/SegmentLabel"
    ]  # fmt: skip
    assert foreign(seg) == ["ExposureTime"]
