"""Files: written whole or not at all, checked whole before anything in them is used."""

import json
import math
import os
import zipfile
import zlib
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from errno import EEXIST
from hashlib import sha256
from importlib import import_module
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import numpy as np

from helpers import ACTIVATIONS, METRICS, Config, InputError, Network, number
from lib.families import make_optimizer, outcomes

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # on Windows, where nothing but the lock of a checkpoint is missing
    flock = None


@contextmanager
def write_atomically(path):
    """Open a file beside `path`, of a name that nobody else uses; rename it to `path` once it is written whole.

    Raises OSError with the name of `path` if it cannot be written, or if it is a folder, a device or a pipe.
    """
    path = Path(os.path.realpath(path))  # of a link, the file it points to
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise OSError(EEXIST, "It is not a regular file")  # a rename would put one in the place of /dev/null
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None  # a full disk names no file
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_npz(path, **arrays):
    """Write arrays to an .npz file, atomically and without pickle."""
    with write_atomically(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_npz(path, what, keys):
    """Return the arrays in an .npz file by name: those in `keys`, and others if it has them.

    Every member's checksum is compared before one is read: np.load alone uses an array that a flipped bit has moved.
    Members must be stored as they are, so that no file takes more memory than its own size. Raises InputError if the
    file is missing, damaged, or not `what`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.infolist()
            whole = archive.testzip() is None
        plain = all(one.compress_type == zipfile.ZIP_STORED for one in members)
        if not (whole and plain and len({one.filename for one in members}) == len(members)):
            raise ValueError("a checksum is wrong")
        with np.load(BytesIO(content), allow_pickle=False) as file:
            saved = dict(file)
    except Exception:  # a damaged file raises whatever its bytes lead zipfile and NumPy into
        raise InputError(f"{path} is not {what}, or is damaged; remove it, or restore it from a copy") from None
    if missing := keys - saved.keys():
        raise InputError(f"{path} is not {what}: {', '.join(sorted(missing))} is missing")
    return saved


def check_alike(path, name, array, saved):
    """Raise InputError if `saved`, which a file has, differs from `array` in shape or dtype."""
    if saved.shape != array.shape or saved.dtype != array.dtype:
        raise InputError(f"{path}: {name} is {saved.dtype} {saved.shape}; allowed: {array.dtype} {array.shape}")


def fill(path, name, array, saved):
    """Copy `saved`, which a file had, into `array`. Raises InputError if shape or dtype differ."""
    check_alike(path, name, array, saved)
    array[...] = saved


# ------------------------------------------------------------------------------------------------------------- networks


def _network(sizes, activation, theta):
    sizes = sizes.ravel()
    if sizes.dtype.kind not in "iu" or sum(int(n) * int(m) + int(m) for n, m in zip(sizes, sizes[1:])) != theta.size:
        raise InputError(f"sizes is {sizes.tolist()}; allowed: what makes the {theta.size} parameters in theta")
    if str(activation) not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"activation is {str(activation)!r}; allowed: {known}; your own once it is in ACTIVATIONS")
    return Network(sizes.tolist(), str(activation), rng=np.random.default_rng(0), dtype=theta.dtype)


LOADERS = {"Network": _network}  # kind: what makes one from its description and its theta's dtype; lib.layers adds


def description(network):
    """Return what a file needs, beside theta, to make a network of the same kind and shape."""
    if not hasattr(network, "description"):
        return {"sizes": network.sizes, "activation": network.activation}
    return network.description()


def check_network(path, kind, theta):
    """Raise InputError, naming the file, for what is never written and never used: another kind, or NaN in theta."""
    if kind not in LOADERS:
        raise InputError(f"{path} is a network of kind {kind!r}; allowed: {', '.join(LOADERS)}")
    if theta.dtype not in (np.float32, np.float64):
        raise InputError(f"{path}: theta is {theta.dtype}; allowed: finite float32 or float64")
    if not np.isfinite(theta).all():
        raise InputError(f"{path}: theta has numbers that are not finite; allowed: finite {theta.dtype}")


def save_network(path, network):
    """Write the network's kind, description and theta to an .npz file.

    Raises InputError, and writes nothing, for weights that are not finite and for what `load_network` could not make.
    """
    kind = type(network).__name__
    check_network(path, kind, network.theta)
    network.check_views()
    try:
        about = description(network)
    except TypeError as error:  # a layer's argument is nothing that JSON can hold
        raise InputError(
            f"{path} cannot hold this network: {error}; allowed: layers made of numbers and texts"
        ) from None
    write_npz(path, kind=kind, theta=network.theta, **about)


def load_network(path):
    """Return the network that `save_network` wrote. Raises InputError if the file is missing, damaged or foreign."""
    saved = read_npz(path, "a saved network", {"theta"})
    kind = str(saved.pop("kind", "Network"))
    if "about" in saved:
        raise InputError(f"{path} is a checkpoint; allowed: a network, which save_network writes")
    theta = saved["theta"]
    import_module("lib.layers")  # which adds its own to LOADERS
    check_network(path, kind, theta)
    try:
        network = LOADERS[kind](**saved)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, MemoryError, RecursionError) as error:
        raise InputError(f"{path} is not a saved network, or is damaged: {error}") from None
    fill(path, "theta", network.theta, theta)
    return network


# --------------------------------------------------------------------------------------------------------- checkpoints
# A checkpoint holds `arrays`, {name: array}, which are where a training stands; `training`, a dictionary for JSON that
# tells it from other trainings; and its history so far.


@contextmanager
def locked(path, wait=False):
    """Keep other processes from what this one does with a file: they are refused, or wait if they ask to.

    If a process is killed, its lock is gone. Raises InputError if another one has the lock and `wait` is False.
    """
    path = Path(os.path.realpath(path))
    name = sha256(os.fsencode(path.name)).hexdigest()[:32]  # short, however long the name of the file is
    lock = path.with_name(f".{name}.lock")
    try:
        file = _lock(lock, wait)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; allowed: a file in a writable folder") from None
    if not file:
        raise InputError(f"{path} is in use by another training; allowed: one at a time, or another file")
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _lock(lock, wait):
    """Open and lock a file; return None if another process has it and this one does not wait."""
    while True:
        file = open(lock, "ab")
        try:
            if flock:
                flock(file, LOCK_EX if wait else LOCK_EX | LOCK_NB)
            if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                return file
        except FileNotFoundError:
            pass  # removed by the process that had it: take the next one
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks, such as a mounted cloud drive
            return file
        file.close()


WEIGHTS = ("theta", "best_theta", "average")  # which are finite; what an optimiser of one's own remembers may not be


def save_checkpoint(path, training, arrays, history):
    """Write where a training stands after an epoch."""
    about = json.dumps({"training": training, "history": history}, allow_nan=False)
    write_npz(path, about=about, **arrays)


def load_checkpoint(path, training, arrays, defaults=None, epochs=math.inf):
    """Put all arrays back to where a checkpoint left them; return the history.

    defaults: values of what a checkpoint may be too old to say about its training. If the network is as the checkpoint
    left it, `training` takes over its `start`. Raises InputError, and changes no array, if the file is missing,
    damaged, of another training, or has more than `epochs`.
    """
    saved = read_npz(path, "a checkpoint", {"about"})
    try:
        about = json.loads(str(saved.pop("about")))
        then = {"start": training["start"], **(defaults or {}), **about["training"]}
        history = about["history"]
        _check_history(history)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        sentence = f"{path} is not a checkpoint: what it says about itself cannot be read ({error})"
        raise InputError(sentence) from None
    if training["start"] in (zlib.crc32(saved[name]) for name in saved.keys() & {"theta", "best_theta"}):
        training["start"] = then["start"]
    for name, now in json.loads(json.dumps(training)).items():
        if name == "start" and then[name] != now:
            sentence = f"{path} is a checkpoint of a network that began with other weights"
            allowed = "that one, with its initial weights (the same seed) or the file's, or another file"
            raise InputError(f"{sentence}; allowed: {allowed}")
        if then.get(name) != now:
            there = f"{name} is {then.get(name)!r} there, {now!r} here"
            there += ", as the function has changed" * name.startswith("outcome of")
            raise InputError(f"{path} is a checkpoint of another training: {there}; allowed: another file")
    if saved.keys() != arrays.keys():
        raise InputError(f"{path} holds {sorted(saved)}; allowed: {sorted(arrays)}, the state of this training")
    if len(history) > epochs:
        raise InputError(f"{path} has {len(history)} epochs; allowed: at most the {epochs} asked for")
    for name, array in arrays.items():
        check_alike(path, name, array, saved[name])
        if name in WEIGHTS and not np.isfinite(saved[name]).all():
            raise InputError(f"{path}: {name} has numbers that are not finite; allowed: finite {array.dtype}")
    for name, array in arrays.items():
        array[...] = saved[name]
    return history


def _check_history(history):
    """Raise InputError unless it is what a training writes: a row for each of epochs 1, 2, ..., of finite numbers."""
    if not isinstance(history, list) or not history:
        raise InputError("history is no list of epochs")
    for epoch, row in enumerate(history, 1):
        if row["epoch"] != epoch:
            raise InputError(f"epoch is {row['epoch']}; allowed: {epoch}")
        for name, value in row.items():  # a loss of one's own may be negative
            number(name, value, float, "[0, 1]" if name.endswith("accuracy") else "(-inf, inf)")
        if missing := {*METRICS, "seconds"} - row.keys():
            raise InputError(f"{', '.join(sorted(missing))} is missing")


def check_resumable(theta, config, steps_per_epoch):
    """Raise InputError if an optimiser cannot be resumed; return whether its steps depend on `epochs`.

    Its state must be arrays, and complete: in every step a second optimiser, made anew with the state of the first,
    must move theta and the state to the same bits. From step 30 on t leaps, so as to meet what an optimiser does every
    50 or 64 steps, once in an epoch, or at the end.
    """
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(len(theta) + 1000, np.float32).astype(theta.dtype)
    theta = theta.copy()
    step, state = make_optimizer(theta, config)
    for name, array in state.items():
        plain = type(array) is np.ndarray and array.dtype.kind in "biuf" and array.flags.writeable
        if not (plain and str(name).isidentifier()):
            kept = f"the state of optimizer {config.optimizer!r} has {type(array).__name__} {name!r}"
            raise InputError(f"{kept}; allowed: names with NumPy arrays of numbers, updated in place")
    state = dict(state)  # the arrays of now, which are what a checkpoint holds on to
    last = config.epochs * steps_per_epoch
    times = {*range(1, 31), 50, 64, 100, 128, 200, 256, 500, 512, 600, 1000, steps_per_epoch, 2 * steps_per_epoch, last}
    for t in sorted(t for t in times if t <= last):
        g = noise[rng.integers(1000) :][: len(theta)]
        loss = float(rng.random())
        there = _one_step(theta, state, config, g, t, loss)
        with np.errstate(all="ignore"):
            step(g.copy(), t, config.learning_rate, loss)
        if not _same([theta, *state.values()], there):
            more = f"optimizer {config.optimizer!r} remembers more than its state"
            holds = f"which has {', '.join(sorted(state)) or 'nothing'}"
            raise InputError(f"{more}, {holds}; allowed with a checkpoint: a state that holds all, updated in place")
    longer = replace(config, epochs=config.epochs + 1)
    ends = [[_one_step(theta, state, one, g, t, loss) for t in (1, -(-last // 2), last)] for one in (config, longer)]
    return not all(map(_same, *ends))


def _one_step(theta, state, config, g, t, loss):
    """Return copies of theta and the arrays in `state` as an optimiser that has just been made moves them in step t."""
    theta = theta.copy()
    step, fresh = make_optimizer(theta, config)
    moved = [theta, *(fresh[name] for name in state)]
    for array, kept in zip(moved[1:], state.values()):
        array[...] = kept
    with np.errstate(all="ignore"):  # a gradient that no training has may overflow
        step(g.copy(), t, config.learning_rate, loss)
    return moved


def _same(arrays, others):
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(arrays, others))


def fingerprint(config, data, network):
    """Return everything that a training depends on, except its epochs, which may become more: a dictionary for JSON.

    Its `start` is a checksum of the weights that the network has now, before the first epoch.
    """
    arrays = {name: getattr(data, name) for name in ("x_train", "y_train", "x_val", "y_val")}
    sums = {name: [*array.shape, zlib.crc32(np.ascontiguousarray(array))] for name, array in arrays.items()}
    shape = {name: np.asarray(value).tolist() for name, value in description(network).items()}
    about = {"data": [data.name, sums], "network": [type(network).__name__, shape], "start": zlib.crc32(network.theta)}
    return {**asdict(config), "epochs": None, **about}


@contextmanager
def resumed(path, config, data, network, best_theta, state):
    """Lock the checkpoint of a training and go on from it, if it exists: yield the history and save(history).

    The network may be given as it was at first, which is how a program that is started again has it, or as the
    checkpoint has it, last or best, which is how training in place leaves it. For the latter an interruption puts the
    weights back to those saved last. Any other weights are refused: they would be lost without a word. Raises
    InputError for them, if the file is in use, damaged or of another training, or if the optimiser cannot be resumed.
    """
    depends_on_epochs = check_resumable(network.theta, config, -(-len(data.x_train) // config.batch_size))
    functions = outcomes(config, network)
    training = fingerprint(config, data, network) | functions
    if depends_on_epochs:  # a rate that falls until the last epoch, for example
        training["epochs"] = config.epochs
    arrays = {"theta": network.theta, "best_theta": best_theta}
    arrays |= {f"optimizer.{name}": array for name, array in state.items()}
    with locked(path):
        history = []
        if Path(path).exists():
            history = load_checkpoint(path, training, arrays, asdict(Config()) | functions, config.epochs)
        kept = network.theta.copy()

        def save(history):
            save_checkpoint(path, training, arrays, history)
            kept[:] = network.theta

        try:
            yield history, save
        except BaseException:  # Ctrl-C, too
            network.theta[:] = kept
            raise
