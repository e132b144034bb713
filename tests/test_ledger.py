"""The ledger of a sweep and its workers: who owns a trial, who is alive, what a storage may be, and what is suggested."""

# ruff: noqa: F811 (fixtures that are imported are arguments, too)

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial
from test_sweep import (  # noqa: F401
    LR,
    ROOT,
    SLOW,
    alone,
    begin,
    definition,
    postgres,
    process,
    started,
    tiny,
    trials,
    until,
    write,
)
from test_sweep import workers as workers_of

import lib.bayes
import lib.ledger
import lib.rows
import lib.storage
import lib.sweepfile
import lib.tables
import lib.workers
import sweep
from helpers import InputError

ELSEWHERE = {"node": "elsewhere", "place": "elsewhere"}


@pytest.fixture
def ledger(write):
    """A new sweep of three trials at most, with hyperband, on a storage of its own."""
    given = definition(run_cap=3, early_terminate={"type": "hyperband", "min_iter": 2})
    return begin(write(given))


def outcome(state="complete", **changes):
    """What a worker would write down."""
    row = dict.fromkeys(lib.tables.RESULTS, 0.5) | {name: [0.5] for name in lib.tables.HISTORIES}
    return row | {"state": state, "machine": lib.tables.machine(), **changes}


def change(ledger, table, where, **values):
    """Change a row of the storage, as another process would."""
    with ledger._database.engine.begin() as connection:
        connection.execute(sqlalchemy.update(table).where(where).values(**values))


def owned(ledger, trial, **changes):
    """Change who owns a trial."""
    (trial,) = [one for one in ledger.trials() if one.number == trial.number]
    ledger.storage.set_trial_user_attr(trial._trial_id, "owner", {**trial.user_attrs["owner"], **changes})


def signs(ledger):
    """The signs of life of the running trials, {id: (when, seconds ago)}."""
    with ledger._database.engine.connect() as connection:
        return lib.rows.signs_of_life(connection, ledger._study_id)


def silent(ledger, trial, seconds):
    """Make the last sign of life of a trial that old, by the database's clock."""
    when, age = signs(ledger)[trial._trial_id]
    when += pd.Timedelta(seconds=age - seconds)
    change(ledger, lib.rows.BEATS, lib.rows.BEATS.c.trial_id == trial._trial_id, heartbeat=when)


