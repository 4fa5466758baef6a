"""The spool: whole and durable before a name appears, never outside its root, never over its reserve."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import node.spool
from node.liveness import process_name
from node.spool import PART, Spool, SpoolFull, safe_name

HOSTILE = [
    "../../etc/passwd",
    "..",
    ".",
    "",
    "/etc/passwd",
    "1.2/../../..",
    "1.2\0.3",
    "1.2\n",
    "\n1.2",
    "9" * 300,
    "1" + "." * 64,
    ".1.2",
    "~root",
    "1.2.840 ",
    "con",
    "1.2\\..\\..",
    "é.1",
    "１.２",
    "\udcff\udc80",
]


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.1", "2.25.1", "1", "0", "9" * 64])
def test_a_lawful_uid_is_its_own_name(uid: str) -> None:
    assert safe_name(uid) == uid


@pytest.mark.parametrize("uid", HOSTILE)
def test_a_hostile_uid_becomes_one_harmless_name(uid: str) -> None:
    name = safe_name(uid)
    assert name.isalnum() and name.isascii() and 1 <= len(name) <= 64


def test_different_uids_have_different_names() -> None:
    assert len({safe_name(uid) for uid in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("uid", HOSTILE)
def test_hostile_uids_never_leave_the_root(uid: str, tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    spool = Spool(root)
    for path in (spool.instance_path(uid, uid, uid), spool.object_path(1, uid)):
        spool.write(path, (b"x",))
        assert spool.absolute(path).resolve().is_relative_to(root)
        assert spool.absolute(path).read_bytes() == b"x"
    assert files_below(tmp_path) == files_below(root)
    assert len(files_below(root)) == 2


def test_attempts_at_a_job_never_share_a_file() -> None:
    spool = Spool(Path("/nowhere"))
    assert spool.job_path(1, 1, "maps.npz") != spool.job_path(1, 2, "maps.npz")


def test_parts_are_joined_and_readable_by_owner_and_group_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("a/b/c.dcm", (b"head", memoryview(b"body"), b"", b"tail"))
    assert (tmp_path / "a/b/c.dcm").read_bytes() == b"headbodytail"
    assert stat.S_IMODE((tmp_path / "a/b/c.dcm").stat().st_mode) & 0o007 == 0
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) & 0o007 == 0


def test_a_file_without_content_is_written(tmp_path: Path) -> None:
    Spool(tmp_path).write("a/empty", ())
    assert (tmp_path / "a/empty").read_bytes() == b""


def test_more_parts_than_one_call_takes_are_written(tmp_path: Path) -> None:
    parts = [bytes([n % 256]) for n in range(3000)]  # IOV_MAX is 1024
    Spool(tmp_path).write("a/many", parts)
    assert (tmp_path / "a/many").read_bytes() == b"".join(parts)


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("a/f", (b"a long first content",))
    with (tmp_path / "a/f").open("rb") as reader:
        spool.write("a/f", (b"second",))
        assert reader.read() == b"a long first content"
    assert (tmp_path / "a/f").read_bytes() == b"second"
    assert files_below(tmp_path) == [tmp_path / "a/f"]


class Calls:
    """What was asked of the kernel, in order, with descriptors turned back into paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, Path]] = []
        for name in ("writev", "fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._descriptor_call(name, getattr(os, name)))
        monkeypatch.setattr(os, "rename", self._rename(os.rename))
        monkeypatch.setattr(Path, "mkdir", self._mkdir(Path.mkdir))

    def _descriptor_call(self, name: str, real: Any) -> Any:
        def call(descriptor: int, *args: Any) -> Any:
            self.log.append((name, Path(f"/proc/self/fd/{descriptor}").readlink()))
            return real(descriptor, *args)

        return call

    def _rename(self, real: Any) -> Any:
        def call(file: Any, final: Any) -> None:
            self.log.append(("rename", Path(final)))
            real(file, final)

        return call

    def _mkdir(self, real: Any) -> Any:
        def call(path: Path, **options: Any) -> None:
            self.log.append(("mkdir", path))
            real(path, **options)

        return call


def test_bytes_are_synced_before_the_name_appears_and_the_name_before_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    Spool(tmp_path).write("a/b/c.dcm", (b"x" * 100,))
    final = tmp_path / "a/b/c.dcm"
    kinds = [(name, path if path.suffix != PART else Path("part")) for name, path in calls.log]
    assert kinds == [
        ("mkdir", tmp_path / "a"),
        ("fsync", tmp_path),
        ("mkdir", tmp_path / "a/b"),
        ("fsync", tmp_path / "a"),
        ("writev", Path("part")),
        ("fdatasync", Path("part")),
        ("rename", final),
        ("fsync", tmp_path / "a/b"),
    ]


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several, one = os.writev, os.write
    sizes = iter([1, 4, 3, 7, 2] + [5] * 100)
    monkeypatch.setattr(os, "writev", lambda file, parts: several(file, [b"".join(parts)[: next(sizes)]]))
    monkeypatch.setattr(os, "write", lambda file, part: one(file, part[: next(sizes)]))
    Spool(tmp_path).write("a/f", (b"12345", memoryview(b"abcdefgh"), b"", b"XYZ" * 10))
    assert (tmp_path / "a/f").read_bytes() == b"12345abcdefgh" + b"XYZ" * 10


def test_a_view_of_wider_items_is_written_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, views: real(descriptor, [bytes(views[0])[:3]]))
    wide = memoryview(bytes(range(16))).cast("H")
    Spool(tmp_path).write("a/f", (wide,))
    assert (tmp_path / "a/f").read_bytes() == bytes(range(16))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["writev", "fdatasync", "fsync", "open"])
