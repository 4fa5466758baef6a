"""Which series of a study is chosen and why each other is not, with headers as vendors write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from node.domain.eligibility import Rules, SkipCode, best_refused, choose
from node.domain.instance import Instance
from node.domain.stacks import main_stack
from node.domain.vocabulary import HEAD, NO_HEAD_PHRASE, OTHER_PART, fold, softness

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def stack(uid: str, count: int = 32, step_mm: float = 5.0, **changes: Any) -> list[Instance]:
    """A series of axial CT slices, a good head unless the changes say otherwise."""
    first = Instance(
        sop_instance_uid=f"{uid}.0",
        sop_class_uid=CT,
        series_instance_uid=uid,
        study_instance_uid="1.2.3",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        modality="CT",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        manufacturer="SIEMENS",
        body_part="HEAD",
        study_description="CT HEAD",
        series_description="Head 5.0",
        kernel="H31s",
        rows=512,
        columns=512,
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=(0.45, 0.45),
        slice_thickness=step_mm,
        rescaled=True,
    )
    first = replace(first, **{"position": (0.0, 0.0, 0.0), **changes})
    if first.position is None:
        return [replace(first, sop_instance_uid=f"{uid}.{k}") for k in range(count)]
    x, y, z = first.position
    return [
        replace(first, sop_instance_uid=f"{uid}.{k}", position=(x, y, z + k * step_mm)) for k in range(count)
    ]


def test_a_whole_study() -> None:
    study = {
        "1.1": stack(
            "1.1", 2, series_description="Topogram", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
        ),
        "1.2": stack("1.2", 32, 5.0, series_description="Head 5.0 H31s", series_number=2),
        "1.3": stack("1.3", 160, 1.0, series_description="Head 1.0 H31s", series_number=3),
        "1.4": stack("1.4", 160, 1.0, series_description="Head 1.0 H60s", kernel="H60s"),
        "1.5": stack(
            "1.5", 1, series_description="Dose Report", sop_class_uid=SECONDARY_CAPTURE, position=None
        ),
        "1.6": stack("1.6", 1, modality="SEG", sop_class_uid=SEG, position=None),
    }
    choice = choose(study)
    assert choice.chosen == "1.2"
    assert {uid: reason.code for uid, reason in choice.skipped.items()} == {
        "1.1": SkipCode.LOCALIZER,
        "1.3": SkipCode.OTHER_SERIES_CHOSEN,
        "1.4": SkipCode.BONE_KERNEL,
        "1.5": SkipCode.NOT_CT,
        "1.6": SkipCode.NOT_CT,
    }
    assert "Head 5.0 H31s" in choice.skipped["1.3"].text
    assert "H60s" in choice.skipped["1.4"].text
    assert choice.notes == ()
    assert best_refused(choice, study) is None


CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
REFUSED = [
    ("magnetic resonance", {"modality": "MR", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, "NOT_CT"),
    ("GE dose page in CT", {"image_type": ("DERIVED", "SECONDARY", "DOSE_INFO")}, "DOSE_REPORT"),
    ("GE scout", {"series_description": "SCOUT 2 views"}, "LOCALIZER"),
    ("Philips surview", {"series_description": "Surview"}, "LOCALIZER"),
    ("Siemens MPR", {"image_type": ("DERIVED", "SECONDARY", "MPR", "CT_SOM7 MPR")}, "DERIVED_IMAGE"),
    ("GE reformat", {"image_type": ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE")}, "DERIVED_IMAGE"),
    ("derived", {"image_type": ("DERIVED", "SECONDARY", "AXIAL")}, "DERIVED_IMAGE"),
    ("MIP by type", {"image_type": ("DERIVED", "SECONDARY", "MIP")}, "RENDERED"),
    ("MIP by name", {"series_description": "Head AX MIP 10mm"}, "RENDERED"),
    ("VRT", {"series_description": "VRT Head"}, "RENDERED"),
    ("perfusion maps", {"series_description": "CBF Head"}, "PERFUSION"),
    ("angiography", {"series_description": "CTA Head 0.6"}, "ANGIOGRAPHY"),
    ("chest by body part", {"body_part": "CHEST", "series_description": "5.0"}, "NOT_HEAD"),
    ("spine of a head study", {"series_description": "C-Spine 2.0"}, "NOT_HEAD"),
    (
        "abdomen by study",
        {"body_part": "", "series_description": "5mm", "study_description": "CT Abdomen"},
        "NOT_HEAD",
    ),
    (
        "unstated and wide",
        {"body_part": "", "series_description": "5mm", "study_description": "", "pixel_spacing": (0.9, 0.9)},
        "NOT_HEAD",
    ),
    ("coronal", {"orientation": CORONAL}, "NOT_AXIAL"),
    ("no geometry", {"position": None}, "NO_GEOMETRY"),
    ("no pixel spacing", {"pixel_spacing": None}, "NO_GEOMETRY"),
    ("no rescale", {"rescaled": False}, "NO_RESCALE"),
    (
        "enhanced object without its functional groups",
        {"sop_class_uid": ENHANCED_CT, "frames": 32, "position": None},
        "NO_GEOMETRY",
    ),
    ("contrast", {"contrast_agent": "IOHEXOL 350"}, "CONTRAST_ENHANCED"),
    ("contrast by name", {"series_description": "Head post contrast"}, "CONTRAST_ENHANCED"),
    ("too thick", {"slice_thickness": 12.0}, "TOO_THICK"),
    ("bone by name", {"kernel": "", "series_description": "Head Knochen 2.0"}, "BONE_KERNEL"),
]


@pytest.mark.parametrize(("changes", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(changes: dict[str, Any], code: str) -> None:
    study = {"1.1": stack("1.1", **changes)}
    choice = choose(study)
    assert choice.chosen is None
    assert choice.skipped["1.1"].code == code
    assert choice.skipped["1.1"].text
    assert best_refused(choice, study) == (None if code == "NOT_CT" else "1.1")


@pytest.mark.parametrize(
    ("count", "step_mm", "code", "words"),
    [
        (3, 5.0, "TOO_FEW_SLICES", "3 slices, at least 12 needed"),
        (1, 5.0, "TOO_FEW_SLICES", "1 slice, at least 12 needed"),
        (16, 5.0, "COVERAGE_TOO_SMALL", "80 mm"),
        (60, 5.0, "COVERAGE_TOO_LARGE", "300 mm"),
    ],
)
def test_the_measured_value_is_named(count: int, step_mm: float, code: str, words: str) -> None:
    reason = choose({"1.1": stack("1.1", count, step_mm)}).skipped["1.1"]
    assert reason.code == code
    assert words in reason.text


ALLOWED = [
    ("tilted", {"orientation": (1.0, 0.0, 0.0, 0.0, 0.948, -0.317)}, ()),
    ("derived primary", {"image_type": ("DERIVED", "PRIMARY", "AXIAL")}, ()),
    ("no image type", {"image_type": ()}, ()),
    (
        "all empty",
        {"body_part": "", "series_description": "", "study_description": ""},
        ("BODY_PART_UNSTATED",),
    ),
    ("no agent in words", {"contrast_agent": "NONE"}, ()),
    ("the scanner's default body part", {"body_part": "CHEST"}, ("BODY_PART_CONTRADICTED",)),
    (
        "agent on a native series",
        {"contrast_agent": "IOMERON", "series_description": "Schädel nativ 5.0"},
        ("CONTRAST_CONTRADICTED",),
    ),
    ("low dose", {"series_description": "Head low dose"}, ()),
    ("angiography only in the study", {"study_description": "CT HEAD + CTA CAROTIDS"}, ()),
    ("head and neck", {"study_description": "CT HEAD NECK"}, ()),
    ("unknown kernel", {"kernel": "XYZ"}, ()),
]


@pytest.mark.parametrize(("changes", "notes"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_allowed(changes: dict[str, Any], notes: tuple[str, ...]) -> None:
    choice = choose({"1.1": stack("1.1", **changes)})
    assert choice.chosen == "1.1", choice.skipped
    assert tuple(note.code for note in choice.notes) == notes


def test_settings_open_what_is_closed() -> None:
    derived = {"1.1": stack("1.1", image_type=("DERIVED", "SECONDARY", "MPR"))}
    enhanced = {"1.1": stack("1.1", contrast_agent="IOHEXOL")}
    assert choose(derived, Rules(allow_derived=True)).chosen == "1.1"
    choice = choose(enhanced, Rules(allow_contrast=True))
    assert choice.chosen == "1.1"
    assert [note.code for note in choice.notes] == ["CONTRAST_ENHANCED"]


AGENTS = "IOHEXOL 350;OMNIPAQUE;APPLIED;IV;CE;NON IONIC;Iomeron 400 100 ml;造影剤;NAVIRAY;BRACCO"
NO_AGENTS = (
    "NONE;N/A;NA;None given;NO CONTRAST GIVEN;No IV contrast;NOT GIVEN;-;0;0.0;0 ml;NATIVE;nativ;OHNE KM;"
    "kein KM;SIN CONTRASTE;SANS;w/o contrast;NONCONTRAST;NCCT;Unenhanced;Plain;geen;aucun;brak;нет;"
    "без контраста;無し;无;なし"
)


@pytest.mark.parametrize("agent", AGENTS.split(";"))
def test_an_agent_is_one(agent: str) -> None:
    assert choose({"1.1": stack("1.1", contrast_agent=agent)}).skipped["1.1"].code == "CONTRAST_ENHANCED"


@pytest.mark.parametrize("agent", NO_AGENTS.split(";"))
def test_words_for_no_agent_are_none(agent: str) -> None:
    choice = choose({"1.1": stack("1.1", contrast_agent=agent)})
    assert choice.chosen == "1.1", choice.skipped
    assert choice.notes == ()


BOTH = (
    "HEAD W/WO CONTRAST;HEAD W WO;HEAD W & W/O;HEAD WITH AND WITHOUT;Head without and with contrast;"
    "HEAD W/O & W;Kopf nativ und KM;Kopf mit und ohne KM;TDM cérébral sans et avec IV;"
    "Crânio sem contraste e com contraste"
)


@pytest.mark.parametrize("name", BOTH.split(";"))
def test_a_name_of_both_scans_does_not_make_an_enhanced_one_native(name: str) -> None:
    enhanced = stack("1.1", contrast_agent="OMNIPAQUE", series_description=name)
    assert choose({"1.1": enhanced}).skipped["1.1"].code == "CONTRAST_ENHANCED"
    assert choose({"1.1": stack("1.1", series_description=name)}).chosen == "1.1"


NATIVE = (
    "HEAD W/O CONTRAST W/ 3D;Head without, with bone filter;Kopf nativ;Head pre contrast;Head pre C+;"
    "TC cráneo S/Contraste"
)


@pytest.mark.parametrize("name", NATIVE.split(";"))
def test_a_native_name_is_believed(name: str) -> None:
    choice = choose({"1.1": stack("1.1", contrast_agent="OMNIPAQUE", series_description=name)})
    assert [note.code for note in choice.notes] == ["CONTRAST_CONTRADICTED"]


@pytest.mark.parametrize("enhanced_slices", [32, 40])
def test_native_slices_are_read_beside_enhanced_ones_of_their_series(enhanced_slices: int) -> None:
    """Whichever came first."""
    agent = {"acquisition_number": 2, "contrast_agent": "IOHEXOL"}
    native, enhanced = stack("1.1", acquisition_number=1), stack("1.1.9", enhanced_slices, **agent)
    for series in ([*native, *enhanced], [*enhanced, *native]):
        choice = choose({"1.1": series})
        assert choice.chosen == "1.1", choice.skipped
        assert [note.code for note in choice.notes] == ["SEVERAL_VOLUMES"]


def test_a_few_native_slices_do_not_hide_that_a_series_is_enhanced() -> None:
    series = [*stack("1.1", 3), *stack("1.1.9", contrast_agent="IOHEXOL")]
    assert choose({"1.1": series}).skipped["1.1"].code == SkipCode.CONTRAST_ENHANCED
    assert choose({"1.1": series}, Rules(allow_contrast=True)).chosen == "1.1"


def test_native_before_enhanced_even_when_enhanced_is_allowed() -> None:
    study = {"1.1": stack("1.1", contrast_agent="IOHEXOL"), "1.2": stack("1.2", 160, 1.0)}
    assert choose(study, Rules(allow_contrast=True)).chosen == "1.2"
    assert choose(study).skipped["1.1"].code == SkipCode.CONTRAST_ENHANCED


@pytest.mark.parametrize(
    ("steps_mm", "best"),
    [((5.0, 2.5, 1.0), 0), ((1.0, 0.6, 3.0), 2), ((1.0, 0.6, 8.0), 0), ((8.0, 10.0, 9.0), 0)],
)
def test_thickness_preferred(steps_mm: tuple[float, ...], best: int) -> None:
    study = {f"1.{k}": stack(f"1.{k}", int(160 / step), step) for k, step in enumerate(steps_mm)}
    assert choose(study).chosen == f"1.{best}"


def test_ties_are_broken_the_same_way_in_any_order() -> None:
    study = {uid: stack(uid, series_number=3) for uid in ("1.9", "1.7", "1.8")}
    assert choose(study).chosen == choose(dict(reversed(study.items()))).chosen == "1.7"


ALIKE = [
    ("two matrices", [{}, {"rows": 256, "columns": 256}]),
    ("an unknown kernel, a soft and a sharp one", [{"kernel": ""}, {"kernel": "H31s"}, {"kernel": "H60s"}]),
    ("a kernel that is not always told", [{"kernel": ""}, {"kernel": "H60s"}]),
    ("one of them out of place", [{}, {"columns": 256, "position": (0.0, 0.0, 300.0)}]),
]


@pytest.mark.parametrize("parts", [row[1] for row in ALIKE], ids=[row[0] for row in ALIKE])
def test_the_order_in_which_images_come_decides_nothing(parts: list[dict[str, Any]]) -> None:
    """The worker gets them in another one than whoever chooses."""
    series = [slice_ for number, part in enumerate(parts) for slice_ in stack(f"1.1.{number}", 30, **part)]
    found = set()
    for order in (series, series[::-1], series[40:] + series[:40], series[1::2] + series[::2]):
        chosen = {order[index].sop_instance_uid for index in main_stack(order)}
        found.add((choose({"1.1": order}).chosen, *sorted(chosen)))
        assert len({order[index].kernel for index in main_stack(order)} - {""}) < 2
    assert len(found) == 1


def test_a_few_odd_instances_do_not_spoil_a_series() -> None:
    odd = stack("1.1.9", 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    choice = choose({"1.1": odd + stack("1.1")})
    assert choice.chosen == "1.1"
    assert "2 of 34" in choice.notes[0].text


def test_dynamic_scan_is_told_by_its_positions() -> None:
    assert choose({"1.1": stack("1.1") * 4}).skipped["1.1"].code == SkipCode.PERFUSION


def test_the_report_goes_to_the_series_closest_to_a_head() -> None:
    study = {
        "1.1": stack("1.1", 2, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")),
        "1.2": stack("1.2", 160, 1.0, kernel="H60s"),
        "1.3": stack("1.3", body_part="CHEST", series_description="5.0"),
        "1.4": stack("1.4", 4),
    }
    assert best_refused(choose(study), study) == "1.2"


def test_no_report_for_a_study_without_ct() -> None:
    study = {"1.1": stack("1.1", 3, modality="SR", sop_class_uid="1.2.840.10008.5.1.4.1.1.88.67")}
    assert best_refused(choose(study), study) is None


HEADS = (
    "CT BRAIN W/O;CCT nativ;Schädel;Kopf_5.0;TDM cérébral;Tête sans IV;Crâne;TC cráneo;Cabeza;Testa;Encefalo;"
    "CT Hjerne;Голова;Головной мозг;頭部単純;颅脑平扫;CTHead;Cranio;TC CRANIO;Głowa;두부 CT;NEURO^Routine"
)


@pytest.mark.parametrize("text", HEADS.split(";"))
def test_head_in_many_languages(text: str) -> None:
    assert HEAD.search(fold(text))
    assert not OTHER_PART.search(fold(text))


@pytest.mark.parametrize(
    "text", ["Femoral head", "Head First Supine", "股骨头", "Chest overhead arms", "Routine"]
)
def test_no_head_in_these(text: str) -> None:
    assert not HEAD.search(NO_HEAD_PHRASE.sub(" ", fold(text)))


@pytest.mark.parametrize(
    ("maker", "kernel", "soft"),
    [
        ("SIEMENS", "H31s", True),
        ("SIEMENS", "J40s\\3", True),
        ("Siemens Healthineers", "Hr40f", True),
        ("Siemens Healthineers", "Hc38h", True),
        ("Siemens Healthineers", "Hr64h", False),
        ("SIEMENS", "H60s", False),
        ("SIEMENS", "B70f", False),
        ("SIEMENS", "H48s", None),
        ("GE MEDICAL SYSTEMS", "SOFT", True),
        ("GE MEDICAL SYSTEMS", "STD+", True),
        ("GE MEDICAL SYSTEMS", "STANDARD", True),
        ("GE MEDICAL SYSTEMS", "BONEPLUS", False),
        ("GE MEDICAL SYSTEMS", "EDGE", False),
        ("GE MEDICAL SYSTEMS", "DETAIL", None),
        ("Philips", "UB", True),
        ("Philips", "YB", False),
        ("Philips", "D", False),
        ("TOSHIBA", "FC26", True),
        ("Canon Medical Systems", "FC64", True),
        ("TOSHIBA", "FC30", False),
        ("TOSHIBA", "FC81", False),
        ("Unheard of", "H31s", True),
        ("", "BONE", False),
        ("", "", None),
    ],
)
def test_kernels(maker: str, kernel: str, soft: bool | None) -> None:
    assert softness(maker, kernel) is soft
