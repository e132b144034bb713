"""The steps of an epoch in one compiled function (Numba, float32): the mathematics of helpers.py, in its order.

train(..., backend="compiled") asks for it. It works on the network's own theta and gradient and on the optimiser's own
state, so either backend can resume a checkpoint of the other. The matrix products are those of NumPy's own BLAS.

FUNCTIONS, LOSSES and STEPS map what helpers.py computes with to its compiled twin, function by function: an entry that
a user added to ACTIVATIONS, LOSSES or OPTIMIZERS has none, so its training runs in NumPy, and a warning says so.
To add a compiled optimiser, write its loop over theta beside its equation, and add one line to STEPS.
"""

import ctypes
import math
import os
import tempfile
import warnings
from collections import namedtuple
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

import helpers
from helpers import InputError

try:
    import fcntl
except ImportError:  # on Windows, where processes may compile side by side
    fcntl = None
try:
    import llvmlite.binding
    import numba
    from numba.core import types
    from numba.core.types import float32, float64, int64, void
except ImportError:
    raise InputError("Numba is not installed; to train compiled: pip install -r requirements-fast.txt") from None


# ------------------------------------------------------------------------------------------------------------- compiler

# the numbers of a Config that optimisers use, under their names there
Settings = namedtuple("Settings", "learning_rate momentum beta beta1 beta2 epsilon")

VECTOR = float32[::1]
MATRIX = float32[:, ::1]  # (batch, width), or W (n_in, n_out)
INTEGERS = types.Array(int64, 1, "C", readonly=True)
IMAGES = types.Array(types.uint8, 2, "C", readonly=True)
SETTINGS = types.NamedUniTuple(float64, len(Settings._fields), Settings)

# A loop uses the processor's vectors only if divisions are not checked; a product and a sum may be one instruction,
# and x / c may be x * (1 / c). Infinities and NaN keep their meaning: they show a training that diverges.
FAST = {"contract", "arcp", "nsz"}
ZERO, ONE = float32(0), float32(1)  # a number of Python's would turn what it meets into float64
KEPT_FOR_THIS_PROCESS = []


def cache_folder():
    """Return a folder for compiled code: beside this file, in the user's cache, or one that ends with this process."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    for folder in [chosen] if chosen else [Path(__file__).parent / "__pycache__", os.path.expanduser("~/.cache/numba")]:
        try:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            return str(folder)
        except OSError:
            continue
    KEPT_FOR_THIS_PROCESS.append(tempfile.TemporaryDirectory())
    os.environ["NUMBA_CACHE_DIR"] = KEPT_FOR_THIS_PROCESS[0].name  # where the processes that this one starts find it
    return KEPT_FOR_THIS_PROCESS[0].name


CACHE = cache_folder()


@contextmanager
def alone():
    """Lock the cache: a process that compiles is the only one, and the others then read what it wrote."""
    before = numba.config.CACHE_DIR
    with open(os.path.join(CACHE, "engine.lock"), "w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        numba.config.CACHE_DIR = CACHE
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


def compiled(signature, *flags):
    """Compile a function for arguments of these types, now, or read it from the cache."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": FAST.union(flags)}

    def compile_now(function):
        with alone(), warnings.catch_warnings():
            warnings.simplefilter("ignore", numba.NumbaExperimentalFeatureWarning)  # functions as arguments
            try:
                return numba.njit(signature, cache=True, **options)(function)
            except Exception:  # a full disk or a damaged file: the cache is a help, not a need
                return numba.njit(signature, **options)(function)

    return compile_now


# ----------------------------------------------------------------------------------------------------- matrix products

ROWS = 101  # CblasRowMajor
PLAIN, TRANSPOSED = 111, 112  # CblasNoTrans, CblasTrans
DEPTH = 200  # terms at once: OpenBLAS can take twice as long for more, so a longer product is the sum of several


def find_sgemm():
    """Return the address of cblas_sgemm in the BLAS that NumPy is linked to. Raises InputError if there is none."""
    library = ctypes.CDLL(np._core._multiarray_umath.__file__)
    for name in ("scipy_cblas_sgemm64_", "cblas_sgemm64_", "cblas_sgemm$NEWLAPACK$ILP64", "cblas_sgemm"):
        if hasattr(library, name):
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    raise InputError("NumPy's BLAS has no cblas_sgemm to call; to train compiled: pip install --force-reinstall numpy")


llvmlite.binding.add_symbol("engine_sgemm", find_sgemm())
# all integers are passed with 64 bits: a BLAS that takes 32 reads their lower half
sgemm = types.ExternalFunction("engine_sgemm", void(*[int64] * 6, float32, *[int64] * 4, float32, int64, int64))


