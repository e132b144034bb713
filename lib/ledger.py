"""A sweep in a storage that any number of processes share: which trials there are, who trains them, what came out."""

import os
import platform
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

import optuna
import psutil
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial

from helpers import InputError
from lib.sweepfile import check_sweep, suggest
from lib.tables import COLUMNS, failure

ATTEMPTS = 10  # a trial that has ended so many processes has failed
BEAT, GRACE = 15, 60  # seconds: an owner on another machine, not seen for GRACE, is dead

LOCKS = {  # held until the connection is closed: by us, or by the system or the server when we die
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_lock(6910)",
    "mysql": "SELECT GET_LOCK('CS6910', -1)",
}


def _me():
    born = psutil.Process().create_time()  # with it, a number given to another process later is not us
    return {"node": platform.node(), "pid": os.getpid(), "born": born, "seen": time.time()}


def _alive(owner):
    """Whether the process that owns a trial still works: on this machine we can look, another has to have been seen."""
    if owner["node"] != platform.node():
        return time.time() - owner["seen"] < GRACE
    try:
        process = psutil.Process(owner["pid"])
        return abs(process.create_time() - owner["born"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Ledger:
    """A sweep in an Optuna storage: which trials there are, who trains them, what came out. Any number may share it."""

    def __init__(self, storage, name, sweep=None, seed=0):
        """Open the sweep `name`; begin it, or go on with it, if it is given. Raises InputError where that cannot be."""
        try:
            url = sqlalchemy.make_url(storage)
            self._lock, options, lock = LOCKS[url.get_backend_name()], {"pool_pre_ping": True}, url
            if url.get_backend_name() == "sqlite":
                Path(url.database).parent.mkdir(parents=True, exist_ok=True)
                options, lock = {"connect_args": {"timeout": 120}}, url.set(database=f"{url.database}.lock")
            closing = {"isolation_level": "AUTOCOMMIT", "poolclass": sqlalchemy.NullPool}
            self._door = sqlalchemy.create_engine(lock, **options, **closing)
        except (sqlalchemy.exc.ArgumentError, KeyError, TypeError, ImportError) as error:
            allowed = "sqlite:///FILE, or postgresql://... or mysql://... with its Python driver installed"
            raise InputError(f"--storage cannot be used: {error}; allowed: {allowed}") from None
        with self.alone():
            self.storage = optuna.storages.RDBStorage(storage, options)
            known = optuna.get_all_study_names(self.storage)
            if name not in known and not sweep:
                raise InputError(f"there is no sweep {name!r} in {url!r}; allowed: {', '.join(known) or 'none yet'}")
            how = {"direction": "minimize" if sweep and sweep.sign < 0 else "maximize", "load_if_exists": True}
            self.study = optuna.create_study(storage=self.storage, study_name=name, **how)
            if sweep:
                now = {**sweep.definition, "seed": seed}
                then = self.study.user_attrs.get("about", {**now, "token": uuid4().hex[:8]})
                for key in (now.keys() | then.keys()) - {"run_cap", "description", "token"}:
                    if now.get(key) != then.get(key):
                        raise InputError(f"{key} is not what {name!r} was begun with in {url!r}; allowed: another name")
                self.study.set_user_attr("about", {**now, "token": then["token"]})
        about = dict(self.study.user_attrs["about"])
        self.seed, self.token = about.pop("seed"), about.pop("token")  # the token tells its runs in W&B from others'
        self.sweep = check_sweep(about)

    @contextmanager
    def alone(self):
        """No other process is in here, on any machine."""
        with self._door.connect() as connection:
            connection.exec_driver_sql(self._lock)
            yield

    def trials(self, finished=False):
        """The trials as Optuna has them, by number."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL) if finished else None
        return self.study.get_trials(deepcopy=False, states=states)

    def claim(self):
        """The next trial for this process: one whose owner has died, else a new one, or None where there are enough."""
        with self.alone():
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and not _alive(trial.user_attrs["owner"]):
                    if trial.user_attrs["attempts"] == ATTEMPTS:
                        self.finish(trial, failure(f"{ATTEMPTS} processes have died of it: is there enough memory?"))
                        continue
                    self.storage.set_trial_user_attr(trial._trial_id, "attempts", trial.user_attrs["attempts"] + 1)
                    self.beat(trial)
                    return trial
            if len(trials) >= self.sweep.count:
                return None
            new = {"params": suggest(self.sweep, trials, self.seed), "distributions": self.sweep.space}
            attributes = {"owner": _me(), "attempts": 1}
            self.study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes, **new))
            return self.trials()[-1]

    def beat(self, trial):
        """Say that the trial is ours, and that we live."""
        self.storage.set_trial_user_attr(trial._trial_id, "owner", _me())

    def verdict(self, trial, row):
        """Why W&B's hyperband would end the trial after this epoch, or None."""
        epoch, value, sign = row["epoch"], row[self.sweep.metric], self.sweep.sign
        if epoch not in self.sweep.bands or epoch >= self.sweep.config(trial.params).epochs:
            return None
        self.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        values = [one.intermediate_values[epoch] for one in self.trials() if epoch in one.intermediate_values]
        values.sort(reverse=sign > 0)
        limit = values[int(len(values) / self.sweep.definition["early_terminate"]["eta"])]
        worse = sign * value < sign * limit
        return f"hyperband: {self.sweep.metric} {value:.4f} in epoch {epoch}, {limit:.4f} needed" if worse else None

    def finish(self, trial, outcome):
        """Write down what came out of a trial."""
        state = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(outcome["state"], TrialState.PRUNED)
        self.storage.set_trial_user_attr(trial._trial_id, "outcome", outcome)
        value = outcome[self.sweep.metric] if state == TrialState.COMPLETE else None
        self.study.tell(trial.number, value, state, skip_if_finished=True)

    def table(self):
        """What `results` returns."""
        import pandas as pd  # half a second, which workers save

        rows = []
        for trial in self.trials():
            outcome = trial.user_attrs["outcome"] if trial.state.is_finished() else {"state": "running"}
            row = {"number": trial.number, "created": trial.datetime_start, **asdict(self.sweep.config(trial.params))}
            rows.append(row | outcome)
        table = pd.DataFrame(rows, columns=COLUMNS)
        sessions = [value for key, value in self.study.user_attrs.items() if key.startswith("session")]
        seconds = sum(session["seconds"] for session in sessions)
        about = {"definition": self.sweep.definition, "seed": self.seed}
        table.attrs = {**about, "wall_seconds": seconds, "sessions": sessions}
        return table


@contextmanager
def errors_as_sentences():
    """A database that fails is an InputError."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        raise InputError(f"the storage cannot be used: {getattr(cause, 'orig', cause)}") from None
