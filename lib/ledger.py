"""A sweep in a storage that any number of processes share: which trials there are, who trains them, what came out."""

import json
import math
import os
import platform
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from threading import Event, Thread

import optuna
import psutil
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import select

from helpers import InputError
from lib import rows
from lib.storage import Database, NoSweep
from lib.sweepfile import check_sweep, suggest
from lib.tables import COLUMNS, failure

ATTEMPTS = 10  # give up on a trial after this many workers have died in it
BEAT = 15  # seconds between two signs of life of whoever trains a trial
GRACE = 60  # seconds without one, after which an owner out of sight may be dead


# --------------------------------------------------------------------------------------------------------- who is alive


@cache
def _me():
    """Return who this process is, told from every other process on every machine.

    place: this boot of this machine and, in it, this PID namespace (a container has its own): where `pid` is the number
    of a process. None if processes cannot be looked at by their numbers here. born: see `_born`.
    """
    me = {"id": uuid.uuid4().hex, "node": platform.node(), "pid": os.getpid()}
    if sys.platform != "linux":
        return me | {"place": f"{platform.node()} {uuid.getnode():x}", "born": _born(os.getpid())}
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        seen = os.readlink("/proc/self") == str(os.getpid())  # or /proc shows the numbers of another namespace
    except OSError:
        seen = False
    return me | {"place": f"{platform.node()} {boot} {space}" if seen else None, "born": _born("self")}


def _born(pid):
    """Return when a process began: on Linux in ticks since the boot, which no setting of a clock changes.

    None if there is no such process, or it has ended and is a zombie.
    """
    try:
        if sys.platform != "linux":
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
        return None if state in b"ZX" else int(fields[18])  # the 22nd of all
    except (OSError, psutil.NoSuchProcess):
        return None


def _alive(owner):
    """Return whether a process lives; None if it cannot be seen from here, as in another container or machine."""
    if not owner.get("place") or owner["place"] != _me()["place"]:
        return None
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return None
    return _born(owner["pid"]) == owner["born"]


# ----------------------------------------------------------------------------------------------------------- the ledger


