"""Layers beyond helpers.Network: convolution, pooling, batch normalisation, dropout, residual blocks, in NumPy.

A layer has forward(x, mode), mode one of "train", "calibrate", "test", and backward(delta), which takes dJ/d(output),
fills the gradients of the layer's parameters, returns dJ/dx and may overwrite delta; ReLU and Dropout work in place. A
layer belongs to one place in one network, as it keeps what its backward needs. Images are (batch, height, width,
channels): a row of a patch lies together in memory, and a convolution is the product of two matrices, (pixels, 9 n_in)
and (9 n_in, n_out). `Stack`, a network of layers, is a helpers.Network wherever one is taken.
"""

import copy
import json
import math
from functools import partial, reduce

import numpy as np

from helpers import WEIGHT_INITS, InputError, Network, choice, number
from lib.families import as_array, fill_weights, floating, generator, plain, shown
from lib.files import LOADERS

LAYERS = {}  # name: class, for a file that names the layers of its network
MODES = ("train", "calibrate", "test")


class Layer:
    """Hold what layers have in common: parameters W, which decay, and v, which do not, and their gradients; state.

    The state is what a layer remembers from one batch to the next. No gradient moves it, but it lies in theta too, so
    that wherever theta is copied or stored, the whole network is.
    """

    matrices = ()  # shapes of W
    vectors = ()  # shapes of v
    remembered = ()  # shapes of state
    first = False  # of the network's layers: then nobody needs dJ/dx
    in_place = False  # forward overwrites its x

    def __init_subclass__(cls):
        ours = cls.__name__ in LAYERS and LAYERS[cls.__name__].__module__ == __name__
        if ours and cls.__module__ != __name__:  # a file that names it would be read as the other
            raise InputError(f"a layer is named {cls.__name__!r}, which lib.layers has; allowed: another name")
        LAYERS[cls.__name__] = cls

    def __new__(cls, *arguments, **options):
        layer = super().__new__(cls)
        layer.arguments = tuple(plain(value) for value in arguments)
        layer.options = {name: plain(value) for name, value in options.items()}
        return layer

    def __reduce__(self):
        return partial(type(self), **self.options), self.arguments  # a new one, of the same kind

    def description(self):
        """Return name, arguments and options, which is what JSON needs to make a layer of the same kind."""
        arguments = [one.description() if isinstance(one, Layer) else one for one in self.arguments]
        return [type(self).__name__, arguments, self.options]

    def begin(self, rng):
        """Draw the initial parameters; they are zero before."""

    def kept(self, name, shape, dtype, create=np.empty):
        """Return an array of this name and shape: that of the last call if it fits, as large ones are slow to get."""
        arrays = self.__dict__.setdefault("_arrays", {})
        if name not in arrays or (arrays[name].shape, arrays[name].dtype) != (shape, dtype):
            arrays[name] = create(shape, dtype)
        return arrays[name]


def _check_sizes(**sizes):
    for name, size in sizes.items():
        number(name, size, int, "[1, inf)")


def _check_images(x, layer, side):
    """Raise InputError unless x is (batch, height, width, channels) and both sides have `side` pixels or more."""
    if x.ndim != 4 or min(x.shape[1:3]) < side:
        allowed = f"(height, width, channels), of {side} x {side} pixels or more"
        raise InputError(f"a {layer} is given {x.shape[1:]}; allowed: {allowed}")


def channel_sums(x, y=None):
    """Sum x, or x * y, both (batch, ..., channels), over all axes but the last: float64 (channels,).

    A long sum in float32, one number after another, loses three digits. So each line of an image is summed on its own,
    which is short, and the lines are added up in float64.
    """
    x = x.reshape(-1, x.shape[-2] if x.ndim > 2 else 1, x.shape[-1])
    lines = np.einsum("lic->lc", x) if y is None else np.einsum("lic,lic->lc", x, y.reshape(x.shape))
    return lines.sum(axis=0, dtype=np.float64)


