"""train.py from outside: its command line, its results, its files, and what it logs to W&B."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import helpers
import lib.dataset
import lib.files
import lib.tracking
import train

ROOT = Path(__file__).resolve().parents[1]
COURSE = {  # the course's table: long flag, short flag, a value that is not the default
    "wandb_project": ("wp", "other-project"),
    "wandb_entity": ("we", "somebody"),
    "dataset": ("d", "mnist"),
    "epochs": ("e", 2),
    "batch_size": ("b", 50),
    "loss": ("l", "mean_squared_error"),
    "optimizer": ("o", "nadam"),
    "learning_rate": ("lr", 0.002),
    "momentum": ("m", 0.5),
    "beta": ("beta", 0.5),
    "beta1": ("beta1", 0.5),
    "beta2": ("beta2", 0.9),
    "epsilon": ("eps", 0.01),
    "weight_decay": ("w_d", 0.1),
    "weight_init": ("w_i", "Xavier"),
    "num_layers": ("nhl", 2),
    "hidden_size": ("sz", 24),
    "activation": ("a", "tanh"),
}
USED_BY = {  # which optimisers a setting may change
    "momentum": {"momentum", "nag"},
    "beta": {"rmsprop"},
    "beta1": {"adam", "nadam"},
    "beta2": {"adam", "nadam"},
    "epsilon": {"rmsprop", "adam", "nadam"},
}
METRICS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
OUTCOME = [*METRICS, "best_val_accuracy", "best_epoch", "test_accuracy", "seconds", "samples_per_second", "stopped"]
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SMALL = ["--epochs", "2", "--num_layers", "2", "--hidden_size", "16", "--optimizer", "rmsprop"]
SMALL += ["--learning_rate", "0.001", "--activation", "tanh", "--weight_init", "Xavier", "--weight_decay", "0"]
KEY = "0123456789abcdef" * 2 + "01234567"


def tiny_dataset(name="fashion_mnist"):
    """600 + 100 + 100 images that a network can learn, other ones for each name; not exactly as many of each class."""
    rng = np.random.default_rng(len(name))
    prototypes = rng.integers(0, 200, (10, 784))
    parts = []
    for n in (600, 100, 100):
        y = rng.integers(0, 10, n).astype(np.uint8)
        parts += [(prototypes[y] * 0.25 + rng.integers(0, 200, (n, 784))).clip(0, 255).astype(np.uint8), y]
    return lib.dataset.Dataset(name, NAMES, *parts)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No W&B setting or key of the developer's, all files under tmp_path, tiny data."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "load_dataset", tiny_dataset)


@pytest.fixture
def run(capsys):
    """Call train.main in this process: (status, result or None, lines of standard error)."""

    def call(*argv, mode="disabled"):
        status = train.main([*map(str, argv), *(["--wandb_mode", mode] if mode else [])])
        out, err = capsys.readouterr()
        return status, json.loads(out.splitlines()[-1]) if out else None, err.splitlines()

    return call


def command(*argv, real=False):
    """The command line of a process of its own, on tiny data or on the real data."""
    if real:
        return [sys.executable, str(ROOT / "train.py"), *map(str, argv)]
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import train, test_train; "
    code += "train.load_dataset = test_train.tiny_dataset; sys.exit(train.main())"
    return [sys.executable, "-c", code, *map(str, argv)]


def process(*argv, real=False, **env):
    """Run that to its end: (status, standard output, standard error)."""
    done = subprocess.run(command(*argv, real=real), capture_output=True, text=True, env=os.environ | env, timeout=120)
    return done.returncode, done.stdout, done.stderr


def same(a, b):
    """Two results agree in all but time."""
    timed = ("seconds", "samples_per_second")
    return {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}


def read_wandb(folder):
    """All that the one offline run under `folder` holds: a dictionary per kind of record (LevelDB's log format)."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, i, part = path.read_bytes(), 7, b""  # after ":W&B", a magic number and a version
    found = SimpleNamespace(folder=path.parent, run=None, config={}, history=[], summary={}, exit_code=None)
    while i + 7 <= len(data):
        if 32768 - i % 32768 < 7:  # a block ends in less than a header
            i += 32768 - i % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[i : i + 7])
        part += data[i + 7 : i + 7 + size]
        i += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record.FromString(part)
            part = b""
            if record.HasField("run"):
                found.run = record.run
                found.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.config.update:
                found.config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            if record.HasField("history"):
                row = {"/".join(v.nested_key) or v.key: json.loads(v.value_json) for v in record.history.item}
                found.history.append(row)
            for item in record.summary.update:
                found.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
            if record.HasField("exit"):
                found.exit_code = record.exit.exit_code
    return found


# ---------------------------------------------------------------------------------------------------------------- flags


def test_defaults_are_those_of_config(run):
    status, result, _ = run()
    assert status == 0
    assert {f.name: result[f.name] for f in fields(helpers.Config)} == asdict(helpers.Config())


def test_defaults_are_the_documented_ones():
    """Those of the best validation accuracy found; the rest are the customary ones."""
    assert asdict(helpers.Config()) == {
        "dataset": "fashion_mnist", "epochs": 20, "batch_size": 128, "loss": "cross_entropy", "optimizer": "adam",
        "learning_rate": 4.22e-4, "momentum": 0.9, "beta": 0.9, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
        "weight_decay": 7.69e-6, "weight_init": "random", "num_layers": 4, "hidden_size": 256, "activation": "ReLU",
        "seed": 0,
    }  # fmt: skip
    assert lib.tracking.PROJECT == "CS6910_Assignment_1"


