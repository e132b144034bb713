"""One training from the command line, logged to W&B:  python train.py --optimizer nadam --epochs 10

The last line of standard output is the result, one flat JSON object; all else goes to standard error.
Exit status: 0 trained, 1 the loss was not finite, 2 something given cannot be used, 130 interrupted.
W&B may be offline (`wandb sync` uploads such a run later), disabled, or broken: no training depends on it.
"""

import json
import os
import re
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path
from shlex import quote
from tempfile import NamedTemporaryFile
from threading import current_thread, main_thread

import numpy as np
from tqdm import tqdm

from helpers import ALIASES, Config, InputError, load_dataset, save_network, train

PROJECT = "CS6910_Assignment_1"
MODES = ("online", "offline", "disabled")
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def say(sentence):
    """One line on standard error, above the progress bar if there is one."""
    tqdm.write(f"train.py: {' '.join(str(sentence).split())}", file=sys.stderr)


# --------------------------------------------------------------------------------------------------------- command line

LONG = "wandb_project wandb_entity dataset epochs batch_size loss optimizer learning_rate momentum beta beta1 beta2"
LONG += " epsilon weight_decay weight_init num_layers hidden_size activation"
SHORT = dict(zip(LONG.split(), "wp we d e b l o lr m beta beta1 beta2 eps w_d w_i nhl sz a".split()))  # the course's


def _allowed(f):
    """What a field of Config takes, in words."""
    if f.type is not str:
        return f"a {'whole ' if f.type is int else ''}number in {f.metadata['allowed']}"
    names = list(f.metadata["allowed"])
    return ", ".join(names + [alias for alias in ALIASES if ALIASES[alias] in names])


FLAGS = {  # name: (default, meaning, what is allowed)
    "wandb_project": (PROJECT, "W&B project", "1 to 128 characters, none of /\\#?%:"),
    "wandb_entity": ("the account's own", "W&B user or team", "a name"),
    **{f.name: (f.default, f.metadata["meaning"], _allowed(f)) for f in fields(Config)},
    "wandb_mode": ("$WANDB_MODE, else online with a W&B key, else offline", "how W&B logs", ", ".join(MODES)),
    "checkpoint": ("none", "written after each epoch; where it exists, training goes on from there", "a file"),
    "save": ("none", "where the final network goes", "a file"),
}
NAMES = {f"--{name}": name for name in FLAGS} | {f"-{short}": name for name, short in SHORT.items()}


def usage():
    """What --help prints."""
    shorts = {name: f"-{short}," for name, short in SHORT.items()}
    rows = [f"  {shorts.get(name, ''):7} --{name:14} {m}: {a} (default: {d})" for name, (d, m, a) in FLAGS.items()]
    return "\n".join([__doc__, *rows])


def parse(argv):
    """The flags in argv, {name: text}. Not argparse: it takes -n for -nhl, and the -1e-3 of `-lr -1e-3` for a flag."""
    given, tokens = {}, iter(argv)
    for token in tokens:
        flag, equals, text = token.partition("=")
        if flag not in NAMES:
            raise InputError(f"{token!r} is not a flag; allowed: {', '.join(NAMES)}")
        text = text if equals else next(tokens, "")
        if not text.strip() or not equals and (text in NAMES or text.startswith("--")):
            raise InputError(f"{flag} is given no value; allowed: {FLAGS[NAMES[flag]][2]}")
        given[NAMES[flag]] = text
    return given


def read_config(given):
    """The Config of the flags given. Raises InputError where one is not allowed."""
    values = {}
    for f in fields(Config):
        if f.name in given:
            try:
                values[f.name] = f.type(given[f.name])
            except ValueError:
                values[f.name] = given[f.name]  # not a number: Config refuses it, in the same words as the rest
    try:
        return Config(**values)
    except InputError as error:
        raise InputError(f"--{error}") from None  # it begins with the field, which is the flag


