"""Couriers against real peers, kind and unkind: what is sent, what waits, and that nothing is lost."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom.presentation import build_context
from sqlalchemy import update

from node import scu
from node.deliver import start_couriers
from node.domain.errors import TransientError
from node.scu import Parcel, Peer
from node.settings import Destination, Scp, Settings
from node.spool import Spool
from node.store.records import open_records
from node.store.tables import deliveries
from tests.delivering import FAILED, PENDING, SENT, T0, Pacs, Place, pacs_at
from tests.orthanc import plain_orthanc
from tests.peers import eventually
from tests.ports import free_port


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    records = open_records(Settings(data_dir=tmp_path))
    (tmp_path / "spool").mkdir()
    yield Place(records, Spool(tmp_path / "spool"))
    records.close()


@pytest.fixture(autouse=True)
def shortest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No chance in the waits: a try is due after the whole of its interval."""
    monkeypatch.setattr("random.random", lambda: 1.0)


class TestKindPeers:
    def test_everything_due_goes_over_one_association_in_order(self, place: Place) -> None:
        uids = place.compose("pacs", count=5)
        with Pacs() as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
            assert pacs.uids() == uids
            assert pacs.associations == 1
            for ds in pacs.kept:
                sent = place.made[str(ds.SOPInstanceUID)]
                assert ds.PixelData == sent.PixelData
                assert ds.PatientName == sent.PatientName
                assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert place.states() == [SENT] * 5
        assert {row.last_status for row in place.rows()} == {"0x0000"}

    def test_what_was_sent_is_never_sent_again(self, place: Place) -> None:
        place.compose("pacs")
        with Pacs() as pacs:
            courier = place.courier(pacs_at(pacs.port))
            for later in (0, 1e6):
                courier.round(lambda later=later: T0 + later)  # type: ignore[misc]
            assert len(pacs.kept) == 3

    def test_orthanc_takes_everything(self, place: Place, tmp_path: Path) -> None:
        uids = place.compose("pacs")
        orthanc = plain_orthanc(tmp_path / "pacs")
        try:
            peer = Destination(name="pacs", ae_title="ORTHANC", port=orthanc.port)
            Peer(peer, "ICHNODE").echo()
            assert place.courier(peer).round(lambda: T0)
            held = {i["MainDicomTags"]["SOPInstanceUID"] for i in orthanc.get("/instances?expand")}
        finally:
            orthanc.close()
        assert held == set(uids)
        assert place.states() == [SENT] * 3

    def test_a_peer_that_reads_implicit_vr_alone_gets_that(self, place: Place) -> None:
        uids = place.compose("pacs")
        with Pacs(syntaxes=(ImplicitVRLittleEndian,)) as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
            assert pacs.uids() == uids
            assert {ds.file_meta.TransferSyntaxUID for ds in pacs.kept} == {ImplicitVRLittleEndian}
            assert pacs.kept[0].PixelData == place.made[uids[0]].PixelData
        assert place.states() == [SENT] * 3

    def test_a_warning_counts_as_sent_and_is_kept(self, place: Place) -> None:
        place.compose("pacs", count=1)
        with Pacs(answers=lambda number: 0xB000) as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
        (row,) = place.rows()
        assert (row.state, row.last_status) == (SENT, "0xB000")

    @pytest.mark.parametrize("sender", ["streaming", "pynetdicom"])
    def test_what_the_peer_holds_already_counts_as_sent(self, sender: str, place: Place) -> None:
        """The association broke after it was stored; at the next try the archive says Duplicate."""
        place.compose("pacs", count=1, urgent=True)
        with Pacs(answers=lambda number: "cut" if number == 1 else 0x0111) as pacs:
            courier = place.courier(pacs_at(pacs.port, sender=sender))
            courier.round(lambda: T0)
            assert place.states() == [PENDING]
            assert courier.round(lambda: T0 + 60)
        (row,) = place.rows()
        assert (row.state, row.last_status) == (SENT, "0x0111")

    def test_an_echo_is_answered(self) -> None:
        with Pacs() as pacs:
            Peer(pacs_at(pacs.port), "ICHNODE").echo()


