"""Search: a W&B sweep file, run offline right here, or by W&B's agents.

python sweep.py FILE --folder DIR                   here, on every core; run it again to resume
python sweep.py FILE --folder DIR --storage URL     the same on any number of machines: sqlite:///FILE,
                                                    postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, mysql://...
python sweep.py FILE --folder DIR --engine wandb    on W&B's server, with an agent here; says how to start others
python sweep.py rerun bayes 17                      trains trial 17 of a finished sweep again, and compares
optuna-dashboard sqlite:///DIR/optuna.db            looks into the sweeps run here (pip install optuna-dashboard)

--count N      trials in all (default: run_cap in the file, or the whole grid)
--workers N    trials side by side (default: one per core)
--seed N       of the suggestions (default: 0)
--backend NAME numpy (default), or compiled, which needs Numba (make fast); `machine` in the table names it
--quick        4 trials of one epoch, as sweep NAME-quick
--folder DIR   where the tables go, and optuna.db (default: data/sweeps, where those of sweeps/*.yaml are: they are not
               replaced by a sweep that does not have their trials)

A trial is a row in an Optuna storage, written in one transaction with its parameters and its owner, this process. The
seed and its number decide what is suggested. A worker that dies is replaced and trains its trial again; a trial whose
owner has died is adopted by whoever looks next; none ever gets a second number. So a sweep ends with exactly the trials
asked for. With one worker they are always the same; with more, what bayes suggests depends on which of them is faster.
Each trial is a run in W&B, offline unless WANDB_MODE or `wandb disabled` says otherwise; `wandb sync
wandb/offline-run-*` uploads them.
Exit status: 0 done, 1 not reproduced, 2 invalid input or an unusable file, 130 interrupted.
"""

import argparse
import os
import sys
from contextlib import chdir, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from helpers import METRICS, Config, InputError
from lib import tables
from lib.cli import MOST_WORKERS, Parser, answer, given_path, ready_backend, ready_folder, say, whole_number
from lib.dataset import DATA_DIR, ROOT, load_dataset
from lib.ledger import Ledger, errors_as_sentences
from lib.storage import NoSweep, file_url
from lib.sweepfile import choices, load_sweep, one_of, read_sweep, whole
from lib.tracking import MODES, is_disabled, train_and_log, train_compiled
from lib.workers import supervise

FOLDER = DATA_DIR / "sweeps"


# -------------------------------------------------------------------------------------------------------------- results


def run(
    file,
    count=None,
    workers=None,
    storage=None,
    seed=0,
    quick=False,
    engine="local",
    backend="numpy",
    folder=FOLDER,
    load=load_dataset,
):
    """Run the sweep in `file`, or go on with it, to its end; write its table to `folder`; return it (see `results`).

    The arguments are the command line's; load(name) returns the Dataset of that name (workers import it: no lambda).
    Raises InputError if something given, or the storage, cannot be used.
    """
    one_of("--engine", engine, ["local", "wandb"])
    for flag, value, *ends in [("--count", count, 1), ("--workers", workers, 1, MOST_WORKERS), ("--seed", seed, 0)]:
        if value is not None:
            whole(flag, value, *ends)
    backend = ready_backend(backend)
    train = train_compiled if backend == "compiled" else train_and_log
    if engine == "wandb":
        _check_wandb(workers or storage is not None or seed or backend != "numpy")
    elif storage is None:
        storage = _default_storage(folder)
    sweep = read_sweep(file, count, quick)
    _check_place(Path(folder) / f"{sweep.name}.csv", storage)
    if engine == "wandb":
        table = _run_on_wandb(sweep)
    else:
        table = _run_here(sweep, workers or os.cpu_count(), storage, seed, load, train)
    _export(table, Path(folder), sweep.name)
    return table


def _check_wandb(flags):
    """Raise InputError if W&B's server cannot run a sweep: `flags` of the local engine are given, or it is disabled."""
    if flags:
        allowed = "start further agents instead"
        raise InputError(f"--workers, --storage, --seed and --backend are for --engine local; {allowed}")
    if is_disabled():
        raise InputError("--engine wandb is of no use while W&B is disabled; allowed: after `wandb online`")


def _check_place(path, storage):
    """Make the folder of a table. Raises InputError if that fails, or if the table there would lose trials.

    It would lose those that `storage` does not have; None is a new sweep on W&B, which has no trials yet.
    """
    ready_folder(path.parent)
    if not path.exists():
        return
    kept = _finished(tables.read_table(path, tables.SWEEP, tables.check_trial, unique=["number"]))
    found = set()
    if storage is not None:
        with suppress(NoSweep):
            found = _finished(results(path.stem, storage))
    tables.refuse_loss(path, kept, found, storage="a new sweep on W&B" if storage is None else "the storage")


def _finished(table):
    """Return a key of each finished trial that no other sweep has: not `created`, which depends on the time zone."""
    table = table[table.state != "running"]
    return set(zip(table.number, table.state, table.seconds.astype(float).fillna(-1)))


def _run_here(sweep, workers, storage, seed, load, train):
    """Train the sweep's trials on this machine, side by side, until all are finished; return their table."""
    mode = os.environ.get("WANDB_MODE")
    mode = ("disabled" if is_disabled() else "offline") if mode is None else mode
    one_of("WANDB_MODE", mode, MODES)
    for name in choices(sweep.space["dataset"]) if "dataset" in sweep.space else [Config.dataset]:
        load(name)  # what is missing is said now, and what is not decoded yet is decoded once
    with errors_as_sentences():
        ledger = Ledger(storage, sweep.name, sweep, seed)
        supervise(ledger, workers, storage, sweep.name, mode, load, train)
        return ledger.table()


