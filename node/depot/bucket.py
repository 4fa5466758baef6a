"""An S3 bucket as a place for files: one PUT each, with its digest, which is compared when it comes back.

Keeps nothing. Every file goes in one PUT, so that no upload in several parts is left half done. S3 refuses
what was damaged on the way there (Content-MD5); what was damaged since is found by a digest
that is kept with the object. boto3 is loaded at the first request: whoever only receives does without it.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xxhash

from node.credentials import secret
from node.depot.contract import Entry
from node.domain.errors import OutOfReach, PermanentError, SettingsError
from node.settings import Bucket

log = logging.getLogger(__name__)

DIGEST = "xxh3-128"
"""User metadata of each object: over its bytes, in hex."""
CHUNK_BYTES = 2**20
TRIES = 2
"""At a transfer that breaks off, or whose digest is wrong; boto3 tries a request itself before that."""
REQUESTS = 2
LISTED_AT_ONCE = 1000
LEFT_ALONE_S = 5.0
"""After a failure nobody asks again for so long: those who wait for it are told at once."""
GONE = "NoSuchKey"
"""The only word for it: a bare 404 may come from a balancer whose servers are gone."""
DELETED = 204
NEXT_STEP = {
    "AccessDenied": "give it the permissions in docs/deployment.md",
    "AllAccessDisabled": "give it the permissions in docs/deployment.md",
    "403": "look at the keys, and at what they may do",
    "InvalidAccessKeyId": "look at spool.s3.access_key",
    "SignatureDoesNotMatch": "look at spool.s3.secret_key, and at region and endpoint",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "NoSuchBucket": "make it, or name another as spool.s3.bucket",
    "PermanentRedirect": "set spool.s3.region to that of the bucket",
    "AuthorizationHeaderMalformed": "set spool.s3.region to that of the bucket",
    "404": "look at spool.s3.endpoint, and at what stands before the bucket",
}
UNREACHED = {
    "Credential": "look at spool.s3.access_key and secret_key",
    "SSL": "look at spool.s3.ca, and at the certificate that it shows",
}
"""By a part of the error's name."""


def require_installed() -> None:
    """Raises SettingsError where boto3 is not installed."""
    if find_spec("boto3") is None:
        raise SettingsError("spool.s3 needs boto3: pip install 'ichnode[s3]', or leave the section out")


