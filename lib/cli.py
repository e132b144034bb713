"""What the command lines share: one way to say something, one way to end."""

import argparse
import ast
import json
import math
import os
import re
import sys
import tempfile
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from helpers import BACKENDS, InputError, choice
from lib.dataset import ROOT

PROGRAMS = ("train.py", "sweep.py", "study.py", "grid.py", "towards95.py", "report.py", "wandb_report.py")
MOST_WORKERS = 32 * (os.cpu_count() or 1)  # side by side: more than that would only use up the memory


class Unsaved(InputError):
    """The work is done and `result` says what came out, but a file that was to hold it cannot be written."""

    def __init__(self, sentence, result):
        super().__init__(sentence)
        self.result = result


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are InputErrors: one sentence, no usage text."""

    def error(self, message):
        message = re.sub(r"argument (.+): invalid choice: (.+) \(choose from (.+)\)", r"\1 is \2; allowed: \3", message)
        message = re.sub(r"argument (.+): (is '.*'; allowed: .+)", r"\1 \2", message)  # of `given_path`
        raise InputError(re.sub(r"argument (.+): invalid \w+ value: (.+)", r"\1 is \2; allowed: a number", message))


def given_path(text):
    """Return the path in a text; refuse an empty one, which Path takes for the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: a path")
    return Path(text)


def say(sentence, program="train.py"):
    """Write one line to standard error, above the progress bar if there is one; nothing ends if nobody can read it."""
    if sys.stderr is None:  # it is closed, and tqdm would take standard output
        return
    try:
        tqdm.write(f"{program}: {' '.join(str(sentence).split())}", file=sys.stderr)
    except OSError:
        _abandon(sys.stderr)


def _abandon(stream):
    """Send what is written to a stream from now on nowhere: what cannot be written would fail once more at the end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _interrupted_early(kind, error, trace):
    """Say in one sentence that Ctrl-C has come while a program was still importing."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    say("interrupted", Path(sys.argv[0]).name)
    os._exit(130)


if Path(sys.argv[0]).name in PROGRAMS:  # a script or a notebook that imports us keeps its own
    sys.excepthook = _interrupted_early


def progress(total, unit, initial=0):
    """Make a progress bar; it is disabled unless standard error is a terminal."""
    return tqdm(total=total, initial=initial, unit=unit, disable=not (sys.stderr and sys.stderr.isatty()))


def whole_number(name, text, low=0, high=None):
    """Return the whole number in a text. Raises InputError, naming the argument, unless it is from `low` to `high`."""
    if not re.fullmatch("[0-9]{1,18}", text) or not low <= int(text) <= (high or math.inf):
        ends = f" to {high}" if high else ", of at most 18 digits" if len(text) > 18 else ""
        raise InputError(f"{name} is {text!r}; allowed: a whole number from {low}{ends}")
    return int(text)


def ready_backend(name):
    """Return the entry of BACKENDS that `name` stands for: compiled, or read from its cache, before any worker starts.

    Raises InputError if it is none, or if what it needs is not installed.
    """
    backend = choice("--backend", name, BACKENDS)
    if backend == "compiled":
        import_module("lib.engine")
    return backend


def ready_folder(folder):
    """Make the folder that --folder names, before any work begins. Raises InputError unless it takes a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        sentence = f"--folder is {str(folder)!r}, which cannot be used: {error.strerror}"
        raise InputError(f"{sentence}; allowed: a folder that is there or can be made, and takes files") from None


def widths(text):
    """hidden_size from a text: a whole number, or a tuple of them for "256 128", "256,128" or "[256, 128]"."""
    inside = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    if not re.fullmatch("[0-9]+([ ,] *[0-9]+)*", inside):
        raise ValueError
    sizes = tuple(map(int, re.findall("[0-9]+", inside)))
    return sizes[0] if text.isdecimal() else sizes


def describe(program):
    """Return the docstring of a program at the top of the project, read from its file: `python -OO` keeps none."""
    return ast.get_docstring(ast.parse((ROOT / program).read_text(encoding="utf-8")))


def as_json(value):
    """Write a value as one line of JSON, which knows no NaN and no infinity: they are null."""

    def finite(part):
        if isinstance(part, dict):
            return {key: finite(each) for key, each in part.items()}
        if isinstance(part, list | tuple):
            return [finite(each) for each in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)


def answer(program, help, argv, work, interrupted="run the same command again to resume"):
    """Run a command line: print what `work(argv)` returns, as a line of JSON unless it is a text; return the status.

    0 done; 1 not reproduced (`agrees` is false) or not finite (`train_loss` is None), and nothing else; 2 invalid
    input, or a file or standard output cannot be used, as one sentence says; 3 a bug, with its traceback;
    130 interrupted. Print `help` instead, if asked to; if `python -OO` has left none, the program's docstring.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if {"-h", "--help"} & set(argv):
            return put(program, help or describe(program))
        outcome, status = work(argv), 0
    except KeyboardInterrupt:
        say(f"interrupted; {interrupted}", program)
        return 130
    except (InputError, OSError, MemoryError) as error:
        sentence = str(error) or "there is not enough memory"
        if isinstance(error, OSError) and error.filename and error.strerror:
            sentence = f"{error.filename} cannot be used: {error.strerror}"
        say(sentence if len(sentence) < 2000 else f"{sentence[:1000]} ... {sentence[-500:]}", program)
        outcome, status = getattr(error, "result", None), getattr(error, "status", 2)
    except Exception:
        with suppress(OSError):
            traceback.print_exc()
        return 3
    if outcome is None:
        return status
    text = outcome if isinstance(outcome, str) else as_json(outcome)
    failed = text is not outcome and (not outcome.get("agrees", True) or outcome.get("train_loss", 0) is None)
    return put(program, text, f"; the result: {text}") or status or int(failed)


def put(program, text, kept=""):
    """Print a text to standard output, and return 0; if it cannot be written, say so and what is kept; return 2."""
    try:
        if sys.stdout is None:
            raise OSError(0, "it is closed")
        encoding = sys.stdout.encoding  # a path may hold what the locale has no letters for
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        return 0
    except OSError as error:
        say(f"standard output cannot be written: {error.strerror}{kept}", program)
        if sys.stdout:
            _abandon(sys.stdout)
        return 2
