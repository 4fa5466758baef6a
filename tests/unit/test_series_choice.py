"""Which series of real header conventions are read: vendors, languages, kernels, and whole studies of them.

Every row is one series as a scanner or a site writes its headers; the answer is the code of the refusal, or
READ. What a header leaves open is settled by the image (test_head).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.domain.eligibility import choose
from node.domain.instance import Instance
from tests.unit.test_eligibility import stack

READ = "READ"
SIEMENS, GE, PHILIPS, CANON = "SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "TOSHIBA"
NEW_SIEMENS, NEW_CANON, UIH = "Siemens Healthineers", "Canon Medical Systems", "UIH"

Row = tuple[str, str, str, str, str, str]
ROWS: list[Row] = [
    # manufacturer, SeriesDescription, BodyPartExamined, StudyDescription, ConvolutionKernel, answer
    (SIEMENS, "Head  5.0  H31s", "HEAD", "CT HEAD W/O", "H31s", READ),
    (SIEMENS, "HeadSeq  4.8  H31s", "HEAD", "Neuro^HeadSeq (Adult)", "H31s", READ),
    (SIEMENS, "Kopf  5.0  J40s  3", "HEAD", "Kopf^Kopf_nativ (Erwachsener)", "J40s\\3", READ),
    (SIEMENS, "Schädel  1.0  H60s", "HEAD", "Schädel^nativ", "H60s", "BONE_KERNEL"),
    (SIEMENS, "CCT nativ  4.0  J37s  2", "", "CCT", "J37s\\2", READ),
    (NEW_SIEMENS, "Head 4.00 Hr38 S2", "HEAD", "CT Schaedel nativ", "Hr38h\\2", READ),
    (NEW_SIEMENS, "Head 0.80 Hr68 S3", "HEAD", "CT Schaedel nativ", "Hr68h\\3", "BONE_KERNEL"),
    (NEW_SIEMENS, "Topogram 0.6 Tr20", "HEAD", "CT Head", "Tr20f", "LOCALIZER"),
    (SIEMENS, "Patient Protocol", "HEAD", "CT HEAD", "", "DOSE_REPORT"),
    (SIEMENS, "Head VRT", "HEAD", "CT HEAD", "H31s", "RENDERED"),
    (SIEMENS, "HWS 2.0 B30s", "HEAD", "CT Schädel + HWS", "B30s", "NOT_HEAD"),
    (SIEMENS, "NNH 1.0 H60s", "HEAD", "CT NNH", "H60s", "NOT_HEAD"),
    (SIEMENS, "Felsenbein re 0.6 U75u", "HEAD", "CT Felsenbeine", "U75u", "NOT_HEAD"),
    (SIEMENS, "Schädel KM 5.0", "HEAD", "CT Schädel nach KM", "H31s", READ),
    (SIEMENS, "Schädel nach KM 5.0", "HEAD", "CT Schädel", "H31s", "CONTRAST_ENHANCED"),
    (SIEMENS, "VPCT 10.0 H20f", "HEAD", "CT Head", "H20f", "PERFUSION"),
    (SIEMENS, "CTA Willis 0.75 H20f", "HEAD", "CT Head", "H20f", "ANGIOGRAPHY"),
    (GE, "AXIAL HEAD", "HEAD", "CT HEAD WO CONTRAST", "STANDARD", READ),
    (GE, "5MM STD", "HEAD", "CT BRAIN", "STANDARD", READ),
    (GE, "HEAD BONE 2.5", "HEAD", "CT HEAD", "BONE", "BONE_KERNEL"),
    (GE, "BONE PLUS", "", "CT HEAD", "BONEPLUS", "BONE_KERNEL"),
    (GE, "Scout", "HEAD", "CT HEAD", "STANDARD", "LOCALIZER"),
    (GE, "Dose Report", "HEAD", "CT HEAD", "", "DOSE_REPORT"),
    (GE, "AX HEAD C+", "HEAD", "CT HEAD W WO", "SOFT", "CONTRAST_ENHANCED"),
    (GE, "+C HEAD 5MM", "HEAD", "CT HEAD", "SOFT", "CONTRAST_ENHANCED"),
    (GE, "ORBITS 1.25", "HEAD", "CT ORBITS", "STANDARD", "NOT_HEAD"),
    (GE, "MAXILLOFACIAL", "HEAD", "CT FACE", "BONE", "NOT_HEAD"),
    (GE, "COR REFORMAT", "HEAD", "CT HEAD", "SOFT", "DERIVED_IMAGE"),
    (GE, "HEAD COW MIP", "HEAD", "CTA", "SOFT", "RENDERED"),
    (GE, "SMOOTH BRAIN ASIR", "", "", "SOFT", READ),
    (PHILIPS, "HEAD ROUTINE, iDose (3)", "HEAD", "HEAD", "UB", READ),
    (PHILIPS, "Brain, iDose (2)", "BRAIN", "Head^Brain", "UC", READ),
    (PHILIPS, "BONE, iDose (3)", "HEAD", "HEAD", "YB", "BONE_KERNEL"),
    (PHILIPS, "Surview", "HEAD", "HEAD", "", "LOCALIZER"),
    (PHILIPS, "5mm", "", "", "UB", READ),
    (CANON, "Head 5.0 CE", "HEAD", "CT Head", "FC21", "CONTRAST_ENHANCED"),
    (CANON, "Head 5.0", "HEAD", "CT Head", "FC26", READ),
    (NEW_CANON, "Brain Volume 0.5", "HEAD", "頭部単純CT", "FC64", READ),
    (NEW_CANON, "Bone 0.5", "HEAD", "頭部単純CT", "FC81", "BONE_KERNEL"),
    (UIH, "5mm Brain", "HEAD", "头颅平扫", "H_SOFT_B", READ),
    (UIH, "1mm Bone", "HEAD", "头颅平扫", "H_SHARP_C", "BONE_KERNEL"),
    ("Hitachi", "頭部 5mm", "", "", "21", READ),
    ("", "単純 5mm", "", "頭部CT", "", READ),
    ("", "頭部 造影後", "", "", "", "CONTRAST_ENHANCED"),
    ("", "胸部 5mm", "", "胸部CT", "", "NOT_HEAD"),
    ("", "颅脑平扫 5mm", "", "颅脑", "", READ),
    ("", "颅脑增强 5mm", "", "颅脑", "", "CONTRAST_ENHANCED"),
    ("", "뇌 CT 비조영", "", "", "", READ),
    ("", "복부 5mm", "", "", "", "NOT_HEAD"),
    ("", "Голова 5мм", "", "КТ головного мозга", "", READ),
    ("", "Грудная клетка", "", "", "", "NOT_HEAD"),
    ("", "Czaszka/Głowa bez kontrastu", "", "TK głowy", "", READ),
    ("", "Klatka piersiowa", "", "TK", "", "NOT_HEAD"),
    ("", "TDM cérébrale sans IV", "", "Crâne", "", READ),
    ("", "Thorax injecté", "", "", "", "NOT_HEAD"),
    ("", "Cráneo sin contraste", "", "TC cráneo", "", READ),
    ("", "TC encefalo diretta", "", "Encefalo", "", READ),
    ("", "TC torace", "", "", "", "NOT_HEAD"),
    ("", "Crânio sem contraste", "", "TC crânio", "", READ),
    ("", "Cerebrum uden kontrast", "", "CT Cerebrum", "", READ),
    ("", "Hersenen blanco", "", "CT Hersenen", "", READ),
    ("", "Beyin kontrastsız", "", "BT Beyin", "", READ),
    ("", "Aivot natiivi", "", "Pään TT, aivot", "", READ),
    ("", "Hlava nativ", "", "CT mozku", "", READ),
    ("", "Koponya natív", "", "Koponya CT", "", READ),
    ("", "رأس 5mm", "", "", "", READ),
    ("", "צדפה", "", "CT ראש", "", READ),
    (GE, "AX 5MM ORBITOMEATAL", "HEAD", "CT HEAD", "STANDARD", READ),
    (GE, "Orbito-meatal 5.0", "HEAD", "CT HEAD", "STANDARD", READ),
    (GE, "AX HEAD C(+)", "HEAD", "CT HEAD W WO", "SOFT", "CONTRAST_ENHANCED"),
    ("", "TC cráneo C/Contraste", "", "TC cráneo", "", "CONTRAST_ENHANCED"),
    ("", "Crânio C/ contraste", "", "TC crânio", "", "CONTRAST_ENHANCED"),
    ("", "TC cráneo S/Contraste", "", "TC cráneo", "", READ),
    (GE, "AX HEAD PRE C+", "HEAD", "CT HEAD W WO", "SOFT", READ),
    (SIEMENS, "Polytrauma Kopf 5.0 H31s", "WHOLEBODY", "Polytrauma", "H31s", READ),
    (SIEMENS, "Thorax Abdomen 5.0", "WHOLEBODY", "Polytrauma", "B30f", "NOT_HEAD"),
    (GE, "CAP 5MM", "", "TRAUMA PAN SCAN HEAD TO PELVIS", "STANDARD", "NOT_HEAD"),
    (GE, "FEMORAL HEAD", "", "", "STANDARD", READ),  # no word for a head and none against: the image decides
    (GE, "Head to toe localizer", "HEAD", "", "STANDARD", "LOCALIZER"),
    (PHILIPS, "HEAD FIRST 5MM", "CHEST", "CT CHEST", "B", "NOT_HEAD"),
]


def series(row: Row) -> list[Instance]:
    maker, name, part, study, kernel, _ = row
    made = stack("1.1", 32, 5.0, series_description=name, body_part=part)
    return [replace(i, manufacturer=maker, study_description=study, kernel=kernel) for i in made]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]} {row[1]}" for row in ROWS])
def test_the_header_decides(row: Row) -> None:
    choice = choose({"1.1": series(row)})
    reason = choice.skipped.get("1.1")
    assert (reason.code if reason else READ) == row[5], reason
    assert reason is None or reason.text


def test_there_are_rows_enough() -> None:
    assert len(ROWS) >= 60


def scanned(uid: str, name: str, part: str, step_mm: float, count: int, **more: object) -> list[Instance]:
    return stack(
        uid,
        count,
        step_mm,
        series_description=name,
        body_part=part,
        study_description="CT POLYTRAUMA",
        **more,
    )


def test_of_a_whole_body_trauma_scan_the_head_alone_is_read() -> None:
    study = {
        "1": scanned("1", "Topogram", "WHOLEBODY", 1.0, 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
        "2": scanned("2", "Head 5.0 H31s", "WHOLEBODY", 5.0, 34),
        "3": scanned("3", "Head 1.0 H60s", "WHOLEBODY", 1.0, 170, kernel="H60s"),
        "4": scanned("4", "C-Spine 2.0 B30s", "WHOLEBODY", 2.0, 120, kernel="B30s"),
        "5": scanned("5", "Thorax Abdomen Pelvis 5.0", "WHOLEBODY", 5.0, 140, contrast_agent="IOMERON"),
        "6": scanned("6", "Whole 5.0", "WHOLEBODY", 5.0, 200),
    }
    choice = choose(study)
    assert choice.chosen == "2"
    assert {uid: reason.code for uid, reason in choice.skipped.items()} == {
        "1": "LOCALIZER",
        "3": "BONE_KERNEL",
        "4": "NOT_HEAD",
        "5": "NOT_HEAD",
        "6": "NOT_HEAD",
    }


def test_whole_body_in_one_series_is_refused_for_its_length() -> None:
    study = {"1": stack("1", 200, 5.0, series_description="Head to pelvis", body_part="")}
    assert choose(study).skipped["1"].code in ("NOT_HEAD", "COVERAGE_TOO_LARGE")


def test_a_head_with_empty_fields_is_read_with_a_remark() -> None:
    study = {
        "1": stack("1", body_part="", series_description="Unnamed", study_description="", protocol_name="")
    }
    choice = choose(study)
    assert choice.chosen == "1"
    assert [note.code for note in choice.notes] == ["BODY_PART_UNSTATED"]
