"""Search: a W&B sweep file, run offline right here, or by W&B's agents.

python sweep.py sweeps/bayes.yaml                   here, on every core; after any stop the same command goes on
python sweep.py sweeps/bayes.yaml --storage URL     the same on any number of machines: sqlite:///FILE,
                                                    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, mysql://...
python sweep.py sweeps/bayes.yaml --engine wandb    on W&B's server, with an agent here; says how to start others
python sweep.py rerun bayes 17                      trains trial 17 of a finished sweep again, and compares
optuna-dashboard sqlite:///data/sweeps/optuna.db    looks into the sweeps run here (pip install optuna-dashboard)

--count N      trials in all (default: run_cap in the file, or the whole grid)
--workers N    trials side by side (default: one per core)
--seed N       of the suggestions (default: 0)
--quick        4 trials of one epoch, as sweep NAME-quick
--folder DIR   where the tables go, and optuna.db (default: data/sweeps)

A trial is a row in an Optuna storage, written in one transaction with its parameters and its owner, this process. The
seed and its number decide what is suggested. A worker that dies is replaced and trains its trial again; a trial whose
owner has died is adopted by whoever looks next; none ever gets a second number. So a sweep ends with exactly the trials
asked for. With one worker they are always the same; with more, what bayes suggests depends on which of them is faster.
Each trial is a run in W&B, offline unless WANDB_MODE says otherwise; `wandb sync wandb/offline-run-*` uploads them.
Exit status: 0 done, 1 not reproduced, 2 something given cannot be used, 130 interrupted.
"""

import argparse
import json
import math
import os
import platform
import re
import shutil
import sys
import time
from contextlib import chdir, contextmanager, suppress
from dataclasses import asdict, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Thread
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import optuna
import psutil
import sqlalchemy
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from tqdm import tqdm

from helpers import BLAS, DATA_DIR, Config, InputError, load_dataset, write_atomically
from train import METRICS, MODES, PROJECT, quiet_wandb, train_and_log

ROOT, FOLDER = Path(__file__).resolve().parent, DATA_DIR / "sweeps"
FIELDS = [f.name for f in fields(Config)]
HISTORIES = [f"{metric}_history" for metric in METRICS]
RESULTS = ["seconds", *METRICS, "best_val_accuracy", "best_epoch", "stopped"]  # of train_and_log
COLUMNS = ["number", "state", "created", *FIELDS, *RESULTS, "machine", *HISTORIES]
ATTEMPTS, DEATHS = 10, 50  # a trial that has ended so many processes has failed, a sweep that has in a row cannot run
BEAT, GRACE = 15, 60  # seconds: an owner on another machine, not seen for GRACE, is dead

optuna.logging.set_verbosity(optuna.logging.WARNING)


def say(sentence, program="sweep.py"):
    """One line on standard error, above the progress bar if there is one."""
    tqdm.write(f"{program}: {' '.join(str(sentence).split())}", file=sys.stderr)


# ----------------------------------------------------------------------------------------------------------- sweep file

RANGE = ["min", "max"]
KINDS = {"constant": ["value"], "categorical": ["values"]}  # W&B's distributions that we have: the keys each needs
KINDS |= dict.fromkeys(["int_uniform", "uniform", "log_uniform", "log_uniform_values"], RANGE)
KINDS |= dict.fromkeys(["q_uniform", "q_log_uniform", "q_log_uniform_values"], RANGE)


class Sweep(NamedTuple):
    """A sweep file, checked: every value that a parameter can take is one that its field of Config accepts."""

    definition: dict  # the file as W&B takes it, with its defaults
    space: dict  # its parameters, as Optuna's distributions
    bands: list  # the epochs after which hyperband looks at a trial

    name = property(lambda self: self.definition["name"])
    count = property(lambda self: self.definition["run_cap"])
    metric = property(lambda self: self.definition["metric"]["name"])
    sign = property(lambda self: 1 if self.definition["metric"]["goal"] == "maximize" else -1)

    def config(self, params):
        """The Config of a trial with these parameters of Optuna's."""
        specs = self.definition["parameters"]
        return Config(**{name: _rounded(x, specs[name].get("q")) for name, x in params.items()})


