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

import math
import os
import sys
import time
import zlib
from bisect import insort
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from optuna.trial import TrialState, create_trial

from helpers import (
    BLAS,
    DATA_DIR,
    Config,
    InputError,
    Network,
    end_with_parent,
    evaluate,
    load_dataset,
    train_all,
    write_atomically,
)
from sweep import (
    FOLDER,
    ROOT,
    Ledger,
    Parser,
    agree,
    answer,
    errors_as_sentences,
    importance,
    machine,
    read_sweep,
    suggest,
    supervise,
)
from train import train_and_log

TABLE, REPLAYS, SEEDS = (DATA_DIR / name for name in ("grid.csv.gz", "grid_replays.csv.gz", "grid_seeds.csv"))
STORAGE = f"sqlite:///{FOLDER / 'grid.db'}"
SPACE = read_sweep(ROOT / "sweeps" / "grid.yaml")
EPOCHS = SPACE.space["epochs"].choices[0]
VALUES = {name: list(each.choices) for name, each in SPACE.space.items() if name != "epochs"}
PARAMETERS = list(VALUES)
TESTED, CHANCE, PATIENCE, FALLING = (5, 10), (0.08, 0.12), 3, 1e-4
CURVES = {metric: [f"{metric}_{epoch}" for epoch in range(1, EPOCHS + 1)] for metric in ("val_accuracy", "train_loss")}
TESTS = [f"test_accuracy_{epoch}" for epoch in TESTED]
ABOUT = ["state", "stopped", "seconds", "machine"]
SEEDED = ["number", "seed", "val_accuracy", "test_accuracy", "machine"]
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


# --------------------------------------------------------------------------------------------------------- what it says


def accuracy(table, epoch=EPOCHS):
    """val_accuracy of each training after `epoch`: the last it had where it has ended before, 0.1 where it has none."""
    return table[CURVES["val_accuracy"][:epoch]].ffill(axis=1).iloc[:, -1].fillna(0.1)


def first_epoch(table, floor):
    """The epoch in which each training first passes a val_accuracy of `floor`; NaN where none does."""
    passed = table[CURVES["val_accuracy"]].to_numpy() > floor
    return pd.Series(np.where(passed.any(axis=1), 1.0 + passed.argmax(axis=1), np.nan), table.index)


def part_of(table, values):
    """The rows whose parameters have one of these values, {name: values}, and the space that they are from."""
    return table[np.logical_and.reduce([table[name].isin(those) for name, those in values.items()])], VALUES | values


def marginals(table, y):
    """For each parameter and value: how many trainings have it, and the mean, standard deviation, median and best y."""
    parts = {name: y.groupby(table[name]).agg(["count", "mean", "std", "median", "max"]) for name in PARAMETERS}
    return pd.concat(parts, names=["name", "value"]).rename(columns={"max": "best"})


def check_whole(table, space=VALUES):
    """Raise InputError unless the table has each point of the space {parameter: its values} once."""
    size, there = math.prod(map(len, space.values())), len(table.drop_duplicates(list(space)))
    if not there == len(table) == size:
        raise InputError(f"the table has {there:,} trainings; allowed: all {size:,}, which `python grid.py` makes")


