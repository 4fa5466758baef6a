"""The words and kernel names by which scanners and sites tell what a CT series is. Decides nothing.

Words are matched against `fold`ed text: upper case, no accents, single blanks. Latin words are given by
their beginnings, so that KRANI finds KRANIUM; other scripts by signs found anywhere.
"""

from __future__ import annotations

import re
import unicodedata


def fold(text: str) -> str:
    """Upper case without accents, words apart by single blanks: "Schädel_nativ" → "SCHADEL NATIV"."""
    plain = unicodedata.normalize("NFKD", text.upper().replace("Ł", "L").replace("Ø", "O"))
    letters = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return re.sub(r"[\W_]+", " ", letters).strip()


def _words(beginnings: str, signs: str) -> re.Pattern[str]:
    """Any of the words by its beginning, CT in some language perhaps glued on, or any of the signs."""
    latin = rf"\b(?:CT|CCT|TC|TDM|KT)?(?:{'|'.join(beginnings.split())})"
    return re.compile("|".join([latin, *(fold(sign) for sign in signs.split())]))


HEAD = _words(
    "HEAD BRAIN SKULL CRANI KRANI KOPF SCHADEL SCHAEDEL CEREBR CEREBEL ENCEPHAL ENCEFAL TETE CRANE "
    "CABEZA CABECA TESTA HJERN HJARN HODE HOVED HUVUD SKALLE HERSEN HOOFD SCHEDEL GLOW MOZG MOZEK HLAV "
    "LEBK KAFA BEYIN KOPONYA AIVO HIRN KEPALA CAPO\\b NEURO STROKE CCT",
    "ГОЛОВ МОЗГ МОЗК ЧЕРЕП ΕΓΚΕΦΑΛ ΚΡΑΝΙ ΚΕΦΑΛ 頭 脳 颅 顱 脑 腦 头 뇌 두부 머리 "
    "ראש מוח رأس راس دماغ สมอง ศีรษะ",
)
NO_HEAD_PHRASE = re.compile(
    r"\b(?:FEMORAL|FEMUR|RADIAL|HUMERAL|HUMERUS|FIBULAR|METATARSAL) HEADS?\b"
    r"|\bHEAD (?:FIRST|HOLDER|REST)\b|骨[頭头]"
)
"""Phrases that hold a head word and mean no head; taken out before HEAD is looked for."""

OTHER_PART = _words(
    r"CHEST THORA TORAX LUNG ABDO PELVI BECKEN BAUCH [CTLS]?SPINE CERVICAL LUMBA DORSAL RACHIS COLUMN "
    r"WIRBEL [HBL]WS\b HALS NECK CUELLO COLLO HIPS?\b KNEE ANKLE FOOT FEET SHOULDER ELBOW WRIST "
    r"HANDS?\b EXTREMIT LEGS?\b ARMS?\b FEMUR TIBIA HUMER HEART CARDI CORONARY AORT LIVER KIDNEY UROGR "
    r"RENAL COLON BREAST WHOLE\s?BODY SINUS PARANASAL ORBIT(?!O\s?MEAT) FACIAL FACE\b MAXILL MANDIB DENTAL "
    r"JAW TEMPORAL PETROUS MASTOID EARS?\b IAC\b FELSENBEIN NNH\b ABD\b THX\b CAP\b TAP\b TRUNK LEBER "
    r"KNIE SCHULTER HUFTE GENOU EPAULE BASSIN COU\b POUMON RODILLA HOMBRO PULMON PECHO TORACE ADDOME "
    r"GINOCCHIO HERZ NIERE UROLOG BRZUCH KREGOSLUP KLATKA OMURGA AKCIGER BUIK WERVEL",
    "ГРУД БРЮШ ЖИВОТ ПОЗВОНОЧ ЛЕГК ШЕИ ШЕЯ ТАЗА 흉부 복부 경추 요추 صدر بطن "
    "胸 腹 骨盤 骨盆 頸 頚 颈 脊 肺 腰 膝",
)

LOCALIZER = re.compile(r"\bLOCALI[SZ]ER|\bSCOUT|\bTOPOGR|\bSURVIEW|\bSCANO|\bSURVEY\b")
DOSE = re.compile(
    r"\bDOSE (?:REPORT|INFO|SUMMARY|RECORD|SHEET|PAGE)|\bPATIENT PROTOCOL|\bSCREEN ?(?:SAVE|SHOT)"
)
RENDERED = re.compile(r"\bMIN?IP\b|\bMIP\b|\bVRT?\b|\bVOLUME RENDER|\bSSD\b")
PERFUSION = re.compile(r"\bPERFU[SZ]|\bCTP\b|\bVPCT\b|\bCB[FV]\b|\bMTT\b|\bTTP\b|\bTMAX\b|\bDYNAMI")
ANGIOGRAPHY = re.compile(
    r"\bCTA\b|\bANGIO|\bCAROT|\bCTV\b|\bVENOGR|\bWILLIS\b|\bCOW\b|\bARTERIAL\b|\bVENOUS\b"
)
REFORMAT = re.compile(r"\bMPR\b|\bREFORMAT|\bSUBTRACT|\bIODINE\b|\bVNC\b|\bZ ?EFF\b")
BONE = re.compile(r"\bBONE|\bBONY\b|\bKNOCHEN|\bOSSEU|\bHUESO|\bOSSO|\bOSEA|\bKOSTI?\b|\bКОСТ|骨")

