"""`ichnode backup`, `restore` and `upgrade`: what the node knows and holds, in a folder and out of it again.

The database is taken first, as it stood at one moment, and the files after it: a file that came meanwhile has
no record in the copy, and is adopted when the node starts on it. The node may go on while a backup is made.
Settings, keys, certificates and model weights are no part of it. A restore goes into an empty installation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path

from sqlalchemy import URL, inspect, make_url

from node import __version__
from node.admin.roles import prepare
from node.depot.volume import PART, SharedVolume, copied
from node.domain.errors import PermanentError, SettingsError, TransientError
from node.settings import Settings
from node.spool import INCOMING, OUTGOING, RESULTS, Spool, spool_of
from node.store.engine import SCHEMA_REVISION, migrate, open_engine, reading, schema_revision
from node.store.records import Records, open_records

MANIFEST, SQLITE, POSTGRES, FILES = "backup.json", "database.sqlite3", "database.pgdump", "spool"
BESIDE_SQLITE = ("-wal", "-journal", "-shm")
NOT_IN_IT = "settings, keys and certificates, model weights"


@dataclass(frozen=True)
class Backup:
    """What a finished backup holds; the manifest beside it."""

    version: str
    schema_revision: str
    database: str
    """`sqlite` or `postgresql`."""
    database_sha256: str
    made_at: float
    files: int
    size_bytes: int
    without: tuple[str, ...]
    """Folders of the spool that were left out on purpose."""
    missing: tuple[str, ...]
    """Files that a record names and that were gone when their turn came."""


def back_up(settings: Settings, folder: Path, images: bool = True) -> Backup:
    """Write a backup into a new or empty folder. Raises PermanentError when that cannot be done."""
    if folder.exists() and any(folder.iterdir()):
        raise PermanentError("BACKUP", f"{folder} is not empty; name a new folder for each backup")
    url = make_url(settings.database_url)
    revision = standing_at(settings)
    if revision is None:
        raise PermanentError("BACKUP", f"database {_shown(url)} is empty: there is nothing to back up")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = open_engine(settings.database_url)
    try:
        records = Records(engine)
        named = _named(records, images)
        if url.get_backend_name() == "sqlite":
            dump = _copy_sqlite(Path(url.database or ""), folder / SQLITE)
        else:
            dump = _dump_postgres(url, folder / POSTGRES)
        named |= _named(records, images)  # the copy is of a moment in between
    finally:
        engine.dispose()
    spool = spool_of(settings)
    size, taken = 0, set()
    for path in _finished(spool, (INCOMING, RESULTS, OUTGOING) if images else (RESULTS, OUTGOING)):
        export = partial(spool.depot.export, path)
        if path not in taken and (length := _place(folder / FILES / path, export)) is not None:
            taken.add(path)
            size += length
    done = Backup(
        __version__,
        revision,
        url.get_backend_name(),
        _sha256(dump),
        time.time(),
        len(taken),
        size,
        () if images else (INCOMING,),
        tuple(sorted(named - taken)),
    )
    _write_last(folder / MANIFEST, done)
    return done


def bring_back(settings: Settings, folder: Path) -> Backup:
    """Bring a backup back. Raises PermanentError, and changes nothing, unless the installation is empty.

    The number of files is that of those which came back: a backup may have lost some since it was made.
    """
    found = read(folder)
    url = make_url(settings.database_url)
    if found.schema_revision > SCHEMA_REVISION:
        raise PermanentError(
            "RESTORE",
            f"{folder} was made by ichnode {found.version}, which is newer than this {__version__}: "
            "install that version or a later one",
        )
    dump = folder / (SQLITE if found.database == "sqlite" else POSTGRES)
    if url.get_backend_name() != found.database:
        raise SettingsError(
            f"{folder} is a backup of {found.database}, database.url names {url.get_backend_name()}: "
            "restore into the same kind"
        )
    if not dump.exists() or _sha256(dump) != found.database_sha256:
        raise PermanentError("RESTORE", f"{dump} is not the file that was written; use another backup")
    spool = spool_of(settings)
    if next(_finished(spool, (INCOMING, RESULTS, OUTGOING)), None) is not None:
        remote = settings.spool.s3
        empty = f"prefix of bucket {remote.bucket}, and an empty data_dir" if remote.wanted else "data_dir"
        raise PermanentError("RESTORE", f"{spool.root} holds files; name an empty {empty}")
    _require_empty(url)
    prepare(settings)
    came, size = 0, 0
    for path in _finished(Spool(folder / FILES), (INCOMING, RESULTS, OUTGOING)):
        came, size = came + 1, size + _bring(folder / FILES / path, path, spool)
    if found.database == "sqlite":
        target = Path(url.database or "")
        _place(target, partial(copied, dump))
    else:
        _load_postgres(url, dump)
    bring_up_to_date(settings)
    records = open_records(settings)
    records.held.let_all_go()
    records.close()
    return replace(found, files=came, size_bytes=size)


def standing_at(settings: Settings) -> str | None:
    """The migration of the database; None for an empty one. SQLite's file would be made by opening it."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return None
    engine = open_engine(settings.database_url)
    try:
        return schema_revision(engine)
    finally:
        engine.dispose()


