"""What the command lines share: one way to say something, one way to end."""

import argparse
import json
import sys

from tqdm import tqdm

from helpers import InputError


def say(sentence, program="train.py"):
    """One line on standard error, above the progress bar if there is one."""
    tqdm.write(f"{program}: {' '.join(str(sentence).split())}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are InputErrors: one sentence, no usage text."""

    def error(self, message):
        raise InputError(message)


def answer(program, help, argv, work):
    """A command line: print what `work(argv)` returns as a line of JSON, or `help`; return the exit status.

    0 done, 1 not reproduced (`agrees` is false), 2 something given cannot be used: one sentence, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(help)
        return 0
    try:
        outcome = work(argv)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here", program)
        return 130
    except (InputError, OSError) as error:
        say(error, program)
        return 2
    print(json.dumps(outcome))
    return 0 if outcome.get("agrees", True) else 1