def read_sweep(path, count=None, quick=False):
    """The Sweep in a file. Raises InputError, naming the key, for all that W&B would refuse and all that we lack."""
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return _sweep({"name": Path(path).stem, **given} if isinstance(given, dict) else given, count, quick)
    except (InputError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def _sweep(given, count=None, quick=False):
    texts = ["name", "description", "project", "entity"]
    _keys("the file", given, ["program", "method", "metric", "parameters"], [*texts, "run_cap", "early_terminate"])
    _keys("metric", given["metric"], ["name"], ["goal"])
    _keys("parameters", given["parameters"], [], FIELDS)
    metric, parameters, space, bands = {"goal": "minimize", **given["metric"]}, dict(given["parameters"]), {}, []
    definition = {"project": PROJECT, **given, "metric": metric, "parameters": parameters}
    _one_of("program", given["program"], ["train.py"])
    _one_of("method", given["method"], ["random", "bayes", "grid"])
    _one_of("metric.name", metric["name"], METRICS)
    _one_of("metric.goal", metric["goal"], ["maximize", "minimize"])
    for key in set(texts) & set(given):
        if not isinstance(given[key], str) or key != "description" and not re.fullmatch(r"\w[\w.-]*", given[key]):
            raise InputError(f"{key} is {given[key]!r}; allowed: letters, digits, '_', '-' and '.'")
    if quick:
        definition["name"] += "-quick"
        parameters["epochs"] = {"value": 1}
    for name, spec in parameters.items():
        try:
            parameters[name], space[name] = _parameter(name, spec)
        except (ValueError, TypeError, OverflowError) as error:  # Config's, Optuna's and ours
            raise InputError(f"parameters.{name} is {spec}: {error}") from None
    size = math.prod(len(_choices(d)) for d in space.values()) if given["method"] == "grid" else math.inf
    if "run_cap" in given:
        _whole("run_cap", given["run_cap"])
    definition["run_cap"] = min(size, 4 if quick else size, count or given.get("run_cap", size))
    if definition["run_cap"] == math.inf:
        raise InputError("the file lacks 'run_cap', and --count is not given either")
    if "early_terminate" in given:
        definition["early_terminate"], bands = _hyperband(given["early_terminate"])
    return Sweep(definition, space, bands)


def _keys(where, given, required, optional=()):
    if not isinstance(given, dict) or not given:
        raise InputError(f"{where} is {given!r}; allowed: a mapping")
    for key in [*given, *required]:
        if key not in [*required, *optional]:
            allowed = ", ".join([*required, *optional])
            raise InputError(f"{where} has {key!r}, which is not supported; allowed: {allowed}")
        if key not in given:
            raise InputError(f"{where} lacks {key!r}")


def _one_of(where, value, allowed):
    if value not in allowed:
        raise InputError(f"{where} is {value!r}; allowed: {', '.join(allowed)}")


def _whole(where, value, low=1):
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{where} is {value!r}; allowed: a whole number from {low}")
    return value


def _rounded(x, q):
    return round(x / q) * q if q else x


def _parameter(name, spec):
    """The parameter with W&B's defaults, and as Optuna's distribution."""
    accepted = lambda value: getattr(Config(**{name: value}), name)  # noqa: E731
    _keys("it", spec, [], ["value", "values", *RANGE, "q", "distribution"])
    ends = [spec[end] for end in RANGE if end in spec]
    types = {type(end) for end in ends}
    if "distribution" not in spec and types == {int, float}:
        raise InputError("allowed without a distribution: min and max both whole, or both with a point")
    guess = "constant" if "value" in spec else "categorical" if "values" in spec else "uniform"
    spec = {"distribution": "int_uniform" if types == {int} else guess, **spec}
    kind = spec["distribution"]
    _one_of("distribution", kind, list(KINDS))
    _keys(f"distribution {kind}", spec, KINDS[kind], ["distribution"] + ["q"] * kind.startswith("q_"))
    if not ends:
        values = [spec["value"]] if kind == "constant" else spec["values"]
        values = [accepted(value) for value in values] if isinstance(values, list) else []
        if not values or len(set(values)) < len(values):
            raise InputError("allowed: a list of different values")
        return spec, CategoricalDistribution(values)
    if not types <= ({int} if kind == "int_uniform" else {int, float}) or ends[0] >= ends[1]:
        raise InputError("allowed: numbers (whole ones for int_uniform; YAML wants 1.0e-3 for 1e-3), min below max")
    if kind.startswith("q_") and not 0 < spec.setdefault("q", 1):
        raise InputError("allowed: q above 0")
    if kind != "int_uniform":
        ends = [math.exp(end) if kind.endswith("log_uniform") else float(end) for end in ends]  # W&B's exponents of e
    for end in ends:
        accepted(_rounded(end, spec.get("q")))
    return spec, IntDistribution(*ends) if kind == "int_uniform" else FloatDistribution(*ends, log="log" in kind)


def _choices(distribution):
    if isinstance(distribution, FloatDistribution):
        raise InputError("method is 'grid', which takes no range of real numbers; allowed: value, values, int_uniform")
    whole = isinstance(distribution, IntDistribution)
    return range(distribution.low, distribution.high + 1) if whole else distribution.choices


def _hyperband(given):
    """early_terminate with W&B's defaults, and the epochs after which it ends what is not in the best 1/eta."""
    _keys("early_terminate", given, ["type"], ["min_iter", "max_iter", "s", "eta"])
    _one_of("early_terminate.type", given["type"], ["hyperband"])
    eta, keys = given.get("eta", 3), sorted(set(given) - {"type", "eta"})
    if not isinstance(eta, int | float) or eta <= 1 or keys not in (["min_iter"], ["max_iter", "s"]):
        raise InputError(f"early_terminate is {given}; allowed: min_iter, or max_iter and s; and eta above 1")
    first, *s = (_whole(f"early_terminate.{key}", given[key]) for key in keys)
    bands = [first / eta**i for i in range(1, s[0] + 1)] if s else [first * eta**i for i in range(20)]
    return {**given, "eta": eta}, [int(band) for band in bands if band >= 1]


def suggest(sweep, trials, seed):
    """The parameters of the next trial: by its number (grid), the seed (random), and the trials before it (bayes)."""
    if sweep.definition["method"] == "grid":
        shape = [len(_choices(d)) for d in sweep.space.values()]
        size = math.prod(shape)  # walked in strides coprime to it, so that the first trials are a balanced sample: for
        # sweeps/grid.yaml, this one of all its 1,944 strides leaves pairs of values the most equally frequent
        stride = next(n for n in range(round(0.8537 * size), 2 * size) if math.gcd(n, size) == 1)
        index = np.unravel_index(len(trials) * stride % size, shape)
        return {name: _choices(d)[i] for i, (name, d) in zip(index, sweep.space.items())}
    state = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    if sweep.definition["method"] == "random":
        sampler, trials = optuna.samplers.RandomSampler(state), []
    else:
        sampler = optuna.samplers.TPESampler(seed=state, multivariate=True)
    scratch = optuna.create_study(sampler=sampler, direction="maximize" if sweep.sign > 0 else "minimize")
    scratch.add_trials(trials)
    return scratch.ask(sweep.space).params


# -------------------------------------------------------------------------------------------------------------- storage

LOCKS = {  # held until the connection is closed: by us, or by the system or the server when we die
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_lock(6910)",
    "mysql": "SELECT GET_LOCK('CS6910', -1)",
}


@cache
def machine():
    """What the bits of a training depend on, besides its Config and this project."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    blas = BLAS.info()  # SciPy has one of its own, which no training calls
    blas = [one for one in blas if "numpy" in one["filepath"]] or blas
    blas = [f"{one['internal_api']} {one['version']} {one['architecture']}" for one in blas]
    return ", ".join([found[1] if found else platform.machine(), f"numpy {np.__version__}", *blas])


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
        self.sweep = _sweep(about)

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
                        self.finish(trial, _failure(f"{ATTEMPTS} processes have died of it: is there enough memory?"))
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


# -------------------------------------------------------------------------------------------------------------- workers


def _start_worker(storage, name, mode, *functions):
    """A process in a group of its own, so that Ctrl-C is for this one alone; it ends when its standard input does."""
    code = f"import sys; sys.path[:] = {sys.path}; import sweep; sweep._work()"
    process = Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, process_group=0)
    with suppress(BrokenPipeError):  # it is dead already: that is noticed where its end is waited for
        order = [storage, name, mode, [(each.__module__, each.__qualname__) for each in functions]]
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def _work():
    """What a worker does: train what the ledger gives; exit with 2 and a sentence where that cannot go on."""
    out, sys.stdout = sys.stdout, sys.stderr  # a library that prints is not taken for the sentence
    try:
        with errors_as_sentences():
            order = sys.stdin.readline()
            if not order:  # the parent ended before it told what to do
                sys.exit(1)
            storage, name, mode, functions = json.loads(order)
            Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()  # reads until the parent ends
            load, train = (getattr(import_module(module), function) for module, function in functions)
            load, ledger = cache(load), Ledger(storage, name)
            while len(ledger.trials(finished=True)) < ledger.sweep.count:
                if trial := ledger.claim():
                    with suppress(UpdateFinishedTrialError):  # we were taken for dead, and another has finished it
                        ledger.finish(trial, _train(ledger, trial, load, mode, train))
                else:
                    time.sleep(0.3)  # the last ones are in work elsewhere; should they die there, we go on with them
    except Exception as error:
        print(error if isinstance(error, InputError) else f"{type(error).__name__}: {error}", file=out)
        sys.exit(2)


def _train(ledger, trial, load, mode, train=train_and_log):
    """Train a trial, as a run in W&B; return its outcome, with all that `train` returns."""
    config, history, seen = ledger.sweep.config(trial.params), [], time.time()

    def on_epoch(row):
        nonlocal seen
        history.append(row)
        if time.time() - seen > BEAT:
            ledger.beat(trial)
            seen = time.time()
        return ledger.verdict(trial, row)

    if mode != "disabled":
        wandb, run_id = quiet_wandb(), f"{ledger.token}-{trial.number}"
        wandb.setup(wandb.Settings(run_id=run_id))  # the id of the next run
        for left in Path(os.environ.get("WANDB_DIR") or ".").glob(f"wandb/offline-run-*-{run_id}"):
            shutil.rmtree(left, ignore_errors=True)  # of an attempt that was interrupted
    where = {key: ledger.sweep.definition.get(key) for key in ("project", "entity")}
    try:
        about = {"mode": mode, "group": ledger.sweep.name, **where}
        result = train(config, load(config.dataset), on_epoch=on_epoch, test=False, **about)
    except MemoryError as error:
        return _failure(str(error))
    outcome = {"state": "complete" if len(history) == config.epochs else "pruned", "machine": machine()}
    outcome |= {name: value for name, value in result.items() if name not in FIELDS}
    outcome |= {f"{metric}_history": [row[metric] for row in history] for metric in METRICS}
    if result["train_loss"] is None:
        outcome |= {"state": "not finite", "best_val_accuracy": None, "best_epoch": None}
    return outcome


def _failure(why):
    return {"state": "failed", "machine": machine(), "stopped": why, **{name: [] for name in HISTORIES}}


def supervise(ledger, workers, *args):
    """Keep so many workers alive, and show what they do, until all trials are finished, here or elsewhere.

    args: storage, name, mode of W&B, load(name), train(config, data, on_epoch=..., test=False, mode=..., ...), which is
    train_and_log or returns what that does; workers import both functions.
    """
    count, team, dead, began, key = ledger.sweep.count, [], 0, time.time(), f"session {uuid4()}"
    done = len(ledger.trials(finished=True))
    with tqdm(total=count, initial=done, unit="trial", disable=None) as bar:
        try:
            while done < count:
                for process in [process for process in team if process.poll() is not None]:
                    if process.returncode == 2:
                        raise InputError(process.stdout.read().decode())
                    team.remove(process)
                    dead += 1
                    if dead > DEATHS:
                        raise InputError(f"{dead} workers have died in a row, with exit code {process.returncode}")
                while len(team) < min(workers, count - done):
                    team.append(_start_worker(*args))
                time.sleep(0.3 + done / 5000)  # a look at that many takes long
                if new := _show(bar, ledger, done):
                    done, dead = done + new, 0
                    session = {"machine": machine(), "workers": workers, "seconds": round(time.time() - began, 1)}
                    ledger.study.set_user_attr(key, session)
        finally:
            for process in team:
                process.kill()
                process.communicate()


def _show(bar, ledger, before):
    """Bring the bar up to date or, where there is no terminal, say what is new; return how many have finished."""
    metric, sign = ledger.sweep.metric, ledger.sweep.sign
    done = sorted(ledger.trials(finished=True), key=lambda trial: trial.datetime_complete)
    outcomes = [trial.user_attrs["outcome"] for trial in done]
    best = max((sign * one[metric] for one in outcomes if one.get(metric) is not None), default=math.nan)
    bar.set_postfix_str(f"best {metric} {sign * best:.4f}", refresh=False)
    bar.update(len(done) - before)
    for trial, outcome in zip(done[before:], outcomes[before:]) if bar.disable else []:
        value = "" if outcome.get(metric) is None else f" {metric} {outcome[metric]:.4f}"
        name = ledger.sweep.config(trial.params).run_name
        say(f"trial {trial.number}, {name}: {outcome['state']}{value}; best {sign * best:.4f}")
    return len(done) - before


# -------------------------------------------------------------------------------------------------------------- results


def run(
    file, count=None, workers=None, storage=None, seed=0, quick=False, engine="local", folder=FOLDER, load=load_dataset
):
    """Run the sweep in `file`, or go on with it, to its end; write its table to `folder`; return it (see `results`).

    The arguments are the command line's; load(name) returns the Dataset of that name (workers import it: no lambda).
    Raises InputError where something given, or the storage, cannot be used.
    """
    _one_of("--engine", engine, ["local", "wandb"])
    for flag, value, low in [("--count", count, 1), ("--workers", workers, 1), ("--seed", seed, 0)]:
        if value is not None:
            _whole(flag, value, low)
    sweep = read_sweep(file, count, quick)
    if engine == "wandb":
        if workers or storage or seed:
            raise InputError("--workers, --storage and --seed are for --engine local; start further agents instead")
        table = _run_on_wandb(sweep)
    else:
        mode = os.environ.get("WANDB_MODE") or "offline"
        _one_of("WANDB_MODE", mode, MODES)
        for name in _choices(sweep.space["dataset"]) if "dataset" in sweep.space else [Config.dataset]:
            load(name)  # what is missing is said now, and what is not decoded yet is decoded once
        storage = storage or _default_storage(folder)
        with errors_as_sentences():
            ledger = Ledger(storage, sweep.name, sweep, seed)
            supervise(ledger, workers or os.cpu_count(), storage, sweep.name, mode, load, train_and_log)
            table = ledger.table()
    _export(table, Path(folder), sweep.name)
    return table


def _default_storage(folder):
    return f"sqlite:///{Path(folder).absolute() / 'optuna.db'}"


def results(name, storage=None, folder=FOLDER):
    """The table of the sweep `name` as it stands in `storage` (default: optuna.db in `folder`), finished or not.

    One row a trial: number; state (complete, pruned, not finite, failed, running); created; every field of Config;
    seconds of training; the metrics of the last epoch; best_val_accuracy and best_epoch; stopped (why); machine; the
    metrics of all epochs as lists (val_accuracy_history, ...), which is all that a trial has that is not finite.
    `attrs` holds the definition, the seed, and the wall time, in all and of each session.
    """
    with errors_as_sentences():
        return Ledger(storage or _default_storage(folder), name).table()


def _export(table, folder, name):
    """Write NAME.json, then NAME.csv: where there is a table, there is all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / f"{name}.json") as file:
        file.write(json.dumps(table.attrs, indent=1).encode())
    write_table(folder / f"{name}.csv", table)


