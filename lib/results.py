"""What the report shows of its ten questions: the stored tables it quotes, and the rows and numbers made of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
from optuna.distributions import CategoricalDistribution

import helpers
from lib import anova, claims, replay, studies, tables
from lib.dataset import DATA_DIR, ROOT
from lib.families import make_optimizer
from lib.plots import words
from lib.recipes import load_table, newest
from lib.sweepfile import load_sweep, read_sweep

TOPS = ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt")
SHOES = ("Sandal", "Sneaker", "Ankle boot")


# --------------------------------------------------------------------------------------------------------------- tables


def read_tables(folder=DATA_DIR):
    """Return all stored tables that the report quotes, as attributes.

    sweeps {name: runs}, runs (both); grid with `accuracy`, living (without decay 0.5), adaptive (of that, the adaptive
    optimisers), seeded (its further seeds), replays; each study by its name, that of MNIST with the `name` of its
    configurations; the tables of towards95.py by their names (ablation, ...), the networks of digits in `final` as
    `digits`.
    """
    sweeps = {name: load_sweep(folder / "sweeps" / f"{name}.csv") for name in ("random", "bayes")}
    grid = anova.load_grid(folder / "grid.csv.gz")
    grid["accuracy"] = anova.accuracy(grid)
    living = grid[grid.weight_decay < 0.5]
    found = {
        "sweeps": sweeps,
        "runs": pd.concat(sweeps),
        "grid": grid,
        "living": living,
        "adaptive": living[living.optimizer.isin(claims.ADAPTIVE)],
        "seeded": tables.read_table(folder / "grid_seeds.csv", anova.SEEDED, unique=["number", "seed"]),
        "replays": replay.load_replays(grid, folder / "grid_replays.csv.gz"),
    }
    found |= {name: studies.load_study(name, folder / "studies") for name in studies.STUDIES}
    found["mnist"] = studies.named(found["mnist"], studies.DIGITS)
    found |= {path.stem: load_table(path) for path in sorted((folder / "towards95").glob("*.csv"))}
    finals = newest(found["final"])
    digits = finals.name.str.startswith("mnist-")
    found |= {"final": finals[~digits], "digits": finals[digits]}
    return SimpleNamespace(**found)


def compare(study, seed, history):
    """Return a sentence: the training just made, by its history, beside the stored one of this seed, if there is."""
    if not history:
        return f"seed {seed}: the loss was not finite in the first epoch"
    now = [epoch["val_accuracy"] for epoch in history]
    if seed not in set(study.seed):
        return f"seed {seed}: {now[-1]:.4f}; stored are the seeds {', '.join(map(str, study.seed))}"
    row = study[study.seed == seed].iloc[0]
    then = row.val_accuracy_history[: len(now)]
    same = row.machine == tables.machine()
    agree = "the same to the last bit" if same else f"differ by {abs(now[-1] - then[-1]):.4f}, as two machines may"
    outcome = agree if tables.agree(then, now, same) else "DISAGREE"
    return f"seed {seed}, trained again just now: {now[-1]:.4f}; stored: {then[-1]:.4f}; {outcome}"


# ------------------------------------------------------------------------------------------------ Question 2: the start


def signal(weight_init, activation, images, labels, width=64, depth=10):
    """Return what a new network makes of images: per layer the spread of a unit over them, and dJ/dW's size.

    In float64, since behind sigmoids the spread soon falls below the rounding of float32.
    """
    sizes = [784] + [width] * depth + [10]
    network = helpers.Network(sizes, activation, weight_init, np.random.default_rng(0), np.float64)
    return health(network, images, labels)


def health(network, images, labels):
    """Return per layer the mean spread of a unit's output over the images, and the root mean square of dJ/dW."""
    network.objective(images, labels)
    spreads = [float(a.std(axis=0).mean()) for a in network.a[1:]]
    return [spreads, [float(np.sqrt(np.mean(dW**2))) for dW in network.dW]]


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
    z = np.array([[2.0, 1.0, 0.0]])
    y = np.array([0])
    a = np.array([[0.6, -0.4]])
    W = np.array([[1.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    deltas = {loss: helpers.LOSSES[loss](z, y)[1] for loss in ("cross_entropy", "mean_squared_error")}
    back = deltas["cross_entropy"] @ W.T
    return SimpleNamespace(p=helpers.softmax(z), back=back, delta=back * (1 - a**2), **deltas)


def vector(values):
    """Return a vector as '(0.670, −0.240)'."""
    return claims.minus("(" + ", ".join(f"{value:.3f}" for value in np.ravel(values)) + ")")


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
    step, _ = make_optimizer(theta, helpers.Config(optimizer=name, learning_rate=rate))
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


def spaces(folder=ROOT / "sweeps"):
    """Return the table of the three spaces searched: the values of each parameter in the sweep files."""
    columns = {}
    for title, name in {"the course's (grid)": "grid", "random": "random", "Bayes": "bayes"}.items():
        space = read_sweep(folder / f"{name}.yaml").space
        columns[title] = {words(parameter): _values(distribution) for parameter, distribution in space.items()}
    return pd.DataFrame(columns).rename_axis("parameter")


def _values(distribution):
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(f"{value:g}" if np.isreal(value) else value for value in distribution.choices)
    scale = ", logarithmic" if distribution.log else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


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
    """Return the number of the first Bayes run that is better than all random runs."""
    better = sweeps["bayes"].best_val_accuracy > sweeps["random"].best_val_accuracy.max()
    return sweeps["bayes"].number[better].min()


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
    table = table.map(lambda value: "–" if np.isnan(value) else f"{value:.4f}")
    return table.rename(index="{:.3g}".format).rename_axis(index="learning rate", columns=None)


def losses_table(selected, losses):
    """Return test accuracies by loss, and the differences from cross-entropy, paired by seed."""
    rows = {
        "cross entropy": {"test accuracy": claims.spread(selected.test_accuracy), "from cross-entropy": "–", "p": "–"}
    }
    for loss, table in losses.groupby("loss"):
        gap = claims.paired(*_by_seed(table, selected))
        rows[words(loss)] = {
            "test accuracy": claims.spread(table.test_accuracy),
            "from cross-entropy": str(gap),
            "p": f"{gap.p:.2g}",
        }
    return pd.DataFrame(rows).T.rename_axis("loss")


def silenced_gap(losses, metric="test_accuracy"):
    """Return the paired Difference of the silenced cross-entropy from squared error."""
    of = dict(list(losses.groupby("loss")))
    return claims.paired(*_by_seed(of["silenced_cross_entropy"], of["mean_squared_error"], metric=metric))


def validation_gap(selected, losses):
    """Return the paired Difference of squared error from cross-entropy, in best validation accuracy."""
    squared = losses[losses.loss == "mean_squared_error"]
    return claims.paired(*_by_seed(squared, selected, metric="val_accuracy"))


def _by_seed(*tables, metric="test_accuracy"):
    both = pd.concat([table.set_index("seed")[metric] for table in tables], axis=1, join="inner")
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
    rows = {}
    for name, table in study.groupby("name", sort=False):
        train, test = STATED.get(name.split(",")[0], (None, None))
        rows[name] = {
            "configuration": in_words(studies.DIGITS[name]),
            "training": f"{table.train_accuracy.mean():.4f}",
            "stated": f"{train:.4f}" if train else "–",
            "validation": f"{table.val_accuracy.mean():.4f}",
            "test": claims.spread(table.test_accuracy),
            "stated test": f"{test:.4f}" if test else "–",
        }
    return pd.DataFrame(rows).T.rename_axis("")


def trained(study, name):
    """Return the mean training accuracy of a configuration."""
    return study[study.name == name].train_accuracy.mean()


def ours_on_mnist(study):
    """Return the mean validation accuracy of our three configurations."""
    return study[study.name.isin(["A", "B", "C"])].groupby("name").val_accuracy.mean()


def tested_gap(study, first, second):
    """Return the Difference of two configurations' test accuracies over seeds (Welch)."""
    by = study.groupby("name").test_accuracy
    return claims.welch(by.get_group(first), by.get_group(second))


def images_apart(study, images=6000):
    """Return by how many validation images, rounded up, our three configurations differ on MNIST."""
    ours = ours_on_mnist(study)
    return int(np.ceil(round((ours.max() - ours.min()) * images, 6)))


def best_on_mnist(study):
    """Return the rows of that of our three configurations with the best validation accuracy."""
    return study[study.name == ours_on_mnist(study).idxmax()]


def on_digits(stored, name):
    """Return the test accuracies on MNIST of a network of Appendix B, by its name there, over seeds."""
    return stored.digits.test_accuracy[stored.digits.name == f"mnist-{name}"]


# ----------------------------------------------------------------------------------------------------------- first page


def headline(stored):
    """Return the table of the first page: what this report found beside what the reference report states."""
    trial = stored.optimizers.set_index("optimizer").val_accuracy
    networks = stored.final.groupby("name").test_accuracy
    sigmoid = stored.living.accuracy[stored.living.activation == "sigmoid"].max()
    rows = [
        (
            "Fashion-MNIST, test: selected configuration (Question 7)",
            claims.spread(stored.selected.test_accuracy),
            "0.8856",
        ),
        ("Fashion-MNIST, test: the reference's configuration", claims.spread(stored.reference.test_accuracy), "0.8856"),
        ("best validation accuracy of the sweeps", f"{stored.runs.best_val_accuracy.max():.4f}", "about 0.88"),
        ("best validation accuracy of the whole grid", f"{stored.grid.accuracy.max():.4f}", "not computed"),
        (
            "MNIST, test: best of three configurations",
            claims.spread(best_on_mnist(stored.mnist).test_accuracy),
            "0.9799",
        ),
        ("Nesterov, validation (Question 3)", f"{trial['nag']:.4f}", "0.1612"),
        ("sigmoid, validation: best of the grid", f"{sigmoid:.4f}", "below 0.20"),
        (
            "one fully connected network, taught (Appendix B), test",
            claims.spread(networks.get_group("taught")),
            "0.95 hoped for",
        ),
        (
            "one convolutional network, continued (Appendix B), test",
            claims.spread(networks.get_group("continued")),
            "0.95 hoped for",
        ),
    ]
    return pd.DataFrame(rows, columns=["accuracy", "this report", "reference report"]).set_index("accuracy")
