"""The whole grid: every training of sweeps/grid.yaml as one table, and what the table says, exactly.

python grid.py                    trains what is missing in data/grid.csv.gz, on every core; run it again to resume
python grid.py export             writes what is trained so far to data/grid.csv.gz, even while the first command runs
python grid.py rerun N            trains row N again, and compares all its numbers
python grid.py seeds              trains 20 configurations with 5 seeds: data/grid_seeds.csv, some minutes
python grid.py replay             replays searches from the table: data/grid_replays.csv.gz, about a minute on two cores
--workers N    trainings side by side (default: one per core)
--backend NAME numpy (default), or compiled, which needs Numba (make fast); `machine` in the table names it
--storage URL  where they are kept until they are exported (default: sqlite:///data/sweeps/grid.db; see sweep.py)
--folder DIR   where the tables are (default: data)
--workers and --backend are for the first command alone, --storage is for export, too. No table is replaced by one
without its trainings.

Trials are given, kept and adopted as in sweep.py, and not logged to W&B. Unlike there, the test images are looked at
after epochs 5 and 10, so that the table can say what a selection on validation images is worth: nothing selects on
them. Exit status: 0 done, 1 not reproduced, 2 invalid input, 130 interrupted.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from optuna.trial import TrialState, create_trial

from helpers import InputError, evaluate
from lib import tables
from lib.anova import (
    ABOUT,
    CURVES,
    GRID,
    PARAMETERS,
    REPLAYS,
    SEEDED,
    SEEDS,
    SPACE,
    TABLE,
    TESTS,
    config_of,
    load_grid,
    train_and_test,
    train_and_test_compiled,
)
from lib.cli import MOST_WORKERS, Parser, answer, given_path, ready_backend, ready_folder, whole_number
from lib.dataset import DATA_DIR, load_dataset
from lib.ledger import Ledger, errors_as_sentences
from lib.parallel import train_all
from lib.replay import replays
from lib.storage import file_url, read_url
from lib.sweepfile import suggest
from lib.workers import supervise

STORAGE = DATA_DIR / "sweeps" / "grid.db"
FLAGS = {"run": {"workers", "storage", "backend"}, "export": {"storage"}}  # what a command takes besides --folder


# -------------------------------------------------------------------------------------------------------- the trainings


def run(workers=None, storage=None, path=TABLE, load=load_dataset, space=SPACE, backend="numpy"):
    """Train what is missing both in the table at `path` and in the storage; write the table and return it."""
    storage = _url(storage)
    train = train_and_test_compiled if ready_backend(backend) == "compiled" else train_and_test
    if Path(path).exists() and len(table := load_grid(path)) == space.count:
        return table
    ready_folder(Path(path).parent)
    load("fashion_mnist")  # what is missing is said now, and decoded once
    with errors_as_sentences():
        ledger = Ledger(storage, space.name, space)
        if Path(path).exists():
            adopt(ledger, load_grid(path))
        supervise(ledger, workers or os.cpu_count(), storage, space.name, "disabled", load, train)
    return export(storage, path, space.name)


def _url(storage):
    """Return the address of a storage, by default STORAGE. Raises InputError if it is none."""
    if storage is None:
        return file_url(STORAGE)
    read_url(storage)
    return storage


def adopt(ledger, table):
    """Enter the rows that are missing in the storage, so that they are not trained again.

    Raises InputError for rows of another grid.
    """
    rows = {row["number"]: row for row in table.to_dict("records")}
    with ledger.alone():
        for number in range(len(ledger.trials()), max(rows, default=-1) + 1):
            params = suggest(ledger.sweep, range(number), ledger.seed)
            new = {"params": params, "distributions": ledger.sweep.space, "state": TrialState.RUNNING}
            attributes = {"owner": {"node": None}, "attempts": 0}  # somebody dead: it is trained anew
            if number in rows:
                if any(rows[number][name] != params[name] for name in PARAMETERS):
                    raise InputError(f"row {number} of the table is not that of {ledger.sweep.name}; allowed: its own")
                outcome = _outcome(rows[number])
                new["state"] = TrialState.COMPLETE if outcome["state"] == "complete" else TrialState.PRUNED
                new["value"] = outcome["val_accuracy"] if new["state"] == TrialState.COMPLETE else None
                attributes["outcome"] = outcome
            ledger.study.add_trial(create_trial(**new, user_attrs=attributes))


def _outcome(row):
    """Return a row of the table in the form in which a ledger keeps the outcome of a trial."""
    outcome = {name: None if pd.isna(row[name]) else row[name] for name in [*ABOUT, *TESTS]}
    for metric, names in CURVES.items():
        outcome[f"{metric}_history"] = [float(row[name]) for name in names if not pd.isna(row[name])]
    finite = outcome["state"] != "not finite"
    return outcome | {"val_accuracy": outcome["val_accuracy_history"][-1] if finite else None}


# ------------------------------------------------------------------------------------------------------------ the table


def export(storage=None, path=TABLE, name=SPACE.name):
    """Write the finished trainings of the sweep `name` in `storage` to `path`; return them (see `load_grid`).

    Raises InputError if the table that is there has trainings that the storage does not have.
    """
    rows = []
    with errors_as_sentences():
        for trial in Ledger(_url(storage), name).trials(finished=True):
            outcome = trial.user_attrs["outcome"]
            if outcome["state"] == "failed":
                continue
            row = {"number": trial.number, **trial.params, **{name: outcome[name] for name in [*ABOUT, *TESTS]}}
            row["seconds"] = round(row["seconds"], 1)
            for metric, names in CURVES.items():
                row |= dict(zip(names, outcome[f"{metric}_history"]))
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(GRID))
    table = table.astype(dict.fromkeys(CURVES["train_loss"], np.float32))  # as computed
    ready_folder(Path(path).parent)
    kept = _points(load_grid(path)) if Path(path).exists() else set()
    tables.refuse_loss(path, kept, _points(table), "trainings")
    tables.write_table(path, table)
    return load_grid(path)


def _points(table):
    return set(table[["number", *PARAMETERS]].itertuples(index=False, name=None))


def rerun(number, path=TABLE, load=load_dataset):
    """Train a row of the table again, and compare all of it but the seconds: see tables.rerun."""

    def again(row):
        config = config_of(row)
        history = []
        backend = tables.backend_of(row)
        result = train_and_test(config, load(config.dataset), history.append, test=False, backend=backend)
        now = {name: result[name] for name in ("val_accuracy", "stopped", *TESTS)}
        return now | {f"{metric}_history": [one[metric] for one in history] for metric in CURVES}

    return tables.rerun(path, load_grid(path).set_index("number"), number, again, stored=_outcome)


# --------------------------------------------------------------------------------------------------------------- seeds


def _with_seeds(table, count, seeds):
    """Choose what `seeds` trains: {(number, seed): config}."""
    ranked = table[table.state == "complete"].sort_values(CURVES["val_accuracy"][-1], ascending=False, kind="stable")
    if len(ranked) < count:
        raise InputError(f"the table has {len(ranked)} complete trainings; allowed for seeds: {count} or more")
    rest = np.linspace(count // 2, len(ranked) - 1, count - count // 2).astype(int)
    chosen = ranked.iloc[[*range(count // 2), *rest]].to_dict("records")
    return {(row["number"], seed): config_of(row, seed) for row in chosen for seed in seeds}


def _read_seeds(path):
    columns = list(SEEDED)
    if not Path(path).exists():
        return pd.DataFrame(columns=columns)
    return tables.read_table(path, SEEDED, unique=["number", "seed"])


def load_seeds(table, path=SEEDS, count=20, seeds=range(5)):
    """Read what `seeds` has stored of this table. Raises InputError unless all of it is there."""
    stored = _read_seeds(path)
    wanted = _with_seeds(table, count, seeds)
    stored = stored[[key in wanted for key in zip(stored.number, stored.seed)]].reset_index(drop=True)
    if len(stored) < len(wanted):
        needed = f"all {len(wanted)}, which `python grid.py seeds` makes"
        raise InputError(f"{path} has {len(stored)} trainings with further seeds; allowed: {needed}")
    return stored


def seeds(table, count=20, seeds=range(5), path=SEEDS):
    """Train `count` configurations of the table with several seeds each; return their table.

    They are the best count/2 of the complete trainings, and as many spread evenly over the ranks of the others.
    Columns: number, seed, val_accuracy and test_accuracy after all epochs, machine. What is stored at `path` is not
    trained again; the rest is trained, side by side, and added there.
    """
    wanted = _with_seeds(table, count, seeds)
    ready_folder(Path(path).parent)
    stored = _read_seeds(path)
    missing = sorted(wanted.keys() - set(zip(stored.number, stored.seed)))
    for key, training in zip(missing, train_all([wanted[key] for key in missing])):
        if "not finite" in training.stopped:
            raise InputError(f"training {key[0]} with seed {key[1]} cannot be tested: {training.stopped}")
        data = load_dataset(wanted[key].dataset)
        _, test_accuracy = evaluate(training.network, data.x_test, data.y_test)
        row = [*key, training.history[-1]["val_accuracy"], test_accuracy, tables.machine()]
        tables.add_row(path, _read_seeds, dict(zip(SEEDED, row)), ["number", "seed"])
    return load_seeds(table, path, count, seeds)


# --------------------------------------------------------------------------------------------------------- command line


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for flag in ("--workers", "--storage", "--backend"):
        parser.add_argument(flag)
    parser.add_argument("--folder", type=given_path, default=DATA_DIR)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "export", "rerun", "seeds", "replay"])
    parser.add_argument("number", nargs="?")

    def work(argv):
        given = parser.parse_args(argv)
        for flag in ("workers", "storage", "backend"):
            if getattr(given, flag) is not None and flag not in FLAGS.get(given.what, ()):
                allowed = "without a command, which trains the grid" + ", or with export" * (flag == "storage")
                raise InputError(f"--{flag} is given with {given.what}; allowed: {allowed}")
        workers = None if given.workers is None else whole_number("--workers", given.workers, 1, MOST_WORKERS)
        if (given.number is None) == (given.what == "rerun"):
            raise InputError(
                f"N is {given.number or 'missing'} after {given.what}; allowed: rerun N, and no other number"
            )
        path, of_replays, of_seeds = (given.folder / one.name for one in (TABLE, REPLAYS, SEEDS))
        match given.what:
            case "rerun":
                return rerun(whole_number("N", given.number), path)
            case "seeds":
                return {"table": str(of_seeds), "rows": len(seeds(load_grid(path), path=of_seeds))}
            case "replay":
                return {"table": str(of_replays), "rows": len(replays(load_grid(path), path=of_replays))}
        if given.what == "run":
            table = run(workers, given.storage, path, backend="numpy" if given.backend is None else given.backend)
        else:
            table = export(given.storage, path)
        return {"table": str(path), "rows": len(table), "of": SPACE.count} | table.state.value_counts().to_dict()

    return answer("grid.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
