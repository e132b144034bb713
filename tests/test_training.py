"""`train`: what it does to the weights, what it returns, when it stops, and how it resumes."""

import dataclasses
import enum
import json
import math
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import psutil
import pytest
import sklearn.datasets
from threadpoolctl import threadpool_info

import helpers
import lib.dataset
import lib.parallel
from helpers import OPTIMIZERS, Config, InputError, Network, train

RATES = {"sgd": 0.1, "momentum": 0.03, "nag": 0.03, "rmsprop": 1e-3, "adam": 1e-3, "nadam": 1e-3}


def subset(data, n):
    return dataclasses.replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


FAMILIES = ("activation", "loss", "weight_init", "optimizer")  # the names of helpers.py, whatever else is imported
CHOICES = [(f.name, name) for f in dataclasses.fields(Config) if f.name in FAMILIES for name in f.metadata["names"]]
CHOICES += [("dataset", "mnist"), ("num_layers", 0), ("num_layers", 5), ("batch_size", 1), ("batch_size", 999)]


@pytest.mark.parametrize("field, value", CHOICES)
def test_every_choice_learns_and_moves_every_parameter(field, value, small, tiny_config):
    config = tiny_config(**{field: value, "epochs": 1})
    every = helpers.new_network(config, small)
    before = every.theta.copy()
    data = dataclasses.replace(small, x_train=np.maximum(small.x_train, 1))  # a black pixel's weights would rest
    result = train(config, data, network=every)
    moved = result.network.theta != before
    if config.activation == "ReLU":  # a neuron that is dead from the start never moves
        assert moved.mean() > 0.8
    else:
        assert moved.all()
    first = train(dataclasses.replace(config, epochs=1), data).history[0]["train_loss"]
    longer = dataclasses.replace(config, epochs=12, learning_rate=RATES[config.optimizer])
    assert train(longer, data).history[-1]["train_loss"] < first


NUMBERS = {
    "epochs": 2, "batch_size": 31, "learning_rate": 0.01, "weight_decay": 0.1, "num_layers": 3, "hidden_size": 8, "seed": 1
}  # fmt: skip
USED = [("rmsprop", name, value) for name, value in NUMBERS.items()] + [
    ("momentum", "momentum", 0.5),
    ("nag", "momentum", 0.5),
    ("rmsprop", "beta", 0.5),
    ("adam", "beta1", 0.5),
    ("adam", "beta2", 0.5),
    ("nadam", "beta1", 0.5),
    ("nadam", "beta2", 0.5),
    ("rmsprop", "epsilon", 0.1),
    ("adam", "epsilon", 0.1),
    ("nadam", "epsilon", 0.1),
]


@pytest.mark.parametrize("optimizer, field, value", USED)
def test_every_number_has_an_effect(optimizer, field, value, small, tiny_config):
    one, other = (
        tiny_config(optimizer=optimizer, epochs=3),
        tiny_config(**{"optimizer": optimizer, "epochs": 3, field: value}),
    )
    one, other = train(one, small).network.theta, train(other, small).network.theta
    assert one.shape != other.shape or (one != other).any()


