"""What is built of a job, where each object goes, and in which order. Decides only; stores nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from node.domain.findings import Priority
from node.domain.routing import Decision, Part
from node.outputs.catalogue import ALL_NAMES, NAMES
from node.settings import Destination
from node.store.deliveries import SOURCE_RANK, NewDelivery
from node.store.jobs import NewObject

SENDING_ORDER = ("sr", "csr", "seg", "sc", "pm", "gsps", "kos", "seg-subtypes", "labelmap")
"""The report first: it carries the alarm."""


def is_urgent(priority: Priority | None) -> bool:
    """A result that should change the order of reading."""
    return priority in (Priority.STAT, Priority.HIGH)


def wanted_outputs(destinations: Iterable[Destination]) -> tuple[str, ...]:
    """What any destination wants; the usual objects when there is none, so that they can be looked at."""
    wanted = {name for destination in destinations for name in destination.objects}
    return tuple(name for name in ALL_NAMES if name in wanted) or NAMES


def schedule(
    made: Sequence[NewObject],
    destinations: Iterable[Destination],
    urgent: bool,
    routed: Mapping[str, Decision] | None = None,
) -> list[NewDelivery]:
    """One delivery for each object and each destination that wants it and gets it, in sending order."""
    return [
        NewDelivery(item.sop_instance_uid, destination.name, rank, urgent)
        for destination in destinations
        if routed is None or Part.RESULTS in routed[destination.name].send
        for rank, item in enumerate(sorted(made, key=lambda o: SENDING_ORDER.index(o.output)))
        if item.output in destination.objects
    ]


def forward(sources: Sequence[NewObject], routed: Mapping[str, Decision], urgent: bool) -> list[NewDelivery]:
    """One delivery for each source image and each destination that gets the images, behind every result."""
    return [
        NewDelivery(item.sop_instance_uid, name, SOURCE_RANK + number, urgent)
        for name, decision in routed.items()
        if Part.SOURCE in decision.send
        for number, item in enumerate(sources)
    ]
