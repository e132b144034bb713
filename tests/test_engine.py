"""The compiled steps: that they compute what NumPy computes, how exactly, and what happens where they cannot run."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from test_sweep import definition, tiny

import helpers
import study
import sweep
import train as train_py
from helpers import ACTIVATIONS, BACKENDS, LOSSES, OPTIMIZERS, InputError, Network, train

ROOT = Path(__file__).resolve().parent.parent
RATES = {"sgd": 0.1, "momentum": 0.03, "nag": 0.03, "rmsprop": 1e-3, "adam": 1e-3, "nadam": 1e-3}


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("numba")
    import lib.engine

    return lib.engine


@pytest.fixture
def compiled(engine):
    """Train with the engine; a warning that NumPy has to do it fails the test."""

    def run(config, data, *arguments, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return train(config, data, *arguments, **options, backend="compiled")

    return run


def python(code, *flags, **environment):
    """Run Python code in a process of its own, in the project's folder."""
    every = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=every, capture_output=True, text=True, timeout=300)


# ------------------------------------------------------------------------------------------------ the same mathematics


def distances(config, data, compiled):
    """How far float32 NumPy and the engine end from a float64 training, relative to how far that moved."""

    def network(dtype):
        rng = np.random.default_rng([config.seed, 0])
        return Network([784, *config.widths, 10], config.activation, config.weight_init, rng, dtype)

    start, exact = network(np.float64).theta, network(np.float64)
    ended = train(config, data, network=exact)
    ours, theirs = network(np.float32), network(np.float32)
    numpy, engine = train(config, data, network=ours), compiled(config, data, network=theirs)
    assert numpy.stopped == engine.stopped == ended.stopped
    for row, other in zip(ended.history, engine.history, strict=True):
        assert list(row) == list(other)
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)
        assert other["train_accuracy"] == pytest.approx(row["train_accuracy"], abs=1.01 / len(data.x_train))
    moved = np.linalg.norm(exact.theta - start)
    return [np.linalg.norm(float32.theta - exact.theta) / moved for float32 in (ours, theirs)]


DISTINCT = {"momentum": 0.8, "beta": 0.7, "beta1": 0.85, "beta2": 0.95, "epsilon": 0.01}  # none can stand for another


@pytest.mark.parametrize("decay", (0, 0.01))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_near_to_float64_as_numpy(activation, loss, optimizer, decay, small, tiny_config, compiled):
    config = tiny_config(
        activation=activation,
        loss=loss,
        optimizer=optimizer,
        learning_rate=RATES[optimizer],
        weight_decay=decay,
        seed=3,
        **DISTINCT,
    )
    numpy, engine = distances(config, small, compiled)
    assert engine < 3 * numpy + 1e-7


SHAPES = {
    "a last batch of one": {"batch_size": 299},
    "batches of one": {"batch_size": 1, "epochs": 1},
    "one batch, larger than the data": {"batch_size": 1000},
    "no hidden layer": {"num_layers": 0},
    "one hidden neuron": {"hidden_size": 1},
    "a width for each layer": {"hidden_size": (30, 7, 19), "num_layers": 3},
    "wide": {"hidden_size": 300, "num_layers": 1},
    "deep": {"num_layers": 12, "hidden_size": 16, "epochs": 1},
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("decay", (0, 0.01))
def test_every_shape(changes, decay, small, tiny_config, compiled):
    numpy, engine = distances(tiny_config(**{"optimizer": "nag", "weight_decay": decay, **changes}), small, compiled)
    assert engine < 3 * numpy + 1e-7


@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (3, 199, 4), (3, 200, 4), (3, 201, 2), (5, 784, 7), (16, 1000, 9)])
def test_a_product_is_the_sum_of_its_pieces(m, k, n, engine):
    rng = np.random.default_rng(k)
    A, B = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    exact = A.astype(np.float64) @ B
    for op_A, op_B, beta in [(111, 111, 0), (111, 111, 1), (112, 111, 0), (111, 112, 0)]:
        C = np.full((m, n), 2, np.float32)
        ours = np.ascontiguousarray(A.T) if op_A == engine.TRANSPOSED else A
        theirs = np.ascontiguousarray(B.T) if op_B == engine.TRANSPOSED else B
        engine.product(ours, op_A, theirs, op_B, np.float32(beta), C)
        assert C == pytest.approx(exact + 2 * beta, abs=1e-5 * k**0.5)


