"""The layers, each against its definition written as loops, its gradient against finite differences and PyTorch."""

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

import helpers
from helpers import InputError, gradient_check
from lib.dataset import ROOT
from lib.layers import LAYERS, BatchNorm, Convolution, Dense, Dropout, Layer, MaxPool, ReLU, Residual, Stack

STACKS = {  # odd shapes throughout
    "dense": ((5,), lambda: [Dense(5, 7), ReLU(), Dense(7, 3)]),
    "batch norm": ((5,), lambda: [Dense(5, 4), BatchNorm(4), ReLU(), Dense(4, 3)]),
    "dropout": ((5,), lambda: [Dense(5, 8), ReLU(), Dropout(0.4), Dense(8, 3)]),
    "valid convolution": ((5, 6, 2), lambda: [Convolution(2, 3, pad=0), Dense(3 * 4 * 3, 3)]),
    "padded convolutions": ((5, 4, 1), lambda: [Convolution(1, 3), ReLU(), Convolution(3, 2), Dense(5 * 4 * 2, 3)]),
    "pooling": ((7, 5, 2), lambda: [Convolution(2, 3), MaxPool(2), Convolution(3, 2), ReLU(), Dense(3 * 2 * 2, 3)]),
    "large pooling": ((7, 6, 2), lambda: [Convolution(2, 3), MaxPool(3), ReLU(), Dense(2 * 2 * 3, 3)]),
    "residual": ((3, 4, 2), lambda: [Convolution(2, 3), Residual(Convolution(3, 3), BatchNorm(3), ReLU()), Dense(36, 3)]),
    "dropout of what is pooled": ((5, 4, 2), lambda: [Convolution(2, 3), MaxPool(2), Dropout(0.4), Dense(12, 3)]),
    "pooling within": ((2, 2, 2), lambda: [Residual(Convolution(2, 2, pad=2), MaxPool(2)), Dense(8, 3)]),
    "nested": ((3, 4, 2), lambda: [Residual(Convolution(2, 2), Residual(Convolution(2, 2))), Dense(24, 3)]),
    "all": ((8, 9, 1), lambda: [
        Convolution(1, 2, pad=0), BatchNorm(2), ReLU(), Convolution(2, 4), MaxPool(2), BatchNorm(4), ReLU(),
        Residual(Convolution(4, 4), BatchNorm(4), ReLU()), MaxPool(3), Dense(4, 3),
    ]),
}  # fmt: skip


def stack(name, seed=0, n=7):
    """A network in training, in float64, with random values for all its parameters; a batch and its labels."""
    shape, layers = STACKS[name]
    rng = np.random.default_rng(seed)
    network = Stack(layers(), shape, rng, np.float64)
    network.theta += rng.normal(0, 0.2, network.theta.shape)
    network.mode = "train"
    return network, rng.normal(size=(n, *shape)), rng.integers(0, 3, n)


def fix_dropout(network):
    """Let every forward draw the same mask."""
    for layer in network.every:
        if isinstance(layer, Dropout):
            layer.state[0][...] = 5


def numeric(network, x, y, weight_decay, epsilon=1e-5):
    """dJ/dtheta by central differences, written independently of helpers.gradient_check."""
    result = np.empty_like(network.theta)
    for i in range(len(result)):
        for sign in (1, -1):
            network.theta[i] += sign * epsilon
            fix_dropout(network)
            z = network.forward(x)
            network.theta[i] -= sign * epsilon
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            value = -np.log(p[np.arange(len(y)), y]).mean()
            change = network.theta[: network.n_weights].copy()
            if i < network.n_weights:
                change[i] += sign * epsilon
            value += weight_decay / 2 * (change**2).sum()
            result[i] = value if sign > 0 else (result[i] - value) / (2 * epsilon)
    return result