class Ledger:
    """A sweep in an Optuna storage: which trials there are, who trains them, what came out. Any number may share it."""

    def __init__(self, storage, name, sweep=None, seed=0, parent=None):
        """Open the sweep `name`; begin it, or go on with it, if it is given. Raises InputError if that cannot be.

        parent: who counts the deaths of this process (see `bury`), if anyone does.
        """
        self.name = name
        self._parent = parent
        self._watched = {}  # {id: (last sign of life, when we first saw it)} of trials whose owners are out of sight
        with errors_as_sentences(storage):
            self._database = Database(storage, name, begin=sweep is not None)
            with self._database.alone(name) if sweep else self._database.engine.connect() as connection:
                self._study_id, about = self._find(connection, begin=sweep is not None)
                self._history = rows.History(self._study_id)
                self._read(connection)
                if sweep:
                    about = self._begin(connection, about, {**sweep.definition, "seed": seed}, sweep.sign)
            self.storage = self._database.optuna
            self.study = optuna.load_study(storage=self.storage, study_name=name)
        self.seed = about.pop("seed")
        self.token = about.pop("token")  # tells its runs in W&B from others'
        self.sweep = check_sweep(about)

    def _begin(self, connection, then, now, sign):
        """Enter the sweep, or make sure that it is the one that was begun, but for the number of trials; return it."""
        url = self._database.url
        for key in (now.keys() | then.keys()) - {"run_cap", "description", "token"} if then else ():
            if now.get(key) != then.get(key):
                raise InputError(f"{key} is not what {self.name!r} was begun with in {url!r}; allowed: another name")
        now["token"] = then["token"] if then else uuid.uuid4().hex[:8]
        if now != then:
            with self._database.writing(connection):
                if not then:
                    direction = StudyDirection.MAXIMIZE if sign > 0 else StudyDirection.MINIMIZE
                    self._study_id = rows.enter_study(connection, self.name, direction)
                    self._history = rows.History(self._study_id)
                rows.set_attributes(connection, rows.STUDY_ATTRIBUTES, self._study_id, about=now)
        return now

    def _find(self, connection, begin=False):
        """Return the id of the study, and what was begun: two None if it is still to begin. Raises InputError."""
        known = dict(connection.execute(select(rows.STUDIES.c.study_name, rows.STUDIES.c.study_id)).all())
        url = self._database.url
        if self.name not in known:
            if begin:
                return None, None
            raise NoSweep(f"there is no sweep {self.name!r} in {url!r}; allowed: {', '.join(known) or 'none yet'}")
        attributes = rows.STUDY_ATTRIBUTES.c
        this = (attributes.study_id == known[self.name]) & (attributes.key == "about")
        try:
            about = json.loads(connection.execute(select(attributes.value_json).where(this)).scalar_one())
            if not {"seed", "token", "parameters"} <= about.keys():
                raise ValueError
        except (sqlalchemy.exc.NoResultFound, ValueError, AttributeError):
            why = "was not begun by sweep.py; allowed: another name, or another --storage"
            raise InputError(f"the study {self.name!r} in {url!r} {why}") from None
        return known[self.name], about

    @contextmanager
    def alone(self):
        """Hold the lock of this sweep: no other process, on any machine, gives its trials."""
        with self._database.alone(self.name):
            yield

    def trials(self, finished=False):
        """Return the trials as Optuna has them, by number."""
        with self._database.engine.connect() as connection:
            trials = self._read(connection)
        return [trial for trial in trials if trial.state.is_finished()] if finished else trials

    def _read(self, connection):
        with self._reading("row"):
            return self._history.read(connection)

    @contextmanager
    def _reading(self, what):
        """Raise an InputError that names sweep and storage if what is read there is damaged."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            if not isinstance(error, InputError):
                error = f"a {what} is damaged ({error}); allowed: a copy that is whole"
            raise InputError(f"{self.name!r} in {self._database.url!r}: {error}") from None

    def claim(self):
        """Return the next trial for this process: one whose owner has died, else a new one.

        None if there are enough, or if it has still to be seen whether an owner out of sight has died.
        """
        with self._database.alone(self.name) as connection:
            trials = self._read(connection)
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            signs = rows.signs_of_life(connection, self._study_id) if running else {}
            free = [self._is_free(trial, signs.get(trial._trial_id)) for trial in running]
            for trial, is_free in zip(running, free):
                if is_free and self._take(connection, trial):
                    return trial
            if None in free or len(trials) >= self.sweep.count:
                return None
            params = suggest(self.sweep, trials, self.seed)
            attributes = {"owner": self._owner(), "attempts": 1}
            with self._database.writing(connection):
                rows.enter_trial(connection, self._study_id, len(trials), params, self.sweep.space, **attributes)
            return self._read(connection)[-1]

    def _owner(self):
        return {**_me(), "parent": self._parent}

    def _take(self, connection, trial):
        """Make a trial ours, unless its owner has finished it after all."""
        attributes = {"owner": self._owner(), "attempts": trial.user_attrs["attempts"] + 1}
        with self._database.writing(connection):
            if running := rows.change_running(connection, trial):
                rows.set_attributes(connection, rows.ATTRIBUTES, trial._trial_id, **attributes)
                rows.beat(connection, trial)
        return running

    def _is_free(self, trial, sign):
        """Return whether the owner of a trial has died; None if that is not known yet. sign: the last sign of life."""
        owner = trial.user_attrs["owner"]
        if not owner or owner["node"] is None:  # given up
            return True
        alive = _alive(owner)
        if alive is None:
            return self._is_silent(trial, sign)
        parent = owner["parent"]
        return not alive and not (parent and _alive(parent))  # a living parent counts the death, and gives the trial up

    def _is_silent(self, trial, sign):
        """Return whether an owner out of sight has died; None if that has still to be seen.

        It has died if the last sign of life is older than GRACE by the database's clock, which stamps all signs; and,
        as that clock may have been set, if none comes while we watch. So two machines' clocks are never compared.
        """
        seen = {"owner": trial.user_attrs["owner"], "sign": sign and sign[0]}
        before, since = self._watched.get(trial._trial_id, (None, 0))
        if seen != before:
            since = time.monotonic()
            self._watched[trial._trial_id] = seen, since
        if sign and 0 <= sign[1] <= GRACE:
            return False
        watch = 2 * BEAT if sign else GRACE  # without a sign: of before there were any, when `owner` was written again
        return True if time.monotonic() - since > watch else None

    @contextmanager
    def beating(self, trial):
        """Give signs of life, from a thread, while the body trains a trial."""
        done = Event()

        def beat():
            while not done.wait(BEAT):
                with suppress(sqlalchemy.exc.SQLAlchemyError, OSError):  # who trains will meet it, and say so
                    self.beat(trial)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def beat(self, trial):
        """Give a sign of life."""
        with self._database.writing() as connection:
            rows.beat(connection, trial)

    def bury(self, pids=(), died=True):
        """Give up the trials of workers of this process that have ended; count their deaths, unless we ended them.

        Only a living parent counts, so a trial fails after ATTEMPTS deaths, and after no number of interruptions.
        """
        for trial in self.trials():
            owner = trial.user_attrs["owner"]
            if trial.state.is_finished() or not owner or owner.get("parent") != _me():
                continue
            if owner["pid"] in pids or _alive(owner) is False:
                deaths = trial.user_attrs.get("deaths", 0) + died
                with self._database.writing() as connection:
                    rows.set_attributes(connection, rows.ATTRIBUTES, trial._trial_id, owner=None, deaths=deaths)
                if deaths >= ATTEMPTS:
                    with suppress(UpdateFinishedTrialError):  # it has ended in the meantime
                        self.finish(trial, failure(f"{deaths} processes have died of it: is there enough memory?"))

    def verdict(self, trial, row):
        """Return why W&B's hyperband would end the trial after this epoch, or None."""
        epoch = row["epoch"]
        value = row[self.sweep.metric]
        sign = self.sweep.sign
        if epoch not in self.sweep.bands or epoch >= self.sweep.config(trial.params).epochs:
            return None
        with self._database.turn():
            self.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        values = [one.intermediate_values[epoch] for one in self.trials() if epoch in one.intermediate_values]
        values.sort(reverse=sign > 0)
        limit = values[int(len(values) / self.sweep.definition["early_terminate"]["eta"])]
        worse = sign * value < sign * limit
        return f"hyperband: {self.sweep.metric} {value:.4f} in epoch {epoch}, {limit:.4f} needed" if worse else None

    def finish(self, trial, outcome):
        """Write down what came out of a trial. Raises UpdateFinishedTrialError if another has finished it."""
        value = outcome[self.sweep.metric] if outcome["state"] == "complete" else None
        if value is not None and math.isfinite(value):
            state = TrialState.COMPLETE
        else:
            state = TrialState.FAIL if outcome["state"] == "failed" else TrialState.PRUNED
            value = None
        with self._database.writing() as connection:
            if not rows.finish_trial(connection, trial, state, value, outcome):
                raise UpdateFinishedTrialError(f"trial {trial.number} has been finished by another process")

    def note_session(self, key, session):
        """Write down how long a session of this sweep has taken by now."""
        with self._database.writing() as connection:
            rows.set_attributes(connection, rows.STUDY_ATTRIBUTES, self._study_id, **{key: session})

    def table(self):
        """Return what `results` returns."""
        import pandas as pd  # half a second, which workers save

        table = []
        for trial in self.trials():
            outcome = trial.user_attrs["outcome"] if trial.state.is_finished() else {"state": "running"}
            row = {"number": trial.number, "created": trial.datetime_start, **asdict(self.sweep.config(trial.params))}
            table.append(row | outcome)
        table = pd.DataFrame(table, columns=COLUMNS)
        with self._reading("session"):
            sessions = [value for key, value in self.study.user_attrs.items() if key.startswith("session")]
            seconds = sum(session["seconds"] for session in sessions)
        about = {"definition": self.sweep.definition, "seed": self.seed}
        table.attrs = {**about, "wall_seconds": seconds, "sessions": sessions}
        return table


@contextmanager
def errors_as_sentences(storage=None):
    """Raise an InputError if a database fails; name the storage, if it is given."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        where = "" if storage is None else f", in {sqlalchemy.make_url(storage)!r}"
        raise InputError(f"the storage cannot be used: {getattr(cause, 'orig', cause)}{where}") from None
