"""Functions of a user's own, in each family: used as they are meant, or refused in a sentence before a training."""

import dataclasses

import numpy as np
import pytest

import helpers
from helpers import Config, InputError, Network, train
from lib.layers import BatchNorm, Dense, Stack


def slope_of_tanh(a, out):
    np.subtract(1, a * a, out=out)


def rebound(z):
    z = np.tanh(z)  # and z outside stays what it was


def plain(z):
    return np.tanh(z)


def in_place(z):
    z[:] = np.tanh(z)


def both(z, out):
    np.tanh(z, out=z)
    out[:] = 1 - z * z


ACTIVATIONS = {
    "a new array": ((plain, slope_of_tanh), "f of activation 'mine' returns float32"),
    "bound anew": ((rebound, slope_of_tanh), "f of activation 'mine' leaves z as it is, though f' is not 1"),
    "a column": ((lambda z: z[:, 0], slope_of_tanh), "f of activation 'mine' returns float32"),
    "text": ((lambda z: "done", slope_of_tanh), "f of activation 'mine' returns a str"),
    "a new slope": ((in_place, lambda a, out: 1 - a * a), "f' of activation 'mine' returns float32"),
    "no slope": ((in_place, lambda a, out: None), "f' of activation 'mine' does not fill out"),
    "nan": ((lambda z: z.fill(np.nan), slope_of_tanh), "f of activation 'mine' makes numbers that are not finite"),
    "both new": ((lambda z, out: (np.tanh(z), 1 - np.tanh(z) ** 2), None), "f of activation 'mine' returns a tuple"),
    "one argument": ((in_place, None), "activation 'mine' raises TypeError: "),
    "a function alone": (in_place, "activation 'mine' is a function; allowed: f"),
    "three": ((in_place, slope_of_tanh, None), "activation 'mine' is a tuple"),
    "no function": ((in_place, 3), "activation 'mine' is a tuple"),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_an_activation_that_does_not_work_in_place_is_refused(kind, monkeypatch, small, tiny_config):
    entry, words = ACTIVATIONS[kind]
    monkeypatch.setitem(helpers.ACTIVATIONS, "mine", entry)
    for call in (lambda: Network([784, 9, 10], "mine"), lambda: train(tiny_config(activation="mine"), small)):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(words) and "; allowed: f(z) " in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "entry",
    [
        (in_place, slope_of_tanh),
        (both, None),
        (lambda z: np.tanh(z, out=z), lambda a, out: np.subtract(1, a * a, out=out)),
        (lambda z, out: (np.tanh(z, out=z), np.subtract(1, z * z, out=out)), None),
    ],
)
@pytest.mark.parametrize("width", [1, 9])
def test_an_activation_may_return_what_it_was_given(entry, width, monkeypatch, small, tiny_config):
    monkeypatch.setitem(helpers.ACTIVATIONS, "mine", entry)
    here, there = (train(tiny_config(activation=name, hidden_size=width), small) for name in ("mine", "tanh"))
    np.testing.assert_allclose(here.network.theta, there.network.theta, atol=1e-4)


def on_place(z, y):
    z -= z.max(axis=1, keepdims=True)
    return helpers.cross_entropy(z, y)


def on_labels(z, y):
    y[:] = 0
    return helpers.cross_entropy(z, y)


def per_image(z, y):
    loss, delta = helpers.cross_entropy(z, y)
    return np.full(len(y), loss), delta


def with_delta(change):
    def loss(z, y):
        value, delta = helpers.cross_entropy(z, y)
        return value, change(delta)

    return loss