def test_a_full_disk_is_spool_full_and_leaves_nothing(
    call: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.write("a/there", (b"x",))

    def fail(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(SpoolFull):
        spool.write("a/new", (b"y",))
    monkeypatch.undo()
    assert [path for path in files_below(tmp_path) if path.suffix == PART] == []
    if call != "fsync":  # there the name exists already; the sender is told to try again all the same
        assert files_below(tmp_path) == [tmp_path / "a/there"]


def test_a_full_disk_at_the_making_of_a_folder_is_spool_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SpoolFull):
        Spool(tmp_path).write("new/f", (b"x",))


def test_another_error_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        Spool(tmp_path).write("a/f", (b"x",))
    assert not isinstance(caught.value, SpoolFull)
    assert files_below(tmp_path) == []


def test_an_old_file_stays_when_its_replacement_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.write("a/f", (b"old",))

    def fail(descriptor: int, views: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", fail)
    with pytest.raises(SpoolFull):
        spool.write("a/f", (b"new",))
    assert (tmp_path / "a/f").read_bytes() == b"old"


def test_the_reserve_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.spool._free_bytes", lambda volume: 1000)
    spool = Spool(tmp_path, reserve_bytes=900)
    spool.check_room(100)
    with pytest.raises(SpoolFull, match=r"spool\.reserve_mb"):
        spool.check_room(101)
    Spool(tmp_path).check_room(1000)
    with pytest.raises(SpoolFull):
        Spool(tmp_path).check_room(1001)


def test_free_space_is_that_of_the_volume_of_the_spool(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert abs(Spool(tmp_path).free_bytes() - status.f_bavail * status.f_frsize) < 2**30


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from node.spool import Spool
os.fdatasync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Spool(Path(sys.argv[1])).write("incoming/1/2/3.dcm", (b"x" * 1000,))
"""


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.write("incoming/1/2/4.dcm", (b"whole",))
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert len(files_below(tmp_path)) == 2
    assert spool.remove_unfinished() == 1
    assert files_below(tmp_path) == [tmp_path / "incoming/1/2/4.dcm"]
    assert spool.remove_unfinished() == 0


def test_what_another_process_is_writing_just_now_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that starts must not take away a file under the hands of a worker, here or elsewhere."""
    spool, real = Spool(tmp_path), os.fdatasync
    removed: list[int] = []

    def meanwhile(descriptor: int) -> None:
        removed.append(Spool(tmp_path).remove_unfinished())
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", meanwhile)
    spool.write("results/1/1/maps.npz", (b"x",))
    monkeypatch.setattr(node.spool, "process_name", lambda: "another-host:7")
    spool.write("results/1/2/maps.npz", (b"x",))
    assert removed == [0, 0]
    assert len(files_below(tmp_path)) == 2


def test_what_nobody_touched_for_a_day_is_removed_whoever_wrote_it(tmp_path: Path) -> None:
    folder = tmp_path / "incoming" / "1"
    folder.mkdir(parents=True)
    strangers = folder / f".another-host:7!ab{PART}"
    mine = folder / f".{process_name()}!ab{PART}"
    for part in (strangers, mine):
        part.write_bytes(b"x")
    assert Spool(tmp_path).remove_unfinished() == 0
    for part in (strangers, mine):
        os.utime(part, (0, 0))
    assert Spool(tmp_path).remove_unfinished() == 2


def test_a_lawful_file_that_ends_like_an_unfinished_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "report.part").write_bytes(b"x")
    os.utime(tmp_path / "incoming" / "report.part", (0, 0))
    assert Spool(tmp_path).remove_unfinished() == 0
