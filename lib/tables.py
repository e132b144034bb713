"""Tables of trainings: written whole, read back, and each row trained again and compared."""

import json
import platform
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from helpers import BLAS, METRICS, Config
from lib.files import write_atomically

FIELDS = [f.name for f in fields(Config)]
HISTORIES = [f"{metric}_history" for metric in METRICS]
RESULTS = ["seconds", *METRICS, "best_val_accuracy", "best_epoch", "stopped"]  # of train_and_log
COLUMNS = ["number", "state", "created", *FIELDS, *RESULTS, "machine", *HISTORIES]


@cache
def machine():
    """What the bits of a training depend on, besides its Config and this project."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    blas = BLAS.info()  # SciPy has one of its own, which no training calls
    blas = [one for one in blas if "numpy" in one["filepath"]] or blas
    blas = [f"{one['internal_api']} {one['version']} {one['architecture']}" for one in blas]
    return ", ".join([found[1] if found else platform.machine(), f"numpy {np.__version__}", *blas])


def failure(why):
    """What stands in a table for a trial that could not be trained."""
    return {"state": "failed", "machine": machine(), "stopped": why, **{name: [] for name in HISTORIES}}


def write_table(path, table):
    """Write a table with the metrics of all epochs to a .csv file: its lists as JSON, and whole or not at all."""
    with write_atomically(path) as file:
        table.assign(**{name: table[name].map(json.dumps) for name in HISTORIES}).to_csv(file, index=False)


def read_table(path, **options):
    """The table that `write_table` wrote; options go to pandas."""
    import pandas as pd

    return pd.read_csv(path, converters=dict.fromkeys(HISTORIES, json.loads), **options)


def config_of(row):
    """The Config in a row of a table."""
    return Config(**{f.name: f.type(row[f.name]) for f in fields(Config)})


def agree(then, now, same_machine):
    """Whether two histories of val_accuracy, one value per epoch, are of one training.

    On one machine they are equal to the last bit. Another rounds sums otherwise, which a training magnifies: there the
    last values may differ by 0.01, or by twice what it moves from one epoch to the next in its second half: all of
    `now`, and `then` without its last value, which is in question.
    """
    if same_machine or not (len(then) and len(now)):
        return list(then) == list(now)
    steps = [2 * np.abs(np.diff(one)).max(initial=0) for one in (then[len(then) // 2 : -1], now[len(now) // 2 :])]
    return bool(abs(then[-1] - now[-1]) < max(0.01, *steps))
