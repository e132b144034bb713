"""sweep.py: what it reads, suggests and writes, and that no trial is lost or counted twice, whatever is killed and when."""

import fcntl
import inspect
import json
import os
import platform
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import sqlalchemy
import yaml

import helpers
import lib.dataset
import lib.files
import lib.ledger
import lib.sweepfile
import lib.tables
import lib.tracking
import lib.workers
import sweep
from helpers import Config, InputError

ROOT = Path(__file__).resolve().parents[1]
TABLES = sorted(path.stem for path in sweep.FOLDER.glob("*.csv"))
IMPORTS = [
    "import platform, time",
    "from pathlib import Path",
    "import numpy as np",
    "import helpers, sweep, lib.dataset, lib.ledger",
]
KILLS = int(os.environ.get("KILLS", 4))  # KILLS=20 pytest tests/test_sweep.py -k kills


def tiny(name):
    """300 + 60 + 60 images that can be learnt: class k is bright in its own band of pixels."""
    rng, parts = np.random.default_rng(7), []
    for n in (300, 60, 60):
        y = rng.integers(0, 10, n).astype(np.uint8)
        x = rng.integers(0, 90, (n, 784))
        for k in range(10):
            x[y == k, 78 * k : 78 * (k + 1)] += 120
        parts += [x.astype(np.uint8), y]
    return lib.dataset.Dataset(name, tuple("abcdefghij"), *parts)


def broken(name):
    """A loader that works in the parent, which calls it first, and not in its workers."""
    if Path("called").exists():
        raise RuntimeError("no images today")
    Path("called").touch()
    return tiny(name)


def here(name):
    """A loader of one of two machines, which begins when the other does, and gives it up soon."""
    Path(f"{platform.node()}.begun").touch()
    while len([*Path().glob("*.begun")]) < 2:
        time.sleep(0.1)
    return tiny(name)


def elsewhere(name):
    """A loader of another machine, whose processes ours cannot look at."""
    return here(name)


MACHINES = {  # what a process does first, as it is asked who it is before it loads anything
    "here": "lib.ledger.BEAT, lib.ledger.GRACE = 0.2, 4",
    "elsewhere": "lib.ledger.BEAT, lib.ledger.GRACE = 0.2, 4\nplatform.node = lambda: 'elsewhere'",
}


def definition(**changes):
    """A small sweep file, as a dictionary; what is changed to None is left out."""
    given = {
        "program": "train.py",
        "method": "random",
        "run_cap": 6,
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "parameters": {
            "epochs": {"value": 3},
            "num_layers": {"min": 1, "max": 3},
            "hidden_size": {"values": [8, 16]},
            "learning_rate": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        },
    }
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


SLOW = {  # a quarter of a second a trial, to be killed in
    "epochs": {"value": 4},
    "num_layers": {"value": 4},
    "batch_size": {"value": 1},
    "hidden_size": {"values": [16, 24, 32]},
    "learning_rate": {"distribution": "log_uniform_values", "min": 0.0005, "max": 0.02},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No W&B setting or key of the developer's, all files under tmp_path."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path):
    """Write a sweep file: a dictionary, or text as it is; return its path."""

    def call(given, name="small"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(given if isinstance(given, str) else yaml.safe_dump(given))
        return path

    return call


def command(*argv, load="tiny"):
    """The command line of sweep.py in a process of its own, on tiny data, with everything it writes in this folder."""
    loaders = [inspect.getsource(one) for one in (tiny, broken, here, elsewhere)]  # without what is imported here
    module = f"loaders_{load}"
    with lib.files.write_atomically(f"{module}.py") as file:  # another process may be importing it
        file.write("\n".join([*IMPORTS, MACHINES.get(load, ""), *loaders]).encode())
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {os.getcwd()!r}]; import {module}, sweep; "
    code += f"sys.exit(sweep.main(load={module}.{load}))"
    return [sys.executable, "-c", code, *map(str, argv), *([] if "--folder" in argv else ["--folder", "."])]


def process(*argv, load="tiny", **options):
    """Run that to its end: (status, standard output, standard error)."""
    done = subprocess.run(command(*argv, load=load), capture_output=True, text=True, timeout=300, **options)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def started(*argv, load="tiny"):
    """That, running, in a process group of its own; killed at the end, with everything that it has started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command(*argv, load=load), process_group=0, **pipes)
    try:
        yield running
    finally:
        with_workers = [running, *workers(running)]
        for one in with_workers:
            one.kill()
        print(*running.communicate())  # pytest shows it where the test fails


def workers(running):
    """The worker processes of a running sweep."""
    try:
        children = psutil.Process(running.pid).children()
        return [one for one in children if "lib.workers.work" in " ".join(one.cmdline())]
    except psutil.Error:
        return []


def until(condition, seconds=240):
    """Wait for `condition` to return something true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {condition}")


def trials(name="small", address="sqlite:///optuna.db"):
    """The trials of a sweep as Optuna reads them; none where there is no storage yet."""
    try:
        with sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).connect() as connection:
            if not connection.exec_driver_sql("SELECT 1 FROM alembic_version").first():  # Optuna writes it last, and
                return []  # whoever opens a storage without it, as we do below, writes it too, and is in the way
        storage = optuna.storages.RDBStorage(address, skip_table_creation=True, skip_compatibility_check=True)
        return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    except (KeyError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError):
        return []


