"""Studies: lists of trainings whose table is stored, so that the report reads in seconds what took minutes to train.

python study.py NAME ROW    trains a row of data/studies/NAME.csv again, and compares

Exit status: 0 reproduced, 1 not, 2 something given cannot be used, 130 interrupted.
"""

import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import METRICS, Config, InputError, evaluate
from lib.cli import answer
from lib.dataset import DATA_DIR, load_dataset
from lib.parallel import train_all
from lib.tables import HISTORIES, config_of, machine, read_table, write_table

FOLDER = DATA_DIR / "studies"
RESULTS = ["epoch", *METRICS, "test_accuracy", "seconds", "stopped", "machine", *HISTORIES]
COLUMNS = [f.name for f in fields(Config)] + RESULTS


def study(name, configs, folder=FOLDER, test=False):
    """The table of these trainings, a row for each config and in their order: those stored in NAME.csv in `folder`, the
    others trained now, side by side, and stored.

    Columns: every field of Config; the epoch of best val_accuracy, whose weights are kept, and its metrics; with
    `test`, the accuracy of these weights on the test images; seconds of the whole training; why it stopped; the
    machine; the metrics of all epochs as lists (val_accuracy_history, ...).
    """
    path, configs = Path(folder) / f"{name}.csv", list(configs)
    table = load_study(name, folder) if path.exists() else pd.DataFrame(columns=COLUMNS)
    rows = dict(zip(map(config_of, table.to_dict("records")), table.to_dict("records")))
    untested = {
        c for c, row in rows.items() if test and np.isnan(row["test_accuracy"]) and "not finite" not in row["stopped"]
    }
    missing = [config for config in configs if config not in rows or config in untested]
    for config, training in zip(missing, train_all(missing, keep_best=True)):
        rows[config] = _row(config, training, test)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, pd.DataFrame(rows.values(), columns=COLUMNS))
    return pd.DataFrame([rows[config] for config in configs], columns=COLUMNS)


def load_study(name, folder=FOLDER):
    """The stored table of a study, all of it. Raises InputError where there is none."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in Path(folder).glob("*.csv"))) or "none yet"
        raise InputError(f"there is no study {name!r} in {folder}; allowed: {known}")
    return read_table(path)


def rerun(name, number, folder=FOLDER):
    """Train row `number` of a study again: its row now and then, and whether it `agrees`: to the last bit on the
    machine of the row, elsewhere within 0.01, since it is of the best epoch, which moves less than the last."""
    table = load_study(name, folder)
    if number not in table.index:
        raise InputError(f"ROW is {number}; allowed: 0 to {len(table) - 1}")
    then = table.loc[number]
    (training,) = train_all([config_of(then)], keep_best=True)
    now, same = _row(config_of(then), training, test=not np.isnan(then.test_accuracy)), then.machine == machine()
    compared = {name: [float(then[name]), float(now[name])] for name in [*METRICS, "test_accuracy"]}
    close = [a == b or np.isnan(a) and np.isnan(b) or not same and abs(a - b) < 0.01 for a, b in compared.values()]
    return {"name": name, "row": number, **compared, "same_machine": same, "agrees": all(close)}


def _row(config, training, test):
    """A row of the table, from what `train` with keep_best has returned."""
    network, history, stopped = training
    best = max(history, key=lambda row: row["val_accuracy"], default={})
    row = asdict(config) | {name: best.get(name, np.nan) for name in ["epoch", *METRICS]}
    data = load_dataset(config.dataset)
    row["test_accuracy"] = evaluate(network, data.x_test, data.y_test)[1] if test and best else np.nan
    row |= {"seconds": sum(one["seconds"] for one in history), "stopped": stopped, "machine": machine()}
    return row | {f"{metric}_history": [one[metric] for one in history] for metric in METRICS}


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""

    def work(argv):
        if len(argv) != 2 or not argv[1].isdigit():
            raise InputError(f"the arguments are {' '.join(argv) or 'missing'}; allowed: NAME ROW")
        return rerun(argv[0], int(argv[1]))

    return answer("study.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