def test_the_last_partial_batch_is_kept_and_epoch_means_are_weighted_by_it(monkeypatch, small, tiny_config):
    steps = []

    def still(theta, config):
        def step(g, t, eta, loss):
            theta[:] += 1e-12  # of no effect, but for an optimiser that does nothing is refused
            steps.append((t, loss))

        return step, {}

    monkeypatch.setitem(OPTIMIZERS, "still", still)
    config = tiny_config(optimizer="still", batch_size=37, epochs=2)
    network, history, _ = train(config, small)
    assert [t for t, _ in steps] == list(range(1, 2 * 9 + 1))  # 300 = 8 x 37 + 4, and t runs on
    loss, accuracy = helpers.evaluate(network, small.x_train, small.y_train)
    for row in history:
        assert row["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["train_accuracy"] == accuracy
    batches = [37] * 8 + [4]
    assert history[0]["train_loss"] == pytest.approx(np.average([v for _, v in steps[:9]], weights=batches), rel=1e-6)


def test_every_image_is_used_once_an_epoch_in_a_new_order(monkeypatch, tiny_config, small):
    seen = []
    right = Network.descend

    def spy(self, x, y, *rest):
        seen.extend(x[:, 0].tolist())
        return right(self, x, y, *rest)

    monkeypatch.setattr(Network, "descend", spy)
    x = small.x_train[:200].copy()
    x[:, 0] = np.arange(200)
    train(tiny_config(epochs=2, batch_size=32), dataclasses.replace(small, x_train=x, y_train=small.y_train[:200]))
    assert sorted(seen[:200]) == sorted(seen[200:]) == list(range(200)) and seen[:200] != seen[200:]


def test_weight_decay_is_on_weights_only_and_shrinks_them(small, tiny_config):
    network = Network([784, 9, 10], rng=np.random.default_rng(0))
    network.b[0][:] = 1
    network.objective(small.x_train, small.y_train)
    plain = network.gradient.copy()
    network.objective(small.x_train, small.y_train, "cross_entropy", 0.3)
    n = network.n_weights
    np.testing.assert_allclose(network.gradient[:n] - plain[:n], 0.3 * network.theta[:n], atol=1e-6)
    assert (network.gradient[n:] == plain[n:]).all()
    still = tiny_config(weight_decay=100, learning_rate=1e-12, epochs=1)
    losses = [train(c, small).history[0]["train_loss"] for c in (still, dataclasses.replace(still, weight_decay=0))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # the term is in the objective, not in the metric
    norms = [np.linalg.norm(train(tiny_config(weight_decay=w), small).network.W[0]) for w in (0, 0.5)]
    assert norms[1] < 0.9 * norms[0]


def test_same_seed_same_bits_other_seed_other_bits(small, tiny_config):
    one, same, other = (train(tiny_config(seed=s), small).network.theta for s in (3, 3, 4))
    assert (one == same).all() and (one != other).any()


def test_epochs_are_a_prefix_of_a_longer_training(small, tiny_config):
    short, long = (train(tiny_config(epochs=n), small).history for n in (2, 4))
    values = [[{k: v for k, v in row.items() if "seconds" not in k} for row in h] for h in (short, long)]
    assert values[0] == values[1][:2]


def test_training_uses_one_blas_thread_and_gives_them_back(small, tiny_config):
    pools = lambda: [one for one in threadpool_info() if one["user_api"] == "blas"]  # noqa: E731
    numpys = lambda: [one for one in pools() if "numpy" in one["filepath"]] or pools()  # noqa: E731  SciPy may be loaded
    threads = lambda: {one["num_threads"] for one in numpys()}  # noqa: E731
    inside, outside = [], threads()
    train(tiny_config(epochs=1), small, on_epoch=lambda row: inside.append(threads()))
    assert inside == [{1}] and threads() == outside


def test_callback_gets_each_row_and_may_stop(small, tiny_config):
    rows = []
    result = train(
        tiny_config(epochs=5), small, on_epoch=lambda row: rows.append(row) or ("enough" if row["epoch"] == 2 else None)
    )
    assert rows == result.history and len(rows) == 2 and result.stopped == "enough"
    assert set(rows[0]) == {
        "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "step_seconds"
    }  # fmt: skip
    assert rows[0]["seconds"] > rows[0]["step_seconds"] > 0


def test_keep_best_returns_the_first_best_epoch(small, tiny_config):
    thetas = []
    network = Network([784, 9, 9, 10], rng=np.random.default_rng(0))
    config = tiny_config(epochs=25, learning_rate=0.02)
    result = train(config, small, lambda row: thetas.append(network.theta.copy()), network=network, keep_best=True)
    accuracies = [row["val_accuracy"] for row in result.history]
    assert np.argmax(accuracies) < 24, "the last epoch must not be the best, or this shows nothing"
    assert (result.network.theta == thetas[np.argmax(accuracies)]).all()


def test_of_equal_epochs_the_first_is_kept(monkeypatch, small, tiny_config):
    accuracies = iter([0.5, 0.7, 0.7, 0.6])
    monkeypatch.setattr(helpers, "evaluate", lambda *args: (1.0, next(accuracies)))
    network = Network([784, 9, 9, 10], rng=np.random.default_rng(0))
    thetas = []
    train(
        tiny_config(epochs=4), small, lambda row: thetas.append(network.theta.copy()), network=network, keep_best=True
    )
    assert (network.theta == thetas[1]).all() and (network.theta != thetas[2]).any()


@pytest.mark.parametrize("name", ["train_loss", "val_loss", "val_accuracy"])
def test_each_number_of_an_epoch_has_to_be_finite(name, monkeypatch, small, tiny_config):
    """A network may fit the training images and overflow on those of validation."""
    if name == "train_loss":
        right = helpers.LOSSES["cross_entropy"]
        whole = lambda z, y: (math.inf, right(z, y)[1]) if len(y) == len(small.y_train) else right(z, y)  # noqa: E731
        monkeypatch.setitem(helpers.LOSSES, "cross_entropy", whole)
    else:
        loss = math.nan if name == "val_loss" else 1.0
        accuracy = math.nan if name == "val_accuracy" else 0.5
        monkeypatch.setattr(helpers, "evaluate", lambda *args: (loss, accuracy))
    result = train(tiny_config(), small)
    assert result.stopped == f"{name} not finite in epoch 1" and result.history == []


def test_patience(small, tiny_config):
    result = train(tiny_config(epochs=200, learning_rate=0.02), small, patience=3)
    accuracies = [row["val_accuracy"] for row in result.history]
    assert (
        len(accuracies) - (1 + np.argmax(accuracies)) == 3 and result.stopped == "no better val_accuracy for 3 epochs"
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer, rate", [("sgd", 1e6), ("nag", 1e30), ("rmsprop", 1e38)])
def test_a_loss_not_finite_ends_the_training_with_its_name_and_no_row(optimizer, rate, small, tiny_config):
    config = tiny_config(optimizer=optimizer, learning_rate=rate, activation="ReLU", epochs=60)
    result = train(config, small)
    assert result.stopped.endswith(f"not finite in epoch {len(result.history) + 1}")
    assert all(math.isfinite(value) for row in result.history for value in row.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_ends_in_the_same_bits(optimizer, small, tiny_config, tmp_path):
    config = tiny_config(optimizer=optimizer, epochs=5, weight_decay=1e-3)
    whole = train(config, small, keep_best=True)
    path = tmp_path / "c.npz"
    train(dataclasses.replace(config, epochs=2), small, checkpoint=path)
    resumed = train(config, small, checkpoint=path, keep_best=True)
    assert (resumed.network.theta == whole.network.theta).all() and len(resumed.history) == 5
    again = train(config, small, checkpoint=path)  # finished: nothing is left to do
    assert again.history == resumed.history and list(tmp_path.iterdir()) == [path]


def test_the_best_weights_from_before_a_stop_are_kept(small, tiny_config, tmp_path):
    config = tiny_config(epochs=25, learning_rate=0.02)
    whole = train(config, small, keep_best=True)
    best = 1 + int(np.argmax([row["val_accuracy"] for row in whole.history]))
    assert best < 24, "the best must lie before the stop, or this shows nothing"
    train(dataclasses.replace(config, epochs=24), small, checkpoint=tmp_path / "c.npz")
    resumed = train(config, small, checkpoint=tmp_path / "c.npz", keep_best=True)
    assert (resumed.network.theta == whole.network.theta).all()


def test_kill_9_and_resume(small, tiny_config, tmp_path):
    """A real process, killed at three moments; the last one ends in the bits of an undisturbed training."""
    code = """
import sys, pickle, numpy as np
sys.path.insert(0, sys.argv[1])
import helpers, lib.dataset
parts = np.load(sys.argv[2])
data = lib.dataset.Dataset("fashion_mnist", tuple("abcdefghij"), *(parts[f"arr_{i}"] for i in range(6)))
config = helpers.Config(num_layers=2, hidden_size=64, batch_size=1, epochs=12, optimizer="nadam")
helpers.save_network(sys.argv[4], helpers.train(config, data, checkpoint=sys.argv[3]).network)
"""
    parts = [small.x_train, small.y_train, small.x_val, small.y_val, small.x_test, small.y_test]
    np.savez(tmp_path / "data.npz", *parts)
    root = os.path.dirname(helpers.__file__)
    checkpoint, saved = tmp_path / "c.npz", tmp_path / "n.npz"
    command = [sys.executable, "-c", code, root, tmp_path / "data.npz", checkpoint, saved]
    for _ in range(3):
        process = subprocess.Popen(command)
        before, deadline = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0, time.time() + 60
        while (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before) and time.time() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not saved.exists(), "it was over before it could be killed"
    subprocess.run(command, check=True, timeout=120)
    config = Config(num_layers=2, hidden_size=64, batch_size=1, epochs=12, optimizer="nadam")
    assert (helpers.load_network(saved).theta == train(config, small).network.theta).all()


def test_many_trainings_come_back_in_order_with_whole_networks():
    configs = [Config(seed=s, epochs=1, num_layers=1, hidden_size=8, batch_size=2000) for s in (3, 1)]
    results = list(lib.parallel.train_all(configs, keep_best=True))
    data = lib.dataset.load_dataset("fashion_mnist")
    for config, result in zip(configs, results, strict=True):
        assert (result.network.theta == train(config, data).network.theta).all()
        assert np.shares_memory(result.network.W[0], result.network.theta)


def test_trainings_side_by_side_end_with_the_parent_that_was_killed():
    code = """
import sys, time
sys.path.insert(0, sys.argv[1])
import helpers
import lib.parallel
if __name__ == "__main__":
    print("begun", flush=True)
    list(lib.parallel.train_all([helpers.Config(epochs=10**6, hidden_size=8, seed=s) for s in range(4)], 2))
"""
    parent = subprocess.Popen([sys.executable, "-c", code, os.path.dirname(helpers.__file__)], stdout=subprocess.PIPE)
    parent.stdout.readline()
    deadline, children = time.time() + 60, []
    while len(children) < 3 and time.time() < deadline:  # two trainings, and the resource tracker
        time.sleep(0.2)
        children = psutil.Process(parent.pid).children()
    time.sleep(2)  # they are training
    parent.kill()
    parent.wait()
    assert len(children) == 3 and not psutil.wait_procs(children, timeout=60)[1]


BAD = [
    ("dataset", "cifar"), ("dataset", None), ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("epochs", "3"),
    ("batch_size", -1), ("loss", "mse"), ("loss", ["x"]), ("optimizer", "SGDM"), ("optimizer", "eve"),
    ("learning_rate", 0), ("learning_rate", float("nan")), ("learning_rate", float("inf")), ("learning_rate", "0.1"),
    ("momentum", 1), ("momentum", -0.1), ("beta", 1.0), ("beta1", 1.5), ("beta2", 1), ("epsilon", 0), ("epsilon", 1e-40),
    ("weight_decay", -1e-9), ("weight_decay", float("inf")), ("weight_init", "glorot"), ("num_layers", -1),
    ("learning_rate", 10**400), ("learning_rate", -(10**400)), ("momentum", Fraction(10**30 - 1, 10**30)), ("weight_decay", Fraction(-1, 10**400)),
    ("beta", np.float64("nan")), ("epochs", np.float64(3)), ("epochs", np.bool_(True)), ("learning_rate", Decimal("0.1")), ("seed", [0]), ("dataset", ["mnist"]),
    ("hidden_size", []), ("hidden_size", [8, 0]), ("hidden_size", [8, 2.5]), ("hidden_size", "8 8"), ("hidden_size", [[8]]), ("hidden_size", True),
    ("hidden_size", 0), ("hidden_size", 10**10), ("num_layers", 10**20), ("activation", "relu6"), ("seed", -1), ("seed", 0.5), ("learning_rate", 1j),
]  # fmt: skip


@pytest.mark.parametrize("field, value", BAD)
def test_a_config_is_checked_at_construction(field, value):
    with pytest.raises(InputError) as error:
        Config(**{field: value})
    message = str(error.value)
    assert message.startswith(f"{field} is ") and "; allowed: " in message and "\n" not in message
    assert repr(value) in message or isinstance(value, list) or len(repr(value)) > 400


def test_a_config_is_frozen_canonical_and_plain():
    config = Config(optimizer="nesterov", learning_rate=1, epochs=np.int64(3), momentum=np.float32(0.5))
    assert config.optimizer == "nag" and type(config.learning_rate) is float and type(config.epochs) is int
    json.dumps(dataclasses.asdict(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3
    reference = Config(optimizer="rmsprop", num_layers=6, learning_rate=1e-3, activation="tanh")
    assert reference.run_name == "hl_6_lr_0.001_bs_128_opt_rmsprop_act_tanh"
    assert Config(num_layers=2, hidden_size=5).widths == [5, 5]


def test_numbers_of_any_size_are_refused_in_a_short_sentence():
    for value in (10**5000, -(10**5000), 10**400):
        with pytest.raises(InputError, match="^learning_rate is .*; allowed: a number in"):
            Config(learning_rate=value)
    with pytest.raises(InputError, match="^epochs is a number too long to print; allowed"):
        Config(epochs=-(10**5000))


@pytest.mark.parametrize("patience", [-1, 0, 0.5, True, "3", np.nan])
def test_patience_is_a_whole_number_from_1(patience, small, tiny_config):
    with pytest.raises(InputError, match="patience is .*; allowed: a whole number in"):
        train(tiny_config(), small, patience=patience)


@pytest.mark.parametrize(
    "given, name",
    [
        ("RMSprop", "rmsprop"),
        ("NAdam", "nadam"),
        ("SGD", "sgd"),
        ("Nesterov", "nag"),
        ("NESTEROV", "nag"),
        ("Adam", "adam"),
    ],
)
def test_names_in_any_case_are_stored_in_one_spelling(given, name):
    assert Config(optimizer=given) == Config(optimizer=name) and Config(optimizer=given).optimizer == name
    assert Config(activation="RELU", weight_init="xavier") == Config(activation="ReLU", weight_init="Xavier")


def test_the_documented_defaults():
    """The course's flags default to the best configuration found; whoever changes one changes the README and this."""
    assert dataclasses.asdict(Config()) == {
        "dataset": "fashion_mnist", "epochs": 20, "batch_size": 128, "loss": "cross_entropy", "optimizer": "adam",
        "learning_rate": 4.22e-4, "momentum": 0.9, "beta": 0.9, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
        "weight_decay": 7.69e-6, "weight_init": "random", "num_layers": 4, "hidden_size": 256, "activation": "ReLU", "seed": 0,
    }  # fmt: skip


def test_a_width_for_each_layer(small):
    config = Config(hidden_size=[12, 8, 5], epochs=1)
    assert (config.num_layers, config.hidden_size, config.widths) == (3, (12, 8, 5), [12, 8, 5])
    assert config.run_name == "hl_3_sz_12-8-5_lr_0.000422_bs_128_opt_adam_act_ReLU"
    assert train(config, small).network.sizes == [784, 12, 8, 5, 10]
    assert Config(hidden_size=[8, 8]) == Config(num_layers=2, hidden_size=8) and hash(config)
    assert Config(hidden_size=(12, 8, 5), num_layers=3, epochs=1) == config
    with pytest.raises(InputError, match=r"num_layers is 4; allowed with hidden_size .*: 2"):
        Config(num_layers=4, hidden_size=[8, 5])


def test_images_of_another_size_and_number_of_classes():
    """scikit-learn's digits: 8 x 8 pixels from 0 to 16."""
    digits = sklearn.datasets.load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target
    parts = [part for some in (slice(1200), slice(1200, 1500), slice(1500, None)) for part in (x[some], y[some])]
    data = lib.dataset.Dataset("digits", tuple("0123456789"), *parts)
    result = train(Config(num_layers=2, hidden_size=32, batch_size=32, learning_rate=0.003), data)
    assert result.network.sizes == [64, 32, 32, 10]
    assert helpers.evaluate(result.network, data.x_test, data.y_test)[1] > 0.85


REAL = {"sgd": 0.1, "momentum": 0.02, "nag": 0.02, "rmsprop": 1e-3, "adam": 1e-3, "nadam": 1e-3}


@pytest.mark.parametrize("optimizer", REAL)
def test_every_optimiser_learns_fashion_mnist(optimizer, fashion, tiny_config):
    """At least 0.85 validation accuracy in four epochs; the reference report's Nesterov never passed 0.16."""
    shape = {"num_layers": 3, "hidden_size": 64, "batch_size": 64, "epochs": 4}
    config = tiny_config(optimizer=optimizer, learning_rate=REAL[optimizer], **shape)
    best = max(row["val_accuracy"] for row in train(config, fashion).history)
    assert best >= 0.85


def test_a_sane_result_on_mnist_test_images(tiny_config):
    data = lib.dataset.load_dataset("mnist")
    result = train(tiny_config(dataset="mnist", optimizer="adam", hidden_size=64, batch_size=64), data)
    assert helpers.evaluate(result.network, data.x_test, data.y_test)[1] >= 0.955


def test_label_noise_would_show(small, tiny_config):
    """Shuffled labels cannot be learnt: validation stays near chance, so accuracy is measured against the right labels."""
    shuffled = dataclasses.replace(small, y_train=np.random.default_rng(0).permutation(small.y_train))
    config = tiny_config(epochs=15)
    assert train(config, small).history[-1]["val_accuracy"] > 0.8
    assert train(config, shuffled).history[-1]["val_accuracy"] < 0.4


class Name(enum.StrEnum):
    ADAM = "adam"


@pytest.mark.parametrize("name", [Name.ADAM, np.str_("adam"), np.str_("ADAM")])
def test_a_name_is_stored_as_the_plain_text_of_its_entry(name):
    assert type(Config(optimizer=name).optimizer) is str and Config(optimizer=name).run_name.endswith("adam_act_ReLU")


def test_an_entry_of_ones_own_comes_before_an_alias(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "nesterov", OPTIMIZERS["sgd"])
    assert Config(optimizer="nesterov").optimizer == "nesterov"
    assert Config(optimizer="nag").optimizer == "nag"
    with pytest.raises(
        InputError, match="activation is 'nesterov'; allowed"
    ):  # no optimiser's name is put in its place
        Config(activation="nesterov")


@pytest.mark.parametrize("value", [10**5000, [10**5000], np.zeros((50, 50))], ids=["number", "list", "array"])
@pytest.mark.parametrize("field", ["optimizer", "epochs"])
def test_what_is_too_long_to_print_is_refused_in_one_line(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*; allowed: [^\n]*$"):
        Config(**{field: value})


@pytest.mark.parametrize("returned", [1, True, ["row"], None, np.True_])
def test_only_a_sentence_ends_a_training(returned, small, tiny_config):
    """As print, list.append, file.write and tqdm.update return other things."""
    result = train(tiny_config(), small, lambda row: returned)
    assert len(result.history) == 3 and result.stopped == "all 3 epochs done"


def test_lists_are_taken_or_refused_in_a_sentence(small):
    network = Network([784, 9, 10], rng=0)
    x, y = small.x_val, small.y_val
    assert helpers.evaluate(network, x, y.tolist()) == helpers.evaluate(network, x, y)
    assert network.objective(x, y.tolist())[0] == network.objective(x, y)[0]
    for images in (x.tolist(), [[0.5] * 784] * 60, [["a"] * 784] * 60):
        with pytest.raises(InputError, match="x is .*; allowed: uint8"):
            helpers.evaluate(network, images, y)
    for labels in (None, [0.5] * 60, ["a"] * 60, [[1]] * 60):
        with pytest.raises(InputError, match="y is .*; allowed"):
            network.objective(x, labels)


def test_zero_is_a_seed_of_the_weights():
    assert (Network([7, 5, 3], rng=0).theta == Network([7, 5, 3], rng=np.random.default_rng(0)).theta).all()


@pytest.mark.parametrize("sizes", [[7], [7, True, 3], [7, 2.0, 3], [7, 0], "75"])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises(InputError, match="sizes is .*; allowed: "):
        Network(sizes)


@pytest.mark.parametrize("processes", [0, -1, 1.5, "2", True])
def test_the_number_of_processes_is_checked(processes):
    with pytest.raises(InputError, match="processes is .*; allowed: a whole number in"):
        list(lib.parallel.train_all([Config()], processes))


def test_ctrl_c_or_an_error_waits_for_no_training():
    code = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import helpers
import lib.parallel
if __name__ == "__main__":
    endless = helpers.Config(epochs=10**6, hidden_size=8)
    helpers.DATASETS["none"] = lambda: sys.no_such_name  # an error in the process
    try:
        list(lib.parallel.train_all([helpers.Config(dataset="none"), endless], 2))
    except helpers.InputError:
        print("error", flush=True)
    threading.Timer(8, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        list(lib.parallel.train_all([endless], 1))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    command = [sys.executable, "-c", code, os.path.dirname(helpers.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["error", "interrupted"], done.stderr
