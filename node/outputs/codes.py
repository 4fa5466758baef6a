"""Every code our objects use, each with where it is defined. No other file may write a code."""

from __future__ import annotations

from pydicom.sr.coding import Code

from node.domain.findings import Findings as Analysis
from node.domain.findings import Priority, Side, Status

# Document: PS3.16 TID 1500
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")  # CID 7021
ENGLISH = Code("en", "RFC5646", "English")  # CID 5000
DEVICE = Code("121007", "DCM", "Device")  # CID 270
PROCEDURE_REPORTED = Code("25045-6", "LN", "CT unspecified body region")  # CID 100 has no plain head CT
HEAD_CT = Code("24725-4", "LN", "Head CT")  # CID 646
COMMENT = Code("121106", "DCM", "Comment")  # PS3.16 Annex D
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")  # TID 1501
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")  # TID 1500
AI_FAMILY = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")  # PS3.16 Annex D

GRAD_CAM = Code("130403", "DCM", "Gradient-weighted class activation")  # CID 217
PRIOR_REPORT = Code("122075", "DCM", "Prior report for current patient")  # CID 3407
OF_INTEREST = Code("113000", "DCM", "Of Interest")  # CID 7010

# Finding, category and site
MORPHOLOGICALLY_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")  # CID 7150
HEMORRHAGE = Code("50960005", "SCT", "Hemorrhage")  # CID 7151, as segmented property type
FINDINGS = {  # SNOMED CT
    "any": Code("1386000", "SCT", "Intracranial hemorrhage"),
    "epidural": Code("82999001", "SCT", "Epidural hemorrhage"),
    "intraparenchymal": Code("274100004", "SCT", "Cerebral hemorrhage"),
    "intraventricular": Code("1386000", "SCT", "Intracranial hemorrhage"),  # told apart by its site
    "subarachnoid": Code("21454007", "SCT", "Subarachnoid hemorrhage"),
    "subdural": Code("35486000", "SCT", "Subdural hemorrhage"),
}
BRAIN = Code("12738006", "SCT", "Brain")  # CID 4
INTRACRANIAL = Code("128319008", "SCT", "Intracranial structure")  # SNOMED CT
SITES = {
    "any": BRAIN,
    "epidural": INTRACRANIAL,
    "intraparenchymal": BRAIN,
    "intraventricular": Code("35764002", "SCT", "Brain ventricle"),
    "subarachnoid": Code("35951006", "SCT", "Subarachnoid space"),
    "subdural": INTRACRANIAL,
}

RIGHT = Code("24028007", "SCT", "Right")  # CID 244 Laterality, and so the next two
LEFT = Code("7771000", "SCT", "Left")
BILATERAL = Code("51440002", "SCT", "Bilateral")
MEDIAN = Code("130290", "DCM", "Median")  # CID 245 Laterality with Median
SIDES = {Side.LEFT: LEFT, Side.RIGHT: RIGHT, Side.BILATERAL: BILATERAL, Side.MIDLINE: MEDIAN}

# Measurements and evaluations
PROBABILITY = Code("122157", "DCM", "Probability")  # PS3.16 Annex D
NO_UNITS = Code("1", "UCUM", "no units")
VOLUME = Code("118565006", "SCT", "Volume")  # CID 7469
VOXELS_SUMMED = Code("126030", "DCM", "Sum of segmented voxel method for volume")  # CID 7474
MILLILITER = Code("mL", "UCUM", "mL")
LONG_AXIS = Code("103339001", "SCT", "Long axis")  # CID 7470 Linear Measurements
MILLIMETER = Code("mm", "UCUM", "mm")
ELLIPSOID_VOLUME = Code("121221", "DCM", "Volume of ellipsoid")  # CID 7472 Volume Measurements
LESION_COUNT = Code("246206008", "SCT", "Number of lesions")  # SNOMED CT, observable entity
PERCENT = Code("%", "UCUM", "%")
SIZE_DIFFERENCE = Code("442714003", "SCT", "Difference in size")  # CID 6133
INCREASED = Code("15454001", "SCT", "Increase in size")  # CID 6134
DECREASED = Code("19776001", "SCT", "Decrease in size")  # CID 6134
UNCHANGED = Code("129723006", "SCT", "No significant changes in the finding")  # CID 6134

# Our own, for want of standard ones: PS3.3 8.2 allows private coding schemes whose name begins with 99
OWN_SCHEME = "99ICHNODE"
OWN_SCHEME_NAME = "Codes of the ichnode project"
ABC2 = Code("ABC2", OWN_SCHEME, "ABC/2 of the largest part, Kothari 1996")
SLICE_COUNT = Code("SLICES", OWN_SCHEME, "Number of slices involved")
PRIOR_VOLUME = Code("PRIORVOLUME", OWN_SCHEME, "Volume on the prior CT")
CHANGE = Code("CHANGE", OWN_SCHEME, "Change in volume since the prior CT")
RELATIVE_CHANGE = Code("RELCHANGE", OWN_SCHEME, "Relative change in volume since the prior CT")
EXPANSION = Code("EXPANSION", OWN_SCHEME, "Hematoma expansion: over 33 % or 6 mL")

PRESENCE = Code("705057003", "SCT", "Presence")  # SNOMED CT
PRESENT = Code("52101004", "SCT", "Present")  # CID 240
ABSENT = Code("272519000", "SCT", "Absent")  # CID 240
UNDETERMINED = Code("373068000", "SCT", "Undetermined")  # CID 240
NOT_EVALUATED = Code("373121007", "SCT", "Not Evaluated")  # CID 3703
PRIORITY = Code("260870009", "SCT", "Priority")  # SNOMED CT
PRIORITIES = {  # CID 7035 Actionable Finding Classification
    Priority.STAT: Code("RID49480", "RADLEX", "ACR Category 1 Actionable Finding"),
    Priority.HIGH: Code("RID49481", "RADLEX", "ACR Category 2 Actionable Finding"),
    Priority.ROUTINE: Code("RID49482", "RADLEX", "ACR Category 3 Actionable Finding"),
}

# Numeric value qualifiers: CID 42
NOT_ATTEMPTED = Code("114007", "DCM", "Measurement not attempted")
MEASUREMENT_FAILURE = Code("114006", "DCM", "Measurement failure")
CALCULATION_FAILURE = Code("114008", "DCM", "Calculation failure")

# References and equipment
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")  # CID 7202
ACQUISITION_EQUIPMENT = Code("109101", "DCM", "Acquisition Equipment")  # CID 7005
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")  # CID 7005

_CALCULATION_WORDS = ("MEASURE", "CALCULAT", "NOT_FINITE", "NAN")
_FAILURE_WORDS = ("FAIL", "ERROR", "CRASH", "TIMEOUT", "TIMED_OUT", "EXHAUSTED", "LOST", "CORRUPT", "DECODE")


def qualifier(findings: Analysis) -> Code:
    """Why a number is missing (CID 42): we chose not to try, we failed, or the arithmetic did.

    Reads the reason's code by its words, so that a code added elsewhere lands in the right family.
    """
    code = findings.reason.code.upper() if findings.reason else ""
    if findings.status is Status.ANALYSED:
        return NOT_ATTEMPTED
    if any(word in code for word in _CALCULATION_WORDS):
        return CALCULATION_FAILURE
    if any(word in code for word in _FAILURE_WORDS):
        return MEASUREMENT_FAILURE
    return NOT_ATTEMPTED