@pytest.mark.parametrize("argv", [["-sz", "24", "16"], ["-sz", "24,16"], ["--hidden_size=[24, 16]"]])
def test_a_width_for_each_layer(run, fake_wandb, argv):
    status, result, _ = run("-e", 1, *argv, "-o", "sgd", "--save", "n.npz", mode="offline")
    assert status == 0 and (result["hidden_size"], result["num_layers"]) == ([24, 16], 2)
    assert helpers.load_network("n.npz").sizes == [784, 24, 16, 10]
    assert fake_wandb.inits[0]["config"]["hidden_size"] == [24, 16]


def test_names_of_choices_in_any_case_are_stored_in_one_spelling(run):
    result = run("-e", 1, "-a", "relu", "-w_i", "xavier", "-o", "NAdam", "-d", "MNIST")[1]
    assert [result[name] for name in ("activation", "weight_init", "optimizer", "dataset")] == [
        "ReLU",
        "Xavier",
        "nadam",
        "mnist",
    ]


def test_short_and_long_flags_agree(run):
    shorts = [text for short, value in COURSE.values() for text in (f"-{short}", value)]
    longs = [text for name, (_, value) in COURSE.items() for text in (f"--{name}", value)]
    equals = [f"--{name}={value}" for name, (_, value) in COURSE.items()]  # as `wandb agent` writes them
    results = [run(*argv)[1] for argv in (shorts, longs, equals)]
    assert same(results[0], results[1]) and same(results[0], results[2])
    wanted = {name: value for name, (_, value) in COURSE.items() if not name.startswith("wandb")}
    assert {name: results[0][name] for name in wanted} == wanted


@pytest.mark.parametrize("argv", [[], ["-wp", "p", "-we", "e"], ["--wandb_project", "p", "--wandb_entity", "e"]])
def test_project_and_entity_reach_wandb(run, fake_wandb, argv):
    run(*SMALL, *argv, mode="online")
    about = fake_wandb.inits[0]
    assert (about["project"], about.get("entity")) == (("p", "e") if argv else ("CS6910_Assignment_1", None))
    assert about["name"] == "hl_2_lr_0.001_bs_128_opt_rmsprop_act_tanh" and about["mode"] == "online"


CHOICES = [
    (f.name, choice)
    for f in fields(helpers.Config)
    if f.type is str
    for choice in [*f.metadata["names"], *(["nesterov"] if f.name == "optimizer" else [])]
]


@pytest.mark.parametrize("name, choice", CHOICES)
def test_every_choice_runs(run, name, choice):
    status, result, _ = run("-e", 1, "-nhl", 1, "-sz", 16, f"--{name}", choice)
    assert status == 0
    assert result[name] == {"nesterov": "nag"}.get(choice, choice)
    assert result["train_loss"] > 0 and 0 <= result["test_accuracy"] <= 1


def test_choices_differ(run):
    for f in fields(helpers.Config):
        if f.type is str:
            losses = [run(*SMALL, f"--{f.name}", choice)[1]["train_loss"] for choice in f.metadata["names"]]
            assert len(set(losses)) == len(losses), f.name


@pytest.mark.parametrize("name", [name for name in COURSE if name not in USED_BY and "wandb" not in name] + ["seed"])
def test_setting_changes_the_training(run, name):
    value = COURSE[name][1] if name in COURSE else 1
    assert run("-e", 1)[1]["train_loss"] != run("-e", 1, f"--{name}", value)[1]["train_loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nag", "rmsprop", "adam", "nadam"])
def test_setting_changes_the_optimizers_that_use_it(run, optimizer):
    base = [*SMALL, "-o", optimizer]
    plain = run(*base)[1]["train_loss"]
    changed = {name for name in USED_BY if run(*base, f"--{name}", COURSE[name][1])[1]["train_loss"] != plain}
    assert changed == {name for name, users in USED_BY.items() if optimizer in users}


def test_an_added_optimizer_is_a_choice(run, monkeypatch):
    monkeypatch.setitem(helpers.OPTIMIZERS, "added", helpers.sgd)
    assert same(run(*SMALL, "-o", "added")[1] | {"optimizer": "sgd"}, run(*SMALL, "-o", "sgd")[1])


def test_help_lists_every_flag_choice_and_default(capsys):
    assert train.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (short, _) in COURSE.items():
        assert re.search(rf"^  -{short}, +--{name} ", text, re.M)
    for f in fields(helpers.Config):
        (line,) = [line for line in text.splitlines() if re.search(rf"--{f.name} ", line) and "default: " in line]
        assert f"(default: {getattr(helpers.Config(), f.name)})" in line
        assert f.type is not str or f"{f.metadata['meaning']}: {', '.join(f.metadata['names'])}" in line
    assert "nesterov" in text and "--checkpoint" in text and "--save" in text and "--wandb_mode" in text


# ------------------------------------------------------------------------------------------------------------ bad input