def test_a_bias_gradient_of_many_rows_loses_no_digits(engine):
    delta = np.full((500_000, 3), 0.1, np.float32)
    db = np.empty(3, np.float32)
    engine.sum_rows(delta, db)
    assert db == pytest.approx(500_000 * float(np.float32(0.1)), rel=1e-7)


def test_the_same_bits_again(small, tiny_config, compiled):
    first, again = (compiled(tiny_config(optimizer="nadam"), small).network.theta for _ in range(2))
    assert np.array_equal(first, again)


def test_the_same_bits_however_many_steps_a_call_takes(small, tiny_config, compiled, engine, monkeypatch):
    whole = compiled(tiny_config(optimizer="adam"), small)
    monkeypatch.setattr(engine, "FLOPS_PER_CALL", 1)
    by_step = compiled(tiny_config(optimizer="adam"), small)
    assert np.array_equal(whole.network.theta, by_step.network.theta)
    assert whole.history[-1]["train_accuracy"] == by_step.history[-1]["train_accuracy"]
    assert whole.history[-1]["train_loss"] == pytest.approx(by_step.history[-1]["train_loss"], rel=1e-12)


def test_the_gradient_is_left_in_the_network(small, tiny_config, compiled):
    config = tiny_config(batch_size=300, epochs=1, weight_decay=0.1, optimizer="sgd")
    network = compiled(config, small).network
    before = helpers.new_network(config, small)
    before.objective(small.x_train, small.y_train, config.loss, config.weight_decay)
    assert network.gradient == pytest.approx(before.gradient, rel=1e-4, abs=1e-7)


# --------------------------------------------------------------------------------------------------------- approximations


@helpers.BLAS.wrap(limits=1, user_api="blas")
def our_fit(top=9.02, degree=4, points=1000, rounds=200):
    """P and Q with the smallest relative error of x P(x^2) / Q(x^2) for tanh(x), 0 < x < top; Q begins with 1.

    Least squares for P - Q tanh(x)/x, which is linear in the coefficients; weights grow where the error is large.
    """
    x = top * (1 - np.cos(np.pi * (np.arange(points) + 0.5) / points)) / 2
    y, f = (x / top) ** 2, np.tanh(x) / x
    powers, weights, Q, best = np.vander(y, degree + 1, increasing=True), np.ones(points), np.ones(points), np.inf
    for _ in range(rounds):
        scale = np.sqrt(weights) / (f * Q)
        columns = np.hstack([powers * scale[:, None], -powers[:, 1:] * (f * scale)[:, None]])
        found = np.linalg.lstsq(columns, f * scale, rcond=None)[0]
        p, q = found[: degree + 1], np.append(1, found[degree + 1 :])
        Q = powers @ q
        error = np.abs(powers @ p / Q / f - 1)
        if error.max() < best:
            best, coefficients = (
                error.max(),
                (p / top ** (2 * np.arange(degree + 1)), q / top ** (2 * np.arange(degree + 1))),
            )
        weights *= error + 1e-3 * error.max()
        weights /= weights.mean()
    return best, *coefficients


def test_the_coefficients_of_tanh_are_those_of_our_fit():
    error, p, q = our_fit()
    assert error < 2.2e-8
    source = (ROOT / "lib" / "engine.py").read_text(encoding="utf-8")
    written = [float(number) for number in re.findall(r"^    [pq] = .*float32\((.*)\)$", source, re.M)]
    assert written == pytest.approx([*p[::-1], *q[:0:-1]], rel=1e-6)  # Q begins with 1


def every_float32(low, high, step=1):
    """All float32 numbers from low to high, both above 0, or each step-th."""
    first, last = (int(np.float32(end).view(np.int32)) for end in (low, high))
    return np.arange(first, last + 1, step, dtype=np.int32).view(np.float32)


def test_tanh_over_all_float32(engine):
    x = np.concatenate([every_float32(1e-45, 3.4e38, 1009), every_float32(9.01, 9.03)])
    x = np.concatenate([x, -x])
    exact = np.tanh(x.astype(np.float64))
    a = x.copy()
    engine.tanh(a)
    assert np.abs(a / np.where(np.abs(x) < 1e-37, x, exact) - 1)[np.abs(x) > 1e-37].max() < 4e-7
    assert np.array_equal(a[np.abs(x) < 1e-37], x[np.abs(x) < 1e-37])
    assert np.abs(a).max() == 1
    engine.sigmoid(z := x.copy())
    assert np.abs(z - (1 + np.tanh(x.astype(np.float64) / 2)) / 2).max() < 2.5e-7
    assert z.min() == 0 and z.max() == 1


