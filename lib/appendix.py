"""What the report's appendices show: A, the whole grid, and searches replayed on it; B, networks towards 95 %."""

import numpy as np
import pandas as pd
from scipy import stats

import helpers
from lib import anova, claims, layers, recipes, replay, results
from lib.plots import words

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
    """Return the mean accuracy by values of `rows` and `column`, the best row first, for a heat map."""
    found = table.accuracy.groupby([table[name] for name in [*rows, column]]).mean().unstack()
    return found.loc[found.mean(axis=1).sort_values(ascending=False, kind="stable").index]


def best_again(grid, seeded, count=10):
    """Return the accuracies of the grid's best trainings, by number: with the grid's seed, and the mean of others."""
    top = grid.nlargest(count, "accuracy").set_index("number").accuracy
    others = seeded[seeded.seed > 0].groupby("number").val_accuracy.mean()
    return pd.DataFrame({"seed 0": top, "other seeds": others[top.index]})


def luck(grid, seeded):
    """Return by how much the ten best of the grid are better on test images with its seed than with others."""
    some = seeded[seeded.number.isin(ranked(grid, seeded))]
    own = some[some.seed == 0].set_index("number").test_accuracy
    return claims.paired(own, some[some.seed > 0].groupby("number").test_accuracy.mean()[own.index])


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
    """Return the regret of each replay after this many runs, by search, hyperband and seed."""
    return replay.after(replays, runs).map(replay.regret(grid))


def search_table(grid, replays):
    """Return what four searches need to come near the best, and what they have found by run RUNS and epoch SPENT."""
    regret, needed = searches(grid, replays, [SPENT])
    left = left_after(grid, replays)
    rows = {}
    for key, title in SEARCHES.items():
        quantiles = needed.loc[key].loc[["median", "q10", "q90"]]
        rows[title] = {
            "runs to within 0.5 points": _several(quantiles.runs),
            "epochs to this": _several(quantiles.epochs),
            f"there by run {RUNS}": claims.percent((left[key] <= NEAR).mean()),
            f"best by run {RUNS}": claims.percent((left[key] <= 0).mean(), 1),
            f"regret after {SPENT} epochs": f"{regret.loc[(*key, 'median'), SPENT]:.4f}",
        }
    return pd.DataFrame(rows).T.rename_axis("search")


def _several(row):
    told = [f"{value:.0f}" if np.isfinite(value) else "–" for value in row]
    return "{} ({} to {})".format(*told) if told != ["–"] * 3 else "–"


def found(grid, replays, search, within):
    """Return the share of the replays of a search, without hyperband, that are `within` of the best by run RUNS."""
    return (left_after(grid, replays)[search, False] <= within).mean()


def needed(grid, replays, what, hyperband=False):
    """Return the median number of what TPE needs, "runs" or "epochs", to come near the best."""
    _, found = searches(grid, replays, [SPENT])
    return found.loc[("tpe", hyperband, "median"), what]


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
        "selected by the sweeps (Question 7), 5 seeds": claims.spread(stored.selected.test_accuracy),
        "best of the grid, 5 seeds": claims.spread(winner(stored)),
        "the ten best of the grid, mean of 5 seeds each": claims.spread(seeds.mean()[top]),
        "best of the grid, seed 0": f"{test[top.iloc[0]]:.4f}",
    }
    picks = replay.after(stored.replays, RUNS)
    for search, title in (("tpe", "TPE"), ("random", "random search")):
        numbers = picks[search, False]
        rows[f"picked by {RUNS} runs of {title}, seed 0, {len(numbers):,} replays"] = claims.spread(numbers.map(test))
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
    elite = last >= last.quantile(top)
    learned = last > claims.FLOOR
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


def signed(ablation):
    """Return {base: accuracies in points} for claims.tested; of the whole negated: what is lost there is a gain."""
    return {"plain": claims.points_of(ablation, "plain"), "whole": -claims.points_of(ablation, "whole")}


def gains(ablation):
    """Return {base: gains in points}, a column for each measure: added to the plain network, or lost when left out."""
    return {base: (values - values.loc["nothing"]).drop("nothing").T for base, values in signed(ablation).items()}


def bars(ablation):
    """Return {measure: [gains by itself, gains within the whole or None]} for the figure, best by itself first."""
    found = gains(ablation)
    order = sorted(found["plain"], key=lambda name: -found["plain"][name].mean())
    return {name: [found[base][name].tolist() if name in found[base] else None for base in found] for name in order}


def ablation_table(ablation):
    """Return each measure's gain in points by itself and within the whole, tested: see `claims.tested`."""
    return claims.tested(signed(ablation))


def levene(table):
    """Return the p-value of Levene's test that the accuracies with each recommended measure have one deviation."""
    return stats.levene(*claims.points_of(table, "long").to_numpy()).pvalue


def recommended_table(table):
    """Return `claims.recommended` in words."""
    found = claims.recommended(table)
    return pd.DataFrame(
        {
            "seeds": found.n.map("{:.0f}".format),
            "gain in points": [
                claims.minus(f"{row.gain:+.2f} ({row.low:+.2f} to {row.high:+.2f})") for row in found.itertuples()
            ],
            "p, Holm": found.holm.map("{:.2g}".format),
        }
    ).rename_axis("measure")


def pixels(table):
    """Return {network: {order of the pixels: validation accuracies by seed}}."""
    return {
        network: {order: one.sort_values("seed").val_accuracy.tolist() for order, one in rows.groupby("measure")}
        for network, rows in table.groupby("base", sort=False)
    }