FIRST = {name: choice for name, choice in reversed(CHOICES)}
KINDS = {f.name: "number" if f.type is float else "whole number" for f in fields(helpers.Config) if f.type is not str}
BAD = [  # arguments, and how the sentence begins: the flag, what was given, what is allowed
    *(([f"--{name}", "ten"], f"--{name} is 'ten'; allowed: a {kind} in ") for name, kind in KINDS.items()),
    *(([f"--{name}=nan"], f"--{name} is ") for name in KINDS),
    *(([f"--{name}", "no-such"], f"--{name} is 'no-such'; allowed: {first}") for name, first in FIRST.items()),
    (["-e", "0"], "--epochs is 0; allowed: a whole number in [1, inf)"),
    (["-e", "2.5"], "--epochs is '2.5'; allowed: a whole number in [1, inf)"),
    (["-e", "-3"], "--epochs is -3; allowed: a whole number in [1, inf)"),
    (["-b", "0"], "--batch_size is 0; allowed: a whole number in [1, inf)"),
    (["-lr", "0"], "--learning_rate is 0.0; allowed: a number in (0, "),
    (["-lr", "-1e-3"], "--learning_rate is -0.001; allowed: a number in (0, "),
    (["-lr", "-inf"], "--learning_rate is '-inf'; allowed: a number in (0, "),
    (["-lr", "1e999"], "--learning_rate is '1e999'; allowed: a number in (0, "),
    (["-lr", "0,001"], "--learning_rate is '0,001'; allowed: a number in (0, "),
    (["-m", "1"], "--momentum is 1.0; allowed: a number in [0, 1)"),
    (["-beta", "-0.1"], "--beta is -0.1; allowed: a number in [0, 1)"),
    (["-beta1", "1.0"], "--beta1 is 1.0; allowed: a number in [0, 1)"),
    (["-beta2", "7"], "--beta2 is 7.0; allowed: a number in [0, 1)"),
    (["-eps", "0"], "--epsilon is 0.0; allowed: a number in [1e-30, "),
    (["-wp", "p\nq"], r"--wandb_project is 'p\nq'; allowed: 1 to 128 characters that can be printed"),
    (["-we", "a/b"], "--wandb_entity is 'a/b'; allowed: 1 to 128 characters that can be printed"),
    (["-w_d", "-0.5"], "--weight_decay is -0.5; allowed: a number in [0, "),
    (["-w_d", "inf"], "--weight_decay is 'inf'; allowed: a number in [0, "),
    (["-nhl", "-1"], "--num_layers is -1; allowed: a whole number in [0, "),
    (["-sz", "0"], "--hidden_size is 0; allowed: a whole number in [1, "),
    (["-sz", "32,x"], "--hidden_size is '32,x'; allowed: a whole number in [1, 10000], or one for each layer: 256 128"),
    (["-sz", "32,,16"], "--hidden_size is '32,,16'; allowed: a whole number in [1, "),
    (["-sz", "[32, 16"], "--hidden_size is '[32, 16'; allowed: a whole number in [1, "),
    (["-e", "1_0"], "--epochs is '1_0'; allowed: a whole number in [1, "),
    (["-e", "9" * 310], f"--epochs is '{'9' * 310}'; allowed: a whole number in [1, "),
    (["--save", "here/"], "--save is 'here/', which cannot be written: it names a folder; allowed: a file"),
    (["-e", "١"], "--epochs is '١'; allowed: a whole number in [1, "),
    (["--seed", " 1"], "--seed is ' 1'; allowed: a whole number in [0, "),
    (["-lr", "1e400"], "--learning_rate is '1e400'; allowed: a number in (0, "),
    (["-lr", "1_0e-2"], "--learning_rate is '1_0e-2'; allowed: a number in (0, "),
    (["-sz", "32", "x"], "'x' is not a flag; allowed: "),
    (["-sz", "32", "0"], "--hidden_size is 0; allowed: a whole number in [1, "),
    (["-sz", "32", "16", "-nhl", "3"], "--num_layers is 3; allowed with hidden_size (32, 16): 2"),
    (["--seed", "-1"], "--seed is -1; allowed: a whole number in [0, inf)"),
    (["-lr"], "-lr is given no value; allowed: a number in (0, "),
    (["-lr", "-e", "3"], "-lr is given no value; allowed: a number in (0, "),
    (["--epochs="], "--epochs is given no value; allowed: a whole number in [1, "),
    (["--optimizer", "--epochs", "3"], "--optimizer is given no value; allowed: sgd, momentum, nag, "),
    (["--save", "--sed"], "--save is given no value; allowed: a file"),
    (["-d", ""], "-d is given no value; allowed: fashion_mnist, mnist"),
    (["--foo", "1"], "'--foo' is not a flag; allowed: --wandb_project, --wandb_entity, --dataset, "),
    (["-n", "3"], "'-n' is not a flag; allowed: "),  # argparse would take it for -nhl
    (["-bs", "16"], "'-bs' is not a flag; allowed: "),
    (["-e3"], "'-e3' is not a flag; allowed: "),
    (["--epoch", "3"], "'--epoch' is not a flag; allowed: "),
    (["--learning=0.1"], "'--learning=0.1' is not a flag; allowed: "),
    (["--beta3", "0.5"], "'--beta3' is not a flag; allowed: "),
    (["stray"], "'stray' is not a flag; allowed: "),
    (["-e", "3", "stray"], "'stray' is not a flag; allowed: "),
    (["--wandb_mode", "dryrun"], "--wandb_mode is 'dryrun'; allowed: online, offline, disabled"),
    (["-wp", "a/b"], "--wandb_project is 'a/b'; allowed: 1 to 128 characters"),
    (["-wp", "x" * 129], f"--wandb_project is '{'x' * 129}'; allowed: 1 to 128 characters"),
    (
        ["--save", "missing/n.npz"],
        "--save is 'missing/n.npz', which cannot be written: No such file or directory; allowed: ",
    ),
    (["--save", "."], "--save is '.', which cannot be written: it exists and is not a regular file; allowed: "),
    (
        ["--save", "/dev/null"],
        "--save is '/dev/null', which cannot be written: it exists and is not a regular file; allowed: ",
    ),
    (["--save", "/proc/n.npz"], "--save is '/proc/n.npz', which cannot be written: "),  # not even by root
    (["--save", "x" * 300], f"--save is '{'x' * 300}', which cannot be written: File name too long; allowed: "),
    (["--checkpoint", "missing/c.npz"], "--checkpoint is 'missing/c.npz', which cannot be written: "),
    (
        ["--checkpoint", "/"],
        "--checkpoint is '/', which cannot be written: it exists and is not a regular file; allowed: ",
    ),
    (["--checkpoint", "a.npz", "--save", "./a.npz"], "--save and --checkpoint are both './a.npz'; allowed: two files"),
]


