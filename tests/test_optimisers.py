"""Every optimiser against its equations, written out once more for single numbers, and against PyTorch's."""

import math

import numpy as np
import pytest

import helpers
from helpers import OPTIMIZERS, Config, Network

SETTINGS = {"learning_rate": 0.07, "momentum": 0.8, "beta": 0.85, "beta1": 0.75, "beta2": 0.95, "epsilon": 1e-3}


def by_hand(name, theta, gradients):
    """The equations for one parameter, in plain Python; epsilon is large, so that where it stands shows."""
    eta, mu, beta, b1, b2, eps = SETTINGS.values()
    u = m = v = 0.0
    for t, g in enumerate(gradients, 1):
        if name == "sgd":
            theta -= eta * g
        elif name == "momentum":
            u = mu * u + g
            theta -= eta * u
        elif name == "nag":
            u = mu * u + g
            theta -= eta * (g + mu * u)
        elif name == "rmsprop":
            v = beta * v + (1 - beta) * g * g
            theta -= eta * g / (math.sqrt(v) + eps)
        else:
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            v_hat = v / (1 - b2**t)
            m_hat = m / (1 - b1**t)
            if name == "nadam":
                m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
            theta -= eta * m_hat / (math.sqrt(v_hat) + eps)
    return theta


@pytest.mark.parametrize("name", ["sgd", "momentum", "nag", "rmsprop", "adam", "nadam"])
def test_steps_follow_the_equations(name):
    rng = np.random.default_rng(5)
    start, gradients = rng.normal(size=4), rng.normal(size=(7, 4))
    theta = start.copy()
    step = OPTIMIZERS[name](theta, Config(optimizer=name, **SETTINGS))
    for t, g in enumerate(gradients, 1):
        step(g, t, 1.0)
    expected = [by_hand(name, start[i], gradients[:, i]) for i in range(4)]
    np.testing.assert_allclose(theta, expected, rtol=1e-12)


def test_nesterov_is_the_classical_form_seen_from_the_point_looked_ahead_to():
    """x_t = w_t + m d_t obeys our update, where d <- m d - eta grad(w + m d), w <- w + d (Sutskever et al., 2013)."""
    eta, mu = SETTINGS["learning_rate"], SETTINGS["momentum"]
    grad = lambda w: 3 * w + np.sin(w)  # noqa: E731
    w, d = np.array([1.0, -2.0]), np.zeros(2)
    ahead = w.copy()
    step = OPTIMIZERS["nag"](ahead, Config(optimizer="nesterov", **SETTINGS))
    for t in range(1, 9):
        d = mu * d - eta * grad(w + mu * d)
        w = w + d
        step(grad(ahead), t, 1.0)
        np.testing.assert_allclose(ahead, w + mu * d, rtol=1e-12)


TORCH = {
    "sgd": lambda torch, p: torch.optim.SGD(p, lr=0.07),
    "momentum": lambda torch, p: torch.optim.SGD(p, lr=0.07, momentum=0.8),
    "nag": lambda torch, p: torch.optim.SGD(p, lr=0.07, momentum=0.8, nesterov=True),
    "rmsprop": lambda torch, p: torch.optim.RMSprop(p, lr=0.07, alpha=0.85, eps=1e-3),
    "adam": lambda torch, p: torch.optim.Adam(p, lr=0.07, betas=(0.75, 0.95), eps=1e-3),
}


@pytest.mark.parametrize("weight_decay", [0, 0.01])
@pytest.mark.parametrize("name", TORCH)
def test_fifty_steps_of_a_network_agree_with_pytorch(name, weight_decay):
    """Same weights, same batches, float64: forward, loss, backprop, decay (weights only) and optimiser at once."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 13, 7)), rng.integers(0, 4, (50, 13))
    ours = Network([7, 6, 5, 4], "tanh", "Xavier", rng, np.float64)
    weights = [torch.tensor(W.copy(), requires_grad=True) for W in ours.W]
    biases = [torch.tensor(b.copy(), requires_grad=True) for b in ours.b]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": biases}]
    theirs = TORCH[name](torch, groups)
    step = OPTIMIZERS[name](ours.theta, Config(optimizer=name, **SETTINGS))
    for t in range(50):
        value, _ = ours.objective(x[t], y[t], "cross_entropy", weight_decay)
        step(ours.gradient, t + 1, value)
        a = torch.tensor(x[t])
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            a = torch.tanh(a @ W + b)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(a @ weights[-1] + biases[-1], torch.tensor(y[t])).backward()
        theirs.step()
    for mine, other in zip(ours.W + ours.b, weights + biases, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-6, atol=1e-6)


def eve(theta, config):
    """Adam with eta / d: d follows how much the loss changes, relative to the loss (Hayashi, Koushik & Neubig, 2016)."""
    move = helpers.adam(theta, config)
    before, d, previous = theta.copy(), 1.0, 0.0

    def step(g, t, loss):
        nonlocal d, previous
        if t > 1:
            change = abs(loss - previous) / max(min(loss, previous), 1e-12)
            d = 0.999 * d + 0.001 * min(max(change, 0.1), 10)
        previous = loss
        before[:] = theta
        move(g, t, loss)
        theta[:] = before + (theta - before) / d

    return step


def test_an_optimiser_is_added_from_outside_with_one_function_and_one_line(monkeypatch, small, tiny_config, tmp_path):
    monkeypatch.setitem(helpers.OPTIMIZERS, "eve", eve)
    config = tiny_config(optimizer="eve", epochs=4)
    whole = helpers.train(config, small)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    assert (whole.network.theta != helpers.train(tiny_config(optimizer="adam", epochs=4), small).network.theta).any()
    helpers.train(tiny_config(optimizer="eve", epochs=2), small, checkpoint=tmp_path / "c.npz")
    resumed = helpers.train(config, small, checkpoint=tmp_path / "c.npz")  # its numbers and its Adam's moments are kept
    assert (resumed.network.theta == whole.network.theta).all()


def test_state_that_a_checkpoint_cannot_hold_is_refused_not_forgotten(monkeypatch, small, tiny_config, tmp_path):
    def forgetful(theta, config):
        last = None

        def step(g, t, loss):
            nonlocal last
            theta[:] -= g * (0.1 if last is None or loss < last else 0.05)
            last = loss

        return step

    monkeypatch.setitem(helpers.OPTIMIZERS, "forgetful", forgetful)
    helpers.train(tiny_config(optimizer="forgetful", epochs=1), small, checkpoint=tmp_path / "c.npz")
    with pytest.raises(helpers.InputError, match=r"holds \['optimizer.last', 'optimizer.theta'\]"):
        helpers.train(tiny_config(optimizer="forgetful", epochs=2), small, checkpoint=tmp_path / "c.npz")