def dead_process():
    """The number of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


@pytest.fixture
def clock(monkeypatch):
    """A clock of our own for `time.monotonic` in the ledger, that is set by hand."""
    now = [1000.0]
    monkeypatch.setattr(lib.ledger.time, "monotonic", lambda: now[0])
    return now


# -------------------------------------------------------------------------------------------------------- who is alive


def test_no_more_trials_than_asked_for_and_the_living_keep_theirs(ledger):
    numbers = [ledger.claim().number for _ in range(3)]
    assert numbers == [0, 1, 2] and ledger.claim() is None


def test_a_trial_of_the_dead_is_given_again_unchanged_before_any_new_one(ledger):
    first, second = ledger.claim(), ledger.claim()
    owned(ledger, first, pid=dead_process())
    again = ledger.claim()
    assert (again.number, again.params) == (first.number, first.params) and ledger.claim().number == 2
    owned(ledger, second, born=0)  # the number is another process's by now
    assert ledger.claim().number == second.number and ledger.claim() is None


def test_a_zombie_is_dead(ledger):
    trial = ledger.claim()
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE)
    owned(ledger, trial, pid=zombie.pid)
    assert ledger.claim().number == trial.number
    zombie.wait()


def test_a_process_is_alive_whatever_the_clocks_say(monkeypatch):
    me = lib.ledger._me()
    monkeypatch.setattr(time, "time", lambda: 5e9)
    if sys.platform == "linux":
        monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: 0)
    assert lib.ledger._alive(me) is True
    assert lib.ledger._alive({**me, "born": me["born"] + 1}) is False


def test_two_containers_of_one_name_do_not_look_at_each_others_processes():
    """In another PID namespace, our number is another process's, or nobody's."""
    me = lib.ledger._me()
    if sys.platform != "linux" or not me["place"]:
        pytest.skip("no PID namespaces here")
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; import json, lib.ledger as l; "
    code += "print(json.dumps([l._me(), l._alive(json.loads(sys.stdin.read()))]))"
    done = subprocess.run([*unshare, code], input=json.dumps(me), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to make a PID namespace: {done.stderr.strip()}")
    other, seen = json.loads(done.stdout.splitlines()[-1])
    assert other["node"] == me["node"] and seen is None
    assert lib.ledger._alive({**other, "pid": os.getpid()}) is None


def test_another_boot_of_a_machine_of_this_name_is_out_of_sight():
    me = lib.ledger._me()
    assert lib.ledger._alive({**me, "place": me["place"].replace("-", "0")}) is None
    assert lib.ledger._alive({**me, "place": None}) is None


def test_where_proc_shows_the_numbers_of_another_namespace_nobody_is_looked_at(monkeypatch):
    lib.ledger._me.cache_clear()
    real = os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: "1" if path == "/proc/self" else real(path))
    assert sys.platform != "linux" or lib.ledger._me()["place"] is None
    assert lib.ledger._alive(lib.ledger._me()) in (None, True)
    lib.ledger._me.cache_clear()


def test_an_owner_out_of_sight_is_dead_after_a_silence_that_we_have_watched(ledger, clock):
    trial = ledger.claim()
    owned(ledger, trial, **ELSEWHERE)
    silent(ledger, trial, lib.ledger.GRACE - 5)
    assert ledger.claim().number == 1  # it lives, by the database's clock
    silent(ledger, trial, lib.ledger.GRACE + 5)
    assert ledger.claim() is None  # it seems dead: nothing new is given until that is known
    clock[0] += 2 * lib.ledger.BEAT - 1
    assert ledger.claim() is None
    clock[0] += 2
    assert ledger.claim().number == trial.number


def test_a_clock_of_the_database_that_is_set_takes_no_trial_from_the_living(ledger, clock):
    trial = ledger.claim()
    owned(ledger, trial, **ELSEWHERE)
    for step in (3600, -7200):
        silent(ledger, trial, step)
        assert ledger.claim() is None
        clock[0] += 2 * lib.ledger.BEAT - 1
        ledger.beat(trial)  # as its owner does
        assert ledger.claim().number in (1, 2)


def test_a_beat_comes_more_often_than_the_dead_are_found():
    assert 0 < 3 * lib.ledger.BEAT < lib.ledger.GRACE


def test_whoever_trains_beats_also_within_an_epoch(ledger, monkeypatch):
    monkeypatch.setattr(lib.ledger, "BEAT", 0.05)
    beats = []
    real = lib.ledger.Ledger.beat
    monkeypatch.setattr(lib.ledger.Ledger, "beat", lambda self, trial: real(self, trial) or beats.append(trial.number))
    trial = ledger.claim()
    silent(ledger, trial, 100)

    def long_epoch(*args, **options):
        until(lambda: len(beats) > 2, 20)
        raise MemoryError("enough")

    with ledger.beating(trial):
        lib.workers.train_trial(ledger, trial, tiny, "disabled", long_epoch)
    count = len(beats)
    time.sleep(0.2)
    assert set(beats) == {0} and len(beats) == count  # and not when it is done
    ((_, age),) = signs(ledger).values()
    assert 0 <= age < 20


OLD = {"node": "here", "pid": 2**22 + 1, "born": 1.5e9, "seen": 1.7e9}  # of a storage from before there were beats


def test_an_owner_of_an_older_version_is_dead_when_nothing_has_changed_for_the_grace(ledger, clock):
    trial = ledger.claim()
    ledger.storage.set_trial_user_attr(trial._trial_id, "owner", OLD)
    with ledger._database.engine.begin() as connection:
        connection.execute(sqlalchemy.delete(lib.rows.BEATS))
    assert ledger.claim() is None
    clock[0] += lib.ledger.GRACE - 1
    ledger.storage.set_trial_user_attr(trial._trial_id, "owner", {**OLD, "seen": OLD["seen"] + 70})  # it lives
    assert ledger.claim() is None
    clock[0] += lib.ledger.GRACE - 1
    assert ledger.claim() is None
    clock[0] += 2
    assert ledger.claim().number == trial.number
    ledger.storage.set_trial_user_attr(trial._trial_id, "owner", {"node": None, "seen": 0})  # of grid.py
    assert ledger.claim().number == trial.number


# ---------------------------------------------------------------------------------------------------- deaths, and ends


def of_worker(ledger, trial, pid, parent):
    owned(ledger, trial, pid=pid, parent=parent)


def test_only_deaths_under_a_living_parent_count(ledger):
    trial = ledger.claim()
    for _ in range(2 * lib.ledger.ATTEMPTS):  # interrupted: the parent has ended, too
        of_worker(ledger, trial, dead_process(), {**lib.ledger._me(), "pid": dead_process()})
        assert ledger.claim().number == trial.number
    for _ in range(2 * lib.ledger.ATTEMPTS):  # interrupted: the parent ends them, and lives on, as a notebook does
        of_worker(ledger, trial, pid := dead_process(), lib.ledger._me())
        ledger.bury({pid}, died=False)
        assert ledger.claim().number == trial.number
    for death in range(lib.ledger.ATTEMPTS):
        of_worker(ledger, trial, pid := dead_process(), lib.ledger._me())
        assert (
            ledger.claim().number == 1 + death if death < 2 else ledger.claim() is None
        )  # until its parent has counted
        ledger.bury({pid})
        if death < lib.ledger.ATTEMPTS - 1:
            assert ledger.claim().number == trial.number
    row = ledger.table().iloc[0]
    assert row.state == "failed" and "10 processes" in row.stopped and pd.isna(row.val_accuracy)
    assert ledger.claim() is None


def test_a_parent_gives_up_the_trials_of_its_own_dead_and_no_others(ledger):
    mine, anothers, living = (ledger.claim() for _ in range(3))
    of_worker(ledger, mine, dead_process(), lib.ledger._me())
    of_worker(ledger, anothers, dead_process(), {**lib.ledger._me(), "id": "another"})
    of_worker(ledger, living, os.getpid(), lib.ledger._me())
    ledger.bury()
    assert [one.user_attrs["owner"] is None for one in ledger.trials()] == [True, False, False]


def test_an_owner_that_finishes_while_its_trial_is_taken_keeps_it(ledger, monkeypatch):
    """The race: claim has seen that it runs, and then, before it is ours, it is finished."""
    trial = ledger.claim()
    owned(ledger, trial, pid=dead_process())
    other = begin(Path("small.yaml"))
    real = lib.ledger._alive

    def late(owner):
        if not other.trials()[0].state.is_finished():
            other.finish(trial, outcome(val_accuracy=0.75))
        return real(owner)

    monkeypatch.setattr(lib.ledger, "_alive", late)
    assert ledger.claim().number == 1
    row = ledger.table().iloc[0]
    assert (row.state, row.val_accuracy) == ("complete", 0.75)


def test_what_comes_out_a_second_time_is_dropped(ledger):
    trial = ledger.claim()
    ledger.finish(trial, outcome(val_accuracy=0.75))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        ledger.finish(trial, outcome(val_accuracy=0.25))
    assert list(ledger.table().val_accuracy) == [0.75]


def test_one_that_was_killed_between_its_outcome_and_its_end_still_runs(ledger):
    """As a version before this one may have left it."""
    trial = ledger.claim()
    ledger.storage.set_trial_user_attr(trial._trial_id, "outcome", outcome())
    row = ledger.table().iloc[0]
    assert row.state == "running" and pd.isna(row.val_accuracy)
    ledger.finish(trial, outcome(val_accuracy=0.75))
    assert list(ledger.table().val_accuracy) == [0.75]


def test_a_trial_that_wants_more_memory_than_there_is_has_failed(ledger):
    def greedy(*args, **options):
        raise MemoryError("Unable to allocate 9 TiB")

    trial = ledger.claim()
    ledger.finish(trial, lib.workers.train_trial(ledger, trial, tiny, "disabled", greedy))
    assert list(ledger.table()[["state", "stopped"]].iloc[0]) == ["failed", "Unable to allocate 9 TiB"]
    assert ledger.trials()[0].state == TrialState.FAIL


def test_a_value_that_is_not_finite_is_no_best_one(ledger):
    ledger.finish(ledger.claim(), outcome("not finite", val_accuracy=None))
    ledger.finish(ledger.claim(), outcome(val_accuracy=math.inf))
    ledger.finish(ledger.claim(), outcome(val_accuracy=0.1))
    assert ledger.study.best_value == 0.1


def test_hyperband_ends_what_is_not_in_the_best_third_by_the_rule_of_wandb(write):
    given = definition(run_cap=9, early_terminate={"type": "hyperband", "min_iter": 2})
    ledger = begin(write(given))
    values, ended = [0.5, 0.4, 0.6, 0.55, 0.3, 0.7, 0.58], []
    for n, value in enumerate(values):
        trial = ledger.claim()
        for epoch in (1, 3):
            assert ledger.verdict(trial, {"epoch": epoch, "val_accuracy": 0}) is None  # at 2 and 6 it looks
        verdict = ledger.verdict(trial, {"epoch": 2, "val_accuracy": value})
        ended.append(bool(verdict))
        band = sorted(values[: n + 1], reverse=True)  # wandb/sweeps, hyperband_stopping.py
        assert ended[-1] == (value < band[int(len(band) / 3)]), (values[: n + 1], verdict)
    assert ended == [False, True, False, False, True, False, False]


def test_hyperband_ends_nothing_in_its_last_epoch(write):
    ledger = begin(write(definition(early_terminate={"type": "hyperband", "min_iter": 3})))  # of 3 epochs
    for value in (0.9, 0.8, 0.1):
        assert ledger.verdict(ledger.claim(), {"epoch": 3, "val_accuracy": value}) is None
    assert not any(one.intermediate_values for one in ledger.trials())


def test_a_metric_that_is_to_be_low(write):
    given = definition(
        method="bayes", metric={"name": "val_loss"}, early_terminate={"type": "hyperband", "min_iter": 1}
    )
    ledger = begin(write(given))
    assert ledger.study.direction == optuna.study.StudyDirection.MINIMIZE
    for value, ended in [(0.5, False), (0.9, True), (0.1, False)]:
        trial = ledger.claim()
        assert bool(ledger.verdict(trial, {"epoch": 1, "val_loss": value})) == ended
        ledger.finish(trial, outcome(val_loss=value))
    assert ledger.study.best_value == 0.1


# --------------------------------------------------------------------------------------------------------- suggestions

SPACE = {
    "epochs": {"value": 3},
    "num_layers": {"min": 1, "max": 5},
    "hidden_size": {"values": [8, 16, 32]},
    "momentum": {"min": 0.1, "max": 0.9},
    LR: {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.1},
    "optimizer": {"values": ["sgd", "nag", "adam"]},
}


def made_up(given, count, seed=0):
    """Trials as a ledger hands them over: finished, pruned, failed and running."""
    rng = np.random.default_rng(seed)
    drawn = given._replace(definition={**given.definition, "method": "random"})
    made = []
    for number in range(count):
        state = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING][rng.integers(4)]
        trial = create_trial(
            state=state if number % 3 else TrialState.COMPLETE,
            value=float(rng.normal()) if state == TrialState.COMPLETE or not number % 3 else None,
            params=lib.sweepfile.suggest(drawn, [None] * number, seed),
            distributions=given.space,
            intermediate_values={1: float(rng.normal())} if rng.random() < 0.7 else {},
        )
        trial.number = trial._trial_id = number
        made.append(trial)
    return made


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_bayes_suggests_what_optuna_suggests(goal, write):
    """The plain way copies the history into a study, and asks it."""
    metric = {"name": "val_accuracy", "goal": goal}
    given = lib.sweepfile.read_sweep(write(definition(method="bayes", metric=metric, parameters=SPACE)))
    history = made_up(given, 90)
    compared = 0
    for count in [*range(0, 90, 2), 90]:
        for seed in (0, 1):
            state = int(np.random.SeedSequence([seed, count]).generate_state(1)[0])
            sampler = optuna.samplers.TPESampler(seed=state, multivariate=True)
            study = optuna.create_study(sampler=sampler, direction=goal)
            study.add_trials(history[:count])
            plain = study.ask(given.space).params
            ours = lib.sweepfile.suggest(given, history[:count], seed)
            assert ours == plain and list(ours) == list(plain), count
            compared += 1
    assert compared >= 64


@pytest.mark.parametrize("goal, best", [("maximize", 0.9), ("minimize", 0.1)])
def test_bayes_looks_for_what_the_goal_says(goal, best, write):
    """The value is the momentum itself."""
    metric = {"name": "val_loss", "goal": goal}
    given = definition(method="bayes", metric=metric, parameters={"momentum": SPACE["momentum"]}, run_cap=40)
    ledger = begin(write(given))
    while trial := ledger.claim():
        ledger.finish(trial, outcome(val_loss=trial.params["momentum"]))
    late = [trial.params["momentum"] for trial in ledger.trials()[25:]]
    assert abs(np.median(late) - best) < 0.15


# ------------------------------------------------------------------------------------------------------------ storages


CHANGES = [
    ({"parameters": {"epochs": {"value": 2}}}, 0, "parameters"),
    ({"method": "bayes"}, 0, "method"),
    ({"metric": {"name": "val_loss"}}, 0, "metric"),
    ({}, 1, "seed"),
    ({"run_cap": 9, "description": "more"}, 0, None),
]


@pytest.mark.parametrize("changes, seed, key", CHANGES)
def test_only_the_same_sweep_is_gone_on_with(changes, seed, key, write):
    begin(write(definition()))
    path = write(definition(**changes))
    if key:
        with pytest.raises(InputError, match=f"^{key} is not what 'small' was begun with"):
            begin(path, seed)
    else:
        assert begin(path, seed).claim().number == 0
        assert sweep.results("small", folder=".").attrs["definition"] == lib.sweepfile.read_sweep(path).definition


@pytest.mark.parametrize("folder", ["what?", "a%20b", "{x}", "a#b&c=d", "with space", "é"])
def test_a_folder_of_any_name_keeps_its_storage_in_itself(folder, write):
    given = lib.sweepfile.read_sweep(write(definition()))
    before = {*Path().iterdir()}
    storage = sweep._default_storage(folder)
    lib.ledger.Ledger(storage, "small", given).claim()
    assert {*Path().iterdir()} - before == {Path(folder)} and (Path(folder) / "optuna.db").is_file()
    assert len(lib.ledger.Ledger(storage, "small").trials()) == 1


def test_a_storage_that_is_not_there_is_not_made_by_looking_for_it():
    with pytest.raises(InputError, match="sweep 'none' in sqlite.*none yet"):
        sweep.results("none", "sqlite:///a/b.db")
    assert not any(Path().iterdir())


BAD_URLS = [
    "sqlite:///what?/f.db",
    "sqlite:///:memory:",
    "sqlite:///a%00b",
    "postgresql://h:²/x",
    "postgresql://[::1/x",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_an_address_that_cannot_be_meant_is_refused(url, write):
    with pytest.raises(InputError, match="^--storage cannot be used: .*; allowed: sqlite:///FILE"):
        lib.ledger.Ledger(url, "small", lib.sweepfile.read_sweep(write(definition())))


def stranger(path):
    optuna.create_study(study_name="small", storage=f"sqlite:///{path}").ask()


def other_direction(path):
    study = optuna.create_study(study_name="small", storage=f"sqlite:///{path}", direction="minimize")
    study.set_user_attr("about", {"name": "mine"})


def other_optuna(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.0.z'")


def older_optuna(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v3.0.0.a'")


def before_versions(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE alembic_version")


def torn_page(path):
    sweep_of(path)
    content = bytearray(Path(path).read_bytes())
    content[4096 * 5 : 4096 * 5 + 2048] = bytes(2048)
    Path(path).write_bytes(content)


def cut(path):
    sweep_of(path)
    os.truncate(path, Path(path).stat().st_size // 2)


def text(path):
    Path(path).write_text("val_accuracy\n0.5\n" * 300)


def other_program(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def flipped_value(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, '0.5', '0.7') WHERE key = 'outcome'"
        )


def flipped_parameter(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trial_params SET param_value = 0.0625 WHERE param_name = 'learning_rate'")


def broken_text(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'owner'")


def unknown_state(path):
    sweep_of(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET state = 'COMPLETF'")


def added_trial(path):
    sweep_of(path)
    optuna.load_study(study_name="small", storage=f"sqlite:///{path}").ask()


def sweep_of(path):
    """A sweep with a finished trial."""
    given = lib.sweepfile.check_sweep({"name": "small", **definition()})
    ledger = lib.ledger.Ledger(f"sqlite:///{path}", "small", given)
    ledger.finish(ledger.claim(), outcome())
    ledger._database.engine.dispose()


FOREIGN = {
    stranger: "not begun by sweep.py",
    other_direction: "not begun by sweep.py",
    other_optuna: "another version of Optuna",
    older_optuna: "another version of Optuna",
    before_versions: "another program",
    torn_page: "damaged",
    cut: "damaged",
    text: "damaged, or no database",
    other_program: "another program",
    flipped_value: "trial 0 is damaged",
    flipped_parameter: "trial 0 is damaged",
    broken_text: "damaged",
    unknown_state: "damaged",
    added_trial: "trial 1 is not of sweep.py",
}


@pytest.mark.parametrize("spoil", FOREIGN, ids=lambda one: one.__name__)
@pytest.mark.parametrize("how", ["go on", "look"])
def test_a_storage_that_is_damaged_or_not_ours_is_named_and_nothing_is_written_into_it(spoil, how, write, capsys):
    path = write(definition())
    spoil("f.db")
    before = Path("f.db").read_bytes()
    if how == "go on":
        argv = [str(path), "--storage", "sqlite:///f.db", "--folder", ".", "--workers", "1"]
        assert sweep.main(argv, load=tiny) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
    else:
        with pytest.raises(InputError) as raised:
            sweep.results("small", "sqlite:///f.db")
        error = str(raised.value)
    assert "f.db" in error and FOREIGN[spoil] in error and "; allowed: " in error, error
    assert Path("f.db").read_bytes() == before


@pytest.mark.parametrize("value", ["{}", "nojson", '{"seconds": "x"}', "3"])
def test_a_session_that_is_damaged_is_named(value):
    sweep_of("f.db")
    given = lib.sweepfile.check_sweep({"name": "small", **definition()})
    ledger = lib.ledger.Ledger("sqlite:///f.db", "small", given)
    ledger.note_session("session 1", {"seconds": 1.0})
    ledger._database.engine.dispose()
    assert sweep.results("small", "sqlite:///f.db").attrs["wall_seconds"] == 1
    with sqlite3.connect("f.db") as connection:
        connection.execute("UPDATE study_user_attributes SET value_json = ? WHERE key LIKE 'session%'", [value])
    with pytest.raises(InputError, match="f.db.*: a session is damaged .*; allowed: a copy that is whole"):
        sweep.results("small", "sqlite:///f.db")


def test_a_storage_whose_making_was_interrupted_is_completed():
    with sqlite3.connect("f.db") as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER NOT NULL PRIMARY KEY, study_name VARCHAR(512))")
    sweep_of("f.db")
    assert len(sweep.results("small", "sqlite:///f.db")) == 1
    Path("empty.db").touch()
    sweep_of("empty.db")


def test_a_storage_of_an_older_version_is_gone_on_with(write):
    """Its trials have no checksum and no sign of life; an owner has no place."""
    given = lib.sweepfile.read_sweep(write(definition(run_cap=3)))
    study = optuna.create_study(study_name="small", storage="sqlite:///optuna.db", direction="maximize")
    study.set_user_attr("about", {**given.definition, "seed": 0, "token": "12345678"})
    for number in range(2):
        params = lib.sweepfile.suggest(given, [None] * number, 0)
        attributes = {"owner": OLD, "attempts": 1, "outcome": outcome()}
        about = {"params": params, "distributions": given.space, "user_attrs": attributes}
        study.add_trial(create_trial(value=0.5, **about))
    ledger = begin(Path("small.yaml"))
    assert ledger.token == "12345678" and list(ledger.table().state) == ["complete"] * 2
    trial = ledger.claim()
    assert trial.number == 2 and trial.params == lib.sweepfile.suggest(given, [None] * 2, 0)


def test_a_trial_is_read_once_it_is_finished(ledger, monkeypatch):
    for _ in range(2):
        ledger.finish(ledger.claim(), outcome())
    ledger.claim()
    ledger.trials()
    read = []
    real = lib.rows._trial
    monkeypatch.setattr(lib.rows, "_trial", lambda row, *parts: read.append(row.number) or real(row, *parts))
    ledger.trials()
    assert read == [2]  # the running one


# ------------------------------------------------------------------------------------------------ locks and their queues


def in_processes(count, code, **options):
    """So many processes that run the same code, with the project on their path."""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; " + code
    return [subprocess.Popen([sys.executable, "-c", code], text=True, **options) for _ in range(count)]


def test_many_processes_wait_in_a_queue_without_an_error(write):
    """They begin on one new storage."""
    write(definition(run_cap=40))
    code = """