@pytest.mark.parametrize("argv, sentence", BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_bad_input_is_one_sentence_and_status_2(run, monkeypatch, argv, sentence):
    monkeypatch.setattr(train, "load_dataset", lambda name: pytest.fail("began before it looked"))
    monkeypatch.setattr(train, "default_mode", lambda: "disabled")
    status, result, err = run(*argv, mode=None)
    assert (status, result, len(err)) == (2, None, 1), err
    assert err[0].startswith(f"train.py: {sentence}") and "; allowed" in err[0]


@pytest.mark.parametrize("argv", [["-e", "ten"], ["-n", "3"], ["-lr"], ["--save", "missing/x"], ["-o", "x"], ["x"]])
def test_bad_input_of_a_real_process(argv):
    status, out, err = process(*argv, real=True)
    assert (status, out, err.count("\n")) == (2, "", 1) and "Traceback" not in err and err.startswith("train.py: ")


def test_bad_wandb_mode_of_the_environment(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    status, _, err = run(mode=None)
    assert status == 2 and err == ["train.py: WANDB_MODE is 'dryrun'; allowed: online, offline, disabled"]
    monkeypatch.setenv("WANDB_MODE", "")  # W&B itself does not start with it
    assert "WANDB_MODE is ''; allowed" in run(*SMALL, mode=None)[2][0]
    assert run(*SMALL, mode="disabled")[0] == 0


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "cut", "network", "other"])
def test_damaged_or_foreign_checkpoint(run, content, tmp_path):
    run(*SMALL, "--checkpoint", "c.npz", "--save", "network.npz")
    path = tmp_path / "c.npz"
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-500])
    elif content == "network":
        path.write_bytes((tmp_path / "network.npz").read_bytes())
    elif content == "other":
        run(*SMALL, "--seed", 1, "--checkpoint", "other.npz")
        (tmp_path / "other.npz").rename(path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    status, result, err = run(*SMALL, "--checkpoint", "c.npz")
    assert (status, result, len(err)) == (2, None, 1) and "c.npz" in err[0]
    assert path.read_bytes() == before


def test_missing_data(run, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "load_dataset", lambda name: lib.dataset.load_dataset(name, data_dir=tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    status, result, err = run(*SMALL)
    assert (status, result, len(err)) == (2, None, 1) and "fashion_mnist is missing" in err[0]


def test_too_little_memory(run):
    status, result, err = run("-sz", 10_000, "-nhl", 1000)
    assert (status, result, len(err)) == (2, None, 1)
    assert "--hidden_size 10000 with --num_layers 1000" in err[0] and "memory" in err[0] and "allowed" in err[0]


@pytest.mark.parametrize("how", ["a link", "a hard link", "a folder's link"])
def test_save_and_checkpoint_are_two_files_whatever_they_are_called(run, tmp_path, how):
    (tmp_path / "folder").mkdir()
    one, other = tmp_path / "folder" / "one.npz", tmp_path / "other.npz"
    if how == "a folder's link":
        (tmp_path / "linked").symlink_to("folder")
        other = tmp_path / "linked" / "one.npz"
    elif how == "a link":
        other.symlink_to(one)
    else:
        one.touch()
        other.hardlink_to(one)
    status, result, err = run(*SMALL, "--checkpoint", one, "--save", other)
    assert (status, result, len(err)) == (2, None, 1) and "--save and --checkpoint are both" in err[0]


def full(*_, **arrays):
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_for_the_network_costs_neither_result_nor_network(run, monkeypatch, tmp_path):
    expected, save = run(*SMALL)[1], lib.tracking.save_network
    monkeypatch.setattr(
        lib.tracking, "save_network", lambda path, _: full() if tmp_path == path.parent else save(path, _)
    )
    status, result, err = run(*SMALL, "--save", "n.npz")
    assert status == 2 and same(result, expected) and len(err) == 3
    found = re.fullmatch(
        f"train.py: --save {tmp_path}/n.npz cannot be written: No space .*; the network is in (.*) instead", err[-1]
    )
    helpers.load_network(found[1])
    monkeypatch.setattr(lib.tracking, "save_network", full)
    status, result, err = run(*SMALL, "--save", "n.npz")
    assert status == 2 and same(result, expected) and err[-1].endswith("; the network is not saved")


def test_a_disk_that_is_full_for_the_checkpoint_is_a_sentence_and_what_it_held_is_kept(run, monkeypatch, tmp_path):
    argv = [*SMALL, "--checkpoint", "c.npz"]
    run(*argv, "-e", 1)
    before = (tmp_path / "c.npz").read_bytes()
    monkeypatch.setattr(lib.files, "write_npz", full)
    status, result, err = run(*argv)
    assert (status, result, len(err)) == (2, None, 1) and (tmp_path / "c.npz").read_bytes() == before
    assert f"--checkpoint {tmp_path}/c.npz cannot be written: No space left on device" in err[0]


@pytest.mark.parametrize("redirection, status", [("2>&1 | head -1", 2), ("2>&1 >out | head -1", 0), (">/dev/full", 2)])
def test_whoever_stops_reading_the_network_is_trained_and_saved(redirection, status, tmp_path):
    if "/dev/full" in redirection and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    argv = command("-e", 40, "--save", "n.npz", "-nhl", 1, "-sz", 16, "--wandb_mode", "disabled")
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "-", *argv]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == status and "Traceback" not in done.stdout + done.stderr
    assert helpers.load_network(tmp_path / "n.npz").sizes == [784, 16, 10]
    if ">/dev/full" in redirection:
        assert json.loads(done.stderr.split("the result: ")[1])["epochs"] == 40


# --------------------------------------------------------------------------------------------------------------- result


def test_result_is_complete_and_agrees_with_helpers(run, tmp_path):
    argv = [
        "-e",
        6,
        "-nhl",
        2,
        "-sz",
        16,
        "-o",
        "adam",
        "-lr",
        0.05,
        *("-a", "tanh", "-w_i", "Xavier"),
    ]  # wild enough for the last epoch not to be the best
    status, result, err = run(*argv, "--save", "n.npz")
    assert status == 0 and list(result) == [*(f.name for f in fields(helpers.Config)), *OUTCOME]
    config = helpers.Config(**{f.name: result[f.name] for f in fields(helpers.Config)})
    data = tiny_dataset()
    network, history, stopped = helpers.train(config, data, keep_best=True)
    assert {name: result[name] for name in METRICS} == {name: history[-1][name] for name in METRICS}
    accuracies = [row["val_accuracy"] for row in history]
    assert result["best_val_accuracy"] == max(accuracies) > accuracies[-1]
    assert result["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert result["stopped"] == stopped
    saved = helpers.load_network(tmp_path / "n.npz")
    assert np.array_equal(saved.theta, network.theta)  # of the best epoch, not of the last
    assert result["test_accuracy"] == helpers.evaluate(network, data.x_test, data.y_test)[1]
    assert 0 < result["seconds"] < 60 and 600 * 6 / result["seconds"] < result["samples_per_second"] < 1e8
    assert len(err) == 6 and all(f"epoch {i}/6" in line and "val_accuracy" in line for i, line in enumerate(err, 1))


def test_the_best_epoch_is_the_first_of_equals_and_its_network_is_saved_before_it_is_tested(run, monkeypatch, tmp_path):
    def history(config, data, on_epoch, **options):
        assert options["keep_best"]
        rows = [{name: 0.5 for name in METRICS} | {"val_accuracy": a} for a in (0.1, 0.7, 0.7, 0.2)]
        rows = [row | {"epoch": n, "seconds": 1.0, "step_seconds": 1.0} for n, row in enumerate(rows, 1)]
        return helpers.Training(helpers.Network([784, 9, 10]), rows, "enough")

    def predict(network, x):
        assert (tmp_path / "n.npz").exists()
        return np.eye(10)[np.zeros(len(x), int)]

    monkeypatch.setattr(lib.tracking, "train", history)
    monkeypatch.setattr(helpers.Network, "predict", predict)
    status, result, _ = run("--save", "n.npz")
    assert status == 0 and (result["best_epoch"], result["best_val_accuracy"], result["val_accuracy"]) == (2, 0.7, 0.2)
    assert result["seconds"] == 4 and result["samples_per_second"] == 600


def test_weights_that_are_not_finite_are_not_saved_and_the_result_is_printed(run, monkeypatch, tmp_path):
    right = lib.tracking.train

    def broken(*arguments, **options):
        training = right(*arguments, **options)
        training.network.theta[0] = np.inf
        return training

    monkeypatch.setattr(lib.tracking, "train", broken)
    status, result, err = run(*SMALL, "--save", "n.npz")
    assert status == 2 and result["val_accuracy"] > 0 and not (tmp_path / "n.npz").exists()
    assert err[-1].endswith(
        "n.npz: theta has numbers that are not finite; allowed: finite float32; the network is not saved"
    )


def test_the_test_set_stays_closed_unless_asked(monkeypatch):
    data = tiny_dataset()
    closed = lib.dataset.Dataset(data.name, NAMES, data.x_train, data.y_train, data.x_val, data.y_val, None, None)
    result = lib.tracking.train_and_log(helpers.Config(epochs=1), closed, test=False)
    assert result["test_accuracy"] is None and result["val_accuracy"] > 0
    with pytest.raises(helpers.InputError, match="^data has no x_test; allowed: a Dataset that has, or test=False$"):
        lib.tracking.train_and_log(None, closed)  # before it trains
    predicted = []
    monkeypatch.setattr(helpers.Network, "predict", lambda self, x: predicted.append(len(x)) or np.eye(10)[data.y_test])
    assert lib.tracking.train_and_log(helpers.Config(epochs=3), data)["test_accuracy"] == 1
    assert predicted == [100]  # once


@pytest.mark.parametrize("argv, some", [(["-lr", 1e6, "-a", "ReLU"], False), (["-lr", 0.1, "-w_d", 30], True)])
def test_divergence_is_said_and_is_status_1(run, argv, some):
    """At once; and after some epochs, each step making the weights -2 times what they were."""
    shape = ["-nhl", 6, "-sz", 128, "-a", "tanh", "-w_i", "Xavier"]
    status, result, err = run("-o", "sgd", "-e", 60, *shape, *argv, "--save", "n.npz")
    assert status == 1 and "not finite in epoch" in result["stopped"]
    assert [result[name] for name in [*METRICS, "test_accuracy"]] == [None] * 5
    assert not Path("n.npz").exists() and not any("Warning" in line for line in err)
    assert (result["best_epoch"] is not None) == (result["best_val_accuracy"] is not None) == some == bool(err)


def test_a_misspelt_flag_is_told_the_nearest():
    with pytest.raises(helpers.InputError, match="^'--epoch' is not a flag; allowed: .*; the nearest is --epochs$"):
        train.parse(["--epoch", "3"])
    with pytest.raises(helpers.InputError, match="^'--xyz' is not a flag; allowed: .* -a$"):
        train.parse(["--xyz", "3"])


def test_divergence_of_a_real_process():
    status, out, err = process("-o", "sgd", "-lr", 1e6, "-a", "ReLU", "--wandb_mode", "disabled")
    assert status == 1 and json.loads(out)["train_loss"] is None
    assert not re.search("NaN|Infinity", out) and "Warning" not in err and "Traceback" not in err


def test_on_epoch_can_stop(tmp_path):
    rows = []
    config = helpers.Config(epochs=9, num_layers=1, hidden_size=16)
    result = lib.tracking.train_and_log(
        config, tiny_dataset(), on_epoch=lambda row: rows.append(row) or ("enough" if len(rows) == 3 else None)
    )
    assert result["stopped"] == "enough" and len(rows) == 3
    assert result["train_loss"] == rows[-1]["train_loss"] and result["test_accuracy"] > 0
    result = lib.tracking.train_and_log(config, tiny_dataset(), on_epoch=lambda row: 7)
    assert "9 epochs" in result["stopped"]  # only a sentence ends a training


# ------------------------------------------------------------------------------------------------- interrupted, resumed


def test_killed_and_resumed_gives_the_same_bits(tmp_path):
    argv = ["-e", 150, "-nhl", 3, "-sz", 32, "-o", "nadam", "--wandb_mode", "disabled"]
    status, whole, _ = process(*argv, "--save", "whole.npz")
    assert status == 0
    argv += ["--checkpoint", "c.npz", "--save", "resumed.npz"]
    with subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as killed:
        for line in killed.stderr:
            if "epoch 20/" in line:
                killed.kill()  # -9
                break
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "resumed.npz").exists()
    assert (tmp_path / "c.npz").exists()
    status, resumed, err = process(*argv)
    first = int(re.search(r"epoch (\d+)/150", err)[1])
    assert status == 0 and 20 < first < 150  # it did not begin anew
    networks = [helpers.load_network(tmp_path / name).theta.tobytes() for name in ("whole.npz", "resumed.npz")]
    assert networks[0] == networks[1]
    assert same(json.loads(whole), json.loads(resumed))


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_ctrl_c_is_one_sentence_and_status_130(mode):
    argv = command("-e", 100000, "--wandb_mode", mode)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  background jobs are started deaf to it
    with subprocess.Popen(argv, preexec_fn=heed, **pipes) as interrupted:
        assert "epoch 1/" in interrupted.stderr.readline()
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=30)
    assert interrupted.returncode == 130 and out == "" and "Traceback" not in err
    assert "interrupted" in err.splitlines()[-1] and all("epoch" in line for line in err.splitlines())


def test_a_terminal_gets_a_bar():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))  # rows, columns
    with subprocess.Popen(command("-e", 3, "--wandb_mode", "disabled"), stdout=subprocess.PIPE, stderr=theirs) as shown:
        os.close(theirs)
        text = b""
        with suppress(OSError):  # Linux's way to say that the other end is closed; others return nothing
            while part := os.read(ours, 4096):
                text += part
        out = shown.stdout.read()
    os.close(ours)
    assert b"3/3" in text and b"val_accuracy" in text and b"\r" in text and b"train.py: epoch" not in text
    assert json.loads(out)["best_epoch"] >= 1


