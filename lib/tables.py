"""Tables of trainings: stored whole, read only if undamaged, and each row trained again and compared.

A table is a CSV file in UTF-8 (`.csv`, or compressed: `.csv.gz`), one row for each training. A list is stored as JSON,
the widths of several layers as "256 128". `tables.sha256` beside the tables has their checksums, as sha256sum writes
them; a table that is not listed there is not checked.

If a field of Config or a metric was added after a table was written, it takes its default (a metric: none). Any other
column that is missing, and any that is not known, is an error: without it a row cannot be trained again.
"""

import csv
import gzip
import io
import json
import math
import os
import platform
import re
import sys
import zlib
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers import BLAS, METRICS, Config, InputError
from lib.families import plain
from lib.files import locked, write_atomically

try:
    import fcntl
except ImportError:  # on Windows, where tables are not locked
    fcntl = None

FIELDS = [f.name for f in fields(Config)]
HISTORIES = [f"{metric}_history" for metric in METRICS]
SINCE_THE_FIRST = {  # columns that every table has had; fields and metrics added later may be missing
    *("dataset", "epochs", "batch_size", "loss", "optimizer", "learning_rate", "momentum", "beta", "beta1", "beta2"),
    *("epsilon", "weight_decay", "weight_init", "num_layers", "hidden_size", "activation", "seed"),
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
}
SUMS = "tables.sha256"
LIMIT = 2**28  # bytes of a table: a file that unpacks to more is none of ours
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
REMEDY = "restore the file (`git checkout` if it is a committed one), or delete it and train it again"

csv.field_size_limit(LIMIT)  # the history of a long training is a long cell


@cache
def machine(backend="numpy"):
    """Return what the bits of a training depend on, besides its Config, its `backend` and this project."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else None
    blas = BLAS.info()  # SciPy has one of its own, which no training calls
    blas = [one for one in blas if "numpy" in one["filepath"]] or blas
    blas = [f"{one['internal_api']} {one['version']} {one['architecture']}" for one in blas]
    numba = [f"compiled by numba {version('numba')}"] if backend == "compiled" else []
    return ", ".join([found[1] if found else platform.machine(), f"numpy {np.__version__}", *blas, *numba])


def backend_of(row):
    """Return the backend that has trained a row of a table, which its machine tells."""
    return "compiled" if ", compiled by " in str(row["machine"]) else "numpy"


def failure(why):
    """Return what stands in a table for a trial that could not be trained."""
    return {"state": "failed", "machine": machine(), "stopped": why, **{name: [] for name in HISTORIES}}


def config_of(row):
    """Make the Config of a row of a table; a field that is missing takes its default.

    Raises InputError if a value is not allowed.
    """
    return Config(**{name: _widths(row[name]) for name in FIELDS if name in row and row[name] is not None})


def _widths(value):
    """Return the value of a cell; "256 128", the widths of several layers, as a tuple."""
    several = isinstance(value, str) and re.fullmatch(r"[0-9]+( [0-9]+)+", value)
    return tuple(int(width) for width in value.split()) if several else value


# -------------------------------------------------------------------------------------------------------------- columns


class Column(NamedTuple):
    """A column of a stored table: how a cell is read, and what is allowed in it."""

    parse: object  # text -> value, or ValueError
    allowed: str
    missing: object = math.nan  # the value of an empty cell
    optional: bool = False  # a cell may be empty
    young: bool = False  # the column may be missing


def whole(text):
    """Read a whole number from 0; pandas writes 20.0 if a value is missing in the same column."""
    found = re.fullmatch(r"([0-9]{1,18})(\.0)?", text)
    if not found:
        raise ValueError
    return int(found[1])


def number(text, low=-math.inf, high=sys.float_info.max):
    """Read a finite number from `low` to `high`."""
    if not DECIMAL.fullmatch(text) or not low <= (value := float(text)) <= high:
        raise ValueError
    return value


def words(text):
    """Read text without control characters, except ends of lines."""
    if not text.strip() or re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text):
        raise ValueError
    return text


def setting(text):
    """Read a value of Config: a whole number, a number, the widths of several layers, or a name."""
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    with suppress(ValueError):
        return number(text)
    return _widths(words(text))


def listed(text, parse):
    """Read a JSON list; `parse` reads each item."""
    if text[:1] + text[-1:] != "[]":
        raise ValueError
    return [parse(one.strip()) for one in text[1:-1].split(",")] if text != "[]" else []


def one_of(values, parse=words):
    """Make a column in which only these values are allowed."""
    allowed = ", ".join(map(str, values))

    def choose(text):
        if (value := parse(text)) not in values:
            raise ValueError
        return value

    return Column(choose, allowed, None)


def optional(column):
    """Make the same column, in which a cell may be empty."""
    return column._replace(optional=True)


def series(column):
    """Make a column of lists, each with a value of `column` for each epoch; an empty cell is an empty list."""
    return Column(partial(listed, parse=column.parse), f"a JSON list, each item {column.allowed}", [], optional=True)


def moment(text):
    """Read a local date and time, as `created` has it: without a zone, which could not be compared with others."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", text, re.ASCII):
        raise ValueError
    return datetime.fromisoformat(text)


