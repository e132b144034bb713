"""The reference report's claims, tested on the sweeps and on the grid: differences, intervals, one rule for verdicts.

A difference is measured between trainings that have all else equal: matched pairs on the grid, the same seeds in a
study. Its interval is that of Student's t, 95 %. `verdict` is the one rule by which a claim is called right or wrong.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from helpers import InputError
from lib import anova

FLOOR = 0.8  # a training that passes it has learned; a mean over pairs is taken where both have
ADAPTIVE = ["rmsprop", "adam", "nadam"]


# ----------------------------------------------------------------------------------------------------------- statistics


def minus(text):
    """Return a text of numbers with minus signs in the place of hyphens."""
    return text.replace("-", "−")


class Difference(NamedTuple):
    """A mean difference, its 95 % interval, the p-value of Student's t test against 0, and the number of values."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self):
        return minus(f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})")


def paired(first, second):
    """Return the Difference first - second of values that belong together one by one, for example by their seed."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    if len(gaps) < 2:
        return Difference(gaps.mean() if len(gaps) else np.nan, np.nan, np.nan, np.nan, len(gaps))
    test = stats.ttest_1samp(gaps, 0)
    return Difference(gaps.mean(), *test.confidence_interval(), test.pvalue, len(gaps))


def welch(first, second):
    """Return the Difference first - second of two independent samples, by Welch's t test; n is that of both."""
    test = stats.ttest_ind(first, second, equal_var=False)
    return Difference(
        np.mean(first) - np.mean(second), *test.confidence_interval(), test.pvalue, len(first) + len(second)
    )


def holm(p_values):
    """Return Holm's adjusted p-values (a Series like p_values): p_(i) times the tests left, never less than before."""
    ordered = p_values.sort_values()
    left = np.arange(len(ordered), 0, -1)
    return (ordered * left).cummax().clip(upper=1)[p_values.index]


def wilson(count, n):
    """Return the 95 % interval (low, high) of a share that is `count` of n, by Wilson's score."""
    return tuple(stats.binomtest(count, n).proportion_ci(method="wilson"))


def share(passed):
    """Return the share of what is true in `passed`, as (share, low, high, n), with its 95 % interval (`wilson`)."""
    count, n = int(np.sum(passed)), len(passed)
    return count / n, *wilson(count, n), n


def chance_band(n):
    """Return the size below which 95 % of the correlations of n unrelated runs lie."""
    return 1.96 / np.sqrt(n - 1)


def binomial_error(accuracy, n):
    """Return the standard error of an accuracy that n images measure."""
    return np.sqrt(accuracy * (1 - accuracy) / n)


def told_apart(difference):
    """Return in words whether a Difference is established."""
    return "established" if difference.p < 0.05 else "not established"


def spread(values):
    """Return 'mean ± standard deviation' over seeds; of one seed its value alone."""
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def verdict(low, high, bound=0.0):
    """Return what an interval says of the claim that its quantity is above `bound`: holds, fails, or undecided."""
    return "holds" if low > bound else "fails" if high < bound else "undecided"


def together(verdicts):
    """Return the verdict of a claim of several parts: that of all, if they agree, otherwise partly."""
    return verdicts[0] if len(set(verdicts)) == 1 else "partly"


def tested(tables):
    """Return what each measure adds to "nothing": mean gain with its interval, n, p, and Holm's p over all of them.

    tables: {base: accuracies}, a row for each measure and for "nothing", a column for each seed. Seeds are blocks. All
    gains of a base share one row "nothing", so the error is that of the residuals of measure and seed, pooled over the
    bases: s^2 = sum of squares / sum of (rows - 1) (n - 1), and the standard error of a gain is s sqrt(2 / n).
    """
    squares, freedom, found = 0.0, 0, {}
    for base, values in tables.items():
        n = values.shape[1]
        means = values.mean(axis=1)
        found[base] = pd.DataFrame({"gain": means.drop("nothing") - means["nothing"], "n": n})
        residual = values.sub(means, axis=0) - values.mean(axis=0) + values.to_numpy().mean()
        squares += (residual**2).to_numpy().sum()
        freedom += (len(values) - 1) * (n - 1)
    table = pd.concat(found)
    error = np.sqrt(2 * squares / freedom / table.n)
    half = stats.t.ppf(0.975, freedom) * error
    table["low"] = table.gain - half
    table["high"] = table.gain + half
    table["p"] = 2 * stats.t.sf(np.abs(table.gain) / error, freedom)
    table["holm"] = holm(table.p)
    return table


def points_of(table, base):
    """Return validation accuracies in points of the trainings on `base`: a row for each measure, a column per seed."""
    return table[table.base == base].pivot(index="measure", columns="seed", values="val_accuracy") * 100


