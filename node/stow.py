"""STOW-RS user agent (PS3.18 10.5): stores objects in a DICOMweb service. Retries nothing, records nothing.

Credentials come from the environment or a file, are read anew for each batch, and are never logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import requests
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from urllib3.exceptions import ProtocolError

from node import https, transcode
from node.credentials import secret
from node.domain.errors import SettingsError, TransientError
from node.scu import (
    CONNECTION_TIMEOUT_S,
    DUPLICATE_SOP_INSTANCE,
    RESPONSE_TIMEOUT_S,
    AssociationBroke,
    Outcome,
    Parcel,
    prepared,
    syntaxes_for,
)
from node.settings import Destination, Encoding

REQUEST_BYTES = 16 * 2**20
"""Objects go together in one request up to this size: less memory, and less to repeat."""
JSON = "application/dicom+json"
PROCESSING_FAILURE = 0x0110
NOT_THIS_SYNTAX = (0xC122, 0x0122)
"""Referenced Transfer Syntax not supported, SOP class not supported: PS3.18 Table I.2-2."""
ABOUT_THE_OBJECTS = (400, 409, 411, 413, 415, 422, 500)
"""Another object may fare better; every other refusal is about the service or about us."""
FAILURES = {"FailedSOPSequence": b"00081198", "OtherFailuresSequence": b"0008119A"}
"""What tells of instances that were not stored, with its tag (PS3.18 Annex I)."""
BROKE_DOWN = (502, 504)
"""What stands before the service says that it ended, or did not answer: the objects may be why."""


class WebPeer:
    """A destination that speaks DICOMweb."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination

    @property
    def name(self) -> str:
        return f"destination {self.destination.name} ({self.destination.url})"

    def check(self) -> None:
        """Raises SettingsError when certificates or credentials of this destination cannot be used."""
        _session(self.destination).close()

    def echo(self) -> None:
        """Raises TransientError when the service does not answer a search for one study (PS3.18 10.6)."""
        with self._open() as session:
            try:
                answer = session.get(
                    f"{self.destination.url}/studies",
                    params={"limit": 1},
                    headers={"Accept": JSON},
                    timeout=(CONNECTION_TIMEOUT_S, RESPONSE_TIMEOUT_S),
                )
            except requests.RequestException as error:
                raise TransientError(self._away(error)) from error
        if answer.status_code >= 400 and answer.status_code != 405:  # a service may store only
            raise TransientError(f"{self.name}: {_http(answer)}")

    def send(self, parcels: Sequence[Parcel]) -> Iterator[Outcome]:
        """Send in requests of some megabytes; an Outcome for each parcel that was tried.

        Raises TransientError when the service is away or refuses us, AssociationBroke when it breaks down
        at a parcel that was sent alone: what got no Outcome by then was not accepted.
        """
        with self._open() as session:
            for group in _grouped(parcels):
                yield from self._send_group(session, group)

    def _open(self) -> https.Session:
        try:
            return _session(self.destination)
        except SettingsError as error:
            raise TransientError(str(error)) from error

    def _send_group(self, session: https.Session, group: Sequence[Parcel]) -> Iterator[Outcome]:
        """In one request; one by one where that is refused as a whole, breaks down or cannot be made."""
        try:
            outcomes = self._store(session, group, self.destination.transfer_syntax)
        except (AssociationBroke, InvalidDicomError):
            if len(group) == 1:
                raise
            outcomes = []
        if len(group) > 1 and all(_refused_as_a_whole(outcome) for outcome in outcomes if outcome.status):
            for parcel in group:
                yield from self._send_group(session, [parcel])
            return
        for parcel, outcome in zip(group, outcomes, strict=True):
            if (
                _wrong_syntax(outcome)
                and syntaxes_for(parcel, self.destination.transfer_syntax) != transcode.FALL_BACK
            ):
                yield from self._store(session, [parcel], ("explicit",), plainly=True)
            else:
                yield outcome

    def _store(
        self,
        session: https.Session,
        group: Sequence[Parcel],
        syntaxes: Sequence[Encoding],
        plainly: bool = False,
    ) -> list[Outcome]:
        """One request; an Outcome for each of `group`, in order. `plainly`: nothing stays compressed.

        Raises AssociationBroke with the first of them, and InvalidDicomError where one of several cannot be
        encoded.
        """
        session.moved = group[0].moved
        readable: dict[int, Dataset] = {}
        outcomes: dict[int, Outcome] = {}
        for parcel in group:
            try:
                usable = transcode.offered(parcel.sop_class_uid, syntaxes)
                readable[parcel.key] = _loaded(parcel, usable if plainly else syntaxes_for(parcel, syntaxes))
            except (OSError, InvalidDicomError) as error:
                text = f"{parcel.file.name} cannot be read: {error}"
                outcomes[parcel.key] = Outcome(parcel.key, False, "", text)
        if readable:
            outcomes |= self._stored(session, readable)
        return [outcomes[parcel.key] for parcel in group]

    def _stored(self, session: https.Session, datasets: dict[int, Dataset]) -> dict[int, Outcome]:
        try:
            answer, details = self._post(session, datasets)
        except InvalidDicomError as error:
            if len(datasets) > 1:
                raise
            return {key: Outcome(key, False, "", f"it cannot be sent: {error}") for key in datasets}
        return {key: outcome_of(key, str(ds.SOPInstanceUID), answer, details) for key, ds in datasets.items()}

    def _post(
        self, session: https.Session, datasets: dict[int, Dataset]
    ) -> tuple[requests.Response, Dataset]:
        """The response and its Store Instances Response Module (PS3.18 Annex I)."""
        got: list[requests.Response] = []
        client = DICOMwebClient(
            self.destination.url,
            session,
            headers={"Accept": JSON},
            callback=lambda response, *_, **__: got.append(response),
            timeout=(CONNECTION_TIMEOUT_S, RESPONSE_TIMEOUT_S),
        )
        client.set_http_retry_params(retry=False)
        details = Dataset()
        try:
            details = client.store_instances(list(datasets.values()))
        except requests.HTTPError as error:
            self._require_about_the_objects(error, next(iter(datasets)))
        except requests.RequestException as error:
            if _broke_down(error):
                raise AssociationBroke(next(iter(datasets)), self._away(error)) from error
            raise TransientError(self._away(error)) from error
        except (SyntaxError, *transcode.IMPOSSIBLE) as error:
            if not got:
                raise InvalidDicomError(str(error)) from error
            # stored or not stands in the status; the words about it cannot be read
        return got[-1], details if len(details) else _details(got[-1])

    def _require_about_the_objects(self, error: requests.HTTPError, first: int) -> None:
        """Raises TransientError where no object would fare better, AssociationBroke where one may be why."""
        answer = error.response
        if answer is None:
            raise TransientError(f"{self.name}: {error}") from error
        if answer.status_code in ABOUT_THE_OBJECTS:
            return
        text = f"{self.name}: {_http(answer)}"
        if answer.status_code in BROKE_DOWN:
            raise AssociationBroke(first, text) from error
        raise TransientError(text, https.patience_s(answer)) from error

    def _away(self, error: Exception) -> str:
        if isinstance(error, requests.exceptions.SSLError):
            return f"{self.name}: TLS failed, is the authority of its certificate in tls.ca? {error}"
        if isinstance(error, requests.TooManyRedirects) and error.response is not None:
            return f"{self.name}: {_http(error.response)}; it points elsewhere, check the url"
        return https.unreachable(self.name, error)