def metric_column(name):
    """Make the column of a metric: an accuracy is from 0 to 1, a loss is not negative."""
    if name.endswith("accuracy"):
        return ACCURACY
    return LOSS if name.endswith("loss") else NUMBER


COUNT = Column(whole, "a whole number from 0")
NUMBER = Column(number, "a finite number")
LOSS = SECONDS = Column(partial(number, low=0), "a finite number from 0")
ACCURACY = Column(partial(number, low=0, high=1), "a number from 0 to 1")
TEXT = Column(words, "text without control characters", None)
TIME = Column(moment, "a date and time, as in 2026-11-23 16:16:38")
YOUNG = {*FIELDS, *METRICS} - SINCE_THE_FIRST
CONFIG = {name: Column(setting, "a value of Config", None, name in YOUNG, name in YOUNG) for name in FIELDS}
MEASURED = {name: optional(metric_column(name))._replace(young=name in YOUNG) for name in METRICS}
CURVES = {f"{name}_history": series(metric_column(name))._replace(young=name in YOUNG) for name in METRICS}
SWEEP = {
    "number": COUNT,
    "state": one_of(["complete", "pruned", "not finite", "failed", "running"]),
    "created": TIME,
    **CONFIG,
    "seconds": optional(SECONDS),
    **MEASURED,
    "best_val_accuracy": optional(ACCURACY),
    "best_epoch": optional(COUNT),
    "stopped": optional(TEXT),
    "machine": optional(TEXT),  # W&B does not tell that of its runs
    **CURVES,
}
COLUMNS = list(SWEEP)
RESULTS = COLUMNS[COLUMNS.index("seconds") : COLUMNS.index("machine")]  # of train_and_log


# ---------------------------------------------------------------------------------------------------- files, whole only


@contextmanager
def _lock(folder, alone=False):
    """Keep other processes from changing the tables of a folder; with `alone`, from reading them, too."""
    if not fcntl:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _sums(folder):
    """Read the checksums in tables.sha256, {file name: [checksum]}: two for a file that was being replaced."""
    path = folder / SUMS
    sums = {}
    if path.exists():
        for line in path.read_bytes().decode("utf-8", "replace").splitlines():
            found = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
            if not found:
                raise InputError(f"{path} has the line {line[:90]!r}; allowed: a checksum and a file name; {REMEDY}")
            sums.setdefault(found[2], []).append(found[1])
    return sums


def _write_sums(folder, sums):
    lines = [f"{checksum}  {name}\n" for name in sorted(sums) for checksum in sums[name]]
    with write_atomically(folder / SUMS) as file:
        file.write("".join(lines).encode())