def finished(*args):
    """The finished ones of these, {number: (parameters, what came out, when)}."""
    done = [trial for trial in trials(*args) if trial.state.is_finished()]
    return {one.number: (one.params, one.user_attrs["outcome"], one.datetime_complete) for one in done}


def untimed(table):
    """What has to be the same in two runs of the same sweep, as JSON."""
    return table.drop(columns=["created", "seconds", "test_accuracy"], errors="ignore").to_json(orient="records")


# ------------------------------------------------------------------------------------------------------- command line

LR = "learning_rate"


COMMANDS = [
    ([], "file"),
    (["missing.yaml"], "sweep.py: missing.yaml cannot be used: No such file"),
    (["FILE", "--count", "0"], "--count"),
    (["FILE", "--count", "two"], "--count"),
    (["FILE", "--count"], "--count"),
    (["FILE", "--count", "1_0"], "--count is '1_0'"),
    (["FILE", "--workers", "0"], "workers"),
    (["FILE", "--workers", "100000"], "--workers is 100000; allowed: .* to "),
    (["FILE", "--seed", "-1"], "seed"),
    (["FILE", "--engine", "cloud"], "engine"),
    (["FILE", "--work", "2"], "--work"),
    (["FILE", "more"], "more"),
    (["FILE", "--storage", "nonsense"], "--storage"),
    (["FILE", "--storage", ""], "--storage"),
    (["FILE", "--storage", "redis://a/b"], "--storage"),
    (["FILE", "--storage", "mysql://a/b"], "--storage"),
    (["FILE", "--storage", "sqlite://"], "--storage"),
    (["FILE", "--storage", "sqlite:////proc/none/a.db"], "/proc/none"),
    (["FILE", "--folder", "/proc/none"], "/proc/none"),
    (["FILE", "--engine", "wandb", "--workers", "2"], "--workers"),
    (["rerun"], "name"),
    (["rerun", "small", "x"], "TRIAL is 'x'"),
    (["rerun", "small", "0"], "small"),
]


@pytest.mark.parametrize("argv, key", COMMANDS, ids=[" ".join(argv) for argv, _ in COMMANDS])
def test_a_command_that_cannot_be_done_is_refused_in_a_sentence(argv, key, write, capsys):
    path = str(write(definition()))
    argv = argv if "--folder" in argv else [*argv, "--folder", "."]
    assert sweep.main([path if word == "FILE" else word for word in argv], load=tiny) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and re.search(key, err) and not out


# --------------------------------------------------------------------------------------------------------------- ledger


def begin(path, seed=0):
    """The ledger of a sweep that is begun, or gone on with."""
    given = lib.sweepfile.read_sweep(path)
    return lib.ledger.Ledger("sqlite:///optuna.db", given.name, given, seed)


def train_here(path):
    """The table of a sweep whose trials are trained in this process."""
    ledger = begin(path)
    while trial := ledger.claim():
        ledger.finish(trial, lib.workers.train_trial(ledger, trial, tiny, "disabled"))
    return ledger.table()


