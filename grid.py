"""The whole grid: every training of sweeps/grid.yaml as one table, and what the table says, exactly.

python grid.py                    trains what data/grid.csv.gz lacks, on every core; after any stop it goes on
python grid.py export             writes data/grid.csv.gz as far as it is, while that runs or not
python grid.py rerun N            trains row N again, and compares all its numbers
python grid.py seeds              trains 20 configurations with 5 seeds: data/grid_seeds.csv, some minutes
python grid.py replay             replays searches from the table: data/grid_replays.csv.gz, about a minute on two cores
--workers N    trainings side by side (default: one per core)
--storage URL  where they are kept until they are exported (default: sqlite:///data/sweeps/grid.db; see sweep.py)
--folder DIR   where the tables are (default: data)

Trials are given, kept and adopted as in sweep.py, and not logged to W&B. Unlike there, the test images are looked at
after epochs 5 and 10, so that the table can say what a selection on validation images is worth: nothing selects on
them. Exit status: 0 done, 1 not reproduced, 2 something given cannot be used, 130 interrupted.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from optuna.trial import TrialState, create_trial

from helpers import Config, InputError, evaluate, new_network
from lib.anova import (
    ABOUT,
    COLUMNS,
    CURVES,
    EPOCHS,
    PARAMETERS,
    REPLAYS,
    SEEDED,
    SEEDS,
    SPACE,
    TABLE,
    TESTED,
    TESTS,
    load_grid,
)
from lib.cli import Parser, answer
from lib.dataset import DATA_DIR, load_dataset
from lib.files import write_atomically
from lib.ledger import Ledger, errors_as_sentences
from lib.parallel import train_all
from lib.replay import replays
from lib.sweepfile import suggest
from lib.tables import agree, machine
from lib.tracking import train_and_log
from lib.workers import supervise

STORAGE = f"sqlite:///{DATA_DIR / 'sweeps' / 'grid.db'}"
CHANCE, PATIENCE, FALLING = (0.08, 0.12), 3, 1e-4


# -------------------------------------------------------------------------------------------------------- the trainings


def train_and_test(config, data, on_epoch=None, **about):
    """train_and_log, which see, with test_accuracy_5 and test_accuracy_10, and processor time for `seconds`.

    Ends a training whose val_accuracy has been within CHANCE in all its epochs, at least PATIENCE, once its train_loss
    no longer falls by FALLING from epoch to epoch: one that is about to leave a plateau shows it there first.
    """
    network = new_network(config, data)
    tests, rows, began = dict.fromkeys(TESTS), [], time.process_time()

    def each_epoch(row):
        rows.append(row)
        if row["epoch"] in TESTED:
            _, tests[f"test_accuracy_{row['epoch']}"] = evaluate(network, data.x_test, data.y_test)
        stop = on_epoch(row) if on_epoch else None
        at_chance = len(rows) >= PATIENCE and all(CHANCE[0] <= one["val_accuracy"] <= CHANCE[1] for one in rows)
        if at_chance and len(rows) < config.epochs and row["train_loss"] > rows[-2]["train_loss"] - FALLING:
            return stop or f"at chance for {len(rows)} epochs, and train_loss does not fall"
        return stop

    result = train_and_log(config, data, on_epoch=each_epoch, network=network, **about)
    return result | tests | {"seconds": time.process_time() - began}


def run(workers=None, storage=STORAGE, path=TABLE, load=load_dataset, space=SPACE):
    """Train what the table at `path` and the storage lack, to the end; write the table; return it (see `load_grid`)."""
    if Path(path).exists() and len(table := load_grid(path)) == space.count:
        return table
    load("fashion_mnist")  # what is missing is said now, and decoded once
    with errors_as_sentences():
        ledger = Ledger(storage, space.name, space)
        if Path(path).exists():
            adopt(ledger, load_grid(path))
        supervise(ledger, workers or os.cpu_count(), storage, space.name, "disabled", load, train_and_test)
    return export(storage, path, space.name)


def adopt(ledger, table):
    """Enter the rows that the storage lacks, so that they are not trained again. Raises InputError for others' rows."""
    rows = {row["number"]: row for row in table.to_dict("records")}
    with ledger.alone():
        for number in range(len(ledger.trials()), max(rows, default=-1) + 1):
            params = suggest(ledger.sweep, range(number), ledger.seed)
            new = {"params": params, "distributions": ledger.sweep.space, "state": TrialState.RUNNING}
            attributes = {"owner": {"node": None, "seen": 0}, "attempts": 0}  # somebody dead: it is trained anew
            if number in rows:
                if any(rows[number][name] != params[name] for name in PARAMETERS):
                    raise InputError(f"row {number} of the table is not that of {ledger.sweep.name}; allowed: its own")
                outcome = _outcome(rows[number])
                new["state"] = TrialState.COMPLETE if outcome["state"] == "complete" else TrialState.PRUNED
                new["value"] = outcome["val_accuracy"] if new["state"] == TrialState.COMPLETE else None
                attributes["outcome"] = outcome
            ledger.study.add_trial(create_trial(**new, user_attrs=attributes))


def _config(row, seed=0):
    return Config(**{name: row[name] for name in PARAMETERS}, epochs=EPOCHS, seed=seed)


def _outcome(row):
    """A row of the table as sweep.py keeps what came out of a trial."""
    outcome = {name: None if pd.isna(row[name]) else row[name] for name in [*ABOUT, *TESTS]}
    for metric, names in CURVES.items():
        outcome[f"{metric}_history"] = [float(row[name]) for name in names if not pd.isna(row[name])]
    finite = outcome["state"] != "not finite"
    return outcome | {"val_accuracy": outcome["val_accuracy_history"][-1] if finite else None}


