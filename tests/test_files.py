"""Files: networks and checkpoints, written whole, checked whole, and never used if damaged or foreign."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import helpers
import lib.files
from helpers import InputError, Network, train
from lib.layers import BatchNorm, Dense, Stack


def subset(data, n):
    return dataclasses.replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n])


def test_checkpoints_of_something_else_are_refused(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    config = tiny_config()
    train(config, small, checkpoint=path)
    with pytest.raises(InputError, match="learning_rate is 0.001 there, 0.5 here"):
        train(tiny_config(learning_rate=0.5), small, checkpoint=path)
    with pytest.raises(InputError, match="optimizer is 'rmsprop' there, 'adam' here"):
        train(tiny_config(optimizer="adam"), small, checkpoint=path)
    with pytest.raises(InputError, match="another training: data"):
        train(config, subset(small, 100), checkpoint=path)
    with pytest.raises(InputError, match="3 epochs; allowed: at most the 1"):
        train(tiny_config(epochs=1), small, checkpoint=path)
    helpers.save_network(path, Network([3, 2]))
    with pytest.raises(InputError, match="not a checkpoint: about is missing"):
        train(config, small, checkpoint=path)
    np.savez(path, about="{", theta=np.zeros(3), kept_theta=np.zeros(3))
    with pytest.raises(InputError, match="not a checkpoint: what it says about itself cannot be read"):
        train(config, small, checkpoint=path)
    for junk in (b"", b"PK\x03\x04 something", b"hello" * 99):
        path.write_bytes(junk)
        with pytest.raises(InputError, match="c.npz is not a checkpoint, or is damaged"):
            train(config, small, checkpoint=path)


def test_networks_are_saved_and_loaded_without_loss(tmp_path):
    network = Network([784, 30, 20, 10], "ReLU", rng=np.random.default_rng(0))
    helpers.save_network(tmp_path / "n.npz", network)
    other = helpers.load_network(tmp_path / "n.npz")
    x = np.random.default_rng(1).integers(0, 256, (4, 784)).astype(np.uint8)
    assert (network.forward(x) == other.forward(x)).all() and other.theta.dtype == np.float32
    assert list(tmp_path.iterdir()) == [tmp_path / "n.npz"]


def damaged_networks():
    theta = np.zeros(3 * 2 + 2, np.float32)
    good = {"sizes": np.array([3, 2]), "activation": np.array("tanh"), "theta": theta}
    yield {k: v for k, v in good.items() if k != "theta"}, "theta is missing"
    yield {**good, "theta": theta[:-1]}, "theta"
    yield {**good, "theta": theta * np.nan}, "theta"
    yield {**good, "theta": theta.astype(int)}, "theta"
    yield {**good, "theta": np.array(["a"] * 8)}, "theta"
    yield {**good, "sizes": np.array([3, -2])}, "sizes"
    yield {**good, "sizes": np.array([3.5, 2])}, "sizes"
    yield {**good, "sizes": np.array(3)}, "sizes"
    allowed = "identity, sigmoid, tanh, ReLU; your own once it is in ACTIVATIONS"
    yield {**good, "activation": np.array("magic")}, rf"n.npz: activation is 'magic'; allowed: {allowed}$"


@pytest.mark.parametrize("content, named", list(damaged_networks()))
def test_damaged_networks_are_refused(content, named, tmp_path):
    path = tmp_path / "n.npz"
    np.savez(path, **content)
    with pytest.raises(InputError, match=named):
        helpers.load_network(path)


def test_a_truncated_or_pickled_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "n.npz"
    with pytest.raises(InputError, match="cannot read .*n.npz: No such file"):
        helpers.load_network(path)
    helpers.save_network(path, Network([30, 20]))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged"):
        helpers.load_network(path)
    np.savez(path, sizes=np.array([3, 2]), activation=np.array("tanh"), theta=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="damaged"):
        helpers.load_network(path)


def test_a_flipped_bit_anywhere_is_found_or_harmless(small, tiny_config, tmp_path):
    """np.load alone takes 1 of 40 such files for good, and moves all weights by one."""
    path = tmp_path / "n.npz"
    network = Network([7, 3, 2], rng=np.random.default_rng(0))
    helpers.save_network(path, network)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for bit in rng.permutation(8 * len(content))[:1500]:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        try:
            loaded = helpers.load_network(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            found += 1
        else:
            assert (loaded.theta == network.theta).all() and loaded.sizes == [7, 3, 2] and loaded.activation == "tanh"
    assert found > 1000


@pytest.mark.parametrize("damage", ["cut", "doubled", "zeros", "text", "empty", "another zip", "garbage behind"])
def test_damaged_checkpoints_are_named(damage, small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    train(tiny_config(epochs=1), small, checkpoint=path)
    content = path.read_bytes()
    half = len(content) // 2
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("hello.txt", "hello")
    path.write_bytes({
        "cut": content[:half], "doubled": content[:half] + content, "zeros": content[:half] + bytes(half),
        "text": b"hello", "empty": b"", "another zip": zipped.getvalue(), "garbage behind": content + bytes(70000),
    }[damage])  # fmt: skip
    before = path.read_bytes()
    if damage == "doubled":  # what stands before a zip file belongs to nobody: it is read, or refused, but never wrong
        with suppress(InputError):
            resumed = train(tiny_config(), small, checkpoint=path).network.theta
            np.testing.assert_array_equal(resumed, train(tiny_config(), small).network.theta)
        return
    with pytest.raises(InputError, match="c.npz is not a checkpoint"):
        train(tiny_config(), small, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("change, words", [
    ({"best_theta": np.nan}, "best_theta has numbers that are not finite"), ({"theta": np.inf}, "theta has numbers that are not finite"),
    ({"history": {}}, "not a checkpoint"), ({"history": []}, "not a checkpoint"), ({"val_accuracy": 5}, "not a checkpoint"),
    ({"val_accuracy": True}, "not a checkpoint"), ({"train_loss": "x"}, "not a checkpoint"), ({"epoch": 7}, "not a checkpoint"),
    ({"train_loss": None}, "not a checkpoint"), ({"seconds": None}, "not a checkpoint"),
])  # fmt: skip
def test_what_a_checkpoint_says_is_checked_before_it_is_used(change, words, small, tiny_config, tmp_path):
    path, config = tmp_path / "c.npz", tiny_config(epochs=2)
    train(config, small, checkpoint=path)
    saved = dict(np.load(path))
    about = json.loads(str(saved["about"]))
    for name, value in change.items():
        if name in saved:
            saved[name][3] = value
        elif name == "history":
            about["history"] = value
        else:
            about["history"][1][name] = value
    np.savez(path, **saved | {"about": json.dumps(about)})
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"c.npz.*{words}"):
        train(config, small, checkpoint=path)
    assert path.read_bytes() == before


def test_a_loss_of_ones_own_may_be_negative_and_is_resumed(small, tiny_config, tmp_path, monkeypatch):
    def shifted(z, y):
        loss, delta = helpers.cross_entropy(z, y)
        return loss - 9, delta

    monkeypatch.setitem(helpers.LOSSES, "shifted", shifted)
    config = tiny_config(epochs=3, loss="shifted")
    train(dataclasses.replace(config, epochs=2), small, checkpoint=tmp_path / "c.npz")
    resumed = train(config, small, checkpoint=tmp_path / "c.npz")
    assert resumed.history[1]["train_loss"] < 0 and len(resumed.history) == 3
    np.testing.assert_array_equal(resumed.network.theta, train(config, small).network.theta)


@pytest.mark.parametrize("part", ["W", "b", "dW", "db", "theta", "gradient"])
def test_a_network_whose_parts_are_other_arrays_is_neither_trained_nor_saved(part, small, tiny_config, tmp_path):
    network = Network([784, 8, 10], rng=0)
    if part in ("W", "b", "dW", "db"):
        getattr(network, part)[1] = getattr(network, part)[1] + 1
    else:
        setattr(network, part, getattr(network, part).copy())
    for work in (
        lambda: train(tiny_config(), small, network=network),
        lambda: helpers.save_network(tmp_path / "n.npz", network),
    ):
        with pytest.raises(
            InputError, match="^theta, gradient, a W or a b is a new array; allowed: numbers put into it"
        ):
            work()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_a_member_that_would_take_much_memory_is_never_unpacked(tmp_path):
    path = tmp_path / "n.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**26,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in {"sizes": np.array([3, 2]), "activation": np.array("tanh")}.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, array)
        with archive.open("theta.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(16):
                member.write(bytes(2**24))
    assert path.stat().st_size < 2_000_000
    code = """