def test_a_password_is_not_shown(monkeypatch, capsys, write):
    pytest.importorskip("psycopg")
    address = "postgresql+psycopg://me:secret@localhost:1/x"
    assert sweep.main([str(write(definition())), "--storage", address, "--folder", "."], load=tiny) == 2
    assert "secret" not in capsys.readouterr().err
    with pytest.raises(InputError, match="sweep 'none' in sqlite"):
        sweep.results("none", "sqlite:///a.db")


# ------------------------------------------------------------------------------------------------------- whole sweeps


def test_a_sweep_from_file_to_table(write, tmp_path, monkeypatch, capsys):
    from test_train import read_wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    parameters = definition()["parameters"] | {LR: {"values": [0.01, 1e30]}, "optimizer": {"values": ["sgd", "adam"]}}
    given = definition(
        method="grid",
        parameters=parameters | {"hidden_size": {"value": 9}, "epochs": {"value": 4}, "activation": {"value": "ReLU"}},
        early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2},
        run_cap=12,
        project="somewhere",
    )
    status, out, err = process(write(given), "--workers", "2")
    assert status == 0 and "Traceback" not in err
    table = sweep.results("small", folder=".")
    loaded = sweep.load_results("small", folder=".")
    assert json.loads(out) == {"table": "small.csv", "best_val_accuracy": table.val_accuracy.max()} | dict(
        table.state.value_counts()
    )
    pd.testing.assert_frame_equal(table, loaded, check_dtype=False)
    assert table.attrs == loaded.attrs and table.attrs["wall_seconds"] > table.seconds.sum() / 2
    assert list(table.columns) == lib.tables.COLUMNS and list(table.number) == list(range(12))
    assert {"complete", "not finite"} <= set(table.state) and set(table.state) <= {"complete", "pruned", "not finite"}
    for row in table.itertuples():
        config = Config(**{name: getattr(row, name) for name in lib.tables.FIELDS})
        alone = helpers.train(config, tiny("")).history[: len(row.val_accuracy_history)]
        for metric in helpers.METRICS:
            assert getattr(row, f"{metric}_history") == [one[metric] for one in alone]
            last = getattr(row, metric)
            assert pd.isna(last) if row.state == "not finite" else last == alone[-1][metric]
        if row.state == "complete":
            assert row.best_val_accuracy == max(row.val_accuracy_history) and len(alone) == 4
        assert ("not finite" in row.stopped, "hyperband" in row.stopped) == (
            row.state == "not finite",
            row.state == "pruned",
        )
    runs = {}
    for n, folder in enumerate(tmp_path.glob("wandb/offline-run-*")):
        one = tmp_path / f"run{n}" / "wandb"
        one.mkdir(parents=True)
        (one / folder.name).symlink_to(folder)
        run = read_wandb(one.parent)
        assert (run.run.run_group, run.run.project) == ("small", "somewhere")
        runs[int(run.run.run_id.split("-")[1])] = run
    assert sorted(runs) == list(range(12))
    for row in table.itertuples():
        run = runs[row.number]
        assert run.run.display_name == Config(**{name: run.config[name] for name in lib.tables.FIELDS}).run_name
        assert len(run.history) == len(row.val_accuracy_history) and run.config["learning_rate"] == row.learning_rate
    capsys.readouterr()
    for n in (0, int(table.number[table.state == "not finite"].iloc[0])):
        assert sweep.main(["rerun", "small", str(n), "--folder", "."], load=tiny) == 0
        again = json.loads(capsys.readouterr().out)
        assert again["agrees"] and again["same_machine"] and again["then"] == again["now"]


