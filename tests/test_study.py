"""Studies: trained once, stored, read afterwards; what is stored can be trained again to the same bits."""

import json
from dataclasses import replace

import numpy as np
import pytest

import lib.tables
import study
import sweep
from helpers import METRICS, Config, InputError, Training, evaluate, train
from lib.dataset import load_dataset

SMALL = Config(num_layers=0, batch_size=1000, epochs=2, optimizer="sgd", learning_rate=0.1, weight_decay=0)
STUDIES = sorted(path.stem for path in study.FOLDER.glob("*.csv"))


@pytest.fixture
def counted(monkeypatch):
    """The configs that were trained, in order; in this process, which is quicker."""
    trained = []

    def counting(configs, **options):
        for config in configs:
            trained.append(config)
            yield train(config, load_dataset(config.dataset), **options)

    monkeypatch.setattr(study, "train_all", counting)
    return trained


def test_what_is_missing_is_trained_and_stored_and_the_rest_is_read(tmp_path, counted):
    one, other, third = (replace(SMALL, seed=seed) for seed in (3, 1, 2))
    table = study.study("small", [one, other, one], tmp_path, store=True)
    assert list(table.seed) == [3, 1, 3] and table.iloc[0].equals(table.iloc[2])
    table = study.study("small", [one, other], tmp_path)
    assert counted == [one, other] and list(table.seed) == [3, 1] and table.test_accuracy.isna().all()
    assert [len(history) for history in table.val_accuracy_history] == [2, 2]
    again = study.study("small", [third, one], tmp_path, store=True)
    assert counted == [one, other, third] and list(again.seed) == [2, 3]
    for name in ("val_accuracy", "train_loss", "val_accuracy_history", "seconds", "stopped", "machine"):
        assert again[name][1] == table[name][0], name  # not a bit is lost on the way through the file
    assert sorted(study.load_study("small", tmp_path).seed) == [1, 2, 3]
    tested = study.study("small", [other], tmp_path, test=True, store=True)  # the test images only if asked for
    assert counted[3:] == [other] and 0.6 < tested.test_accuracy[0] < 0.9
    assert study.study("small", [other], tmp_path, test=True).equals(tested) and len(counted) == 4