def outcome_of(key: int, sop_instance_uid: str, answer: requests.Response, details: Dataset) -> Outcome:
    """What a response says of one instance: PS3.18 10.5.3 and Annex I."""
    for item in details.get("FailedSOPSequence") or []:
        if item.get("ReferencedSOPInstanceUID") == sop_instance_uid:
            reason = _number(item, "FailureReason") or PROCESSING_FAILURE
            said = f"failure reason 0x{reason:04X}"
            if reason == DUPLICATE_SOP_INSTANCE:
                return Outcome(key, True, f"0x{reason:04X}", f"{said}: it is there already")
            return Outcome(key, False, f"0x{reason:04X}", f"not stored, {said}")
    stored = details.get("ReferencedSOPSequence") or []
    for item in stored:
        if item.get("ReferencedSOPInstanceUID") == sop_instance_uid:
            warning = _number(item, "WarningReason")
            text = f"warning reason 0x{warning:04X}" if warning else ""
            return Outcome(key, True, f"0x{warning:04X}" if warning else "0x0000", text)
    if _is_page(answer):
        text = "HTTP 200 with a web page in place of a STOW-RS response: is the url that of the service?"
        return Outcome(key, False, "HTTP 200", text)
    if answer.status_code == 200 and not stored and not _tells_of_failures(answer, details):
        return Outcome(key, True, "HTTP 200")
    text = f"{_http(answer)}, without a word about this instance" if answer.ok else _http(answer)
    return Outcome(key, False, f"HTTP {answer.status_code}", text)