class S3:
    """The objects below one prefix. Raises OutOfReach for whatever keeps it from answering."""

    def __init__(self, settings: Bucket) -> None:
        self._settings = settings
        self._made: Any = None
        self._making = threading.Lock()
        self._alone_until = 0.0
        self._trouble = ""
        self.name = f"bucket {settings.bucket} ({settings.endpoint or 'AWS'})"

    def put(self, path: str, file: Path) -> None:
        """Raises FileNotFoundError without the file, else OutOfReach."""
        md5, digest = _digests(file)
        with self._asking(f"PUT of {path}"), file.open("rb") as body:
            answer = self._client.put_object(
                **self._at(path),
                Body=body,
                ContentMD5=md5,
                Metadata={DIGEST: digest},
                ContentType=_kind(path),
            )
            _require("ETag" in answer)

    def get(self, path: str, file: Path) -> bool:
        """Write the object into `file`, which survives a power cut; False where there is no such object.

        Raises PermanentError FILE_DAMAGED where it is not what was put there.
        """
        for left in reversed(range(TRIES)):
            try:
                with self._asking(f"GET of {path}"):
                    answer = self._client.get_object(**self._at(path))
                    _require("ETag" in answer and not answer.get("ContentType", "").startswith("text/"))
                    with file.open("wb") as stream:
                        came = _copy(answer["Body"], stream)
                        os.fdatasync(stream.fileno())
            except _GoneError:
                return False
            except OutOfReach:
                if not left:
                    raise
                self._alone_until = 0.0
                continue
            wanted = answer["Metadata"].get(DIGEST)
            if came == wanted:
                return True
            log.warning("%s: %s came with digest %s, was put with %s", self.name, path, came, wanted)
        raise PermanentError(
            "FILE_DAMAGED",
            f"{path} is not what was put into {self.name}: restore it, or send the study again",
        )

    def delete(self, path: str) -> None:
        """Nothing happens where it was not there."""
        with self._asking(f"DELETE of {path}"):
            answer = self._client.delete_object(**self._at(path))
            _require(answer["ResponseMetadata"]["HTTPStatusCode"] == DELETED)

    def list(self, folder: str) -> Iterator[Entry]:
        """Every object below a folder, in the order of their paths."""
        more: dict[str, str] = {}
        while True:
            with self._asking(f"list of {folder}"):
                answer = self._listed(f"{folder}/", LISTED_AT_ONCE, **more)
            for found in answer.get("Contents", ()):
                path = str(found["Key"]).removeprefix(self._settings.prefix)
                yield Entry(path, int(found["Size"]), found["LastModified"].timestamp())
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def probe(self) -> float:
        """Put something there, fetch it, take it away. Returns the seconds it took. Raises as these do."""
        began, path = time.monotonic(), f"doctor/{os.urandom(8).hex()}"
        with TemporaryDirectory() as folder:
            sent, came = Path(folder) / "sent", Path(folder) / "came"
            sent.write_bytes(os.urandom(1024))
            self.put(path, sent)
            self.get(path, came)
            self.delete(path)
            if not came.exists() or came.read_bytes() != sent.read_bytes():
                raise PermanentError("BUCKET", f"{self.name} does not give back what was put into it")
        return time.monotonic() - began

    def skew_s(self) -> float:
        """By how much the bucket's clock is ahead of ours, by the date of an answer; to the second."""
        before = time.time()
        with self._asking("list of one key"):
            answer = self._listed("", 1)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        middle = (before + time.time()) / 2
        return parsedate_to_datetime(said).timestamp() + 0.5 - middle if said else 0.0

    def require_reachable(self) -> None:
        """Raises OutOfReach where it was away a moment ago and still is. Asks nobody when all was well."""
        if self._trouble:
            self.skew_s()

    def _listed(self, prefix: str, most: int, **more: str) -> dict[str, Any]:
        where = {"Bucket": self._settings.bucket, "Prefix": f"{self._settings.prefix}{prefix}"}
        answer: dict[str, Any] = self._client.list_objects_v2(**where, MaxKeys=most, **more)
        _require("IsTruncated" in answer)
        return answer

    def _at(self, path: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": f"{self._settings.prefix}{path}"}

    @property
    def _client(self) -> Any:
        if self._made is None:
            with self._making:
                self._made = self._made or _client(self._settings)
        return self._made

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Whatever a request raises becomes OutOfReach with the next step, or _GoneError."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        if time.monotonic() < self._alone_until:
            raise OutOfReach(self._trouble)
        try:
            yield
            self._trouble = ""
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == GONE:
                raise _GoneError from error
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
            step = NEXT_STEP.get(code, "it is tried again")
            raise self._away(f"{self.name} answered {status} {code} to a {what}; {step}") from error
        except _NotOfS3Error as error:
            raise self._away(
                f"{self.name} answered a {what} as no bucket does; {NEXT_STEP['404']}"
            ) from error
        except SettingsError as error:
            raise self._away(str(error)) from error
        except BotoCoreError as error:
            kind = type(error).__name__
            steps = (step for words, step in UNREACHED.items() if words in kind)
            step = next(steps, "is it running, and is spool.s3.endpoint right?")
            raise self._away(f"{self.name} cannot be reached ({kind}); {step}") from error
        except (HTTPError, ssl.SSLError) as error:  # while a body is read, botocore hands them on as they are
            text = f"{self.name} broke off a {what} ({type(error).__name__}); it is tried again"
            raise self._away(text) from error

    def _away(self, text: str) -> OutOfReach:
        self._trouble, self._alone_until = text, time.monotonic() + LEFT_ALONE_S
        return OutOfReach(text)


class _GoneError(Exception):
    """There is no such object."""


class _NotOfS3Error(Exception):
    """Something else answered, such as a proxy's page of maintenance: nothing came of it."""


def _require(is_of_s3: bool) -> None:
    """An answer is believed only with what every S3 server says in it, whatever its status."""
    if not is_of_s3:
        raise _NotOfS3Error


def _client(settings: Bucket) -> Any:
    """Raises SettingsError for secrets and files that cannot be read."""
    import boto3
    from botocore.config import Config

    for chatty in ("botocore", "urllib3"):  # at DEBUG they write headers down, session tokens among them
        logging.getLogger(chatty).setLevel("ERROR")
    keys = {}
    if settings.access_key:
        keys = {
            "aws_access_key_id": secret(settings.access_key),
            "aws_secret_access_key": secret(settings.secret_key),
        }
    if settings.ca and not Path(settings.ca).is_file():
        raise SettingsError(f"spool.s3.ca {settings.ca} is no file: give a PEM file")
    config = Config(
        connect_timeout=settings.timeout_s / 4,
        read_timeout=settings.timeout_s,
        retries={"mode": "standard", "total_max_attempts": REQUESTS},
        max_pool_connections=settings.transfers,
        s3={"addressing_style": "path" if settings.endpoint else "auto"},
        request_checksum_calculation="when_required",  # MinIO and Ceph of some age know no other
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session(region_name=settings.region or None, **keys)
    return session.client(
        "s3",
        endpoint_url=settings.endpoint or None,
        region_name=session.region_name or "us-east-1",
        verify=settings.ca or None,
        config=config,
    )


def _digests(file: Path) -> tuple[str, str]:
    """MD5 as S3 wants it (RFC 1864), and what is kept with the object."""
    md5, mine = hashlib.md5(usedforsecurity=False), xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            md5.update(piece)
            mine.update(piece)
    return base64.b64encode(md5.digest()).decode("ascii"), mine.hexdigest()


def _copy(body: Any, stream: Any) -> str:
    """The digest of what was copied."""
    mine = xxhash.xxh3_128()
    while piece := body.read(CHUNK_BYTES):
        mine.update(piece)
        stream.write(piece)
    stream.flush()
    return mine.hexdigest()


def _kind(path: str) -> str:
    return "application/dicom" if path.endswith(".dcm") else "application/octet-stream"
