"""lib/cli.py: what every command line says, prints and ends with."""

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest

import helpers
from helpers import InputError
from lib import cli
from lib.export import make
from lib.families import make_optimizer
from lib.files import read_npz
from lib.parallel import train_all

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ended(capsys):
    """Answer with what `work` does: (status, standard output, standard error)."""

    def call(work, argv=()):
        status = cli.answer("some.py", "the help", list(argv), work, "and so on")
        return status, *capsys.readouterr()

    return call


def raising(error):
    """Work that fails."""

    def work(argv):
        raise error

    return work


@pytest.mark.parametrize(
    "outcome, status",
    [
        ({"a": 1}, 0),
        ({"agrees": True}, 0),
        ({"agrees": False}, 1),
        ({"train_loss": 0.0}, 0),
        ({"train_loss": None}, 1),
    ],
)
def test_status_1_means_not_reproduced_or_not_finite(ended, outcome, status):
    found, out, err = ended(lambda argv: outcome)
    assert (found, json.loads(out), err) == (status, outcome, "")


@pytest.mark.parametrize(
    "error, status, said",
    [
        (InputError("it is\n wrong"), 2, "some.py: it is wrong"),
        (OSError(28, "No space left on device", "a.csv"), 2, "some.py: a.csv cannot be used: No space left on device"),
        (MemoryError(), 2, "some.py: there is not enough memory"),
        (KeyboardInterrupt(), 130, "some.py: interrupted; and so on"),
    ],
)
def test_an_end_is_one_sentence_and_its_status(ended, error, status, said):
    assert ended(raising(error)) == (status, "", f"{said}\n")


@pytest.mark.parametrize("error", [KeyError("x"), ZeroDivisionError("x"), RecursionError("x"), AssertionError("x")])
def test_a_mistake_of_ours_is_a_traceback_and_never_status_1(ended, error):
    status, out, err = ended(raising(error))
    assert (status, out) == (3, "") and err.startswith("Traceback") and type(error).__name__ in err


def test_a_result_outlives_the_file_that_was_to_hold_it(ended):
    assert ended(raising(cli.Unsaved("--save is full", {"a": 1}))) == (2, '{"a": 1}\n', "some.py: --save is full\n")


def test_json_has_no_nan(ended):
    given = {"a": math.nan, "b": [1.5, -math.inf, (math.inf,)], "c": {"d": math.nan}}
    assert json.loads(ended(lambda argv: given)[1]) == {"a": None, "b": [1.5, None, [None]], "c": {"d": None}}


def test_a_text_is_printed_as_it_is_and_help_without_work(ended):
    assert ended(lambda argv: "https://a.b") == (0, "https://a.b\n", "")
    assert ended(raising(KeyError()), ["x", "--help"]) == ended(raising(KeyError()), ["-h"]) == (0, "the help\n", "")


@pytest.mark.parametrize("text", ["²", "٣", "-1", "1.0", "", "1_0", " 1", "9" * 19, "x"])
def test_what_is_not_a_few_digits_is_not_a_number(text):
    with pytest.raises(InputError, match="ROW is .*; allowed: a whole number from 0"):
        cli.whole_number("ROW", text)
    assert cli.whole_number("ROW", "017") == 17


@pytest.mark.parametrize(
    "text, right",
    [("64", 64), ("256 128", (256, 128)), ("256,128", (256, 128)), ("[256, 128]", (256, 128)), ("(64,)", None)],
)
def test_widths(text, right):
    if right:
        assert cli.widths(text) == right
    else:
        with pytest.raises(ValueError):
            cli.widths(text)


@pytest.mark.parametrize("argv", [
    ["sweep", "rerun", "random", "8", "--folder", ""], ["grid", "rerun", "17", "--folder", " "], ["report", ""],
    ["report", "--output-dir", ""],
])  # fmt: skip
def test_an_empty_text_is_no_path(argv, capsys):
    assert import_module(argv[0]).main(argv[1:]) == 2
    assert re.fullmatch(
        r"\w+\.py: (--folder|notebook|--output-dir) is ' ?'; allowed: a path\n", capsys.readouterr().err
    )


def test_a_backend_is_the_one_that_its_name_stands_for(monkeypatch):
    imported = []
    monkeypatch.setattr(cli, "import_module", imported.append)
    assert cli.ready_backend("Compiled") == "compiled" and cli.ready_backend("NumPy") == "numpy"
    assert imported == ["lib.engine"]


# ----------------------------------------------------------------------------------------------- in a process of its own

CODE = "import sys; sys.path.insert(0, sys.argv[1]); from lib.cli import answer, say; "
CODE += "sys.exit(answer('some.py', 'help', sys.argv[2:], lambda argv: say('working', 'some.py') or {'a': 1}))"


def shell(redirection, *argv, code=CODE):
    """Run that in a shell with this redirection: (status of the first command, standard output, standard error)."""
    command = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "-", sys.executable, "-c", code, str(ROOT)]
    done = subprocess.run([*command, *argv], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_for_standard_output_is_a_sentence_with_the_result():
    status, _, err = shell("> /dev/full")
    assert status == 2 and err.splitlines()[0] == "some.py: working"
    sentence = 'some.py: standard output cannot be written: No space left on device; the result: {"a": 1}'
    assert err.splitlines()[1:] == [sentence]
    assert shell("> /dev/full", "--help")[::2] == (2, sentence.split("; the")[0] + "\n")
    assert shell("2> /dev/full") == (0, '{"a": 1}\n', "")


@pytest.mark.parametrize("redirection, status, out", [(">&-", 2, ""), ("2>&-", 0, '{"a": 1}\n'), ("2>&- >&-", 2, "")])
def test_a_closed_standard_stream(redirection, status, out):
    found = shell(redirection)
    assert found[:2] == (status, out) and found[2].count("\n") == (0 if "2>&-" in redirection else 2)


def test_a_reader_that_goes_away():
    assert shell("| true", code=f"import time; time.sleep(0.3); {CODE}")[0] == 2  # nobody has got the result
    assert shell("2>&1 >/dev/null | true", code=f"import time; time.sleep(0.3); {CODE}") == (0, "", "")


def test_ctrl_c_while_importing_is_a_sentence_and_130():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'train.py'; import lib.cli, time; "
    code += "print('ready', flush=True); time.sleep(60)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  background jobs are started deaf to it
    with subprocess.Popen([sys.executable, "-c", code], preexec_fn=heed, **pipes) as running:
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=30) == ("", "train.py: interrupted\n") and running.returncode == 130


