"""One W&B run: logged online, offline or not at all, and never in the way of its training."""

import json
import math
import os
import re
import signal
from contextlib import redirect_stderr, suppress
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp
from threading import current_thread, main_thread

import numpy as np

from helpers import METRICS, InputError, save_network, train
from lib.cli import Unsaved, say
from lib.files import read_npz
from lib.tables import machine

PROJECT = "CS6910_Assignment_1"
PROJECT_NAMES = "1 to 128 characters that can be printed, none of /\\#?%:"
MODES = ("online", "offline", "disabled")


# ------------------------------------------------------------------------------------------------------------------ W&B


def quiet_wandb():
    """Return the wandb module, told to print nothing, to leave the console alone, and to wait for no network long."""
    import wandb  # 1 s, and not needed if W&B is disabled

    _keep_with_the_runs(wandb.env)
    wanted = {"silent": True, "console": "off", "init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}
    wanted |= {"x_graphql_retry_max": 4, "x_graphql_timeout_seconds": 10}  # to log a table waits for an answer
    wanted |= {"x_save_requirements": False, "x_disable_stats": True}  # 0.2 s a run; requirements.txt pins what is used
    chosen = {k for k in wanted if {f"WANDB_{k.upper()}", f"WANDB_{k[1:].upper()}"} & set(os.environ)}
    known = wanted.keys() & wandb.Settings.model_fields.keys() - chosen
    with redirect_stderr(StringIO()) as said:  # it is not silent before it has read that it is to be
        wandb.setup(wandb.Settings(**{k: wanted[k] for k in known}))
    if told := [line for line in said.getvalue().splitlines() if "Loading settings" not in line]:
        say(" ".join(told))
    return wandb


def _keep_with_the_runs(env):
    """Let W&B keep beside its runs what it keeps in HOME if that is read-only, or its service prints its log here."""
    for name, folder in [(env.CACHE_DIR, env.get_cache_dir()), (env.DATA_DIR, env.get_data_dir())]:
        try:
            os.makedirs(folder, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            os.environ[name] = str(Path(os.environ.get("WANDB_DIR") or ".", "wandb", "home").absolute())


def is_disabled():
    """Return whether `wandb disabled` or $WANDB_MODE has turned W&B off, with a key or without."""
    try:
        return quiet_wandb().setup().settings.mode == "disabled"
    except Exception:  # whatever W&B makes of a bad setting: nobody has turned it off
        return False


def online_mode():
    """Return what `wandb online|offline` has set. Raises InputError if W&B is off or has no key; without a network."""
    if is_disabled():
        raise InputError("W&B is disabled; allowed: after `wandb online`, without WANDB_MODE=disabled")
    try:
        settings = quiet_wandb().setup().settings
        from wandb.sdk.lib import wbauth

        if settings.api_key or settings.identity_token_file or wbauth.read_netrc_auth(host=settings.base_url):
            return settings.mode
    except Exception as error:  # whatever W&B makes of a bad setting
        raise InputError(f"W&B cannot be used as configured ({error})") from None
    raise InputError("no W&B key is configured")


def default_mode():
    """Return what `wandb online|offline|disabled` has set; offline if W&B has no key, and say so."""
    if is_disabled():
        return "disabled"
    try:
        return online_mode()
    except InputError as error:
        say(f"{error}: logging offline, for `wandb sync` to upload")
        return "offline"


def check_project(name, flag="--wandb_project"):
    """Raise InputError if W&B would refuse a project, or a user or team, of this name."""
    if not 0 < len(name) <= 128 or set(name) & set("/\\#?%:") or not name.isprintable():
        raise InputError(f"{flag} is {name!r}; allowed: {PROJECT_NAMES}")


class Log:
    """A W&B run; none if W&B is disabled or does not start: it says so, and never stops a training."""

    def __init__(self, mode, **about):
        self.run = None
        self.trouble = None
        self.stopped = None
        for attempt in dict.fromkeys([mode, "offline"]) if mode != "disabled" else []:
            try:  # create_new: not into a run that the caller has open
                settings = {"stop_fn": self.stop}
                self.run = quiet_wandb().init(mode=attempt, reinit="create_new", settings=settings, **about)
                break
            except Exception as error:
                self.trouble = error
        if self.run and self.trouble:
            self.tell("this run, as it does not start online")
        elif self.trouble:
            say(f"W&B does not start, the training goes on without it: {self.trouble}")
        elif self.run and self.run.url:
            say(f"W&B run {self.run.url}")
        if self.run and "WANDB_SWEEP_ID" in os.environ and current_thread() is main_thread():
            signal.signal(signal.SIGTERM, self.stop)  # how an agent passes on the end of a run

    def __call__(self, use, *args):
        """use(run, ...) if there is a run; its first error is kept for `finish`."""
        try:
            if self.run:
                use(self.run, *args)
        except Exception as error:
            self.trouble = self.trouble or error

    def stop(self, *_):
        """Note that the run has been ended on W&B's side: by early termination, or by hand."""
        self.stopped = "stopped by W&B"

    def finish(self, status):
        """End the run, and say in one sentence what of it W&B has not received."""
        self(lambda run: run.finish(exit_code=status))
        self(check_upload)
        if self.run and self.trouble:
            self.tell("all of this run")

    def tell(self, what):
        """Say that W&B has not received it, why, and how what is kept is uploaded later."""
        command = f"wandb sync --include-online {quote(self.run.settings.sync_dir)}"
        say(f"W&B has not received {what} ({self.trouble}); to upload what is kept: {command}")
        self.trouble = None


def check_upload(run):
    """Raise RuntimeError if an online run is not uploaded completely, which W&B's client tells nobody but its log."""
    if run.offline:
        return
    for line in Path(run.settings.log_internal).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            level, message = entry["level"], entry["msg"]
        except (ValueError, TypeError, KeyError):  # not an entry, or one cut short
            continue
        if level.startswith("ERROR") and message != "api: HTTP error":  # its sender says what came of that
            why = f"{message} {entry.get('error', '')}"
            raise RuntimeError(re.sub(r"https?://\S+", "W&B", why).strip())  # signed addresses are nobody's business


def log_test(run, data, predicted, accuracy, step):
    """Log the test accuracy, the confusion matrix of the test images, and one image of each class."""
    wandb = quiet_wandb()
    names = list(data.class_names)
    labels = {"y_true": data.y_test.tolist(), "preds": predicted.tolist(), "class_names": names}
    matrix = wandb.plot.confusion_matrix(**labels, title="Confusion matrix (test)")
    row = {"test_accuracy": accuracy, "confusion_matrix": matrix}
    side = math.isqrt(data.x_train.shape[1])
    if side * side == data.x_train.shape[1]:  # a square image can be shown
        firsts = zip(*np.unique(data.y_train, return_index=True))
        shown = [wandb.Image(data.x_train[i].reshape(side, side), caption=names[label]) for label, i in firsts]
        row["samples"] = shown
    try:
        run.log(row, step=step)
    except Exception:  # the table is to be an artifact too, for which W&B must answer: keep it as a file of the run
        matrix.table.bind_to_run(run, "confusion_matrix_table", step)
        run.log(row, step=step)
        raise


# ------------------------------------------------------------------------------------------------------------- training


def train_and_log(
    config, data, *, on_epoch=None, network=None, checkpoint=None, save=None, test=True,
    mode="disabled", project=PROJECT, entity=None, group=None, name=None, run_id=None, backend="numpy"
):  # fmt: skip
    """Train by `config` on `data`, log to W&B, and return the result: a flat dictionary that JSON can hold.

    The network is that of the epoch of best val_accuracy, `best_epoch`, as in every study: it is saved, and tested.
    train_loss, train_accuracy, val_loss and val_accuracy are those of the last epoch.
    on_epoch(row): called after each epoch trained now; a sentence it returns ends the training.
    network: train this one, in place, instead of a new one.
    checkpoint: a file to write after each epoch, or to go on from: W&B then gets the earlier epochs too.
    save: a file for the network. test: evaluate it on the test images, once.
    backend: as in helpers.train; any but numpy is named in `machine`, which the result then has, too.
    mode: one of MODES. project, entity, group, name, run_id: of the W&B run; its name is config.run_name unless given.
    If the loss was not finite, metrics are None, `stopped` says why, and the network is neither tested nor saved.
    Raises InputError, before it trains, if there is nothing to test; Unsaved, which holds the result, if `save` cannot
    be written, or if weights are not finite.
    """
    if test and getattr(data, "x_test", None) is None:
        raise InputError("data has no x_test; allowed: a Dataset that has, or test=False")
    about = {"project": project, "entity": entity, "group": group, "name": name or config.run_name, "id": run_id}
    log = Log(mode, config=plain(config), **about)
    status = 1
    try:
        network, history, stopped = _train(config, data, log, on_epoch, network, checkpoint, backend)
        finite = "not finite" not in stopped
        unsaved = _save(save, network) if finite and save else None
        accuracy = _test(network, data, log, len(history)) if finite and test else None
        outcome = _outcome(history, stopped, finite, accuracy, len(data.y_train))
        if backend != "numpy":
            outcome["machine"] = machine(backend)
        log(lambda run: run.summary.update(outcome))
        status = 0 if finite else 1
        if unsaved:
            raise Unsaved(unsaved, plain(config) | outcome)
        return plain(config) | outcome
    finally:
        log.finish(status)


def train_compiled(config, data, **about):
    """Do what `train_and_log` does, with compiled steps: a name by which workers can import it."""
    return train_and_log(config, data, backend="compiled", **about)


def said(on_epoch, row):
    """Return the sentence with which on_epoch(row) ends a training, or None, whatever else it returns."""
    result = on_epoch(row) if on_epoch else None
    return result if isinstance(result, str) else None


def plain(config):
    """Return the Config as a dictionary of what JSON and W&B know: a tuple is a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}


def _train(config, data, log, on_epoch, network, checkpoint, backend):
    """Train and log each epoch, those of a checkpoint too; return the Training, with the weights of the best epoch."""
    logged = []

    def record(rows):
        for row in rows:
            log(lambda run, row: run.log({k: row[k] for k in ("epoch", *METRICS)}, step=row["epoch"]), row)
        logged.extend(rows)

    def each_epoch(row):
        if row["epoch"] == len(logged) + 1:
            record([row])
        else:  # resumed: the checkpoint, which train has accepted, holds this row and all before
            record(json.loads(str(read_npz(checkpoint, "a checkpoint", {"about"})["about"]))["history"])
        return said(on_epoch, row) or log.stopped

    try:
        options = {"network": network, "checkpoint": checkpoint, "keep_best": True, "backend": backend}
        training = train(config, data, each_epoch, **options)
    except OSError as error:
        if not checkpoint:
            raise
        kept = "what it held is kept; run the same command again to resume"
        raise InputError(f"--checkpoint {checkpoint} cannot be written: {error.strerror or error}; {kept}") from None
    record(training.history[len(logged) :])  # of a checkpoint that was complete
    return training


def _save(path, network):
    """Save the network at `path`, or else in a temporary folder; return a sentence if `path` was not written."""
    try:
        save_network(path, network)
    except InputError as error:  # its weights are not finite, though the loss is
        return f"{error}; the network is not saved"
    except OSError as error:
        trouble = f"--save {path} cannot be written: {error.strerror or error}"
        with suppress(OSError):
            spare = Path(mkdtemp(), Path(path).name)
            save_network(spare, network)
            return f"{trouble}; the network is in {spare} instead"
        return f"{trouble}; the network is not saved"


def _test(network, data, log, step):
    """Return the accuracy on the test images; log it, with the confusion matrix and one image of each class."""
    predicted = network.predict(data.x_test).argmax(axis=1)
    accuracy = float(np.mean(predicted == data.y_test))
    log(log_test, data, predicted, accuracy, step)
    return accuracy


def _outcome(history, stopped, finite, test_accuracy, n_train):
    """Return what came out of a training, without its Config."""
    final = history[-1] if finite else dict.fromkeys(METRICS)
    best = max(history, key=lambda row: row["val_accuracy"], default={})  # the first of equals
    step_seconds = sum(row["step_seconds"] for row in history)
    return {
        **{name: final[name] for name in METRICS},
        "best_val_accuracy": best.get("val_accuracy"),
        "best_epoch": best.get("epoch"),
        "test_accuracy": test_accuracy,
        "seconds": sum(row["seconds"] for row in history),
        "samples_per_second": len(history) * n_train / (step_seconds or 1),
        "stopped": stopped,
    }
