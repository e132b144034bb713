"""What stands in the dictionaries of helpers.py, tried before a training relies on it: a user may have added it.

Python sees no error if a function makes a new array instead of working in place: the network would train on, as if
the function were not there. So each is called once on a few numbers, and refused in a sentence if it does not do
what helpers.py says above its dictionary. What a user's function raises is told in that sentence, too.
"""

import os
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from traceback import extract_tb

import numpy as np

from helpers import (
    ACTIVATIONS,
    LOSSES,
    OPTIMIZERS,
    WEIGHT_INITS,
    Config,
    InputError,
    Network,
    choice,
    new_network,
)

STEPS = 64  # of an optimiser that may sum gradients up before it moves theta
PAIR = "f(z) that works in place and f'(a, out) that fills out; or f(z, out) that does both, and None"
LOSS = "a function of z (batch, classes) and y that changes neither and returns the mean loss and dL/dz, both finite"
STEP = "step, which moves theta in place, and its state, a dictionary"


@contextmanager
def trying(what, allowed):
    """Turn what a user's function raises into an InputError; the traceback stays with it."""
    try:
        with np.errstate(all="ignore"):
            yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a function that we do not know leads to
        place = extract_tb(error.__traceback__)[-1]
        text = f"{what} raises {type(error).__name__}: {error}; allowed: {allowed}"
        if place.filename != __file__:  # the function has been called, and it knows where it failed
            text += f" (line {place.lineno} of {os.path.basename(place.filename)})"
        raise InputError(text) from error


def _refuse_unless(fits, what, allowed):
    if not fits:
        raise InputError(f"{what}; allowed: {allowed}")


def shown(value):
    """Say what a user has given or returned: an array by dtype and shape, anything else by its type."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def as_array(name, value):
    """Return a value as an array. Raises InputError for rows of several lengths and for a mask, which would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name} is a masked array; allowed: an array without a mask")
    try:
        return np.asarray(value)
    except ValueError:
        raise InputError(f"{name} is {shown(value)} with rows of several lengths; allowed: an array") from None


def check_labels(name, y, n, n_classes):
    """Return the labels y as an array. Raises InputError unless it holds n, at least one, from 0 to n_classes - 1."""
    y = as_array(name, y)
    if n == 0 or y.shape != (n,) or y.dtype.kind not in "iu":
        raise InputError(f"{name} is {y.dtype} {y.shape}; allowed: a whole number for each image, here ({n},)")
    if not 0 <= y.min() <= y.max() < n_classes:
        raise InputError(f"{name} has labels from {y.min()} to {y.max()}; allowed: 0 to {n_classes - 1}")
    return y


def examples(x, y, n_classes):
    """Return images x (n, ...) and their labels y (n,) as arrays. Raises InputError unless they fit each other."""
    x = np.atleast_1d(as_array("x", x))
    return x, check_labels("y", y, len(x), n_classes)


