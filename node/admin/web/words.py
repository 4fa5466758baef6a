"""What the pages say: results, durations, times, processes in words. Asks the database nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from node.domain.findings import CLASSES, Consistency, Findings, Priority
from node.domain.lifecycle import JobState
from node.domain.orders import Source
from node.outputs import wording
from node.quality.rates import Rate

Row = Mapping[str, Any]
GONE_SHOWN_FOR_S = 24 * 3600
STARTS_WITHIN_S = 30
"""After the first of several that start together; a machine may be busy."""
WITHOUT = {  # what stands still when no process of the role is alive
    "listen": "nothing can be received",
    "upload": "what is received stays on one machine's disk",
    "settle": "no series is decided on",
    "worker": "nothing is analysed",
    "deliver": "no result is sent",
    "announce": "no alert goes out",
    "orders": "no order is asked for or heard, no workitem served",
}
WAITING_WORDS = {
    "RECEIVING": "Images are still arriving.",
    "DECIDING": "Complete; the series to analyse is being chosen.",
    "QUEUED": "Waits for a worker.",
    "RUNNING": "Is being analysed.",
    "SUPERSEDED": "More images came; the analysis starts again.",
}
ORDER_SOURCES = {
    Source.CALLER: "sent by",
    Source.HL7: "HL7 order",
    Source.WORKLIST: "worklist",
    Source.HEADER: "image header",
}


@dataclass(frozen=True)
class Result:
    """What is known of a study, in words; `kind` is a Verdict's name, or WAITING."""

    kind: str
    headline: str
    classes: tuple[tuple[str, str, bool], ...] = ()
    """(words, probability, present)"""
    notes: tuple[str, ...] = ()
    """What the list says, too."""
    details: tuple[str, ...] = ()
    """What only the study's page says."""
    volume_ml: float | None = None


def result(status: str, job: Row | None, known: Findings | None = None) -> Result:
    """The result of a study in this derived status. Never lets a missing result look like a negative one.

    `known`: the job's findings, where they were read already.
    """
    if job is None and status == "NOTHING TO ANALYSE":
        return _no_result("No series fits the analysis; open the study for the reason of each.")
    if job is not None and job["state"] == JobState.CANCELLED:
        return _no_result("Cancelled by an admin.")
    reason = (job or {}).get("reason_text") or ""
    if job is not None and job["findings"]:
        return _of_findings(known or read_findings(job["findings"]), reason)
    if job is not None and job["priority"] == Priority.STAT:
        then = "the analysis failed after it" if job["state"] == JobState.FAILED else "the analysis goes on"
        early = f"First word of the classifier; {then}."
        notes = (early, reason) if reason else (early,)
        verdict = wording.Verdict.SUSPECTED
        return Result(verdict.name, wording.HEADLINES[verdict], notes=notes)
    if job is not None and job["state"] == JobState.FAILED:
        return _no_result(reason or "No reason was recorded.")
    note = f"Last attempt: {reason}" if reason else ""
    return Result("WAITING", WAITING_WORDS.get(status, status.capitalize()), notes=(note,) if note else ())


def _no_result(reason: str) -> Result:
    verdict = wording.Verdict.NOT_ANALYSED
    return Result(verdict.name, wording.HEADLINES[verdict], notes=(reason, wording.NOT_NEGATIVE))


def read_findings(data: Row | None) -> Findings | None:
    """None where there are none, or where another version wrote them."""
    try:
        return Findings.from_json(data) if data else None
    except (ValueError, KeyError, TypeError):
        return None


def _of_findings(findings: Findings | None, reason: str) -> Result:
    if findings is None:
        return _no_result("Another version of the node wrote the findings; analyse the study again.")
    verdict = wording.verdict(findings)
    if verdict is wording.Verdict.NOT_ANALYSED:
        return _no_result(wording.reason_words(findings))
    classes = tuple(
        (wording.CLASS_WORDS.get(name, name), probability(found.probability), found.present)
        for name in CLASSES
        if (found := findings.classes.get(name)) and (found.present or name == "any")
    )
    agreement = wording.CONSISTENCY_WORDS[findings.consistency] if findings.consistency else ""
    agrees = findings.consistency is Consistency.AGREE
    notes = ("" if agrees else agreement, *wording.comparison_words(findings), reason)
    details = (
        wording.segmentation_words(findings),
        *wording.measurement_words(findings),
        agreement if agrees else "",
        wording.not_evaluated_words(findings),
        *findings.warnings,
    )
    return Result(
        verdict.name,
        wording.HEADLINES[verdict],
        classes,
        tuple(note for note in notes if note),
        tuple(detail for detail in details if detail),
        findings.segmentation.volume_ml if findings.segmentation else None,
    )


def order_source(source: str | None) -> str:
    """Who said how urgent a study is."""
    return ORDER_SOURCES[Source(source)] if source else ""


def probability(value: float) -> str:
    """Two decimals that never round to certainty."""
    return "<0.01" if value < 0.01 else ">0.99" if value > 0.99 else f"{value:.2f}"


def share(value: float | None) -> str:
    """0..1 in per cent, with as many places as tell it from certainty: 97 %, 99.6 %; a dash for nothing."""
    if value is None:
        return "–"
    text, finer = f"{100 * value:.0f}", f"{100 * value:.1f}"
    if text not in ("0", "100") or value in (0, 1):
        return f"{text} %"
    return {"0.0": "<0.1 %", "100.0": ">99.9 %"}.get(finer, f"{finer} %")