def test_exp_over_all_float32_that_a_softmax_meets(engine):
    x = every_float32(1e-45, 200, 10007)
    z = np.stack([np.zeros_like(x), -x], axis=1)
    rows = z.copy()
    for i in range(len(x)):
        engine.exponentials(rows, i)
    exact = np.exp(z[:, 1].astype(np.float64))
    normal = exact > 1.2e-38
    assert np.abs(rows[:, 1] / np.where(normal, exact, 1) - 1)[normal].max() < 2e-7
    assert np.abs(rows[:, 1] - exact)[~normal].max() < 2e-45


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_infinities_and_nan_are_those_of_numpy(name, engine):
    f, derivative = ACTIVATIONS[name]
    ours, slope = engine.FUNCTIONS[f, derivative]
    for size in (8, 64):  # a loop over vectors, and what is left over
        z = np.zeros(size, np.float32)
        z[:4] = np.inf, -np.inf, np.nan, -0.0
        z[-3:] = np.nan, np.inf, -np.inf
        theirs = z.copy()
        f(theirs)
        ours(z)
        assert np.array_equal(z, theirs, equal_nan=True)
        expected, delta = np.empty_like(z), np.full_like(z, np.inf)
        with np.errstate(invalid="ignore"):
            derivative(theirs, expected)
            expected *= delta
        slope(z, delta)
        assert np.array_equal(delta, expected, equal_nan=True)


@pytest.mark.parametrize(
    "row", ([np.inf, 0, 0], [-np.inf, 0, 0], [np.nan, 0, 0], [0, 0, np.nan], [3e38, -3e38, 0], [-3e38, 3e38, 0])
)
@pytest.mark.parametrize("name", ["cross_entropy", "mean_squared_error"])
def test_a_loss_of_extreme_logits_is_that_of_numpy(name, row, engine):
    z, y = np.array([row, [0, 0, 0]], np.float32), np.array([0, 1])
    with np.errstate(all="ignore"):
        value, delta = LOSSES[name](z.copy(), y)
    assert engine.LOSSES[LOSSES[name]](z, y) == pytest.approx(value, nan_ok=True)
    assert z == pytest.approx(delta, nan_ok=True)


# ------------------------------------------------------------------------------------------------------ stops, and goes on


@pytest.mark.parametrize("optimizer", ("sgd", "momentum", "rmsprop", "adam"))
@pytest.mark.parametrize("rate", (1e3, 1e10, 1e30))
@pytest.mark.parametrize("activation", ("ReLU", "identity", "tanh"))
def test_a_loss_that_is_not_finite_ends_it_as_in_numpy(optimizer, rate, activation, small, tiny_config, compiled):
    config = tiny_config(activation=activation, learning_rate=rate, optimizer=optimizer, weight_decay=1e-4)
    numpy, engine = train(config, small), compiled(config, small)
    assert engine.stopped == numpy.stopped
    assert len(engine.history) == len(numpy.history)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("first, second", [("numpy", "compiled"), ("compiled", "numpy"), ("compiled", "compiled")])
def test_a_checkpoint_of_one_backend_goes_on_in_the_other(
    optimizer, first, second, small, tiny_config, tmp_path, engine
):
    config = tiny_config(optimizer=optimizer, learning_rate=RATES[optimizer], epochs=6)
    path = tmp_path / "checkpoint.npz"
    train(dataclasses.replace(config, epochs=3), small, checkpoint=path, backend=first)
    resumed = train(config, small, checkpoint=path, backend=second)
    through = train(config, small, backend=second)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4, 5, 6]
    if first == second:
        assert np.array_equal(resumed.network.theta, through.network.theta)
    else:
        start = train(dataclasses.replace(config, epochs=3), small).network.theta
        moved = np.linalg.norm(through.network.theta - start)
        assert np.linalg.norm(resumed.network.theta - through.network.theta) < 1e-3 * moved


# -------------------------------------------------------------------------------------------------- what has no twin


def test_an_entry_that_a_user_added_trains_in_numpy(small, tiny_config, engine, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "mine", lambda theta, config: helpers.sgd(theta, config))
    monkeypatch.setitem(ACTIVATIONS, "mine", (helpers.tanh, lambda a, out: helpers.tanh_derivative(a, out)))
    monkeypatch.setitem(LOSSES, "mine", lambda z, y: helpers.cross_entropy(z, y))
    for field in ("optimizer", "activation", "loss"):
        config = tiny_config(**{field: "mine"})
        with pytest.warns(UserWarning, match=f"{field} mine has no compiled twin: this training runs in NumPy"):
            warned = train(config, small, backend="compiled")
        assert np.array_equal(warned.network.theta, train(config, small).network.theta)


