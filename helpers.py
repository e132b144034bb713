"""A feedforward neural network in NumPy, and all that trains it: the mathematics of assignment1.ipynb, top to bottom.

Symbols   x input, W_l (n_in, n_out) and b_l (n_out,) weights and biases of layer l, z_l = a_{l-1} W_l + b_l,
          a_l = f(z_l), delta_l = dJ/dz_l, theta all parameters, g = dJ/dtheta, eta the learning rate, t = 1, 2, ...
Shapes    one row per image: x is (batch, 784), z_L the logits (batch, 10), labels y are integers (batch,).
Types     float32 for training, float64 for gradient checks; images stay uint8 until the network scales them to [0, 1].

Conventions, where code bases disagree
- A loss is the mean over the batch; squared error is summed over classes (the Brier score), without a factor 1/2.
- Weight decay adds lambda/2 sum W^2 to the objective, so lambda W to the gradient: of weights, never of biases.
- Momentum is not damped: u <- m u + g.  Nesterov stores the point looked ahead to, where g is taken (as PyTorch does).
- Epsilon stands outside the root; all moments start at zero; Nadam keeps beta1 fixed.
- Losses and accuracies of training are means over the epoch, while the weights move; they leave the decay term out, so
  that they compare with those of validation, which are taken at the end of the epoch.
- Randomness comes from numpy.random.default_rng([seed, 0]) for the weights, ([seed, epoch]) for an epoch's order.
"""

import json
import math
import os
import time
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

BLAS = ThreadpoolController()  # these matrices are too small to share between threads: each training gets one


class InputError(ValueError):
    """Something given from outside cannot be used; the message is one sentence that names it and what is allowed."""


# ---------------------------------------------------------------------------------------------------------- activations
# A pair each: f works in place on z; its derivative goes to `out`, from a = f(z), which is what backprop has kept.


def identity(z):
    """f(z) = z."""


def sigmoid(z):
    """f(z) = 1 / (1 + exp(-z)), written as (1 + tanh(z/2)) / 2, which overflows nowhere."""
    z *= 0.5
    np.tanh(z, out=z)
    z += 1
    z *= 0.5


def sigmoid_derivative(a, out):
    """f'(z) = a (1 - a)."""
    np.subtract(1, a, out=out)
    out *= a


def tanh(z):
    """f(z) = tanh(z)."""
    np.tanh(z, out=z)


def tanh_derivative(a, out):
    """f'(z) = 1 - a^2."""
    np.multiply(a, a, out=out)
    np.subtract(1, out, out=out)


def relu(z):
    """f(z) = max(0, z)."""
    np.maximum(z, 0, out=z)


ACTIVATIONS = {  # name: (f, f')
    "identity": (identity, lambda a, out: out.fill(1)),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "tanh": (tanh, tanh_derivative),
    "ReLU": (relu, lambda a, out: np.greater(a, 0, out=out)),
}


# --------------------------------------------------------------------------------------------------------------- losses
# loss(z, y) takes logits z (batch, classes) and labels y (batch,), and returns the mean loss and delta_L = dL/dz.


def softmax(z):
    """p_k = exp(z_k) / sum_j exp(z_j), row by row; the maximum is subtracted first, so that no logit overflows."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def one_hot(y, n_classes):
    """True (batch, n_classes) in column y of each row."""
    return y[:, None] == np.arange(n_classes)


def cross_entropy(z, y):
    """L = mean of -log p_y, with log p_y = z_y - log sum_k exp(z_k);  dL/dz = (p - one_hot(y)) / batch."""
    target = one_hot(y, z.shape[1])
    z = z - z.max(axis=1, keepdims=True)
    p = np.exp(z)
    total = p.sum(axis=1, keepdims=True)
    loss = (np.log(total).sum() - z[target].sum()) / len(y)
    p /= total
    p -= target
    p /= len(y)
    return float(loss), p


def mean_squared_error(z, y):
    """L = mean of sum_k e_k^2, e = p - one_hot(y);  dL/dz = 2 p (e - sum_k p_k e_k) / batch, softmax's Jacobian."""
    p = softmax(z)
    e = p - one_hot(y, z.shape[1])
    loss = (e * e).sum() / len(y)
    p *= e - (p * e).sum(axis=1, keepdims=True)
    p *= 2 / len(y)
    return float(loss), p