def require_database(settings: Settings) -> None:
    """Raises PermanentError for an empty database, or none: it would be made by opening it."""
    if standing_at(settings) is None:
        where = _shown(make_url(settings.database_url))
        text = f"there is no database at {where}: are data_dir and database.url right?"
        raise PermanentError("DATABASE", f"{text} `ichnode up` makes a new one")


def bring_up_to_date(settings: Settings) -> tuple[str | None, str]:
    """Bring the schema up to date; returns the migrations before and after."""
    engine = open_engine(settings.database_url)
    try:
        before = schema_revision(engine)
        migrate(engine)
        return before, str(schema_revision(engine))
    finally:
        engine.dispose()


def read(folder: Path) -> Backup:
    """The manifest of a finished backup. Raises PermanentError for anything else."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Backup(**{**values, "without": tuple(values["without"]), "missing": tuple(values["missing"])})
    except FileNotFoundError:
        text = f"{folder} holds no {MANIFEST}: it is no backup, or one that was not finished"
        raise PermanentError("RESTORE", text) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PermanentError("RESTORE", f"{folder / MANIFEST} cannot be read: {error}") from error


def _copy_sqlite(source: Path, target: Path) -> Path:
    """SQLite's online backup: writers go on, and the copy is of one moment."""
    with closing(sqlite3.connect(source, timeout=30)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise PermanentError("BACKUP", f"the copy of {source} is damaged: {verdict}")
    return target


def _dump_postgres(url: URL, target: Path) -> Path:
    _run(url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", "--file", str(target))
    return target


def _load_postgres(url: URL, dump: Path) -> None:
    options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
    _run(url, "pg_restore", *options, str(dump))


def _run(url: URL, program: str, *options: str) -> None:
    """A client of PostgreSQL's own. The password goes through the environment: `ps` does not show that."""
    if shutil.which(program) is None:
        raise PermanentError("POSTGRES_CLIENT", f"{program} is not on the PATH: install postgresql-client")
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    where = plain.render_as_string()
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    done = subprocess.run(
        [program, f"--dbname={where}", *options], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise PermanentError("POSTGRES_CLIENT", f"{program}: {done.stderr.strip() or done.returncode}")


def _require_empty(url: URL) -> None:
    """Nothing of ours is in the database yet. SQLite's file would be made by looking at it; the log beside
    one that was moved away would be played into the next (sqlite.org/howtocorrupt.html, 1.4).
    """
    if url.get_backend_name() == "sqlite":
        for beside in ("", *BESIDE_SQLITE):
            if Path(f"{url.database}{beside}").exists():
                text = f"{url.database}{beside} exists; name an empty data_dir or move it away"
                raise PermanentError("RESTORE", text)
        return
    engine = open_engine(url.render_as_string(hide_password=False))
    try:
        with reading(engine) as connection:
            tables = inspect(connection).get_table_names()
    except TransientError as error:
        raise PermanentError("RESTORE", f"{error}; make an empty database first") from error
    finally:
        engine.dispose()
    if tables:
        raise PermanentError(
            "RESTORE", f"database {_shown(url)} holds {len(tables)} tables; name an empty one"
        )


def _named(records: Records, images: bool) -> set[str]:
    """Paths that records name."""
    held = records.keeping.all_paths()
    return {path for path in held if images or not path.startswith(f"{INCOMING}/")}


def _finished(spool: Spool, folders: Sequence[str]) -> Iterator[str]:
    """Paths of the files of a spool; none that is still being written. Where there is a bucket, those on this
    disk alone come first, and may come twice.
    """
    here = SharedVolume(spool)
    for depot in (here,) if isinstance(spool.depot, SharedVolume) else (here, spool.depot):
        for name in folders:
            yield from (entry.path for entry in depot.files(name))


def _bring(source: Path, path: str, spool: Spool) -> int:
    """A file of a backup to where every machine sees it; its bytes."""
    try:
        with source.open("rb") as file:
            size = source.stat().st_size
            if not size:
                spool.write(path, ())
                return 0
            with mmap(file.fileno(), 0, access=ACCESS_READ) as content, memoryview(content) as view:
                spool.write(path, (view,))
            return size
    except FileNotFoundError:
        raise PermanentError("RESTORE", f"{source} is gone") from None


def _place(target: Path, fill: Callable[[Path], bool]) -> int | None:
    """Whole or not at all, and synced; its bytes, or None where there is no such file any more."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    temporary = target.with_name(f".{target.name}{PART}")
    if not fill(temporary):
        temporary.unlink(missing_ok=True)
        return None
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    return target.stat().st_size


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write_last(file: Path, done: Backup) -> None:
    """The manifest says that all before it is there."""
    os.sync()
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(done), indent=2), encoding="utf-8")
    with temporary.open("rb") as opened:
        os.fsync(opened.fileno())
    temporary.replace(file)


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