def _session(destination: Destination) -> https.Session:
    session = https.session(destination.tls, f"destination {destination.name}")
    session.max_redirects = 0  # a POST would become the GET of a page (RFC 9110 15.4), and its 200 a success
    if destination.token:
        session.auth = https.Bearer(secret(destination.token))
    elif destination.username:
        session.auth = (destination.username, secret(destination.password))
    return session


def _broke_down(error: requests.RequestException) -> bool:
    """The service was reached, and then ended the connection or did not answer: the objects may be why."""
    if isinstance(error, requests.ReadTimeout | requests.exceptions.ChunkedEncodingError):
        return True
    cause = error.args[0] if type(error) is requests.ConnectionError and error.args else None
    return isinstance(cause, ProtocolError | OSError)


def _grouped(parcels: Sequence[Parcel]) -> Iterator[list[Parcel]]:
    group: list[Parcel] = []
    held = 0
    for parcel in parcels:
        size = parcel.file.stat().st_size if parcel.file.exists() else 0
        if group and held + size > REQUEST_BYTES:
            yield group
            group, held = [], 0
        group.append(parcel)
        held += size
    if group:
        yield group


def _loaded(parcel: Parcel, usable: Sequence[UID]) -> Dataset:
    what = prepared(parcel.file, usable)
    return dcmread(what) if isinstance(what, Path) else what


def _details(answer: requests.Response) -> Dataset:
    try:
        body = answer.json()
        return Dataset.from_json(body[0] if isinstance(body, list) else body)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return Dataset()


def _is_page(answer: requests.Response) -> bool:
    """A login or a maintenance page, shown by what stands before the service: it has stored nothing."""
    start = answer.content[:256].lstrip().lower()
    return answer.status_code == 200 and start.startswith((b"<!doctype html", b"<html"))


def _tells_of_failures(answer: requests.Response, details: Dataset) -> bool:
    """Of whatever instance; also where nobody can read what it says of them."""
    if len(details):
        return any(details.get(keyword) for keyword in FAILURES)
    return any(tag in answer.content for tag in FAILURES.values())


def _number(item: Dataset, keyword: str) -> int:
    """0 for what is none."""
    try:
        return int(item.get(keyword) or 0)
    except (TypeError, ValueError):
        return 0


def _refused_as_a_whole(outcome: Outcome) -> bool:
    return not outcome.accepted and outcome.status.startswith(("HTTP 4", "HTTP 5"))


def _wrong_syntax(outcome: Outcome) -> bool:
    reasons = ("HTTP 415", *(f"0x{reason:04X}" for reason in NOT_THIS_SYNTAX))
    return not outcome.accepted and outcome.status in reasons


def _http(answer: requests.Response) -> str:
    hint = {401: "check token, or username and password", 403: "it must allow us to store"}
    hint |= {404: "is url the root of its DICOMweb service?"}
    more = f"; {hint[answer.status_code]}" if answer.status_code in hint else ""
    return f"HTTP {answer.status_code} {answer.reason}{more}"