@compiled(void(MATRIX, int64, MATRIX, int64, float32, MATRIX))
def product(A, op_A, B, op_B, beta, C):
    """C <- op_A(A) op_B(B) + beta C, each op PLAIN or TRANSPOSED."""
    m, n = C.shape
    k, step_a = (A.shape[0], A.shape[1]) if op_A == TRANSPOSED else (A.shape[1], 1)
    step_b = 1 if op_B == TRANSPOSED else B.shape[1]
    a = A.ctypes.data
    b = B.ctypes.data
    c = C.ctypes.data
    pieces = -(-k // DEPTH)
    depth = -(-k // pieces)
    for start in range(0, k, depth):
        some = min(depth, k - start)
        sgemm(ROWS, op_A, op_B, m, n, some, ONE, a, A.shape[1], b, B.shape[1], beta, c, n)
        a += 4 * some * step_a  # bytes
        b += 4 * some * step_b
        beta = ONE


# ---------------------------------------------------------------------------------------------------------- activations
# A pair each: f works in place on z; its derivative, from a = f(z), is multiplied into delta. All come as vectors.

ACTIVATION = void(VECTOR)
DERIVATIVE = void(VECTOR, VECTOR)


@compiled(float32(float32))
def tanh_of(x):
    """tanh(x) = x P(x^2) / Q(x^2) up to |x| = 9.02, from where on float32 rounds it to 1.

    P and Q are fitted by ourselves: test_the_coefficients_of_tanh_are_those_of_our_fit does it again.
    """
    x = float32(9.02) if x > float32(9.02) else float32(-9.02) if x < float32(-9.02) else x  # NaN stays NaN
    y = x * x
    p = float32(1.33187684e-08)
    p = p * y + float32(2.05832561e-05)
    p = p * y + float32(3.49402080e-03)
    p = p * y + float32(1.33797064e-01)
    p = p * y + float32(9.99999979e-01)
    q = float32(7.76189314e-07)
    q = q * y + float32(3.28307035e-04)
    q = q * y + float32(2.58710209e-02)
    q = q * y + float32(4.67130216e-01)
    q = q * y + ONE
    a = x * p / q
    return ONE if a > ONE else -ONE if a < -ONE else a  # not 1.0000002


@compiled(ACTIVATION)
def identity(z):
    """f(z) = z."""


@compiled(DERIVATIVE)
def identity_derivative(a, delta):
    """f'(z) = 1."""


@compiled(ACTIVATION)
def sigmoid(z):
    """f(z) = 1 / (1 + exp(-z)) = (1 + tanh(z/2)) / 2."""
    for i in range(z.size):
        z[i] = float32(0.5) + float32(0.5) * tanh_of(float32(0.5) * z[i])


@compiled(DERIVATIVE)
def sigmoid_derivative(a, delta):
    """f'(z) = a (1 - a)."""
    for i in range(a.size):
        delta[i] *= a[i] * (ONE - a[i])


@compiled(ACTIVATION)
def tanh(z):
    """f(z) = tanh(z)."""
    for i in range(z.size):
        z[i] = tanh_of(z[i])


@compiled(DERIVATIVE)
def tanh_derivative(a, delta):
    """f'(z) = 1 - a^2."""
    for i in range(a.size):
        delta[i] *= ONE - a[i] * a[i]


@compiled(ACTIVATION)
def relu(z):
    """f(z) = max(0, z)."""
    for i in range(z.size):
        z[i] = ZERO if z[i] < ZERO else z[i]  # NaN stays NaN


@compiled(DERIVATIVE)
def relu_derivative(a, delta):
    """f'(z) = 1 if a > 0, else 0."""
    for i in range(a.size):
        delta[i] *= float32(a[i] > ZERO)


FUNCTIONS = {
    (helpers.identity, helpers.identity_derivative): (identity, identity_derivative),
    (helpers.sigmoid, helpers.sigmoid_derivative): (sigmoid, sigmoid_derivative),
    (helpers.tanh, helpers.tanh_derivative): (tanh, tanh_derivative),
    (helpers.relu, helpers.relu_derivative): (relu, relu_derivative),
}


# --------------------------------------------------------------------------------------------------------------- losses
# loss(z, y) returns the mean loss of logits z (batch, classes) for labels y (batch,), and leaves dL/dz in z.

LOSS = float32(MATRIX, INTEGERS)


@compiled(types.UniTuple(float32, 2)(MATRIX, int64))
def exponentials(z, i):
    """z_i <- exp(z_i - max z_i), row i of z; return max z_i, and the sum of the new z_i."""
    largest = z[i, 0]
    for k in range(1, z.shape[1]):
        largest = max(largest, z[i, k])
    total = ZERO
    for k in range(z.shape[1]):
        z[i, k] = math.exp(z[i, k] - largest)
        total += z[i, k]
    return largest, total


@compiled(LOSS)
def cross_entropy(z, y):
    """L = mean of -log p_y, with log p_y = z_y - log sum_k exp(z_k);  dL/dz = (p - one_hot(y)) / batch."""
    loss = 0.0
    for i in range(len(y)):
        z_y = z[i, y[i]]
        largest, total = exponentials(z, i)
        loss += math.log(total) - (z_y - largest)
        for k in range(z.shape[1]):
            z[i, k] = (z[i, k] / total - float32(k == y[i])) / float32(len(y))
    return loss / len(y)


@compiled(LOSS)
def mean_squared_error(z, y):
    """L = mean of sum_k e_k^2, e = p - one_hot(y);  dL/dz = 2 p (e - sum_k p_k e_k) / batch, softmax's Jacobian."""
    loss = 0.0
    for i in range(len(y)):
        _, total = exponentials(z, i)
        p_times_e = ZERO
        for k in range(z.shape[1]):
            z[i, k] /= total
            e = z[i, k] - float32(k == y[i])
            loss += e * e
            p_times_e += z[i, k] * e
        for k in range(z.shape[1]):
            e = z[i, k] - float32(k == y[i])
            z[i, k] *= (e - p_times_e) * float32(2 / len(y))
    return loss / len(y)


LOSSES = {helpers.cross_entropy: cross_entropy, helpers.mean_squared_error: mean_squared_error}


# ----------------------------------------------------------------------------------------------------------- optimisers
# step(theta, g, first, second, c, t) updates theta in place. c: the Settings. first, second: the arrays of the state
# that the optimiser in helpers.py hands over, in their order; one it does not have is empty. Moments are kept without
# their factor 1 - beta, as there.

STEP = void(VECTOR, VECTOR, VECTOR, VECTOR, SETTINGS, int64)


@compiled(STEP)
def sgd(theta, g, first, second, c, t):
    """theta <- theta - eta g."""
    eta = float32(c.learning_rate)
    for i in range(theta.size):
        theta[i] -= eta * g[i]


@compiled(STEP)
def momentum(theta, g, u, second, c, t):
    """u <- mu u + g;  theta <- theta - eta u."""
    eta, mu = float32(c.learning_rate), float32(c.momentum)
    for i in range(theta.size):
        u[i] = mu * u[i] + g[i]
        theta[i] -= eta * u[i]


@compiled(STEP)
def nag(theta, g, u, second, c, t):
    """u <- mu u + g;  theta <- theta - eta (g + mu u)."""
    eta, mu = float32(c.learning_rate), float32(c.momentum)
    for i in range(theta.size):
        u[i] = mu * u[i] + g[i]
        theta[i] -= eta * (g[i] + mu * u[i])


@compiled(STEP)
def rmsprop(theta, g, v, second, c, t):
    """v <- beta v + (1 - beta) g^2;  theta <- theta - eta g / (sqrt(v) + epsilon)."""
    root = math.sqrt(1 - c.beta)
    eta = float32(c.learning_rate / root)
    epsilon = float32(c.epsilon / root)
    beta = float32(c.beta)
    for i in range(theta.size):
        v[i] = beta * v[i] + g[i] * g[i]
        theta[i] -= eta * (g[i] / (math.sqrt(v[i]) + epsilon))


@compiled(STEP)
def adam(theta, g, m, v, c, t):
    """m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  m' = m / (1 - beta1^t);  v' = v / (1 - beta2^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)."""
    root = math.sqrt((1 - c.beta2) / (1 - c.beta2**t))
    eta = float32(c.learning_rate * (1 - c.beta1) / (1 - c.beta1**t) / root)
    epsilon = float32(c.epsilon / root)
    beta1 = float32(c.beta1)
    beta2 = float32(c.beta2)
    for i in range(theta.size):
        m[i] = beta1 * m[i] + g[i]
        v[i] = beta2 * v[i] + g[i] * g[i]
        theta[i] -= eta * (m[i] / (math.sqrt(v[i]) + epsilon))


@compiled(STEP)
def nadam(theta, g, m, v, c, t):
    """m, v, v' as in Adam;  m' = beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t);
    theta <- theta - eta m' / (sqrt(v') + epsilon)."""
    root = math.sqrt((1 - c.beta2) / (1 - c.beta2**t))
    g_scale = (1 - c.beta1) / (1 - c.beta1**t)
    m_scale = float32((1 - c.beta1) * c.beta1 / (1 - c.beta1 ** (t + 1)) / g_scale)
    eta = float32(c.learning_rate * g_scale / root)
    epsilon = float32(c.epsilon / root)
    beta1, beta2 = float32(c.beta1), float32(c.beta2)
    for i in range(theta.size):
        m[i] = beta1 * m[i] + g[i]
        v[i] = beta2 * v[i] + g[i] * g[i]
        theta[i] -= eta * ((m_scale * m[i] + g[i]) / (math.sqrt(v[i]) + epsilon))


STEPS = {
    helpers.sgd: sgd,
    helpers.momentum: momentum,
    helpers.nag: nag,
    helpers.rmsprop: rmsprop,
    helpers.adam: adam,
    helpers.nadam: nadam,
}


# ------------------------------------------------------------------------------------------------------------ the epoch


@compiled(void(IMAGES, INTEGERS, MATRIX))
def gather(images, rows, x):
    """x <- the images of these rows, scaled to [0, 1]."""
    for i in range(rows.size):
        row = rows[i]
        for j in range(x.shape[1]):
            x[i, j] = float32(images[row, j]) * float32(1 / 255)


@compiled(void(VECTOR, MATRIX))
def fill_rows(b, z):
    """Set each row of z to b."""
    for i in range(z.shape[0]):
        for j in range(b.size):
            z[i, j] = b[j]


@compiled(void(MATRIX, VECTOR))
def sum_rows(delta, db):
    """db <- the sum of the rows of delta, in float64, since many rows added up in float32 lose digits."""
    sums = np.zeros(db.size)
    for i in range(delta.shape[0]):
        for j in range(db.size):
            sums[j] += delta[i, j]
    for j in range(db.size):
        db[j] = sums[j]


@compiled(float32(VECTOR, VECTOR, float32), "reassoc")  # the order of the sum is free, or no vectors are used
def decay_weights(W, dW, decay):
    """dW <- decay W, to which backprop adds; return sum W^2."""
    squares = ZERO
    for i in range(W.size):
        dW[i] = decay * W[i]
        squares += W[i] * W[i]
    return squares


@compiled(int64(MATRIX, INTEGERS))
def count_right(z, y):
    """Count the rows of z whose largest number, the first of equals, is in column y."""
    right = 0
    for i in range(len(y)):
        best = 0
        for k in range(1, z.shape[1]):
            if z[i, k] > z[i, best]:
                best = k
        right += best == y[i]
    return right


@compiled(types.Tuple((types.List(MATRIX), types.List(VECTOR)))(VECTOR, INTEGERS))
def parts(vector, sizes):
    """Cut a vector like theta into [W_1, ..., W_L] and [b_1, ..., b_L] without copying."""
    Ws = []
    bs = []
    start = 0
    for n_in, n_out in zip(sizes[:-1], sizes[1:]):
        Ws.append(vector[start : start + n_in * n_out].reshape(n_in, n_out))
        start += n_in * n_out
    for n_out in sizes[1:]:
        bs.append(vector[start : start + n_out])
        start += n_out
    return Ws, bs


EPOCH = types.UniTuple(float64, 3)(
    *(types.FunctionType(signature) for signature in (ACTIVATION, DERIVATIVE, LOSS, STEP)),
    *(VECTOR, VECTOR, VECTOR, VECTOR, INTEGERS, SETTINGS, float64, int64, IMAGES, INTEGERS, INTEGERS, int64),
)


@compiled(EPOCH)
def take_steps(f, derivative, loss, step, theta, g, first, second, sizes, c, decay, t, images, labels, rows, batch):
    """Take a step for each batch of these rows of the images, from step t + 1 on; labels has a label for each row.

    z_l = a_{l-1} W_l + b_l;  a_l = f(z_l);  dJ/dW_l = decay W_l + a_{l-1}^T delta_l;  dJ/db_l = sum of delta_l's rows;
    delta_{l-1} = (delta_l W_l^T) * f'(z_{l-1}).
    Returns the losses of all images, summed, how many were right, and the last J; it ends where J is not finite.
    """
    L = sizes.size - 1
    (W, b), (dW, db) = parts(theta, sizes), parts(g, sizes)
    weights = theta[: theta.size - sizes[1:].sum()]
    buffers = [(np.empty((batch, size), np.float32), np.empty((batch, size), np.float32)) for size in sizes]
    total, right, J = 0.0, 0, 0.0
    for start in range(0, rows.size, batch):
        y = labels[start : start + batch]
        a = [both[0][: y.size] for both in buffers]
        deltas = [both[1][: y.size] for both in buffers]
        gather(images, rows[start : start + batch], a[0])
        for l in range(L):
            fill_rows(b[l], a[l + 1])
            product(a[l], PLAIN, W[l], PLAIN, 1, a[l + 1])
            if l + 1 < L:
                f(a[l + 1].reshape(-1))
        right += count_right(a[L], y)
        J = loss(a[L], y)
        total += J * y.size
        if decay > 0:
            J += decay / 2 * decay_weights(weights, g, decay)
        if not math.isfinite(J):
            break
        deltas[L] = a[L]  # where the loss has left it
        for l in range(L - 1, -1, -1):
            product(a[l], TRANSPOSED, deltas[l + 1], PLAIN, decay > 0, dW[l])
            sum_rows(deltas[l + 1], db[l])
            if l > 0:
                product(deltas[l + 1], PLAIN, W[l], TRANSPOSED, 0, deltas[l])
                derivative(a[l].reshape(-1), deltas[l].reshape(-1))
        t += 1
        step(theta, g, first, second, c, t)
    return total, right, J


# ---------------------------------------------------------------------------------------------------- for helpers.train

FLOPS_PER_CALL = 5e9  # some tenths of a second: an interruption is seen between two calls


def compile_steps(config, data, network, state):
    """Return what takes the steps of an epoch for helpers.train, or None, with a warning, if only NumPy can take them.

    state: the arrays of the optimiser, by name, which the steps update in place.
    """
    functions = FUNCTIONS.get((getattr(network, "f", None), getattr(network, "derivative", None)))
    loss = LOSSES.get(helpers.LOSSES[config.loss])
    step = STEPS.get(helpers.OPTIMIZERS[config.optimizer])
    reasons = {
        f"the network is a {type(network).__name__}": type(network) is not helpers.Network,
        f"theta is {network.theta.dtype}": network.theta.dtype != np.float32,
        f"x_train is {data.x_train.dtype}": data.x_train.dtype != np.uint8,
        f"activation {config.activation} has no compiled twin": functions is None,
        f"loss {config.loss} has no compiled twin": loss is None,
        f"optimizer {config.optimizer} has no compiled twin": step is None,
    }
    if why := [reason for reason, holds in reasons.items() if holds]:
        warnings.warn(f"{why[0]}: this training runs in NumPy", stacklevel=4)
        return None
    network.forward(data.x_train[:1])  # raises InputError for images that do not fit, which compiled code cannot see
    c = Settings(*(getattr(config, name) for name in Settings._fields))
    arrays = [network.theta, network.gradient, *state.values()]
    copies = spread([*arrays, *[np.empty(0, np.float32)] * (4 - len(arrays))])
    fixed = *functions, loss, step, *copies, np.array(network.sizes), c
    return partial(_steps, fixed, list(zip(arrays, copies)))


def spread(arrays):
    """Return arrays of the same sizes, each at another offset within a page of memory, at the start of a cache line.

    NumPy puts all large arrays at one offset, and a loop over several of them is then up to three times slower: a load
    waits for a store to another array if their addresses have the last 12 bits in common.
    """
    copies = []
    for k, array in enumerate(arrays):
        memory = np.empty(array.nbytes + 2 * 4096, np.uint8)
        start = -memory.ctypes.data % 4096 + 1024 * k
        copies.append(memory[start : start + array.nbytes].view(array.dtype))
    return copies


def _steps(fixed, pairs, config, data, network, _, order, t):
    """Take a step for each batch of images in this order, after t steps; return the mean loss and the accuracy."""
    batch = min(config.batch_size, len(order))
    images = np.ascontiguousarray(data.x_train)
    labels = data.y_train[order].astype(np.int64)
    rows = batch * max(1, int(FLOPS_PER_CALL / (6 * batch * network.theta.size)))
    total = right = 0
    for array, copy in pairs:
        copy[:] = array
    for i in range(0, len(order), rows):
        some = slice(i, i + rows)
        one = take_steps(*fixed, config.weight_decay, t + i // batch, images, labels[some], order[some], batch)
        total += one[0]
        right += one[1]
        if not math.isfinite(one[2]):
            break
    for array, copy in pairs:
        array[:] = copy
    return (total / len(order), right / len(order)) if math.isfinite(one[2]) else (one[2], 0.0)