# ------------------------------------------------------------------------------------------------------------------ W&B


@pytest.fixture
def fake_wandb(monkeypatch, tmp_path):
    """A stand-in for W&B that keeps what it is given; a name in `broken` raises when called."""
    fake = SimpleNamespace(inits=[], rows=[], finished=[], broken=set(), url=None, summary={}, offline=False)
    fake.settings = SimpleNamespace(sync_dir="wandb/run-1 of mine", log_internal=tmp_path / "debug-internal.log")
    fake.settings.log_internal.write_text('{"level": "INFO", "msg": "all is well"}\n')

    def call(name, keep):
        def called(*args, **kwargs):
            if name in fake.broken or kwargs.get("mode") in fake.broken:
                raise RuntimeError(f"W&B {name}\nis broken")
            return keep(*args, **kwargs)

        return called

    fake.log = call("log", lambda row, step: fake.rows.append((step, row)))
    fake.finish = call("finish", lambda exit_code: fake.finished.append(exit_code))
    fake.init = call("init", lambda **about: fake.inits.append(about) or fake)
    fake.Image = call("Image", lambda pixels, caption: caption)
    matrix = SimpleNamespace(table=SimpleNamespace(bind_to_run=lambda *_: None))
    fake.plot = SimpleNamespace(confusion_matrix=call("plot", lambda **kwargs: matrix))
    monkeypatch.setattr(lib.tracking, "quiet_wandb", lambda: fake)
    return fake