def read_options(given):
    """The other flags given, as keywords of train_and_log. Raises InputError where one is not allowed."""
    project = given.get("wandb_project", PROJECT)
    if len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError(f"--wandb_project is {project!r}; allowed: {FLAGS['wandb_project'][2]}")
    files = {name: Path(given[name]).absolute() for name in ("checkpoint", "save") if name in given}
    for name, path in files.items():
        try:
            if path.exists() and not path.is_file():
                raise OSError(0, "it is there, and no file")
            NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.").close()  # as it will be written
        except OSError as error:
            sentence = f"--{name} is {given[name]!r}, which cannot be written: {error.strerror}"
            raise InputError(f"{sentence}; allowed: a file in a writable folder") from None
    if len(set(files.values())) < len(files):
        raise InputError(f"--save and --checkpoint are both {given['save']!r}; allowed: two files")
    source = "--wandb_mode" if "wandb_mode" in given else "WANDB_MODE"
    mode = given.get("wandb_mode") or os.environ.get("WANDB_MODE") or default_mode()
    if mode not in MODES:
        raise InputError(f"{source} is {mode!r}; allowed: {', '.join(MODES)}")
    return {"mode": mode, "project": project, "entity": given.get("wandb_entity"), **files}


# ------------------------------------------------------------------------------------------------------------------ W&B