import re, sys, helpers
try:
    helpers.load_network(sys.argv[1])
except helpers.InputError:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
    env = os.environ | {"PYTHONPATH": os.path.dirname(helpers.__file__), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, path], env=env, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) < 200_000, done.stderr  # kilobytes


def test_a_checkpoint_is_of_its_images_labels_validation_and_network(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    config = tiny_config(epochs=2)
    train(dataclasses.replace(config, epochs=1), small, checkpoint=path)
    for name in ("x_train", "y_train", "x_val", "y_val"):
        changed = getattr(small, name).copy()
        changed.flat[5] = (changed.flat[5] + 1) % 10
        with pytest.raises(InputError, match="c.npz is a checkpoint of another training: data is"):
            train(config, dataclasses.replace(small, **{name: changed}), checkpoint=path)
    with pytest.raises(InputError, match="c.npz is a checkpoint of another training: network is"):
        train(config, small, checkpoint=path, network=Network([784, 9, 9, 10], "ReLU"))
    train(
        config, dataclasses.replace(small, x_test=small.x_test[:3], y_test=small.y_test[:3]), checkpoint=path
    )  # no training sees these


def networks():
    """Two networks of one kind and shape, of other weights; each call makes them anew."""
    yield lambda seed: Network([784, 9, 9, 10], rng=seed)
    yield lambda seed: Stack([Dense(784, 8), BatchNorm(8), Dense(8, 10)], (784,), np.random.default_rng(seed))


@pytest.mark.parametrize("make", list(networks()), ids=["Network", "Stack"])
def test_a_checkpoint_is_of_the_weights_that_a_network_began_with(make, small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    config = tiny_config(epochs=4)
    short = dataclasses.replace(config, epochs=2)
    whole = train(config, small, network=make(1)).network.theta
    train(short, small, network=make(1), checkpoint=path)
    content = path.read_bytes()
    other = make(2)
    for given in (other, make(3), None):
        with pytest.raises(InputError, match="c.npz is a checkpoint of (a network that began|another training)"):
            train(config, small, network=given, checkpoint=path)
    assert (other.theta == make(2).theta).all() and path.read_bytes() == content
    assert (train(config, small, network=make(1), checkpoint=path).network.theta == whole).all()
    with pytest.raises(
        InputError, match="a network that began with other weights; allowed: that one, with its initial weights"
    ):
        train(config, small, network=make(2), checkpoint=path)


@pytest.mark.parametrize("keep_best", [False, True])
def test_a_network_that_was_trained_in_place_goes_on_and_so_does_a_fresh_copy(keep_best, small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    config = tiny_config(epochs=6, learning_rate=0.02)
    make = next(networks())
    whole = train(config, small, network=make(1)).network.theta
    network = make(1)
    for epochs in (2, 4):
        train(dataclasses.replace(config, epochs=epochs), small, network=network, checkpoint=path, keep_best=keep_best)
    kept = path.read_bytes()
    assert (train(config, small, network=network, checkpoint=path).network.theta == whole).all()
    path.write_bytes(kept)  # what it began with is still known
    assert (train(config, small, network=make(1), checkpoint=path).network.theta == whole).all()


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_network_whose_training_was_interrupted_goes_on(after, error, small, tiny_config, tmp_path, monkeypatch):
    """In the middle of an epoch its weights have moved on from those of the checkpoint."""
    path = tmp_path / "c.npz"
    make = next(networks())
    whole = train(tiny_config(epochs=4), small, network=make(1)).network.theta
    network, right = make(1), Network.descend
    steps = []

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == after * 10 + 5:
            raise error
        return right(self, *arguments)

    monkeypatch.setattr(Network, "descend", interrupted)
    with pytest.raises(error):
        train(tiny_config(epochs=4), small, network=network, checkpoint=path)
    assert path.exists() == (after > 0)
    assert (train(tiny_config(epochs=4), small, network=network, checkpoint=path).network.theta == whole).all()


def test_another_initialiser_under_the_same_name_is_another_training(small, tiny_config, tmp_path, monkeypatch):
    for draw in (helpers.he, helpers.xavier):
        monkeypatch.setitem(helpers.WEIGHT_INITS, "mine", draw)
        config = tiny_config(weight_init="mine", epochs=1)
        if draw is helpers.he:
            train(config, small, checkpoint=tmp_path / "c.npz")
    with pytest.raises(InputError, match="began with other weights"):
        train(config, small, checkpoint=tmp_path / "c.npz")


def own_optimizer(factor):
    def optimizer(theta, config):
        def step(g, t, eta, loss):
            theta[:] -= factor * eta * np.sign(g)

        return step, {}

    return optimizer


def own_loss(factor):
    def loss(z, y):
        value, delta = helpers.cross_entropy(z, y)
        return factor * value, np.float32(factor) * delta

    return loss


OWN = {
    "optimizer": (helpers.OPTIMIZERS, own_optimizer(1), own_optimizer(1.01)),
    "loss": (helpers.LOSSES, own_loss(1), own_loss(1.01)),
    "activation": (helpers.ACTIVATIONS, helpers.ACTIVATIONS["tanh"], helpers.ACTIVATIONS["ReLU"]),
}


@pytest.mark.parametrize("kind", OWN)
def test_another_function_under_the_same_name_is_another_training(kind, small, tiny_config, tmp_path, monkeypatch):
    known, first, second = OWN[kind]
    monkeypatch.setitem(known, "mine", first)
    config = tiny_config(epochs=1, **{kind: "mine"})
    train(config, small, checkpoint=tmp_path / "c.npz")
    longer = dataclasses.replace(config, epochs=2)
    monkeypatch.setitem(known, "mine", second)
    with pytest.raises(InputError, match=f"c.npz is a checkpoint of another training: outcome of {kind} is '.*there"):
        train(longer, small, checkpoint=tmp_path / "c.npz")
    monkeypatch.setitem(known, "mine", first)
    assert len(train(longer, small, checkpoint=tmp_path / "c.npz").history) == 2


def test_a_checkpoint_from_before_its_start_and_functions_were_noted_goes_on(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    train(tiny_config(epochs=1), small, checkpoint=path)
    arrays = dict(np.load(path))
    about = json.loads(str(arrays["about"]))
    for name in ("start", "outcome of optimizer", "outcome of loss", "outcome of activation"):
        del about["training"][name]
    lib.files.write_npz(path, **{**arrays, "about": json.dumps(about)})
    resumed = train(tiny_config(), small, checkpoint=path).network.theta
    assert (resumed == train(tiny_config(), small).network.theta).all()


def test_a_checkpoint_older_than_a_field_has_its_default(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    train(tiny_config(epochs=1), small, checkpoint=path)
    arrays = dict(np.load(path))
    about = json.loads(str(arrays["about"]))
    del about["training"]["beta2"]
    arrays["about"] = json.dumps(about)
    lib.files.write_npz(path, **arrays)
    with pytest.raises(InputError, match="beta2 is 0.999 there, 0.5 here"):
        train(tiny_config(beta2=0.5), small, checkpoint=path)
    assert len(train(tiny_config(), small, checkpoint=path).history) == 3


def test_two_trainings_on_one_checkpoint_are_refused(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    link = tmp_path / "link.npz"
    link.symlink_to(path)

    def another(row):
        for same in (path, link):
            with pytest.raises(InputError, match="c.npz is in use by another training"):
                train(tiny_config(), small, checkpoint=same)

    train(tiny_config(epochs=2), small, another, checkpoint=path)
    assert sorted(tmp_path.iterdir()) == [path, link]
    assert len(train(tiny_config(), small, checkpoint=link).history) == 3 and link.is_symlink()


def test_moments_that_overflow_are_kept_to_the_bit(small, tiny_config, tmp_path, monkeypatch):
    def overflowing(theta, config):
        step, state = helpers.adam(theta, config)
        state["v"][:3] = np.inf
        return step, state

    monkeypatch.setitem(helpers.OPTIMIZERS, "overflowing", overflowing)
    whole = train(tiny_config(optimizer="overflowing", epochs=3), small)
    train(tiny_config(optimizer="overflowing", epochs=1), small, checkpoint=tmp_path / "c.npz")
    resumed = train(tiny_config(optimizer="overflowing", epochs=3), small, checkpoint=tmp_path / "c.npz")
    assert (resumed.network.theta == whole.network.theta).all()


def test_nothing_is_pickled(tmp_path):
    for array in (np.array([2**70]), np.array([None]), np.array([{}])):
        with pytest.raises(ValueError, match="allow_pickle=False"):
            lib.files.write_npz(tmp_path / "n.npz", one=array)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all_and_by_its_own_name(tmp_path):
    path = tmp_path / ("n" * 250)  # as long as a name may be, nearly
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), lib.files.write_atomically(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with lib.files.write_atomically(path) as one, lib.files.write_atomically(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left.*n.npz"):
        with lib.files.write_atomically(tmp_path / "n.npz"):
            raise OSError(28, "No space left on device")


def test_a_checkpoint_that_is_refused_changes_no_array(small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    train(tiny_config(), small, checkpoint=path)
    network = helpers.new_network(tiny_config(), small)
    before = network.theta.copy()
    with pytest.raises(InputError, match="has 3 epochs; allowed: at most the 2"):
        train(tiny_config(epochs=2), small, checkpoint=path, network=network)
    arrays = dict(np.load(path))
    lib.files.write_npz(path, **{**arrays, "optimizer.v": arrays["optimizer.v"][:-1]})
    with pytest.raises(InputError, match="optimizer.v is float32"):
        train(tiny_config(), small, checkpoint=path, network=network)
    assert (network.theta == before).all()


@pytest.mark.parametrize(
    "about",
    [
        "[" * 100_000,
        '{"training": {}, "history": [1]}',
        '{"training": {}, "history": "abc"}',
        '{"training": {}, "history": [{"epoch": 1}]}',
        '{"training": {}, "history": [{"val_accuracy": "x"}]}',
        '{"training": {}, "history": [{"val_accuracy": NaN}]}',
    ],
)
def test_what_a_checkpoint_says_about_itself_is_checked(about, small, tiny_config, tmp_path):
    path = tmp_path / "c.npz"
    train(tiny_config(epochs=1), small, checkpoint=path)
    lib.files.write_npz(path, **{**dict(np.load(path)), "about": about})
    with pytest.raises(InputError, match="not a checkpoint: what it says about itself cannot be read"):
        train(tiny_config(), small, checkpoint=path)


@pytest.mark.parametrize("name", ["n" * 250, "ü ß*?[].npz", "a\nb", "-"])
def test_a_checkpoint_may_have_any_name(name, small, tiny_config, tmp_path):
    train(tiny_config(epochs=1), small, checkpoint=tmp_path / name)
    assert len(train(tiny_config(epochs=2), small, checkpoint=tmp_path / name).history) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_a_place_where_no_checkpoint_can_be_is_refused_at_the_start(small, tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    places = {
        "none/c.npz": "No such file",
        "file/c.npz": "Not a directory",
        "": "a directory",
    }
    for place, reason in places.items():
        path = tmp_path / place if place else ""  # "" is what an empty shell variable gives
        with pytest.raises(InputError, match=f"cannot (read|write) .*: .*{reason}"):
            train(tiny_config(), small, pytest.fail, checkpoint=path)


def test_a_file_system_without_locks_is_not_called_in_use(monkeypatch, small, tiny_config, tmp_path):
    def flock(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lib.files, "flock", flock)
    assert len(train(tiny_config(), small, checkpoint=tmp_path / "c.npz").history) == 3


def test_nothing_is_put_in_the_place_of_a_device_or_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # as /dev/null would be replaced, by root
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("pipe", "folder", "file/n.npz"):
        with pytest.raises(OSError, match=f"{name}'$"):
            helpers.save_network(tmp_path / name, Network([3, 2]))
    assert (tmp_path / "pipe").is_fifo() and not list((tmp_path / "folder").iterdir())


def test_sizes_of_more_weights_than_the_file_has_take_no_memory(tmp_path):
    path = tmp_path / "n.npz"
    lib.files.write_npz(path, sizes=np.array([10**6, 10**6]), activation="tanh", theta=np.zeros(8, np.float32))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"sizes is \[1000000, 1000000\]; allowed: .* the 8 parameters in theta"):
        helpers.load_network(path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


class Foreign(Network):
    """A kind that no file can name."""


def with_theta(number, dtype=np.float32):
    network = Network([3, 2], dtype=dtype)
    network.theta[4] = number
    return network


def stack_with(number):
    network = Stack([Dense(3, 4), BatchNorm(4), Dense(4, 2)], (3,), np.random.default_rng(0))
    network.theta[-1] = number  # of the statistics
    return network


class Given(Dense):
    """A layer that is given an array."""

    def __init__(self, array):
        super().__init__(3, 2)


REFUSED = {
    "nan": (lambda: with_theta(np.nan), "n.npz: theta has numbers that are not finite; allowed: finite float32"),
    "infinite": (lambda: with_theta(-np.inf, np.float64), "n.npz: theta has numbers .*; allowed: finite float64"),
    "statistics": (lambda: stack_with(np.nan), "n.npz: theta has numbers that are not finite"),
    "a kind of one's own": (lambda: Foreign([3, 2]), "n.npz is a network of kind 'Foreign'; allowed: Network, Stack"),
    "no JSON": (lambda: Stack([Given(np.ones(2))], (3,)), "n.npz cannot hold this network: .*; allowed: layers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_could_not_be_loaded_is_not_saved(kind, tmp_path):
    make, words = REFUSED[kind]
    path = tmp_path / "n.npz"
    helpers.save_network(path, Network([3, 2]))
    before = path.read_bytes()
    with pytest.raises(InputError, match=words):
        helpers.save_network(path, make())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
