"""The whole grid: how each training is done, its table, and what that says: exactly, and as random forests estimate."""

import math
import time
from itertools import combinations

import numpy as np
import optuna
import pandas as pd
from optuna.trial import create_trial

from helpers import Config, InputError, evaluate, new_network
from lib import tables
from lib.dataset import DATA_DIR, ROOT
from lib.sweepfile import check_sweep, read_sweep
from lib.tracking import said, train_and_log

TABLE = DATA_DIR / "grid.csv.gz"
REPLAYS = DATA_DIR / "grid_replays.csv.gz"
SEEDS = DATA_DIR / "grid_seeds.csv"
SPACE = read_sweep(ROOT / "sweeps" / "grid.yaml")
EPOCHS = SPACE.space["epochs"].choices[0]
VALUES = {name: list(each.choices) for name, each in SPACE.space.items() if name != "epochs"}
PARAMETERS = list(VALUES)
TESTED = (5, 10)
CURVES = {metric: [f"{metric}_{epoch}" for epoch in range(1, EPOCHS + 1)] for metric in ("val_accuracy", "train_loss")}
TESTS = [f"test_accuracy_{epoch}" for epoch in TESTED]
ABOUT = {
    "state": tables.one_of(["complete", "pruned", "not finite"]),
    "stopped": tables.optional(tables.TEXT),
    "seconds": tables.SECONDS,
    "machine": tables.TEXT,
}
GRID = {
    "number": tables.COUNT,
    **{name: tables.one_of(values, tables.setting) for name, values in VALUES.items()},
    **ABOUT,
    **dict.fromkeys([*TESTS, *CURVES["val_accuracy"]], tables.optional(tables.ACCURACY)),
    **dict.fromkeys(CURVES["train_loss"], tables.optional(tables.LOSS)),
}
SEEDED = {
    "number": tables.COUNT,
    "seed": tables.COUNT,
    "val_accuracy": tables.ACCURACY,
    "test_accuracy": tables.ACCURACY,
    "machine": tables.TEXT,
}
CHANCE = (0.08, 0.12)  # val_accuracy of a network that has learnt nothing
PATIENCE = 3  # epochs that it is given to begin
FALL = 1e-4  # of train_loss from one epoch to the next: a smaller fall counts as none


# -------------------------------------------------------------------------------------------------------- its trainings


def config_of(row, seed=0):
    """Make the Config of a row of the grid, with this seed."""
    return Config(**{name: row[name] for name in PARAMETERS}, epochs=EPOCHS, seed=seed)


def train_and_test(config, data, on_epoch=None, **about):
    """Train as `train_and_log` does, and end a training that sits at chance.

    Adds test_accuracy_5 and test_accuracy_10 to the result; `seconds` are processor time.
    """
    network = new_network(config, data)
    tests = dict.fromkeys(TESTS)
    rows = []
    began = time.process_time()

    def each_epoch(row):
        rows.append(row)
        if row["epoch"] in TESTED:
            _, tests[f"test_accuracy_{row['epoch']}"] = evaluate(network, data.x_test, data.y_test)
        return said(on_epoch, row) or _at_chance(rows, config.epochs)

    result = train_and_log(config, data, on_epoch=each_epoch, network=network, **about)
    return result | tests | {"seconds": time.process_time() - began}


def train_and_test_compiled(config, data, on_epoch=None, **about):
    """Do what `train_and_test` does, with compiled steps: a name by which workers can import it."""
    return train_and_test(config, data, on_epoch, backend="compiled", **about)


def _at_chance(rows, epochs):
    """Say why a training ends after these rows of its history; None if it continues.

    It ends if val_accuracy has been within CHANCE in all epochs, at least PATIENCE, and train_loss no longer falls by
    FALL: a training that is about to leave a plateau shows it there first.
    """
    if not PATIENCE <= len(rows) < epochs or not all(CHANCE[0] <= row["val_accuracy"] <= CHANCE[1] for row in rows):
        return None
    before, now = rows[-2:]
    falls = now["train_loss"] <= before["train_loss"] - FALL
    return None if falls else f"at chance for {len(rows)} epochs, and train_loss does not fall"