@pytest.mark.parametrize("broken", [{"online"}, {"init"}, {"log"}, {"finish"}, {"plot"}, {"Image"}])
def test_wandb_trouble_does_not_stop_a_training(run, fake_wandb, broken):
    expected = run(*SMALL)[1]
    fake_wandb.broken = broken
    status, result, err = run(*SMALL, mode="online")
    assert status == 0 and same(result, expected)
    said = [line for line in err if "W&B" in line]
    assert len(said) == 1 and "is broken" in said[0] and len(err) == 3
    kept = "wandb sync --include-online 'wandb/run-1 of mine'"  # for a shell
    assert said[0].endswith(kept) != (broken == {"init"})
    if broken == {"online"}:
        assert [about["mode"] for about in fake_wandb.inits] == ["offline"] and fake_wandb.finished == [0]


@pytest.mark.parametrize("level, lost", [("ERROR", True), ("ERROR+4", True), ("WARN", False)])
def test_what_wandb_tells_its_log_alone_is_said_without_addresses(run, fake_wandb, level, lost):
    signed = {"level": level, "msg": "PUT https://bucket.example/a.png?signature=s3cret gave up", "error": "403"}
    lines = [{"level": "ERROR", "msg": "api: HTTP error"}, signed]
    fake_wandb.settings.log_internal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, _, err = run(*SMALL, mode="online")
    assert status == 0 and [("PUT W&B gave up 403" in line) for line in err[2:]] == [True] * lost
    assert "s3cret" not in str(err)
    fake_wandb.offline = True
    assert len(run(*SMALL, mode="offline")[2]) == 2  # such a run is not meant to be uploaded now