def plain(value):
    """Return a number of NumPy's as Python's, which JSON takes; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _in_place(returned, *arrays):
    """Return whether a function has returned nothing, or the arrays that it was given to work on."""
    parts = returned if isinstance(returned, tuple) else (returned,)
    return all(part is None or any(part is array for array in arrays) for part in parts)


def generator(rng):
    """Return a Generator or a seed as a Generator. Raises InputError for anything else."""
    try:
        if isinstance(rng, bool):  # which numpy takes for the seeds 0 and 1
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise InputError(f"rng is {rng!r}; allowed: a Generator, or a seed from 0") from None


def floating(dtype):
    """Return the dtype of a network. Raises InputError unless it is float32 or float64."""
    try:
        fits = dtype is not None and np.dtype(dtype) in (np.float32, np.float64)
    except TypeError:
        fits = False
    _refuse_unless(fits, f"dtype is {dtype!r}", "float32, float64")
    return np.dtype(dtype)


def _apply(f, derivative, z):
    """Return f(z), f'(z), in arrays of their own, and what f and f' have returned."""
    z, slope = z.copy(), np.full_like(z, np.nan)
    returned = [f(z), derivative(z, slope)] if derivative else [f(z, slope)]
    return z, slope, returned


def activation(name, width, dtype):
    """Return f and f' of ACTIVATIONS[name], tried on z from -3 to 3 (2, width).

    Raises InputError unless f works in place and f' fills `out`, both with finite numbers. An f that leaves z alone
    must have a slope of 1.
    """
    what = f"activation {name!r}"
    pair = ACTIVATIONS[name]
    whole = isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0]) and (pair[1] is None or callable(pair[1]))
    _refuse_unless(whole, f"{what} is {shown(pair)}", PAIR)
    before = np.linspace(-3, 3, 2 * width, dtype=dtype).reshape(2, width)
    with trying(what, PAIR):
        z, slope, returned = _apply(*pair, before)
        for part, one in zip(("f", "f'"), returned):
            _refuse_unless(_in_place(one, z, slope), f"{part} of {what} returns {shown(one)}", PAIR)
    _refuse_unless(np.isfinite(z).all(), f"f of {what} makes numbers that are not finite, of z from -3 to 3", PAIR)
    _refuse_unless(np.isfinite(slope).all(), f"f' of {what} does not fill out with finite numbers", PAIR)
    idle = (z == before).all() and not np.allclose(slope, 1)
    _refuse_unless(not idle, f"f of {what} leaves z as it is, though f' is not 1", PAIR)
    return pair


def fill_weights(W, draw, rng):
    """Set W (n_in, n_out) to what draw(rng, n_in, n_out), of WEIGHT_INITS, returns.

    Raises InputError unless that is an array of finite real numbers of the same shape.
    """
    name = next((name for name, one in WEIGHT_INITS.items() if one is draw), draw)
    what = f"weight_init {name!r}"
    allowed = f"finite real numbers {W.shape}"
    with trying(what, allowed):
        drawn = draw(rng, *W.shape)
        fits = isinstance(drawn, np.ndarray) and drawn.shape == W.shape and drawn.dtype.kind in "iuf"
        _refuse_unless(fits, f"{what} returns {shown(drawn)}", allowed)
        W[:] = drawn
        once, again = (draw(np.random.default_rng(0), 3, 2) for _ in range(2))
    _refuse_unless(np.isfinite(W).all(), f"{what} returns numbers that are not finite in {W.dtype}", allowed)
    _refuse_unless(np.array_equal(once, again), f"{what} draws from something else than rng", allowed)


def loss(name, y, network):
    """Return the loss of this name, tried on four labels of y and logits of the network's kind. Raises InputError."""
    name = choice("loss", name, LOSSES)
    y = np.resize(y, 4)
    z = np.linspace(-3, 3, 4 * network.sizes[-1], dtype=network.theta.dtype).reshape(4, -1)
    given = z.copy(), y.copy()
    what = f"loss {name!r}"
    with trying(what, LOSS):
        returned = LOSSES[name](z, y)
    whole = isinstance(returned, tuple) and len(returned) == 2
    _refuse_unless(whole, f"{what} returns {shown(returned)}", LOSS)
    value, delta = returned
    _refuse_unless((z == given[0]).all() and (y == given[1]).all(), f"{what} changes z or y", LOSS)
    _refuse_unless(isinstance(value, Real) and np.isfinite(value), f"{what} is {shown(value)}, or not finite", LOSS)
    alike = isinstance(delta, np.ndarray) and delta.shape == z.shape and delta.dtype == z.dtype
    _refuse_unless(alike, f"dL/dz of {what} is {shown(delta)} for z {shown(z)}", LOSS)
    _refuse_unless(np.isfinite(delta).all(), f"dL/dz of {what} is not finite", LOSS)
    with trying(what, LOSS):
        twice, _ = LOSSES[name](np.tile(z, (2, 1)), np.tile(y, 2))
    mean = f"{what} is {value:.4g} for four images and {twice:.4g} for each of them twice, so it is no mean"
    _refuse_unless(np.isclose(value, twice, rtol=1e-3), mean, LOSS)
    return LOSSES[name]


