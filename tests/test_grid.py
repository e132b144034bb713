"""grid.py: the grid resumes from whatever is left of it, its table says what was trained, and the analysis is exact."""

import dataclasses
import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from test_sweep import alone, tiny  # noqa: F401

import grid
import helpers
import lib.anova
import lib.dataset
import lib.ledger
import lib.replay
import lib.sweepfile
import lib.tables
import lib.workers
from helpers import Config, InputError

ROOT = Path(__file__).resolve().parents[1]
VALUES = {name: list(lib.anova.SPACE.space[name].choices) for name in lib.anova.PARAMETERS}


def definition(**values):
    """A grid of six quick trainings of the course's space: two learning rates, three optimisers."""
    first = {name: [values[0]] for name, values in VALUES.items()}
    given = first | {"learning_rate": [0.001, 0.0001], "optimizer": ["sgd", "adam", "nadam"], "activation": ["tanh"]}
    parameters = {name: {"values": v} for name, v in (given | values).items()} | {"epochs": {"value": 10}}
    metric = {"name": "val_accuracy", "goal": "maximize"}
    return {"program": "train.py", "name": "grid", "method": "grid", "metric": metric, "parameters": parameters}


def begin(storage="sqlite:///grid.db", **values):
    return lib.ledger.Ledger(storage, "grid", lib.sweepfile.check_sweep(definition(**values)))


def train(ledger, count):
    """Train this many trials of it, in this process."""
    for _ in range(count):
        trial = ledger.claim()
        ledger.finish(trial, lib.workers.train_trial(ledger, trial, tiny, "disabled", lib.anova.train_and_test))


def config(row):
    return Config(**{name: row[name] for name in lib.anova.PARAMETERS}, epochs=10)


# -------------------------------------------------------------------------------------------------------- the trainings


def test_any_prefix_of_the_grid_is_a_balanced_sample():
    rows = pd.DataFrame([lib.sweepfile.suggest(lib.anova.SPACE, range(n), 0) for n in range(500)])
    for n in (54, 150, 500):
        for name, values in VALUES.items():
            share = rows[:n][name].value_counts().reindex(values, fill_value=0) * len(values) / n
            assert abs(share - 1).max() < 0.12, (n, name)
    pairs = [rows.groupby([a, b]).size() for a in VALUES for b in VALUES if a < b]
    assert len(pairs) == 28 and max(abs(pair / pair.mean() - 1).max() for pair in pairs) < 0.11  # drawn: about 0.5


def test_the_table_holds_what_plain_training_gives_and_the_test_accuracy_of_two_epochs():
    ledger = begin()
    train(ledger, 6)
    table = grid.export("sqlite:///grid.db", "grid.csv.gz")
    assert list(table.columns) == list(lib.anova.GRID) and list(table.number) == list(range(6))
    assert set(zip(table.optimizer, table.learning_rate)) == {
        (o, lr) for o in ("sgd", "adam", "nadam") for lr in (1e-3, 1e-4)
    }
    data = tiny("")
    for row in table.to_dict("records"):
        history = helpers.train(config(row), data).history[: 10 if row["state"] == "complete" else 3]
        for metric, names in lib.anova.CURVES.items():
            values = [one[metric] for one in history]
            assert [float(row[name]) for name in names[: len(values)]] == values, "not to the last bit"
            assert all(np.isnan(row[name]) for name in names[len(values) :])
        for epoch in (5, 10) if row["state"] == "complete" else ():
            network = helpers.train(dataclasses.replace(config(row), epochs=epoch), data).network
            assert row[f"test_accuracy_{epoch}"] == helpers.evaluate(network, data.x_test, data.y_test)[1]
        assert row["seconds"] >= 0 and row["machine"] == lib.tables.machine()


