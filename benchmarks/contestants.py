"""What peers.py measures, in processes of their own: the peers, which train an epoch at a time, and the tasks.

A process of this file answers each line of JSON on its standard input with one on its standard output.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

cpu_seconds = time.process_time  # on one thread, what the epoch takes where nothing else wants the core
BEGAN = time.perf_counter()
import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import helpers  # noqa: E402
import lib.dataset  # noqa: E402

IMPORTED = time.perf_counter() - BEGAN


def sizes_of(config):
    """The widths of a network: 784 pixels, the hidden layers, 10 classes."""
    return [784, *config.widths, 10]


# ---------------------------------------------------------------------------------------------------------------- peers
# A peer is a generator: peer(config, data, theta, order). It prepares and compiles, yields once, and then trains one
# epoch and yields (CPU seconds, mean loss) each time it is resumed. theta: [W_1, b_1, W_2, b_2, ...], the first
# weights; order(epoch): the order of the images. No peer but ours keeps the logits, to count the accuracy.


def floor(config, data, theta, order):
    """The bare matrix products of an epoch, into buffers allocated once: what no NumPy network can go below."""
    rng, sizes, n = np.random.default_rng(0), sizes_of(config), len(data.x_train)
    Ws, dWs = theta[::2], [np.empty_like(W) for W in theta[::2]]

    def buffers(batch):
        inputs = [rng.random((batch, size), np.float32) for size in sizes]
        return inputs, [np.empty_like(a) for a in inputs]

    def products(inputs, outputs):
        for a, W, z in zip(inputs, Ws, outputs[1:]):
            np.matmul(a, W, out=z)
        for l in reversed(range(len(Ws))):
            np.matmul(inputs[l].T, inputs[l + 1], out=dWs[l])
            if l > 0:
                np.matmul(inputs[l + 1], Ws[l].T, out=outputs[l])

    steps, rest = divmod(n, config.batch_size)
    full, last = buffers(config.batch_size), buffers(rest)
    yield
    while True:
        began = cpu_seconds()
        for _ in range(steps):
            products(*full)
        if rest:
            products(*last)
        yield cpu_seconds() - began, float("nan")


def ours(config, data, theta, order, backend="numpy"):
    """helpers.train, which calls back after each epoch; in a thread of its own it can wait there for the next round."""
    from queue import SimpleQueue
    from threading import Thread

    go_on, rows = SimpleQueue(), SimpleQueue()
    data = dataclasses.replace(data, x_val=data.x_val[:1], y_val=data.y_val[:1])  # the others do not validate

    def on_epoch(row):
        rows.put(row)
        return go_on.get()

    def run():
        try:
            if not go_on.get():
                helpers.train(config, data, on_epoch, backend=backend)
        finally:
            rows.put(None)

    if backend == "compiled":
        import lib.engine  # noqa: F401  compiled here, or read from its cache

    Thread(target=run, daemon=True).start()
    try:
        yield
        while True:
            began = cpu_seconds()
            go_on.put(None)
            row = rows.get()
            if row is None:
                raise RuntimeError("helpers.train ended early")
            yield cpu_seconds() - began, row["train_loss"]
    finally:
        go_on.put("closed")


def ours_compiled(config, data, theta, order):
    """The same with the steps of lib/engine.py."""
    return ours(config, data, theta, order, backend="compiled")


def with_torch(config, data, theta, order, compiled=False):
    """PyTorch as its tutorials write it; images float32, scaled once (faster than uint8 here, with 4 times the memory).

    compiled: forward, loss and backward under torch.compile, the optimiser's step under another.
    """
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    x_train = torch.from_numpy(data.x_train.astype(np.float32) / 255)
    y_train = torch.from_numpy(data.y_train.astype(np.int64))
    n, batch = len(x_train), config.batch_size
    layers = []
    for n_in, n_out in zip(sizes_of(config), sizes_of(config)[1:]):
        layers += [nn.Linear(n_in, n_out), nn.Tanh() if config.activation == "tanh" else nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    parameters = list(model.parameters())

    def set_weights():
        with torch.no_grad():
            for p, first in zip(parameters, theta):
                p.copy_(torch.from_numpy(first.T.copy()))

    set_weights()
    eta, betas = config.learning_rate, (config.beta1, config.beta2)
    optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=eta),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=eta, alpha=config.beta, eps=config.epsilon),
        "adam": lambda: torch.optim.Adam(parameters, lr=eta, betas=betas, eps=config.epsilon),
        "nadam": lambda: torch.optim.NAdam(parameters, lr=eta, betas=betas, eps=config.epsilon),
    }[config.optimizer]()

    def loss_of(x, y):
        return cross_entropy(model(x), y)

    step = optimizer.step
    if compiled:
        torch._dynamo.reset()
        loss_of, step = torch.compile(loss_of, dynamic=False), torch.compile(step)

    def epoch(indices):
        total = torch.zeros(())
        for i in range(0, len(indices), batch):
            chosen = indices[i : i + batch]
            optimizer.zero_grad()
            loss = loss_of(x_train[chosen], y_train[chosen])
            loss.backward()
            step()
            total += loss.detach() * len(chosen)
        return float(total) / len(indices)

    for _ in range(3 if compiled else 1):  # compile for both sizes of batch, then undo what the steps did
        epoch(torch.arange(batch + n % batch))
    set_weights()
    for state in optimizer.state.values():
        for name, value in state.items():
            value.fill_(1.0 if name == "mu_product" else 0.0)
    yield
    for number in range(1, 10**6):
        began = cpu_seconds()
        loss = epoch(torch.from_numpy(order(number)))
        yield cpu_seconds() - began, loss


def with_compile(config, data, theta, order):
    """PyTorch, compiled."""
    return with_torch(config, data, theta, order, compiled=True)


def with_jax(config, data, theta, order):
    """A whole epoch in one compiled program: lax.scan over the full batches, then the smaller last one."""
    import jax
    import jax.numpy as jnp

    eta, eps, beta, beta1, beta2 = (getattr(config, k) for k in ("learning_rate", "epsilon", "beta", "beta1", "beta2"))

    def sgd(theta, m, v, g, t):
        return theta - eta * g, m, v

    def rmsprop(theta, m, v, g, t):
        v = beta * v + (1 - beta) * g * g
        return theta - eta * g / (jnp.sqrt(v) + eps), m, v

    def adam(theta, m, v, g, t):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        return theta - eta * m / (1 - beta1**t) / (jnp.sqrt(v / (1 - beta2**t)) + eps), m, v

    def nadam(theta, m, v, g, t):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        ahead = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
        return theta - eta * ahead / (jnp.sqrt(v / (1 - beta2**t)) + eps), m, v

    rule = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam, "nadam": nadam}[config.optimizer]

    f = {"tanh": jnp.tanh, "ReLU": jax.nn.relu}[config.activation]

    def loss_of(theta, x, y):
        a = x
        for W, b in zip(theta[:-2:2], theta[1:-2:2]):
            a = f(a @ W + b)
        log_p = jax.nn.log_softmax(a @ theta[-2] + theta[-1])
        return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], axis=1))

    def epoch(state, x_train, y_train, full, last):
        def step(state, chosen):
            theta, m, v, t = state
            x = x_train[chosen].astype(jnp.float32) * (1 / 255)
            loss, g = jax.value_and_grad(loss_of)(theta, x, y_train[chosen])
            updated = [rule(*arrays, t + 1) for arrays in zip(theta, m, v, g)]
            return (*map(list, zip(*updated)), t + 1), loss * len(chosen)

        state, losses = jax.lax.scan(step, state, full)
        total = losses.sum()
        if len(last):
            state, loss = step(state, last)
            total += loss
        return state, total / len(x_train)

    n, batch = len(data.x_train), config.batch_size
    cut = n - n % batch

    def batches(indices):
        indices = indices.astype(np.int32)
        return indices[:cut].reshape(-1, batch), indices[cut:]

    x_train, y_train = jnp.asarray(data.x_train), jnp.asarray(data.y_train.astype(np.int32))
    zeros = [jnp.zeros_like(p) for p in theta]
    state = [jnp.asarray(p) for p in theta], zeros, [z + 0 for z in zeros], jnp.float32(0)
    program = jax.jit(epoch, donate_argnums=0).lower(state, x_train, y_train, *batches(order(1))).compile()
    yield
    for number in range(1, 10**6):
        began = cpu_seconds()
        state, loss = program(state, x_train, y_train, *batches(order(number)))
        loss = float(loss)
        yield cpu_seconds() - began, loss


def with_sklearn(config, data, theta, order):
    """MLPClassifier, an epoch per partial_fit. It gets the images float32, scaled and in order, outside of the time."""
    from sklearn.neural_network import MLPClassifier

    x_train = data.x_train.astype(np.float32) / 255
    network = MLPClassifier(
        sizes_of(config)[1:-1],
        activation=config.activation.lower(),
        solver="sgd" if config.optimizer == "sgd" else "adam",
        alpha=0,
        batch_size=config.batch_size,
        learning_rate_init=config.learning_rate,
        momentum=0,
        nesterovs_momentum=False,
        beta_1=config.beta1,
        beta_2=config.beta2,
        epsilon=config.epsilon,
        shuffle=False,
    )
    network.partial_fit(x_train[: config.batch_size], data.y_train[: config.batch_size], classes=range(10))
    for array, first in zip(network.coefs_ + network.intercepts_, theta[::2] + theta[1::2]):
        array[:] = first
    del network._optimizer  # so that the next call starts a new one
    yield
    for number in range(1, 10**6):
        indices = order(number)
        x, y = x_train[indices], data.y_train[indices]
        began = cpu_seconds()
        network.partial_fit(x, y)
        yield cpu_seconds() - began, float(network.loss_)


def with_keras(config, data, theta, order):
    """Keras on JAX, an epoch per fit. It gets the images float32, scaled and in order, outside of the time."""
    import keras

    keras.utils.clear_session()
    hidden = [keras.layers.Dense(size, activation=config.activation.lower()) for size in sizes_of(config)[1:-1]]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    model.set_weights(theta)
    eta, betas = config.learning_rate, {"beta_1": config.beta1, "beta_2": config.beta2, "epsilon": config.epsilon}
    optimizer = {
        "sgd": lambda: keras.optimizers.SGD(eta),
        # Keras adds epsilon to v under the root: squared there, both forms agree for v = 0 and for large v
        "rmsprop": lambda: keras.optimizers.RMSprop(eta, rho=config.beta, epsilon=config.epsilon**2),
        "adam": lambda: keras.optimizers.Adam(eta, **betas),
        "nadam": lambda: keras.optimizers.Nadam(eta, **betas),
    }[config.optimizer]()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    before = [np.array(variable) for variable in variables]
    x_train = data.x_train.astype(np.float32) / 255

    def fit(indices):
        x, y = x_train[indices], data.y_train[indices]
        began = cpu_seconds()
        fitted = model.fit(x, y, batch_size=config.batch_size, epochs=1, shuffle=False, verbose=0)
        return cpu_seconds() - began, fitted.history["loss"][-1]

    fit(np.arange(config.batch_size + len(x_train) % config.batch_size))  # compile for both sizes of batch, and undo it
    for variable, value in zip(variables, before):
        variable.assign(value)
    yield
    for number in range(1, 10**6):
        yield fit(order(number))


PEERS = {
    "floor": floor,
    "ours": ours,
    "compiled": ours_compiled,
    "jax": with_jax,
    "torch": with_torch,
    "compile": with_compile,
    "sklearn": with_sklearn,
    "keras": with_keras,
}


def serve(name):
    """Start a case for each request that names one, and train its next epoch for each that is empty."""
    data, running = lib.dataset.load_dataset(), None
    for line in sys.stdin:
        request = json.loads(line)
        began, cpu = time.perf_counter(), time.process_time()
        if request:
            if running:
                running.close()
            config = helpers.Config(**request)
            first = first_weights(config)
            running = PEERS[name](config, data, first, epoch_order(config, len(data.x_train)))
            next(running)
            answer = {"prepare": time.perf_counter() - began}
        else:
            seconds, loss = next(running)
            share = (time.process_time() - cpu) / (time.perf_counter() - began)
            answer = {"seconds": seconds, "loss": loss, "share": share}
        yield answer


def first_weights(config):
    """[W_1, b_1, W_2, b_2, ...] as helpers.train draws them."""
    rng = np.random.default_rng([config.seed, 0])
    network = helpers.Network(sizes_of(config), config.activation, config.weight_init, rng)
    return [array.copy() for pair in zip(network.W, network.b) for array in pair]


def epoch_order(config, n):
    """order(epoch): the permutation in which helpers.train takes the images of that epoch, from 1."""
    return lambda epoch: np.random.default_rng([config.seed, epoch]).permutation(n)


# ---------------------------------------------------------------------------------------------------------------- tasks
# What a run of ours costs besides its steps: generators, which answer once per request.


def first_load(_):
    """Load the data set from a copy without a cache: decode it and write the cache, then read that."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(lib.dataset.DATA_DIR / "fashion_mnist", Path(folder) / "fashion_mnist")
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            lib.dataset.load_dataset(data_dir=folder)
            seconds.append(time.perf_counter() - began)
    yield {}
    yield {"import": IMPORTED, "first": seconds[0], "later": seconds[1]}


