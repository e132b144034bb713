import signal

import numpy as np
import pytest

import helpers
import lib.dataset

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # where it is ignored, as in a background job, children ignore it


@pytest.fixture(scope="session")
def small():
    """300 + 60 + 60 images that can be learnt: class k is bright in its own band of pixels."""
    rng = np.random.default_rng(7)

    def part(n):
        y = rng.integers(0, 10, n).astype(np.uint8)
        x = rng.integers(0, 90, (n, 784))
        for k in range(10):
            x[y == k, 78 * k : 78 * (k + 1)] += 120
        return x.astype(np.uint8), y

    parts = [array for n in (300, 60, 60) for array in part(n)]
    return lib.dataset.Dataset("fashion_mnist", tuple("abcdefghij"), *parts)


@pytest.fixture(scope="session")
def fashion():
    return lib.dataset.load_dataset("fashion_mnist")


@pytest.fixture
def tiny_config():
    def make(**changes):
        given = {"num_layers": 2, "hidden_size": 9, "batch_size": 32, "epochs": 3, "weight_decay": 0}
        given |= {"optimizer": "rmsprop", "learning_rate": 0.001, "activation": "tanh", "weight_init": "Xavier"}
        return helpers.Config(**{**given, **changes})

    return make