def recommended(table):
    """Return what each measure adds in points over twice as many epochs, tested (see `tested`), best first."""
    return tested({"long": points_of(table, "long")}).loc["long"].sort_values("gain", ascending=False)


# ---------------------------------------------------------------------------------------------------- pairs on the grid


class Pairs(NamedTuple):
    """Matched pairs: how many, the share that the first value wins, and its Difference where both have learned."""

    n: int
    won: float
    gain: Difference

    def __str__(self):
        told = f"{self.won:.0%} of {self.n:,} pairs".replace("%", " %")
        return f"{told}; {self.gain}, n = {self.gain.n:,}" if self.gain.n > 1 else told


def match(table, column, first, second):
    """Return the accuracies (two columns) of all trainings that differ in `column` only: first against second.

    Raises InputError for a parameter or a value that the grid does not have, and if the table has no such pair.
    """
    anova.check_values(column, [first, second])
    others = [name for name in anova.PARAMETERS if name != column]
    sides = [table.loc[table[column] == value, [*others, "accuracy"]] for value in (first, second)]
    both = sides[0].merge(sides[1], on=others, suffixes=("_first", "_second"))
    if both.empty:
        raise InputError(f"{column} is {first!r} and {second!r}; allowed: two values that this table has")
    return both[["accuracy_first", "accuracy_second"]].set_axis(["first", "second"], axis=1)


def pairs(table, column, first, second):
    """Return the Pairs of trainings of the grid that differ in `column` only: first against second."""
    both = match(table, column, first, second)
    learned = both[both.min(axis=1) > FLOOR]
    return Pairs(len(both), (both["first"] > both["second"]).mean(), paired(learned["first"], learned["second"]))


def sooner(table, first, second, floor=0.85):
    """Return how many pairs of optimisers reach `floor` at all, and the share in which `first` does so earlier."""
    table = table.assign(accuracy=-anova.first_epoch(table, floor).fillna(np.inf))
    both = match(table, "optimizer", first, second)
    both = both[both.max(axis=1) > -np.inf]
    return len(both), (both["first"] > both["second"]).mean()


# ---------------------------------------------------------------------------------- the reference report's observations


def percent(value, digits=0):
    """Return 0.123 as '12 %'."""
    return f"{100 * value:.{digits}f} %"


def _passing(table, floor, metric="accuracy"):
    return (table[metric] > floor).mean()


def _never(grid, runs, column, value, floor):
    """Return the row of the claim that no training with this value passes `floor`: one that does refutes it."""
    on_grid = grid[grid[column] == value]
    in_runs = runs[runs[column] == value]
    return (
        f"best of {len(in_runs)} runs {in_runs.best_val_accuracy.max():.4f}",
        f"{percent(_passing(on_grid, floor))} of {len(on_grid):,} pass, best {on_grid.accuracy.max():.4f}",
        "fails" if max(on_grid.accuracy.max(), in_runs.best_val_accuracy.max()) > floor else "holds",
    )


def _mostly(grid, living, random, value, floor=0.85):
    """Return the row of the claim that most trainings with an activation pass `floor`: of all, and of the living."""
    part, _, _, n = share(random[random.activation == value].best_val_accuracy > floor)
    shares = [share(rows.accuracy[rows.activation == value] > floor) for rows in (grid, living)]
    told = "; without decay 0.5 ".join(f"{percent(one[0])} of {one[3]:,}" for one in shares)
    return f"{percent(part)} of {n} runs", told, together([verdict(*one[1:3], 0.5) for one in shares])


def _better(pairs, in_runs="–", which=""):
    """Return the row of the claim that one value is better than another: both the share won and the gain decide."""
    by_gain = verdict(pairs.gain.low, pairs.gain.high)
    by_share = verdict(*wilson(round(pairs.won * pairs.n), pairs.n), 0.5)
    return in_runs, f"{which}{pairs}", together([by_gain, by_share])


def _rates(grid, runs):
    """Return the row of the claim that rate 0.001 is best: on the grid for each optimiser, in the sweeps for others."""
    wins = {name: pairs(rows, "learning_rate", 0.001, 0.0001) for name, rows in grid.groupby("optimizer")}
    won = [pair.won for pair in wins.values()]
    n = next(iter(wins.values())).n
    top = runs.nlargest(10, "best_val_accuracy").learning_rate
    others = runs[~runs.optimizer.isin(ADAPTIVE)].nlargest(5, "best_val_accuracy").learning_rate
    apart = others.median() > 0.005  # five times the rate that is claimed to be best
    return (
        f"ten best {top.min():.2g} to {top.max():.2g}; best of sgd and its like {others.iloc[0]:.2g}",
        f"beats 0.0001 in {percent(min(won))} to {percent(max(won))} of {n} pairs of each optimiser",
        together([verdict(*wilson(round(min(won) * n), n), 0.5), "fails" if apart else "holds"]),
    )