LOSSES = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}


# ------------------------------------------------------------------------------------------------------- initialisation
# init(rng, n_in, n_out) draws W (n_in, n_out). Biases start at zero.


def random_normal(rng, n_in, n_out):
    """W ~ N(0, 0.05^2) whatever the width (Keras' RandomNormal): each layer scales a signal by 0.05 sqrt(n_in)."""
    return rng.normal(0, 0.05, (n_in, n_out))


def xavier(rng, n_in, n_out):
    """W ~ U(-r, r), r = sqrt(6 / (n_in + n_out)): keeps the variance, forwards and back (Glorot & Bengio, 2010)."""
    r = math.sqrt(6 / (n_in + n_out))
    return rng.uniform(-r, r, (n_in, n_out))


def he(rng, n_in, n_out):
    """W ~ N(0, 2 / n_in): keeps the variance forwards through ReLU, which halves it (He et al., 2015)."""
    return rng.normal(0, math.sqrt(2 / n_in), (n_in, n_out))


WEIGHT_INITS = {"random": random_normal, "Xavier": xavier, "He": he}


# -------------------------------------------------------------------------------------------------------------- network


class Network:
    """A fully connected network: a_0 = x;  z_l = a_{l-1} W_l + b_l;  a_l = f(z_l);  the last z are the logits.

    sizes: the widths, input and output included, for example [784, 128, 128, 10]: any number, any width.
    activation, weight_init: names in ACTIVATIONS, WEIGHT_INITS. rng: a numpy.random.Generator. dtype: of all arrays.

    All parameters are views into one vector `theta` (all weights first, then all biases), all gradients views into
    another, `gradient`: an optimiser sees two vectors and no layers. Raises InputError for sizes or names not allowed.
    """

    def __init__(self, sizes, activation="tanh", weight_init="Xavier", rng=None, dtype=np.float32):
        self.sizes = [int(size) for size in sizes if isinstance(size, Integral) and size > 0]
        if len(self.sizes) != len(sizes) or len(sizes) < 2:
            raise InputError(f"sizes is {list(sizes)}; allowed: two or more whole numbers above 0")
        self.activation = _choice("activation", activation, ACTIVATIONS)
        self.f, self.derivative = ACTIVATIONS[activation]
        shapes = list(zip(self.sizes, self.sizes[1:]))
        self.n_weights = sum(n_in * n_out for n_in, n_out in shapes)
        self.theta = np.zeros(self.n_weights + sum(self.sizes[1:]), dtype)
        self.gradient = np.zeros_like(self.theta)
        self.shapes = shapes + [(n_out,) for n_out in self.sizes[1:]]
        W_and_b, their_gradients = self.parts(self.theta), self.parts(self.gradient)
        self.W, self.b = W_and_b[: len(shapes)], W_and_b[len(shapes) :]
        self.dW, self.db = their_gradients[: len(shapes)], their_gradients[len(shapes) :]
        self._scratch = np.empty(self.n_weights, dtype)
        draw = WEIGHT_INITS[_choice("weight_init", weight_init, WEIGHT_INITS)]
        for W in self.W:
            W[:] = draw(rng or np.random.default_rng(), *W.shape)
        self._buffers = {}  # batch size: a, delta and f' of every layer, and a row of ones

    def parts(self, vector):
        """Cut a vector like theta into [W_1, ..., W_L, b_1, ..., b_L] without copying."""
        cuts = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, cuts), self.shapes)]

    def __reduce__(self):
        return _restore, (self.sizes, self.activation, self.theta)  # a copy whose W and b are views into its own theta

    def forward(self, x):
        """Logits (batch, n_out) of x (batch, n_in): of the network's dtype, or uint8 images, scaled to [0, 1] here.

        Keeps a_0 ... a_{L-1} in `self.a` for `backward`; the logits are a new array, and the caller's.
        """
        if len(x) not in self._buffers:
            layers = [[np.empty((len(x), size), self.theta.dtype) for size in self.sizes[:-1]] for _ in range(3)]
            self._buffers[len(x)] = *layers, np.ones(len(x), self.theta.dtype)
        self.a, self._delta, self._slope, self._ones = self._buffers[len(x)]
        if x.dtype == np.uint8:
            np.multiply(x, 1 / 255, out=self.a[0], dtype=self.theta.dtype)
        elif x.dtype == self.theta.dtype:
            np.copyto(self.a[0], x)
        else:
            raise InputError(f"x is {x.dtype}; allowed: uint8 or the network's own {self.theta.dtype}")
        for a, z, W, b in zip(self.a, self.a[1:], self.W, self.b):
            np.dot(a, W, out=z)
            z += b
            self.f(z)  # z becomes a
        return self.a[-1] @ self.W[-1] + self.b[-1]

    def backward(self, delta):
        """Fill `gradient` from delta_L = dJ/dz_L (batch, n_out), for the x of the last `forward`:

        dJ/dW_l = a_{l-1}^T delta_l;  dJ/db_l = sum over batch of delta_l;  delta_{l-1} = (delta_l W_l^T) * f'(z_{l-1}).
        """
        for l in reversed(range(len(self.W))):
            np.dot(self.a[l].T, delta, out=self.dW[l])
            np.dot(self._ones, delta, out=self.db[l])
            if l > 0:
                delta = np.dot(delta, self.W[l].T, out=self._delta[l])
                self.derivative(self.a[l], self._slope[l])
                delta *= self._slope[l]

    def objective(self, x, y, loss="cross_entropy", weight_decay=0.0):
        """J = L(x, y) + weight_decay/2 sum W^2, and the logits (batch, n_out); leaves dJ/dtheta in `gradient`."""
        z = self.forward(x)
        value, delta = LOSSES[loss](z, y)
        self.backward(delta)
        if weight_decay:
            weights = self.theta[: self.n_weights]
            self.gradient[: self.n_weights] += np.multiply(weights, weight_decay, out=self._scratch)
            value += weight_decay / 2 * float(weights @ weights)
        return value, z

    @BLAS.wrap(limits=1, user_api="blas")
    def predict(self, x):
        """Probabilities (len(x), n_out) of the classes, for any number of rows."""
        return np.concatenate([softmax(self.forward(x[i : i + 1000])) for i in range(0, len(x), 1000)])