@pytest.mark.parametrize(
    "accuracies, losses, epochs",
    [
        ([0.1] * 10, [2.3] * 10, 3),
        ([0.1, 0.115, 0.085] + [0.1] * 7, [2.3] * 10, 3),
        ([0.1, 0.13] + [0.1] * 8, [2.3] * 10, 10),  # it has been elsewhere
        ([0.1, 0.07] + [0.1] * 8, [2.3] * 10, 10),
        ([0.1] * 10, np.linspace(2.4, 2.3, 10), 10),  # it still learns
        ([0.1] * 10, [2.4, 2.35, 2.34, 2.32, *[2.32] * 6], 5),
        ([0.8] + [0.1] * 9, [2.3] * 10, 10),
    ],
)
def test_only_a_training_that_sits_at_chance_and_does_not_learn_ends_early(accuracies, losses, epochs, monkeypatch):
    def fake(config, data, on_epoch, network, **about):
        for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), 1):
            if stop := on_epoch({"epoch": epoch, "val_accuracy": accuracy, "train_loss": loss}):
                break
        return {"epochs": epoch, "stopped": stop}

    monkeypatch.setattr(lib.anova, "train_and_log", fake)
    result = lib.anova.train_and_test(Config(num_layers=1, hidden_size=8, epochs=10), tiny(""))
    assert result["epochs"] == epochs and (epochs == 10) == (result["stopped"] is None)
    assert epochs == 10 or f"at chance for {epochs} epochs" in result["stopped"]
    assert (result["test_accuracy_10"] is None) == (epochs < 10)


def test_a_loss_that_is_not_finite_is_a_row_with_the_epochs_before():
    path, storage = "grid.csv.gz", "sqlite:///grid.db"
    ledger = begin()
    trial = ledger.claim()
    outcome = lib.workers.train_trial(ledger, trial, tiny, "disabled", lib.anova.train_and_test)
    outcome |= {"state": "not finite", "stopped": "train_loss not finite in epoch 3", "val_accuracy": None}
    outcome |= dict.fromkeys(lib.anova.TESTS)
    outcome |= {f"{metric}_history": outcome[f"{metric}_history"][:2] for metric in lib.anova.CURVES}
    ledger.finish(trial, outcome)
    row = grid.export(storage, path).iloc[0]
    assert row.state == "not finite" and row.val_accuracy_2 > 0 and np.isnan(row.val_accuracy_3)
    again = begin("sqlite:///clone.db")
    grid.adopt(again, lib.anova.load_grid(path))
    pd.testing.assert_frame_equal(grid.export("sqlite:///clone.db", "again.csv.gz"), lib.anova.load_grid(path))


def test_a_clone_goes_on_from_a_committed_table_and_trains_no_row_of_it_again(monkeypatch):
    ledger = begin()
    train(ledger, 2)
    ledger.claim()  # in work elsewhere when the table was written
    trial = ledger.claim()
    ledger.finish(trial, lib.workers.train_trial(ledger, trial, tiny, "disabled", lib.anova.train_and_test))
    table = grid.export("sqlite:///grid.db", "grid.csv.gz")
    assert list(table.number) == [0, 1, 3]
    clone = begin("sqlite:///clone.db")
    grid.adopt(clone, table)
    grid.adopt(clone, table)  # the command again, after a stop
    pd.testing.assert_frame_equal(grid.export("sqlite:///clone.db", "clone.csv.gz"), table)
    assert clone.claim().number == 2 and clone.claim().number == 4
    with pytest.raises(InputError, match="row 0 "):
        grid.adopt(begin("sqlite:///other.db"), table.replace({"learning_rate": {0.001: 0.0001, 0.0001: 0.001}}))


def test_one_command_to_the_end_after_a_kill_and_rows_drawn_at_random_come_out_again(monkeypatch):
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import grid, lib.sweepfile, test_grid; "
    )
    code += "space = lib.sweepfile.check_sweep(test_grid.definition()); "
    code += "grid.run(2, 'sqlite:///grid.db', 'grid.csv.gz', test_grid.tiny, space)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while "trial 1," not in (line := process.stderr.readline()) and line:
        pass
    process.kill()
    process.communicate()
    before = grid.export("sqlite:///grid.db", "partial.csv.gz")
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    table = lib.anova.load_grid("grid.csv.gz")
    assert 2 <= len(before) <= len(table) == 6
    pd.testing.assert_frame_equal(table[table.number.isin(before.number)].reset_index(drop=True), before)
    for number in np.random.default_rng().choice(6, 2, replace=False):
        again = grid.rerun(int(number), "grid.csv.gz", tiny)
        assert again["agrees"] and again["same_machine"] and again["then"] == again["now"]
        assert set(again["then"]) == {"val_accuracy", "stopped", *lib.anova.TESTS}
    changed = table.assign(train_loss_2=np.nextafter(table.train_loss_2, np.float32(9)))
    changed.to_csv("changed.csv.gz", index=False)
    assert not grid.rerun(0, "changed.csv.gz", tiny)["agrees"]
    changed.assign(machine="another").to_csv("changed.csv.gz", index=False)
    assert grid.rerun(0, "changed.csv.gz", tiny)["agrees"]


