"""HL7 v2: the announcement as an unsolicited result, ORU^R01, over MLLP. Waits for the acknowledgement.

The message control id (MSH-10) is the identifier of the alert, so that a resend can be recognised. AA and
CA mean that the receiver has it; AE, AR, CE and CR are refusals, shown with its words. What was sent of a
patient whose study it turned out not to be is sent again as wrong (OBX-11 W), after the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import hl7
from hl7.mllp import InvalidBlockError, open_hl7_connection

from node.channels.contract import Receipt, Rejected
from node.channels.template import DEFAULT, Segment, Structured, escaped, filled, read_template
from node.channels.words import headline, sentences
from node.credentials import client_tls
from node.domain.announcing import Announcement, Stage, Withdrawal
from node.domain.errors import SettingsError, TransientError
from node.domain.findings import CLASSES, Priority
from node.domain.routing import read_date
from node.outputs import codes, wording
from node.settings import Hl7

MOST_ANSWERED_BYTES = 64 * 1024
CLOSES_WITHIN_S = 0.5
"""Of TLS, which both ends close; whoever acknowledged has the message, and may keep the connection."""
ACCEPTED, REFUSED = ("AA", "CA"), ("AE", "AR", "CE", "CR")  # HL7 table 0008
TIMING = {Priority.STAT: "S", Priority.HIGH: "A", Priority.ROUTINE: "R"}  # HL7 table 0485
NAME_KINDS = ("A", "I", "P")  # HL7 table 0465; the component groups of PS3.5 6.2.1, in their order
CLASS_NAMES = (
    "class", "class_code", "class_meaning", "class_words", "probability", "presence_code",
    "presence_meaning", "class_flag",
)  # fmt: skip
NAMES = (
    "sending_application", "sending_facility", "receiving_application", "receiving_facility", "patient_id",
    "patient_id_issuer", "patient_name", "birth_date", "accession_number", "study_uid", "series_uid",
    "study_description", "study_time", "made_time", "message_id", "headline", "text", "priority",
    "reading_priority", "timing_priority", "result_status", "observation_status", "flag", "volume_ml", "side",
    "reason", "model", "revision", "n",
)  # fmt: skip
"""What a template may ask for."""
WITHDRAWN = (
    "WITHDRAWN. What was sent before is not of this patient: the Patient ID of the images was corrected. "
    "Nothing was found about this patient, neither a bleed nor its absence."
)
WRONG = {"headline": "WITHDRAWN", "result_status": "C", "observation_status": "W", "flag": "", "priority": ""}
"""OBX-11 W (HL7 table 0085): post original as wrong, for example transmitted for the wrong patient."""


class Hl7Channel:
    def __init__(self, settings: Hl7) -> None:
        self._settings = settings
        self._name = f"HL7 receiver {settings.name} ({settings.host}:{settings.port})"

    def check(self) -> None:
        self._template()
        self._tls()

    def probe(self) -> str:
        """By opening a connection, and closing it."""
        self._run(self._connected())
        return f"{self._name} takes connections"

    def send(self, told: Announcement) -> Receipt:
        receipt = self._sent(told)
        for number, one in enumerate(told.withdraws, start=1):
            self._sent(withdrawn(told, one, number), as_wrong=True)
        return receipt

    def _sent(self, told: Announcement, as_wrong: bool = False) -> Receipt:
        try:
            text = message(told, self._settings, self._template(), as_wrong)
            data = text.encode(self._settings.codec, "replace")
            answer = self._run(self._exchange(data))
        except SettingsError as error:  # it was there at the start; an admin may put it back
            raise TransientError(str(error)) from error
        return self._receipt(answer.decode(self._settings.codec, "replace"), told.identifier)

    def _receipt(self, answer: str, identifier: str) -> Receipt:
        code, to, text = acknowledgement(answer)
        if code not in ACCEPTED + REFUSED:
            said = f"its answer is no acknowledgement: {answer[:60]!r}"
            raise TransientError(f"{self._name}: {said}; is this a port that takes results?")
        if to != identifier:
            said = f"acknowledged {to!r:.40} where {identifier} was sent"
            raise TransientError(f"{self._name} {said}; its MSA-2 must repeat MSH-10")
        if code in REFUSED:
            said = f"answered {code}: {text or 'without a word'}"
            raise Rejected(code, f"{self._name} {said}; change the template, or what it accepts")
        return Receipt(True, code, text)

    def _template(self) -> tuple[Segment, ...]:
        path = Path(self._settings.template) if self._settings.template else DEFAULT
        return read_template(path, (*NAMES, *CLASS_NAMES))

    def _tls(self) -> ssl.SSLContext | None:
        tls = self._settings.tls
        return client_tls(tls, f"alert {self._settings.name}") if tls.wanted else None

    def _run(self, work: Coroutine[Any, Any, bytes]) -> bytes:
        seconds = self._settings.timeout_s
        try:
            return asyncio.run(asyncio.wait_for(work, seconds))
        except TimeoutError as error:
            text = f"{self._name} does not answer within {seconds:g} s; does it acknowledge what it takes?"
            raise TransientError(text) from error
        except asyncio.IncompleteReadError as error:
            how = "in the middle of its answer" if error.partial else "without an answer"
            text = f"{self._name} closed the connection {how}; its log says why"
            raise TransientError(text) from error
        except ssl.SSLError as error:
            raise TransientError(f"{self._name}: TLS failed, is the authority in tls.ca? {error}") from error
        except (InvalidBlockError, ValueError) as error:
            text = f"{self._name} does not speak MLLP ({error}); is this the port of an HL7 listener?"
            raise TransientError(text) from error
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
            step = "is it running, and are host and port right?"
            raise TransientError(f"{self._name} cannot be reached ({why}); {step}") from error

    async def _exchange(self, data: bytes) -> bytes:
        async with self._connection() as (reader, writer):
            writer.writeblock(data)
            await writer.drain()
            block: bytes = await reader.readblock()
            return block

    async def _connected(self) -> bytes:
        async with self._connection():
            return b""

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Any, Any]]:
        s = self._settings
        secure = {"ssl": tls, "ssl_shutdown_timeout": CLOSES_WITHIN_S} if (tls := self._tls()) else {}
        reader, writer = await open_hl7_connection(s.host, s.port, limit=MOST_ANSWERED_BYTES, **secure)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()


def acknowledgement(answer: str) -> tuple[str, str, str]:
    """(code, control id it answers, words) of an ACK; the words of MSA-3, else of ERR-8 and ERR-7."""
    try:
        parsed = hl7.parse(re.sub(r"[\r\n]+", "\r", answer))  # some end segments like lines of a file
        msa = parsed.segment("MSA")
        code, to = str(msa[1]), str(msa[2]) if len(msa) > 2 else ""
        words = [str(msa[3])] if len(msa) > 3 else []
        errors = [s for s in parsed if str(s[0]) == "ERR"]
        words += [str(s[n]) for s in errors for n in (8, 7) if len(s) > n]
    except (KeyError, IndexError, hl7.HL7Exception):
        return "", "", ""
    return code, to, "; ".join(dict.fromkeys(word for word in words if word))[:300]


def withdrawn(told: Announcement, what: Withdrawal, number: int) -> Announcement:
    """What was said of the wrong patient, under an identifier of its own that is the same in every resend."""
    key = f"{told.identifier}|withdrawn|{number}"
    identifier = hashlib.sha256(key.encode()).hexdigest()[: len(told.identifier)]
    return replace(
        told,
        identifier=identifier,
        subject=what.subject,
        findings=what.findings,
        corrects=None,
        reading_priority=None,
    )


def message(told: Announcement, settings: Hl7, template: tuple[Segment, ...], as_wrong: bool = False) -> str:
    """The ORU^R01; segments end with carriage returns. `as_wrong`: it takes back what it says."""
    header = {
        2: "^~\\&",
        7: _moment(told.made_at),
        9: "ORU^R01^ORU_R01",
        10: told.identifier,
        11: "T" if told.test else settings.processing_id,
        12: settings.version,
        18: settings.charset if settings.charset != "ASCII" else "",
    }
    values, classes = _values(told, settings), _classes(told)
    if as_wrong:
        values = {**values, **WRONG, "text": Structured(escaped(WITHDRAWN))}
        classes = [{**one, "class_flag": ""} for one in classes]
    return filled(template, header, values, classes)


def _values(told: Announcement, settings: Hl7) -> Mapping[str, str]:
    subject, found = told.subject, told.findings
    mask = found.segmentation
    return {
        "sending_application": settings.sending_application,
        "sending_facility": settings.sending_facility,
        "receiving_application": settings.receiving_application,
        "receiving_facility": settings.receiving_facility,
        "patient_id": subject.patient_id,
        "patient_id_issuer": subject.issuer_of_patient_id,
        "patient_name": patient_name(subject.patient_name),
        "birth_date": day(subject.patient_birth_date),
        "accession_number": subject.accession_number,
        "study_uid": told.study_instance_uid,
        "series_uid": found.series_instance_uid,
        "study_description": subject.study_description,
        "study_time": day_and_time(subject.study_date, subject.study_time),
        "made_time": _moment(told.made_at),
        "message_id": told.identifier,
        "headline": headline(told),
        "text": Structured("~".join(map(escaped, sentences(told)))),
        "priority": found.priority or "",
        "reading_priority": told.reading_priority or "",
        "timing_priority": TIMING[told.reading_priority] if told.reading_priority else "",
        "result_status": result_status(told),
        "observation_status": result_status(told),
        "flag": "AA" if found.priority is Priority.STAT else "A" if found.priority is Priority.HIGH else "",
        "volume_ml": f"{mask.volume_ml:.1f}" if mask else "",
        "side": mask.side or "" if mask else "",
        "reason": wording.reason_words(found) if found.reason else "",
        "model": f"{found.model.name} {found.model.version}",
        "revision": str(found.revision),
    }


def _classes(told: Announcement) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for name in CLASSES:
        if (one := told.findings.classes.get(name)) is None:
            continue
        presence = codes.PRESENT if one.present else codes.ABSENT
        rows.append(
            {
                "class": name,
                "class_code": codes.FINDINGS[name].value,
                "class_meaning": codes.FINDINGS[name].meaning,
                "class_words": wording.CLASS_WORDS[name],
                "probability": f"{one.probability:.4f}",
                "presence_code": presence.value,
                "presence_meaning": presence.meaning,
                "class_flag": "A" if one.present else "",  # absent is no all-clear: never N
            }
        )
    return rows


def result_status(told: Announcement) -> str:
    """OBX-11 and OBR-25 (HL7 tables 0085 and 0123)."""
    if told.stage is Stage.NOT_ANALYSED:
        return "X"
    if told.corrects and not told.withdraws:  # of this patient nothing was said before
        return "C"
    return "P" if told.stage is Stage.PRELIMINARY else "F"


def patient_name(name: str) -> Structured:
    """A DICOM name (PS3.5 6.2.1) as XPN: prefix and suffix change places, groups become repetitions."""
    groups = name.split("=")
    written = []
    for group, kind in zip(groups, NAME_KINDS, strict=False):
        family, given, middle, prefix, suffix = (group.split("^") + [""] * 5)[:5]
        parts = [escaped(part.strip()) for part in (family, given, middle, suffix, prefix)]
        if not any(parts):
            continue
        written.append("^".join([*parts, "", "", kind] if len(groups) > 1 else parts).rstrip("^"))
    return Structured("~".join(written))


def day(text: str) -> str:
    """A DA (PS3.5 6.2), also as ACR-NEMA wrote it, as DT; empty for what is none, which engines refuse."""
    digits = text.strip().replace(".", "")
    return digits if re.fullmatch(r"\d{8}", digits) and read_date(digits) else ""


def day_and_time(date: str, time: str) -> str:
    """DA and TM (PS3.5 6.2) as DTM, as far as they are such."""
    known = day(date)
    digits = re.match(r"(\d\d){1,3}", time.strip().replace(":", ""))
    if not known or not digits:
        return known
    try:
        return f"{datetime.strptime(known + digits[0].ljust(6, '0'), '%Y%m%d%H%M%S'):%Y%m%d%H%M%S}"
    except ValueError:
        return known


def _moment(seconds: float) -> str:
    """Local time with its offset (DTM)."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y%m%d%H%M%S%z")