def _default_storage(folder):
    return file_url(Path(folder) / "optuna.db")


def results(name, storage=None, folder=FOLDER):
    """Return the table of the sweep `name` as it stands in `storage` (default: optuna.db in `folder`), finished or not.

    One row a trial: number; state (complete, pruned, not finite, failed, running); created; every field of Config;
    seconds of training; the metrics of the last epoch; best_val_accuracy and best_epoch; stopped (why); machine; the
    metrics of all epochs as lists (val_accuracy_history, ...), the only ones of a trial that is not finite.
    `attrs` holds the definition, the seed, and the wall time, in all and of each session.
    """
    with errors_as_sentences():
        return Ledger(_default_storage(folder) if storage is None else storage, name).table()


def _export(table, folder, name):
    """Write NAME.json, then NAME.csv: where there is a table, there is all of it."""
    tables.write_json(folder / f"{name}.json", table.attrs)
    tables.write_table(folder / f"{name}.csv", table)


def load_results(name, folder=FOLDER):
    """Read the table of a finished sweep in `folder` (see `results`); if it is missing, run sweeps/NAME.yaml."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        run(ROOT / "sweeps" / f"{name}.yaml", folder=folder)
    return load_sweep(path)


def rerun(name, trial, folder=FOLDER, load=load_dataset):
    """Train a trial of a finished sweep again, from its row alone, and compare all its results: see tables.rerun."""
    path = Path(folder) / f"{name}.csv"
    if not path.exists():
        raise InputError(f"there is no table of a sweep {name!r} in {folder}; allowed: one that is finished")
    table = load_sweep(path).set_index("number")

    def again(row):
        config = tables.config_of(row)
        backend = tables.backend_of(row)
        history = []

        def on_epoch(one):
            history.append(one)
            pruned = row["state"] == "pruned" and len(history) == len(row["val_accuracy_history"])
            return row["stopped"] if pruned else None

        result = train_and_log(config, load(config.dataset), on_epoch=on_epoch, test=False, backend=backend)
        now = {name: result[name] for name in (*METRICS, "stopped")}
        return now | {f"{metric}_history": [one[metric] for one in history] for metric in METRICS}

    return tables.rerun(path, table[~table.state.isin(["failed", "running"])], trial, again)


def _run_on_wandb(sweep):
    """Create the sweep on W&B's server, work for it here until it is done, and bring its runs home as a table."""
    import pandas as pd
    import wandb

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # agents start `python`
    where = {key: sweep.definition.get(key) for key in ("project", "entity")}
    try:
        with chdir(ROOT):
            sweep_id = wandb.sweep(sweep.definition, **where)
            address = "/".join([where["entity"] or wandb.Api().default_entity, where["project"], sweep_id])
            say(f"further agents, on any machine, in the project's folder: wandb agent {address}", "sweep.py")
            wandb.agent(sweep_id, **where)
        runs = sorted(wandb.Api().sweep(address).runs, key=lambda run: run.created_at)
        table = pd.DataFrame([_row_from_wandb(*each) for each in enumerate(runs)], columns=tables.COLUMNS)
    except InputError:
        raise
    except Exception as error:  # W&B's client has several kinds, without a common name
        raise InputError(f"W&B: {error}") from None
    table.attrs = {"definition": sweep.definition, "sweep": address}
    return table


def _row_from_wandb(number, run):
    states = {"finished": "complete", "running": "running", "killed": "pruned", "stopped": "pruned"}
    state = "not finite" if "not finite" in str(run.summary.get("stopped")) else states.get(run.state, "failed")
    history = list(run.scan_history(keys=list(METRICS)))
    if state == "complete" and len(history) < run.config["epochs"]:
        state = "pruned"  # by early termination, which train.py takes for a regular end
    row = {"number": number, "state": state, "created": np.datetime64(run.created_at.rstrip("Z"))}
    row |= asdict(Config(**{name: value for name, value in run.config.items() if name in tables.FIELDS}))
    row |= {name: run.summary.get(name) for name in [*tables.RESULTS, "machine"]}
    return row | {f"{metric}_history": [one[metric] for one in history] for metric in METRICS}


# --------------------------------------------------------------------------------------------------------- command line


def main(argv=None, load=load_dataset):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""

    def work(argv):
        parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        parser.add_argument("--folder", type=given_path, default=FOLDER)
        if argv[:1] == ["rerun"]:
            parser.add_argument("name")
            parser.add_argument("trial")
            given = parser.parse_args(argv[1:])
            return rerun(given.name, whole_number("TRIAL", given.trial), given.folder, load)
        for flag in ("file", "--storage", "--engine", "--backend", "--count", "--workers", "--seed"):
            parser.add_argument(flag)
        parser.add_argument("--quick", action="store_true")
        given = parser.parse_args(argv)
        for name in vars(given).keys() & {"count", "workers", "seed"}:
            setattr(given, name, whole_number(f"--{name}", getattr(given, name), 0 if name == "seed" else 1))
        table = run(**vars(given), load=load)
        failed = table[table.state == "failed"]
        if len(failed):
            say(f"{len(failed)} of {len(table)} trials failed; the first: {failed.stopped.iloc[0]}", "sweep.py")
        best = None if table.best_val_accuracy.isna().all() else table.best_val_accuracy.max()
        path = given.folder / f"{table.attrs['definition']['name']}.csv"
        return {"table": str(path), "best_val_accuracy": best, **table.state.value_counts().to_dict()}

    return answer("sweep.py", __doc__, argv, work)


if __name__ == "__main__":
    sys.exit(main())
