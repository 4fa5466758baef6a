"""One process, one role, from listen to web; each ends in order on SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from node.admin.tended import Tended
from node.domain.errors import SettingsError, TransientError
from node.liveness import process_name
from node.settings import Settings
from node.spool import Spool, spool_of
from node.store.audit_queue import Event
from node.store.records import Records, open_records
from node.store.views import BROKE

if TYPE_CHECKING:
    from node.leadership import Candidate

log = logging.getLogger(__name__)

BEAT_S = 5
LOOK_S = 0.5
LOOK_CHILDREN_S = 0.2
STOP_GRACE_S = 4.0
"""Less than the supervisor gives to the whole role."""
PR_SET_PDEATHSIG = 1  # prctl(2)
FORMAT = "%(asctime)s {role:<8} %(levelname)-7s %(message)s"


def listen(settings: Settings) -> None:
    """The C-STORE SCP, in `scp.processes` processes that share one socket."""
    from node import scp

    listening = scp.open_socket(settings.scp)
    open_records(settings).close()  # the schema is there before the first fork
    scp.tls_context(settings.scp)
    log.info("listening on %s:%d as %s", settings.scp.host, settings.scp.port, settings.scp.ae_title)
    gc.freeze()  # what was imported stays for good: the listeners need not go through it again and again
    has_bucket = settings.spool.s3.wanted
    if settings.scp.processes == 1 and not has_bucket:
        _serve(settings, listening)
        return
    works = [partial(_serve, settings, listening)] * settings.scp.processes
    _prefork([*works, partial(_upload, settings, listening)] if has_bucket else works)


def _serve(settings: Settings, listening: socket.socket, parent: int | None = None) -> None:
    """Until SIGTERM, or until the parent is gone: a signal may be missed, and an orphan keeps the port.

    Without a `parent`, whoever started it may go: a shell, say.
    """
    from node import scp

    with stopping() as stop:

        def until(records: Records) -> None:
            with beating(records, "listen", lambda: {"of": settings.scp.processes}):
                while parent in (None, os.getppid()) and not stop(LOOK_S):
                    pass

        scp.serve(settings, listening, until)


def _upload(settings: Settings, listening: socket.socket, parent: int) -> None:
    """Beside the listeners, where there is a bucket: what they received goes there."""
    from node import upload

    listening.close()  # it may outlive its parent by an upload, and must not keep the port for so long
    records = open_records(settings)
    with stopping() as stop:
        upload.serve(
            settings,
            records,
            spool_of(settings),
            lambda seconds: parent != os.getppid() or stop(seconds),
            partial(beating, records, "upload"),
        )
    records.close()


@dataclass
class Forked(Tended):
    """A child of this process that does one work. Its first successor starts at once: a peer waits."""

    work: Callable[[int], None]
    pid: int | None = None

    restart_after_s = LOOK_CHILDREN_S

    def launch(self) -> None:
        self.pid = _fork(self.work)

    def ended(self) -> int | None:
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    @property
    def is_there(self) -> bool:
        return self.pid is not None


def _prefork(works: Sequence[Callable[[int], None]]) -> None:
    """Fork a child for each, replace one that dies, and end them all with this process."""
    children = [Forked(f"listener {number}", work) for number, work in enumerate(works, 1)]
    for child in children:
        child.start()
    with stopping() as stop:
        while not stop(LOOK_CHILDREN_S):
            for child in children:
                child.tend()
    _end({child.pid for child in children if child.pid is not None})


def _end(children: set[int]) -> None:
    """SIGTERM, and SIGKILL for whoever does not hear it: the port must be free once this returns."""
    deadline = time.monotonic() + STOP_GRACE_S
    number = signal.SIGTERM
    while children:
        for pid in children:
            os.kill(pid, number)  # it is ours, and not waited for yet
        time.sleep(0.1)
        children = {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0}
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL


def _fork(work: Callable[[int], None]) -> int:
    """`work` is told its parent's pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        die_with_parent(parent)
        work(parent)
        status = 0
    except Exception:
        log.exception("the listener ends")
    finally:
        logging.shutdown()
        os._exit(status)


