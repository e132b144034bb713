"""Trainings side by side, each in a process of its own."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from threading import Thread

from helpers import train
from lib.dataset import load_dataset


def train_all(configs, processes=None, **options):
    """Train many: each config on its own data set in a process of its own, as many side by side as there are cores.

    options go to `train`. Yields the Trainings in the order of configs, each as soon as it is done.
    """
    with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"), end_with_parent) as pool:
        yield from pool.map(partial(_train_one, options), configs)


def end_with_parent():
    """Do not train on, unseen, where the parent was killed."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _train_one(options, config):
    return train(config, load_dataset(config.dataset), **options)
