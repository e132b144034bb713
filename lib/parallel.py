"""Trainings side by side, each in a process of its own."""

import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from signal import SIG_BLOCK, SIG_SETMASK, SIGINT, pthread_sigmask
from threading import Thread

import cloudpickle

import helpers
from helpers import InputError, number, train
from lib.dataset import load_dataset

FAMILIES = ("ACTIVATIONS", "LOSSES", "WEIGHT_INITS", "OPTIMIZERS", "DATASETS")


def train_all(configs, processes=None, **options):
    """Train many: each config on its own data set in a process of its own, as many side by side as there are cores.

    What has been added to OPTIMIZERS, ACTIVATIONS and the like, even in a notebook, is sent along. options go to
    `train`. Yields the Trainings in the order of configs, each as soon as it is done. Raises InputError if an entry
    cannot be sent, or if a process dies.
    """
    if processes is not None:
        processes = number("processes", processes, int, "[1, inf)")
    families = {name: getattr(helpers, name) for name in FAMILIES}
    try:
        shared = cloudpickle.dumps((families, options))  # once for all: an entry may hold a data set
        orders = [cloudpickle.dumps(config) for config in configs]
    except Exception as error:  # each object that cannot be pickled has its own
        what = f"an entry of {', '.join(FAMILIES)}, or an option of train,"
        raise InputError(f"{what} cannot be sent to another process: {error}") from None
    with process_pool(processes) as pool:
        with deaf_to_ctrl_c():
            waiting = deque(pool.submit(_train_one, shared, order) for order in orders)
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def process_pool(processes=None):
    """Open a pool of processes, one for each core unless told; whatever ends the block early ends their work, too.

    Raises InputError if a process dies.
    """
    others = set(active_children())
    with ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"), end_with_parent) as pool:
        try:
            yield pool
        except BaseException as error:  # an interrupt, or nobody wants the rest: do not wait for it
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                sentence = "a process that trained has died; allowed: fewer side by side, if memory ran out"
                raise InputError(sentence) from None
            raise


@contextmanager
def deaf_to_ctrl_c():
    """Let the processes started in here not be interrupted by Ctrl-C, which a terminal sends to all: we end them."""
    before = pthread_sigmask(SIG_BLOCK, {SIGINT})
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


def end_with_parent():
    """Do not train on, unseen, if the parent is killed."""
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def _train_one(shared, order):
    families, options = cloudpickle.loads(shared)
    config = cloudpickle.loads(order)
    for name, entries in families.items():
        getattr(helpers, name).update(entries)
    return train(config, load_dataset(config.dataset), **options)