def _restore(sizes, activation, theta):
    network = Network(sizes, activation, rng=np.random.default_rng(0), dtype=theta.dtype)
    network.theta[:] = theta
    return network


def gradient_check(network, x, y, loss="cross_entropy", weight_decay=0.0, epsilon=1e-4):
    """Compare backprop with central differences (J(theta_i + epsilon) - J(theta_i - epsilon)) / (2 epsilon), for all i.

    Returns the relative error |g - n| / (|g| + |n|) (Euclidean norms) of the worst W_l or b_l; needs a float64 network.
    """
    if network.theta.dtype != np.float64:
        raise InputError(f"the network is {network.theta.dtype}; allowed: float64, or rounding hides the error")
    network.objective(x, y, loss, weight_decay)
    exact = network.gradient.copy()
    numeric = np.empty_like(exact)
    for i, value in enumerate(network.theta):
        network.theta[i] = value + epsilon
        above, _ = network.objective(x, y, loss, weight_decay)
        network.theta[i] = value - epsilon
        below, _ = network.objective(x, y, loss, weight_decay)
        network.theta[i] = value
        numeric[i] = (above - below) / (2 * epsilon)
    norm, pairs = np.linalg.norm, zip(network.parts(exact), network.parts(numeric))
    return max(norm(g - n) / max(norm(g) + norm(n), 1e-12) for g, n in pairs)


