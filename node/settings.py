"""TOML file + environment → frozen settings. Reads nothing else; an unknown key is an error at start.

`ICHNODE_SCP__PORT=11113` overrides `port` in `[scp]`; the environment wins over the file.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from node.domain.errors import SettingsError

PREFIX = "ICHNODE_"
NOT_SETTINGS = ("ICHNODE_CONFIG", "ICHNODE_TEST_DATA", "ICHNODE_REQUIRE_PEERS")
DEFAULT_FILE = "ichnode.toml"
Port = int
AeTitle = Annotated[str, Field(pattern=r"^ *[!-\[\]-~][ -\[\]-~]*$", min_length=1, max_length=16)]
"""PS3.5 6.2: ASCII without backslash and control characters, and not blanks alone."""
SecretPlace = Annotated[str, Field(pattern=r"^$|^(env|file):.+")]
"""Never the secret itself: the settings are printed, copied and kept in repositories."""
Encoding = Literal["explicit", "implicit", "deflated", "rle", "jpegls", "jpeg2000"]
OUTPUT_NAMES = ("sr", "seg", "sc", "pm", "gsps", "kos", "seg-subtypes", "labelmap")
DEFAULT_OUTPUTS = ("sr", "seg", "sc")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Section):
    """PEM files; all empty: no TLS. With `ca`, a peer must show a certificate that it signed."""

    cert: str = ""
    key: str = ""
    ca: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        if (self.key or self.ca) and not self.cert:
            raise ValueError("tls.cert is empty: give the certificate, or leave key and ca empty too")
        return self


class Scp(_Section):
    """The C-STORE and C-ECHO SCP."""

    ae_title: AeTitle = "ICHNODE"
    host: str = "127.0.0.1"
    port: Port = Field(11112, ge=1, le=65535)
    processes: int = Field(2, ge=1, le=64)
    calling_ae_titles: tuple[AeTitle, ...] = ()
    """Empty: any peer may call; else only these AE titles."""
    tls: Tls = Tls()
    max_associations: int = Field(64, ge=1)
    """Per process."""
    timeout_s: float = Field(60, gt=0)
    """A peer silent for this long in an open association is aborted; a single PDU may take no longer."""
    max_instance_mb: int = Field(4096, ge=1)
    """A larger SOP instance, inflated where it came deflated, is not taken."""
    max_series_instances: int = Field(20_000, ge=1)
    """What comes beyond this in one series is refused with 0xA700."""


class Spool(_Section):
    """The files in data_dir."""

    reserve_mb: int = Field(512, ge=0)
    """Below this much free space a C-STORE is refused with 0xA700."""
    keep_days: float = Field(0, ge=0)
    """Files of a delivered study are removed this long after it came; 0: only when room is needed."""
    keep_records_days: float = Field(0, ge=0)
    """The records of a study whose files are removed go this long after it came; 0: never."""
    high_watermark: float = Field(0.9, gt=0, le=1)
    """When this part of the volume is used, the files of the oldest delivered studies are removed…"""
    low_watermark: float = Field(0.8, gt=0, le=1)
    """…until no more than this part is."""

    @model_validator(mode="after")
    def _in_order(self) -> Spool:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark lies above high_watermark: give the smaller one to low_watermark")
        return self


class Completeness(_Section):
    quiet_s: float = Field(10, ge=0)
    """No instance for this long, all associations released, no gap: the series is complete."""
    max_wait_s: float = Field(120, ge=0)
    """…and after this long it is complete whatever is missing."""


class Eligibility(_Section):
    allow_derived: bool = False
    r"""Also analyse ImageType DERIVED\SECONDARY series."""
    allow_contrast: bool = False
    """Also analyse contrast-enhanced series when nothing else is there."""


class Database(_Section):
    url: str = ""
    """Empty: SQLite in data_dir."""


class Broker(_Section):
    url: str = ""
    """Empty: a Redis of the node's own."""