def test_a_log_of_wandb_that_is_cut_short_or_not_text_is_no_trouble(fake_wandb):
    fake_wandb.settings.log_internal.write_bytes(b'{"level": "INFO", "msg": "\xc3\x81gnes \xff"}\n[1]\n{"level": "ERR')
    lib.tracking.check_upload(fake_wandb)
    with fake_wandb.settings.log_internal.open("ab") as file:
        file.write('\n{"level": "ERROR", "msg": "Ágnes"}\n'.encode())
    with pytest.raises(RuntimeError, match="Ágnes"):
        lib.tracking.check_upload(fake_wandb)


def test_a_stop_of_wandb_ends_the_training_after_its_epoch(run, fake_wandb):
    keep = fake_wandb.log
    fake_wandb.log = lambda row, step: keep(row, step) or fake_wandb.inits[0]["settings"]["stop_fn"]()
    status, result, _ = run(*SMALL, "--epochs", 9, mode="online")
    assert status == 0 and result["stopped"] == "stopped by W&B" and fake_wandb.finished == [0]
    assert [step for step, _ in fake_wandb.rows] == [1, 1] and result["test_accuracy"] is not None


def test_an_exception_of_on_epoch_finishes_the_run(fake_wandb):
    def prune(row):
        raise LookupError("pruned")

    with pytest.raises(LookupError, match="pruned"):
        lib.tracking.train_and_log(helpers.Config(epochs=2), tiny_dataset(), mode="offline", on_epoch=prune)
    assert fake_wandb.finished == [1] and [step for step, _ in fake_wandb.rows] == [1]


def test_a_failed_training_is_a_failed_run(run, fake_wandb):
    run("-o", "sgd", "-lr", 1e6, "-a", "ReLU", mode="offline")
    assert fake_wandb.finished == [1] and "not finite" in fake_wandb.summary["stopped"]


def test_group_and_name_reach_wandb(fake_wandb):
    lib.tracking.train_and_log(
        helpers.Config(epochs=1), tiny_dataset(), mode="offline", group="bayes", name="me", run_id="t-1", test=False
    )
    about = fake_wandb.inits[0]
    assert (about["group"], about["name"], about["id"]) == ("bayes", "me", "t-1")
    assert about["reinit"] == "create_new"  # W&B's default hands back a run that is still open
    assert len(fake_wandb.rows) == 1 and "samples" not in fake_wandb.rows[0][1]


def test_disabled_never_imports_wandb():
    code = "import sys, train, test_train; train.load_dataset = test_train.tiny_dataset; "
    code += "sys.exit(train.main(['-e', '1', '--wandb_mode', 'disabled']) or 'wandb' in sys.modules)"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=60).returncode == 0


def test_offline_run_holds_everything_and_leaks_no_key(tmp_path):
    status, out, err = process(*SMALL, "--epochs", 3, "--wandb_mode", "offline", "-wp", "p", WANDB_API_KEY=KEY)
    result = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and len(err.splitlines()) == 3  # W&B says nothing of its own
    found = read_wandb(tmp_path)
    assert (found.run.project, found.run.display_name) == ("p", "hl_2_lr_0.001_bs_128_opt_rmsprop_act_tanh")
    config = {key: value for key, value in found.config.items() if not key.startswith("_wandb")}
    assert config == {f.name: result[f.name] for f in fields(helpers.Config)}
    assert [(row["_step"], row["epoch"]) for row in found.history] == [(1, 1), (2, 2), (3, 3)]
    last = found.history[-1]
    assert all(name in row for row in found.history for name in METRICS)
    assert {name: last[name] for name in [*METRICS, "test_accuracy"]} == {
        name: result[name] for name in [*METRICS, "test_accuracy"]
    }
    assert {name: found.summary[name] for name in OUTCOME} == {name: result[name] for name in OUTCOME}
    assert found.exit_code == 0

    assert last["samples/captions"] == list(NAMES)
    images = [found.folder / "files" / name for name in last["samples/filenames"]]
    from PIL import Image

    data = tiny_dataset()
    for label, path in enumerate(images):
        pixels = np.asarray(Image.open(path).convert("L")).ravel()
        assert data.y_train[np.flatnonzero((data.x_train == pixels).all(axis=1))].tolist() == [label]

    table = json.loads((found.folder / "files" / last["confusion_matrix_table/path"]).read_text())
    assert table["columns"] == ["Actual", "Predicted", "nPredictions"]
    counts = {(NAMES.index(a), NAMES.index(p)): n for a, p, n in table["data"]}
    config = helpers.Config(**config)
    network, _, _ = helpers.train(config, data, keep_best=True)
    y_hat = network.predict(data.x_test).argmax(axis=1)
    assert counts == {(i, j): np.sum((data.y_test == i) & (y_hat == j)) for i in range(10) for j in range(10)}
    assert "confusion_matrix/v1" in json.dumps(found.config["_wandb/visualize/confusion_matrix"])

    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in out + err


