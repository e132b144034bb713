"""A feedforward neural network in NumPy and its training: the mathematics of assignment1.ipynb, top to bottom.

Symbols   x input, W_l (n_in, n_out) and b_l (n_out,) weights and biases of layer l, z_l = a_{l-1} W_l + b_l,
          a_l = f(z_l), delta_l = dJ/dz_l, theta all parameters, g = dJ/dtheta, eta the learning rate, t = 1, 2, ...
Shapes    one row per image: x is (batch, 784), z_L the logits (batch, 10), labels y are integers (batch,).
Types     float32 for training, float64 for gradient checks; images stay uint8 until the network scales them to [0, 1].

Conventions, where code bases disagree
- A loss is the mean over the batch; squared error is summed over classes (the Brier score), without a factor 1/2.
- Weight decay adds lambda/2 sum W^2 to the objective, so lambda W to the gradient: of weights, never of biases.
- Momentum is not damped: u <- mu u + g.  Nesterov stores the point looked ahead to, where g is taken (as PyTorch does).
- Epsilon stands outside the root; all moments start at zero; Nadam keeps beta1 fixed.
- Losses and accuracies of training are means over the epoch, while the weights move; they leave the decay term out, so
  that they compare with those of validation, which are taken at the end of the epoch.
- Randomness comes from numpy.random.default_rng([seed, 0]) for the weights, ([seed, epoch]) for an epoch's order.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from importlib import import_module
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

BLAS = ThreadpoolController()  # these matrices are too small to share between threads: each training gets one


class InputError(ValueError):
    """Invalid input: a flag, a file, a table or an array. The message, one line, names it and says what is allowed."""

    def __init__(self, message):  # of several lines, where it quotes a value or another error
        super().__init__(" ".join(filter(None, map(str.strip, str(message).splitlines()))))


# ---------------------------------------------------------------------------------------------------------- activations
# A pair each: f works in place on z; f' writes to `out`, from a = f(z), which is what backprop keeps. Where f' needs z
# itself, as GELU's does, the pair is (f, None), and f(z, out) also writes f'(z) to `out`.


def identity(z):
    """f(z) = z."""


def identity_derivative(a, out):
    """f'(z) = 1."""
    out.fill(1)


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


def relu_derivative(a, out):
    """f'(z) = 1 if a > 0, else 0."""
    np.greater(a, 0, out=out)


ACTIVATIONS = {  # name: (f, f')
    "identity": (identity, identity_derivative),
    "sigmoid": (sigmoid, sigmoid_derivative),
    "tanh": (tanh, tanh_derivative),
    "ReLU": (relu, relu_derivative),
}


# --------------------------------------------------------------------------------------------------------------- losses
# loss(z, y) takes logits z (batch, classes) and labels y (batch,), and returns the mean loss and delta_L = dL/dz.


