"""UIDs of the objects we build. Never random: the same analysis always gets the same ones.

A UID that names other bytes than before is dangerous, because a PACS keeps the object it already has.
So everything that can change an object's meaning takes part in its UID, and what was sent is stored and
resent as it was, never built anew.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from node.domain.findings import Findings
from node.outputs.wording import plain

NAMESPACE = uuid.UUID("5d0c7f7c-7c0b-5c7e-8a55-1f3b0f6c9e21")
DEVICE_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'device').int}"


def uid_for(findings: Findings, kind: str, index: int = 0, edition: int = 0) -> str:
    """The UID of `kind` number `index` of this analysis (UUID-derived, PS3.5 B.2).

    A *not analysed* outcome has UIDs of its own, one set for each reason as it is worded: when the same
    revision is analysed after all, its objects must not hide behind those already in the PACS. So with
    another result by the same model, and with another comparison with an earlier CT. `edition` counts how
    often a result was reported, taken back by another, and comes again.
    """
    model, reason = findings.model, findings.reason
    outcome = findings.status.value + (f":{reason.code} {plain(reason.text)}" if reason else "")
    series = (findings.series_instance_uid, findings.revision, outcome, _result(findings))
    again = (edition,) if edition else ()
    return derived(*series, model.name, model.version, model.sha256, kind, index, *again)


def _result(findings: Findings) -> str:
    """What was found, in the digits that objects hold (`numbers`): noise beyond them makes no new objects."""
    classes = {name: _rounded(asdict(one), 4) for name, one in findings.classes.items()}
    mask = _rounded(asdict(findings.segmentation), 2) if findings.segmentation else None
    change = _rounded(asdict(findings.comparison), 2) if findings.comparison else None
    return json.dumps([classes, mask, change, findings.consistency, findings.priority], sort_keys=True)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item, digits) for key, item in value.items()}
    return round(value, digits) if isinstance(value, float) else value


def derived(*parts: object) -> str:
    """The one UID that belongs to these facts."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(map(str, parts))).int}"
