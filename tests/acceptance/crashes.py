"""Kills the node's processes at random under load and then balances the books: nothing lost, nothing twice.

`python -m tests.acceptance.crashes --kills 200` runs it by hand, goes on where it was stopped when given the
same --folder, and prints the ledger; its exit code is 1 unless the books balance. A phantom pipeline with
random weights stands in for the model, so that two cores do hundreds of studies; all else is the real node.
With --servers the node stands on PostgreSQL and Redis and sends to Orthanc too, which are cut off as well.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydicom import dcmwrite
from pydicom.uid import CTImageStorage
from pynetdicom import AE, AllStoragePresentationContexts, evt

from node.domain.errors import IchnodeError
from node.domain.lifecycle import DeliveryState, JobState
from node.scan import MISSING, Fate, Scan
from node.scu import Parcel, Peer
from node.settings import Destination, Settings, load
from node.spool import spool_of
from node.store.records import Records, open_records
from tests.acceptance.servers import OUTAGES, Servers
from tests.factories import ct_series
from tests.ports import free_port
from tests.processes import role_of

SLICES = 24
SENDERS = 2
BACKLOG = 15
"""Studies without a result, from which on the senders wait: the run should end when the kills do."""
START_S = 900.0
TARGETS = {
    "listener": 4, "listen": 2, "settle": 3, "worker": 5, "deliver": 4,
    "web": 1, "redis": 3, "up": 2, "tree": 2,
}  # fmt: skip
"""Whom to kill, and how often: a listener is a fork of listen; tree is every process at once."""
WITH_SERVERS = {**{name: often for name, often in TARGETS.items() if name != "redis"}, **OUTAGES}
"""The broker is then no child of the node's."""
LONGEST_OUTAGE_S = 5.0
KINDS = {"1.2.840.10008.5.1.4.1.1.88.34": "SR", "1.2.840.10008.5.1.4.1.1.66.4": "SEG"}


@dataclass
class Ledger:
    """The books. `faults` say in words what does not balance."""

    sent: int = 0
    received: int = 0
    resulted: int = 0
    delivered: int = 0
    analysed: int = 0
    lost: int = 0
    duplicated: int = 0
    stuck: int = 0
    revisions: int = 0
    resent_objects: int = 0
    send_attempts: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    scan: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def balances(self) -> bool:
        whole = self.sent == self.received == self.resulted == self.delivered > 0
        return whole and not (self.lost or self.duplicated or self.stuck or self.faults)


class Pacs:
    """A C-STORE SCP that remembers every object it ever got, and how often, in a file."""

    def __init__(self, folder: Path, port: int) -> None:
        self._file = folder / "pacs.jsonl"
        self._lock = threading.Lock()
        self.objects: dict[str, dict[str, Any]] = {}
        for line in self._file.read_text().splitlines() if self._file.exists() else []:
            self._count(json.loads(line))
        ae = AE("PACS")
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(str(context.abstract_syntax))
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server: Any = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)

    def _store(self, event: evt.Event) -> int:
        ds = event.dataset
        row = {
            "uid": str(ds.SOPInstanceUID),
            "study": str(ds.StudyInstanceUID),
            "kind": KINDS.get(str(ds.SOPClassUID), str(ds.SOPClassUID)),
            "sha256": hashlib.sha256(event.request.DataSet.getvalue()).hexdigest(),
        }
        with self._lock:
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self._count(row)
        return 0x0000

    def reports(self) -> int:
        with self._lock:
            return sum(item["kind"] == "SR" for item in self.objects.values())

    def _count(self, row: dict[str, Any]) -> None:
        known = self.objects.setdefault(row["uid"], {**row, "times": 0, "contents": set()})
        known["times"] += 1
        known["contents"].add(row["sha256"])

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
        self._server = None