def softmax(z):
    """p_k = exp(z_k) / sum_j exp(z_j) of logits z (batch, classes); a row's maximum is subtracted, against overflow."""
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def one_hot(y, n_classes):
    """Return a boolean array (batch, n_classes): true in column y of each row."""
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
    activation, weight_init: names in ACTIVATIONS, WEIGHT_INITS. rng: a Generator or a seed. dtype: float32 or float64.

    All parameters are views into one vector `theta` (all weights first, then all biases), all gradients views into
    another, `gradient`: an optimiser sees two vectors and no layers. Raises InputError for sizes, names or a seed not
    allowed, a function that does not do what it should, and, in every method, images and labels that do not fit.
    """

    def __init__(self, sizes, activation="tanh", weight_init="Xavier", rng=None, dtype=np.float32):
        self.sizes = [number("a width in sizes", size, int, "[1, inf)") for size in sizes]
        if len(self.sizes) < 2:
            raise InputError(f"sizes is {self.sizes}; allowed: two or more widths")
        self.activation = choice("activation", activation, ACTIVATIONS)
        families = import_module("lib.families")  # which tries what a user may have added
        dtype = families.floating(dtype)
        self.f, self.derivative = families.activation(self.activation, self.sizes[1], dtype)
        shapes = list(zip(self.sizes, self.sizes[1:]))
        self.n_weights = sum(n_in * n_out for n_in, n_out in shapes)
        self.theta = np.zeros(self.n_weights + sum(self.sizes[1:]), dtype)
        self.gradient = np.zeros_like(self.theta)
        self.shapes = shapes + [(n_out,) for n_out in self.sizes[1:]]
        self.W, self.b = self.parts(self.theta)[: len(shapes)], self.parts(self.theta)[len(shapes) :]
        self.dW, self.db = self.parts(self.gradient)[: len(shapes)], self.parts(self.gradient)[len(shapes) :]
        self._scratch = np.empty(self.n_weights, dtype)
        draw = WEIGHT_INITS[choice("weight_init", weight_init, WEIGHT_INITS)]
        rng = families.generator(rng)
        for W in self.W:
            families.fill_weights(W, draw, rng)
        self._buffers = []  # a, delta, f' of each layer, and ones, for the longest batch so far
        self._use(1)

    def parts(self, vector):
        """Cut a vector like theta into [W_1, ..., W_L, b_1, ..., b_L] without copying."""
        cuts = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, cuts), self.shapes)]

    def check_views(self):
        """Raise InputError if a user has put another array in the place of theta, gradient or a part of them."""
        views = ((self.theta, self.W + self.b), (self.gradient, self.dW + self.db))
        if any(part.base is not whole for whole, parts in views for part in parts):
            raise InputError("theta, gradient, a W or a b is a new array; allowed: numbers put into it, as W[0][:] = 1")

    def __reduce__(self):  # a copy's W and b are views into its own theta
        return type(self), (self.sizes, self.activation, "Xavier", None, self.theta.dtype), self.theta

    def __setstate__(self, theta):
        self.theta[:] = theta

    def _use(self, n):
        """Take the first n rows of the arrays in memory: a, delta and f' of each layer; make a vector of ones."""
        if not self._buffers or n > len(self._buffers[0][0]):
            widths = self.sizes[:-1]
            self._buffers = [[np.ones((n, width), self.theta.dtype) for width in widths] for _ in range(3)]
        self.a, self._delta, self._slope = [[array[:n] for array in group] for group in self._buffers]
        self._ones = np.ones(n, self.theta.dtype)

    def forward(self, x):
        """Return the logits (batch, n_out) of x (batch, n_in): the network's dtype, or uint8 images, scaled to [0, 1].

        Keeps a_0 ... a_{L-1} in `self.a` for `backward`; the logits are a new array, and the caller's.
        """
        x = np.asarray(x)
        if x.ndim != 2 or x.shape[1] != self.sizes[0]:
            raise InputError(f"x is {x.shape}; allowed: (n, {self.sizes[0]}), an image in each row")
        if len(x) != len(self._ones):
            self._use(len(x))
        if x.dtype == np.uint8:
            np.multiply(x, 1 / 255, out=self.a[0], dtype=self.theta.dtype)
        elif x.dtype == self.theta.dtype and np.isfinite(x).all():
            np.copyto(self.a[0], x)
        else:
            raise InputError(f"x is {x.dtype}; allowed: uint8, or finite {self.theta.dtype}, the network's own type")
        for l in range(1, len(self.W)):
            z = np.dot(self.a[l - 1], self.W[l - 1], out=self.a[l])
            z += self.b[l - 1]
            if self.derivative:
                self.f(z)  # z becomes a
            else:
                self.f(z, self._slope[l])
        return self.a[-1] @ self.W[-1] + self.b[-1]

    def backward(self, delta):
        """Fill `gradient`, without decay, from delta_L = dJ/dz_L (batch, n_out), for the x of the last `forward`:

        dJ/dW_l = a_{l-1}^T delta_l;  dJ/db_l = sum over batch of delta_l;  delta_{l-1} = (delta_l W_l^T) * f'(z_{l-1}).
        """
        if np.shape(delta) != (len(self._ones), self.sizes[-1]) or getattr(delta, "dtype", None) != self.theta.dtype:
            raise InputError(f"delta is {np.shape(delta)}; allowed: {self.theta.dtype}, of the shape of the logits")
        for l in reversed(range(len(self.W))):
            np.dot(self.a[l].T, delta, out=self.dW[l])
            np.dot(self._ones, delta, out=self.db[l])
            if l > 0:
                delta = np.dot(delta, self.W[l].T, out=self._delta[l])
                if self.derivative:
                    self.derivative(self.a[l], self._slope[l])
                delta *= self._slope[l]

    def objective(self, x, y, loss="cross_entropy", weight_decay=0.0):
        """Return J = L(x, y) + weight_decay/2 sum W^2 and the logits (batch, n_out); leave dJ/dtheta in `gradient`."""
        families = import_module("lib.families")
        x, y = families.examples(x, y, self.sizes[-1])
        number("weight_decay", weight_decay, float, "[0, inf)")
        return self.descend(x, y, families.loss(loss, y, self), weight_decay)

    def descend(self, x, y, loss, weight_decay):
        """Do what `objective` does, for labels that are known to be right and a loss function: one step of `train`."""
        z = self.forward(x)
        value, delta = loss(z, y)
        self.backward(delta)
        if weight_decay:
            weights = self.theta[: self.n_weights]
            self.gradient[: self.n_weights] += np.multiply(weights, weight_decay, out=self._scratch)
            value += weight_decay / 2 * float(weights @ weights)
        return value, z

    @BLAS.wrap(limits=1, user_api="blas")
    def predict(self, x):
        """Return the probabilities (n, n_out) of the classes for images x (n, n_in), any number of them."""
        x = np.atleast_1d(import_module("lib.families").as_array("x", x))
        return np.concatenate([softmax(self.forward(x[i : i + 1000])) for i in range(0, max(len(x), 1), 1000)])


