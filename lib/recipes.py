"""Recipes: how a network of lib.layers is trained with every measure of "Towards 95 %", saved, and distilled."""

import json
import math
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from helpers import (
    BLAS,
    Config,
    InputError,
    choice,
    cross_entropy,
    evaluate,
    number,
    one_hot,
)
from lib import tables
from lib.dataset import DATA_DIR
from lib.families import check_labels, make_optimizer
from lib.files import fill, fingerprint, load_checkpoint, locked, read_npz, save_checkpoint, write_npz
from lib.layers import BatchNorm, Convolution, Dense, Dropout, MaxPool, ReLU, Residual, Stack

FOLDER = DATA_DIR / "towards95"  # of stored networks
CACHE = DATA_DIR / "cache"  # of what teachers have answered


@dataclass(frozen=True)
class Recipe:
    """Define one training: its network and every measure taken. A measure that is not named is not taken.

    Raises InputError if a value is not allowed, or would do nothing beside the others.
    """

    dataset: str = "fashion_mnist"
    shuffled: bool = False  # the pixels of all images are put in another order, the same for every image
    network: str = "dense"  # of NETWORKS
    widths: tuple = (256, 256, 256, 256)  # of the hidden layers, or channels of the convolutions
    weight_init: str = "random"  # of dense layers; convolutions have He's
    batch_norm: bool = False  # of dense layers; convolutions always have it
    bottleneck: int = 0  # width of a linear layer before each hidden layer but the first (Lin et al., 2015)
    dropout: float = 0.0  # probability, after each hidden layer
    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 4.22e-4  # the peak of the schedule
    warm_up: float | None = None  # share of all steps in which it rises; then it falls as a cosine. None: constant
    weight_decay: float = 0.0  # lambda of the L2 term
    decoupled_decay: float = 0.0  # lambda in W <- W - eta lambda W (Loshchilov & Hutter, 2019)
    label_smoothing: float = 0.0  # share of the target given to all classes alike (Szegedy et al., 2016)
    flip: bool = False  # half of the images are mirrored
    alternate: bool = False  # those mirrored in one epoch are not in the next, and conversely
    shift: int = 0  # pixels, at most, in both directions
    mix: float = 0.0  # share of the images into which another is mixed, by up to a half (Zhang et al., 2018)
    erase: float = 0.0  # share of the images of which a rectangle is replaced by noise (Zhong et al., 2020)
    noise: float = 0.0  # standard deviation, of pixels from 0 to 1
    average: float = 0.0  # decay factor of the moving average of the weights that is evaluated
    teacher: str = ""  # "NAME-SEED" or several, with "+" between: their mean probabilities are the target, not labels
    temperature: float = 1.0  # of the teacher's probabilities, p^(1/T): above 1 they are softer
    copies: int = 0  # augmented copies of the images, if there is a teacher; else they are augmented anew in each epoch
    after: str = ""  # NAME of a stored network: training begins with the weights of NAME-SEED, not with random ones
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.widths, tuple | list):
            raise InputError(f"widths is {self.widths!r}; allowed: a sequence of widths")
        values = {"widths": tuple(number("a width", width, int, "[1, 10000]") for width in self.widths)}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ALLOWED and f.type is str:
                values[f.name] = choice(f.name, value, ALLOWED[f.name])
            elif f.name in ALLOWED and not (value is None and f.default is None):
                values[f.name] = number(f.name, value, int if f.type is int else float, ALLOWED[f.name])
            elif f.type in (bool, str) and not isinstance(value, f.type):
                raise InputError(f"{f.name} is {value!r}; allowed: {'True, False' if f.type is bool else 'a name'}")
        for name, value in values.items():  # as Python's own numbers, which JSON takes
            object.__setattr__(self, name, value)
        if self.network == "convolutional" and len(self.widths) != 4:
            raise InputError(f"widths is {self.widths}; allowed for a convolutional network: 4 of them")
        if bool(self.teacher) != bool(self.copies):
            raise InputError(f"teacher is {self.teacher!r}, copies is {self.copies}; allowed: both, or neither")
        self._refuse_idle()

    def _refuse_idle(self):
        """Raise InputError for a measure that would do nothing."""
        hidden = len(self.widths) if self.network == "dense" else 0
        works = {  # whether it does, and with what
            "temperature": (self.teacher, "a teacher"),
            "label_smoothing": (not self.teacher, "no teacher"),
            "alternate": (self.flip and not self.teacher, "flip, and no teacher"),
            "dropout": (hidden > 0, "a dense network of hidden layers"),
            "bottleneck": (hidden > 1, "a dense network of two hidden layers or more"),
        }
        for name, (here, where) in works.items():
            if getattr(self, name) != getattr(Recipe, name) and not here:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: only with {where}")