def decomposition(table, y, space=VALUES):
    """Shares of the variance of y over the full factorial: of each parameter, each pair, and the rest; largest first.

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
    """What fANOVA's random forest (sweep.importance) makes of so many rows drawn at random: of each draw a row, its
    estimate of the share of each parameter by itself."""
    rows = []
    for seed in range(draws):
        sample = table.sample(runs, random_state=seed).assign(y=y)
        sample.attrs = {"definition": SPACE.definition}
        rows.append(importance(sample, "y", [seed]).dropna(subset="importance").set_index("name").importance)
    return pd.DataFrame(rows, columns=PARAMETERS).reset_index(drop=True)


def singles(shares):
    """The `shares` of single parameters, largest first."""
    return shares.drop(("rest", "")).xs("", level="other")


def largest(shares, near=0.01):
    """The largest of the `singles`, and those at most `near` below it: as large, for a reader."""
    single = singles(shares)
    return single[single >= single.max() - near]


def agreement(shares, draws, near=0.01):
    """How well the draws of `fanova` agree with the `shares` of single parameters: in how many the first is one of the
    `largest`, and in how many the first three are the first three; the mean size of an error, and the parameter of the
    largest mean error."""
    single, first = singles(shares), largest(shares, near)
    wrong, named = draws - single[draws.columns], [row.nlargest(3).index for _, row in draws.iterrows()]
    worst = wrong.mean().abs().idxmax()
    return {
        "first": sum(names[0] in first for names in named),
        "three": sum(set(names) == set(single.index[:3]) for names in named),
        "error": wrong.abs().to_numpy().mean(),
        "worst": worst,
        "worst_error": wrong[worst].mean(),
        "worst_deviation": wrong[worst].std(),
    }


# ------------------------------------------------------------------------------------------------------------- replays
# A search, replayed: instead of training what it asks for, the row is read, and its epochs are counted. A point is a
# configuration as indices into the values of PARAMETERS. Optuna's own sampler would take ten times as long.

BUDGET, SEARCHES = 1000, [(search, hyperband) for search in ("random", "tpe") for hyperband in (False, True)]
BANDS, ETA = (1, 3), 3  # W&B's hyperband with min_iter 1 and eta 3; its next band, 9 epochs of 10, would save nothing
SHAPE = np.array([len(values) for values in VALUES.values()])
STRIDE = np.cumprod([1, *SHAPE[:0:-1]])[::-1]  # point @ STRIDE is its number among all
OWNER, VALUE = np.repeat(np.arange(len(SHAPE)), SHAPE), np.concatenate([np.arange(k) for k in SHAPE])
BY_NAME = np.argsort(np.argsort(PARAMETERS))  # the place of each in the order in which Optuna draws
STARTUP, CANDIDATES, GOOD, FULL = 10, 24, 25, 25  # Optuna's defaults; the last FULL points have weight 1, older less


def points_of(table):
    """The points (n, parameters) of a table, int."""
    return np.column_stack([table[name].map(values.index) for name, values in VALUES.items()])


def tpe(tried, ranked, rng, first):
    """The point that Optuna's TPESampler(multivariate=True) would suggest, from the same numbers drawn at random.

    A tree-structured Parzen estimator (Bergstra et al., 2011): of CANDIDATES drawn from g(x) the one of largest
    g(x) / b(x), where g and b are mixtures around the best tenth of the points tried, at most GOOD, and around the
    others. With m points o_j, of weights w_j, and K_i values of parameter i, both are (e = 1 / (m + 1))

        p(x) = w_0 prod_i 1/K_i + sum_j w_j prod_i ([x_i = o_ji] + e) / (1 + K_i e).

    tried: points (n, parameters), oldest first. ranked: their indices, best first. rng, first: np.random.RandomState,
    for mixtures, and for the first STARTUP points, which are uniform.
    """
    if len(tried) < STARTUP:
        return np.array([first.uniform(size=k).argmax() for k in SHAPE])
    best = np.sort(ranked[: min(-(-len(tried) // 10), GOOD)])
    good, bad = _mixture(tried[best]), _mixture(np.delete(tried, best, axis=0))
    x = _draw(*good, rng)
    return x[np.argmax(_density(x, *good) / _density(x, *bad))]


def _mixture(points):
    """The points of a mixture, and the weights (m + 1) of its parts; the last is the uniform distribution."""
    old = max(len(points) - FULL, 0)
    weights = np.concatenate([np.linspace(1 / len(points), 1, old), np.ones(len(points) - old + 1)])
    return points, weights / weights.sum()


def _draw(points, weights, rng):
    """CANDIDATES points from a mixture: a part by its weight, then each parameter by its cumulated probabilities."""
    u, e = rng.rand(1 + len(SHAPE), CANDIDATES), 1 / len(weights)
    part = np.cumsum(weights).searchsorted(u[0], side="right")
    uniform = part >= len(points)
    centre = points[np.where(uniform, 0, part)]
    v = np.arange(SHAPE.max() - 1)
    below = (v + 1) * e + ((v >= centre[:, :, None]) & ~uniform[:, None, None])  # (candidates, parameters, values)
    below = below / (SHAPE * e + ~uniform[:, None])[:, :, None]
    return ((below < u[1:][BY_NAME].T[:, :, None]) & (v < SHAPE[:, None] - 1)).sum(axis=2)


def _density(x, points, weights):
    """p(x) of a mixture, from how many parameters of x are those of each of its points."""
    e, n = 1 / len(weights), np.arange(len(SHAPE) + 1)
    alike = (x[:, OWNER] == VALUE).astype(float) @ (points[:, OWNER] == VALUE).T.astype(float)
    near = (1 + e) ** n * e ** n[::-1] / np.prod(1 + SHAPE * e)
    return near[alike.astype(int)] @ weights[:-1] + weights[-1] / np.prod(SHAPE)


@BLAS.wrap(limits=1, user_api="blas")
def replay(curves, points, search, hyperband, seed, budget=BUDGET):
    """A search until it has spent its budget of epochs; the same seed gives the same.

    curves: val_accuracy (n, EPOCHS) of the rows of a whole table; points: of the rows. search: "random", uniform with
    replacement, or "tpe", which see. hyperband: end a run after an epoch of BANDS if it is not in the best 1/ETA of all
    that came so far, as sweep.py and W&B do. Returns a list of (runs, epochs spent, row): whenever a run trained whole
    is better than all before.
    """
    rng, legacy, seen = np.random.default_rng(seed), [np.random.RandomState(seed) for _ in "12"], {b: [] for b in BANDS}
    row_of = np.argsort(points @ STRIDE)
    tried, found, best, spent, runs, ranked = np.empty((budget, len(SHAPE)), int), [], -1, 0, 0, []
    while spent < budget:
        if search == "tpe":
            tried[runs] = tpe(tried[:runs], [one[-1] for one in ranked[:GOOD]], *legacy)
            row = int(row_of[tried[runs] @ STRIDE])
        else:
            row = int(rng.integers(len(curves)))
        epochs = EPOCHS
        for band in BANDS if hyperband else ():
            insort(seen[band], early := curves[row, band - 1])
            if early < seen[band][-1 - int(len(seen[band]) / ETA)]:
                epochs = band
                break
        value = curves[row, epochs - 1]
        insort(ranked, (-epochs, -value, runs))  # as Optuna: those trained whole first, then those ended later
        runs, spent = runs + 1, spent + epochs
        if epochs == EPOCHS and value > best and spent <= budget:
            best = value
            found.append((runs, spent, row))
    return found


def _curves(table):
    return np.column_stack([accuracy(table, epoch) for epoch in range(1, EPOCHS + 1)])


def _replays(table, path):
    """What is stored at `path` of replays of this table, known by its checksum; and that."""
    columns = ["search", "hyperband", "seed", "runs", "epochs", "number", "table"]
    done = pd.read_csv(path) if Path(path).exists() else pd.DataFrame(columns=columns)
    checksum = zlib.crc32(np.ascontiguousarray(_curves(table)))
    return done[done.table == checksum], checksum


def load_replays(table, path=REPLAYS, count=1000):
    """What `replays` has stored: search, hyperband, seed; runs, epochs and number whenever the replay had found a
    better training; the table's checksum. Raises InputError unless all are there, of just this table."""
    done, _ = _replays(table, path)
    done = done[done.seed < count].reset_index(drop=True)
    there = len(done[["search", "hyperband", "seed"]].drop_duplicates())
    if there < count * len(SEARCHES):
        wanted = f"all {count * len(SEARCHES):,}, which `python grid.py replay` makes"
        raise InputError(f"{path} has {there:,} replays of this table; allowed: {wanted}")
    return done