class Model(_Section):
    pipeline: str = "default"
    device: str = "auto"
    max_attempts: int = Field(3, ge=1)
    """A series that takes the worker down this often is given up and reported as not analysed."""
    timeout_s: float = Field(1800, gt=0)
    """A worker that hangs in one series for longer is killed, which counts as an attempt."""


class Proxy(_Section):
    """A proxy that logs people in and says in a header who they are; believed from these addresses alone."""

    user_header: str = ""
    """For example X-Remote-User; empty: no proxy is believed."""
    addresses: tuple[str, ...] = ("127.0.0.1", "::1")
    role: Literal["viewer", "admin"] = "viewer"
    """Of people whom `ichnode users` does not know."""


class Web(_Section):
    """The console. On another address than loopback it starts only once somebody can log in."""

    host: str = "127.0.0.1"
    port: Port = Field(8080, ge=1, le=65535)
    tls: Tls = Tls()
    time_zone: str = ""
    """Of the times shown, as in Europe/Berlin; empty: the machine's own."""
    session_h: float = Field(12, gt=0, le=168)
    """A login lasts this long."""
    proxy: Proxy = Proxy()

    @field_validator("tls")
    @classmethod
    def _asks_for_no_certificate(cls, tls: Tls) -> Tls:
        if tls.ca:
            raise ValueError("the console asks browsers for no certificate: leave web.tls.ca empty")
        return tls

    @field_validator("time_zone")
    @classmethod
    def _exists(cls, name: str) -> str:
        try:
            return ZoneInfo(name).key if name else ""
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"no time zone is called {name!r}: write one as in Europe/Berlin") from None