# ----------------------------------------------------------------------------------------------------------- optimisers
# optimiser(theta, config) returns step(g, t, loss), which updates theta in place. Its state is what the closure holds
# in arrays and numbers: moments (start at zero), and s, a scratch vector. A checkpoint saves them all.


def sgd(theta, config):
    """theta <- theta - eta g   (Robbins & Monro, 1951; on mini-batches)."""
    eta, s = config.learning_rate, np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta
        theta -= np.multiply(g, eta, out=s)

    return step


def momentum(theta, config):
    """u <- m u + g;  theta <- theta - eta u   (Polyak, 1964)."""
    eta, m = config.learning_rate, config.momentum
    u, s = np.zeros_like(theta), np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta, u
        u *= m
        u += g
        theta -= np.multiply(u, eta, out=s)

    return step


def nag(theta, config):
    """u <- m u + g;  theta <- theta - eta (g + m u), theta the point looked ahead to   (Nesterov, 1983)."""
    eta, m = config.learning_rate, config.momentum
    u, s = np.zeros_like(theta), np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta, u, s
        u *= m
        u += g
        np.multiply(u, m, out=s)
        s += g
        s *= eta
        theta -= s

    return step


def rmsprop(theta, config):
    """v <- beta v + (1 - beta) g^2;  theta <- theta - eta g / (sqrt(v) + epsilon)   (Tieleman & Hinton, 2012)."""
    beta = config.beta
    root = math.sqrt(1 - beta)  # v is kept without its factor 1 - beta: sqrt(v) = root sqrt(v kept)
    eta, epsilon = config.learning_rate / root, config.epsilon / root
    v, s = np.zeros_like(theta), np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta, v, s
        v *= beta
        v += np.square(g, out=s)
        np.sqrt(v, out=s)
        s += epsilon
        np.divide(g, s, out=s)
        s *= eta
        theta -= s

    return step


def adam(theta, config):
    """m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  m' = m / (1 - beta1^t);  v' = v / (1 - beta2^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)   (Kingma & Ba, 2015)."""
    eta, beta1, beta2, epsilon = config.learning_rate, config.beta1, config.beta2, config.epsilon
    m, v, s = np.zeros_like(theta), np.zeros_like(theta), np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta, m, v, s
        m *= beta1  # m and v are kept without their factors 1 - beta, which the scalars below make good
        m += g
        v *= beta2
        v += np.square(g, out=s)
        m_scale, root = (1 - beta1) / (1 - beta1**t), math.sqrt((1 - beta2) / (1 - beta2**t))
        np.sqrt(v, out=s)
        s += epsilon / root
        np.divide(m, s, out=s)
        s *= eta * m_scale / root
        theta -= s

    return step


def nadam(theta, config):
    """m, v, v' as in Adam;  m' = beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)   (Dozat, 2016, with beta1 fixed)."""
    eta, beta1, beta2, epsilon = config.learning_rate, config.beta1, config.beta2, config.epsilon
    m, v, s, r = np.zeros_like(theta), np.zeros_like(theta), np.empty_like(theta), np.empty_like(theta)

    def step(g, t, loss):
        nonlocal theta, m, v, s, r
        m *= beta1  # kept without 1 - beta, as in Adam
        m += g
        v *= beta2
        v += np.square(g, out=s)
        m_scale, g_scale = (1 - beta1) * beta1 / (1 - beta1 ** (t + 1)), (1 - beta1) / (1 - beta1**t)
        root = math.sqrt((1 - beta2) / (1 - beta2**t))
        np.multiply(m, m_scale / g_scale, out=r)
        r += g
        np.sqrt(v, out=s)
        s += epsilon / root
        r /= s
        r *= eta * g_scale / root
        theta -= r

    return step


OPTIMIZERS = {"sgd": sgd, "momentum": momentum, "nag": nag, "rmsprop": rmsprop, "adam": adam, "nadam": nadam}


# -------------------------------------------------------------------------------------------------------- configuration

DATASETS = ("fashion_mnist", "mnist")
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
ALIASES = {"nesterov": "nag"}


def _choice(name, value, allowed):
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    return value