def dense(recipe):
    """Make the layers of the recipe's widths: matrix, batch norm, ReLU, dropout; return them and the shape of x."""
    layers = []
    n_in = 784
    for width in recipe.widths:
        if layers and recipe.bottleneck:
            layers.append(Dense(n_in, recipe.bottleneck, recipe.weight_init))
            n_in = recipe.bottleneck
        layers.append(Dense(n_in, width, recipe.weight_init))
        if recipe.batch_norm:
            layers.append(BatchNorm(width))
        layers.append(ReLU())
        if recipe.dropout:
            layers.append(Dropout(recipe.dropout))
        n_in = width
    return layers, (784,)


def convolutional(recipe):
    """Make a convolution to widths[0] channels; per further width a convolution, 2 x 2 max pooling, a residual one.

    Four widths leave 3 x 3 pixels, of which the last layer takes the maximum. Returns the layers and the shape of x.
    """
    widths = recipe.widths
    layers = [Convolution(1, widths[0], pad=0), BatchNorm(widths[0]), ReLU()]
    for n_in, n_out in zip(widths, widths[1:]):
        layers += [Convolution(n_in, n_out), MaxPool(2), BatchNorm(n_out), ReLU()]
        layers += [Residual(Convolution(n_out, n_out), BatchNorm(n_out), ReLU())]
    return [*layers, MaxPool(3)], (28, 28, 1)


NETWORKS = {"dense": dense, "convolutional": convolutional}

SHARED = ("dataset", "weight_init", "optimizer", "learning_rate", "seed")  # with Config, to the bound
ALLOWED = {f.name: f.metadata["allowed"] for f in fields(Config) if f.name in SHARED} | {
    "network": NETWORKS,
    "bottleneck": "[0, 10000]",
    "dropout": "[0, 1)",
    "epochs": "[1, 1000]",
    "batch_size": "[1, 60000]",
    "warm_up": "[0, 1)",
    "weight_decay": "[0, 1]",
    "decoupled_decay": "[0, 1]",
    "label_smoothing": "[0, 1]",
    "shift": "[0, 27]",
    "mix": "[0, 1]",
    "erase": "[0, 1]",
    "noise": "[0, 10]",
    "average": "[0, 1)",
    "temperature": "(0, 100]",
    "copies": "[0, 1000]",
}


def build(recipe, dtype=np.float32):
    """Build the Stack of a recipe, its weights drawn from its seed."""
    layers, shape = NETWORKS[recipe.network](recipe)
    layers.append(Dense((shape[0], *recipe.widths)[-1], 10, recipe.weight_init))
    return Stack(layers, shape, np.random.default_rng([recipe.seed, 0]), dtype)