def quiet_wandb():
    """The wandb module, told to print nothing, to leave the console alone, and not to wait for a network for ever."""
    import wandb  # 1 s, and not needed where it is disabled

    wanted = {"silent": True, "console": "off", "init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}
    wanted |= {"x_graphql_retry_max": 4, "x_graphql_timeout_seconds": 10}  # to log a table waits for an answer
    wanted |= {"x_save_requirements": False, "x_disable_stats": True}  # 0.2 s a run; requirements.txt pins what is used
    chosen = {k for k in wanted if {f"WANDB_{k.upper()}", f"WANDB_{k[1:].upper()}"} & set(os.environ)}
    wandb.setup(wandb.Settings(**{k: wanted[k] for k in wanted.keys() & wandb.Settings.model_fields.keys() - chosen}))
    return wandb


def online_mode():
    """What `wandb online|offline` has set. Raises InputError where W&B has no key, sought without network or prompt."""
    try:
        settings = quiet_wandb().setup().settings
        from wandb.sdk.lib import wbauth

        if settings.api_key or settings.identity_token_file or wbauth.read_netrc_auth(host=settings.base_url):
            return settings.mode
    except Exception as error:  # whatever W&B makes of a bad setting
        raise InputError(f"W&B cannot be used as configured ({error})") from None
    raise InputError("no W&B key is configured")


def default_mode():
    """online_mode() where W&B has a key, else offline, which is said."""
    try:
        return online_mode()
    except InputError as error:
        say(f"{error}: logging offline, for `wandb sync` to upload")
        return "offline"


class Log:
    """A W&B run; none where W&B is disabled or does not start, which is said and never stops a training."""

    def __init__(self, mode, **about):
        self.run, self.trouble, self.stopped = None, None, None
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
        """The run is ended on W&B's side: by early termination, or by hand."""
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
    """Raise RuntimeError where not all of an online run is uploaded, which W&B's client tells nobody but its log."""
    for line in [] if run.offline else Path(run.settings.log_internal).read_text().splitlines():
        entry = json.loads(line)
        if entry["level"].startswith("ERROR") and entry["msg"] != "api: HTTP error":  # its sender says what came of it
            why = f"{entry['msg']} {entry.get('error', '')}"
            raise RuntimeError(re.sub(r"https?://\S+", "W&B", why).strip())  # signed addresses are nobody's business


def log_test(run, data, predicted, accuracy, step):
    """The test accuracy, the confusion matrix of the test images, and one image of each class."""
    wandb, names = quiet_wandb(), list(data.class_names)
    y, y_hat = data.y_test.tolist(), predicted.tolist()
    matrix = wandb.plot.confusion_matrix(y_true=y, preds=y_hat, class_names=names, title="Confusion matrix (test)")
    firsts = zip(*np.unique(data.y_train, return_index=True))
    samples = [wandb.Image(data.x_train[i].reshape(28, 28), caption=names[label]) for label, i in firsts]
    row = {"test_accuracy": accuracy, "confusion_matrix": matrix, "samples": samples}
    try:
        run.log(row, step=step)
    except Exception:  # the table is to be an artifact too, for which W&B must answer: keep it as a file of the run
        matrix.table.bind_to_run(run, "confusion_matrix_table", step)
        run.log(row, step=step)
        raise


# ------------------------------------------------------------------------------------------------------------- training


def train_and_log(
    config, data, *, on_epoch=None, network=None, checkpoint=None, save=None, test=True,
    mode="disabled", project=PROJECT, entity=None, group=None, name=None
):  # fmt: skip
    """Train by `config` on `data`, log to W&B, and return the result: a flat dictionary that JSON can hold.

    on_epoch(row): called after each epoch trained now; a sentence it returns ends the training.
    network: train this one, in place, instead of a new one.
    checkpoint: a file to write after each epoch, or to go on from: W&B then gets the earlier epochs too.
    save: a file for the final network. test: evaluate that on the test images, once.
    mode: one of MODES. project, entity, group, name: of the W&B run; its name is config.run_name unless given.
    Where the loss was not finite, metrics are None, `stopped` says why, and the network is neither tested nor saved.
    """
    log = Log(mode, project=project, entity=entity, group=group, name=name or config.run_name, config=asdict(config))
    logged, status, accuracy = [], 1, None

    def record(rows):
        for row in rows:
            log(lambda run, row: run.log({k: row[k] for k in ("epoch", *METRICS)}, step=row["epoch"]), row)
        logged.extend(rows)

    def each_epoch(row):
        if row["epoch"] == len(logged) + 1:
            record([row])
        else:  # resumed: the checkpoint, which train has accepted, holds this row and all before
            with np.load(checkpoint) as saved:
                record(json.loads(str(saved["about"]))["history"])
        return (on_epoch and on_epoch(row)) or log.stopped

    try:
        network, history, stopped = train(config, data, each_epoch, network=network, checkpoint=checkpoint)
        record(history[len(logged) :])  # of a checkpoint that was complete
        finite = "not finite" not in stopped
        final = history[-1] if finite else dict.fromkeys(METRICS)
        best = max(history, key=lambda row: row["val_accuracy"], default={})
        if finite and save:
            save_network(save, network)
        if finite and test:
            predicted = network.predict(data.x_test).argmax(axis=1)
            accuracy = float(np.mean(predicted == data.y_test))
            log(log_test, data, predicted, accuracy, len(history))
        outcome = {
            **{name: final[name] for name in METRICS},
            "best_val_accuracy": best.get("val_accuracy"),
            "best_epoch": best.get("epoch"),
            "test_accuracy": accuracy,
            "seconds": sum(row["seconds"] for row in history),
            "samples_per_second": len(history) * len(data.y_train) / (sum(row["step_seconds"] for row in history) or 1),
            "stopped": stopped,
        }
        log(lambda run: run.summary.update(outcome))
        status = 0 if finite else 1
        return asdict(config) | outcome
    finally:
        log.finish(status)


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(usage())
        return 0
    try:
        given = parse(argv)
        config, options = read_config(given), read_options(given)
        data = load_dataset(config.dataset)
        with tqdm(total=config.epochs, unit="epoch", disable=None) as bar:  # None: where there is a terminal

            def show(row):
                text = ", ".join(f"{name} {row[name]:.4f}" for name in METRICS)
                if bar.disable:
                    say(f"epoch {row['epoch']}/{config.epochs}: {text}")
                else:
                    bar.set_postfix_str(text, refresh=False)
                    bar.update(row["epoch"] - bar.n)

            result = train_and_log(config, data, on_epoch=show, **options)
    except KeyboardInterrupt:
        say("interrupted; with --checkpoint, the same command goes on after the last whole epoch")
        return 130
    except MemoryError:
        size = f"--hidden_size {config.hidden_size} with --num_layers {config.num_layers}"
        say(f"{size} and --batch_size {config.batch_size} need more memory than there is; allowed: smaller ones")
        return 2
    except (InputError, OSError) as error:
        say(error)
        return 2
    print(json.dumps(result, allow_nan=False))
    return 0 if result["train_loss"] is not None else 1


if __name__ == "__main__":
    sys.exit(main())