def settle(settings: Settings) -> None:
    """The clock, and beside it the housekeeping, the canary and the line of the shadow model."""
    from node import canary, housekeeping, shadowing
    from node.broker import Doorbell
    from node.counting import Counting
    from node.leadership import Candidate
    from node.settle import Clock, run
    from node.store.leaders import CLOCK, HOUSEKEEPING

    records = open_records(settings)
    housekeeper = housekeeping.Housekeeper(settings, records, spool_of(settings))
    bird = canary.Canary(settings, records, spool_of(settings))
    candidate = Candidate(records, (CLOCK, HOUSEKEEPING))
    with stopping() as stop, _standing(records, "settle", candidate):
        beside = [
            threading.Thread(
                target=housekeeping.run,
                args=(housekeeper, stop, partial(candidate.leads, HOUSEKEEPING)),
                name="housekeeping",
                daemon=True,
            ),
            threading.Thread(target=canary.run, args=(bird, stop), name="canary", daemon=True),
        ]
        if settings.shadow.pipeline:
            line = shadowing.Shadowing(settings, records, Doorbell(settings))

            def leads() -> bool:  # `candidate.leads` would hide a clock that hangs
                return CLOCK in candidate.leading()

            args = (line, stop, leads)
            beside.append(threading.Thread(target=shadowing.run, args=args, name="shadow", daemon=True))
        counting = Counting(settings)
        if counting.has_archives:
            beside.append(threading.Thread(target=counting.run, args=(stop,), name="counting", daemon=True))
        for thread in beside:
            thread.start()
        counts = counting if counting.has_archives else None
        clock = Clock(settings, records, Doorbell(settings), counts=counts)
        run(clock, stop, partial(candidate.leads, CLOCK))
        for thread in beside:
            thread.join(timeout=1.5)
    records.close()


def deliver(settings: Settings) -> None:
    """Builds the objects and sends them."""
    from node.compose import Composer, run
    from node.deliver import start_couriers
    from node.leadership import Candidate
    from node.nudge import Nudge
    from node.store.leaders import COMPOSE, of_destination

    records, spool, nudge = open_records(settings), spool_of(settings), Nudge()
    composer = Composer(settings, records, spool, stored=nudge.give)
    of_name = {of_destination(d.name): d.name for d in settings.destination}

    def took(name: str, before: str) -> None:
        if name in of_name and (count := records.leaders.release_leases(of_name[name], before)):
            log.warning("the %d deliveries that %s had taken are due again", count, before)

    candidate = Candidate(records, (COMPOSE, *of_name), took=took)
    with stopping() as stop, _standing(records, "deliver", candidate):
        couriers = start_couriers(settings, records, spool, stop, candidate.leads, nudge)
        _start_reconciling(settings, records, spool, stop)
        couriers += _start_forwarder(settings, records, stop)
        couriers += _start_uploading(settings, records, spool, stop)
        run(composer, stop, partial(candidate.leads, COMPOSE))
        for courier in couriers:
            courier.join(timeout=3)
    records.close()


def _start_forwarder(
    settings: Settings, records: Records, stop: Callable[[float], bool]
) -> list[threading.Thread]:
    """A thread that sends audit messages, where the settings name a repository."""
    if not settings.audit.host:
        return []
    from node.audit import forward

    forwarder = forward.Forwarder(settings, records)
    thread = threading.Thread(target=forward.run, args=(forwarder, stop), name="audit", daemon=True)
    thread.start()
    return [thread]


def _start_reconciling(
    settings: Settings, records: Records, spool: Spool, stop: Callable[[float], bool]
) -> None:
    """Beside the deliveries, where there is an archive. Of several processes one takes each piece of work."""
    if settings.archive:
        from node.reconcile import Reconciler, run

        threading.Thread(
            target=run, args=(Reconciler(settings, records, spool), stop), name="reconcile", daemon=True
        ).start()


def _start_uploading(
    settings: Settings, records: Records, spool: Spool, stop: Callable[[float], bool]
) -> list[threading.Thread]:
    """What this process fetches from archives goes into the bucket, where there are both."""
    if not settings.spool.s3.wanted or not settings.archive:
        return []
    from node import upload

    args = (settings, records, spool, stop)
    thread = threading.Thread(target=upload.serve, args=args, name="upload", daemon=True)
    thread.start()
    return [thread]