def _number(name, value, kind, interval):
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    ends = (low if interval[0] == "[" else None, high if interval[-1] == "]" else None)
    if not number or not (low < value < high or value in ends):
        raise InputError(f"{name} is {value!r}; allowed: a {'whole ' if kind is int else ''}number in {interval}")
    return kind(value)


def _setting(default, allowed, meaning):
    return field(default=default, metadata={"allowed": allowed, "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """One training, whole: the course's flags and a seed. Raises InputError where a value is not allowed.

    The defaults are those of the best validation accuracy found: trial 17 of data/sweeps/bayes.csv, rounded.
    """

    dataset: str = _setting("fashion_mnist", DATASETS, "data set")
    epochs: int = _setting(20, "[1, inf)", "passes over the training images")
    batch_size: int = _setting(128, "[1, inf)", "images per step; the last batch of an epoch may be smaller")
    loss: str = _setting("cross_entropy", LOSSES, "loss")
    optimizer: str = _setting("adam", OPTIMIZERS, "optimiser")
    learning_rate: float = _setting(4.22e-4, "(0, inf)", "eta")
    momentum: float = _setting(0.9, "[0, 1)", "m of momentum and nag")
    beta: float = _setting(0.9, "[0, 1)", "beta of rmsprop")
    beta1: float = _setting(0.9, "[0, 1)", "beta1 of adam and nadam")
    beta2: float = _setting(0.999, "[0, 1)", "beta2 of adam and nadam")
    epsilon: float = _setting(1e-8, "[1e-30, inf)", "epsilon of rmsprop, adam and nadam")
    weight_decay: float = _setting(7.69e-6, "[0, inf)", "lambda of the L2 term")
    weight_init: str = _setting("random", WEIGHT_INITS, "distribution of the first weights")
    num_layers: int = _setting(4, "[0, 1000]", "hidden layers")
    hidden_size: int = _setting(256, "[1, 10000]", "neurons of each hidden layer")
    activation: str = _setting("ReLU", ACTIVATIONS, "activation of the hidden layers")
    seed: int = _setting(0, "[0, inf)", "seed of the weights and of the order of the images")

    def __post_init__(self):
        for f in fields(self):
            value, allowed = getattr(self, f.name), f.metadata["allowed"]
            if f.type is str:
                value = _choice(f.name, ALIASES.get(value, value) if isinstance(value, str) else value, allowed)
            else:
                value = _number(f.name, value, f.type, allowed)
            object.__setattr__(self, f.name, value)

    @property
    def sizes(self):
        """The widths of the network: 784 pixels, the hidden layers, 10 classes."""
        return [784] + [self.hidden_size] * self.num_layers + [10]

    @property
    def run_name(self):
        """A telling name, for example hl_6_lr_0.001_bs_128_opt_rmsprop_act_tanh."""
        return (
            f"hl_{self.num_layers}_lr_{self.learning_rate:g}_bs_{self.batch_size}"
            f"_opt_{self.optimizer}_act_{self.activation}"
        )


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Dataset:
    """Images x (n, 784) uint8 in 0..255, labels y (n,) uint8: 54,000 to train, 6,000 to validate, 10,000 to test."""

    name: str
    class_names: tuple
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@contextmanager
def write_atomically(path):
    """Open a temporary file beside `path` to write bytes to; rename it to `path` once all is written."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- training


@BLAS.wrap(limits=1, user_api="blas")
def evaluate(network, x, y, loss="cross_entropy"):
    """Mean loss and accuracy of a network on images x (n, 784) with labels y (n,), in chunks of 1,000."""
    total, right = 0.0, 0
    for i in range(0, len(x), 1000):
        z, labels = network.forward(x[i : i + 1000]), y[i : i + 1000]
        total += LOSSES[loss](z, labels)[0] * len(labels)
        right += int(np.count_nonzero(z.argmax(axis=1) == labels))
    return total / len(x), right / len(x)


class Training(NamedTuple):
    """What `train` returns: the network, one row (a dictionary) per epoch, and the reason why it ended."""

    network: Network
    history: list
    stopped: str


@BLAS.wrap(limits=1, user_api="blas")
def train(config, data, on_epoch=None, *, network=None, keep_best=False, patience=None, checkpoint=None):
    """Train a network by `config` on `data`; the same seed on the same machine gives the same weights, bit for bit.

    on_epoch(row): called after each epoch with its row of the history; a sentence it returns ends the training.
    network: train this one, in place, instead of a new one of config.sizes.
    keep_best: return the weights of the epoch of best val_accuracy (the first of equals), not those of the last one.
    patience: stop after so many epochs without a better val_accuracy.
    checkpoint: a file (.npz) written after each epoch; where it exists, training goes on from there, to the same bits.
    Returns a Training. A row has epoch, train_loss, train_accuracy, val_loss, val_accuracy, seconds (with evaluation)
    and step_seconds (without). A loss that is not finite ends the training: its epoch gets no row, `stopped` says why.
    Raises InputError for a checkpoint that is not one of this training.
    """
    if network is None:
        rng = np.random.default_rng([config.seed, 0])
        network = Network(config.sizes, config.activation, config.weight_init, rng)
    step = OPTIMIZERS[config.optimizer](network.theta, config)
    history, best_theta = [], network.theta.copy()
    if checkpoint and Path(checkpoint).exists():
        history = load_checkpoint(checkpoint, _fingerprint(config, data), network.theta, best_theta, step)
        if len(history) > config.epochs:
            raise InputError(f"{checkpoint} has {len(history)} epochs; allowed: at most the {config.epochs} asked for")
    stopped = None
    while not stopped:
        best_epoch = 1 + max(range(len(history)), key=lambda i: history[i]["val_accuracy"], default=-1)
        if len(history) >= config.epochs:
            stopped = f"all {config.epochs} epochs done"
        elif patience and len(history) - best_epoch >= patience:
            stopped = f"no better val_accuracy for {patience} epochs"
        else:
            row = _epoch(config, data, network, step, epoch=len(history) + 1)
            bad = next((name for name, value in row.items() if not math.isfinite(value)), None)
            if bad:
                stopped = f"{bad} not finite in epoch {row['epoch']}"
                continue
            if row["val_accuracy"] > max((r["val_accuracy"] for r in history), default=-1):
                best_theta[:] = network.theta
            history.append(row)
            if checkpoint:
                save_checkpoint(checkpoint, _fingerprint(config, data), network.theta, best_theta, step, history)
            stopped = on_epoch(row) if on_epoch else None
    if keep_best:
        network.theta[:] = best_theta
    return Training(network, history, stopped)


def _epoch(config, data, network, step, epoch):
    """One pass over the training images in a seeded order, then the validation: a row of the history."""
    began = time.perf_counter()
    n, size = len(data.x_train), config.batch_size
    order = np.random.default_rng([config.seed, epoch]).permutation(n)
    labels, logits = data.y_train[order], np.empty((n, network.sizes[-1]), network.theta.dtype)
    t = (epoch - 1) * -(-n // size)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a loss that overflows is found and named
        for i in range(0, n, size):
            x, y = data.x_train.take(order[i : i + size], axis=0, mode="clip"), labels[i : i + size]  # clip: unchecked
            loss, logits[i : i + size] = network.objective(x, y, config.loss, config.weight_decay)
            if not math.isfinite(loss):
                return {"epoch": epoch, "train_loss": loss}
            step(network.gradient, t := t + 1, loss)
        step_seconds = time.perf_counter() - began
        train_loss, _ = LOSSES[config.loss](logits, labels)  # without the decay term, which `loss` above contains
        val_loss, val_accuracy = evaluate(network, data.x_val, data.y_val, config.loss)
    return {
        "epoch": epoch,
        "train_loss": train_loss,
        "train_accuracy": float(np.mean(logits.argmax(axis=1) == labels)),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "seconds": time.perf_counter() - began,
        "step_seconds": step_seconds,
    }


# ------------------------------------------------------------------------------------------------------ save and resume


def save_network(path, network):
    """Write sizes, activation and theta to an .npz file, atomically."""
    with write_atomically(path) as file:
        np.savez(file, sizes=network.sizes, activation=network.activation, theta=network.theta)


def load_network(path):
    """The network that `save_network` wrote. Raises InputError for a file missing, damaged, or something else."""
    saved = load_npz(path, "a saved network", {"sizes", "activation", "theta"})
    sizes, activation, theta = saved["sizes"].ravel().tolist(), str(saved["activation"]), saved["theta"]
    if theta.dtype not in (np.float32, np.float64):
        raise InputError(f"{path}: theta is {theta.dtype}; allowed: float32 or float64")
    network = Network(sizes, activation, rng=np.random.default_rng(0), dtype=theta.dtype)
    fill(path, "theta", network.theta, theta)
    return network


def _state(step, prefix="optimizer."):
    """An optimiser's whole state: the cells of its closure, and of functions in it, with arrays or numbers, by name."""
    found = {}
    for name, cell in zip(step.__code__.co_freevars, step.__closure__ or ()):
        if isinstance(cell.cell_contents, FunctionType):
            found |= _state(cell.cell_contents, f"{prefix}{name}.")
        elif isinstance(cell.cell_contents, (np.ndarray, int, float)):
            found[prefix + name] = cell
    return found


def _fingerprint(config, data):
    """What must agree for a checkpoint to be one of this training; all but the epochs, which may be more."""
    return {**asdict(config), "epochs": None, "data": [data.name, len(data.y_train), zlib.crc32(data.y_train)]}


def save_checkpoint(path, training, theta, kept_theta, step, history):
    """Write where a training stands after an epoch. training: what tells it from others, a dictionary for JSON."""
    about = json.dumps({"training": training, "history": history})
    state = {name: cell.cell_contents for name, cell in _state(step).items()}
    with write_atomically(path) as file:
        np.savez(file, about=about, theta=theta, kept_theta=kept_theta, **state)


def load_checkpoint(path, training, theta, kept_theta, step):
    """Put all arrays and the optimiser back where a checkpoint left them; return the history.

    Raises InputError for a file missing, damaged, or written by another training.
    """
    saved = load_npz(path, "a checkpoint", {"about", "theta", "kept_theta"})
    try:
        about = json.loads(str(saved["about"]))
    except ValueError:
        raise InputError(f"{path} is not a checkpoint: what it says about itself is not JSON") from None
    state = _state(step)
    for name, value in json.loads(json.dumps(training)).items():
        there = about["training"].get(name)
        if value != there:
            raise InputError(f"{path} is a checkpoint of another training: {name} is {there!r} there, {value!r} here")
    there = {name for name in saved if name.startswith("optimizer.")}
    if there != set(state):  # for example where a number begins as None
        raise InputError(f"{path} holds {sorted(there)} of the optimiser, which begins with {sorted(state)}")
    fill(path, "theta", theta, saved["theta"])
    fill(path, "kept_theta", kept_theta, saved["kept_theta"])
    for name, cell in state.items():
        if isinstance(cell.cell_contents, np.ndarray):
            fill(path, name, cell.cell_contents, saved[name])
        else:
            cell.cell_contents = saved[name].item()
    return about["history"]


def load_npz(path, what, keys):
    """The arrays in an .npz file, by name. Raises InputError where it is missing, damaged, or lacks one of the keys."""
    try:
        with np.load(path, allow_pickle=False) as file:
            saved = dict(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path} is not {what}, or is damaged") from None
    if not keys <= set(saved):
        raise InputError(f"{path} is not {what}: it lacks {', '.join(sorted(keys - set(saved)))}")
    return saved


def fill(path, name, array, saved):
    """array <- saved, which a file had. Raises InputError where shape or dtype differ, or a number is not finite."""
    if saved.shape != array.shape or saved.dtype != array.dtype or not np.isfinite(saved).all():
        raise InputError(f"{path}: {name} is {saved.dtype} {saved.shape}; allowed: finite {array.dtype} {array.shape}")
    array[:] = saved
