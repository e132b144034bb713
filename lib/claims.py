"""What the report says, tested on its tables: differences with intervals, verdicts by one rule, the rows of tables.

A difference is measured between trainings that have all else equal: matched pairs on the grid, the same seeds in a
study. Its interval is that of Student's t, 95 %. `verdict` is the one rule by which a claim is called right or wrong.
"""

import json
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

import helpers
from lib import anova, layers, replay, studies
from lib.dataset import DATA_DIR
from lib.plots import words
from lib.tables import agree, machine, read_table

FLOOR = 0.8  # a training that passes it has learned; a mean over pairs is taken where both have
ADAPTIVE = ["rmsprop", "adam", "nadam"]
TOPS = ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt")


# --------------------------------------------------------------------------------------------------------------- tables


def read_tables(folder=DATA_DIR):
    """Return all stored tables that the report quotes, as attributes.

    sweeps {name: runs}, runs (both); grid with `accuracy`, living (without decay 0.5), adaptive (of that, the adaptive
    optimisers), seeded (its further seeds), replays; each study by its name, that of MNIST with the `name` of its
    configurations; ablation and final (networks towards 95 %).
    """
    sweeps = {name: read_sweep(folder / "sweeps", name) for name in ("random", "bayes")}
    grid = anova.load_grid(folder / "grid.csv.gz")
    grid["accuracy"] = anova.accuracy(grid)
    tables = {path.stem: read_table(path) for path in sorted((folder / "studies").glob("*.csv"))}
    tables["mnist"] = studies.named(tables["mnist"], studies.mnist(folder / "sweeps"))
    towards95 = {name: pd.read_csv(folder / "towards95" / f"{name}.csv") for name in ("ablation", "final")}
    seeded = pd.read_csv(folder / "grid_seeds.csv")
    replays = replay.load_replays(grid, folder / "grid_replays.csv.gz")
    grids = {"grid": grid, "living": grid[grid.weight_decay < 0.5], "seeded": seeded, "replays": replays}
    grids["adaptive"] = grids["living"][grids["living"].optimizer.isin(ADAPTIVE)]
    return SimpleNamespace(sweeps=sweeps, runs=pd.concat(sweeps), **grids, **tables, **towards95)


