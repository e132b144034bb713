"""One training from the command line, logged to W&B:  python train.py --optimizer nadam --epochs 10

The last line of standard output is the result, one flat JSON object; all else goes to standard error.
Exit status: 0 trained, 1 the loss was not finite, 2 something given cannot be used, 130 interrupted.
W&B may be offline (`wandb sync` uploads such a run later), disabled, or broken: no training depends on it.
"""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from tempfile import NamedTemporaryFile

from tqdm import tqdm

from helpers import ALIASES, METRICS, Config, InputError
from lib.cli import say
from lib.dataset import load_dataset
from lib.tracking import MODES, PROJECT, default_mode, train_and_log

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
