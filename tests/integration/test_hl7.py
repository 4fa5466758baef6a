"""ORU^R01 over MLLP to receivers that acknowledge, refuse, break off and dawdle; read by another library."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message
from pydantic import ValidationError
from sqlalchemy import update

from node.channels.contract import Rejected
from node.channels.hl7v2 import Hl7Channel, acknowledgement, message, patient_name
from node.channels.template import DEFAULT, escaped
from node.channels.trial import trial
from node.domain.announcing import Announcement, Stage, Withdrawal
from node.domain.errors import SettingsError, TransientError
from node.domain.findings import Findings, ModelIdentity, Reason, Status
from node.settings import Hl7, Settings
from node.store.engine import writing
from node.store.records import open_records
from node.store.tables import studies
from tests.alerting import alert_of, house, told
from tests.certificates import make_certificate, server_context
from tests.ports import free_port
from tests.site import SUBDURAL, findings

EARLY = replace(SUBDURAL, segmentation=None, consistency=None)
FAILED = Findings(
    ModelIdentity("ichnode", "1", ""), "s", 1, Status.NOT_ANALYSED, Reason("NO_VOLUME", "no | volume & more")
)


def ack(code: str, more: str = "") -> Callable[[Message], bytes]:
    def answer(got: Message) -> bytes:
        header = "MSH|^~\\&|EI|HOSP|ICHNODE||20261120||ACK^R01^ACK|1|P|2.5.1"
        text = f"{header}\rMSA|{code}|{got.msh.msh_10.value}{more}\r"
        return b"\x0b" + text.encode() + b"\x1c\r"

    return answer


@dataclass
class EngineOfTheSite:
    """An MLLP receiver on loopback; `answer` gives the raw bytes, None closes without a word."""

    answer: Callable[[Message], bytes | None] = field(default_factory=lambda: ack("AA"))
    tls: ssl.SSLContext | None = None
    encoding: str = "utf-8"
    got: list[Message] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    lingers: bool = False
    """Keeps a connection, and answers no close of it."""
    stays: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> EngineOfTheSite:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stays.set()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
                with self.tls.wrap_socket(peer, server_side=True) if self.tls else peer as connection:
                    self._talk(connection)
            except (OSError, ssl.SSLError):
                if self._socket.fileno() < 0:
                    return

    def _talk(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\x1c\r"):
            if not (part := connection.recv(65536)):
                return
            data += part
        self.raw.append(data)
        self.got.append(parsed(data[1:-2].decode(self.encoding)))
        if (answer := self.answer(self.got[-1])) is None:
            return
        connection.sendall(answer)
        if not answer or self.lingers:
            self.stays.wait(10)


def parsed(text: str) -> Message:
    """By hl7apy, as strictly as it can."""
    got = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT)
    assert got.validate()
    return got


def channel(port: int, **changes: Any) -> Hl7Channel:
    return Hl7Channel(alert_of(Hl7, port=port, **changes))


def written(announced: Announcement, **changes: Any) -> Message:
    settings = Hl7(**changes)
    return parsed(message(announced, settings, Hl7Channel(settings)._template()))


def observations(got: Message) -> dict[str, Any]:
    """OBX by code, classes by their sub-id."""
    group = got.oru_r01_patient_result.oru_r01_order_observation
    return {(o.obx.obx_4.value or o.obx.obx_3.obx_3_1.value): o.obx for o in group.oru_r01_observation}


def test_a_final_result() -> None:
    got = written(told(), sending_facility="HOSP", receiving_application="EI")
    assert (got.msh.msh_3.value, got.msh.msh_4.value, got.msh.msh_5.value) == ("ICHNODE", "HOSP", "EI")
    assert got.msh.msh_9.value == "ORU^R01^ORU_R01"
    assert got.msh.msh_10.value == told().identifier and got.msh.msh_11.value == "P"
    assert got.msh.msh_18.value == "UNICODE UTF-8"
    result = got.oru_r01_patient_result
    pid = result.oru_r01_patient.pid
    assert (pid.pid_3.pid_3_1.value, pid.pid_3.pid_3_4.value) == ("PID-7", "HOSP")
    assert pid.pid_5.value == "Müller^Jürgen^^^Dr." and pid.pid_7.value == "19560102"
    order = result.oru_r01_order_observation
    assert order.obr.obr_3.value == order.orc.orc_3.value == order.obr.obr_18.value == "ACC-7"
    assert (order.obr.obr_7.value, order.obr.obr_25.value) == ("20261120101500", "F")
    assert order.oru_r01_timing_qty.tq1.tq1_9.value == "S"
    found = observations(got)
    assert found["subdural"].obx_5.value == "52101004^Present^SCT"
    assert found["subdural"].obx_9.value == "0.9140" and found["subdural"].obx_8.value == "A"
    assert found["epidural"].obx_5.value == "272519000^Absent^SCT" and not found["epidural"].obx_8.value
    assert found["118565006"].obx_5.value == "23.4" and found["118565006"].obx_6.obx_6_1.value == "mL"
    assert found["260870009"].obx_5.value == "STAT"
    assert found["113014"].obx_5.value == "1.2.3"
    assert {o.obx_11.value for o in found.values()} == {"F"}


def test_a_preliminary_result_has_no_volume() -> None:
    found = observations(written(told(EARLY, Stage.PRELIMINARY)))
    assert "118565006" not in found and {o.obx_11.value for o in found.values()} == {"P"}


def test_a_correction_keeps_the_priority() -> None:
    got = written(told(replace(findings(), revision=2), last=told()))
    found = observations(got)
    assert {o.obx_11.value for o in found.values()} == {"C"}
    assert got.oru_r01_patient_result.oru_r01_order_observation.obr.obr_25.value == "C"
    assert found["260870009"].obx_5.value == "STAT"
    assert found["any"].obx_5.value.startswith("272519000")
    assert "said STAT" in found["19005-8"].parent.to_er7()


def test_what_was_not_analysed_is_never_negative() -> None:
    got = written(told(FAILED, Stage.NOT_ANALYSED))
    found = observations(got)
    assert set(found) == {"19005-8", "260870009", "113014"}
    assert {o.obx_11.value for o in found.values()} == {"X"}
    text = found["19005-8"].parent.to_er7()
    assert "NOT a negative result" in text and r"no \F\ volume \T\ more" in text


def test_a_test_is_marked_as_one() -> None:
    got = written(trial("hl7", 1000.0))
    assert got.msh.msh_11.value == "T"
    assert "TEST MESSAGE" in observations(got)["19005-8"].parent.to_er7()


@pytest.mark.parametrize(
    ("date", "time", "birth", "dtm", "day"),
    [
        ("20261120", "101500.25", "19560102", "20261120101500", "19560102"),
        ("20261120", "1015", "1956", "20261120101500", ""),
        ("2026.11.20", "10:15:00", "1956.01.02", "20261120101500", "19560102"),  # as ACR-NEMA wrote them
        ("20261120", "noon", "unknown", "20261120", ""),
        ("20261320", "101500", "", "", ""),
        ("", "101500", "00000000", "", ""),
    ],
)
def test_no_date_or_time_of_a_header_breaks_a_message(
    date: str, time: str, birth: str, dtm: str, day: str
) -> None:
    header = replace(told().subject, study_date=date, study_time=time, patient_birth_date=birth)
    result = written(replace(told(), subject=header)).oru_r01_patient_result
    assert result.oru_r01_order_observation.obr.obr_7.value == dtm
    assert result.oru_r01_patient.pid.pid_7.value == day


@pytest.mark.parametrize(
    ("name", "xpn"),
    [
        ("Doe^Jane^Q^Dr.^MD", "Doe^Jane^Q^MD^Dr."),
        ("Doe", "Doe"),
        ("", ""),
        ("A|B^C&D~E", r"A\F\B^C\T\D\R\E"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada^Tarou^^^^^^A~山田^太郎^^^^^^I~やまだ^たろう^^^^^^P"),
    ],
)
def test_names(name: str, xpn: str) -> None:
    assert patient_name(name) == xpn


@pytest.mark.parametrize(
    "hostile", ["a|b^c~d&e\\f", "line\rMSH|^~\\&|evil", "tab\tnul\0esc\x1bfs\x1cvt\x0b", "\\.br\\"]
)
def test_nothing_from_a_header_becomes_structure(hostile: str) -> None:
    subject = replace(told().subject, patient_id=hostile, accession_number=hostile)
    text = message(replace(told(), subject=subject), Hl7(), Hl7Channel(Hl7())._template())
    plain = message(told(), Hl7(), Hl7Channel(Hl7())._template())
    assert [line.count("|") for line in text.split("\r")] == [line.count("|") for line in plain.split("\r")]
    assert not set(text) & set("\0\x0b\x1b\x1c\t\n") and escaped(hostile) in text


def test_it_is_sent_and_acknowledged() -> None:
    with EngineOfTheSite() as engine:
        receipt = channel(engine.port).send(told())
        assert (receipt.acknowledged, receipt.status) == (True, "AA")
        channel(engine.port).send(told())
    first, again = engine.got
    assert first.msh.msh_10.value == again.msh.msh_10.value


@pytest.mark.parametrize("code", ["AE", "AR", "CE", "CR"])
def test_a_refusal_is_shown_with_its_words(code: str) -> None:
    more = "|unknown patient\rERR||PID^1^3|204^Unknown key^HL70357|E||||call the desk"
    with EngineOfTheSite(ack(code, more)) as engine, pytest.raises(Rejected) as caught:
        channel(engine.port).send(told())
    assert caught.value.status == code
    assert "unknown patient; call the desk" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(lambda _: b"", "within 0.5 s", id="no answer"),
        pytest.param(lambda _: None, "without an answer", id="closes"),
        pytest.param(
            lambda got: ack("AA")(got)[:-12] and ack("AA")(got)[:30], "0.5 s|in the middle", id="half"
        ),
        pytest.param(lambda _: b"HTTP/1.1 400 Bad Request\x1c\r", "does not speak MLLP", id="no MLLP"),
        pytest.param(lambda _: b"\x0bhello\x1c\r", "no acknowledgement", id="no HL7"),
        pytest.param(
            lambda _: b"\x0bMSH|^~\\&|A\rMSA|AA|another\x1c\r", "'another'", id="of another message"
        ),
        pytest.param(lambda _: b"\x0b" + b"x" * 200_000 + b"\x1c\r", "does not speak MLLP", id="endless"),
    ],
)
def test_what_is_no_answer_is_tried_again(answer: Callable[[Message], bytes | None], words: str) -> None:
    with EngineOfTheSite(answer) as engine, pytest.raises(TransientError, match=words):
        channel(engine.port, timeout_s=0.5 if "0.5" in words else 5).send(told())


def test_nobody_there() -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(free_port()).send(told())
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(free_port()).probe()


def test_over_tls(tmp_path: Path) -> None:
    certificate, own = make_certificate(tmp_path, "server"), make_certificate(tmp_path, "own", "ichnode")
    with EngineOfTheSite(tls=server_context(certificate, own.cert)) as engine:
        known = {"ca": certificate.cert, "cert": own.cert, "key": own.key}
        assert channel(engine.port, host="localhost", tls=known).send(told()).acknowledged
        with pytest.raises(TransientError, match=r"tls\.ca"):
            channel(engine.port, host="localhost", tls={"ca": "system"}).send(told())


@pytest.mark.parametrize("secure", [True, False])
def test_who_acknowledged_and_does_not_close_has_it_all_the_same(secure: bool, tmp_path: Path) -> None:
    """With TLS both ends close (RFC 8446 6.1), and engines that keep connections open do not care."""
    certificate = make_certificate(tmp_path, "server")
    with EngineOfTheSite(tls=server_context(certificate) if secure else None, lingers=True) as engine:
        known = {"ca": certificate.cert} if secure else {}
        assert channel(engine.port, host="localhost", tls=known, timeout_s=2).send(told()).acknowledged


@pytest.mark.parametrize(
    ("charset", "encoding", "family"),
    [("8859/1", "latin-1", "Müller"), ("UNICODE UTF-8", "utf-8", "Müller"), ("ASCII", "ascii", "M?ller")],
)
def test_the_name_in_the_character_set_that_is_named(charset: str, encoding: str, family: str) -> None:
    with EngineOfTheSite(encoding=encoding) as engine:
        assert channel(engine.port, charset=charset).send(told()).acknowledged
    (got,) = engine.got
    assert got.msh.msh_18.value == ("" if charset == "ASCII" else charset)
    assert got.oru_r01_patient_result.oru_r01_patient.pid.pid_5.value.startswith(f"{family}^")


class TestTemplate:
    def test_a_site_may_have_its_own(self, tmp_path: Path) -> None:
        own = tmp_path / "own.txt"
        own.write_text(
            DEFAULT.read_text("utf-8")
            + "\nOBX when reason\n  1  {n}\n  3  WHY\n  5  {reason}\n\nZAI\n  1  {model}\n"
        )
        template = Hl7Channel(Hl7(template=str(own)))._template()
        lines = message(told(FAILED, Stage.NOT_ANALYSED), Hl7(), template).split("\r")
        assert lines[-3:] == ["OBX|4||WHY||no \\F\\ volume \\T\\ more", "ZAI|ichnode 1", ""]
        assert not [line for line in message(told(), Hl7(), template).split("\r") if "WHY" in line]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("MSH\n  3 A\nPID\nOBX\n  5 {nonsense}\n", "line 5: nothing is called nonsense"),
            ("MSH\nPID\nOBX when weather\n", "nothing is called weather"),
            ("MSH\nPID\nOBX\n  five {text}\n", "line 4"),
            ("PID\nOBX\n", "begins with MSH"),
            ("MSH\n  10 mine\nPID\nOBX\n", "MSH-10 is set by the node"),
            ("  3 A\n", "line 1"),
        ],
    )
    def test_a_mistake_is_told_with_its_line(self, text: str, words: str, tmp_path: Path) -> None:
        own = tmp_path / "own.txt"
        own.write_text(text)
        with pytest.raises(SettingsError, match=words):
            Hl7Channel(Hl7(template=str(own))).check()

    def test_one_that_is_gone_loses_no_alert(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="cannot be read"):
            Hl7Channel(Hl7(template=str(tmp_path / "none"))).check()
        with pytest.raises(TransientError, match="cannot be read"):
            Hl7Channel(Hl7(template=str(tmp_path / "none"))).send(told())


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\r\r"])
def test_an_acknowledgement_may_end_its_lines_as_it_likes(end: str) -> None:
    """Else what was taken is sent again for ever."""
    text = end.join(["MSH|^~\\&|EI", "MSA|AE|M1|no such order", "ERR|||207^x^HL7|E|||diagnosis", ""])
    assert acknowledgement(text) == ("AE", "M1", "no such order; diagnosis")


def test_acknowledgements_that_are_none() -> None:
    for text in ("", "MSH", "MSH|^~\\&|A\r", "MSH|^~\\&|A\rMSA\r", "nonsense|||"):
        assert acknowledgement(text)[0] not in ("AA", "AE", "AR")


def test_from_the_early_word_to_the_refusal_and_after(tmp_path: Path) -> None:
    records = open_records(Settings(data_dir=tmp_path))
    with EngineOfTheSite(ack("AE", "|no such order")) as engine:
        of = house(records, alert_of(Hl7, port=engine.port))
        of.alarmed()
        assert of.herald().round() == 0
        (row,) = of.rows()
        assert (row["state"], row["last_status"]) == ("PENDING", "AE") and "no such order" in row[
            "last_error"
        ]
        engine.answer = ack("AA")
        records.alerts.retry(row["id"], 0.0)
        assert of.herald().round() == 0
    assert of.states() == ["ACKNOWLEDGED"]
    assert engine.got[0].msh.msh_10.value == engine.got[1].msh.msh_10.value == row["identifier"]
    records.close()


def test_what_was_sent_of_the_wrong_patient_is_taken_back(tmp_path: Path) -> None:
    """After the result: time is brain. The receiver can file it, and strike the other."""
    records = open_records(Settings(data_dir=tmp_path))
    with EngineOfTheSite() as engine:
        of = house(records, alert_of(Hl7, port=engine.port))
        job = of.alarmed()
        assert of.herald().round() == 0
        with writing(records.engine) as connection:
            connection.execute(update(studies).values(patient_id="PID-8"))
        of.word(job, SUBDURAL, Stage.FINAL, now=1.0)
        assert of.herald().round(lambda: 2.0) == 0
    assert of.states() == ["ACKNOWLEDGED", "ACKNOWLEDGED"]
    first, right, struck = engine.got

    def patient(got: Message) -> str:
        return str(got.oru_r01_patient_result.oru_r01_patient.pid.pid_3.pid_3_1.value)

    assert [patient(one) for one in (first, right, struck)] == ["PID-7", "PID-8", "PID-7"]
    assert len({one.msh.msh_10.value for one in engine.got}) == 3
    assert {o.obx_11.value for o in observations(right).values()} == {"F"}
    wrong = observations(struck)
    assert {o.obx_11.value for o in wrong.values()} == {"W"} and set(wrong) == set(observations(first))
    assert struck.oru_r01_patient_result.oru_r01_order_observation.obr.obr_25.value == "C"
    assert "not of this patient" in wrong["19005-8"].parent.to_er7()
    assert not any(o.obx_8.value for o in wrong.values()) and not wrong["260870009"].obx_5.value
    records.close()


def test_a_refused_withdrawal_is_tried_again_under_the_same_identifiers() -> None:
    wrong = Withdrawal(replace(told().subject, patient_id="PID-6"), SUBDURAL)
    news = replace(told(), withdraws=(wrong,))
    with EngineOfTheSite() as engine:
        answers = iter([ack("AA"), ack("AE", "|who is that"), ack("AA"), ack("AA")])
        engine.answer = lambda got: next(answers)(got)
        with pytest.raises(Rejected, match="who is that"):
            channel(engine.port).send(news)
        channel(engine.port).send(news)
    sent = [one.msh.msh_10.value for one in engine.got]
    assert sent[:2] == sent[2:] and sent[0] == news.identifier != sent[1] and len(sent[1]) <= 20


def test_a_charset_nobody_speaks_is_refused() -> None:
    with pytest.raises(ValidationError, match="charset"):
        Hl7(charset="EBCDIC")  # type: ignore[arg-type]
