"""Every optimiser against its equations, written out once more for single numbers, and against PyTorch's."""

import math
import threading

import numpy as np
import pytest

import helpers
import lib.dataset
import lib.parallel
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
    step, _ = OPTIMIZERS[name](theta, Config(optimizer=name, **SETTINGS))
    for t, g in enumerate(gradients, 1):
        step(g, t, SETTINGS["learning_rate"], 1.0)
    expected = [by_hand(name, start[i], gradients[:, i]) for i in range(4)]
    np.testing.assert_allclose(theta, expected, rtol=1e-12)


def test_nesterov_is_the_classical_form_seen_from_the_point_looked_ahead_to():
    """x_t = w_t + m d_t obeys our update, where d <- m d - eta grad(w + m d), w <- w + d (Sutskever et al., 2013)."""
    eta, mu = SETTINGS["learning_rate"], SETTINGS["momentum"]
    grad = lambda w: 3 * w + np.sin(w)  # noqa: E731
    w, d = np.array([1.0, -2.0]), np.zeros(2)
    ahead = w.copy()
    step, _ = OPTIMIZERS["nag"](ahead, Config(optimizer="nesterov", **SETTINGS))
    for t in range(1, 9):
        d = mu * d - eta * grad(w + mu * d)
        w = w + d
        step(grad(ahead), t, eta, 1.0)
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
    step, _ = OPTIMIZERS[name](ours.theta, Config(optimizer=name, **SETTINGS))
    for t in range(50):
        value, _ = ours.objective(x[t], y[t], "cross_entropy", weight_decay)
        step(ours.gradient, t + 1, SETTINGS["learning_rate"], value)
        a = torch.tensor(x[t])
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            a = torch.tanh(a @ W + b)
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(a @ weights[-1] + biases[-1], torch.tensor(y[t])).backward()
        theirs.step()
    for mine, other in zip(ours.W + ours.b, weights + biases, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_of_a_step_is_the_one_it_is_given(name):
    """A schedule: two optimisers, one of twice the rate, agree if the other is told twice the rate in each step."""
    rng = np.random.default_rng(1)
    thetas = [np.ones(4), np.ones(4)]
    config = Config(optimizer=name, **SETTINGS)
    other = Config(optimizer=name, **{**SETTINGS, "learning_rate": 5.0})
    steps = [OPTIMIZERS[name](theta, one)[0] for theta, one in zip(thetas, (config, other), strict=True)]
    for t in range(1, 9):
        g = rng.normal(size=4)
        for step in steps:
            step(g.copy(), t, 0.1 / t, 1.0)
    assert (thetas[0] == thetas[1]).all() and (thetas[0] != 1).all()


def eve(theta, config):
    """Adam with eta / d: d follows how much the loss changes, relative to the loss (Hayashi, Koushik & Neubig, 2016)."""
    move, state = helpers.adam(theta, config)
    d, previous = np.ones(1), np.ones(1)

    def step(g, t, eta, loss):
        if t > 1:
            change = abs(loss - previous[0]) / max(min(loss, previous[0]), 1e-12)
            d[0] = 0.999 * d[0] + 0.001 * min(max(change, 0.1), 10)
        previous[0] = loss
        move(g, t, eta / d[0], loss)

    return step, {**state, "d": d, "previous": previous}


def scheduled(theta, config):
    """RMSprop whose rate falls as a cosine, then starts anew."""
    move, state = helpers.rmsprop(theta, config)

    def step(g, t, eta, loss):
        move(g, t, eta * (1.1 + math.cos(t / 7)), loss)

    return step, state


ADDED = {"eve": eve, "scheduled": scheduled}


@pytest.mark.parametrize("name", ADDED)
def test_an_optimiser_added_with_one_line_learns_and_resumes(name, monkeypatch, small, tiny_config, tmp_path):
    monkeypatch.setitem(helpers.OPTIMIZERS, name, ADDED[name])
    config = tiny_config(optimizer=name, epochs=4)
    whole = helpers.train(config, small)
    assert whole.history[-1]["train_loss"] < whole.history[0]["train_loss"]
    assert (whole.network.theta != helpers.train(tiny_config(optimizer="adam", epochs=4), small).network.theta).any()
    helpers.train(tiny_config(optimizer=name, epochs=2), small, checkpoint=tmp_path / "c.npz")
    resumed = helpers.train(config, small, checkpoint=tmp_path / "c.npz")
    assert (resumed.network.theta == whole.network.theta).all()


def test_what_is_added_works_in_processes_of_their_own(monkeypatch):
    """As in a notebook: functions that no module has, of every family."""
    source = """
def plain(theta, config):
    def step(g, t, eta, loss):
        theta[:] -= eta * g
    return step, {}

def halves(z):
    z *= 0.5

def halves_derivative(a, out):
    out.fill(0.5)

def ones(rng, n_in, n_out):
    return rng.uniform(0, 0.01, (n_in, n_out))

def digits():
    x = np.random.default_rng(0).integers(0, 17, (60, 64)).astype(np.float32) / 16
    y = np.arange(60) % 4
    return Dataset("digits", tuple("0123"), x, y, x, y, x, y)
"""
    names = {"np": np, "Dataset": lib.dataset.Dataset, "__name__": "__main__"}
    exec(source, names)
    monkeypatch.setitem(helpers.OPTIMIZERS, "plain", names["plain"])
    monkeypatch.setitem(helpers.ACTIVATIONS, "halves", (names["halves"], names["halves_derivative"]))
    monkeypatch.setitem(helpers.WEIGHT_INITS, "ones", names["ones"])
    monkeypatch.setitem(helpers.DATASETS, "digits", names["digits"])
    given = {"activation": "halves", "weight_init": "ones", "dataset": "digits", "optimizer": "plain"}
    config = Config(**given, num_layers=2, hidden_size=8, epochs=2, learning_rate=0.1)
    (there,) = lib.parallel.train_all([config], 1)
    here = helpers.train(config, names["digits"]())
    assert (there.network.theta == here.network.theta).all() and there.network.sizes == [64, 8, 8, 4]


def test_what_cannot_be_sent_to_a_process_is_refused_in_a_sentence(monkeypatch):
    lock = threading.Lock()

    def stuck(theta, config):
        return lock, {}

    monkeypatch.setitem(helpers.OPTIMIZERS, "stuck", stuck)
    with pytest.raises(helpers.InputError, match="cannot be sent to another process"):
        list(lib.parallel.train_all([Config(epochs=1)]))


HIDDEN = """
count = 0
shared = np.random.default_rng(3)

def shrink(theta, g, times):
    theta[:] -= 0.01 * g / times

def a_number(theta, config):
    n = 1
    def step(g, t, eta, loss):
        nonlocal n
        n += 1
        shrink(theta, g, n)
    return step, {}

def a_numpy_number(theta, config):
    n = np.float32(1)
    def step(g, t, eta, loss):
        nonlocal n
        n = n + np.float32(loss)
        shrink(theta, g, n)
    return step, {}

def a_dict(theta, config):
    kept = {"n": 1}
    def step(g, t, eta, loss):
        kept["n"] += 1
        shrink(theta, g, kept["n"])
    return step, {}

def a_list(theta, config):
    kept = []
    def step(g, t, eta, loss):
        kept.append(loss)
        shrink(theta, g, len(kept))
    return step, {}

def a_tuple(theta, config):
    kept = (0,)
    def step(g, t, eta, loss):
        nonlocal kept
        kept = (kept[0] + 1,)
        shrink(theta, g, 1 + kept[0])
    return step, {}

def an_array(theta, config):
    u = np.zeros_like(theta)
    def step(g, t, eta, loss):
        u[:] = 0.9 * u + g
        shrink(theta, u, 1)
    return step, {}

def an_array_bound_anew(theta, config):
    u = np.zeros_like(theta)
    def step(g, t, eta, loss):
        nonlocal u
        u = 0.9 * u + g
        shrink(theta, u, 1)
    return step, {"u": u}

def a_generator(theta, config):
    rng = np.random.default_rng(0)
    def step(g, t, eta, loss):
        shrink(theta, g, 1 + rng.random())
    return step, {}

def one_generator_for_all(theta, config):
    def step(g, t, eta, loss):
        shrink(theta, g, 1 + shared.random())
    return step, {}

def a_global(theta, config):
    def step(g, t, eta, loss):
        global count
        count += 1
        shrink(theta, g, count)
    return step, {}

def an_attribute(theta, config):
    def step(g, t, eta, loss):
        step.n = getattr(step, "n", 0) + 1
        shrink(theta, g, step.n)
    return step, {}

class Counter:
    def __init__(self, theta):
        self.theta, self.n = theta, 0
    def step(self, g, t, eta, loss):
        self.n += 1
        shrink(self.theta, g, self.n)

def a_bound_method(theta, config):
    return Counter(theta).step, {}

def a_default(theta, config):
    def step(g, t, eta, loss, kept=[]):
        kept.append(t)
        shrink(theta, g, len(kept))
    return step, {}

def an_iterator(theta, config):
    times = iter(range(1, 10**9))
    def step(g, t, eta, loss):
        shrink(theta, g, next(times))
    return step, {}

def half_of_its_state(theta, config):
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    def step(g, t, eta, loss):
        m[:] = 0.9 * m + g
        v[:] = 0.9 * v + g * g
        shrink(theta, m / (1 + v), 1)
    return step, {"m": m}

def a_dict_entry_bound_anew(theta, config):
    state = {"u": np.zeros_like(theta)}
    def step(g, t, eta, loss):
        state["u"] = 0.9 * state["u"] + g
        shrink(theta, state["u"], 1)
    return step, state

def a_state_that_comes_later(theta, config):
    state = {}
    def step(g, t, eta, loss):
        u = state.setdefault("u", np.zeros_like(theta))
        u += g
        shrink(theta, u, 1)
    return step, state

def what_only_the_state_shows(theta, config):
    n = 0
    state = {"n": np.zeros(1)}
    def step(g, t, eta, loss):
        nonlocal n
        n += 1
        state["n"][0] = n
        shrink(theta, g, 1 if t < 300 else n)
    return step, state

def every_tenth_step(theta, config):
    slow = theta.copy()
    def step(g, t, eta, loss):
        shrink(theta, g, 1)
        if t % 10 == 0:
            slow[:] = theta[:] = (slow + theta) / 2
    return step, {}
"""
FORGETFUL = {"np": np}
exec(HIDDEN, FORGETFUL)
FORGETFUL = {name: made for name, made in FORGETFUL.items() if callable(made) and name not in ("shrink", "Counter")}


@pytest.mark.parametrize("name", FORGETFUL)
def test_an_optimiser_that_remembers_more_than_its_state_is_refused_at_the_start(
    name, monkeypatch, small, tiny_config, tmp_path
):
    monkeypatch.setitem(helpers.OPTIMIZERS, name, FORGETFUL[name])
    rows = []
    with pytest.raises(helpers.InputError, match=f"optimizer '{name}' remembers more than its state"):
        helpers.train(tiny_config(optimizer=name), small, rows.append, checkpoint=tmp_path / "c.npz")
    assert not rows and not list(tmp_path.iterdir())
    assert helpers.train(tiny_config(optimizer=name, epochs=1), small).history  # without a checkpoint it may


@pytest.mark.parametrize(
    "returned",
    [
        lambda step: step,
        lambda step: (step, None),
        lambda step: (step, [np.zeros(2)]),
        lambda step: (step, {"d": 1.0}),
        lambda step: (step, {"rng": np.random.default_rng(0)}),
        lambda step: (step, {"u": np.array([None])}),
        lambda step: (step, {"u": np.array(["a"])}),
        lambda step: (step, {"u": np.ma.array([1.0, 2.0], mask=[False, True])}),
        lambda step: (step, {"u": np.broadcast_to(1.0, 9)}),
        lambda step: (step, {"u/v": np.zeros(2)}),
        lambda step: (step, {3: np.zeros(2)}),
    ],
)
def test_a_state_that_is_no_dictionary_of_arrays_is_refused(returned, monkeypatch, small, tiny_config, tmp_path):
    monkeypatch.setitem(helpers.OPTIMIZERS, "odd", lambda theta, config: returned(lambda g, t, eta, loss: None))
    with pytest.raises(helpers.InputError, match="optimizer 'odd'.*allowed: "):
        helpers.train(tiny_config(optimizer="odd"), small, checkpoint=tmp_path / "c.npz")


def test_a_state_of_scalars_vectors_and_integers_resumes(monkeypatch, small, tiny_config, tmp_path):
    def odd(theta, config):
        state = {"n": np.array(2**63, np.uint64), "seen": np.zeros((), bool), "u": np.zeros_like(theta)}

        def step(g, t, eta, loss):
            state["n"] += np.uint64(1)
            state["seen"][...] = True
            state["u"] += g
            theta[:] -= eta * state["u"] / float(state["n"] - np.uint64(2**63))

        return step, state

    monkeypatch.setitem(helpers.OPTIMIZERS, "odd", odd)
    whole = helpers.train(tiny_config(optimizer="odd", epochs=4), small)
    helpers.train(tiny_config(optimizer="odd", epochs=2), small, checkpoint=tmp_path / "c.npz")
    resumed = helpers.train(tiny_config(optimizer="odd", epochs=4), small, checkpoint=tmp_path / "c.npz")
    assert (resumed.network.theta == whole.network.theta).all()


@pytest.mark.parametrize("period", [50, 64, 75, 150])  # an epoch has 75 steps
def test_what_is_remembered_for_many_steps_is_found_too(period, monkeypatch, small, tiny_config, tmp_path):
    def lookahead(theta, config):
        slow = theta.copy()

        def step(g, t, eta, loss):
            theta[:] -= eta * g
            if t % period == 0:
                slow[:] = theta[:] = (slow + theta) / 2

        return step, {}

    monkeypatch.setitem(helpers.OPTIMIZERS, "lookahead", lookahead)
    with pytest.raises(helpers.InputError, match="'lookahead' remembers more than its state"):
        helpers.train(tiny_config(optimizer="lookahead", batch_size=4), small, checkpoint=tmp_path / "c.npz")


@pytest.mark.filterwarnings("error")
def test_a_rate_that_falls_until_the_last_epoch_resumes_but_not_with_other_epochs(
    monkeypatch, small, tiny_config, tmp_path
):
    def falling(theta, config):
        rates = np.linspace(1, 0, config.epochs * 10)  # one for each step, and no more

        def step(g, t, eta, loss):
            theta[:] -= eta * rates[t - 1] * g

        return step, {}

    monkeypatch.setitem(helpers.OPTIMIZERS, "falling", falling)
    path = tmp_path / "c.npz"
    config = tiny_config(optimizer="falling", epochs=2, learning_rate=0.1)
    whole = helpers.train(config, small)
    helpers.train(config, small, lambda row: "stop", checkpoint=path)
    with pytest.raises(helpers.InputError, match="another training: epochs is 2 there, 4 here"):
        helpers.train(tiny_config(optimizer="falling", epochs=4, learning_rate=0.1), small, checkpoint=path)
    assert (helpers.train(config, small, checkpoint=path).network.theta == whole.network.theta).all()


@pytest.mark.filterwarnings("error")
def test_a_rate_beyond_float32_is_no_warning_before_the_training(small, tiny_config, tmp_path):
    config = tiny_config(optimizer="adam", learning_rate=1e38)
    assert "not finite" in helpers.train(config, small, checkpoint=tmp_path / "c.npz").stopped
