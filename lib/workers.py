"""The processes that train what a ledger gives, and the one that watches over them."""

import json
import math
import os
import shutil
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen
from threading import Thread
from uuid import uuid4

from optuna.exceptions import UpdateFinishedTrialError
from sqlalchemy.exc import SQLAlchemyError

from helpers import METRICS, InputError
from lib.cli import progress, say
from lib.ledger import Ledger, _me, errors_as_sentences
from lib.tables import FIELDS, failure, machine
from lib.tracking import train_and_log

DEATHS = 50  # give up on a sweep after this many workers have died in a row
LOOK = 0.3  # seconds between two looks at what others do


def _start_worker(storage, name, mode, *functions):
    """Start a process in a group of its own, so that Ctrl-C is for us alone; it ends when its standard input does."""
    code = f"import sys; sys.path[:] = {sys.path}; import lib.workers; lib.workers.work()"
    process = Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, process_group=0)
    with suppress(BrokenPipeError):  # it is dead already: that is noticed where its end is waited for
        order = [storage, name, mode, [(each.__module__, each.__qualname__) for each in functions], _me()]
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def work():
    """Train what the ledger gives, in a worker; exit with status 2 and a sentence if that cannot go on."""
    out, sys.stdout = sys.stdout, sys.stderr  # a library that prints is not taken for the sentence
    try:
        with errors_as_sentences():
            order = sys.stdin.readline()
            if not order:  # the parent ended before it told what to do
                sys.exit(1)
            storage, name, mode, functions, parent = json.loads(order)
            Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()  # reads until the parent ends
            load, train = (getattr(import_module(module), function) for module, function in functions)
            _train_all(Ledger(storage, name, parent=parent), cache(load), mode, train)
    except Exception as error:
        print(error if isinstance(error, InputError) else f"{type(error).__name__}: {error}", file=out)
        sys.exit(2)


def _train_all(ledger, load, mode, train):
    """Train what the ledger gives until all trials are finished, here or elsewhere."""
    while True:
        if trial := ledger.claim():
            with suppress(UpdateFinishedTrialError):  # we were taken for dead, and another has finished it
                with ledger.beating(trial):
                    outcome = train_trial(ledger, trial, load, mode, train)
                ledger.finish(trial, outcome)
        elif len(ledger.trials(finished=True)) >= ledger.sweep.count:
            return
        else:
            time.sleep(LOOK)  # the last ones are in work elsewhere; should they die there, we go on with them


def train_trial(ledger, trial, load, mode, train=train_and_log):
    """Train a trial, as a run in W&B; return its outcome, with everything that `train` returns."""
    config = ledger.sweep.config(trial.params)
    history = []

    def on_epoch(row):
        history.append(row)
        return ledger.verdict(trial, row)

    where = {key: ledger.sweep.definition.get(key) for key in ("project", "entity")}
    about = {"mode": mode, "group": ledger.sweep.name, **where}
    if mode != "disabled":
        about["run_id"] = f"{ledger.token}-{trial.number}"
        for left in Path(os.environ.get("WANDB_DIR") or ".").glob(f"wandb/offline-run-*-{about['run_id']}"):
            shutil.rmtree(left, ignore_errors=True)  # of an attempt that was interrupted
    try:
        result = train(config, load(config.dataset), on_epoch=on_epoch, test=False, **about)
    except MemoryError as error:
        return failure(str(error))
    outcome = {"state": "complete" if len(history) == config.epochs else "pruned", "machine": machine()}
    outcome |= {name: value for name, value in result.items() if name not in FIELDS}
    outcome |= {f"{metric}_history": [row[metric] for row in history] for metric in METRICS}
    if result["train_loss"] is None:
        outcome |= {"state": "not finite", "best_val_accuracy": None, "best_epoch": None}
    return outcome


def supervise(ledger, workers, *args):
    """Keep workers alive, and show what they do, until all trials are finished, here or elsewhere.

    workers: how many. args: storage, name, mode of W&B, load(name), train(config, data, on_epoch=..., test=False,
    mode=..., ...), which is train_and_log or returns what that does; workers import both functions.
    """
    began = time.monotonic()
    key = f"session {uuid4()}"
    ledger.bury(died=False)  # what an earlier call in this process may have left
    shown = {trial.number for trial in ledger.trials(finished=True)}
    count = ledger.sweep.count
    team = []
    dead = 0
    with progress(count, "trial", initial=len(shown)) as bar:
        try:
            while len(shown) < count:
                dead += _bury(ledger, team)
                if dead > DEATHS:
                    raise InputError(f"{dead} workers have died in a row")
                while len(team) < min(workers, count - len(shown)):
                    team.append(_start_worker(*args))
                time.sleep(LOOK)
                if _show(bar, ledger, shown):
                    dead = 0
                    seconds = round(time.monotonic() - began, 1)
                    ledger.note_session(key, {"machine": machine(), "workers": workers, "seconds": seconds})
        finally:
            _end(ledger, team)


def _bury(ledger, team):
    """Take the workers that have ended out of the team; return how many died. Raises the InputError of one."""
    ended = [process for process in team if process.poll() is not None]
    for process in ended:
        if process.returncode == 2:
            raise InputError(process.stdout.read().decode(errors="replace"))
        team.remove(process)
    if ended:
        ledger.bury({process.pid for process in ended})
    return len(ended)


def _end(ledger, team):
    """Kill the team at once, so that none goes on with a trial of another, and give up its trials."""
    for process in team:
        process.kill()
    for process in team:
        process.communicate()
    with suppress(SQLAlchemyError, OSError, InputError):  # the end is due to it: its sentence is the one to say
        ledger.bury({process.pid for process in team}, died=False)


def _show(bar, ledger, shown):
    """Bring the bar up to date or, if there is no terminal, say what is new; return how many have finished.

    shown: the numbers of the trials that were finished before; those that are new are added.
    """
    metric, sign = ledger.sweep.metric, ledger.sweep.sign
    done = ledger.trials(finished=True)
    values = [trial.user_attrs["outcome"].get(metric) for trial in done]
    best = max((sign * value for value in values if value is not None), default=math.nan)
    bar.set_postfix_str(f"best {metric} {sign * best:.4f}", refresh=False)
    new = [(trial, value) for trial, value in zip(done, values) if trial.number not in shown]
    bar.update(len(new))
    for trial, value in new if bar.disable else []:
        said = "" if value is None else f" {metric} {value:.4f}"
        name = ledger.sweep.config(trial.params).run_name
        state = trial.user_attrs["outcome"]["state"]
        say(f"trial {trial.number}, {name}: {state}{said}; best {sign * best:.4f}", "sweep.py")
    shown.update(trial.number for trial, _ in new)
    return len(new)