def pixels_lost(table, network):
    """Return the Difference, paired by seed, between accuracies with pixels in order and with shuffled pixels."""
    found = pixels(table)[network]
    return claims.paired(found["in order"], found["shuffled"])


def points(difference):
    """Return the interval of a Difference of accuracies in points, as '−1.2 to +1.3'."""
    return claims.minus(f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}")


def established(table, sign):
    """Return the measures whose gain (sign 1) or harm (-1) is established, as 'name (+0.84); ...', largest first."""
    rows = table.query("holm < 0.05").sort_values("gain", ascending=sign < 0)
    told = [f"{name} ({claims.minus(f'{gain:+.2f}')})" for name, gain in rows.gain.items() if gain * sign > 0]
    return "; ".join(told) or "none"


def test_accuracies(stored, name):
    """Return the test accuracies of a final network by seed."""
    return stored.final[stored.final.name == name].set_index("seed").test_accuracy


def finals(table):
    """Return accuracies of the final networks, single ones, by name: means and deviations over seeds."""
    rows = {}
    for name, seeds in table.groupby("name", sort=False):
        rows[name] = {
            "parameters": f"{seeds.parameters.iloc[0]:,}",
            "epochs": seeds.epochs.iloc[0],
            "core minutes": f"{seeds.seconds.median() / 60:.0f}",
            "seeds": len(seeds),
            "validation": f"{seeds.val_accuracy.mean():.4f}",
            "test": claims.spread(seeds.test_accuracy),
            "test, mirrored too": claims.spread(seeds.test_accuracy_flips),
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def answers(name, seed=0):
    """Return the classes that a final network gives for the test images, both ways averaged."""
    return recipes.probabilities(f"{name}-{seed}").mean(axis=0).argmax(axis=1)


def recalls(network, data):
    """Return the recall of each class by the selected network and by the final ones."""
    found = {"selected configuration": results.predict(network, data.x_test)}
    found |= {name: answers(name) for name in ("taught", "continued")}
    counts = {name: results.confusion(data.y_test, predicted) for name, predicted in found.items()}
    return {name: np.diag(one) / one.sum(axis=1) for name, one in counts.items()}


LISTED = {  # by others, as the data set's own list states them
    "MLP 256-128-64": 0.900,
    "VGG16, 26 million parameters": 0.935,
    "ResNet18": 0.949,
    "DenseNet-BC, 768,000 parameters": 0.954,
    "WRN40-4, 8.9 million parameters": 0.967,
}


def together(stored, name, y):
    """Return the test accuracy of the mean probabilities of a final network's seeds, mirrored too, for labels y."""
    return recipes.ensemble([f"{name}-{seed}" for seed in test_accuracies(stored, name).index], y)


def continuing(stored):
    """Return the Difference in test accuracy between each continued network and the one with which it began."""
    after = test_accuracies(stored, "continued")
    return claims.paired(after, test_accuracies(stored, "convolutional")[after.index])


def compared(stored):
    """Return the comparisons made of final networks: Differences in test accuracy, with Holm's p over the three."""
    found = {
        "taught": claims.welch(test_accuracies(stored, "taught"), test_accuracies(stored, "dense")),
        "reborn": claims.welch(test_accuracies(stored, "reborn"), test_accuracies(stored, "convolutional")),
        "continued": continuing(stored),
    }
    p = claims.holm(pd.Series({name: difference.p for name, difference in found.items()}))
    return {name: difference._replace(p=p[name]) for name, difference in found.items()}


def ladder(stored, y):
    """Return {name: (mean test accuracy, deviation or None, group)}: what was reached, step by step, and by others."""
    one, several = "this report, one network", "this report, averaged"
    networks = dict(list(stored.final.groupby("name")))

    def step(values, group):
        return values.mean(), values.std(ddof=1) if len(values) > 1 else None, group

    def all_ways(name, label):
        table = networks[name]
        ways = {label: step(table.test_accuracy, one)}
        ways[f"{name}, mirrored too"] = step(table.test_accuracy_flips, several)
        if len(table) > 1:
            ways[f"{name}, {len(table)} networks, mirrored too"] = together(stored, name, y), None, several
        return ways

    steps = {
        "the reference report's configuration": step(stored.reference.test_accuracy, one),
        "the selected configuration (Question 7)": step(stored.selected.test_accuracy, one),
        "dense, wide, all measures but noise": step(networks["dense"].test_accuracy, one),
    }
    steps |= all_ways("taught", "taught")
    steps["convolutional"] = step(networks["convolutional"].test_accuracy, one)
    steps |= all_ways("continued", "convolutional, continued")
    return steps | {name: (accuracy, None, "the data set's own list") for name, accuracy in LISTED.items()}


def layer_checks(seed=0):
    """Return the relative error of backpropagation through the layers of lib/layers.py and a dense one, in float64."""
    rng = np.random.default_rng(seed)
    conv = layers.Convolution
    dense = layers.Dense
    relu = layers.ReLU
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
        network.theta[:] = rng.normal(0, 0.5, len(network.theta))
        x = rng.normal(size=(6, *shape))
        y = rng.integers(0, 3, 6)
        errors[name] = helpers.gradient_check(network, x, y, weight_decay=0.1)
    return pd.DataFrame({"relative error": errors}).rename_axis("layers")
