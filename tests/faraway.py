"""A host of the tests' own with an address, in a network namespace, that can vanish without a word.

What it runs is a gate that hands connections on to a Unix socket: a server of this machine is reached by a
network that goes silent as that of a machine does that lost its power. Needs root and iproute2.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

from tests.peers import eventually, missing, requires

PORT = 5432
GATE = """
import asyncio, sys

async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

async def hand_on(reader, writer):
    far_reader, far_writer = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(hand_on, sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
_numbers = count()


class FarAway:
    """The address is of a network that no other process of the tests has."""

    def __init__(self, socket: Path) -> None:
        requires("ip")
        if os.getuid() != 0:
            missing("only root makes network namespaces")
        number = next(_numbers)
        self._name = f"ichnode-{os.getpid()}-{number}"
        self._link = f"ich{os.getpid()}-{number}"[:15]
        net = f"10.{213 + number % 40}.{os.getpid() // 64 % 256}.{os.getpid() % 64 * 4}".rpartition(".")
        self._near, self.address = (f"{net[0]}.{int(net[2]) + last}" for last in (1, 2))
        self._ip("netns", "add", self._name)
        self._ip("link", "add", self._link, "type", "veth", "peer", "name", "far", "netns", self._name)
        self._ip("address", "add", f"{self._near}/30", "dev", self._link)
        self._ip("link", "set", self._link, "up")
        self._inside("address", "add", f"{self.address}/30", "dev", "far")
        self._inside("link", "set", "far", "up")
        words = [sys.executable, "-c", GATE, str(socket), self.address, str(PORT)]
        command = ["ip", "netns", "exec", self._name, *words]
        self._gate = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._gate.stdout
        eventually(self._gate.stdout.readline)

    def vanish(self) -> None:
        """Nothing is answered any more, nor refused."""
        self._inside("route", "replace", "blackhole", f"{self._near}/32")

    def stop(self) -> None:
        self._gate.kill()
        self._gate.wait(timeout=20)
        self._ip("netns", "delete", self._name)

    def _inside(self, *words: str) -> None:
        self._ip("-n", self._name, *words)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            missing(f"ip {' '.join(words)}: {done.stderr.strip()}")