class TestUnkindPeers:
    def waits(self, place: Place, until: float) -> None:
        assert set(place.states()) == {PENDING}
        assert {row.next_try_at for row in place.rows()} == {until}
        assert {row.attempts for row in place.rows()} == {1}
        assert all(row.lease_until is None for row in place.rows())

    def test_nobody_there(self, place: Place) -> None:
        place.compose("pacs")
        courier = place.courier(pacs_at(free_port()))
        assert not courier.round(lambda: T0)
        self.waits(place, T0 + 5)
        assert "cannot be reached" in place.rows()[0].last_error

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".example"])
    def test_a_name_that_leads_nowhere(self, host: str, place: Place) -> None:
        place.compose("pacs")
        assert not place.courier(pacs_at(104, host=host)).round(lambda: T0)
        self.waits(place, T0 + 5)

    def test_somebody_else_there_who_says_nothing(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", 1)
        place.compose("pacs")
        with socket.create_server(("127.0.0.1", 0)) as mute:
            assert not place.courier(pacs_at(mute.getsockname()[1])).round(lambda: T0)
        self.waits(place, T0 + 5)

    def test_a_refusal_of_the_association_says_which_ae_title_to_allow(self, place: Place) -> None:
        place.compose("pacs")
        with Pacs(calling=["SOMEBODY"]) as pacs:
            assert not place.courier(pacs_at(pacs.port)).round(lambda: T0)
        self.waits(place, T0 + 5)
        assert "must know AE title ICHNODE" in place.rows()[0].last_error

    @pytest.mark.parametrize("how", ["abort", "cut"])
    def test_an_object_at_which_it_breaks_off_holds_up_no_other(self, how: str, place: Place) -> None:
        uids = place.compose("pacs")
        with Pacs(answers=lambda number: how if number == 2 else 0x0000) as pacs:
            courier = place.courier(pacs_at(pacs.port))
            assert courier.round(lambda: T0)
            assert place.states() == [SENT, PENDING, SENT]
            assert [row.attempts for row in place.rows()] == [1, 1, 1]
            assert courier.round(lambda: T0 + 4.9)
            assert place.states() == [SENT, PENDING, SENT]
            assert courier.round(lambda: T0 + 5)
            assert place.states() == [SENT] * 3
            assert pacs.uids() == [uids[0], uids[2], uids[1]]

    @pytest.mark.parametrize("how", ["abort", "cut"])
    def test_a_peer_that_breaks_off_twice_is_left_alone_for_now(self, how: str, place: Place) -> None:
        uids = place.compose("pacs", count=4)
        with Pacs(answers=lambda number: how if number in (2, 3) else 0x0000) as pacs:
            courier = place.courier(pacs_at(pacs.port))
            assert not courier.round(lambda: T0)
            assert place.states() == [SENT, PENDING, PENDING, PENDING]
            assert [row.attempts for row in place.rows()] == [1, 1, 1, 0]
            assert all(row.lease_until is None for row in place.rows())
            assert courier.round(lambda: T0 + 5)
            assert place.states() == [SENT] * 4
            assert pacs.uids() == [uids[0], uids[3], uids[1], uids[2]]

    def test_a_peer_that_never_answers_a_store(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scu, "RESPONSE_TIMEOUT_S", 1)
        released = threading.Event()
        place.compose("pacs")

        def hang(number: int) -> int:
            released.wait(10)
            return 0xA700

        with Pacs(answers=hang) as pacs:
            began = time.monotonic()
            assert not place.courier(pacs_at(pacs.port)).round(lambda: T0)
            assert time.monotonic() - began < 8
            released.set()
        assert set(place.states()) == {PENDING}
        assert [row.attempts for row in place.rows()] == [1, 1, 0]
        assert {row.next_try_at for row in place.rows()} == {T0 + 5}

    def test_one_object_that_is_refused_does_not_hold_up_the_rest(self, place: Place) -> None:
        uids = place.compose("pacs")
        with Pacs(answers=lambda number: 0xA700 if number == 1 else 0x0000) as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
            assert pacs.uids() == uids[1:]
        assert place.states() == [PENDING, SENT, SENT]
        refused = place.rows()[0]
        assert (refused.last_status, refused.next_try_at, refused.attempts) == ("0xA700", T0 + 5, 1)

    def test_each_refusal_doubles_the_wait_up_to_the_maximum(self, place: Place) -> None:
        place.compose("pacs", count=1)
        waits, now = [], T0
        with Pacs(answers=lambda number: 0xA700) as pacs:
            courier = place.courier(pacs_at(pacs.port))
            for _ in range(6):
                courier.round(lambda now=now: now)  # type: ignore[misc]
                (row,) = place.rows()
                waits.append(row.next_try_at - now)
                now = row.next_try_at
        assert waits == [5, 10, 20, 40, 60, 60]

    def test_a_sop_class_it_does_not_take_waits_and_the_others_go(self, place: Place) -> None:
        place.compose("pacs", mixed=True)
        with Pacs(classes=(CTImageStorage,)) as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
        assert place.states() == [SENT, PENDING, SENT]
        assert f"does not accept SOP class {SecondaryCaptureImageStorage}" in place.rows()[1].last_error

    @pytest.mark.parametrize("sender", ["streaming", "pynetdicom"])
    def test_a_peer_that_takes_none_of_our_sop_classes_says_so_and_is_not_away(
        self, sender: str, place: Place
    ) -> None:
        place.compose("pacs")
        with Pacs(classes=(ComprehensiveSRStorage,)) as pacs:
            assert place.courier(pacs_at(pacs.port, sender=sender)).round(lambda: T0)
        self.waits(place, T0 + 5)
        assert "SOP class" in place.rows()[0].last_error

    def test_a_file_that_is_gone_or_broken_does_not_hold_up_the_rest(self, place: Place) -> None:
        place.compose("pacs", count=4)
        first, second = [
            place.spool.absolute(f"outgoing/1/{r.sop_instance_uid}.dcm") for r in place.rows()[:2]
        ]
        first.unlink()
        second.write_bytes(b"rot")
        with Pacs() as pacs:
            assert place.courier(pacs_at(pacs.port)).round(lambda: T0)
        assert place.states() == [PENDING, PENDING, SENT, SENT]
        assert "cannot be read" in place.rows()[0].last_error

    @pytest.mark.parametrize("changes", [{"operations": 3}, {"sender": "pynetdicom"}])
    def test_an_image_that_cannot_be_decompressed_does_not_hold_up_the_rest(
        self, changes: dict[str, Any], place: Place
    ) -> None:
        place.compose("pacs")
        place.spoil(2)
        with Pacs() as pacs:
            assert place.courier(pacs_at(pacs.port, **changes)).round(lambda: T0)
        assert place.states() == [SENT, SENT, PENDING]
        assert "cannot be read" in place.rows()[2].last_error

    def test_a_negative_is_given_up_in_the_end_and_a_positive_never(self, place: Place) -> None:
        place.compose("pacs", count=1)
        place.compose("pacs", count=1, urgent=True)
        with Pacs(answers=lambda number: 0xA700) as pacs:
            courier = place.courier(pacs_at(pacs.port, give_up_h=1))
            courier.round(lambda: T0 + 3700)
            by_urgency = {row.urgent: row for row in place.rows()}
            assert (by_urgency[0].state, by_urgency[1].state) == (FAILED, PENDING)
            courier.round(lambda: T0 + 1e8)
            assert {row.urgent: row.state for row in place.rows()} == {0: FAILED, 1: PENDING}
            pacs.answers = lambda number: 0x0000
            place.records.deliveries.retry(by_urgency[0].id, T0 + 2e8)
            courier.round(lambda: T0 + 2e8)
        assert place.states() == [SENT, SENT]

    @pytest.mark.parametrize("calling", [["SOMEBODY"], None])
    def test_an_echo_that_fails_is_told(self, calling: list[str] | None) -> None:
        with Pacs(calling=calling or []) as pacs:
            port = pacs.port if calling else free_port()
            with pytest.raises(TransientError, match="destination pacs"):
                Peer(pacs_at(port), "ICHNODE").echo()


class TestPeer:
    def test_a_response_is_left_to_the_sender_that_waits_for_it(self) -> None:
        with Pacs() as pacs:
            assoc = Peer(pacs_at(pacs.port), "ICHNODE").associate([build_context(CTImageStorage)])
            scu.leave_responses(assoc)
            response: Any = object()
            assoc.dimse.msg_queue.put((1, response))
            assert assoc.dimse.get_msg(block=False) == (None, None)
            assert assoc.dimse.get_msg(block=True) == (1, response)
            assoc.release()

    def test_nothing_of_the_caller_is_touched_and_outcomes_come_one_by_one(self, place: Place) -> None:
        uids = place.compose("pacs")
        files = [place.spool.absolute(f"outgoing/1/{uid}.dcm") for uid in uids]
        before = [file.read_bytes() for file in files]
        with Pacs(syntaxes=(ImplicitVRLittleEndian,)) as pacs:
            parcels = [Parcel(n, file, str(dcmread(file).SOPClassUID)) for n, file in enumerate(files)]
            outcomes = Peer(pacs_at(pacs.port), "ICHNODE").send(parcels)
            assert next(outcomes).key == 0
            assert len(pacs.kept) == 1
            assert [outcome.key for outcome in outcomes] == [1, 2]
        assert [file.read_bytes() for file in files] == before


def test_a_dead_destination_delays_no_other(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, Pacs() as pacs:
        mute_port = mute.getsockname()[1]
        places = (pacs_at(mute_port, "dead"), pacs_at(pacs.port, "pacs"), pacs_at(free_port(), "absent"))
        uids = place.compose("dead", "pacs", "absent")
        with place.records.engine.begin() as connection:
            connection.execute(update(deliveries).values(next_try_at=0.0, created_at=time.time()))
        stop = threading.Event()
        settings = Settings(destination=places, scp=Scp(ae_title="ICHNODE"))
        threads = start_couriers(settings, place.records, place.spool, stop.wait)
        try:
            eventually(lambda: place.states("pacs") == [SENT] * 3, 15)
            assert pacs.uids() == uids
            assert set(place.states("dead")) == {PENDING}
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                mute.shutdown(socket.SHUT_RDWR)
            mute.close()
            for thread in threads:
                thread.join(15)
    assert len(threads) == 3
    eventually(lambda: set(place.states("absent")) == {PENDING})


class Restless:
    """An association whose own thread never says that it paused, as pynetdicom waits for it."""

    is_established, acse_timeout = True, 20.0
    _is_paused = False

    def release(self) -> None:
        while not self._is_paused:
            time.sleep(0.001)
        self.is_established = False


def test_an_association_whose_thread_does_not_pause_is_let_go_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scu, "PAUSES_WITHIN_S", 0.01)
    assoc = Restless()
    scu.let_go(assoc)  # type: ignore[arg-type]
    assert not assoc.is_established
