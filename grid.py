"""The whole grid: every training of sweeps/grid.yaml as one table, and what the table says, exactly.

python grid.py                    trains what data/grid.csv.gz lacks, on every core; after any stop it goes on
python grid.py export             writes data/grid.csv.gz as far as it is, while that runs or not
python grid.py rerun N            trains row N again, and compares all its numbers
--workers N    trainings side by side (default: one per core)
--storage URL  where they are kept until they are exported (default: sqlite:///data/sweeps/grid.db; see sweep.py)

Trials are given, kept and adopted as in sweep.py, and not logged to W&B. Unlike there, the test images are looked at
after epochs 5 and 10, so that the table can say what a selection on validation images is worth: nothing selects on
them. Exit status: 0 done, 1 not reproduced, 2 something given cannot be used, 130 interrupted.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from optuna.trial import TrialState, create_trial

from helpers import DATA_DIR, Config, InputError, Network, evaluate, load_dataset, write_atomically
from sweep import FOLDER, ROOT, Ledger, errors_as_sentences, machine, read_sweep, suggest, supervise
from train import train_and_log

TABLE, STORAGE = DATA_DIR / "grid.csv.gz", f"sqlite:///{FOLDER / 'grid.db'}"
SPACE = read_sweep(ROOT / "sweeps" / "grid.yaml")
EPOCHS = SPACE.space["epochs"].choices[0]
PARAMETERS = [name for name in SPACE.space if name != "epochs"]
TESTED, CHANCE, PATIENCE, FALLING = (5, 10), (0.08, 0.12), 3, 1e-4
CURVES = {metric: [f"{metric}_{epoch}" for epoch in range(1, EPOCHS + 1)] for metric in ("val_accuracy", "train_loss")}
TESTS = [f"test_accuracy_{epoch}" for epoch in TESTED]
ABOUT = ["state", "stopped", "seconds", "machine"]
COLUMNS = ["number", *PARAMETERS, *ABOUT, *TESTS, *CURVES["val_accuracy"], *CURVES["train_loss"]]


# -------------------------------------------------------------------------------------------------------- the trainings


def train_and_test(config, data, on_epoch=None, **about):
    """train_and_log, which see, with test_accuracy_5 and test_accuracy_10, and processor time for `seconds`.

    Ends a training whose val_accuracy has been within CHANCE in all its epochs, at least PATIENCE, once its train_loss
    no longer falls by FALLING from epoch to epoch: one that is about to leave a plateau shows it there first.
    """
    network = Network(config.sizes, config.activation, config.weight_init, np.random.default_rng([config.seed, 0]))
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


def load_grid(path=TABLE):
    """The table of the grid, finished or not: a row for each training, in the order in which they were given.

    Columns: number; the course's parameters; state (complete, pruned, not finite) and why it stopped; seconds of
    processor time; machine; test_accuracy_5 and _10; val_accuracy and train_loss of epochs 1 to 10 (val_accuracy_1,
    ...), empty after the epoch in which a training has ended. Raises InputError where there is no such table.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(CURVES["train_loss"], np.float32))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: what `python grid.py export` writes") from None
    if list(table.columns) != COLUMNS or table.number.duplicated().any():
        raise InputError(f"{path} is not a table of the grid; allowed: what `python grid.py export` writes")
    return table


def rerun(number, path=TABLE, load=load_dataset):
    """Train a row of the table again, and compare val_accuracy and train_loss of all its epochs and its test_accuracy.

    `agrees`: all of them to the last bit where `machine` is the one of the row, else the last val_accuracy within 0.01.
    """
    table = load_grid(path)
    if number not in set(table.number):
        raise InputError(f"N is {number}; allowed: a number in the table, 0 to {table.number.max()}")
    row = table[table.number == number].iloc[0].to_dict()
    config, seen = Config(**{name: row[name] for name in PARAMETERS}, epochs=EPOCHS), []
    result = train_and_test(config, load(config.dataset), lambda one: seen.append(one), test=False)
    now = result | {f"{metric}_history": [one[metric] for one in seen] for metric in CURVES}
    then, same = _outcome(row), row["machine"] == machine()
    names = ["stopped", *TESTS, *(f"{metric}_history" for metric in CURVES)]
    bits = all(then[name] == now[name] for name in names)
    close = None in (both := (then["val_accuracy"], now["val_accuracy"])) or abs(both[0] - both[1]) < 0.01
    last = {"then": both[0], "now": both[1]}
    return {"number": number, **last, "same_machine": same, "agrees": bits if same else close}


# --------------------------------------------------------------------------------------------------------- command line


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(message)


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--storage", default=STORAGE)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "export", "rerun"])
    parser.add_argument("number", nargs="?", type=int)
    try:
        given = parser.parse_args(argv)
        if given.what == "rerun":
            outcome = rerun(given.number)
        else:
            table = run(given.workers, given.storage) if given.what == "run" else export(given.storage)
            outcome = {"table": str(TABLE), "rows": len(table), "of": SPACE.count, **table.state.value_counts()}
        print(json.dumps(outcome))
        return 0 if outcome.get("agrees", True) else 1
    except KeyboardInterrupt:
        print("grid.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        print(f"grid.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from grid import main as importable  # the workers have to find train_and_test in a module, not in __main__

    sys.exit(importable())
