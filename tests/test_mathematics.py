"""The network, its losses and its gradients, each against a second derivation."""

import copy
import dataclasses
import math

import numpy as np
import pytest

import helpers
from helpers import ACTIVATIONS, LOSSES, WEIGHT_INITS, InputError, Network, gradient_check

SHAPES = [[7, 5, 9, 3], [4, 3], [5, 1, 2, 6, 3]]


def network_and_batch(sizes, activation, seed=3, batch=11):
    rng = np.random.default_rng(seed)
    network = Network(sizes, activation, "Xavier", rng, np.float64)
    for b in network.b:
        b[:] = rng.normal(size=b.shape)
    return network, rng.normal(size=(batch, sizes[0])), rng.integers(0, sizes[-1], batch)


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("weight_decay", [0, 0.1])
@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backprop_agrees_with_finite_differences(activation, loss, weight_decay, sizes):
    network, x, y = network_and_batch(sizes, activation)
    assert gradient_check(network, x, y, loss, weight_decay) < 1e-6


@pytest.mark.parametrize("part", ["one weight", "one bias", "decay on biases"])
def test_gradient_check_sees_a_wrong_gradient(monkeypatch, part):
    right = Network.objective

    def wrong(self, x, y, loss="cross_entropy", weight_decay=0.0):
        result = right(self, x, y, loss, weight_decay)
        if part == "decay on biases":
            self.gradient[self.n_weights :] += weight_decay * self.theta[self.n_weights :]
        else:
            (self.dW[0] if part == "one weight" else self.db[1]).flat[2] *= 1.001
        return result

    monkeypatch.setattr(Network, "objective", wrong)
    network, x, y = network_and_batch(SHAPES[0], "tanh")
    assert gradient_check(network, x, y, weight_decay=0.1) > 1e-5


def test_gradient_check_leaves_the_network_as_it_was_and_wants_float64():
    network, x, y = network_and_batch(SHAPES[0], "tanh")
    before = network.theta.copy()
    gradient_check(network, x, y)
    assert (network.theta == before).all()
    with pytest.raises(InputError, match="float64"):
        gradient_check(Network([7, 3]), x, y)


def test_forward_is_the_equations_written_as_loops():
    network, x, _ = network_and_batch([3, 4, 2, 5], "tanh", batch=2)
    for row, logits in zip(x, network.forward(x), strict=True):
        a = list(row)
        for l, (W, b) in enumerate(zip(network.W, network.b, strict=True)):
            a = [sum(a[i] * W[i, j] for i in range(len(a))) + b[j] for j in range(len(b))]
            if l < len(network.W) - 1:
                a = [math.tanh(z) for z in a]
        np.testing.assert_allclose(logits, a, rtol=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "mean_squared_error"])
def test_losses_against_their_definition_and_the_whole_jacobian(name):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)) * 3, rng.integers(0, 4, 6)
    loss, delta = LOSSES[name](z, y)
    total, expected = 0.0, np.zeros_like(z)
    for n in range(6):
        p = np.exp(z[n]) / np.exp(z[n]).sum()
        target = np.eye(4)[y[n]]
        jacobian = np.diag(p) - np.outer(p, p)  # dp_k / dz_j
        if name == "cross_entropy":
            total += -math.log(p[y[n]])
            dp = -target / p
        else:
            total += ((p - target) ** 2).sum()
            dp = 2 * (p - target)
        expected[n] = jacobian @ dp / 6
    assert loss == pytest.approx(total / 6, rel=1e-12)
    np.testing.assert_allclose(delta, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["cross_entropy", "mean_squared_error"])
def test_losses_are_stable_for_huge_logits(name, dtype):
    z = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [1e4, 1e4, 1e4]], dtype)
    loss, delta = LOSSES[name](z, np.array([0, 0, 1]))
    expected = {"cross_entropy": (0 + 2e4 + math.log(3)) / 3, "mean_squared_error": (0 + 2 + 6 / 9) / 3}
    assert loss == pytest.approx(expected[name], rel=1e-6)
    assert np.isfinite(delta).all() and delta.dtype == dtype


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_the_extremes_and_against_their_definition(name):
    z = np.array([-800, -3.0, -0.5, 0.5, 3.0, 800])
    expected = {
        "identity": z,
        "sigmoid": [1 / (1 + math.exp(min(-v, 700))) for v in z],
        "tanh": [math.tanh(v) for v in z],
        "ReLU": [max(v, 0) for v in z],
    }[name]
    a = z.copy()
    ACTIVATIONS[name][0](a)
    np.testing.assert_allclose(a, expected, atol=1e-15)