def rate(found: Rate) -> str:
    """A share with its interval: 94 % (88–97 %), 100 % (99.9–100 %); a dash where nothing was counted.

    A line may break between the two, and nowhere else.
    """
    if found.value is None:
        return "–"
    return f"{unbroken(share(found.value))} {interval(found.low or 0.0, found.high or 0.0)}"


def interval(low: float, high: float) -> str:
    """Of a share, in brackets; what is not certain never reads as 0 or 100."""
    return unbroken(f"({share(low).removesuffix(' %')}–{share(high)})")


def unbroken(text: str) -> str:
    """No line breaks within it."""
    return text.replace(" ", "\u00a0").replace("–", "\u2060–\u2060")


def roles(processes: Sequence[Row], now: float, idle: Collection[str] = ()) -> list[dict[str, Any]]:
    """How each role stands: how many processes work, which are gone and were not replaced, why one `refuses`.

    Nobody misses a role that is `idle`.
    """
    needed = [name for name in WITHOUT if name not in idle]
    here = {p["role"] for p in processes if p["alive"] or p["role"] not in idle}
    names = [*needed, *sorted(here - {*needed})]
    found = []
    for name in names:
        mine = [p for p in processes if p["role"] == name]
        refusing = [p["detail"]["refuses"] for p in mine if p["alive"] and p["detail"].get("refuses")]
        alive = [p for p in mine if p["alive"] and not p["detail"].get("refuses")]
        gone = [p for p in mine if not p["alive"] and now - p["seen_at"] < GONE_SHOWN_FOR_S]
        leads = [(_who(p["process"]), p["detail"]["leads"]) for p in alive if p["detail"].get("leads")]
        last = max((p["seen_at"] for p in mine), default=None)
        found.append(
            {
                "role": name,
                "alive": len(alive),
                "lost": [*_not_replaced(gone, mine), *_never_came(mine, now)],
                "refuses": refusing[0] if refusing else "",
                "leaders": [{"process": who, "leads": names} for who, names in leads],
                "standing_by": sum(p["detail"].get("leads") == [] for p in alive),
                "last_seen_at": last,
                "without": WITHOUT[name] if name in needed else "",
                "detail": alive[0]["detail"] if alive else {},
            }
        )
    return found


def _not_replaced(gone: Sequence[Row], everybody: Sequence[Row]) -> list[str]:
    """Those after whom nobody started: each process stands for one that fell silent before, if it can of its
    own host. A container that takes another's place has another host name.
    """
    free, lost = sorted(everybody, key=lambda p: float(p["started_at"])), []
    for old in sorted(gone, key=lambda p: float(p["seen_at"])):
        later = [p for p in free if p is not old and p["started_at"] >= old["seen_at"]]
        same_host = [p for p in later if _host(p["process"]) == _host(old["process"])]
        if later:
            free.remove((same_host or later)[0])
        else:
            lost.append(str(old["process"]))
    return lost


def _never_came(mine: Sequence[Row], now: float) -> list[str]:
    """Of those that one process starts `of` on a host: how many broke before their first heartbeat."""
    places: dict[str, list[Row]] = {}
    for row in mine:
        if row["alive"] and row["detail"].get("of"):
            places.setdefault(":".join(row["process"].split(":")[:2]), []).append(row)
    found = []
    for there in places.values():
        first, wanted = there[0], int(there[0]["detail"]["of"])
        here = [row for row in mine if _host(row["process"]) == _host(first["process"])]
        missing = wanted - len(there) - sum(not row["alive"] for row in here)
        if missing > 0 and now - max(row["started_at"] for row in there) > STARTS_WITHIN_S:
            found.append(f"{missing} of {wanted} on {_host(first['process'])}, which did not come up")
    return found


def _host(process: str) -> str:
    """role@host:namespace:start:pid → host"""
    return process.partition("@")[2].partition(":")[0]


def _who(process: str) -> str:
    """…→ host, process pid"""
    return f"{_host(process)}, process {process.rpartition(':')[2]}"


class Clock:
    """Times of day in one time zone: the one of the settings, else the machine's."""

    def __init__(self, time_zone: str) -> None:
        self._zone: tzinfo | None = ZoneInfo(time_zone) if time_zone else None

    def at(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds, self._zone).astimezone(self._zone)

    def wall(self, seconds: float) -> datetime:
        """To be reckoned with; `at` has only the offset of its moment where the zone is the machine's."""
        return datetime.fromtimestamp(seconds, self._zone)

    def clock(self, seconds: float, now: float | None = None) -> str:
        """Local time with its zone; without the date when `now` is the same day."""
        then = self.at(seconds)
        today = now is not None and then.date() == self.at(now).date()
        return then.strftime("%H:%M:%S %Z" if today else "%Y-%m-%d %H:%M:%S %Z")

    def iso(self, seconds: float) -> str:
        return self.at(seconds).isoformat(timespec="seconds")


def span(seconds: float) -> str:
    """A duration as people say it: 0.3 s, 8 s, 3 min, 2 h 05 min, 4 d."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d"


def exact(seconds: float) -> str:
    """A duration that was measured: 0.34 s, 12.3 s, then as `span`."""
    if seconds < 0:
        return "0 s"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def size(count: float) -> str:
    """Bytes: 900 B, 12.3 kB, 4.5 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def dicom_date(text: str) -> str:
    """20261120 → 2026-11-20; anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isdecimal() else text


def dicom_time(text: str) -> str:
    """101500.000 → 10:15; anything else as it is."""
    return f"{text[:2]}:{text[2:4]}" if len(text) >= 4 and text[:4].isdecimal() else text


def plain_cell(cell: Any) -> Any:
    """For a CSV: a spreadsheet must not take a header's text for a formula."""
    dangerous = isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{cell}" if dangerous else cell
