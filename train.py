"""One training from the command line, logged to W&B:  python train.py --optimizer nadam --epochs 10

The network that is saved and tested is that of the epoch of best val_accuracy. The last line of standard output is the
result, one flat JSON object; all else goes to standard error. If a file cannot be written after the training, the
result is printed nevertheless.
Exit status: 0 trained, 1 the loss was not finite, 2 invalid input, or a file or standard output cannot be used,
130 interrupted.
W&B may be offline (`wandb sync` uploads such a run later), disabled, or broken: no training depends on it.
"""

import os
import re
import sys
from collections import deque
from dataclasses import fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from helpers import ALIASES, BACKENDS, METRICS, Config, InputError
from lib.cli import answer, describe, progress, ready_backend, say, widths
from lib.dataset import load_dataset
from lib.tracking import MODES, PROJECT, PROJECT_NAMES, check_project, default_mode, train_and_log

# --------------------------------------------------------------------------------------------------------- command line

LONG = "wandb_project wandb_entity dataset epochs batch_size loss optimizer learning_rate momentum beta beta1 beta2"
LONG += " epsilon weight_decay weight_init num_layers hidden_size activation"
SHORT = dict(zip(LONG.split(), "wp we d e b l o lr m beta beta1 beta2 eps w_d w_i nhl sz a".split()))  # the course's


def _allowed(f):
    """Return what a field of Config takes, in words."""
    if f.name == "hidden_size":
        return f"a whole number in {f.metadata['allowed']}, or one for each layer: 256 128"
    if f.type is not str:
        return f"a {'whole ' if f.type is int else ''}number in {f.metadata['allowed']}"
    names = f.metadata["names"]  # of helpers.py: an import that adds one changes no flag
    return ", ".join(names + [alias for alias in ALIASES if ALIASES[alias] in names])


FLAGS = {  # name: (default, meaning, what is allowed)
    "wandb_project": (PROJECT, "W&B project", PROJECT_NAMES),
    "wandb_entity": ("the account's own", "W&B user or team", PROJECT_NAMES),
    **{f.name: (getattr(Config(), f.name), f.metadata["meaning"], _allowed(f)) for f in fields(Config)},
    "wandb_mode": ("$WANDB_MODE, `wandb disabled`, online with a key, or offline", "how W&B logs", ", ".join(MODES)),
    "backend": ("numpy", "what takes the steps; compiled needs Numba (make fast)", ", ".join(BACKENDS)),
    "checkpoint": ("none", "written after each epoch; if it exists, training resumes from there", "a file"),
    "save": ("none", "where the network of the best epoch goes", "a file"),
}
NAMES = {f"--{name}": name for name in FLAGS} | {f"-{short}": name for name, short in SHORT.items()}


def usage():
    """Return what --help prints."""
    shorts = {name: f"-{short}," for name, short in SHORT.items()}
    rows = [f"  {shorts.get(name, ''):7} --{name:14} {m}: {a} (default: {d})" for name, (d, m, a) in FLAGS.items()]
    return "\n".join([describe("train.py"), "", *rows])


def parse(argv):
    """Return the flags in argv, {name: text}. Not argparse: it takes -n for -nhl, and `-lr -1e-3` for two flags."""
    given = {}
    tokens = deque(argv)
    while tokens:
        token = tokens.popleft()
        flag, equals, text = token.partition("=")
        if flag not in NAMES:
            near = "".join(f"; the nearest is {one}" for one in get_close_matches(flag, NAMES, 1))
            raise InputError(f"{token!r} is not a flag; allowed: {', '.join(NAMES)}{near}")
        if not equals and tokens:
            text = tokens.popleft()
        if not text.strip() or not equals and (text in NAMES or text.startswith("--")):
            raise InputError(f"{flag} is given no value; allowed: {FLAGS[NAMES[flag]][2]}")
        while NAMES[flag] == "hidden_size" and tokens and tokens[0].isdecimal():
            text += f" {tokens.popleft()}"
        given[NAMES[flag]] = text
    return given


