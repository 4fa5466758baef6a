"""What people may do, once for the pages and the JSON alike. Each leaves its line in the trail first."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Protocol

from node.admin.web.gate import NotAllowed, Visitor
from node.channels.catalogue import channel_of
from node.deliver import carrier_to
from node.domain.errors import IchnodeError, IllegalTransition, SettingsError
from node.domain.opinion import Opinion, Word, Wrong
from node.reconcile import check_days
from node.settings import Destination, Settings
from node.store import pauses
from node.store.records import Records

MOST_AT_ONCE = 5000
MOST_DRAWN = 500


class Desk(Protocol):
    """Where deeds are done: the console, or the command line."""

    @property
    def settings(self) -> Settings: ...

    @property
    def records(self) -> Records: ...

    def note(self, visitor: Visitor, action: str, study_uid: str | None = None, detail: str = "") -> None: ...


class Deeds:
    def __init__(self, site: Desk) -> None:
        self._site = site
        self._records = site.records

    def acknowledge(self, visitor: Visitor, job_id: int, read: float | None = None) -> None:
        """`read`: when what was read had been analysed; refused when the job was analysed again since."""
        self._note(visitor, "acknowledge", job_id)
        self._records.reviews.acknowledge(job_id, visitor.name, time.time(), read)

    def judge(
        self,
        visitor: Visitor,
        job_id: int,
        opinion: Opinion,
        why: Wrong = Wrong.UNSPECIFIED,
        actual: Sequence[str] = (),
        read: float | None = None,
    ) -> None:
        """Also acknowledges. `actual`: the subtypes that the images show, if not those found."""
        word = Word(opinion, visitor.name, time.time(), why, tuple(actual))
        said = f": {why.lower()} {' '.join(actual)}".rstrip() if word.wrong else ""
        self._note(visitor, opinion.lower(), job_id, said)
        self._records.reviews.judge(job_id, word, read)

    def mark_unread(self, visitor: Visitor, job_id: int) -> None:
        self._note(visitor, "mark-unread", job_id)
        self._records.reviews.withdraw(job_id)

    def take_back(self, visitor: Visitor, uid: str) -> None:
        """A workitem from the reader who took it; its study is offered to readers again."""
        item = self._records.workitems.get(uid)
        if item is None:
            raise NotAllowed(404, f"there is no workitem {uid!r}")
        self._site.note(
            visitor, "take-back", item.study_instance_uid, f"job {item.job_id} from AE {item.claimed_by}"
        )
        why = f"taken back from AE {item.claimed_by} by {visitor.name}"
        self._records.workitems.take_back(uid, why, time.time())

    def retry_job(self, visitor: Visitor, job_id: int) -> None:
        self._note(visitor, "retry-job", job_id)
        self._records.jobs.retry(job_id)

    def reanalyse(self, visitor: Visitor, job_id: int) -> None:
        self._note(visitor, "reanalyse", job_id)
        self._records.jobs.reanalyse(job_id)

    def cancel(self, visitor: Visitor, job_id: int) -> None:
        self._note(visitor, "cancel-job", job_id)
        self._records.jobs.cancel(job_id)

    def retry_delivery(self, visitor: Visitor, delivery_id: int) -> None:
        self._site.note(visitor, "retry-delivery", detail=f"delivery {delivery_id}")
        self._records.deliveries.retry(delivery_id, time.time())

    def retry_deliveries(self, visitor: Visitor, destination: str = "", ids: Sequence[int] = ()) -> int:
        """These given-up deliveries, else all of a destination, else all. Returns how many."""
        count = len(ids) or self._records.console.count_given_up(destination)
        if destination and not count:
            self._destination(destination)
        detail = f"{count} deliveries to {destination or 'every destination'}"
        self._site.note(visitor, "retry-deliveries", detail=detail)
        if ids:
            return sum(self._retried(delivery_id) for delivery_id in ids)
        return self._records.deliveries.retry_all(destination, time.time())

    def _retried(self, delivery_id: int) -> bool:
        try:
            self._records.deliveries.retry(delivery_id, time.time())
        except IllegalTransition:
            return False  # sent meanwhile
        return True

    def retry_alert(self, visitor: Visitor, alert_id: int) -> None:
        found = self._records.alerts.get(alert_id)
        study = found["study_instance_uid"] if found else None
        self._site.note(visitor, "retry-alert", study, f"alert {alert_id}")
        self._records.alerts.retry(alert_id, time.time())

    def probe(self, visitor: Visitor, name: str) -> str:
        """Whether anybody answers at a channel, in words; tells it nothing."""
        settings = self._site.settings
        found = next((alert for alert in settings.alert if alert.name == name), None)
        if found is None:
            raise NotAllowed(404, f"no [[alert]] is called {name!r}")
        self._site.note(visitor, "probe", detail=pauses.of_channel(name))
        try:
            channel = channel_of(found, settings)
            channel.check()
            ok, words = True, channel.probe()
        except IchnodeError as error:
            ok, words = False, str(error)
        self._records.console.echoed(pauses.of_channel(name), ok, words, time.time())
        return words

    def pause(self, visitor: Visitor, name: str) -> None:
        """The queue, a destination or a channel."""
        self._known(name)
        self._site.note(visitor, "pause", detail=name)
        self._records.pauses.pause(name, visitor.name, time.time())

    def resume(self, visitor: Visitor, name: str) -> None:
        """Also of a destination that the settings no longer name; 404 for what neither names."""
        if name not in self._records.pauses.all():
            self._known(name)
        self._site.note(visitor, "resume", detail=name)
        self._records.pauses.resume(name)

    def echo(self, visitor: Visitor, destination: str) -> tuple[bool, str]:
        """C-ECHO, or a question to its DICOMweb service; returns whether it answered, and that in words."""
        named = self._destination(destination)
        self._site.note(visitor, "echo", detail=destination)
        began = time.perf_counter()
        try:
            carrier = carrier_to(named, self._site.settings.scp.ae_title)
            carrier.check()
            carrier.echo()
            ok, words = True, f"answered in {(time.perf_counter() - began) * 1000:.0f} ms"
        except IchnodeError as error:
            ok, words = False, str(error)
        self._records.console.echoed(destination, ok, words, time.time())
        return ok, words

    def _destination(self, name: str) -> Destination:
        """Raises NotAllowed for one that the settings do not name."""
        destinations = self._site.settings.destination
        found = next((d for d in destinations if d.name == name), None)
        if found is None:
            known = ", ".join(d.name for d in destinations) or "none"
            raise NotAllowed(404, f"the settings name no destination {name!r}; there are: {known}")
        return found

    def compare(self, visitor: Visitor, archive: str, days: tuple[str, str]) -> None:
        """Ask for a comparison of these StudyDates (DA), both included; the role `deliver` makes it."""
        if archive not in [a.name for a in self._site.settings.archive]:
            raise NotAllowed(404, f"the settings name no archive {archive!r}")
        try:
            check_days(days)
        except SettingsError as error:
            raise NotAllowed(400, str(error)) from error
        self._site.note(visitor, "compare", detail=f"{archive} {days[0]}-{days[1]}")
        self._records.gaps.ask(archive, days, visitor.name, time.time())

    def fetch_gaps(self, visitor: Visitor, ids: Sequence[int]) -> int:
        """Have these fetched. Returns how many could be asked for."""
        rows = [row for number in ids[:MOST_AT_ONCE] if (row := self._records.gaps.get(number))]
        for row in rows:
            self._site.note(visitor, "fetch", row["study_instance_uid"], f"gap {row['id']} {row['archive']}")
        return self._records.gaps.want([row["id"] for row in rows], visitor.name, time.time())

    def dismiss_gaps(self, visitor: Visitor, ids: Sequence[int]) -> int:
        """These are not wanted. Raises IllegalTransition for one that cannot be dismissed any more."""
        for number in ids[:MOST_AT_ONCE]:
            row = self._records.gaps.get(number) or {}
            self._site.note(visitor, "dismiss", row.get("study_instance_uid"), f"gap {number}")
            self._records.gaps.dismiss(number)
        return len(ids[:MOST_AT_ONCE])

    def _known(self, name: str) -> None:
        settings = self._site.settings
        destinations = [pauses.of_destination(d.name) for d in settings.destination]
        names = [pauses.QUEUE, *destinations, *(pauses.of_channel(a.name) for a in settings.alert)]
        if name not in names:
            raise NotAllowed(404, f"{name!r} cannot be paused or resumed; there are {', '.join(names)}")

    def draw_sample(self, visitor: Visitor, count: int, since: float) -> int:
        """Draw negatives by chance for readers to look at; returns how many there were."""
        count = min(max(count, 1), MOST_DRAWN)
        self._site.note(visitor, "draw-sample", detail=f"{count} negatives")
        chance = random.SystemRandom()
        return self._records.quality.draw(count, since, visitor.name, time.time(), chance)

    def _note(self, visitor: Visitor, action: str, job_id: int, more: str = "") -> None:
        job = self._records.jobs.get(job_id)
        if job is None:
            raise IllegalTransition(f"there is no job {job_id}; look at the study again")
        self._site.note(visitor, action, job.study_instance_uid, f"job {job_id}{more}")
