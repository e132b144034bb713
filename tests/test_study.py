"""Studies: trained once, stored, read afterwards; what is stored can be trained again to the same bits."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import lib.tables
import study
from helpers import Config, InputError, train
from lib.dataset import load_dataset

SMALL = Config(num_layers=0, batch_size=1000, epochs=2, optimizer="sgd", learning_rate=0.1, weight_decay=0)
STUDIES = sorted(path.stem for path in study.FOLDER.glob("*.csv"))


@pytest.fixture
def counted(monkeypatch):
    """The configs that were trained, in order."""
    trained, train_all = [], study.train_all

    def counting(configs, **options):
        for config, result in zip(configs, train_all(configs, processes=1, **options), strict=True):
            trained.append(config)
            yield result

    monkeypatch.setattr(study, "train_all", counting)
    return trained


def test_what_is_missing_is_trained_and_stored_and_the_rest_is_read(tmp_path, counted):
    one, other, third = (replace(SMALL, seed=seed) for seed in (3, 1, 2))
    table = study.study("small", [one, other], tmp_path)
    assert counted == [one, other] and list(table.seed) == [3, 1] and table.test_accuracy.isna().all()
    assert [len(history) for history in table.val_accuracy_history] == [2, 2]
    again = study.study("small", [third, one], tmp_path)
    assert counted == [one, other, third] and list(again.seed) == [2, 3]
    for name in ("val_accuracy", "train_loss", "val_accuracy_history", "seconds", "stopped", "machine"):
        assert again[name][1] == table[name][0], name  # not a bit is lost on the way through the file
    assert sorted(study.load_study("small", tmp_path).seed) == [1, 2, 3]
    tested = study.study("small", [other], tmp_path, test=True)  # the test images only where they are asked for
    assert counted[3:] == [other] and 0.6 < tested.test_accuracy[0] < 0.9


def test_it_is_the_epoch_of_best_validation_accuracy(tmp_path, counted):
    config = replace(SMALL, epochs=4, learning_rate=2.0)
    (row,) = study.study("wild", [config], tmp_path, test=True).to_dict("records")
    history = row["val_accuracy_history"]
    assert row["epoch"] == 1 + int(np.argmax(history)) and row["val_accuracy"] == max(history) > history[-1]


def test_a_loss_that_is_not_finite_is_a_row_that_says_so(tmp_path, counted):
    config = Config(num_layers=1, hidden_size=8, optimizer="sgd", learning_rate=1e9, epochs=1, batch_size=500)
    for _ in range(2):
        (row,) = study.study("burst", [config], tmp_path, test=True).to_dict("records")
        assert "not finite" in row["stopped"] and np.isnan(row["val_accuracy"]) and row["val_accuracy_history"] == []
    assert counted == [config]


def test_an_interruption_loses_only_what_was_not_finished(tmp_path, monkeypatch):
    from lib.parallel import train_all

    configs = [replace(SMALL, seed=seed) for seed in range(2)]

    def interrupted(configs, **options):
        yield next(train_all(configs, processes=1, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(study, "train_all", interrupted)
        study.study("small", configs, tmp_path)
    assert list(study.load_study("small", tmp_path).seed) == [0]


def test_a_row_that_was_made_up_is_found_out(tmp_path, counted, monkeypatch, capsys):
    study.study("small", [SMALL], tmp_path)
    assert study.rerun("small", 0, tmp_path)["agrees"]
    table = pd.read_csv(tmp_path / "small.csv")
    table.assign(val_accuracy=table.val_accuracy + 1e-9).to_csv(tmp_path / "small.csv", index=False)
    assert not study.rerun("small", 0, tmp_path)["agrees"]


@pytest.mark.parametrize("argv", [[], ["losses"], ["losses", "-1"], ["losses", "x"], ["nothing", "0"], ["deep", "99"]])
def test_bad_input_ends_in_a_sentence(argv, capsys):
    assert study.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and "allowed: " in err and len(err.splitlines()) == 1
    with pytest.raises(InputError):
        study.load_study("nothing")


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