def make_optimizer(theta, config):
    """Return step and state of the optimiser of `config`; what its step raises becomes an InputError.

    Raises InputError if it does not return them.
    """
    what = f"optimizer {config.optimizer!r}"
    with trying(what, STEP):
        made = OPTIMIZERS[config.optimizer](theta, config)
    whole = isinstance(made, tuple) and len(made) == 2 and callable(made[0]) and isinstance(made[1], dict)
    _refuse_unless(whole, f"{what} returns {shown(made)}", STEP)
    step, state = made

    def told(*given):
        try:
            step(*given)
        except Exception:  # entered only then: a step takes microseconds, and so does a context
            with trying(f"step of {what}", STEP):
                raise

    return told, state


def check_moves(theta, config):
    """Raise InputError if an optimiser moves no theta at any learning rate, as one that makes a new array.

    It is for a theta that an epoch has not moved: a rate may be too small, and a gradient zero. Another theta is tried,
    of numbers near 1: from one that has diverged a step of 1 would be lost to rounding.
    """
    theta, g = np.random.default_rng(0).standard_normal((2, len(theta))).astype(theta.dtype)
    moved = theta.copy()
    step, _ = make_optimizer(moved, replace(config, learning_rate=1.0))
    for t in range(1, STEPS + 1):
        with np.errstate(all="ignore"):
            step(g.copy(), t, 1.0, 1.0)
        if not np.array_equal(moved, theta):
            return
    raise InputError(f"optimizer {config.optimizer!r} leaves theta as it was in {STEPS} steps; allowed: {STEP}")


def outcomes(config, network):
    """Return what a training's optimiser, loss and activation make of a few numbers, to four digits.

    Four digits are the same on every machine. So a checkpoint tells a function from another one that has its name now.
    """
    dtype, n_out = network.theta.dtype, network.sizes[-1]
    theta, g = np.random.default_rng(0).standard_normal((2, len(network.theta))).astype(dtype)
    before = theta.copy()
    step, _ = make_optimizer(theta, config)
    with np.errstate(all="ignore"):
        for t in range(1, 4):
            step(t * g, t, config.learning_rate, 1 / t)
    z = np.linspace(-3, 3, 4 * n_out, dtype=dtype).reshape(4, n_out)
    value, delta = LOSSES[config.loss](z, np.arange(4) % n_out)
    numbers = {"optimizer": [g @ (theta - before).astype(float)], "loss": [value, np.vdot(delta.astype(float), z)]}
    if hasattr(network, "f"):
        z = np.linspace(-3, 3, 2 * network.sizes[1], dtype=dtype).reshape(2, -1)
        z, slope, _ = _apply(network.f, network.derivative, z)
        weights = np.linspace(1, 2, z.size)
        numbers["activation"] = [z.ravel() @ weights, slope.ravel() @ weights]
    return {f"outcome of {name}": " ".join(f"{one:.4g}" for one in values) for name, values in numbers.items()}


def network_to_train(config, data, network, on_epoch, checkpoint):
    """Return the network that `train` is given, or else a new one.

    Raises InputError for an argument of another kind, before an epoch is trained for nothing; for labels that do not
    fit the network; and for a loss that does not do what it should.
    """
    parts = [f"{one}_{part}" for one in "xy" for part in ("train", "val")]
    for name, value, fits, allowed in (
        ("config", config, isinstance(config, Config), "a Config"),
        ("data", data, all(hasattr(data, part) for part in parts), "a Dataset"),
        ("network", network, isinstance(network, Network | None), "a Network"),
        ("on_epoch", on_epoch, on_epoch is None or callable(on_epoch), "a function of an epoch's row"),
        ("checkpoint", checkpoint, isinstance(checkpoint, str | os.PathLike | None), "the path of a file"),
    ):
        _refuse_unless(fits, f"{name} is {shown(value)}", allowed)
    network = new_network(config, data) if network is None else network
    for name in ("train", "val"):
        x = as_array(f"x_{name}", getattr(data, f"x_{name}"))
        check_labels(f"y_{name}", getattr(data, f"y_{name}"), len(x), network.sizes[-1])
    loss(config.loss, data.y_train, network)
    network.check_views()
    return network