def test_an_entry_that_replaces_one_of_ours_trains_in_numpy(small, tiny_config, engine, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "rmsprop", lambda theta, config: helpers.sgd(theta, config))
    with pytest.warns(UserWarning, match="optimizer rmsprop has no compiled twin"):
        train(tiny_config(), small, backend="compiled")


def test_a_float64_network_trains_in_numpy(small, tiny_config, engine):
    config = tiny_config()
    networks = [Network([784, *config.widths, 10], rng=np.random.default_rng(0), dtype=np.float64) for _ in range(2)]
    with pytest.warns(UserWarning, match="theta is float64: this training runs in NumPy"):
        train(config, small, network=networks[0], backend="compiled")
    train(config, small, network=networks[1])
    assert np.array_equal(networks[0].theta, networks[1].theta)


def test_a_stack_trains_in_numpy(small, tiny_config, engine):
    from lib.layers import Dense, ReLU, Stack

    stack = Stack([Dense(784, 12), ReLU(), Dense(12, 10)], (784,), np.random.default_rng(0))
    stack.sizes = [784, 12, 10]
    with pytest.warns(UserWarning, match="the network is a Stack: this training runs in NumPy"):
        train(tiny_config(), small, network=stack, backend="compiled")


def test_a_backend_of_another_name_is_refused(small, tiny_config):
    with pytest.raises(InputError, match="backend is 'jax'; allowed: numpy, compiled"):
        train(tiny_config(), small, backend="jax")


# ------------------------------------------------------------------------------------------------ the compiler and its cache


def test_without_numba_a_sentence_names_what_to_install():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import helpers\n"
        "try:\n    import lib.engine\nexcept helpers.InputError as error:\n    print(error)"
    )
    result = python(code)
    assert result.stdout == "Numba is not installed; to train compiled: pip install -r requirements-fast.txt\n", (
        result.stderr
    )


def test_without_a_blas_that_can_be_called_a_sentence_names_what_to_install(engine, monkeypatch):
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda path: object())
    with pytest.raises(InputError, match="^NumPy's BLAS has no cblas_sgemm to call; to train compiled: pip install"):
        engine.find_sgemm()


@pytest.fixture(scope="module")
def cache(engine, tmp_path_factory):
    """A cache that three processes found empty, and how many functions each compiled and read."""
    folder = tmp_path_factory.mktemp("cache")
    code = (
        "import helpers, numba, lib.engine\n"
        "made = [f for f in vars(lib.engine).values() if isinstance(f, numba.core.dispatcher.Dispatcher)]\n"
        "print(*(sum(sum(getattr(f.stats, name).values()) for f in made) for name in ('cache_misses', 'cache_hits')))"
    )
    every = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, cwd=ROOT, env=every, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    return folder, [list(map(int, process.communicate(timeout=300)[0].split())) for process in processes]


def test_processes_wait_for_the_one_that_compiles_and_read_its_code(cache):
    _, counts = cache
    functions = sum(counts[0])
    assert sum(misses for misses, _ in counts) == functions > 20  # each was compiled once, by one of them
    assert sum(hits for _, hits in counts) == 2 * functions


@pytest.mark.parametrize("suffix", (".nbi", ".nbc"))
def test_a_damaged_cache_is_not_needed(suffix, cache):
    for path in cache[0].rglob(f"engine.sgd-*{suffix}"):
        path.write_bytes(path.read_bytes()[:40])
    code = (
        "import numpy as np, helpers, lib.engine as e\n"
        "one = np.ones(1, np.float32)\n"
        "e.sgd(one, one.copy(), one, one, e.Settings(0.25, 0.0, 0.0, 0.0, 0.0, 0.0), 1)\nprint(one[0])"
    )
    assert python(code, NUMBA_CACHE_DIR=str(cache[0])).stdout == "0.75\n"


