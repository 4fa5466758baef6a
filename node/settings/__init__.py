"""TOML file + environment → frozen settings. Reads nothing else; an unknown key is an error at start.

`ICHNODE_SCP__PORT=11113` overrides `port` in `[scp]`; the environment wins over the file.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from node.domain.announcing import Audience
from node.domain.errors import SettingsError
from node.settings.ahead import Ahead
from node.settings.alerts import Alert, AnyAlert, Email, Fhir, Hl7, UpsPush, Webhook
from node.settings.audit import AuditRepository
from node.settings.base import AeTitle, PeerTls, Section, Tls
from node.settings.bucket import LARGEST_PUT_MB, Bucket
from node.settings.destinations import DEFAULT_OUTPUTS, OUTPUT_NAMES, Destination, Encoding
from node.settings.intake import Completeness, Eligibility, Scp, Spool
from node.settings.orders import Hl7Orders, Orders, WorklistPeer
from node.settings.quality import Canary, Drift
from node.settings.reconciliation import Archive
from node.settings.routing import Route
from node.settings.services import Broker, Database, Model
from node.settings.shadow import Shadow
from node.settings.ups import Ups, Watcher
from node.settings.web import Proxy, Web
from node.settings.words import words_of
from node.settings.worker import Worker

__all__ = [
    "DATABASE_FILE",
    "DEFAULT_OUTPUTS",
    "OUTPUT_NAMES",
    "AeTitle",
    "Ahead",
    "Alert",
    "AnyAlert",
    "Archive",
    "AuditRepository",
    "Broker",
    "Bucket",
    "Canary",
    "Completeness",
    "Database",
    "Destination",
    "Drift",
    "Eligibility",
    "Email",
    "Encoding",
    "Fhir",
    "Hl7",
    "Hl7Orders",
    "Model",
    "Orders",
    "PeerTls",
    "Proxy",
    "Route",
    "Scp",
    "Settings",
    "Shadow",
    "Spool",
    "Tls",
    "Ups",
    "UpsPush",
    "Watcher",
    "Web",
    "Webhook",
    "Worker",
    "WorklistPeer",
    "load",
]

PREFIX = "ICHNODE_"
NOT_SETTINGS = ("ICHNODE_CONFIG", "ICHNODE_TEST_DATA", "ICHNODE_REQUIRE_PEERS")
DEFAULT_FILE = "ichnode.toml"
DATABASE_FILE = "ichnode.sqlite3"


class Settings(Section):
    """Everything an installation decides. Relative paths are relative to the working directory."""

    data_dir: Path = Path("ichnode-data")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    scp: Scp = Scp()
    spool: Spool = Spool()
    completeness: Completeness = Completeness()
    ahead: Ahead = Ahead()
    eligibility: Eligibility = Eligibility()
    database: Database = Database()
    broker: Broker = Broker()
    model: Model = Model()
    worker: Worker = Worker()
    shadow: Shadow = Shadow()
    orders: Orders = Orders()
    ups: Ups = Ups()
    web: Web = Web()
    drift: Drift = Drift()
    canary: Canary = Canary()
    audit: AuditRepository = AuditRepository()
    destination: tuple[Destination, ...] = ()
    alert: tuple[AnyAlert, ...] = ()
    archive: tuple[Archive, ...] = ()

    @field_validator("destination", "archive")
    @classmethod
    def _names_differ(cls, named: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        names = [one.name for one in named]
        if len(set(names)) < len(names):
            raise ValueError(f"{info.field_name} names must differ, got {', '.join(names)}")
        return named

    @field_validator("alert")
    @classmethod
    def _channels_differ(cls, alerts: tuple[AnyAlert, ...]) -> tuple[AnyAlert, ...]:
        names = [alert.name for alert in alerts]
        if len(set(names)) < len(names):
            raise ValueError(f"alert names must differ, got {', '.join(names)}: give each a name")
        return alerts

    @model_validator(mode="after")
    def _canary_knows_its_destination(self) -> Settings:
        named = self.canary.destination
        if named and named not in [d.name for d in self.destination]:
            raise ValueError(f"canary.destination {named!r} is no [[destination]]: give the name of one")
        return self

    @model_validator(mode="after")
    def _bucket_takes_every_object(self) -> Settings:
        if self.spool.s3.wanted and self.scp.max_instance_mb > LARGEST_PUT_MB:
            raise ValueError(
                f"scp.max_instance_mb is above {LARGEST_PUT_MB}, which no bucket takes in one PUT: lower it"
            )
        return self

    @model_validator(mode="after")
    def _what_is_in_hand_may_be_lost_once(self) -> Settings:
        """A worker that dies loses all it has in hand, and nobody knows which of them killed it."""
        if self.worker.look_ahead not in ("auto", 0) and self.model.max_attempts < 2:
            raise ValueError("worker.look_ahead needs model.max_attempts of 2 or more")
        return self

    @property
    def audiences(self) -> tuple[Audience, ...]:
        """Whom results are told to."""
        return tuple(alert.audience for alert in self.alert)

    @property
    def idle_roles(self) -> frozenset[str]:
        """The roles that nothing here gives anything to do."""
        ordering = self.orders.has_peers or self.ups.port
        idle = {
            "announce": not self.alert,
            "orders": not ordering,
            "shadow-worker": not self.shadow.pipeline,
            "upload": not self.spool.s3.wanted,
        }
        return frozenset(role for role, is_idle in idle.items() if is_idle)

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir.resolve() / DATABASE_FILE}"


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
        found = [(".".join(map(str, e["loc"])) or "settings", words_of(e, Settings)) for e in error.errors()]
        lines = [f"{key}: {words}" for key, words in found]
        raise SettingsError(f"settings ({where} and {PREFIX}… variables): " + "; ".join(lines)) from None


def _read_toml(path: Path, optional: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # with the mark of some editors
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