def test_weight_inits_have_the_distributions_they_state():
    rng = np.random.default_rng(0)
    W = WEIGHT_INITS["random"](rng, 784, 128)
    assert W.std() == pytest.approx(0.05, rel=0.01) and abs(W.mean()) < 1e-3
    W = WEIGHT_INITS["Xavier"](rng, 784, 128)
    r = math.sqrt(6 / 912)
    assert W.std() == pytest.approx(r / math.sqrt(3), rel=0.01) and np.abs(W).max() == pytest.approx(r, rel=0.01)
    W = WEIGHT_INITS["He"](rng, 784, 128)
    assert W.std() == pytest.approx(math.sqrt(2 / 784), rel=0.01) and abs(W.mean()) < 1e-3
    network = Network([784, 64, 10], weight_init="random", rng=rng)
    assert all((b == 0).all() for b in network.b) and network.W[0].std() == pytest.approx(0.05, rel=0.02)


def test_parameters_are_views_into_one_vector_and_stay_so_in_a_copy():
    network = Network([4, 3, 2], rng=np.random.default_rng(0))
    for other in (network, copy.deepcopy(network)):
        x = np.ones((1, 4), np.float32)
        before = other.forward(x)
        other.theta += 1
        assert (other.forward(x) != before).all()
        assert all(np.shares_memory(part, other.theta) for part in other.W + other.b)
    assert len(network.theta) == 4 * 3 + 3 * 2 + 3 + 2


def test_images_are_scaled_in_the_network_alike_everywhere():
    network = Network([784, 8, 10], rng=np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (5, 784)).astype(np.uint8)
    np.testing.assert_allclose(
        network.forward(images), network.forward((images / 255).astype(np.float32)), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(InputError, match="float64"):
        network.forward(images / 255)


def test_logits_returned_are_not_overwritten_by_the_next_batch():
    network, x, _ = network_and_batch([4, 3, 2], "tanh")
    z = network.forward(x)
    kept = z.copy()
    network.forward(x + 1)
    assert (z == kept).all()


def test_predict_gives_probabilities_for_any_number_of_rows():
    network = Network([784, 8, 10], rng=np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (2501, 784)).astype(np.uint8)
    p = network.predict(images)
    assert p.shape == (2501, 10)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(p[2500:], network.predict(images[2500:]), rtol=1e-4)


@pytest.mark.parametrize("sizes", [[784], [], [784, 0, 10], [784, 2.5, 10], [784, -1, 10], [784, "9", 10]])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="sizes"):
        Network(sizes)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(InputError, match="activation is 'relu6'; allowed: identity, sigmoid, tanh, ReLU"):
        Network([3, 2], activation="relu6")
    with pytest.raises(InputError, match="weight_init is 'glorot'; allowed: random, Xavier, He"):
        Network([3, 2], weight_init="glorot")
    with pytest.raises(InputError, match="loss is 'mse'; allowed: cross_entropy, mean_squared_error"):
        Network([3, 2]).objective(np.zeros((1, 3), np.float32), np.zeros(1, int), "mse")


@pytest.mark.parametrize("decay", [-1, np.nan, np.inf, True, None, "0.1", [1, 2]])
def test_a_decay_that_is_no_number_from_0_is_refused(decay):
    network = Network([3, 2], dtype=np.float64)
    for check in (network.objective, lambda *given, **more: gradient_check(network, *given, **more)):
        with pytest.raises(InputError, match="weight_decay is .*; allowed: a number in"):
            check(np.zeros((1, 3)), np.zeros(1, int), weight_decay=decay)


def test_names_are_taken_in_any_case_and_the_exact_one_first(monkeypatch):
    assert Network([3, 2], activation="relu").activation == "ReLU"
    monkeypatch.setitem(ACTIVATIONS, "relu", ACTIVATIONS["tanh"])
    assert Network([3, 2], activation="relu").activation == "relu"
    with pytest.raises(InputError, match="RELU"):  # either of two
        Network([3, 2], activation="RELU")


def gelu(z, out):
    """f(z) = z s(z), with the sigmoid s(1.702 z);  f'(z) = s + 1.702 z s (1 - s)   (Hendrycks & Gimpel, 2016)."""
    s = 1 / (1 + np.exp(-1.702 * z))
    out[:] = s + 1.702 * z * s * (1 - s)
    z *= s


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_an_activation_whose_derivative_needs_z(monkeypatch, sizes):
    monkeypatch.setitem(ACTIVATIONS, "GELU", (gelu, None))
    network, x, y = network_and_batch(sizes, "GELU")
    assert gradient_check(network, x, y, weight_decay=0.1) < 1e-6