def announce(settings: Settings) -> None:
    """Tells channels of results. Raises SettingsError where there is no channel, or one cannot be used."""
    from node.announce import start_heralds

    if not settings.alert:
        raise SettingsError("there is no channel to announce to: add an [[alert]] to the settings")
    records = open_records(settings)
    with stopping() as stop, beating(records, "announce"):
        heralds = start_heralds(settings, records, stop)
        while not stop(LOOK_S):
            pass
        deadline = time.monotonic() + 3  # for all of them: one that waits for an answer holds up nobody
        for herald in heralds:
            herald.join(timeout=max(deadline - time.monotonic(), 0))
    records.close()


def orders(settings: Settings) -> None:
    """The order desk: asks the worklist how urgent studies are, takes HL7 orders, serves workitems."""
    from node.leadership import Candidate
    from node.orders import desk
    from node.store.leaders import ORDERS

    records = open_records(settings)
    candidate = Candidate(records, (ORDERS,))
    standing = _standing(records, "orders", candidate)
    leads = partial(candidate.leads, ORDERS)
    with stopping() as stop, standing, serving_workitems(settings, records, leads):
        desk.run(settings, records, stop, leads)
    records.close()


@contextlib.contextmanager
def serving_workitems(settings: Settings, records: Records, leads: Callable[[], bool]) -> Iterator[None]:
    """UPS Pull and Watch while the block runs, where it has a port; who `leads` tells subscribers."""
    if not settings.ups.port:
        yield
        return
    from node.ups.events import start_reporters
    from node.ups.scp import UpsScp
    from node.ups.service import Service

    service, over = Service(settings, records), threading.Event()
    scp = UpsScp(settings, service)
    threads = start_reporters(settings, records, leads, over.wait)
    scp.start()
    making = threading.Thread(target=service.make_forever, args=(over.wait,), name="workitems", daemon=True)
    making.start()
    try:
        yield
    finally:
        over.set()
        scp.stop()
        for thread in (making, *threads):
            thread.join(timeout=1)


def worker(settings: Settings) -> None:
    """A Celery worker with one model in one process. Its module is named, never imported here."""
    _work(settings, "", worker_arguments(settings))


def shadow_worker(settings: Settings) -> None:
    """As `worker`, with the model that reads in silence. Raises SettingsError where there is none."""
    from node.broker import SHADOW_MODULE, SHADOW_QUEUE
    from node.yielding import yield_to_others

    if not settings.shadow.pipeline:
        raise SettingsError("no model reads in the shadow: name one in [shadow] pipeline")
    yield_to_others(settings.shadow.nice)
    _work(settings, SHADOW_MODULE, _arguments(settings, SHADOW_QUEUE))


def _work(settings: Settings, module: str, arguments: list[str]) -> None:
    from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

    from node.broker import make_app

    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel("WARNING")
    warnings.filterwarnings("ignore", category=SecurityWarning)  # it takes no pickles, so root is no worse
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    make_app(settings, module).worker_main(arguments)


def worker_arguments(settings: Settings) -> list[str]:
    """Celery's command line: one job at a time, and the queues in their order."""
    from node.broker import AHEAD_QUEUE, QUEUES, STAT_QUEUE

    ahead = (AHEAD_QUEUE,) if settings.ahead.head_start else ()
    queues = STAT_QUEUE if settings.orders.only_stat else ",".join((*QUEUES, *ahead))
    return _arguments(settings, queues)


def _arguments(settings: Settings, queues: str) -> list[str]:
    from node.broker import node_name

    arguments = ["--quiet", "worker", "--pool=solo", "--concurrency=1", f"--queues={queues}"]
    silence = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    name = f"--hostname={node_name(process_name())}"
    return [*arguments, *silence, name, f"--loglevel={settings.log_level}"]


def web(settings: Settings) -> None:
    """The pages. Raises SettingsError where they cannot be served."""
    import uvicorn

    from node import scp
    from node.admin.reach import check_reachable
    from node.admin.web.app import make_app

    records = open_records(settings)
    check_reachable(settings, records)
    scp.open_socket(settings.web, "web").close()  # uvicorn names no setting, and ends the process
    tls = settings.web.tls
    config = uvicorn.Config(
        make_app(settings, records),
        host=settings.web.host,
        port=settings.web.port,
        log_level="warning",
        timeout_graceful_shutdown=2,
        proxy_headers=False,  # who may speak for others is a setting of the node's own
        server_header=False,
        ssl_certfile=tls.cert or None,
        ssl_keyfile=tls.key or None,
    )
    server = uvicorn.Server(config)
    # it raises the signal that ended it once more, and sees one that came before it listened for any
    with _heard_by(server.handle_exit), beating(records, "web"):
        server.run()
    records.close()


