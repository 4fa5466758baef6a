"""Every channel there is, by the type its settings name. Starts none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.channels.contract import Channel
from node.settings import AnyAlert, Settings


def _webhook(alert: Any, settings: Settings) -> Channel:
    from node.channels.webhook import WebhookChannel

    return WebhookChannel(alert, settings.web.address)


def _hl7(alert: Any, _: Settings) -> Channel:
    from node.channels.hl7v2 import Hl7Channel

    return Hl7Channel(alert)


def _email(alert: Any, settings: Settings) -> Channel:
    from node.channels.mail import EmailChannel

    return EmailChannel(alert, settings.web.address)


def _fhir(alert: Any, _: Settings) -> Channel:
    from node.channels.fhir import FhirChannel

    return FhirChannel(alert)


def _ups(alert: Any, settings: Settings) -> Channel:
    from node.channels.ups import UpsChannel

    pacs = next((d for d in settings.destination if d.ae_title), None)
    reports = [name for name in pacs.objects if name in ("sr", "csr")] if pacs else []
    retrieve_ae = pacs.ae_title if pacs else ""
    return UpsChannel(alert, settings.scp.ae_title, retrieve_ae, reports[0] if reports else "")


CHANNELS: dict[str, Callable[[Any, Settings], Channel]] = {
    "webhook": _webhook,
    "hl7": _hl7,
    "email": _email,
    "fhir": _fhir,
    "ups": _ups,
}
"""Each imports its module when it is used: a node need not load what it does not speak."""


def channel_of(alert: AnyAlert, settings: Settings) -> Channel:
    """The channel that a section [[alert]] asks for."""
    return CHANNELS[alert.type](alert, settings)