NATIVE = re.compile(
    r"\bNATIV|\bNON ?(?:CONTRAST|CON\b|ENHANCED)|\bNCCT\b|\bNECT\b|\bWITHOUT\b|\bW ?O\b|\bUNENHANCED"
    r"|\bPLAIN\b|\bSANS\b|\bSIN (?:CONTRAST|CTE)|\bSENZA\b|\bSEM CONTRAST|\bOHNE\b|\bSINE\b|\bNO CONTRAST"
    r"|\bZONDER\b|\bBEZ K|\bUTEN\b|\bUDEN\b|\bUTAN\b|\bBASALE\b|\bDIRETT|\bKONTRASTSIZ|\bБЕЗ К|平扫|単純|単純"
    r"|\bS CONTRAST|\bPRE ?(?:CONTRAST|CON\b|C\b|IV\b|KM\b)"
)
ENHANCED = re.compile(
    r"\bPOST ?(?:CONTRAST|CON\b|GAD|IV\b|KM\b)|\bCECT\b|\bC CONTRAST"
    r"|\b(?:W|WITH|AVEC|CON|COM|MIT|NACH) ?(?:CONTRAST|CTE\b|IV\b|KM\b)"
    r"|\bENHANCED\b(?! (?:CONVERSION|MULTI|MF\b|CT\b|OBJECT))|\bCE\b"
    r"|\bKONTRASTMITTEL|\bINJECTE|造影(?!前)|增强"
)
PLUS_C = re.compile(r"(?<![A-Z])(?:C ?\(?\+|\+ ?C(?:ON\w*)?\b)(?![A-Z+])", re.IGNORECASE)
"""Contrast as GE and Philips write it, looked for in the text as it stands: folding would lose the sign."""
NO_AGENT = re.compile(
    r"N ?A?|NO|NONE\b.*|NO (?:CONTRAST|IV|AGENT|CM|KM)\b.*|NIL|NULL|OFF|FALSE|0(?: 0+)?(?: ML)?|UNKNOWN"
    r"|NOT (?:GIVEN|USED|APPLIED|APPLICABLE|ADMINISTERED|INJECTED)\b.*|NON ?(?:CONTRAST|ENHANCED)\b.*"
    r"|WITHOUT.*|W O.*"
    r"|KEIN.*|GEEN.*|INGEN.*|AUCUN.*|NINGUN.*|NESSUN.*|NENHUM.*|BRAK.*|YOK\b.*|НЕТ.*|БЕЗ.*|無.*|无.*|なし"
)
"""What is written into ContrastBolusAgent to say that there was none."""
_WITH, _WITHOUT = r"(?:WITH|W|AVEC|CON|COM|MIT)", r"(?:WITHOUT|W ?O|SANS|SIN|SEM|OHNE|SENZA|NATIV\w*)"
_AND = r"(?: (?:AND|OR|ET|Y|E|UND))"
_MEDIUM = r"(?:CONTRAST\w*|CTE|IV|KM)"
BOTH = re.compile(
    rf"\b{_WITH}{_AND}? {_WITHOUT}\b|\b{_WITHOUT}{_AND} {_MEDIUM}\b"
    rf"|\b{_WITHOUT}(?: {_MEDIUM})?(?:{_AND} {_WITH}\b| {_WITH}(?: {_MEDIUM}\b|$))"
)
"""A name of two scans, the native and the enhanced one: it tells of neither."""


def names_agent(contrast_agent: str) -> bool:
    """Whether a ContrastBolusAgent says that some was given."""
    agent = fold(contrast_agent)
    return bool(agent) and not NO_AGENT.fullmatch(agent) and not NATIVE.search(agent)


_KERNELS = (
    (
        r"SIEMENS",
        r"[HJ]([23]\d|4[0-5])[A-Z]*|[HBQ][RCVFL]?([1-3]\d|4[0-5])[A-Z]*",
        r"[A-Z]{1,2}([5-9]\d)[A-Z]*",
    ),
    (r"\bGE\b|GENERAL ELECTRIC", r"SOFT|STANDARD|STD\+?|STND|BRAIN", r"BONE(PLUS|\+)?|EDGE|ULTRA|LUNG"),
    (r"PHILIPS|MARCONI|ELSCINT", r"U[ABC]|A|B|C|BRAIN.*|SMOOTH", r"Y[A-D]|D|E|EB|EC|L|SHARP"),
    (r"TOSHIBA|CANON", r"FC[0126]\d.*", r"FC[358]\d.*"),
    (r"\bUIH\b|UNITED IMAGING", r".*(SOFT|STD|SMOOTH).*", r".*(SHARP|BONE|LUNG).*"),
    (
        r"",
        r"SOFT|STANDARD|STD\+?|BRAIN|U[ABC]|FC[26]\d|H([23]\d|4[0-5])[A-Z]*",
        r"BONE.*|EDGE|Y[A-D]|FC[38]\d|H[5-9]\d[A-Z]*",
    ),
)
"""(manufacturer, soft, sharp), the last for any other maker. Siemens Hr/Hc end at 44 to 45; Canon FC0x and
FC1x are body kernels, soft as well. Kernels in neither column are left undecided."""


def softness(manufacturer: str, kernel: str) -> bool | None:
    """True for a soft reconstruction kernel, False for a sharp one, None for one not known."""
    name = kernel.split("\\")[0].strip(" '[]\"").upper()
    for maker, soft, sharp in _KERNELS:
        if re.search(maker, manufacturer.upper()):
            if re.fullmatch(soft, name):
                return True
            if re.fullmatch(sharp, name):
                return False
    return None