IMAGES = {
    "one image": np.zeros(784, np.uint8),
    "a column": np.zeros((784, 1), np.uint8),
    "one number each": np.zeros((5, 1), np.uint8),
    "squares": np.zeros((5, 28, 28), np.uint8),
    "too wide": np.zeros((5, 785), np.uint8),
    "empty rows": np.zeros((5, 0), np.uint8),
    "a number": np.zeros((), np.uint8),
    "float64": np.zeros((5, 784)),
    "int64": np.zeros((5, 784), int),
    "text": np.full((5, 784), "a"),
    "objects": np.full((5, 784), None),
    "nan": np.full((5, 784), np.nan, np.float32),
    "infinite": np.full((5, 784), np.inf, np.float32),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_do_not_fit_are_refused_everywhere(kind, small, tiny_config):
    x = IMAGES[kind]
    y = np.zeros(x.shape[:1], int)
    network = Network([784, 8, 10])
    calls = [lambda: network.predict(x), lambda: dataclasses.replace(small, x_train=x, y_train=y)]
    if x.ndim:
        calls += [lambda: network.forward(x)]
        calls += [lambda: network.objective(x, y), lambda: helpers.evaluate(network, x, y)]
    for call in calls if kind != "float64" else calls[2:]:  # which a network of float64 takes
        with pytest.raises(InputError, match="^x.* is .*; allowed: "):
            call()


def test_no_images_give_no_probabilities_and_no_accuracy():
    network = Network([784, 8, 10])
    nothing = np.zeros((0, 784), np.uint8)
    assert network.predict(nothing).shape == (0, 10)
    for call in (network.objective, lambda x, y: helpers.evaluate(network, x, y)):
        with pytest.raises(InputError, match="y is int64 .*; allowed: "):
            call(nothing, np.zeros(0, int))


LABELS = {
    "from 1": np.arange(1, 11),
    "negative": np.arange(-1, 9),
    "text": np.array(list("0123456789")),
    "with a point": np.arange(10.0),
    "truth": np.arange(10) > 4,
    "too few": np.arange(9),
    "too many": np.arange(11) % 10,
    "a column": np.arange(10)[:, None],
    "one hot": np.eye(10, dtype=int),
    "objects": np.array([None] * 10),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_do_not_fit_are_refused_everywhere(kind, small, tiny_config):
    x = small.x_train[:10]
    y = LABELS[kind]
    network = Network([784, 8, 10])
    for call in (
        lambda: network.objective(x, y),
        lambda: helpers.evaluate(network, x, y),
        lambda: helpers.train(tiny_config(), dataclasses.replace(small, x_train=x, y_train=y)),
        lambda: helpers.train(tiny_config(), dataclasses.replace(small, x_val=x, y_val=y)),
    ):
        with pytest.raises(InputError, match="^y.*; allowed: "):
            call()


def test_memory_is_bounded_by_the_longest_batch():
    network = Network([784, 64, 64, 10])
    images = np.zeros((300, 784), np.uint8)
    network.predict(images)
    held = {id(array) for group in network._buffers for array in group}
    for n in range(1, 301):
        network.predict(images[:n])
    assert {id(array) for group in network._buffers for array in group} == held


def test_a_batch_gives_the_same_bits_whatever_came_before(small):
    x, y = small.x_train[:37], small.y_train[:37]
    one, other = (Network([784, 30, 20, 10], rng=np.random.default_rng(0)) for _ in range(2))
    other.predict(small.x_train)
    other.objective(small.x_train[:5], small.y_train[:5])
    assert one.objective(x, y)[0] == other.objective(x, y)[0] and (one.gradient == other.gradient).all()


def test_evaluate_is_the_plain_mean_over_all_images(small):
    network = Network([784, 8, 10], rng=np.random.default_rng(0))
    x, y = np.tile(small.x_train, (5, 1))[:1234], np.tile(small.y_train, 5)[:1234]
    p = network.predict(x)
    loss, accuracy = helpers.evaluate(network, x, y)
    assert loss == pytest.approx(-np.mean(np.log(p[np.arange(1234), y])), rel=1e-4)
    assert accuracy == np.mean(p.argmax(axis=1) == y)