class Dense(Layer):
    """z = x W + b, with x (batch, ...) taken as (batch, n_in);  dW = x^T delta;  db = sum of delta;  dx = delta W^T."""

    def __init__(self, n_in, n_out, weight_init="He"):
        _check_sizes(n_in=n_in, n_out=n_out)
        self.matrices = [(n_in, n_out)]
        self.vectors = [(n_out,)]
        self.draw = WEIGHT_INITS[choice("weight_init", weight_init, WEIGHT_INITS)]

    def begin(self, rng):
        fill_weights(self.W[0], self.draw, rng)

    def forward(self, x, mode):
        self.shape = x.shape
        self.x = x.reshape(len(x), len(self.W[0]))
        return self.x @ self.W[0] + self.v[0]

    def backward(self, delta):
        np.dot(self.x.T, delta, out=self.dW[0])
        self.dv[0][:] = channel_sums(delta)
        if not self.first:
            return (delta @ self.W[0].T).reshape(self.shape)


class Convolution(Dense):
    """z[i, j] = sum over d, e = 0, 1, 2 of x[i + d, j + e] W[d, e], x with `pad` zeros added on every side; no bias.

    W (9 n_in, n_out), rows by (d, e, channel). dW is the sum of patch^T delta over all pixels; dx the convolution of
    delta with W turned by 180 degrees. All go a few images at a time, so that their patches stay in the cache.
    """

    def __init__(self, n_in, n_out, pad=1):
        _check_sizes(n_in=n_in, n_out=n_out)
        number("pad", pad, int, "[0, 2]")
        self.matrices = [(9 * n_in, n_out)]
        self.pad = pad
        self.draw = WEIGHT_INITS["He"]

    def forward(self, x, mode):
        self.x = self._padded("x", x, self.pad)
        return self._convolve("z", self.x, self.W[0])

    def backward(self, delta):
        n_out = delta.shape[-1]
        self.dW[0][:] = sum(patches.T @ delta[i].reshape(-1, n_out) for i, patches in self._patches(self.x))
        if not self.first:
            turned = self.W[0].reshape(3, 3, -1, n_out)[::-1, ::-1].transpose(0, 1, 3, 2).reshape(9 * n_out, -1)
            return self._convolve("dx", self._padded("delta", delta, 2 - self.pad), turned)

    def _padded(self, name, x, pad):
        _check_images(x, "Convolution", 3 - 2 * pad)
        n, h, w, c = x.shape
        padded = self.kept(name, (n, h + 2 * pad, w + 2 * pad, c), x.dtype, np.zeros)
        padded[:, pad : h + pad, pad : w + pad] = x  # the border stays zero
        return padded

    def _patches(self, x):
        """Yield, some images at a time: which, and the 3 x 3 patches of x around their pixels, (pixels, 9 channels)."""
        n, h, w, c = x.shape
        image, row, pixel, channel = x.strides
        shape = (n, h - 2, w - 2, 3, 3 * c)
        view = np.lib.stride_tricks.as_strided(x, shape, (image, row, pixel, row, channel), writeable=False)
        many = max(1, 2**18 // math.prod(shape[1:]))  # a megabyte of float32
        buffer = self.kept(f"patches of {c}", (min(many, n), *shape[1:]), x.dtype)
        for i in range(0, n, many):
            patches = buffer[: min(many, n - i)]
            np.copyto(patches, view[i : i + many])
            yield slice(i, i + many), patches.reshape(-1, 9 * c)

    def _convolve(self, name, x, W):
        n, h, w, _ = x.shape
        z = self.kept(name, (n, h - 2, w - 2, W.shape[1]), x.dtype)
        for some, patches in self._patches(x):
            np.dot(patches, W, out=z[some].reshape(-1, W.shape[1]))
        return z


class MaxPool(Layer):
    """y = the largest of each size x size pixels, to which its gradient goes (to the first of equals)."""

    def __init__(self, size):
        _check_sizes(size=size)
        self.size = size

    def _corners(self, x):  # views of x, one for each place in a square; what fills no square is left out
        h, w = (length // self.size * self.size for length in x.shape[1:3])
        return [x[:, i : h : self.size, j : w : self.size] for i in range(self.size) for j in range(self.size)]

    def forward(self, x, mode):
        _check_images(x, "MaxPool", self.size)
        self.x = x
        self.out = reduce(np.maximum, self._corners(x))
        return self.out.copy()  # as what comes next may work in place

    def backward(self, delta):
        dx = self.kept("dx", self.x.shape, delta.dtype, np.zeros)  # what is left out stays zero
        for corner, d in zip(self._corners(self.x), self._corners(dx)):
            np.multiply(delta, corner == self.out, out=d)
            delta -= d  # given away
        return dx


class BatchNorm(Layer):
    """y = gamma x' + beta, x' = (x - mean) / sqrt(var + 1e-5), per channel (Ioffe & Szegedy, 2015).

    Over the N rows of a channel  dgamma = sum of delta x';  dbeta = sum of delta;
    dx = gamma / sqrt(var + 1e-5) * (delta - dbeta / N - x' dgamma / N).
    mean and var are those of the batch; in mode "test" they are the layer's state, a mean of those of many batches: in
    training a running one, after Stack.calibrate that of all its batches, each weighted by its size.
    """

    def __init__(self, n):
        _check_sizes(n=n)
        self.vectors = self.remembered = [(n,), (n,)]
        self.rows = 0  # of the calibration

    def begin(self, rng):
        self.v[0].fill(1)  # gamma
        self.state[1].fill(1)  # var

    def forward(self, x, mode):
        if x.shape[-1] != len(self.v[0]):
            raise InputError(f"a BatchNorm is given {x.shape[1:]}; allowed: {len(self.v[0])} channels, the last number")
        rows = x.size // x.shape[-1]
        mean, var = self.state
        if mode != "test":
            mean = channel_sums(x) / rows
        self.x = np.subtract(x, mean.astype(x.dtype), out=self.kept("x", x.shape, x.dtype))
        if mode != "test":
            var = channel_sums(self.x, self.x) / rows
            self._remember(mean, var, rows, mode)
        self.scale = (1 / np.sqrt(var + 1e-5)).astype(x.dtype)
        self.x *= self.scale  # normalised
        y = np.multiply(self.x, self.v[0], out=self.kept("y", x.shape, x.dtype))
        y += self.v[1]
        return y

    def _remember(self, mean, var, rows, mode):
        share = 0.1
        if mode == "calibrate":
            self.rows += rows
            share = rows / self.rows
        self.state[0] += share * (mean - self.state[0])
        self.state[1] += share * (var - self.state[1])

    def backward(self, delta):
        rows = delta.size // delta.shape[-1]
        gamma, (dgamma, dbeta) = self.v[0], self.dv
        dgamma[:] = channel_sums(delta, self.x)
        dbeta[:] = channel_sums(delta)
        self.x *= dgamma / rows
        delta -= self.x
        delta -= dbeta / rows
        delta *= gamma * self.scale
        return delta


class ReLU(Layer):
    """a = max(0, z)."""

    in_place = True

    def forward(self, x, mode):
        self.mask = np.maximum(x, 0, out=x) > 0
        return x

    def backward(self, delta):
        delta *= self.mask
        return delta


class Dropout(ReLU):
    """In training a number is zero with probability p, else divided by 1 - p (Srivastava et al., 2014).

    The state is the number of the next mask, so that a training which is stopped and resumed draws the same masks.
    """

    remembered = [()]

    def __init__(self, p):
        number("p", p, float, "[0, 1)")
        self.p = p

    def begin(self, rng):
        self.state[0][...] = rng.integers(2**20)  # float32 counts on from here to 2^24 without a gap

    def forward(self, x, mode):
        if mode == "train":
            chance = np.random.default_rng(round(float(self.state[0]))).random(x.shape, np.float32)
            self.mask = (chance >= self.p) * x.dtype.type(1 / (1 - self.p))
            self.state[0] += 1
            x *= self.mask
        return x


class Residual(Layer):
    """y = x + f(x), f some layers, the first of which does not work in place, as x is needed (He et al., 2016)."""

    def __init__(self, *layers):
        if not layers or layers[0].in_place:
            given = f"begins with {type(layers[0]).__name__}" if layers else "has no layers"
            raise InputError(f"a Residual {given}; allowed: one or more, the first not working in place")
        self.layers = layers

    def forward(self, x, mode):
        y = x
        for layer in self.layers:
            y = layer.forward(y, mode)
        if y.shape != x.shape:
            raise InputError(f"a Residual makes {y.shape[1:]} of {x.shape[1:]}; allowed: the same shape")
        y += x
        return y

    def backward(self, delta):
        through = delta.copy()
        for layer in reversed(self.layers):
            through = layer.backward(through)
        through += delta
        return through


class Stack(Network):
    """A network of layers for inputs x of one shape, (784,) or (28, 28, 1): the last output is the logits.

    As in Network, uint8 images are scaled to [0, 1], and all parameters are views into `theta`: W of all layers, then
    v, and after these n_parameters the layers' state. Raises InputError if a layer does not fit the one before, is
    given twice or belongs to another network, or if the last output is not (batch, n_out).
    """

    def __init__(self, layers, shape, rng=None, dtype=np.float32):
        self.layers = list(layers)
        self.shape = tuple(number("a side in shape", side, int, "[1, inf)") for side in shape)
        self.mode = "test"
        self.every = _every(self.layers)
        _check_layers(self.every)
        matrices, vectors, remembered = _shapes(self.every)
        self.shapes = matrices + vectors + remembered
        self.n_weights = sum(map(math.prod, matrices))
        self.n_parameters = self.n_weights + sum(map(math.prod, vectors))
        self.theta = np.zeros(self.n_parameters + sum(map(math.prod, remembered)), floating(dtype))
        self.gradient = np.zeros_like(self.theta)
        self._scratch = np.empty(self.n_weights, self.theta.dtype)
        rng = generator(rng)
        self._share_out()
        self.layers[0].first = True
        self.sizes = [math.prod(self.shape)]
        try:
            for layer in self.every:
                layer.begin(rng)
            self.check_views()
            z = self._through(np.zeros((1, *self.shape), self.theta.dtype))
            if z.ndim != 2:
                raise InputError(f"the last layer makes {z.shape[1:]} of an input; allowed: (n_out,), as Dense does")
            self.sizes.append(z.shape[1])
        except BaseException:  # the layers are free for another network
            self.layers[0].first = False
            for layer in self.every:
                del layer.W
            raise

    def _share_out(self):
        """Give each layer its views into theta and gradient."""
        parts, gradients = iter(self.parts(self.theta)), iter(self.parts(self.gradient))
        for layer in self.every:
            layer.W = [next(parts) for _ in layer.matrices]
            layer.dW = [next(gradients) for _ in layer.matrices]
        for layer in self.every:
            layer.v = [next(parts) for _ in layer.vectors]
            layer.dv = [next(gradients) for _ in layer.vectors]
        for layer in self.every:
            layer.state = [next(parts) for _ in layer.remembered]

    def _through(self, a):
        """Return what the layers make of a (batch, *shape). Raises InputError, naming the layer, where one fails."""
        for k, layer in enumerate(self.layers, 1):
            which = f"layer {k}, a {type(layer).__name__}, is given {a.shape[1:]}"
            rows = a.shape[:1]
            try:
                a = layer.forward(a, self.mode)
            except (ValueError, TypeError, LookupError, AttributeError) as error:  # one of our own, or of a user's
                raise InputError(f"{which}: {error}") from error
            if not isinstance(a, np.ndarray) or a.shape[:1] != rows or a.dtype != self.theta.dtype:
                allowed = f"an array of {self.theta.dtype}, with a row for each of the batch"
                raise InputError(f"{which} and returns {shown(a)}; allowed: {allowed}")
        return a

    def __reduce__(self):
        return Stack, (copy.deepcopy(self.layers), self.shape, None, self.theta.dtype), self.theta

    def description(self):
        """Return what a file needs, beside theta, to make a network of the same layers: named arrays."""
        return {"layers": json.dumps([layer.description() for layer in self.layers]), "shape": self.shape}

    def forward(self, x):
        """Return the logits (batch, n_out) of x (batch, ...), which has the network's dtype or is uint8."""
        x = as_array("x", x)
        if self.mode not in MODES:
            raise InputError(f"mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        if x.dtype != np.uint8 and not (x.dtype == self.theta.dtype and np.isfinite(x).all()):
            own = self.theta.dtype
            raise InputError(f"x is {x.dtype}; allowed: uint8, or finite numbers of the network's own {own}")
        shapes = dict.fromkeys([(self.sizes[0],), self.shape])
        if x.shape[1:] not in shapes:
            allowed = " or ".join(f"(n, {', '.join(map(str, shape))})" for shape in shapes)
            raise InputError(f"x is {x.shape}; allowed: {allowed}")
        if self.mode == "test" and len(x) > 100:
            return np.concatenate([self.forward(x[i : i + 100]) for i in range(0, len(x), 100)])
        self._ready = self.mode == "train"
        a = np.multiply(x, 1 / 255 if x.dtype == np.uint8 else 1, dtype=self.theta.dtype)
        a = a.reshape(len(x), *self.shape)
        return self._through(a).copy()  # as a layer may keep its output, and the logits are the caller's

    def backward(self, delta):
        """Fill `gradient` from dJ/d(logits), once after each `forward` in mode "train", for its x.

        Raises InputError after any other, as the layers have then kept something else.
        """
        if not self._ready:
            raise InputError("backward does not follow a forward in mode 'train'; allowed: once after each")
        self._ready = False
        for k, layer in reversed([*enumerate(self.layers, 1)]):
            delta = layer.backward(delta)
            if k > 1 and not isinstance(delta, np.ndarray):
                which = f"backward of layer {k}, a {type(layer).__name__},"
                raise InputError(f"{which} returns {shown(delta)}; allowed: dJ/dx, an array of the shape of its input")
        self.check_views()

    def check_views(self):
        """Raise InputError if a layer has put a new array in the place of one that it was given to fill."""
        for layer in self.every:
            for part in (*layer.W, *layer.v, *layer.state, *layer.dW, *layer.dv):
                if part.base is not self.theta and part.base is not self.gradient:
                    allowed = "numbers put into these arrays, as by self.v[0][:] = 1"
                    raise InputError(f"a {type(layer).__name__} replaces its W, v, dW, dv or state; allowed: {allowed}")

    def descend(self, x, y, loss, weight_decay):
        """Do what Network.descend does, in mode "train"."""
        mode, self.mode = self.mode, "train"
        try:
            return super().descend(x, y, loss, weight_decay)
        finally:
            self.mode = mode

    def calibrate(self, x):
        """Set the state of batch norm to the means over the inputs x, 100 at a time, under the present weights."""
        if len(x) == 0:
            raise InputError("x has no inputs; allowed: one or more")
        for layer in self.every:
            layer.rows = 0
        self.mode = "calibrate"
        try:
            for i in range(0, len(x), 100):
                self.forward(x[i : i + 100])
        finally:
            self.mode = "test"


def _every(layers):
    """List all layers, with those inside others in place of these."""
    found = []
    for layer in layers:
        found += _every(layer.layers) if hasattr(layer, "layers") else [layer]
    return found


def _check_layers(layers):
    """Raise InputError unless there are layers, each of them once, and none of another network."""
    if not layers:
        raise InputError("layers is empty; allowed: one or more")
    for k, layer in enumerate(layers):
        name = type(layer).__name__
        if not isinstance(layer, Layer):
            raise InputError(f"layers holds a {name}; allowed: {', '.join(LAYERS)}")
        if hasattr(layer, "W") or any(layer is other for other in layers[:k]):
            raise InputError(f"a {name} is given twice, or belongs to another network; allowed: a new one")


def _shapes(layers):
    """List the shapes of all W, of all v, of all state."""
    return [
        [shape for layer in layers for shape in getattr(layer, kind)] for kind in ("matrices", "vectors", "remembered")
    ]


def _described(name, arguments, options):
    """Make the layer of a description, and the layers within it."""
    if name not in LAYERS:
        raise InputError(f"a layer is {name!r}; allowed: {', '.join(LAYERS)}; your own once its class is defined")
    arguments = [_described(*one) if _is_description(one) else one for one in arguments]
    return LAYERS[name](*arguments, **options)


def _is_description(value):
    """Tell a layer's description, [name, arguments, options], from an argument that is a list."""
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[2], dict)


def _from_description(layers, shape, theta):
    """Make the Stack of a description, for a theta that is about to be put into it."""
    layers = [_described(*one) for one in json.loads(str(layers))]
    numbers = sum(math.prod(one) for kind in _shapes(_every(layers)) for one in kind)
    if numbers > theta.size:  # before any memory is taken for them
        raise ValueError(f"its layers have {numbers} numbers, its theta {theta.size}")
    return Stack(layers, tuple(shape.ravel().tolist()), np.random.default_rng(0), theta.dtype)


LOADERS["Stack"] = _from_description