def test_code_is_kept_where_it_can_be_written(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(engine, "__file__", str(tmp_path / "lib" / "engine.py"))
    assert engine.cache_folder() == str(tmp_path / "lib" / "__pycache__")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(engine, "__file__", str(tmp_path / "file" / "engine.py"))  # as in a checkout that is read-only
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert engine.cache_folder() == str(tmp_path / "home" / ".cache" / "numba")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(engine, "KEPT_FOR_THIS_PROCESS", [])
    folder = engine.cache_folder()
    assert Path(folder).is_dir() and os.environ["NUMBA_CACHE_DIR"] == folder  # for the processes started by this one
    assert engine.cache_folder() == folder


def test_an_interruption_ends_an_epoch(engine, tmp_path):
    code = (
        "import numpy as np, helpers, lib.dataset\n"
        "rng = np.random.default_rng(0)\n"
        "x, y = rng.integers(0, 256, (20_000, 784), np.uint8), rng.integers(0, 10, 20_000, np.uint8)\n"
        "data = lib.dataset.Dataset('fashion_mnist', tuple('abcdefghij'), *[x, y] * 3)\n"
        "config = helpers.Config(num_layers=3, hidden_size=1024, batch_size=128)\n"
        "import lib.engine\nprint('begins', flush=True)\n"
        "helpers.train(config, data, backend='compiled')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    time.sleep(1)
    began = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert time.perf_counter() - began < 2 * 3  # 2 seconds, on a machine that does nothing else


def test_the_arrays_of_a_step_never_delay_each_other(engine):
    arrays = [np.empty(size, np.float32) for size in (200_000, 200_000, 7)]
    copies = engine.spread(arrays)
    offsets = [copy.ctypes.data % 4096 for copy in copies]
    assert offsets == [0, 1024, 2048]
    assert [copy.shape for copy in copies] == [array.shape for array in arrays]


# ---------------------------------------------------------------------------------------------------- the command lines

COMMANDS = {
    "train.py": ["--epochs", "1"],
    "sweep.py": [str(ROOT / "sweeps" / "random.yaml"), "--quick"],
    "grid.py": [],
    "study.py": ["losses"],
}


@pytest.mark.parametrize("program", COMMANDS)
@pytest.mark.parametrize(
    "backend, numba, sentence",
    [
        ("jax", True, "--backend is 'jax'; allowed: numpy, compiled"),
        ("compiled", False, "Numba is not installed; to train compiled: pip install -r requirements-fast.txt"),
    ],
)
def test_a_backend_that_cannot_be_used_is_one_sentence_and_status_2(program, backend, numba, sentence, tmp_path):
    flags = [*COMMANDS[program], "--backend", backend]
    flags += ["--folder", str(tmp_path)] if program in ("sweep.py", "grid.py") else []
    code = f"import sys\nif not {numba}:\n    sys.modules['numba'] = None\n"
    code += f"import {program[:-3]} as program\nsys.exit(program.main({flags!r}))"
    result = python(code, WANDB_MODE="disabled")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"{program}: {sentence}\n")
    assert not list(tmp_path.iterdir())


def test_the_result_of_train_py_names_the_compiler(engine, capsys, monkeypatch, small):
    monkeypatch.setattr(train_py, "load_dataset", lambda name: small)
    for backend in BACKENDS:
        flags = ["--epochs", "2", "--backend", backend, "--wandb_mode", "disabled"]
        assert train_py.main(flags) == 0
        result = json.loads(capsys.readouterr().out)
        assert ("compiled by numba" in result.get("machine", "")) == (backend == "compiled")


def test_the_table_of_a_sweep_names_the_compiler_and_a_row_is_trained_again_to_the_same_bits(
    engine, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("two.yaml").write_text(json.dumps(definition(run_cap=2)))
    table = sweep.run("two.yaml", workers=1, folder=Path("tables"), load=tiny, backend="compiled")
    assert (table.state == "complete").all()
    assert table.machine.str.endswith(f"compiled by numba {engine.numba.__version__}").all()
    again = sweep.rerun("two", 1, Path("tables"), load=tiny)
    assert again["same_machine"] and again["agrees"]


def test_the_table_of_a_study_names_the_compiler_and_a_row_is_trained_again_to_the_same_bits(
    engine, tmp_path, monkeypatch
):
    def here(configs, **options):
        return (train(config, tiny(config.dataset), **options) for config in configs)

    monkeypatch.setattr(study, "train_all", here)
    config = helpers.Config(num_layers=1, hidden_size=8, epochs=2)
    table = study.study("one", [config], tmp_path, store=True, backend="compiled")
    assert "compiled by numba" in table.machine[0]
    again = study.rerun("one", 0, tmp_path)
    assert again["same_machine"] and again["agrees"]
