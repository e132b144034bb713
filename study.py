"""Studies: lists of trainings whose table is stored, so that the report reads in seconds what took minutes to train.

python study.py NAME        trains the rows of STUDIES[NAME] that data/studies/NAME.csv does not have yet
python study.py NAME ROW    trains a row of data/studies/NAME.csv again, and compares
--backend NAME    numpy (default), or compiled, which needs Numba (make fast); `machine` in the table names it

Exit status: 0 done, 1 not reproduced, 2 invalid input, 130 interrupted.
"""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import METRICS, InputError, evaluate
from lib import tables
from lib.cli import answer, progress, ready_backend, whole_number
from lib.dataset import load_dataset
from lib.files import locked
from lib.parallel import train_all
from lib.studies import COLUMNS, FOLDER, STUDIES, load_study

RESULTS = ["epoch", *METRICS, "test_accuracy", "stopped", *tables.HISTORIES]  # that come out again


def study(name, configs, folder=FOLDER, test=False, store=False, backend="numpy"):
    """Return the table of these trainings, a row for each config and in their order.

    Rows stored in NAME.csv in `folder` are read, the others are trained now, side by side. Only with `store` are those
    written there, each as soon as it is done, so that trying something out changes no stored table.

    Columns: every field of Config; the epoch of best val_accuracy, whose weights are kept, and its metrics; with
    `test`, the accuracy of these weights on the test images; seconds of the whole training; why it stopped; the
    machine; the metrics of all epochs as lists (val_accuracy_history, ...).
    """
    configs = list(configs)
    path = Path(folder) / f"{name}.csv"
    rows = _rows(path)
    wanted = [config for config in dict.fromkeys(configs) if config not in rows or test and _untested(rows[config])]
    with progress(len(wanted), "training") as bar:
        for config, training in zip(wanted, train_all(wanted, keep_best=True, backend=backend)):
            rows[config] = _row(config, training, test, backend)
            if store:
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked(path, wait=True):
                    now = _rows(path) | {config: rows[config]}  # another process may have added or tested others
                    tables.write_table(path, pd.DataFrame(now.values(), columns=list(COLUMNS)))
            bar.update()
    return pd.DataFrame([rows[config] for config in configs], columns=list(COLUMNS))


def rerun(name, row, folder=FOLDER):
    """Train a row of a study again, by its number, and compare all its results: see tables.rerun."""

    def again(then):
        config = tables.config_of(then)
        backend = tables.backend_of(then)
        (training,) = train_all([config], keep_best=True, backend=backend)
        now = _row(config, training, not tables.missing(then["test_accuracy"]), backend)
        return {name: now[name] for name in RESULTS}

    return tables.rerun(Path(folder) / f"{name}.csv", load_study(name, folder), row, again)


def _rows(path):
    """Return the rows of a study that are stored, {config: row}."""
    rows = load_study(path.stem, path.parent).to_dict("records") if path.exists() else []
    return {tables.config_of(row): row for row in rows}


def _untested(row):
    return tables.missing(row["test_accuracy"]) and "not finite" not in row["stopped"]


def _row(config, training, test, backend):
    """Make a row of the table from what `train` with keep_best has returned."""
    network, history, stopped = training
    best = max(history, key=lambda row: row["val_accuracy"], default={})  # the first of equals, as in `train`
    row = asdict(config) | {name: best.get(name, np.nan) for name in ["epoch", *METRICS]}
    row["test_accuracy"] = np.nan
    if test and best:
        data = load_dataset(config.dataset)
        _, row["test_accuracy"] = evaluate(network, data.x_test, data.y_test)
    row |= {"seconds": sum(one["seconds"] for one in history), "stopped": stopped, "machine": tables.machine(backend)}
    return row | {f"{metric}_history": [one[metric] for one in history] for metric in METRICS}


# --------------------------------------------------------------------------------------------------------- command line


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""

    def work(argv):
        match argv:
            case [name] | [name, "--backend", _]:
                backend = ready_backend(argv[2] if argv[1:] else "numpy")
                if name not in STUDIES:
                    raise InputError(f"NAME is {name!r}; allowed: {', '.join(STUDIES)}")
                configs, test = STUDIES[name]
                rows = len(study(name, configs, FOLDER, test, store=True, backend=backend))
                return {"table": str(FOLDER / f"{name}.csv"), "rows": rows}
            case [name, row]:
                return rerun(name, whole_number("ROW", row), FOLDER)
        given = " ".join(argv) or "missing"
        raise InputError(f"the arguments are {given}; allowed: NAME, NAME --backend NAME, or NAME ROW")

    return answer("study.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