class PeerTls(_Section):
    """TLS to a destination (PS3.15 B.1); all empty: the default of the protocol, which for DICOM is none.

    `ca`: the PEM file of the authority that signed the peer's certificate, or `system` for those of the
    operating system. `cert` and `key`: what the node shows in its turn.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""
    check_hostname: bool = True
    """False for a PACS whose certificate names no host; the chain is checked all the same."""

    @property
    def wanted(self) -> bool:
        return bool(self.ca or self.cert)

    @model_validator(mode="after")
    def _whole(self) -> PeerTls:
        if self.key and not self.cert:
            raise ValueError("tls.key without tls.cert: give the certificate too")
        return self


class Destination(_Section):
    """A PACS that gets results: by C-STORE at `host` and `port`, or by STOW-RS where there is a `url`."""

    name: str = Field(min_length=1, max_length=64)
    ae_title: AeTitle = ""
    host: str = "127.0.0.1"
    port: Port = Field(104, ge=1, le=65535)
    url: str = ""
    """The root of a DICOMweb service, such as https://pacs.example.org/dicom-web (PS3.18)."""
    token: SecretPlace = ""
    """Where the bearer token is: `env:NAME` or `file:PATH`, read anew for each association."""
    username: str = ""
    password: SecretPlace = ""
    tls: PeerTls = PeerTls()
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    sr_class: Literal["comprehensive-3d", "comprehensive"] = "comprehensive-3d"
    """The SOP class of the report; the same content goes as Comprehensive SR to a PACS that declines 3D."""
    transfer_syntax: tuple[Encoding, ...] = ("explicit",)
    """Most wanted first; what the destination declines goes in Explicit, else Implicit VR Little Endian."""
    max_pdu_bytes: int = Field(131072, ge=4096, le=2**24)
    commitment: bool = False
    """Ask for storage commitment, and send again what the destination does not commit to."""
    commitment_wait_s: float = Field(300, gt=0)
    """After this long without an answer the commitment is asked for again."""
    retry_base_s: float = Field(5, gt=0)
    retry_max_s: float = Field(600, gt=0)
    give_up_h: float = Field(72, gt=0)
    """A result that alarms nobody is given up after this long; a positive one never is."""

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects to send, as `node.outputs.catalogue` lists them."""
        report = "csr" if self.sr_class == "comprehensive" else "sr"
        return tuple(report if name == "sr" else name for name in self.outputs)

    @field_validator("outputs")
    @classmethod
    def _known(cls, outputs: tuple[str, ...]) -> tuple[str, ...]:
        for name in outputs:
            if name not in OUTPUT_NAMES:
                raise ValueError(f"unknown output {name!r}: choose from {', '.join(OUTPUT_NAMES)}")
        return outputs

    @field_validator("transfer_syntax", mode="before")
    @classmethod
    def _one_or_several(cls, wanted: Any) -> Any:
        return (wanted,) if isinstance(wanted, str) else wanted

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if url and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise ValueError(f"{url!r} is no root of a DICOMweb service: write https://host:port/path")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_way_to_send(self) -> Destination:
        if not self.url:
            if not self.ae_title:
                raise ValueError("ae_title is missing (or a url, for STOW-RS)")
            if self.token or self.username or self.password:
                raise ValueError("token, username and password go with a url; C-STORE knows tls.cert instead")
            return self
        if self.commitment:
            raise ValueError("storage commitment goes with C-STORE only: leave out url, or commitment")
        if self.token and self.username:
            raise ValueError("give a token, or username and password, not both")
        if bool(self.username) != bool(self.password):
            raise ValueError("username and password go together")
        if (self.token or self.password) and not self._is_private:
            raise ValueError("credentials would travel in the open: use a url with https")
        return self

    @property
    def _is_private(self) -> bool:
        """Nobody between us and the peer can read along."""
        return re.match(r"https://|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$)", self.url) is not None


class Alert(_Section):
    """A channel that raises the reading priority."""

    type: Literal["hl7", "ups", "webhook"]

    @model_validator(mode="after")
    def _none_yet(self) -> Alert:
        raise ValueError(f"alert type {self.type!r} is not built yet: remove this [[alert]] section")


class Settings(_Section):
    """Everything an installation decides. Relative paths are relative to the working directory."""

    data_dir: Path = Path("ichnode-data")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    scp: Scp = Scp()
    spool: Spool = Spool()
    completeness: Completeness = Completeness()
    eligibility: Eligibility = Eligibility()
    database: Database = Database()
    broker: Broker = Broker()
    model: Model = Model()
    web: Web = Web()
    destination: tuple[Destination, ...] = ()
    alert: tuple[Alert, ...] = ()

    @field_validator("destination")
    @classmethod
    def _names_differ(cls, destinations: tuple[Destination, ...]) -> tuple[Destination, ...]:
        names = [d.name for d in destinations]
        if len(set(names)) < len(names):
            raise ValueError(f"destination names must differ, got {', '.join(names)}")
        return destinations

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir.resolve() / 'ichnode.sqlite3'}"


def load(file: Path | None = None, data_dir: Path | None = None) -> Settings:
    """Settings from `file` (else $ICHNODE_CONFIG, else ./ichnode.toml if there) and the environment.

    Raises SettingsError that names the key and what is wrong with it.
    """
    path = file or (Path(os.environ["ICHNODE_CONFIG"]) if "ICHNODE_CONFIG" in os.environ else None)
    values = _read_toml(path) if path else _read_toml(Path(DEFAULT_FILE), optional=True)
    _merge(values, _environment())
    if data_dir is not None:
        values["data_dir"] = data_dir
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        where = str(path or DEFAULT_FILE)
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"settings ({where} and {PREFIX}… variables): " + "; ".join(lines)) from None


def _read_toml(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise SettingsError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from None


def _environment() -> dict[str, Any]:
    """`ICHNODE_A__B=x` → {"a": {"b": "x"}}; a TOML list or table may be given as TOML text."""
    values: dict[str, Any] = {}
    for key, text in sorted(os.environ.items()):
        if not key.startswith(PREFIX) or key in NOT_SETTINGS:
            continue
        *parents, leaf = key.removeprefix(PREFIX).lower().split("__")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{key}: {PREFIX}{parent.upper()} is set too, and is not a table")
        node[leaf] = _literal(text)
    return values


def _literal(text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