# ------------------------------------------------------------------------------------------------------------ its table


def load_grid(path=TABLE):
    """Read the table of the grid, finished or not: a row for each training, in the order in which they were given.

    Columns: number; the course's parameters; state (complete, pruned, not finite) and why it stopped; seconds of
    processor time; machine; test_accuracy_5 and _10; val_accuracy and train_loss of epochs 1 to 10 (val_accuracy_1,
    ...), empty after the epoch in which a training has ended. Raises InputError if the table is missing or damaged.
    """
    table = tables.read_table(path, GRID, unique=["number"])
    _check_ends(path, table)
    return table.astype(dict.fromkeys(CURVES["train_loss"], np.float32))


def _check_ends(path, table):
    """Raise InputError unless each training has the values of its first epochs; a complete one of all, no other."""
    accuracies, losses = (table[names].notna().to_numpy() for names in CURVES.values())
    epochs = accuracies.sum(axis=1)
    first = np.arange(EPOCHS) < epochs[:, None]
    right = (accuracies == first).all(axis=1) & (losses == first).all(axis=1)
    right &= (epochs == EPOCHS) == (table.state == "complete")
    for epoch, name in zip(TESTED, TESTS):
        right &= (epochs >= epoch) == table[name].notna()
    if not right.all():
        number = table.number[~right].iloc[0]
        allowed = f"those of the first epochs, of all {EPOCHS} if and only if the training is complete"
        raise InputError(f"{path}, number {number} has values of other epochs; allowed: {allowed}; {tables.REMEDY}")


def accuracy(table, epoch=EPOCHS):
    """Return val_accuracy of each training after `epoch`: its last one if it ended earlier, 0.1 if it has none."""
    return table[CURVES["val_accuracy"][:epoch]].ffill(axis=1).iloc[:, -1].fillna(0.1)


def first_epoch(table, floor):
    """Return the epoch in which each training first passes a val_accuracy of `floor`; NaN if none does."""
    passed = table[CURVES["val_accuracy"]].to_numpy() > floor
    return pd.Series(np.where(passed.any(axis=1), 1.0 + passed.argmax(axis=1), np.nan), table.index)


def check_values(name, values):
    """Raise InputError for a parameter that the grid does not have, or a value that it does not take."""
    if name not in VALUES:
        raise InputError(f"the parameter is {name!r}; allowed: {', '.join(VALUES)}")
    for value in values:
        if value not in VALUES[name]:
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(map(str, VALUES[name]))}")


def part_of(table, values):
    """Return the rows whose parameters have one of these values, {name: values}, and the space of these rows.

    Raises InputError for a name or a value that the grid does not have.
    """
    for name, those in values.items():
        check_values(name, those)
    return table[np.logical_and.reduce([table[name].isin(those) for name, those in values.items()])], VALUES | values