import lib.sweepfile, lib.ledger
given = lib.sweepfile.read_sweep("small.yaml")
ledger = lib.ledger.Ledger("sqlite:///optuna.db", "small", given)
about = {"state": "complete", "val_accuracy": 0.5}
while trial := ledger.claim():
    ledger.beat(trial)
    ledger.finish(trial, about)
    print(trial.number)
"""
    team = in_processes(6, f"exec({code!r})", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = [one.communicate(timeout=200) for one in team]
    assert [one.returncode for one in team] == [0] * 6, said
    assert sorted(int(number) for out, _ in said for number in out.split()) == list(range(40))


def test_a_sweep_waits_for_its_own_lock_and_no_others(write):
    ledger, again = begin(write(definition())), begin(write(definition()))
    other = begin(write(definition(), "other"))
    claimed = []
    thread = threading.Thread(target=lambda: claimed.append(again.claim()), daemon=True)
    with ledger.alone():
        thread.start()
        assert other.claim().number == 0
        thread.join(0.5)
        assert not claimed
    thread.join(20)
    assert claimed[0].number == 0


def test_a_waiting_worker_has_one_connection_to_a_server(postgres, write):
    given = lib.sweepfile.read_sweep(write(definition()))
    ledger = lib.ledger.Ledger(postgres, "small", given)
    code = f"import lib.ledger; l = lib.ledger.Ledger({postgres!r}, 'small'); print(1, flush=True); print(l.claim().number)"
    with ledger.alone():
        team = in_processes(3, code, stdout=subprocess.PIPE)
        assert [one.stdout.readline() for one in team] == ["1\n"] * 3
        count = sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        waiting = sqlalchemy.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        engine = sqlalchemy.create_engine(postgres, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            ours = 2  # the one that holds the lock, and this one
            until(lambda: connection.execute(waiting).scalar() == 3)
            assert connection.execute(count).scalar() == ours + 3
            other = lib.ledger.Ledger(
                postgres, "other", lib.sweepfile.check_sweep({**given.definition, "name": "other"})
            )
            assert other.claim().number == 0  # another sweep does not wait
    assert sorted(int(one.communicate(timeout=60)[0]) for one in team) == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------------- supervise


def test_so_many_workers_as_asked_for_are_at_work(write):
    with started(write(definition(run_cap=40, parameters=SLOW)), "--workers", "3") as running:
        team = until(lambda: len(found := workers_of(running)) >= 3 and found)
        owners = until(lambda: len(found := {one.user_attrs["owner"]["pid"] for one in trials()}) >= 3 and found)
        time.sleep(0.5)
        assert len(workers_of(running)) == 3 and owners == {one.pid for one in team}


def test_wall_time_is_that_of_all_sessions(write):
    ledger = begin(write(definition()))
    for key, seconds in {"session a": 2.5, "session b": 4.0}.items():
        ledger.note_session(key, {"machine": "m", "workers": 2, "seconds": seconds})
    ledger.note_session("session b", {"machine": "m", "workers": 2, "seconds": 5.0})  # it went on
    about = ledger.table().attrs
    assert about["wall_seconds"] == 7.5 and [one["seconds"] for one in about["sessions"]] == [2.5, 5.0]


def test_two_sessions_are_both_in_the_table(write):
    path = write(definition())
    for count in ("2", "4"):
        assert process(path, "--workers", "1", "--count", count)[0] == 0
    sessions = sweep.load_results("small", folder=".").attrs["sessions"]
    assert len(sessions) == 2 and all(one["workers"] == 1 and one["seconds"] > 0 for one in sessions)


def test_a_trial_that_kills_its_workers_has_failed_after_so_many_deaths(write, monkeypatch):
    """Its parent lives, and counts; each death is that of another worker."""
    monkeypatch.setattr(lib.ledger, "ATTEMPTS", 2)
    given = lib.sweepfile.read_sweep(write(definition(run_cap=2)))
    ledger = lib.ledger.Ledger("sqlite:///optuna.db", "small", given)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}")
    lib.workers.supervise(ledger, 1, "sqlite:///optuna.db", "small", "disabled", no_images, dies)
    table = ledger.table()
    assert list(table.state) == ["failed", "complete"] and "2 processes have died of it" in table.stopped[0]
    assert [one.user_attrs.get("deaths") for one in ledger.trials()] == [2, None]


def no_images(name):
    """Load nothing."""


def dies(config, data, on_epoch, **about):
    """Train the first trial to death, and the others in no time."""
    (running,) = [one for one in trials() if one.state == TrialState.RUNNING]
    if running.number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    for epoch in range(1, config.epochs + 1):
        on_epoch({"epoch": epoch, **dict.fromkeys(lib.workers.METRICS, 0.5)})
    return dict.fromkeys(lib.tables.RESULTS, 0.5)


@pytest.mark.parametrize("content", [b"\n", b"x", b"to do", b"SQLite format 3\0", b"x" * 511, b"x" * 5000])
@pytest.mark.parametrize("begin", [True, False])
def test_a_file_that_is_not_empty_and_no_database_is_left_as_it_is(content, begin):
    Path("notes").write_bytes(content)
    given = lib.sweepfile.check_sweep({"name": "small", **definition()}) if begin else None
    with pytest.raises(InputError, match="notes is damaged, or no database of SQLite: .*; allowed: "):
        lib.ledger.Ledger("sqlite:///notes", "small", given)
    assert Path("notes").read_bytes() == content


def test_a_name_that_is_not_utf_8_is_refused(monkeypatch):
    name = os.fsdecode(b"\xff")
    with pytest.raises(InputError, match="--storage cannot be used: .* is not UTF-8; allowed: sqlite"):
        lib.ledger.Ledger(f"sqlite:///{name}.db", "small")
    Path(name).mkdir()
    monkeypatch.chdir(name)
    with pytest.raises(InputError, match="in a folder whose name is not UTF-8; allowed: sqlite"):
        lib.ledger.Ledger("sqlite:///a.db", "small")
