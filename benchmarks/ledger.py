"""Measure how many trials of no length a sweep finishes in a second, and that none is lost or doubled under kills.

python benchmarks/ledger.py --finished 5000 --workers 16 --seconds 60 --storage sqlite:///ledger.db --kill 5

The storage gets a sweep by Bayes with many finished trials, which are made up; then workers do
what those of sweep.py do, but for the training. --kill N kills a worker, drawn at random, every N seconds.
Prints one line of JSON. Exit status: 0 done, 2 something given cannot be used, 130 interrupted.
"""

import json
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from optuna.distributions import distribution_to_json
from optuna.trial import TrialState
from sqlalchemy import insert, select

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import lib.ledger  # noqa: E402
import lib.workers  # noqa: E402
from helpers import METRICS, number  # noqa: E402
from lib import rows  # noqa: E402
from lib.cli import MOST_WORKERS, Parser, answer  # noqa: E402
from lib.sweepfile import read_sweep, suggest  # noqa: E402
from lib.tables import HISTORIES, RESULTS  # noqa: E402

EPOCHS = 20


def load(name):
    """Load no images."""


def train(config, data, on_epoch, **about):
    """Make up what a training of no length returns."""
    value = 0.8 + (config.learning_rate * 1e6 % 1000) / 1e4
    for epoch in range(1, config.epochs + 1):
        if stopped := on_epoch({"epoch": epoch, **dict.fromkeys(METRICS, value)}):
            break
    else:
        stopped = None
    return {**dict.fromkeys(RESULTS, value), "stopped": stopped, "seconds": 0.0, "best_epoch": epoch}


def fill(ledger, count):
    """Enter `count` finished trials, drawn at random."""
    rng = np.random.default_rng(0)
    space, now = ledger.sweep.space, datetime.now(UTC).replace(tzinfo=None)
    drawn = ledger.sweep._replace(definition={**ledger.sweep.definition, "method": "random"})
    trial = {"study_id": ledger._study_id, "state": TrialState.COMPLETE, "datetime_start": now}
    entered = {table: [] for table in (rows.PARAMS, rows.VALUES, rows.ATTRIBUTES)}
    with ledger._database.writing() as connection:
        trials = [{**trial, "number": number, "datetime_complete": now} for number in range(count)]
        connection.execute(insert(rows.TRIALS), trials)
        query = select(rows.TRIALS.c.trial_id).where(rows.TRIALS.c.study_id == ledger._study_id).order_by("trial_id")
        for number, one in enumerate(connection.execute(query).scalars()):
            for name, value in suggest(drawn, [None] * number, 0).items():
                about = {"distribution_json": distribution_to_json(space[name]), "param_name": name, "trial_id": one}
                entered[rows.PARAMS].append({**about, "param_value": space[name].to_internal_repr(value)})
            value = float(rng.uniform(0.8, 0.9))
            entered[rows.VALUES].append({"trial_id": one, "objective": 0, "value": value, "value_type": rows.FINITE})
            outcome = {"state": "complete", "machine": "none", **dict.fromkeys(RESULTS, value)}
            outcome |= {name: rng.uniform(0.8, 0.9, EPOCHS).tolist() for name in HISTORIES}
            for key, value in {"owner": None, "attempts": 1, "outcome": outcome}.items():
                entered[rows.ATTRIBUTES].append({"trial_id": one, "key": key, "value_json": json.dumps(value)})
        for table, new in entered.items():
            connection.execute(insert(table), new)


def finished_numbers(ledger):
    """Return the numbers of the finished trials."""
    return {trial.number for trial in ledger.trials(finished=True)}


def cpu_seconds(team):
    """Return the CPU time that these processes have used."""
    times = [psutil.Process(process.pid).cpu_times() for process in team]
    return sum(one.user + one.system for one in times)


def measure(ledger, workers, seconds, kill, *args):
    """Let workers go on for so long; return the rate from when all of them are at work."""
    rng = np.random.default_rng()
    team = [lib.workers._start_worker(*args) for _ in range(workers)]
    before = finished_numbers(ledger)
    waiting = {process.pid for process in team}
    while waiting:
        time.sleep(0.2)
        owners = [trial.user_attrs["owner"] for trial in ledger.trials() if trial.number not in before]
        waiting -= {owner["pid"] for owner in owners if owner}
    used = cpu_seconds(team)
    began, first, kills = time.monotonic(), finished_numbers(ledger), 0
    while (spent := time.monotonic() - began) < seconds:
        time.sleep(0.2)
        if kill and spent > kill * (kills + 1):
            victim = team.pop(rng.integers(len(team)))
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
            ledger.bury({victim.pid})
            team.append(lib.workers._start_worker(*args))
            kills += 1
    done = len(finished_numbers(ledger) - first)
    used = None if kill else round((cpu_seconds(team) - used) / done, 3)  # on a busy machine it says more than the rate
    lib.workers._end(ledger, team)
    return {"rate": round(done / spent, 2), "kills": kills, "cpu_seconds_a_trial": used}


def main():
    """Run the command line; return the exit status."""
    return answer("ledger.py", __doc__, None, work, "nothing is to be resumed")


def work(argv):
    """Measure as the flags say; return what was found."""
    parser = Parser(add_help=False, allow_abbrev=False)
    flags = {"finished": (5000, int, "[0, 1000000]"), "workers": (16, int, f"[1, {MOST_WORKERS}]")}
    flags |= {"seconds": (60.0, float, "(0, 86400]"), "kill": (0.0, float, "[0, 86400]")}
    for name, (default, kind, _) in flags.items():
        parser.add_argument(f"--{name}", default=default, type=kind)
    parser.add_argument("--storage", default="sqlite:///ledger.db")
    given = parser.parse_args(argv)
    for name, (_, kind, allowed) in flags.items():
        setattr(given, name, number(f"--{name}", getattr(given, name), kind, allowed))
    sweep = read_sweep(ROOT / "sweeps" / "bayes.yaml", count=given.finished + 100_000)
    ledger = lib.ledger.Ledger(given.storage, sweep.name, sweep)
    if not ledger.trials():
        fill(ledger, given.finished)
    args = given.storage, sweep.name, "disabled", load, train
    found = measure(ledger, given.workers, given.seconds, given.kill, *args)
    trials = lib.ledger.Ledger(given.storage, sweep.name).trials()
    whole = [trial.number for trial in trials] == list(range(len(trials)))
    different = len({json.dumps(trial.params, sort_keys=True) for trial in trials}) == len(trials)
    return vars(given) | found | {"numbers_whole": whole, "all_different": different}


if __name__ == "__main__":
    import benchmarks.ledger  # workers import these functions by the name of their module

    sys.exit(benchmarks.ledger.main())