def store(path, data):
    """Write bytes to a file, whole or not at all, and their checksum to tables.sha256 beside it.

    While the file is replaced, the checksums of the old one and of the new one are listed: a stop at any moment leaves
    a file that is listed.
    """
    path = Path(path)
    with _lock(path.parent, alone=True):
        sums = _sums(path.parent)
        new = sha256(data).hexdigest()
        old = [sha256(path.read_bytes()).hexdigest()] if path.exists() else []
        _write_sums(path.parent, sums | {path.name: [*old, new]})
        with write_atomically(path) as file:
            file.write(data)
        _write_sums(path.parent, sums | {path.name: [new]})


def fetch(path):
    """Read a file: its bytes, and a sentence if their checksum is not the listed one, else None.

    Raises InputError if the file cannot be read.
    """
    path = Path(path)
    try:
        with _lock(path.parent):
            if path.stat().st_size > LIMIT:
                raise InputError(f"{path} has more than {LIMIT:,} bytes; allowed: a table; {REMEDY}")
            data = path.read_bytes()
            sums = _sums(path.parent)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if path.name in sums and sha256(data).hexdigest() not in sums[path.name]:
        remedy = f"{REMEDY}; if you changed it on purpose, delete its line there"
        return data, f"{path} has changed: its checksum is not the one in {path.with_name(SUMS)}; {remedy}"
    return data, None


def write_json(path, about):
    """Write a dictionary to a .json file, whole or not at all."""
    store(path, json.dumps(about, indent=1, allow_nan=False).encode())


def read_json(path):
    """Read the dictionary that `write_json` wrote. Raises InputError if the file is missing or damaged."""
    data, changed = fetch(path)
    try:
        about = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); {REMEDY}") from None
    if changed or not isinstance(about, dict):
        raise InputError(changed or f"{path} is a JSON {type(about).__name__}; allowed: an object; {REMEDY}")
    return about


def _cell(value):
    """Return what is written for a value: of a list JSON, of several widths "256 128"."""
    if isinstance(value, list):
        return json.dumps(value, allow_nan=False)
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def write_table(path, table):
    """Write a DataFrame to a .csv or .csv.gz file, whole or not at all, and its checksum."""
    path = Path(path)
    text = table.assign(**{name: table[name].map(_cell) for name in table if table[name].dtype == object})
    data = text.to_csv(index=False, lineterminator="\n").encode()
    store(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def add_row(path, read, row, key):
    """Add a row to a stored table, or put it in place of the one with its key, whoever else is adding one.

    read(path): the table, without rows if there is none yet. key: names of columns, by which the table is sorted.
    """
    import pandas as pd  # half a second, which workers save

    with locked(path, wait=True):
        table = pd.DataFrame([*read(path).to_dict("records"), row])
        write_table(path, table.drop_duplicates(key, keep="last").sort_values(key))


def refuse_loss(path, kept, found, what="trials", storage="the storage"):
    """Raise InputError if the table at `path` has rows (the set `kept`) that are not in `found`, those of `storage`."""
    if lost := len(kept - found):
        remedy = "another --folder, or to move that file away"
        raise InputError(f"{path} would lose {lost:,} {what}, which {storage} does not have; allowed: {remedy}")


def read_table(path, columns, check=None, unique=()):
    """Read a stored table as a DataFrame; all of it is checked before anything is returned.

    columns: {name: Column} of this kind of table. check(row): raises InputError for a row that contradicts itself.
    unique: columns whose values, taken together, no two rows share. Raises InputError, naming file and place, if the
    table is missing, damaged or of another kind.
    """
    import pandas as pd  # half a second, which workers save

    data, changed = fetch(path)
    header, *rows = _lines(path, data)
    _check_header(path, header, columns)
    cells = dict(zip(header, zip(*rows)))
    values = {name: _values(path, name, columns[name], cells.get(name, [""] * len(rows))) for name in columns}
    if CONFIG.items() <= columns.items():
        values |= _settings(path, values, len(rows))
    for i, row in enumerate(zip(*values.values())) if check else ():
        try:
            check(dict(zip(columns, row)))
        except InputError as error:
            raise InputError(f"{path}, row {i}: {error}; {REMEDY}") from None
    _check_unique(path, {name: values[name] for name in unique})
    if changed:
        raise InputError(changed)
    return pd.DataFrame({name: values[name] for name in columns})


def _lines(path, data):
    """Return the cells of a CSV file, line by line."""
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            raise InputError(f"{path} unpacks to more than {LIMIT:,} bytes; allowed: a table; {REMEDY}")
        text = data.decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); allowed: CSV in UTF-8; {REMEDY}") from None
    if not text.endswith("\n"):
        raise InputError(f"{path} ends in the middle of a line; allowed: whole lines; {REMEDY}")
    for i, line in enumerate(lines):
        if len(line) != len(lines[0]):
            raise InputError(f"{path}, row {i - 1} has {len(line)} cells; allowed: {len(lines[0])}; {REMEDY}")
    return lines