def evaluation(args):
    """Evaluate a network on the 10,000 test images."""
    config, data = helpers.Config(**args["config"]), lib.dataset.load_dataset()
    network = helpers.Network(sizes_of(config))
    yield {}
    while True:
        began = time.perf_counter()
        helpers.evaluate(network, data.x_test, data.y_test)
        yield {"seconds": time.perf_counter() - began}


def whole_training(args):
    """A training with validation, history, the best weights kept and a checkpoint after each epoch."""
    config, data = helpers.Config(**args["config"]), lib.dataset.load_dataset()
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            rows = helpers.train(config, data, keep_best=True, checkpoint=Path(folder) / "checkpoint.npz").history
            whole = time.perf_counter() - began
        steps = sum(row["step_seconds"] for row in rows)
        evaluations = sum(row["seconds"] for row in rows) - steps
        seconds = {"steps": steps, "evaluation": evaluations, "rest": whole - steps - evaluations, "whole": whole}
        yield {name: value / config.epochs for name, value in seconds.items()}


def training(args):
    """A training of ours on the first args["n"] images by args["backend"], for its steps and its memory."""
    backend = args.get("backend", "numpy")
    config, data = helpers.Config(**args["config"]), lib.dataset.load_dataset()
    n = args.get("n", len(data.x_train))
    few = {"x_val": data.x_val[:1000], "y_val": data.y_val[:1000]} if n < len(data.x_train) else {}
    data = dataclasses.replace(data, x_train=data.x_train[:n], y_train=data.y_train[:n], **few)
    parameters = sum((n_in + 1) * n_out for n_in, n_out in zip(sizes_of(config), sizes_of(config)[1:]))
    yield {"parameters": parameters}
    used = {}

    def on_epoch(row):
        if row["epoch"] == config.epochs:
            used.update(memory())

    while True:
        began = time.perf_counter()
        seconds = [row["step_seconds"] for row in helpers.train(config, data, on_epoch, backend=backend).history]
        yield {"seconds": seconds, "whole": time.perf_counter() - began, **used}


