"""The trainings of the report's studies, by name, the loss that only an experiment needs, and their stored tables."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers import LOSSES, METRICS, Config, InputError, cross_entropy, one_hot, softmax
from lib import tables
from lib.dataset import DATA_DIR

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


class Study(NamedTuple):
    """Trainings that belong together; with `test` their best weights are tested, too."""

    configs: list
    test: bool = False


SELECTED = Config()  # what the sweeps selected is the default of every flag
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
RATES = {"sgd": 0.1, "momentum": 0.02, "nag": 0.02, "rmsprop": 1e-3, "adam": 1e-3, "nadam": 1e-3}
TRIALS = {  # of the optimisers
    name: replace(REFERENCE, num_layers=3, batch_size=64, epochs=10, optimizer=name, learning_rate=rate)
    for name, rate in RATES.items()
}
DEEP = replace(REFERENCE, epochs=10, optimizer="adam", activation="sigmoid")
CURES = {  # of a deep sigmoid network
    "sgd, Xavier": replace(DEEP, optimizer="sgd", learning_rate=0.1),
    "adam, random": replace(DEEP, weight_init="random"),
    "adam, Xavier": DEEP,
    "adam, Xavier, decay 0.0005": replace(DEEP, weight_decay=0.0005),
    "adam, Xavier, tanh": replace(DEEP, activation="tanh"),
}
FACTORS = (0.25, 0.5, 1, 2, 4, 8)  # of the selected learning rate; by the last one, squared error gets worse
SECOND = replace(REFERENCE, epochs=20, optimizer="nadam", weight_decay=0.005)
THIRD = replace(SECOND, epochs=10, optimizer="adam", num_layers=5, hidden_size=64)
DIGITS = {  # of Question 10, by name
    "A": SELECTED,
    "B": replace(  # trial 33 of data/sweeps/bayes.csv, the best of width 128
        SELECTED,
        optimizer="nadam",
        learning_rate=0.0009190867684440911,
        weight_decay=0.0004766954749762551,
        weight_init="Xavier",
        hidden_size=128,
    ),
    "C": replace(  # trial 61 of data/sweeps/random.csv, its best, for 20 epochs
        SELECTED,
        optimizer="momentum",
        learning_rate=0.04262287218430039,
        weight_decay=0,
        weight_init="Xavier",
        num_layers=2,
        hidden_size=128,
        activation="tanh",
    ),
    "reference 1": REFERENCE,
    "reference 2": SECOND,
    "reference 3": THIRD,
    "reference 2, decay / 128": replace(SECOND, weight_decay=0.005 / 128),  # as if divided by the batch size
    "reference 3, decay / 128": replace(THIRD, weight_decay=0.005 / 128),
}
DIGITS = {name: replace(config, dataset="mnist") for name, config in DIGITS.items()}


def with_seeds(configs, count):
    """Return each of the configs with the seeds 0 to count - 1."""
    return [replace(config, seed=seed) for config in configs for seed in range(count)]


def silenced_cross_entropy(z, y):
    """L = cross-entropy;  dL/dz = (p - one_hot(y)) / batch, but 0 for each image whose p_y is below 0.05."""
    loss, delta = cross_entropy(z, y)
    p = softmax(z)[one_hot(y, z.shape[1])]
    delta[p < 0.05] = 0
    return loss, delta


LOSSES["silenced_cross_entropy"] = silenced_cross_entropy


def _rates(loss, factors):
    return [replace(SELECTED, loss=loss, learning_rate=SELECTED.learning_rate * factor) for factor in factors]


STUDIES = {
    "selected": Study(with_seeds([SELECTED], 5), test=True),
    "reference": Study(with_seeds([REFERENCE], 5), test=True),
    "optimizers": Study([*TRIALS.values()]),
    "deep": Study([*CURES.values()]),
    "loss_rates": Study(_rates("cross_entropy", FACTORS[:-1]) + _rates("mean_squared_error", FACTORS)),
    "losses": Study(
        with_seeds([replace(SELECTED, loss=loss) for loss in ("mean_squared_error", "silenced_cross_entropy")], 5),
        test=True,
    ),
    "mnist": Study(with_seeds(DIGITS.values(), 3), test=True),
}


# -------------------------------------------------------------------------------------------------------- stored tables


def load_study(name, folder=FOLDER):
    """Return the stored table of a study, all of it. Raises InputError if there is none, or if it is damaged."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in Path(folder).glob("*.csv"))) or "none yet"
        raise InputError(f"there is no study {name!r} in {folder}; allowed: {known}")
    return tables.read_table(path, COLUMNS, _check, unique=tables.FIELDS)


def _check(row):
    """Raise InputError for a row that contradicts itself."""
    if tables.check_histories(row, row["epochs"]):
        accuracies = row["val_accuracy_history"]
        best = accuracies.index(max(accuracies))
        known = [name for name in METRICS if row[f"{name}_history"]]
        tables.check_same(row, {"epoch": best + 1} | {name: row[f"{name}_history"][best] for name in known})


def named(table, configs):
    """Return a study's table with the column `name`: that of each row's configuration in {name: configuration}."""
    names = {replace(config, seed=0): name for name, config in configs.items()}
    keys = [replace(tables.config_of(row), seed=0) for row in table.to_dict("records")]
    return table.assign(name=np.array([names[key] for key in keys], dtype=object))