def gradient_check(network, x, y, loss="cross_entropy", weight_decay=0.0, epsilon=1e-4):
    """Compare backprop with central differences (J(theta_i + epsilon) - J(theta_i - epsilon)) / (2 epsilon), for all i.

    Returns the relative error |g - n| / (|g| + |n|) (Euclidean norms) of the worst W_l or b_l; leaves theta as it was.
    Raises InputError unless the network is float64 and epsilon in (0, 1], and for images or labels that do not fit.
    """
    if network.theta.dtype != np.float64:
        raise InputError(f"the network is {network.theta.dtype}; allowed: float64, or rounding hides the error")
    number("epsilon", epsilon, float, "(0, 1]")
    start = network.theta.copy()
    network.objective(x, y, loss, weight_decay)
    exact = network.gradient.copy()
    numeric = np.zeros_like(exact)
    for i in range(len(start)):
        for step in (epsilon, -epsilon):
            network.theta[:] = start  # all of it: a layer may have moved its state
            network.theta[i] += step
            numeric[i] += network.objective(x, y, loss, weight_decay)[0] / (2 * step)
    network.theta[:] = start
    norm = np.linalg.norm
    floor = 1e-4 * norm(exact) + 1e-12  # below it a part is zero, but for rounding
    both = zip(network.parts(exact), network.parts(numeric))
    return float(np.max([norm(g - n) / max(norm(g) + norm(n), floor) for g, n in both]))  # NaN, if one is


# ----------------------------------------------------------------------------------------------------------- optimisers
# optimiser(theta, config) returns step, state. step(g, t, eta, loss) updates theta in place: step t = 1, 2, ... at the
# learning rate eta, which may vary. state is what it remembers, {name: array}, updated in place: a checkpoint saves
# it and puts it back. Moments start at zero; s and r are scratch, overwritten in every step. loss is J of the batch.


