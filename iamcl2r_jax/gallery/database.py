"""The SQLite file of a gallery: its schema, and connections that are durable."""

import json
import os
import pathlib
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from iamcl2r_jax.gallery.errors import explained
from iamcl2r_jax.system.errors import DamagedError, InputError, WriteError

FILE = "gallery.db"
APPLICATION = 0x49414D47  # in the header of the file, so that another database is not taken for one
VERSION = 1  # of the schema
# Vectors of 1,023 floats fit a page of the usual size badly: 32 KiB read twice as fast as 16 KiB.
_PAGE = 32768
_WAIT = 30.0  # seconds for another process's transaction

# Vectors are in one table a generation, see `vectors_table`; every `crc` is for `verify`.
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE models (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE,
  num_slots INTEGER NOT NULL, width INTEGER NOT NULL, slots TEXT NOT NULL, image TEXT NOT NULL,
  path TEXT NOT NULL, normalisation TEXT NOT NULL, at REAL NOT NULL) STRICT;
CREATE TABLE generations (
  id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL REFERENCES models (id),
  live INTEGER NOT NULL, at REAL NOT NULL) STRICT;
CREATE TABLE items (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, path TEXT,
  label TEXT, crc INTEGER NOT NULL) STRICT;
CREATE TABLE verdicts (
  model INTEGER NOT NULL REFERENCES models (id),
  generation INTEGER NOT NULL REFERENCES generations (id), compatible INTEGER NOT NULL,
  accepted INTEGER NOT NULL, details TEXT NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (model, generation)) STRICT;
CREATE TABLE upgrades (
  id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, paused INTEGER NOT NULL,
  old_model INTEGER NOT NULL REFERENCES models (id),
  new_model INTEGER NOT NULL REFERENCES models (id),
  base INTEGER NOT NULL REFERENCES generations (id),
  target INTEGER NOT NULL REFERENCES generations (id), share REAL NOT NULL, merge TEXT NOT NULL,
  scaling TEXT NOT NULL, watermark INTEGER NOT NULL, updated REAL NOT NULL) STRICT;
CREATE TABLE ranks (rank INTEGER PRIMARY KEY, item INTEGER NOT NULL UNIQUE) STRICT;
CREATE TABLE unreadable (item INTEGER PRIMARY KEY, reason TEXT NOT NULL) STRICT;
CREATE TABLE changes (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, items BLOB NOT NULL,
  crc INTEGER NOT NULL) STRICT;
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, action TEXT NOT NULL,
  upgrade INTEGER, details TEXT NOT NULL, crc INTEGER NOT NULL) STRICT;
CREATE TABLE seals (name TEXT PRIMARY KEY, crc INTEGER NOT NULL) STRICT;
"""
# Small tables, whose rows change: one checksum of each whole table is kept.
SEALED = ("settings", "models", "generations", "verdicts", "upgrades")


def vectors_table(generation: int) -> str:
    """Name of the table of a generation's vectors: item, crc (CRC-32 of vector), vector."""
    return f"vectors_{int(generation)}"


def create_vectors(connection: sqlite3.Connection, generation: int) -> None:
    """Makes the table of a new generation."""
    connection.execute(
        f"CREATE TABLE {vectors_table(generation)} "
        "(item INTEGER PRIMARY KEY, crc INTEGER NOT NULL, vector BLOB NOT NULL) STRICT"
    )
    # Counting rows would otherwise read every vector.
    connection.execute(
        f"CREATE INDEX {vectors_table(generation)}_items ON {vectors_table(generation)} (item)"
    )


