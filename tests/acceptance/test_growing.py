"""A phantom patient bleeds more on the second scan: the second report says so, and names the first."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.domain.findings import Findings
from tests.acceptance.conftest import NodeMaker, received
from workers.demo import Orthanc
from workers.phantom_series import SeriesLabels, write_series

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]
SEED = 3


def group(report: Dataset, name: str) -> dict[str, Dataset]:
    """The items of the measurement group with this tracking identifier, by concept name."""
    for found in report.ContentSequence[-1].ContentSequence:
        items = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in found.ContentSequence}
        if items["Tracking Identifier"].TextValue == name:
            return items
    raise AssertionError(f"no group {name!r}")


def test_the_second_report_tells_the_growth_and_names_the_first(
    make_node: NodeMaker, orthanc: Orthanc, tmp_path: Path
) -> None:
    before = SeriesLabels(study_date="20260101", accession_number="BEFORE")
    after = SeriesLabels(study_date="20260102", accession_number="AFTER")
    first = write_series(tmp_path / "first", SEED, ("intraparenchymal",), size=256, labels=before)
    second = write_series(
        tmp_path / "second", SEED, ("intraparenchymal", "intraventricular"), size=256, labels=after
    )
    node = make_node(pacs_port=orthanc.port)
    studies = []
    for files in (first, second):
        studies.append(str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID))
        assert node.storescu(*files).returncode == 0
        job = node.finished_job(studies[-1], 300)
    findings = Findings.from_json(job["findings"])
    assert findings.comparison and findings.segmentation
    assert findings.comparison.study_uid == studies[0]
    assert findings.comparison.expansion and findings.comparison.change_ml > 5
    assert job["priority"] == "STAT"
    (old,) = received(orthanc, studies[0])["SR"]
    (new,) = received(orthanc, studies[1])["SR"]
    change = group(new, "AI change since prior CT")
    told = float(change["Change in volume since the prior CT"].MeasuredValueSequence[0].NumericValue)
    assert told == pytest.approx(findings.comparison.change_ml, abs=0.01)
    reference = change["Prior report for current patient"].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == old.SOPInstanceUID
    (study,) = new.PertinentOtherEvidenceSequence
    assert study.StudyInstanceUID == old.StudyInstanceUID
    assert study.ReferencedSeriesSequence[0].SeriesInstanceUID == old.SeriesInstanceUID