def read_config(given):
    """Return the Config of the flags given. Raises InputError if one is not allowed."""
    values = {}
    for f in fields(Config):
        if f.name in given:
            text = given[f.name]
            try:
                values[f.name] = widths(text) if f.name == "hidden_size" else _plain(text, f.type)
            except ValueError:
                raise InputError(f"--{f.name} is {text!r}; allowed: {FLAGS[f.name][2]}") from None
    try:
        return Config(**values)
    except InputError as error:
        raise InputError(f"--{error}") from None  # it begins with the field, which is the flag


def _plain(text, kind):
    """Return the text as a number, in the digits of any other program: not 1_0, which Python takes for 10."""
    value = kind(text)
    most = sys.maxsize if kind is int else sys.float_info.max  # more would never end, or is infinite
    if kind is not str and not (re.fullmatch("[-+.0-9eE]+", text) and abs(value) <= most):
        raise ValueError
    return value


def read_options(given):
    """Return the other flags given, as keywords of train_and_log. Raises InputError if one is not allowed."""
    project = given.get("wandb_project", PROJECT)
    check_project(project)
    if "wandb_entity" in given:
        check_project(given["wandb_entity"], "--wandb_entity")
    files = {name: _writable(name, given[name]) for name in ("checkpoint", "save") if name in given}
    if len(files) == 2 and _same_file(*files.values()):
        raise InputError(f"--save and --checkpoint are both {given['save']!r}; allowed: two files")
    source = "--wandb_mode" if "wandb_mode" in given else "WANDB_MODE"
    mode = given.get("wandb_mode") or os.environ.get("WANDB_MODE")
    mode = default_mode() if mode is None else mode
    if mode not in MODES:
        raise InputError(f"{source} is {mode!r}; allowed: {', '.join(MODES)}")
    backend = ready_backend(given.get("backend", "numpy"))
    return {"mode": mode, "backend": backend, "project": project, "entity": given.get("wandb_entity"), **files}


def _writable(flag, text):
    """Return the path of a file that can be written. Raises InputError, naming the flag, if it cannot be."""
    path = Path(text).absolute()
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it exists and is not a regular file")
        if text.endswith(os.sep):
            raise OSError(0, "it names a folder")
        NamedTemporaryFile(dir=Path(os.path.realpath(path)).parent).close()  # where it will be written
    except OSError as error:
        sentence = f"--{flag} is {text!r}, which cannot be written: {error.strerror}"
        raise InputError(f"{sentence}; allowed: a file in a writable folder") from None
    return path


def _same_file(one, other):
    """Return whether two paths lead to one file, now or once it is written, by a link or through one."""
    return os.path.realpath(one) == os.path.realpath(other) or one.exists() and other.exists() and one.samefile(other)


# ------------------------------------------------------------------------------------------------------------- training


def show(bar, epochs, row):
    """Show an epoch in the bar, or say it if there is none."""
    text = ", ".join(f"{name} {row[name]:.4f}" for name in METRICS)
    if bar.disable:
        say(f"epoch {row['epoch']}/{epochs}: {text}")
    else:
        bar.set_postfix_str(text, refresh=False)
        bar.update(row["epoch"] - bar.n)


def work(argv):
    """Train as the flags say; return the result."""
    given = parse(argv)
    config = read_config(given)
    options = read_options(given)
    data = load_dataset(config.dataset)
    try:
        with progress(config.epochs, "epoch") as bar:
            return train_and_log(config, data, on_epoch=partial(show, bar, config.epochs), **options)
    except MemoryError:
        size = f"--hidden_size {config.hidden_size} with --num_layers {config.num_layers}"
        sentence = f"{size} and --batch_size {config.batch_size} need more memory than there is"
        raise InputError(f"{sentence}; allowed: smaller ones") from None


def main(argv=None):
    """Run the command line `argv` (sys.argv[1:] if None); return the exit status."""
    goes_on = "with --checkpoint, the same command resumes after the last whole epoch"
    return answer("train.py", usage(), argv, work, goes_on)


if __name__ == "__main__":
    sys.exit(main())
