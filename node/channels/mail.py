"""E-mail: the announcement as a plain message with a link to the console. Names no patient unless asked.

That a mail server took the message is no acknowledgement by a person, so the alert stays SENT. The
Message-ID is that of the alert, so that a resend can be recognised; all words about a study make one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import smtplib
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import quote

from node import __version__
from node.channels.contract import Receipt, Rejected
from node.channels.words import TEST, headline, sentences
from node.credentials import client_tls, secret
from node.domain.announcing import Announcement
from node.domain.errors import SettingsError, TransientError
from node.settings import Email

PERMANENT = 500  # RFC 5321 4.2.1: 5yz, permanent negative
MOST_REMEMBERED = 1000
"""Alerts that some of their recipients have; of the oldest beyond them, all are told again."""
STEPS = {
    530: "set username and password",
    534: "check username and password",
    535: "check username and password",
    550: "check sender and recipients",
    553: "check sender and recipients",
}
"""RFC 4954 6 and RFC 5321 4.2.2."""


class EmailChannel:
    """`console` is the root of links to the console."""

    def __init__(self, settings: Email, console: str) -> None:
        self._settings = settings
        self._console = console
        self._name = f"mail server {settings.host}:{settings.port} of alert {settings.name}"
        self._served: dict[str, frozenset[str]] = {}
        """By alert, which addresses are done with it: a try again is for the others."""

    def check(self) -> None:
        self._tls()
        self._password()

    def probe(self) -> str:
        """By greeting it and, where there is a user name, by logging in."""
        with self._errors(), self._session():
            return f"{self._name} answers"

    def send(self, told: Announcement) -> Receipt:
        mail = message(told, self._settings, self._console)
        everybody = self._settings.recipients
        served = self._served.get(told.identifier, frozenset())
        with self._errors(), self._session() as session:
            try:
                refused = session.send_message(mail, to_addrs=[to for to in everybody if to not in served])
            except smtplib.SMTPRecipientsRefused as error:
                if not served:
                    raise
                refused = error.recipients
        self._served.pop(told.identifier, None)
        if not refused:
            return Receipt(False, "250")
        who = ", ".join(f"{to} ({code} {_text(words)})" for to, (code, words) in refused.items())
        later = {to for to, (code, _) in refused.items() if code < PERMANENT}
        if later:  # a full box, greylisting: the others have it, and are not told twice
            self._remember(told.identifier, frozenset(everybody) - later)
            raise TransientError(f"{self._name} does not take it yet for {who}; its log says why")
        return Receipt(False, "250", f"refused for {who}")

    def _remember(self, identifier: str, served: frozenset[str]) -> None:
        if len(self._served) >= MOST_REMEMBERED:
            del self._served[next(iter(self._served))]
        self._served[identifier] = served

    @contextlib.contextmanager
    def _session(self) -> Iterator[smtplib.SMTP]:
        s = self._settings
        if s.security == "tls":
            session: smtplib.SMTP = smtplib.SMTP_SSL(s.host, s.port, timeout=s.timeout_s, context=self._tls())
        else:
            session = smtplib.SMTP(s.host, s.port, timeout=s.timeout_s)
        try:
            if s.security == "starttls":
                session.starttls(context=self._tls())
            if s.username:
                session.login(s.username, self._password())
            yield session
        finally:
            with contextlib.suppress(OSError, smtplib.SMTPException):
                session.quit()  # whatever it answers: what it took, it took
            session.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SettingsError as error:  # it was there at the start; an admin may put it back
            raise TransientError(str(error)) from error
        except smtplib.SMTPRecipientsRefused as error:
            code, words = min(error.recipients.values())
            text = f"takes mail for none of the recipients: {_text(words)}; check recipients"
            raise self._refusal(code, text) from error
        except smtplib.SMTPNotSupportedError as error:
            raise TransientError(f"{self._name}: {error}; set `security` to what it offers") from error
        except smtplib.SMTPResponseException as error:
            step = STEPS.get(error.smtp_code, "its log says why")
            raise self._refusal(error.smtp_code, f"{_text(error.smtp_error)}; {step}") from error
        except ssl.SSLError as error:
            raise TransientError(f"{self._name}: TLS failed, is the authority in tls.ca? {error}") from error
        except (OSError, smtplib.SMTPException) as error:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            step = "is it running, are host and port right, and is `security` what it speaks?"
            raise TransientError(f"{self._name} cannot be reached ({why}); {step}") from error

    def _refusal(self, code: int, words: str) -> Exception:
        text = f"{self._name} answered {code} {words}"
        return Rejected(str(code), text) if code >= PERMANENT else TransientError(text)

    def _tls(self) -> ssl.SSLContext:
        return client_tls(self._settings.tls, f"alert {self._settings.name}")

    def _password(self) -> str:
        return secret(self._settings.password) if self._settings.password else ""


def message(told: Announcement, settings: Email, console: str) -> EmailMessage:
    """Ready to be sent."""
    mail = EmailMessage()
    mail["From"], mail["To"] = settings.sender, ", ".join(settings.recipients)
    mail["Subject"] = _subject(told, settings)
    mail["Date"] = format_datetime(datetime.fromtimestamp(told.made_at, UTC))
    mail["Message-ID"] = f"<{told.identifier}@{_domain(settings.sender)}>"
    mail["References"] = f"<{_thread(told)}@{_domain(settings.sender)}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers it
    if told.urgent:
        mail["Importance"], mail["X-Priority"] = "high", "1"
    mail["User-Agent"] = f"ichnode/{__version__}"
    lines = sentences(told)
    if settings.patient_data:
        subject = told.subject
        lines.append(f"Patient {subject.patient_id}, accession number {subject.accession_number}.")
    lines.append(f"{console}/study/{quote(told.study_instance_uid, safe='')}")
    mail.set_content("\n\n".join(lines) + "\n")
    return mail


def _subject(told: Announcement, settings: Email) -> str:
    what = f"{told.reading_priority or 'no result'}: {headline(told)}"
    if told.corrects:
        what = f"Correction: {headline(told)}, was {told.corrects.priority or 'not analysed'}"
    whose = f" ({told.subject.accession_number})" if settings.patient_data else ""
    return " ".join(f"{TEST + ' ' if told.test else ''}[ichnode] {what}{whose}".split())


def _thread(told: Announcement) -> str:
    """One for all words about a study."""
    return "study-" + hashlib.sha256(told.study_instance_uid.encode()).hexdigest()[:20]


def _domain(sender: str) -> str:
    return sender.rpartition("@")[2].strip(" >") or "ichnode"


def _text(words: bytes | str) -> str:
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return " ".join(text.split())[:300]