def importance(table, metric="best_val_accuracy", seeds=range(3)):
    """Estimate what the parameters of a sweep had to do with `metric`: name, importance, deviation, correlation.

    importance: the share of the variance that goes with the parameter by itself, from fANOVA's random forest (Hutter,
    Hoos & Leyton-Brown, 2014); mean and standard deviation over `seeds`. correlation: Spearman's, -1 to 1, of `metric`
    with the numbers of a parameter; a parameter of names has a row for each ("optimizer: adam"), 1 where it is chosen,
    else 0. Trials without `metric` are left out.
    """
    space = {name: d for name, d in check_sweep(table.attrs["definition"]).space.items() if not d.single()}
    table = table.dropna(subset=metric)
    study = optuna.create_study(direction="maximize")
    for row in table[[*space, metric]].to_dict("records"):
        params = {name: _choice(d, row[name]) for name, d in space.items()}
        study.add_trial(create_trial(params=params, distributions=space, value=row[metric]))
    forests = [optuna.importance.FanovaImportanceEvaluator(seed=seed).evaluate(study) for seed in seeds]
    shares = pd.DataFrame(forests).agg(["mean", "std"]).T.sort_values("mean", ascending=False)
    rows = []
    for name, share in shares.iterrows():
        row = {"name": name, "importance": share["mean"], "deviation": share["std"]}
        if pd.api.types.is_numeric_dtype(table[name]):
            rows.append(row | {"correlation": table[name].corr(table[metric], "spearman")})
            continue
        rows.append(row)
        for value in sorted(set(table[name]), key=str):
            having = (table[name] == value).corr(table[metric], "spearman")
            rows.append({"name": f"{name}: {value}", "correlation": having})
    return pd.DataFrame(rows)


def _choice(distribution, value):
    """Return a value as its distribution has it: 0 for a table's 0.0, "[256, 128]" for the widths of layers."""
    value = str(list(value)) if isinstance(value, tuple) else value
    return next((choice for choice in getattr(distribution, "choices", []) if choice == value), value)


def marginals(table, y):
    """Return count, mean, standard deviation, median and best of y over the trainings with each value."""
    parts = {name: y.groupby(table[name]).agg(["count", "mean", "std", "median", "max"]) for name in PARAMETERS}
    return pd.concat(parts, names=["name", "value"]).rename(columns={"max": "best"})


def check_whole(table, space=VALUES):
    """Raise InputError unless the table has each point of the space, {parameter: its values}, once."""
    size = math.prod(len(values) for values in space.values())
    there = len(table.drop_duplicates(list(space)))
    if not there == len(table) == size:
        raise InputError(f"the table has {there:,} trainings; allowed: all {size:,}, which `python grid.py` makes")


def decomposition(table, y, space=VALUES):
    """Return the shares of the variance of y of each parameter, of each pair, and of the rest; largest first.

    The functional ANOVA y(x) = m + sum_i f_i(x_i) + sum_{i<j} f_ij(x_i, x_j) + rest, each term of mean 0 in each of its
    parameters (Hoeffding, 1948; Hutter, Hoos & Leyton-Brown, 2014). Over all points f_i is the mean of y - m where x_i
    is given, f_ij the mean where both are, less f_i and f_j; a share is the mean of f^2 by the variance of y.

    space: {parameter: its values}. Returns a Series by (name, other), "" for one alone. Raises InputError for a table
    that is not whole.
    """
    check_whole(table, space)
    y = y - y.mean()
    mean = {name: y.groupby(table[name]).transform("mean") for name in space}
    terms = {(name, ""): mean[name] for name in space}
    for a, b in combinations(space, 2):
        terms[a, b] = y.groupby([table[a], table[b]]).transform("mean") - mean[a] - mean[b]
    shares = pd.Series({term: (f**2).mean() / (y**2).mean() for term, f in terms.items()}).sort_values(ascending=False)
    shares["rest", ""] = 1 - shares.sum()
    return shares.rename_axis(["name", "other"])


def fanova(table, y, runs, draws=5):
    """Let a random forest (`importance`) estimate the share of each parameter from `runs` rows drawn at random.

    Returns a table with a row for each of the `draws`.
    """
    rows = []
    for seed in range(draws):
        sample = table.sample(runs, random_state=seed).assign(y=y)
        sample.attrs = {"definition": SPACE.definition}
        rows.append(importance(sample, "y", [seed]).dropna(subset="importance").set_index("name").importance)
    return pd.DataFrame(rows, columns=PARAMETERS).reset_index(drop=True)


def singles(shares):
    """Return the `shares` of single parameters, largest first."""
    return shares.drop(("rest", "")).xs("", level="other")
