"""Tells each channel what is due and writes down what came of it. Decides not what is told, nor to whom."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

from node.channels.catalogue import channel_of
from node.channels.contract import Channel, Rejected
from node.domain.errors import TransientError
from node.meanwhile import meanwhile
from node.retry import LONGEST_BREAK_S, Breaker, back_off_s, is_hopeless
from node.settings import Alert, Settings
from node.store.alerts import DueAlert
from node.store.audit import Actor
from node.store.records import Records

log = logging.getLogger(__name__)

TICK_S = 0.25
LEASE_S = 60.0
"""Renewed as long as an attempt lasts."""
ROLE = "node"
"""In the audit trail, where people have theirs."""


class Herald:
    """Tells one channel. A dead channel delays no other."""

    def __init__(self, alert: Alert, channel: Channel, records: Records) -> None:
        self._alert = alert
        self._channel = channel
        self._alerts = records.alerts
        self._breaker = Breaker(alert.retry_base_s)
        self._asked_s = 0.0
        """For how long the receiver asked to be left alone."""
        self._actor = Actor(f"alert {alert.name}", ROLE, "")

    def pause_s(self) -> float:
        """The channel did not get through: how many seconds to leave it alone."""
        asked_s, self._asked_s = min(self._asked_s, LONGEST_BREAK_S), 0.0
        return max(self._breaker.failed(random.random()), asked_s)

    def round(self, now: Callable[[], float] = time.time) -> float:
        """Tell what is most urgent of what is due. Returns how many seconds to wait before the next round."""
        due = self._alerts.take_due(self._alert.name, now(), now() + LEASE_S)
        if due is None:
            return TICK_S
        return 0.0 if self._tell(due, now) else self.pause_s()

    def _tell(self, due: DueAlert, now: Callable[[], float]) -> bool:
        name = self._alert.name
        try:
            with meanwhile(f"lease-{name}", lambda: LEASE_S / 3, lambda: self._extend(due, now())):
                receipt = self._channel.send(due.announcement())
        except Rejected as error:
            log.error("alert %d was rejected by %s: %s", due.id, name, error)
            self._again_or_never(due, str(error), error.status, now(), rejected=True)
            self._answered(now())
            return True
        except TransientError as error:
            log.warning("alert %d waits: %s", due.id, error)
            self._asked_s = error.after_s
            self._again_or_never(due, str(error), "", now(), after_s=error.after_s)
            return False
        except Exception as error:
            self._again_or_never(due, f"{type(error).__name__}; see the log of the node", "broke", now())
            raise
        write = self._alerts.acknowledged if receipt.acknowledged else self._alerts.sent
        write(due, receipt.status, receipt.text, now(), self._actor)
        seconds = now() - due.last_slice_at
        log.info(
            "alert %d: %s took it (%s), %.1f s after the last slice", due.id, name, receipt.status, seconds
        )
        self._answered(now())
        return True

    def _extend(self, due: DueAlert, now: float) -> None:
        """An attempt may take many steps, each its own time."""
        try:
            self._alerts.extend(due.id, now + LEASE_S)
        except TransientError as error:
            log.warning("the lease of alert %d is not extended: %s", due.id, error)

    def _answered(self, now: float) -> None:
        if self._breaker.answered():
            count = self._alerts.hasten(self._alert.name, now)
            log.info("%s is back; %d alerts are due", self._alert.name, count)

    def _again_or_never(
        self,
        due: DueAlert,
        error: str,
        status: str,
        now: float,
        *,
        rejected: bool = False,
        after_s: float = 0.0,
    ) -> None:
        """What is rejected is given up at once, unless it is positive: that is tried for ever.

        A receiver that asks for patience gets it, up to the longest wait of the channel.
        """
        if is_hopeless(due, self._alert, now) or (rejected and not due.urgent):
            log.error("alert %d is given up: %s", due.id, error)
            self._alerts.give_up(due, error, status, now, self._actor)
            return
        attempts = 30 if rejected else due.attempts
        patience = min(after_s, self._alert.retry_max_s)
        delay = max(back_off_s(attempts, self._alert, random.random()), patience)
        self._alerts.failed(due, error, status, now + delay)


def run(herald: Herald, stopping: Callable[[float], bool]) -> None:
    """Tell until `stopping(seconds)` says so; after a failure wait the herald's pause.

    Whatever goes wrong is written to the log: a herald that ended would leave its channel in silence.
    """
    wait_s = TICK_S
    while not stopping(wait_s):
        try:
            wait_s = herald.round()
        except TransientError as error:
            log.error("announcing waits: %s", error)
            wait_s = herald.pause_s()
        except Exception:
            log.exception("announcing broke; it goes on")
            wait_s = herald.pause_s()


def start_heralds(
    settings: Settings, records: Records, stopping: Callable[[float], bool]
) -> list[threading.Thread]:
    """One thread for each channel. Raises SettingsError when one of them cannot be used at all."""
    channels = [(alert, channel_of(alert, settings)) for alert in settings.alert]
    for _, channel in channels:
        channel.check()
    threads = []
    for alert, channel in channels:
        herald = Herald(alert, channel, records)
        thread = threading.Thread(
            target=run, args=(herald, stopping), name=f"announce-{alert.name}", daemon=True
        )
        thread.start()
        threads.append(thread)
    return threads
