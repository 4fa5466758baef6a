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

from node import https, transcode
from node.credentials import secret
from node.domain.errors import SettingsError, TransientError
from node.scu import (
    CONNECTION_TIMEOUT_S,
    RESPONSE_TIMEOUT_S,
    Outcome,
    Parcel,
    prepared,
    syntaxes_for,
)
from node.settings import Destination, Encoding

REQUEST_BYTES = 16 * 2**20
"""Objects go together in one request up to this size: less memory, and less to repeat."""
JSON = "application/dicom+json"
NOT_THIS_SYNTAX = (0xC122, 0x0122)
"""Referenced Transfer Syntax not supported, SOP class not supported: PS3.18 Table I.2-2."""
ABOUT_THE_OBJECTS = (400, 409, 411, 413, 415, 422, 500)
"""Another object may fare better; every other refusal is about the service or about us."""


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

        Raises TransientError when the service is away or refuses us: what got no Outcome by then was
        not accepted.
        """
        with self._open() as session:
            for group in _grouped(parcels):
                yield from self._send_group(session, group)

    def _open(self) -> requests.Session:
        try:
            return _session(self.destination)
        except SettingsError as error:
            raise TransientError(str(error)) from error

    def _send_group(self, session: requests.Session, group: Sequence[Parcel]) -> Iterator[Outcome]:
        outcomes = self._store(session, group, self.destination.transfer_syntax)
        if len(group) > 1 and all(_refused_as_a_whole(outcome) for outcome in outcomes):
            outcomes = [o for parcel in group for o in self._send_group(session, [parcel])]
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
        session: requests.Session,
        group: Sequence[Parcel],
        syntaxes: Sequence[Encoding],
        plainly: bool = False,
    ) -> list[Outcome]:
        """One request; an Outcome for each of `group`, in order. `plainly`: nothing stays compressed."""
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
            answer, details = self._post(session, list(readable.values()))
            for key, ds in readable.items():
                outcomes[key] = outcome_of(key, str(ds.SOPInstanceUID), answer, details)
        return [outcomes[parcel.key] for parcel in group]

    def _post(self, session: requests.Session, datasets: list[Dataset]) -> tuple[requests.Response, Dataset]:
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
            details = client.store_instances(datasets)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in ABOUT_THE_OBJECTS:
                text = _http(error.response) if error.response is not None else str(error)
                raise TransientError(f"{self.name}: {text}") from error
        except requests.RequestException as error:
            raise TransientError(self._away(error)) from error
        except (ValueError, KeyError, SyntaxError):
            pass  # stored or not stands in the status; the words about it cannot be read
        return got[-1], details if len(details) else _details(got[-1])

    def _away(self, error: Exception) -> str:
        if isinstance(error, requests.exceptions.SSLError):
            return f"{self.name}: TLS failed, is the authority of its certificate in tls.ca? {error}"
        return https.unreachable(self.name, error)


def outcome_of(key: int, sop_instance_uid: str, answer: requests.Response, details: Dataset) -> Outcome:
    """What a response says of one instance: PS3.18 10.5.3 and Annex I."""
    for item in details.get("FailedSOPSequence") or []:
        if item.get("ReferencedSOPInstanceUID") == sop_instance_uid:
            reason = int(item.get("FailureReason") or 0x0110)
            return Outcome(key, False, f"0x{reason:04X}", f"not stored, failure reason 0x{reason:04X}")
    stored = details.get("ReferencedSOPSequence") or []
    for item in stored:
        if item.get("ReferencedSOPInstanceUID") == sop_instance_uid:
            warning = int(item.get("WarningReason") or 0)
            text = f"warning reason 0x{warning:04X}" if warning else ""
            return Outcome(key, True, f"0x{warning:04X}" if warning else "0x0000", text)
    if answer.status_code == 200 and not stored:
        return Outcome(key, True, "HTTP 200")
    text = f"{_http(answer)}, without a word about this instance" if answer.ok else _http(answer)
    return Outcome(key, False, f"HTTP {answer.status_code}", text)


def _session(destination: Destination) -> requests.Session:
    session = https.session(destination.tls, f"destination {destination.name}")
    if destination.token:
        session.auth = https.Bearer(secret(destination.token))
    elif destination.username:
        session.auth = (destination.username, secret(destination.password))
    return session


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