LOSSES = {
    "no delta": (lambda z, y: 0.5, "loss 'mine' returns a float"),
    "for each image": (per_image, r"loss 'mine' is float64 \(4,\), or not finite"),
    "nan": (lambda z, y: (np.nan, z * 0), "loss 'mine' is a float, or not finite"),
    "text": (lambda z, y: ("0.5", z * 0), "loss 'mine' is a str"),
    "in place": (on_place, "loss 'mine' changes z or y"),
    "labels in place": (on_labels, "loss 'mine' changes z or y"),
    "delta of a mean": (with_delta(lambda delta: delta.mean(axis=0)), r"dL/dz of loss 'mine' is float32 \(10,\)"),
    "delta in float64": (with_delta(np.float64), r"dL/dz of loss 'mine' is float64 \(4, 10\) for z float32 \(4, 10\)"),
    "delta nan": (with_delta(lambda delta: delta * np.nan), "dL/dz of loss 'mine' is not finite"),
    "delta a list": (with_delta(np.ndarray.tolist), "dL/dz of loss 'mine' is a list"),
    "an error": (lambda z, y: z.no_such_name, "loss 'mine' raises AttributeError: "),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_that_is_no_mean_with_its_gradient_is_refused(kind, monkeypatch, small, tiny_config):
    loss, words = LOSSES[kind]
    monkeypatch.setitem(helpers.LOSSES, "mine", loss)
    network = Network([784, 9, 10])
    before = network.theta.copy()
    for call in (
        lambda: train(tiny_config(loss="mine"), small, pytest.fail, network=network),
        lambda: network.objective(small.x_val, small.y_val, "mine"),
        lambda: helpers.evaluate(network, small.x_val, small.y_val, "mine"),
    ):
        with pytest.raises(InputError, match=f"^{words}.*; allowed: a function of z .*$"):
            call()
    assert (network.theta == before).all()


INITS = {
    "a row": (lambda rng, n_in, n_out: rng.random(n_out), r"returns float64 \(\d+,\)"),
    "turned": (lambda rng, n_in, n_out: rng.random((n_out, n_in)), r"returns float64 \(\d+, \d+\)"),
    "a number": (lambda rng, n_in, n_out: 0.1, "returns a float"),
    "nothing": (lambda rng, n_in, n_out: None, "returns a NoneType"),
    "complex": (lambda rng, n_in, n_out: np.full((n_in, n_out), 1j), "returns complex128"),
    "text": (lambda rng, n_in, n_out: np.full((n_in, n_out), "1"), "returns <U1"),
    "nan": (lambda rng, n_in, n_out: np.full((n_in, n_out), np.nan), "returns numbers that are not finite in float32"),
    "huge": (lambda rng, n_in, n_out: np.full((n_in, n_out), 1e39), "returns numbers that are not finite in float32"),
    "an error": (lambda rng, n_in: 0, "raises TypeError: "),
}


@pytest.mark.parametrize("kind", INITS)
@pytest.mark.filterwarnings("error")
def test_weights_that_do_not_fit_are_refused_in_networks_and_layers(kind, monkeypatch, small, tiny_config):
    draw, words = INITS[kind]
    monkeypatch.setitem(helpers.WEIGHT_INITS, "mine", draw)
    for call in (
        lambda: Network([784, 9, 10], weight_init="mine"),
        lambda: train(tiny_config(weight_init="mine"), small),
        lambda: Stack([Dense(784, 10, "mine")], (784,)),
    ):
        with pytest.raises(
            InputError, match=rf"^weight_init 'mine' {words}.*; allowed: finite real numbers \(784, \d+\)$"
        ):
            call()


def test_a_layer_names_the_initialisers_there_are():
    with pytest.raises(InputError, match="weight_init is 'glorot'; allowed: random, Xavier, He"):
        Dense(3, 2, "glorot")


@pytest.mark.parametrize("dtype", [int, np.float16, "no", complex, None])
def test_a_network_is_float32_or_float64(dtype):
    for call in (lambda: Network([3, 2], dtype=dtype), lambda: Stack([Dense(3, 2)], (3,), dtype=dtype)):
        with pytest.raises(InputError, match="^dtype is .*; allowed: float32, float64"):
            call()


def returning(theta, config):
    return lambda g, t, eta, loss: theta - eta * g, {}


def binding(theta, config):
    def step(g, t, eta, loss):
        nonlocal theta
        theta = theta - eta * g

    return step, {}


@pytest.mark.parametrize("optimizer", [returning, binding])
def test_an_optimiser_that_moves_nothing_is_refused(optimizer, monkeypatch, small, tiny_config):
    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", optimizer)
    with pytest.raises(
        InputError, match="^optimizer 'mine' leaves theta as it was .*; allowed: step, which moves theta"
    ):
        train(tiny_config(optimizer="mine"), small, pytest.fail)


def test_the_state_of_a_layer_is_no_step_of_an_optimiser(monkeypatch, small, tiny_config):
    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", binding)
    network = Stack([Dense(784, 8), BatchNorm(8), Dense(8, 10)], (784,), 0)  # batch norm moves its means
    with pytest.raises(InputError, match="^optimizer 'mine' leaves theta as it was"):
        train(tiny_config(optimizer="mine"), small, network=network)


def test_weights_too_large_for_a_step_of_1_do_not_accuse_the_optimiser(small, tiny_config):
    """Adam's moments overflow, so that an epoch leaves the weights as they are, and a rounded step of 1 would, too."""
    config = tiny_config(activation="identity", learning_rate=1e10, optimizer="adam", weight_decay=1e-4)
    assert "optimizer" not in train(config, small).stopped


def every_eighth(theta, config):
    total = np.zeros_like(theta)

    def step(g, t, eta, loss):
        total[:] += g
        if t % 8 == 0:
            theta[:] -= eta * total
            total[:] = 0

    return step, {"total": total}


def test_an_optimiser_may_rest_and_a_rate_may_be_too_small_to_move_anything(monkeypatch, small, tiny_config):
    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", every_eighth)
    for batch_size in (32, 300):
        config = tiny_config(optimizer="mine", batch_size=batch_size, epochs=2)
        assert len(train(config, small).history) == 2
    assert len(train(tiny_config(optimizer="sgd", learning_rate=1e-300), small).history) == 3


@pytest.mark.parametrize(
    "made, words",
    [
        (lambda theta, config: np.zeros((50, 50)), r"returns float64 \(50, 50\)"),
        (lambda theta, config: (None, {}), "returns a tuple"),
        (lambda theta, config: (print, [theta]), "returns a tuple"),
        (lambda theta: None, "raises TypeError: "),
        (lambda theta, config: theta.reshape(np.zeros((9, 9), int)), "raises "),
    ],
)
def test_an_optimiser_that_cannot_be_made_is_refused_in_one_line(made, words, monkeypatch, small, tiny_config):
    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", made)
    with pytest.raises(InputError, match=f"^optimizer 'mine' {words}[^\n]*; allowed: step, which [^\n]*$"):
        train(tiny_config(optimizer="mine"), small)


def test_what_a_step_raises_is_told_in_a_sentence_and_keeps_its_traceback(monkeypatch, small, tiny_config, tmp_path):
    def third(theta, config):
        def step(g, t, eta, loss):
            if t == 3:
                raise KeyError("v")
            theta[:] -= eta * g

        return step, {}

    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", third)
    words = r"^step of optimizer 'mine' raises KeyError: 'v'; allowed: step, .* \(line \d+ of test_families.py\)$"
    for checkpoint in (None, tmp_path / "c.npz"):
        with pytest.raises(InputError, match=words) as error:
            train(tiny_config(optimizer="mine"), small, checkpoint=checkpoint)
        assert isinstance(error.value.__cause__, KeyError)


def test_what_a_function_raises_keeps_its_traceback(monkeypatch):
    def broken(z):
        raise RuntimeError("first line\n  second line")

    monkeypatch.setitem(helpers.ACTIVATIONS, "mine", (broken, slope_of_tanh))
    with pytest.raises(InputError, match="^activation 'mine' raises RuntimeError: first line second line; ") as error:
        Network([3, 2, 2], "mine")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_sum_is_no_mean_and_a_draw_from_elsewhere_no_seed(monkeypatch, small, tiny_config):
    def summed(z, y):
        value, delta = helpers.cross_entropy(z, y)
        return value * len(y), delta * len(y)

    monkeypatch.setitem(helpers.LOSSES, "mine", summed)
    words = "^loss 'mine' is .* for four images and .* for each of them twice, so it is no mean; allowed: "
    with pytest.raises(InputError, match=words):
        train(tiny_config(loss="mine"), small)
    other = np.random.default_rng(1)
    monkeypatch.setitem(helpers.WEIGHT_INITS, "mine", lambda rng, n_in, n_out: other.normal(size=(n_in, n_out)))
    with pytest.raises(InputError, match="^weight_init 'mine' draws from something else than rng; allowed: "):
        Network([3, 2], weight_init="mine")


def test_a_callback_cannot_change_the_history(small, tiny_config):
    _, history, _ = train(tiny_config(), small, lambda row: row.clear())
    assert all("val_accuracy" in row for row in history) and len(history) == 3


def test_the_functions_that_are_there_are_as_they_should_be(small):
    for name in helpers.ACTIVATIONS:
        for width in (1, 2, 300):
            Network([784, width, 10], name)
    for loss in helpers.LOSSES:
        for y in (small.y_train, small.y_train[:1].astype(np.int64)):
            train(Config(loss=loss, epochs=1), dataclasses.replace(small, x_train=small.x_train[: len(y)], y_train=y))


# ----------------------------------------------------------------------------------------------------- what train is given

KINDS = {
    "config": ({"epochs": 1}, "config is a dict; allowed: a Config"),
    "data": ("fashion_mnist", "data is a str; allowed: a Dataset"),
    "network": (Network, "network is a type; allowed: a Network"),
    "on_epoch": (5, "on_epoch is a int; allowed: a function"),
    "checkpoint": (5, "checkpoint is a int; allowed: the path of a file"),
}


@pytest.mark.parametrize("name", KINDS)
def test_another_kind_of_argument_is_refused_before_anything_is_trained(name, small, tiny_config):
    value, words = KINDS[name]
    with pytest.raises(InputError, match=words):
        train(**({"config": tiny_config(), "data": small} | {name: value}))


@pytest.mark.parametrize("make", [lambda: Network([784, 10], rng=0), lambda: Stack([Dense(784, 10)], (784,), 0)])
def test_arrays_with_a_mask_or_rows_of_several_lengths_are_refused(make, small):
    network = make()
    x, y = small.x_test[:5], small.y_test[:5]
    for work in (
        lambda: network.predict(np.ma.array(x, mask=x > 3)),
        lambda: helpers.evaluate(network, x, np.ma.array(y, mask=y > 3)),
        lambda: helpers.evaluate(network, np.ma.array(x, mask=x > 3), y),
        lambda: network.objective(np.ma.array(x, mask=x > 3), y),
        lambda: dataclasses.replace(small, x_test=np.ma.array(small.x_test)),
        lambda: dataclasses.replace(small, y_train=np.ma.array(small.y_train)),
    ):
        with pytest.raises(InputError, match="^[xy][a-z_]* is a masked array; allowed: an array without a mask$"):
            work()
    for work in (lambda: helpers.evaluate(network, None, y), lambda: network.objective(None, y)):
        with pytest.raises(
            InputError, match=r"^y is uint8 \(5,\); allowed: a whole number for each image, here \(1,\)$"
        ):
            work()
    for work in (lambda: network.predict([[1.0, 2.0], [3.0]]), lambda: helpers.evaluate(network, x, [[1], [2, 3]] * 2)):
        with pytest.raises(InputError, match="^[xy] is a list with rows of several lengths; allowed: an array$"):
            work()


@pytest.mark.parametrize(
    "delta", [np.zeros((4, 10), np.float32), np.zeros((5, 9), np.float32), np.zeros((5, 10)), None, [[0.0] * 10] * 5]
)
def test_backward_takes_what_fits_the_logits(delta, small):
    network = Network([784, 10], rng=0)
    network.forward(small.x_test[:5])
    with pytest.raises(InputError, match="^delta is .*; allowed: float32, of the shape of the logits$"):
        network.backward(delta)


@pytest.mark.parametrize("rng", ["a", -1, 0.5, True])
def test_a_seed_that_is_none_is_refused(rng):
    with pytest.raises(InputError, match="rng is .*; allowed: a Generator, or a seed from 0"):
        Network([4, 3], rng=rng)


def test_a_loss_may_return_a_number_of_numpys(small, tmp_path, monkeypatch):
    def mine(z, y):
        value, delta = helpers.cross_entropy(z, y)
        return np.float32(value), delta

    monkeypatch.setitem(helpers.LOSSES, "mine", mine)
    _, history, _ = train(Config(epochs=1, loss="mine"), small, checkpoint=tmp_path / "c.npz")
    assert all(type(value) in (int, float) for value in history[0].values())
    bad = Config(epochs=1, loss="mine", optimizer="sgd", learning_rate=1e30)
    assert "not finite" in train(bad, small, checkpoint=tmp_path / "d.npz").stopped