def replays(table, count=1000, path=REPLAYS):
    """So many replays of each of SEARCHES, side by side (see `load_replays`). What is stored at `path` is not done
    again, if it is of this table; what is not is added there. Raises InputError for a table that is not whole."""
    check_whole(table)
    (done, checksum), curves, points = _replays(table, path), _curves(table), points_of(table)
    known = set(done[["search", "hyperband", "seed"]].itertuples(index=False, name=None))
    missing = [(*one, seed) for seed in range(count) for one in SEARCHES if (*one, seed) not in known]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), end_with_parent) as pool:
        for start in range(0, len(missing), 400):
            some = missing[start : start + 400]
            found = pool.map(partial(replay, curves, points), *zip(*some), chunksize=10)
            new = [(*one, *f[:2], table.number.iloc[f[2]], checksum) for one, each in zip(some, found) for f in each]
            done = pd.concat([done, pd.DataFrame(new, columns=done.columns)])
            with write_atomically(path) as file:
                done.to_csv(file, index=False, compression={"method": "gzip", "mtime": 0})
    return load_replays(table, path, count)


def regret(table):
    """Best val_accuracy of the table less that of each training, by number; to 6 decimals (an image is 0.00017), so
    that a training right on a bound is within it, however its float was rounded."""
    y = accuracy(table).set_axis(table.number)
    return (y.max() - y).round(6)


