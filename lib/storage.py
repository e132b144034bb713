"""The database of a ledger: found whole or refused before anything is written, and waited for in a queue."""

import fcntl
import sqlite3
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages._rdb import models

from helpers import InputError

ALLOWED = "sqlite:///FILE, or postgresql://... or mysql://... with its Python driver installed"
SMALLEST = 512  # bytes of a database of SQLite: a page; it takes a file of one byte for a new one
PATIENCE = 3600  # seconds that SQLite waits for others than ourselves, who queue
LOCKS = {  # held until the transaction or the connection ends: by us, or by the server if we die
    "postgresql": "SELECT pg_advisory_xact_lock(6910, {})",
    "mysql": "SELECT GET_LOCK('CS6910 {}', -1)",
}
OPTIONS = {
    "sqlite": {"connect_args": {"timeout": PATIENCE}, "pool_size": 1},
    "postgresql": {"isolation_level": "READ COMMITTED", "pool_pre_ping": True, "pool_size": 1, "max_overflow": 1},
    "mysql": {"isolation_level": "READ COMMITTED", "poolclass": sqlalchemy.NullPool},
}


class NoSweep(InputError):
    """What was asked for is not in the storage."""


def file_url(path):
    """Return the URL of the SQLite database at `path`, whatever its name is; InputError if that is not UTF-8."""
    path = str(Path(path).absolute())
    if not _is_utf8(path):
        raise InputError(f"the database would be {path!r}; allowed: a folder whose name is UTF-8")
    url = sqlalchemy.URL.create("sqlite", database=path)
    return url.render_as_string(hide_password=False)


def _is_utf8(text):
    """Return whether a text has no bytes that the system could not decode."""
    return text.encode(errors="ignore").decode() == text


def read_url(storage):
    """Return what --storage says, as a URL. Raises InputError."""
    try:
        if not _is_utf8(str(storage)):
            raise ValueError(f"{storage!r} is not UTF-8")
        url = sqlalchemy.make_url(storage)
        url.get_dialect().import_dbapi()
        if url.get_backend_name() not in OPTIONS:
            raise ValueError(f"{url!r} is not among these")
        if url.get_backend_name() == "sqlite":
            if url.database in (None, "", ":memory:") or "\0" in url.database:
                raise ValueError(f"{url!r} names no file")
            if not _is_utf8(str(Path(url.database).absolute())):
                raise ValueError(f"{url!r} is in a folder whose name is not UTF-8")
            if "?" in str(storage):
                raise ValueError(f"{storage!r} has a '?', which is written %3F in the name of a file")
    except (sqlalchemy.exc.ArgumentError, ValueError, AttributeError, ImportError) as error:
        if isinstance(error, sqlalchemy.exc.ArgumentError) and "@" not in str(storage):  # else it may hold a password
            error = f"{storage!r} is not the URL of a database"
        raise InputError(f"--storage cannot be used: {error}; allowed: {ALLOWED}") from None
    return url


class Database:
    """A database with Optuna's tables, open. Each process has one connection to it, or two for a moment."""

    def __init__(self, storage, name, begin):
        """Open it for the sweep `name`; make it if `begin` and there is none.

        Raises InputError, before anything is written, if it is damaged or somebody else's.
        """
        self.url = read_url(storage)
        self.kind = self.url.get_backend_name()
        self._file = None
        address = self.url
        if self.kind == "sqlite":
            self._file = str(Path(self.url.database).absolute())  # wherever this process goes later
            address = self.url.set(database=self._file)
        text = address.render_as_string(hide_password=False)
        new = self._is_new()
        if new and not begin:
            raise NoSweep(f"there is no sweep {name!r} in {self.url!r}; allowed: none yet, as none has been run there")
        with self._making() if new else nullcontext():
            checks = {"skip_compatibility_check": True, "skip_table_creation": not (new and self._is_new())}
            self.optuna = optuna.storages.RDBStorage(text, dict(OPTIONS[self.kind]), **checks)
        self.engine = self.optuna.engine
        self._check_version()

    def _making(self):
        """Let one process at a time make what is missing."""
        if self._file:
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
            return self._queue("")
        return self._server_lock(sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool), "")

    def _is_new(self):
        """Return whether Optuna's tables are still to be made. Raises InputError if they cannot be."""
        if self._file and not (Path(self._file).exists() and Path(self._file).stat().st_size):
            return True
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        if self._file:
            self._check_file(engine)
        there = set(sqlalchemy.inspect(engine).get_table_names())
        ours = {*models.BaseModel.metadata.tables, "alembic_version"}
        with engine.connect() as connection:
            count = lambda name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar()  # noqa: E731
            marked = {"alembic_version", "version_info"} <= there and count("alembic_version")
            if not there & ours and (not there or not self._file):
                return True
            if not there & (ours - {"alembic_version"}) or not marked and "studies" in there and count("studies"):
                raise InputError(f"{self.url!r} is a database of another program; allowed: a storage of its own")
        return not marked  # if not, whoever made the tables was interrupted

    def _check_file(self, engine):
        """Read the whole file, which SQLite does not do by itself. Raises InputError if it is damaged."""
        try:
            with engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
            if Path(self._file).stat().st_size < SMALLEST:
                found = "it is too short"
        except sqlalchemy.exc.DatabaseError as error:
            if isinstance(error.orig, sqlite3.OperationalError):  # it cannot be read at all
                raise
            found = error.orig
        if found != "ok":
            remedy = "allowed: a whole database; restore a copy of it, or move it away and begin again"
            raise InputError(f"{self._file} is damaged, or no database of SQLite: {found}; {remedy}")

    def _check_version(self):
        found, known = self.optuna.get_current_version(), self.optuna.get_head_version()
        if found != known:
            which = f"its tables are of version {found}, those of Optuna {optuna.__version__} of {known}"
            remedy = "allowed: the Optuna that made it, or a new storage"
            raise InputError(f"{self.url!r} was made by another version of Optuna: {which}; {remedy}")

    @contextmanager
    def _queue(self, name):
        """Wait in a queue of processes on this machine, as long as it takes; the system ends it if we die."""
        with open(f"{self._file}{name and '-'}{name}.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _server_lock(self, engine, name):
        with engine.begin() as connection:
            number = zlib.crc32(name.encode()) - 2**31  # the server takes 32 bits with a sign
            connection.exec_driver_sql(LOCKS[self.kind].format(number))
            yield connection

    def turn(self):
        """Wait for our turn to write to SQLite's file; a server sees to that itself."""
        return self._queue("") if self._file else nullcontext()

    @contextmanager
    def alone(self, name):
        """Yield a connection while no other process, on any machine, is in here for the sweep `name`."""
        if not self._file:
            with self._server_lock(self.engine, name) as connection:
                yield connection
        else:
            with self._queue(name), self.engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self, connection=None):
        """Yield a connection whose changes take effect together: at the end or, on a server, when `alone` ends."""
        if not connection:
            with self.turn(), self.engine.begin() as connection:
                yield connection
        elif not self._file:
            yield connection
        else:
            with self.turn():
                yield connection
                connection.commit()