def write_table(path, table):
    """Write a table with the metrics of all epochs to a .csv file: its lists as JSON, and whole or not at all."""
    with write_atomically(path) as file:
        table.assign(**{name: table[name].map(json.dumps) for name in HISTORIES}).to_csv(file, index=False)


def read_table(path, **options):
    """The table that `write_table` wrote; options go to pandas."""
    import pandas as pd

    return pd.read_csv(path, converters=dict.fromkeys(HISTORIES, json.loads), **options)


def load_results(name, folder=FOLDER):
    """The table of a finished sweep in `folder` (see `results`); where it is missing, sweeps/NAME.yaml is run."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        run(ROOT / "sweeps" / f"{name}.yaml", folder=folder)
    table = read_table(path, parse_dates=["created"])
    table.attrs = json.loads(path.with_suffix(".json").read_text())
    return table


def config_of(row):
    """The Config in a row of a table."""
    return Config(**{f.name: f.type(row[f.name]) for f in fields(Config)})


def importance(table, metric="best_val_accuracy", seeds=range(3)):
    """What the parameters of a sweep had to do with `metric`: a table with name, importance, deviation, correlation.

    importance: the share of the variance that goes with the parameter by itself, from fANOVA's random forest (Hutter,
    Hoos & Leyton-Brown, 2014); mean and standard deviation over `seeds`. correlation: Spearman's, -1 to 1, of numbers;
    names have a row for each value ("optimizer: adam"): with having it. Trials without `metric` are left out.
    """
    import pandas as pd

    space = {name: d for name, d in _sweep(table.attrs["definition"]).space.items() if not d.single()}
    table = table.dropna(subset=metric)
    study = optuna.create_study(direction="maximize")
    for row in table[[*space, metric]].to_dict("records"):
        params = {
            name: next((c for c in getattr(d, "choices", []) if c == row[name]), row[name]) for name, d in space.items()
        }
        study.add_trial(create_trial(params=params, distributions=space, value=row[metric]))
    forests = [optuna.importance.FanovaImportanceEvaluator(seed=seed).evaluate(study) for seed in seeds]
    forests, rows = pd.DataFrame(forests), []
    for name in forests.mean().sort_values(ascending=False).index:
        row = {"name": name, "importance": forests[name].mean(), "deviation": forests[name].std()}
        if table[name].dtype == object or pd.api.types.is_string_dtype(table[name]):
            rows.append(row)
            rows += [
                {"name": f"{name}: {value}", "correlation": (table[name] == value).corr(table[metric], "spearman")}
                for value in sorted(set(table[name]))
            ]
        else:
            rows.append(row | {"correlation": table[name].corr(table[metric], "spearman")})
    return pd.DataFrame(rows)


def agree(then, now, same_machine):
    """Whether two histories of val_accuracy, one value per epoch, are of one training.

    On one machine they are equal to the last bit. Another rounds sums otherwise, which a training magnifies: there the
    last values may differ by 0.01, or by twice what it moves from one epoch to the next in its second half: all of
    `now`, and `then` without its last value, which is in question.
    """
    if same_machine or not (len(then) and len(now)):
        return list(then) == list(now)
    steps = [2 * np.abs(np.diff(one)).max(initial=0) for one in (then[len(then) // 2 : -1], now[len(now) // 2 :])]
    return bool(abs(then[-1] - now[-1]) < max(0.01, *steps))


def rerun(name, trial, folder=FOLDER, load=load_dataset):
    """Train a trial of a finished sweep again, from its row alone; return its val_accuracy then and now.

    `agrees`: as `agree` says, where `same_machine` tells whether `machine` is the one of the row.
    """
    if not (Path(folder) / f"{name}.csv").exists():
        raise InputError(f"there is no table of a sweep {name!r} in {folder}; allowed: one that is finished")
    table = load_results(name, folder)
    rows = table[(table.number == trial) & (table.state != "failed")]
    if rows.empty:
        raise InputError(f"TRIAL is {trial!r}; allowed: 0 to {len(table) - 1}, if it has not failed")
    row = rows.iloc[0]
    config, then, now = config_of(row), row.val_accuracy_history, []

    def on_epoch(one):
        now.append(one["val_accuracy"])
        return "as then" if row.state == "pruned" and len(now) == len(then) else None

    result = train_and_log(config, load(config.dataset), on_epoch=on_epoch, test=False)
    same, given = row.machine == machine(), None if np.isnan(row.val_accuracy) else row.val_accuracy
    last = {"then": given, "now": result["val_accuracy"]}
    agrees = agree(then, now, same) and given in (None, *then[-1:])
    return {"name": name, "trial": trial, **last, "same_machine": same, "agrees": agrees}


def _run_on_wandb(sweep):
    """Create the sweep on W&B's server, work for it here until it is done, and bring its runs home as a table."""
    import pandas as pd
    import wandb

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # agents start `python`
    where = {key: sweep.definition.get(key) for key in ("project", "entity")}
    try:
        with chdir(ROOT):
            sweep_id = wandb.sweep(sweep.definition, **where)
            address = "/".join([where["entity"] or wandb.Api().default_entity, where["project"], sweep_id])
            say(f"further agents, on any machine, in the project's folder: wandb agent {address}")
            wandb.agent(sweep_id, **where)
        runs = sorted(wandb.Api().sweep(address).runs, key=lambda run: run.created_at)
        table = pd.DataFrame([_row_from_wandb(*each) for each in enumerate(runs)], columns=COLUMNS)
    except InputError:
        raise
    except Exception as error:  # W&B's client has several kinds, without a common name
        raise InputError(f"W&B: {error}") from None
    table.attrs = {"definition": sweep.definition, "sweep": address}
    return table