class Crashes:
    """One run: a folder with the node's data, what was sent, what the PACS got, and how far it came."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None], servers: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._say = folder, say
        self.pause_s = 4.0
        """The longest time between two kills; on a slow machine more, or no worker lives to see a result."""
        self._state = folder / "state.json"
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        self.seed: int = known.get("seed", seed)
        self.ports: list[int] = known.get("ports") or [free_port() for _ in range(3)]
        self.sent: dict[str, str] = known.get("sent", {})
        """Studies of which every slice was answered with Success: UID by name."""
        self.kills: Counter[str] = Counter(known.get("kills", {}))
        self.attempts: int = known.get("attempts", 0)
        self._next: int = known.get("next", 0)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.pacs = Pacs(folder, self.ports[0])
        self.servers = Servers(folder, self.ports[1]) if servers else None
        self.settings = self._settings()
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0

    def _settings(self) -> Settings:
        config = self.folder / "ichnode.toml"
        if not config.exists():
            data_dir = json.dumps(str(self.folder / "node"))
            config.write_text(
                f"data_dir = {data_dir}\nscp = {{ port = {self.ports[1]}, processes = 2 }}\n"
                f"web = {{ port = {self.ports[2]} }}\nspool = {{ reserve_mb = 16 }}\n"
                "completeness = { quiet_s = 1, max_wait_s = 10 }\n"
                f"model = {{ pipeline = {json.dumps(str(stand_in(self.folder)))}, max_attempts = 10 }}\n"
                + (self.servers.settings() if self.servers else "")
                + f'[[destination]]\nname = "pacs"\nae_title = "PACS"\nport = {self.ports[0]}\n'
                'outputs = ["sr", "seg"]\nretry_base_s = 1\nretry_max_s = 5\n'
                + (self.servers.destination() if self.servers else "")
            )
        return load(config)

    def save(self) -> None:
        with self._lock:
            state = {"seed": self.seed, "ports": self.ports, "sent": self.sent, "kills": self.kills,
                     "attempts": self.attempts, "next": self._next}  # fmt: skip
            temporary = self._state.with_suffix(".new")
            temporary.write_text(json.dumps(state))
            temporary.replace(self._state)

    # -- the node -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """As an init system would: again and again, until it is up."""
        deadline = time.monotonic() + START_S
        while not self._stop.is_set():
            log = self.folder / "node.log"
            with log.open("ab") as out:
                self._seen = out.tell()
                command = [sys.executable, "-m", "node", "up", "--config", str(self.folder / "ichnode.toml")]
                self._process = subprocess.Popen(command, stdout=out, stderr=out)
            while self._process.poll() is None and not self.is_up():
                if time.monotonic() > deadline:
                    raise AssertionError(f"the node does not come up: {log.read_text()[-3000:]}")
                time.sleep(0.1)
            if self._process.poll() is None:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"the node does not come up: {log.read_text()[-3000:]}")
            time.sleep(0.5)

    def is_up(self) -> bool:
        with (self.folder / "node.log").open("rb") as log:
            log.seek(self._seen)
            return b"ichnode is up" in log.read()

    def stands(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tend(self) -> None:
        if not self.stands():
            self.start()

    def stop_node(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill("tree")

    def family(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def victims(self, target: str) -> list[int]:
        """Process ids to kill for one of TARGETS; none when it does not run at the moment."""
        assert self._process is not None
        if target == "up":
            return [self._process.pid]
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = process.ppid()
                role = role_of(process) or ("redis" if "redis" in str(process.cmdline()[:1]) else "")
                role = "listener" if role == "listen" and parent != self._process.pid else role
                if target in ("tree", role):
                    found.append(process.pid)
        return [self._process.pid, *found] if target == "tree" else found[:1]

    def strike(self, target: str, chance: random.Random) -> bool:
        """Kill a process of the node, or take a server from it for a while."""
        if target not in OUTAGES:
            return self.kill(target)
        assert self.servers is not None
        self.servers.outage(target, chance.uniform(0, LONGEST_OUTAGE_S), hard=chance.random() < 0.5)
        return True

    def kill(self, target: str) -> bool:
        victims = self.victims(target)
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                psutil.Process(pid).kill() if psutil.pid_exists(pid) else None
        if victims and target in ("up", "tree"):
            assert self._process is not None
            self._process.wait(timeout=30)
        return bool(victims)

    # -- the load -----------------------------------------------------------------------------------------

    def send_forever(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                number, self._next = self._next, self._next + 1
            self._send_study(self.modality(number), f"{self.seed}-{number}")
            self._stop.wait(random.Random(f"{self.seed}{number}").uniform(0.2, 3))
            while len(self.sent) - self.pacs.reports() > BACKLOG and not self._stop.wait(0.2):
                pass

    def modality(self, number: int) -> Peer:
        """Who sends the study of this number."""
        return Peer(Destination(name="node", ae_title="ICHNODE", port=self.ports[1]), "MODALITY")

    def _send_study(self, peer: Peer, name: str) -> None:
        """Until every slice was answered with Success: a PACS does so too. Ends only with that."""
        series = ct_series(
            SLICES, rows=32, spacing_mm=6.0, name=name, PatientID=name, AccessionNumber=name[:16]
        )
        folder = self.folder / "modality" / name
        folder.mkdir(parents=True, exist_ok=True)
        parcels = []
        for number, ds in enumerate(series):
            dcmwrite(folder / f"{number}.dcm", ds, enforce_file_format=True)
            parcels.append(Parcel(number, folder / f"{number}.dcm", str(CTImageStorage)))
        while True:
            self.attempts += 1
            with contextlib.suppress(IchnodeError):
                if all(outcome.accepted for outcome in peer.send(parcels)):
                    break
            time.sleep(0.5)
        with self._lock:
            self.sent[name] = str(series[0].StudyInstanceUID)
        shutil.rmtree(folder)

    # -- the run ------------------------------------------------------------------------------------------

    def run(
        self, kills: int, longest_s: float | None = None, targets: dict[str, int] | None = None
    ) -> Ledger:
        """Kill until `kills` processes died in all or time is up, let the node finish, balance the books."""
        chance = random.Random(f"{self.seed}/{self.kills.total()}")
        weights = targets or (TARGETS if self.servers is None else WITH_SERVERS)
        deadline = time.monotonic() + (longest_s or 1e9)
        self.tend()
        self._say(f"the node is up; {self.kills.total()} killed before, {len(self.sent)} studies sent")
        senders = [threading.Thread(target=self.send_forever, daemon=True) for _ in range(SENDERS)]
        for sender in senders:
            sender.start()
        while self.kills.total() < kills and time.monotonic() < deadline:
            time.sleep(chance.uniform(0.3, self.pause_s))
            (target,) = chance.choices(list(weights), list(weights.values()))
            if self.strike(target, chance):
                self.kills[target] += 1
                self._say(f"{self.kills.total()}: {target} killed; {len(self.sent)} studies sent")
                self.save()
            self.tend()
        self._stop.set()
        for _ in iter(lambda: any(sender.is_alive() for sender in senders), False):
            if not self.stands():
                self._stop.clear()
                self.start()
                self._stop.set()
            time.sleep(0.2)
        self.save()
        return self.settle()

    def settle(self, patience_s: float = 300) -> Ledger:
        """The books, once nothing moves any more or patience is over."""
        records = open_records(self.settings)
        deadline, moved = time.monotonic() + patience_s, time.monotonic()
        ledger, before = self.balance(records), ""
        while not ledger.balances and time.monotonic() < deadline:
            if not self.stands():
                self._stop.clear()
                self.start()
            now = json.dumps([ledger.received, ledger.resulted, ledger.delivered, len(self.pacs.objects)])
            moved = time.monotonic() if now != before else moved
            deadline = max(deadline, moved + patience_s)  # as long as something moves, wait
            before = now
            time.sleep(1)
            ledger = self.balance(records)
        ledger.scan = Scan(records, spool_of(self.settings)).run()
        for word in (MISSING, Fate.UNKNOWN):
            if ledger.scan.get(word):
                ledger.faults.append(f"spool: {ledger.scan[word]} {word}")
        records.close()
        return ledger

    def balance(self, records: Records) -> Ledger:
        ledger = Ledger(sent=len(self.sent), kills=dict(self.kills), send_attempts=self.attempts)
        ledger.resent_objects = sum(o["times"] - 1 for o in self.pacs.objects.values())
        jobs: dict[str, list[dict[str, Any]]] = {}
        for job in records.views.jobs(limit=1_000_000):
            jobs.setdefault(job["study_instance_uid"], []).append(job)
        deliveries: dict[int, list[dict[str, Any]]] = {}
        for delivery in records.views.deliveries(limit=1_000_000):
            deliveries.setdefault(delivery["job_id"], []).append(delivery)
        reports: dict[str, list[dict[str, Any]]] = {}
        for item in self.pacs.objects.values():
            if item["kind"] == "SR":
                reports.setdefault(item["study"], []).append(item)
            if len(item["contents"]) > 1:
                ledger.duplicated += 1
                ledger.faults.append(f"object {item['uid']} reached the PACS with different contents")
        self._held = self.servers.held() if self.servers else set()
        for name, study in self.sent.items():
            self._balance_study(
                ledger, name, records, study, jobs.get(study, []), deliveries, reports.get(study, [])
            )
        return ledger

    def _balance_study(
        self,
        ledger: Ledger,
        name: str,
        records: Records,
        study: str,
        jobs: list[dict[str, Any]],
        deliveries: dict[int, list[dict[str, Any]]],
        reports: list[dict[str, Any]],
    ) -> None:
        rows = records.decisions.of_study(study)
        gathered = [records.arrivals.paths(row.series_instance_uid) for row in rows]
        if len(rows) != 1 or len(gathered[0]) != SLICES:
            ledger.lost += 1
            ledger.faults.append(
                f"study {name}: {sum(map(len, gathered))} of {SLICES} instances are recorded"
            )
            return
        ledger.received += 1
        (row,) = rows
        ledger.revisions += row.revision
        over = [job for job in jobs if job["reported_at"] is not None]
        current = [job for job in over if job["revision"] == row.revision]
        if not current:
            ledger.stuck += 1
            states = [(job["revision"], job["state"]) for job in jobs]
            ledger.faults.append(f"study {name}: {row.state} at revision {row.revision}, jobs {states}")
            return
        ledger.resulted += 1
        ledger.analysed += current[0]["state"] == JobState.COMPOSED
        if current[0]["reason_code"] and current[0]["state"] == JobState.FAILED:
            code = current[0]["reason_code"]
            ledger.reasons[code] = ledger.reasons.get(code, 0) + 1
        made = [d for job in over for d in deliveries.get(job["id"], [])]
        due = [d for d in made if not self._is_overtaken(d, current)]
        arrived = [d for d in due if self._arrived(d)]
        if not due or len(arrived) < len(due):
            ledger.stuck += 1
            ledger.faults.append(f"study {name}: {len(arrived)} of {len(due)} objects were delivered")
            return
        ledger.delivered += 1
        if current[0]["state"] == JobState.COMPOSED and {d["output"] for d in due} != {"sr", "seg"}:
            ledger.faults.append(f"study {name}: {[d['output'] for d in due]} in place of sr and seg")
        known = {d["sop_instance_uid"]: d["job_id"] for d in made if d["output"] == "sr"}
        expected = {"pacs", "orthanc"} if self.servers else {"pacs"}
        if {d["destination"] for d in due} != expected:
            ledger.faults.append(f"study {name}: {[d['destination'] for d in due]} in place of {expected}")
        of_job = Counter(known.get(report["uid"]) for report in reports)
        wanted = {d["job_id"] for d in due if d["destination"] == "pacs"}
        if not wanted <= set(of_job) <= {job["id"] for job in over} or max(of_job.values()) > 1:
            ledger.duplicated += 1
            ledger.faults.append(f"study {name}: reports at the PACS by job: {dict(of_job)}")

    def _is_overtaken(self, delivery: dict[str, Any], current: list[dict[str, Any]]) -> bool:
        """In its place that of a later revision goes; nothing takes the place of the current one."""
        return delivery["state"] == DeliveryState.SUPERSEDED and delivery["job_id"] != current[0]["id"]

    def _arrived(self, delivery: dict[str, Any]) -> bool:
        """At Orthanc it must lie, and Orthanc must have committed to it."""
        state, uid = delivery["state"], delivery["sop_instance_uid"]
        if delivery["destination"] == "orthanc":
            return state == DeliveryState.COMMITTED and uid in self._held
        return state in (DeliveryState.SENT, DeliveryState.COMMITTED) and uid in self.pacs.objects

    def close(self) -> None:
        self._stop.set()
        self.stop_node()
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.pacs.close()
        if self.servers is not None:
            self.servers.close()


def stand_in(folder: Path) -> Path:
    """The network of the default's first part, tiny and of random weights: good for being quick alone.

    With thresholds next to nothing it finds blood in every head: each study is STAT and gets an SR and a SEG.
    """
    import torch
    from safetensors.torch import save

    from workers.models.catalogue import entry
    from workers.models.multitask import MULTITASK
    from workers.models.network import MultiTaskNet

    torch.manual_seed(0)
    facts = json.loads(entry("default").sidecar.read_text())
    (part, *_) = facts.pop("parts")
    facts |= {"family": MULTITASK, "preprocessing": part["preprocessing"], "recipe": part["recipe"]}
    facts["thresholds"], facts["mask_threshold"] = dict.fromkeys(facts["thresholds"], 0.0), 0.001
    facts["recipe"] = {**facts["recipe"], "widths": [8, 8, 16, 16], "dropout": 0.0}
    network = MultiTaskNet(tuple(facts["recipe"]["widths"]), 0.0)
    content = save({f"0.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()})
    digest = hashlib.sha256(content).hexdigest()
    (folder / "stand-in.safetensors").write_bytes(content)
    facts |= {"name": "stand-in", "weights": "stand-in.safetensors", "sha256": digest, "members": 1}
    (folder / "stand-in.json").write_text(json.dumps(facts))
    return folder / "stand-in.json"


@contextlib.contextmanager
def crashing(
    folder: Path, seed: int, say: Callable[[str], None] = lambda _: None, servers: bool = False
) -> Iterator[Crashes]:
    """A run that leaves no process behind."""
    logging.getLogger("pynetdicom").setLevel("CRITICAL")
    crashes = Crashes(folder, seed, say, servers)
    try:
        yield crashes
    finally:
        crashes.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=200, help="how many in all, those before a stop included"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/ichnode-crashes"))
    parser.add_argument("--pause", type=float, default=4.0, help="longest time between two kills, in seconds")
    parser.add_argument("--servers", action="store_true", help="cut PostgreSQL, Redis and Orthanc off, too")
    parser.add_argument("--minutes", type=float, help="stop killing after so long, whatever the count")
    options = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)

    with crashing(options.folder, options.seed, say, options.servers) as crashes:
        crashes.pause_s = options.pause
        ledger = crashes.run(options.kills, options.minutes and options.minutes * 60)
    print(json.dumps(asdict(ledger), indent=2))
    words = "the books balance" if ledger.balances else "THE BOOKS DO NOT BALANCE"
    print(f"{words} after {time.monotonic() - began:.0f} s")
    sys.exit(0 if ledger.balances else 1)


if __name__ == "__main__":
    main()