class Database:
    """Connections to the file of one gallery; threads may share it."""

    def __init__(self, directory: str):
        """Opens a gallery.

        Raises:
          InputError: if there is none, or it is of another version.
          DamagedError: if the file is damaged.
        """
        self.directory, self.path = directory, os.path.join(directory, FILE)
        if not os.path.exists(self.path):
            raise InputError(
                f"gallery {directory}: there is no gallery at this place; make one with init"
            )
        with explained(directory):
            self._writer = self._connection()
            self._reader = self._connection()
            _check_version(directory, self._writer)
            if self._writer.execute("PRAGMA journal_mode").fetchone()[0] != "wal":  # a backup
                self._writer.execute("PRAGMA journal_mode = WAL")
        self._write_lock, self._read_lock = threading.RLock(), threading.RLock()

    def _connection(self) -> sqlite3.Connection:
        # Opened by URI, since `connect` would make a file that vanished meanwhile.
        address = f"{pathlib.Path(self.path).absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(
            address, uri=True, timeout=_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Closes the connections; what was committed is on disk already.

        Waits for transactions of other threads: SQLite crashes if a connection in use is closed.
        """
        with self._read_lock:
            self._reader.close()
        with self._write_lock:
            self._writer.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is durable when the block ends, and undone if the block raises."""
        with self._write_lock, explained(self.directory):
            connection = self._writer
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                seal(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # on a full disk SQLite has ended it already
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the gallery throughout."""
        with self._read_lock, explained(self.directory):
            connection = self._reader
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    def data_version(self) -> int:
        """A number that changes with every commit by another connection than the reading one."""
        with self._read_lock, explained(self.directory):
            return self._reader.execute("PRAGMA data_version").fetchone()[0]

    def backup(self, target: str) -> None:
        """Copies the live database to a new file, as of one commit."""
        with explained(target), closing(sqlite3.connect(target, isolation_level=None)) as copy:
            with closing(self._connection()) as source:
                source.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode = DELETE")  # all of it is in the one file


def create(directory: str, fill: Callable[[sqlite3.Connection], None]) -> None:
    """Makes the file of a new gallery; a process that is killed meanwhile leaves none.

    Args:
      directory: of the gallery; made if it is missing.
      fill: writes what the gallery starts with, in the transaction that makes it.

    Raises:
      InputError: if there is a gallery already.
      WriteError: if it cannot be written.
    """
    path = os.path.join(directory, FILE)
    if os.path.exists(path):
        raise InputError(f"gallery {directory}: there is a gallery already; choose another place")
    draft = f"{path}.{os.getpid()}"
    try:
        os.makedirs(directory, exist_ok=True)
        with explained(directory), closing(sqlite3.connect(draft, isolation_level=None)) as made:
            made.execute(f"PRAGMA page_size = {_PAGE}")
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = FULL")
            made.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";\n"):
                made.execute(statement)
            made.execute(f"PRAGMA application_id = {APPLICATION}")
            made.execute(f"PRAGMA user_version = {VERSION}")
            fill(made)
            seal(made)
            made.execute("COMMIT")
        os.link(draft, path)  # unlike a rename it never replaces what another process made
        sync_directory(directory)
    except FileExistsError:
        raise InputError(f"gallery {directory}: there is a gallery already") from None
    except OSError as error:
        raise WriteError(f"gallery {directory} cannot be made ({error.strerror})") from error
    finally:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(draft + suffix)


def select_in(
    connection: sqlite3.Connection, statement: str, values: Sequence[Any]
) -> Iterator[tuple]:
    """Rows of a SELECT that ends in "IN", for any number of values."""
    for start in range(0, len(values), 500):
        some = values[start : start + 500]
        yield from connection.execute(f"{statement} ({','.join('?' * len(some))})", some)


def sync_directory(directory: str) -> None:
    """Brings the names in a directory to disk."""
    opened = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def record_event(
    connection: sqlite3.Connection, action: str, upgrade: int | None, details: dict[str, Any]
) -> None:
    """Writes a line of the event log."""
    row = (time.time(), action, upgrade, json.dumps(details))
    connection.execute(
        "INSERT INTO events (at, action, upgrade, details, crc) VALUES (?, ?, ?, ?, ?)",
        (*row, row_crc(row)),
    )


def row_crc(row: Sequence[Any]) -> int:
    """CRC-32 of numbers and texts of a row."""
    return zlib.crc32(json.dumps(row).encode())


def table_crc(connection: sqlite3.Connection, table: str) -> int:
    """CRC-32 of all rows of a small table."""
    return row_crc(connection.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall())


def seal(connection: sqlite3.Connection) -> None:
    """Keeps the checksums of the small tables as they are in this transaction."""
    for table in SEALED:
        connection.execute(
            "INSERT INTO seals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET crc = excluded.crc "
            "WHERE crc != excluded.crc",
            (table, table_crc(connection, table)),
        )


def _check_version(directory: str, connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise DamagedError(f"gallery {directory}: {FILE} is not the database of a gallery")
    if version != VERSION:
        raise InputError(
            f"gallery {directory} has schema version {version}, this program reads {VERSION}; "
            "use the version of the program that made it"
        )