def _epochs(grid):
    """Return the row of the claim that nadam and adam take about 20 epochs, and SGD more."""
    first = {name: anova.first_epoch(rows, 0.85).dropna() for name, rows in grid.groupby("optimizer")}
    n, early = sooner(grid, "adam", "sgd")
    half = max(first[name].median() for name in ("adam", "nadam"))
    return (
        "–",
        f"adam first to 85 % in {percent(early)} of {n} pairs; half of those there by epoch {half:.0f}",
        together([verdict(*wilson(round(early * n), n), 0.5), "holds" if half > 15 else "fails"]),
    )


def _counted(grid, random, optimizer):
    """Return the row of the claim that an optimiser works in one case only."""
    on_grid, in_random = (
        (rows[rows.optimizer == optimizer][metric] > FLOOR)
        for rows, metric in ((grid, "accuracy"), (random, "best_val_accuracy"))
    )
    counts = [f"{passed.sum():,} of {len(passed):,} pass {percent(FLOOR)}" for passed in (in_random, on_grid)]
    return *counts, "holds" if on_grid.sum() <= 1 else "fails"


def _decays(random, measures):
    """Return the row of the claim that decay 0.001 or 0.005 helps, by trainings of the selected network with Adam."""
    rows = random[random.optimizer.isin(ADAPTIVE)]
    strong = rows.weight_decay >= 0.001
    gain = welch(rows.best_val_accuracy[strong], rows.best_val_accuracy[~strong])
    told = f"{gain}, {strong.sum()} runs against {(~strong).sum()}"
    gains = [measures.loc[f"L2 decay, {decay}"] for decay in (0.001, 0.005)]
    costs = " and ".join(minus(f"{one.gain:+.2f}") for one in gains)
    return told, f"Appendix B: {costs} points", together([verdict(one.low, one.high) for one in gains])


def observations(stored):
    """Return the table of the reference report's claims: what the sweeps say, what the grid says, and a verdict.

    Decay 0.5, with which nothing learns, is left out, except where a claim is about most trainings.
    """
    grid, runs = stored.living, stored.runs[stored.runs.weight_decay < 0.5]
    random = runs.loc["random"]
    top = runs.nlargest(10, "best_val_accuracy").optimizer.value_counts()
    by_init = {name: random[random.weight_init == name].best_val_accuracy > 0.85 for name in ("Xavier", "random")}
    starts = ", ".join(f"{name} {percent(passed.mean())} of {len(passed)}" for name, passed in by_init.items())
    decays = adaptive_medians(random)
    wide = ", ".join(
        f"{best:.4f} ({width})" for width, best in runs.groupby("hidden_size").best_val_accuracy.max().items()
    )
    rows = {
        "Nesterov never passes 16.1 %": _never(grid, runs, "optimizer", "nag", 0.161),
        "sigmoid never passes 20 %": _never(grid, runs, "activation", "sigmoid", 0.2),
        "tanh is mostly above 85 %": _mostly(stored.grid, grid, random, "tanh"),
        "ReLU is mostly above 85 %": _mostly(stored.grid, grid, random, "ReLU"),
        "Xavier beats random": _better(pairs(grid, "weight_init", "Xavier", "random"), f"above 85 %: {starts}"),
        "nadam and adam take about 20 epochs, SGD more": _epochs(grid),
        "momentum works in one case only": _counted(grid, random, "momentum"),
        "decay 0.0005 is best for adaptive optimisers": _better(
            pairs(stored.adaptive, "weight_decay", 0.0005, 0), f"median {decays}"
        ),
        "learning rate 0.001 is best": _rates(grid, runs),
        "for 95 %: 64 or 128 neurons": _better(pairs(grid, "hidden_size", 64, 32), f"best {wide}", "64 against 32: "),
        "for 95 %: adam rather than Nesterov": _better(
            pairs(grid, "optimizer", "adam", "nag"),
            "ten best: " + ", ".join(f"{count} {name}" for name, count in top.items()),
        ),
        "for 95 %: RMSprop as good as adam": _better(pairs(grid, "optimizer", "rmsprop", "adam")),
        "for 95 %: decay of 0.001 or 0.005": _decays(random, recommended(stored.recommended)),
    }
    return pd.DataFrame(rows, ["in the sweeps", "on the grid, seed 0", "verdict"]).T.rename_axis("the reference report")


def adaptive_medians(random):
    """Return 'decay median, ...' of the adaptive optimisers in the random sweep."""
    medians = (
        random[random.optimizer.isin(ADAPTIVE) & (random.weight_decay < 0.001)]
        .groupby("weight_decay")
        .best_val_accuracy.agg(["median", "size"])
    )
    return ", ".join(f"{row['median']:.3f} ({decay:g}, n = {row['size']:.0f})" for decay, row in medians.iterrows())
