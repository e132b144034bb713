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
from tqdm import tqdm

from helpers import METRICS, InputError
from lib.cli import say
from lib.ledger import BEAT, Ledger, errors_as_sentences
from lib.tables import FIELDS, failure, machine
from lib.tracking import train_and_log

DEATHS = 50  # a sweep that has ended so many workers in a row cannot run


def _start_worker(storage, name, mode, *functions):
    """A process in a group of its own, so that Ctrl-C is for this one alone; it ends when its standard input does."""
    code = f"import sys; sys.path[:] = {sys.path}; import lib.workers; lib.workers.work()"
    process = Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, process_group=0)
    with suppress(BrokenPipeError):  # it is dead already: that is noticed where its end is waited for
        order = [storage, name, mode, [(each.__module__, each.__qualname__) for each in functions]]
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return process


def work():
    """What a worker does: train what the ledger gives; exit with 2 and a sentence where that cannot go on."""
    out, sys.stdout = sys.stdout, sys.stderr  # a library that prints is not taken for the sentence
    try:
        with errors_as_sentences():
            order = sys.stdin.readline()
            if not order:  # the parent ended before it told what to do
                sys.exit(1)
            storage, name, mode, functions = json.loads(order)
            Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()  # reads until the parent ends
            load, train = (getattr(import_module(module), function) for module, function in functions)
            load, ledger = cache(load), Ledger(storage, name)
            while len(ledger.trials(finished=True)) < ledger.sweep.count:
                if trial := ledger.claim():
                    with suppress(UpdateFinishedTrialError):  # we were taken for dead, and another has finished it
                        ledger.finish(trial, train_trial(ledger, trial, load, mode, train))
                else:
                    time.sleep(0.3)  # the last ones are in work elsewhere; should they die there, we go on with them
    except Exception as error:
        print(error if isinstance(error, InputError) else f"{type(error).__name__}: {error}", file=out)
        sys.exit(2)


def train_trial(ledger, trial, load, mode, train=train_and_log):
    """Train a trial, as a run in W&B; return its outcome, with all that `train` returns."""
    config, history, seen = ledger.sweep.config(trial.params), [], time.time()

    def on_epoch(row):
        nonlocal seen
        history.append(row)
        if time.time() - seen > BEAT:
            ledger.beat(trial)
            seen = time.time()
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
    """Keep so many workers alive, and show what they do, until all trials are finished, here or elsewhere.

    args: storage, name, mode of W&B, load(name), train(config, data, on_epoch=..., test=False, mode=..., ...), which is
    train_and_log or returns what that does; workers import both functions.
    """
    count, team, dead, began, key = ledger.sweep.count, [], 0, time.time(), f"session {uuid4()}"
    done = len(ledger.trials(finished=True))
    with tqdm(total=count, initial=done, unit="trial", disable=None) as bar:
        try:
            while done < count:
                for process in [process for process in team if process.poll() is not None]:
                    if process.returncode == 2:
                        raise InputError(process.stdout.read().decode())
                    team.remove(process)
                    dead += 1
                    if dead > DEATHS:
                        raise InputError(f"{dead} workers have died in a row, with exit code {process.returncode}")
                while len(team) < min(workers, count - done):
                    team.append(_start_worker(*args))
                time.sleep(0.3 + done / 5000)  # a look at that many takes long
                if new := _show(bar, ledger, done):
                    done, dead = done + new, 0
                    session = {"machine": machine(), "workers": workers, "seconds": round(time.time() - began, 1)}
                    ledger.study.set_user_attr(key, session)
        finally:
            for process in team:
                process.kill()
                process.communicate()


def _show(bar, ledger, before):
    """Bring the bar up to date or, where there is no terminal, say what is new; return how many have finished."""
    metric, sign = ledger.sweep.metric, ledger.sweep.sign
    done = sorted(ledger.trials(finished=True), key=lambda trial: trial.datetime_complete)
    outcomes = [trial.user_attrs["outcome"] for trial in done]
    best = max((sign * one[metric] for one in outcomes if one.get(metric) is not None), default=math.nan)
    bar.set_postfix_str(f"best {metric} {sign * best:.4f}", refresh=False)
    bar.update(len(done) - before)
    for trial, outcome in zip(done[before:], outcomes[before:]) if bar.disable else []:
        value = "" if outcome.get(metric) is None else f" {metric} {outcome[metric]:.4f}"
        name = ledger.sweep.config(trial.params).run_name
        say(f"trial {trial.number}, {name}: {outcome['state']}{value}; best {sign * best:.4f}", "sweep.py")
    return len(done) - before