def _check_header(path, header, columns):
    """Raise InputError unless these are the columns of this kind of table, each once."""
    for name in header:
        if name not in columns or header.count(name) > 1:
            what = "twice" if name in columns else "which is not known"
            raise InputError(f"{path} has the column {name[:50]!r}, {what}; allowed: {', '.join(columns)}; {REMEDY}")
    for name, column in columns.items():
        if name not in header and not column.young:
            raise InputError(f"{path} does not have the column {name!r}; allowed: {', '.join(columns)}; {REMEDY}")


def _values(path, name, column, cells):
    """Return the values of the cells of a column; each text is read once, however often it occurs."""
    values = {"": column.missing} if column.optional else {}
    for text in dict.fromkeys(cells):
        try:
            values[text] = values[text] if text in values else column.parse(text)
        except ValueError:
            place = f"{path}, row {cells.index(text)}, column {name} is {text[:50]!r}"
            raise InputError(f"{place}; allowed: {column.allowed}; {REMEDY}") from None
    if isinstance(column.missing, list):
        return [[*values[text]] for text in cells]  # a list for each row, which its reader may change
    return [values[text] for text in cells]


def _settings(path, values, count):
    """Return the fields of Config as Config has them: each of the `count` rows must be a training that it allows."""
    configs = []
    for i in range(count):
        try:
            configs.append(asdict(config_of({name: values[name][i] for name in FIELDS if name in values})))
        except InputError as error:
            raise InputError(f"{path}, row {i}: {error}; {REMEDY}") from None
    return {name: [config[name] for config in configs] for name in FIELDS if name in values}


def _check_unique(path, values):
    """Raise InputError if two rows have the same values, {name: a value for each row}."""
    seen = {}
    for i, key in enumerate(zip(*values.values())):
        if seen.setdefault(key, i) != i:
            rows = f"{path}, rows {seen[key]} and {i}"
            raise InputError(f"{rows} have the same {', '.join(values)}; allowed: different ones; {REMEDY}")


# ---------------------------------------------------------------------------------------------------------- their rows


def missing(value):
    """Tell whether a cell has no value."""
    return value is None or value != value


def check_histories(row, epochs):
    """Raise InputError unless all histories of a row have one length, at most `epochs`; return that length."""
    lengths = {name: len(row[name]) for name in HISTORIES if row[name] or name.removesuffix("_history") not in YOUNG}
    length, *others = set(lengths.values())
    if others or length > epochs:
        raise InputError(f"the histories have {lengths} items; allowed: one number, at most {epochs}")
    return length


def check_same(row, stored):
    """Raise InputError if a value of a row is not the one that its histories give, {name: value}."""
    for name, value in stored.items():
        if not missing(row[name]) and row[name] != value:
            raise InputError(f"{name} is {row[name]}; allowed: {value}, as its history says")