@pytest.mark.parametrize("name", STACKS)
def test_backprop_agrees_with_finite_differences(name):
    network, x, y = stack(name)
    expected = numeric(network, x, y, 0.1)
    fix_dropout(network)
    network.objective(x, y, weight_decay=0.1)
    np.testing.assert_allclose(network.gradient, expected, rtol=2e-6, atol=1e-9)
    assert np.count_nonzero(np.abs(expected) > 1e-6) > 0.5 * len(expected)


def test_the_gradient_check_of_helpers_takes_a_stack_and_sees_what_is_wrong(monkeypatch):
    network, x, y = stack("all")
    assert helpers.gradient_check(network, x, y, weight_decay=0.1) < 1e-6
    right = MaxPool.backward
    monkeypatch.setattr(MaxPool, "backward", lambda self, delta: right(self, delta * 1.001))
    assert helpers.gradient_check(network, x, y) > 1e-5


@pytest.mark.parametrize("pad", [0, 1])
def test_convolution_is_its_sum_written_as_loops(pad):
    rng = np.random.default_rng(1)
    layer = Convolution(2, 3, pad)
    Stack([layer, Dense((3 + 2 * pad) * (2 + 2 * pad) * 3, 1)], (5, 4, 2), rng, np.float64)
    x, W = rng.normal(size=(2, 5, 4, 2)), layer.W[0].reshape(3, 3, 2, 3)
    z = layer.forward(x, "test")
    assert z.shape == (2, 3 + 2 * pad, 2 + 2 * pad, 3)
    for n, i, j, k in np.ndindex(z.shape):
        total = 0.0
        for d in range(3):
            for e in range(3):
                row, column = i + d - pad, j + e - pad
                if 0 <= row < 5 and 0 <= column < 4:
                    total += sum(x[n, row, column, c] * W[d, e, c, k] for c in range(2))
        assert z[n, i, j, k] == pytest.approx(total, abs=1e-12)


def test_many_images_are_convolved_in_parts_to_the_same_result(monkeypatch):
    rng = np.random.default_rng(2)
    layer = Convolution(8, 5)
    Stack([layer, Dense(20 * 20 * 5, 1)], (20, 20, 8), rng, np.float64)
    layer.first = False
    x, delta = rng.normal(size=(23, 20, 20, 8)), rng.normal(size=(23, 20, 20, 5))  # 9 images are a part
    assert len(list(layer._patches(layer._padded("x", x, 1)))) == 3
    z, dx, dW = layer.forward(x, "train").copy(), layer.backward(delta).copy(), layer.dW[0].copy()
    total = 0
    for i in range(23):
        np.testing.assert_allclose(layer.forward(x[i : i + 1], "train")[0], z[i], atol=1e-10)
        np.testing.assert_allclose(layer.backward(delta[i : i + 1])[0], dx[i], atol=1e-10)
        total = total + layer.dW[0]
    np.testing.assert_allclose(total, dW, atol=1e-9)