def _row_from_wandb(number, run):
    states = {"finished": "complete", "running": "running", "killed": "pruned", "stopped": "pruned"}
    state = "not finite" if "not finite" in str(run.summary.get("stopped")) else states.get(run.state, "failed")
    history = list(run.scan_history(keys=list(METRICS)))
    if state == "complete" and len(history) < run.config["epochs"]:
        state = "pruned"  # by early termination, which train.py takes for a regular end
    row = {"number": number, "state": state, "created": np.datetime64(run.created_at.rstrip("Z"))}
    row |= asdict(Config(**{name: value for name, value in run.config.items() if name in FIELDS}))
    row |= {name: run.summary.get(name) for name in [*RESULTS, "machine"]}
    return row | {f"{metric}_history": [one[metric] for one in history] for metric in METRICS}


# --------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are InputErrors: one sentence, no usage text."""

    def error(self, message):
        raise InputError(message)


def answer(program, help, argv, work):
    """A command line: print what `work(argv)` returns as a line of JSON, or `help`; return the exit status.

    0 done, 1 not reproduced (`agrees` is false), 2 something given cannot be used: one sentence, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(help)
        return 0
    try:
        outcome = work(argv)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", program)
        return 130
    except (InputError, OSError) as error:
        say(error, program)
        return 2
    print(json.dumps(outcome))
    return 0 if outcome.get("agrees", True) else 1


def main(argv=None, load=load_dataset):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""

    def work(argv):
        parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        again, whole = argv[:1] == ["rerun"], ["trial", "--count", "--workers", "--seed"]
        for flag in ["name", "trial"] if again else ["file", "--storage", "--engine", *whole[1:]]:
            parser.add_argument(flag, type=int if flag in whole else str)
        parser.add_argument("--folder", type=Path, default=FOLDER)
        if again:
            return rerun(**vars(parser.parse_args(argv[1:])), load=load)
        parser.add_argument("--quick", action="store_true")
        given = parser.parse_args(argv)
        table = run(**vars(given), load=load)
        best = None if table.val_accuracy.isna().all() else table.val_accuracy.max()
        path = given.folder / f"{table.attrs['definition']['name']}.csv"
        return {"table": str(path), "best_val_accuracy": best, **table.state.value_counts().to_dict()}

    return answer("sweep.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