# ------------------------------------------------------------------------------------------------------------ the table


def export(storage=STORAGE, path=TABLE, name=SPACE.name):
    """Write the finished trainings of the sweep `name` in `storage` to `path`; return them (see `load_grid`)."""
    rows = []
    with errors_as_sentences():
        for trial in Ledger(storage, name).trials(finished=True):
            outcome = trial.user_attrs["outcome"]
            if outcome["state"] == "failed":
                continue
            row = {"number": trial.number, **trial.params, **{name: outcome[name] for name in [*ABOUT, *TESTS]}}
            row["seconds"] = round(row["seconds"], 1)
            for metric, names in CURVES.items():
                row |= dict(zip(names, outcome[f"{metric}_history"]))
            rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(CURVES["train_loss"], np.float32))  # as computed
    with write_atomically(path) as file:
        table.to_csv(file, index=False, compression={"method": "gzip", "mtime": 0})
    return load_grid(path)


def rerun(number, path=TABLE, load=load_dataset):
    """Train a row of the table again, and compare val_accuracy and train_loss of all its epochs and its test_accuracy.

    `agrees`: all of them to the last bit where `machine` is the one of the row, else as sweep.agree says.
    """
    table = load_grid(path)
    if number not in set(table.number):
        raise InputError(f"N is {number}; allowed: a number in the table, 0 to {table.number.max()}")
    row = table[table.number == number].iloc[0].to_dict()
    config, seen = _config(row), []
    result = train_and_test(config, load(config.dataset), lambda one: seen.append(one), test=False)
    now = result | {f"{metric}_history": [one[metric] for one in seen] for metric in CURVES}
    then, same = _outcome(row), row["machine"] == machine()
    names = ["stopped", *TESTS, *(f"{metric}_history" for metric in CURVES)]
    bits = all(then[name] == now[name] for name in names)
    last = {"then": then["val_accuracy"], "now": now["val_accuracy"]}
    agrees = bits if same else agree(then["val_accuracy_history"], now["val_accuracy_history"], same)
    return {"number": number, **last, "same_machine": same, "agrees": agrees}


# --------------------------------------------------------------------------------------------------------------- seeds


def _with_seeds(table, count, seeds):
    """{(number, seed): config}: the best count/2 trainings of the table that were complete, and as many spread evenly
    over the ranks of the others."""
    ranked = table[table.state == "complete"].sort_values(CURVES["val_accuracy"][-1], ascending=False, kind="stable")
    rest = np.linspace(count // 2, len(ranked) - 1, count - count // 2).astype(int)
    chosen = ranked.iloc[[*range(count // 2), *rest]].to_dict("records")
    return {(row["number"], seed): _config(row, seed) for row in chosen for seed in seeds}


def load_seeds(table, path=SEEDS, count=20, seeds=range(5)):
    """What `seeds`, which see, has stored of this table. Raises InputError unless it is all there."""
    stored = pd.read_csv(path) if Path(path).exists() else pd.DataFrame(columns=SEEDED)
    wanted = _with_seeds(table, count, seeds)
    stored = stored[[key in wanted for key in zip(stored.number, stored.seed)]].reset_index(drop=True)
    if len(stored) < len(wanted):
        needed = f"all {len(wanted)}, which `python grid.py seeds` makes"
        raise InputError(f"{path} has {len(stored)} trainings with further seeds; allowed: {needed}")
    return stored


def seeds(table, count=20, seeds=range(5), path=SEEDS):
    """The best count/2 trainings of the table that were complete, and as many spread evenly over the ranks of the
    others, with these seeds: number, seed, val_accuracy and test_accuracy after all epochs, machine.

    What is in the file at `path` is not trained again; what is not is trained, side by side, and added there.
    """
    wanted, rows = _with_seeds(table, count, seeds), pd.read_csv(path).to_dict("records") if Path(path).exists() else []
    missing = wanted.keys() - {(row["number"], row["seed"]) for row in rows}
    for key, training in zip(sorted(missing), train_all([wanted[key] for key in sorted(missing)])):
        data = load_dataset(wanted[key].dataset)
        accuracies = training.history[-1]["val_accuracy"], evaluate(training.network, data.x_test, data.y_test)[1]
        rows.append(dict(zip(SEEDED, [*key, *accuracies, machine()])))
        with write_atomically(path) as file:
            pd.DataFrame(rows).to_csv(file, index=False)
    return load_seeds(table, path, count, seeds)


# --------------------------------------------------------------------------------------------------------- command line


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", type=int, choices=range(1, 1000), metavar="N")
    parser.add_argument("--storage", default=STORAGE)
    parser.add_argument("--folder", type=Path, default=DATA_DIR)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "export", "rerun", "seeds", "replay"])
    parser.add_argument("number", nargs="?", type=int)

    def work(argv):
        given = parser.parse_args(argv)
        path, of_replays, of_seeds = (given.folder / one.name for one in (TABLE, REPLAYS, SEEDS))
        match given.what:
            case "rerun":
                return rerun(given.number, path)
            case "seeds":
                return {"table": str(of_seeds), "rows": len(seeds(load_grid(path), path=of_seeds))}
            case "replay":
                return {"table": str(of_replays), "rows": len(replays(load_grid(path), path=of_replays))}
        table = run(given.workers, given.storage, path) if given.what == "run" else export(given.storage, path)
        return {"table": str(path), "rows": len(table), "of": SPACE.count} | table.state.value_counts().to_dict()

    return answer("grid.py", __doc__, argv, work)


if __name__ == "__main__":
    from grid import main as importable  # the workers have to find train_and_test in a module, not in __main__

    sys.exit(importable())