def test_the_command_line(capsys):
    train(begin(), 2)
    here = ["--folder", ".", "--storage", "sqlite:///grid.db"]
    assert grid.main(["export", *here]) == 0
    states = lib.anova.load_grid("grid.csv.gz").state.value_counts().to_dict()
    assert json.loads(capsys.readouterr().out) == {"table": "grid.csv.gz", "rows": 2, "of": 5832, **states}
    here = ["--folder", "."]
    wrong = {
        "rerun": "N is missing",
        "rerun x": "N is 'x'",
        "rerun 2": "the row is 2; allowed",
        "seeds 3": "N is 3",
        "fly": "what is 'fly'",
        "--workers 0": "--workers is '0'",
        "--workers 9999": "--workers is '9999'",
        "--storage redis://a": "redis",
        "rerun 1 --workers 2": "--workers is given with rerun; allowed: without a command, which trains the grid",
        "seeds --storage sqlite:///grid.db": "--storage is given with seeds; allowed: ",
        "replay --workers 2": "--workers is given with replay",
        "export --workers 2": "--workers is given with export",
        "export --backend numpy": "--backend is given with export",
        "seeds": "the table has 2 complete trainings; allowed for seeds: 20 or more",
    }
    for argv, said in wrong.items():
        assert grid.main([*here, *argv.split()]) == 2, argv
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and said in err and not out
    train(ledger := begin(), 3)
    finished = len(ledger.trials())
    assert grid.main(["export", *here, "--storage", "sqlite:///grid.db"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == finished == 5


def test_a_table_is_not_replaced_by_one_without_its_trainings():
    train(begin(), 2)
    grid.export("sqlite:///grid.db", "grid.csv.gz")
    before = Path("grid.csv.gz").read_bytes()
    begin("sqlite:///empty.db")
    train(begin("sqlite:///other.db", optimizer=["sgd", "momentum"]), 3)  # the same numbers, other trainings
    for storage in ("sqlite:///empty.db", "sqlite:///other.db"):
        with pytest.raises(InputError, match="grid.csv.gz would lose [12] trainings, which the storage does not have"):
            grid.export(storage, "grid.csv.gz")
        assert Path("grid.csv.gz").read_bytes() == before


@pytest.mark.parametrize("flag", ["storage", "backend"])
def test_a_flag_is_checked_where_nothing_is_left_to_train(flag, monkeypatch):
    Path("grid.csv.gz").touch()
    monkeypatch.setattr(grid, "load_grid", lambda path: range(lib.anova.SPACE.count))
    assert len(grid.run(path="grid.csv.gz")) == lib.anova.SPACE.count
    with pytest.raises(InputError, match=f"^--{flag} .*'nonsense'.*; allowed: "):
        grid.run(path="grid.csv.gz", **{flag: "nonsense"})


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_trained(monkeypatch):
    Path("file").touch()
    monkeypatch.setattr(grid, "supervise", None)
    with pytest.raises(InputError, match="--folder is 'file', which cannot be used: .*; allowed: a folder"):
        grid.run(1, "sqlite:///grid.db", "file/grid.csv.gz", tiny)
    with pytest.raises(InputError, match="--folder is 'file'"):
        grid.seeds(fake(40), path="file/seeds.csv")
    assert not Path("grid.db").exists()


def test_a_file_that_is_no_table_is_refused():
    Path("bad.csv.gz").write_bytes(b"number,state\n")
    for path in ("none.csv.gz", "bad.csv.gz"):
        with pytest.raises(InputError, match=path):
            lib.anova.load_grid(path)


# ------------------------------------------------------------------------------------------------------------- analysis


def whole(values=VALUES):
    """Every point of a space."""
    points = pd.DataFrame(itertools.product(*values.values()), columns=list(values))
    return points.assign(number=np.arange(len(points)))


def index(table, name):
    return table[name].map(VALUES[name].index).to_numpy()


def test_the_decomposition_of_a_whole_table_is_exact():
    table = whole()
    a, b, c = index(table, "activation"), index(table, "learning_rate"), index(table, "optimizer")
    main = np.array([3.0, -1, -2])[a]  # variance 14/3
    pair = np.where(b == 1, 1, -1) * np.array([5.0, 1, -1, -1, -2, -2])[c]  # variance 6
    triple = np.where(b == 1, 1, -1) * np.array([1.0, 0, -1])[a] * np.array([1.0, -1, 0, 0, 0, 0])[c]  # variance 2/9
    shares = lib.anova.decomposition(table, pd.Series(7 + main + pair + triple))
    total = 14 / 3 + 6 + 2 / 9
    assert list(shares.index[:2]) == [("learning_rate", "optimizer"), ("activation", "")] and len(shares) == 8 + 28 + 1
    assert shares["learning_rate", "optimizer"] == pytest.approx(6 / total, abs=1e-12)
    assert shares["activation", ""] == pytest.approx(14 / 3 / total, abs=1e-12)
    assert shares["rest", ""] == pytest.approx(2 / 9 / total, abs=1e-12)
    assert abs(shares.drop([("learning_rate", "optimizer"), ("activation", ""), ("rest", "")])).max() < 1e-12


def test_the_decomposition_is_that_of_a_least_squares_fit():
    """In the orthonormal contrasts of each parameter, and their products, the squares of the coefficients add up."""
    table, y = whole(), pd.Series(np.random.default_rng(0).normal(size=5832))
    one = {}
    for name, values in VALUES.items():
        q, _ = np.linalg.qr(np.column_stack([np.ones(len(values)), np.eye(len(values))[:, 1:]]))
        one[name] = q[index(table, name), 1:] * np.sqrt(len(values))
    terms = {(name, ""): x for name, x in one.items()}
    for a, b in itertools.combinations(VALUES, 2):
        terms[a, b] = (one[a][:, :, None] * one[b][:, None, :]).reshape(len(table), -1)
    c = np.linalg.lstsq(np.column_stack([np.ones(len(table)), *terms.values()]), y, rcond=None)[0][1:]
    squares = np.split(c**2, np.cumsum([x.shape[1] for x in terms.values()])[:-1])
    shares = lib.anova.decomposition(table, y)
    for term, each in zip(terms, squares, strict=True):
        assert shares[term] == pytest.approx(each.sum() / y.var(ddof=0), abs=1e-12)
    assert shares.sum() == pytest.approx(1)


def test_what_needs_the_whole_table_refuses_a_part():
    table = whole()
    y = pd.Series(np.arange(5832.0))
    twice = pd.concat([table[:1], table[:-1]]).reset_index(drop=True)
    for part in (table[:-1], twice):
        with pytest.raises(InputError, match="5,831 trainings; allowed: all 5,832"):
            lib.anova.decomposition(part, y[: len(part)])
        with pytest.raises(InputError, match="5,831 trainings; allowed: all 5,832"):
            lib.replay.replays(part, 1, "replays.csv.gz")


def fake(n=5832, seed=0):
    """A table as load_grid returns it, whose val_accuracy grows by 0.01 an epoch to one that each row has drawn."""
    table, rng = whole(), np.random.default_rng(seed)
    last = rng.permutation(np.linspace(0.3, 0.9, len(table)))
    for epoch, name in enumerate(lib.anova.CURVES["val_accuracy"], 1):
        table[name] = last - 0.01 * (10 - epoch)
    return table.sample(n, random_state=seed).sort_values("number").assign(state="complete", machine="this")


def test_accuracy_of_a_training_that_has_ended_is_its_last():
    table = fake(4)
    table.iloc[0, table.columns.get_loc("val_accuracy_4") :] = np.nan
    table.iloc[1, table.columns.get_loc("val_accuracy_1") :] = np.nan
    assert lib.anova.accuracy(table).tolist() == [table.val_accuracy_3.iloc[0], 0.1, *table.val_accuracy_10.iloc[2:]]
    assert lib.anova.accuracy(table, 2).tolist() == [table.val_accuracy_2.iloc[0], 0.1, *table.val_accuracy_2.iloc[2:]]


def test_marginals():
    table = whole()
    y = pd.Series(index(table, "optimizer") + np.where(table.batch_size == 64, 10.0, 0))
    row = lib.anova.marginals(table, y).loc["optimizer", "nag"]
    assert (row["count"], row["median"], row["best"]) == (972, 2, 12) and row["mean"] == pytest.approx(2 + 10 / 3)
    assert row["std"] == pytest.approx(np.sqrt(200 / 9), rel=1e-3) and len(lib.anova.marginals(table, y)) == 25


def test_a_part_of_the_space_is_decomposed_as_a_space_of_its_own():
    table = whole()
    y = pd.Series(index(table, "activation") + 100.0 * (table.weight_decay == 0.5))
    part, space = lib.anova.part_of(table, {"weight_decay": [0, 0.0005]})
    assert len(part) == 5832 * 2 // 3
    assert lib.anova.decomposition(part, y[part.index], space)["activation", ""] == pytest.approx(1)


def test_fanova_sees_the_sample_alone():
    table = whole()
    y = pd.Series(index(table, "activation") + 0.3 * index(table, "optimizer") + 0.1 * index(table, "num_layers"))
    draws = lib.anova.fanova(table, y, 60, draws=2)
    assert draws.shape == (2, 8) and not draws.iloc[0].equals(draws.iloc[1])
    first, second = (table.sample(60, random_state=seed).index for seed in range(2))
    again = lib.anova.fanova(table, y.where(~y.index.isin(second.difference(first)), 99.0), 60, draws=2)
    assert again.iloc[0].equals(draws.iloc[0]) and not again.iloc[1].equals(draws.iloc[1])


def searched(parameters, **columns):
    """The table of a sweep over these parameters, with these columns."""
    about = {"program": "train.py", "name": "small", "method": "random", "run_cap": 3}
    about |= {"metric": {"name": "val_accuracy"}, "parameters": parameters}
    table = pd.DataFrame(columns)
    table.attrs = {"definition": lib.sweepfile.check_sweep(about).definition}
    return table


def test_importance_is_of_the_parameter_that_decides_and_its_sign_is_the_right_one():
    rng, n = np.random.default_rng(0), 60
    rate, decay = 10 ** rng.uniform(-4, -1, n), rng.choice([0, 0.5], n)
    optimizer, widths = rng.choice(["sgd", "adam"], n), [(24, 16) if one else 16 for one in rng.integers(2, size=n)]
    y = 0.2 * np.log10(rate) - 0.1 * (decay > 0) + 0.05 * (optimizer == "adam")
    parameters = {
        "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "weight_decay": {"values": [0, 0.5]},
        "optimizer": {"values": ["sgd", "adam"]},
        "hidden_size": {"values": [16, [24, 16]]},
        "epochs": {"value": 5},
    }
    given = {"learning_rate": rate, "weight_decay": decay, "optimizer": optimizer, "hidden_size": widths, "epochs": 5}
    table = searched(parameters, **given, best_val_accuracy=y, val_loss=-y)
    worth = lib.anova.importance(table, seeds=range(2)).set_index("name")
    shares = worth.importance.dropna()
    assert list(shares.index[:3]) == ["learning_rate", "weight_decay", "optimizer"]
    assert set(shares.index) == parameters.keys() - {"epochs"} and shares["hidden_size"] < 0.02 < 0.6 < shares.iloc[0]
    assert (worth.deviation[shares.index] < 0.1).all() and (worth.deviation[shares.index] > 0).any()
    named = {f"optimizer: {name}" for name in ("sgd", "adam")} | {"hidden_size: (24, 16)", "hidden_size: 16"}
    assert set(worth.index) == named | set(shares.index) and worth.importance[list(named)].isna().all()
    assert worth.correlation["learning_rate"] > 0.7 and worth.correlation["weight_decay"] < -0.15
    assert worth.correlation["optimizer: adam"] > 0.1 and worth.correlation["optimizer: sgd"] < -0.1
    rank = pd.Series(y).corr(pd.Series(rate), "spearman")
    assert worth.correlation["learning_rate"] == pytest.approx(rank)
    losses = lib.anova.importance(table, "val_loss", [0]).set_index("name")
    assert losses.correlation["learning_rate"] == pytest.approx(-rank)  # the loss falls with what helps
    extreme = table.assign(learning_rate=table.learning_rate.where(table.index > 20, 1e-4))
    extreme.best_val_accuracy = table.best_val_accuracy.where(table.index > 20)  # without a metric: left out
    extreme.attrs = table.attrs
    known = lib.anova.importance(extreme, seeds=[0]).set_index("name").correlation["learning_rate"]
    assert known == pytest.approx(pd.Series(y[21:]).corr(pd.Series(rate[21:]), "spearman"))


def test_first_epoch():
    table = fake(4)
    for epoch, name in enumerate(lib.anova.CURVES["val_accuracy"], 1):
        table[name] = [0.9, 0.8 + 0.01 * epoch, 0.1, np.nan if epoch > 3 else 0.1]
    epochs = lib.anova.first_epoch(table, 0.855)
    assert epochs.tolist()[:2] == [1, 6] and epochs.isna().tolist() == [False, False, True, True]


def test_a_random_search_needs_as_many_runs_as_chance_says(monkeypatch):
    monkeypatch.setattr(lib.replay, "process_pool", lambda: ThreadPoolExecutor(1))  # quicker to start
    table = fake()
    monkeypatch.setattr(lib.replay, "SEARCHES", [("random", False)])
    found = lib.replay.replays(table, 400, "replays.csv.gz")
    regret, needed = lib.replay.regrets(table, found, [9, 10, 100, 1000], within=0.02)
    share = (table.val_accuracy_10 >= 0.88).mean()  # one in 30: half of all have found one after 21 runs
    assert needed.loc[("random", False, "median"), "runs"] == pytest.approx(np.log(0.5) / np.log(1 - share), abs=4)
    assert (needed.epochs == 10 * needed.runs).all()
    medians = regret.loc["random", False, "median"]
    assert medians[9] == 0.8 and medians[10] == pytest.approx(0.3, abs=0.04)
    assert medians[100] == pytest.approx(0.6 * np.log(2) / 10, abs=0.01)
    assert medians[1000] == pytest.approx(0.6 * np.log(2) / 100, abs=0.002)
    for name, share in (("q10", 0.9), ("median", 0.5), ("q90", 0.1)):  # of ten runs all are above it
        assert regret.loc[("random", False, name), 100] == pytest.approx(0.6 * (1 - share**0.1), rel=0.25), name
    assert (
        needed.runs["random", False, "q10"]
        < needed.runs["random", False, "median"]
        < needed.runs["random", False, "q90"]
    )


def test_a_replay_of_a_training_that_the_grid_does_not_have_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(lib.replay, "process_pool", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(lib.replay, "SEARCHES", [("random", False)])
    table, path = fake(), tmp_path / "replays.csv.gz"
    stored = lib.replay.replays(table, 2, path)
    lib.tables.write_table(path, stored.assign(number=stored.number.where(stored.index > 0, 999_999)))
    with pytest.raises(InputError, match="number is 999999; allowed: trainings of the grid"):
        lib.replay.load_replays(table, path, 2)
    lib.tables.write_table(path, pd.concat([stored, stored]))
    with pytest.raises(InputError, match="have the same search, hyperband, seed, runs"):
        lib.replay.load_replays(table, path, 2)


def test_a_training_right_on_a_bound_is_within_it():
    table = fake(700)
    images = 5400 - np.arange(700)  # right out of 6,000: the best 5,400, the 30th after it is 0.005 below
    for best in range(100):  # for some of which the difference of the floats is above 0.005, for some below
        table["val_accuracy_10"] = (images - best) / 6000
        assert (lib.replay.regret(table) <= 0.005).sum() == 31
    assert list(lib.replay.regret(table).index) == list(table.number)
    assert lib.replay.regret(table).iloc[[0, 6]].tolist() == [0, 0.001]


@pytest.fixture
def asked(monkeypatch):
    """The rows of a whole table that searches by tpe have asked for."""
    rows, plain = [], lib.replay.tpe
    monkeypatch.setattr(lib.replay, "tpe", lambda *args: rows.append(x := plain(*args)) or x)
    yield lambda: [int(np.ravel_multi_index(x, lib.replay.SHAPE)) for x in rows]


@pytest.mark.parametrize("hyperband", [False, True])
def test_tpe_suggests_what_optuna_suggests(hyperband, asked):
    """All of a search, with the same numbers drawn at random: every suggestion is a function of those before it."""
    table = fake()
    table["val_accuracy_10"] -= 0.05 * sum((index(table, name) - 1) ** 2 for name in VALUES)
    curves, points = lib.replay._curves(table), lib.replay.points_of(table)
    lib.replay.replay(curves, points, "tpe", hyperband, 5, budget=400)
    sampler = optuna.samplers.TPESampler(seed=5, multivariate=True)
    study, seen = optuna.create_study(sampler=sampler, direction="maximize"), {1: [], 3: []}
    for row in asked():
        trial = study.ask({name: lib.anova.SPACE.space[name] for name in VALUES})
        assert [VALUES[name].index(trial.params[name]) for name in VALUES] == points[row].tolist(), trial.number
        for band in seen if hyperband else ():
            seen[band].append(curves[row, band - 1])
            trial.report(curves[row, band - 1], band)
            if sum(value > curves[row, band - 1] for value in seen[band]) > len(seen[band]) // 3:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curves[row, -1])
    assert len(asked()) == 40 if not hyperband else len(asked()) > 80


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_replay_is_what_sweep_py_would_do(search, asked):
    """The same suggestions, ended at the same bands, by the ledger of a sweep."""
    table = fake()
    curves = lib.replay._curves(table)
    found = lib.replay.replay(curves, lib.replay.points_of(table), search, True, 3, budget=120)
    asked = asked() if search == "tpe" else np.random.default_rng(3).integers(5832, size=200).tolist()
    given = definition() | {"method": "random", "run_cap": 200}
    given["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 3}
    ledger, spent, best, expected = (
        lib.ledger.Ledger("sqlite:///other.db", "grid", lib.sweepfile.check_sweep(given)),
        0,
        -1,
        [],
    )
    for runs, row in enumerate(asked, 1):
        trial = ledger.claim()
        ends = (e for e in range(1, 11) if ledger.verdict(trial, {"epoch": e, "val_accuracy": curves[row, e - 1]}))
        epochs = next(ends, 10)
        spent += epochs
        if epochs == 10 and curves[row, 9] > best and spent <= 120:
            best = curves[row, 9]
            expected.append((runs, spent, row))
        if spent >= 120:
            break
    assert found == expected and len(expected) > 1 and runs > 20
    assert search == "random" or runs == len(asked)


def test_tpe_finds_what_random_does_not_and_goes_on_where_it_was(tmp_path):
    table = whole()
    y = sum((index(table, name) - 1) ** 2 for name in ("optimizer", "activation", "batch_size", "weight_decay"))
    for name in lib.anova.CURVES["val_accuracy"]:
        table[name] = 0.9 - 0.02 * y - 0.0001 * table.number / 5832
    table = table.sample(frac=1, random_state=0)
    first = lib.replay.replays(table, 1, "replays.csv.gz")
    both = lib.replay.replays(table, 4, "replays.csv.gz")
    pd.testing.assert_frame_equal(both[both.seed < 1].reset_index(drop=True), first, check_dtype=False)
    assert set(both.table) == set(first.table) and both.number.isin(table.number).all()
    _, needed = lib.replay.regrets(table, both, [1000])
    assert needed.loc[("tpe", False, "median"), "runs"] < needed.loc[("random", False, "median"), "runs"]
    assert lib.replay.load_replays(table, "replays.csv.gz", 4).equals(pd.read_csv("replays.csv.gz"))
    with pytest.raises(InputError, match="has 16 replays of this table; allowed: all 20,"):
        lib.replay.load_replays(table, "replays.csv.gz", 5)
    soon = lib.replay.after(both, 5)
    for one, number in soon.items():
        mine = both[(both[["search", "hyperband", "seed"]] == list(one)).all(axis=1) & (both.runs <= 5)]
        values = table.set_index("number").val_accuracy_10[mine.number]
        assert number == mine.number.iloc[-1] and values.iloc[-1] == values.max()
    grown = table.assign(val_accuracy_1=0.1)  # another table
    with pytest.raises(InputError, match="has 0 replays of this table"):
        lib.replay.load_replays(grown, "replays.csv.gz", 1)
    other = lib.replay.replays(grown, 1, "replays.csv.gz")
    assert not set(other.table) & set(both.table)


def test_seeds_trains_the_best_and_some_of_the_others_and_goes_on_where_it_was(monkeypatch):
    table = fake(40)
    pruned, best = table.nlargest(2, "val_accuracy_10").number
    table.loc[table.number == pruned, "state"] = "pruned"
    asked = []

    def train_all(configs):
        for config in configs:
            asked.append(config)
            yield helpers.train(dataclasses.replace(config, epochs=4, hidden_size=8), tiny(""))

    monkeypatch.setattr(grid, "train_all", train_all)
    monkeypatch.setattr(grid, "load_dataset", tiny)
    done = grid.seeds(table, 4, range(3), "seeds.csv")
    assert len(done) == len(set(asked)) == 12 and {config.seed for config in asked} == {0, 1, 2}
    assert (
        set(done.number) == {best, *done.number} - {pruned}
        and table.nsmallest(1, "val_accuracy_10").number.isin(done.number).all()
    )
    later = []  # whether another epoch was better than the last
    for row, one in zip(done.to_dict("records"), asked):
        trained = helpers.train(dataclasses.replace(one, epochs=4, hidden_size=8), tiny(""))
        assert one == dataclasses.replace(config(table[table.number == row["number"]].iloc[0]), seed=row["seed"])
        accuracies = [one["val_accuracy"] for one in trained.history]
        assert row["val_accuracy"] == accuracies[-1]
        later.append(max(accuracies) > accuracies[-1])
        assert row["test_accuracy"] == helpers.evaluate(trained.network, tiny("").x_test, tiny("").y_test)[1]
    assert any(later)
    lib.tables.write_table("seeds.csv", done[done.seed != 2])
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="seed 2 cannot be tested: .* not finite in epoch"),
    ):
        end = helpers.Training(None, [], "train_loss not finite in epoch 1")
        patch.setattr(grid, "train_all", lambda configs: [end for _ in configs])
        grid.seeds(table, 4, range(3), "seeds.csv")
    asked.clear()
    again = grid.seeds(table, 4, range(3), "seeds.csv")
    assert {one.seed for one in asked} == {2} and len(asked) == 4
    order = ["number", "seed"]
    pd.testing.assert_frame_equal(
        again.sort_values(order, ignore_index=True), done.sort_values(order, ignore_index=True)
    )
    with pytest.raises(InputError, match="has 12 trainings with further seeds; allowed: all 16,"):
        grid.load_seeds(table, "seeds.csv", 4, range(4))
    best = table[table.state == "complete"].nlargest(1, "val_accuracy_10").number.iloc[0]
    other = table.assign(state=table.state.where(table.number != best, "pruned"))  # the table has changed
    for one, path in ((other, "seeds.csv"), (table, "none.csv")):
        with pytest.raises(InputError, match="allowed: all 12,"):
            grid.load_seeds(one, path, 4, range(3))


# ---------------------------------------------------------------------------------------------------- what is committed


def test_the_committed_table_is_whole_and_a_row_and_replays_drawn_at_random_come_out_again():
    table, rng = lib.anova.load_grid(), np.random.default_rng()
    lib.anova.check_whole(table)
    assert (ROOT / "data" / "grid.csv.gz").stat().st_size < 5e6
    row = table.iloc[rng.integers(len(table))]
    same = row.machine == lib.tables.machine()
    again = helpers.train(
        dataclasses.replace(config(row), epochs=1), lib.dataset.load_dataset("fashion_mnist")
    ).history[0]
    assert again["val_accuracy"] == pytest.approx(row.val_accuracy_1, abs=0 if same else 0.05), row.number
    stored, seed = lib.replay.load_replays(table), int(rng.integers(1000))
    for search, hyperband in (
        lib.replay.SEARCHES if same else lib.replay.SEARCHES[:2]
    ):  # of tpe the last bits of a density decide
        found = lib.replay.replay(lib.replay._curves(table), lib.replay.points_of(table), search, hyperband, seed)
        mine = stored[(stored.search == search) & (stored.hyperband == hyperband) & (stored.seed == seed)]
        assert [one[:2] for one in found] == list(zip(mine.runs, mine.epochs)), (search, hyperband, seed)
        assert table.number.iloc[[one[2] for one in found]].tolist() == mine.number.tolist()
