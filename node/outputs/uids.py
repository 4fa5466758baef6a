"""UIDs of the objects we build. Never random: the same analysis always gets the same ones.

A UID that names other bytes than before is dangerous, because a PACS keeps the object it already has.
So everything that can change an object's meaning takes part in its UID, and what was sent is stored and
resent as it was, never built anew.
"""

from __future__ import annotations

import uuid

from node.domain.findings import Findings

NAMESPACE = uuid.UUID("5d0c7f7c-7c0b-5c7e-8a55-1f3b0f6c9e21")
DEVICE_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'device').int}"


def uid_for(findings: Findings, kind: str, index: int = 0) -> str:
    """The UID of `kind` number `index` of this analysis (UUID-derived, PS3.5 B.2).

    A *not analysed* outcome has UIDs of its own, one set for each reason: when the same revision is
    analysed after all, its objects must not hide behind those already in the PACS. So with an analysis
    that was compared with an earlier one.
    """
    model = findings.model
    outcome = findings.status.value + (f":{findings.reason.code}" if findings.reason else "")
    if prior := findings.comparison:
        outcome += f":since {prior.series_uid} {prior.revision}"
    series = (findings.series_instance_uid, findings.revision, outcome)
    return derived(*series, model.name, model.version, model.sha256, kind, index)


def derived(*parts: object) -> str:
    """The one UID that belongs to these facts."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(map(str, parts))).int}"