def sgd(theta, config):
    """theta <- theta - eta g   (Robbins & Monro, 1951; on mini-batches)."""
    s = np.empty_like(theta)

    def step(g, t, eta, loss):
        nonlocal theta
        theta -= np.multiply(g, eta, out=s)

    return step, {}


def momentum(theta, config):
    """u <- mu u + g;  theta <- theta - eta u   (Polyak, 1964)."""
    u, s = np.zeros((2, len(theta)), theta.dtype)

    def step(g, t, eta, loss):
        nonlocal theta, u
        u *= config.momentum
        u += g
        theta -= np.multiply(u, eta, out=s)

    return step, {"u": u}


def nag(theta, config):
    """u <- mu u + g;  theta <- theta - eta (g + mu u), theta the point looked ahead to   (Nesterov, 1983)."""
    u, s = np.zeros((2, len(theta)), theta.dtype)

    def step(g, t, eta, loss):
        nonlocal theta, u, s
        u *= config.momentum
        u += g
        np.multiply(u, config.momentum, out=s)
        s += g
        s *= eta
        theta -= s

    return step, {"u": u}


def rmsprop(theta, config):
    """v <- beta v + (1 - beta) g^2;  theta <- theta - eta g / (sqrt(v) + epsilon)   (Tieleman & Hinton, 2012)."""
    root = math.sqrt(1 - config.beta)  # v is kept without its factor 1 - beta: sqrt(v) = root sqrt(v kept)
    epsilon = config.epsilon / root
    v, s = np.zeros((2, len(theta)), theta.dtype)

    def step(g, t, eta, loss):
        nonlocal theta, v, s
        v *= config.beta
        v += np.square(g, out=s)
        np.sqrt(v, out=s)
        s += epsilon
        np.divide(g, s, out=s)
        s *= eta / root
        theta -= s

    return step, {"v": v}


def adam(theta, config):
    """m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  m' = m / (1 - beta1^t);  v' = v / (1 - beta2^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)   (Kingma & Ba, 2015)."""
    beta1, beta2 = config.beta1, config.beta2
    m, v, s = np.zeros((3, len(theta)), theta.dtype)

    def step(g, t, eta, loss):
        nonlocal theta, m, v, s
        m *= beta1  # m and v are kept without their factors 1 - beta, which the scalars below make good
        m += g
        v *= beta2
        v += np.square(g, out=s)
        m_scale = (1 - beta1) / (1 - beta1**t)
        root = math.sqrt((1 - beta2) / (1 - beta2**t))
        np.sqrt(v, out=s)
        s += config.epsilon / root
        np.divide(m, s, out=s)
        s *= eta * m_scale / root
        theta -= s

    return step, {"m": m, "v": v}


def nadam(theta, config):
    """m, v, v' as in Adam;  m' = beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)   (Dozat, 2016, with beta1 fixed)."""
    beta1, beta2 = config.beta1, config.beta2
    m, v, s, r = np.zeros((4, len(theta)), theta.dtype)

    def step(g, t, eta, loss):
        nonlocal theta, m, v, s, r
        m *= beta1  # kept without 1 - beta, as in Adam
        m += g
        v *= beta2
        v += np.square(g, out=s)
        m_scale = (1 - beta1) * beta1 / (1 - beta1 ** (t + 1))
        g_scale = (1 - beta1) / (1 - beta1**t)
        root = math.sqrt((1 - beta2) / (1 - beta2**t))
        np.multiply(m, m_scale / g_scale, out=r)
        r += g
        np.sqrt(v, out=s)
        s += config.epsilon / root
        r /= s
        r *= eta * g_scale / root
        theta -= r

    return step, {"m": m, "v": v}


