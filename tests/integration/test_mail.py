"""E-mail against aiosmtpd: what is said and to whom, TLS, passwords, and servers that do not want it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pydantic import ValidationError

from node.channels.contract import Rejected
from node.channels.mail import EmailChannel, message
from node.channels.trial import trial
from node.domain.announcing import Stage
from node.domain.errors import SettingsError, TransientError
from node.settings import Email, Settings
from node.store.records import open_records
from tests.alerting import alert_of, house, told
from tests.certificates import Certificate, make_certificate, server_context
from tests.ports import free_port
from tests.site import SUBDURAL, findings

CONSOLE = "https://ichnode.example.org"
PASSWORD = "s3cr3t-word"


@dataclass
class Post:
    """What the server answers, and the mail it took."""

    to_recipient: dict[str, str] = field(default_factory=dict)
    to_data: str = "250 OK"
    got: list[EmailMessage] = field(default_factory=list)
    taken: list[list[str]] = field(default_factory=list)
    to_quit: str = "221 Bye"

    async def handle_QUIT(self, _: SMTP, __: Session, ___: Envelope) -> str:
        return self.to_quit

    async def handle_RCPT(self, _: SMTP, __: Session, envelope: Envelope, to: str, options: list[str]) -> str:
        if (answer := self.to_recipient.get(to)) is not None:
            return answer
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:
        mail = message_from_bytes(envelope.content or b"", policy=policy.default)  # type: ignore[arg-type]
        assert isinstance(mail, EmailMessage)
        if self.to_data.startswith("250"):
            self.got.append(mail)
            self.taken.append(list(envelope.rcpt_tos))
        return self.to_data


@contextlib.contextmanager
def serving(post: Post, **options: Any) -> Iterator[int]:
    port = free_port()
    controller = Controller(post, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def settings(port: int = 25, **changes: Any) -> Email:
    made: Email = alert_of(
        Email,
        port=port,
        **{
            "security": "none",
            "sender": "ichnode@example.org",
            "recipients": ("reader@example.org",),
            "timeout_s": 5,
            **changes,
        },
    )
    return made


def channel(port: int, **changes: Any) -> EmailChannel:
    return EmailChannel(settings(port, **changes), CONSOLE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), "server")


def test_what_arrives() -> None:
    post = Post()
    with serving(post) as port:
        receipt = channel(port, recipients=("a@example.org", "b@example.org")).send(told())
    (mail,) = post.got
    assert (receipt.acknowledged, receipt.status, receipt.text) == (False, "250", "")
    assert mail["Subject"] == "[ichnode] STAT: HAEMORRHAGE SUSPECTED"
    assert mail["To"] == "a@example.org, b@example.org" and mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"] == f"<{told().identifier}@example.org>" and mail["Importance"] == "high"
    text = mail.get_content()
    for expected in ("subdural 0.91", "23.4 mL", f"{CONSOLE}/study/1.2.3", "not for diagnosis"):
        assert expected in text
    assert not [word for word in ("PID-7", "Müller", "ACC-7") if word in mail.as_string()]


def test_on_request_it_says_whose_study_it_is_and_never_the_name() -> None:
    mail = message(told(), settings(patient_data=True), CONSOLE)
    assert "(ACC-7)" in mail["Subject"] and "PID-7" in mail.get_content()
    assert "Müller" not in mail.as_string()


def test_words_about_one_study_make_a_thread() -> None:
    first = told(stage=Stage.PRELIMINARY)
    one, two = (message(t, settings(), CONSOLE) for t in (first, told(findings(), last=first)))
    assert one["References"] == two["References"] and one["Message-ID"] != two["Message-ID"]
    assert two["Subject"] == "[ichnode] Correction: NO HAEMORRHAGE DETECTED, was STAT"
    assert two["Importance"] == "high" and "not lowered" in two.get_content()


def test_a_test_is_marked_as_one() -> None:
    mail = message(trial("mail", 1000.0), settings(), CONSOLE)
    assert mail["Subject"].startswith("TEST MESSAGE") and "TEST MESSAGE" in mail.get_content()


def test_over_starttls_with_a_password(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)

    def known(_: Any, __: Any, ___: Any, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and data.password == PASSWORD.encode()
        return AuthResult(success=right, handled=False)

    options = {
        "tls_context": server_context(certificate),
        "require_starttls": True,
        "authenticator": known,
        "auth_required": True,
    }
    asked = {"security": "starttls", "username": "ichnode", "password": "env:MAIL_PASSWORD"}
    post = Post()
    with serving(post, **options) as port:
        trusting = channel(port, **asked, tls={"ca": certificate.cert})
        trusting.check()
        assert "answers" in trusting.probe()
        trusting.send(told())
        with pytest.raises(TransientError, match=r"tls\.ca"):
            channel(port, **asked).send(told())
        monkeypatch.setenv("MAIL_PASSWORD", "wrong")
        with pytest.raises(Rejected) as caught:
            trusting.send(told())
        monkeypatch.delenv("MAIL_PASSWORD")
        with pytest.raises(TransientError, match="MAIL_PASSWORD is empty"):
            trusting.send(told())
        with pytest.raises(SettingsError, match="MAIL_PASSWORD is empty"):
            trusting.check()
    assert caught.value.status == "535" and "wrong" not in str(caught.value) and len(post.got) == 1


def test_a_server_without_starttls_gets_nothing() -> None:
    post = Post()
    with serving(post) as port, pytest.raises(TransientError, match="STARTTLS"):
        channel(port, security="starttls").send(told())
    assert not post.got


@pytest.mark.parametrize(("answer", "error"), [("451 try later", TransientError), ("554 not here", Rejected)])
def test_what_the_server_says_no_to(answer: str, error: type[Exception]) -> None:
    with serving(Post(to_data=answer)) as port, pytest.raises(error, match=answer[4:]):
        channel(port).send(told())


@pytest.mark.parametrize(("answer", "error"), [("450 box is full", TransientError), ("550 nobody", Rejected)])
def test_no_recipient_is_known(answer: str, error: type[Exception]) -> None:
    post = Post(to_recipient={"reader@example.org": answer})
    with serving(post) as port, pytest.raises(error, match=answer[4:]):
        channel(port).send(told())


def test_one_recipient_of_two_is_told_of_in_the_receipt() -> None:
    post = Post(to_recipient={"b@example.org": "550 nobody"})
    with serving(post) as port:
        receipt = channel(port, recipients=("a@example.org", "b@example.org")).send(told())
    assert len(post.got) == 1 and receipt.text == "refused for b@example.org (550 nobody)"


def test_a_recipient_who_is_to_be_tried_later_is_tried_again_and_nobody_is_told_twice() -> None:
    """Greylisting (RFC 6647), or a box that is full."""
    post = Post(to_recipient={"b@example.org": "450 come back", "c@example.org": "550 nobody"})
    with serving(post) as port:
        mails = channel(port, recipients=("a@example.org", "b@example.org", "c@example.org"))
        for _ in range(2):
            with pytest.raises(TransientError, match=r"not take it yet for b@example.org \(450 come back\)"):
                mails.send(told())
        assert post.taken == [["a@example.org"]]
        del post.to_recipient["b@example.org"]
        assert mails.send(told()).text == ""
        assert post.taken == [["a@example.org"], ["b@example.org"]]
        mails.send(replace(told(), identifier="another"))
    assert post.taken[2:] == [["a@example.org", "b@example.org"]]


def test_while_several_alerts_wait_for_one_recipient_nobody_else_is_told_twice() -> None:
    """A box that stays full: each alert is tried again and again, the others in between."""
    post = Post(to_recipient={"b@example.org": "452 full"})
    alerts = [replace(told(), identifier=name) for name in ("first", "second", "third")]
    with serving(post) as port:
        mails = channel(port, recipients=("a@example.org", "b@example.org"))
        for _ in range(2):
            for one in alerts:
                with pytest.raises(TransientError):
                    mails.send(one)
        assert post.taken == [["a@example.org"]] * 3
        del post.to_recipient["b@example.org"]
        for one in alerts:
            mails.send(one)
    assert post.taken[3:] == [["b@example.org"]] * 3


def test_who_is_refused_for_good_on_the_second_try_is_told_of_in_the_receipt() -> None:
    post = Post(to_recipient={"b@example.org": "450 come back"})
    with serving(post) as port:
        mails = channel(port, recipients=("a@example.org", "b@example.org"))
        with pytest.raises(TransientError):
            mails.send(told())
        post.to_recipient["b@example.org"] = "550 nobody"
        assert mails.send(told()).text == "refused for b@example.org (550 nobody)"
    assert post.taken == [["a@example.org"]]


@pytest.mark.parametrize("answer", ["421 busy", "250 Bye"])
def test_a_mail_that_was_taken_is_not_sent_again_for_the_words_of_parting(answer: str) -> None:
    post = Post(to_quit=answer)
    with serving(post) as port:
        assert channel(port).send(told()).status == "250"
    assert len(post.got) == 1


def test_of_those_who_refuse_one_for_now_and_one_for_good_the_first_counts() -> None:
    post = Post(to_recipient={"a@example.org": "550 nobody", "b@example.org": "450 come back"})
    with serving(post) as port, pytest.raises(TransientError, match="come back"):
        channel(port, recipients=("a@example.org", "b@example.org")).send(told())


def test_nobody_there() -> None:
    with pytest.raises(TransientError, match="cannot be reached"):
        channel(free_port()).probe()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "mail.example.org", "username": "u", "password": "env:P"}, "in the open"),
        ({"host": "mail.example.org", "patient_data": True}, "in the open"),
        ({"username": "u"}, "go together"),
        ({"recipients": ()}, "recipients"),
        ({"sender": "nobody"}, "sender"),
        ({"recipients": ("a@b.c\nBcc: d@e.f",)}, "recipients"),
    ],
)
def test_settings_that_would_leak_or_reach_nobody_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


def test_from_the_early_word_to_the_mailbox(tmp_path: Path) -> None:
    records, post = open_records(Settings(data_dir=tmp_path)), Post()
    with serving(post) as port:
        of = house(records, settings(port))
        job = of.alarmed()
        of.herald().round()
        assert of.word(job, SUBDURAL, Stage.FINAL)  # no follow-up by mail unless asked
        of.herald().round()
    assert of.states() == ["SENT"] and len(post.got) == 1
    records.close()
