"""The broker behind Redis Sentinel: real servers; the master is killed, and the doorbell rings on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from node.broker import QUEUE, Doorbell, make_app, ping, shown_url
from node.domain.errors import SettingsError, TransientError
from node.settings import Broker, Settings, load
from tests.peers import eventually, requires
from tests.ports import free_port

NAME = "ichnode-redis"


class Watched:
    """A master, a replica and a Sentinel that needs nobody else's word."""

    def __init__(self, folder: Path) -> None:
        requires("redis-server")
        self.ports = [free_port() for _ in range(3)]
        master, replica, sentinel = self.ports
        self.processes = [
            _redis(folder / "master", "--port", master),
            _redis(folder / "replica", "--port", replica, "--replicaof", "127.0.0.1", master),
        ]
        eventually(lambda: _role(replica) == "slave" and _linked(replica))
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {sentinel}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {master} 1\n"
            f"sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 2000\n"
        )
        self.processes.append(_redis(folder / "sentinel", settings, "--sentinel"))
        self.url = f"sentinel://127.0.0.1:{free_port()};sentinel://127.0.0.1:{sentinel}/0"
        """The first Sentinel named is away: the next one is asked."""
        watch = redis.Redis(port=sentinel)
        eventually(lambda: _answers(watch) and watch.sentinel_slaves(NAME))
        watch.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _redis(folder: Path, *options: object) -> subprocess.Popen[bytes]:
    folder.mkdir()
    quiet = [] if "--sentinel" in options else ["--save", "", "--repl-diskless-sync-delay", "0"]
    command = ["redis-server", *map(str, options), *quiet, "--dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def _role(port: int) -> str:
    client = redis.Redis(port=port)
    try:
        return str(client.info("replication")["role"])
    except redis.RedisError:
        return ""
    finally:
        client.close()


def _linked(port: int) -> bool:
    client = redis.Redis(port=port)
    try:
        return client.info("replication").get("master_link_status") == "up"
    finally:
        client.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    servers = Watched(tmp_path)
    yield servers
    servers.close()


def settings_for(url: str) -> Settings:
    return Settings(broker=Broker(url=url, master_name=NAME))


def rings(bell: Doorbell) -> bool:
    try:
        bell.ring(1)
    except TransientError:
        return False
    return True


def test_the_doorbell_rings_at_whichever_redis_is_master(watched: Watched) -> None:
    settings = settings_for(watched.url)
    ping(settings)
    bell = Doorbell(settings)
    bell.ring(1)
    assert sum(bell.waiting().values()) == 1
    watched.processes[0].kill()
    watched.processes[0].wait()
    eventually(lambda: _role(watched.ports[1]) == "master", 30)
    eventually(lambda: rings(bell), 30)
    assert eventually(lambda: sum(bell.waiting().values()) >= 1, 30)
    ping(settings)
    with make_app(settings).connection_for_read() as connection:  # what a worker listens on
        heard = connection.SimpleQueue(QUEUE).get(timeout=20)
        assert heard.headers["task"] == "ichnode.analyse"
        heard.ack()


def test_a_master_that_nobody_knows_is_a_transient_error(watched: Watched) -> None:
    wrong = Settings(broker=Broker(url=watched.url, master_name="nobody"))
    with pytest.raises(TransientError, match="nobody"):
        ping(wrong)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The URL of a master that lets in one user, whose password is no plain word."""
    requires("redis-server")
    master, sentinel = free_port(), free_port()
    users = ("--user", "node", "on", ">p@ss/1", "~*", "&*", "+@all", "--user", "default", "off")
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {sentinel}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor {NAME} 127.0.0.1 {master} 1\n"
        f"sentinel auth-user {NAME} node\nsentinel auth-pass {NAME} p@ss/1\n"
    )
    processes = [
        _redis(tmp_path / "master", "--port", master, *users),
        _redis(tmp_path / "sentinel", settings, "--sentinel"),
    ]
    watch = redis.Redis(port=sentinel)
    eventually(lambda: _answers(watch) and watch.sentinel_master(NAME)["flags"] == "master")
    watch.close()
    yield f"sentinel://node:p%40ss%2F1@127.0.0.1:{sentinel}/0"
    for process in processes:
        process.kill()
        process.wait()


def test_a_user_with_a_password_is_let_in_whatever_asks(guarded: str) -> None:
    settings = settings_for(guarded)
    bell = Doorbell(settings)
    bell.ring(1)
    ping(settings)
    assert sum(bell.waiting().values()) == 1


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ('url = "sentinel://h:26379"', "master_name go together"),
        ('url = "redis://h", master_name = "m"', "master_name go together"),
        ('url = "amqp://h"', "write redis://"),
        ('url = "redis://a;redis://b"', "only sentinel://"),
        ('url = "sentinel://a;redis://b", master_name = "m"', "write redis://"),
    ],
)
def test_settings_that_cannot_work_are_refused(broker: str, words: str, no_settings_around: Path) -> None:
    (no_settings_around / "ichnode.toml").write_text(f"broker = {{ {broker} }}\n")
    with pytest.raises(SettingsError, match=words):
        load()


def test_a_password_is_not_shown() -> None:
    settings = Settings(broker=Broker(url="sentinel://:secret@a:1;sentinel://:secret@b:2/0", master_name="m"))
    assert shown_url(settings) == "sentinel://a:1;sentinel://b:2/0"