def test_trying_something_out_changes_no_stored_table(tmp_path, counted):
    study.study("small", [SMALL], tmp_path, store=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    other = replace(SMALL, learning_rate=0.2)
    for _ in range(2):
        table = study.study("small", [SMALL, other], tmp_path, test=True)
        assert list(table.learning_rate) == [0.1, 0.2] and table.test_accuracy.notna().all()
    assert counted == [SMALL, *[SMALL, other] * 2]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_rows_that_another_process_has_added_are_kept(tmp_path, monkeypatch):
    one, other = SMALL, replace(SMALL, seed=1)

    def train_all(configs, **options):
        for config in configs:
            if config == one:
                study.study("small", [other], tmp_path, store=True)
            yield train(config, load_dataset(config.dataset), **options)

    monkeypatch.setattr(study, "train_all", train_all)
    study.study("small", [one], tmp_path, store=True)
    assert sorted(study.load_study("small", tmp_path).seed) == [0, 1]


def test_rows_that_another_process_has_tested_meanwhile_stay_tested(tmp_path, monkeypatch):
    one, other = SMALL, replace(SMALL, seed=1)
    study.study("small", [other], tmp_path, store=True)
    assert study.load_study("small", tmp_path).test_accuracy.isna().all()

    def train_all(configs, **options):
        for config in configs:
            if config == one:
                study.study("small", [other], tmp_path, test=True, store=True)
            yield train(config, load_dataset(config.dataset), **options)

    monkeypatch.setattr(study, "train_all", train_all)
    study.study("small", [one], tmp_path, test=True, store=True)
    assert study.load_study("small", tmp_path).test_accuracy.notna().tolist() == [True, True]


def test_it_is_the_epoch_of_best_validation_accuracy_and_its_weights_are_tested(tmp_path, counted):
    configs = [replace(SMALL, epochs=4, learning_rate=2.0, seed=seed) for seed in range(5)]
    rows = zip(configs, study.study("wild", configs, tmp_path, test=True).to_dict("records"))
    config, row = next(
        (config, row) for config, row in rows if max(row["val_accuracy_history"]) > row["val_accuracy_history"][-1]
    )
    history = row["val_accuracy_history"]
    assert row["epoch"] == 1 + int(np.argmax(history)) and row["val_accuracy"] == max(history)
    data = load_dataset(config.dataset)
    best = train(replace(config, epochs=row["epoch"]), data)
    assert all(row[name] == best.history[-1][name] for name in METRICS)
    assert row["test_accuracy"] == evaluate(best.network, data.x_test, data.y_test)[1]


def test_of_equally_good_epochs_it_is_the_first(tmp_path, monkeypatch):
    accuracies = [0.5, 0.8, 0.7, 0.8]
    rows = [dict.fromkeys(METRICS, 1 / k) | {"epoch": k, "seconds": 1.5} for k in range(1, 5)]
    history = [row | {"val_accuracy": value} for row, value in zip(rows, accuracies)]
    config = replace(SMALL, epochs=4)
    monkeypatch.setattr(study, "train_all", lambda *_, **__: [Training(None, history, "all 4 epochs done")])
    study.study("made", [config], tmp_path, store=True)
    (row,) = study.load_study("made", tmp_path).to_dict("records")
    assert (row["epoch"], row["val_loss"], row["seconds"]) == (2, 0.5, 6)
    assert row["val_accuracy_history"] == accuracies and row["val_loss_history"] == [1, 1 / 2, 1 / 3, 1 / 4]


def test_a_loss_that_is_not_finite_is_a_row_that_says_so(tmp_path, counted):
    config = Config(num_layers=1, hidden_size=8, optimizer="sgd", learning_rate=1e9, epochs=1, batch_size=500)
    for _ in range(2):
        (row,) = study.study("burst", [config], tmp_path, test=True, store=True).to_dict("records")
        assert "not finite" in row["stopped"] and np.isnan(row["val_accuracy"]) and row["val_accuracy_history"] == []
    assert counted == [config]
    again = study.rerun("burst", 0, tmp_path)
    assert again["agrees"] and again["then"]["val_accuracy"] is None and "not finite" in again["now"]["stopped"]


def test_an_interruption_loses_only_what_was_not_finished(tmp_path, monkeypatch):
    from lib.parallel import train_all

    configs = [replace(SMALL, seed=seed) for seed in range(2)]

    def interrupted(configs, **options):
        yield next(train_all(configs, processes=1, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, "train_all", interrupted)
        study.study("small", configs, tmp_path, store=True)
    assert list(study.load_study("small", tmp_path).seed) == [0]


def test_a_row_that_was_made_up_is_found_out(tmp_path, small, monkeypatch):
    monkeypatch.setattr(study, "load_dataset", lambda name: small)
    monkeypatch.setattr(
        study, "train_all", lambda configs, **options: [train(one, small, **options) for one in configs]
    )
    stored = study.study("small", [replace(SMALL, epochs=1)], tmp_path, test=True, store=True)
    again = study.rerun("small", 0, tmp_path)
    assert again["agrees"] and again["same_machine"] and again["row"] == 0
    assert again["table"] == str(tmp_path / "small.csv")
    assert set(again["then"]) == {"epoch", *METRICS, "test_accuracy", "stopped"} and again["then"] == again["now"]

    def agrees(name, by, **others):
        """What `rerun` says if `name` had another value, in its history too."""
        changed = {name: stored[name] + by} | others
        if name in METRICS:
            changed[f"{name}_history"] = [[stored[name][0] + by]]
        lib.tables.write_table(tmp_path / "small.csv", stored.assign(**changed))
        again = study.rerun("small", 0, tmp_path)
        assert again["then"][name] == stored[name][0] + by and again["now"][name] == stored[name][0]
        return again["agrees"]

    for name in (*METRICS, "test_accuracy"):
        assert not agrees(name, 1e-9), name
        assert agrees(name, 0.004, machine="another"), name
        assert not agrees(name, 0.05, machine="another") and not agrees(name, -0.05, machine="another"), name
    assert not agrees("stopped", "!") and agrees("stopped", "!", machine="another")


@pytest.mark.parametrize(
    "argv",
    [[], ["losses", "-1"], ["losses", "x"], ["losses", "²"], ["nothing"], ["nothing", "0"], ["deep", "99"], ["a"] * 3],
)
def test_bad_input_ends_in_a_sentence(argv, capsys):
    assert study.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "allowed: " in err and len(err.splitlines()) == 1
    with pytest.raises(InputError):
        study.load_study("nothing")


def test_the_command_line_trains_what_a_study_does_not_have_and_trains_rows_again(
    tmp_path, counted, monkeypatch, capsys
):
    monkeypatch.setattr(study, "STUDIES", {"small": lib.studies.Study([SMALL, replace(SMALL, seed=1)], test=True)})
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    for _ in range(2):
        assert study.main(["small"]) == 0
        assert json.loads(capsys.readouterr().out) == {"table": str(tmp_path / "small.csv"), "rows": 2}
    assert counted == study.STUDIES["small"].configs
    assert study.load_study("small", tmp_path).test_accuracy.notna().all()
    assert study.main(["small", "1"]) == 0 and json.loads(capsys.readouterr().out)["agrees"]


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_committed_is_what_is_defined(name):
    stored = {lib.tables.config_of(row): row for row in study.load_study(name).to_dict("records")}
    configs, test = study.STUDIES[name]
    assert set(configs) <= set(stored)
    assert not test or not any(lib.tables.missing(stored[config]["test_accuracy"]) for config in configs)


def test_what_is_trained_on_the_digits_are_the_best_trials_of_the_sweeps():
    bayes, random = (sweep.load_results(name) for name in ("bayes", "random"))
    narrow = bayes[bayes.hidden_size == 128]
    best = [lib.tables.config_of(table.nlargest(1, "best_val_accuracy").iloc[0]) for table in (narrow, random)]
    assert [replace(config, epochs=20, dataset="mnist") for config in best] == [
        lib.studies.DIGITS["B"],
        lib.studies.DIGITS["C"],
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_a_row_drawn_at_random_begins_again_as_stored(name):
    """Its first two epochs, which are those of the whole training."""
    table = study.load_study(name)
    row = table.iloc[np.random.default_rng().integers(len(table))]
    history = train(replace(lib.tables.config_of(row), epochs=2), load_dataset(row.dataset)).history
    for metric in ("train_loss", "val_accuracy"):
        now, then = [one[metric] for one in history], row[f"{metric}_history"][:2]
        assert now == then if row.machine == lib.tables.machine() else np.allclose(now, then, atol=0.05), json.dumps(
            [now, then]
        )
