"""Searches replayed on the whole grid: instead of training what a search asks for, the row is read."""

import zlib
from bisect import insort
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import BLAS, InputError
from lib import tables
from lib.anova import EPOCHS, PARAMETERS, REPLAYS, VALUES, accuracy, check_whole
from lib.parallel import deaf_to_ctrl_c, process_pool

# A search, replayed: instead of training what it asks for, the row is read, and its epochs are counted. A point is a
# configuration as indices into the values of PARAMETERS. Optuna's own sampler would take ten times as long.

BUDGET = 1000  # epochs of a search
SEARCHES = [(search, hyperband) for search in ("random", "tpe") for hyperband in (False, True)]
BANDS, ETA = (1, 3), 3  # W&B's hyperband with min_iter 1 and eta 3; its next band, 9 epochs of 10, would save nothing
SHAPE = np.array([len(values) for values in VALUES.values()])
STRIDE = np.cumprod([1, *SHAPE[:0:-1]])[::-1]  # point @ STRIDE is its number among all
OWNER = np.repeat(np.arange(len(SHAPE)), SHAPE)  # of each value of each parameter, one after another: the parameter
VALUE = np.concatenate([np.arange(k) for k in SHAPE])  # and which of its values it is
BY_NAME = np.argsort(np.argsort(PARAMETERS))  # the place of each in the order in which Optuna draws
STARTUP, CANDIDATES, GOOD, FULL = 10, 24, 25, 25  # Optuna's defaults; the last FULL points have weight 1, older less
REPLAYED = {  # columns of the stored replays
    "search": tables.one_of(["random", "tpe"]),
    "hyperband": tables.one_of([False, True], lambda text: {"False": False, "True": True}.get(text)),
    **dict.fromkeys(["seed", "runs", "epochs", "number", "table"], tables.COUNT),
}
KEY = ["search", "hyperband", "seed", "runs", "table"]  # no two rows have the same


def points_of(table):
    """Return the points (n, parameters) of a table, int."""
    return np.column_stack([table[name].map(values.index) for name, values in VALUES.items()])


