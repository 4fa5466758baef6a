"""Takes HL7 orders by MLLP and acknowledges them once they are recorded. Sends nothing of its own accord.

AA: recorded, or nothing to record. AE: the database is away, send again. AR: no order that can be used.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

import hl7
from hl7.mllp import HL7StreamReader, HL7StreamWriter, InvalidBlockError, start_hl7_server

from node.certificates import server_tls
from node.domain.admission import is_inside, networks
from node.domain.errors import PermanentError, SettingsError, TransientError
from node.domain.orders import Source
from node.orders import messages
from node.settings import Hl7Orders
from node.store.records import Records

log = logging.getLogger(__name__)

ACCEPT, ERROR, REJECT = "AA", "AE", "AR"  # HL7 table 0008
LONGEST_MESSAGE = 2**20
MOST_CONNECTIONS = 32
UNFINISHED_S = 3600.0
"""Engines keep a connection open; one that says nothing for this long is closed."""
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Hl7Listener:
    """One MLLP port."""

    def __init__(self, settings: Hl7Orders, records: Records) -> None:
        self._settings = settings
        self._records = records
        self._networks = networks(settings.addresses or LOOPBACK)
        self._connections: set[asyncio.Task[Any]] = set()

    async def serve(self, stopping: Callable[[], bool]) -> None:
        """Until `stopping` says so. Raises SettingsError when the port cannot be had."""
        where = f"{self._settings.host}:{self._settings.port}"
        try:
            server = await start_hl7_server(
                self._connected,
                self._settings.host,
                self._settings.port,
                limit=LONGEST_MESSAGE,
                encoding="latin-1",
                ssl=self.tls_context(),
            )
        except (OSError, UnicodeError) as error:  # the latter of what cannot be the name of a host
            text = f"cannot listen on {where} (orders.hl7.host, port): {getattr(error, 'strerror', error)}"
            raise SettingsError(f"{text}; stop what uses the port, or choose another") from error
        log.info("HL7 orders are taken on %s", where)
        async with server:
            while not stopping():
                await asyncio.sleep(0.2)
            for task in self._connections:
                task.cancel()

    def tls_context(self) -> ssl.SSLContext | None:
        """None without a certificate. Raises SettingsError when the files cannot be used."""
        return server_tls(self._settings.tls, "orders.hl7.tls")

    async def _connected(self, reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("?",))[0])
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            if not self._may_connect(address):
                log.warning("an HL7 connection from %s is refused: not in orders.hl7.addresses", address)
            elif len(self._connections) > MOST_CONNECTIONS:
                log.warning("an HL7 connection from %s is refused: there are %d", address, MOST_CONNECTIONS)
            else:
                await self._talk(reader, writer, address)
        except (OSError, EOFError, InvalidBlockError, ValueError, TimeoutError) as error:
            log.warning("the HL7 connection from %s ends: %s", address, error or type(error).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _talk(self, reader: HL7StreamReader, writer: HL7StreamWriter, address: str) -> None:
        while True:
            try:
                block = await asyncio.wait_for(reader.readblock(), UNFINISHED_S)
            except asyncio.IncompleteReadError as error:
                if error.partial:
                    raise EOFError("in the middle of a message") from None
                return
            answer = await asyncio.to_thread(self.take, block, address)
            writer.writeblock(answer.encode("latin-1", "replace"))
            await writer.drain()

    def _may_connect(self, address: str) -> bool:
        return is_inside(address, self._networks)

    def take(self, block: bytes, address: str) -> str:
        """Record what a message says; the text of its acknowledgement."""
        try:
            message = messages.parse(block)
        except PermanentError as error:
            log.warning("what came from %s is rejected: %s", address, error)
            return _bare(REJECT, "", str(error))
        code, text = self._record(message, address)
        return acknowledgement(message, code, text)

    def _record(self, message: hl7.Message, address: str) -> tuple[str, str]:
        name, event = messages.kind(message)
        control_id = messages.component(message.segment("MSH"), 10)
        if (name, event) not in messages.TAKEN:
            log.warning("HL7 message %s from %s: %s^%s is not taken", control_id, address, name, event)
            return REJECT, f"message type {name}^{event} is not taken here"
        try:
            for order in messages.in_turn(messages.orders(message, self._settings.accession)):
                self._record_order(order, control_id)
        except PermanentError as error:
            log.warning("HL7 message %s from %s is rejected: %s", control_id, address, error)
            return REJECT, str(error)
        except TransientError as error:
            log.error("HL7 message %s from %s cannot be recorded: %s", control_id, address, error)
            return ERROR, "the database is away: send the message again"
        except Exception:  # without an answer the sender would send it for ever, and nothing behind it
            log.exception("HL7 message %s from %s cannot be recorded", control_id, address)
            return ERROR, "it cannot be recorded; see the log of the order desk"
        return ACCEPT, ""

    def _record_order(self, order: messages.Order, control_id: str) -> None:
        if order.cancelled:
            studies = self._records.orders.withdraw(Source.HL7, order.about)
            log.info("HL7 message %s: an order is cancelled; %d studies", control_id, len(studies))
            return
        if order.raw_priority and order.priority is None:
            log.warning("HL7 message %s: priority %r is taken as routine", control_id, order.raw_priority)
        word = messages.said(order, control_id, time.time())
        studies = self._records.orders.say(word, keeps_priority=not order.raw_priority)
        heard = word.priority.value if order.raw_priority else "no priority"
        log.info("HL7 message %s: %s; %d studies are here", control_id, heard, len(studies))


def acknowledgement(message: hl7.Message, code: str, text: str) -> str:
    """The ACK of a message, with the same version and processing id, and the reason in MSA-3."""
    try:
        ack = message.create_ack(code)
    except (LookupError, TypeError):  # its MSH does not tell all of that
        return _bare(code, messages.component(message.segment("MSH"), 10), text)
    if text:
        ack.segment("MSA").assign_field(_clean(text), 3)
    return str(ack).rstrip("\r") + "\r"


def _bare(code: str, control_id: str, text: str) -> str:
    """For what has no MSH that could be answered to, or half of one."""
    now = time.strftime("%Y%m%d%H%M%S", time.gmtime())
    msa = f"MSA|{code}|{_clean(control_id)}|{_clean(text)}".rstrip("|")
    return f"MSH|^~\\&|ICHNODE||||{now}||ACK|{now}|P|2.5\r{msa}\r"


def _clean(text: str) -> str:
    return text.translate({ord(c): " " for c in "|^~\\&\r\n"})