OPTIMIZERS = {"sgd": sgd, "momentum": momentum, "nag": nag, "rmsprop": rmsprop, "adam": adam, "nadam": nadam}


# -------------------------------------------------------------------------------------------------------- configuration

DATASETS = {"fashion_mnist": None, "mnist": None}  # name: a function that returns the Dataset; None: read from data/
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
ALIASES = {"nesterov": "nag"}
BACKENDS = ("numpy", "compiled")  # what takes the steps: the functions here, or lib/engine.py, which needs Numba


def choice(name, value, allowed):
    """Return the name in `allowed` that `value` is or stands for, ignoring case. Raises InputError if there is none."""
    folded = value.casefold() if isinstance(value, str) else None
    alike = [one for one in allowed if one.casefold() in (folded, ALIASES.get(folded))]
    same = [one for one in alike if one == value] or alike
    if len(same) != 1:
        text = f"a {type(value).__name__}" if folded is None else repr(value)
        raise InputError(f"{name} is {text}; allowed: {', '.join(allowed)}")
    return same[0]


def number(name, value, kind, interval):
    """Return `value` as an int or a float in an interval like "[0, 1)". Raises InputError if it is not one."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    try:
        text = repr(value)
        fits = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        exact = kind(value) if fits and low <= value <= high else math.nan  # what is next to 1 may be rounded to 1
    except (OverflowError, ValueError):  # beyond any float, or thousands of digits
        text, exact = "a number too long to print", math.nan
    if not (low < exact < high or exact == low and interval[0] == "[" or exact == high and interval[-1] == "]"):
        raise InputError(f"{name} is {text}; allowed: a {'whole ' if kind is int else ''}number in {interval}")
    return exact


def _setting(default, allowed, meaning):
    return field(default=default, metadata={"allowed": allowed, "names": [*allowed], "meaning": meaning})


@dataclass(frozen=True)
class Config:
    """Everything that defines one training: the course's flags and a seed. Raises InputError if a value is not allowed.

    The defaults are those of the best validation accuracy found: trial 17 of data/sweeps/bayes.csv, rounded. Names
    are not case-sensitive. hidden_size may be a sequence, one width for each layer; num_layers is then its length.
    """

    dataset: str = _setting("fashion_mnist", DATASETS, "data set")
    epochs: int = _setting(20, "[1, inf)", "passes over the training images")
    batch_size: int = _setting(128, "[1, inf)", "images per step; the last batch of an epoch may be smaller")
    loss: str = _setting("cross_entropy", LOSSES, "loss")
    optimizer: str = _setting("adam", OPTIMIZERS, "optimiser")
    learning_rate: float = _setting(4.22e-4, "(0, inf)", "eta")
    momentum: float = _setting(0.9, "[0, 1)", "mu of momentum and nag")
    beta: float = _setting(0.9, "[0, 1)", "beta of rmsprop")
    beta1: float = _setting(0.9, "[0, 1)", "beta1 of adam and nadam")
    beta2: float = _setting(0.999, "[0, 1)", "beta2 of adam and nadam")
    epsilon: float = _setting(1e-8, "[1e-30, inf)", "epsilon of rmsprop, adam and nadam")
    weight_decay: float = _setting(7.69e-6, "[0, inf)", "lambda of the L2 term")
    weight_init: str = _setting("random", WEIGHT_INITS, "distribution of the initial weights")
    num_layers: int = _setting(None, "[0, 1000]", "hidden layers")  # None: 4, or one for each hidden_size
    hidden_size: int | tuple = _setting(256, "[1, 10000]", "neurons of each hidden layer; several: one for each layer")
    activation: str = _setting("ReLU", ACTIVATIONS, "activation of the hidden layers")
    seed: int = _setting(0, "[0, inf)", "seed of the weights and of the order of the images")

    def __post_init__(self):
        several = isinstance(self.hidden_size, (list, tuple)) and len(self.hidden_size) > 0
        if self.num_layers is None:
            object.__setattr__(self, "num_layers", len(self.hidden_size) if several else 4)
        for f in fields(self):
            value = getattr(self, f.name)
            allowed = f.metadata["allowed"]
            if f.type is str:
                value = choice(f.name, value, allowed)
            elif f.name != "hidden_size" or not several:
                value = number(f.name, value, float if f.type is float else int, allowed)
            elif len(value) != self.num_layers:
                raise InputError(f"num_layers is {self.num_layers}; allowed with hidden_size {value}: {len(value)}")
            else:
                value = tuple(number(f.name, width, int, allowed) for width in value)
                value = value[0] if len(set(value)) == 1 else value
            object.__setattr__(self, f.name, value)

    @property
    def widths(self):
        """The widths of the hidden layers, a list."""
        return list(self.hidden_size) if isinstance(self.hidden_size, tuple) else [self.hidden_size] * self.num_layers

    @property
    def run_name(self):
        """Return a descriptive name, for example hl_6_lr_0.001_bs_128_opt_rmsprop_act_tanh."""
        sizes = f"_sz_{'-'.join(map(str, self.widths))}" if isinstance(self.hidden_size, tuple) else ""
        rates = f"_lr_{self.learning_rate:g}_bs_{self.batch_size}"
        return f"hl_{self.num_layers}{sizes}{rates}_opt_{self.optimizer}_act_{self.activation}"


# ------------------------------------------------------------------------------------------------------------- training


@BLAS.wrap(limits=1, user_api="blas")
def evaluate(network, x, y, loss="cross_entropy"):
    """Return mean loss and accuracy on images x (n, n_in), labels y (n,). Raises InputError for what does not fit."""
    families = import_module("lib.families")
    x, y = families.examples(x, y, network.sizes[-1])
    loss = families.loss(loss, y, network)
    total, right = 0.0, 0
    for i in range(0, len(x), 1000):
        labels = y[i : i + 1000]
        z = network.forward(x[i : i + 1000])
        total += float(loss(z, labels)[0]) * len(labels)
        right += int(np.count_nonzero(z.argmax(axis=1) == labels))
    return total / len(x), right / len(x)


class Training(NamedTuple):
    """What `train` returns: the network, one row (a dictionary) per epoch, and the reason why it ended."""

    network: Network
    history: list
    stopped: str


def new_network(config, data):
    """Make the network of `config` for the images and classes of `data`, its weights drawn from the seed."""
    sizes = [math.prod(data.x_train.shape[1:]), *config.widths, len(data.class_names)]
    return Network(sizes, config.activation, config.weight_init, np.random.default_rng([config.seed, 0]))


@BLAS.wrap(limits=1, user_api="blas")
def train(config, data, on_epoch=None, network=None, keep_best=False, patience=None, checkpoint=None, backend="numpy"):
    """Train a network by `config` on `data`; the same seed on the same machine gives the same weights, bit for bit.

    on_epoch(row): called after each epoch with its row of the history; a sentence it returns ends the training.
    network: train this one, in place, instead of a new one; to resume, with its initial weights or the checkpoint's.
    keep_best: return the weights of the epoch of best val_accuracy (the first of equals), not those of the last one.
    patience: stop after this many epochs without a better val_accuracy. backend: one of BACKENDS.
    checkpoint: a file (.npz) written after each epoch; if it exists, training resumes from there, to the same bits.
    Returns a Training. A row has epoch, train_loss, train_accuracy, val_loss, val_accuracy, seconds (with evaluation)
    and step_seconds (without). A loss that is not finite ends the training: its epoch gets no row, `stopped` says why.
    Raises InputError for arguments, functions of one's own or a checkpoint that do not fit, or what cannot be resumed.
    """
    families = import_module("lib.families")
    network = families.network_to_train(config, data, network, on_epoch, checkpoint)
    patience = None if patience is None else number("patience", patience, int, "[1, inf)")
    step, state = families.make_optimizer(network.theta, config)
    steps = _steps
    if choice("backend", backend, BACKENDS) == "compiled":
        steps = import_module("lib.engine").compile_steps(config, data, network, state) or _steps
    best_theta = network.theta.copy()
    history, save = [], lambda history: None
    with ExitStack() as stack:
        if checkpoint is not None:
            resumed = import_module("lib.files").resumed  # nothing else here needs a file
            history, save = stack.enter_context(resumed(checkpoint, config, data, network, best_theta, state))
        while not (stopped := _finished(history, config.epochs, patience)):
            row = _epoch(config, data, network, step, steps, epoch=len(history) + 1)
            if bad := [name for name, value in row.items() if not math.isfinite(value)]:
                stopped = f"{bad[0]} not finite in epoch {row['epoch']}"
                break
            if row["val_accuracy"] > max((r["val_accuracy"] for r in history), default=-1):
                best_theta[:] = network.theta
            history.append(row)
            save(history)
            if on_epoch and isinstance(stopped := on_epoch(dict(row)), str):  # print and write return other things
                break
    if keep_best:
        network.theta[:] = best_theta
    return Training(network, history, stopped)


def _finished(history, epochs, patience):
    """Return why a training with this history is over, or None."""
    best_epoch = 1 + max(range(len(history)), key=lambda i: history[i]["val_accuracy"], default=-1)
    if len(history) >= epochs:
        return f"all {epochs} epochs done"
    if patience and len(history) - best_epoch >= patience:
        return f"no better val_accuracy for {patience} epochs"


def _epoch(config, data, network, step, steps, epoch):
    """Train for one pass over the images in a seeded order, then validate; return a row of the history."""
    before = network.theta.copy()
    began = time.perf_counter()
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data.x_train))
    t = (epoch - 1) * -(-len(order) // config.batch_size)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a loss that overflows is found and named
        train_loss, train_accuracy = steps(config, data, network, step, order, t)
        step_seconds = time.perf_counter() - began
        if not math.isfinite(train_loss):
            return {"epoch": epoch, "train_loss": train_loss}
        if np.array_equal(before[: network.n_weights], network.theta[: network.n_weights]):  # a layer moves its state
            import_module("lib.families").check_moves(before, config)
        val_loss, val_accuracy = evaluate(network, data.x_val, data.y_val, config.loss)
    values = (train_loss, train_accuracy, val_loss, val_accuracy)
    row = {"epoch": epoch} | dict(zip(METRICS, values, strict=True))
    return row | {"seconds": time.perf_counter() - began, "step_seconds": step_seconds}


def _steps(config, data, network, step, order, t):
    """Take a step per batch, after t steps; return the mean loss and the accuracy, or a loss that is not finite."""
    loss = LOSSES[config.loss]
    labels = data.y_train[order]
    logits = np.empty((len(order), network.sizes[-1]), network.theta.dtype)
    for i in range(0, len(order), config.batch_size):
        batch = slice(i, i + config.batch_size)
        x = data.x_train.take(order[batch], axis=0, mode="clip")  # clip: unchecked
        value, logits[batch] = network.descend(x, labels[batch], loss, config.weight_decay)
        if not math.isfinite(value):
            return float(value), 0.0
        t += 1
        step(network.gradient, t, config.learning_rate, value)
    train_loss = float(loss(logits, labels)[0])  # without the decay term, which `value` above contains
    return train_loss, float(np.mean(logits.argmax(axis=1) == labels))


def save_network(path, network):
    """Write a network to an .npz file, whole or not at all (see lib/files.py)."""
    import_module("lib.files").save_network(path, network)


def load_network(path):
    """Return the network that `save_network` wrote. Raises InputError if the file is missing, damaged or foreign."""
    return import_module("lib.files").load_network(path)