def augment(x, recipe, rng, mirrored=None):
    """Mirror, shift and disturb images x (n, 784) uint8 at random, partly in place; with noise they become float32.

    mirrored: which images to mirror, (n,) bool; if None, each with probability 1/2.
    """
    n = len(x)
    x = x.reshape(n, 28, 28)
    if recipe.flip:
        mirrored = rng.random(n) < 0.5 if mirrored is None else mirrored
        x[mirrored] = x[mirrored, :, ::-1]
    if recipe.shift:
        s = recipe.shift
        x = np.pad(x, ((0, 0), (s, s), (s, s)))
        i, j = (np.arange(28) + rng.integers(0, 2 * s + 1, (n, 1)) for _ in range(2))
        x = x[np.arange(n)[:, None, None], i[:, :, None], j[:, None, :]]
    if recipe.erase:
        erased = rectangles(n, rng) & (rng.random((n, 1, 1)) < recipe.erase)
        x[erased] = rng.integers(0, 256, np.count_nonzero(erased), np.uint8)
    x = x.reshape(n, 784)
    if recipe.mix:
        share = np.where(rng.random((n, 1)) < recipe.mix, rng.uniform(0, 0.5, (n, 1)), 0).astype(np.float32)
        x = np.rint((1 - share) * x + share * x[rng.permutation(n)]).astype(np.uint8)
    if recipe.noise:
        x = x * np.float32(1 / 255) + rng.standard_normal(x.shape, np.float32) * np.float32(recipe.noise)
    return x