ROLES: dict[str, Callable[[Settings], None]] = {
    "listen": listen,
    "settle": settle,
    "worker": worker,
    "deliver": deliver,
    "announce": announce,
    "web": web,
    "orders": orders,
    "shadow-worker": shadow_worker,
}


def start(role: str, settings: Settings) -> None:
    """Run a role until it is told to stop. Raises SettingsError when data_dir cannot be used."""
    prepare(settings)
    logging.basicConfig(level=settings.log_level, format=FORMAT.format(role=role), stream=sys.stderr)
    for noisy in ("pynetdicom", "pydicom", "alembic", "highdicom"):
        logging.getLogger(noisy).setLevel("ERROR")
    ROLES[role](settings)


def prepare(settings: Settings) -> None:
    """Make data_dir, which holds names of patients. Raises SettingsError when that cannot be done."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        (settings.data_dir / "spool").mkdir(exist_ok=True, mode=0o750)
    except OSError as error:
        text = f"data_dir {settings.data_dir}: {error.strerror}; choose a folder you own"
        raise SettingsError(text) from error


def die_with_parent(parent: int) -> None:
    """In a child of that process, first of all: end when it ends, however and whenever that happens.

    Linux alone; elsewhere an orphan goes on. A parent that was gone before it was asked about sends no
    signal, and one that is heard before an `exec` by a handler of the parent's is forgotten by it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def ending_with_this() -> Callable[[], None]:
    """For `preexec_fn`: the child ends with this process."""
    return partial(die_with_parent, os.getpid())


class _Asked:
    """Whether this process was asked to stop. A pipe, written to once and never read, wakes all threads.

    No lock is involved: a handler runs in the midst of the main thread, and would wait for ever for a lock
    that this very thread holds, as Event.set does when the signal comes while Event.wait takes its lock.
    """

    def __init__(self) -> None:
        self._asked = False
        self._readable, self._writable = os.pipe()  # as long as the process lives: threads may still wait

    def set(self) -> None:
        if not self._asked:
            self._asked = True
            os.write(self._writable, b"!")

    def wait(self, seconds: float) -> bool:
        """True at once when asked, else after `seconds` at most."""
        if not self._asked:
            poll = select.poll()
            poll.register(self._readable, select.POLLIN)
            poll.poll(max(0, math.ceil(seconds * 1000)))
        return self._asked


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[float], bool]]:
    """`stop(seconds)` waits that long at most and tells whether SIGTERM or SIGINT has come."""
    asked = _Asked()

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.set()

    with _heard_by(on_signal):
        yield asked.wait


@contextlib.contextmanager
def _heard_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGTERM and SIGINT go to `handler` while the block runs."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextlib.contextmanager
def _standing(records: Records, role: str, candidate: Candidate) -> Iterator[None]:
    """A heartbeat that says what this process leads, while it stands for it."""
    with candidate.standing(), beating(records, role, lambda: {"leads": candidate.leading()}):
        yield


@contextlib.contextmanager
def beating(records: Records, role: str, detail: Callable[[], Mapping[str, Any]] = dict) -> Iterator[None]:
    """A heartbeat row while the block runs. One that breaks leaves a row until its successor starts here."""
    name = f"{role}@{process_name()}"
    place = name.partition(":")[0]  # the same for each that breaks on this host, however often
    over = threading.Event()
    broke = True

    def beat() -> None:
        while True:
            try:
                records.views.beat(name, role, detail(), time.time())
            except TransientError as error:
                log.warning("heartbeat: %s", error)
            except Exception:
                log.exception("heartbeat broke; it goes on")
            if over.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    _tell(records, "start", name)
    try:
        with contextlib.suppress(TransientError):
            records.views.part(place)
        yield
        broke = False
    finally:
        over.set()
        thread.join(timeout=2)
        _tell(records, "stop", name)
        with contextlib.suppress(TransientError):
            records.views.part(name)
            if broke:
                records.views.beat(place, role, {BROKE: True}, time.time())


def _tell(records: Records, action: str, process: str) -> None:
    """Application Activity, for the audit repository (PS3.15 A.5.3.1)."""
    try:
        records.audit_queue.write(Event(action, time.time(), process))
    except TransientError as error:
        log.warning("the audit repository will not hear of the %s of %s: %s", action, process, error)