def regrets(table, replayed, budgets, within=0.005):
    """What searches have found. Two tables, by search and hyperband; q10, median and q90 over the replays of

    - regret by `budgets` of epochs: best val_accuracy of the table less the best that the replay has found,
    - runs and epochs until the regret is at most `within`: infinite where the replay has ended before.
    """
    left = regret(table)[replayed.number].to_numpy()
    spent, runs = replayed.epochs.to_numpy(), replayed.runs.to_numpy()
    before = accuracy(table).max() - 0.1  # regret before the first whole training, at chance
    so_far, needed = {}, {}
    for one, at in replayed.groupby(["search", "hyperband", "seed"]).indices.items():
        steps = np.array([before, *left[at]])
        so_far[one] = steps[np.searchsorted(spent[at], budgets, side="right")]
        first = at[left[at] <= within][:1]
        needed[one] = [*runs[first], *spent[first]] or [np.inf, np.inf]
    names, summary = {0.1: "q10", 0.5: "median", 0.9: "q90"}, []
    for values, columns in ((so_far, budgets), (needed, ["runs", "epochs"])):
        by = pd.DataFrame([*values.values()], pd.MultiIndex.from_tuples(values), columns).groupby(level=[0, 1])
        summary.append(by.quantile(list(names), interpolation="nearest").rename(names, level=2))
    return summary


def after(replayed, runs):
    """The number of the best training that each replay has found in so many runs, by search, hyperband and seed."""
    return replayed[replayed.runs <= runs].groupby(["search", "hyperband", "seed"]).number.last()


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


def noise(seeded, metric="val_accuracy", floor=0.8):
    """Standard deviation of `metric` over seeds, pooled over the trainings whose mean is above `floor`: what collapses
    under one seed and learns under another is a matter of its own."""
    by = seeded.groupby("number")[metric].agg(["mean", "var"])
    return math.sqrt(by["var"][by["mean"] > floor].mean())


def real(seeded, metric="val_accuracy"):
    """The least difference of two single trainings that is called real: two standard deviations of one, 2 sqrt(2)
    `noise`."""
    return 2 * math.sqrt(2) * noise(seeded, metric)


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