def rectangles(n, rng):
    """Draw a rectangle in each of n images: True inside, (n, 28, 28). Area 2 to 25 %, height / width 1/3 to 3."""
    side = 28 * np.sqrt(rng.uniform(0.02, 0.25, n))
    ratio = np.sqrt(3 ** rng.uniform(-1, 1, n))
    inside = []
    for length in (side * ratio, side / ratio):
        length = np.rint(length)
        start = rng.integers(0, 29 - length)
        pixel = np.arange(28) - start[:, None]
        inside.append((pixel >= 0) & (pixel < length[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def soft_cross_entropy(z, y, share, other):
    """Return the mean cross-entropy with target (1 - s) one_hot(y) + s q, and its gradient with respect to z (n, K).

    It is the plain one + s sum_k (one_hot(y) - q)_k z_k, whose gradient is s (one_hot(y) - q). share: s; other: q, in
    label smoothing 1/K, or a teacher's probabilities (n, K) (Hinton, Vinyals & Dean, 2015).
    """
    loss, delta = cross_entropy(z, y)
    if share:
        away = (one_hot(y, z.shape[1]) - other) * (share / len(y))
        loss += float((away * z).sum())
        delta += away.astype(delta.dtype)
    return loss, delta


def distillation_set(recipe, data, k):
    """Return the training images, augmented as copy k, x (n, 784), and soft targets p (n, 10): the teachers' mean.

    This is what knowledge distillation trains on (Hinton et al., 2015).
    """
    x = augment(data.x_train.copy(), recipe, np.random.default_rng([k, 7]))
    p = np.mean([teacher_probabilities(name, x) for name in recipe.teacher.split("+")], axis=0)
    if recipe.temperature != 1:
        p **= 1 / recipe.temperature
        p /= p.sum(axis=1, keepdims=True)
    return x, p


def teacher_probabilities(name, x):
    """Return the probabilities (n, 10) that the stored network NAME-SEED gives for images x.

    As it takes the network minutes, they are kept in CACHE under the checksums of network and images.
    """
    kept = CACHE / f"{name}-{_checksum(name):08x}-{crc32(x):08x}.npz"
    p = np.empty((len(x), 10), np.float32)
    try:
        fill(kept, "p", p, read_npz(kept, "a teacher's answers", {"p"})["p"])
    except InputError:  # none yet, damaged, or of other images
        p = load_network(FOLDER / f"{name}.npz").predict(x)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_npz(kept, p=p)
        except OSError as error:
            warnings.warn(f"{kept} cannot be written ({error.strerror}): the teacher will be asked again", stacklevel=2)
    return p


def _checksum(name):
    path = FOLDER / f"{name}.npz"
    try:
        return crc32(path.read_bytes())
    except OSError as error:
        raise InputError(f"the teacher {path} cannot be read: {error.strerror}; train it first") from None


def shuffle(data):
    """Put the pixels of all images in another order, the same for all."""
    order = np.random.default_rng(0).permutation(784)
    images = {name: getattr(data, name) for name in ("x_train", "x_val", "x_test")}
    return replace(data, **{name: x.take(order, axis=1) for name, x in images.items() if x is not None})


def rate(recipe, progress):
    """Return the learning rate once a share `progress` of the training is done."""
    if recipe.warm_up is None:
        return recipe.learning_rate
    if progress < recipe.warm_up:
        return recipe.learning_rate * progress / recipe.warm_up
    return recipe.learning_rate * (1 + math.cos(math.pi * (progress - recipe.warm_up) / (1 - recipe.warm_up))) / 2


@BLAS.wrap(limits=1, user_api="blas")
def train(recipe, data, checkpoint=None, on_epoch=None):
    """Train by a recipe; return the network as it is evaluated after the last epoch, and the history, a row per epoch.

    A row has epoch, train_loss (smoothed, of the images as augmented), train_accuracy, val_loss, val_accuracy, seconds.
    checkpoint: a file written after each epoch; if it exists, training resumes from there, to the same bits.
    Raises InputError for images that are not uint8 (n, 784), labels that are not theirs, a checkpoint of another
    training, and a network to begin with that is missing or has other layers; FloatingPointError if the loss is not
    finite.
    """
    _check_data(data)
    network = _first_network(recipe)
    if recipe.shuffled:
        data = shuffle(data)
    average = network.theta.copy()
    step, state = make_optimizer(network.theta, Config(optimizer=recipe.optimizer))
    arrays = {"theta": network.theta, "average": average}
    arrays |= {f"optimizer.{name}": array for name, array in state.items()}
    training = checkpoint and _fingerprint(recipe, data, network)
    history = []
    with locked(checkpoint) if checkpoint else nullcontext():
        if checkpoint and Path(checkpoint).exists():
            history = load_checkpoint(checkpoint, training, arrays, asdict(Recipe()))
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            began = time.perf_counter()
            row = {"epoch": epoch} | _epoch(recipe, data, network, average, step, epoch)
            last = network.theta.copy()
            _settle(recipe, data, network, average)
            row["val_loss"], row["val_accuracy"] = evaluate(network, data.x_val, data.y_val)
            if not math.isfinite(row["val_loss"]):
                raise FloatingPointError(f"the loss of validation is not finite in epoch {epoch}")
            network.theta[:] = last
            row["seconds"] = time.perf_counter() - began
            history.append(row)
            if checkpoint:
                save_checkpoint(checkpoint, training, arrays, history)
            if on_epoch:
                on_epoch(row)
    _settle(recipe, data, network, average)
    return network, history


def _first_network(recipe):
    """Build the network with which a training begins, its weights drawn from its seed, or those of `after`."""
    network = build(recipe)
    if recipe.after:
        path = FOLDER / f"{recipe.after}-{recipe.seed}.npz"
        stored = load_network(path)
        if stored.shapes != network.shapes:
            raise InputError(f"the layers of {path} are {stored.shapes}; allowed: {network.shapes}")
        network.theta[:] = stored.theta
    return network


def _check_data(data):
    """Raise InputError unless the images of training and validation are uint8 (n, 784) and have labels from 0 to 9."""
    for part in ("train", "val"):
        x = getattr(data, f"x_{part}")
        if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != 784:
            raise InputError(f"x_{part} is {x.dtype} {x.shape}; allowed: uint8 (n, 784)")
        check_labels(f"y_{part}", getattr(data, f"y_{part}"), len(x), 10)


def _fingerprint(recipe, data, network):
    """Return everything that a training depends on, including the number of its epochs and its teachers' weights."""
    teachers = {name: _checksum(name) for name in recipe.teacher.split("+") if name}
    return {**fingerprint(recipe, data, network), "epochs": recipe.epochs, "teachers": teachers}


def _settle(recipe, data, network, average):
    """Turn a network in training into the one that is evaluated: averaged weights if asked, batch norm calibrated."""
    if recipe.average:
        network.theta[:] = average
    network.calibrate(data.x_train[:5000])


def _epoch(recipe, data, network, average, step, epoch):
    """Take a step for each batch of the training images; return train_loss and train_accuracy, means over the epoch."""
    n = len(data.y_train)
    steps = -(-n // recipe.batch_size)
    weights = network.theta[: network.n_weights]
    total, right = 0.0, 0
    network.mode = "train"
    for t, (x, y, share, other) in enumerate(_batches(recipe, data, epoch), (epoch - 1) * steps + 1):
        z = network.forward(x)
        loss, delta = soft_cross_entropy(z, y, share, other)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite in epoch {epoch}")
        network.backward(delta)
        network.gradient[: network.n_weights] += np.float32(recipe.weight_decay) * weights
        eta = rate(recipe, t / (steps * recipe.epochs))
        weights *= np.float32(1 - eta * recipe.decoupled_decay)
        step(network.gradient, t, eta, loss)
        if recipe.average:
            average += np.float32(1 - recipe.average) * (network.theta - average)
        total += loss * len(y)
        right += int(np.count_nonzero(z.argmax(axis=1) == y))
    return {"train_loss": total / n, "train_accuracy": right / n}


def _batches(recipe, data, epoch):
    """Yield the batches of an epoch: images, labels, and share and kind of what is mixed into their targets."""
    n = len(data.y_train)
    rng = np.random.default_rng([recipe.seed, epoch, int(recipe.after != "")])  # other batches than before
    order = rng.permutation(n)
    mirrored = (np.random.default_rng([recipe.seed, 0, 1]).random(n) < 0.5) ^ (epoch % 2 == 0)
    if recipe.teacher:
        images, answers = distillation_set(recipe, data, epoch % recipe.copies)
    for k in range(0, n, recipe.batch_size):
        some = order[k : k + recipe.batch_size]
        y = data.y_train[some]
        if recipe.teacher:
            yield images[some], y, 1, answers[some]
        else:
            x = augment(data.x_train[some], recipe, rng, mirrored[some] if recipe.alternate else None)
            yield x, y, recipe.label_smoothing, 1 / 10


# ------------------------------------------------------------------------------------------------------ save and resume


def save_network(path, recipe, network):
    """Write recipe, theta (float16: half the size, and no accuracy less) and the statistics of batch norm.

    Raises InputError, and writes nothing, for numbers that are not finite, or not in float16.
    """
    theta, statistics = np.split(network.theta, [network.n_parameters])
    with np.errstate(over="ignore"):
        theta = theta.astype(np.float16)
    statistics = statistics.astype(np.float32)
    _check_finite(path, theta, statistics)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(path, recipe=json.dumps(asdict(recipe)), theta=theta, statistics=statistics)


def _check_finite(path, theta, statistics):
    if not (np.isfinite(theta).all() and np.isfinite(statistics).all()):
        raise InputError(f"{path}: theta is not finite; allowed: finite numbers, weights in float16")


def load_network(path):
    """Return the Stack that `save_network` wrote. Raises InputError if the file is missing, damaged or foreign."""
    saved = read_npz(path, "a network of towards95.py", {"recipe", "theta", "statistics"})
    try:
        recipe = Recipe(**{k: tuple(v) if k == "widths" else v for k, v in json.loads(str(saved["recipe"])).items()})
        network = build(recipe)
        theta, statistics = np.split(network.theta, [network.n_parameters])
        fill(path, "theta", theta, saved["theta"].astype(np.float32))
        fill(path, "statistics", statistics, saved["statistics"])
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, MemoryError) as error:
        raise InputError(f"{path} is not a network of towards95.py: {error}") from None
    _check_finite(path, theta, statistics)
    return network


# --------------------------------------------------------------------------------------------------------------- tables

NOW = "as the code stands"  # `made` of a row, unless the code has changed since: then it says before what it was made
MADE = tables.TEXT._replace(optional=True, young=True)  # "earlier" in a table from before it was there
RESULTS = {
    "seed": tables.COUNT,
    "parameters": tables.COUNT,
    "epochs": tables.COUNT,
    "train_accuracy": tables.ACCURACY,
    "val_accuracy": tables.ACCURACY,
}
COLUMNS = {  # of the ablation and its like
    "base": tables.TEXT,
    "measure": tables.TEXT,
    **RESULTS,
    "best_val_accuracy": tables.ACCURACY,
    "seconds": tables.SECONDS,
    "machine": tables.TEXT,
    "val_accuracy_history": tables.series(tables.ACCURACY),
    "made": MADE,
}
FINAL_COLUMNS = {  # of the final networks
    "name": tables.TEXT,
    **RESULTS,
    "test_accuracy": tables.ACCURACY,
    "test_accuracy_flips": tables.optional(tables.ACCURACY),
    "seconds": tables.SECONDS,
    "machine": tables.TEXT,
    "val_accuracy_history": tables.series(tables.ACCURACY),
    "made": MADE,
}


def load_table(path):
    """Read a table of towards95.py: final.csv, or one of trainings by base and measure.

    Raises InputError if it is missing, damaged or of another kind.
    """
    final = Path(path).name == "final.csv"
    columns, key = (FINAL_COLUMNS, ["name", "seed"]) if final else (COLUMNS, ["base", "measure", "seed"])
    table = tables.read_table(path, columns, _check, unique=key)
    return table.assign(made=table.made.fillna("earlier"))


def newest(table):
    """Return a table of final networks without the rows that the code as it stands has begun to replace."""
    now = table.made == NOW
    return table[now | ~table.name.isin(table.name[now])]


def _check(row):
    """Raise InputError for a row that contradicts itself."""
    accuracies = row["val_accuracy_history"]
    if len(accuracies) != row["epochs"] or not accuracies:
        allowed = f"one for each of {row['epochs']} epochs"
        raise InputError(f"val_accuracy_history has {len(accuracies)} items; allowed: {allowed}")
    stored = {"val_accuracy": accuracies[-1], "best_val_accuracy": max(accuracies)}
    tables.check_same(row, {name: value for name, value in stored.items() if name in row})


# --------------------------------------------------------------------------------------------------- on the test images


def mirrored(x):
    """Mirror images (n, 784) left to right."""
    return np.ascontiguousarray(x.reshape(-1, 28, 28)[:, :, ::-1]).reshape(x.shape)


def probabilities(name, folder=FOLDER):
    """Return what the network NAME-SEED gave for the test images, as they are and mirrored (digits: as they are)."""
    path = folder / f"{name}-test.npz"
    p = read_npz(path, "what towards95.py has written", {"p"})["p"]
    fits = p.dtype.kind == "f" and p.ndim == 3 and p.shape[0] in (1, 2) and p.shape[2] == 10
    if not (fits and (p >= 0).all() and (p <= 1).all()):
        raise InputError(f"{path}: p is {p.dtype} {p.shape}; allowed: finite probabilities (1 or 2, images, 10)")
    return p.astype(np.float32)


def accuracy(p, y):
    """Return the share of images for which the largest of the probabilities p (n, 10) is that of the label y (n,)."""
    if len(p) != len(y):
        raise InputError(f"p has {len(p)} rows; allowed: one for each of {len(y)} labels")
    return float(np.mean(p.argmax(axis=1) == y))


def ensemble(names, y, folder=FOLDER):
    """Return the test accuracy, for labels y, of several networks' mean probabilities ("dense-0", ...), both ways."""
    given = [probabilities(name, folder) for name in names]
    if len({p.shape for p in given}) > 1:
        raise InputError(f"p of {', '.join(names)} is {[p.shape for p in given]}; allowed: one shape for all")
    return accuracy(np.mean(given, axis=(0, 1)), y)