@pytest.mark.parametrize("epochs", [4, 2])
def test_a_resumed_run_is_whole(run, tmp_path, epochs):
    run(*SMALL, "--checkpoint", "c.npz")
    argv = [*SMALL, "-e", epochs, "--checkpoint", "c.npz"]
    status, out, err = process(*argv, WANDB_MODE="offline")
    assert status == 0 and len(err.splitlines()) == epochs - 2  # progress tells only what is done now
    rows = read_wandb(tmp_path).history
    config = train.read_config(train.parse(list(map(str, [*SMALL, "-e", epochs]))))
    expected = helpers.train(config, tiny_dataset()).history
    assert [row["_step"] for row in rows] == list(range(1, epochs + 1))
    assert [{k: row[k] for k in METRICS} for row in rows] == [{k: row[k] for k in METRICS} for row in expected]
    assert rows[-1]["test_accuracy"] == json.loads(out)["test_accuracy"]


def test_as_the_program_of_a_wandb_sweep(tmp_path):
    (tmp_path / "arguments.yaml").write_text(
        "wandb_version: 1\nbatch_size:\n  value: 16\nlearning_rate:\n  value: 0.01\n"
    )
    env = {"WANDB_SWEEP_ID": "abcd1234", "WANDB_RUN_ID": "run12345", "WANDB_SWEEP_PARAM_PATH": "arguments.yaml"}
    argv = ["--batch_size=16", "--learning_rate=0.01", "--epochs=1", "--num_layers=1"]
    status, out, err = process(*argv, WANDB_MODE="offline", **env)
    assert status == 0 and json.loads(out)["batch_size"] == 16 and len(err.splitlines()) == 1
    found = read_wandb(tmp_path)
    assert (found.run.run_id, found.run.sweep_id) == ("run12345", "abcd1234")
    assert found.run.display_name == "hl_1_lr_0.01_bs_16_opt_adam_act_ReLU" and found.config["learning_rate"] == 0.01


@pytest.mark.parametrize(
    "netrc, env, mode, said",
    [
        (None, {}, "offline", "no W&B key"),
        (None, {"WANDB_API_KEY": KEY}, "online", ""),
        (f"machine 127.0.0.1:9 login user password {KEY}", {}, "online", ""),
        (f"machine elsewhere.example login user password {KEY}", {}, "offline", "no W&B key"),
        ("machine 127.0.0.1:9 login user password short", {}, "offline", "cannot be used"),
        (None, {"WANDB_BASE_URL": "nonsense"}, "offline", "cannot be used"),
    ],
)
def test_default_mode_asks_for_a_key_and_no_network(tmp_path, netrc, env, mode, said):
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
        (tmp_path / ".netrc").chmod(0o600)
    env = os.environ | {"WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)} | env
    code = "import time, train; began = time.time(); print(train.default_mode(), time.time() - began)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    found, seconds = done.stdout.split()
    assert found == mode and float(seconds) < 10
    assert done.stderr.count("\n") == bool(said) and said in done.stderr
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("key", [{}, {"WANDB_API_KEY": KEY}])
def test_wandb_disabled_is_obeyed_with_and_without_a_key(tmp_path, key):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = disabled\n")  # what `wandb disabled` writes
    status, out, err = process(*SMALL, WANDB_BASE_URL="http://127.0.0.1:9", **key)
    assert status == 0 and json.loads(out)["test_accuracy"] and len(err.splitlines()) == 2
    assert not list(tmp_path.glob("wandb/*run*"))
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = online\n")
    assert "no W&B key" in process(*SMALL)[2]


def test_a_home_that_cannot_be_written_is_no_trouble(tmp_path):
    status, _, err = process(*SMALL, "--wandb_mode", "offline", HOME="/proc/none")
    assert status == 0 and len(err.splitlines()) == 2
    assert read_wandb(tmp_path).exit_code == 0


def test_mode_of_the_environment_and_of_the_flag(run, monkeypatch, fake_wandb):
    monkeypatch.setenv("WANDB_MODE", "online")
    run(*SMALL, mode=None)
    run(*SMALL, mode="offline")
    run(*SMALL, mode="disabled")
    assert [about["mode"] for about in fake_wandb.inits] == ["online", "offline"]


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize("dataset, least", [("fashion_mnist", 0.80), ("mnist", 0.90)])
def test_real_data(tmp_path, dataset, least):
    argv = ["-d", dataset, "-e", 1, "-nhl", 2, "-sz", 64, "-o", "nadam", "--save", "n.npz", "--wandb_mode", "disabled"]
    argv += ["-lr", 0.001, "-a", "tanh", "-w_i", "Xavier"]
    status, out, _ = process(*argv, real=True)
    result = json.loads(out)
    assert status == 0 and result["test_accuracy"] > least and result["val_accuracy"] > least
    data = lib.dataset.load_dataset(dataset)
    network = helpers.load_network(tmp_path / "n.npz")
    assert helpers.evaluate(network, data.x_test, data.y_test)[1] == result["test_accuracy"]


def test_without_arguments_beyond_the_epochs(tmp_path):
    began = time.time()
    status, out, err = process("--epochs", 1, real=True)
    assert status == 0 and json.loads(out)["test_accuracy"] > 0.75 and time.time() - began < 90
    assert "logging offline" in err.splitlines()[0]
    found = read_wandb(tmp_path)
    assert found.history[0]["samples/captions"] == list(NAMES) and found.run.project == "CS6910_Assignment_1"