def test_the_same_file_and_seed_give_the_same_trials_whatever_is_killed(write, tmp_path):
    """One worker, twice: left alone, and with the worker, and then the parent, killed in the middle of a trial."""
    stopping = {"type": "hyperband", "min_iter": 2}
    path = write(definition(method="bayes", run_cap=13, parameters=SLOW, early_terminate=stopping))
    one, other = ((path, "--workers", "1", "--folder", folder) for folder in ("one", "other"))
    storage = "sqlite:///other/optuna.db"
    alone = subprocess.Popen(command(*one), stdout=subprocess.PIPE)
    with started(*other) as running:
        until(lambda: len(finished("small", storage)) > 3)
        workers(running)[0].kill()
        until(lambda: len(finished("small", storage)) > 7)
        running.kill()
    assert process(*other)[0] == 0 and alone.communicate() and alone.returncode == 0
    one, other = (sweep.load_results("small", folder=folder) for folder in ("one", "other"))
    assert untimed(one) == untimed(other) and len(one) == 13 and "pruned" in set(one.state)


def kill_at_random(rng, running):
    """Kill one worker, all workers or the parent with -9; return whether it was the parent."""
    victim = rng.choice(["worker", "workers", "parent"])
    team = workers(running)
    for one in {"worker": team[:1], "workers": team, "parent": [running]}[victim]:
        one.kill()
    if victim == "parent":
        running.wait()
        until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in team), 20)
    return victim == "parent"


def test_nothing_is_lost_or_counted_twice_over_random_kills(write):
    seed = int(time.time())
    rng, count, kills, recorded = np.random.default_rng(seed), 6 + 4 * KILLS, 0, {}
    argv = write(definition(run_cap=count, parameters=SLOW)), "--workers", "2"
    while kills < KILLS:
        with started(*argv) as running:
            dead, before = False, 0
            while kills < KILLS and not dead:
                until(lambda least=before + 1: workers(running) and len(trials()) >= least)
                time.sleep(rng.uniform(0, 0.4))
                now = finished()
                assert recorded.items() <= now.items(), f"seed {seed}"
                recorded, before = now, len(trials())
                dead = kill_at_random(rng, running)
                kills += 1
    status, out, err = process(*argv)
    assert status == 0 and "Traceback" not in err, err
    done = finished()
    assert recorded.items() <= done.items() and sorted(done) == list(range(count)), f"seed {seed}"
    table = sweep.load_results("small", folder=".")
    assert list(table.number) == list(range(count)) and set(table.state) == {"complete"}
    given = lib.sweepfile.read_sweep(argv[0])
    drawn = [given.config(lib.sweepfile.suggest(given, [None] * n, 0)) for n in range(count)]
    assert [Config(**{name: row[name] for name in lib.tables.FIELDS}) for _, row in table.iterrows()] == drawn
    assert len({json.dumps(asdict(one)) for one in drawn}) == count  # fresh suggestions throughout
    assert (
        sweep.main([*map(str, argv), "--folder", "."], load=tiny) == 0 and finished() == done
    )  # nothing is left to do
    print(f"{kills} kills, {sum(one.user_attrs['attempts'] - 1 for one in trials())} trials begun again")


