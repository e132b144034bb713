"""The trainings of the report's studies, by name, and the losses that only an experiment needs."""

from dataclasses import replace

import numpy as np

from helpers import LOSSES, Config, cross_entropy, one_hot, softmax
from lib.dataset import DATA_DIR
from lib.tables import config_of, read_table

SELECTED = Config()  # what the sweeps selected is the default of every flag
REFERENCE = Config(
    num_layers=6,
    hidden_size=128,
    activation="tanh",
    weight_init="Xavier",
    optimizer="rmsprop",
    learning_rate=0.001,
    batch_size=128,
    weight_decay=0,
    epochs=40,
)  # what the reference report selected
RATES = {"sgd": 0.1, "momentum": 0.02, "nag": 0.02, "rmsprop": 1e-3, "adam": 1e-3, "nadam": 1e-3}
TRIALS = {
    name: replace(REFERENCE, num_layers=3, batch_size=64, epochs=10, optimizer=name, learning_rate=rate)
    for name, rate in RATES.items()
}
SIX = Config(num_layers=6, hidden_size=128, activation="sigmoid", batch_size=128, weight_decay=0, epochs=10)
CURES = {  # of a deep sigmoid network
    "sgd, Xavier": replace(SIX, optimizer="sgd", learning_rate=0.1, weight_init="Xavier"),
    "adam, random": replace(SIX, learning_rate=0.001, weight_init="random"),
    "adam, Xavier": replace(SIX, learning_rate=0.001, weight_init="Xavier"),
    "adam, Xavier, decay 0.0005": replace(SIX, learning_rate=0.001, weight_init="Xavier", weight_decay=0.0005),
    "adam, Xavier, tanh": replace(SIX, learning_rate=0.001, weight_init="Xavier", activation="tanh"),
}
FACTORS = (0.25, 0.5, 1, 2, 4, 8)  # of the selected learning rate, for each loss


def silenced_cross_entropy(z, y):
    """L = cross-entropy;  dL/dz = (p - one_hot(y)) / batch, but 0 for each image whose p_y is below 0.05."""
    loss, delta = cross_entropy(z, y)
    p = softmax(z)[one_hot(y, z.shape[1])]
    delta[p < 0.05] = 0
    return loss, delta


LOSSES["silenced_cross_entropy"] = silenced_cross_entropy


def mnist(folder=DATA_DIR / "sweeps"):
    """{name: configuration} of Question 10: our three, the reference's, and the latter with their decay by batch size.

    A is the selected one, B the best of the Bayes sweep with half its width, C the best of the random sweep.
    """
    bayes, random = (read_table(folder / f"{name}.csv") for name in ("bayes", "random"))
    half = bayes[bayes.hidden_size == 128].nlargest(1, "best_val_accuracy").iloc[0]
    best = random.nlargest(1, "best_val_accuracy").iloc[0]
    second = replace(REFERENCE, optimizer="nadam", epochs=20, weight_decay=0.005)
    third = replace(second, optimizer="adam", epochs=10, num_layers=5, hidden_size=64)
    configs = {
        "A": SELECTED,
        "B": config_of(half),
        "C": replace(config_of(best), epochs=20),
        "reference 1": REFERENCE,
        "reference 2": second,
        "reference 3": third,
        "reference 2, decay / 128": replace(second, weight_decay=0.005 / 128),
        "reference 3, decay / 128": replace(third, weight_decay=0.005 / 128),
    }
    return {name: replace(config, dataset="mnist") for name, config in configs.items()}


def _seeds(count, *configs):
    return [replace(config, seed=seed) for config in configs for seed in range(count)]


def configs(name):
    """The trainings of the study `name`, in the order of its table; None for a name that is no study of the report."""
    match name:
        case "selected":
            return _seeds(5, SELECTED)
        case "reference":
            return _seeds(5, REFERENCE)
        case "optimizers":
            return list(TRIALS.values())
        case "deep":
            return list(CURES.values())
        case "loss_rates":
            rates = [SELECTED.learning_rate * factor for factor in FACTORS]
            losses = ("cross_entropy", "mean_squared_error")
            return [replace(SELECTED, loss=loss, learning_rate=rate) for loss in losses for rate in rates]
        case "losses":
            losses = ("mean_squared_error", "silenced_cross_entropy")
            return _seeds(5, *(replace(SELECTED, loss=loss) for loss in losses))
        case "mnist":
            return _seeds(3, *mnist().values())


def named(table, configs):
    """The table of a study with the column `name`: that of each row's configuration among {name: configuration}."""
    names = {replace(config, seed=0): name for name, config in configs.items()}
    keys = [replace(config_of(row), seed=0) for row in table.to_dict("records")]
    return table.assign(name=np.array([names[key] for key in keys], dtype=object))