def test_a_script_that_imports_the_project_keeps_its_own_hook():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); hook = sys.excepthook; import lib.cli; "
    code += "sys.exit(sys.excepthook is not hook)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb_workspaces
@pytest.mark.parametrize("name", cli.PROGRAMS)
def test_help_says_what_a_status_means(name, capsys):
    assert import_module(name.removesuffix(".py")).main(["x", "-h"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(cli.describe(name)) and re.search(r"Exit\s+status: 0", out) and not err
    assert out.isascii(), "a terminal that is not UTF-8 cannot print it"


def test_help_is_there_without_docstrings():
    done = subprocess.run([sys.executable, "-OO", ROOT / "train.py", "-h"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(cli.describe("train.py"))


def group(process):
    """The process group of a process, or None if it has ended."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


TEAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from helpers import Config
from lib.cli import answer
from lib.parallel import train_all


def work(argv):
    print("ready", flush=True)
    return {{"n": len(list(train_all([Config(epochs=10**6, seed=seed) for seed in range(4)], 2)))}}


if __name__ == "__main__":
    sys.exit(answer("team.py", "", None, work))
"""


@pytest.mark.parametrize("wait", [0.5, 6])  # while the workers import, and while they train
def test_ctrl_c_ends_trainings_side_by_side_with_one_sentence(wait, tmp_path):
    (tmp_path / "team.py").write_text(TEAM)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "process_group": 0}
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen([sys.executable, tmp_path / "team.py"], preexec_fn=heed, **pipes) as running:
        try:
            assert running.stdout.readline() == "ready\n"
            time.sleep(wait)
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
            sentence = "team.py: interrupted; run the same command again to resume\n"
            assert running.communicate(timeout=60) == ("", sentence) and running.returncode == 130
        finally:
            running.kill()
    left = [one for one in psutil.process_iter() if group(one) == running.pid]
    assert not psutil.wait_procs(left, timeout=20)[1]


@pytest.mark.parametrize(
    "text", ["one\n  two\r\n\r\n\tthree\n", "\n\none\x0btwo\x0cthree", "one\u2028two\x85 three", "one two three"]
)
def test_an_input_error_is_one_line_whatever_it_quotes(text):
    for error in (InputError(text), cli.Unsaved(text, {}), pickle.loads(pickle.dumps(InputError(text)))):
        assert str(error) == "one two three" and error.args == ("one two three",)
    assert str(InputError("a path with  two spaces")) == "a path with  two spaces"
    assert str(InputError(ValueError("one\ntwo"))) == "one two"


IDLE = [
    ("--check --profile quick", "--profile is given with --check"),
    ("--check --no-execute", "--no-execute is given with --check"),
    ("--output-dir a --check", "--output-dir is given with --check"),
    ("--no-execute --profile full", "--profile is given with --no-execute"),
]


@pytest.mark.parametrize("argv, said", IDLE)
def test_a_flag_of_the_report_that_would_do_nothing_is_refused(argv, said, capsys):
    assert import_module("report").main(argv.split()) == 2
    assert capsys.readouterr() == ("", f"report.py: {said}; allowed: one of the two\n")


def test_numbers_that_are_wrong_are_named_in_any_locale():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import report; from lib.export import make; "
    code += "make.read = lambda path: None; make.check = lambda *args: ['0.9 \u00b1 0.1']; "
    code += "sys.exit(report.main(['--check']))"
    argv, env = [sys.executable, "-c", code, str(ROOT)], os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [r"0.9 \xb1 0.1", '{"agrees": false, "wrong": 1}']


class Unsendable:
    def __reduce__(self):
        raise TypeError("first line\nsecond line")


def test_what_others_say_in_several_lines_is_put_in_one(tmp_path, monkeypatch):
    """Text of another exception, a user's value, a name of a file."""
    made = np.zeros((50, 50))
    path = tmp_path / "a\nb.ipynb"
    monkeypatch.setitem(helpers.OPTIMIZERS, "mine", lambda theta, config: made)
    monkeypatch.setattr(nbformat, "validate", raising(AssertionError()))
    path.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    calls = {
        "optimizer 'mine' returns float64": lambda: make_optimizer(made, helpers.Config(optimizer="mine")),
        "epochs is array": lambda: helpers.Config(epochs=made),
        "num_layers is 3": lambda: helpers.Config(num_layers=3, hidden_size=[made, made]),
        "an entry of": lambda: list(train_all([Unsendable()])),
        "cannot read": lambda: read_npz(tmp_path / "c\nd.npz", "a network", set()),
        "cannot read .*: AssertionError": lambda: make.read(path),
    }
    for words, call in calls.items():
        with pytest.raises(InputError, match=f"^{words}") as error:
            call()
        assert len(str(error.value).splitlines()) == 1