def check_trial(row):
    """Raise InputError for a row of a sweep that contradicts itself."""
    state = row["state"]
    length = check_histories(row, row["epochs"])
    if state in ("failed", "running"):
        return
    if state == "complete" and length < row["epochs"]:
        raise InputError(f"state is 'complete' after {length} of {row['epochs']} epochs; allowed: pruned, not finite")
    if state == "not finite" or not length:
        return
    accuracies = row["val_accuracy_history"]
    best = {"best_val_accuracy": max(accuracies), "best_epoch": 1 + accuracies.index(max(accuracies))}
    check_same(row, best | {name: row[f"{name}_history"][-1] for name in METRICS if row[f"{name}_history"]})
    if missing(row["val_accuracy"]):
        raise InputError(f"val_accuracy is missing; allowed: {accuracies[-1]}, as its history says")


# ------------------------------------------------------------------------------------------------------- trained again

END = ("epoch", "stopped")  # on another machine another epoch may be the best one, or the last


def rerun(path, table, number, train, stored=dict):
    """Train row `number` of a stored table again, and compare all its results with those stored.

    table: a DataFrame indexed by the numbers of its rows. train(row): the results as they come out now, {name: value};
    a history has a name that ends in _history. stored(row): the same names and more, as the table has them.
    Returns {table, row, then, now, same_machine, agrees}; `agrees` as `differences` says. Raises InputError for a
    number that is not in the table.
    """
    if number not in table.index:
        known = f"{table.index.min()} to {table.index.max()}" if len(table) else "none, it is empty"
        raise InputError(f"the row is {number}; allowed: those of {path} that have not failed, {known}")
    row = table.loc[number].to_dict()
    before = stored(row)
    now = train(row)
    then = {name: before[name] for name in now}
    for results in (then, now):
        for name, value in results.items():
            results[name] = None if missing(value) else plain(value)
    same_machine = row["machine"] == machine(backend_of(row))
    result = {"table": str(path), "row": number}
    for key, results in (("then", then), ("now", now)):
        result[key] = {name: value for name, value in results.items() if not name.endswith("_history")}
    return result | {"same_machine": same_machine, "agrees": not differences(then, now, same_machine)}


def differences(then, now, same_machine):
    """Return the names of the results that do not agree, without metrics that the table does not have yet.

    On one machine all are equal to the last bit. On another, of each history the last value must `agree`; a result
    without a history (a test accuracy) may differ by the `tolerance` of val_accuracy, and may be missing if the
    training ended in another epoch; END may differ.
    """
    names = [name for name in now if name.removesuffix("_history") not in YOUNG or then[name] not in (None, [])]
    if same_machine:
        return [name for name in names if then[name] != now[name]]
    curves = (then["val_accuracy_history"], now["val_accuracy_history"])
    limit = tolerance(*curves)
    same_end = len(curves[0]) == len(curves[1])
    differ = []
    for name in names:
        if name in END or f"{name}_history" in now:
            continue
        if name.endswith("_history"):
            close = agree(then[name], now[name], False)
        elif then[name] is None or now[name] is None:
            close = then[name] == now[name] or not same_end
        else:
            close = abs(then[name] - now[name]) < limit
        if not close:
            differ.append(name)
    return differ


def agree(then, now, same_machine):
    """Tell whether two histories of a metric, one value per epoch, are of one training.

    On one machine they are equal to the last bit. On another the last values differ by less than the `tolerance`.
    """
    if same_machine or not (len(then) and len(now)):
        return list(then) == list(now)
    return bool(abs(then[-1] - now[-1]) < tolerance(then, now))


def tolerance(then, now):
    """Return how far the last values of two histories may differ if two machines trained the same.

    Another machine rounds sums differently, which training magnifies. 0.01, or twice the largest step from one epoch to
    the next in the second half: of all of `now`, and of `then` without its last value, which is in question.
    """
    halves = (then[len(then) // 2 : -1], now[len(now) // 2 :])
    return max(0.01, *(2 * np.abs(np.diff(half)).max(initial=0) for half in halves))
