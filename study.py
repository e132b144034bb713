"""Studies: lists of trainings whose table is stored, so that the report reads in seconds what took minutes to train.

python study.py NAME        trains the rows of STUDIES[NAME] that data/studies/NAME.csv does not have yet
python study.py NAME ROW    trains a row of data/studies/NAME.csv again, and compares
--backend NAME    numpy (default), or compiled, which needs Numba (make fast); `machine` in the table names it

Exit status: 0 done, 1 not reproduced, 2 something given cannot be used, 130 interrupted.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers import LOSSES, METRICS, Config, InputError, evaluate
from lib import tables
from lib.cli import answer, number, progress, ready_backend
from lib.dataset import DATA_DIR, load_dataset
from lib.parallel import train_all

FOLDER = DATA_DIR / "studies"
COLUMNS = {  # of a stored study: the metrics are those of `epoch`, the best one
    **tables.CONFIG,
    "epoch": tables.optional(tables.COUNT),
    **tables.MEASURED,
    "test_accuracy": tables.optional(tables.ACCURACY),
    "seconds": tables.SECONDS,
    "stopped": tables.TEXT,
    "machine": tables.TEXT,
    **tables.CURVES,
}
RESULTS = ["epoch", *METRICS, "test_accuracy", "stopped", *tables.HISTORIES]  # that come out again


# ---------------------------------------------------------------------------------------------------------- definitions


class Study(NamedTuple):
    """Trainings that belong together; with `test` their best weights are tested, too."""

    configs: list
    test: bool = False


SELECTED = Config()
REFERENCE = Config(  # what the reference report selected
    epochs=40,
    optimizer="rmsprop",
    learning_rate=0.001,
    weight_decay=0,
    weight_init="Xavier",
    num_layers=6,
    hidden_size=128,
    activation="tanh",
)
DEEP = replace(REFERENCE, epochs=10, optimizer="adam", activation="sigmoid")
CURES = [  # of a deep sigmoid network
    replace(DEEP, optimizer="sgd", learning_rate=0.1),
    replace(DEEP, weight_init="random"),
    DEEP,
    replace(DEEP, weight_decay=0.0005),
    replace(DEEP, activation="tanh"),
]
FACTORS = (0.25, 0.5, 1, 2, 4)  # of the selected learning rate
RATES = [replace(SELECTED, loss=loss, learning_rate=SELECTED.learning_rate * k) for loss in LOSSES for k in FACTORS]
DIGITS = [
    SELECTED,
    replace(  # trial 33 of data/sweeps/bayes.csv, the best of width 128
        SELECTED,
        optimizer="nadam",
        learning_rate=0.0009190867684440911,
        weight_decay=0.0004766954749762551,
        weight_init="Xavier",
        hidden_size=128,
    ),
    replace(  # trial 61 of data/sweeps/random.csv, its best, for 20 epochs
        SELECTED,
        optimizer="momentum",
        learning_rate=0.04262287218430039,
        weight_decay=0,
        weight_init="Xavier",
        num_layers=2,
        hidden_size=128,
        activation="tanh",
    ),
    REFERENCE,
    replace(REFERENCE, epochs=20, optimizer="nadam", weight_decay=0.005),
    replace(REFERENCE, epochs=10, optimizer="adam", weight_decay=0.005, num_layers=5, hidden_size=64),
]


def with_seeds(configs, count):
    """Each of the configs with the seeds 0 to count - 1."""
    return [replace(config, seed=seed) for config in configs for seed in range(count)]


STUDIES = {
    "selected": Study(with_seeds([SELECTED], 5), test=True),
    "reference": Study(with_seeds([REFERENCE], 5), test=True),
    "deep": Study(CURES),
    "loss_rates": Study(RATES),
    "losses": Study([replace(SELECTED, loss=loss, seed=seed) for seed in range(5) for loss in LOSSES], test=True),
    "mnist": Study([replace(config, dataset="mnist") for config in with_seeds(DIGITS, 3)], test=True),
}


# --------------------------------------------------------------------------------------------------------------- tables


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
                now = _rows(path) | rows  # another process may have added some
                tables.write_table(path, pd.DataFrame(now.values(), columns=list(COLUMNS)))
            bar.update()
    return pd.DataFrame([rows[config] for config in configs], columns=list(COLUMNS))


def load_study(name, folder=FOLDER):
    """The stored table of a study, all of it. Raises InputError where there is none, or it is damaged."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in Path(folder).glob("*.csv"))) or "none yet"
        raise InputError(f"there is no study {name!r} in {folder}; allowed: {known}")
    return tables.read_table(path, COLUMNS, _check, unique=tables.FIELDS)


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


def _check(row):
    """Raise InputError for a row that contradicts itself."""
    if tables.check_histories(row, row["epochs"]):
        accuracies = row["val_accuracy_history"]
        best = accuracies.index(max(accuracies))
        known = [name for name in METRICS if row[f"{name}_history"]]
        tables.check_same(row, {"epoch": best + 1} | {name: row[f"{name}_history"][best] for name in known})


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
                return rerun(name, number("ROW", row), FOLDER)
        given = " ".join(argv) or "missing"
        raise InputError(f"the arguments are {given}; allowed: NAME, NAME --backend NAME, or NAME ROW")

    return answer("study.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