def read_sweep(folder, name):
    """Return the runs of a stored sweep, with what its .json file says of the sweep as attributes."""
    runs = read_table(folder / f"{name}.csv", parse_dates=["created"])
    runs.attrs.update(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    return runs


def compare(study, seed, history):
    """Return a sentence: the training just made, by its history, beside the stored one of this seed."""
    row = study[study.seed == seed].iloc[0]
    now = [epoch["val_accuracy"] for epoch in history]
    then, same = row.val_accuracy_history[: len(now)], row.machine == machine()
    how = "the same machine, to the last bit" if same else "another machine, within its rounding"
    outcome = "agree" if agree(then, now, same) else "DISAGREE"
    return f"seed {seed}, trained again just now: {now[-1]:.4f}; stored: {then[-1]:.4f}; {outcome} ({how})"


# ----------------------------------------------------------------------------------------------------------- statistics


class Difference(NamedTuple):
    """A mean difference, its 95 % interval, the p-value of Student's t test against 0, and the number of values."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self):
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


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


def share(passed):
    """Return a share as (share, low, high, n), its 95 % interval by Wilson's score."""
    test = stats.binomtest(int(np.sum(passed)), len(passed))
    low, high = test.proportion_ci(method="wilson")
    return test.statistic, low, high, len(passed)


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
    """Return 'mean ± standard deviation' over seeds."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def verdict(low, high, bound=0.0):
    """Return what an interval says of the claim that its quantity is above `bound`: holds, fails, or undecided."""
    return "holds" if low > bound else "fails" if high < bound else "undecided"


def together(verdicts):
    """Return the verdict of a claim of several parts: that of all, if they agree, otherwise partly."""
    return verdicts[0] if len(set(verdicts)) == 1 else "partly"


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
    """Return the accuracies (two columns) of all trainings that differ in `column` only: first against second."""
    others = [name for name in anova.PARAMETERS if name != column]
    sides = [table.loc[table[column] == value, [*others, "accuracy"]] for value in (first, second)]
    both = sides[0].merge(sides[1], on=others, suffixes=("_first", "_second"))
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
    on_grid, in_runs = grid[grid[column] == value], runs[runs[column] == value]
    return (
        f"best of {len(in_runs)} runs {in_runs.best_val_accuracy.max():.4f}",
        f"{percent(_passing(on_grid, floor))} of {len(on_grid):,} pass, best {on_grid.accuracy.max():.4f}",
        "fails" if max(on_grid.accuracy.max(), in_runs.best_val_accuracy.max()) > floor else "holds",
    )


def _mostly(grid, random, value, floor=0.85):
    """Return the row of the claim that most trainings with an activation pass `floor`."""
    on_grid = grid[grid.activation == value]
    part, _, _, n = share(random[random.activation == value].best_val_accuracy > floor)
    found, low, high, _ = share(on_grid.accuracy > floor)
    return f"{percent(part)} of {n} runs", f"{percent(found)} of {len(on_grid):,}", verdict(low, high, 0.5)


def _better(pairs, in_runs="–"):
    """Return the row of the claim that one value is better than another: both the share won and the gain decide."""
    by_gain = verdict(pairs.gain.low, pairs.gain.high)
    by_share = verdict(*share(np.arange(pairs.n) < round(pairs.won * pairs.n))[1:3], 0.5)
    return in_runs, str(pairs), together([by_gain, by_share])


def _rates(grid, runs):
    """Return the row of the claim that rate 0.001 is best: on the grid for each optimiser, in the sweeps for others."""
    wins = {name: pairs(rows, "learning_rate", 0.001, 0.0001) for name, rows in grid.groupby("optimizer")}
    won = [pair.won for pair in wins.values()]
    n = next(iter(wins.values())).n
    top = runs.nlargest(10, "best_val_accuracy").learning_rate
    others = runs[~runs.optimizer.isin(ADAPTIVE)].nlargest(5, "best_val_accuracy").learning_rate
    apart = others.median() > 0.005  # five times the rate that is claimed to be best
    return (
        f"ten best {top.min():.2g} to {top.max():.2g}; five best without adaptive steps "
        f"{others.min():.2g} to {others.max():.2g}",
        f"beats 0.0001 in {percent(min(won))} ({min(wins, key=lambda name: wins[name].won)}) to {percent(max(won))} "
        f"of {n} pairs of each optimiser",
        together([verdict(*share(np.arange(n) < round(min(won) * n))[1:3], 0.5), "fails" if apart else "holds"]),
    )


def _epochs(grid):
    """Return the row of the claim that nadam and adam take about 20 epochs, and SGD more."""
    first = {name: anova.first_epoch(rows, 0.85).dropna() for name, rows in grid.groupby("optimizer")}
    n, early = sooner(grid, "adam", "sgd")
    half = max(first[name].median() for name in ("adam", "nadam"))
    return (
        "–",
        f"adam is first to 85 % in {percent(early)} of {n} pairs; half of the adam and nadam trainings that get there "
        f"do so by epoch {half:.0f}",
        together([verdict(*share(np.arange(n) < round(early * n))[1:3], 0.5), "holds" if half > 15 else "fails"]),
    )


def _counted(grid, random, optimizer):
    """Return the row of the claim that an optimiser works in one case only."""
    on_grid, in_random = (
        (rows[rows.optimizer == optimizer][metric] > FLOOR)
        for rows, metric in ((grid, "accuracy"), (random, "best_val_accuracy"))
    )
    counts = [f"{passed.sum():,} of {len(passed):,} pass {percent(FLOOR)}" for passed in (in_random, on_grid)]
    return *counts, "holds" if on_grid.sum() <= 1 else "fails"


def _decays(random):
    """Return the row of the claim that decay 0.001 or 0.005 is better than less, for adaptive optimisers."""
    rows = random[random.optimizer.isin(ADAPTIVE)]
    strong = rows.weight_decay >= 0.001
    gain = welch(rows.best_val_accuracy[strong], rows.best_val_accuracy[~strong])
    told = f"{gain}, {strong.sum()} runs against {(~strong).sum()}"
    return told, "–", verdict(gain.low, gain.high)


def observations(stored):
    """Return the table of the reference report's claims: what the sweeps say, what the grid says, and a verdict.

    Decay 0.5, with which nothing learns, is left out.
    """
    grid, runs = stored.living, stored.runs[stored.runs.weight_decay < 0.5]
    random = runs.loc["random"]
    top = runs.nlargest(10, "best_val_accuracy").optimizer.value_counts()
    by_init = {name: random[random.weight_init == name].best_val_accuracy > 0.85 for name in ("Xavier", "random")}
    starts = ", ".join(f"{name} {percent(passed.mean())} of {len(passed)}" for name, passed in by_init.items())
    decays = adaptive_medians(random)
    wide = ", ".join(
        f"{width}: {best:.4f}" for width, best in runs.groupby("hidden_size").best_val_accuracy.max().items()
    )
    rows = {
        "Nesterov never passes 16.1 %": _never(grid, runs, "optimizer", "nag", 0.161),
        "sigmoid never passes 20 %": _never(grid, runs, "activation", "sigmoid", 0.2),
        "tanh is mostly above 85 %": _mostly(grid, random, "tanh"),
        "ReLU is mostly above 85 %": _mostly(grid, random, "ReLU"),
        "Xavier beats random": _better(pairs(grid, "weight_init", "Xavier", "random"), f"above 85 %: {starts}"),
        "nadam and adam take about 20 epochs, SGD more": _epochs(grid),
        "momentum works in one case only": _counted(grid, random, "momentum"),
        "decay 0.0005 is best for adaptive optimisers": _better(
            pairs(stored.adaptive, "weight_decay", 0.0005, 0), f"median by decay: {decays}"
        ),
        "learning rate 0.001 is best": _rates(grid, runs),
        "for 95 %: 64 or 128 neurons": _better(pairs(grid, "hidden_size", 64, 32), f"best by width: {wide}"),
        "for 95 %: adam rather than Nesterov": _better(
            pairs(grid, "optimizer", "adam", "nag"),
            "ten best: " + ", ".join(f"{count} {name}" for name, count in top.items()),
        ),
        "for 95 %: RMSprop as good as adam": _better(pairs(grid, "optimizer", "rmsprop", "adam")),
        "for 95 %: decay of 0.001 or 0.005": _decays(random),
    }
    return pd.DataFrame(rows, ["in the sweeps", "on the grid, seed 0", "verdict"]).T.rename_axis("the reference report")


def adaptive_medians(random):
    """Return 'decay median, ...' of the adaptive optimisers in the random sweep."""
    medians = random[random.optimizer.isin(ADAPTIVE)].groupby("weight_decay").best_val_accuracy.agg(["median", "size"])
    return ", ".join(f"{decay:g}: {row['median']:.3f} (n = {row['size']:.0f})" for decay, row in medians.iterrows())


# ------------------------------------------------------------------------------------------------ Question 2: the start


def signal(weight_init, activation, images, labels, width=64, depth=10):
    """Return what a new network makes of images: per layer the spread of a unit over them, and dJ/dW's size."""
    network = helpers.Network([784] + [width] * depth + [10], activation, weight_init, np.random.default_rng(0))
    return health(network, images, labels)


def health(network, images, labels):
    """Return per layer the mean spread of a unit's output over the images, and the root mean square of dJ/dW."""
    network.objective(images, labels)
    spreads = [float(a.std(axis=0).mean()) for a in network.a[1:]]
    return [spreads, [float(np.sqrt(np.mean(dW**2))) for dW in network.dW]]


def saturated(network, images):
    """Return the share of sigmoid outputs in the hidden layers that are below 0.02 or above 0.98."""
    network.forward(images)
    return float(np.mean([np.mean((a < 0.02) | (a > 0.98)) for a in network.a[1:]]))


# ------------------------------------------------------------------------------------ Question 3: gradients, optimisers


def gradient_checks(seed=0):
    """Return the relative error of backpropagation by activation (rows), loss and decay (columns), in float64."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(11, 7)), rng.integers(0, 3, 11)
    table = {}
    for activation in helpers.ACTIVATIONS:
        for loss in ("cross_entropy", "mean_squared_error"):
            for decay in (0, 0.1):
                network = helpers.Network([7, 5, 9, 3], activation, "Xavier", rng, np.float64)
                for b in network.b:
                    b[:] = rng.normal(size=b.shape)
                error = helpers.gradient_check(network, x, y, loss, decay)
                table.setdefault(f"{words(loss)}, λ = {decay}", {})[activation] = error
    return pd.DataFrame(table).rename_axis("activation")


def worked_example():
    """Return the vectors of Question 3's example: p, delta_2 of both losses, and of one delta_2 W_2^T and delta_1."""
    z, y, a = np.array([[2.0, 1.0, 0.0]]), np.array([0]), np.array([[0.6, -0.4]])
    W = np.array([[1.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    deltas = {loss: helpers.LOSSES[loss](z, y)[1] for loss in ("cross_entropy", "mean_squared_error")}
    back = deltas["cross_entropy"] @ W.T
    return SimpleNamespace(p=helpers.softmax(z), back=back, delta=back * (1 - a**2), **deltas)


def vector(values):
    """Return a vector as '(0.67, -0.24)'."""
    return "(" + ", ".join(f"{value:.3f}" for value in np.ravel(values)) + ")"


def bound(value):
    """Return the power of ten above a value."""
    return 10.0 ** np.ceil(np.log10(value))


CURVATURE = np.array([1.0, 25.0])


def ravine(theta):
    """Return the gradient of J = (theta_1^2 + 25 theta_2^2) / 2: long in one direction, steep in the other."""
    return CURVATURE * theta


def path(name, rate, steps=60, start=(-4.0, 1.5)):
    """Return the points (steps + 1, 2) that an optimiser of helpers.py visits in the ravine."""
    theta = np.array(start)
    step, _ = helpers.OPTIMIZERS[name](theta, helpers.Config(optimizer=name, learning_rate=rate))
    points = [theta.copy()]
    for t in range(1, steps + 1):
        loss = float(theta @ ravine(theta)) / 2
        step(ravine(theta), t, rate, loss)
        points.append(theta.copy())
    return np.array(points)


def trial(stored, optimizer):
    """Return the best validation accuracy of an optimiser's trial in Question 3."""
    return stored.optimizers.set_index("optimizer").val_accuracy[optimizer]


def history(row):
    """Return a row of a study as the history that `train` returned: a dictionary for each epoch."""
    metrics = {name: getattr(row, f"{name}_history") for name in helpers.METRICS}
    return [dict(zip(metrics, values)) for values in zip(*metrics.values())]


def rates_in_words(study):
    """Return 'sgd 0.1, momentum 0.02, ...' of the rows of a study."""
    return ", ".join(f"{row.optimizer} {row.learning_rate:g}" for row in study.itertuples())


def last(study, metric="val_accuracy"):
    """Return the accuracies of a study's rows after their last epoch."""
    return study[f"{metric}_history"].str[-1].tolist()


# --------------------------------------------------------------------------------------------------------------- sweeps


def sweep_summary(sweeps):
    """Return the table of both sweeps: runs by state, epochs, median and best accuracy, wall time."""
    columns = {}
    for name, runs in sweeps.items():
        columns[name] = {
            "runs": len(runs),
            "complete": (runs.state == "complete").sum(),
            "ended early by hyperband": (runs.state == "pruned").sum(),
            "loss not finite": (runs.state == "not finite").sum(),
            "epochs trained": sum(map(len, runs.val_accuracy_history)),
            "median of best validation accuracy": f"{runs.best_val_accuracy.median():.4f}",
            "best validation accuracy": f"{runs.best_val_accuracy.max():.4f}",
            "wall time, two workers": f"{runs.attrs['wall_seconds'] / 60:.1f} min",
        }
    return pd.DataFrame(columns)


def top_run(runs):
    """Return the run of best validation accuracy."""
    return runs.sort_values("best_val_accuracy").iloc[-1]


def run_in_words(run):
    """Return a run's configuration as a phrase."""
    return (
        f"{run.num_layers} hidden layers of {run.hidden_size}, {run.activation}, {run.optimizer}, learning rate "
        f"{run.learning_rate:.3g}, batch {run.batch_size}, {run.weight_init} initialisation, decay "
        f"{run.weight_decay:.2g}, {run.epochs} epochs"
    )


def run_that_passed(sweeps):
    """Return the number, from 1, of the first Bayes run that is better than all random runs."""
    return 1 + int(sweeps["bayes"].best_val_accuracy.gt(sweeps["random"].best_val_accuracy.max()).to_numpy().argmax())


# ------------------------------------------------------------------------------------------- Question 7: the best model


def seeds_table(study):
    """Return the rows of a study of one configuration by seed, with their mean and deviation."""
    columns = ["epoch", "train_accuracy", "val_accuracy", "test_accuracy"]
    by_seed = study.set_index("seed")[columns]
    table = pd.concat([by_seed, by_seed.agg(["mean", "std"])]).rename(index={"std": "deviation"})
    shown = {name: table[name].map(("{:.1f}" if name == "epoch" else "{:.4f}").format) for name in columns}
    shown["epoch"][by_seed.index] = by_seed.epoch.map("{:.0f}".format)
    return pd.DataFrame(shown).rename(columns=words).rename(columns={"epoch": "best epoch"}).rename_axis("seed")


def best_over_last(study):
    """Return the mean gain in validation accuracy of keeping the best epoch instead of the last."""
    return (study.val_accuracy - last(study)).mean()


def predict(network, images):
    """Return the most probable class of each image."""
    return network.predict(images).argmax(axis=1)


def confusion(y, predicted, classes=10):
    """Return counts[i, j]: the images of class i that are taken for j."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (y, predicted), 1)
    return counts


def counts(network, data):
    """Return the confusion matrix of a network on the test images."""
    return confusion(data.y_test, predict(network, data.x_test))


def scores(counts, names):
    """Return precision, recall and F1 of each class."""
    right = np.diag(counts)
    table = pd.DataFrame({"precision": right / counts.sum(axis=0), "recall": right / counts.sum(axis=1)}, names)
    table["F1"] = 2 * table.precision * table.recall / (table.precision + table.recall)
    return table.map("{:.3f}".format).rename_axis("class")


def confused(counts, count=4):
    """Return the `count` most frequent confusions as (true class, class taken for, images)."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [(int(i), int(j), int(wrong[i, j])) for i, j in zip(*np.unravel_index(order, wrong.shape))]


def worst_confusion(counts, names):
    """Return the most frequent confusion in words."""
    i, j, images = confused(counts, 1)[0]
    return f"{images} of {counts[i].sum():,} images of {names[i]} are taken for {names[j]}"


def share_within(counts, names, group):
    """Return the share of all mistakes whose true and predicted class are both in the group of names."""
    members = [names.index(name) for name in group]
    wrong = counts - np.diag(np.diag(counts))
    return wrong[np.ix_(members, members)].sum() / wrong.sum()


# ----------------------------------------------------------------------------------------------- Question 8: two losses


def rates_table(study):
    """Return the best validation accuracy by learning rate (rows) and loss (columns)."""
    table = study.pivot(index="learning_rate", columns="loss", values="val_accuracy").rename(columns=words)
    return table.rename(index="{:.3g}".format).rename_axis(index="learning rate", columns=None)


def losses_table(selected, losses):
    """Return test accuracies by loss, and the differences from cross-entropy, paired by seed."""
    rows = {"cross entropy": {"test accuracy": spread(selected.test_accuracy), "from cross-entropy": "–", "p": "–"}}
    for loss, table in losses.groupby("loss"):
        gap = paired(*_by_seed(table, selected))
        rows[words(loss)] = {
            "test accuracy": spread(table.test_accuracy),
            "from cross-entropy": str(gap),
            "p": f"{gap.p:.2g}",
        }
    return pd.DataFrame(rows).T.rename_axis("loss")


def silenced_gap(losses):
    """Return the paired Difference of the silenced cross-entropy from squared error, in test accuracy."""
    of = dict(list(losses.groupby("loss")))
    return paired(*_by_seed(of["silenced_cross_entropy"], of["mean_squared_error"]))


def _by_seed(*tables):
    both = pd.concat([table.set_index("seed").test_accuracy for table in tables], axis=1, join="inner")
    return both.iloc[:, 0], both.iloc[:, 1]


def forces(network, images, y, losses=("cross_entropy", "mean_squared_error")):
    """Return p of the true class, and for each loss the size of its gradient with respect to each image's logits."""
    z = network.forward(images)
    p = np.take_along_axis(helpers.softmax(z), y[:, None].astype(int), axis=1)[:, 0]
    return p, {words(loss): np.linalg.norm(helpers.LOSSES[loss](z, y)[1], axis=1) * len(z) for loss in losses}


def median_force(network, images, y, loss, below=0.05):
    """Return how many images give their true class less than `below`, and the median gradient of a loss for them."""
    p, force = forces(network, images, y, (loss,))
    return int((p < below).sum()), float(np.median(force[words(loss)][p < below]))


# --------------------------------------------------------------------------------------------------- Question 10: MNIST

STATED = {  # training and test accuracy that the reference report states
    "reference 1": (0.99926, None),
    "reference 2": (0.9938, 0.9799),
    "reference 3": (0.9824, 0.9681),
}


def in_words(config):
    """Return a configuration as a phrase."""
    return (
        f"{config.num_layers} × {config.hidden_size} {config.activation}, {config.optimizer}, "
        f"rate {config.learning_rate:.2g}, {config.weight_init}, decay {config.weight_decay:.1g}, "
        f"{config.epochs} epochs"
    )


def mnist_table(study):
    """Return accuracies by configuration, means over seeds, beside what the reference report states."""
    rows, configs = {}, studies.mnist()
    for name, table in study.groupby("name", sort=False):
        train, test = STATED.get(name.split(",")[0], (None, None))
        rows[name] = {
            "configuration": in_words(configs[name]),
            "training": f"{table.train_accuracy.mean():.4f}",
            "stated": f"{train:.4f}" if train else "–",
            "validation": f"{table.val_accuracy.mean():.4f}",
            "test": spread(table.test_accuracy),
            "stated test": f"{test:.4f}" if test else "–",
        }
    return pd.DataFrame(rows).T.rename_axis("")


def ours_on_mnist(study):
    """Return the mean validation accuracy of our three configurations."""
    return study[study.name.isin(["A", "B", "C"])].groupby("name").val_accuracy.mean()


def images_apart(study, images=6000):
    """Return by how many validation images, rounded up, our three configurations differ on MNIST."""
    ours = ours_on_mnist(study)
    return int(np.ceil(round((ours.max() - ours.min()) * images, 6)))


def best_on_mnist(study):
    """Return the rows of that of our three configurations with the best validation accuracy."""
    return study[study.name == ours_on_mnist(study).idxmax()]


# ------------------------------------------------------------------------------------------- Appendix A: the whole grid


def best_of_grid(grid, count=5):
    """Return the configurations of the best trainings of the grid, by validation accuracy."""
    top = grid.nlargest(count, "accuracy").set_index("number")
    table = top[anova.PARAMETERS].astype(str)
    table["weight_decay"] = top.weight_decay.map("{:g}".format)
    return table.assign(accuracy=top.accuracy.map("{:.4f}".format)).rename(columns=words)


SPACES = {"all of the space": {"weight_decay": [0, 0.0005, 0.5]}, "without decay 0.5": {"weight_decay": [0, 0.0005]}}


def variance_shares(grid, runs=(50, 100), draws=5):
    """Return {space: (shares of anova.decomposition, {runs: draws of anova.fanova})}, with decay 0.5 and without."""
    found = {}
    for title, values in SPACES.items():
        part, space = anova.part_of(grid, values)
        samples = {count: anova.fanova(part, part.accuracy, count, draws) for count in runs}
        found[title] = anova.decomposition(part, part.accuracy, space), samples
    return found


def exact_shares(grid):
    """Return the exact shares of the variance without decay 0.5: of single parameters, and all of them."""
    part, space = anova.part_of(grid, SPACES["without decay 0.5"])
    shares = anova.decomposition(part, part.accuracy, space)
    return anova.singles(shares), shares


def values_within(grid, margin=0.01):
    """Return which values of the parameters have a best training within `margin` of the best of all, by value."""
    best = anova.marginals(grid, grid.accuracy).best
    return best >= grid.accuracy.max() - margin


def means(table, rows, column):
    """Return the mean accuracy by values of `rows` and `column`, for a heat map."""
    return table.accuracy.groupby([table[name] for name in [*rows, column]]).mean().unstack()


def best_again(grid, seeded, count=10):
    """Return the accuracies of the grid's best trainings, by number: with the grid's seed, and the mean of others."""
    top = grid.nlargest(count, "accuracy").set_index("number").accuracy
    others = seeded[seeded.seed > 0].groupby("number").val_accuracy.mean()
    return pd.DataFrame({"seed 0": top, "other seeds": others[top.index]})


SEARCHES = {
    ("random", False): "random",
    ("random", True): "random with hyperband",
    ("tpe", False): "TPE",
    ("tpe", True): "TPE with hyperband",
}


NEAR, RUNS, SPENT = 0.005, 50, 500  # half a point from the best; the runs, and the epochs, of a short search


def searches(grid, replays, budgets=None):
    """Return replay.regrets at these budgets of epochs (default: 60 of them, as far apart in a logarithmic plot)."""
    if budgets is None:
        budgets = np.unique(np.geomspace(10, replay.BUDGET, 60).astype(int))
    return replay.regrets(grid, replays, budgets, NEAR)


def left_after(grid, replays, runs=RUNS):
    """Return the regret of each replay after so many runs, by search, hyperband and seed."""
    return replay.after(replays, runs).map(replay.regret(grid))


def search_table(grid, replays):
    """Return what four searches need to come near the best, and what they have found by run RUNS and epoch SPENT."""
    regret, needed = searches(grid, replays, [SPENT])
    left, rows = left_after(grid, replays), {}
    for key, title in SEARCHES.items():
        quantiles = needed.loc[key].loc[["median", "q10", "q90"]]
        rows[title] = {
            "runs to within 0.5 %": _several(quantiles.runs),
            "epochs to there": _several(quantiles.epochs),
            f"there by run {RUNS}": percent((left[key] <= NEAR).mean()),
            f"best by run {RUNS}": percent((left[key] <= 0).mean(), 1),
            f"regret after {SPENT} epochs": f"{regret.loc[(*key, 'median'), SPENT]:.4f}",
        }
    return pd.DataFrame(rows).T.rename_axis("search")


def _several(row):
    return "{} ({} to {})".format(*(f"{value:.0f}" if np.isfinite(value) else "–" for value in row))


def found(grid, replays, search, within):
    """Return the share of the replays of a search, without hyperband, that are `within` of the best by run RUNS."""
    return (left_after(grid, replays)[search, False] <= within).mean()


def runs_needed(grid, replays, search="tpe"):
    """Return the median number of runs that a search needs to come near the best."""
    _, needed = searches(grid, replays, [SPENT])
    return needed.loc[(search, False, "median"), "runs"]


def runs_by_chance(grid):
    """Return after how many random runs half of all searches have come near the best."""
    return np.log(0.5) / np.log1p(-(replay.regret(grid) <= NEAR).mean())


def winner(stored):
    """Return the test accuracies, over seeds, of the grid's best training."""
    number = stored.grid.loc[stored.grid.accuracy.idxmax(), "number"]
    return stored.seeded.test_accuracy[stored.seeded.number == number]


def selections(stored):
    """Return the test accuracy of what each way of searching selects."""
    test = stored.grid.set_index("number").test_accuracy_10
    top = stored.grid.nlargest(10, "accuracy").number
    seeds = stored.seeded.groupby("number").test_accuracy
    rows = {
        "selected by the sweeps (Question 7), 5 seeds": spread(stored.selected.test_accuracy),
        "best of the grid, 5 seeds": spread(winner(stored)),
        "the ten best of the grid, mean of 5 seeds each": spread(seeds.mean()[top]),
        "best of the grid, seed 0": f"{test[top.iloc[0]]:.4f}",
    }
    picks = replay.after(stored.replays, RUNS)
    for search, title in (("tpe", "TPE"), ("random", "random search")):
        numbers = picks[search, False]
        rows[f"picked by {RUNS} runs of {title}, seed 0, {len(numbers):,} replays"] = spread(numbers.map(test))
    return pd.DataFrame({"test accuracy": rows}).rename_axis("selection")


def ranked(grid, seeded, count=10):
    """Return the numbers of the best trainings that have several seeds, in the order in which the grid has them."""
    known = grid[grid.number.isin(seeded.number)]
    return known.nlargest(count, "accuracy").number.to_numpy()


def deviation(seeded, numbers):
    """Return the standard deviation of validation accuracy over seeds, pooled over these trainings."""
    return np.sqrt(seeded[seeded.number.isin(numbers)].groupby("number").val_accuracy.var().mean())


def early_ranks(grid, top=0.99):
    """Return how the order of the trainings after few epochs foretells that after all: shares and a correlation."""
    curves = {epoch: anova.accuracy(grid, epoch) for epoch in (1, 3, 5, anova.EPOCHS)}
    last = curves[anova.EPOCHS]
    elite, learned = last >= last.quantile(top), last > FLOOR
    return {
        "best after 5": curves[5].max(),
        "best after 10": last.max(),
        "better after 10": (last > curves[5])[learned].mean(),
        "gain": (last - curves[5])[learned].median(),
        "correlation": curves[5].corr(last, "spearman"),
        "elite after 5": (curves[5][elite] >= curves[5].quantile(top)).mean(),
        "thirds": {epoch: (curves[epoch][elite] >= curves[epoch].quantile(2 / 3)).mean() for epoch in (1, 3)},
    }


# --------------------------------------------------------------------------------------------- Appendix B: towards 95 %


def gains(ablation):
    """Return, per base, {measure: gains in points by seed}: added to the plain network, or lost when left out."""
    ablation = ablation[ablation.base != "wide"]
    value = ablation.set_index(["base", "measure", "seed"]).sort_index().val_accuracy * 100
    signs = {"plain": 1, "whole": -1}
    return {
        base: {
            name: sign * (value[base, name] - value[base, "nothing"])
            for name in value[base].index.unique(0)
            if name != "nothing"
        }
        for base, sign in signs.items()
    }


def bars(ablation):
    """Return {measure: [gains by itself, gains within the whole or None]} for the figure, best by itself first."""
    found = gains(ablation)
    order = sorted(found["plain"], key=lambda name: -found["plain"][name].mean())
    return {name: [found[base][name].tolist() if name in found[base] else None for base in found] for name in order}


def ablation_table(ablation):
    """Return each measure's gain by itself and within the whole: mean, interval, and Holm's p over all of them.

    A gain is a mean of differences between trainings of the same seed; the deviation of such differences is pooled over
    all measures, since three of one measure say little about it.
    """
    found = pd.concat({base: pd.DataFrame(rows).T for base, rows in gains(ablation).items()}, names=["base", "measure"])
    n, freedom = found.shape[1], len(found) * (found.shape[1] - 1)
    error = np.sqrt(found.var(axis=1, ddof=1).mean() / n)
    table = pd.DataFrame({"gain": found.mean(axis=1)})
    half = stats.t.ppf(0.975, freedom) * error
    table["low"], table["high"], table["n"] = table.gain - half, table.gain + half, n
    table["p"] = 2 * stats.t.sf(np.abs(table.gain) / error, freedom)
    table["holm"] = holm(table.p)
    return table


def established(table, base, sign):
    """Return the measures whose gain (sign 1) or harm (-1) is established, as 'name (+0.84)', largest first."""
    rows = table.loc[base].query("holm < 0.05").sort_values("gain", ascending=sign < 0)
    return ", ".join(f"{name} ({gain:+.2f})" for name, gain in rows.gain.items() if gain * sign > 0) or "none"


def network(stored, name):
    """Return the test accuracies of a final network by seed."""
    return stored.final[stored.final.name == name].set_index("seed").test_accuracy


def finals(table):
    """Return accuracies of the final networks, single ones, by name: means and deviations over seeds."""
    rows = {}
    for name, seeds in table.groupby("name", sort=False):
        rows[name] = {
            "parameters": f"{seeds.parameters.iloc[0]:,}",
            "epochs": seeds.epochs.iloc[0],
            "core minutes": f"{seeds.seconds.mean() / 60:.0f}",
            "seeds": len(seeds),
            "validation": f"{seeds.val_accuracy.mean():.4f}",
            "test": spread(seeds.test_accuracy),
            "test, mirrored too": spread(seeds.test_accuracy_flips),
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def answers(name, seed=0, folder=DATA_DIR / "towards95"):
    """Return the classes that a final network gives for the test images, both ways averaged."""
    return np.mean([_probabilities(name, seed, folder)], axis=(0, 1)).argmax(axis=1)


def ensemble(name, seeds, y, folder=DATA_DIR / "towards95"):
    """Return the test accuracy of several networks together, whose probabilities are averaged."""
    p = [_probabilities(name, seed, folder) for seed in seeds]
    return float(np.mean(np.mean(p, axis=(0, 1)).argmax(axis=1) == y))


def _probabilities(name, seed, folder):  # of the test images as they are and mirrored, (2, 10000, 10)
    return np.load(folder / f"{name}-{seed}-test.npy", allow_pickle=False).astype(np.float32)


def recalls(network, data):
    """Return the recall of each class by the selected network and by the final ones."""
    found = {"selected configuration": predict(network, data.x_test)}
    found |= {name: answers(name) for name in ("taught", "convolutional")}
    counts = {name: confusion(data.y_test, predicted) for name, predicted in found.items()}
    return {name: np.diag(one) / one.sum(axis=1) for name, one in counts.items()}


LISTED = {  # by others, as the data set's own list states them
    "MLP 256-128-64": 0.900,
    "VGG16, 26 million parameters": 0.935,
    "ResNet18": 0.949,
    "DenseNet-BC, 768,000 parameters": 0.954,
    "WRN40-4, 8.9 million parameters": 0.967,
}


def ladder(stored, y):
    """Return {name: (mean test accuracy, deviation or None, group)}: what was reached, step by step, and by others."""
    one, several = "this report, one network", "this report, averaged"
    networks = dict(list(stored.final.groupby("name")))

    def step(values, group):
        return values.mean(), values.std(ddof=1), group

    steps = {
        "the reference report's configuration": step(stored.reference.test_accuracy, one),
        "the selected configuration (Question 7)": step(stored.selected.test_accuracy, one),
        "dense, wide, all measures but noise": step(networks["dense"].test_accuracy, one),
    }
    for name in ("taught", "convolutional"):
        table = networks[name]
        steps[name] = step(table.test_accuracy, one)
        steps[f"{name}, with the mirrored image"] = step(table.test_accuracy_flips, several)
        steps[f"{len(table)} {name} networks"] = (ensemble(name, table.seed, y), None, several)
    return steps | {name: (accuracy, None, "the data set's own list") for name, accuracy in LISTED.items()}


def layer_checks(seed=0):
    """Return the relative error of backpropagation through the layers of lib/layers.py and a dense one, in float64."""
    rng = np.random.default_rng(seed)
    conv, dense, relu = layers.Convolution, layers.Dense, layers.ReLU
    residual = layers.Residual(conv(2, 2), layers.BatchNorm(2), relu())
    stacks = {
        "convolution, no padding": ((5, 6, 2), [conv(2, 3, pad=0), dense(36, 3)]),
        "convolution, padded, twice": ((5, 4, 1), [conv(1, 2), relu(), conv(2, 2), dense(40, 3)]),
        "maximum of 2 × 2": ((5, 6, 2), [conv(2, 3), layers.MaxPool(2), dense(18, 3)]),
        "batch normalisation": ((3, 4, 1), [conv(1, 2), layers.BatchNorm(2), relu(), dense(24, 3)]),
        "residual block": ((3, 4, 2), [residual, dense(24, 3)]),
    }
    errors = {}
    for name, (shape, stack) in stacks.items():
        network = layers.Stack(stack, shape, rng, np.float64)
        network.mode, network.theta[:] = "train", rng.normal(0, 0.5, len(network.theta))
        x, y = rng.normal(size=(6, *shape)), rng.integers(0, 3, 6)
        errors[name] = helpers.gradient_check(network, x, y, weight_decay=0.1)
    return pd.DataFrame({"relative error": errors}).rename_axis("layers")


# ----------------------------------------------------------------------------------------------------------- first page


def headline(stored):
    """Return the table of the first page: what this report found beside what the reference report states."""
    trial = stored.optimizers.set_index("optimizer").val_accuracy
    networks = stored.final.groupby("name").test_accuracy
    sigmoid = stored.living.accuracy[stored.living.activation == "sigmoid"].max()
    rows = [
        ("Fashion-MNIST, test: selected configuration (Question 7)", spread(stored.selected.test_accuracy), "0.8856"),
        ("Fashion-MNIST, test: the reference's configuration", spread(stored.reference.test_accuracy), "0.8856"),
        ("best validation accuracy of the sweeps", f"{stored.runs.best_val_accuracy.max():.4f}", "about 0.88"),
        ("best validation accuracy of the whole grid", f"{stored.grid.accuracy.max():.4f}", "not computed"),
        ("MNIST, test: best of three configurations", spread(best_on_mnist(stored.mnist).test_accuracy), "0.9799"),
        ("Nesterov, validation (Question 3)", f"{trial['nag']:.4f}", "0.1612"),
        ("sigmoid, validation: best of the grid", f"{sigmoid:.4f}", "below 0.20"),
        (
            "one fully connected network, taught (Appendix B), test",
            spread(networks.get_group("taught")),
            "0.95 hoped for",
        ),
        ("one convolutional network (Appendix B), test", spread(networks.get_group("convolutional")), "0.95 hoped for"),
    ]
    return pd.DataFrame(rows, columns=["accuracy", "this report", "reference report"]).set_index("accuracy")