def test_ctrl_c_ends_it_cleanly_without_waiting_for_a_trial_and_the_same_command_goes_on(write, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    argv = write(definition(run_cap=400, parameters=SLOW)), "--workers", "2"
    with started(*argv) as running:
        team = until(lambda: len(finished()) > 1 and workers(running))
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        _, err = running.communicate(timeout=60)  # of 400 trials, which would take minutes
        assert running.returncode == 130 and "Traceback" not in err
        assert err.splitlines()[-1] == "sweep.py: interrupted; run the same command again to resume"
        assert not any(one.is_running() for one in team)
    before, count = finished(), len(trials()) + 1
    assert process(argv[0], "--workers", "1", "--count", count)[0] == 0
    assert before.items() <= finished().items() and sorted(finished()) == list(range(count))
    runs = [folder.name.split("-")[-1] for folder in tmp_path.glob("wandb/offline-run-*")]
    assert sorted(map(int, runs)) == list(range(count))  # one run a trial, none of the interrupted attempts


def test_ctrl_c_in_the_first_second_is_as_clean(write):
    with started(write(definition(run_cap=4, parameters=SLOW)), "--workers", "2") as running:
        until(lambda: workers(running))
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 130 and len(err.splitlines()) == 1


def test_sweeps_side_by_side_on_one_storage(write):
    """Two sweeps, one of them begun twice, on one new storage."""
    files = [write(definition(run_cap=6, parameters=SLOW), name) for name in ("one", "one", "other")]
    begun = [subprocess.Popen(command(f, "--workers", "1"), stderr=subprocess.PIPE, text=True) for f in files]
    errors = [one.communicate(timeout=120)[1] for one in begun]
    assert [one.returncode for one in begun] == [0, 0, 0], errors
    for name in ("one", "other"):
        table = sweep.results(name, folder=".")
        assert list(table.number) == list(range(6)) and set(table.state) == {"complete"}
        assert {one.user_attrs["attempts"] for one in trials(name)} == {1}
    owners = {one.user_attrs["owner"]["pid"] for one in trials("one")}
    assert len(owners) == 2  # both did their part


def test_a_terminal_gets_a_bar_with_the_best_so_far(write):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # rows, columns
    running = subprocess.Popen(
        command(write(definition()), "--workers", "1"), stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # all are gone who wrote to it
        while part := os.read(ours, 9999):
            shown += part
    out, best = running.communicate()[0], sweep.load_results("small", folder=".").val_accuracy.max()
    assert (
        "6/6 [" in shown.decode()
        and f"best val_accuracy {best:.4f}" in shown.decode()
        and "sweep.py:" not in shown.decode()
    )
    assert json.loads(out)["best_val_accuracy"] == best


def test_a_full_disk_ends_in_a_sentence(write):
    path = write(definition(run_cap=50))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (130_000, 130_000))  # noqa: E731
    status, out, err = process(path, "--workers", "1", preexec_fn=limit)
    last = err.splitlines()[-1]
    assert status == 2 and not out and "Traceback" not in err
    assert re.search("the storage cannot be used: .*(disk|full|I/O)", last), last
    before = finished()
    assert begin(path).claim().number == len(before)  # everything recorded is there, and it resumes


def test_a_storage_that_cannot_be_written_ends_in_a_sentence(write):
    Path("optuna.db").mkdir()
    status, _, err = process(write(definition()))
    assert status == 2 and err.count("\n") == 1 and "the storage cannot be used" in err


def test_an_error_in_a_worker_ends_the_sweep_in_a_sentence_and_loses_nothing(write):
    path = write(definition(run_cap=4))
    status, out, err = process(path, "--workers", "2", load="broken")
    assert (status, out, err) == (2, "", "sweep.py: RuntimeError: no images today\n")
    waiting = {one.number for one in trials()}
    assert waiting and not finished() and begin(path).claim().number in waiting


# --------------------------------------------------------------------------------------------------- many machines, W&B


@pytest.fixture
def postgres():
    """The address of a PostgreSQL server of our own, which is stopped afterwards."""
    pytest.importorskip("psycopg", reason="the PostgreSQL driver, psycopg, is not installed")
    found = shutil.which("initdb") or next(
        iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))), None
    )
    if not found:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
    found, user = Path(found).resolve(), "nobody" if os.getuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp())  # tmp_path is closed to other users
    if user:
        shutil.chown(folder, user)
    call = lambda *argv: subprocess.run([*map(str, argv)], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: E731
    try:
        call(found, "-D", folder / "data", "-U", "me", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        call(found.with_name("pg_ctl"), "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
        yield f"postgresql+psycopg://me@/postgres?host={folder}"
    finally:
        call(found.with_name("pg_ctl"), "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def test_two_machines_share_a_sweep_on_postgresql_and_one_dies(postgres, write):
    path = write(definition(run_cap=8, parameters=SLOW | {"epochs": {"value": 16}}))
    argv = path, "--storage", postgres, "--workers", "1"

    def at_work(node):
        running = [one for one in trials("small", postgres) if one.state == optuna.trial.TrialState.RUNNING]
        return [one for one in running if one.user_attrs["owner"]["node"] == node]

    with started(*argv, "--folder", "elsewhere", load="elsewhere") as other, started(*argv, load="here") as running:
        first = until(lambda: at_work(platform.node()) and at_work("elsewhere"))
        until(lambda: [one for one in at_work("elsewhere") if one.number > first[0].number])  # it has just begun that
        other.kill()
        time.sleep(1)
        (left,) = at_work("elsewhere")
        before = finished("small", postgres)
        _, err = running.communicate(timeout=300)
        assert running.returncode == 0, err
    done = finished("small", postgres)
    assert before.items() <= done.items() and sorted(done) == list(range(8))
    assert {one.number for one in trials("small", postgres) if one.user_attrs["attempts"] > 1} == {left.number}
    table = sweep.load_results("small", folder=".")
    assert untimed(table) == untimed(sweep.results("small", postgres)) and set(table.state) == {"complete"}
    assert not Path("optuna.db").exists()


class FakeServer:
    """W&B's server, as far as sweep.py sees it: it draws from the sweep it was given, and keeps runs of train.py."""

    def __init__(self):
        self.default_entity, self.runs, self.agents = "somebody", [], []

    def create(self, given, project=None, entity=None):
        self.given, self.where = json.loads(json.dumps(given)), (entity, project)
        return "abc123"

    def agent(self, sweep_id, project=None, entity=None):
        self.agents.append((sweep_id, project, entity, os.getcwd(), shutil.which("python")))
        given = lib.sweepfile.check_sweep(self.given)
        for n in range(given.count):
            config = given.config(lib.sweepfile.suggest(given, [None] * n, 0))
            history = helpers.train(config, tiny("")).history
            run = SimpleNamespace(config=asdict(config) | {"_wandb": {}}, state=["finished", "killed", "failed"][n % 3])
            run.summary = lib.tracking.train_and_log(config, tiny(""), test=False) | {"_step": 3}
            run.created_at = f"2026-01-01T00:00:{n:02}Z"
            run.scan_history = lambda keys, history=history: [{key: row[key] for key in keys} for row in history]
            self.runs.insert(0, run)  # the newest first

    def sweep(self, address):
        assert address == "somebody/CS6910_Assignment_1/abc123"
        return self


def test_the_same_table_comes_from_wandb(write, monkeypatch, capsys):
    import wandb

    server = FakeServer()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb, "sweep", server.create)
    monkeypatch.setattr(wandb, "agent", server.agent)
    monkeypatch.setattr(wandb, "Api", lambda: server)
    path = write(definition())
    assert sweep.main([str(path), "--engine", "wandb", "--count", "3", "--folder", "."]) == 0
    out, err = capsys.readouterr()
    assert "wandb agent somebody/CS6910_Assignment_1/abc123" in err
    assert server.given["run_cap"] == 3 and server.where == (None, "CS6910_Assignment_1")
    assert server.agents[0][3] == str(ROOT) and server.agents[0][4] == str(Path(sys.executable).parent / "python")
    table = sweep.load_results("small", folder=".")
    assert list(table.columns) == lib.tables.COLUMNS and list(table.state) == ["complete", "pruned", "failed"]
    local = train_here(write(definition(run_cap=3)))
    same = [*lib.tables.FIELDS, *helpers.METRICS, "best_val_accuracy", *lib.tables.HISTORIES]
    pd.testing.assert_frame_equal(table[same], local[same])
    server.runs[-1].config["epochs"] += 1  # finished, and yet short of an epoch
    assert sweep._row_from_wandb(0, server.runs[-1])["state"] == "pruned"
    said = "small.csv would lose 3 trials, which a new sweep on W&B does not have; allowed: another --folder"
    assert sweep.main([str(path), "--engine", "wandb", "--folder", "."]) == 2 and len(server.agents) == 1
    assert said in capsys.readouterr().err
    Path("small.csv").unlink()
    monkeypatch.setattr(server, "sweep", lambda address: {}["no answer"])
    assert sweep.main([str(path), "--engine", "wandb", "--count", "1", "--folder", "."]) == 2
    assert "sweep.py: W&B: 'no answer'" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("mode, said", [("online", "W&B: No API key"), ("disabled", "while W&B is disabled")])
def test_wandb_without_a_key_or_disabled_ends_in_a_sentence(mode, said, write):
    status, out, err = process(write(definition()), "--engine", "wandb", env=os.environ | {"WANDB_MODE": mode})
    assert status == 2 and not out and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("mode, obeyed", [("disabled", "disabled"), ("offline", "offline"), ("online", "offline")])
def test_a_sweep_here_is_offline_unless_wandb_is_disabled(mode, obeyed, write, monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text(f"[default]\nmode = {mode}\n")  # what `wandb disabled` writes
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sweep; "
    code += "sweep.supervise = lambda ledger, workers, storage, name, mode, *_: print(mode, workers, ledger.seed); "
    code += f"sweep.run('{write(definition())}', workers=3, seed=5, folder='.', load=print)"
    env = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[1:] == [f"{obeyed} 3 5"] and not done.stderr


# -------------------------------------------------------------------------------------------------------- our own tables


def test_quick_is_another_sweep_of_four_trials_of_one_epoch(write):
    given = lib.sweepfile.read_sweep(write(definition()), quick=True)
    assert (given.name, given.count) == ("small-quick", 4)
    assert {given.config(lib.sweepfile.suggest(given, [None] * n, 0)).epochs for n in range(9)} == {1}
    assert lib.sweepfile.read_sweep(write(definition()), count=2, quick=True).count == 2


def test_a_table_is_not_replaced_by_a_sweep_without_its_trials(write, capsys, monkeypatch):
    path = str(write(definition(run_cap=3)))
    sweep._export(train_here(path), Path(), "small")
    before = Path("small.csv").read_bytes()
    Path("optuna.db").rename("elsewhere.db")  # as in a clone, which has tables and no storage
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "supervise", None)
        for storage in ([], ["--storage", "sqlite:///new.db"]):
            assert sweep.main([path, "--count", "1", "--folder", ".", *storage], load=tiny) == 2
            out, err = capsys.readouterr()
            assert err.startswith("sweep.py: small.csv would lose 3 trials, which the storage does not have; allowed: ")
            assert not out and not list(Path().glob("[on]*.db"))
    lib.ledger.Ledger(sweep._default_storage("."), "small", lib.sweepfile.read_sweep(path))  # another of that name
    assert sweep.main([path, "--folder", "."], load=tiny) == 2 and Path("small.csv").read_bytes() == before
    argv = [path, "--count", "1", "--folder", ".", "--storage", "sqlite:///elsewhere.db"]
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")  # where `created` is another hour
        time.tzset()
        status = sweep.main(argv, load=tiny)
    time.tzset()
    assert status == 0 and len(sweep.load_results("small", ".")) == 3  # with its own storage it goes on


@pytest.mark.parametrize("folder", ["file", "file/below", os.fsdecode(b"name\xff")])
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_trained(folder, write, capsys, monkeypatch):
    Path("file").touch()
    monkeypatch.setattr(sweep, "supervise", None)
    storage = [] if "name" in folder else ["--storage", "sqlite:///ok.db"]
    assert sweep.main([str(write(definition())), "--folder", folder, *storage], load=tiny) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "; allowed: a folder" in err and not Path("ok.db").exists()


def test_results_that_are_missing_are_run(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sweep, "run", lambda file, folder: asked.append((file, folder)))
    with pytest.raises(InputError, match="random.csv: No such file"):  # as this run writes none
        sweep.load_results("random", tmp_path)
    assert asked == [(ROOT / "sweeps" / "random.yaml", tmp_path)]


@pytest.mark.parametrize("name", TABLES or [pytest.param("none", marks=pytest.mark.skip("no table in data/sweeps"))])
def test_two_rows_drawn_at_random_from_each_table_come_out_again(name):
    table = sweep.load_results(name)
    given = lib.sweepfile.check_sweep(table.attrs["definition"])
    assert len(table) == given.count and "running" not in set(table.state)
    quick = table[(table.state != "failed") & (table.seconds <= table.seconds.quantile(0.3))]  # for the test's own time
    numbers = np.random.default_rng().choice(quick.number, 2, replace=False)
    argv = [sys.executable, str(ROOT / "sweep.py"), "rerun", name]
    both = [subprocess.Popen([*argv, str(n)], stdout=subprocess.PIPE, text=True) for n in numbers]
    for n, one in zip(numbers, both):
        out = one.communicate(timeout=600)[0]
        again = json.loads(out)
        assert one.returncode == 0 and again["agrees"] and again["row"] == n, out