def sweep_random(args):
    """The sweep of sweeps/random.yaml, from its first trial to its table."""
    import sweep

    os.environ["WANDB_MODE"] = "disabled"
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            sweep.run(sweep.ROOT / "sweeps" / "random.yaml", folder=folder, backend=args["backend"])
            yield {"seconds": time.perf_counter() - began}


def grid_rows(args):
    """The first 100 rows of the grid, side by side, all their epochs."""
    from lib.anova import config_of, load_grid
    from lib.parallel import train_all

    configs = [config_of(row) for row in load_grid().head(100).to_dict("records")]
    yield {}
    while True:
        began = time.perf_counter()
        for _ in train_all(configs, backend=args["backend"]):
            pass
        yield {"seconds": time.perf_counter() - began}


def five_seeds(args):
    """The selected configuration with five seeds, side by side: the val_accuracy of each one's best epoch."""
    from lib.parallel import train_all

    configs = [helpers.Config(seed=seed) for seed in range(5)]
    yield {}
    while True:
        began = time.perf_counter()
        trainings = list(train_all(configs, keep_best=True, backend=args["backend"]))
        best = [max(row["val_accuracy"] for row in training.history) for training in trainings]
        accuracies = {f"val_accuracy {seed}": accuracy for seed, accuracy in enumerate(best)}
        yield {"seconds": time.perf_counter() - began, **accuracies}


def memory():
    """MB: most that was ever resident, and now private to the process, which is what one process more would add."""
    import psutil

    about = psutil.Process().memory_full_info()
    status = Path("/proc/self/status")
    if status.exists():
        peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    else:
        peak = getattr(about, "peak_wset", about.rss)
    return {"peak": peak / 1e6, "private": about.uss / 1e6}


TASKS = {
    task.__name__: task
    for task in (first_load, evaluation, whole_training, training, sweep_random, grid_rows, five_seeds)
}


def main(name, args):
    """Answer on what was standard output; whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running = None if name in PEERS else TASKS[name](args)
    try:
        for answer in serve(name) if name in PEERS else (next(running) for _ in sys.stdin):
            print(json.dumps(answer), file=out, flush=True)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