def tpe(tried, ranked, rng, first):
    """Suggest the point that Optuna's TPESampler(multivariate=True) would, from the same random numbers.

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
    """Return the points of a mixture and the weights (m + 1) of its parts; the last is the uniform distribution."""
    old = max(len(points) - FULL, 0)
    weights = np.concatenate([np.linspace(1 / len(points), 1, old), np.ones(len(points) - old + 1)])
    return points, weights / weights.sum()


def _draw(points, weights, rng):
    """Draw CANDIDATES points from a mixture: a part by its weight, then each parameter by its probabilities."""
    u = rng.rand(1 + len(SHAPE), CANDIDATES)
    e = 1 / len(weights)
    part = np.cumsum(weights).searchsorted(u[0], side="right")
    uniform = part >= len(points)
    centre = points[np.where(uniform, 0, part)]
    v = np.arange(SHAPE.max() - 1)
    below = (v + 1) * e + ((v >= centre[:, :, None]) & ~uniform[:, None, None])  # (candidates, parameters, values)
    below = below / (SHAPE * e + ~uniform[:, None])[:, :, None]
    return ((below < u[1:][BY_NAME].T[:, :, None]) & (v < SHAPE[:, None] - 1)).sum(axis=2)


def _density(x, points, weights):
    """Return p(x) of a mixture, from the number of parameters that x shares with each of its points."""
    e = 1 / len(weights)
    n = np.arange(len(SHAPE) + 1)
    alike = (x[:, OWNER] == VALUE).astype(float) @ (points[:, OWNER] == VALUE).T.astype(float)
    near = (1 + e) ** n * e ** n[::-1] / np.prod(1 + SHAPE * e)
    return near[alike.astype(int)] @ weights[:-1] + weights[-1] / np.prod(SHAPE)


@BLAS.wrap(limits=1, user_api="blas")
def replay(curves, points, search, hyperband, seed, budget=BUDGET):
    """Replay a search until it has spent its budget of epochs; the same seed gives the same.

    curves: val_accuracy (n, EPOCHS) of the rows of a whole table; points: of the rows. search: "random", uniform with
    replacement, or "tpe" (see `tpe`). hyperband: stop a run after an epoch of BANDS if it is not in the best 1/ETA of
    all runs so far, as sweep.py and W&B do. Returns a list of (runs, epochs spent, row): one whenever a run
    trained to its end is better than all before.
    """
    suggest = _suggester(points, search, seed, budget)
    seen = {band: [] for band in BANDS if hyperband}
    ranked = []  # all runs, best first: (-epochs, -value, run)
    found = []
    best = -1
    spent = 0
    runs = 0
    while spent < budget:
        row = suggest(runs, [run for *_, run in ranked[:GOOD]])
        epochs = _epochs_trained(curves[row], seen)
        value = curves[row, epochs - 1]
        insort(ranked, (-epochs, -value, runs))  # as Optuna: those trained whole first, then those ended later
        runs += 1
        spent += epochs
        if epochs == EPOCHS and value > best and spent <= budget:
            best = value
            found.append((runs, spent, row))
    return found


def _suggester(points, search, seed, budget):
    """Make suggest(run, best): the row that the search asks for, given the `best` runs so far, best first."""
    if search == "random":
        rng = np.random.default_rng(seed)
        return lambda run, best: int(rng.integers(len(points)))
    row_of = np.argsort(points @ STRIDE)
    tried = np.empty((budget, len(SHAPE)), int)
    mixture = np.random.RandomState(seed)
    first = np.random.RandomState(seed)

    def suggest(run, best):
        tried[run] = tpe(tried[:run], best, mixture, first)
        return int(row_of[tried[run] @ STRIDE])

    return suggest


def _epochs_trained(curve, seen):
    """Return how many epochs of a run are trained; add its accuracy at each band to those `seen` there."""
    for band, values in seen.items():
        value = curve[band - 1]
        insort(values, value)
        if value < values[-1 - len(values) // ETA]:
            return band
    return EPOCHS


def _curves(table):
    return np.column_stack([accuracy(table, epoch) for epoch in range(1, EPOCHS + 1)])


def _replays(table, path):
    """Read the stored replays of this table, which is known by its checksum; return them and the checksum."""
    there = Path(path).exists()
    stored = tables.read_table(path, REPLAYED, _check, KEY) if there else pd.DataFrame(columns=list(REPLAYED))
    checksum = zlib.crc32(np.ascontiguousarray(_curves(table)))
    stored = stored[stored.table == checksum]
    if unknown := sorted(set(stored.number) - set(table.number)):
        raise InputError(f"{path}: number is {unknown[0]}; allowed: trainings of the grid; {tables.REMEDY}")
    return stored, checksum


def _check(row):
    """Raise InputError for a row of a replay that contradicts itself: a run has an epoch, or more."""
    if not 1 <= row["runs"] <= row["epochs"] <= BUDGET:
        sentence = f"runs is {row['runs']} and epochs {row['epochs']}"
        raise InputError(f"{sentence}; allowed: at least a run, an epoch for each, and at most {BUDGET} epochs")


def load_replays(table, path=REPLAYS, count=1000):
    """Read what `replays` has stored.

    Columns: search, hyperband, seed; runs, epochs and number whenever a replay had found a better training; the table's
    checksum. Raises InputError unless all replays of this very table are there.
    """
    done, _ = _replays(table, path)
    done = done[done.seed < count].reset_index(drop=True)
    there = len(done[["search", "hyperband", "seed"]].drop_duplicates())
    if there < count * len(SEARCHES):
        wanted = f"all {count * len(SEARCHES):,}, which `python grid.py replay` makes"
        raise InputError(f"{path} has {there:,} replays of this table; allowed: {wanted}")
    return done


def replays(table, count=1000, path=REPLAYS):
    """Replay each of SEARCHES `count` times, side by side; return what `load_replays` does.

    What is stored at `path` is not done again, if it is of this table; what is not is added there. Raises InputError
    for a table that is not whole.
    """
    check_whole(table)
    done, checksum = _replays(table, path)
    known = set(done[["search", "hyperband", "seed"]].itertuples(index=False, name=None))
    missing = [(*one, seed) for seed in range(count) for one in SEARCHES if (*one, seed) not in known]
    work = partial(replay, _curves(table), points_of(table))
    with process_pool() as pool:
        for start in range(0, len(missing), 400):
            some = missing[start : start + 400]
            with deaf_to_ctrl_c():
                replayed = pool.map(work, *zip(*some), chunksize=10)
            rows = []
            for one, found in zip(some, replayed):
                rows += [(*one, runs, epochs, table.number.iloc[row], checksum) for runs, epochs, row in found]
            done = pd.concat([done, pd.DataFrame(rows, columns=done.columns)])
            tables.write_table(path, done)
    return load_replays(table, path, count)


def regret(table):
    """Return the best val_accuracy of the table less that of each training, by number.

    Rounded to 6 decimals (an image is 0.00017), so that a training right on a bound is within it.
    """
    y = accuracy(table).set_axis(table.number)
    return (y.max() - y).round(6)


def regrets(table, replayed, budgets, within=0.005):
    """Summarise what searches have found: two tables, by search and hyperband, of q10, median and q90 over replays of

    - regret by `budgets` of epochs: best val_accuracy of the table less the best that the replay has found,
    - runs and epochs until the regret is at most `within`: infinite if a replay ended before that.
    """
    left = regret(table)[replayed.number].to_numpy()
    spent = replayed.epochs.to_numpy()
    runs = replayed.runs.to_numpy()
    before = accuracy(table).max() - 0.1  # regret before the first whole training, at chance
    so_far = {}
    needed = {}
    for one, at in replayed.groupby(["search", "hyperband", "seed"]).indices.items():
        steps = np.array([before, *left[at]])
        so_far[one] = steps[np.searchsorted(spent[at], budgets, side="right")]
        first = at[left[at] <= within][:1]
        needed[one] = [*runs[first], *spent[first]] or [np.inf, np.inf]
    names = {0.1: "q10", 0.5: "median", 0.9: "q90"}
    summary = []
    for values, columns in ((so_far, budgets), (needed, ["runs", "epochs"])):
        by = pd.DataFrame([*values.values()], pd.MultiIndex.from_tuples(values), columns).groupby(level=[0, 1])
        summary.append(by.quantile(list(names), interpolation="nearest").rename(names, level=2))
    return summary


def after(replayed, runs):
    """Return the number of the best training that each replay has found after `runs` runs."""
    return replayed[replayed.runs <= runs].groupby(["search", "hyperband", "seed"]).number.last()