def test_of_equals_the_first_gets_the_whole_gradient_of_a_pooling():
    layer, x = MaxPool(2), np.zeros((1, 5, 4, 1))
    x[0, 2, 3] = 1
    np.testing.assert_array_equal(layer.forward(x, "train")[0, :, :, 0], [[0, 0], [0, 1]])
    dx = layer.backward(np.array([[[[3.0], [5.0]], [[7.0], [11.0]]]]))[0, :, :, 0]
    np.testing.assert_array_equal(dx, [[3, 0, 5, 0], [0, 0, 0, 0], [7, 0, 0, 11], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_batch_norm_normalises_the_batch_and_afterwards_by_what_it_was_calibrated_with():
    rng = np.random.default_rng(3)
    norm = BatchNorm(4)
    network = Stack([norm], (4,), rng, np.float64)
    x = rng.normal(3, 5, (250, 4))
    network.mode = "train"
    y = network.forward(x)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(norm.state, [0.1 * x.mean(axis=0), 0.9 + 0.1 * x.var(axis=0)])  # runs after the batches
    for _ in range(2):  # a second calibration forgets the first
        network.calibrate(x)
    parts = [x[:100], x[100:200], x[200:]]
    weights = [100, 100, 50]
    mean, var = (np.average([f(part, axis=0) for part in parts], 0, weights) for f in (np.mean, np.var))
    np.testing.assert_allclose(norm.state, [mean, var])
    assert network.mode == "test"
    np.testing.assert_allclose(network.forward(x[:3]), (x[:3] - mean) / np.sqrt(var + 1e-5))


def test_dropout_drops_its_share_keeps_the_mean_and_does_nothing_outside_training():
    layer, x = Dropout(0.3), np.ones((200, 500), np.float32)
    Stack([layer], (500,), np.random.default_rng(0))
    y = layer.forward(x.copy(), "train")
    assert abs((y == 0).mean() - 0.3) < 0.01 and abs(y.mean() - 1) < 0.01 and y.dtype == np.float32
    np.testing.assert_array_equal(layer.backward(np.ones_like(x)), y)  # the same mask
    assert abs((layer.forward(x.copy(), "train") == y).mean() - (0.3**2 + 0.7**2)) < 0.01  # the next one is another
    for mode in ("calibrate", "test"):
        np.testing.assert_array_equal(layer.forward(x.copy(), mode), x)


@pytest.mark.parametrize(
    "layer, arguments, words",
    [
        (Dense, (0, 3), "n_in is 0"),
        (Dense, (3, 2.5), "n_out is 2.5"),
        (Convolution, (-1, 2), "n_in is -1"),
        (Convolution, (1, 2, 3), "pad is 3"),
        (MaxPool, (0,), "size is 0"),
        (BatchNorm, (0,), "n is 0"),
        (Dropout, (1.0,), "p is 1.0"),
        (Dropout, (float("nan"),), "p is nan"),
        (Residual, (), "a Residual has no layers"),
        (Residual, (ReLU(), Dense(3, 3)), "a Residual begins with ReLU"),
        (Residual, (Dropout(0.5), Dense(3, 3)), "a Residual begins with Dropout"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(layer, arguments, words):
    with pytest.raises(InputError, match=f"{words}.*; allowed: "):
        layer(*arguments)


def test_a_layer_has_one_place_in_one_network():
    """It keeps what its backward needs: used twice, the first gradient would be that of the second."""
    relu, first = ReLU(), Dense(4, 4)
    for layers in ([first, relu, Dense(4, 4), relu, Dense(4, 2)], [first, ReLU(), Residual(first), Dense(4, 2)]):
        with pytest.raises(
            InputError, match="^a (ReLU|Dense) is given twice, or belongs to another network; allowed: "
        ):
            Stack(layers, (4,))
    network = Stack([first, Dense(4, 2)], (4,), np.random.default_rng(0))
    kept = network.theta.copy()
    with pytest.raises(InputError, match="^a Dense is given twice, or belongs to another network; allowed: a new one$"):
        Stack([first, Dense(4, 3)], (4,))
    np.testing.assert_array_equal(first.W[0], kept[:16].reshape(4, 4))
    with pytest.raises(InputError, match="^layers holds a function; allowed: Dense, "):
        Stack([lambda x: x, Dense(4, 2)], (4,))


@pytest.mark.parametrize("layers, shape, words", [
    ([Dense(5, 4), BatchNorm(1), Dense(4, 3)], (5,), "a BatchNorm is given (4,); allowed: 1 channels"),
    ([Residual(Dense(5, 1)), Dense(5, 3)], (5,), "a Residual makes (1,) of (5,); allowed: the same shape"),
    ([Residual(Convolution(2, 2, pad=0)), Dense(2, 3)], (3, 3, 2), "a Residual makes (1, 1, 2) of (3, 3, 2)"),
    ([Convolution(1, 2, pad=0), Dense(2, 3)], (2, 5, 1), "a Convolution is given (2, 5, 1); allowed: (height, width"),
    ([Convolution(5, 2), Dense(2, 3)], (5,), "a Convolution is given (5,); allowed: (height, width, channels)"),
    ([MaxPool(3), Dense(1, 3)], (2, 3, 1), "a MaxPool is given (2, 3, 1); allowed: (height, width, channels), of 3 x 3"),
    ([MaxPool(2), Dense(1, 3)], (4,), "a MaxPool is given (4,)"),
    ([Convolution(1, 3)], (4, 4, 1), "the last layer makes (4, 4, 3) of an input; allowed: (n_out,), as Dense does"),
    ([Dense(4, 3)], (4.0,), "a side in shape is 4.0; allowed: a whole number"),
    ([Dense(4, 3)], (-4,), "a side in shape is -4; allowed: a whole number"),
])  # fmt: skip
def test_layers_whose_shapes_would_be_cut_or_repeated_are_refused(layers, shape, words):
    with pytest.raises(InputError) as caught:
        Stack(layers, shape)
    assert words in str(caught.value)


def test_layers_that_were_refused_are_free_for_another_network():
    layer = Convolution(1, 2)
    with pytest.raises(InputError, match="layer 2, a Dense, is given"):
        Stack([layer, Dense(5, 3)], (5, 5, 1))
    assert Stack([layer, Dense(50, 3)], (5, 5, 1)).sizes == [25, 3] and layer.first


def test_backward_follows_a_forward_in_training_once():
    network = Stack([Dense(4, 3), BatchNorm(3)], (4,), 0, np.float64)
    network.forward(np.ones((2, 4)))
    with pytest.raises(
        InputError, match="^backward does not follow a forward in mode 'train'; allowed: once after each$"
    ):
        network.backward(np.ones((2, 3)))
    network.mode = "train"
    network.forward(np.ones((2, 4)))
    network.backward(np.ones((2, 3)))
    with pytest.raises(
        InputError, match="^backward does not follow a forward in mode 'train'; allowed: once after each$"
    ):
        network.backward(np.ones((2, 3)))


@pytest.mark.parametrize("name", ["dropout", "dropout of what is pooled", "batch norm"])
def test_a_gradient_check_is_of_one_mask_of_dropout_and_leaves_all_as_it_was(name):
    network, x, y = stack(name)
    kept = network.theta.copy()
    assert helpers.gradient_check(network, x, y, weight_decay=0.1) < 1e-6
    np.testing.assert_array_equal(network.theta, kept)


def test_a_seed_is_taken_as_by_every_network():
    one, same, other = (Stack([Dense(4, 3)], (4,), rng).theta for rng in (0, np.random.default_rng(0), 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(InputError, match="^rng is -1; allowed: "):
        Stack([Dense(4, 3)], (4,), -1)


def test_logits_are_the_callers_whatever_the_last_layer_is():
    network = Stack([Dense(4, 3), BatchNorm(3)], (4,), 0, np.float64)
    first = network.forward(np.ones((2, 4)))
    kept = first.copy()
    network.forward(np.zeros((2, 4)))
    np.testing.assert_array_equal(first, kept)


def test_a_calibration_that_fails_leaves_the_mode_and_one_of_nothing_is_refused():
    network = Stack([Dense(4, 3), BatchNorm(3)], (4,), 0, np.float64)
    with pytest.raises(InputError, match="x is float64; allowed: "):
        network.calibrate(np.full((2, 4), np.nan))
    assert network.mode == "test"
    with pytest.raises(InputError, match="^x has no inputs; allowed: one or more$"):
        network.calibrate(np.ones((0, 4)))
    for mode in ("training", "Train"):
        network.mode = mode
        with pytest.raises(InputError, match=f"^mode is '{mode}'; allowed: train, calibrate, test$"):
            network.forward(np.ones((2, 4)))


def test_a_stack_is_a_network_whose_parameters_are_views(small):
    rng = np.random.default_rng(0)
    network = Stack([Dense(784, 6), BatchNorm(6), ReLU(), Dense(6, 10)], (784,), rng)
    assert network.n_weights == 784 * 6 + 60 and network.n_parameters == network.n_weights + 6 + 12 + 10
    network.theta[:] = np.arange(len(network.theta))
    assert network.layers[0].W[0][0, 1] == 1 and network.layers[3].W[0][0, 0] == 784 * 6
    assert network.layers[0].v[0][0] == network.n_weights and network.layers[3].v[0][-1] == network.n_parameters - 1
    assert len(network.theta) == network.n_parameters + 12 and network.layers[1].state[1][-1] == len(network.theta) - 1
    with pytest.raises(InputError):
        helpers.gradient_check(network, small.x_train[:2], small.y_train[:2])


def test_any_number_of_images_at_once_gives_the_same(small):
    network = Stack(
        [Convolution(1, 2), BatchNorm(2), ReLU(), Dense(2 * 784, 10)], (28, 28, 1), np.random.default_rng(0)
    )
    network.calibrate(small.x_train)
    x = small.x_train[:250]
    before = x.copy()
    whole = network.forward(x)
    np.testing.assert_allclose(whole, np.concatenate([network.forward(one[None]) for one in x]), atol=2e-5)
    np.testing.assert_array_equal(x, before)
    floats = np.multiply(x, 1 / 255, dtype=np.float32)
    kept = floats.copy()
    np.testing.assert_allclose(whole, network.forward(floats), atol=2e-5)
    np.testing.assert_array_equal(floats, kept)
    assert network.predict(x).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_convolutional_network_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    nn, rng = torch.nn, np.random.default_rng(4)
    ours = [Convolution(1, 3, pad=0), BatchNorm(3), ReLU(), Convolution(3, 4), MaxPool(2), Dense(4 * 3 * 3, 5)]
    network = Stack(ours, (8, 8, 1), rng, np.float64)
    network.theta += rng.normal(0, 0.1, network.theta.shape)
    network.mode = "train"
    theirs = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5),
    ).double()  # fmt: skip
    turn = lambda W, n_in: torch.tensor(W.reshape(3, 3, n_in, -1).transpose(3, 2, 0, 1).copy())  # noqa: E731
    places = np.arange(36).reshape(3, 3, 4).transpose(2, 0, 1).ravel()  # (height, width, channel) as theirs
    with torch.no_grad():
        theirs[0].weight.copy_(turn(ours[0].W[0], 1))
        theirs[3].weight.copy_(turn(ours[3].W[0], 3))
        theirs[1].weight.copy_(torch.tensor(ours[1].v[0]))
        theirs[1].bias.copy_(torch.tensor(ours[1].v[1]))
        theirs[6].weight.copy_(torch.tensor(ours[5].W[0][places].T.copy()))
        theirs[6].bias.copy_(torch.tensor(ours[5].v[0]))
    x, y = rng.normal(size=(6, 8, 8, 1)), rng.integers(0, 5, 6)
    loss, z = network.objective(x, y)
    out = theirs(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    expected = nn.functional.cross_entropy(out, torch.tensor(y))
    expected.backward()
    np.testing.assert_allclose(z, out.detach().numpy(), atol=1e-10)
    assert loss == pytest.approx(expected.item(), abs=1e-12)
    np.testing.assert_allclose(turn(ours[0].dW[0], 1), theirs[0].weight.grad, atol=1e-10)
    np.testing.assert_allclose(turn(ours[3].dW[0], 3), theirs[3].weight.grad, atol=1e-10)
    np.testing.assert_allclose(ours[1].dv, [theirs[1].weight.grad.numpy(), theirs[1].bias.grad.numpy()], atol=1e-10)
    np.testing.assert_allclose(ours[5].dW[0][places].T, theirs[6].weight.grad, atol=1e-10)
    np.testing.assert_allclose(ours[5].dv[0], theirs[6].bias.grad, atol=1e-10)


def test_in_float32_a_convolutional_network_comes_to_the_logits_and_gradients_of_float64():
    """A batch has 86,528 pixels a channel; added up one after another in float32 they lose three digits."""
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 256, (128, 784), np.uint8), rng.integers(0, 10, 128)
    x[:, 300:] //= 50  # much of an image is dark
    layers = lambda: [  # noqa: E731
        Convolution(1, 16, pad=0), BatchNorm(16), ReLU(), Convolution(16, 8), MaxPool(2), BatchNorm(8), ReLU(),
        Residual(Convolution(8, 8), BatchNorm(8), ReLU()), MaxPool(4), Dense(8 * 9, 10),
    ]  # fmt: skip
    single, double = (Stack(layers(), (28, 28, 1), np.random.default_rng(0), t) for t in (np.float32, np.float64))
    double.theta[:] = single.theta
    single.mode = double.mode = "train"
    z, exact = single.forward(x), double.forward(x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z, exact, atol=1e-5)
    for ours, theirs in zip(single.every, double.every):  # what rounding decides otherwise is no error of a sum
        if isinstance(ours, ReLU):
            theirs.mask = ours.mask
        if isinstance(ours, MaxPool):
            theirs.x, theirs.out = ours.x, ours.out
    delta = helpers.cross_entropy(exact, y)[1]
    single.backward(delta.astype(np.float32))
    double.backward(delta)
    for a, b in zip(single.parts(single.gradient), double.parts(double.gradient)):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def trained_stack(dtype=np.float32):
    """Layers of every kind, and state unlike the first."""
    rng = np.random.default_rng(0)
    layers = [
        Convolution(1, 4, pad=0), BatchNorm(4), ReLU(), Residual(Convolution(4, 4), BatchNorm(4), ReLU()), MaxPool(3),
        Dropout(0.1), Dense(4 * 8 * 8, 10, "Xavier"),
    ]  # fmt: skip
    network = Stack(layers, (28, 28, 1), rng, dtype)
    network.calibrate(rng.integers(0, 256, (50, 784), np.uint8))
    return network


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda network: pickle.loads(pickle.dumps(network))}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_copy_is_the_same_network_and_shares_nothing(how, dtype, small):
    network = trained_stack(dtype)
    again = COPIES[how](network)
    assert again.theta.dtype == dtype and again.sizes == network.sizes == [784, 10] and again.layers[0].first
    np.testing.assert_array_equal(again.predict(small.x_test), network.predict(small.x_test))
    for one in (network, again):  # also in training: the same masks of dropout
        one.objective(small.x_train[:50], small.y_train[:50])
    np.testing.assert_array_equal(again.gradient, network.gradient)
    np.testing.assert_array_equal(again.theta, network.theta)
    kept = network.theta.copy()
    again.theta += 1
    assert again.layers[0].W[0][0, 0] == again.theta[0] == kept[0] + 1
    np.testing.assert_array_equal(network.theta, kept)


def test_train_takes_a_stack_and_goes_on_from_its_checkpoint_to_the_same_bits(small, tmp_path):
    config = helpers.Config(epochs=4, batch_size=20, learning_rate=0.003, optimizer="adam")
    _, whole, _ = helpers.train(config, small, network=(network := trained_stack()))
    assert whole[-1]["val_accuracy"] > 0.5 and network.mode == "test"
    half = dataclasses.replace(config, epochs=2)
    helpers.train(half, small, network=trained_stack(), checkpoint=tmp_path / "c.npz")
    again = trained_stack()
    _, history, _ = helpers.train(config, small, network=again, checkpoint=tmp_path / "c.npz")
    np.testing.assert_array_equal(again.theta, network.theta)
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in whole]


def test_the_best_epoch_that_is_kept_has_its_own_statistics(small):
    config = helpers.Config(epochs=5, batch_size=20, learning_rate=0.01, optimizer="adam")
    network, history, _ = helpers.train(config, small, network=trained_stack(), keep_best=True)
    best = max(history, key=lambda row: row["val_accuracy"])
    loss, accuracy = helpers.evaluate(network, small.x_val, small.y_val)
    assert (loss, accuracy) == (best["val_loss"], best["val_accuracy"])


@pytest.mark.parametrize("x", [
    np.zeros((3, 783), np.uint8), np.zeros((3, 1), np.uint8), np.zeros(784, np.uint8), np.uint8(3),
    np.zeros((3, 784), np.float64), np.zeros((3, 784), np.int64), np.zeros((3, 784), bool), [[0.0] * 784], "images",
    np.zeros((3, 1, 28, 28), np.uint8), np.zeros((3, 28, 28), np.uint8), np.zeros((3, 2, 392), np.uint8),
])  # fmt: skip
def test_images_of_the_wrong_shape_or_type_are_refused(x):
    with pytest.raises(InputError, match="x is .*; allowed: "):
        trained_stack().forward(x)


def test_no_images_have_no_logits():
    assert trained_stack().forward(np.zeros((0, 784), np.uint8)).shape == (0, 10)


def test_layers_that_do_not_fit_are_refused():
    for layers, words in [
        ([Dense(784, 5), Dense(6, 10)], r"layer 2, a Dense, is given \(5,\): "),
        ([Dense(783, 10)], r"layer 1, a Dense, is given \(28, 28, 1\): "),
        ([Convolution(2, 3), Dense(3 * 784, 10)], r"layer 1, a Convolution, is given \(28, 28, 1\): "),
    ]:
        with pytest.raises(InputError, match=words):
            Stack(layers, (28, 28, 1))


@pytest.mark.parametrize("forward, words", [
    (lambda self, x, mode: None, "and returns a NoneType"), (lambda self, x, mode: x.astype(float), "and returns float64"),
    (lambda self, x, mode: x[0], r"and returns float32 \(4,\)"), (lambda self, x: x, ": .*takes 2 positional arguments"),
    (lambda self, x, mode: self.missing, ": .*no attribute 'missing'"),
])  # fmt: skip
def test_a_layer_of_ones_own_that_is_none_is_named(forward, words, monkeypatch):
    monkeypatch.setattr("lib.layers.LAYERS", dict(LAYERS))  # as the class adds itself
    mine = type("Mine", (Layer,), {"forward": forward})
    with pytest.raises(InputError, match=rf"^layer 2, a Mine, is given \(4,\) ?{words}"):
        Stack([Dense(6, 4), mine()], (6,))


class Scale(Layer):
    """y = v x, with a v, a dv and a state that may be put there anew, as they must not be."""

    def __init__(self, wrong):
        self.vectors = self.remembered = [(4,)]
        self.wrong = wrong

    def begin(self, rng):
        self.v[0].fill(1)
        if self.wrong == "v":
            self.v[0] = np.ones(4)

    def forward(self, x, mode):
        self.x = x
        if self.wrong == "state":
            self.state[0] = self.state[0] + 1
        return x * self.v[0]

    def backward(self, delta):
        if self.wrong == "nothing":
            return None
        if self.wrong == "dv":
            self.dv[0] = (delta * self.x).sum(axis=0)
        self.dv[0][:] = np.nan if self.wrong == "nan" else (delta * self.x).sum(axis=0)
        return delta * self.v[0]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("wrong", ["", "v", "dv", "state", "nothing", "nan"])
def test_a_layer_of_ones_own_fills_the_arrays_that_it_is_given(wrong):
    def check():
        network = Stack([Dense(3, 4), Scale(wrong), Dense(4, 2)], (3,), 0, np.float64)
        return gradient_check(network, np.arange(9.0).reshape(3, 3), np.array([0, 1, 1]))

    words = "^a Scale replaces its W, v, dW, dv or state; allowed: numbers put into these arrays"
    if wrong == "nothing":
        words = "^backward of layer 2, a Scale, returns a NoneType; allowed: dJ/dx, an array"
    if wrong in ("", "nan"):
        assert check() < 1e-7 if not wrong else math.isnan(check())
        return
    with pytest.raises(InputError, match=words):
        check()


def test_a_name_of_ours_is_not_taken_and_numbers_of_numpys_can_be_saved(tmp_path):
    with pytest.raises(InputError, match="^a layer is named 'Dense', which lib.layers has; allowed: another name$"):
        type("Dense", (Layer,), {})
    network = Stack([Dense(np.prod((7, 7)), n_out=np.int64(3))], (49,), 0)
    helpers.save_network(tmp_path / "n.npz", network)
    np.testing.assert_array_equal(helpers.load_network(tmp_path / "n.npz").theta, network.theta)


def test_an_argument_that_is_a_list_is_no_layer_to_make(tmp_path, monkeypatch):
    monkeypatch.setattr("lib.layers.LAYERS", dict(LAYERS))  # as the class adds itself

    class Crop(Layer):
        def __init__(self, columns):
            self.columns = list(columns)

        def forward(self, x, mode):
            return x[:, self.columns]

    for columns in ([0, 2], (1, 2, 0)):
        network = Stack([Crop(columns), Dense(len(columns), 2)], (3,), 0)
        helpers.save_network(tmp_path / "n.npz", network)
        again = helpers.load_network(tmp_path / "n.npz")
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(again.predict(x), network.predict(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_stack_is_loaded_as_it_was(dtype, small, tmp_path):
    network = trained_stack(dtype)
    helpers.save_network(tmp_path / "s.npz", network)
    again = helpers.load_network(tmp_path / "s.npz")
    assert type(again) is Stack and again.theta.dtype == dtype
    assert [layer.description() for layer in again.layers] == [layer.description() for layer in network.layers]
    np.testing.assert_array_equal(again.theta, network.theta)
    np.testing.assert_array_equal(again.predict(small.x_test), network.predict(small.x_test))


def test_a_checkpoint_is_no_saved_network(small, tmp_path):
    helpers.train(helpers.Config(epochs=1), small, network=trained_stack(), checkpoint=tmp_path / "c.npz")
    with pytest.raises(InputError, match="c.npz is a checkpoint; allowed: a network, which save_network writes$"):
        helpers.load_network(tmp_path / "c.npz")


def test_a_process_that_has_not_imported_the_layers_loads_a_stack(tmp_path):
    helpers.save_network(tmp_path / "s.npz", trained_stack())
    code = f"import helpers; print(helpers.load_network({str(tmp_path / 's.npz')!r}).sizes)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[784, 10]\n", done.stderr


def test_a_stack_that_is_damaged_or_made_of_something_else_is_refused(tmp_path):
    path = tmp_path / "s.npz"
    helpers.save_network(path, trained_stack())
    good = dict(np.load(path))
    for change, words in [
        ({"theta": good["theta"][1:]}, "its theta 2782"), ({"shape": np.array([28, 29, 1])}, "s.npz: layer 7, a Dense, is given"),
        ({"layers": np.array("[")}, "not a saved network"), ({"layers": np.array("3")}, "not a saved network"),
        ({"layers": np.array('[["Sparse", [3], {}]]')}, "s.npz: a layer is 'Sparse'; allowed: .*; your own once"), ({"layers": np.array('[["Dense", [3], {}]]')}, "not a saved"),
        ({"kind": np.array("Forest")}, "Forest"), ({"colour": np.array(1)}, "not a saved network"),
        ({"layers": np.array('[["Dense", [784, "x"], {}]]')}, "s.npz: n_out is 'x'; allowed: a whole number"), ({"layers": np.array("[]")}, "s.npz: layers is empty"),
        ({"layers": np.array('[["Dense", [784, 10, "x"], {}]]')}, "s.npz: weight_init is 'x'; allowed: random"),
        ({"layers": np.array('[["Dense", [784, 1000000000000], {}]]')}, "785000000000000 numbers"),
    ]:  # fmt: skip
        np.savez(path, **{**good, **change})
        with pytest.raises(InputError, match=words):
            helpers.load_network(path)
