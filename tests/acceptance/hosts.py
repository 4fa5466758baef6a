"""Several hosts on one PostgreSQL, Redis and spool: kills processes and whole hosts, balances the books.

`python -m tests.acceptance.hosts --kills 60` runs it by hand and goes on where it was stopped when given the
same --folder. Each host is a pid and host-name namespace of its own (`unshare`, as root), so that nobody can
see whether a process of another host lives. The books are those of tests.acceptance.crashes; the PACSs are
Orthanc and an SCP that counts. Beside the kills, a host with a worker alone joins and leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import psutil

from node.domain.errors import TransientError
from node.scu import Peer
from node.settings import Destination
from node.store.leaders import CLOCK
from node.store.records import Records, open_records
from tests.acceptance.crashes import START_S, Crashes, Ledger
from tests.acceptance.servers import OUTAGES
from tests.ports import free_port
from tests.processes import role_of

ALL = ("listen", "settle", "worker", "deliver")
HOSTS = {"host-a": ALL, "host-b": ALL}
GUEST = "host-c"
TARGETS = {"listen": 4, "settle": 2, "leader": 4, "worker": 6, "deliver": 4, "host": 3, "guest": 3, **OUTAGES}
"""Whom to kill, and how often: leader is the process that leads the clock; guest comes, or goes again."""


class Hosts(Crashes):
    """A run on several hosts. Without `namespaces` they are process trees of one host."""

    plan: ClassVar[dict[str, tuple[str, ...]]] = HOSTS

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None], namespaces: bool = True) -> None:
        super().__init__(folder, seed, say, servers=True)
        known = folder / "hosts.json"
        if not known.exists():
            first, *others = self.plan  # Orthanc tells the first one of storage commitment
            known.write_text(json.dumps({first: self.ports[1], **{name: free_port() for name in others}}))
        self.listeners: dict[str, int] = json.loads(known.read_text())
        self._namespaces = namespaces
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self.led_by: list[str] = []
        """Who led the clock, one after the other."""

    # -- hosts --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Every host that does not run; returns once each role of each host was heard of."""
        began = time.time()
        fresh = [
            name for name in self.plan if name not in self._hosts or self._hosts[name].poll() is not None
        ]
        for name in fresh:
            self._boot(name, self.plan[name])
        if self.led_by:
            return  # what comes back may take its time
        records = open_records(self.settings)
        wanted = Counter(role for name in fresh for role in self.plan[name])
        deadline = time.monotonic() + START_S
        while True:
            seen = [p["role"] for p in records.views.processes(time.time()) if p["started_at"] >= began - 1]
            if all(seen.count(role) >= number for role, number in wanted.items()) and self._look_who_leads():
                break
            assert time.monotonic() < deadline, (
                f"{seen} are there; {(self.folder / 'node.log').read_text()[-3000:]}"
            )
            time.sleep(0.1)
        records.close()

    def _boot(self, name: str, roles: tuple[str, ...]) -> None:
        own = (
            ["unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
            if self._namespaces
            else []
        )
        port = self.listeners.get(name, 0) if "listen" in roles else 0
        settings = {"ICHNODE_SCP__PORT": str(port), "ICHNODE_SCP__PROCESSES": "1"} if port else {}
        program = [
            sys.executable,
            "-m",
            "tests.acceptance.host",
            name,
            str(self.folder / "ichnode.toml"),
            *roles,
        ]
        with (self.folder / "node.log").open("ab") as log:
            self._hosts[name] = subprocess.Popen(
                [*own, *program],
                env={**os.environ, "OMP_NUM_THREADS": "1", **settings, **self.environment(name)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def environment(self, name: str) -> dict[str, str]:
        """What else a host finds in its environment."""
        return {}

    def stands(self) -> bool:
        return all(name in self._hosts and self._hosts[name].poll() is None for name in self.plan)

    def tend(self) -> None:
        super().tend()
        self._look_who_leads()

    def _look_who_leads(self) -> str:
        """The holder of the clock; also noted in `led_by`."""
        with contextlib.suppress(TransientError):  # the database may be away: then nobody can tell
            records = open_records(self.settings)
            lead = records.leaders.all().get(CLOCK)
            records.close()
            if lead and lead.holder and self.led_by[-1:] != [lead.holder]:
                self.led_by.append(lead.holder)
            return lead.holder if lead else ""
        return ""

    def stop_node(self) -> None:
        for process in self._hosts.values():
            _inner(process).send_signal(signal.SIGTERM) if process.poll() is None else None
        for process in self._hosts.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- victims ------------------------------------------------------------------------------------------

    def victims(self, target: str) -> list[int]:
        """Process ids to kill; for a host that of its init, with which all the others end."""
        if target == "host":
            return [_inner(self._chosen()).pid]
        if target == "leader":
            return self._leader()
        hosts = [self._chosen(), *self._hosts.values()]  # the role may run on one of them alone
        family = [p for host in hosts if host.poll() is None for p in psutil.Process(host.pid).children(True)]
        return [process.pid for process in family if role_of(process) == target][:1]

    def _chosen(self) -> subprocess.Popen[bytes]:
        names = [name for name in self.plan if self._hosts[name].poll() is None]
        return self._hosts[random.Random(f"{self.seed}{self.kills.total()}").choice(names)]

    def _leader(self) -> list[int]:
        host, _, _, pid = (self._look_who_leads() or ":::").split(":")
        for name, process in self._hosts.items():
            if process.poll() is not None or (self._namespaces and name != host):
                continue
            for child in psutil.Process(process.pid).children(recursive=True):
                if role_of(child) == "settle" and _pid_inside(child.pid) == pid:
                    return [child.pid]
        return []

    def strike(self, target: str, chance: random.Random) -> bool:
        if target != "guest":
            return super().strike(target, chance)
        guest = self._hosts.pop(GUEST, None)
        if guest is None:
            self._boot(GUEST, ("worker",))
        else:
            _inner(guest).send_signal(signal.SIGTERM if chance.random() < 0.5 else signal.SIGKILL)
            guest.wait(timeout=60)
        return True

    def kill(self, target: str) -> bool:
        victims = self.victims(target)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(victims)

    def balance(self, records: Records) -> Ledger:
        self._look_who_leads()
        return super().balance(records)

    def family(self) -> list[psutil.Process]:
        return []  # hosts end with their init

    def modality(self, number: int) -> Peer:
        """Every other study comes in at the other host."""
        ports = [self.listeners[name] for name, roles in self.plan.items() if "listen" in roles]
        port = ports[number % len(ports)]
        return Peer(Destination(name="node", ae_title="ICHNODE", port=port), "MODALITY")


def _inner(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The host's own init: the child of `unshare`, or the process itself."""
    whole = psutil.Process(process.pid)
    return whole.children()[0] if whole.name() == "unshare" else whole


def _pid_inside(pid: int) -> str:
    """The pid that a process has in its own namespace (proc(5), NSpid)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="how many in all, those before a stop included")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ichnode-hosts"))
    parser.add_argument("--pause", type=float, default=8.0, help="longest time between two kills, in seconds")
    parser.add_argument("--minutes", type=float, help="stop killing after so long, whatever the count")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS), help="whom to kill")
    options = parser.parse_args()
    targets = {name: TARGETS[name] for name in options.targets}
    began = time.monotonic()
    hosts = Hosts(
        options.folder,
        options.seed,
        lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True),
    )
    try:
        hosts.pause_s = options.pause
        ledger = hosts.run(options.kills, options.minutes and options.minutes * 60, targets)
    finally:
        hosts.close()
    print(json.dumps({**asdict(ledger), "clock_led_by": hosts.led_by}, indent=2))
    words = "the books balance" if ledger.balances else "THE BOOKS DO NOT BALANCE"
    print(f"{words} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if ledger.balances else 1)


if __name__ == "__main__":
    main()
